package xdp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/halfproxy/halfproxy/internal/packet"
	"github.com/halfproxy/halfproxy/lb"
)

func trace(t testing.TB, d *Dataplane, protocol lb.Protocol, source, destination string, connectionID ...byte) Trace {
	t.Helper()
	got, err := d.Trace(protocol, netip.MustParseAddrPort(source), netip.MustParseAddrPort(destination), connectionID...)
	if err != nil {
		t.Fatalf("Trace: %v", err)
	}
	return got
}

// What Trace says of a flow is held against what Process does with packets of
// the flow: those of the tests, not those that Trace makes.
func TestATraceTellsWhatHappensToTheFlowsPackets(t *testing.T) {
	d := newDataplane(t)
	const backends = 7
	near, far := make(map[string]string), make(map[string]string) // by MAC address, which tells backends apart
	var nearNames, farNames []string
	for n := range backends {
		a4, a6 := fmt.Sprintf("203.0.113.%d", n+1), fmt.Sprintf("2001:db8:3::%x", n+1)
		mac4, mac6 := fmt.Sprintf("02:00:00:00:04:%02x", n), fmt.Sprintf("02:00:00:00:06:%02x", n)
		near[mac4], far[mac6] = a4, a6
		nearNames, farNames = append(nearNames, a4), append(farNames, a6)
		d.setWay(a4, way{mac: mac4, source: node4, ifindex: 1, mtu: 1500})
		d.setWay(a6, way{mac: mac6, source: node6, ifindex: 7, mtu: 1500})
	}
	const guePort = 6080
	gue := table("gue", lb.GUE, 1021, vips(0x12), nearNames...)
	gue.Service.GUEPort = guePort
	apply(t, d,
		table("web", lb.L2, 1021, vips(1), nearNames...),
		table("four", lb.IPIP, 1021, vips(4), nearNames...),
		table("six", lb.IPIP, 1021, vips(6), farNames...),
		table("gre", lb.GRE, 1021, vips(0x11), farNames...),
		gue)

	for _, service := range []struct {
		name     string
		vips     []string
		backends map[string]string
		forward  lb.Forward
		source   string // of the outer header
		leaves   string
	}{
		{"web", vips(1), near, lb.L2, "", "lo"},
		{"four", vips(4), near, lb.IPIP, node4, "lo"},
		{"six", vips(6), far, lb.IPIP, node6, "interface 7"},
		{"gre", vips(0x11), far, lb.GRE, node6, "interface 7"},
		{"gue", vips(0x12), near, lb.GUE, node4, "lo"},
	} {
		used := make(map[string]bool)
		for i := range inShort(60, 12) {
			client, vip := fmt.Sprintf("198.51.100.7:%d", 1024+i), service.vips[0]
			if i%2 == 1 {
				client, vip = fmt.Sprintf("[2001:db8:100::7]:%d", 1024+i), service.vips[1]
			}
			protocol, frame := lb.TCP, packet.TCP(client, vip)
			if i%4 > 1 {
				protocol, frame = lb.UDP, packet.UDP(client, vip)
			}
			verdict, out, err := d.Process(frame)
			if err != nil || verdict != Forwarded {
				t.Fatalf("%s %s > %s: got %s, %v, want it forwarded", protocol, client, vip, verdict, err)
			}
			mac := fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", out[0], out[1], out[2], out[3], out[4], out[5])
			backend := service.backends[mac]
			used[backend] = true
			want := Trace{
				Service: service.name, Backend: backend, Address: netip.MustParseAddr(backend), Forward: service.forward,
				Interface: service.leaves, Slots: 1021, Hashed: lb.HashFlow,
			}
			if service.source != "" {
				want.Outer.Source, want.Outer.Destination = netip.MustParseAddr(service.source), want.Address
			}

			got := trace(t, d, protocol, client, vip)
			if got.NextHop.String() != mac {
				t.Errorf("next hop: got %s, want %s", got.NextHop, mac)
			}
			if holds := fmt.Sprintf("slot %d of service %q holds backend %q", got.Slot, service.name, backend); got.Why != holds {
				t.Errorf("why: got %q, want %q", got.Why, holds)
			}
			if slot := uint32((got.Hash >> 32) * 1021 >> 32); got.Slot != slot {
				t.Errorf("slot: got %d, want %d, from the hash", got.Slot, slot)
			}
			if service.forward == lb.GUE {
				want.Outer.Ports = [2]uint16{binary.BigEndian.Uint16(out[34:]), guePort}
			}
			got.Hash, got.Slot, got.Why, got.NextHop = 0, 0, "", nil
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s %s > %s:\ngot  %+v\nwant %+v", protocol, client, vip, got, want)
			}
		}
		if len(used) < inShort(backends, 3) {
			t.Errorf("%s: flows of %d backends were traced, want all %d", service.name, len(used), backends)
		}
	}
}

