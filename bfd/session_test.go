package bfd

import (
	"slices"
	"strings"
	"testing"
	"time"
)

var epoch = time.Unix(1_800_000_000, 0)

const ms = time.Millisecond

// noJitter makes intervals their longest.
func noJitter() float64 { return 1 }

func newTestSession(timing Timing, my uint32) *Session {
	return NewSession(timing, my, nil, noJitter, epoch)
}

// pair is two sessions with a wire between them.
type pair struct {
	now  time.Time
	a, b *Session
	lost bool             // what is sent
	drop func(n int) bool // the n-th packet of a session
	sent map[*Session][]time.Time
	log  []string
}

func newPair(a, b Timing) *pair {
	return &pair{now: epoch, a: newTestSession(a, 1), b: newTestSession(b, 2), sent: make(map[*Session][]time.Time)}
}

// run lets d pass, event by event.
func (p *pair) run(d time.Duration) {
	end := p.now.Add(d)
	for {
		for again := true; again; {
			again = p.exchange(p.a, p.b)
			again = p.exchange(p.b, p.a) || again
		}
		next := p.a.Next()
		if n := p.b.Next(); n.Before(next) {
			next = n
		}
		if next.After(end) {
			p.now = end
			return
		}
		p.now = next
	}
}

func (p *pair) exchange(from, to *Session) bool {
	before := from.State()
	packets := from.Step(p.now)
	for _, packet := range packets {
		p.sent[from] = append(p.sent[from], p.now)
		if !p.lost && (p.drop == nil || !p.drop(len(p.sent[from]))) {
			to.Receive(packet, p.now)
		}
	}
	if from.State() != before {
		p.log = append(p.log, from.State().String())
	}
	return len(packets) > 0
}

// gaps are the times between the packets that s sent in the last d.
func (p *pair) gaps(s *Session, d time.Duration) []time.Duration {
	var list []time.Duration
	times := slices.DeleteFunc(slices.Clone(p.sent[s]), func(t time.Time) bool { return t.Before(p.now.Add(-d)) })
	for i := 1; i < len(times); i++ {
		list = append(list, times[i].Sub(times[i-1]))
	}
	return list
}

func TestASessionComesUpAndAgreesOnItsIntervals(t *testing.T) {
	p := newPair(Timing{100 * ms, 3}, Timing{300 * ms, 5})
	p.run(5 * time.Second)
	for name, s := range map[string]*Session{"a": p.a, "b": p.b} {
		if s.State() != Up || s.RemoteState() != Up {
			t.Fatalf("%s is %v, the other %v, want both up", name, s.State(), s.RemoteState())
		}
		if s.Interval() != 300*ms {
			t.Errorf("%s sends every %v, want 300ms: the slower of the two decides", name, s.Interval())
		}
		for _, gap := range p.gaps(s, 2*time.Second) {
			if gap != 300*ms {
				t.Errorf("%s: a gap of %v between packets, want 300ms", name, gap)
			}
		}
	}
	// Each goes by the other's multiplier.
	if got := p.a.Detection(); got != 5*300*ms {
		t.Errorf("a detects after %v, want 1.5s", got)
	}
	if got := p.b.Detection(); got != 3*300*ms {
		t.Errorf("b detects after %v, want 900ms", got)
	}
}

func TestASessionThatIsNotUpSendsOnceASecond(t *testing.T) {
	s := newTestSession(Timing{50 * ms, 3}, 1)
	now, sent := epoch, 0
	for now.Before(epoch.Add(10 * time.Second)) {
		for _, p := range s.Step(now) {
			sent++
			if p.DesiredMinTx < time.Second || p.State != Down || p.Your != 0 {
				t.Errorf("got %+v, want down and a second at least", p)
			}
		}
		now = s.Next()
	}
	if sent != 10 {
		t.Errorf("sent %d packets in 10 s, want 10", sent)
	}
}

func TestSilenceTakesASessionDownAfterTheDetectionTime(t *testing.T) {
	p := newPair(Timing{100 * ms, 3}, Timing{100 * ms, 3})
	p.run(5 * time.Second)
	p.lost = true
	p.run(299 * ms)
	if p.a.State() != Up {
		t.Fatalf("a is %v within the detection time, want up", p.a.State())
	}
	p.run(102 * ms)
	if p.a.State() != Down || p.a.Diag() != TimeExpired || p.a.Your() != 0 {
		t.Errorf("a is %v (%v), knows discriminator %d, want down by time and none", p.a.State(), p.a.Diag(), p.a.Your())
	}
	p.lost = false
	p.run(3 * time.Second)
	if p.a.State() != Up || p.b.State() != Up {
		t.Errorf("a is %v, b %v after the way is back, want both up", p.a.State(), p.b.State())
	}
}

