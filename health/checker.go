package health

import (
	"cmp"
	"container/heap"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/halfproxy/halfproxy/lb"
)

const (
	// maxProbes bounds the file descriptors and memory that probes take. It is
	// reached when 10,000 targets a second are silent for 0.8 seconds each;
	// probes beyond it start late.
	maxProbes = 8192
	// maxCommands bounds the programs that checks run at once: each is a process.
	maxCommands = 32
)

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
	dial    dialFunc
	dialVIP DialVIP
	changes chan struct{}
	wake    chan struct{} // a queue has changed: look at it again

	mu       sync.Mutex // guards what follows and every target
	targets  map[lb.TargetID]*target
	packets  pool // of the targets that are asked over the network
	commands pool // of those that a program is asked about
}

// pool is targets whose probes under way are bounded together.
type pool struct {
	queue   queue
	running int
	most    int
}

// target is what is asked of a backend, with its schedule and its history.
type target struct {
	lb.Target           // of one of its readers
	readers   []*reader // services that ask the same
	id        lb.TargetID
	pool      *pool
	probes    []probe // one, or one a VIP
	// turn is the VIP that is asked for. After a success it is the next one's
	// turn; one that failed stays until it answers.
	turn int

	due    time.Time          // when the next probe starts
	place  int                // in the queue
	probed bool               // a probe was started
	stop   context.CancelFunc // ends the running probe; nil when none is
	// overdue is since when a probe has waited for the end of the last one; zero: none
	// does. A timeout just below the interval may end late by as much. Leaving it
	// out would double the time to see that a backend is dead.
	overdue time.Time

	tally
	lastErr  string
	lastTook time.Duration
}

// reader is a backend of a service, for which its target's probe stands.
type reader struct {
	service, backend string
	duration         prometheus.Observer
	failures         prometheus.Counter
}

