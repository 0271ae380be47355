package track

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// The backends of the cases.
const (
	current = 1
	base    = 2
	other   = 3
)

func TestDecide(t *testing.T) {
	rest := Slot{Current: current}
	moved := Slot{Current: current, Base: base, InTransition: true}
	settling := Slot{Current: current, Base: base, InTransition: true, Settling: true}
	back := Slot{Current: current, Base: current, InTransition: true} // A→B→A, or the base failed
	none, known := Recorded{}, Recorded{Backend: other, Known: true}

	for _, tt := range []struct {
		name     string
		slot     Slot
		kind     Kind
		recorded Recorded

		backend uint16
		record  bool
	}{
		{"a slot at rest asks nobody: TCP's SYN", rest, Opens, known, current, false},
		{"a slot at rest asks nobody: other TCP", rest, Continues, known, current, false},
		{"a slot at rest asks nobody: a datagram", rest, Datagram, known, current, false},

		{"a new flow goes to the current backend, and has a record", moved, Opens, none, current, true},
		{"of the same ports as an older one, whose record is written over", moved, Opens, known, current, true},
		{"an older flow stays at the base", moved, Continues, none, base, false},
		{"a newer one at the backend of its record", moved, Continues, known, other, false},

		{"QUIC's first Initial", moved, MayOpen, none, current, true},
		{"QUIC's second Initial follows the first", moved, MayOpen, known, other, false},

		{"a datagram at first: its flow may be older", settling, Datagram, none, base, true},
		{"a datagram later: its flow would have a record", moved, Datagram, none, current, true},
		{"a datagram of a known flow, at first", settling, Datagram, known, other, false},
		{"a datagram of a known flow, later", moved, Datagram, known, other, false},
		{"that a slot settles is nothing to TCP: a SYN", settling, Opens, none, current, true},
		{"that a slot settles is nothing to TCP: others", settling, Continues, none, base, false},

		{"a backend that is back: flows of the time between have records", back, Continues, known, other, false},
		{"a backend that is back: others never left", back, Continues, none, current, false},
		{"a backend that is back: the next change must know new flows too", back, Opens, none, current, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			backend, record := tt.slot.Decide(tt.kind, tt.recorded)
			if backend != tt.backend || record != tt.record {
				t.Errorf("got backend %d, record %t, want backend %d, record %t", backend, record, tt.backend, tt.record)
			}
		})
	}
}

// TestOlder: wherever the next packet of a flow comes to, without a record, it goes where the
// first one did.
func TestOlder(t *testing.T) {
	for _, slot := range []Slot{
		{Current: current}, {Current: current, Base: base, InTransition: true}, {Current: current, Base: base, InTransition: true, Settling: true},
	} {
		for _, flow := range []struct {
			first, next Kind
			quic        bool
		}{{Opens, Continues, false}, {Opens, Continues, true}, {MayOpen, Continues, true}, {MayOpen, Datagram, false}, {Datagram, Datagram, false}} {
			began, _ := slot.Decide(flow.first.Older(flow.quic), Recorded{})
			if went, _ := slot.Decide(flow.next, Recorded{}); went != began {
				t.Errorf("%+v, %v and then %v (quic: %t): began at backend %d, went on to %d", slot, flow.first, flow.next, flow.quic, began, went)
			}
			if at, record := slot.Decide(flow.first.Older(flow.quic), Recorded{Backend: other, Known: true}); slot.InTransition && (at != other || record) {
				t.Errorf("%+v, %v: goes to backend %d (record %t) and not to that of its record", slot, flow.first, at, record)
			}
		}
	}
}

