package control

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/halfproxy/halfproxy/lb"
)

const (
	// coalesce is how long news is gathered before tables are built from it. While
	// news goes on coming it doubles with every time that tables were built, up to
	// longestCoalesce, until there was none for twice as long: a failure of many
	// backends reaches us in many pieces, and each time costs every service that has
	// one of them a new table.
	coalesce        = 10 * time.Millisecond
	longestCoalesce = 500 * time.Millisecond
	// tick is how often the passing of time alone is looked at, and how soon
	// what failed is tried again.
	tick = 500 * time.Millisecond
)

// Dataplane forwards packets by tables. xdp.Dataplane is one.
type Dataplane interface {
	// Apply makes tables the whole of what is forwarded.
	Apply(ctx context.Context, tables []lb.Table) error
	// Attached is nil while packets reach the data plane.
	Attached() error
	// Strayed is when a packet of the service last went elsewhere than new flows of
	// its slot do. Zero: never.
	Strayed(service string) time.Time
	// Holds gives those of a service's backends that flows are still at, or may be. Those
	// asked about are watched from then on, and others not any more.
	Holds(service string, backends []string) []string
	// Caution has flows that begin within so long go where every node finds them without
	// a record. It replaces the one before: 0 ends it.
	Caution(lasts time.Duration)
}

// Announcer tells routers which VIPs this node takes packets for.
// bgp.Speaker is one.
type Announcer interface {
	// Announce makes routes the whole announcement.
	Announce(ctx context.Context, routes []lb.Route) error
}

// Cluster spreads the members' reports. cluster.Cluster is one.
type Cluster interface {
	// Publish makes r what this member tells the others. It does not block.
	Publish(r lb.Report)
	// Records gives every member's newest report. This node's own may be
	// among them and is passed over: its observations are at hand.
	Records() []lb.Record
}

// Checker checks the health of backends. health.Checker is one.
type Checker interface {
	// SetTargets makes targets the whole of what is checked.
	SetTargets(targets []lb.Target)
	// Observations gives what was found, sorted by target.
	Observations() []lb.Observation
}

// Config is what a Controller works with.
type Config struct {
	Node   string // this member's name
	Size   int    // members there should be: a verdict needs a majority of them in sight
	Secret []byte // shared by the members, keys the flow hashes
	// PartitionHold is how long verdicts stay as they were when fewer than a majority
	// is in sight. After it those in sight decide.
	PartitionHold time.Duration
	// HoldUp is how long a VIP whose route was withdrawn for a fault has to be able to be
	// announced before it is. It doubles with every such withdrawal soon after another.
	HoldUp time.Duration
	// GracefulShutdown is how long the routes of a drain say that they will be
	// withdrawn (RFC 8326).
	GracefulShutdown time.Duration
	// Notice is how long the other members are told before what is planned changes
	// routes: flows may come to them then. 0: they are not told.
	Notice time.Duration
	// Orders are those that were kept by a process before, and KeepOrders keeps all
	// that there are whenever one is added. Nil: those of the others are all there is.
	Orders     []lb.Order
	KeepOrders func([]lb.Order) error
	// Histories are the services' steps that were kept by a process before, and
	// KeepHistories keeps those that there are whenever they change. Nil: those of the
	// others are all there is.
	Histories     map[string]lb.History
	KeepHistories func(map[string]lb.History) error

	// Hold says why nothing is to be announced yet, beside what the Controller itself
	// knows; empty: nothing is against it. Nil: likewise.
	Hold func() string

	Dataplane Dataplane
	Announcer Announcer
	Cluster   Cluster
	Checker   Checker

	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// Controller keeps the node as its inputs ask for it.
type Controller struct {
	Config

	woken  chan struct{} // capacity 1: something is new
	status atomic.Pointer[Status]

	mu   sync.Mutex
	plan plan

	stepping  sync.Mutex // one step at a time; guards what follows
	jury      jury
	self      self
	orders    book
	passages  map[string]*passage // by service
	moving    moving
	heard     map[string]time.Time // members that say that flows move, and since when
	begun     time.Time
	done      outcome
	agreement agreement
}

// outcome is what the last step made so.
type outcome struct {
	checked   lb.Digest // of the services that the checker has targets of
	assigned  []int     // what of them, as places among the plan's targets
	decisions map[string]decision
	tablesIn  lb.Digest                  // fingerprint of the services and tables that the data plane has
	routes    []lb.Route                 // announced, sorted by prefix
	told      bool                       // the announcer took routes
	leaving   map[netip.Prefix]time.Time // since when routes say that they will be withdrawn
	strained  map[netip.Prefix]strain
	tables    map[string]lb.Digest // by service, as the data plane has them
	failure   string               // what kept the last step from being applied
	blind     bool                 // this node withdrew its routes for it
	quorate   bool                 // there was a majority in sight once
	frozen    bool                 // verdicts are, and it was told
	blinded   []string             // members that are blind, sorted
	held      map[lb.VIP]cause     // VIPs that are not to be announced
	inForce   []lb.Order           // by subject
}

// New gives a Controller that does nothing before Run.
func New(cfg Config) *Controller {
	c := &Controller{
		Config:   cfg,
		woken:    make(chan struct{}, 1),
		done:     outcome{strained: make(map[netip.Prefix]strain)},
		orders:   make(book),
		jury:     jury{size: cfg.Size, hold: cfg.PartitionHold},
		passages: make(map[string]*passage),
		begun:    time.Now(),
	}
	c.Log = cfg.Log.With("part", "control")
	c.Histories = maps.Clone(cfg.Histories)
	c.orders.merge(cfg.Orders, func(_, _ lb.Order) {})
	c.status.Store(&Status{})
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(collector{c})
	}
	return c
}

