package control

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"time"

	"github.com/halfproxy/halfproxy/lb"
	"github.com/halfproxy/halfproxy/track"
)

// mostSteps is how many of a service's steps are remembered. Of more those in between are
// forgotten first: flows that began then break, if their slot changed then and only then.
const mostSteps = 256

// passage is how a service's table came to be what it is: by which steps, and so where
// flows may be that are older than the last of them.
type passage struct {
	history  lb.History // canonical: see canonical
	made     made       // of its steps, and of those that others tell
	revision int        // of it
	own      []lb.Backend
	known    bool     // own is known: the service was judged
	watched  []string // backends that get no new flows
	held     []string // those of them that older ones are still at here
	quiet    bool     // no packet has come here for a while that an earlier step mattered to

	course course
	laid   laid
}

// laid is what bases were last made of, and what they are.
type laid struct {
	is       bool
	revision int
	settling int // steps that flows settle after
	table    lb.Digest
	alive    []lb.Backend
	tracking lb.Tracking

	bases      []lb.Base
	digest     lb.Digest // of the bases but for what settles
	whole      lb.Digest // of all of them
	transition int       // slots
}

// made is when steps came to be, in times with a monotonic reading, by their Since.
type made map[int64]time.Time

// learn takes the steps of h that it does not know, and forgets all others: a step is as
// old as the clock has it when it is first heard of.
func (m *made) learn(h lb.History, now time.Time) {
	news := func(s lb.Step) bool { _, known := (*m)[s.Since.UnixMilli()]; return !known }
	if len(*m) == len(h.Steps) && !slices.ContainsFunc(h.Steps, news) {
		return
	}
	told := make(made, len(h.Steps))
	for _, s := range h.Steps {
		if news(s) {
			told[s.Since.UnixMilli()] = now.Add(-max(0, now.Sub(s.Since)))
		} else {
			told[s.Since.UnixMilli()] = (*m)[s.Since.UnixMilli()]
		}
	}
	*m = told
}

// age is how old the step of that time is, by the clock or, if that is less, by how long
// it has been known here. So a clock that is set forward ends no transition, and neither
// one that is set back nor a member whose own is ahead makes one last.
func (m made) age(since, now time.Time) time.Duration {
	age := now.Sub(since)
	if at, known := m[since.UnixMilli()]; known && (age < 0 || now.Sub(at) < age) {
		return now.Sub(at)
	}
	return age
}

// when is that moment by the clock as it goes now.
func (m made) when(since, now time.Time) time.Time { return now.Add(-m.age(since, now)) }

// stepSet is a set of backends as steps have it, of those that live and those of them
// that get new flows.
func stepSet(usable, alive []lb.Backend) []lb.Backend {
	set := make([]lb.Backend, len(alive))
	for i, b := range alive {
		set[i] = lb.Backend{Name: b.Name, Address: b.Address}
		if j, in := slices.BinarySearchFunc(usable, b.Name, byName); in {
			set[i].Weight = usable[j].Weight
		}
	}
	return set
}

func byName(b lb.Backend, name string) int {
	switch {
	case b.Name < name:
		return -1
	case b.Name > name:
		return 1
	}
	return 0
}

// compareSteps orders steps by time, those of the same moment anyhow, but on all members
// the same way.
func compareSteps(a, b lb.Step) int {
	if c := a.Since.Compare(b.Since); c != 0 {
		return c
	}
	return slices.CompareFunc(a.Backends, b.Backends, func(x, y lb.Backend) int {
		if x.Name != y.Name {
			return byName(x, y.Name)
		}
		if c := x.Address.Compare(y.Address); c != 0 {
			return c
		}
		return x.Weight - y.Weight
	})
}

// union puts together what two members know. Whatever order members hear of each other's
// steps in, and however often, they come to hold the same.
func union(a, b lb.History) lb.History {
	u := lb.History{Begin: a.Begin, Steps: slices.Concat(a.Steps, b.Steps)}
	if b.Begin.After(u.Begin) {
		u.Begin = b.Begin
	}
	slices.SortStableFunc(u.Steps, compareSteps)
	return u
}

// holds tells whether a union with told would add nothing to h, both canonical: most
// members tell each other what they have long known.
func holds(h, told lb.History) bool {
	steps := h.Steps
	for _, s := range told.Steps {
		for len(steps) > 0 && steps[0].Since.Before(s.Since) {
			steps = steps[1:]
		}
		i := 0 // among those of the same moment
		for i < len(steps) && steps[i].Since.Equal(s.Since) && !steps[i].Equal(s) {
			i++
		}
		if i == len(steps) || !steps[i].Equal(s) {
			return false
		}
	}
	return !told.Begin.After(h.Begin)
}

