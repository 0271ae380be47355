package xdp

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/internal/packet"
	"github.com/halfproxy/halfproxy/lb"
)

const (
	router4 = "192.0.2.254" // that sends ICMP errors
	router6 = "2001:db8:9::1"
)

// sentAs is what a backend sent to the client as the VIP: the flow's packet the
// other way round.
func sentAs(vip, client string, options ...packet.Option) []byte {
	return packet.TCP(vip, client, append([]packet.Option{packet.Payload(100)}, options...)...)
}

// about is an ICMP error of the router about a packet that the client was sent.
func about(quoted []byte, kind, code uint8, options ...packet.Option) []byte {
	if quoted[14]>>4 == 4 {
		return packet.ICMP(router4, sourceOf(quoted), kind, code, 1400, packet.IP(quoted), options...)
	}
	return packet.ICMP(router6, sourceOf(quoted), kind, code, 1400, packet.IP(quoted), options...)
}

func sourceOf(frame []byte) string {
	if frame[14]>>4 == 4 {
		return netip.AddrFrom4([4]byte(frame[14+12:])).String()
	}
	return netip.AddrFrom16([16]byte(frame[14+8:])).String()
}

// cut leaves a quoted packet's header and n bytes of its transport.
func cut(quoted []byte, n int) []byte {
	if quoted[14]>>4 == 4 {
		return quoted[:14+int(quoted[14]&15)*4+n]
	}
	return quoted[:14+40+n]
}

// aboutCut is an error that quotes a packet incompletely, as its lengths tell.
func aboutCut(quoted []byte, n int, kind, code uint8) []byte {
	body := cut(quoted, n)[14:]
	if quoted[14]>>4 == 4 {
		return packet.ICMP(router4, sourceOf(quoted), kind, code, 0, body)
	}
	return packet.ICMP(router6, sourceOf(quoted), kind, code, 0, body)
}

