package bgp

import (
	"context"
	"net/netip"
	"testing"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// The library loses a peer, so that what is asked of it for that peer fails.
func TestWhatFailedIsDoneByTheNextCall(t *testing.T) {
	r := startRouters(t)
	const tail = " as [64512] communities [] large [] local-pref 0"
	for _, tt := range []struct {
		name   string
		change func(s *node) error
		want   string
	}{
		{"next hops", func(s *node) error {
			return s.SetNextHops(context.Background(), NextHops{V6: netip.MustParseAddr("2001:db8::2")})
		}, "2001:db8:51::10/128 via 2001:db8::2" + tail},
		{"peers", func(s *node) error {
			peers := r.peers()[:1]
			peers[0].Attributes.MED = number(7)
			return s.SetPeers(context.Background(), peers)
		}, "2001:db8:51::10/128 via 2001:db8::1" + tail + " med 7"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := config(r.peers()[0])
			cfg.NextHops.V6 = netip.MustParseAddr("2001:db8::1")
			s := start(t, cfg)
			announce(t, s, "2001:db8:51::10/128")
			r.plain.knows(t, "2001:db8:51::10/128 via 2001:db8::1"+tail)

			direct := func(do func() error) {
				s.mu.Lock()
				defer s.mu.Unlock()
				if err := do(); err != nil {
					t.Fatal(err)
				}
			}
			p := s.Peers()[0].Peer
			direct(func() error {
				return s.server.DeletePeer(context.Background(), &api.DeletePeerRequest{Address: p.String()})
			})
			for range 2 {
				if err := tt.change(s); err == nil {
					t.Error("got no error, though the library does not know the peer")
				}
			}
			direct(func() error {
				return s.server.AddPeer(context.Background(), &api.AddPeerRequest{Peer: apiPeer(r.peers()[0], true, true, graceful{})})
			})
			if err := tt.change(s); err != nil {
				t.Errorf("the next call: %v", err)
			}
			r.plain.knows(t, tt.want)
			s.end()
		})
	}
}

// The library waits for 5 s after a session was lost or refused, and tries each of its own
// after 1 to 2 s.
func TestASessionThatLastedIsTriedAnewAtOnce(t *testing.T) {
	for _, tt := range []struct {
		name             string
		passive, refused bool
		within           time.Duration // by itself the library takes a second more at least
	}{
		{name: "by us, who are refused once", refused: true, within: 6 * time.Second},
		{name: "by the router", passive: true, within: 4 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			passive := tt.passive
			needNamespace(t, "198.51.100.254")
			router := &tap{address: netip.MustParseAddr("198.51.100.254"), asn: 64500}
			p := peer("198.51.100.254", 64500)
			cfg := config(p)
			reach := func(*testing.T) {}
			if passive {
				cfg.Peers[0].Passive, cfg.Listen, reach = true, netip.MustParseAddrPort("198.51.100.254:179"), router.dial
			} else {
				router.listen(t)
			}
			s, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			s.sessions.lasting = 0
			n := &node{Speaker: s}
			n.run(t)
			announce(t, n, "203.0.113.10/32")
			const route = "203.0.113.10/32 via 198.51.100.254 as [64512] communities [] large [] local-pref 0"
			if passive {
				until(t, soon, func() string { return states(n, "active") })
			}
			reach(t)
			router.knows(t, route)
			if tt.refused {
				router.refuseNext(bgp.NewBGPNotificationMessage(6, 5, nil))
			}
			router.hangUp()
			lost := time.Now()
			until(t, soon, func() string {
				if router.up() > 1 {
					return ""
				}
				return states(n, "")
			})
			for router.up() < 2 && time.Since(lost) < tt.within {
				if st := s.Peers()[0]; st.State != established && st.LastError == "" {
					t.Fatalf("got %+v, want it to say why the session is down", st)
				}
				if passive && states(n, "active") == "" {
					reach(t)
				}
				time.Sleep(50 * time.Millisecond)
			}
			if router.up() < 2 {
				t.Fatalf("no session within %v", tt.within)
			}
			until(t, soon, func() string { return states(n, established) })
			until(t, soon, func() string { return differ(router.heard(), []string{route, route}) })
		})
	}
}
