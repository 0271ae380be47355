package health

import (
	"cmp"
	"container/heap"
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/halfproxy/halfproxy/lb"
)

// maxProbes bounds the file descriptors and memory that probes take. It is
// reached when 8,000 targets a second are silent for half a second each;
// probes beyond it start late.
const maxProbes = 4096

// Config is what a Checker needs from its surroundings.
type Config struct {
	DialVIP    DialVIP               // nil: no target is asked at a VIP
	Log        *slog.Logger          // nil: no logs
	Registerer prometheus.Registerer // nil: no metrics
}

// Checker probes a set of targets and keeps what it finds of each.
type Checker struct {
	log     *slog.Logger
	metrics *metrics
	probe   func(context.Context, lb.Target) error
	changes chan struct{}
	wake    chan struct{} // the queue has changed: look at it again

	mu      sync.Mutex // guards what follows and every target
	targets map[lb.TargetID]*target
	queue   queue // the same targets
	running int   // probes
}

// target is a target with its schedule and its history.
type target struct {
	lb.Target
	id lb.TargetID

	due    time.Time          // when the next probe starts
	place  int                // in the queue
	probed bool               // a probe was started
	stop   context.CancelFunc // ends the running probe; nil when none is
	// overdue is a probe whose time came while the last one was under way: a
	// timeout just below the interval may end late by as much. Leaving it
	// out would double the time to see that a backend is dead.
	overdue bool
	// turn is the VIP that is asked for. After a success it is the next one's
	// turn; one that failed stays until it answers.
	turn int

	tally
	since    time.Time // of the state
	lastErr  string
	lastTook time.Duration

	duration prometheus.Observer
	failures prometheus.Counter
}

// Result is what is known of one target, for people.
type Result struct {
	Target       lb.Target
	State        lb.State
	Since        time.Time     // the state's
	LastError    string        // of the last probe; empty after a success
	LastDuration time.Duration // of the last probe
}

// New makes a Checker without targets. It probes nothing: that is Run's. It
// panics if the Registerer has a Checker's metrics already.
func New(cfg Config) *Checker {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Checker{
		log:     log.With("part", "health"),
		metrics: newMetrics(cfg.Registerer),
		probe:   newProber(cfg.DialVIP).probe,
		changes: make(chan struct{}, 1),
		wake:    make(chan struct{}, 1),
		targets: make(map[lb.TargetID]*target),
	}
}

// Run probes until ctx ends. It returns nil, after the last probe has ended.
func (c *Checker) Run(ctx context.Context) error {
	var probes sync.WaitGroup
	defer probes.Wait()
	c.scheduleAll()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-c.wake:
		}
		timer.Reset(c.startDue(ctx, &probes))
	}
}

// SetTargets makes targets the whole set. One that is there already, with
// nothing about it changed, keeps its history and its schedule; one that is
// missing is forgotten at once, its running probe ended. Calling it again with
// the same targets does nothing. The targets' checks have to be valid, with
// intervals above 0.
func (c *Checker) SetTargets(targets []lb.Target) {
	wanted := make(map[lb.TargetID]lb.Target, len(targets))
	for _, t := range targets {
		wanted[t.ID()] = t
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	changed := false
	// Removals first: a target that comes with another check has the same labels.
	for id, t := range c.targets {
		if _, ok := wanted[id]; !ok {
			c.remove(t)
			changed = true
		}
	}
	for id, t := range wanted {
		if _, ok := c.targets[id]; !ok {
			c.add(id, t)
			changed = true
		}
	}
	if changed {
		signal(c.wake)
		signal(c.changes)
	}
}

// Observations lists what is held of every target, sorted by target: Unknown
// until rise or fall is reached for the first time.
func (c *Checker) Observations() []lb.Observation {
	c.mu.Lock()
	list := make([]lb.Observation, 0, len(c.targets))
	for id, t := range c.targets {
		list = append(list, lb.Observation{Target: id, State: t.state})
	}
	c.mu.Unlock()
	slices.SortFunc(list, func(a, b lb.Observation) int { return cmp.Compare(a.Target, b.Target) })
	return list
}

// Results lists every target with its history, by service and backend.
func (c *Checker) Results() []Result {
	c.mu.Lock()
	list := make([]Result, 0, len(c.targets))
	for _, t := range c.targets {
		list = append(list, Result{
			Target: t.Target, State: t.state, Since: t.since, LastError: t.lastErr, LastDuration: t.lastTook,
		})
	}
	c.mu.Unlock()
	slices.SortFunc(list, func(a, b Result) int {
		return cmp.Or(cmp.Compare(a.Target.Service, b.Target.Service), cmp.Compare(a.Target.Backend, b.Target.Backend))
	})
	return list
}

// Changes gets a value when Observations has changed since the last value was
// taken.
func (c *Checker) Changes() <-chan struct{} { return c.changes }

func (c *Checker) add(id lb.TargetID, wanted lb.Target) {
	now := time.Now()
	t := &target{
		Target:   wanted,
		id:       id,
		due:      firstDue(now, wanted.Check),
		since:    now,
		duration: c.metrics.duration.WithLabelValues(wanted.Service, wanted.Backend),
		failures: c.metrics.failures.WithLabelValues(wanted.Service, wanted.Backend),
	}
	c.targets[id] = t
	heap.Push(&c.queue, t)
}

func (c *Checker) remove(t *target) {
	delete(c.targets, t.id)
	heap.Remove(&c.queue, t.place)
	if t.stop != nil {
		t.stop()
	}
	c.metrics.remove(t.Service, t.Backend)
}

// scheduleAll gives every target a first probe: whatever was due while nobody
// ran the Checker would else be done all at once.
func (c *Checker) scheduleAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for _, t := range c.queue {
		t.due, t.probed = firstDue(now, t.Check), false
	}
	heap.Init(&c.queue)
}

