package cluster

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/halfproxy/halfproxy/lb"
)

var epoch = time.Unix(1_800_000_000, 0)

func after(d time.Duration) time.Time { return epoch.Add(d) }

func node(name string) memberlist.Node {
	return memberlist.Node{Name: name, Addr: net.IP{192, 0, 2, name[len(name)-1] - '0'}, Port: 7946}
}

// testRoster is lb1's, with lb2 listed.
func testRoster() roster {
	r := newRoster(node("lb1"), 10, production().limits, epoch)
	r.join(node("lb2"), epoch)
	return r
}

func stateOf(r *roster, name string, now time.Time) string {
	for _, m := range r.members(now) {
		if m.Name == name {
			return m.State
		}
	}
	return ""
}

func TestTheNewestRecordOfAMemberWinsWhateverTheOrder(t *testing.T) {
	report := func(config lb.Digest) lb.Report { return lb.Report{Config: config} }
	r := testRoster()
	for _, step := range []struct {
		name string
		v    version
		want outcome
	}{
		{"the first", version{5, 3}, newer},
		{"the same again", version{5, 3}, known},
		{"an older one, late", version{5, 2}, known},
		{"the next", version{5, 4}, newer},
		{"one of an earlier start with a higher sequence", version{4, 9}, known},
		{"the first of a later start", version{6, 1}, newer},
		{"the last of the start before, late", version{5, 5}, known},
	} {
		rec := mustRecord(t, "lb2", step.v, report(lb.Digest(step.v.boot<<8|step.v.sequence)))
		if got, why := r.take(rec, true, epoch, epoch); got != step.want || why != "" {
			t.Errorf("%s: got %v, refused %q, want %v", step.name, got, why, step.want)
		}
	}
	if got := r.records(epoch); len(got) != 1 || got[0].Report.Config != 6<<8|1 {
		t.Errorf("got %+v, want the first record of boot 6", got)
	}
}

