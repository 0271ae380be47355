package bgp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"github.com/osrg/gobgp/v3/pkg/server"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/halfproxy/halfproxy/lb"
)

// Sessions open after one to two seconds, GoBGP's own wait; later where others want the
// CPUs too.
const soon = 10 * time.Second

func TestASpeakerSendsItsVIPsWithAttributesAndNextHopsThatSuitTheSession(t *testing.T) {
	const own4, own6 = "192.0.2.1", "2001:db8::1"
	for _, tt := range []struct {
		name   string
		router string
		asn    uint32
		no6    bool // no explicit next hops
		want   []string
	}{
		{
			name: "over IPv4", router: "198.51.100.254", asn: 64500,
			want: []string{
				"2001:db8:51::10/128 via 2001:db8::1 as [64512] communities [64512:100 65535:65281] large [4200000000:1:2] local-pref 0",
				"203.0.113.10/32 via 198.51.100.254 as [64512] communities [64512:100 65535:65281] large [4200000000:1:2] local-pref 0",
			},
		},
		{
			name: "over IPv6", router: "2001:db8:100::254", asn: 64500,
			want: []string{
				"2001:db8:51::10/128 via 2001:db8:100::254 as [64512] communities [64512:100 65535:65281] large [4200000000:1:2] local-pref 0",
				"203.0.113.10/32 via 192.0.2.1 as [64512] communities [64512:100 65535:65281] large [4200000000:1:2] local-pref 0",
			},
		},
		{
			name: "inside the AS, over IPv4", router: "198.51.100.254", asn: 64512,
			want: []string{
				"2001:db8:51::10/128 via 2001:db8::1 as [] communities [64512:100 65535:65281] large [4200000000:1:2] local-pref 100",
				"203.0.113.10/32 via 198.51.100.254 as [] communities [64512:100 65535:65281] large [4200000000:1:2] local-pref 100",
			},
		},
		{
			name: "over IPv4 without a next hop for IPv6", router: "198.51.100.254", asn: 64500, no6: true,
			want: []string{
				"203.0.113.10/32 via 198.51.100.254 as [64512] communities [64512:100 65535:65281] large [4200000000:1:2] local-pref 0",
			},
		},
		{
			name: "over IPv6 without a next hop for IPv4", router: "2001:db8:100::254", asn: 64500, no6: true,
			want: []string{
				"2001:db8:51::10/128 via 2001:db8:100::254 as [64512] communities [64512:100 65535:65281] large [4200000000:1:2] local-pref 0",
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			needNamespace(t, tt.router)
			router := &tap{address: netip.MustParseAddr(tt.router), asn: tt.asn}
			router.listen(t)
			cfg := config(peer(tt.router, tt.asn))
			if !tt.no6 {
				cfg.NextHops = NextHops{V4: netip.MustParseAddr(own4), V6: netip.MustParseAddr(own6)}
			}
			s := start(t, cfg)
			var a lb.Announcement
			a.Communities = []lb.Community{{A: 64512, B: 100}, {A: 65535, B: 65281}, {Large: true, A: 4200000000, B: 1, C: 2}}
			announceRoutes(t, s,
				lb.Route{Prefix: netip.MustParsePrefix("203.0.113.10/32"), Announcement: a},
				lb.Route{Prefix: netip.MustParsePrefix("2001:db8:51::10/128"), Announcement: a})
			until(t, soon, func() string {
				heard := router.heard()
				slices.Sort(heard) // GoBGP takes the families of a new session in any order
				return differ(heard, tt.want)
			})

			// What is offered but not sent would be a surprise as well.
			open := router.messages(bgp.BGP_MSG_OPEN)[0].Body.(*bgp.BGPOpen)
			if got, want := offered(open), len(tt.want); got != want {
				t.Errorf("address families offered: got %d, want %d", got, want)
			}
			until(t, soon, func() string {
				status := s.Peers()[0]
				if status.Announced != len(tt.want) || status.State != established || status.LastError != "" {
					return fmt.Sprintf("got status %+v, want it established with %d announced", status, len(tt.want))
				}
				return ""
			})
			warned := strings.Contains(s.journal.String(), "vip is not announced to a peer of the other family")
			if warned != tt.no6 {
				t.Errorf("warning that a vip is not announced: got %v, want %v", warned, tt.no6)
			}
		})
	}
}

