package bgp

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"github.com/vishvananda/netlink"

	"github.com/halfproxy/halfproxy/internal/router"
	"github.com/halfproxy/halfproxy/lb"
)

// Each neighbour needs one option to be as it is, and does not come up, or has
// another route, without it:
//
//	192.0.2.2        the session comes from this address
//	192.0.2.129      FRR opens the session, with a password
//	2001:db8:a::1    IPv4 routes have an IPv6 next hop
//	192.0.2.1        two hops away: TTL 254 at least, where a neighbour's is 1
//	2001:db8:b::1    next hops are those of another node
const frrOptions = `
no zebra nexthop kernel enable
router bgp 64500
 bgp router-id 192.0.2.254
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 bgp bestpath as-path multipath-relax
 neighbor 192.0.2.2 remote-as 64512
 neighbor 192.0.2.2 passive
 neighbor 192.0.2.129 remote-as 64512
 neighbor 192.0.2.129 password secret
 neighbor 192.0.2.129 timers connect 1
 neighbor 2001:db8:a::1 remote-as 64512
 neighbor 2001:db8:a::1 passive
 neighbor 2001:db8:a::1 capability extended-nexthop
 neighbor 192.0.2.1 remote-as 64512
 neighbor 192.0.2.1 passive
 neighbor 192.0.2.1 update-source 198.51.100.1
 neighbor 192.0.2.1 ttl-security hops 2
 neighbor 2001:db8:b::1 remote-as 64512
 neighbor 2001:db8:b::1 passive
 address-family ipv4 unicast
  neighbor 192.0.2.2 activate
  neighbor 192.0.2.129 activate
  neighbor 2001:db8:a::1 activate
  neighbor 192.0.2.1 activate
  neighbor 2001:db8:b::1 activate
  maximum-paths 8
 exit-address-family
 address-family ipv6 unicast
  neighbor 192.0.2.2 activate
  neighbor 2001:db8:b::1 activate
 exit-address-family
exit
`

func TestEachOptionOfAPeerIsWhatFRRNeeds(t *testing.T) {
	ns := network(t)
	address(t, "a", "192.0.2.2/25")
	if err := ns.Address("lo", "198.51.100.1/32"); err != nil {
		t.Fatal(err)
	}
	gateway(t, "198.51.100.1/32", "192.0.2.126")
	frr := startFRR(t, ns, frrOptions)

	from, passive, extended, far, hops := peer("192.0.2.126", 64500), peer("192.0.2.254", 64500), peer("2001:db8:a::fe", 64500), peer("198.51.100.1", 64500), peer("2001:db8:b::fe", 64500)
	from.LocalAddress, from.No6 = netip.MustParseAddr("192.0.2.2"), true
	from.HoldTime = 30 * time.Second
	from.Attributes = lb.Attributes{
		MED: number(70), Prepend: 1, Communities: []lb.Community{community(t, "64500:1"), community(t, "64500:1:1")},
	}
	passive.Passive, passive.Password = true, "secret"
	extended.ExtendedNextHop = true
	far.Multihop, far.LocalAddress = 255, netip.MustParseAddr("192.0.2.1")
	hops.NextHops = NextHops{V4: netip.MustParseAddr("192.0.2.130"), V6: netip.MustParseAddr("2001:db8:b::77")}

	cfg := config(from, passive, extended, far, hops)
	cfg.Listen = netip.MustParseAddrPort("192.0.2.129:179")
	s := start(t, cfg)
	announceRoutes(t, s,
		lb.Route{Prefix: netip.MustParsePrefix("203.0.113.10/32"), Announcement: lb.Announcement{Attributes: lb.Attributes{
			MED: number(5), Prepend: 1, Communities: []lb.Community{community(t, "64512:100")},
		}}},
		lb.Route{Prefix: netip.MustParsePrefix("2001:db8:51::10/128")})
	until(t, 4*soon, func() string {
		return differ(frrPaths(t, frr, "ipv4", "203.0.113.10/32"), []string{
			"192.0.2.129: via 192.0.2.129 as 64512 64512 med 5 communities 64512:100 large",
			"192.0.2.1: via 192.0.2.1 as 64512 64512 med 5 communities 64512:100 large",
			"192.0.2.2: via 192.0.2.2 as 64512 64512 64512 med 70 communities 64500:1 64512:100 large 64500:1:1",
			"2001:db8:a::1: via 2001:db8:a::1 as 64512 64512 med 5 communities 64512:100 large",
			"2001:db8:b::1: via 192.0.2.130 as 64512 64512 med 5 communities 64512:100 large",
		})
	})
	until(t, soon, func() string {
		return differ(frrPaths(t, frr, "ipv6", "2001:db8:51::10/128"), []string{
			"2001:db8:b::1: via 2001:db8:b::77 as 64512 med 0 communities  large",
		})
	})
	if got := frrNeighbor(t, frr, "192.0.2.2"); got.Hold != 30_000 {
		t.Errorf("got %+v, want a hold time of 30 s", got)
	}

	// One peer goes, another one changes, the others do not notice.
	before := s.Peers()
	hops.NextHops.V6 = netip.MustParseAddr("2001:db8:b::78")
	from.HoldTime = 12 * time.Second
	if err := s.SetPeers(context.Background(), []Peer{from, extended, far, hops}); err != nil {
		t.Fatal(err)
	}
	until(t, 2*soon, func() string {
		if got := frrNeighbor(t, frr, "192.0.2.2"); got.Hold != 12_000 || got.Established != 2 {
			return fmt.Sprintf("the changed peer: got %+v, want it established once more, with a hold time of 12 s", got)
		}
		return differ(frrPaths(t, frr, "ipv6", "2001:db8:51::10/128"), []string{
			"2001:db8:b::1: via 2001:db8:b::78 as 64512 med 0 communities  large",
		})
	})
	for i, p := range s.Peers()[1:] {
		if was := before[i+2]; p.Since != was.Since {
			t.Errorf("%v: up since %v, was since %v", p.Peer, p.Since, was.Since)
		}
		if got := frrNeighbor(t, frr, p.Peer.String()); got.Established > 1 {
			t.Errorf("%v: established %d times", p.Peer, got.Established)
		}
	}
	for _, neighbor := range []string{"192.0.2.1", "2001:db8:a::1", "2001:db8:b::1"} {
		if got := frrNeighbor(t, frr, neighbor); got.Established != 1 {
			t.Errorf("%s: got it established %d times, want once", neighbor, got.Established)
		}
	}
	if got := frrPaths(t, frr, "ipv4", "203.0.113.10/32"); slices.ContainsFunc(got, func(l string) bool { return strings.HasPrefix(l, "192.0.2.129:") }) {
		t.Errorf("the removed peer has got the route still: %q", got)
	}
}

