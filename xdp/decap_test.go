package xdp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/halfproxy/halfproxy/internal/packet"
	"github.com/halfproxy/halfproxy/lb"
)

// Ends of the tunnels of these tests; node4 and node6 are allowed to send.
const here4, here6 = "203.0.113.1", "2001:db8:3::1"

// newDecap is the program as if on the loopback device, which is where frames
// come from that a test puts through it.
func newDecap(t testing.TB, tunnels Tunnels) *Decap {
	t.Helper()
	needRoot(t)
	d, err := loadDecapsulation(DecapConfig{
		Tunnels: tunnels,
		Sources: []netip.Prefix{netip.MustParsePrefix("203.0.113.128/25"), netip.MustParsePrefix("2001:db8:3::/112"), netip.MustParsePrefix("192.0.2.7/32")},
		VIPs:    []lb.VIP{lb.MustParseVIP("192.0.2.1"), lb.MustParseVIP("2001:db8:2::1"), lb.MustParseVIP("192.0.2.64/28"), lb.MustParseVIP("2001:db8:2:64::/64")},
	})
	must(t, err)
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	const loopback, another = 1, 2
	must(t, d.setEnds(map[decapTunnelEnd]bool{
		tunnelEnd(loopback, netip.MustParseAddr(here4)):          true,
		tunnelEnd(loopback, netip.MustParseAddr(here6)):          true,
		tunnelEnd(another, netip.MustParseAddr("203.0.113.2")):   true,
		tunnelEnd(another, netip.MustParseAddr("2001:db8:3::2")): true,
	}))
	return d
}

// splice puts bytes behind the outer IP header of frame, and makes protocol
// what follows it.
func splice(frame []byte, protocol byte, header ...byte) []byte {
	at, field := 14+20, 14+9
	if frame[14]>>4 == 6 {
		at, field = 14+40, 14+6
	}
	out := slices.Insert(slices.Clone(frame), at, header...)
	out[field] = protocol
	lengthen(out, len(header))
	return out
}

// lengthen adds n to the length in the IP header.
func lengthen(frame []byte, n int) {
	length := frame[14+2:]
	if frame[14]>>4 == 6 {
		length = frame[14+4:]
	}
	binary.BigEndian.PutUint16(length, binary.BigEndian.Uint16(length)+uint16(n))
}

const protocolGRE, protocolUDP = 47, 17

// An encapsulation puts a frame's packet into outer headers, whose addresses are
// of one family.
type encapsulation func(source, destination string, frame []byte) []byte

func inIPIP(source, destination string, frame []byte) []byte {
	return packet.Encapsulate(source, destination, 5, frame)
}

func inGRE(source, destination string, frame []byte) []byte {
	return splice(inIPIP(source, destination, frame), protocolGRE, 0, 0, frame[12], frame[13])
}

func inGUE(source, destination string, frame []byte) []byte {
	return inGUEWith(0)(source, destination, frame)
}

// inGUEWith is gue with private data behind its header, in words.
func inGUEWith(words int) encapsulation {
	return func(source, destination string, frame []byte) []byte {
		protocol := byte(4)
		if frame[14]>>4 == 6 {
			protocol = 41
		}
		header := []byte{0xc0, 0x01, lb.DefaultGUEPort >> 8, lb.DefaultGUEPort & 0xff, 0, 0, 0, 0, byte(words), protocol, 0, 0}
		header = append(header, bytes.Repeat([]byte{0xee}, 4*words)...)
		binary.BigEndian.PutUint16(header[4:], uint16(len(header)+len(packet.IP(frame))))
		return splice(inIPIP(source, destination, frame), protocolUDP, header...)
	}
}

// changed is frame with a byte of its IP packet set.
func changed(frame []byte, at int, value byte) []byte {
	frame = slices.Clone(frame)
	frame[14+at] = value
	return frame
}

// withTOS sets DSCP and ECN of the first IP header in frame.
func withTOS(frame []byte, tos byte) []byte {
	frame = slices.Clone(frame)
	if ip := frame[14:]; ip[0]>>4 == 4 {
		ip[1] = tos
	} else {
		ip[0], ip[1] = 6<<4|tos>>4, tos<<4|ip[1]&0xf
	}
	return frame
}