func TestICMPErrorsGoWhereTheirFlowGoes(t *testing.T) {
	d := newDataplane(t)
	packetServices(t, d)
	var rows []row
	for _, way := range ways {
		flow4, flow6 := packet.TCP(client4, way.vips[0]), packet.TCP(client6, way.vips[1])
		answer4, answer6 := sentAs(way.vips[0], client4), sentAs(way.vips[1], client6)
		same := func(name string, in, flow []byte) {
			rows = append(rows, sameFlow(way.name+": "+name, in, flow, way.send, way.counted))
		}
		same("frag-needed", about(answer4, 3, 4), flow4)
		same("host unreachable", about(answer4, 3, 1), flow4)
		same("port unreachable", about(answer4, 3, 3), flow4)
		same("admin prohibited", about(answer4, 3, 13), flow4)
		same("time exceeded", about(answer4, 11, 0), flow4)
		same("parameter problem", about(answer4, 12, 0), flow4)
		same("frag-needed with 8 bytes of TCP", aboutCut(answer4, 8, 3, 4), flow4)
		same("frag-needed about IPv4 options", about(sentAs(way.vips[0], client4, packet.IPv4Options(40)), 3, 4), flow4)
		same("frag-needed with IPv4 options of its own", about(answer4, 3, 4, packet.IPv4Options(8)), flow4)
		same("frag-needed about a first fragment", about(sentAs(way.vips[0], client4, packet.Fragment(0, true)), 3, 4), flow4)
		same("frag-needed about UDP", about(packet.UDP(way.vips[0], client4), 3, 4), packet.UDP(client4, way.vips[0]))
		same("frag-needed about a SYN", about(sentAs(way.vips[0], client4, packet.SYN), 3, 4), flow4)
		same("frag-needed, DSCP CS6", about(answer4, 3, 4, packet.TOS(0xc0)), flow4)
		same("packet too big", about(answer6, 2, 0), flow6)
		same("IPv6 no route", about(answer6, 1, 0), flow6)
		same("IPv6 port unreachable", about(answer6, 1, 4), flow6)
		same("IPv6 hop limit exceeded", about(answer6, 3, 0), flow6)
		same("IPv6 parameter problem", about(answer6, 4, 1), flow6)
		same("packet too big with 8 bytes of TCP", aboutCut(answer6, 8, 2, 0), flow6)
		same("packet too big about extension headers", about(sentAs(way.vips[1], client6, packet.HopByHop, packet.Extension(60, 3)), 2, 0), flow6)
		same("packet too big about a first fragment", about(sentAs(way.vips[1], client6, packet.Fragment(0, true)), 2, 0), flow6)
		same("packet too big behind extension headers", about(answer6, 2, 0, packet.HopByHop), flow6)

		rows = append(rows,
			row{name: way.name + ": TTL 1", in: about(answer4, 3, 4, packet.TTL(1)), verdict: TTLExpired},
			row{name: way.name + ": another's packet", in: packet.ICMP(router4, sourceOf(answer4), 3, 4, 1400, packet.IP(packet.TCP("203.0.113.77:443", client4))), verdict: ICMPMismatch},
			row{name: way.name + ": another's packet, IPv6", in: packet.ICMP(router6, sourceOf(answer6), 2, 0, 1400, packet.IP(packet.TCP("[2001:db8:77::1]:443", client6))), verdict: ICMPMismatch},
			row{name: way.name + ": about a later fragment", in: about(sentAs(way.vips[0], client4, packet.Fragment(1480, true)), 3, 4), verdict: ICMPFragment},
			row{name: way.name + ": about a later fragment, IPv6", in: about(sentAs(way.vips[1], client6, packet.Fragment(1480, false)), 2, 0), verdict: ICMPFragment},
		)
	}
	vip4, vip6 := vips(1)[0], vips(1)[1]
	answer4, answer6 := sentAs(vip4, client4), sentAs(vip6, client6)
	rows = append(rows,
		row{name: "7 bytes of TCP", in: aboutCut(answer4, 7, 3, 4), verdict: Malformed},
		row{name: "7 bytes of TCP over IPv6", in: aboutCut(answer6, 7, 2, 0), verdict: Malformed},
		row{name: "no quoted packet", in: packet.ICMP(router4, "192.0.2.1", 3, 4, 1400, nil), verdict: Malformed},
		row{name: "another family quoted", in: packet.ICMP(router4, "192.0.2.1", 3, 4, 1400, packet.IP(answer6)), verdict: Malformed},
		row{name: "another family quoted in ICMPv6", in: packet.ICMP(router6, "2001:db8:2::1", 2, 0, 1400, packet.IP(answer4)), verdict: Malformed},
		row{name: "about a port that is nobody's", in: about(sentAs("192.0.2.1:444", client4), 3, 4), verdict: NotVIP},
		row{name: "to an address that is no VIP", in: about(sentAs("192.0.2.200:443", client4), 3, 4), verdict: NotVIP},
		row{name: "mismatch to an address that is no VIP", in: packet.ICMP(router4, "192.0.2.200", 3, 4, 1400, packet.IP(answer4)), verdict: NotVIP},
		row{name: "about ICMP", in: about(packet.Echo("192.0.2.1", "198.51.100.7"), 3, 1), verdict: OtherProtocol},
		row{name: "a redirect", in: about(answer4, 5, 1), verdict: OtherProtocol},
		row{name: "a router advertisement", in: packet.ICMP(router6, "2001:db8:2::1", 134, 0, 0, nil), verdict: OtherProtocol},
		row{name: "an error to a service without backends", in: about(sentAs("192.0.2.9:443", client4), 3, 4), verdict: NoBackend},
		row{name: "ports in the frame's padding alone", in: append(aboutCut(answer4, 0, 3, 4), make([]byte, 16)...), verdict: Malformed},
		row{name: "too big an error makes no error", in: about(sentAs(vips(4)[0], client4, packet.Payload(1460)), 3, 4), verdict: TooBig},
		row{name: "too big an error makes no error, IPv6", in: about(sentAs(vips(6)[1], client6, packet.Payload(1440)), 1, 0), verdict: TooBig},
	)
	for n, r := range rows {
		if n%50 == 0 {
			resetLimits(t, d)
		}
		t.Run(r.name, func(t *testing.T) { r.check(t, d) })
	}
}

// resetLimits lets the services' buckets be full again.
func resetLimits(t *testing.T, d *Dataplane) {
	t.Helper()
	for n := range 32 {
		must(t, d.store.maps[bpfMapLimits].Put(uint32(n), bpfLimit{}))
	}
}

