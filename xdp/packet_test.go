package xdp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math/bits"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/halfproxy/halfproxy/internal/packet"
	"github.com/halfproxy/halfproxy/lb"
)

// The services of the packet tests: one for each way to forward, each with a
// VIP of either family on port 443, and one backend.
//
//	web    l2          192.0.2.1   2001:db8:2::1
//	four   ipip, IPv4  192.0.2.4   2001:db8:2::4
//	six    ipip, IPv6  192.0.2.6   2001:db8:2::6
//	empty  no backend  192.0.2.9   2001:db8:2::9
//	lost   no MAC      192.0.2.10  2001:db8:2::10
//	far    l2, by another interface whose MTU is 1000: 192.0.2.11
//	gre4   gre, IPv4   192.0.2.21  2001:db8:2::21
//	gre6   gre, IPv6   192.0.2.22  2001:db8:2::22
//	gue4   gue, IPv4   192.0.2.23  2001:db8:2::23, to port 6080
//	gue6   gue, IPv6   192.0.2.24  2001:db8:2::24, to port 6081
//	sum4   gue, IPv4, with UDP checksums: 192.0.2.41  2001:db8:2::41
//	sum6   gue, IPv6, the same: 192.0.2.42  2001:db8:2::42
//	quic   l2, with connection IDs: 192.0.2.25  2001:db8:2::25
//	wide   l2          192.0.2.64/28 2001:db8:2:64::/64, TCP ports 1000-2000 as well
func packetServices(t testing.TB, d *Dataplane) {
	d.setWay("203.0.113.1", way{mac: backendMAC, source: node4, ifindex: 1, mtu: 1500})
	d.setWay("2001:db8:3::1", way{mac: backendMAC, source: node6, ifindex: 1, mtu: 1500})
	d.setWay("203.0.113.10", way{ifindex: 1, mtu: 1500})
	d.setWay("203.0.113.11", way{mac: backendMAC, ifindex: 7, mtu: 1000})
	apply(t, d,
		table("web", lb.L2, 13, vips(1), "203.0.113.1"),
		table("four", lb.IPIP, 13, vips(4), "203.0.113.1"),
		table("six", lb.IPIP, 13, vips(6), "2001:db8:3::1"),
		table("empty", lb.L2, 13, vips(9)),
		table("lost", lb.L2, 13, vips(0x10), "203.0.113.10"),
		table("gre4", lb.GRE, 13, vips(0x21), "203.0.113.1"),
		table("gre6", lb.GRE, 13, vips(0x22), "2001:db8:3::1"),
		gue(6080, table("gue4", lb.GUE, 13, vips(0x23), "203.0.113.1")),
		gue(6081, table("gue6", lb.GUE, 13, vips(0x24), "2001:db8:3::1")),
		summing(gue(6080, table("sum4", lb.GUE, 13, vips(0x41), "203.0.113.1"))),
		summing(gue(6081, table("sum6", lb.GUE, 13, vips(0x42), "2001:db8:3::1"))),
		quic(table("quic", lb.L2, 13, vips(0x25), "203.0.113.1")),
		table("far", lb.L2, 13, []string{"192.0.2.11:443"}, "203.0.113.11"),
		serving(table("wide", lb.L2, 13, nil, "203.0.113.1"), []string{"192.0.2.64/28", "2001:db8:2:64::/64"}, tcpPort(443, 0), udpPort(443, 0), tcpPort(1000, 2000)),
	)
}

func gue(port uint16, t lb.Table) lb.Table {
	t.Service.GUEPort = port
	return t
}

// vips are the endpoints of the n-th service: its digits as they read in hex.
func vips(n int) []string {
	return []string{fmt.Sprintf("192.0.2.%x:443", n), fmt.Sprintf("[2001:db8:2::%x]:443", n)}
}