// withOptions puts 12 bytes of options into the outer IPv4 header.
func withOptions(frame []byte) []byte {
	out := slices.Insert(slices.Clone(frame), 14+20, bytes.Repeat([]byte{1}, 12)...)
	out[14] += 3
	lengthen(out, 12)
	return out
}

type decapRow struct {
	name string
	in   []byte
	out  []byte // nil: as it came in
	want DecapStats
}

func (r decapRow) check(t *testing.T, d *Decap) {
	t.Helper()
	before, err := d.Stats()
	must(t, err)
	action, out := runDecap(t, d, r.in)
	after, err := d.Stats()
	must(t, err)

	want := r.out
	if want == nil {
		want = r.in
	}
	if !bytes.Equal(out, want) {
		t.Errorf("%s: frame:\ngot  %x\nwant %x", r.name, out, want)
	}
	if got := difference(before, after); got != r.want {
		t.Errorf("%s: counted: got %+v, want %+v", r.name, got, r.want)
	}
	const drop, pass = 1, 2
	wanted := uint32(pass)
	if r.want.BadChecksum+r.want.NotVIP+r.want.NotECT > 0 {
		wanted = drop
	}
	if action != wanted {
		t.Errorf("%s: action: got %d, want %d", r.name, action, wanted)
	}
}

func runDecap(t testing.TB, d *Decap, frame []byte) (action uint32, out []byte) {
	t.Helper()
	run := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)}
	action, err := d.objects.Decapsulate.Run(&run)
	must(t, err)
	return action, run.DataOut
}

func difference(before, after DecapStats) DecapStats {
	return DecapStats{
		IPIP: after.IPIP - before.IPIP, GRE: after.GRE - before.GRE, GUE: after.GUE - before.GUE,
		NoTunnel: after.NoTunnel - before.NoTunnel, Malformed: after.Malformed - before.Malformed,
		OtherDestination: after.OtherDestination - before.OtherDestination, OtherSource: after.OtherSource - before.OtherSource,
		Fragment: after.Fragment - before.Fragment, Unsupported: after.Unsupported - before.Unsupported,
		BadChecksum: after.BadChecksum - before.BadChecksum, NotVIP: after.NotVIP - before.NotVIP, NotECT: after.NotECT - before.NotECT,
	}
}

var (
	allTunnels = Tunnels{IPIP: true, GRE: true, GUE: true}
	kinds      = []struct {
		name        string
		encapsulate encapsulation
		counted     DecapStats
	}{
		{"ipip", inIPIP, DecapStats{IPIP: 1}},
		{"gre", inGRE, DecapStats{GRE: 1}},
		{"gue", inGUE, DecapStats{GUE: 1}},
	}
)

