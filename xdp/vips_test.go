package xdp

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/halfproxy/halfproxy/internal/packet"
	"github.com/halfproxy/halfproxy/lb"
)

// serving gives the service of t these VIPs and ports.
func serving(t lb.Table, vips []string, ports ...lb.Port) lb.Table {
	t.Service.VIPs, t.Service.Ports = nil, ports
	for _, v := range vips {
		t.Service.VIPs = append(t.Service.VIPs, lb.MustParseVIP(v))
	}
	return t
}

func tcpPort(first, last uint16) lb.Port {
	return lb.Port{Protocol: lb.TCP, Number: first, Last: last}
}

func udpPort(first, last uint16) lb.Port {
	return lb.Port{Protocol: lb.UDP, Number: first, Last: last}
}

// tablesOfWays are the services of all ways with other VIPs and ports.
func tablesOfWays(vips func(i int) []string, ports ...lb.Port) []lb.Table {
	forwards := []lb.Forward{lb.L2, lb.IPIP, lb.IPIP, lb.GRE, lb.GRE, lb.GUE, lb.GUE}
	guePorts := map[string]uint16{"gue4": 6080, "gue6": 6081}
	var tables []lb.Table
	for i, way := range ways {
		name, backend, _ := strings.Cut(way.counted, "/")
		tables = append(tables, gue(guePorts[name], serving(table(name, forwards[i], 13, nil, backend), vips(i), ports...)))
	}
	return tables
}

