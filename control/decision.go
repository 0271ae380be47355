package control

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"github.com/halfproxy/halfproxy/lb"
	"github.com/halfproxy/halfproxy/maglev"
)

// plan is what the operator asks for, with all that follows from it alone.
type plan struct {
	services  []planned
	all       []lb.Target   // of all services
	places    []int         // of each of all, among targets
	targets   []lb.TargetID // the same, each once, sorted
	observers []int         // that each of targets is to have; 0: everybody
	digest    lb.Digest     // of the services
	patience  time.Duration // that an observer needs to come to an opinion of every target
	draining  bool

	aggregates []lb.Aggregate
}

// maxPatience is how long anything waits at most for those who check rarely.
const maxPatience = 15 * time.Second

// planned is one service of a plan.
type planned struct {
	lb.Service       // its backends sorted by name
	targets    []int // of its backends, as places in the plan's targets
	digest     lb.Digest
}

func newPlan(services []lb.Service) plan {
	p := plan{digest: lb.DigestServices(services)}
	var ids []lb.TargetID // of all
	for _, s := range services {
		s.Backends = lb.SortBackends(s.Backends)
		p.services = append(p.services, planned{Service: s, digest: s.Digest()})
		for _, t := range s.Targets() {
			p.all = append(p.all, t)
			ids = append(ids, t.ID())
			longest := t.Check.Interval*time.Duration(max(t.Check.Rise, t.Check.Fall)) + t.Check.Timeout
			p.patience = min(max(p.patience, longest), maxPatience)
		}
	}
	p.targets = slices.Compact(slices.Sorted(slices.Values(ids)))
	p.observers = make([]int, len(p.targets))
	asked := make([]bool, len(p.targets))
	for n, id := range ids {
		i, _ := slices.BinarySearch(p.targets, id)
		p.places = append(p.places, i)
		// Services that ask the same share the check, and the greater number.
		switch k := p.all[n].Observers; {
		case !asked[i]:
			p.observers[i] = k
		case k == 0 || p.observers[i] == 0:
			p.observers[i] = 0
		default:
			p.observers[i] = max(p.observers[i], k)
		}
		asked[i] = true
	}
	first := 0
	for i := range p.services {
		n := len(p.services[i].Backends)
		p.services[i].targets = p.places[first : first+n]
		first += n
	}
	return p
}

// decision is what should be so for one service.
type decision struct {
	service  planned
	orders   directives
	backends []BackendStatus // sorted by name
	table    lb.Table
	digest   lb.Digest // of the table but for its bases
	bases    laid
	history  lb.History
	aside    []string            // backends that live and get no new flows, sorted
	heldBy   map[string][]string // of these: members that have flows there
	judged   bool                // once there was a verdict on every backend
	panic    string              // why health is ignored; empty where it is not
	obstacle obstacle            // why its VIPs must not be announced
}

// inTransition tells whether flows may be elsewhere than the table has them, since it has
// changed.
func (d decision) inTransition() bool {
	return d.bases.transition > 0 && len(d.history.Steps) > 1
}

// obstacle is why VIPs must not be announced; empty where they may.
type obstacle struct {
	cause  cause
	reason string
}

// cause is a reason in one word, for metrics.
type cause string

// The causes there are. Where it is planned packets find their backends still, and
// routes can be there for a while.
const (
	causeDetached   cause = "detached"
	causeBlind      cause = "blind"
	causeDrained    cause = "drained"
	causeNoWeight   cause = "no_weight"
	causeUnjudged   cause = "unjudged"
	causeNoBackend  cause = "no_backend"
	causeMinHealthy cause = "min_healthy"
	causeDamped     cause = "damped"
	causeNotApplied cause = "not_applied"
)

// reasons are why VIPs are held back: by service, and by VIP.
type reasons struct {
	services map[string]string
	vips     map[lb.VIP]obstacle
}

// hold notes an obstacle to what nothing else holds back.
func (r reasons) hold(s lb.Service, o obstacle) {
	r.services[s.Name] = cmp.Or(r.services[s.Name], o.reason)
	for _, vip := range s.VIPs {
		if r.vips[vip].reason == "" {
			r.vips[vip] = o
		}
	}
}

