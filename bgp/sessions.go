package bgp

import (
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

// The states of a session (RFC 4271, section 8.2.2) as PeerStatus has them.
const (
	idle        = "idle"
	established = "established"
)

// sessions holds what is known of each peer's session. GoBGP tells of states
// by events and of reasons by its log alone; the log line comes first.
//
// Its methods never call GoBGP: the log lines arrive with GoBGP's locks held.
type sessions struct {
	log *slog.Logger
	up  func(peer netip.Addr) // hears of sessions before anything is read in them; may be nil
	// lost is called when a session that had lasted is lost, and soon after that each time
	// that it does not come up again; may be nil.
	lost func(peer netip.Addr)
	// full is called when a peer may have sent more prefixes than its limit; not nil where
	// there are limits.
	full func(peer netip.Addr)

	lasting time.Duration // what a session has to be up for to have lasted

	mu    sync.Mutex
	peers map[netip.Addr]*session
}

// recovery is how long one who lost a session may take to be back.
const recovery = 10 * time.Second

type session struct {
	state  string
	since  time.Time // of the last change to or from established
	lasted bool      // the last time that it was established
	spoken bool      // it was established once
	// reason is why the session was not established last, in words. explained
	// says that it stems from the attempt that is ending, and in its own words:
	// what is said of the attempt in general is of no use then. Both follow the
	// log, not the state: its next line may be there before the event.
	reason    string
	explained bool

	limit    int // of prefixes; 0: none
	received int // prefixes, some perhaps more than once, since that was last looked at
}

func newSessions(log *slog.Logger) *sessions {
	return &sessions{log: log, lasting: 10 * time.Second, peers: make(map[netip.Addr]*session)}
}

// add begins to follow a peer.
func (s *sessions) add(p Peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.peers[p.Address] = &session{state: idle, since: time.Now(), limit: p.PrefixLimit}
}

// receive records that a peer has sent so many prefixes. How many of them it had sent
// before only the library knows, to which that is a question of going through all of
// them: it is asked when they may be too many, not with each message.
func (s *sessions) receive(peer string, prefixes int) {
	address, err := netip.ParseAddr(peer)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[address]
	if p == nil || p.limit == 0 {
		return
	}
	if p.received += prefixes; p.received > p.limit {
		p.received = 0
		s.full(address)
	}
}

// limit changes how many prefixes a peer may send.
func (s *sessions) limit(peer netip.Addr, prefixes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.peers[peer]; p != nil {
		p.limit = prefixes
	}
}

// remove ends that, before the session itself is closed.
func (s *sessions) remove(peer netip.Addr, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.peers[peer]; p != nil && p.state == established {
		s.log.Info("session closed", "peer", peer, "reason", why)
	}
	delete(s.peers, peer)
}

// enter records that the session with peer is in state now.
func (s *sessions) enter(peer netip.Addr, state string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[peer]
	if p == nil || p.state == state {
		return
	}
	was := p.state
	p.state = state
	switch {
	case state == established:
		p.since, p.spoken = time.Now(), true
		s.log.Info("session up", "peer", peer)
	case was == established:
		p.lasted = time.Since(p.since) >= s.lasting
		p.since = time.Now()
		s.log.Warn("session down", "peer", peer, "reason", p.reason)
	}
	if state == idle && p.lasted && time.Since(p.since) < recovery && s.lost != nil {
		s.lost(peer)
	}
}

// explain records why the session with peer ended or does not come up.
func (s *sessions) explain(peer netip.Addr, r reason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[peer]
	if p == nil {
		return
	}
	switch {
	case r.up:
		if s.up != nil {
			s.up(peer)
		}
	case r.begins:
		p.explained = false
	case !r.general:
		p.reason, p.explained = r.words, true
	case !p.explained:
		p.reason = r.words
	}
}

// get gives what is known of a peer's session. One that is up has no reason
// not to be.
func (s *sessions) get(peer netip.Addr) session {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[peer]
	if p == nil {
		return session{state: idle}
	}
	is := *p
	if is.state == established {
		is.reason = ""
	}
	return is
}