// The state machine, RFC 5880, 6.2 and 6.8.6: what a session in a state does on
// hearing each state.
func TestTheStateMachineIsTheRFCs(t *testing.T) {
	states := []State{AdminDown, Down, Init, Up}
	want := map[State][]State{ // by own state: the next one for each heard
		AdminDown: {AdminDown, AdminDown, AdminDown, AdminDown},
		Down:      {Down, Init, Up, Down},
		Init:      {Down, Init, Up, Up},
		Up:        {Down, Down, Up, Up},
	}
	for own, nexts := range want {
		for i, heard := range states {
			s := newTestSession(Timing{100 * ms, 3}, 1)
			s.state = own
			s.Receive(Packet{State: heard, DetectMult: 3, My: 2, Your: 1, DesiredMinTx: 100 * ms, RequiredMin: 100 * ms}, epoch)
			if s.State() != nexts[i] {
				t.Errorf("%v hears %v: got %v, want %v", own, heard, s.State(), nexts[i])
			}
		}
	}
}

func TestAPlannedEndIsToldAndIsNoFailure(t *testing.T) {
	p := newPair(Timing{100 * ms, 3}, Timing{100 * ms, 3})
	p.run(5 * time.Second)
	p.a.Shut(p.now)
	p.run(10 * ms)
	if p.b.State() != Down || p.b.Diag() != NeighborDown || p.b.RemoteState() != AdminDown {
		t.Errorf("b is %v (%v) and holds a for %v, want down by what a said, administratively", p.b.State(), p.b.Diag(), p.b.RemoteState())
	}
	p.run(5 * time.Second)
	if p.a.State() != AdminDown || p.b.State() != Down {
		t.Errorf("a is %v, b %v, want them to stay", p.a.State(), p.b.State())
	}
	p.a.Open(p.now)
	p.run(5 * time.Second)
	if p.a.State() != Up {
		t.Errorf("a is %v after it was opened, want up", p.a.State())
	}
}

// FRR asks for 1 s while it is not up, then for less: an interval that was begun by
// the old measure must not be waited for.
func TestAnIntervalThatTheOtherShortensCountsAtOnce(t *testing.T) {
	s := newTestSession(Timing{100 * ms, 3}, 1)
	hear := func(at time.Duration, state State, min time.Duration) {
		s.Receive(Packet{State: state, DetectMult: 3, My: 2, Your: 1, DesiredMinTx: min, RequiredMin: min}, epoch.Add(at))
	}
	s.Step(epoch)
	hear(10*ms, Down, time.Second)
	s.Step(epoch.Add(10 * ms))
	hear(20*ms, Up, time.Second)
	s.Step(epoch.Add(20 * ms)) // the next is due 1 s later
	hear(30*ms, Up, 100*ms)
	if due := s.Next().Sub(epoch); due > 130*ms {
		t.Errorf("the next packet is due at %v, want within 100 ms of the last at 20 ms", due)
	}
}

func TestAPollIsAnsweredAtOnceAndEndsWithTheAnswer(t *testing.T) {
	p := newPair(Timing{100 * ms, 3}, Timing{100 * ms, 3})
	p.run(5 * time.Second)
	if p.a.polling || p.b.polling {
		t.Fatal("a poll that began when the session came up has not ended")
	}
	p.a.Receive(Packet{State: Up, Poll: true, DetectMult: 3, My: 2, Your: 1, DesiredMinTx: 100 * ms, RequiredMin: 100 * ms}, p.now)
	out := p.a.Step(p.now)
	if len(out) == 0 || !out[0].Final || out[0].Poll {
		t.Errorf("got %+v in answer to a poll, want a packet with Final and without Poll", out)
	}
}

// RFC 5880, 6.8.3: what makes the other wait longer it has to agree to first.
func TestASlowerPaceWaitsForTheOtherAndAFasterDoesNot(t *testing.T) {
	for _, tt := range []struct {
		name                       string
		to                         time.Duration
		sending, detecting         time.Duration // before the answer
		sendingAfter, detectsAfter time.Duration
	}{
		{"slower", 400 * ms, 100 * ms, 3 * 400 * ms, 400 * ms, 3 * 400 * ms},
		{"faster", 50 * ms, 100 * ms, 3 * 100 * ms, 100 * ms, 3 * 100 * ms},
	} {
		p := newPair(Timing{100 * ms, 3}, Timing{100 * ms, 3})
		p.run(5 * time.Second)
		p.a.Retime(Timing{tt.to, 3}, p.now)
		if got := p.a.Interval(); got != tt.sending {
			t.Errorf("%s: sends every %v before the other knows, want %v", tt.name, got, tt.sending)
		}
		if got := p.a.Detection(); got != tt.detecting {
			t.Errorf("%s: detects after %v before the other knows, want %v", tt.name, got, tt.detecting)
		}
		p.run(time.Second)
		if got := p.a.Interval(); got != tt.sendingAfter {
			t.Errorf("%s: sends every %v in the end, want %v", tt.name, got, tt.sendingAfter)
		}
		if got := p.a.Detection(); got != tt.detectsAfter {
			t.Errorf("%s: detects after %v in the end, want %v", tt.name, got, tt.detectsAfter)
		}
		if len(slices.DeleteFunc(p.log, func(s string) bool { return s == "init" || s == "up" })) > 0 {
			t.Errorf("%s: the session went %s", tt.name, strings.Join(p.log, ", "))
		}
	}
}