// What is true of every kind, with either family inside and outside.
func TestDecapsulation(t *testing.T) {
	d := newDecap(t, allTunnels)
	for _, kind := range kinds {
		for _, outer := range []struct{ name, source, here, beside, elsewhere, otherInterface string }{
			{"4", node4, here4, "203.0.113.127", "203.0.113.9", "203.0.113.2"},
			{"6", node6, here6, "2001:db8:3::1:fe", "2001:db8:3::9", "2001:db8:3::2"},
		} {
			for _, inner := range []struct {
				name            string
				tcp, udp, wrong []byte
				first, last     []byte // of a prefix
				before, beyond  []byte
			}{
				{
					"4", packet.TCP(client4, vip4), packet.UDP(client4, vip4, packet.Payload(1200)), packet.TCP(client4, "192.0.2.2:443"),
					packet.TCP(client4, "192.0.2.64:443"), packet.TCP(client4, "192.0.2.79:443"), packet.TCP(client4, "192.0.2.63:443"), packet.TCP(client4, "192.0.2.80:443"),
				},
				{
					"6", packet.TCP(client6, vip6), packet.UDP(client6, vip6, packet.Payload(1200)), packet.TCP(client6, "[2001:db8:2::2]:443"),
					packet.TCP(client6, "[2001:db8:2:64::]:443"), packet.TCP(client6, "[2001:db8:2:64:ffff:ffff:ffff:ffff]:443"), packet.TCP(client6, "[2001:db8:2:63:ffff:ffff:ffff:ffff]:443"), packet.TCP(client6, "[2001:db8:2:65::]:443"),
				},
			} {
				t.Run(fmt.Sprintf("%s %sin%s", kind.name, inner.name, outer.name), func(t *testing.T) {
					in := func(frame []byte) []byte { return kind.encapsulate(outer.source, outer.here, frame) }
					whole := in(inner.tcp)
					rows := []decapRow{
						{"TCP", whole, inner.tcp, kind.counted},
						{"UDP", in(inner.udp), inner.udp, kind.counted},
						{"TTL 1 inside", in(changed(inner.tcp, map[string]int{"4": 8, "6": 7}[inner.name], 1)), changed(inner.tcp, map[string]int{"4": 8, "6": 7}[inner.name], 1), kind.counted},
						{"padding behind", slices.Concat(whole, make([]byte, 6)), slices.Concat(inner.tcp, make([]byte, 6)), kind.counted},
						{"source beside the prefix allowed", kind.encapsulate(outer.beside, outer.here, inner.tcp), nil, DecapStats{OtherSource: 1}},
						{"another host's address", kind.encapsulate(outer.source, outer.elsewhere, inner.tcp), nil, DecapStats{OtherDestination: 1}},
						{"an address of another interface", kind.encapsulate(outer.source, outer.otherInterface, inner.tcp), nil, DecapStats{OtherDestination: 1}},
						{"for no VIP", in(inner.wrong), nil, DecapStats{NotVIP: 1}},
						{"for the first of a prefix", in(inner.first), inner.first, kind.counted},
						{"for the last of a prefix", in(inner.last), inner.last, kind.counted},
						{"for the one before a prefix", in(inner.before), nil, DecapStats{NotVIP: 1}},
						{"for the one beyond a prefix", in(inner.beyond), nil, DecapStats{NotVIP: 1}},
						{"for the host itself", in(packet.TCP(client4, here4+":22")), nil, DecapStats{NotVIP: 1}},
						{"a tunnel in a tunnel: it is for the host, no VIP", in(whole), nil, DecapStats{NotVIP: 1}},
						{"inner length beyond the outer", in(inner.tcp)[:len(whole)-1], nil, DecapStats{Malformed: 1}},
					}
					for n := 14; n < len(whole); n++ {
						rows = append(rows, decapRow{fmt.Sprintf("cut to %d bytes", n), whole[:n], nil, DecapStats{Malformed: 1}})
					}
					// The outer length says so, and the frame goes on.
					for n := 1; n <= len(packet.IP(inner.tcp)); n++ {
						short := slices.Clone(whole)
						lengthen(short, -n)
						rows = append(rows, decapRow{fmt.Sprintf("outer length %d short", n), short, nil, DecapStats{Malformed: 1}})
					}
					for _, r := range rows {
						r.check(t, d)
					}
				})
			}
		}
	}
}