func TestATraceSaysWhyAFlowIsNotForwarded(t *testing.T) {
	d := newDataplane(t)
	packetServices(t, d)
	for _, tt := range []struct {
		destination string
		verdict     Verdict
		service     string
		why         string
	}{
		{"192.0.2.200:443", NotVIP, "", "no service has 192.0.2.200 tcp/443: the packet passes to the kernel"},
		{"192.0.2.1:81", NotVIP, "", "no service has 192.0.2.1 tcp/81: the packet passes to the kernel"},
		{"192.0.2.9:443", NoBackend, "empty", `service "empty" has no backend that can be used: the packet is dropped`},
		{"192.0.2.10:443", NoNeighbour, "lost", `there is no way to backend "203.0.113.10": the MAC address of its next hop 203.0.113.10 on interface 1 is not known: the packet is dropped`},
	} {
		got := trace(t, d, lb.TCP, client4, tt.destination)
		if got.Verdict != tt.verdict || got.Service != tt.service || got.Why != tt.why {
			t.Errorf("%s: got %s of service %q, %q, want %s of service %q, %q",
				tt.destination, got.Verdict, got.Service, got.Why, tt.verdict, tt.service, tt.why)
		}
		if got.NextHop != nil || got.Interface != "" {
			t.Errorf("%s: got next hop %s on %q, want none", tt.destination, got.NextHop, got.Interface)
		}
	}
}

func TestATraceTellsWhatWasHashed(t *testing.T) {
	d := newDataplane(t)
	d.setWay("203.0.113.1", way{mac: backendMAC, source: node4, ifindex: 1, mtu: 1500})
	web := serving(table("web", lb.L2, 13, nil, "203.0.113.1"), []string{"192.0.2.64/28", "2001:db8:2:64::/64"}, tcpPort(443, 0))
	web.Service.Hash = lb.HashSource | lb.HashDestination
	apply(t, d, web)
	for client, vip := range map[string]string{client4: "192.0.2.79:443", client6: "[2001:db8:2:64::ffff]:443"} {
		got, want := trace(t, d, lb.TCP, client, vip), fieldHash(web.HashKey, web.Service.Hash, packet.TCP(client, vip))
		if got.Service != "web" || got.Verdict != Forwarded || got.Hash != want || got.Hashed != web.Service.Hash {
			t.Errorf("%s: got %s by service %q, %#x of %s, want it forwarded by web, %#x of %s", vip, got.Verdict, got.Service, got.Hash, got.Hashed, want, web.Service.Hash)
		}
	}
	if got := trace(t, d, lb.TCP, client4, "192.0.2.80:443"); got.Hashed != 0 || got.Verdict != NotVIP {
		t.Errorf("no VIP: got %s, a hash of %s, want neither", got.Verdict, got.Hashed)
	}
}

func TestATraceCountsNothing(t *testing.T) {
	d := newDataplane(t)
	packetServices(t, d)
	before := stats(t, d)
	for _, vip := range []string{"192.0.2.1:443", "192.0.2.4:443", "192.0.2.9:443", "192.0.2.200:443"} {
		trace(t, d, lb.TCP, client4, vip)
	}
	if got := moved(before, stats(t, d)); len(got) > 0 {
		t.Errorf("counters moved: %v, want none", got)
	}
}

func TestATraceAsksTheTablesAsTheyAreNow(t *testing.T) {
	d := newDataplane(t)
	packetServices(t, d)
	before := trace(t, d, lb.TCP, client4, "192.0.2.1:443")
	d.mu.Lock()
	must(t, d.grow(2*d.pages.size, 2*d.entries.size))
	d.mu.Unlock()
	if got := trace(t, d, lb.TCP, client4, "192.0.2.1:443"); fmt.Sprint(got) != fmt.Sprint(before) {
		t.Errorf("after the maps grew: got %+v, want %+v", got, before)
	}
	d.setWay("203.0.113.2", way{mac: "02:00:00:00:00:b2", ifindex: 1, mtu: 1500})
	apply(t, d, table("web", lb.L2, 13, vips(1), "203.0.113.2"))
	if got := trace(t, d, lb.TCP, client4, "192.0.2.1:443"); got.Backend != "203.0.113.2" {
		t.Errorf("after another table: got backend %q, want 203.0.113.2", got.Backend)
	}
}