// decide turns verdicts into a table and an answer whether the service can
// serve. previous is the service's last decision: where nothing changed it
// stands, and its table is taken over when it would come out the same, since
// building one costs milliseconds.
func decide(s planned, verdicts []judgement, orders directives, secret []byte, previous decision) decision {
	if previous.stands(s, verdicts, orders) {
		previous.service = s // how it is announced may have changed
		return previous
	}
	d := decision{service: s, orders: orders}
	inService, healthy, down, unknown := d.takeStock(verdicts, &previous)
	d.judged = previous.judged || unknown == 0
	switch up := inService - down; {
	case up*100 < s.PanicBelow*inService:
		d.panic = fmt.Sprintf("%d of %d backends up, less than panic_below of %d%%", up, inService, s.PanicBelow)
	case s.UseAll && up == 0 && inService > 0:
		d.panic = fmt.Sprintf("0 of %d backends up, and none_healthy is use_all", inService)
	}
	usable, alive := d.inUse(verdicts)

	switch need := s.MinHealthy.Of(inService); {
	case inService == 0:
		d.obstacle = obstacle{causeNoWeight, "every backend has weight 0 or is drained"}
	case !d.judged:
		// The other members may know more: until we do, our table is not theirs.
		d.obstacle = obstacle{causeUnjudged, fmt.Sprintf("%d of %d backends are not judged yet", unknown, inService)}
	case len(usable) == 0:
		d.obstacle = obstacle{causeNoBackend, "no backend is up"}
	case healthy < need && d.panic == "":
		d.obstacle = obstacle{causeMinHealthy, fmt.Sprintf("%d of %d backends up, min_healthy asks for %d", healthy, inService, need)}
	}
	if orders.service.Action == lb.Drain {
		d.obstacle.reason = orders.service.String()
		d.obstacle.cause = cmp.Or(d.obstacle.cause, causeDrained)
	}

	if len(usable) == 0 && d.judged {
		// Nobody is to come any more, but who is there can stay.
		usable = withWeight(alive)
	}
	d.build(usable, alive, hashKey(secret, s.Name), previous)
	return d
}

// takeStock notes how each backend stands, and counts those that are in service, which
// are all but the drained ones, and of these how many are up, down and not judged.
func (d *decision) takeStock(verdicts []judgement, previous *decision) (inService, healthy, down, unknown int) {
	for i, b := range d.service.Backends {
		j, order := verdicts[d.service.targets[i]], d.orders.backend(i)
		if order.Action == lb.Weigh {
			b.Weight = order.Weight
		}
		status := BackendStatus{Backend: b, State: j.state, Up: j.up, Observers: j.observers, Ahead: j.ahead, Order: order}
		if j.state == lb.Unknown {
			status.State = previous.lastVerdict(b)
		}
		switch {
		case order.Action == lb.Drain:
			status.State = lb.Draining
		case b.Weight == 0:
			status.State = lb.Drained
		case order.Action == lb.Fail:
			status.State = lb.Down
			inService++
		default:
			inService++
		}
		switch status.State {
		case lb.Up:
			healthy++
		case lb.Down:
			down++
		case lb.Unknown:
			unknown++
		}
		d.backends = append(d.backends, status)
	}
	return inService, healthy, down, unknown
}

// inUse gives the backends that get new flows, with the weights that they have now, and
// those that older ones can be at.
func (d *decision) inUse(verdicts []judgement) (usable, alive []lb.Backend) {
	for i, b := range d.backends {
		aside := b.State.Aside()
		up := b.State == lb.Up || aside && verdicts[d.service.targets[i]].state != lb.Down
		if b.Order.Action == lb.Fail || !up && d.panic == "" {
			continue
		}
		alive = append(alive, b.Backend)
		if aside {
			d.aside = append(d.aside, b.Name)
			continue
		}
		b.Weight = b.WeightNow()
		usable = append(usable, b.Backend)
	}
	return usable, alive
}

