package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/server"

	"github.com/halfproxy/halfproxy/lb"
)

// Speaker announces VIPs to its peers. Its methods may be called from several
// goroutines.
type Speaker struct {
	cfg      Config
	log      *slog.Logger
	sessions *sessions

	mu        sync.Mutex
	server    *server.BgpServer // nil while Run does not run
	peers     []Peer
	numbers   map[netip.Addr]uint32      // of peers that there are or have been, for marks
	routes    map[netip.Prefix]lb.Route  // the whole wanted announcement
	announced map[netip.Prefix]lb.Route  // what the server has of it
	told      bool                       // that some VIPs do not go to some peers
	resumed   bool                       // sessions go on from those of the process before
	opened    map[netip.Addr]terms       // by which the server has peers, or will when they are no longer held
	held      map[netip.Addr]*time.Timer // peers whose sessions wait for Config.Held
	full      map[netip.Addr]*time.Timer // peers whose sessions are closed for fullRetry
	left      bool                       // sessions are for the next process to go on with

	fullRetry time.Duration // after which peers that sent too much are tried again
}

// PeerStatus is how the session with one peer stands.
type PeerStatus struct {
	Peer  netip.Addr
	ASN   uint32
	State string    // idle, connect, active, opensent, openconfirm or established
	Since time.Time // when the session last came up or went down; or the peer was added
	// Announced is the number of VIPs that the peer has been sent.
	Announced int
	// Routes are those that are for the peer, by prefix, while the session is up.
	Routes []lb.Route
	// LastError says in words why the session is not established; empty while
	// it is.
	LastError string
}

// New checks cfg. It opens no connection: that is Run's.
func New(cfg Config) (*Speaker, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	log = log.With("part", "bgp")
	s := &Speaker{
		cfg:       cfg,
		log:       log,
		sessions:  newSessions(log),
		numbers:   make(map[netip.Addr]uint32),
		opened:    make(map[netip.Addr]terms),
		held:      make(map[netip.Addr]*time.Timer),
		full:      make(map[netip.Addr]*time.Timer),
		routes:    make(map[netip.Prefix]lb.Route),
		announced: make(map[netip.Prefix]lb.Route),
		fullRetry: time.Minute,
	}
	s.sessions.up, s.sessions.full = cfg.Up, func(peer netip.Addr) { go s.checkFull(peer) }
	s.sessions.lost = func(peer netip.Addr) { go s.reopen(peer) }
	s.take(cfg.Peers)
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(collector{s}); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return s, nil
}

// Run speaks BGP until ctx ends, then withdraws everything, closes the
// sessions and returns nil; unless Leave was called. What Announce has been given before is in place
// before the first session opens. An error of the library that it takes for
// fatal ends Run as well, and is returned.
//
// The library opens its sockets on threads of its own choosing: a process that
// is to speak from some network namespace has to be in it as a whole.
func (s *Speaker) Run(ctx context.Context) error {
	fatal := make(chan error, 1)
	srv := server.NewBgpServer(server.LoggerOption(&logger{log: s.log, sessions: s.sessions, fatal: fatal}))
	go srv.Serve() // for the rest of the process: GoBGP has no way to end it
	return s.run(ctx, srv, fatal)
}

func (s *Speaker) run(ctx context.Context, srv *server.BgpServer, fatal <-chan error) error {
	watching, unwatch := context.WithCancel(context.Background())
	defer unwatch()
	err := s.start(ctx, watching, srv)
	if err == nil {
		select {
		case <-ctx.Done():
		case err = <-fatal:
		}
	} else if ctx.Err() != nil {
		err = nil // ended while it started
	}
	return errors.Join(err, s.stop(srv))
}

func (s *Speaker) start(ctx, watching context.Context, srv *server.BgpServer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server != nil {
		return errors.New("bgp speaker runs already")
	}
	global := &api.Global{Asn: s.cfg.ASN, RouterId: s.cfg.RouterID.String(), ListenPort: -1}
	if l := s.cfg.Listen; l.IsValid() {
		global.ListenPort, global.ListenAddresses = int32(l.Port()), []string{l.Addr().String()}
		if l.Addr() == netip.IPv6Unspecified() { // by itself that would be IPv6 alone
			global.ListenAddresses = append(global.ListenAddresses, netip.IPv4Unspecified().String())
		}
	}
	if err := srv.StartBgp(ctx, &api.StartBgpRequest{Global: global}); err != nil {
		return fmt.Errorf("start bgp: %w", err)
	}
	if err := s.setPolicies(ctx, srv); err != nil {
		return err
	}
	if err := assignPolicies(ctx, srv); err != nil {
		return err
	}
	watch := &api.WatchEventRequest{Peer: &api.WatchEventRequest_Peer{}}
	if err := srv.WatchEvent(watching, watch, s.sessions.event); err != nil {
		return err
	}
	s.server = srv
	if err := s.reconcile(ctx); err != nil {
		return err
	}
	for _, p := range s.peers {
		if h := s.cfg.Held[p.Address]; h.For > 0 {
			s.hold(p, h)
			continue
		}
		if err := s.addPeer(ctx, p, s.resumed); err != nil {
			return err
		}
	}
	return nil
}