func TestWhatIsNoFlowIsNotTraced(t *testing.T) {
	d := newDataplane(t)
	at := netip.MustParseAddrPort
	for _, tt := range []struct {
		protocol            lb.Protocol
		source, destination netip.AddrPort
		want                string
	}{
		{lb.TCP, at(client4), at(vip6), "two addresses of one family are needed"},
		{lb.TCP, netip.AddrPort{}, at(vip4), "two addresses of one family are needed"},
		{lb.Protocol(1), at(client4), at(vip4), "only tcp, udp, sctp and udplite have flows"},
	} {
		if _, err := d.Trace(tt.protocol, tt.source, tt.destination); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s %s > %s: got %v, want it to hold %q", tt.protocol, tt.source, tt.destination, err, tt.want)
		}
	}
}

func TestProtocolsOfAllServicesAreTraced(t *testing.T) {
	d := newDataplane(t)
	d.setWay("203.0.113.1", way{mac: backendMAC, source: node4, ifindex: 1, mtu: 1500})
	apply(t, d, others(lb.IPIP, 4, "203.0.113.1"))
	for _, protocol := range []lb.Protocol{lb.SCTP, lb.UDPLite} {
		for n, client := range []string{client4, client6} {
			vip := vips(4)[n]
			got, want := trace(t, d, protocol, client, vip), flowHash(testKey(), packet.TCP(client, vip))
			if got.Verdict != Forwarded || got.Service != "others" || got.Backend != "203.0.113.1" || got.Hash != want {
				t.Errorf("%s to %s: got %+v, want it forwarded by hash %#x", protocol, vip, got, want)
			}
		}
	}
	if got := trace(t, d, lb.SCTP, client4, "192.0.2.4:444"); got.Why != "no service has 192.0.2.4 sctp/444: the packet passes to the kernel" {
		t.Errorf("another port: got %q", got.Why)
	}
}

// The packet that Trace makes is well-formed to those who look closer than the
// program does.
func TestAFlowsPacketIsWhatAHostWouldSend(t *testing.T) {
	for _, tt := range []struct {
		protocol            lb.Protocol
		source, destination string
	}{
		{lb.TCP, client4, vip4}, {lb.UDP, client4, vip4}, {lb.TCP, client6, vip6}, {lb.UDP, client6, vip6},
		{lb.SCTP, client4, vip4}, {lb.SCTP, client6, vip6}, {lb.UDPLite, client4, vip4}, {lb.UDPLite, client6, vip6},
	} {
		frame := flowFrame([6]byte{}, tt.protocol, netip.MustParseAddrPort(tt.source), netip.MustParseAddrPort(tt.destination), nil)
		decoded := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
		if failed := decoded.ErrorLayer(); failed != nil {
			t.Errorf("%s to %s: %v", tt.protocol, tt.destination, failed.Error())
		}
		switch l := decoded.TransportLayer().(type) {
		case *layers.TCP:
			must(t, l.SetNetworkLayerForChecksum(decoded.NetworkLayer()))
		case *layers.UDP:
			must(t, l.SetNetworkLayerForChecksum(decoded.NetworkLayer()))
		case *layers.UDPLite:
			if l.ChecksumCoverage != 8 || checksum(slices.Concat(decoded.NetworkLayer().NetworkFlow().Src().Raw(), decoded.NetworkLayer().NetworkFlow().Dst().Raw(), []byte{0, 136, 0, 8}, l.Contents)) != 0 {
				t.Errorf("UDP-Lite to %s: %x covers %d bytes, want a sum of zero over 8", tt.destination, l.Contents, l.ChecksumCoverage)
			}
		}
		if err, wrong := decoded.VerifyChecksums(); err != nil || len(wrong) > 0 {
			t.Errorf("%s to %s: checksums %v, %v, want them right", tt.protocol, tt.destination, wrong, err)
		}
	}
}

// Backends that have just left are still counted for, where they were.
func TestATraceNamesNoBackendThatHasLeft(t *testing.T) {
	d := newDataplane(t)
	before, after := many(8)[:3], many(8)[3:]
	setWays(d, append(before, after...)...)
	apply(t, d, table("web", lb.L2, 1021, vips(1), before...))
	apply(t, d, table("web", lb.L2, 1021, vips(1), after...)) // more than there is room for beside them
	for n := range 8 {
		got := trace(t, d, lb.UDP, fmt.Sprintf("198.51.100.7:%d", 1024+n), vips(1)[0])
		if !slices.Contains(after, got.Backend) {
			t.Fatalf("got backend %s, want one of %v", got.Backend, after)
		}
	}
}
