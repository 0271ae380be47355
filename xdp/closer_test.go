package xdp

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/internal/packet"
	"github.com/halfproxy/halfproxy/lb"
)

func TestTagsStayOnAndTheFrameInItsVLAN(t *testing.T) {
	d := newDataplane(t)
	packetServices(t, d)
	const q, ad = 0x8100 << 16, 0x88a8 << 16
	var rows []row
	for _, way := range ways {
		plain4, plain6 := packet.TCP(client4, way.vips[0], packet.Padding(3)), packet.UDP(client6, way.vips[1])
		for _, tt := range []struct {
			name string
			tags []uint32
		}{
			{"802.1Q", []uint32{q | 5}},
			{"802.1Q with priority and DEI", []uint32{q | 0xf005}},
			{"802.1ad", []uint32{ad | 100}},
			{"802.1ad and 802.1Q", []uint32{ad | 100, q | 5}},
			{"802.1Q twice", []uint32{q | 1, q | 4094}},
		} {
			for _, plain := range [][]byte{plain4, plain6} {
				out := way.send(plain, flowHash(testKey(), plain))
				rows = append(rows, row{name: way.name + ": " + tt.name, in: packet.Tagged(plain, tt.tags...), verdict: Forwarded,
					out: packet.Tagged(out, tt.tags...), counted: way.counted})
			}
		}
	}
	untagged := packet.TCP(client4, vips(1)[0])
	big := packet.UDP(client4, vips(4)[0], packet.Payload(1470))
	reply := packet.ICMP("192.0.2.1", "198.51.100.7", 0, 0, 1<<16|1, []byte{0, 1, 2, 3}, packet.TTL(64))
	syn := packet.TCP(client4, vips(1)[0], packet.SYN)
	rows = append(rows,
		opening(row{name: "SYN", in: packet.Tagged(syn, q|5), verdict: Forwarded, out: packet.Tagged(l2(syn), q|5), counted: "web/203.0.113.1"}),
		row{name: "a ping", in: packet.Tagged(packet.Echo("198.51.100.7", "192.0.2.1"), ad|7, q|8), verdict: AnsweredEcho,
			out: packet.Tagged(packet.WithMACs("02:00:00:00:00:cc", "00:00:00:00:00:00", reply), ad|7, q|8)},
		row{name: "too big", in: packet.Tagged(big, q|8), verdict: AnsweredTooBig, out: packet.Tagged(tooBig(big, 1480), q|8)},
		row{name: "too big, not to be answered", in: packet.Tagged(packet.UDP(client4, vips(4)[0], packet.Payload(1470), packet.MayFragment), q|8), verdict: TooBig},
		row{name: "three tags", in: packet.Tagged(untagged, ad|1, q|2, q|3), verdict: VLAN},
		row{name: "no VIP", in: packet.Tagged(packet.TCP(client4, "192.0.2.200:443"), q|5), verdict: NotVIP},
		row{name: "ARP", in: packet.Tagged(packet.ARP("198.51.100.7", "192.0.2.1", packet.To("00:00:00:00:00:00")), q|5), verdict: NotIP},
		row{name: "TTL 1", in: packet.Tagged(packet.TCP(client4, vips(1)[0], packet.TTL(1)), q|5), verdict: TTLExpired},
		row{name: "no backend", in: packet.Tagged(packet.TCP(client4, vips(9)[0]), q|5), verdict: NoBackend},
	)
	for n := 14; n < len(untagged)+8; n++ {
		rows = append(rows, row{name: "cut", in: packet.Tagged(untagged, ad|1, q|2)[:n], verdict: Malformed})
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) { r.check(t, d) })
	}
}