func TestDecapsulationOfWhatIsOdd(t *testing.T) {
	d := newDecap(t, allTunnels)
	in4, in6 := packet.TCP(client4, vip4), packet.UDP(client6, vip6)
	ipip4, ipip6 := inIPIP(node4, here4, in4), inIPIP(node6, here6, in6)
	gre4, gre6 := inGRE(node4, here4, in4), inGRE(node6, here6, in6)
	gue4, gue6 := inGUE(node4, here4, in4), inGUE(node6, here6, in6)
	const gre, udp, gue = 20, 20, 28 // where they begin over IPv4
	none, malformed, unsupported := DecapStats{NoTunnel: 1}, DecapStats{Malformed: 1}, DecapStats{Unsupported: 1}
	badChecksum := DecapStats{BadChecksum: 1}
	rows := []decapRow{
		{"source allowed as one address", inIPIP("192.0.2.7", here4, in4), in4, DecapStats{IPIP: 1}},
		{"source beside the one allowed", inIPIP("192.0.2.8", here4, in4), nil, DecapStats{OtherSource: 1}},
		{"outer options: ipip", withOptions(ipip4), in4, DecapStats{IPIP: 1}},
		{"outer options: gre", withOptions(gre4), in4, DecapStats{GRE: 1}},
		{"outer options: gue", withOptions(gue4), in4, DecapStats{GUE: 1}},
		{"inner options", inIPIP(node4, here4, packet.UDP(client4, vip4, packet.IPv4Options(40))), packet.UDP(client4, vip4, packet.IPv4Options(40)), DecapStats{IPIP: 1}},
		{"inner fragment", inGRE(node4, here4, packet.UDP(client4, vip4, packet.Fragment(1480, true))), packet.UDP(client4, vip4, packet.Fragment(1480, true)), DecapStats{GRE: 1}},
		{"inner extension header", inGUE(node6, here6, packet.UDP(client6, vip6, packet.HopByHop)), packet.UDP(client6, vip6, packet.HopByHop), DecapStats{GUE: 1}},
		{"inner ICMP", inIPIP(node4, here4, packet.Echo("198.51.100.7", "192.0.2.1")), packet.Echo("198.51.100.7", "192.0.2.1"), DecapStats{IPIP: 1}},
		{"inner UDP without a checksum", inIPIP(node4, here4, changed(changed(packet.UDP(client4, vip4), 26, 0), 27, 0)), changed(changed(packet.UDP(client4, vip4), 26, 0), 27, 0), DecapStats{IPIP: 1}},

		{"TCP to this host", packet.TCP(client4, here4+":80"), nil, none},
		{"UDP over IPv6 to this host", packet.UDP(client6, "["+here6+"]:80"), nil, none},
		{"UDP from the port of gue", packet.UDP(node4+":6080", here4+":6081"), nil, none},
		{"plain packet for the VIP", in4, nil, none},
		{"ARP", packet.ARP("198.51.100.7", here4), nil, none},
		{"tagged", packet.TCP(client4, vip4, packet.VLAN(7)), nil, none},
		{"extension header outside", packet.UDP("["+node6+"]:1", "["+here6+"]:6080", packet.HopByHop), nil, none},

		{"first fragment of ipip", changed(ipip4, 6, 0x20), nil, DecapStats{Fragment: 1}},
		{"later fragment of ipip", changed(ipip4, 7, 0xb9), nil, DecapStats{Fragment: 1}},
		{"first fragment of gre", changed(gre4, 6, 0x20), nil, DecapStats{Fragment: 1}},
		{"first fragment of gue", changed(gue4, 6, 0x20), nil, DecapStats{Fragment: 1}},
		{"later fragment of gue: nobody can tell", changed(gue4, 7, 0xb9), nil, none},
		{"fragment of a source that is not allowed", changed(inIPIP("192.0.2.8", here4, in4), 6, 0x20), nil, DecapStats{OtherSource: 1}},

		{"IPv6 in ipip that says IPv4", changed(inIPIP(node4, here4, in6), 9, 4), nil, malformed},
		{"IPv4 in ipip that says IPv6", changed(inIPIP(node6, here6, in4), 6, 41), nil, malformed},
		{"inner header shorter than one", changed(ipip4, 20, 0x44), nil, malformed},
		{"inner length shorter than its header", changed(ipip4, 23, 19), nil, malformed},
		{"inner length beyond the outer", changed(ipip6, 45, 0xff), nil, malformed},
		{"outer header shorter than one", changed(ipip4, 0, 0x44), nil, malformed},
		{"outer length shorter than its header", changed(ipip4, 3, 19), nil, malformed},
		{"outer length beyond the frame", changed(ipip4, 3, 0xff), nil, malformed},
		{"IPv6 behind IPv4's EtherType", changed(ipip4, 0, 0x65), nil, malformed},

		{"gre with a checksum", changed(gre4, gre, 0x80), nil, unsupported},
		{"gre with a key", changed(gre4, gre, 0x20), nil, unsupported},
		{"gre with a sequence number", changed(gre4, gre, 0x10), nil, unsupported},
		{"gre with routing", changed(gre4, gre, 0x40), nil, unsupported},
		{"gre version 1", changed(gre4, gre+1, 1), nil, unsupported},
		{"gre over IPv6 with a key", changed(gre6, 40, 0x20), nil, unsupported},
		{"Ethernet in gre", changed(changed(gre4, gre+2, 0x65), gre+3, 0x58), nil, unsupported},
		{"gre that says IPv6 of an IPv4 packet", changed(changed(gre4, gre+2, 0x86), gre+3, 0xdd), nil, malformed},

		{"gue with private data", inGUEWith(3)(node4, here4, in4), in4, DecapStats{GUE: 1}},
		{"gue with all the private data there can be", inGUEWith(31)(node6, here6, in6), in6, DecapStats{GUE: 1}},
		{"gue with outer options and all private data", withOptions(inGUEWith(31)(node4, here4, in6)), in6, DecapStats{GUE: 1}},
		{"gue with a UDP checksum", packet.WithUDPChecksum(gue4), in4, DecapStats{GUE: 1}},
		{"gue with a UDP checksum over IPv6", packet.WithUDPChecksum(gue6), in6, DecapStats{GUE: 1}},
		{"gue with a UDP checksum, outer options", withOptions(packet.WithUDPChecksum(gue4)), in4, DecapStats{GUE: 1}},
		{"gue with a UDP checksum and private data", packet.WithUDPChecksum(inGUEWith(31)(node6, here6, in4)), in4, DecapStats{GUE: 1}},
		{"gue with a UDP checksum, padded", append(packet.WithUDPChecksum(gue4), 0xee, 0xee, 0xee), append(slices.Clone(in4), 0xee, 0xee, 0xee), DecapStats{GUE: 1}},
		{"gue with a wrong UDP checksum", changed(packet.WithUDPChecksum(gue4), udp+7, 0x55), nil, badChecksum},
		{"gue with a wrong UDP checksum over IPv6", changed(gue6, 40+7, 0x55), nil, badChecksum},
		{"gue with a UDP checksum, another source", changed(packet.WithUDPChecksum(gue4), 15, 0xfd), nil, badChecksum},
		{"gue: control message", changed(gue4, gue, 0x20), nil, unsupported},
		{"gue: variant 1, IP at once", changed(gue4, gue, 0x45), nil, unsupported},
		{"gue: flags", changed(gue4, gue+2, 0x80), nil, unsupported},
		{"gue: remote checksum offload, which is a private flag", changed(gue4, gue+3, 0x01), nil, unsupported},
		{"gue: TCP inside", changed(gue4, gue+1, 6), nil, unsupported},
		{"gue: header longer than the datagram", changed(gue4, gue, 31), nil, malformed},
		{"gue: datagram shorter than its private data", changed(inGUEWith(3)(node4, here4, in4), udp+5, 16), nil, malformed},
		{"gue: datagram shorter than its headers", changed(gue4, udp+5, 11), nil, malformed},
		{"gue: datagram longer than its packet", changed(gue4, udp+4, 0xff), nil, malformed},
		{"gue: datagram shorter than what is inside", changed(gue4, udp+5, gue4[14+udp+5]-1), nil, malformed},
		{"gue over IPv6: control message", changed(gue6, 48, 0x20), nil, unsupported},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) { r.check(t, d) })
	}
}

