package xdp

import (
	"net/netip"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/internal/packet"
	"github.com/halfproxy/halfproxy/lb"
)

func deny(t testing.TB, d *Dataplane, prefixes ...string) {
	t.Helper()
	var list []netip.Prefix
	for _, p := range prefixes {
		list = append(list, netip.MustParsePrefix(p))
	}
	must(t, d.Deny(list))
}

func TestWhoIsOnTheDenyListGetsNothingFromVIPs(t *testing.T) {
	d := newDataplane(t)
	packetServices(t, d)
	deny(t, d, "198.51.100.7/32", "198.51.101.0/24", "2001:db8:bad::/48", "2001:db8:100::7/128", "192.0.2.66/32")
	const (
		host4, net4, free4 = "198.51.100.7:31337", "198.51.101.200:31337", "198.51.100.8:31337"
		host6, net6, free6 = "[2001:db8:100::7]:31337", "[2001:db8:bad:1::1]:31337", "[2001:db8:100::8]:31337"
	)
	var rows []row
	for _, service := range []int{1, 4, 6, 0x21, 0x22, 0x23, 0x24} {
		vip4, vip6 := vips(service)[0], vips(service)[1]
		rows = append(rows,
			row{name: "a /32 to " + vip4, in: packet.TCP(host4, vip4), verdict: Denied},
			row{name: "a /24 to " + vip4, in: packet.TCP(net4, vip4), verdict: Denied},
			row{name: "a /128 to " + vip6, in: packet.TCP(host6, vip6), verdict: Denied},
			row{name: "a /48 to " + vip6, in: packet.TCP(net6, vip6), verdict: Denied},
		)
	}
	ours, theirs := vips(1), sentAs(vips(1)[0], free4)
	rows = append(rows,
		forwarded("beside the /32", packet.TCP(free4, ours[0]), l2, "web/203.0.113.1"),
		forwarded("beside the /24", packet.TCP("198.51.102.0:31337", ours[0]), l2, "web/203.0.113.1"),
		forwarded("beside the /128", packet.TCP(free6, ours[1]), l2, "web/203.0.113.1"),
		forwarded("beside the /48", packet.TCP("[2001:db8:bac::1]:31337", ours[1]), l2, "web/203.0.113.1"),
		row{name: "a tagged frame", in: packet.TCP(host4, ours[0], packet.VLAN(5)), verdict: Denied},
		row{name: "UDP to a prefix", in: packet.UDP(host4, "192.0.2.65:443"), verdict: Denied},
		row{name: "a ping", in: packet.Echo("198.51.100.7", "192.0.2.1"), verdict: Denied},
		row{name: "a ping over IPv6", in: packet.Echo("2001:db8:100::7", "2001:db8:2::1"), verdict: Denied},
		row{name: "a TTL at its end", in: packet.TCP(host4, ours[0], packet.TTL(1)), verdict: Denied},
		row{name: "a first fragment", in: packet.UDP(host4, "192.0.2.65:443", packet.Payload(32), packet.Fragment(0, true)), verdict: Denied},
		row{name: "a later fragment of unknown ports", in: packet.UDP(host4, "192.0.2.65:443", packet.Payload(32), packet.Fragment(32, false)), verdict: Denied},
		row{name: "an ICMP error that a denied router sends about another's flow",
			in: packet.ICMP("198.51.101.1", "192.0.2.1", 3, 4, 1400, packet.IP(theirs)), verdict: Denied},
		row{name: "a port that is nobody's", in: packet.TCP(host4, "192.0.2.1:444"), verdict: NotVIP},
		row{name: "to an address that is no VIP", in: packet.TCP(host4, "192.0.2.200:443"), verdict: NotVIP},
	)
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) { r.check(t, d) })
	}
}

func TestTheDenyListIsAlwaysTheLastOneGiven(t *testing.T) {
	d := newDataplane(t)
	packetServices(t, d)
	first, second, third := packet.TCP("198.51.100.1:1", vips(1)[0]), packet.TCP("198.51.100.2:1", vips(1)[0]), packet.TCP("198.51.100.3:1", vips(1)[0])
	expect := func(one, two, three Verdict) {
		t.Helper()
		process(t, d, first, one)
		process(t, d, second, two)
		process(t, d, third, three)
	}
	expect(Forwarded, Forwarded, Forwarded)
	deny(t, d, "198.51.100.1/32", "198.51.100.2/32")
	expect(Denied, Denied, Forwarded)
	deny(t, d, "198.51.100.2/32", "198.51.100.3/32")
	expect(Forwarded, Denied, Denied)
	deny(t, d, "198.51.100.2/32", "198.51.100.3/32")
	expect(Forwarded, Denied, Denied)

	// Tables that change, new services and maps that grow leave it as it is.
	apply(t, d, table("web", lb.L2, 65537, vips(1), "203.0.113.1"), table("more", lb.L2, 655373, vips(7), "203.0.113.1"))
	expect(Forwarded, Denied, Denied)
	process(t, d, packet.TCP("198.51.100.2:1", vips(7)[0]), Denied)

	deny(t, d)
	expect(Forwarded, Forwarded, Forwarded)
	for _, s := range d.services {
		if d.store.services[s.number].Active&denying != 0 {
			t.Errorf("service %s still looks at the list, which is empty", s.name)
		}
	}
}

// limiting is a service that allows each source 10 packets at once, and few after.
func limiting(t lb.Table) lb.Table {
	t.Service.Limit = lb.Limit{Packets: 5, Burst: 10, Prefix4: 24, Prefix6: 64}
	return t
}

