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
	vips      map[netip.Prefix]bool // the whole wanted announcement
	announced map[netip.Prefix]bool // what the server has of it
	told      bool                  // that some VIPs do not go to some peers
}

// PeerStatus is how the session with one peer stands.
type PeerStatus struct {
	Peer  netip.Addr
	ASN   uint32
	State string    // idle, connect, active, opensent, openconfirm or established
	Since time.Time // when the session last came up or went down; or the peer was added
	// Announced is the number of VIPs that the peer has been sent.
	Announced int
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
		peers:     slices.Clone(cfg.Peers),
		vips:      make(map[netip.Prefix]bool),
		announced: make(map[netip.Prefix]bool),
	}
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(collector{s}); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return s, nil
}

// Run speaks BGP until ctx ends, then withdraws everything, closes the
// sessions and returns nil. What Announce has been given before is in place
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
	if err := srv.StartBgp(ctx, &api.StartBgpRequest{Global: global}); err != nil {
		return fmt.Errorf("start bgp: %w", err)
	}
	if err := importNothing(ctx, srv); err != nil {
		return err
	}
	if err := exportNextHops(ctx, srv, s.cfg.NextHop4, s.cfg.NextHop6); err != nil {
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
		if err := s.addPeer(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// stopTimeout bounds the wait for peers that do not take our last messages.
const stopTimeout = time.Second

// stop withdraws everything and closes the sessions of srv.
func (s *Speaker) stop(srv *server.BgpServer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server != srv {
		return nil // start failed early
	}
	ctx := context.Background() // Run's has ended
	for _, p := range s.peers {
		s.sessions.remove(p.Address, "stopping")
	}
	err := srv.DeletePath(ctx, &api.DeletePathRequest{TableType: api.TableType_GLOBAL})
	for _, vip := range sorted(s.announced) {
		s.log.Info("withdrawn", "vip", vip)
	}
	clear(s.announced)
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

// Announce makes vips the whole announcement: what is new is announced, what
// is missing is withdrawn. Calling it again with the same set does nothing.
// While Run does not run, it takes effect when Run starts. After an error, the
// next call does what is left to do.
func (s *Speaker) Announce(ctx context.Context, vips []netip.Prefix) error {
	wanted := make(map[netip.Prefix]bool, len(vips))
	for _, vip := range vips {
		if !vip.IsValid() || vip != vip.Masked() || vip.Addr().Is4In6() {
			return fmt.Errorf("announce %v: not an IPv4 or IPv6 prefix", vip)
		}
		wanted[vip] = true
	}
	if err := ctx.Err(); err != nil {
		return err // GoBGP does not look at it
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.vips = wanted
	s.warnUnreachable()
	return s.reconcile(ctx)
}

// reconcile makes the server's routes those that are wanted. Withdrawals go
// first and whatever happens: a route that should be gone draws traffic that
// nobody serves.
func (s *Speaker) reconcile(ctx context.Context) error {
	if s.server == nil {
		return nil
	}
	var errs []error
	for _, vip := range sorted(s.announced) {
		if s.vips[vip] {
			continue
		}
		if err := s.deletePath(ctx, vip); err != nil {
			errs = append(errs, fmt.Errorf("withdraw %v: %w", vip, err))
			continue
		}
		delete(s.announced, vip)
		s.log.Info("withdrawn", "vip", vip)
	}
	for _, vip := range sorted(s.vips) {
		if s.announced[vip] {
			continue
		}
		if err := s.addPath(ctx, vip); err != nil {
			errs = append(errs, fmt.Errorf("announce %v: %w", vip, err))
			continue
		}
		s.announced[vip] = true
		s.log.Info("announced", "vip", vip)
	}
	return errors.Join(errs...)
}

func (s *Speaker) addPath(ctx context.Context, vip netip.Prefix) error {
	path, err := apiPath(vip, s.cfg.Communities)
	if err != nil {
		return err
	}
	_, err = s.server.AddPath(ctx, &api.AddPathRequest{TableType: api.TableType_GLOBAL, Path: path})
	return err
}

func (s *Speaker) deletePath(ctx context.Context, vip netip.Prefix) error {
	path, err := apiPath(vip, nil)
	if err != nil {
		return err
	}
	return s.server.DeletePath(ctx, &api.DeletePathRequest{TableType: api.TableType_GLOBAL, Path: path})
}

// warnUnreachable tells once of VIPs that some sessions cannot carry.
func (s *Speaker) warnUnreachable() {
	if s.told {
		return
	}
	for _, p := range s.peers {
		v4, v6 := s.cfg.families(p)
		for _, vip := range sorted(s.vips) {
			if vip.Addr().Is4() && !v4 || vip.Addr().Is6() && !v6 {
				s.told = true
				s.log.Warn("vip is not announced to a peer of the other family: no next hop of the vip's family is configured", "vip", vip, "peer", p.Address)
				return
			}
		}
	}
}

// SetPeers makes peers the whole set. Sessions with peers that are the same
// as before stay as they are; one whose settings change is opened anew. A set
// with an error changes nothing.
func (s *Speaker) SetPeers(ctx context.Context, peers []Peer) error {
	if err := checkPeers(peers); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server == nil {
		s.peers = slices.Clone(peers)
		s.warnUnreachable()
		return nil
	}
	for _, p := range slices.Clone(s.peers) {
		if slices.Contains(peers, p) {
			continue
		}
		if err := s.deletePeer(ctx, p); err != nil {
			return err
		}
	}
	for _, p := range peers {
		if slices.Contains(s.peers, p) {
			continue
		}
		if err := s.addPeer(ctx, p); err != nil {
			return err
		}
		s.peers = append(s.peers, p)
	}
	s.peers = slices.Clone(peers) // in the order given
	s.warnUnreachable()
	return nil
}

func (s *Speaker) addPeer(ctx context.Context, p Peer) error {
	v4, v6 := s.cfg.families(p)
	s.sessions.add(p.Address)
	if err := s.server.AddPeer(ctx, &api.AddPeerRequest{Peer: apiPeer(p, v4, v6)}); err != nil {
		s.sessions.remove(p.Address, "not added")
		return fmt.Errorf("add peer %v: %w", p.Address, err)
	}
	return nil
}

func (s *Speaker) deletePeer(ctx context.Context, p Peer) error {
	s.sessions.remove(p.Address, "configuration changed")
	if err := s.server.DeletePeer(ctx, &api.DeletePeerRequest{Address: p.Address.String()}); err != nil {
		return fmt.Errorf("remove peer %v: %w", p.Address, err)
	}
	s.peers = slices.DeleteFunc(s.peers, func(q Peer) bool { return q == p })
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
		}
	}
	return status
}

func sorted(vips map[netip.Prefix]bool) []netip.Prefix {
	return slices.SortedFunc(maps.Keys(vips), netip.Prefix.Compare)
}