// hold puts off the session with a peer.
func (s *Speaker) hold(p Peer, h Hold) {
	peer := p.Address
	s.opened[peer] = s.terms(p)
	s.sessions.add(p)
	s.sessions.explain(peer, reason{words: h.Reason})
	s.log.Warn("session put off", "peer", peer, "for", h.For, "reason", h.Reason)
	s.held[peer] = time.AfterFunc(h.For, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.held[peer] == nil || s.server == nil {
			return // somebody was faster
		}
		delete(s.held, peer)
		i := slices.IndexFunc(s.peers, func(p Peer) bool { return p.Address == peer })
		if err := s.addPeer(context.Background(), s.peers[i], false); err != nil {
			s.log.Error("session not opened", "peer", peer, "err", err)
		}
	})
}

// forget ends a wait of a peer's, and tells whether there was one.
func forget(waits map[netip.Addr]*time.Timer, peer netip.Addr) bool {
	timer := waits[peer]
	delete(waits, peer)
	if timer != nil {
		timer.Stop() // or it has run out, waits for Speaker.mu, and will find nothing
	}
	return timer != nil
}

// checkFull closes the session with a peer that has sent more prefixes than it may, for
// fullRetry. The library's own limit goes through all of them with every message that
// comes, and never tries again.
func (s *Speaker) checkFull(peer netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, opened := s.opened[peer]
	if !opened || s.server == nil || s.full[peer] != nil || t.PrefixLimit == 0 || prefixesFrom(s.server, peer) <= t.PrefixLimit {
		return
	}
	why := fmt.Sprintf("more than %d prefixes received (prefix_limit), none are wanted: have the router send none; next try in %v", t.PrefixLimit, s.fullRetry)
	if err := s.server.DisablePeer(context.Background(), &api.DisablePeerRequest{Address: peer.String(), Communication: why}); err != nil {
		return // ended
	}
	s.log.Error("peer sends too much, its session is closed", "peer", peer, "prefix_limit", t.PrefixLimit, "after", s.fullRetry, "remedy", "have the router send nothing to this node")
	s.full[peer] = time.AfterFunc(s.fullRetry, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.full[peer] == nil || s.server == nil {
			return // removed in the meantime
		}
		delete(s.full, peer)
		if err := s.server.EnablePeer(context.Background(), &api.EnablePeerRequest{Address: peer.String()}); err != nil {
			s.log.Error("session not opened", "peer", peer, "err", err)
		}
	})
}

// reopen has a lost session tried anew at once. The library would wait for 5 s, and refuse
// a router that is back sooner.
func (s *Speaker) reopen(peer netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, opened := s.opened[peer]
	if !opened || s.server == nil || s.left || s.full[peer] != nil || s.sessions.get(peer).state == established {
		return
	}
	err := s.server.DeletePeer(context.Background(), &api.DeletePeerRequest{Address: peer.String()})
	if err == nil {
		err = s.open(context.Background(), t.Peer, false)
	}
	if err != nil {
		s.log.Error("session not opened", "peer", peer, "err", err)
	}
}

// Resume says that packets were forwarded all the time since the sessions of a process
// before ended: routers that kept its routes are asked to go on doing so until they
// have ours. It is to be called before Run.
func (s *Speaker) Resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resumed = true
}

// Spoken tells whether all peers have heard from us since Run began, where they may keep
// the routes of a process before until then.
func (s *Speaker) Spoken() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	silent := func(p Peer) bool { return !s.sessions.get(p.Address).spoken }
	return !s.resumed || s.cfg.RestartTime == 0 || !slices.ContainsFunc(s.peers, silent)
}

// Leave has the end of Run leave sessions and routes as they are, for the process to
// end without a word to the peers, and for the next one to go on. They keep the routes
// for Config.RestartTime.
func (s *Speaker) Leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = true
}

