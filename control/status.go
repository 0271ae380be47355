package control

import (
	"cmp"
	"slices"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

// Status is how things stood after a step.
type Status struct {
	Time           time.Time // of the step
	Draining       bool
	Config         lb.Digest
	ConfigDiffers  []string   // members whose services have differed for a while, sorted
	InSight, Size  int        // members that count, and how many there should be
	Frozen         bool       // too few in sight: verdicts stay as they were for now
	Blind          []string   // members whose observations are no votes: their own path is broken, sorted
	Orders         []lb.Order // in force, by subject
	Services       []ServiceStatus
	Aggregates     []AggregateStatus   // in the order of the configuration
	AnnouncedVIPs  []lb.VIP            // sorted
	SuppressedVIPs []lb.VIP            // configured but not announced, sorted
	HeldBack       map[lb.VIP]HeldBack // those that are not announced, or about to be withdrawn
}

// HeldBack is why a VIP is not announced.
type HeldBack struct{ Cause, Reason string }

// ServiceStatus is how one service stood.
type ServiceStatus struct {
	lb.Service
	Announced    bool   // all of its VIPs are, and none is about to be withdrawn
	Reason       string // why they are not
	Panic        string // why health is ignored and all backends are used; empty: it is not
	Table        lb.Digest
	TableDiffers []string    // members whose table has differed for a while, sorted
	Transition   *Transition // nil: every flow is where its slot says
	Backends     []BackendStatus
	HeldBy       map[string][]string // backends that get no new flows: members that have older ones there
}

// Transition is that of a table which has changed lately.
type Transition struct {
	Since, Until time.Time // of its first change; and when the last is as old as flows become
	Steps        int       // changes
	Slots        int       // whose backend changed
}

// BackendStatus is how one backend stood.
type BackendStatus struct {
	lb.Backend
	State     lb.State
	Up        int      // observers in sight that see it up
	Observers int      // observers in sight that have made up their mind
	Ahead     uint8    // steps of its slow start that it has yet to take; 0: none
	Order     lb.Order // in force about it; Undo: none
}

// WeightNow is the weight that it has in the table, where it is in it.
func (b BackendStatus) WeightNow() int { return lb.Slowed(b.Weight, b.Ahead) }

func (c *Controller) newStatus(p plan, now time.Time, inSight int, found finding, why reasons, differs differing) *Status {
	_, draining := c.orders.about(now, lb.Subject{Kind: lb.OfNode, Name: c.Node})
	vips := slices.DeleteFunc(slices.Clone(c.done.routes), func(r lb.Route) bool { return r.Aggregate })
	st := &Status{
		Time:          now,
		Draining:      p.draining || draining,
		Config:        p.digest,
		ConfigDiffers: differs.config,
		InSight:       inSight,
		Size:          c.jury.size,
		Frozen:        found.frozen,
		Orders:        c.orders.inForce(now),
		Blind:         slices.Sorted(slices.Values(found.blind)),
		AnnouncedVIPs: prefixes(vips),
		HeldBack:      make(map[lb.VIP]HeldBack),
	}
	for _, s := range p.services {
		decided := c.done.decisions[s.Name]
		ss := ServiceStatus{
			Service: s.Service, Announced: true, Reason: why.services[s.Name], Panic: decided.panic,
			Table: c.done.tables[s.Name], TableDiffers: differs.tables[s.Name], Backends: decided.backends, HeldBy: decided.heldBy,
		}
		if steps := decided.history.Steps; decided.inTransition() {
			ss.Transition = &Transition{
				Since: steps[1].Since, Until: steps[len(steps)-1].Since.Add(s.Lifetime()), Steps: len(steps) - 1, Slots: decided.bases.transition,
			}
		}
		for _, vip := range s.VIPs {
			if o := why.vips[vip]; o.reason != "" {
				st.HeldBack[vip] = HeldBack{string(o.cause), o.reason}
				ss.Reason = cmp.Or(ss.Reason, vip.String()+": "+o.reason)
			}
			if _, leaves := c.done.leaving[vip.Prefix]; leaves {
				ss.Announced = false
			} else if !announces(c.done.routes, vip.Prefix) {
				ss.Announced = false
				st.SuppressedVIPs = append(st.SuppressedVIPs, vip)
			}
		}
		st.Services = append(st.Services, ss)
	}
	slices.SortFunc(st.Services, func(a, b ServiceStatus) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(st.SuppressedVIPs, lb.VIP.Compare)
	st.SuppressedVIPs = slices.Compact(st.SuppressedVIPs)
	st.Aggregates = c.aggregates(p, st)
	return st
}

// Seen gives, by service and backend, what each member in sight sees of it as of now: up
// or down, of those that have an opinion.
func (c *Controller) Seen() map[string]map[string]map[string]string {
	p, now := c.current(), time.Now()
	records := append(c.others(c.Cluster.Records(), now), lb.Record{Member: c.Node, Report: lb.Report{Observations: c.Checker.Observations()}})
	of := make([]map[string]string, len(p.targets))
	for _, r := range records {
		for i, o := range opinions(p.targets, r.Report.Observations) {
			if of[i] == nil {
				of[i] = make(map[string]string, len(records))
			}
			of[i][r.Member] = o.State.String()
		}
	}
	seen := make(map[string]map[string]map[string]string, len(p.services))
	for _, s := range p.services {
		seen[s.Name] = make(map[string]map[string]string, len(s.Backends))
		for i, b := range s.Backends {
			seen[s.Name][b.Name] = of[s.targets[i]]
		}
	}
	return seen
}