func TestExtensionHeadersAreWalked(t *testing.T) {
	d := newDataplane(t)
	packetServices(t, d)
	var rows []row
	for _, way := range ways {
		flow := packet.UDP(client6, way.vips[1])
		for _, tt := range []struct {
			name    string
			options []packet.Option
		}{
			{"hop-by-hop options", []packet.Option{packet.HopByHop}},
			{"routing", []packet.Option{packet.Extension(43, 3)}},
			{"destination options", []packet.Option{packet.Extension(60, 1)}},
			{"the three of them", []packet.Option{packet.HopByHop, packet.Extension(43, 3), packet.Extension(60, 2)}},
			{"destination options of 248 bytes", []packet.Option{packet.Extension(60, 31)}},
			{"six", []packet.Option{packet.HopByHop, packet.Extension(60, 1), packet.Extension(43, 3), packet.Extension(60, 1), packet.Extension(60, 2), packet.Extension(60, 1)}},
			{"an atomic fragment", []packet.Option{packet.Fragment(0, false)}},
		} {
			rows = append(rows, sameFlow(way.name+": "+tt.name, packet.UDP(client6, way.vips[1], tt.options...), flow, way.send, way.counted))
		}
	}
	web := vips(1)[1]
	rows = append(rows, opening(forwarded("l2: SYN", packet.TCP(client6, web, packet.SYN, packet.HopByHop), l2, "web/203.0.113.1")))
	seven := []packet.Option{packet.HopByHop, packet.Extension(60, 1), packet.Extension(43, 3), packet.Extension(60, 1), packet.Extension(60, 2), packet.Extension(60, 1), packet.Extension(60, 1)}
	rows = append(rows,
		row{name: "seven", in: packet.UDP(client6, web, seven...), verdict: IPv6Extension},
		row{name: "authentication", in: packet.UDP(client6, web, packet.Extension(51, 3)), verdict: IPv6Extension},
		row{name: "mobility", in: packet.UDP(client6, web, packet.Extension(135, 1)), verdict: IPv6Extension},
		row{name: "HIP", in: packet.UDP(client6, web, packet.Extension(139, 1)), verdict: IPv6Extension},
		row{name: "shim6", in: packet.UDP(client6, web, packet.Extension(140, 1)), verdict: IPv6Extension},
		row{name: "a number for experiments", in: packet.UDP(client6, web, packet.Extension(253, 1)), verdict: OtherProtocol},
		row{name: "no next header", in: packet.Transport(59, 4, client6, web), verdict: OtherProtocol},
		row{name: "seven, not for a VIP", in: packet.UDP(client6, "[2001:db8:2::200]:443", seven...), verdict: NotVIP},
		row{name: "longer than the packet", in: packet.UDP(client6, web, packet.HopByHop, packet.IPByte(41, 9)), verdict: Malformed},
		row{name: "TCP's header is cut", in: packet.TCP(client6, web, packet.HopByHop, packet.Length(-5)), verdict: Malformed},
	)
	whole := packet.UDP(client6, web, packet.HopByHop, packet.Extension(43, 3), packet.Extension(60, 2))
	for n := 14; n < len(whole); n++ {
		rows = append(rows, row{name: "cut", in: whole[:n], verdict: Malformed})
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) { r.check(t, d) })
	}
}

// others is a service of SCTP and UDP-Lite, both at port 443.
func others(forward lb.Forward, n int, backend string) lb.Table {
	t := table("others", forward, 13, vips(n), backend)
	t.Service.Ports = []lb.Port{{Protocol: lb.SCTP, Number: 443}, {Protocol: lb.UDPLite, Number: 443}}
	return t
}

