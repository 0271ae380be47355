package bgp

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/internal/netns"
	"github.com/halfproxy/halfproxy/internal/router"
	"github.com/halfproxy/halfproxy/lb"
)

// The real routers' network. Both nodes are Speakers in this process: a route
// to the router of its own gives each a source address of its own.
//
//	node a  192.0.2.1    2001:db8:a::1 ─── a ─── 192.0.2.126  2001:db8:a::fe ┐
//	                                                                         router, AS 64500
//	node b  192.0.2.129  2001:db8:b::1 ─── b ─── 192.0.2.254  2001:db8:b::fe ┘
//
// Node a has a session over IPv4, node b one over IPv6; both announce VIPs of
// both families on it.
var (
	nodeA = Config{
		ASN: 64512, RouterID: netip.MustParseAddr("192.0.2.1"),
		Peers:    []Peer{peer("192.0.2.126", 64500)},
		NextHops: NextHops{V6: netip.MustParseAddr("2001:db8:a::1")},
	}
	nodeB = Config{
		ASN: 64512, RouterID: netip.MustParseAddr("192.0.2.129"),
		Peers:    []Peer{peer("2001:db8:b::fe", 64500)},
		NextHops: NextHops{V4: netip.MustParseAddr("192.0.2.129")},
	}
)

// FRR 8.4's nexthop groups in the kernel lose members after a link flap.
const frrConf = `
no zebra nexthop kernel enable
bgp community-list standard GSHUT seq 5 permit graceful-shutdown
route-map IN permit 5
 match community GSHUT
 set local-preference 0
route-map IN permit 10
router bgp 64500
 bgp router-id 192.0.2.254
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 bgp bestpath as-path multipath-relax
 neighbor LB peer-group
 neighbor LB remote-as 64512
 neighbor LB passive
 neighbor LB timers 1 3
 neighbor LB advertisement-interval 0
 neighbor 192.0.2.1 peer-group LB
 neighbor 2001:db8:b::1 peer-group LB
 address-family ipv4 unicast
  neighbor LB activate
  neighbor LB route-map IN in
  maximum-paths 8
 exit-address-family
 address-family ipv6 unicast
  neighbor LB activate
  neighbor LB route-map IN in
  maximum-paths 8
 exit-address-family
exit
`

const birdConf = `
router id 192.0.2.254;
protocol device {}
protocol kernel k4 { merge paths yes limit 8; ipv4 { import none; export all; }; }
protocol kernel k6 { merge paths yes limit 8; ipv6 { import none; export all; }; }
filter nodes { if (65535, 0) ~ bgp_community then bgp_local_pref = 0; accept; }
template bgp lb {
	local as 64500;
	passive yes;
	hold time 3;
	ipv4 { import filter nodes; export none; };
	ipv6 { import filter nodes; export none; };
}
protocol bgp a from lb { neighbor 192.0.2.1 as 64512; }
protocol bgp b from lb { neighbor 2001:db8:b::1 as 64512; }
`

// onEachRouter runs a test beside a real router of each kind, in a network of its own.
func onEachRouter(t *testing.T, test func(t *testing.T, ns *netns.NS)) {
	t.Helper()
	for _, tt := range []struct {
		name  string
		start func(t *testing.T, ns *netns.NS)
	}{
		{"frr", func(t *testing.T, ns *netns.NS) { startFRR(t, ns, frrConf) }},
		{"bird", func(t *testing.T, ns *netns.NS) { startBIRD(t, ns, birdConf) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ns := network(t)
			tt.start(t, ns)
			test(t, ns)
		})
	}
}