// A router that opens its sessions does so over either family, to a node that listens for both.
const frrOpens = `
router bgp 64500
 bgp router-id 192.0.2.254
 no bgp ebgp-requires-policy
 neighbor 192.0.2.1 remote-as 64512
 neighbor 192.0.2.1 password secret
 neighbor 192.0.2.1 timers connect 1
 neighbor 2001:db8:a::1 remote-as 64512
 neighbor 2001:db8:a::1 password terces
 neighbor 2001:db8:a::1 timers connect 1
 address-family ipv6 unicast
  neighbor 2001:db8:a::1 activate
 exit-address-family
exit
`

func TestSessionsThatARouterOpensAreTakenOverBothFamilies(t *testing.T) {
	ns := network(t)
	startFRR(t, ns, frrOpens)
	v4, v6 := peer("192.0.2.126", 64500), peer("2001:db8:a::fe", 64500)
	v4.Passive, v4.Password = true, "secret"
	v6.Passive, v6.Password = true, "terces"
	cfg := config(v4, v6)
	cfg.Listen = netip.MustParseAddrPort("[::]:179")
	s := start(t, cfg)
	until(t, 4*soon, func() string { return states(s, established, established) })
}

func TestKeepalivesComeAsOftenAsAsked(t *testing.T) {
	needNamespace(t, "198.51.100.254")
	router := &tap{address: netip.MustParseAddr("198.51.100.254"), asn: 64500}
	router.listen(t)
	p := peer("198.51.100.254", 64500)
	p.HoldTime, p.KeepaliveTime = 30*time.Second, time.Second
	s := start(t, config(p))
	until(t, soon, func() string { return states(s, established) })
	until(t, soon, func() string { // a third of the hold time would be 10 s
		if n := len(router.messages(bgp.BGP_MSG_KEEPALIVE)); n < 4 {
			return fmt.Sprintf("got %d keepalives, want four", n)
		}
		return ""
	})
}

func TestConnectionsAreTriedAsOftenAsAsked(t *testing.T) {
	needNamespace(t, "198.51.100.254", "198.51.100.253")
	often, rarely := peer("198.51.100.254", 64500), peer("198.51.100.253", 64500)
	rarely.ConnectRetryTime = 30 * time.Second
	var log journal
	cfg := config(often, rarely)
	cfg.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	(&node{Speaker: s}).run(t)
	tries := func(peer string) (n int) {
		for l := range strings.Lines(log.String()) {
			if strings.Contains(l, "failed to connect") && strings.Contains(l, peer) {
				n++
			}
		}
		return n
	}
	until(t, 3*soon, func() string {
		if n := tries("198.51.100.254"); n < 4 {
			return fmt.Sprintf("got %d tries, want four", n)
		}
		return ""
	})
	if n := tries("198.51.100.253"); n > 1 {
		t.Errorf("got %d tries of the peer that is to be tried every 30 s", n)
	}
}