func TestAllAddressesOfAPrefixAreVIPs(t *testing.T) {
	d := newDataplane(t)
	packetServices(t, d) // the next hops
	apply(t, d, tablesOfWays(func(i int) []string {
		return []string{fmt.Sprintf("10.9.%d.16/28", i), fmt.Sprintf("2001:db8:9:%d::/64", i)}
	},
		tcpPort(443, 0), udpPort(443, 0), tcpPort(1000, 2000))...)

	var rows []row
	for i, way := range ways {
		out := func(frame []byte) []byte { return way.send(frame, flowHash(testKey(), frame)) }
		four := func(last, port int) string { return fmt.Sprintf("10.9.%d.%d:%d", i, last, port) }
		six := func(host string, port int) string { return fmt.Sprintf("[2001:db8:9:%d:%s]:%d", i, host, port) }
		tcp, udp := packet.TCP, packet.UDP
		const first, last = ":", "ffff:ffff:ffff:ffff"
		rows = append(rows,
			forwarded(way.name+": first", tcp(client4, four(16, 443)), out, way.counted),
			forwarded(way.name+": last", udp(client4, four(31, 443)), out, way.counted),
			opening(forwarded(way.name+": in the middle", tcp(client4, four(23, 443), packet.SYN), out, way.counted)),
			forwarded(way.name+": first, IPv6", udp(client6, six(first, 443)), out, way.counted),
			forwarded(way.name+": last, IPv6", tcp(client6, six(last, 443)), out, way.counted),
			forwarded(way.name+": a range of ports", tcp(client4, four(31, 2000)), out, way.counted),
			forwarded(way.name+": a range of ports, IPv6", tcp(client6, six(last, 1000)), out, way.counted),
			row{name: way.name + ": in a frame with a tag", in: packet.Tagged(tcp(client4, four(16, 443)), 0x81000005),
				verdict: Forwarded, out: packet.Tagged(out(tcp(client4, four(16, 443))), 0x81000005), counted: way.counted},
			forwarded(way.name+": IPv4 options", udp(client4, four(31, 443), packet.IPv4Options(8)), out, way.counted),
			sameFlow(way.name+": extension headers", udp(client6, six(last, 443), packet.HopByHop), udp(client6, six(last, 443)), way.send, way.counted),
			sameFlow(way.name+": an ICMP error", about(sentAs(four(31, 443), client4), 3, 4), tcp(client4, four(31, 443)), way.send, way.counted),
			sameFlow(way.name+": an ICMP error about a range", about(sentAs(four(16, 1001), client4), 11, 0), tcp(client4, four(16, 1001)), way.send, way.counted),
			sameFlow(way.name+": an ICMP error, IPv6", about(sentAs(six(last, 443), client6), 2, 0), tcp(client6, six(last, 443)), way.send, way.counted),
			forwarded(way.name+": a first fragment", udp(client4, four(31, 443), packet.Fragment(0, true)), out, way.counted),
			sameFlow(way.name+": a later fragment", udp(client4, four(31, 443), packet.Fragment(1480, false)), udp(client4, four(31, 443)), way.send, way.counted),
			sameFlow(way.name+": a first fragment, IPv6", udp(client6, six(first, 443), packet.Fragment(0, true)), udp(client6, six(first, 443)), way.send, way.counted),
			sameFlow(way.name+": a later fragment, IPv6", udp(client6, six(first, 443), packet.Fragment(1480, false)), udp(client6, six(first, 443)), way.send, way.counted),
			row{name: way.name + ": a fragment of unknown ports", in: udp(client4, four(17, 443), packet.Fragment(1480, false)), verdict: Fragment},
			row{name: way.name + ": one before", in: tcp(client4, four(15, 443)), verdict: NotVIP},
			row{name: way.name + ": one beyond", in: tcp(client4, four(32, 443)), verdict: NotVIP},
			row{name: way.name + ": one beyond, IPv6", in: tcp(client6, fmt.Sprintf("[2001:db8:9:1%d::]:443", i)), verdict: NotVIP},
			row{name: way.name + ": another port", in: tcp(client4, four(16, 444)), verdict: NotVIP},
			row{name: way.name + ": another port, IPv6", in: udp(client6, six(last, 1000)), verdict: NotVIP},
			row{name: way.name + ": port 0", in: tcp(client4, four(16, 0)), verdict: NotVIP},
			row{name: way.name + ": TTL 1", in: tcp(client4, four(16, 443), packet.TTL(1)), verdict: TTLExpired},
			row{name: way.name + ": mapped in an IPv6 packet", in: mapped(tcp(client6, six(last, 443)), fmt.Sprintf("10.9.%d.16", i)), verdict: NotVIP},
		)
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) { r.check(t, d) })
	}

	t.Run("pings", func(t *testing.T) {
		const c4, c6 = "198.51.100.7", "2001:db8:100::7"
		for _, v := range []string{"10.9.0.16", "10.9.0.31"} {
			out := packet.ICMP(v, c4, 0, 0, 1<<16|1, []byte{0, 1, 2, 3}, packet.TTL(64))
			row{in: packet.Echo(c4, v), verdict: AnsweredEcho, out: packet.WithMACs("02:00:00:00:00:cc", "00:00:00:00:00:00", out)}.check(t, d)
		}
		v := "2001:db8:9:0:ffff:ffff:ffff:ffff"
		out := packet.ICMP(v, c6, 129, 0, 1<<16|1, []byte{0, 1, 2, 3}, packet.TTL(64))
		row{in: packet.Echo(c6, v), verdict: AnsweredEcho, out: packet.WithMACs("02:00:00:00:00:cc", "00:00:00:00:00:00", out)}.check(t, d)
		row{in: packet.Echo(c4, "10.9.0.32"), verdict: NotVIP}.check(t, d)
		row{in: packet.Echo(c6, "2001:db8:9:1000::"), verdict: NotVIP}.check(t, d)
	})
	t.Run("too big", func(t *testing.T) {
		frame4 := packet.TCP(client4, "10.9.1.31:443", packet.Payload(1460))
		row{in: frame4, verdict: AnsweredTooBig, out: tooBig(frame4, 1480)}.check(t, d)
		frame6 := packet.TCP(client6, "[2001:db8:9:2::77]:443", packet.Payload(1440))
		row{in: frame6, verdict: AnsweredTooBig, out: tooBig(frame6, 1460)}.check(t, d)
	})

	// They go as they came.
	apply(t, d)
	row{in: packet.TCP(client4, "10.9.0.16:443"), verdict: NotVIP}.check(t, d)
	d.setWay("203.0.113.1", way{mac: backendMAC, source: node4, ifindex: 1, mtu: 1500})
	apply(t, d, serving(table("web", lb.L2, 13, nil, "203.0.113.1"), []string{"10.9.0.16/29"}, tcpPort(443, 0)))
	forwarded("shorter", packet.TCP(client4, "10.9.0.23:443"), l2, "web/203.0.113.1").check(t, d)
	row{in: packet.TCP(client4, "10.9.0.24:443"), verdict: NotVIP}.check(t, d)
}