func TestEchoRequestsToAVIPAreAnswered(t *testing.T) {
	d := newDataplane(t)
	packetServices(t, d)
	const c4, c6, v4, v6 = "198.51.100.7", "2001:db8:100::7", "192.0.2.1", "2001:db8:2::1"
	reply := func(from, to string, kind uint8, options ...packet.Option) []byte {
		options = append([]packet.Option{packet.TTL(64)}, options...)
		return packet.WithMACs("02:00:00:00:00:cc", "00:00:00:00:00:00", packet.ICMP(from, to, kind, 0, 1<<16|1, []byte{0, 1, 2, 3}, options...))
	}
	echo := packet.Echo
	rows := []row{
		{name: "IPv4", in: echo(c4, v4), verdict: AnsweredEcho, out: reply(v4, c4, 0)},
		{name: "IPv6", in: echo(c6, v6), verdict: AnsweredEcho, out: reply(v6, c6, 129)},
		{name: "TTL 1", in: echo(c4, v4, packet.TTL(1)), verdict: AnsweredEcho, out: reply(v4, c4, 0)},
		{name: "hop limit 255", in: echo(c6, v6, packet.TTL(255)), verdict: AnsweredEcho, out: reply(v6, c6, 129)},
		{name: "DSCP stays", in: echo(c4, v4, packet.TOS(0xb8)), verdict: AnsweredEcho, out: reply(v4, c4, 0, packet.TOS(0xb8))},
		{name: "IPv4 options stay", in: echo(c4, v4, packet.IPv4Options(40)), verdict: AnsweredEcho, out: reply(v4, c4, 0, packet.IPv4Options(40))},
		{name: "behind extension headers", in: echo(c6, v6, packet.HopByHop), verdict: AnsweredEcho, out: reply(v6, c6, 129, packet.HopByHop)},
		{name: "of a service without backends", in: echo(c4, "192.0.2.9"), verdict: AnsweredEcho, out: reply("192.0.2.9", c4, 0)},
		{name: "to no VIP", in: echo(c4, "192.0.2.200"), verdict: NotVIP},
		{name: "to no VIP, IPv6", in: echo(c6, "2001:db8:2::200"), verdict: NotVIP},
		{name: "a reply to the VIP", in: packet.ICMP(c4, v4, 0, 0, 1, nil), verdict: OtherProtocol},
		{name: "a neighbour solicitation of the VIP", in: packet.ICMP(c6, v6, 135, 0, 0, make([]byte, 16)), verdict: OtherProtocol},
		{name: "cut", in: echo(c4, v4, packet.Length(-5)), verdict: Malformed},
	}
	for _, from := range noHosts {
		to := v4
		if strings.Contains(from, ":") {
			to = v6
		}
		rows = append(rows, row{name: "from " + from, in: echo(from, to), verdict: OtherProtocol})
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) { r.check(t, d) })
	}
	// Sums with all sorts of carries: gopacket computes, the program patches.
	for id := range inShort(2000, 100) {
		must(t, d.store.maps[bpfMapEchoLimits].Put(echoBucket(v4), uint64(0)))
		must(t, d.store.maps[bpfMapEchoLimits].Put(echoBucket(v6), uint64(0)))
		word := uint32(id * 0x00010431)
		ttl := packet.TTL(uint8(id))
		for _, tt := range []struct{ in, want []byte }{
			{packet.ICMP(c4, v4, 8, 0, word, nil, ttl), packet.ICMP(v4, c4, 0, 0, word, nil, packet.TTL(64))},
			{packet.ICMP(c6, v6, 128, 0, word, nil, ttl), packet.ICMP(v6, c6, 129, 0, word, nil, packet.TTL(64))},
		} {
			if got := process(t, d, tt.in, AnsweredEcho); !bytes.Equal(got[14:], tt.want[14:]) {
				t.Fatalf("word %#x:\ngot  %x\nwant %x", word, got, tt.want)
			}
		}
	}
}

// noHosts are sources that nobody may be sent an answer to.
var noHosts = []string{
	"0.0.0.0", "0.0.0.7", "127.0.0.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
	"::", "::1", "ff02::1", "ff0e::7",
}

// echoBucket is where it stands when a VIP may answer the next ping.
func echoBucket(vip string) uint32 {
	a := netip.MustParseAddr(vip)
	key := bpfVipKey{Address: words(a), Family: 6}
	if a.Is4() {
		key.Family = 4
	}
	return uint32(vipHash(key)) % 4096
}

