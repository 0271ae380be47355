package bgp

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/apiutil"
	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"github.com/osrg/gobgp/v3/pkg/server"

	"github.com/halfproxy/halfproxy/lb"
)

// This file says in GoBGP's words what the others say in ours.

func ipv4Unicast() *api.Family {
	return &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST}
}
func ipv6Unicast() *api.Family {
	return &api.Family{Afi: api.Family_AFI_IP6, Safi: api.Family_SAFI_UNICAST}
}

func apiPeer(p Peer, v4, v6 bool) *api.Peer {
	hold := uint64(p.HoldTime / time.Second)
	peer := &api.Peer{
		Conf: &api.PeerConf{NeighborAddress: p.Address.String(), PeerAsn: p.ASN, AuthPassword: p.Password},
		// GoBGP's own are 90/30/120/30 s. The last counts after a reset alone:
		// after a session is lost, v3 waits 5 s before it tries again.
		Timers: &api.Timers{Config: &api.TimersConfig{
			HoldTime: hold, KeepaliveInterval: hold / 3, ConnectRetry: 1, IdleHoldTimeAfterReset: 1,
		}},
	}
	if p.TTLSecurity {
		peer.TtlSecurity = &api.TtlSecurity{Enabled: true, TtlMin: 255}
	}
	for _, f := range []struct {
		family *api.Family
		on     bool
	}{{ipv4Unicast(), v4}, {ipv6Unicast(), v6}} {
		if f.on {
			peer.AfiSafis = append(peer.AfiSafis, &api.AfiSafi{Config: &api.AfiSafiConfig{Family: f.family, Enabled: true}})
		}
	}
	return peer
}

// event takes the state of a session from what GoBGP tells of it.
func (s *sessions) event(e *api.WatchEventResponse) {
	state := e.GetPeer().GetPeer().GetState()
	peer, err := netip.ParseAddr(state.GetNeighborAddress())
	if err != nil {
		return // of another kind
	}
	s.enter(peer, strings.ToLower(state.GetSessionState().String()))
}

func establishedPeers(s *server.BgpServer) (peers []string) {
	// Its only error is a request that is nil.
	_ = s.ListPeer(context.Background(), &api.ListPeerRequest{}, func(p *api.Peer) {
		if p.GetState().GetSessionState() == api.PeerState_ESTABLISHED {
			peers = append(peers, p.GetState().GetNeighborAddress())
		}
	})
	return peers
}

// advertised counts the routes that go to each peer: GoBGP knows what a peer's
// own capabilities leave of them.
func advertised(s *server.BgpServer) map[netip.Addr]int {
	counts := make(map[netip.Addr]int)
	_ = s.ListPeer(context.Background(), &api.ListPeerRequest{EnableAdvertised: true}, func(p *api.Peer) {
		peer, err := netip.ParseAddr(p.GetState().GetNeighborAddress())
		if err != nil {
			return
		}
		for _, family := range p.GetAfiSafis() {
			counts[peer] += int(family.GetState().GetAdvertised())
		}
	})
	return counts
}

// apiPath is vip with an unspecified next hop, which GoBGP replaces with the
// local address of each session.
func apiPath(vip netip.Prefix, communities []lb.Community) (*api.Path, error) {
	attrs := []bgp.PathAttributeInterface{bgp.NewPathAttributeOrigin(bgp.BGP_ORIGIN_ATTR_TYPE_IGP)}
	var nlri bgp.AddrPrefixInterface
	if vip.Addr().Is4() {
		nlri = bgp.NewIPAddrPrefix(uint8(vip.Bits()), vip.Addr().String())
		attrs = append(attrs, bgp.NewPathAttributeNextHop("0.0.0.0"))
	} else {
		nlri = bgp.NewIPv6AddrPrefix(uint8(vip.Bits()), vip.Addr().String())
		attrs = append(attrs, bgp.NewPathAttributeMpReachNLRI("::", []bgp.AddrPrefixInterface{nlri}))
	}
	var standard []uint32
	var large []*bgp.LargeCommunity
	for _, c := range communities {
		if c.Large {
			large = append(large, bgp.NewLargeCommunity(c.A, c.B, c.C))
		} else {
			standard = append(standard, c.A<<16|c.B)
		}
	}
	if len(standard) > 0 {
		attrs = append(attrs, bgp.NewPathAttributeCommunities(standard))
	}
	if len(large) > 0 {
		attrs = append(attrs, bgp.NewPathAttributeLargeCommunities(large))
	}
	return apiutil.NewPath(nlri, false, attrs, time.Now())
}

// importNothing takes our own routes into the RIB and no others. The global
// import policy filters what AddPath adds, too: rejecting everything would
// announce nothing, without an error.
func importNothing(ctx context.Context, s *server.BgpServer) error {
	return assign(ctx, s, api.PolicyDirection_IMPORT, api.RouteAction_REJECT, &api.Statement{
		Name:       "local",
		Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL},
		Actions:    &api.Actions{RouteAction: api.RouteAction_ACCEPT},
	})
}

// exportNextHops puts the explicit next hops on what goes over a session of
// the other family. All else keeps the session's own address.
func exportNextHops(ctx context.Context, s *server.BgpServer, nextHop4, nextHop6 netip.Addr) error {
	var statements []*api.Statement
	for _, n := range []struct {
		name    string
		over    string // sessions with peers in this prefix
		family  *api.Family
		nextHop netip.Addr
	}{
		{"ipv6-over-ipv4", "0.0.0.0/0", ipv6Unicast(), nextHop6},
		{"ipv4-over-ipv6", "::/0", ipv4Unicast(), nextHop4},
	} {
		if !n.nextHop.IsValid() {
			continue
		}
		set := &api.DefinedSet{DefinedType: api.DefinedType_NEIGHBOR, Name: n.name, List: []string{n.over}}
		if err := s.AddDefinedSet(ctx, &api.AddDefinedSetRequest{DefinedSet: set}); err != nil {
			return fmt.Errorf("peers of policy %s: %w", n.name, err)
		}
		statements = append(statements, &api.Statement{
			Name: n.name,
			Conditions: &api.Conditions{
				NeighborSet: &api.MatchSet{Type: api.MatchSet_ANY, Name: n.name},
				AfiSafiIn:   []*api.Family{n.family},
			},
			Actions: &api.Actions{Nexthop: &api.NexthopAction{Address: n.nextHop.String()}},
		})
	}
	return assign(ctx, s, api.PolicyDirection_EXPORT, api.RouteAction_ACCEPT, statements...)
}

// exportNothing keeps a Router from passing on what it hears.
func exportNothing(ctx context.Context, s *server.BgpServer) error {
	return assign(ctx, s, api.PolicyDirection_EXPORT, api.RouteAction_REJECT)
}

func assign(ctx context.Context, s *server.BgpServer, d api.PolicyDirection, otherwise api.RouteAction, statements ...*api.Statement) error {
	assignment := &api.PolicyAssignment{Name: "global", Direction: d, DefaultAction: otherwise}
	if len(statements) > 0 {
		policy := &api.Policy{Name: "halfproxy-" + d.String(), Statements: statements}
		if err := s.AddPolicy(ctx, &api.AddPolicyRequest{Policy: policy}); err != nil {
			return fmt.Errorf("policy %s: %w", policy.Name, err)
		}
		assignment.Policies = []*api.Policy{{Name: policy.Name}}
	}
	if err := s.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: assignment}); err != nil {
		return fmt.Errorf("assign %v policy: %w", d, err)
	}
	return nil
}