// row is one frame and how it must end. A frame that passes must come out as it
// went in, and one that is dropped too: nothing was touched.
type row struct {
	name    string
	in      []byte
	verdict Verdict
	out     []byte // of a forwarded one
	counted string // service/backend of a forwarded one
	opens   uint64 // flows: 1 of a packet that opens one
}

func (r row) check(t *testing.T, d *Dataplane) {
	t.Helper()
	before := stats(t, d)
	a, err := d.ask(r.in)
	must(t, err)
	if got := Verdict(a.trace.Verdict); got != r.verdict {
		t.Errorf("verdict: got %s, want %s", got, r.verdict)
	}
	if want := r.action(); a.action != want {
		t.Errorf("action: got %d, want %d", a.action, want)
	}
	out := a.frame
	want := r.out
	if want == nil {
		want = r.in
	}
	if !bytes.Equal(out, want) {
		at := 0
		for at < min(len(out), len(want)) && out[at] == want[at] {
			at++
		}
		t.Errorf("frame of %d bytes, want %d, differs from byte %d on:\ngot  %.100x\nwant %.100x", len(out), len(want), at, out, want)
	}
	one := Count{1, uint64(len(r.in)), r.opens}
	counts := map[string]Count{r.verdict.String(): one}
	if r.counted != "" {
		service, _, _ := strings.Cut(r.counted, "/")
		counts[service], counts[r.counted] = one, one
	}
	if got := moved(before, stats(t, d)); !maps.Equal(got, counts) {
		t.Errorf("counters moved: got %v, want %v", got, counts)
	}
}

// action is what the row's verdict means to the driver.
func (r row) action() uint32 {
	const drop, pass, tx, redirect = 1, 2, 3, 4
	switch {
	case strings.HasPrefix(r.counted, "far/"):
		return redirect
	case slices.Contains([]Verdict{Forwarded, AnsweredEcho, AnsweredTooBig}, r.verdict):
		return tx
	case slices.Contains([]Verdict{OtherMAC, NotIP, VLAN, Malformed, OtherProtocol, NotVIP}, r.verdict):
		return pass
	}
	return drop
}

// toBackend is a frame with the MAC addresses that take it to the backend.
func toBackend(frame []byte) []byte { return packet.WithMACs(backendMAC, nodeMAC, frame) }

// l2 is the frame as it goes to the backend by l2: with few hops left.
func l2(frame []byte) []byte {
	ttl := frame[14+8]
	if frame[14]>>4 == 6 {
		ttl = frame[14+7]
	}
	return toBackend(packet.WithTTL(min(ttl-1, 8), frame))
}

// sending is a frame as it goes to the backend that has its flow, given the
// flow's hash.
type sending func(frame []byte, hash uint64) []byte

func viaL2(frame []byte, _ uint64) []byte { return l2(frame) }

func viaIPIP4(frame []byte, _ uint64) []byte {
	return toBackend(packet.Encapsulate(node4, "203.0.113.1", 0, frame))
}

func viaIPIP6(frame []byte, hash uint64) []byte {
	return toBackend(packet.Encapsulate(node6, "2001:db8:3::1", uint32(hash)&0xfffff, frame))
}

func viaGRE4(frame []byte, _ uint64) []byte {
	return toBackend(packet.EncapsulateGRE(node4, "203.0.113.1", 0, frame))
}

func viaGRE6(frame []byte, hash uint64) []byte {
	return toBackend(packet.EncapsulateGRE(node6, "2001:db8:3::1", uint32(hash)&0xfffff, frame))
}

func viaGUE4(frame []byte, hash uint64) []byte {
	return toBackend(packet.EncapsulateGUE(node4, "203.0.113.1", 0, 49152+uint16(hash&0x3fff), 6080, frame))
}

func viaGUE6(frame []byte, hash uint64) []byte {
	return toBackend(packet.EncapsulateGUE(node6, "2001:db8:3::1", uint32(hash)&0xfffff, 49152+uint16(hash&0x3fff), 6081, frame))
}

