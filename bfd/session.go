package bfd

import (
	"time"
)

// slow is the least transmit interval of a session that is not up (RFC 5880, 6.8.3).
const slow = time.Second

// Timing is what a session asks for.
type Timing struct {
	Interval   time.Duration // between packets, sent and wanted
	Multiplier uint8         // packets that may be lost in a row
}

// Session is the state machine of one session (RFC 5880, 6.8). It sends nothing and
// reads no clock: Receive takes what came in, Step gives what is to go out and is
// called again at the latest at Next.
type Session struct {
	timing Timing
	my     uint32
	jitter func() float64 // in [0, 1)
	auth   *Auth          // of the next packet; nil: none

	state, remote    State
	diag             Diag
	your             uint32
	remoteMin        time.Duration // receive interval that the other asks for
	remoteMult       uint8
	remoteDesired    time.Duration
	remoteDemand     bool
	polling          bool          // until the other says Final
	sending          time.Duration // transmit interval in effect before a poll ends
	receiving        time.Duration // receive interval in effect before a poll ends
	owesFinal        bool
	heard            time.Time // the last packet; zero: none since the session is down
	sent             time.Time // the last periodic packet
	next             time.Time // when the next one is due
	seen             uint32    // sequence of the last authenticated packet
	seenAt           time.Time
	received, strays uint64
}

// NewSession makes a session in state Down with a discriminator that is no other
// session's. jitter gives a random number in [0, 1). Authentication begins at a
// sequence that no earlier session used.
func NewSession(t Timing, discriminator uint32, auth *Auth, jitter func() float64, now time.Time) *Session {
	return &Session{
		timing: t, my: discriminator, jitter: jitter, auth: auth,
		state: Down, remote: Down, remoteMin: time.Microsecond,
		sending: slow, receiving: t.Interval, next: now,
	}
}

// State is the session's.
func (s *Session) State() State { return s.state }

// Diag says why it last left Up.
func (s *Session) Diag() Diag { return s.diag }

// RemoteState is the other side's, as it last said.
func (s *Session) RemoteState() State { return s.remote }

// Your is the other side's discriminator; 0: not known.
func (s *Session) Your() uint32 { return s.your }

// Retime changes what the session asks for. The other side is polled, and a change
// that it has to know of first takes effect when it does (RFC 5880, 6.8.3).
func (s *Session) Retime(t Timing, now time.Time) {
	if s.timing == t {
		return
	}
	before := s.timing.Interval
	s.timing = t
	if s.state != Up {
		s.receiving = t.Interval
		return
	}
	s.polling = true
	if t.Interval < before {
		s.sending = t.Interval // faster at once, and slower not yet
	} else {
		s.receiving = t.Interval // the detection time grows at once, and shrinks not yet
	}
	s.schedule(now)
}

// Shut takes the session down as an operator does, Open lets it come up again.
func (s *Session) Shut(now time.Time) {
	if s.state != AdminDown {
		s.enter(AdminDown, AdministrativeDown, now)
		s.heard = time.Time{}
	}
}

// Open undoes Shut.
func (s *Session) Open(now time.Time) {
	if s.state == AdminDown {
		s.enter(Down, NoDiag, now)
	}
}

// Detection is how long the other side may be silent: its multiplier times the
// interval that both agreed on. 0: nothing has been heard.
func (s *Session) Detection() time.Duration {
	return time.Duration(s.remoteMult) * max(s.receiving, s.remoteDesired)
}

// Interval is that of periodic packets, without jitter. 0: there are none to be sent.
func (s *Session) Interval() time.Duration {
	switch {
	case s.remoteMin == 0:
		return 0
	case s.remoteDemand && s.state == Up && s.remote == Up && !s.polling:
		return 0
	case s.state != Up:
		return max(slow, s.timing.Interval, s.remoteMin)
	}
	return max(s.sending, s.remoteMin)
}