func TestAHeartbeatTellsWhoIsBehind(t *testing.T) {
	r := testRoster() // boot 10
	r.transitions(epoch)
	beat := func(name, member string, v version, want pulse) {
		t.Helper()
		if got := r.beat(heartbeat{member, v}, epoch); got != want {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
	}
	beat("of a stranger", "lb9", version{5, 1}, pulse{})
	beat("of one without a record", "lb2", version{5, 0}, pulse{})
	beat("of one whose record never came", "lb2", version{5, 1}, pulse{behind: true})
	beat("of one whose clock went back", "lb2", version{4, 9}, pulse{past: true})

	r.take(mustRecord(t, "lb2", version{5, 2}, lb.Report{}), true, epoch, epoch)
	beat("of the record that is held", "lb2", version{5, 2}, pulse{})
	beat("of an older one, late", "lb2", version{5, 1}, pulse{})
	beat("of a newer one", "lb2", version{5, 3}, pulse{behind: true})
	beat("of a new start", "lb2", version{6, 0}, pulse{changed: true})
	if got := r.records(epoch); len(got) != 0 {
		t.Errorf("after a new start: got %v, want the old start's record gone", got)
	}
	if got, _ := r.take(mustRecord(t, "lb2", version{5, 9}, lb.Report{}), true, epoch, epoch); got != known {
		t.Error("a record of the old start was taken after the new one's heartbeat")
	}

	beat("of what we are ourselves", "lb1", version{10, 0}, pulse{})
	beat("of what we were", "lb1", version{9, 9}, pulse{})
	beat("of what we were, as we do not know", "lb1", version{11, 0}, pulse{beyond: true})
}

func TestAMemberIsAliveSilentLeftOrDead(t *testing.T) {
	r := testRoster()
	expect := func(what, want string, now time.Time) {
		t.Helper()
		if got := stateOf(&r, "lb2", now); got != want {
			t.Errorf("%s: got %q, want %q", what, got, want)
		}
	}
	expect("just joined", Alive, after(time.Second))
	expect("never heard of since", Silent, after(3*time.Second))
	r.beat(heartbeat{"lb2", version{1, 0}}, after(4*time.Second))
	expect("heard of", Alive, after(5*time.Second))
	expect("no longer", Silent, after(7*time.Second))
	r.take(mustRecord(t, "lb2", version{1, 1}, lb.Report{}), false, after(7*time.Second), after(7*time.Second))
	expect("a record of it came by way of another", Silent, after(7*time.Second))
	r.gone("lb2", after(8*time.Second))
	expect("gone", Dead, after(8*time.Second))
	r.take(mustRecord(t, "lb2", version{1, 2}, lb.Report{Leaving: true}), false, after(8*time.Second), after(8*time.Second))
	expect("its last record came after it went", Left, after(8*time.Second))
	r.join(node("lb2"), after(9*time.Second))
	expect("back", Alive, after(9*time.Second))
	r.gone("lb2", after(10*time.Second))
	expect("gone again, after it said so", Left, after(10*time.Second))
	expect("its record forgotten, itself not yet", Left, after(10*time.Second))
	if got := stateOf(&r, "lb1", after(time.Hour)); got != Alive {
		t.Errorf("oneself: got %q, want %q", got, Alive)
	}
}

func TestTransitionsAreToldOnce(t *testing.T) {
	r := testRoster()
	steps := []struct {
		now  time.Time
		want string
	}{
		{epoch, "lb1 ->alive lb2 ->alive "},
		{after(time.Second), ""},
		{after(3 * time.Second), "lb2 alive->silent "},
		{after(4 * time.Second), ""},
	}
	for _, step := range steps {
		got := ""
		for _, tr := range r.transitions(step.now) {
			got += fmt.Sprintf("%s %s->%s ", tr.Name, tr.from, tr.State)
		}
		if got != step.want {
			t.Errorf("at %v: got %q, want %q", step.now.Sub(epoch), got, step.want)
		}
	}
	if got := r.beat(heartbeat{"lb2", version{1, 0}}, after(5*time.Second)); !got.changed {
		t.Error("the heartbeat of a silent member changes nothing")
	}
}

func TestRecordsAreForgottenForGood(t *testing.T) {
	// lb3 is in the records alone: it was gone before we came.
	r := testRoster()
	limit := r.limits.forgetRecord
	r.take(mustRecord(t, "lb2", version{1, 1}, lb.Report{}), true, epoch, epoch)
	r.take(mustRecord(t, "lb3", version{1, 1}, lb.Report{}), false, epoch.Add(-time.Minute), epoch)
	if got := r.records(epoch); len(got) != 2 || !got[1].Heard.Equal(epoch.Add(-time.Minute)) {
		t.Errorf("got %+v, want two records, lb3's heard of a minute ago", got)
	}
	r.gone("lb2", epoch)
	if !r.forget(after(limit + time.Second)) {
		t.Error("nothing forgotten")
	}
	if got := r.records(after(limit)); len(got) != 0 {
		t.Errorf("got %+v, want no records", got)
	}

	// Another member's forgetting is due a little later than ours: what it
	// still hands us must not come back to life.
	now := after(limit + time.Second)
	for _, name := range []string{"lb2", "lb3"} {
		if got, _ := r.take(mustRecord(t, name, version{1, 1}, lb.Report{}), false, now.Add(-limit-time.Millisecond), now); got != known {
			t.Errorf("the forgotten record of %s was taken again", name)
		}
	}
	if got := fmt.Sprint(r.members(now)); got != "[{lb1 192.0.2.1:7946 alive} {lb2 192.0.2.2:7946 dead}]" {
		t.Errorf("members: got %s", got)
	}
	if got := fmt.Sprint(r.lost()); got != "[192.0.2.2:7946]" {
		t.Errorf("looked for: got %s, want lb2's address", got)
	}
	r.forget(after(r.limits.forgetDead + time.Second))
	if got := fmt.Sprint(r.members(now)); got != "[{lb1 192.0.2.1:7946 alive}]" {
		t.Errorf("members a day later: got %s", got)
	}
}

func TestOneWhoLeftIsNotLookedForAndSoonForgotten(t *testing.T) {
	r := testRoster()
	r.take(mustRecord(t, "lb2", version{1, 1}, lb.Report{Leaving: true}), true, epoch, epoch)
	r.gone("lb2", epoch)
	if got := r.lost(); len(got) != 0 {
		t.Errorf("looked for: got %v, want nobody", got)
	}
	r.forget(after(r.limits.forgetRecord + time.Second))
	if got := stateOf(&r, "lb2", after(time.Hour)); got != "" {
		t.Errorf("got %q, want it forgotten", got)
	}
}

func TestARecordOfOursThatIsNewerIsOutlived(t *testing.T) {
	r := testRoster() // boot 10
	report := lb.Report{Config: 7}
	encoded, err := encodeReport(report, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.publish(report, encoded)
	if got, _ := r.take(mustRecord(t, "lb1", version{9, 5}, lb.Report{}), false, epoch, epoch); got != known {
		t.Errorf("an older start's: got %v, want %v", got, known)
	}
	stray := mustRecord(t, "lb1", version{10, 2}, lb.Report{})
	if got, _ := r.take(stray, false, epoch, epoch); got != beyond {
		t.Fatalf("got %v, want %v", got, beyond)
	}
	r.outlive(stray.boot)
	own := r.own().record
	if want := (version{11, 1}); own.version != want || r.version() != want {
		t.Errorf("got %v, want %v", own.version, want)
	}
	if want := mustRecord(t, "lb1", version{11, 1}, report); string(own.raw) != string(want.raw) {
		t.Errorf("got %x, want %x", own.raw, want.raw)
	}
}

func TestThereIsAnEndToMembers(t *testing.T) {
	r := testRoster()
	refused := 0
	for i := range maxMembers {
		if _, why := r.take(mustRecord(t, fmt.Sprint(i), version{1, 1}, lb.Report{}), false, epoch, epoch); why == refusedCapacity {
			refused++
		}
	}
	if refused != 2 || len(r.peers) != maxMembers {
		t.Errorf("got %d refused, %d held, want 2, %d", refused, len(r.peers), maxMembers)
	}
}