func inIPv4(frame []byte) []byte { return viaIPIP4(frame, flowHash(testKey(), frame)) }
func inIPv6(frame []byte) []byte { return viaIPIP6(frame, flowHash(testKey(), frame)) }

// ways are the services of all ways to forward, with what their outer headers take.
var ways = []struct {
	name     string
	vips     []string
	send     sending
	counted  string
	overhead int
}{
	{"l2", vips(1), viaL2, "web/203.0.113.1", 0},
	{"ipip over IPv4", vips(4), viaIPIP4, "four/203.0.113.1", 20},
	{"ipip over IPv6", vips(6), viaIPIP6, "six/2001:db8:3::1", 40},
	{"gre over IPv4", vips(0x21), viaGRE4, "gre4/203.0.113.1", 20 + 4},
	{"gre over IPv6", vips(0x22), viaGRE6, "gre6/2001:db8:3::1", 40 + 4},
	{"gue over IPv4", vips(0x23), viaGUE4, "gue4/203.0.113.1", 20 + 8 + 4},
	{"gue over IPv6", vips(0x24), viaGUE6, "gue6/2001:db8:3::1", 40 + 8 + 4},
}

func testKey() (key [16]byte) { return table("", lb.L2, 0, nil).HashKey }

func TestPackets(t *testing.T) {
	d := newDataplane(t)
	packetServices(t, d)

	const (
		c4, c6     = client4, client6
		web, web6  = "192.0.2.1:443", "[2001:db8:2::1]:443"
		four4      = "192.0.2.4:443"
		four6      = "[2001:db8:2::4]:443"
		six4       = "192.0.2.6:443"
		six6       = "[2001:db8:2::6]:443"
		webBackend = "web/203.0.113.1"
		in4, in6   = "four/203.0.113.1", "six/2001:db8:3::1"
	)
	tcp, udp := packet.TCP, packet.UDP

	rows := []row{
		opening(forwarded("l2: TCP SYN", tcp(c4, web, packet.SYN), l2, webBackend)),
		opening(forwarded("l2: TCP SYN with ECN", tcp(c4, web, packet.SYN, packet.IPByte(33, 0xc2)), l2, webBackend)),
		opening(forwarded("l2: TCP SYN behind IPv4 options", tcp(c4, web, packet.SYN, packet.IPv4Options(40)), l2, webBackend)),
		forwarded("l2: TCP SYN and ACK", tcp(c4, web, packet.SYN, packet.ACK), l2, webBackend),
		forwarded("l2: TCP ACK", tcp(c4, web), l2, webBackend),
		forwarded("l2: TCP FIN", tcp(c4, web, packet.FIN), l2, webBackend),
		forwarded("l2: TCP RST", tcp(c4, web, packet.RST), l2, webBackend),
		forwarded("l2: UDP", udp(c4, web), l2, webBackend),
		forwarded("l2: TCP over IPv6 to an IPv4 backend", tcp(c6, web6), l2, webBackend),
		forwarded("l2: UDP over IPv6", udp(c6, web6), l2, webBackend),
		forwarded("l2: TTL 2", tcp(c4, web, packet.TTL(2)), l2, webBackend),
		forwarded("l2: hop limit 2", tcp(c6, web6, packet.TTL(2)), l2, webBackend),
		forwarded("l2: DSCP and ECN stay", tcp(c4, web, packet.TOS(0xb9)), l2, webBackend),
		forwarded("l2: padding stays", tcp(c4, web, packet.Padding(2)), l2, webBackend),
		forwarded("l2: IPv4 options stay", tcp(c4, web, packet.IPv4Options(4)), l2, webBackend),
		forwarded("l2: 60 bytes of IPv4 header", udp(c4, web, packet.IPv4Options(40)), l2, webBackend),
		forwarded("l2: any size that came in by the same interface", udp(c4, web, packet.Payload(3000)), l2, webBackend),
		forwarded("l2: by another interface, of just its MTU", udp(c4, "192.0.2.11:443", packet.Payload(1000-28)), l2, "far/203.0.113.11"),
		forwarded("l2: an empty UDP datagram", udp(c4, web, packet.Payload(0)), l2, webBackend),
		forwarded("l2: an empty segment over IPv6", tcp(c6, web6, packet.Payload(0)), l2, webBackend),

		opening(forwarded("4in4: TCP SYN", tcp(c4, four4, packet.SYN), inIPv4, in4)),
		opening(forwarded("6in4: TCP SYN", tcp(c6, four6, packet.SYN), inIPv4, in4)),
		forwarded("4in4: TCP", tcp(c4, four4), inIPv4, in4),
		forwarded("4in4: UDP", udp(c4, four4), inIPv4, in4),
		forwarded("6in4: TCP", tcp(c6, four6), inIPv4, in4),
		forwarded("6in4: UDP", udp(c6, four6), inIPv4, in4),
		forwarded("4in6: TCP", tcp(c4, six4), inIPv6, in6),
		forwarded("4in6: UDP", udp(c4, six4), inIPv6, in6),
		forwarded("6in6: TCP", tcp(c6, six6), inIPv6, in6),
		forwarded("6in6: UDP", udp(c6, six6), inIPv6, in6),
		forwarded("4in4: DSCP EF, ECT(1)", tcp(c4, four4, packet.TOS(0xb8|1)), inIPv4, in4),
		forwarded("6in4: DSCP EF, ECT(0)", tcp(c6, four6, packet.TOS(0xb8|2)), inIPv4, in4),
		forwarded("4in6: DSCP AF41, CE", tcp(c4, six4, packet.TOS(0x88|3)), inIPv6, in6),
		forwarded("6in6: all bits set", tcp(c6, six6, packet.TOS(0xff)), inIPv6, in6),
		forwarded("4in4: all bits set", tcp(c4, four4, packet.TOS(0xff)), inIPv4, in4),
		forwarded("4in4: TTL 2", tcp(c4, four4, packet.TTL(2)), inIPv4, in4),
		forwarded("6in6: hop limit 2", tcp(c6, six6, packet.TTL(2)), inIPv6, in6),
		forwarded("4in4: padding is left out", udp(c4, four4, packet.Padding(14)), inIPv4, in4),
		forwarded("6in4: padding is left out", udp(c6, four6, packet.Padding(1)), inIPv4, in4),
		forwarded("4in6: padding is left out", udp(c4, six4, packet.Padding(14)), inIPv6, in6),
		forwarded("6in6: padding is left out", udp(c6, six6, packet.Padding(100)), inIPv6, in6),
		forwarded("4in4: IPv4 options go along", tcp(c4, four4, packet.IPv4Options(8)), inIPv4, in4),
		forwarded("4in4: exactly fitting", udp(c4, four4, packet.Payload(1500-20-28)), inIPv4, in4),
		forwarded("6in4: exactly fitting", udp(c6, four6, packet.Payload(1500-20-48)), inIPv4, in4),
		forwarded("4in6: exactly fitting", udp(c4, six4, packet.Payload(1500-40-28)), inIPv6, in6),
		forwarded("6in6: exactly fitting", udp(c6, six6, packet.Payload(1500-40-48)), inIPv6, in6),
		forwarded("4in4: fitting but for its padding", udp(c4, four4, packet.Payload(1500-20-28), packet.Padding(4)), inIPv4, in4),

		{name: "TTL 1", in: tcp(c4, web, packet.TTL(1)), verdict: TTLExpired},
		{name: "TTL 0", in: tcp(c4, web, packet.TTL(0)), verdict: TTLExpired},
		{name: "hop limit 1", in: tcp(c6, web6, packet.TTL(1)), verdict: TTLExpired},
		{name: "4in4: TTL 1", in: tcp(c4, four4, packet.TTL(1)), verdict: TTLExpired},
		{name: "TTL 1, not for a VIP", in: tcp(c4, "192.0.2.200:443", packet.TTL(1)), verdict: NotVIP},
		{name: "no backend", in: tcp(c4, "192.0.2.9:443"), verdict: NoBackend},
		{name: "no backend, IPv6", in: udp(c6, "[2001:db8:2::9]:443"), verdict: NoBackend},
		opening(row{name: "no backend, SYN", in: tcp(c4, "192.0.2.9:443", packet.SYN), verdict: NoBackend}),
		{name: "no neighbour", in: tcp(c4, "192.0.2.10:443"), verdict: NoNeighbour},
		{name: "no neighbour, IPv6", in: tcp(c6, "[2001:db8:2::10]:443"), verdict: NoNeighbour},

		{name: "a VIP, but another port", in: tcp(c4, "192.0.2.1:444"), verdict: NotVIP},
		{name: "a VIP, but another port, IPv6", in: udp(c6, "[2001:db8:2::1]:444"), verdict: NotVIP},
		{name: "port 0 of a VIP", in: udp(c4, "192.0.2.1:0"), verdict: NotVIP},
		{name: "no VIP", in: tcp(c4, "192.0.2.200:443"), verdict: NotVIP},
		{name: "no VIP, IPv6", in: tcp(c6, "[2001:db8:2::200]:443"), verdict: NotVIP},
		{name: "the source is a VIP", in: tcp(web, c4), verdict: NotVIP},
		{name: "IPv6 address whose last bytes are a VIP's", in: tcp(c6, "[::192.0.2.1]:443"), verdict: NotVIP},
		{name: "an IPv4 VIP, mapped, in an IPv6 packet", in: mapped(tcp(c6, "[2001:db8::1]:443"), "192.0.2.1"), verdict: NotVIP},

		{name: "another MAC", in: tcp(c4, web, packet.To("02:00:00:00:00:01")), verdict: OtherMAC},
		{name: "another MAC that differs in its first byte", in: tcp(c4, web, packet.To("02:00:00:00:00:00")), verdict: OtherMAC},
		{name: "another MAC that differs in its last byte", in: tcp(c6, web6, packet.To("00:00:00:00:00:01")), verdict: OtherMAC},
		{name: "broadcast", in: tcp(c4, web, packet.To("ff:ff:ff:ff:ff:ff")), verdict: OtherMAC},
		{name: "multicast", in: tcp(c6, web6, packet.To("33:33:00:00:00:01")), verdict: OtherMAC},

		{name: "ARP", in: packet.ARP("198.51.100.7", "192.0.2.1"), verdict: OtherMAC},
		{name: "ARP to us", in: packet.ARP("198.51.100.7", "192.0.2.1", packet.To("00:00:00:00:00:00")), verdict: NotIP},
		{name: "802.3 length", in: etherType(tcp(c4, web), 46), verdict: NotIP},
		{name: "LLDP", in: etherType(tcp(c4, web), 0x88cc), verdict: NotIP},
		{name: "4in4 already, to a VIP", in: packet.Encapsulate(node4, "192.0.2.4", 0, tcp(c4, four4)), verdict: OtherProtocol},
		{name: "6in4 already, to a VIP", in: packet.Encapsulate(node4, "192.0.2.4", 0, tcp(c6, four6)), verdict: OtherProtocol},
		{name: "4in6 already, to a VIP", in: packet.Encapsulate(node6, "2001:db8:2::6", 0, tcp(c4, six4)), verdict: OtherProtocol},

		{name: "later fragment of one that was not seen", in: udp(c4, web, packet.Fragment(1480, true)), verdict: Fragment},
		{name: "last fragment of one that was not seen", in: udp(c4, web, packet.Fragment(1480, false)), verdict: Fragment},
		{name: "fragment, not for a VIP", in: udp(c4, "192.0.2.200:443", packet.Fragment(0, true)), verdict: NotVIP},
		{name: "fragment of ICMP for a VIP", in: packet.Echo("198.51.100.7", "192.0.2.1", packet.Fragment(0, true)), verdict: Fragment},
		{name: "IPv6 fragment, not for a VIP", in: udp(c6, "[2001:db8:2::200]:443", packet.Fragment(0, true)), verdict: NotVIP},
		{name: "IPv6 extension header, not for a VIP", in: udp(c6, "[2001:db8:2::200]:443", packet.HopByHop), verdict: NotVIP},

		{name: "IPv4 longer than the frame", in: tcp(c4, web, packet.Length(1)), verdict: Malformed},
		{name: "IPv4 longer than the frame with its padding", in: tcp(c4, web, packet.Padding(2), packet.Length(3)), verdict: Malformed},
		{name: "IPv6 longer than the frame", in: tcp(c6, web6, packet.Length(1)), verdict: Malformed},
		{name: "IPv4 that ends within its TCP header", in: tcp(c4, web, packet.Length(-5)), verdict: Malformed},
		{name: "IPv4 that ends within its UDP header", in: udp(c4, web, packet.Length(-5)), verdict: Malformed},
		{name: "IPv6 that ends within its TCP header", in: tcp(c6, web6, packet.Length(-5)), verdict: Malformed},
		{name: "IPv6 that ends within its UDP header", in: udp(c6, web6, packet.Length(-5)), verdict: Malformed},
		{name: "IPv4 shorter than its own header", in: udp(c4, web, packet.Length(-13)), verdict: Malformed},
		{name: "IPv4 of length 0", in: udp(c4, web, packet.Length(-32)), verdict: Malformed},
		{name: "IPv6 of length 0, as a jumbogram", in: udp(c6, web6, packet.Length(-12)), verdict: Malformed},
		{name: "IPv4 with a header of 16 bytes", in: tcp(c4, web, packet.IPByte(0, 0x44)), verdict: Malformed},
		{name: "IPv4 with a header of 60 bytes that are not there", in: udp(c4, web, packet.IPByte(0, 0x4f)), verdict: Malformed},
		{name: "version 6 in an IPv4 frame", in: tcp(c4, web, packet.IPByte(0, 0x65)), verdict: Malformed},
		{name: "version 4 in an IPv6 frame", in: tcp(c6, web6, packet.IPByte(0, 0x40)), verdict: Malformed},
	}
	// What is encapsulated already, for a backend or for this node, is nobody's service.
	for _, way := range ways[1:] {
		for n, client := range []string{client4, client6} {
			outer := packet.WithMACs("00:00:00:00:00:00", "02:00:00:00:00:cc", way.send(tcp(client, way.vips[n]), 7))
			verdict := OtherProtocol
			if strings.HasPrefix(way.name, "gue") {
				verdict = NotVIP
			}
			to := netip.MustParseAddr(node6)
			at := 14 + 24
			if outer[14]>>4 == 4 {
				to, at = netip.MustParseAddr(node4), 14+16
			}
			here := slices.Clone(outer)
			copy(here[at:], to.AsSlice())
			rows = append(rows,
				row{name: fmt.Sprintf("%s already, to a backend, IPv%d inside", way.name, 4+2*n), in: outer, verdict: verdict},
				row{name: fmt.Sprintf("%s already, to this node, IPv%d inside", way.name, 4+2*n), in: here, verdict: verdict})
		}
	}
	for _, way := range ways[3:] {
		out := func(frame []byte) []byte { return way.send(frame, flowHash(testKey(), frame)) }

		four, six := way.vips[0], way.vips[1]
		rows = append(rows,
			opening(forwarded(way.name+": TCP SYN", tcp(c4, four, packet.SYN), out, way.counted)),
			forwarded(way.name+": TCP over IPv6", tcp(c6, six), out, way.counted),
			forwarded(way.name+": UDP", udp(c4, four), out, way.counted),
			forwarded(way.name+": UDP over IPv6", udp(c6, six), out, way.counted),
			forwarded(way.name+": DSCP EF, ECT(1)", tcp(c4, four, packet.TOS(0xb8|1)), out, way.counted),
			forwarded(way.name+": IPv6, all bits of the class set", tcp(c6, six, packet.TOS(0xff)), out, way.counted),
			forwarded(way.name+": padding is left out", udp(c4, four, packet.Padding(14)), out, way.counted),
			forwarded(way.name+": IPv4 options go along", udp(c4, four, packet.IPv4Options(40)), out, way.counted),
			forwarded(way.name+": exactly fitting", udp(c4, four, packet.Payload(1500-way.overhead-28)), out, way.counted),
			forwarded(way.name+": IPv6, exactly fitting", udp(c6, six, packet.Payload(1500-way.overhead-48)), out, way.counted),
			row{name: way.name + ": TTL 1", in: udp(c4, four, packet.TTL(1)), verdict: TTLExpired},
		)
	}
	// A frame that is cut and keeps its lengths is malformed at every byte.
	for _, whole := range [][]byte{tcp(c4, web), udp(c4, web), tcp(c6, web6), udp(c6, web6), udp(c4, four4), udp(c6, six6)} {
		for n := 14; n < len(whole); n++ {
			rows = append(rows, row{name: fmt.Sprintf("cut after %d bytes of %d", n, len(whole)), in: whole[:n], verdict: Malformed})
		}
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) { r.check(t, d) })
	}
}

