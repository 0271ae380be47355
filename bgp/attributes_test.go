package bgp

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"

	"github.com/halfproxy/halfproxy/lb"
)

// The routers that attributes are sent to: two in other ASes, one in our own.
type routers struct{ plain, changed, inside *tap }

func startRouters(t *testing.T) routers {
	t.Helper()
	needNamespace(t, "198.51.100.254", "198.51.100.253", "198.51.100.252")
	r := routers{
		plain:   &tap{address: netip.MustParseAddr("198.51.100.254"), asn: 64500},
		changed: &tap{address: netip.MustParseAddr("198.51.100.253"), asn: 64501},
		inside:  &tap{address: netip.MustParseAddr("198.51.100.252"), asn: 64512},
	}
	for _, r := range []*tap{r.plain, r.changed, r.inside} {
		r.listen(t)
	}
	return r
}

func (r routers) peers() []Peer {
	return []Peer{peer("198.51.100.254", 64500), peer("198.51.100.253", 64501), peer("198.51.100.252", 64512)}
}

func number(n uint32) *uint32 { return &n }

func community(t *testing.T, s string) lb.Community {
	t.Helper()
	c, err := lb.ParseCommunity(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// now is the last that a router has heard of each prefix, sorted.
func (p *tap) now() []string {
	last := make(map[string]string)
	for _, l := range p.heard() {
		prefix, _, _ := strings.Cut(strings.TrimPrefix(l, "-"), " ")
		last[prefix] = l
		if strings.HasPrefix(l, "-") {
			delete(last, prefix)
		}
	}
	var out []string
	for _, l := range last {
		out = append(out, l)
	}
	slices.Sort(out)
	return out
}

func (p *tap) knows(t *testing.T, want ...string) {
	t.Helper()
	until(t, soon, func() string {
		if d := differ(p.now(), want); d != "" {
			return fmt.Sprint(p.address, ": ", d)
		}
		return ""
	})
}

func TestRoutesBearTheAttributesOfTheirServiceAndOfThePeer(t *testing.T) {
	r := startRouters(t)
	peers := r.peers()
	peers[1].Attributes = lb.Attributes{
		Communities: []lb.Community{community(t, "64501:7"), community(t, "64512:100"), community(t, "64501:7:7"), community(t, "no-export")},
		MED:         number(0), Prepend: 2,
	}
	peers[2].Attributes = lb.Attributes{LocalPref: number(300), Communities: []lb.Community{community(t, "64512:2:2")}}
	s := start(t, config(peers...))
	web := lb.Route{Prefix: netip.MustParsePrefix("203.0.113.10/32"), Announcement: lb.Announcement{Attributes: lb.Attributes{
		Communities: []lb.Community{community(t, "64512:100"), community(t, "64512:1:1")},
		MED:         number(50), LocalPref: number(200), Prepend: 1,
	}}}
	dns := lb.Route{Prefix: netip.MustParsePrefix("203.0.113.53/32")}
	announceRoutes(t, s, web, dns)
	r.plain.knows(t,
		"203.0.113.10/32 via 198.51.100.254 as [64512 64512] communities [64512:100] large [64512:1:1] local-pref 0 med 50",
		"203.0.113.53/32 via 198.51.100.254 as [64512] communities [] large [] local-pref 0")
	r.changed.knows(t,
		"203.0.113.10/32 via 198.51.100.253 as [64512 64512 64512 64512] communities [64501:7 64512:100 65535:65281] large [64512:1:1 64501:7:7] local-pref 0 med 0",
		"203.0.113.53/32 via 198.51.100.253 as [64512 64512 64512] communities [64501:7 64512:100 65535:65281] large [64501:7:7] local-pref 0 med 0")
	r.inside.knows(t,
		"203.0.113.10/32 via 198.51.100.252 as [] communities [64512:100] large [64512:1:1 64512:2:2] local-pref 300 med 50",
		"203.0.113.53/32 via 198.51.100.252 as [] communities [] large [64512:2:2] local-pref 300")

	// Whatever the peer's own local preference is, this route is the last choice.
	web.Shutdown = true
	web.Communities = nil
	announceRoutes(t, s, web, dns)
	r.plain.knows(t,
		"203.0.113.10/32 via 198.51.100.254 as [64512 64512] communities [65535:0] large [] local-pref 0 med 50",
		"203.0.113.53/32 via 198.51.100.254 as [64512] communities [] large [] local-pref 0")
	r.inside.knows(t,
		"203.0.113.10/32 via 198.51.100.252 as [] communities [65535:0] large [64512:2:2] local-pref 0 med 50",
		"203.0.113.53/32 via 198.51.100.252 as [] communities [] large [64512:2:2] local-pref 300")
	announceRoutes(t, s, dns)
	r.plain.knows(t, "203.0.113.53/32 via 198.51.100.254 as [64512] communities [] large [] local-pref 0")

	for _, line := range []string{`msg="announced as going away"`, "msg=withdrawn"} {
		if !strings.Contains(s.journal.String(), line+" part=bgp vip=203.0.113.10/32") {
			t.Errorf("log: got no %q in\n%s", line, s.journal)
		}
	}
}

func TestRoutesGoToThePeersThatTheyAreForAndFollowChanges(t *testing.T) {
	r := startRouters(t)
	s := start(t, config(r.peers()[:2]...))
	web := lb.Route{Prefix: netip.MustParsePrefix("203.0.113.10/32")}
	dns := lb.Route{Prefix: netip.MustParsePrefix("203.0.113.53/32")}
	web.Peers = []netip.Addr{r.plain.address}
	announceRoutes(t, s, web, dns)
	const (
		tail        = " as [64512] communities [] large [] local-pref 0"
		webPlain    = "203.0.113.10/32 via 198.51.100.254" + tail
		webChanged  = "203.0.113.10/32 via 198.51.100.253" + tail
		dnsPlain    = "203.0.113.53/32 via 198.51.100.254" + tail
		dnsChanged  = "203.0.113.53/32 via 198.51.100.253" + tail
		dnsInside   = "203.0.113.53/32 via 198.51.100.252 as [] communities [] large [] local-pref 100"
		neverInside = "203.0.113.10/32"
	)
	r.plain.knows(t, webPlain, dnsPlain)
	r.changed.knows(t, dnsChanged)
	until(t, soon, func() string {
		if p := s.Peers(); p[0].Announced != 2 || p[1].Announced != 1 || len(p[0].Routes) != 2 || len(p[1].Routes) != 1 {
			return fmt.Sprintf("announced: got %+v, want 2 and 1", p)
		}
		return ""
	})

	// One more peer, one less, and back: who is not to have it is withdrawn from.
	web.Peers = []netip.Addr{r.plain.address, r.changed.address}
	announceRoutes(t, s, web, dns)
	r.changed.knows(t, webChanged, dnsChanged)
	web.Peers = []netip.Addr{r.changed.address}
	announceRoutes(t, s, web, dns)
	r.plain.knows(t, dnsPlain)
	r.changed.knows(t, webChanged, dnsChanged)

	// A peer that comes later is no more among them than one that was there.
	if err := s.SetPeers(context.Background(), r.peers()); err != nil {
		t.Fatal(err)
	}
	r.inside.knows(t, dnsInside)
	announceRoutes(t, s, dns)
	r.changed.knows(t, dnsChanged)
	announceRoutes(t, s, web, dns)
	r.changed.knows(t, webChanged, dnsChanged)
	r.plain.knows(t, dnsPlain)
	for _, l := range r.inside.heard() { // withdrawals go to everybody
		if strings.HasPrefix(l, neverInside) {
			t.Errorf("a peer that it is not for heard %q", l)
		}
	}
	if n := r.plain.up() + r.changed.up() + r.inside.up(); n != 3 {
		t.Errorf("sessions: got %d, want one a peer", n)
	}
}

func TestAttributesAndNextHopsOfAPeerChangeWhileItsSessionStaysUp(t *testing.T) {
	r := startRouters(t)
	cfg := config(r.peers()[:2]...)
	cfg.NextHops.V6 = netip.MustParseAddr("2001:db8::1")
	s := start(t, cfg)
	announce(t, s, "203.0.113.10/32", "2001:db8:51::10/128")
	const tail = " as [64512] communities [] large [] local-pref 0"
	r.plain.knows(t, "2001:db8:51::10/128 via 2001:db8::1"+tail, "203.0.113.10/32 via 198.51.100.254"+tail)
	r.changed.knows(t, "2001:db8:51::10/128 via 2001:db8::1"+tail, "203.0.113.10/32 via 198.51.100.253"+tail)

	peers := r.peers()[:2]
	peers[1].Attributes.MED = number(70)
	peers[1].NextHops = NextHops{V4: netip.MustParseAddr("192.0.2.77"), V6: netip.MustParseAddr("2001:db8::77")}
	updates := len(r.plain.messages(bgp.BGP_MSG_UPDATE))
	if err := s.SetPeers(context.Background(), peers); err != nil {
		t.Fatal(err)
	}
	r.changed.knows(t, "2001:db8:51::10/128 via 2001:db8::77"+tail+" med 70", "203.0.113.10/32 via 192.0.2.77"+tail+" med 70")
	if got := len(r.plain.messages(bgp.BGP_MSG_UPDATE)); got != updates {
		t.Errorf("the other peer got %d UPDATEs more, want none", got-updates)
	}

	// The node's own address changes: this is for those without one of their own.
	if err := s.SetNextHops(context.Background(), NextHops{V6: netip.MustParseAddr("2001:db8::2")}); err != nil {
		t.Fatal(err)
	}
	r.plain.knows(t, "2001:db8:51::10/128 via 2001:db8::2"+tail, "203.0.113.10/32 via 198.51.100.254"+tail)
	r.changed.knows(t, "2001:db8:51::10/128 via 2001:db8::77"+tail+" med 70", "203.0.113.10/32 via 192.0.2.77"+tail+" med 70")
	if r.plain.up() != 1 || r.changed.up() != 1 {
		t.Errorf("sessions: got %d and %d, want one each", r.plain.up(), r.changed.up())
	}

	// Without one there are no IPv6 VIPs on that session any more, which is then another.
	if err := s.SetNextHops(context.Background(), NextHops{}); err != nil {
		t.Fatal(err)
	}
	until(t, 2*soon, func() string {
		opens := r.plain.messages(bgp.BGP_MSG_OPEN)
		if n := offered(opens[len(opens)-1].Body.(*bgp.BGPOpen)); r.plain.up() != 2 || n != 1 {
			return fmt.Sprintf("got %d sessions, the last with %d families, want the second with one", r.plain.up(), n)
		}
		return ""
	})
	if r.changed.up() != 1 {
		t.Error("the peer with next hops of its own has got another session")
	}
	if err := s.SetNextHops(context.Background(), NextHops{V4: netip.MustParseAddr("2001:db8::2")}); err == nil {
		t.Error("an IPv6 next hop for IPv4: got no error")
	}
}

func TestIPv4VIPsHaveAnIPv6NextHopWhereThePeerIsToHaveIt(t *testing.T) {
	for _, tt := range []struct{ name, router, want string }{
		{"over IPv6", "2001:db8:100::254", "2001:db8:100::254"},
		{"over IPv4", "198.51.100.254", "2001:db8::1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			needNamespace(t, tt.router)
			router := &tap{address: netip.MustParseAddr(tt.router), asn: 64500}
			router.listen(t)
			p := peer(tt.router, 64500)
			p.ExtendedNextHop, p.No6 = true, true
			cfg := config(p)
			cfg.NextHops = NextHops{V4: netip.MustParseAddr("192.0.2.1"), V6: netip.MustParseAddr("2001:db8::1")}
			s := start(t, cfg)
			announce(t, s, "203.0.113.10/32", "2001:db8:51::10/128")
			router.knows(t, "203.0.113.10/32 via "+tt.want+" as [64512] communities [] large [] local-pref 0")
			open := router.messages(bgp.BGP_MSG_OPEN)[0].Body.(*bgp.BGPOpen)
			if n := offered(open); n != 1 {
				t.Errorf("families offered: got %d, want IPv4 alone", n)
			}
		})
	}
}