func TestPingsAreLimitedForEachVIPAlone(t *testing.T) {
	d := newDataplane(t)
	packetServices(t, d)
	for _, tt := range []struct{ client, vip, other string }{
		{"198.51.100.7", "192.0.2.1", "192.0.2.4"},
		{"2001:db8:100::7", "2001:db8:2::1", "2001:db8:2::4"},
	} {
		for _, level := range []struct {
			name  string
			debt  time.Duration
			wants Verdict
		}{
			{"full", 0, AnsweredEcho},
			{"half empty", 50 * time.Millisecond, AnsweredEcho},
			{"empty", 10 * time.Second, EchoLimited},
		} {
			var before, after uint64
			before = uint64(monotonic()) + uint64(level.debt)
			must(t, d.store.maps[bpfMapEchoLimits].Put(echoBucket(tt.vip), before))
			process(t, d, packet.Echo(tt.client, tt.vip), level.wants)
			must(t, d.store.maps[bpfMapEchoLimits].Lookup(echoBucket(tt.vip), &after))
			if answered := level.wants == AnsweredEcho; answered && after-before < uint64(time.Millisecond) || !answered && after != before {
				t.Errorf("%s, %s: took %v from the bucket", tt.vip, level.name, time.Duration(after-before))
			}
		}
		process(t, d, packet.Echo(tt.client, tt.other), AnsweredEcho)
	}
}

// tooBig is what the sender of a frame must get that is too big by mtu.
func tooBig(frame []byte, mtu uint32) []byte {
	ip := packet.IP(frame)
	back := func(out []byte) []byte {
		return packet.WithMACs("02:00:00:00:00:cc", "00:00:00:00:00:00", out)
	}
	if ip[0]>>4 == 4 {
		out := packet.ICMP(netip.AddrFrom4([4]byte(ip[16:])).String(), netip.AddrFrom4([4]byte(ip[12:])).String(),
			3, 4, mtu, ip[:548], packet.TTL(64), packet.TOS(0xc0), packet.ID(0))
		return back(out)
	}
	return back(packet.ICMP(netip.AddrFrom16([16]byte(ip[24:])).String(), netip.AddrFrom16([16]byte(ip[8:])).String(),
		2, 0, mtu, ip[:1232], packet.TTL(64), packet.FlowLabel(0)))
}

func TestTheSenderIsToldWhatIsTooBig(t *testing.T) {
	d := newDataplane(t)
	packetServices(t, d)
	var rows []row
	for _, way := range ways[1:] {
		fits4, fits6 := 1500-way.overhead-28, 1500-way.overhead-48
		mtu := uint32(1500 - way.overhead)
		told := func(name string, in []byte) {
			rows = append(rows, row{name: way.name + ": " + name, in: in, verdict: AnsweredTooBig, out: tooBig(in, mtu)})
		}
		told("one byte too big", packet.UDP(client4, way.vips[0], packet.Payload(fits4+1)))
		told("one byte too big, IPv6", packet.UDP(client6, way.vips[1], packet.Payload(fits6+1)))
		told("TCP of 1500 bytes", packet.TCP(client4, way.vips[0], packet.Payload(1460)))
		told("TCP of 1500 bytes, IPv6", packet.TCP(client6, way.vips[1], packet.Payload(1440)))
		told("IPv4 options", packet.UDP(client4, way.vips[0], packet.Payload(1432), packet.IPv4Options(40)))
		told("padding", packet.UDP(client4, way.vips[0], packet.Payload(fits4+1), packet.Padding(3)))
		rows = append(rows,
			row{name: way.name + ": DF not set", in: packet.UDP(client4, way.vips[0], packet.Payload(fits4+1), packet.MayFragment), verdict: TooBig},
			row{name: way.name + ": TTL 1", in: packet.UDP(client4, way.vips[0], packet.Payload(fits4+1), packet.TTL(1)), verdict: TTLExpired},
		)
	}
	far := packet.UDP(client4, "192.0.2.11:443", packet.Payload(1000-27))
	rows = append(rows, row{name: "l2: by another interface, one byte over its MTU", in: far, verdict: AnsweredTooBig, out: tooBig(far, 1000)})
	for _, from := range noHosts {
		client := netip.AddrPortFrom(netip.MustParseAddr(from), 31337)
		vip := vips(4)[0]
		if client.Addr().Is6() {
			vip = vips(4)[1]
		}
		rows = append(rows, row{name: "nobody is told at " + from, in: packet.UDP(client.String(), vip, packet.Payload(1470)), verdict: TooBig})
	}
	for _, from := range []string{"1.0.0.1:1", "126.255.255.255:1", "128.0.0.1:1", "223.255.255.255:1"} {
		in := packet.UDP(from, vips(4)[0], packet.Payload(1470))
		rows = append(rows, row{name: "told at " + from, in: in, verdict: AnsweredTooBig, out: tooBig(in, 1480)})
	}
	for _, from := range []string{"[::2]:1", "[1::]:1", "[1::1]:1", "[0:0:0:1::1]:1", "[::1:0:0:1]:1", "[fe80::1]:1"} {
		in := packet.UDP(from, vips(4)[1], packet.Payload(1470))
		rows = append(rows, row{name: "told at " + from, in: in, verdict: AnsweredTooBig, out: tooBig(in, 1480)})
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) { r.check(t, d) })
	}

	// Of a path so narrow that there is no telling.
	d.setWay("203.0.113.1", way{mac: backendMAC, source: node4, ifindex: 1, mtu: 1290})
	row{in: packet.UDP(client6, vips(4)[1], packet.Payload(1250)), verdict: TooBig}.check(t, d)
	d.setWay("203.0.113.1", way{mac: backendMAC, source: node4, ifindex: 1, mtu: 500})
	row{in: packet.UDP(client4, vips(4)[0], packet.Payload(500)), verdict: TooBig}.check(t, d)
}