func TestBases(t *testing.T) {
	const a, b, c = 0, 1, 2
	start := time.Unix(1_700_000_000, 0)
	// Of a table with one slot: what it has, and who lives.
	stage := func(second int, slot uint16, alive ...bool) Stage {
		return Stage{start.Add(time.Duration(second) * time.Second), []uint16{slot}, alive}
	}
	for _, tt := range []struct {
		name   string
		stages []Stage
		want   Slot
	}{
		{"nothing has changed", []Stage{stage(0, a, true, true, true)}, Slot{Current: a, Base: a}},
		{"another slot changed", []Stage{stage(0, a, true, false, true), stage(10, a, true, true, true)}, Slot{Current: a, Base: a}},
		{"it has moved", []Stage{stage(0, a, true, true, true), stage(10, b, true, true, true)}, Slot{b, a, true, false}},
		{"it has just moved", []Stage{stage(0, a, true, true, true), stage(95, b, true, true, true)}, Slot{b, a, true, true}},
		{"it has moved on", []Stage{stage(0, a, true, true, true), stage(10, b, true, true, true), stage(95, c, true, true, true)}, Slot{c, a, true, false}},
		{"and back", []Stage{stage(0, a, true, true, true), stage(10, b, true, true, true), stage(20, a, true, true, true)}, Slot{a, a, true, false}},
		{"its backend failed", []Stage{stage(0, a, true, true, true), stage(10, b, false, true, true)}, Slot{Current: b, Base: b}},
		{"its backend failed and is back", []Stage{stage(0, a, true, true, true), stage(10, b, false, true, true), stage(20, a, true, true, true)}, Slot{a, b, true, false}},
		{"its base failed after it had moved", []Stage{stage(0, a, true, true, true), stage(10, b, true, true, true), stage(20, c, false, true, true)}, Slot{c, c, true, false}},
		{"no backend, and then another", []Stage{stage(0, a, true, true, true), {Since: start.Add(10 * time.Second), Alive: []bool{false, false, false}}, stage(20, b, false, true, true)}, Slot{Current: b, Base: b}},
		{"no backend for new flows, and then another", []Stage{stage(0, a, true, true, true), {Since: start.Add(10 * time.Second), Alive: []bool{true, false, false}}, stage(20, b, true, true, true)}, Slot{b, a, true, false}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Bases(tt.stages, 1, start.Add(100*time.Second), 10*time.Second)[0]; got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

// TestNoFlowBreaksWhoseBackendLives plays random changes of one slot, and flows of every
// kind that come and go meanwhile. What is older than a flow's lifetime is forgotten, as
// control does.
func TestNoFlowBreaksWhoseBackendLives(t *testing.T) {
	const backends, lifetime, settle = 5, 400 * time.Second, 30 * time.Second
	type flow struct {
		kind    Kind // of its packets but the first
		backend uint16
		begun   time.Time
		last    time.Time
		record  Recorded
	}
	broken, judged := 0, 0
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 0))
		now := time.Unix(1_700_000_000, 0)
		alive := make([]bool, backends)
		for i := range alive {
			alive[i] = true
		}
		var stages []Stage
		var flows []*flow
		change := func() {
			for i := range alive {
				alive[i] = alive[i] != (random.IntN(6) == 0)
			}
			var slot []uint16
			if b := random.IntN(backends); alive[b] {
				slot = []uint16{uint16(b)}
			} else if len(stages) > 0 && len(stages[len(stages)-1].Slots) > 0 && alive[stages[len(stages)-1].Slots[0]] {
				slot = stages[len(stages)-1].Slots
			}
			stages = append(stages, Stage{now, slot, append([]bool(nil), alive...)})
			for len(stages) > 1 && now.Sub(stages[1].Since) > lifetime {
				stages = stages[1:]
			}
			kept := flows[:0]
			for _, f := range flows {
				if alive[f.backend] {
					kept = append(kept, f)
				}
			}
			flows = kept
		}
		change()
		for range 4000 {
			now = now.Add(time.Duration(random.IntN(2000)) * time.Millisecond)
			for len(stages) > 1 && now.Sub(stages[1].Since) > lifetime {
				stages = stages[1:]
			}
			switch random.IntN(20) {
			case 0:
				change()
			case 1, 2, 3:
				f := &flow{kind: []Kind{Continues, Datagram}[random.IntN(2)], begun: now, last: now}
				first := Datagram
				if f.kind == Continues {
					first = []Kind{Opens, MayOpen}[random.IntN(2)]
				}
				slot := Bases(stages, 1, now, settle)[0]
				if slot.Base == None {
					continue
				}
				if slot.Current == None { // new flows have nowhere to go
					continue
				}
				if random.IntN(10) == 0 { // a flood, or caution
					first = first.Older(f.kind == Continues)
				}
				backend, record := slot.Decide(first, Recorded{})
				f.backend = backend
				if record {
					f.record = Recorded{backend, true}
				} else if slot.InTransition { // it counts as older than the first change
					f.begun = stages[1].Since
				}
				flows = append(flows, f)
			default:
				if len(flows) == 0 {
					continue
				}
				at := random.IntN(len(flows))
				f := flows[at]
				// Who is silent for as long as others settle is not known as an older one.
				if now.Sub(f.begun) > lifetime*9/10 || f.kind == Datagram && now.Sub(f.last) > settle*9/10 {
					flows = append(flows[:at], flows[at+1:]...)
					continue
				}
				slot := Bases(stages, 1, now, settle)[0]
				if slot.Current == None {
					continue
				}
				backend, record := slot.Decide(f.kind, f.record)
				if record {
					f.record = Recorded{backend, true}
				}
				f.last = now
				judged++
				if backend != f.backend {
					broken++
					t.Errorf("seed %d: a flow of %v goes to backend %d and not to %d, where it began: %+v of %s",
						seed, f.kind, backend, f.backend, slot, describe(stages))
					f.backend = backend
				}
			}
			if broken > 3 {
				t.FailNow()
			}
		}
	}
	if judged < 100_000 {
		t.Errorf("%d packets were looked at: too few to tell", judged)
	}
}

func describe(stages []Stage) string {
	text := ""
	for _, s := range stages {
		text += fmt.Sprintf(" %s %v %v", s.Since.Format("15:04:05"), s.Slots, s.Alive)
	}
	return text
}