// Receive takes a packet that was parsed and is for this session. False: it does
// not fit in, and changes nothing (RFC 5880, 6.8.6).
func (s *Session) Receive(p Packet, now time.Time) bool {
	if s.state == AdminDown || p.Your != 0 && p.Your != s.my || !s.inSequence(p, now) {
		s.strays++
		return false
	}
	s.received++
	before := s.Interval()
	s.your, s.remote = p.My, p.State
	s.remoteMin, s.remoteDesired, s.remoteMult = p.RequiredMin, p.DesiredMinTx, p.DetectMult
	s.remoteDemand = p.Demand
	if p.Final && s.polling {
		s.polling = false
		s.sending, s.receiving = s.timing.Interval, s.timing.Interval
	}
	s.owesFinal = s.owesFinal || p.Poll
	s.heard = now

	switch {
	case p.State == AdminDown:
		if s.state != Down {
			s.enter(Down, NeighborDown, now)
		}
	case s.state == Down && p.State == Down:
		s.enter(Init, s.diag, now)
	case s.state == Down && p.State == Init, s.state == Init && p.State >= Init:
		s.enter(Up, s.diag, now)
	case s.state == Up && p.State == Down:
		s.enter(Down, NeighborDown, now)
	}
	// The other may have become faster or slower: an interval begun by the old
	// measure could last a second, ten of its detection times.
	if s.Interval() != before {
		s.schedule(now)
	}
	return true
}

// inSequence tells whether the sequence number of an authenticated packet is one of
// those that may follow (RFC 5880, 6.7.4). After silence of twice the detection time
// any number may begin anew.
func (s *Session) inSequence(p Packet, now time.Time) bool {
	if p.Auth == nil {
		return true
	}
	known := !s.seenAt.IsZero() && now.Sub(s.seenAt) <= 2*s.Detection()
	ahead := p.Auth.Sequence - s.seen // modulo 2^32
	if known && (ahead == 0 || ahead > 3*uint32(max(s.remoteMult, 1))) {
		return false
	}
	s.seen, s.seenAt = p.Auth.Sequence, now
	return true
}

// enter changes the state, and what goes with it.
func (s *Session) enter(state State, why Diag, now time.Time) {
	was := s.state
	s.state, s.diag = state, why
	switch {
	case state == Up:
		// What was asked for holds once the other knows of it.
		s.polling, s.sending = true, s.timing.Interval
	case was == Up:
		s.polling, s.sending, s.receiving = false, slow, s.timing.Interval
	}
	s.next = now // the other learns of it at once
}

// Next is when Step has something to do, at the latest.
func (s *Session) Next() time.Time {
	next := s.next
	if s.Interval() == 0 {
		next = s.sent.Add(time.Hour)
	}
	if expiry := s.expiry(); !expiry.IsZero() && expiry.Before(next) {
		next = expiry
	}
	return next
}

func (s *Session) expiry() time.Time {
	if s.heard.IsZero() {
		return time.Time{}
	}
	return s.heard.Add(s.Detection())
}

// Step lets time pass up to now and gives the packets to send.
func (s *Session) Step(now time.Time) []Packet {
	if expiry := s.expiry(); !expiry.IsZero() && !now.Before(expiry) {
		s.your, s.heard = 0, time.Time{}
		if s.state == Init || s.state == Up {
			s.enter(Down, TimeExpired, now)
		}
	}
	var out []Packet
	if s.owesFinal { // whatever the timer says (RFC 5880, 6.5)
		s.owesFinal = false
		p := s.packet()
		p.Poll, p.Final = false, true
		out = append(out, p)
	}
	if s.Interval() > 0 && !now.Before(s.next) {
		s.sent = now
		s.schedule(now)
		out = append(out, s.packet())
	}
	return out
}

// schedule sets when the next periodic packet is due: 75 to 100 % of the interval
// after the last one, at most 90 % where a single lost packet counts (RFC 5880, 6.8.7).
func (s *Session) schedule(now time.Time) {
	span := 0.25
	if s.timing.Multiplier == 1 {
		span = 0.15
	}
	interval := time.Duration(float64(s.Interval()) * (0.75 + span*s.jitter()))
	s.next = s.sent.Add(interval)
	if s.next.Before(now) {
		s.next = now
	}
}

func (s *Session) packet() Packet {
	desired := s.timing.Interval
	if s.state != Up {
		desired = max(desired, slow)
	}
	p := Packet{
		Diag: s.diag, State: s.state, Poll: s.polling, Independent: true, DetectMult: s.timing.Multiplier,
		My: s.my, Your: s.your, DesiredMinTx: desired, RequiredMin: s.timing.Interval,
	}
	if s.auth != nil {
		auth := *s.auth
		s.auth.Sequence++
		p.Auth = &auth
	}
	return p
}