func TestSCTPAndUDPLiteGoByTheirPorts(t *testing.T) {
	d := newDataplane(t)
	d.setWay("203.0.113.1", way{mac: backendMAC, source: node4, ifindex: 1, mtu: 1500})
	apply(t, d, others(lb.IPIP, 4, "203.0.113.1"))
	const backend = "others/203.0.113.1"
	const initChunk = 1 // the type of the chunk after SCTP's header
	sctp := func(from, to string, options ...packet.Option) []byte {
		return packet.Transport(packet.SCTP, 12, from, to, options...)
	}
	lite := func(from, to string, options ...packet.Option) []byte {
		return packet.Transport(packet.UDPLite, 8, from, to, options...)
	}
	four, six := vips(4)[0], vips(4)[1]
	rows := []row{
		forwarded("SCTP", sctp(client4, four), inIPv4, backend),
		forwarded("SCTP over IPv6", sctp(client6, six), inIPv4, backend),
		opening(forwarded("SCTP INIT", sctp(client4, four, packet.IPByte(20+12, initChunk)), inIPv4, backend)),
		opening(forwarded("SCTP INIT over IPv6", sctp(client6, six, packet.IPByte(40+12, initChunk)), inIPv4, backend)),
		forwarded("SCTP INIT behind the packet's end", sctp(client4, four, packet.IPByte(20+12, initChunk), packet.Length(-4)), inIPv4, backend),
		forwarded("UDP-Lite", lite(client4, four), inIPv4, backend),
		forwarded("UDP-Lite over IPv6", lite(client6, six), inIPv4, backend),
		sameFlow("an ICMP error", about(sctp(four, client4), 3, 4), sctp(client4, four), viaIPIP4, backend),
		{name: "SCTP to another port", in: sctp(client4, "192.0.2.4:444"), verdict: NotVIP},
		{name: "TCP to SCTP's port", in: packet.TCP(client4, four), verdict: NotVIP},
		{name: "SCTP's header is cut", in: sctp(client4, four, packet.Payload(0), packet.Length(-1)), verdict: Malformed},
		{name: "UDP-Lite's header is cut", in: lite(client6, six, packet.Payload(0), packet.Length(-1)), verdict: Malformed},
		{name: "SCTP's header is not there", in: sctp(client4, four, packet.Payload(0))[:14+20+11], verdict: Malformed},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) { r.check(t, d) })
	}
}

func TestFragmentsFollowTheFirstOne(t *testing.T) {
	d := newDataplane(t)
	packetServices(t, d)
	for _, way := range ways {
		for n, vip := range way.vips {
			client := []string{client4, client6}[n]
			name := way.name + ", " + vip + ": "
			flow := packet.UDP(client, vip)
			fragment := func(id uint16, offset int, more bool) []byte {
				return packet.UDP(client, vip, packet.Fragment(offset, more), packet.FragmentID(id))
			}
			for _, r := range []row{
				{name: name + "before the first", in: fragment(1, 1480, true), verdict: Fragment},
				sameFlow(name+"the first", fragment(1, 0, true), flow, way.send, way.counted),
				sameFlow(name+"the second", fragment(1, 1480, true), flow, way.send, way.counted),
				sameFlow(name+"the last", fragment(1, 4440, false), flow, way.send, way.counted),
				sameFlow(name+"out of order", fragment(1, 2960, true), flow, way.send, way.counted),
				{name: name + "of another datagram", in: fragment(2, 1480, false), verdict: Fragment},
			} {
				t.Run(r.name, func(t *testing.T) { r.check(t, d) })
			}
		}
	}
	first := packet.UDP(client4, vips(1)[0], packet.Fragment(0, true), packet.FragmentID(9))
	rows := []row{
		{name: "of another client", in: packet.UDP("198.51.100.8:31337", vips(1)[0], packet.Fragment(1480, false), packet.FragmentID(9)), verdict: Fragment},
		{name: "to another VIP", in: packet.UDP(client4, vips(4)[0], packet.Fragment(1480, false), packet.FragmentID(9)), verdict: Fragment},
		{name: "of another protocol", in: packet.TCP(client4, vips(1)[0], packet.Fragment(1480, false), packet.FragmentID(9)), verdict: Fragment},
		{name: "the first to a port that is nobody's", in: packet.UDP(client4, "192.0.2.1:444", packet.Fragment(0, true), packet.FragmentID(10)), verdict: NotVIP},
		{name: "and the second", in: packet.UDP(client4, "192.0.2.1:444", packet.Fragment(1480, false), packet.FragmentID(10)), verdict: Fragment},
	}
	process(t, d, first, Forwarded)
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) { r.check(t, d) })
	}
	t.Run("long after the first", func(t *testing.T) {
		if testing.Short() {
			t.Skip("waits for 2 s")
		}
		process(t, d, first, Forwarded)
		time.Sleep(2100 * time.Millisecond)
		row{in: packet.UDP(client4, vips(1)[0], packet.Fragment(1480, false), packet.FragmentID(9)), verdict: Fragment}.check(t, d)
	})
}