func TestTunnelsThatAreNotAskedForPass(t *testing.T) {
	for i, on := range []Tunnels{{IPIP: true}, {GRE: true}, {GUE: true}} {
		d := newDecap(t, on)
		for j, kind := range kinds {
			in := packet.TCP(client4, vip4)
			row := decapRow{kind.name, kind.encapsulate(node4, here4, in), in, kind.counted}
			if i != j {
				row.out, row.want = nil, DecapStats{NoTunnel: 1}
			}
			row.check(t, d)
		}
	}
}

func TestGUEIsTakenOnItsPortAlone(t *testing.T) {
	needRoot(t)
	d, err := loadDecapsulation(DecapConfig{
		Tunnels: Tunnels{GUE: true}, GUEPort: 5555,
		Sources: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}, VIPs: []lb.VIP{lb.MustParseVIP("192.0.2.1")},
	})
	must(t, err)
	defer d.Close()
	must(t, d.setEnds(map[decapTunnelEnd]bool{tunnelEnd(1, netip.MustParseAddr(here4)): true}))
	in := packet.TCP(client4, vip4)
	gue := inGUE("198.51.100.1", here4, in)
	decapRow{"the usual port", gue, nil, DecapStats{NoTunnel: 1}}.check(t, d)
	binary.BigEndian.PutUint16(gue[14+20+2:], 5555)
	decapRow{"its own port, and any IPv4 source", gue, in, DecapStats{GUE: 1}}.check(t, d)
}