// canonical is a history without what flows have no need of: steps that change nothing, as
// all members take each, and those before the one that was in force when the oldest flow
// began.
func canonical(h lb.History, m made, now time.Time, lifetime time.Duration) lb.History {
	var steps []lb.Step
	for _, s := range h.Steps {
		if n := len(steps); n == 0 || !slices.Equal(steps[n-1].Backends, s.Backends) {
			steps = append(steps, s)
		}
	}
	if m.age(h.Begin, now) >= lifetime {
		h.Begin = time.Time{}
	}
	over := func(since time.Time) bool { return !since.After(h.Begin) || m.age(since, now) >= lifetime }
	// Where no backend lived no flow did.
	for len(steps) > 1 && (over(steps[1].Since) || len(steps[0].Backends) == 0) {
		steps = steps[1:]
	}
	if len(steps) > mostSteps {
		steps = slices.Concat(steps[:1], steps[len(steps)-mostSteps+1:])
	}
	h.Steps = steps
	return h
}

func equalHistories(a, b lb.History) bool {
	return a.Begin.Equal(b.Begin) && slices.EqualFunc(a.Steps, b.Steps, lb.Step.Equal)
}

// take makes h the history. It tells whether that is news.
func (p *passage) take(h lb.History, now time.Time, lifetime time.Duration) bool {
	h = canonical(h, p.made, now, lifetime)
	if equalHistories(h, p.history) {
		return false
	}
	p.history = h
	p.revision++
	return true
}

// step notes down the set of backends that the table is built of here, if it is another
// than before. Who comes to a set that others came to before has nothing to add.
func (p *passage) step(set []lb.Backend, now time.Time, lifetime time.Duration) bool {
	if p.known && slices.Equal(p.own, set) {
		return false
	}
	p.own, p.known = set, true
	h, since := p.history, wire(now)
	if n := len(h.Steps); n > 0 {
		last := h.Steps[n-1]
		if slices.Equal(last.Backends, set) {
			return false
		}
		// Whatever clocks say: it comes after the ones that are known.
		if !since.After(last.Since) {
			since = last.Since.Add(time.Millisecond)
		}
	}
	h.Steps = append(slices.Clone(h.Steps), lb.Step{Since: since, Backends: set})
	if p.made == nil {
		p.made = make(made)
	}
	p.made[since.UnixMilli()] = now
	return p.take(h, now, lifetime)
}

// lay makes the bases of a table.
func (p *passage) lay(t *lb.Table, digest lb.Digest, now time.Time) {
	settle := t.Service.Settle()
	settling := 0 // steps that flows settle after
	for _, s := range p.history.Steps {
		if p.made.age(s.Since, now) < settle {
			settling++
		}
	}
	was := p.laid
	if !was.is || was.revision != p.revision || was.settling != settling || was.table != digest ||
		was.tracking != t.Service.Tracking || !slices.Equal(was.alive, t.Alive) {
		p.laid = laid{is: true, revision: p.revision, settling: settling, table: digest, alive: t.Alive, tracking: t.Service.Tracking}
		if t.Service.Tracking == lb.TrackAll || !p.rests() {
			p.build(t, now, settle)
		} else {
			p.course = course{}
		}
	}
	t.Bases = nil
	if p.laid.transition > 0 {
		t.Bases = p.laid.bases
	}
}

// rests tells whether no flow can be elsewhere than the table says.
func (p *passage) rests() bool {
	steps := p.history.Steps
	return len(steps) == 0 || len(steps) == 1 && slices.Equal(steps[0].Backends, p.own)
}

// told is what the others have to know of a history; false: nothing.
func (p *passage) told() (lb.History, bool) {
	h := lb.History{Begin: p.history.Begin, Quiet: p.quiet, Held: p.held}
	if len(p.history.Steps) > 1 {
		h.Steps = p.history.Steps
	}
	return h, h.Steps != nil || !h.Begin.IsZero() || len(h.Held) > 0
}

// forget makes the passage one that nothing is known of. It tells whether something was.
func (p *passage) forget() bool {
	known := len(p.history.Steps) > 0 || !p.history.Begin.IsZero()
	*p = passage{watched: p.watched}
	return known
}

// numbers gives backends of all steps a number each. Another address is another backend.
type numbers map[lb.Backend]uint16