func TestAnnounceSendsWhatIsNewAndWithdrawsWhatIsMissingAndNothingTwice(t *testing.T) {
	needNamespace(t, "198.51.100.254")
	router := &tap{address: netip.MustParseAddr("198.51.100.254"), asn: 64500}
	router.listen(t)
	s := start(t, config(peer("198.51.100.254", 64500)))
	announce(t, s, "203.0.113.10/32")
	const tail = " via 198.51.100.254 as [64512] communities [] large [] local-pref 0"
	want := []string{"203.0.113.10/32" + tail}
	until(t, soon, func() string { return differ(router.heard(), want) })

	for range 3 {
		announce(t, s, "203.0.113.10/32")
	}
	announce(t, s, "203.0.113.11/32", "203.0.113.10/32")
	announce(t, s, "203.0.113.10/32", "203.0.113.11/32", "203.0.113.10/32")
	want = append(want, "203.0.113.11/32"+tail)
	until(t, soon, func() string { return differ(router.heard(), want) })

	announce(t, s, "203.0.113.11/32", "203.0.113.12/32")
	want = append(want, "-203.0.113.10/32", "203.0.113.12/32"+tail)
	until(t, soon, func() string { return differ(router.heard(), want) })

	announce(t, s)
	announce(t, s)
	want = append(want, "-203.0.113.11/32", "-203.0.113.12/32")
	until(t, soon, func() string { return differ(router.heard(), want) })

	// UPDATEs travel in order: whatever was sent twice came before this one.
	announce(t, s, "203.0.113.10/32")
	want = append(want, "203.0.113.10/32"+tail)
	until(t, soon, func() string { return differ(router.heard(), want) })
	if got, want := s.Peers()[0].Announced, 1; got != want {
		t.Errorf("announced: got %d, want %d", got, want)
	}

	s.end()
	want = append(want, "-203.0.113.10/32")
	until(t, soon, func() string { return differ(router.heard(), want) })
	until(t, soon, func() string {
		for _, m := range router.messages(bgp.BGP_MSG_NOTIFICATION) {
			if n := m.Body.(*bgp.BGPNotification); n.ErrorCode == bgp.BGP_ERROR_CEASE && n.ErrorSubcode == bgp.BGP_ERROR_SUB_ADMINISTRATIVE_SHUTDOWN {
				return ""
			}
		}
		return "no Cease at the end of Run"
	})
	if got := s.Peers()[0]; got.State != idle || got.Announced != 0 {
		t.Errorf("after Run: got %+v, want it idle with nothing announced", got)
	}

	var lines []string
	for l := range strings.Lines(s.journal.String()) {
		if strings.Contains(l, "vip=") {
			lines = append(lines, strings.TrimSpace(l))
		}
	}
	if d := differ(lines, []string{
		"level=INFO msg=announced part=bgp vip=203.0.113.10/32",
		"level=INFO msg=announced part=bgp vip=203.0.113.11/32",
		"level=INFO msg=withdrawn part=bgp vip=203.0.113.10/32",
		"level=INFO msg=announced part=bgp vip=203.0.113.12/32",
		"level=INFO msg=withdrawn part=bgp vip=203.0.113.11/32",
		"level=INFO msg=withdrawn part=bgp vip=203.0.113.12/32",
		"level=INFO msg=announced part=bgp vip=203.0.113.10/32",
		"level=INFO msg=withdrawn part=bgp vip=203.0.113.10/32",
	}); d != "" {
		t.Errorf("log: %s", d)
	}
}