// Services whose VIPs lie within each other's:
//
//	wide   10.9.0.0/16, 2001:db8:9::/48     tcp/80  tcp/443  tcp/3500  tcp/1000-2000  udp/*
//	inner  10.9.8.0/24, 2001:db8:9:8::/64   tcp/443 tcp/1500  tcp/3000-4000
//	core   10.9.8.64/28, 2001:db8:9:8::/112 tcp/80  tcp/1200-1300
//	one    10.9.8.70, 2001:db8:9:8::70      tcp/443 tcp/1250-1600 udp/53
func TestTheMostSpecificVIPThatHasThePortWins(t *testing.T) {
	d := newDataplane(t)
	backends := map[string]string{"wide": "203.0.113.1", "inner": "203.0.113.2", "core": "203.0.113.3", "one": "203.0.113.4"}
	all := slices.Collect(maps.Values(backends))
	service := func(name string, vips []string, ports ...lb.Port) lb.Table {
		return serving(table(name, lb.L2, 13, nil, backends[name]), vips, ports...)
	}
	tables := []lb.Table{
		service("wide", []string{"10.9.0.0/16", "2001:db8:9::/48"}, tcpPort(80, 0), tcpPort(443, 0), tcpPort(3500, 0), tcpPort(1000, 2000), udpPort(1, 65535)),
		service("inner", []string{"10.9.8.0/24", "2001:db8:9:8::/64"}, tcpPort(443, 0), tcpPort(1500, 0), tcpPort(3000, 4000)),
		service("core", []string{"10.9.8.64/28", "2001:db8:9:8::/112"}, tcpPort(80, 0), tcpPort(1200, 1300)),
		service("one", []string{"10.9.8.70", "2001:db8:9:8::70"}, tcpPort(443, 0), tcpPort(1250, 1600), udpPort(53, 0)),
	}
	// What is where does not hang on the order in which it comes.
	for n := range tables {
		order := slices.Concat(tables[n:], tables[:n])
		if n%2 == 1 {
			apply(t, d, order[:2]...)
		}
		setWays(d, all...) // those of a backend that comes are forgotten when it goes
		apply(t, d, order...)
		mostSpecificRows(t, d, backends)
	}

	// Without the ones in between, all is the wide one's again.
	apply(t, d, tables[0], tables[3])
	for port, want := range map[string]string{"80": "wide", "443": "one", "1275": "one", "1700": "wide"} {
		frame := packet.TCP(client4, "10.9.8.70:"+port)
		if got, want := process(t, d, frame, Forwarded), packet.WithMACs(macOf(backends[want]), nodeMAC, packet.WithTTL(8, frame)); string(got) != string(want) {
			t.Errorf("port %s: got %x, want %x", port, got[:6], want[:6])
		}
	}
	row{in: packet.TCP(client4, "10.9.8.70:3000"), verdict: NotVIP}.check(t, d)
}