func TestAPasswordThatIsChangedCountsAtOnceForPeersThatOpenTheSession(t *testing.T) {
	needNamespace(t, "198.51.100.254")
	p := peer("198.51.100.254", 64500)
	p.Passive, p.Password = true, "old"
	cfg := config(p)
	cfg.Listen = netip.MustParseAddrPort("198.51.100.254:179")
	s := start(t, cfg)
	for _, password := range []string{"old", "new"} {
		p.Password = password
		if err := s.SetPeers(context.Background(), []Peer{p}); err != nil {
			t.Fatal(err)
		}
		until(t, soon, func() string { return states(s, "active") })
		router := &tap{address: p.Address, asn: 64500, password: password}
		router.dial(t)
		until(t, soon, func() string { return states(s, established) })
	}
	for _, password := range []string{"old", ""} {
		if conn, err := connect(p.Address, password); err == nil {
			t.Errorf("a connection with password %q is taken", password)
			conn.Close()
		}
	}
}

func TestBIRDShowsWhatARouterOfOurASIsTold(t *testing.T) {
	ns := network(t)
	bird := startBIRD(t, ns, `
router id 192.0.2.254;
protocol device {}
protocol kernel k4 { merge paths yes limit 8; ipv4 { import none; export all; }; }
protocol bgp inside { local as 64512; neighbor 192.0.2.1 as 64512; passive yes; ipv4 { import all; export none; }; }
protocol bgp outside { local as 64500; neighbor 2001:db8:b::1 as 64512; passive yes; ipv4 { import all; export none; extended next hop on; }; }
`)
	inside, outside := peer("192.0.2.126", 64512), peer("2001:db8:b::fe", 64500)
	inside.Attributes.LocalPref = number(250)
	outside.ExtendedNextHop = true
	s := start(t, config(inside, outside))
	announceRoutes(t, s, lb.Route{Prefix: netip.MustParsePrefix("203.0.113.10/32"), Announcement: lb.Announcement{Attributes: lb.Attributes{
		MED: number(5), Communities: []lb.Community{community(t, "64512:100"), community(t, "64512:1:1")},
	}}})
	for protocol, want := range map[string][]string{
		"inside":  {"BGP.as_path: \n", "BGP.next_hop: 192.0.2.1\n", "BGP.local_pref: 250", "BGP.med: 5", "BGP.community: (64512,100)", "BGP.large_community: (64512, 1, 1)"},
		"outside": {"BGP.as_path: 64512\n", "BGP.next_hop: 2001:db8:b::1\n", "BGP.local_pref: 100", "BGP.med: 5", "BGP.community: (64512,100)", "BGP.large_community: (64512, 1, 1)"},
	} {
		until(t, 2*soon, func() string {
			out, err := bird.Command("show route all protocol " + protocol)
			if err != nil {
				return err.Error() // also where there is none
			}
			for _, w := range want {
				if !strings.Contains(out, w) {
					return fmt.Sprintf("%s: got\n%s\nwant %q", protocol, out, w)
				}
			}
			return ""
		})
	}
}

// frrPaths gives the paths that FRR has to a prefix, one a line, sorted.
func frrPaths(t *testing.T, frr *router.FRR, family, prefix string) (paths []string) {
	t.Helper()
	out, err := frr.Command(fmt.Sprintf("show bgp %s unicast %s json", family, prefix))
	if err != nil {
		t.Fatal(err)
	}
	var route struct {
		Paths []struct {
			ASPath         struct{ String string }
			Metric         int
			Community      struct{ String string }
			LargeCommunity struct{ String string }
			Nexthops       []struct{ IP, Scope string }
			Peer           struct{ PeerID string }
		}
	}
	if err := json.Unmarshal([]byte(out), &route); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	for _, p := range route.Paths {
		hop := ""
		for _, n := range p.Nexthops {
			if n.Scope != "link-local" {
				hop = n.IP
			}
		}
		paths = append(paths, strings.TrimRight(fmt.Sprintf("%s: via %s as %s med %d communities %s large %s", p.Peer.PeerID, hop, p.ASPath.String, p.Metric, p.Community.String, p.LargeCommunity.String), " "))
	}
	slices.Sort(paths)
	return paths
}

type frrSession struct {
	Hold        int `json:"bgpTimerHoldTimeMsecs"`
	Established int `json:"connectionsEstablished"`
}

func frrNeighbor(t *testing.T, frr *router.FRR, neighbor string) frrSession {
	t.Helper()
	out, err := frr.Command("show bgp neighbors json")
	if err != nil {
		t.Fatal(err)
	}
	neighbors := make(map[string]json.RawMessage)
	if err := json.Unmarshal([]byte(out), &neighbors); err != nil {
		t.Fatal(err)
	}
	var s frrSession
	if raw, ok := neighbors[neighbor]; ok {
		if err := json.Unmarshal(raw, &s); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// address gives our end of a link one address more.
func address(t *testing.T, link, cidr string) {
	t.Helper()
	l, err := netlink.LinkByName(link)
	if err != nil {
		t.Fatal(err)
	}
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(l, a); err != nil {
		t.Fatal(err)
	}
}

// gateway leads to a prefix by way of the router.
func gateway(t *testing.T, prefix, via string) {
	t.Helper()
	_, dst, err := net.ParseCIDR(prefix)
	if err != nil {
		t.Fatal(err)
	}
	route := &netlink.Route{Dst: dst, Gw: netip.MustParseAddr(via).AsSlice()}
	if err := netlink.RouteAdd(route); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netlink.RouteDel(route) })
}