func TestWhatIsAnnouncedBeforeRunIsThereBeforeTheFirstSession(t *testing.T) {
	needNamespace(t, "198.51.100.254")
	router := &tap{address: netip.MustParseAddr("198.51.100.254"), asn: 64500}
	router.listen(t)
	s, err := New(config())
	if err != nil {
		t.Fatal(err)
	}
	n := &node{Speaker: s}
	announce(t, n, "203.0.113.10/32", "203.0.113.11/32")
	announce(t, n, "203.0.113.11/32", "203.0.113.12/32")
	if err := s.SetPeers(context.Background(), []Peer{peer("198.51.100.254", 64500)}); err != nil {
		t.Fatal(err)
	}
	n.run(t)
	if d := differ(rib(t, n), []string{"203.0.113.11/32", "203.0.113.12/32"}); d != "" {
		t.Errorf("routes when Run has started: %s", d)
	}
	until(t, soon, func() string {
		updates := router.messages(bgp.BGP_MSG_UPDATE)
		if len(updates) != 1 || len(updates[0].Body.(*bgp.BGPUpdate).NLRI) != 2 {
			return fmt.Sprintf("got %v, want both in one UPDATE", router.heard())
		}
		return ""
	})
}

func TestAnnounceRefusesWhatIsNoPrefix(t *testing.T) {
	s, err := New(config())
	if err != nil {
		t.Fatal(err)
	}
	for _, vip := range []netip.Prefix{
		{},
		netip.MustParsePrefix("203.0.113.10/24"),
		netip.PrefixFrom(netip.MustParseAddr("::ffff:203.0.113.10"), 128),
	} {
		if err := s.Announce(context.Background(), []lb.Route{{Prefix: vip}}); err == nil {
			t.Errorf("%v: got no error", vip)
		}
	}
}

func TestASpeakerImportsNothing(t *testing.T) {
	needNamespace(t, "198.51.100.254")
	router := &tap{address: netip.MustParseAddr("198.51.100.254"), asn: 64500, offer: []*bgp.BGPMessage{
		bgp.NewBGPUpdateMessage(nil, []bgp.PathAttributeInterface{
			bgp.NewPathAttributeOrigin(0),
			bgp.NewPathAttributeAsPath([]bgp.AsPathParamInterface{bgp.NewAs4PathParam(bgp.BGP_ASPATH_ATTR_TYPE_SEQ, []uint32{64500})}),
			bgp.NewPathAttributeNextHop("198.51.100.1"),
		}, []*bgp.IPAddrPrefix{bgp.NewIPAddrPrefix(0, "0.0.0.0"), bgp.NewIPAddrPrefix(32, "203.0.113.10")}),
	}}
	router.listen(t)
	s := start(t, config(peer("198.51.100.254", 64500)))
	announce(t, s, "203.0.113.11/32")
	until(t, soon, func() string {
		if got := received(s); got != 2 {
			return fmt.Sprintf("routes received: got %d, want 2", got)
		}
		return ""
	})
	if d := differ(rib(t, s), []string{"203.0.113.11/32"}); d != "" {
		t.Errorf("routes: %s", d)
	}
}

func TestSetPeersLeavesUnchangedSessionsAlone(t *testing.T) {
	needNamespace(t, "198.51.100.254", "198.51.100.253", "198.51.100.252")
	stays := &tap{address: netip.MustParseAddr("198.51.100.254"), asn: 64500}
	changes := &tap{address: netip.MustParseAddr("198.51.100.253"), asn: 64500}
	comes := &tap{address: netip.MustParseAddr("198.51.100.252"), asn: 64501}
	for _, r := range []*tap{stays, changes, comes} {
		r.listen(t)
	}
	s := start(t, config(peer("198.51.100.254", 64500), peer("198.51.100.253", 64500)))
	announce(t, s, "203.0.113.10/32")
	until(t, soon, func() string { return states(s, "established", "established") })
	since := s.Peers()[0].Since

	changed := peer("198.51.100.253", 64500)
	changed.HoldTime = 6 * time.Second
	limited := peer("198.51.100.254", 64500) // which is no matter of the session
	limited.PrefixLimit = 5
	set := []Peer{peer("198.51.100.252", 64501), changed, limited}
	for range 2 {
		if err := s.SetPeers(context.Background(), set); err != nil {
			t.Fatal(err)
		}
	}
	until(t, soon, func() string { return states(s, "established", "established", "established") })
	if got := s.Peers()[2].Since; got != since || stays.up() != 1 {
		t.Errorf("unchanged session: got it up since %v and %d times, want since %v and once", got, stays.up(), since)
	}
	opens := changes.messages(bgp.BGP_MSG_OPEN)
	if got := opens[len(opens)-1].Body.(*bgp.BGPOpen).HoldTime; len(opens) != 2 || got != 6 {
		t.Errorf("changed session: got %d OPENs, the last with hold time %d, want 2 and 6", len(opens), got)
	}
	const want = "203.0.113.10/32 via 198.51.100.252 as [64512] communities [] large [] local-pref 0"
	until(t, soon, func() string { return differ(comes.heard(), []string{want}) })

	if err := s.SetPeers(context.Background(), []Peer{{}}); err == nil {
		t.Error("got no error for a peer without an address")
	}
	if err := s.SetPeers(context.Background(), set[2:]); err != nil {
		t.Fatal(err)
	}
	if got := states(s, "established"); got != "" || s.Peers()[0].Since != since {
		t.Errorf("the one that is left: %s, %+v, want it up since %v", got, s.Peers(), since)
	}
	until(t, soon, func() string {
		if len(comes.messages(bgp.BGP_MSG_NOTIFICATION)) == 0 {
			return "no NOTIFICATION for a peer that is removed"
		}
		return ""
	})
}