// stopTimeout bounds the wait for peers that do not take our last messages.
const stopTimeout = time.Second

// stop withdraws everything and closes the sessions of srv.
func (s *Speaker) stop(srv *server.BgpServer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server != srv || s.left {
		return nil // start failed early, or the end of the process is to be the end
	}
	ctx := context.Background() // Run's has ended
	for _, p := range s.peers {
		forget(s.held, p.Address)
		forget(s.full, p.Address)
		s.sessions.remove(p.Address, "stopping")
	}
	err := srv.DeletePath(ctx, &api.DeletePathRequest{TableType: api.TableType_GLOBAL})
	for _, prefix := range sorted(s.announced) {
		s.log.Info("withdrawn", called(s.announced[prefix]))
	}
	clear(s.announced)
	clear(s.opened)
	s.server = nil
	// A shutdown queues behind the withdrawals, which StopBgp would overtake.
	// One for all peers is a single message that they race for (v3.37).
	for _, peer := range establishedPeers(srv) {
		shutdown := &api.ShutdownPeerRequest{Address: peer, Communication: "halfproxy stops"}
		err = errors.Join(err, srv.ShutdownPeer(ctx, shutdown))
	}
	for deadline := time.Now().Add(stopTimeout); len(establishedPeers(srv)) > 0 && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	return errors.Join(err, srv.StopBgp(ctx, &api.StopBgpRequest{}))
}

// take makes peers those that there are, and numbers those that are new.
func (s *Speaker) take(peers []Peer) {
	s.peers = slices.Clone(peers)
	for _, p := range peers {
		if _, known := s.numbers[p.Address]; !known {
			s.numbers[p.Address] = uint32(len(s.numbers))
		}
	}
}

// Announce makes routes the whole announcement: what is new is announced, what
// is missing is withdrawn, what changed is announced as it is now. Calling it again
// with the same routes does nothing. While Run does not run, it takes effect when
// Run starts. After an error, the next call does what is left to do.
func (s *Speaker) Announce(ctx context.Context, routes []lb.Route) error {
	wanted := make(map[netip.Prefix]lb.Route, len(routes))
	for _, r := range routes {
		if p := r.Prefix; !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
			return fmt.Errorf("announce %v: not an IPv4 or IPv6 prefix", p)
		}
		if err := checkAttributes(r.Attributes); err != nil {
			return fmt.Errorf("announce %v: %w", r.Prefix, err)
		}
		wanted[r.Prefix] = r
	}
	if err := ctx.Err(); err != nil {
		return err // GoBGP does not look at it
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.routes = wanted
	s.warnUnreachable()
	return s.reconcile(ctx)
}

// reconcile makes the server's routes those that are wanted. Withdrawals go
// first and whatever happens: a route that should be gone draws traffic that
// nobody serves. But an aggregate whose VIPs go on alone stays until peers have
// heard of those.
func (s *Speaker) reconcile(ctx context.Context) error {
	if s.server == nil {
		return nil
	}
	var errs []error
	withdraw := func(replaced bool) {
		for _, prefix := range sorted(s.announced) {
			r := s.announced[prefix]
			if _, wanted := s.routes[prefix]; wanted || !replaced && s.replaced(r) {
				continue
			}
			if err := s.deletePath(ctx, prefix); err != nil {
				errs = append(errs, fmt.Errorf("withdraw %v: %w", prefix, err))
				continue
			}
			delete(s.announced, prefix)
			s.log.Info("withdrawn", called(r))
		}
	}
	withdraw(false)
	for _, prefix := range sorted(s.routes) { // an aggregate before what lies in it
		wanted := s.routes[prefix]
		has, again := s.announced[prefix]
		if again && has.Equal(wanted) {
			continue
		}
		if err := s.addPath(ctx, wanted); err != nil {
			errs = append(errs, fmt.Errorf("announce %v: %w", prefix, err))
			continue
		}
		s.announced[prefix] = wanted
		switch {
		case !again:
			s.log.Info("announced", called(wanted))
		case wanted.Shutdown && !has.Shutdown:
			s.log.Info("announced as going away", called(wanted))
		default:
			s.log.Info("announced with other attributes", called(wanted))
		}
	}
	withdraw(true)
	return errors.Join(errs...)
}

// replaced tells whether r is an aggregate with VIPs in it that are to be announced.
func (s *Speaker) replaced(r lb.Route) bool {
	return slices.ContainsFunc(slices.Collect(maps.Keys(s.routes)), r.IsAround)
}

