package control

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/halfproxy/halfproxy/internal/clock"
	"github.com/halfproxy/halfproxy/lb"
	"github.com/halfproxy/halfproxy/maglev"
)

// randomHistory has steps at whole seconds, some of them at the same one.
func randomHistory(random *rand.Rand, start time.Time) lb.History {
	var h lb.History
	for range random.IntN(6) {
		var set []lb.Backend
		for b := range 3 {
			if random.IntN(2) > 0 {
				set = append(set, lb.Backend{Name: fmt.Sprint("b", b), Weight: 100 * random.IntN(2)})
			}
		}
		h.Steps = append(h.Steps, lb.Step{Since: start.Add(time.Duration(random.IntN(10)) * time.Second), Backends: set})
	}
	slices.SortStableFunc(h.Steps, compareSteps)
	if random.IntN(3) == 0 {
		h.Begin = start.Add(time.Duration(random.IntN(10)) * time.Second)
	}
	return h
}

// TestMembersComeToHoldTheSameSteps: in whatever order they hear of each other's.
func TestMembersComeToHoldTheSameSteps(t *testing.T) {
	const seed, lifetime = 1, 8 * time.Second
	random := rand.New(rand.NewPCG(seed, 0))
	start := time.Unix(1_700_000_000, 0).UTC()
	now := start.Add(12 * time.Second)
	for n := range 5000 {
		var members [3]lb.History
		for i := range members {
			members[i] = canonical(randomHistory(random, start), nil, now, lifetime)
		}
		first := members
		for range random.IntN(6) {
			i, j := random.IntN(3), random.IntN(3)
			members[i] = canonical(union(members[i], members[j]), nil, now, lifetime)
		}
		for range 2 {
			for i := range members {
				for _, other := range members {
					members[i] = canonical(union(members[i], other), nil, now, lifetime)
				}
			}
		}
		if !equalHistories(members[0], members[1]) || !equalHistories(members[0], members[2]) {
			t.Fatalf("history %d (seed %d): got\n%v\n%v\n%v\nof\n%v\n%v\n%v", n, seed, members[0], members[1], members[2], first[0], first[1], first[2])
		}
	}
}

// TestBasesAreTheSameHoweverTheStepsCame: one after the other, or all at once.
func TestBasesAreTheSameHoweverTheStepsCame(t *testing.T) {
	const seed, lifetime, settle = 1, 8 * time.Second, 2500 * time.Millisecond // never just over
	random := rand.New(rand.NewPCG(seed, 0))
	start := time.Unix(1_700_000_000, 0).UTC()
	transitions := 0
	for n := range 300 {
		p, now := &passage{}, start.Add(10*time.Second)
		for round := range 8 {
			now = now.Add(time.Duration(random.IntN(4)) * time.Second)
			if random.IntN(3) == 0 {
				p.take(union(p.history, randomHistory(random, now.Add(-9*time.Second))), now, lifetime)
			}
			var alive []lb.Backend
			for b := range 3 {
				if random.IntN(4) > 0 {
					alive = append(alive, lb.Backend{Name: fmt.Sprint("b", b), Weight: 100})
				}
			}
			table := lb.Table{Service: lb.Service{Name: "web", FlowLifetime: 4 * settle}, Backends: alive, Alive: alive}
			var weighted []maglev.Backend
			for _, b := range alive {
				weighted = append(weighted, maglev.Backend{Name: b.Name, Weight: b.Weight})
			}
			table.Slots = maglev.Table("web", weighted, 1021)
			p.step(alive, now, lifetime)
			fresh, again := &passage{history: p.history, own: p.own, known: true}, table
			p.lay(&table, table.Digest(), now)
			fresh.lay(&again, again.Digest(), now)
			if !slices.Equal(table.Bases, again.Bases) || p.laid.digest != fresh.laid.digest || p.laid.whole != fresh.laid.whole {
				t.Fatalf("passage %d, round %d (seed %d): the bases of %v depend on how its steps came", n, round, seed, p.history)
			}
			if table.Bases != nil {
				transitions++
			}
		}
	}
	if transitions < 300 {
		t.Errorf("only %d tables were in transition", transitions)
	}
}