func TestAStatusSaysInWordsWhyAPeerIsNotUp(t *testing.T) {
	notification := func(code, subcode uint8) *bgp.BGPMessage { return bgp.NewBGPNotificationMessage(code, subcode, nil) }
	for _, tt := range []struct {
		name   string
		router *tap // nil: nobody there
		secure bool
		want   string
	}{
		{name: "nobody listens", want: "cannot connect: connection refused"},
		{
			name: "another AS number than configured", router: &tap{asn: 64999},
			want: "the peer was refused: as number mismatch expected 64500, received 64999",
		},
		{
			name: "a peer that expects another AS number", router: &tap{refuse: notification(2, 2)},
			want: "the peer refused the session while it was being set up: its log says why; often it expects another AS number",
		},
		{
			name: "a peer that ends the session", router: &tap{asn: 64500, offer: []*bgp.BGPMessage{notification(6, 2)}},
			want: "the peer closed the session: administrative shutdown",
		},
		{
			name: "TTL security on our side alone", router: &tap{asn: 64500}, secure: true,
			want: "cannot connect: no answer: is the peer up, and do password and TTL security match?",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			needNamespace(t, "198.51.100.254")
			if tt.router != nil {
				tt.router.address = netip.MustParseAddr("198.51.100.254")
				tt.router.listen(t)
			}
			p := peer("198.51.100.254", 64500)
			p.TTLSecurity = tt.secure
			s := start(t, config(p))
			until(t, soon, func() string {
				if got := s.Peers()[0]; got.LastError != tt.want || got.State == established {
					return fmt.Sprintf("got %+v, want %q", got, tt.want)
				}
				return ""
			})
		})
	}
}

func TestTTLSecurityWorksWithAPeerThatHasItToo(t *testing.T) {
	needNamespace(t, "198.51.100.254")
	router := &tap{address: netip.MustParseAddr("198.51.100.254"), asn: 64500, ttl: 255}
	router.listen(t)
	p := peer("198.51.100.254", 64500)
	p.TTLSecurity = true
	s := start(t, config(p))
	until(t, soon, func() string { return states(s, "established") })
}

