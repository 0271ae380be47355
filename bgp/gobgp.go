package bgp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/apiutil"
	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"github.com/osrg/gobgp/v3/pkg/server"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/halfproxy/halfproxy/lb"
)

// This file says in GoBGP's words what the others say in ours.

func ipv4Unicast() *api.Family {
	return &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST}
}
func ipv6Unicast() *api.Family {
	return &api.Family{Afi: api.Family_AFI_IP6, Safi: api.Family_SAFI_UNICAST}
}

// graceful is what a peer is told of restarts.
type graceful struct {
	time       time.Duration // 0: nothing
	restarting bool
}

func apiPeer(p Peer, v4, v6 bool, g graceful) *api.Peer {
	seconds := func(d time.Duration) uint64 { return uint64(d / time.Second) }
	keepalive, retry := cmp.Or(p.KeepaliveTime, max(p.HoldTime/3, time.Second)), cmp.Or(p.ConnectRetryTime, time.Second)
	peer := &api.Peer{
		Conf: &api.PeerConf{NeighborAddress: p.Address.String(), PeerAsn: p.ASN, AuthPassword: p.Password},
		// GoBGP's own are 90/30/120/30 s. The last counts after a reset alone:
		// after a session is lost, v3 waits 5 s before it tries again.
		Timers: &api.Timers{Config: &api.TimersConfig{
			HoldTime: seconds(p.HoldTime), KeepaliveInterval: seconds(keepalive),
			ConnectRetry: seconds(retry), IdleHoldTimeAfterReset: 1,
		}},
		Transport: &api.Transport{PassiveMode: p.Passive},
	}
	if p.LocalAddress.IsValid() {
		peer.Transport.LocalAddress = p.LocalAddress.String()
	}
	if p.TTLSecurity {
		peer.TtlSecurity = &api.TtlSecurity{Enabled: true, TtlMin: 255}
	}
	if p.Multihop != 0 {
		peer.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: uint32(p.Multihop)}
	}
	for _, f := range []struct {
		family *api.Family
		on     bool
	}{{ipv4Unicast(), v4}, {ipv6Unicast(), v6}} {
		if f.on {
			peer.AfiSafis = append(peer.AfiSafis, &api.AfiSafi{
				Config:            &api.AfiSafiConfig{Family: f.family, Enabled: true},
				MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: g.time > 0}},
			})
		}
	}
	if g.time > 0 {
		// We select no routes, so there is nothing to defer: ours are sent at once.
		peer.GracefulRestart = &api.GracefulRestart{
			Enabled: true, RestartTime: uint32(seconds(g.time)), LocalRestarting: g.restarting, DeferralTime: 0,
		}
	}
	return peer
}

// event takes the state of a session from what GoBGP tells of it. By an event of no type
// it tells that the session of a removed peer has ended: that may be after the peer was
// added anew.
func (s *sessions) event(e *api.WatchEventResponse) {
	if e.GetPeer().GetType() == api.WatchEventResponse_PeerEvent_UNKNOWN {
		return
	}
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

// prefixesFrom counts what a peer has sent and not withdrawn, of the family with more.
func prefixesFrom(s *server.BgpServer, peer netip.Addr) (most int) {
	_ = s.ListPeer(context.Background(), &api.ListPeerRequest{Address: peer.String()}, func(p *api.Peer) {
		for _, family := range p.GetAfiSafis() {
			most = max(most, int(family.GetState().GetReceived()))
		}
	})
	return most
}

// restarts says whether both sides of a session know of graceful restart.
func restarts(p *api.Peer) bool {
	known := func(c *anypb.Any) bool { return c.MessageIs((*api.GracefulRestartCapability)(nil)) }
	return slices.ContainsFunc(p.GetState().GetLocalCap(), known) && slices.ContainsFunc(p.GetState().GetRemoteCap(), known)
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
			if restarts(p) {
				counts[peer]-- // the end of RIB
			}
		}
	})
	return counts
}

// Marks are large communities by which the export policy knows what to do with a
// route, and which it takes off: an AS number that nobody can have (RFC 7300), what
// is to be done, and a number. They are on the route, not in the policy, because
// GoBGP withdraws a route from a peer that is not to have it any more when the route
// changes, and not when the policy does.
const (
	markASN = 1<<32 - 1

	markRefuse  = 0 // the peer of that number is not sent it
	markPrepend = 1 // that many times, to peers of other ASes
)

