package control

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/halfproxy/halfproxy/lb"
)

// crowd is members that check what they are assigned, one round after the other: in
// each they have an opinion of what they checked in the round before, and all see
// that of all.
type crowd struct {
	plan    plan
	records map[string]lb.Record
}

func newCrowd(k int, members ...string) *crowd {
	s := lb.Service{Name: "web", Observers: k}
	for i := range 500 {
		s.Backends = append(s.Backends, lb.Backend{Name: fmt.Sprint("web", i), Address: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), Weight: 1})
	}
	c := &crowd{plan: newPlan([]lb.Service{s}), records: make(map[string]lb.Record)}
	for _, m := range members {
		c.join(m)
	}
	return c
}

func (c *crowd) join(member string) { c.records[member] = lb.Record{Member: member} }

// round gives how many members check each target, and how many have an opinion.
func (c *crowd) round() (checking, holding []int) {
	checking, holding = make([]int, len(c.plan.targets)), make([]int, len(c.plan.targets))
	next := make(map[string]lb.Record)
	for name, r := range c.records {
		var others []lb.Record
		for _, other := range c.records {
			if other.Member != name {
				others = append(others, other)
			}
		}
		known := make(map[lb.TargetID]bool)
		for _, o := range r.Report.Observations {
			known[o.Target] = true
		}
		now := lb.Record{Member: name}
		for _, i := range c.plan.assigned(name, others) {
			checking[i]++
			if known[c.plan.targets[i]] {
				holding[i]++
			}
			now.Report.Observations = append(now.Report.Observations, lb.Observation{Target: c.plan.targets[i], State: lb.Up})
		}
		next[name] = now
	}
	c.records = next
	return checking, holding
}

func TestEachBackendIsCheckedByAsManyMembersAsAskedFor(t *testing.T) {
	members := []string{"lb1", "lb2", "lb3", "lb4", "lb5", "lb6", "lb7", "lb8", "lb9"}
	for k := 1; k <= 4; k++ {
		c := newCrowd(k, members...)
		for range 3 {
			c.round()
		}
		checking, holding := c.round()
		share := make(map[string]int)
		for name, r := range c.records {
			share[name] = len(r.Report.Observations)
		}
		if slices.Min(checking) != k || slices.Max(checking) != k || slices.Min(holding) != k {
			t.Errorf("k %d: got %d to %d members that check, want %d", k, slices.Min(checking), slices.Max(checking), k)
		}
		for name, n := range share {
			if fair := k * len(c.plan.targets) / len(members); n < fair/2 || n > 2*fair {
				t.Errorf("k %d: %s checks %d backends, want about %d", k, name, n, fair)
			}
		}
	}
}

// Members come and go, one every third round.
func TestNoBackendIsEverWithoutAnObserver(t *testing.T) {
	const k = 2
	c := newCrowd(k, "lb1", "lb2", "lb3", "lb4")
	for range 3 {
		c.round()
	}
	for step, change := range []func(){
		func() { c.join("lb5") },
		func() { delete(c.records, "lb1") },
		func() { c.join("lb6") },
		func() { c.join("lb1") },
		func() { delete(c.records, "lb5") },
		func() { delete(c.records, "lb6") },
		func() { delete(c.records, "lb2") },
	} {
		change()
		for round := range 3 {
			_, holding := c.round()
			if least := slices.Min(holding); least < 1 {
				t.Fatalf("step %d, round %d: a backend has %d observers with an opinion", step, round, least)
			}
		}
		checking, holding := c.round()
		if slices.Min(holding) != k || slices.Max(checking) != k {
			t.Errorf("step %d: got %d to %d members that check each backend, want %d again", step, slices.Min(holding), slices.Max(checking), k)
		}
	}
}

func TestFewMembersCheckEverything(t *testing.T) {
	c := newCrowd(3, "lb1", "lb2")
	for range 3 {
		if checking, _ := c.round(); slices.Min(checking) != 2 {
			t.Errorf("got a backend that %d of 2 members check", slices.Min(checking))
		}
	}
}

func TestServicesThatShareACheckGetTheGreaterNumberOfObservers(t *testing.T) {
	service := func(name string, k int) lb.Service {
		return lb.Service{Name: name, Observers: k, Backends: []lb.Backend{{Name: "b", Address: netip.MustParseAddr("10.0.0.1")}}}
	}
	for _, tt := range []struct{ a, b, want int }{{1, 2, 2}, {3, 2, 3}, {0, 2, 0}, {2, 0, 0}} {
		p := newPlan([]lb.Service{service("x", tt.a), service("y", tt.b)})
		if len(p.targets) != 1 {
			t.Fatalf("got %d targets, want one that both services share", len(p.targets))
		}
		if got := p.observers[0]; got != tt.want {
			t.Errorf("%d and %d: got %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}
