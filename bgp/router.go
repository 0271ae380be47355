package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/apiutil"
	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"github.com/osrg/gobgp/v3/pkg/server"
)

// RouterConfig is what a Router needs to know.
type RouterConfig struct {
	ASN       uint32
	RouterID  netip.Addr   // IPv4
	Listen    []netip.Addr // addresses to take sessions on, port 179
	Neighbors []Peer       // who may open one; passwords are not supported

	Log *slog.Logger // nil logs nothing
}

// Route is a destination and the next hops that share its traffic, sorted.
type Route struct {
	Prefix   netip.Prefix
	NextHops []netip.Addr
}

// Router takes routes from its neighbours, as the router that a Speaker
// announces VIPs to. It waits for sessions, announces nothing, and leaves the
// forwarding to its caller.
type Router struct {
	cfg      RouterConfig
	log      *slog.Logger
	sessions *sessions
}

// NewRouter checks cfg. It opens nothing: that is Run's.
func NewRouter(cfg RouterConfig) (*Router, error) {
	errs := []error{checkRouter(cfg.ASN, cfg.RouterID), checkPeers(cfg.Neighbors)}
	if len(cfg.Listen) == 0 {
		errs = append(errs, errors.New("no address to listen on"))
	}
	for i, n := range cfg.Neighbors {
		if n.Password != "" {
			// Go's listeners speak MPTCP, which knows no MD5 (mptcp_setsockopt),
			// and GoBGP has no option for another one.
			errs = append(errs, fmt.Errorf("peers[%d] %q: a password is not supported", i, text(n.Address)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	log = log.With("part", "router")
	return &Router{cfg: cfg, log: log, sessions: newSessions(log)}, nil
}

// Run takes sessions until ctx ends, then closes them and returns nil. It
// calls update with the whole set of routes, by prefix, whenever the set has
// changed, at first when it is no longer empty. The next hops of a route are
// those of all paths to it, whatever their attributes; only paths that are
// being shut down (RFC 8326) count for nothing while there are others.
//
// The library opens its sockets on threads of its own choosing: a process that
// is to listen in some network namespace has to be in it as a whole.
func (r *Router) Run(ctx context.Context, update func([]Route)) error {
	fatal := make(chan error, 1)
	srv := server.NewBgpServer(server.LoggerOption(&logger{log: r.log, sessions: r.sessions, fatal: fatal}))
	go srv.Serve() // for the rest of the process: GoBGP has no way to end it

	watching, unwatch := context.WithCancel(context.Background())
	defer unwatch()
	changed := make(chan struct{}, 1)
	err := r.start(ctx, watching, srv, changed)
	if err == nil {
		err = r.follow(ctx, srv, changed, fatal, update)
	}
	for _, n := range r.cfg.Neighbors {
		r.sessions.remove(n.Address, "stopping")
	}
	return errors.Join(err, srv.StopBgp(context.Background(), &api.StopBgpRequest{}))
}

func (r *Router) start(ctx, watching context.Context, srv *server.BgpServer, changed chan<- struct{}) error {
	global := &api.Global{Asn: r.cfg.ASN, RouterId: r.cfg.RouterID.String(), ListenPort: bgp.BGP_PORT}
	for _, a := range r.cfg.Listen {
		global.ListenAddresses = append(global.ListenAddresses, a.String())
	}
	if err := srv.StartBgp(ctx, &api.StartBgpRequest{Global: global}); err != nil {
		return fmt.Errorf("start bgp: %w: port 179 needs CAP_NET_BIND_SERVICE and no other router on these addresses", err)
	}
	if err := exportNothing(ctx, srv); err != nil {
		return err
	}
	watch := &api.WatchEventRequest{
		Peer:  &api.WatchEventRequest_Peer{},
		Table: &api.WatchEventRequest_Table{Filters: []*api.WatchEventRequest_Table_Filter{{Type: api.WatchEventRequest_Table_Filter_ADJIN}}},
	}
	if err := srv.WatchEvent(watching, watch, func(e *api.WatchEventResponse) {
		r.sessions.event(e)
		select {
		case changed <- struct{}{}:
		default: // told already
		}
	}); err != nil {
		return err
	}
	for _, n := range r.cfg.Neighbors {
		r.sessions.add(n)
		n.Passive = true
		peer := apiPeer(n, true, true, graceful{})
		if err := srv.AddPeer(ctx, &api.AddPeerRequest{Peer: peer}); err != nil {
			return fmt.Errorf("add neighbor %v: %w", n.Address, err)
		}
	}
	r.log.Info("listening", "addresses", r.cfg.Listen)
	return nil
}

// follow hands on every change of the routes. An event says only that there
// may be one: GoBGP tells of updates before they are in the RIB and of a lost
// session not at all by its paths, but a question is answered after both.
func (r *Router) follow(ctx context.Context, srv *server.BgpServer, changed <-chan struct{}, fatal <-chan error, update func([]Route)) error {
	var routes []Route
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-fatal:
			return err
		case <-changed:
		}
		now, err := r.routes(ctx, srv)
		if err != nil {
			return fmt.Errorf("read routes: %w", err)
		}
		if ctx.Err() == nil && !slices.EqualFunc(now, routes, Route.equal) {
			routes = now
			update(slices.Clone(routes))
		}
	}
}

func (r Route) equal(other Route) bool {
	return r.Prefix == other.Prefix && slices.Equal(r.NextHops, other.NextHops)
}

func (r *Router) routes(ctx context.Context, srv *server.BgpServer) ([]Route, error) {
	var routes []Route
	for _, family := range []*api.Family{ipv4Unicast(), ipv6Unicast()} {
		list := &api.ListPathRequest{TableType: api.TableType_GLOBAL, Family: family}
		if err := srv.ListPath(ctx, list, func(d *api.Destination) {
			prefix, err := netip.ParsePrefix(d.Prefix)
			if err != nil {
				return
			}
			if hops := nextHops(r.paths(d)); len(hops) > 0 {
				routes = append(routes, Route{Prefix: prefix, NextHops: hops})
			}
		}); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(routes, func(a, b Route) int { return a.Prefix.Compare(b.Prefix) })
	return routes, nil
}

// path is what counts of a path here.
type path struct {
	nextHop  netip.Addr
	shutdown bool // carries GRACEFUL_SHUTDOWN
}

func (r *Router) paths(d *api.Destination) []path {
	var paths []path
	for _, p := range d.Paths {
		attrs, err := apiutil.GetNativePathAttributes(p)
		if err != nil {
			r.log.Warn("path ignored", "prefix", d.Prefix, "peer", p.NeighborIp, "err", err)
			continue
		}
		var is path
		for _, a := range attrs {
			switch a := a.(type) {
			case *bgp.PathAttributeNextHop:
				is.nextHop, _ = netip.AddrFromSlice(a.Value)
			case *bgp.PathAttributeMpReachNLRI:
				is.nextHop, _ = netip.AddrFromSlice(a.Nexthop)
			case *bgp.PathAttributeCommunities:
				is.shutdown = slices.Contains(a.Value, uint32(bgp.COMMUNITY_PLANNED_SHUT))
			}
		}
		if is.nextHop.Is4In6() && netip.MustParsePrefix(d.Prefix).Addr().Is6() {
			// The kernel would refuse the whole route for it.
			r.log.Warn("path ignored: its next hop is an IPv4-mapped address", "prefix", d.Prefix, "peer", p.NeighborIp)
			continue
		}
		is.nextHop = is.nextHop.Unmap()
		paths = append(paths, is)
	}
	return paths
}

// nextHops gives the next hops of paths that share the traffic.
func nextHops(paths []path) []netip.Addr {
	var serving, leaving []netip.Addr
	for _, p := range paths {
		switch {
		case !p.nextHop.IsValid() || p.nextHop.IsUnspecified():
		case p.shutdown:
			leaving = append(leaving, p.nextHop)
		default:
			serving = append(serving, p.nextHop)
		}
	}
	if len(serving) == 0 {
		serving = leaving
	}
	slices.SortFunc(serving, netip.Addr.Compare)
	return slices.Compact(serving)
}