// startDue starts the probes that are due and tells how long it is until the
// next one will be.
func (c *Checker) startDue(ctx context.Context, probes *sync.WaitGroup) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	// With no target, or no room for a probe, there will be a signal before.
	const idle = time.Hour
	for len(c.queue) > 0 && c.running < maxProbes {
		t, now := c.queue[0], time.Now()
		if wait := t.due.Sub(now); wait > 0 {
			return wait
		}
		if t.stop == nil {
			c.running++
			probeCtx, stop := context.WithCancel(ctx)
			t.stop = stop
			probes.Go(func() { c.run(probeCtx, t) })
		} else {
			t.overdue = true
		}
		t.schedule(now)
		heap.Fix(&c.queue, 0)
	}
	return idle
}

// run makes one probe of t and those whose time came meanwhile.
func (c *Checker) run(ctx context.Context, t *target) {
	for again := true; again; {
		start := time.Now()
		err := c.probe(ctx, t.inTurn())
		var changed bool
		changed, again = c.finish(ctx, t, err, time.Since(start))
		switch {
		case !changed:
		case err != nil:
			c.log.Warn("backend is down for this node", "service", t.Service, "backend", t.Backend, "err", err)
		default:
			c.log.Info("backend is up for this node", "service", t.Service, "backend", t.Backend)
		}
	}
}

// finish counts the result of a probe, unless nobody wants it any more. It
// tells whether t's state changed and whether t's next probe is overdue.
func (c *Checker) finish(ctx context.Context, t *target, err error, took time.Duration) (changed, again bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	wanted := ctx.Err() == nil
	if wanted {
		t.lastErr, t.lastTook = "", took
		t.duration.Observe(took.Seconds())
		if err != nil {
			t.lastErr = err.Error()
			t.failures.Inc()
		} else {
			t.turn++
		}
		if changed = t.count(err == nil, t.Check); changed {
			t.since = time.Now()
			signal(c.changes)
		}
	}
	again = wanted && t.overdue
	t.overdue = false
	if !again {
		t.stop()
		t.stop = nil
		if c.running == maxProbes {
			signal(c.wake)
		}
		c.running--
	}
	return changed, again
}

// inTurn is t with the VIP alone that is to be asked for.
func (t *target) inTurn() lb.Target {
	asked := t.Target
	if n := len(t.VIPs); n > 0 {
		asked.VIPs = t.VIPs[t.turn%n:][:1]
	}
	return asked
}

// firstDue is soon, but not at once: a node that starts, or a reload that adds
// many targets, must not probe all in the same instant.
func firstDue(now time.Time, check lb.Check) time.Time {
	return now.Add(rand.N(min(check.Interval, time.Second)))
}

// schedule sets the time of the probe after the one that starts now.
func (t *target) schedule(now time.Time) {
	interval := t.Check.Interval
	if t.probed {
		t.due = t.due.Add(interval)
	} else {
		// The first probes lie within a second, the second ones anywhere in
		// the interval: no part of it has more to do than another.
		t.due = t.due.Add(rand.N(interval))
		t.probed = true
	}
	// A machine that stood still catches up with none of the probes it missed.
	if late := now.Sub(t.due); late >= 0 {
		t.due = t.due.Add((late/interval + 1) * interval)
	}
}

// queue is a heap of targets by due.
type queue []*target

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

func (q *queue) Push(x any) {
	t := x.(*target)
	t.place = len(*q)
	*q = append(*q, t)
}

func (q *queue) Pop() any {
	last := len(*q) - 1
	t := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return t
}

// signal leaves a value in a channel of capacity 1, if there is none yet.
func signal(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