// SetServices makes services the whole of what this node balances.
func (c *Controller) SetServices(services []lb.Service) {
	p := newPlan(services)
	c.mu.Lock()
	p.draining, p.aggregates = c.plan.draining, c.plan.aggregates
	c.plan = p
	c.mu.Unlock()
	c.stepping.Lock()
	c.done.checked = 0 // files that checks name may hold something else, of which no digest tells
	c.assign(p, c.others(c.Cluster.Records(), time.Now()))
	c.stepping.Unlock()
	c.Wake()
}

// SetAggregates makes aggregates those that are announced around VIPs, none of which may
// overlap with another one or lie in a VIP.
func (c *Controller) SetAggregates(aggregates []lb.Aggregate) {
	c.mu.Lock()
	c.plan.aggregates = aggregates
	c.mu.Unlock()
	c.Wake()
}

// others are the records of the members in sight but this one.
func (c *Controller) others(records []lb.Record, now time.Time) []lb.Record {
	return slices.DeleteFunc(inSight(records, now), func(r lb.Record) bool { return r.Member == c.Node })
}

// SetQuorum makes size the number of members that there should be, and hold how long
// verdicts stand without a majority of them, as Config.Size and Config.PartitionHold.
func (c *Controller) SetQuorum(size int, hold time.Duration) {
	c.stepping.Lock()
	c.jury.size, c.jury.hold = size, hold
	c.stepping.Unlock()
	c.Wake()
}

// Wake says that the checker or the cluster has news. It does not block.
func (c *Controller) Wake() {
	select {
	case c.woken <- struct{}{}:
	default:
	}
}

// Drain withdraws every VIP for good, once GracefulShutdown has passed; Status tells
// when. Packets that still come are forwarded as before.
func (c *Controller) Drain(ctx context.Context) error {
	c.mu.Lock()
	c.plan.draining = true
	c.mu.Unlock()
	_, err := c.step(ctx)
	return err
}

// Status is how things stood after the last step.
func (c *Controller) Status() Status { return *c.status.Load() }