// Result is what is known of one backend of one service, for people.
type Result struct {
	Target       lb.Target
	State        lb.State
	Since        time.Time     // the state's
	LastError    string        // of the last probe; empty after a success
	Held         string        // why it is down though probes succeed; else empty
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
		log:      log.With("part", "health"),
		metrics:  newMetrics(cfg.Registerer),
		dial:     direct,
		dialVIP:  cfg.DialVIP,
		changes:  make(chan struct{}, 1),
		wake:     make(chan struct{}, 1),
		targets:  make(map[lb.TargetID]*target),
		packets:  pool{most: maxProbes},
		commands: pool{most: maxCommands},
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

// SetTargets makes targets the whole set. Services that ask the same of the same
// backend share a probe. A target that is there already keeps its history and its
// schedule; one that is missing is forgotten at once, its running probe ended.
// Calling it again with the same targets does nothing. The targets' checks have to
// be valid, with intervals above 0.
func (c *Checker) SetTargets(targets []lb.Target) {
	wanted := make(map[lb.TargetID][]lb.Target, len(targets))
	for _, t := range targets {
		id := t.ID()
		wanted[id] = append(wanted[id], t)
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	changed := false
	// Removals first: a target that comes with another check has the same labels.
	for id, t := range c.targets {
		c.dropReaders(t, wanted[id])
		if len(wanted[id]) == 0 {
			c.remove(t)
			changed = true
		}
	}
	for id, readers := range wanted {
		t, there := c.targets[id]
		if !there {
			t = c.add(id, readers[0])
			changed = true
		}
		c.addReaders(t, readers)
		// To a VIP the probes go as those of one of the readers.
		i := max(slices.IndexFunc(readers, func(r lb.Target) bool { return r.Service == t.Service && r.Backend == t.Backend }), 0)
		if !there || samePrepared(t.Target, readers[i]) {
			continue
		}
		t.Target, t.probes = readers[i], c.newProbes(readers[i])
	}
	if changed {
		signal(c.wake)
		signal(c.changes)
	}
}

// samePrepared tells whether two targets with one ID are equal in what an ID leaves
// out: who asks, and what is in files.
func samePrepared(a, b lb.Target) bool {
	return a.Service == b.Service && a.Backend == b.Backend &&
		a.Check.CA == b.Check.CA && a.Check.Certificate == b.Check.Certificate && a.Check.Key == b.Check.Key
}

// Observations lists what is held of every target, sorted by target: Unknown
// until rise or fall is reached for the first time. The steps of a slow start change
// as time passes, without a signal by Changes.
func (c *Checker) Observations() []lb.Observation {
	c.mu.Lock()
	now := time.Now()
	list := make([]lb.Observation, 0, len(c.targets))
	for id, t := range c.targets {
		list = append(list, lb.Observation{Target: id, State: t.state, Ahead: t.ahead(t.Check, now)})
	}
	c.mu.Unlock()
	slices.SortFunc(list, func(a, b lb.Observation) int { return cmp.Compare(a.Target, b.Target) })
	return list
}

// Results lists every backend with its history, by service and backend.
func (c *Checker) Results() []Result {
	c.mu.Lock()
	list := make([]Result, 0, len(c.targets))
	for _, t := range c.targets {
		for _, r := range t.readers {
			result := Result{
				Target: t.Target, State: t.state, Since: t.since,
				LastError: t.lastErr, Held: t.held(t.Check), LastDuration: t.lastTook,
			}
			result.Target.Service, result.Target.Backend = r.service, r.backend
			list = append(list, result)
		}
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

func (c *Checker) add(id lb.TargetID, wanted lb.Target) *target {
	now := time.Now()
	t := &target{
		Target: wanted,
		id:     id,
		pool:   &c.packets,
		probes: c.newProbes(wanted),
		due:    firstDue(now, wanted.Check),
		tally:  tally{since: now},
	}
	if wanted.Check.Type == lb.CheckExec {
		t.pool = &c.commands
	}
	c.targets[id] = t
	heap.Push(&t.pool.queue, t)
	return t
}

// newProbes gives the probes of t. A check that cannot be made fails.
func (c *Checker) newProbes(t lb.Target) []probe {
	probes, err := newProbes(t, c.dial, c.dialVIP)
	if err != nil {
		err = fmt.Errorf("check of type %s cannot be made: %w", t.Check.Type, err)
		return []probe{func(context.Context) error { return err }}
	}
	return probes
}

// inTurn is the probe that is to be made now.
func (t *target) inTurn() probe { return t.probes[t.turn%len(t.probes)] }

func (c *Checker) remove(t *target) {
	delete(c.targets, t.id)
	heap.Remove(&t.pool.queue, t.place)
	if t.stop != nil {
		t.stop()
	}
}

// dropReaders forgets the readers of t that are not wanted.
func (c *Checker) dropReaders(t *target, wanted []lb.Target) {
	t.readers = slices.DeleteFunc(t.readers, func(r *reader) bool {
		gone := !slices.ContainsFunc(wanted, r.is)
		if gone {
			c.metrics.remove(r.service, r.backend)
		}
		return gone
	})
}

// addReaders adds those that are wanted and not there yet.
func (c *Checker) addReaders(t *target, wanted []lb.Target) {
	for _, w := range wanted {
		if slices.ContainsFunc(t.readers, func(r *reader) bool { return r.is(w) }) {
			continue
		}
		t.readers = append(t.readers, &reader{
			service: w.Service, backend: w.Backend,
			duration: c.metrics.duration.WithLabelValues(w.Service, w.Backend),
			failures: c.metrics.failures.WithLabelValues(w.Service, w.Backend),
		})
	}
}

func (r *reader) is(t lb.Target) bool { return r.service == t.Service && r.backend == t.Backend }

// scheduleAll gives every target a first probe: whatever was due while nobody
// ran the Checker would else be done all at once.
func (c *Checker) scheduleAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for _, p := range []*pool{&c.packets, &c.commands} {
		for _, t := range p.queue {
			t.due, t.probed = firstDue(now, t.Check), false
		}
		heap.Init(&p.queue)
	}
}

// startDue starts the probes that are due and tells how long it is until the
// next one will be.
func (c *Checker) startDue(ctx context.Context, probes *sync.WaitGroup) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return min(c.startPool(ctx, &c.packets, probes), c.startPool(ctx, &c.commands, probes))
}

func (c *Checker) startPool(ctx context.Context, p *pool, probes *sync.WaitGroup) time.Duration {
	// With no target, or no room for a probe, there will be a signal before.
	const idle = time.Hour
	for len(p.queue) > 0 && p.running < p.most {
		t, now := p.queue[0], time.Now()
		if wait := t.due.Sub(now); wait > 0 {
			return wait
		}
		if t.stop == nil {
			p.running++
			probeCtx, stop := context.WithCancel(ctx)
			t.stop = stop
			ask, due := t.inTurn(), t.due
			probes.Go(func() { c.run(probeCtx, t, ask, due) })
		} else if t.overdue.IsZero() {
			t.overdue = t.due
		}
		t.schedule(now)
		heap.Fix(&p.queue, 0)
	}
	return idle
}

// run makes the probe of t that was due, and those whose time came meanwhile.
func (c *Checker) run(ctx context.Context, t *target, ask probe, due time.Time) {
	for ask != nil {
		start := time.Now()
		c.metrics.delay.Observe(start.Sub(due).Seconds())
		err := ask(ctx)
		var change *change
		change, ask, due = c.finish(ctx, t, err, time.Since(start))
		if change != nil {
			change.log(c.log, err)
		}
	}
}

// finish counts the result of a probe, unless nobody wants it any more. It
// tells of t's state if that changed, and gives t's next probe if that is overdue.
func (c *Checker) finish(ctx context.Context, t *target, err error, took time.Duration) (changed *change, next probe, due time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	wanted := ctx.Err() == nil
	if wanted {
		t.lastErr, t.lastTook = "", took
		if err != nil {
			t.lastErr = err.Error()
		} else {
			t.turn++
		}
		for _, r := range t.readers {
			r.duration.Observe(took.Seconds())
			if err != nil {
				r.failures.Inc()
			}
		}
		if t.count(err == nil, t.Check, time.Now()) {
			signal(c.changes)
			changed = &change{slices.Clone(t.readers), t.tally, t.Check}
		}
	}
	if wanted && !t.overdue.IsZero() {
		next, due = t.inTurn(), t.overdue
	} else {
		t.stop()
		t.stop = nil
		if t.pool.running == t.pool.most {
			signal(c.wake)
		}
		t.pool.running--
	}
	t.overdue = time.Time{}
	return changed, next, due
}

// change is a state that has just come about.
type change struct {
	readers []*reader
	tally   tally
	check   lb.Check
}

func (ch *change) log(log *slog.Logger, err error) {
	for _, r := range ch.readers {
		log := log.With("service", r.service, "backend", r.backend)
		if err == nil {
			log.Info("backend is up for this node")
			continue
		}
		if needed := rise(ch.check, ch.tally.flaps); needed > ch.check.Rise {
			log = log.With("flaps", ch.tally.flaps, "successes_needed", needed)
		}
		log.Warn("backend is down for this node", "err", err)
	}
}

// firstDue is soon, but not at once: a node that starts, or a reload that adds
// many targets, must not probe all in the same instant.
func firstDue(now time.Time, check lb.Check) time.Time {
	return onGrid(now.Add(grid + rand.N(max(min(check.Interval, time.Second)-grid, 1))))
}

// schedule sets the time of the probe after the one that starts now.
func (t *target) schedule(now time.Time) {
	interval := t.Check.Interval
	if t.probed {
		t.due = t.due.Add(interval)
	} else {
		// The first probes lie within a second, the second ones anywhere in
		// the interval: no part of it has more to do than another.
		t.due = onGrid(t.due.Add(rand.N(interval)))
		t.probed = true
	}
	// A machine that stood still catches up with none of the probes it missed.
	if late := now.Sub(t.due); late >= 0 {
		t.due = t.due.Add((late/interval + 1) * interval)
	}
}

// grid is what first probes are due at multiples of: it costs less to start several
// at once than each by a timer of its own.
const grid = 5 * time.Millisecond

// onGrid gives the last such time before t.
func onGrid(t time.Time) time.Time { return t.Add(-time.Duration(t.UnixNano()) % grid) }

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
