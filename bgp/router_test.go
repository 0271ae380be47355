package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"

	"github.com/halfproxy/halfproxy/lb"
)

func TestNewRouterNamesEveryError(t *testing.T) {
	_, err := NewRouter(RouterConfig{Neighbors: []Peer{
		{Address: netip.MustParseAddr("192.0.2.1"), ASN: 64512, HoldTime: 3 * time.Second, Password: "secret"},
	}})
	const want = `asn must not be 0 (RFC 7607): set this node's own AS number
router id "" must be an IPv4 address: take one of this node's
no address to listen on
peers[0] "192.0.2.1": a password is not supported`
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestNextHopsSpareThoseThatAreShuttingDownWhileThereAreOthers(t *testing.T) {
	a, b, c := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::3")
	for _, tt := range []struct {
		name  string
		paths []path
		want  string
	}{
		{"no paths", nil, "[]"},
		{"all of them, sorted", []path{{nextHop: c}, {nextHop: b}, {nextHop: a}}, "[192.0.2.1 192.0.2.2 2001:db8::3]"},
		{"one twice", []path{{nextHop: a}, {nextHop: b}, {nextHop: a}}, "[192.0.2.1 192.0.2.2]"},
		{"one shutting down", []path{{nextHop: a}, {nextHop: b, shutdown: true}}, "[192.0.2.1]"},
		{"all shutting down", []path{{nextHop: b, shutdown: true}, {nextHop: a, shutdown: true}}, "[192.0.2.1 192.0.2.2]"},
		{"none that can be used", []path{{}, {nextHop: netip.IPv6Unspecified()}}, "[]"},
	} {
		if got := fmt.Sprint(nextHops(tt.paths)); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestARouterSharesTrafficAmongTheNodesThatAnnounce(t *testing.T) {
	const n1, n2, n3 = "198.51.100.1", "198.51.100.2", "2001:db8:100::3"
	needNamespace(t, n1, n2, n3)
	r := startRouter(t, peer(n1, 64512), peer(n2, 64512), peer(n3, 64512))
	node := func(address string) *node {
		cfg := config(peer(address, 64500))
		cfg.NextHops.V6 = netip.MustParseAddr("2001:db8::1")
		return start(t, cfg)
	}
	s1, s2, s3 := node(n1), node(n2), node(n3)
	announce(t, s1, "203.0.113.10/32")
	r.until(t, "203.0.113.10/32 [198.51.100.1]")
	announce(t, s3, "2001:db8:51::10/128")
	announce(t, s1, "203.0.113.10/32", "2001:db8:51::10/128")
	r.until(t, "203.0.113.10/32 [198.51.100.1]", "2001:db8:51::10/128 [2001:db8::1 2001:db8:100::3]")

	// s2 is about to stop: only of use where there is no other.
	announceRoutes(t, s2,
		lb.Route{Prefix: netip.MustParsePrefix("203.0.113.10/32"), Shutdown: true},
		lb.Route{Prefix: netip.MustParsePrefix("203.0.113.11/32"), Shutdown: true})
	r.until(t, "203.0.113.10/32 [198.51.100.1]", "203.0.113.11/32 [198.51.100.2]", "2001:db8:51::10/128 [2001:db8::1 2001:db8:100::3]")
	announce(t, s1, "203.0.113.11/32")
	r.until(t, "203.0.113.10/32 [198.51.100.2]", "203.0.113.11/32 [198.51.100.1]", "2001:db8:51::10/128 [2001:db8:100::3]")

	s3.end()
	r.until(t, "203.0.113.10/32 [198.51.100.2]", "203.0.113.11/32 [198.51.100.1]")
	s1.end()
	s2.end()
	r.until(t)

	for i, now := range r.history() {
		if before := r.history(); i > 0 && before[i-1] == now {
			t.Errorf("update %d has nothing new: %s", i, now)
		}
	}
}

func TestARouterDropsTheRoutesOfASessionThatBreaksAtOnce(t *testing.T) {
	needNamespace(t, "198.51.100.1")
	r := startRouter(t, peer("198.51.100.1", 64512))
	n := &tap{address: netip.MustParseAddr("198.51.100.1"), asn: 64512, offer: []*bgp.BGPMessage{
		bgp.NewBGPUpdateMessage(nil, []bgp.PathAttributeInterface{
			bgp.NewPathAttributeOrigin(0),
			bgp.NewPathAttributeAsPath([]bgp.AsPathParamInterface{bgp.NewAs4PathParam(bgp.BGP_ASPATH_ATTR_TYPE_SEQ, []uint32{64512})}),
			bgp.NewPathAttributeNextHop("198.51.100.1"),
		}, []*bgp.IPAddrPrefix{bgp.NewIPAddrPrefix(32, "203.0.113.10")}),
		// What a node sends that has no next hop for IPv6.
		bgp.NewBGPUpdateMessage(nil, []bgp.PathAttributeInterface{
			bgp.NewPathAttributeOrigin(0),
			bgp.NewPathAttributeAsPath([]bgp.AsPathParamInterface{bgp.NewAs4PathParam(bgp.BGP_ASPATH_ATTR_TYPE_SEQ, []uint32{64512})}),
			bgp.NewPathAttributeMpReachNLRI("::ffff:198.51.100.1", []bgp.AddrPrefixInterface{bgp.NewIPv6AddrPrefix(128, "2001:db8:51::10")}),
		}, nil),
	}}
	n.dial(t)
	r.until(t, "203.0.113.10/32 [198.51.100.1]")
	broke := time.Now()
	n.hangUp()
	r.until(t)
	if took := time.Since(broke); took > 100*time.Millisecond {
		t.Errorf("routes gone after %v, want at most 100ms", took)
	}
}

func TestARouterSendsNoRoutes(t *testing.T) {
	needNamespace(t, "198.51.100.1", "198.51.100.2")
	r := startRouter(t, peer("198.51.100.1", 64512), peer("198.51.100.2", 64513))
	s := start(t, config(peer("198.51.100.1", 64500)))
	listener := &tap{address: netip.MustParseAddr("198.51.100.2"), asn: 64513}
	listener.dial(t)
	until(t, soon, func() string {
		if listener.up() == 0 {
			return "the other neighbour has no session"
		}
		return ""
	})
	announce(t, s, "203.0.113.10/32")
	r.until(t, "203.0.113.10/32 [198.51.100.1]")
	announce(t, s)
	r.until(t)
	for _, got := range listener.heard() {
		// GoBGP passes withdrawals on, of what it never announced as well.
		if !strings.HasPrefix(got, "-") {
			t.Errorf("another neighbour heard %s, want nothing", got)
		}
	}
}

func TestARouterSaysThatItsPortIsTaken(t *testing.T) {
	needNamespace(t, "198.51.100.1")
	other := &tap{address: netip.MustParseAddr("198.51.100.1")}
	other.listen(t)
	r, err := NewRouter(RouterConfig{ASN: 64500, RouterID: netip.MustParseAddr("198.51.100.1"), Listen: []netip.Addr{other.address}})
	if err != nil {
		t.Fatal(err)
	}
	err = r.Run(context.Background(), func([]Route) {})
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "no other router on these addresses") {
		t.Errorf("got %v, want that the address is in use and what to do", err)
	}
}

// running is a Router with all that it has told.
type running struct {
	mu   sync.Mutex
	told []string
}

// startRouter runs a Router that listens on the address of each neighbour.
func startRouter(t *testing.T, neighbors ...Peer) *running {
	t.Helper()
	journal := &journal{}
	cfg := RouterConfig{ASN: 64500, RouterID: netip.MustParseAddr("198.51.100.254"), Log: slog.New(slog.NewTextHandler(journal, nil))}
	for _, n := range neighbors {
		cfg.Listen = append(cfg.Listen, n.Address)
		cfg.Neighbors = append(cfg.Neighbors, n)
	}
	router, err := NewRouter(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r := &running{told: []string{""}}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := router.Run(ctx, r.update); err != nil {
			t.Errorf("router: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	until(t, soon, func() string {
		if !strings.Contains(journal.String(), "listening") {
			return "the router does not listen"
		}
		return ""
	})
	return r
}

func (r *running) update(routes []Route) {
	var lines []string
	for _, route := range routes {
		lines = append(lines, fmt.Sprint(route.Prefix, " ", route.NextHops))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told = append(r.told, strings.Join(lines, "\n"))
}

func (r *running) history() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.told...)
}

func (r *running) until(t *testing.T, want ...string) {
	t.Helper()
	until(t, soon, func() string {
		told := r.history()
		if got := told[len(told)-1]; got != strings.Join(want, "\n") {
			return fmt.Sprintf("got routes\n%s\nwant\n%s", got, strings.Join(want, "\n"))
		}
		return ""
	})
}