// What a step is to flows depends on how long ago it was, not on what anybody's clock says.
func TestAClockThatIsSetNeitherEndsATransitionNorMakesItLast(t *testing.T) {
	const hours = 6 * time.Hour
	alive := []lb.Backend{{Name: "b0", Weight: 100}, {Name: "b1", Weight: 100}}
	service := lb.Service{Name: "web"}
	lifetime, settle := service.Lifetime(), service.Settle()
	start := time.Now()
	at := func(after, set time.Duration) time.Time { return clock.Set(t, start.Add(after), set) }
	for _, tt := range []struct {
		name      string
		set, then time.Duration // by how much the clock is set, when all is looked at and when it changes
		theirs    bool          // the change was a member's first whose clock is ahead
	}{
		{name: "set forward after a change", set: hours},
		{name: "set back after a change", set: -hours},
		{name: "set forward before it", set: hours, then: hours},
		{name: "set back before it", set: -hours, then: -hours},
		{name: "another member's is ahead", theirs: true},
	} {
		p := &passage{}
		p.step(alive[:1], at(-time.Minute, 0), lifetime)
		if tt.theirs {
			h := union(p.history, lb.History{Steps: []lb.Step{{Since: wire(at(0, hours)), Backends: alive}}})
			p.made.learn(h, at(0, 0))
			p.take(h, at(0, 0), lifetime)
		}
		p.step(alive, at(0, tt.then), lifetime)
		c := &Controller{begun: at(-time.Hour, 0), Config: Config{Dataplane: &world{}}}
		for _, look := range []struct {
			after           time.Duration
			settles, passes bool
		}{
			{settle - time.Second, true, true},
			{settle + time.Second, false, true},
			{lifetime - time.Second, false, true},
			{lifetime + time.Second, false, false},
		} {
			now := at(look.after, tt.set)
			p.made.learn(p.history, now)
			p.take(p.history, now, lifetime)
			table := lb.Table{Service: service, Backends: alive, Alive: alive, Slots: maglev.Table("web", []maglev.Backend{{Name: "b0", Weight: 100}, {Name: "b1", Weight: 100}}, 1021)}
			p.lay(&table, table.Digest(), now)
			settles := slices.ContainsFunc(table.Bases, func(b lb.Base) bool { return b.Settling })
			if settles != look.settles || (table.Bases != nil) != look.passes {
				t.Errorf("%s, %v after the change: settles %t, in transition %t; want %t and %t", tt.name, look.after, settles, table.Bases != nil, look.settles, look.passes)
			}
			if quiet, want := c.quiet("web", p.history, p.made, service.Quiet(), now), look.passes && look.after > service.Quiet(); quiet != want {
				t.Errorf("%s, %v after the change: quiet %t, want %t", tt.name, look.after, quiet, want)
			}
		}
	}
}

// fleet is some controllers that hear each other's reports after a while.
type fleet struct {
	mu      sync.Mutex
	members map[string]*fleetMember
}

type fleetMember struct {
	world
	fleet   *fleet
	name    string
	control *Controller
	reports []lb.Record // what the others hear, each from its time on
	tables  []lb.Table
}

func (m *fleetMember) Publish(r lb.Report) {
	m.fleet.mu.Lock()
	defer m.fleet.mu.Unlock()
	m.reports = append(m.reports, lb.Record{Member: m.name, Heard: time.Now(), Report: r})
}

// lag is how long news takes from one member to another.
func lag(from, to string) time.Duration {
	return time.Duration(7+13*int(from[2])%40+11*int(to[2])%50) * time.Millisecond
}

func (m *fleetMember) Records() []lb.Record {
	m.fleet.mu.Lock()
	defer m.fleet.mu.Unlock()
	var records []lb.Record
	for _, o := range m.fleet.members {
		for _, r := range slices.Backward(o.reports) {
			if time.Since(r.Heard) >= lag(o.name, m.name) {
				r.Heard = time.Now()
				records = append(records, r)
				break
			}
		}
	}
	slices.SortFunc(records, func(a, b lb.Record) int { return cmp.Compare(a.Member, b.Member) })
	return records
}

func (m *fleetMember) Apply(_ context.Context, tables []lb.Table) error {
	m.fleet.mu.Lock()
	defer m.fleet.mu.Unlock()
	m.tables = tables
	return nil
}

func (m *fleetMember) Observations() []lb.Observation {
	m.world.mu.Lock()
	defer m.world.mu.Unlock()
	return m.world.members["lb1"].Report.Observations
}

func (f *fleet) join(ctx context.Context, t *testing.T, name string, service lb.Service) *fleetMember {
	m := &fleetMember{world: world{t: t, services: []lb.Service{service}, members: map[string]*lb.Record{"lb1": {Member: "lb1"}}}, fleet: f, name: name}
	m.control = New(Config{
		Node: name, Size: 3, PartitionHold: 15 * time.Second, Secret: []byte("secret"),
		Dataplane: m, Announcer: m, Cluster: m, Checker: m, Log: slog.New(slog.DiscardHandler),
	})
	f.mu.Lock()
	f.members[name] = m
	f.mu.Unlock()
	m.control.SetServices([]lb.Service{service})
	go m.control.Run(ctx)
	return m
}