func TestThePeerUpMetricIsReadWhenScraped(t *testing.T) {
	needNamespace(t, "198.51.100.254")
	router := &tap{address: netip.MustParseAddr("198.51.100.254"), asn: 64500}
	router.listen(t)
	cfg := config(peer("198.51.100.254", 64500), peer("198.51.100.253", 64500))
	registry := prometheus.NewRegistry()
	cfg.Registerer = registry
	s := start(t, cfg)
	until(t, soon, func() string { return states(s, "established", "") })
	if err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP halfproxy_bgp_peer_up Whether the BGP session with the peer is established.
# TYPE halfproxy_bgp_peer_up gauge
halfproxy_bgp_peer_up{peer="198.51.100.253"} 0
halfproxy_bgp_peer_up{peer="198.51.100.254"} 1
`)); err != nil {
		t.Error(err)
	}
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Errorf("lint: got %v, %v, want nothing", problems, err)
	}
}

func TestRunEndsWithTheLibrarysFatalError(t *testing.T) {
	s, err := New(config())
	if err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	fatal := make(chan error, 1)
	fatal <- boom
	srv := server.NewBgpServer(server.LoggerOption(&logger{log: s.log, sessions: s.sessions}))
	go srv.Serve()
	if err := s.run(context.Background(), srv, fatal); !errors.Is(err, boom) {
		t.Errorf("got %v, want %v", err, boom)
	}
}

func TestASpeakerRunsOnceAtATimeAndAgainAfterwards(t *testing.T) {
	s := start(t, config())
	if err := s.Run(context.Background()); err == nil {
		t.Error("second Run: got no error")
	}
	s.end()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := s.Run(ctx); err != nil {
		t.Errorf("Run after Run: got %v, want nil", err)
	}
}

func config(peers ...Peer) Config {
	return Config{ASN: 64512, RouterID: netip.MustParseAddr("192.0.2.1"), Peers: peers}
}

func peer(address string, asn uint32) Peer {
	return Peer{Address: netip.MustParseAddr(address), ASN: asn, HoldTime: 3 * time.Second}
}

// node is a Speaker that runs.
type node struct {
	*Speaker
	end     func() // ends Run and waits for it
	journal *journal
}

// start runs a Speaker until end is called or the test ends.
func start(t *testing.T, cfg Config) *node {
	t.Helper()
	n := &node{journal: &journal{}}
	cfg.Log = slog.New(slog.NewTextHandler(n.journal, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	var err error
	if n.Speaker, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	n.run(t)
	return n
}

func (n *node) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := n.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	n.end = func() {
		cancel()
		wg.Wait()
	}
	t.Cleanup(n.end)
	// GoBGP's StartBgp writes package variables that its running servers read:
	// in a process with several, as this one, they have to start one by one.
	until(t, soon, func() string {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.server == nil {
			return "the speaker has not started"
		}
		return ""
	})
}

// journal keeps what a Speaker logs.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

func announce(t *testing.T, s *node, vips ...string) {
	t.Helper()
	var routes []lb.Route
	for _, v := range vips {
		routes = append(routes, lb.Route{Prefix: netip.MustParsePrefix(v)})
	}
	announceRoutes(t, s, routes...)
}

func announceRoutes(t *testing.T, s *node, routes ...lb.Route) {
	t.Helper()
	if err := s.Announce(context.Background(), routes); err != nil {
		t.Fatal(err)
	}
}

// states compares the sessions' states in their order; "" is any but
// established.
func states(s *node, want ...string) string {
	status := s.Peers()
	got := make([]string, len(status))
	for i, p := range status {
		if i < len(want) && want[i] == "" && p.State != established {
			continue
		}
		got[i] = p.State
	}
	if !slices.Equal(got, want) {
		return fmt.Sprintf("got sessions %+v, want %q", status, want)
	}
	return ""
}

func differ(got, want []string) string {
	if slices.Equal(got, want) {
		return ""
	}
	return fmt.Sprintf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
}

// offered counts the address families in an OPEN.
func offered(open *bgp.BGPOpen) int {
	n := 0
	for _, p := range open.OptParams {
		for _, c := range p.(*bgp.OptionParameterCapability).Capability {
			if c.Code() == bgp.BGP_CAP_MULTIPROTOCOL {
				n++
			}
		}
	}
	return n
}

// received counts what the peers have sent, taken or not.
func received(s *node) (n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server == nil {
		return 0
	}
	s.server.ListPeer(context.Background(), &api.ListPeerRequest{}, func(p *api.Peer) {
		for _, f := range p.AfiSafis {
			n += f.GetState().GetReceived()
		}
	})
	return n
}

func rib(t *testing.T, s *node) (prefixes []string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, family := range []*api.Family{ipv4Unicast(), ipv6Unicast()} {
		list := &api.ListPathRequest{TableType: api.TableType_GLOBAL, Family: family}
		if err := s.server.ListPath(context.Background(), list, func(d *api.Destination) { prefixes = append(prefixes, d.Prefix) }); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(prefixes)
	return prefixes
}
