package cluster

import (
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

// eventful is a report with a history of so many steps, each of which takes another one of
// so many backends out or puts it back.
func eventful(backends, steps int) lb.Report {
	var all []lb.Backend
	for i := range backends {
		all = append(all, lb.Backend{Name: fmt.Sprintf("web%04d", i), Address: netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), Weight: 100})
	}
	var h lb.History
	for i := range steps {
		set := append([]lb.Backend(nil), all...)
		if i%2 == 1 {
			at := i * 7 % backends
			set = append(set[:at], set[at+1:]...)
		}
		h.Steps = append(h.Steps, lb.Step{Since: time.UnixMilli(int64(1000 + i)).UTC(), Backends: set})
	}
	report := sample(backends)
	report.Config = lb.Digest(steps)
	report.Steps = map[string]lb.History{"web": h}
	return report
}

// history is what m holds of name's.
func (m *member) history(name string) lb.History {
	for _, r := range m.Records() {
		if r.Member == name {
			return r.Report.Steps["web"]
		}
	}
	return lb.History{}
}

// A history grows to many times what a packet takes, and a step of it still travels in one.
func TestAStepFitsAPacketWhateverTheHistory(t *testing.T) {
	t.Parallel()
	const first, last = 100, 120
	for steps := first; steps < last; steps++ {
		if n := len(changeOf(t, eventful(1000, steps), eventful(1000, steps+1)).encode()); n > 200 {
			t.Errorf("step %d takes %d bytes", steps, n)
		}
	}
	members := launchAll(t, 2)
	members[0].Publish(eventful(1000, first))
	members[1].waitConfig(5*time.Second, "lb1", first)
	time.Sleep(100 * time.Millisecond) // it was sent
	members[0].faults.refuseDials()
	for steps := first + 1; steps <= last; steps++ {
		want := eventful(1000, steps)
		members[0].Publish(want)
		members[1].waitConfig(5*time.Second, "lb1", want.Config)
		if got := members[1].history("lb1"); !equalHistories(got, want.Steps["web"]) {
			t.Fatalf("after %d steps the histories differ", steps)
		}
	}
}

// Who missed a step, who joins, and who has started anew come to hold the whole history.
func TestWhoLacksStepsGetsThem(t *testing.T) {
	t.Parallel()
	at := loopback()
	one, other := launch(t, configOf("lb1", loopback(), at)), launch(t, configOf("lb2", at))
	for _, m := range []*member{one, other} {
		m.waitStates(5*time.Second, Alive, Alive)
	}
	holds := func(m *member, steps int) {
		t.Helper()
		m.waitConfig(5*time.Second, "lb1", lb.Digest(steps))
		if !equalHistories(m.history("lb1"), eventful(300, steps).Steps["web"]) {
			t.Errorf("%s holds other steps than the %d that lb1 told", m.cfg.Name, steps)
		}
	}
	one.Publish(eventful(300, 5))
	holds(other, 5)

	one.faults.setPackets(func(string) bool { return true })
	one.Publish(eventful(300, 6))
	time.Sleep(300 * time.Millisecond)
	one.faults.setPackets(nil)
	one.Publish(eventful(300, 7))
	holds(other, 7)

	// A joiner knows the steps from anybody, and follows those that come.
	late := launch(t, configOf("lb3", loopback(), at))
	holds(late, 7)
	one.Publish(eventful(300, 8))
	holds(late, 8)

	if err := other.stop(); err != nil {
		t.Fatal(err)
	}
	again := launch(t, configOf("lb2", at, late.cfg.Listen))
	holds(again, 8)
	one.Publish(eventful(300, 9))
	holds(again, 9)
}

// Fifty members that tell the same steps are held with one copy of the sets.
func TestMembersRecordsShareTheirSets(t *testing.T) {
	r := testRoster()
	for i := range 3 {
		name := fmt.Sprint("m", i)
		r.join(node(name), after(0))
		encoded := mustRecord(t, name, version{1, 1}, eventful(100, 4)).raw
		reader := reader{b: encoded}
		r.take(reader.record(len(encoded)), true, after(0), after(0))
		c := changeOf(t, eventful(100, 4), eventful(100, 5))
		c.member, c.base, c.sequence = name, version{1, 1}, 2
		m, why := decode(c.encode())
		if why != "" {
			t.Fatal(why)
		}
		rec, why := r.amend(m.(change))
		if why != "" {
			t.Fatal(why)
		}
		r.take(rec, true, after(0), after(0))
	}
	first := r.peers["m0"].record.report.Steps["web"].Steps
	if len(first) != 5 {
		t.Fatalf("got %d steps, want 5", len(first))
	}
	for _, name := range []string{"m1", "m2"} {
		for i, s := range r.peers[name].record.report.Steps["web"].Steps {
			if &s.Backends[0] != &first[i].Backends[0] {
				t.Errorf("%s has a copy of step %d", name, i)
			}
		}
	}
}

// What came as changes is handed on as the member itself would tell it.
func TestARecordOfChangesIsEncodedAsTheMembersOwn(t *testing.T) {
	r := testRoster()
	r.join(node("lb2"), after(0))
	r.take(mustRecord(t, "lb2", version{3, 4}, eventful(20, 4)), true, after(0), after(0))
	c := changeOf(t, eventful(20, 4), eventful(20, 9))
	c.member = "lb2"
	rec, why := r.amend(c)
	if why != "" {
		t.Fatal(why)
	}
	if got, want := rec.encoded(), mustRecord(t, "lb2", version{3, 5}, eventful(20, 9)).raw; !reflect.DeepEqual(got, want) {
		t.Errorf("got %x\nwant %x", got, want)
	}
}

// An amendment of another history than the one that is held changes nothing.
func TestAnAmendmentThatDoesNotFitIsRefused(t *testing.T) {
	two := eventful(3, 2).Steps["web"]
	for _, tt := range []struct {
		name string
		a    amendment
	}{
		{"a step gone that there is not", amendment{gone: []uint16{2}}},
		{"a step too far behind", amendment{added: []addition{{at: 3, since: time.UnixMilli(2000)}}}},
		{"a step before earlier ones", amendment{added: []addition{{at: 2, since: time.UnixMilli(1)}}}},
		{"a backend gone that was not there", amendment{added: []addition{{at: 2, since: time.UnixMilli(2000), differs: []lb.Backend{{Name: "db"}}}}}},
		{"a backend that is as it was", amendment{added: []addition{{at: 2, since: time.UnixMilli(2000), differs: two.Steps[1].Backends[:1]}}}},
	} {
		room := maxPlaces
		if got, ok := tt.a.apply(two, &room); ok {
			t.Errorf("%s: got %v", tt.name, got)
		}
	}
	room := 5
	if _, ok := (amendment{added: []addition{{at: 2, since: time.UnixMilli(2000), differs: []lb.Backend{{Name: "web0000"}}}}}).apply(two, &room); !ok || room != 4 {
		t.Errorf("with room for 5 a set of 1 is refused, or leaves room for %d", room)
	}
	if _, ok := (amendment{added: []addition{{at: 0, since: time.UnixMilli(1), differs: two.Steps[0].Backends}, {at: 1, since: time.UnixMilli(1), differs: []lb.Backend{{Name: "web0000"}}}}}).apply(two, &room); ok {
		t.Error("with room for 4 backends sets of 5 are taken")
	}
}
