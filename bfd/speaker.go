package bfd

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Peer is a session that there is to be.
type Peer struct {
	Address netip.Addr // of the other side; a link-local one has its zone
	Local   netip.Addr // that packets come from; not valid: the kernel chooses
	// Multihop speaks to one who is not on the link (RFC 5883).
	Multihop bool
	// MinTTL is the least TTL that its packets arrive with; 0: any. Most send 255, BIRD the
	// kernel's 64. Without Multihop it is 255 (RFC 5881, 5).
	MinTTL uint8
	Timing
	// Key authenticates packets by meticulous keyed SHA1; 1 to 20 bytes, empty: none.
	Key   []byte
	KeyID uint8
}

// identity is what makes it the same session.
type identity struct {
	address, local netip.Addr
	multihop       bool
	key            string
	keyID          uint8
}

func (p Peer) identity() identity {
	return identity{p.Address, p.Local, p.Multihop, string(p.Key), p.KeyID}
}

// Validate gives every error at once. No key is ever part of one.
func (p Peer) Validate() error {
	var errs []error
	if !p.Address.IsValid() || p.Address.IsUnspecified() || p.Address.IsMulticast() {
		errs = append(errs, fmt.Errorf("bfd peer %s: not an address that packets can be sent to", p.Address))
	}
	if p.Local.IsValid() && p.Local.Is4() != p.Address.Is4() {
		errs = append(errs, fmt.Errorf("bfd peer %s: local address %s is of the other family", p.Address, p.Local))
	}
	if p.Interval < 10*time.Millisecond || p.Interval > time.Minute {
		errs = append(errs, fmt.Errorf("bfd peer %s: interval %v is out of range: give 10ms to 1m", p.Address, p.Interval))
	}
	if p.Multiplier == 0 {
		errs = append(errs, fmt.Errorf("bfd peer %s: multiplier 0: give 1 to 255, 3 is usual", p.Address))
	}
	if !p.Multihop && p.MinTTL != 0 {
		errs = append(errs, fmt.Errorf("bfd peer %s: a least TTL of %d is for multihop: a neighbour's packets have 255", p.Address, p.MinTTL))
	}
	if len(p.Key) > 20 {
		errs = append(errs, fmt.Errorf("bfd peer %s: the key has %d bytes, 20 at most (RFC 5880, 4.4)", p.Address, len(p.Key)))
	}
	return errors.Join(errs...)
}

func validate(peers []Peer) error {
	var errs []error
	for _, p := range peers {
		errs = append(errs, p.Validate())
	}
	return errors.Join(errs...)
}

// Status is how a session stands.
type Status struct {
	Address   netip.Addr
	State     State
	Remote    State
	Diag      Diag // why it last left Up
	Since     time.Time
	Interval  time.Duration // of what is sent
	Detection time.Duration // how long the other may be silent
	Ups       uint64        // times that it came up
	Sent      uint64
	Received  uint64
	Error     string // why nothing can be sent
}

// Speaker keeps a set of sessions.
type Speaker struct {
	log     *slog.Logger
	changes chan struct{}

	mu       sync.Mutex // guards what follows and every session
	sessions map[identity]*session
	wake     chan struct{}
}

// session is a Session with its socket and history.
type session struct {
	*Session
	peer   Peer
	out    *sender // nil: not made yet, or err says why
	err    error
	retry  time.Time // when it is made, tried again, or looked after while the session is not up
	since  time.Time
	ups    uint64
	nSent  uint64
	failed bool  // the last packet could not be sent; told of once
	told   State // that Changes was woken for
}

// NewSpeaker makes a Speaker without sessions. It opens no socket: that is Run's.
func NewSpeaker(log *slog.Logger) *Speaker {
	return &Speaker{
		log: log.With("part", "bfd"), changes: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		sessions: make(map[identity]*session),
	}
}

// SetPeers makes peers the whole set. A session that is kept stays as it is, one with
// another timing negotiates it anew without going down, one that is missing says that
// it is administratively down and ends.
func (s *Speaker) SetPeers(peers []Peer) error {
	if err := validate(peers); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	wanted := make(map[identity]Peer)
	for _, p := range peers {
		wanted[p.identity()] = p
	}
	for id, old := range s.sessions {
		if _, stays := wanted[id]; !stays {
			s.end(old, now)
			delete(s.sessions, id)
		}
	}
	for id, p := range wanted {
		if old := s.sessions[id]; old != nil {
			old.Retime(p.Timing, now)
			old.peer = p
			continue
		}
		s.sessions[id] = s.begin(p, now)
	}
	notify(s.wake)
	notify(s.changes)
	return nil
}

func (s *Speaker) begin(p Peer, now time.Time) *session {
	var auth *Auth
	if len(p.Key) > 0 {
		// A restart must not begin below what the other has seen: seconds since 1970
		// grow faster than packets are sent at any pace that lasts.
		auth = &Auth{KeyID: p.KeyID, Sequence: uint32(now.Unix()) << 6}
	}
	return &session{Session: NewSession(p.Timing, s.discriminator(), auth, mrand.Float64, now), peer: p, since: now, told: Down}
}