func mostSpecificRows(t *testing.T, d *Dataplane, backends map[string]string) {
	t.Helper()
	const wide, inner, core, one, none = "wide", "inner", "core", "one", ""
	for _, tt := range []struct {
		four, six string // of the VIP
		ports     map[string]string
	}{
		{"10.9.7.255", "2001:db8:9:7:ffff::", map[string]string{
			"tcp/80": wide, "tcp/443": wide, "tcp/1000": wide, "tcp/1500": wide, "tcp/3000": none, "tcp/3500": wide, "udp/53": wide}},
		{"10.9.8.0", "2001:db8:9:8:ffff::", map[string]string{
			"tcp/80": wide, "tcp/443": inner, "tcp/1000": wide, "tcp/1500": inner, "tcp/2000": wide, "tcp/3000": inner, "tcp/3500": inner, "tcp/4001": none, "udp/53": wide}},
		{"10.9.8.64", "2001:db8:9:8::", map[string]string{
			"tcp/80": core, "tcp/443": inner, "tcp/1199": wide, "tcp/1200": core, "tcp/1300": core, "tcp/1301": wide, "tcp/1500": inner, "tcp/3000": inner, "tcp/3500": inner, "tcp/4001": none, "udp/53": wide}},
		{"10.9.8.79", "2001:db8:9:8::ffff", map[string]string{"tcp/80": core, "tcp/443": inner, "tcp/1250": core, "tcp/81": none}},
		{"10.9.8.80", "2001:db8:9:8::1:0", map[string]string{"tcp/80": wide, "tcp/443": inner, "tcp/1250": wide}},
		{"10.9.8.70", "2001:db8:9:8::70", map[string]string{
			"tcp/80": core, "tcp/443": one, "tcp/1249": core, "tcp/1250": one, "tcp/1500": one, "tcp/1600": one, "tcp/1601": wide, "tcp/3000": inner, "tcp/5": none, "udp/53": one, "udp/54": wide}},
		{"10.10.0.0", "2001:db8:a::", map[string]string{"tcp/80": none, "udp/53": none}},
	} {
		for port, want := range tt.ports {
			protocol, number, _ := strings.Cut(port, "/")
			send := map[string]func(from, to string, options ...packet.Option) []byte{"tcp": packet.TCP, "udp": packet.UDP}[protocol]
			for _, frame := range [][]byte{send(client4, tt.four+":"+number), send(client6, "["+tt.six+"]:"+number)} {
				r := row{in: frame, verdict: NotVIP}
				if want != none {
					r = row{in: frame, verdict: Forwarded, out: packet.WithMACs(macOf(backends[want]), nodeMAC, packet.WithTTL(8, frame)), counted: want + "/" + backends[want]}
				}
				t.Run(fmt.Sprintf("%s or %s, %s", tt.four, tt.six, port), func(t *testing.T) { r.check(t, d) })
			}
		}
	}
}

// Fragments without ports: their service is known where it is one's alone.
func TestFragmentsToPrefixesFindServicesBySource(t *testing.T) {
	d := newDataplane(t)
	setWays(d, "203.0.113.1", "203.0.113.2")
	wide := serving(table("wide", lb.L2, 13, nil, "203.0.113.1"), []string{"10.9.0.0/16", "2001:db8:9::/48"}, udpPort(53, 0), udpPort(443, 0))
	wide.Service.Hash = lb.HashSource
	inner := serving(table("inner", lb.L2, 13, nil, "203.0.113.2"), []string{"10.9.8.0/24", "2001:db8:9:8::/64"}, udpPort(53, 0))
	one := serving(table("one", lb.L2, 13, nil, "203.0.113.2"), []string{"10.9.9.9", "2001:db8:9:9::9"}, udpPort(53, 0))
	other := serving(table("other", lb.L2, 13, nil, "203.0.113.2"), []string{"10.9.9.10", "2001:db8:9:9::10"}, tcpPort(53, 0))
	apply(t, d, wide, inner, one, other)

	fragment := func(vip string) []byte {
		client := client4
		if strings.Contains(vip, "[") {
			client = client6
		}
		return packet.UDP(client, vip+":53", packet.Fragment(1480, false), packet.FragmentID(7))
	}
	send := func(frame []byte, _ uint64) []byte {
		return packet.WithMACs(macOf("203.0.113.1"), nodeMAC, packet.WithTTL(8, frame))
	}
	for _, r := range []row{
		sameFlow("the prefix", fragment("10.9.255.255"), fragment("10.9.255.255"), send, "wide/203.0.113.1"),
		sameFlow("the prefix, IPv6", fragment("[2001:db8:9::]"), fragment("[2001:db8:9::]"), send, "wide/203.0.113.1"),
		sameFlow("an address with another protocol", fragment("10.9.9.10"), fragment("10.9.9.10"), send, "wide/203.0.113.1"),
		{name: "a prefix within", in: fragment("10.9.8.1"), verdict: Fragment},
		{name: "a prefix within, IPv6", in: fragment("[2001:db8:9:8::1]"), verdict: Fragment},
		{name: "an address within", in: fragment("10.9.9.9"), verdict: Fragment},
		{name: "an address within, IPv6", in: fragment("[2001:db8:9:9::9]"), verdict: Fragment},
		{name: "no VIP", in: fragment("10.10.0.0"), verdict: NotVIP},
	} {
		t.Run(r.name, func(t *testing.T) { r.check(t, d) })
	}
}