func TestNothingIsSentToOneWhoWantsNothing(t *testing.T) {
	p := newPair(Timing{100 * ms, 3}, Timing{100 * ms, 3})
	p.run(5 * time.Second)
	p.a.Receive(Packet{State: Up, DetectMult: 30, My: 2, Your: 1, DesiredMinTx: 100 * ms, RequiredMin: 0}, p.now)
	if got := p.a.Step(p.now.Add(time.Second)); len(got) != 0 {
		t.Errorf("sent %+v to one that asks for no periodic packets", got)
	}
}

func TestDemandModeOfTheOtherIsHonoured(t *testing.T) {
	p := newPair(Timing{100 * ms, 3}, Timing{100 * ms, 3})
	p.run(5 * time.Second)
	p.a.Receive(Packet{State: Up, Demand: true, DetectMult: 30, My: 2, Your: 1, DesiredMinTx: 100 * ms, RequiredMin: 100 * ms}, p.now)
	if got := p.a.Step(p.now.Add(time.Second)); len(got) != 0 {
		t.Errorf("sent %+v to one in demand mode", got)
	}
}

func TestPacketsForAnotherSessionChangeNothing(t *testing.T) {
	s := newTestSession(Timing{100 * ms, 3}, 1)
	if s.Receive(Packet{State: Down, DetectMult: 3, My: 2, Your: 9, RequiredMin: time.Second}, epoch) || s.State() != Down || s.Your() != 0 {
		t.Errorf("took a packet for discriminator 9: %v, %d", s.State(), s.Your())
	}
}

func TestPacketsAreSpreadBetweenThreeQuartersAndAllOfTheInterval(t *testing.T) {
	for multiplier, most := range map[uint8]time.Duration{3: 100 * ms, 1: 90 * ms} {
		for _, jitter := range []float64{0, 0.5, 0.999} {
			s := NewSession(Timing{100 * ms, multiplier}, 1, nil, func() float64 { return jitter }, epoch)
			s.state, s.remoteMin, s.sending = Up, ms, 100*ms
			s.Step(epoch)
			if gap := s.Next().Sub(epoch); gap < 75*ms || gap > most {
				t.Errorf("multiplier %d, jitter %v: the next packet comes after %v, want 75ms to %v", multiplier, jitter, gap, most)
			}
		}
	}
}

func TestAuthenticatedPacketsComeInSequence(t *testing.T) {
	s := newTestSession(Timing{100 * ms, 3}, 1)
	hear := func(sequence uint32, at time.Duration) bool {
		return s.Receive(Packet{
			State: Down, DetectMult: 3, My: 2, DesiredMinTx: 100 * ms, RequiredMin: 100 * ms, Auth: &Auth{Sequence: sequence},
		}, epoch.Add(at))
	}
	for _, tt := range []struct {
		name     string
		sequence uint32
		at       time.Duration
		want     bool
	}{
		{"the first may be any", 1<<32 - 2, 0, true},
		{"the same again", 1<<32 - 2, 10 * ms, false},
		{"the next", 1<<32 - 1, 20 * ms, true},
		{"over the end", 0, 30 * ms, true},
		{"some were lost", 9, 40 * ms, true},
		{"one from before", 8, 50 * ms, false},
		{"too far ahead", 19, 60 * ms, false},
		{"anything after long silence", 5, 5 * time.Second, true},
	} {
		if got := hear(tt.sequence, tt.at); got != tt.want {
			t.Errorf("%s: taken %t, want %t", tt.name, got, tt.want)
		}
	}
	sender := NewSession(Timing{100 * ms, 3}, 1, &Auth{KeyID: 1, Sequence: 7}, noJitter, epoch)
	for i := range uint32(3) {
		if p := sender.Step(epoch.Add(time.Duration(i) * 2 * time.Second)); len(p) != 1 || p[0].Auth.Sequence != 7+i {
			t.Fatalf("packet %d: got %+v, want sequence %d", i, p, 7+i)
		}
	}
}

func TestLostPacketsThatAreFewerThanTheMultiplierDoNotMatter(t *testing.T) {
	for lost, holds := range map[int]bool{2: true, 3: false} {
		p := newPair(Timing{100 * ms, 3}, Timing{100 * ms, 3})
		for _, s := range []*Session{p.a, p.b} {
			s.jitter = func() float64 { return 0.5 }
		}
		p.run(5 * time.Second)
		p.log = nil
		p.drop = func(n int) bool { return n%6 < lost }
		p.run(time.Minute)
		if held := len(p.log) == 0; held != holds {
			t.Errorf("%d of 6 packets lost in a row: the session went %v, want it to hold: %t", lost, p.log, holds)
		}
	}
}
