package cluster

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

// What members tell is lost, doubled and out of order on its way. However that was,
// once the last word of each has come all hold the same.
func TestMembersHoldTheSameWhateverBecameOfTheirMessages(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 0))
		one, other := testRoster(), testRoster()
		var messages []any
		for m := range 3 {
			name := fmt.Sprint("m", m)
			now := after(0)
			for _, r := range []*roster{&one, &other} {
				r.join(node(name), now)
			}
			var told *record
			for sequence := range uint64(8) {
				report := normal(lb.Report{Config: lb.Digest(random.IntN(3))}, nil)
				for target := range 6 {
					if random.IntN(4) > 0 {
						report.Observations = append(report.Observations, drawObservation(random, target))
					}
				}
				report.Steps = drawSteps(random)
				report = normal(report, nil)
				r := mustRecord(t, name, version{1 + sequence/4, 1 + sequence%4}, report)
				messages = append(messages, news{r}, relay{time.Millisecond, r}, heartbeat{name, r.version})
				if told != nil && told.boot == r.boot {
					c, ok := diff(told.report, r.report)
					if !ok {
						t.Fatal("no change tells the difference")
					}
					c.member, c.base, c.sequence = name, told.version, r.sequence
					messages = append(messages, c)
				}
				told = r
			}
		}
		last := make(map[string]news)
		for _, m := range messages {
			if n, ok := m.(news); ok {
				last[n.record.member] = n
			}
		}
		for _, r := range []*roster{&one, &other} {
			mixed := append([]any(nil), messages...)
			mixed = append(mixed, messages...)
			random.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
			for i, m := range mixed[:len(mixed)/2] { // the rest is lost
				deliver(r, m, after(time.Duration(i)*time.Millisecond))
			}
			for _, n := range last {
				deliver(r, n, after(time.Second))
			}
		}
		if got, want := reports(&one), reports(&other); !reflect.DeepEqual(got, want) || len(got) != 3 {
			t.Fatalf("seed %d: one holds\n%v\nthe other\n%v", seed, got, want)
		}
		for name, n := range last {
			if got := reports(&one)[name]; !reflect.DeepEqual(got, n.record.report) {
				t.Fatalf("seed %d: of %s is held\n%v\nwant its last\n%v", seed, name, got, n.record.report)
			}
		}
	}
}

// drawSteps gives histories with much in common.
func drawSteps(random *rand.Rand) map[string]lb.History {
	var steps map[string]lb.History
	for service := range 2 {
		h := lb.History{Quiet: random.IntN(4) == 0}
		if random.IntN(4) == 0 {
			h.Held = []string{"b1"}
		}
		for i := range 6 {
			if random.IntN(3) == 0 {
				continue
			}
			s := lb.Step{Since: time.UnixMilli(int64(1000 + i/2)).UTC()} // two of the same moment
			for b := range 5 {
				if (b+i)%3 > 0 || random.IntN(4) == 0 {
					s.Backends = append(s.Backends, lb.Backend{
						Name: fmt.Sprint("b", b), Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(random.IntN(12) / 11)}), Weight: i / 3,
					})
				}
			}
			h.Steps = append(h.Steps, s)
		}
		if random.IntN(4) > 0 {
			steps = with(steps, fmt.Sprint("service", service), h)
		}
	}
	return steps
}

// deliver does with a message what Cluster does, but for asking.
func deliver(r *roster, message any, now time.Time) {
	switch m := message.(type) {
	case heartbeat:
		r.beat(m, now)
	case news:
		r.take(m.record, true, now, now)
	case relay:
		r.take(m.record, false, now.Add(-m.age), now)
	case change:
		if amended, _ := r.amend(m); amended != nil {
			r.take(amended, true, now, now)
		}
	}
}

func reports(r *roster) map[string]lb.Report {
	held := make(map[string]lb.Report)
	for _, record := range r.records(after(time.Second)) {
		held[record.Member] = record.Report
	}
	return held
}
