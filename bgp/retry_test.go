package bgp

import (
	"context"
	"net/netip"
	"testing"

	api "github.com/osrg/gobgp/v3/api"
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