// sameFlow is a row of a frame that has to go where flow's packets go.
func sameFlow(name string, in, flow []byte, send sending, counted string) row {
	return row{name: name, in: in, verdict: Forwarded, out: send(in, flowHash(testKey(), flow)), counted: counted}
}

func forwarded(name string, in []byte, way func([]byte) []byte, counted string) row {
	return row{name: name, in: in, verdict: Forwarded, out: way(in), counted: counted}
}

// opening is the row of a packet that opens a flow.
func opening(r row) row {
	r.opens = 1
	return r
}

// mapped makes the destination of an IPv6 frame ::ffff:address.
func mapped(frame []byte, address string) []byte {
	a := netip.MustParseAddr(address).As16()
	copy(frame[14+24:], a[:])
	return frame
}

func etherType(frame []byte, number uint16) []byte {
	binary.BigEndian.PutUint16(frame[12:], number)
	return frame
}

// The outer source's free bits are those of the flow's hash: many values over
// many flows, one within a flow, and a header whose checksum is right.
func TestOuterSourcesVaryWithTheFlowWithinTheirPrefix(t *testing.T) {
	for _, forward := range []lb.Forward{lb.IPIP, lb.GRE, lb.GUE} {
		for _, backend := range []string{"203.0.113.1", "2001:db8:3::1"} {
			t.Run(fmt.Sprintf("%s to %s", forward, backend), func(t *testing.T) {
				d := newDataplane(t)
				d.setWay(backend, way{mac: backendMAC, source: node4, ifindex: 1, mtu: 1500})
				web := gue(6080, table("web", forward, 13, vips(1), backend))
				// Bits beyond the prefix's length are not the prefix's.
				web.Service.OuterSources = []netip.Prefix{netip.MustParsePrefix("198.18.77.3/18"), netip.MustParsePrefix("2001:db8:5::ff/112")}
				apply(t, d, web)
				sources, flows := make(map[netip.Addr]bool), inShort(2000, 100)
				for n := range flows {
					frame := flow(n, vips(1)[n%2])
					hash := flowHash(testKey(), frame)
					// The address lies in the packet as the hash's low bytes do in memory.
					source := netip.AddrFrom4([4]byte{198, 18, 64 + byte(hash>>16)&0x3f, byte(hash >> 24)})
					if netip.MustParseAddr(backend).Is6() {
						a := netip.MustParseAddr("2001:db8:5::").As16()
						a[14], a[15] = byte(hash>>16), byte(hash>>24)
						source = netip.AddrFrom16(a)
					}
					sources[source] = true
					out := process(t, d, frame, Forwarded)
					want := map[lb.Forward]func() []byte{
						lb.IPIP: func() []byte { return packet.Encapsulate(source.String(), backend, uint32(hash)&0xfffff, frame) },
						lb.GRE:  func() []byte { return packet.EncapsulateGRE(source.String(), backend, uint32(hash)&0xfffff, frame) },
						lb.GUE: func() []byte {
							return packet.EncapsulateGUE(source.String(), backend, uint32(hash)&0xfffff, 49152+uint16(hash&0x3fff), 6080, frame)
						},
					}[forward]()
					if !bytes.Equal(out, toBackend(want)) {
						t.Fatalf("flow %d:\ngot  %.80x\nwant %.80x", n, out, l2(want))
					}
				}
				if len(sources) < flows*9/10 {
					t.Errorf("%d flows have %d sources, want nearly as many", flows, len(sources))
				}
			})
		}
	}
}