// called is a route as the log calls it.
func called(r lb.Route) slog.Attr {
	if r.Aggregate {
		return slog.Any("aggregate", r.Prefix)
	}
	return slog.Any("vip", r.Prefix)
}

func (s *Speaker) addPath(ctx context.Context, r lb.Route) error {
	path, err := s.apiPath(r)
	if err != nil {
		return err
	}
	_, err = s.server.AddPath(ctx, &api.AddPathRequest{TableType: api.TableType_GLOBAL, Path: path})
	return err
}

func (s *Speaker) deletePath(ctx context.Context, vip netip.Prefix) error {
	path, err := s.apiPath(lb.Route{Prefix: vip})
	if err != nil {
		return err
	}
	return s.server.DeletePath(ctx, &api.DeletePathRequest{TableType: api.TableType_GLOBAL, Path: path})
}

// mark gives the routes that go to some peers only the marks of those that there
// are now.
func (s *Speaker) mark(ctx context.Context) error {
	for _, vip := range sorted(s.announced) {
		if r := s.announced[vip]; len(r.Peers)+len(r.Suppressed) > 0 {
			if err := s.addPath(ctx, r); err != nil {
				return fmt.Errorf("announce %v: %w", vip, err)
			}
		}
	}
	return nil
}

// warnUnreachable tells once of VIPs that some sessions cannot carry.
func (s *Speaker) warnUnreachable() {
	if s.told {
		return
	}
	for _, p := range s.peers {
		_, v4, v6 := s.cfg.nextHops(p)
		for _, vip := range sorted(s.routes) {
			if vip.Addr().Is4() && (v4 || p.No4) || vip.Addr().Is6() && (v6 || p.No6) || !s.routes[vip].IsFor(p.Address) {
				continue
			}
			s.told = true
			s.log.Warn("vip is not announced to a peer of the other family: no next hop of the vip's family is configured", "vip", vip, "peer", p.Address)
			return
		}
	}
}

// SetPeers makes peers the whole set. Sessions with peers that are the same
// as before stay as they are, those whose attributes or next hops changed are sent
// the routes anew, and one whose other settings change is opened anew. A set with
// an error changes nothing.
func (s *Speaker) SetPeers(ctx context.Context, peers []Peer) error {
	if err := s.cfg.checkPeers(peers); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.change(ctx, peers, s.cfg.NextHops)
}