// TestMembersHaveTheSameBases: news reaches each at another time, changes overlap, and
// one joins in the middle of it.
func TestMembersHaveTheSameBases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		service := lb.Service{Name: "web", MinHealthy: lb.Quorum{Value: 1}, FlowLifetime: 10 * time.Minute}
		for i := range 6 {
			service.Backends = append(service.Backends, lb.Backend{Name: fmt.Sprintf("web%d", i), Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), Weight: 100})
		}
		f := &fleet{members: make(map[string]*fleetMember)}
		states := make(map[string]string)
		see := func(m *fleetMember) {
			m.world.mu.Lock()
			for name, state := range states {
				m.observe(&m.world.members["lb1"].Report, name, state)
			}
			m.world.mu.Unlock()
			m.control.Wake()
		}
		for i := range 6 {
			states[fmt.Sprintf("web%d", i)] = "up"
		}
		for _, name := range []string{"lb1", "lb2", "lb3"} {
			see(f.join(ctx, t, name, service))
		}
		// agree tells whether all have the same tables, and how many slots are in transition.
		agree := func(when string) int {
			time.Sleep(2 * time.Second)
			f.mu.Lock()
			defer f.mu.Unlock()
			inTransition := -1
			var want []lb.Base
			for _, name := range []string{"lb1", "lb2", "lb3", "lb4"} {
				m := f.members[name]
				if m == nil {
					continue
				}
				n := 0
				for _, b := range m.tables[0].Bases {
					if b.InTransition {
						n++
					}
				}
				if inTransition < 0 {
					inTransition, want = n, m.tables[0].Bases
				} else if !slices.Equal(m.tables[0].Bases, want) {
					t.Errorf("%s: %s has other bases than lb1: %d slots in transition and not %d", when, name, n, inTransition)
				}
			}
			return inTransition
		}
		change := func(name, state string) {
			states[name] = state
			for _, m := range f.members {
				see(m)
				time.Sleep(17 * time.Millisecond)
			}
		}
		if n := agree("at first"); n != 0 {
			t.Errorf("at first %d slots in transition, want none", n)
		}
		change("web0", "down")
		first := agree("after the first change")
		change("web0", "up")
		change("web1", "down")
		second := agree("after more")
		if first == 0 || second <= first {
			t.Errorf("slots in transition: %d, then %d, want ever more", first, second)
		}
		see(f.join(ctx, t, "lb4", service))
		if n := agree("after one has joined"); n != second {
			t.Errorf("after one has joined: %d slots in transition, want %d", n, second)
		}
		f.mu.Lock()
		reports := slices.Clone(f.members["lb4"].reports)
		f.mu.Unlock()
		for _, report := range reports {
			for _, told := range report.Report.Steps {
				if len(told.Steps) > 4 {
					t.Errorf("%d steps are told of, want those that there were", len(told.Steps))
				}
			}
		}
		time.Sleep(11 * time.Minute)
		if n := agree("at last"); n != 0 {
			t.Errorf("at last %d slots in transition, want none", n)
		}
		cancel()
		synctest.Wait()
	})
}

// TestMembersThatStartTogetherEndTheSame: each sees backends down first and up a little
// later, and all at times of their own.
func TestMembersThatStartTogetherEndTheSame(t *testing.T) {
	service := lb.Service{Name: "web", MinHealthy: lb.Quorum{Value: 1}, FlowLifetime: 10 * time.Minute}
	for i := range 3 {
		service.Backends = append(service.Backends, lb.Backend{Name: fmt.Sprintf("web%d", i), Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), Weight: 100})
	}
	for seed := range uint64(100) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			ctx, cancel := context.WithCancel(t.Context())
			f := &fleet{members: make(map[string]*fleetMember)}
			var starting sync.WaitGroup
			for _, name := range []string{"lb1", "lb2", "lb3"} {
				starts := time.Duration(random.IntN(2500)) * time.Millisecond
				downs, ups := make([]time.Duration, 3), make([]time.Duration, 3)
				for i := range downs {
					downs[i] = time.Duration(random.IntN(400)) * time.Millisecond
					ups[i] = downs[i] + time.Duration(random.IntN(1200))*time.Millisecond
				}
				starting.Go(func() {
					time.Sleep(starts)
					m := f.join(ctx, t, name, service)
					see := func(at time.Duration, backend, state string) {
						time.Sleep(at)
						m.world.mu.Lock()
						m.observe(&m.world.members["lb1"].Report, backend, state)
						m.world.mu.Unlock()
						m.control.Wake()
					}
					for i := range downs {
						starting.Go(func() {
							see(downs[i], service.Backends[i].Name, "down")
							see(ups[i]-downs[i], service.Backends[i].Name, "up")
						})
					}
				})
			}
			starting.Wait()
			time.Sleep(3 * time.Second)
			cancel()
			synctest.Wait()
			lb1 := f.members["lb1"]
			for _, name := range []string{"lb2", "lb3"} {
				if m := f.members[name]; !slices.Equal(m.tables[0].Bases, lb1.tables[0].Bases) {
					t.Errorf("seed %d: %s has other bases than lb1: steps\n%v\n%v", seed, name, m.control.passages["web"].history, lb1.control.passages["web"].history)
				}
			}
		})
	}
}