// Run keeps the node as its inputs ask for it until ctx ends. What fails is
// logged once and tried again until it works.
func (c *Controller) Run(ctx context.Context) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	var due <-chan time.Time
	pause, stepped := coalesce, time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.woken:
			c.hurry()
			if due == nil {
				if time.Since(stepped) > 2*pause { // what came before is over
					pause = coalesce
				}
				due = time.After(pause)
			}
			continue
		case <-due:
			due = nil
		case <-ticker.C:
		}
		switch changed, err := c.step(ctx); {
		case err != nil:
			pause, stepped = tick, time.Now()
		case changed:
			pause, stepped = min(2*pause, longestCoalesce), time.Now()
		}
	}
}

// hurry does what is not to wait for tables to be built. The others are told what this
// node saw: the verdict needs a majority, so news is what everybody waits for. And
// somebody may have said that flows move.
func (c *Controller) hurry() {
	c.stepping.Lock()
	defer c.stepping.Unlock()
	now := time.Now()
	c.heed(c.others(c.Cluster.Records(), now), now)
	c.Cluster.Publish(c.report(c.current(), c.Checker.Observations(), now))
}

func (c *Controller) current() plan {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.plan
}

func (c *Controller) report(p plan, observations []lb.Observation, now time.Time) lb.Report {
	return lb.Report{
		Config: p.digest, Tables: c.done.tables, Observations: observations,
		Settled: c.self.settle(p, len(c.done.assigned), observations, now), Orders: c.orders.list(),
		Steps: c.steps(), Moving: !c.moving.since.IsZero(),
	}
}

// step decides, applies, publishes and notes how things stand. It tells whether
// the data plane was handed other tables.
func (c *Controller) step(ctx context.Context) (changed bool, err error) {
	c.stepping.Lock()
	defer c.stepping.Unlock()
	p, observations, now := c.current(), c.Checker.Observations(), time.Now()

	records := c.Cluster.Records()
	c.hear(records, now)
	others := c.others(records, now)
	c.assign(p, others)
	counting := append(slices.Clone(others), lb.Record{Member: c.Node, Heard: now, Report: c.report(p, observations, now)})
	found := c.jury.decide(p.targets, counting, now)
	blind := c.self.see(slices.Contains(found.blind, c.Node), p, now)

	decisions := make([]decision, len(p.services))
	for i, s := range p.services {
		decisions[i] = decide(s, found.verdicts, c.orders.directives(s, now), c.Secret, c.done.decisions[s.Name])
	}
	c.passAll(decisions, records, others, now)
	attachErr := c.Dataplane.Attached()
	var all obstacle
	drained, draining := c.orders.about(now, lb.Subject{Kind: lb.OfNode, Name: c.Node})
	switch {
	case attachErr != nil:
		all = obstacle{causeDetached, attachErr.Error()}
	case blind:
		all = obstacle{causeBlind, "this node is blind: most backends are down for it that the others see up, so its own path to them is broken"}
	case p.draining:
		all = obstacle{causeDrained, "this node is draining: it stops"}
	case draining:
		all = obstacle{causeDrained, "this node is draining: " + drained.String()}
	case c.Hold != nil:
		all = obstacle{causeUnjudged, c.Hold()}
	}
	routes, why := announcement(decisions, all)
	routes = aggregate(c.damp(c.retire(routes, now), why, now), p.aggregates)
	if c.Notice > 0 {
		routes = c.forewarn(routes, why, len(others) == 0, now)
	}
	c.heed(others, now)
	c.logCluster(found, len(counting))
	c.logOrders(now)
	c.logHeld(why) // before what it is the cause of

	changed, err = c.apply(ctx, decisions, routes)
	if err != nil {
		for _, s := range p.services {
			why.hold(s.Service, obstacle{causeNotApplied, err.Error()})
		}
	}
	c.logFailure(err)
	c.logBlind(blind)
	c.logChanges(decisions)
	c.remember(decisions)
	c.done.blind = blind
	report := c.report(p, observations, now)
	c.Cluster.Publish(report)
	differs := c.agreement.update(c.Log, report, others, now)
	c.status.Store(c.newStatus(p, now, len(counting), found, why, differs))
	return changed, err
}