// SetNextHops changes Config.NextHops, as the addresses of the node change. A session
// stays up unless VIPs of a family can go over it now that could not before, or the
// other way round.
func (s *Speaker) SetNextHops(ctx context.Context, hops NextHops) error {
	if err := hops.validate(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if hops != s.cfg.NextHops {
		s.log.Info("next hops changed", "ipv4", text(hops.V4), "ipv6", text(hops.V6))
	}
	return s.change(ctx, s.peers, hops)
}

// terms are by what a session was opened, and routes were sent in it.
type terms struct {
	Peer
	hops   NextHops
	v4, v6 bool
}

func (s *Speaker) terms(p Peer) terms {
	hops, v4, v6 := s.cfg.nextHops(p)
	return terms{p, hops, v4, v6}
}

// sameSession tells whether what differs between t and u takes no new session.
func (t terms) sameSession(u terms) bool {
	return t.Peer.sameSession(u.Peer) && t.v4 == u.v4 && t.v6 == u.v6
}

// sameRoutes tells whether routes are sent alike by t and u.
func (t terms) sameRoutes(u terms) bool {
	return t.hops == u.hops && t.Attributes.Equal(u.Attributes)
}

// change is SetPeers and SetNextHops at once. What it cannot do for one peer it does
// for the others, and the next call does what is left to do.
func (s *Speaker) change(ctx context.Context, peers []Peer, hops NextHops) error {
	s.cfg.NextHops = hops
	s.take(peers)
	s.warnUnreachable()
	if s.server == nil {
		return nil
	}
	var errs []error
	for _, had := range slices.Collect(maps.Values(s.opened)) {
		i := slices.IndexFunc(peers, func(p Peer) bool { return p.Address == had.Address })
		// One that is closed for another limit is tried with this one.
		if i < 0 || !had.sameSession(s.terms(peers[i])) || s.full[had.Address] != nil && had.PrefixLimit != peers[i].PrefixLimit {
			errs = append(errs, s.deletePeer(ctx, had.Address))
		}
	}
	if err := s.setPolicies(ctx, s.server); err != nil {
		return errors.Join(append(errs, err)...)
	}
	isNew := func(p Peer) bool { _, opened := s.opened[p.Address]; return !opened }
	if slices.ContainsFunc(peers, isNew) {
		if err := s.mark(ctx); err != nil { // or it would be sent what is not for it
			return errors.Join(append(errs, err)...)
		}
	}
	for _, p := range peers {
		had, has := s.opened[p.Address], s.terms(p)
		switch {
		case isNew(p):
			errs = append(errs, s.addPeer(ctx, p, false)) // it has no routes of ours
		case had.sameSession(has):
			errs = append(errs, s.resend(ctx, had, has))
		}
	}
	return errors.Join(errs...)
}

// resend sends a peer its routes anew where they are others by what it has now.
func (s *Speaker) resend(ctx context.Context, had, has terms) error {
	peer := has.Address
	if s.held[peer] == nil && !had.sameRoutes(has) {
		reset := &api.ResetPeerRequest{Address: peer.String(), Soft: true, Direction: api.ResetPeerRequest_OUT}
		if err := s.server.ResetPeer(ctx, reset); err != nil {
			return fmt.Errorf("send the routes to %v anew: %w", peer, err)
		}
	}
	s.opened[peer] = has
	if had.PrefixLimit != has.PrefixLimit {
		s.sessions.limit(peer, has.PrefixLimit)
		go s.checkFull(peer)
	}
	return nil
}

func (s *Speaker) addPeer(ctx context.Context, p Peer, restarting bool) error {
	s.sessions.add(p)
	return s.open(ctx, p, restarting)
}

func (s *Speaker) open(ctx context.Context, p Peer, restarting bool) error {
	t := s.terms(p)
	if err := s.server.AddPeer(ctx, &api.AddPeerRequest{Peer: apiPeer(p, t.v4, t.v6, graceful{s.cfg.RestartTime, restarting})}); err != nil {
		s.sessions.remove(p.Address, "not added")
		delete(s.opened, p.Address)
		return fmt.Errorf("add peer %v: %w", p.Address, err)
	}
	s.opened[p.Address] = t
	return nil
}

func (s *Speaker) deletePeer(ctx context.Context, peer netip.Addr) error {
	s.sessions.remove(peer, "configuration changed")
	forget(s.full, peer)
	if !forget(s.held, peer) {
		if err := s.server.DeletePeer(ctx, &api.DeletePeerRequest{Address: peer.String()}); err != nil {
			return fmt.Errorf("remove peer %v: %w", peer, err)
		}
	}
	delete(s.opened, peer)
	return nil
}

// Reset closes the session with a peer, if it is up, because something else knows
// that the peer cannot be reached; the session is tried anew as after any end.
func (s *Speaker) Reset(ctx context.Context, peer netip.Addr, why string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server == nil || s.sessions.get(peer).state != established {
		return nil
	}
	if err := s.server.ResetPeer(ctx, &api.ResetPeerRequest{Address: peer.String(), Communication: why}); err != nil {
		return fmt.Errorf("reset the session with %v: %w", peer, err)
	}
	return nil
}

func (s *Speaker) configured() []Peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.peers)
}

// Peers tells how the sessions stand, in the order of the configuration.
func (s *Speaker) Peers() []PeerStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	var sent map[netip.Addr]int
	if s.server != nil {
		sent = advertised(s.server)
	}
	status := make([]PeerStatus, len(s.peers))
	for i, p := range s.peers {
		session := s.sessions.get(p.Address)
		status[i] = PeerStatus{
			Peer: p.Address, ASN: p.ASN,
			State: session.state, Since: session.since, LastError: session.reason,
		}
		if session.state == established {
			status[i].Announced = sent[p.Address]
			status[i].Routes = s.routesFor(p)
		}
	}
	return status
}

// routesFor gives the announced routes that are for a peer and that its session can carry.
func (s *Speaker) routesFor(p Peer) []lb.Route {
	_, v4, v6 := s.cfg.nextHops(p)
	var list []lb.Route
	for _, prefix := range sorted(s.announced) {
		r, carried := s.announced[prefix], v6
		if prefix.Addr().Is4() {
			carried = v4
		}
		if carried && r.IsFor(p.Address) {
			list = append(list, r)
		}
	}
	return list
}

func sorted(routes map[netip.Prefix]lb.Route) []netip.Prefix {
	return slices.SortedFunc(maps.Keys(routes), netip.Prefix.Compare)
}