// discriminator is no other session's; need s.mu.
func (s *Speaker) discriminator() uint32 {
	for {
		var b [4]byte
		rand.Read(b[:]) // never fails
		d := binary.BigEndian.Uint32(b[:])
		taken := d == 0
		for _, n := range s.sessions {
			taken = taken || n.my == d
		}
		if !taken {
			return d
		}
	}
}

// end tells the other side that this is no failure. One packet may be lost: three are
// rarely.
func (s *Speaker) end(n *session, now time.Time) {
	n.Shut(now)
	for range 3 {
		if n.out != nil {
			_ = n.out.send(n.packet(), n.peer.Key)
		}
	}
	n.out.close()
}

// Statuses lists all sessions by address.
func (s *Speaker) Statuses() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Status, 0, len(s.sessions))
	for _, n := range s.sessions {
		st := Status{
			Address: n.peer.Address, State: n.State(), Remote: n.RemoteState(), Diag: n.Diag(), Since: n.since,
			Interval: n.Interval(), Detection: n.Detection(), Ups: n.ups, Sent: n.nSent, Received: n.received,
		}
		if n.err != nil {
			st.Error = n.err.Error()
		}
		list = append(list, st)
	}
	slices.SortFunc(list, func(a, b Status) int { return a.Address.Compare(b.Address) })
	return list
}

// Changes has something to receive after a session was added, removed or has changed
// its state.
func (s *Speaker) Changes() <-chan struct{} { return s.changes }

// Run keeps the sessions until ctx ends; then it tells the others that they are
// administratively down. It fails at once when a socket is taken.
func (s *Speaker) Run(ctx context.Context) error {
	in, err := listen()
	if err != nil {
		return err
	}
	packets := make(chan datagram, 256)
	var readers sync.WaitGroup
	for _, l := range in {
		readers.Go(func() { l.read(packets) })
	}
	defer func() {
		s.mu.Lock()
		now := time.Now()
		for id, n := range s.sessions {
			s.end(n, now)
			delete(s.sessions, id)
		}
		s.mu.Unlock()
		for _, l := range in {
			l.close()
		}
		readers.Wait()
	}()

	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case d := <-packets:
			s.receive(d)
		case <-s.wake:
		case <-timer.C:
		}
		timer.Reset(time.Until(s.step()))
	}
}

// receive gives a packet to the session that it is for (RFC 5880, 6.8.6; RFC 5881, 3
// and 5).
func (s *Speaker) receive(d datagram) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.find(d)
	if n == nil {
		return
	}
	least := n.peer.MinTTL
	if !n.peer.Multihop {
		least = 255
	}
	if d.ttl < int(least) {
		n.strays++
		return
	}
	var key []byte
	if len(n.peer.Key) > 0 {
		key = n.peer.Key
	}
	p, err := Parse(d.payload, key)
	if err != nil || p.Auth != nil && p.Auth.KeyID != n.peer.KeyID {
		n.strays++
		s.log.Debug("packet not taken", "peer", d.from, "err", err)
		return
	}
	n.Receive(p, d.at)
}

// find looks for the session by its discriminator, or by addresses while the other
// side does not know it.
func (s *Speaker) find(d datagram) *session {
	if len(d.payload) < mandatory {
		return nil
	}
	your := binary.BigEndian.Uint32(d.payload[8:])
	for _, n := range s.sessions {
		if n.peer.Multihop != d.multihop || n.peer.Address != d.from {
			continue
		}
		if your == n.my || your == 0 && (!n.peer.Local.IsValid() || n.peer.Local == d.to) {
			return n
		}
	}
	return nil
}

// step sends what is due and gives the time of the next step.
func (s *Speaker) step() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	next := now.Add(time.Hour)
	for _, n := range s.sessions {
		if n.State() != Up && !now.Before(n.retry) {
			if n.out == nil || n.out.moved(n.peer) {
				n.out.close()
				n.out, n.err = newSender(n.peer)
			}
			n.retry = now.Add(time.Second)
		}
		for _, p := range n.Step(now) {
			s.send(n, p)
		}
		if n.State() != n.told {
			s.tell(n, now)
		}
		due := n.Next()
		if n.out == nil && n.retry.Before(due) {
			due = n.retry
		}
		if due.Before(next) {
			next = due
		}
	}
	return next
}

// tell says that a session's state changed.
func (s *Speaker) tell(n *session, now time.Time) {
	attrs := []any{"peer", n.peer.Address, "state", n.State().String(), "was", n.told.String()}
	switch {
	case n.State() == Up:
		n.ups++
		s.log.Info("session up", append(attrs, "interval", n.Interval(), "detection", n.Detection())...)
	case n.told == Up:
		s.log.Warn("session down", append(attrs, "reason", n.Diag().String(), "remote", n.RemoteState().String())...)
	default:
		s.log.Debug("session changed", attrs...)
	}
	n.told, n.since = n.State(), now
	notify(s.changes)
}

func (s *Speaker) send(n *session, p Packet) {
	if n.out == nil {
		return
	}
	err := n.out.send(p, n.peer.Key)
	if err != nil && !n.failed {
		s.log.Warn("packet not sent", "peer", n.peer.Address, "err", err)
	}
	n.failed, n.err = err != nil, err
	if err == nil {
		n.nSent++
	}
}

func notify(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