// What a backend sends back to the nodes comes to an end: by l2 at most 8 hops are
// left. The frames to compare with are made with the TTL that they are to have,
// checksum and all.
func TestL2LeavesFewHops(t *testing.T) {
	d := newDataplane(t)
	packetServices(t, d)
	const tag = 0x8100<<16 | 5
	for ttl := range 256 {
		for id := range uint16(inShort(16, 2)) { // the checksum is another with each
			for _, make := range []func(ttl uint8) []byte{
				func(ttl uint8) []byte { return packet.TCP(client4, vips(1)[0], packet.TTL(ttl), packet.ID(id<<12)) },
				func(ttl uint8) []byte { return packet.UDP(client6, vips(1)[1], packet.TTL(ttl)) },
			} {
				in, verdict := make(uint8(ttl)), Forwarded
				out := toBackend(make(min(uint8(ttl)-1, 8)))
				if ttl <= 1 {
					out, verdict = in, TTLExpired
				}
				if got := process(t, d, in, verdict); !bytes.Equal(got, out) {
					t.Fatalf("TTL %d:\ngot  %x\nwant %x", ttl, got, out)
				}
				if got := process(t, d, packet.Tagged(in, tag), verdict); !bytes.Equal(got, packet.Tagged(out, tag)) {
					t.Fatalf("TTL %d, tagged:\ngot  %x\nwant %x", ttl, got, packet.Tagged(out, tag))
				}
			}
		}
	}
}