// RFC 6040, figure 4, by hand: rows are the inner field, columns the outer one,
// in the order Not-ECT, ECT(1), ECT(0), CE of their numbers. DSCP stays what it is.
func TestECNIsSettledWhenTheHeadersComeOff(t *testing.T) {
	const notECT, ect1, ect0, ce, drop = 0, 1, 2, 3, 4
	want := [4][4]byte{
		notECT: {notECT, notECT, notECT, drop},
		ect1:   {ect1, ect1, ect1, ce},
		ect0:   {ect0, ect1, ect0, ce},
		ce:     {ce, ce, ce, ce},
	}
	const innerDSCP, outerDSCP = 46 << 2, 10 << 2
	d := newDecap(t, allTunnels)
	for _, kind := range kinds {
		for _, at := range []struct{ source, here string }{{node4, here4}, {node6, here6}} {
			for _, family := range []struct{ client, vip string }{{client4, vip4}, {client6, vip6}} {
				for inner := range byte(4) {
					for outer := range byte(4) {
						build := func(ecn byte) []byte {
							return packet.TCP(family.client, family.vip, packet.TOS(innerDSCP|ecn))
						}
						row := decapRow{
							name: fmt.Sprintf("%s from %s for %s: inner %d, outer %d", kind.name, at.source, family.vip, inner, outer),
							in:   withTOS(kind.encapsulate(at.source, at.here, build(inner)), outerDSCP|outer),
							want: DecapStats{NotECT: 1},
						}
						if result := want[inner][outer]; result != drop {
							row.out, row.want = build(result), kind.counted // with the checksum that gopacket computed
						}
						row.check(t, d)
					}
				}
			}
		}
	}
}

// The checksum comes out right from wherever it starts, its corners included.
func TestECNKeepsTheHeadersChecksumRight(t *testing.T) {
	d := newDecap(t, allTunnels)
	for id := range 0x10000 {
		if id%inShort(7, 101) != 0 && id < 0xff00 {
			continue
		}
		// The identification moves the sum through all its values.
		inner := packet.TCP(client4, vip4, packet.TOS(2))
		binary.BigEndian.PutUint16(inner[14+4:], uint16(id))
		binary.BigEndian.PutUint16(inner[14+10:], 0)
		binary.BigEndian.PutUint16(inner[14+10:], ^onesSum(inner[14:34]))
		_, out := runDecap(t, d, withTOS(inIPIP(node4, here4, inner), 3))
		if got := onesSum(out[14:34]); got != 0xffff || out[15] != 3 {
			t.Fatalf("id %#x: TOS %d, header sums to %#x, want CE and 0xffff", id, out[15], got)
		}
	}
}

// onesSum is the one's complement sum of b (RFC 1071).
func onesSum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for bits.Len32(sum) > 16 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

func TestDecapsulationMetrics(t *testing.T) {
	d := newDecap(t, allTunnels)
	in := packet.TCP(client4, vip4)
	for i, kind := range kinds {
		for range i + 1 {
			runDecap(t, d, kind.encapsulate(node4, here4, in))
		}
	}
	runDecap(t, d, inIPIP("192.0.2.8", here4, in))
	m := &decapMetrics{d, prometheus.NewRegistry()}
	err := testutil.CollectAndCompare(m, strings.NewReader(`
# HELP halfproxy_backend_decapsulated_packets_total Packets handed to the kernel without their outer headers, by kind of tunnel.
# TYPE halfproxy_backend_decapsulated_packets_total counter
halfproxy_backend_decapsulated_packets_total{kind="gre"} 2
halfproxy_backend_decapsulated_packets_total{kind="gue"} 3
halfproxy_backend_decapsulated_packets_total{kind="ipip"} 1
# HELP halfproxy_backend_refused_packets_total Packets of tunnels that were not taken off, by reason.
# TYPE halfproxy_backend_refused_packets_total counter
halfproxy_backend_refused_packets_total{reason="bad_checksum"} 0
halfproxy_backend_refused_packets_total{reason="fragment"} 0
halfproxy_backend_refused_packets_total{reason="malformed"} 0
halfproxy_backend_refused_packets_total{reason="not_ect"} 0
halfproxy_backend_refused_packets_total{reason="not_vip"} 0
halfproxy_backend_refused_packets_total{reason="other_destination"} 0
halfproxy_backend_refused_packets_total{reason="other_source"} 1
halfproxy_backend_refused_packets_total{reason="unsupported"} 0
`))
	if err != nil {
		t.Error(err)
	}
	problems, err := testutil.CollectAndLint(m)
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: got %v, %v, want nothing", problems, err)
	}
}