func TestVIPsOfTwoNodesReachARealRoutersKernelAndLeaveIt(t *testing.T) {
	onEachRouter(t, func(t *testing.T, ns *netns.NS) {
		a, b := start(t, nodeA), start(t, nodeB)
		announce(t, a, "203.0.113.10/32", "2001:db8:51::10/128")
		announce(t, b, "203.0.113.10/32", "2001:db8:51::10/128")
		fib(t, ns, 2*soon,
			"203.0.113.10/32 [192.0.2.1 192.0.2.129]",
			"2001:db8:51::10/128 [2001:db8:a::1 2001:db8:b::1]")

		// One goes away: its way is open still, and nobody takes it (RFC 8326).
		leaving := []lb.Route{
			{Prefix: netip.MustParsePrefix("203.0.113.10/32"), Shutdown: true},
			{Prefix: netip.MustParsePrefix("2001:db8:51::10/128"), Shutdown: true},
		}
		announceRoutes(t, a, leaving...)
		fib(t, ns, soon,
			"203.0.113.10/32 [192.0.2.129]",
			"2001:db8:51::10/128 [2001:db8:b::1]")
		announceRoutes(t, b, leaving...)
		fib(t, ns, soon,
			"203.0.113.10/32 [192.0.2.1 192.0.2.129]",
			"2001:db8:51::10/128 [2001:db8:a::1 2001:db8:b::1]")

		announce(t, a, "2001:db8:51::10/128")
		announce(t, b, "203.0.113.10/32")
		fib(t, ns, soon,
			"203.0.113.10/32 [192.0.2.129]",
			"2001:db8:51::10/128 [2001:db8:a::1]")

		announce(t, a, "203.0.113.10/32", "2001:db8:51::10/128")
		announce(t, b, "203.0.113.10/32", "2001:db8:51::10/128")
		fib(t, ns, soon,
			"203.0.113.10/32 [192.0.2.1 192.0.2.129]",
			"2001:db8:51::10/128 [2001:db8:a::1 2001:db8:b::1]")

		prefixes := []string{"203.0.113.10/32", "2001:db8:51::10/128", "203.0.113.0/28", "2001:db8:51::/64"}
		announce(t, a, prefixes...)
		announce(t, b, prefixes...)
		fib(t, ns, soon,
			"203.0.113.0/28 [192.0.2.1 192.0.2.129]",
			"203.0.113.10/32 [192.0.2.1 192.0.2.129]",
			"2001:db8:51::/64 [2001:db8:a::1 2001:db8:b::1]",
			"2001:db8:51::10/128 [2001:db8:a::1 2001:db8:b::1]")
		announce(t, a, prefixes[:2]...)
		announce(t, b, prefixes[:2]...)

		ending := time.Now()
		b.end()
		fib(t, ns, soon,
			"203.0.113.10/32 [192.0.2.1]",
			"2001:db8:51::10/128 [2001:db8:a::1]")
		t.Logf("routes of a node that ends its Run: gone after %v", time.Since(ending).Round(time.Millisecond))
		a.end()
		fib(t, ns, soon)
	})
}

func TestPasswordsAndTTLSecurityAreThoseThatFRRSpeaks(t *testing.T) {
	ns := network(t)
	startFRR(t, ns, `
router bgp 64500
 bgp router-id 192.0.2.254
 no bgp ebgp-requires-policy
 neighbor 192.0.2.1 remote-as 64512
 neighbor 192.0.2.1 passive
 neighbor 192.0.2.1 password right
 neighbor 192.0.2.129 remote-as 64512
 neighbor 192.0.2.129 passive
 neighbor 192.0.2.129 ttl-security hops 1
 neighbor 2001:db8:a::1 remote-as 64512
 neighbor 2001:db8:a::1 passive
 neighbor 2001:db8:a::1 ttl-security hops 1
 neighbor 2001:db8:a::1 password right
 neighbor 2001:db8:b::1 remote-as 64999
 neighbor 2001:db8:b::1 passive
exit
`)
	md5, gtsm, both, wrongAS := peer("192.0.2.126", 64500), peer("192.0.2.254", 64500), peer("2001:db8:a::fe", 64500), peer("2001:db8:b::fe", 64500)
	md5.Password = "wrong"
	gtsm.TTLSecurity = true
	both.Password, both.TTLSecurity = "right", true
	cfg := config(md5, gtsm, both, wrongAS)
	cfg.NextHops = NextHops{V4: netip.MustParseAddr("192.0.2.1"), V6: netip.MustParseAddr("2001:db8:a::1")}
	s := start(t, cfg)

	until(t, 2*soon, func() string { return states(s, "", established, established, "") })
	until(t, 2*soon, func() string {
		got := [2]string{s.Peers()[0].LastError, s.Peers()[3].LastError}
		want := [2]string{
			"cannot connect: no answer: is the peer up, and do password and TTL security match?",
			"the peer refused the session while it was being set up: its log says why; often it expects another AS number",
		}
		if got != want {
			return fmt.Sprintf("got errors %q, want %q", got, want)
		}
		return ""
	})

	md5.Password = "right"
	if err := s.SetPeers(context.Background(), []Peer{md5, gtsm, both, wrongAS}); err != nil {
		t.Fatal(err)
	}
	until(t, 2*soon, func() string { return states(s, established, established, established, "") })
}