// apply makes decisions so, in the order that loses no packet: what must not
// be announced any more is withdrawn, then the tables change, and only when
// they are in is anything new announced. It tells whether tables changed.
func (c *Controller) apply(ctx context.Context, decisions []decision, routes []lb.Route) (changed bool, err error) {
	still := slices.DeleteFunc(slices.Clone(c.done.routes), func(r lb.Route) bool { return !announces(routes, r.Prefix) && !replaced(r, routes) })
	// Routers that cannot be told are no reason to keep dead backends.
	withdrawErr := c.announce(ctx, still)
	if want := fingerprint(decisions); want != c.done.tablesIn {
		tables := make([]lb.Table, len(decisions))
		for i, d := range decisions {
			tables[i] = d.table
		}
		if err := c.Dataplane.Apply(ctx, tables); err != nil {
			return false, errors.Join(withdrawErr, fmt.Errorf("put tables into the data plane: %w", err))
		}
		changed = true
		c.done.tablesIn = want
		c.done.tables = make(map[string]lb.Digest, len(decisions))
		for _, d := range decisions {
			c.done.tables[d.service.Name] = d.digest ^ d.bases.digest
		}
	}
	if withdrawErr != nil {
		return changed, withdrawErr
	}
	return changed, c.announce(ctx, routes)
}

// retire lets those of routes that are to be withdrawn, and are announced, say so for
// GracefulShutdown. The others of them go.
func (c *Controller) retire(routes []lb.Route, now time.Time) []lb.Route {
	leaving := make(map[netip.Prefix]time.Time)
	routes = slices.DeleteFunc(routes, func(r lb.Route) bool {
		if !r.Shutdown {
			return false
		}
		since, was := c.done.leaving[r.Prefix]
		if !was || !shutsDown(c.done.routes, r.Prefix) { // it does not say so yet
			since = now
		}
		if now.Sub(since) >= c.GracefulShutdown || !announces(c.done.routes, r.Prefix) {
			return true
		}
		leaving[r.Prefix] = since
		return false
	})
	c.done.leaving = leaving
	return routes
}

// announce hands routes to the announcer unless it has them.
func (c *Controller) announce(ctx context.Context, routes []lb.Route) error {
	if c.done.told && slices.EqualFunc(routes, c.done.routes, lb.Route.Equal) {
		return nil
	}
	err := c.Announcer.Announce(ctx, routes)
	c.done.routes, c.done.told = routes, err == nil
	if err != nil {
		return fmt.Errorf("announce %v: %w", prefixes(routes), err)
	}
	return nil
}

func announces(routes []lb.Route, prefix netip.Prefix) bool {
	return slices.ContainsFunc(routes, func(r lb.Route) bool { return r.Prefix == prefix })
}

func shutsDown(routes []lb.Route, prefix netip.Prefix) bool {
	return slices.ContainsFunc(routes, func(r lb.Route) bool { return r.Prefix == prefix && r.Shutdown })
}

func prefixes(routes []lb.Route) []lb.VIP {
	list := make([]lb.VIP, len(routes))
	for i, r := range routes {
		list[i] = lb.VIP{Prefix: r.Prefix}
	}
	return list
}

// fingerprint covers all that Dataplane.Apply is handed.
func fingerprint(decisions []decision) lb.Digest {
	h := fnv.New64a()
	for _, d := range decisions {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(d.service.digest)))
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(d.digest)))
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(d.bases.whole)))
	}
	return lb.Digest(h.Sum64())
}

func (c *Controller) remember(decisions []decision) {
	c.done.decisions = make(map[string]decision, len(decisions))
	for _, d := range decisions {
		c.done.decisions[d.service.Name] = d
	}
}