func TestTwoNodesFindTheSameBackendsByPrefix(t *testing.T) {
	backends := []string{"203.0.113.1", "203.0.113.2", "203.0.113.3"}
	service := func(name string, vips ...string) lb.Table {
		return serving(table(name, lb.L2, 1021, nil, backends...), vips, udpPort(443, 0), tcpPort(1, 65535))
	}
	wide, inner := service("wide", "10.9.0.0/16", "2001:db8:9::/48"), service("inner", "10.9.8.0/24", "2001:db8:9:8::/64")
	inner.HashKey[3]++
	a, b := newDataplane(t), newDataplane(t)
	setWays(a, backends...)
	setWays(b, backends...)
	apply(t, a, wide, inner)
	// The other had prefixes before, and its file has another order.
	apply(t, b, service("before", "10.0.0.0/8", "10.9.8.0/23", "2001:db8::/32"))
	slices.Reverse(inner.Service.VIPs)
	apply(t, b, inner, wide)
	for n := 0; n < 3000; n += inShort(1, 15) {
		for _, frame := range [][]byte{flow(n, fmt.Sprintf("10.9.%d.%d:443", n>>8, n&0xff)), flow(n, fmt.Sprintf("[2001:db8:9:%x::%x]:443", n&15, n))} {
			if got, want := process(t, b, frame, Forwarded), process(t, a, frame, Forwarded); string(got) != string(want) {
				t.Fatalf("flow %d: one node sends it to %x, the other to %x", n, got[:6], want[:6])
			}
		}
	}
}

func TestPrefixesThatCannotBeAppliedAreRefused(t *testing.T) {
	d := newDataplane(t)
	refused := func(want string, tables ...lb.Table) {
		t.Helper()
		if err := d.Apply(t.Context(), tables); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it to hold %q", err, want)
		}
	}
	service := func(name string, vip string, ports ...lb.Port) lb.Table {
		return serving(table(name, lb.L2, 13, nil, "203.0.113.1"), []string{vip}, ports...)
	}
	refused(`service "b": vip 10.9.0.0/16 tcp/80 already belongs to "a"`, service("a", "10.9.0.0/16", tcpPort(80, 0)), service("b", "10.9.0.0/16", tcpPort(80, 0)))
	var nine []lb.Port
	for n := range uint16(9) {
		nine = append(nine, tcpPort(100*n+1, 100*n+50))
	}
	refused("vip 10.9.8.0/24 has 18 ranges of tcp ports, with those of the prefixes that it lies in: the program looks through 16",
		service("a", "10.9.0.0/16", nine...), service("b", "10.9.8.0/24", nine...))
	var many lb.Table
	for n := range 4097 {
		vip := fmt.Sprintf("10.%d.%d.0/24", n>>8, n&0xff)
		if n == 0 {
			many = service("a", vip, tcpPort(80, 0))
		}
		many.Service.VIPs = append(many.Service.VIPs, lb.MustParseVIP(vip))
	}
	refused("4097 vips are prefixes: the program has room for 4096", many)
	// All others may come at once, in the place of all.
	many.Service.VIPs = many.Service.VIPs[:4096]
	apply(t, d, many)
	setWays(d, "203.0.113.1")
	for n := range many.Service.VIPs {
		many.Service.VIPs[n] = lb.MustParseVIP(fmt.Sprintf("10.%d.%d.0/25", n>>8, n&0xff))
	}
	many.Service.VIPs[4095] = lb.MustParseVIP("10.9.0.0/16")
	apply(t, d, many)
	process(t, d, packet.TCP(client4, "10.9.255.255:80"), Forwarded)
	process(t, d, packet.TCP(client4, "10.1.0.127:80"), Forwarded)
	process(t, d, packet.TCP(client4, "10.1.0.128:80"), NotVIP)
}