func TestServicesBySourceSendAllOfAClientToOneBackend(t *testing.T) {
	d := newDataplane(t)
	backends := []string{"203.0.113.1", "203.0.113.2", "203.0.113.3"}
	setWays(d, backends...)
	web := table("web", lb.L2, 1021, vips(1), backends...)
	web.Service.Hash = lb.HashSource
	// Of a VIP's protocol that two services have, the ports say which is meant.
	shared := table("shared", lb.L2, 1021, vips(4), backends...)
	shared.Service.Hash = lb.HashSource
	other := table("other", lb.L2, 1021, []string{"192.0.2.4:444"}, backends...)
	apply(t, d, web, shared, other)

	macs := make(map[string]bool)
	for n := range 50 {
		client := netip.AddrFrom4([4]byte{198, 18, 0, byte(n)})
		backend := func(frame []byte, want Verdict) string {
			return string(process(t, d, frame, want)[:6])
		}
		at := func(port uint16) string { return netip.AddrPortFrom(client, port).String() }
		want := backend(packet.TCP(at(1), vips(1)[0]), Forwarded)
		macs[want] = true
		for name, frame := range map[string][]byte{
			"another port":                      packet.TCP(at(40000), vips(1)[0]),
			"another protocol":                  packet.UDP(at(7), vips(1)[0]),
			"a first fragment":                  packet.UDP(at(9), vips(1)[0], packet.Fragment(0, true)),
			"a later fragment, of TCP":          packet.TCP(at(9), vips(1)[0], packet.Fragment(1480, true), packet.FragmentID(99)),
			"a later fragment that comes first": packet.UDP(at(9), vips(1)[0], packet.Fragment(1480, false), packet.FragmentID(98)),
			"an ICMP error":                     about(sentAs(vips(1)[0], at(5)), 3, 4),
		} {
			if got := backend(frame, Forwarded); got != want {
				t.Errorf("client %s, %s: got backend %x, want %x", client, name, got, want)
			}
		}
		process(t, d, packet.UDP(at(9), vips(4)[0], packet.Fragment(1480, false), packet.FragmentID(97)), Fragment)
	}
	if len(macs) != 3 {
		t.Errorf("50 clients went to %d backends, want 3", len(macs))
	}
	for _, vip := range vips(1) {
		frame := flow(7, vip)
		a, err := d.ask(frame)
		must(t, err)
		if want := fieldHash(web.HashKey, lb.HashSource, frame); a.trace.Hash != want {
			t.Errorf("hash of a packet to %s: got %#x, want %#x", vip, a.trace.Hash, want)
		}
	}

	// The option alone changes, on a service that lives on.
	web.Service.Hash = lb.HashFlow
	apply(t, d, web, shared, other)
	a, err := d.ask(flow(7, vips(1)[0]))
	must(t, err)
	if want := flowHash(web.HashKey, flow(7, vips(1)[0])); a.trace.Hash != want {
		t.Errorf("hash by flow again: got %#x, want %#x", a.trace.Hash, want)
	}
	process(t, d, packet.UDP("198.18.0.9:9", vips(1)[0], packet.Fragment(1480, false), packet.FragmentID(96)), Fragment)
}