func TestASourceGetsWhatTheServiceAllowsIt(t *testing.T) {
	d := newDataplane(t)
	d.setWay("203.0.113.1", way{mac: backendMAC, source: node4, ifindex: 1, mtu: 1500})
	apply(t, d, limiting(table("web", lb.L2, 13, vips(1), "203.0.113.1")), limiting(table("api", lb.IPIP, 13, vips(2), "203.0.113.1")),
		table("free", lb.L2, 13, vips(3), "203.0.113.1"))
	for _, tt := range []struct{ name, source, neighbour, other, vip, second, free string }{
		{"IPv4", "198.51.100.7:1", "198.51.100.200:2", "198.51.101.7:1", vips(1)[0], vips(2)[0], vips(3)[0]},
		{"IPv6", "[2001:db8:1::1]:1", "[2001:db8:1::2]:2", "[2001:db8:1:1::1]:1", vips(1)[1], vips(2)[1], vips(3)[1]},
	} {
		t.Run(tt.name, func(t *testing.T) {
			begin, first := time.Now(), time.Time{}
			for n := range 10 {
				source := tt.source
				if n%2 == 1 {
					source = tt.neighbour // counts as the same
				}
				process(t, d, packet.TCP(source, tt.vip), Forwarded)
				if n == 0 {
					first = time.Now()
				}
			}
			verdict := func(source string) Verdict {
				v, _, err := d.Process(packet.TCP(source, tt.vip))
				must(t, err)
				return v
			}
			more := [2]Verdict{verdict(tt.source), verdict(tt.neighbour)}
			if took := time.Since(begin); took > 190*time.Millisecond {
				t.Skipf("the machine stood still for %v, a fifth of a second allows one more", took)
			}
			if more != [2]Verdict{Limited, Limited} {
				t.Errorf("after ten packets the verdicts are %v, want both limited", more)
			}
			process(t, d, packet.TCP(tt.other, tt.vip), Forwarded)
			process(t, d, packet.TCP(tt.source, tt.second), Forwarded)
			for range 20 {
				process(t, d, packet.TCP(tt.source, tt.free), Forwarded)
			}
			// Two more in between 400 and 600 ms after the first one.
			time.Sleep(time.Until(first.Add(430 * time.Millisecond)))
			process(t, d, packet.TCP(tt.source, tt.vip), Forwarded)
			process(t, d, packet.TCP(tt.source, tt.vip), Forwarded)
			third := verdict(tt.source)
			if took := time.Since(begin); took > 590*time.Millisecond {
				t.Skipf("the machine stood still for %v, which allows one more", took)
			}
			if third != Limited {
				t.Errorf("after two more packets the verdict is %v, want limited", third)
			}
		})
	}
}

// Such a packet is looked at twice, the second time to tell its sender.
func TestAPacketThatIsTooBigCountsOnceAgainstItsSourcesLimit(t *testing.T) {
	d := newDataplane(t)
	d.setWay("203.0.113.1", way{mac: backendMAC, source: node4, ifindex: 1, mtu: 1500})
	web := limiting(table("web", lb.IPIP, 13, vips(1), "203.0.113.1"))
	web.Service.Limit.Packets = 1
	apply(t, d, web)
	for n, client := range []string{client4, client6} {
		big := packet.UDP(client, vips(1)[n], packet.Payload(1470))
		for range 10 {
			process(t, d, big, AnsweredTooBig)
		}
		process(t, d, big, Limited)
	}
}

func TestALimitChangesWithItsService(t *testing.T) {
	d := newDataplane(t)
	d.setWay("203.0.113.1", way{mac: backendMAC, source: node4, ifindex: 1, mtu: 1500})
	web := table("web", lb.L2, 13, vips(1), "203.0.113.1")
	flood := func() (passed int) {
		before := stats(t, d).Verdicts[Forwarded].Packets
		for range 100 {
			if _, _, err := d.Process(packet.TCP(client4, vips(1)[0])); err != nil {
				t.Fatal(err)
			}
		}
		return int(stats(t, d).Verdicts[Forwarded].Packets - before)
	}
	apply(t, d, limiting(web))
	if got := flood(); got < 10 || got > 12 {
		t.Errorf("with a burst of 10: got %d of 100", got)
	}
	apply(t, d, web)
	if got := flood(); got != 100 {
		t.Errorf("without a limit: got %d of 100", got)
	}
	wider := web
	wider.Service.Limit = lb.Limit{Packets: 1, Burst: 50, Prefix4: 32, Prefix6: 128}
	apply(t, d, wider)
	if got := flood(); got < 50 || got > 51 {
		t.Errorf("with a burst of 50: got %d of 100", got)
	}
	if got, err := d.Trace(lb.TCP, netip.MustParseAddrPort(client4), netip.MustParseAddrPort(vips(1)[0])); err != nil || got.Verdict != Forwarded {
		t.Errorf("a question is no packet of the source: got %v, %v", got.Verdict, err)
	}
}

// BenchmarkDeny is a list of 300,000 prefixes that comes, and that stays but for one.
func BenchmarkDeny(b *testing.B) {
	d := newDataplane(b)
	packetServices(b, d)
	var list []netip.Prefix
	for i := range 300_000 {
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(16 + i>>16), byte(i >> 8), byte(i), 0}), 24))
	}
	b.Run("300,000 come", func(b *testing.B) {
		for b.Loop() {
			must(b, d.Deny(nil))
			must(b, d.Deny(list))
		}
	})
	b.Run("one of 300,000 changes", func(b *testing.B) {
		for n := 0; b.Loop(); n++ {
			list[n%len(list)] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), 32)
			must(b, d.Deny(list))
		}
	})
}