// FuzzDecapsulation holds whatever comes against what is true of every frame:
// one counter moves; what is not taken off is not touched; what is taken off came
// from an allowed source, shrank, and was for a VIP.
func FuzzDecapsulation(f *testing.F) {
	in4, in6 := packet.TCP(client4, vip4), packet.UDP(client6, vip6)
	for _, kind := range kinds {
		for _, in := range [][]byte{in4, in6} {
			f.Add(kind.encapsulate(node4, here4, in))
			f.Add(kind.encapsulate(node6, here6, in))
			f.Add(withTOS(kind.encapsulate(node4, here4, in), 1))
			f.Add(kind.encapsulate("192.0.2.8", here4, in))
		}
	}
	f.Add(withOptions(inGUEWith(5)(node4, here4, in4)))
	f.Add(withOptions(packet.WithUDPChecksum(inGUE(node4, here4, in4))))
	f.Add(packet.WithUDPChecksum(inGUEWith(1)(node6, here6, in6)))
	f.Add(changed(inGRE(node4, here4, in4), 20, 0x20))
	f.Add(in4)

	d := newDecap(f, allTunnels)
	allowed := []netip.Prefix{netip.MustParsePrefix("203.0.113.128/25"), netip.MustParsePrefix("2001:db8:3::/112"), netip.MustParsePrefix("192.0.2.7/32")}
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < 14 || len(frame) > 3000 {
			t.Skip("not a frame that BPF_PROG_TEST_RUN takes")
		}
		before, err := d.Stats()
		must(t, err)
		_, out := runDecap(t, d, frame)
		after, err := d.Stats()
		must(t, err)
		moved := difference(before, after)
		one := []DecapStats{
			{IPIP: 1}, {GRE: 1}, {GUE: 1}, {NoTunnel: 1}, {Malformed: 1}, {OtherDestination: 1}, {OtherSource: 1},
			{Fragment: 1}, {Unsupported: 1}, {BadChecksum: 1}, {NotVIP: 1}, {NotECT: 1},
		}
		if !slices.Contains(one, moved) {
			t.Fatalf("counted: %+v, want one of them", moved)
		}
		if moved.TakenOff() == 0 {
			if !bytes.Equal(out, frame) {
				t.Fatalf("%+v, and it was touched:\ngot  %x\nwant %x", moved, out, frame)
			}
			return
		}
		source, _ := netip.AddrFromSlice(frame[14+12 : 14+16])
		if frame[14]>>4 == 6 {
			source, _ = netip.AddrFromSlice(frame[14+8 : 14+24])
		}
		if !slices.ContainsFunc(allowed, func(p netip.Prefix) bool { return p.Contains(source) }) {
			t.Fatalf("taken from %s", source)
		}
		destination, _ := netip.AddrFromSlice(out[14+16 : 14+20])
		if out[14]>>4 == 6 {
			destination, _ = netip.AddrFromSlice(out[14+24 : 14+40])
		}
		if len(out) > len(frame)-20 || destination != netip.MustParseAddr("192.0.2.1") && destination != netip.MustParseAddr("2001:db8:2::1") {
			t.Fatalf("%d bytes became %d, for %s", len(frame), len(out), destination)
		}
		// But for ECN and the checksum that goes with it, every byte is from the frame's end.
		inner := slices.Clone(frame[len(frame)-len(out)+14:])
		if inner[0]>>4 == 4 {
			copy(inner[1:2], out[15:16])
			copy(inner[10:12], out[24:26])
		} else {
			inner[1] = inner[1]&^0x30 | out[15]&0x30
		}
		if !bytes.Equal(out[14:], inner) {
			t.Fatalf("not the inner packet:\ngot  %x\nwant %x", out[14:], inner)
		}
	})
}