// apiPath is a route with an unspecified next hop, which GoBGP replaces with the
// local address of each session.
func (s *Speaker) apiPath(r lb.Route) (*api.Path, error) {
	vip := r.Prefix
	attrs := []bgp.PathAttributeInterface{bgp.NewPathAttributeOrigin(bgp.BGP_ORIGIN_ATTR_TYPE_IGP)}
	var nlri bgp.AddrPrefixInterface
	if vip.Addr().Is4() {
		nlri = bgp.NewIPAddrPrefix(uint8(vip.Bits()), vip.Addr().String())
		attrs = append(attrs, bgp.NewPathAttributeNextHop("0.0.0.0"))
	} else {
		nlri = bgp.NewIPv6AddrPrefix(uint8(vip.Bits()), vip.Addr().String())
		attrs = append(attrs, bgp.NewPathAttributeMpReachNLRI("::", []bgp.AddrPrefixInterface{nlri}))
	}
	if r.MED != nil {
		attrs = append(attrs, bgp.NewPathAttributeMultiExitDisc(*r.MED))
	}
	localPref := r.LocalPref
	if r.Shutdown {
		localPref = new(uint32) // RFC 8326, section 4
	}
	if localPref != nil {
		attrs = append(attrs, bgp.NewPathAttributeLocalPref(*localPref))
	}
	communities := slices.Clone(r.Communities)
	if r.Shutdown && !slices.Contains(communities, lb.GracefulShutdown) {
		communities = append(communities, lb.GracefulShutdown)
	}
	for _, p := range s.peers {
		if !r.IsFor(p.Address) {
			communities = append(communities, mark(markRefuse, s.numbers[p.Address]))
		}
	}
	if r.Prepend > 0 {
		communities = append(communities, mark(markPrepend, uint32(r.Prepend)))
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

// importPolicy takes our own routes into the RIB and no others. The global
// import policy filters what AddPath adds, too: rejecting everything would
// announce nothing, without an error.
func importPolicy() *api.Policy {
	return &api.Policy{Name: "halfproxy-import", Statements: []*api.Statement{{
		Name:       "local",
		Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL},
		Actions:    &api.Actions{RouteAction: api.RouteAction_ACCEPT},
	}}}
}

// exportPolicy makes of routes what each peer is sent. A statement without a route
// action changes a route and passes it on to the next one.
type exportPolicy struct {
	sets       []*api.DefinedSet
	statements []*api.Statement
}

func (x *exportPolicy) add(name string, c *api.Conditions, a *api.Actions) {
	x.statements = append(x.statements, &api.Statement{Name: name, Conditions: c, Actions: a})
}

func (x *exportPolicy) set(kind api.DefinedType, name string, list ...string) *api.MatchSet {
	x.sets = append(x.sets, &api.DefinedSet{DefinedType: kind, Name: name, List: list})
	return &api.MatchSet{Type: api.MatchSet_ANY, Name: name}
}

// mark is what tells the export policy something of a route, and goes no further.
func mark(what, number uint32) lb.Community {
	return lb.Community{Large: true, A: markASN, B: what, C: number}
}

// communityAction is one with a list of communities; with an empty one none.
func communityAction(kind api.CommunityAction_Type, list []string) *api.CommunityAction {
	if len(list) == 0 {
		return nil
	}
	return &api.CommunityAction{Type: kind, Communities: list}
}

// policy is the export policy for the peers that there are.
func (s *Speaker) policy() *exportPolicy {
	x := &exportPolicy{}
	none := x.set(api.DefinedType_COMMUNITY, "shutdown", lb.GracefulShutdown.String())
	none.Type = api.MatchSet_INVERT

	neighbors := make([]*api.MatchSet, len(s.peers))
	var external []string
	for i, p := range s.peers {
		neighbors[i] = x.set(api.DefinedType_NEIGHBOR, p.Address.String(), p.Address.String())
		if p.ASN != s.cfg.ASN {
			external = append(external, p.Address.String())
		}
		number := s.numbers[p.Address]
		refused := x.set(api.DefinedType_LARGE_COMMUNITY, fmt.Sprint("refuse ", number), mark(markRefuse, number).String())
		x.add("refuse "+p.Address.String(), &api.Conditions{NeighborSet: neighbors[i], LargeCommunitySet: refused},
			&api.Actions{RouteAction: api.RouteAction_REJECT})
	}
	prepend := func(times int) *api.AsPrependAction {
		return &api.AsPrependAction{Asn: s.cfg.ASN, Repeat: uint32(times)}
	}
	if len(external) > 0 {
		neighbors := x.set(api.DefinedType_NEIGHBOR, "external", external...)
		for times := 1; times <= maxPrepend; times++ {
			marked := x.set(api.DefinedType_LARGE_COMMUNITY, fmt.Sprint("prepend ", times), mark(markPrepend, uint32(times)).String())
			x.add(fmt.Sprint("prepend ", times), &api.Conditions{NeighborSet: neighbors, LargeCommunitySet: marked},
				&api.Actions{AsPrepend: prepend(times)})
		}
	}
	for i, p := range s.peers {
		// What is there twice goes once, before it comes; and the list that GoBGP adds
		// to has to be a new one, as it may be another peer's, too (v3.37).
		var standard, large []string
		for _, c := range p.Attributes.Communities {
			if c.Large {
				large = append(large, c.String())
			} else {
				standard = append(standard, c.String())
			}
		}
		marks := fmt.Sprintf("^%d:", uint32(markASN))
		remove := &api.Actions{
			Community:      communityAction(api.CommunityAction_REMOVE, standard),
			LargeCommunity: communityAction(api.CommunityAction_REMOVE, append([]string{marks}, large...)),
		}
		actions := &api.Actions{
			Community:      communityAction(api.CommunityAction_ADD, standard),
			LargeCommunity: communityAction(api.CommunityAction_ADD, large),
		}
		x.add("strip "+p.Address.String(), &api.Conditions{NeighborSet: neighbors[i]}, remove)
		if p.Attributes.MED != nil {
			actions.Med = &api.MedAction{Type: api.MedAction_REPLACE, Value: int64(*p.Attributes.MED)}
		}
		if p.Attributes.Prepend > 0 && p.ASN != s.cfg.ASN {
			actions.AsPrepend = prepend(p.Attributes.Prepend)
		}
		x.add("attributes "+p.Address.String(), &api.Conditions{NeighborSet: neighbors[i]}, actions)
		if pref := p.Attributes.LocalPref; pref != nil && p.ASN == s.cfg.ASN {
			x.add("preference "+p.Address.String(), &api.Conditions{NeighborSet: neighbors[i], CommunitySet: none},
				&api.Actions{LocalPref: &api.LocalPrefAction{Value: *pref}})
		}
		hops, _, _ := s.cfg.nextHops(p)
		for _, h := range []struct {
			family  *api.Family
			address netip.Addr
		}{{ipv4Unicast(), hops.V4}, {ipv6Unicast(), hops.V6}} {
			if h.address.IsValid() {
				x.add(fmt.Sprint("next hop ", h.family.Afi, " ", p.Address),
					&api.Conditions{NeighborSet: neighbors[i], AfiSafiIn: []*api.Family{h.family}},
					&api.Actions{Nexthop: &api.NexthopAction{Address: h.address.String()}})
			}
		}
	}
	return x
}

// setPolicies makes import and export policy those of the peers that there are.
// What sessions have been sent stays as it is.
func (s *Speaker) setPolicies(ctx context.Context, srv *server.BgpServer) error {
	x := s.policy()
	export := &api.Policy{Name: "halfproxy-export", Statements: x.statements}
	set := &api.SetPoliciesRequest{DefinedSets: x.sets, Policies: []*api.Policy{importPolicy(), export}}
	if err := srv.SetPolicies(ctx, set); err != nil {
		return fmt.Errorf("set policies: %w", err)
	}
	return nil
}

// assignPolicies puts the policies that setPolicies set to use, for good.
func assignPolicies(ctx context.Context, s *server.BgpServer) error {
	return errors.Join(
		assign(ctx, s, api.PolicyDirection_IMPORT, api.RouteAction_REJECT, "halfproxy-import"),
		assign(ctx, s, api.PolicyDirection_EXPORT, api.RouteAction_ACCEPT, "halfproxy-export"))
}

// exportNothing keeps a Router from passing on what it hears.
func exportNothing(ctx context.Context, s *server.BgpServer) error {
	return assign(ctx, s, api.PolicyDirection_EXPORT, api.RouteAction_REJECT)
}

func assign(ctx context.Context, s *server.BgpServer, d api.PolicyDirection, otherwise api.RouteAction, policies ...string) error {
	assignment := &api.PolicyAssignment{Name: "global", Direction: d, DefaultAction: otherwise}
	for _, name := range policies {
		assignment.Policies = append(assignment.Policies, &api.Policy{Name: name})
	}
	if err := s.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: assignment}); err != nil {
		return fmt.Errorf("assign %v policy: %w", d, err)
	}
	return nil
}