// network makes the router's namespace and the links to it.
func network(t *testing.T) *netns.NS {
	t.Helper()
	needNamespace(t)
	ns, err := netns.New("hptest-bgp-r")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	handle, err := vnetns.GetFromName(ns.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	for _, link := range []struct {
		name   string
		ours   []string
		theirs []string
	}{
		{"a", []string{"192.0.2.1/25", "2001:db8:a::1/64"}, []string{"192.0.2.126/25", "2001:db8:a::fe/64"}},
		{"b", []string{"192.0.2.129/25", "2001:db8:b::1/64"}, []string{"192.0.2.254/25", "2001:db8:b::fe/64"}},
	} {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = link.name
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: link.name, PeerNamespace: netlink.NsFd(int(handle))}
		if err := netlink.LinkAdd(veth); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { netlink.LinkDel(veth) })
		for _, cidr := range link.ours {
			addr, err := netlink.ParseAddr(cidr)
			if err != nil {
				t.Fatal(err)
			}
			addr.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(veth, addr); err != nil {
				t.Fatal(err)
			}
		}
		if err := netlink.LinkSetUp(veth); err != nil {
			t.Fatal(err)
		}
		if err := ns.Do(func() error {
			l, err := netlink.LinkByName(link.name)
			if err != nil {
				return err
			}
			return netlink.LinkSetUp(l)
		}); err != nil {
			t.Fatal(err)
		}
		if err := ns.Address(link.name, link.theirs...); err != nil {
			t.Fatal(err)
		}
	}
	return ns
}

// fib waits for the routes to VIPs in the kernel of ns to be those wanted.
func fib(t *testing.T, ns *netns.NS, within time.Duration, want ...string) {
	t.Helper()
	vips := []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8:51::/48")}
	until(t, within, func() string {
		var got []string
		err := ns.Do(func() error {
			routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
			if err != nil {
				return err
			}
			for _, r := range routes {
				if r.Dst == nil {
					continue
				}
				dst := netip.MustParsePrefix(r.Dst.String())
				if !slices.ContainsFunc(vips, func(v netip.Prefix) bool { return v.Overlaps(dst) }) {
					continue
				}
				hops := []netip.Addr{}
				for _, gw := range append(gateways(r.MultiPath), r.Gw) {
					if hop, ok := netip.AddrFromSlice(gw); ok {
						hops = append(hops, hop.Unmap())
					}
				}
				slices.SortFunc(hops, netip.Addr.Compare)
				got = append(got, fmt.Sprint(dst, " ", hops))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(got)
		slices.Sort(want)
		return differ(got, want)
	})
}

func gateways(hops []*netlink.NexthopInfo) (gw []net.IP) {
	for _, h := range hops {
		gw = append(gw, h.Gw)
	}
	return gw
}

func startFRR(t *testing.T, ns *netns.NS, conf string) *router.FRR {
	t.Helper()
	f, err := router.StartFRR(ns, scratch(t, "/usr/lib/frr/bgpd", "frr"), conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, err := f.Command("show bgp summary")
			t.Log(out, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func startBIRD(t *testing.T, ns *netns.NS, conf string) *router.BIRD {
	t.Helper()
	b, err := router.StartBIRD(ns, scratch(t, "/usr/sbin/bird", "bird2"), conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, err := b.Command("show route all")
			t.Log(out, err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// scratch gives a directory for a daemon, or skips the test without it.
func scratch(t *testing.T, program, pkg string) string {
	t.Helper()
	if _, err := os.Stat(program); err != nil {
		t.Skipf("%s is not installed: apt-get install %s", program, pkg)
	}
	dir, err := os.MkdirTemp("", "hptest-bgp-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
