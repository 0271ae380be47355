package bgp

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// restartCapability is what an OPEN says of restarts; nil: nothing.
func restartCapability(open *bgp.BGPMessage) *bgp.CapGracefulRestart {
	for _, p := range open.Body.(*bgp.BGPOpen).OptParams {
		for _, c := range p.(*bgp.OptionParameterCapability).Capability {
			if g, ok := c.(*bgp.CapGracefulRestart); ok {
				return g
			}
		}
	}
	return nil
}

// ends gives where in what a router has heard the ends of RIB came: after how many
// announcements.
func (p *tap) ends() (after []int) {
	routes := 0
	for _, m := range p.messages(bgp.BGP_MSG_UPDATE) {
		u := m.Body.(*bgp.BGPUpdate)
		if end, _ := u.IsEndOfRib(); end {
			after = append(after, routes)
		} else {
			routes++
		}
	}
	return after
}

func TestASpeakerTellsRoutersToKeepItsRoutesOverARestart(t *testing.T) {
	for _, tt := range []struct {
		name      string
		time      time.Duration
		resumed   bool
		forwarded uint8 // flags of each family
		flags     uint8
	}{
		{name: "not at all"},
		{name: "at its first start", time: 30 * time.Second},
		{name: "as it goes on from another process", time: 4095 * time.Second, resumed: true, forwarded: 0x80, flags: 0x08},
	} {
		t.Run(tt.name, func(t *testing.T) {
			needNamespace(t, "198.51.100.254")
			router := &tap{address: netip.MustParseAddr("198.51.100.254"), asn: 64500, helper: true}
			router.listen(t)
			cfg := config(peer("198.51.100.254", 64500))
			cfg.NextHops.V6 = netip.MustParseAddr("2001:db8::1")
			cfg.RestartTime = tt.time
			s, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			n := &node{Speaker: s}
			if tt.resumed {
				s.Resume()
			}
			if got := s.Spoken(); got == tt.resumed {
				t.Errorf("before: the router has heard from this process: %t", got)
			}
			announce(t, n, "203.0.113.10/32", "203.0.113.11/32", "2001:db8:51::10/128")
			n.run(t)
			router.knows(t,
				"2001:db8:51::10/128 via 2001:db8::1 as [64512] communities [] large [] local-pref 0",
				"203.0.113.10/32 via 198.51.100.254 as [64512] communities [] large [] local-pref 0",
				"203.0.113.11/32 via 198.51.100.254 as [64512] communities [] large [] local-pref 0")
			if !s.Spoken() {
				t.Error("the router has heard of all, and is said to have heard nothing")
			}
			c := restartCapability(router.messages(bgp.BGP_MSG_OPEN)[0])
			if tt.time == 0 {
				if c != nil {
					t.Errorf("got %+v, want no word of restarts", c)
				}
				return
			}
			if c == nil || c.Time != uint16(tt.time/time.Second) || c.Flags != tt.flags || len(c.Tuples) != 2 {
				t.Fatalf("got %+v, want a time of %v, flags %#x and two families", c, tt.time, tt.flags)
			}
			for _, family := range c.Tuples {
				if family.Flags != tt.forwarded {
					t.Errorf("family %d: got flags %#x, want %#x", family.AFI, family.Flags, tt.forwarded)
				}
			}
			// The router drops what it has not heard of again once this comes.
			until(t, soon, func() string {
				if ends := router.ends(); len(ends) < 2 || ends[len(ends)-1] == 0 {
					return fmt.Sprintf("ends of RIB after %v announcements, want two, after them", ends)
				}
				return ""
			})
			until(t, soon, func() string {
				if got := s.Peers()[0].Announced; got != 3 {
					return fmt.Sprintf("announced: got %d, want 3", got)
				}
				return ""
			})
		})
	}
}

func TestASpeakerThatLeavesSaysNothing(t *testing.T) {
	needNamespace(t, "198.51.100.254")
	router := &tap{address: netip.MustParseAddr("198.51.100.254"), asn: 64500, helper: true}
	router.listen(t)
	cfg := config(peer("198.51.100.254", 64500))
	cfg.RestartTime = 30 * time.Second
	s := start(t, cfg)
	announce(t, s, "203.0.113.10/32")
	const route = "203.0.113.10/32 via 198.51.100.254 as [64512] communities [] large [] local-pref 0"
	router.knows(t, route)
	s.Leave()
	s.end()
	time.Sleep(500 * time.Millisecond)
	router.knows(t, route)
	if said := router.messages(bgp.BGP_MSG_NOTIFICATION); len(said) > 0 {
		t.Errorf("got %v, want nothing", said[0].Body)
	}
	// This process does not end here: the library would go on.
	if err := s.server.StopBgp(context.Background(), &api.StopBgpRequest{}); err != nil {
		t.Error(err)
	}
}