func TestICMPErrorsAreLimitedForEachServiceAlone(t *testing.T) {
	d := newDataplane(t)
	packetServices(t, d)
	bucket := d.services["four"].number
	limit := func() (l bpfLimit) {
		must(t, d.store.maps[bpfMapLimits].Lookup(bucket, &l))
		return l
	}
	for _, tt := range []struct {
		name          string
		frame         func(vip string) []byte
		passes, stops Verdict
		next          func(*bpfLimit) *uint64
	}{
		{"errors that come", func(vip string) []byte { return about(sentAs(vip, client4), 3, 4) },
			Forwarded, ICMPLimited, func(l *bpfLimit) *uint64 { return &l.Passed }},
		{"errors that are made", func(vip string) []byte { return packet.UDP(client4, vip, packet.Payload(1470)) },
			AnsweredTooBig, TooBig, func(l *bpfLimit) *uint64 { return &l.Made }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			frame := tt.frame(vips(4)[0])
			for _, level := range []struct {
				name  string
				debt  time.Duration // of the bucket
				wants Verdict
			}{
				{"full", 0, tt.passes},
				{"half empty", 50 * time.Millisecond, tt.passes},
				{"empty", 10 * time.Second, tt.stops},
			} {
				l := bpfLimit{}
				before := uint64(monotonic())
				*tt.next(&l) = before + uint64(level.debt)
				must(t, d.store.maps[bpfMapLimits].Put(bucket, l))
				process(t, d, frame, level.wants)
				after := limit()
				took := *tt.next(&after) - *tt.next(&l)
				if wants := level.wants == tt.passes; wants && took < uint64(time.Millisecond) || !wants && took != 0 {
					t.Errorf("%s: took %v from the bucket", level.name, time.Duration(took))
				}
			}
			process(t, d, tt.frame(vips(0x21)[0]), tt.passes) // another service's
			process(t, d, packet.UDP(client4, vips(4)[0]), Forwarded)
		})
	}
}

func TestAnErrorGoesWhereOneOfManyBackendsHasItsFlow(t *testing.T) {
	d := newDataplane(t)
	backends := []string{"203.0.113.1", "203.0.113.2", "203.0.113.3"}
	setWays(d, backends...)
	apply(t, d, table("web", lb.L2, 1021, vips(1), backends...))
	for n := range 100 {
		client := fmt.Sprintf("198.18.0.%d:%d", n, 1000+n*7)
		want := process(t, d, packet.TCP(client, vips(1)[0]), Forwarded)[:6]
		if got := process(t, d, about(sentAs(vips(1)[0], client), 3, 4), Forwarded)[:6]; string(got) != string(want) {
			t.Fatalf("client %s: the error goes to %x, its flow to %x", client, got, want)
		}
	}
}