func TestRangesOfPortsAreFoundBehindSinglePorts(t *testing.T) {
	d := newDataplane(t)
	d.setWay("203.0.113.1", way{mac: backendMAC, source: node4, ifindex: 1, mtu: 1500})
	d.setWay("203.0.113.2", way{mac: backendMAC, source: node4, ifindex: 1, mtu: 1500})
	at := func(name string, forward lb.Forward, n int, backend string, ports ...lb.Port) lb.Table {
		t := table(name, forward, 13, vips(n), backend)
		t.Service.Ports = ports
		return t
	}
	tcp := func(first, last uint16) lb.Port { return lb.Port{Protocol: lb.TCP, Number: first, Last: last} }
	apply(t, d,
		at("some", lb.L2, 1, "203.0.113.1", tcp(1000, 2000), tcp(3000, 3001), lb.Port{Protocol: lb.UDP, Number: 5, Last: 6}),
		at("one", lb.IPIP, 1, "203.0.113.1", tcp(1500, 0)),
		at("all", lb.L2, 4, "203.0.113.2", tcp(1, 65535)))
	const some, one, all = "some/203.0.113.1", "one/203.0.113.1", "all/203.0.113.2"
	frame := func(port string, options ...packet.Option) []byte {
		return packet.TCP(client4, "192.0.2."+port, options...)
	}
	six := func(port string) []byte { return packet.TCP(client6, "[2001:db8:2::1]:"+port) }
	rows := []row{
		forwarded("first", frame("1:1000"), l2, some),
		forwarded("last", frame("1:2000"), l2, some),
		forwarded("first over IPv6", six("1000"), l2, some),
		forwarded("another range", frame("1:3001"), l2, some),
		forwarded("of UDP", packet.UDP(client4, "192.0.2.1:6"), l2, some),
		forwarded("a single port within a range", frame("1:1500"), inIPv4, one),
		forwarded("beside the single port", frame("1:1501"), l2, some),
		forwarded("the first of all", frame("4:1"), l2, all),
		forwarded("the last of all", frame("4:65535"), l2, all),
		forwarded("a first fragment", frame("1:1999", packet.Fragment(0, true)), l2, some),
		sameFlow("a later fragment", frame("1:1999", packet.Fragment(1480, false)), frame("1:1999"), viaL2, some),
		sameFlow("an ICMP error", about(sentAs("192.0.2.1:1999", client4), 3, 4), frame("1:1999"), viaL2, some),
		{name: "just below", in: frame("1:999"), verdict: NotVIP},
		{name: "just above", in: frame("1:2001"), verdict: NotVIP},
		{name: "just above, IPv6", in: six("2001"), verdict: NotVIP},
		{name: "port 0 is not among all", in: frame("4:0"), verdict: NotVIP},
		{name: "another protocol", in: packet.UDP(client4, "192.0.2.4:7"), verdict: NotVIP},
		{name: "no VIP", in: frame("200:1000"), verdict: NotVIP},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) { r.check(t, d) })
	}

	// The range moves to another service, then goes.
	apply(t, d, at("other", lb.L2, 1, "203.0.113.2", tcp(1000, 2000)))
	forwarded("moved", frame("1:1000"), l2, "other/203.0.113.2").check(t, d)
	row{in: frame("1:3000"), verdict: NotVIP}.check(t, d)
	row{in: frame("4:1"), verdict: NotVIP}.check(t, d)
	apply(t, d, at("other", lb.L2, 1, "203.0.113.2", tcp(80, 0)))
	row{in: frame("1:1000"), verdict: NotVIP}.check(t, d)

	overlap := []lb.Table{at("a", lb.L2, 1, "203.0.113.1", tcp(1, 10)), at("b", lb.L2, 1, "203.0.113.1", tcp(10, 20))}
	const want = `service "b": vip 192.0.2.1 tcp/10-20 overlaps tcp/1-10 of "a"`
	if err := d.Apply(t.Context(), overlap); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("ranges that overlap: got %v, want it to hold %q", err, want)
	}
}
