package bgp

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/halfproxy/halfproxy/internal/netns"
	"github.com/halfproxy/halfproxy/lb"
)

// around gives an aggregate, and a VIP in it that those of alone are not told of.
func around(t *testing.T, aggregate, vip string, alone ...netip.Addr) []lb.Route {
	t.Helper()
	attributes := lb.Attributes{MED: number(5), Communities: []lb.Community{community(t, "64512:24")}}
	return []lb.Route{
		{Prefix: netip.MustParsePrefix(aggregate), Aggregate: true, Announcement: lb.Announcement{Attributes: attributes}},
		{Prefix: netip.MustParsePrefix(vip), Suppressed: alone},
	}
}

func TestAnAggregateStandsForVIPsWhereItIsAlone(t *testing.T) {
	r := startRouters(t)
	s := start(t, config(r.peers()[:2]...))
	const (
		tail      = " as [64512] communities [] large [] local-pref 0"
		aggregate = " as [64512] communities [64512:24] large [] local-pref 0 med 5"
	)
	announceRoutes(t, s, around(t, "203.0.113.0/24", "203.0.113.10/32", r.plain.address)...)
	r.plain.knows(t, "203.0.113.0/24 via 198.51.100.254"+aggregate)
	r.changed.knows(t, "203.0.113.0/24 via 198.51.100.253"+aggregate, "203.0.113.10/32 via 198.51.100.253"+tail)

	// One who comes later is told as the others are.
	if err := s.SetPeers(context.Background(), r.peers()); err != nil {
		t.Fatal(err)
	}
	r.inside.knows(t,
		"203.0.113.0/24 via 198.51.100.252 as [] communities [64512:24] large [] local-pref 100 med 5",
		"203.0.113.10/32 via 198.51.100.252 as [] communities [] large [] local-pref 100")

	// Who was not told of the VIP hears of it before the aggregate goes; and after it has
	// come back of that first.
	announce(t, s, "203.0.113.10/32")
	r.plain.knows(t, "203.0.113.10/32 via 198.51.100.254"+tail)
	announceRoutes(t, s, around(t, "203.0.113.0/24", "203.0.113.10/32", r.plain.address)...)
	r.plain.knows(t, "203.0.113.0/24 via 198.51.100.254"+aggregate)
	want := []string{
		"203.0.113.0/24 via 198.51.100.254" + aggregate, "203.0.113.10/32 via 198.51.100.254" + tail, "-203.0.113.0/24",
		"203.0.113.0/24 via 198.51.100.254" + aggregate, "-203.0.113.10/32",
	}
	if d := differ(r.plain.heard(), want); d != "" {
		t.Errorf("in this order: %s", d)
	}
	for _, line := range []string{"msg=announced part=bgp aggregate=203.0.113.0/24", "msg=withdrawn part=bgp aggregate=203.0.113.0/24"} {
		if !strings.Contains(s.journal.String(), line) {
			t.Errorf("log: got no %q in\n%s", line, s.journal)
		}
	}

	// What failed takes the aggregate along, and is gone before something new is told.
	announceRoutes(t, s)
	r.plain.knows(t)
	r.changed.knows(t)
}

func TestRealRoutersHaveAnAggregateWithOrWithoutTheVIPsInIt(t *testing.T) {
	onEachRouter(t, func(t *testing.T, ns *netns.NS) {
		cfg := nodeA
		alone, both := peer("192.0.2.126", 64500), peer("2001:db8:b::fe", 64500)
		cfg.Peers = []Peer{alone, both}
		cfg.NextHops.V4 = netip.MustParseAddr("192.0.2.129")
		s := start(t, cfg)
		routes := slices.Concat(
			around(t, "203.0.113.0/24", "203.0.113.10/32", alone.Address),
			around(t, "2001:db8:51::/48", "2001:db8:51::10/128", alone.Address))
		announceRoutes(t, s, routes...)
		fib(t, ns, 2*soon,
			"203.0.113.0/24 [192.0.2.1 192.0.2.129]", "203.0.113.10/32 [192.0.2.129]",
			"2001:db8:51::/48 [2001:db8:a::1 2001:db8:b::1]", "2001:db8:51::10/128 [2001:db8:b::1]")
		announce(t, s, "203.0.113.10/32", "2001:db8:51::10/128")
		fib(t, ns, soon, "203.0.113.10/32 [192.0.2.1 192.0.2.129]", "2001:db8:51::10/128 [2001:db8:a::1 2001:db8:b::1]")
		announceRoutes(t, s, routes[0], routes[2])
		fib(t, ns, soon, "203.0.113.0/24 [192.0.2.1 192.0.2.129]", "2001:db8:51::/48 [2001:db8:a::1 2001:db8:b::1]")
		announce(t, s)
		fib(t, ns, soon)
	})
}