// of gives those of a set.
func (n numbers) of(set []lb.Backend) []uint16 {
	list := make([]uint16, len(set))
	for i, b := range set {
		key := lb.Backend{Name: b.Name, Address: b.Address}
		number, known := n[key]
		if !known {
			number = uint16(len(n))
			n[key] = number
		}
		list[i] = number
	}
	return list
}

// stage is a table of set, and who was alive then, by these numbers.
func (n numbers) stage(since time.Time, alive, set []lb.Backend, table []uint16) track.Stage {
	of, living := n.of(set), n.of(alive)
	stage := track.Stage{Since: since, Slots: make([]uint16, len(table)), Alive: make([]bool, len(n))}
	for i, index := range table {
		stage.Slots[i] = of[index]
	}
	for _, number := range living {
		stage.Alive[number] = true
	}
	return stage
}

// course is where a passage's steps have led, but for the last of them, which may yet be
// told by others as of an earlier time.
type course struct {
	track.Course
	steps  []lb.Step
	known  numbers
	tables tables // of the steps, and of the set that is about to be one
}

// tables are slots by the set of backends that they were made of.
type tables map[[sha256.Size]byte][]uint16

func setKey(set []lb.Backend) [sha256.Size]byte {
	var members []byte
	for _, b := range set {
		members = append(append(members, b.Name...), 0)
		members = binary.BigEndian.AppendUint64(members, uint64(b.Weight))
	}
	return sha256.Sum256(members)
}

// follow makes the course that of steps: it goes on, where nothing else has changed than
// that there are more.
func (p *passage) follow(service string, steps []lb.Step, size int, now time.Time) {
	was := p.course.tables
	if p.course.Size() != size {
		was = nil
	}
	done := len(p.course.steps)
	if p.course.Size() != size || done > len(steps) || !slices.EqualFunc(p.course.steps, steps[:done], lb.Step.Equal) {
		p.course = course{Course: track.NewCourse(size), known: make(numbers), tables: make(tables)}
	}
	for _, s := range steps[len(p.course.steps):] {
		p.course.Take(p.course.known.stage(p.made.when(s.Since, now), s.Backends, s.Backends, p.course.table(service, s.Backends, size, was)))
	}
	p.course.steps = steps
}

func (p *passage) build(t *lb.Table, now time.Time, settle time.Duration) {
	if len(t.Slots) == 0 {
		return
	}
	before, since, set := p.history.Steps, now, t.Alive
	// Else others are a step ahead, or this node is not yet sure of anything.
	if n := len(before); n > 0 && slices.Equal(before[n-1].Backends, p.own) {
		before, since, set = before[:n-1], p.made.when(before[n-1].Since, now), p.own
	}
	p.follow(t.Service.Name, before, len(t.Slots), now)
	known := p.course.known
	living := known.of(t.Alive)
	last := p.course.Clone()
	last.Take(known.stage(since, set, t.Backends, t.Slots)) // the table as it is
	if slices.EqualFunc(set, t.Backends, func(a, b lb.Backend) bool { return a.Name == b.Name && a.Weight == b.Weight }) {
		p.course.tables[setKey(set)] = t.Slots
	}

	place := make([]uint16, len(known)) // of the living, among Alive
	for i, number := range living {
		place[number] = uint16(i)
	}
	p.laid.bases = make([]lb.Base, len(t.Slots))
	var all, whole []byte // what the digests are of
	for i, slot := range last.Slots(now, settle) {
		base := lb.Base{Backend: place[slot.Base], InTransition: slot.InTransition, Settling: slot.Settling}
		if t.Service.Tracking == lb.TrackAll {
			base.InTransition = true
		}
		if base.InTransition {
			p.laid.transition++
			all = binary.BigEndian.AppendUint32(all, uint32(i))
			all = append(append(all, t.Alive[base.Backend].Name...), 0)
			if base.Settling {
				whole = binary.BigEndian.AppendUint32(whole, uint32(i))
			}
		}
		p.laid.bases[i] = base
	}
	if p.laid.transition > 0 {
		sum := sha256.Sum256(all)
		p.laid.digest = lb.Digest(binary.BigEndian.Uint64(sum[:]))
		sum = sha256.Sum256(append(whole, sum[:]...))
		p.laid.whole = lb.Digest(binary.BigEndian.Uint64(sum[:]))
	}
}