// TestOuterChecksumsWhoseCarriesCarry picks the packets for which the sum of an
// outer IPv4 header overflows once more when its carry is added.
func TestOuterChecksumsWhoseCarriesCarry(t *testing.T) {
	d := newDataplane(t)
	packetServices(t, d)
	// A source that brings the sum near to it, whatever the packet's length.
	var source netip.Addr
	var partial uint32
	for n := 0; partial&0xff != 0xfd; n++ {
		source = netip.AddrFrom4([4]byte{198, 18, byte(n), 1})
		partial = outerHeader(source, netip.MustParseAddr("203.0.113.1"))[2] >> 16
	}
	d.setWay("203.0.113.1", way{mac: backendMAC, source: source.String(), ifindex: 1, mtu: 1500})
	found := 0
	for payload := range 1400 {
		for tos := range 256 {
			sum := partial + uint32(bits.ReverseBytes16(uint16(tos))) + uint32(bits.ReverseBytes16(uint16(20+28+payload))) + 4<<8
			if sum>>16+sum&0xffff <= 0xffff || found >= 100 {
				continue
			}
			found++
			frame := packet.UDP(client4, "192.0.2.4:443", packet.Payload(payload), packet.TOS(uint8(tos)))
			if got, want := process(t, d, frame, Forwarded), toBackend(packet.Encapsulate(source.String(), "203.0.113.1", 0, frame)); !bytes.Equal(got, want) {
				t.Fatalf("payload of %d bytes, tos %#x:\ngot  %.40x\nwant %.40x", payload, tos, got, want)
			}
		}
	}
	if found == 0 {
		t.Error("no packet has such a sum: the test tests nothing")
	}
}