// build makes the table, or takes over the previous one.
func (d *decision) build(usable, alive []lb.Backend, key [16]byte, previous decision) {
	s, was := d.service, previous.table
	d.table = lb.Table{Service: s.Service, Backends: usable, Alive: alive, HashKey: key}
	if slices.Equal(usable, was.Backends) && key == was.HashKey && s.HashFields() == was.Service.HashFields() {
		d.table.Slots, d.digest = was.Slots, previous.digest
		if s.QUIC == was.Service.QUIC && slices.Equal(alive, was.Alive) {
			return
		}
	} else {
		d.table.Slots = slots(s.Name, usable, maglev.DefaultSize)
	}
	d.digest = d.table.Digest()
}

// slots are those of a service's table of some backends.
func slots(service string, backends []lb.Backend, size int) []uint16 {
	weighted := make([]maglev.Backend, len(backends))
	for i, b := range backends {
		weighted[i] = maglev.Backend{Name: b.Name, Weight: b.Weight}
	}
	return maglev.Table(service, weighted, size)
}

// withWeight gives backends a weight that have none.
func withWeight(backends []lb.Backend) []lb.Backend {
	backends = slices.Clone(backends)
	for i := range backends {
		backends[i].Weight = max(backends[i].Weight, 1)
	}
	return backends
}

// lastVerdict is what the decision holds of b: a check that changed makes all that
// was found by the old one worthless, but is no reason to do without a backend.
func (d *decision) lastVerdict(b lb.Backend) lb.State {
	i, there := slices.BinarySearchFunc(d.backends, b.Name, func(was BackendStatus, name string) int { return cmp.Compare(was.Name, name) })
	if there && d.backends[i].Address == b.Address && (d.backends[i].State == lb.Up || d.backends[i].State == lb.Down) {
		return d.backends[i].State
	}
	return lb.Unknown
}

// stands tells whether d would come out the same.
func (d *decision) stands(s planned, verdicts []judgement, orders directives) bool {
	if d.service.digest != s.digest || len(d.backends) != len(s.Backends) || !d.orders.equal(orders) {
		return false
	}
	for i, b := range d.backends {
		if j := verdicts[s.targets[i]]; b.Up != j.up || b.Observers != j.observers || b.Ahead != j.ahead {
			return false
		}
	}
	return true
}

// hashKey keys a service's flow hash: the same on every node that shares the
// secret, and unknown to anybody else, who could aim flows at one backend.
func hashKey(secret []byte, service string) [16]byte {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte("halfproxy flow hash\x00" + service))
	return [16]byte(mac.Sum(nil)[:16])
}

// announcement gives the routes to announce, sorted, and why VIPs are held back. A VIP
// that several services share is announced while all of them can serve, and the service
// that cannot holds it back for all. Routes that only what is planned holds back are
// among them, as being shut down.
func announcement(decisions []decision, all obstacle) (routes []lb.Route, why reasons) {
	why = reasons{make(map[string]string), make(map[lb.VIP]obstacle)}
	heldBackBy := make(map[lb.VIP]string)
	for _, d := range decisions {
		if all.reason != "" {
			why.hold(d.service.Service, all)
		}
		if d.obstacle.reason == "" {
			continue
		}
		why.services[d.service.Name] = cmp.Or(why.services[d.service.Name], d.obstacle.reason)
		for _, vip := range d.service.VIPs {
			if o := why.vips[vip]; o.reason == "" || o.cause == causeDrained && d.obstacle.cause != causeDrained {
				why.vips[vip] = obstacle{d.obstacle.cause, fmt.Sprintf("service %q: %s", d.service.Name, d.obstacle.reason)}
				heldBackBy[vip] = d.service.Name
			}
		}
	}
	for _, d := range decisions {
		for _, vip := range d.service.VIPs {
			o := why.vips[vip]
			if o.reason != "" && why.services[d.service.Name] == "" {
				why.services[d.service.Name] = fmt.Sprintf("%s is shared with service %q, which cannot serve", vip, heldBackBy[vip])
			}
			if o.reason == "" || o.cause == causeDrained {
				routes = append(routes, lb.Route{Prefix: vip.Prefix, Announcement: d.service.Announce, Shutdown: o.reason != ""})
			}
		}
	}
	slices.SortFunc(routes, func(a, b lb.Route) int { return a.Prefix.Compare(b.Prefix) })
	return slices.CompactFunc(routes, func(a, b lb.Route) bool { return a.Prefix == b.Prefix }), why
}