// pass makes the bases of the decision's table, from what all members know of the
// service's steps and what is new here. It tells whether the steps are others now. It
// needs c.stepping.
func (c *Controller) pass(d *decision, records, others []lb.Record, now time.Time) (changed bool) {
	name := d.service.Name
	p := c.passages[name]
	if p == nil {
		p = &passage{history: c.Histories[name]}
		delete(c.Histories, name) // one of this name that comes later begins anew
		c.passages[name] = p
	}
	if d.service.Tracking == lb.TrackNone {
		changed = p.forget()
		d.table.Bases = nil
	} else {
		changed = c.trackChanges(p, d, records, others, now)
	}
	d.bases, d.history = p.laid, p.history
	p.held, d.heldBy = nil, nil
	if len(d.aside)+len(p.watched) > 0 {
		p.held, p.watched = c.Dataplane.Holds(name, d.aside), d.aside
		d.heldBy = heldBy(d, c.Node, p.held, others)
	}
	return changed
}

// trackChanges is pass for a service of whose flows there are records.
func (c *Controller) trackChanges(p *passage, d *decision, records, others []lb.Record, now time.Time) (changed bool) {
	name, lifetime := d.service.Name, d.service.Lifetime()
	h := p.history
	for _, r := range records {
		if told, there := r.Report.Steps[name]; there && r.Member != c.Node && !holds(h, told) {
			h = union(h, told)
		}
	}
	p.made.learn(h, now)
	h = canonical(h, p.made, now, lifetime)
	p.quiet = c.quiet(name, h, p.made, d.service.Quiet(), now)
	if p.quiet && allQuiet(name, h, others) {
		h.Begin = h.Steps[len(h.Steps)-1].Since
	}
	changed = p.take(h, now, lifetime)
	if d.judged {
		changed = p.step(stepSet(d.table.Backends, d.table.Alive), now, lifetime) || changed
	}
	p.lay(&d.table, d.digest, now)
	return changed
}

// passAll does so for all services. It needs c.stepping.
func (c *Controller) passAll(decisions []decision, records, others []lb.Record, now time.Time) {
	changed := false
	named := make(map[string]bool)
	for i := range decisions {
		named[decisions[i].service.Name] = true
		changed = c.pass(&decisions[i], records, others, now) || changed
	}
	for name := range c.passages {
		if !named[name] {
			delete(c.passages, name)
			changed = true
		}
	}
	if changed {
		c.keepHistories()
	}
}

// steps are those that the others have to know. It needs c.stepping.
func (c *Controller) steps() map[string]lb.History {
	var all map[string]lb.History
	for name, p := range c.passages {
		if h, there := p.told(); there {
			if all == nil {
				all = make(map[string]lb.History)
			}
			all[name] = h
		}
	}
	return all
}

// heldBy gives, of each backend that gets no new flows, the members that have older ones
// there, sorted; and those whose table is another one, which may have new ones there.
func heldBy(d *decision, self string, held []string, others []lb.Record) map[string][]string {
	by := make(map[string][]string)
	for _, name := range held {
		by[name] = []string{self}
	}
	service, ours := d.service.Name, d.digest^d.bases.digest
	for _, r := range others {
		table, told := r.Report.Tables[service]
		for _, name := range d.aside {
			if told && table != ours || slices.Contains(r.Report.Steps[service].Held, name) {
				by[name] = append(by[name], r.Member)
				slices.Sort(by[name])
			}
		}
	}
	return by
}

// quiet tells whether this node has forwarded nothing for a while that an earlier step
// than the last one of h mattered to.
func (c *Controller) quiet(service string, h lb.History, m made, while time.Duration, now time.Time) bool {
	if len(h.Steps) < 2 {
		return false
	}
	last := m.age(h.Steps[len(h.Steps)-1].Since, now)
	return min(last, now.Sub(c.begun), now.Sub(c.Dataplane.Strayed(service))) > while
}

// allQuiet tells whether the others in sight have nothing against forgetting all steps of
// h but the last.
func allQuiet(service string, h lb.History, others []lb.Record) bool {
	last := h.Steps[len(h.Steps)-1]
	return !slices.ContainsFunc(others, func(r lb.Record) bool {
		told := r.Report.Steps[service]
		n := len(told.Steps)
		return n > 0 && (!told.Quiet || !told.Steps[n-1].Since.Equal(last.Since))
	})
}

// keepHistories hands over what a next process has to know of where flows are.
func (c *Controller) keepHistories() {
	if c.KeepHistories == nil {
		return
	}
	if err := c.KeepHistories(c.steps()); err != nil {
		c.Log.Warn("steps of tables not kept: a restart could break flows that are older than the last change", "err", err)
	}
}

// table is that of a step, built anew unless there was one.
func (c *course) table(service string, set []lb.Backend, size int, was tables) []uint16 {
	key := setKey(set)
	table, built := was[key]
	if !built {
		table = slots(service, set, size)
	}
	c.tables[key] = table
	return table
}
