package cluster

import (
	"cmp"
	"encoding/binary"
	"maps"
	"math"
	"slices"

	"github.com/halfproxy/halfproxy/lb"
)

// change is what makes one record of a member from an earlier one of the same
// boot: what one backend's failure changes fits a packet whatever the number of
// backends. Who does not have the earlier record asks for the whole.
type change struct {
	member   string
	base     version
	sequence uint64
	report   lb.Report // flags, configuration, and of the rest what is new or differs; no steps
	encoded  []byte    // the same
	steps    map[string]amendment
	services []string // whose tables are gone, sorted
	targets  []lb.TargetID
}

// diff gives the change from one report of a member to another, both in their
// normal form. Orders that are gone are not told of one by one: false.
func diff(from, to lb.Report) (c change, ok bool) {
	c.report = lb.Report{Config: to.Config, Settled: to.Settled, Leaving: to.Leaving, Moving: to.Moving}
	for service, digest := range to.Tables {
		if old, there := from.Tables[service]; !there || old != digest {
			c.report.Tables = with(c.report.Tables, service, digest)
		}
	}
	for service := range from.Tables {
		if _, there := to.Tables[service]; !there {
			c.services = append(c.services, service)
		}
	}
	slices.Sort(c.services)

	kept := 0
	for _, o := range to.Orders {
		i, there := slices.BinarySearchFunc(from.Orders, o, bySubject)
		if there {
			kept++
		}
		if !there || from.Orders[i] != o {
			c.report.Orders = append(c.report.Orders, o)
		}
	}
	if kept < len(from.Orders) {
		return change{}, false
	}

	var err error
	if c.steps, err = diffSteps(from.Steps, to.Steps); err != nil {
		return change{}, false
	}
	c.report.Observations, c.targets = diffObservations(from.Observations, to.Observations)
	c.encoded, err = appendReport(nil, c.report)
	return c, err == nil
}

func diffObservations(from, to []lb.Observation) (changed []lb.Observation, gone []lb.TargetID) {
	for len(from) > 0 || len(to) > 0 {
		switch {
		case len(to) == 0, len(from) > 0 && from[0].Target < to[0].Target:
			gone = append(gone, from[0].Target)
			from = from[1:]
		case len(from) == 0, to[0].Target < from[0].Target:
			changed = append(changed, to[0])
			to = to[1:]
		default:
			if from[0] != to[0] {
				changed = append(changed, to[0])
			}
			from, to = from[1:], to[1:]
		}
	}
	return changed, gone
}

// apply makes the later report from the earlier one; false: from is not that.
func (c change) apply(from lb.Report) (to lb.Report, ok bool) {
	to = c.report
	to.Tables = maps.Clone(from.Tables)
	for service, digest := range c.report.Tables {
		to.Tables = with(to.Tables, service, digest)
	}
	for _, service := range c.services {
		delete(to.Tables, service)
	}
	if len(to.Tables) == 0 {
		to.Tables = nil
	}
	if len(c.report.Orders) > 0 || len(from.Orders) > 0 {
		to.Orders = merge(from.Orders, c.report.Orders, bySubject)
	}
	if to.Steps, ok = amendSteps(from.Steps, c.steps); !ok {
		return lb.Report{}, false
	}
	to.Observations = merge(from.Observations, c.report.Observations, byTarget)
	to.Observations = slices.DeleteFunc(to.Observations, func(o lb.Observation) bool {
		_, gone := slices.BinarySearch(c.targets, o.Target)
		return gone
	})
	if len(to.Observations) == 0 {
		to.Observations = nil
	}
	return to, len(to.Tables) <= math.MaxUint16 && len(to.Orders) <= maxOrders && len(to.Observations) <= maxReport/8
}

func bySubject(a, b lb.Order) int      { return a.Subject.Compare(b.Subject) }
func byTarget(a, b lb.Observation) int { return cmp.Compare(a.Target, b.Target) }

// merge puts what is new in the place of its equals in old, both sorted.
func merge[T any](old, news []T, compare func(a, b T) int) []T {
	merged := make([]T, 0, len(old)+len(news))
	for len(old) > 0 && len(news) > 0 {
		switch order := compare(old[0], news[0]); {
		case order < 0:
			merged, old = append(merged, old[0]), old[1:]
		case order == 0:
			old = old[1:]
		default:
			merged, news = append(merged, news[0]), news[1:]
		}
	}
	return append(append(merged, old...), news...)
}

func (c change) encode() []byte {
	b := appendVersion(appendName(message(kindChange), c.member), c.base)
	b = binary.BigEndian.AppendUint64(b, c.sequence)
	b = appendAmendments(append(b, c.encoded...), c.steps)
	b = binary.BigEndian.AppendUint16(b, uint16(len(c.services)))
	for _, service := range c.services {
		b = appendName(b, service)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(c.targets)))
	for _, target := range c.targets {
		b = binary.BigEndian.AppendUint64(b, uint64(target))
	}
	return b
}

func (r *reader) change() change {
	c := change{member: r.name(), base: r.version()}
	c.sequence = r.uint64()
	report := r.b
	c.report = r.report()
	c.encoded = slices.Clone(report[:len(report)-len(r.b)])
	c.steps = r.amendments()
	if c.sequence <= c.base.sequence || c.base.sequence == 0 || c.sequence > math.MaxInt64 {
		r.fail(refusedMalformed)
	}
	for range r.uint16() {
		service := r.name()
		if n := len(c.services); r.refused == "" && n > 0 && service <= c.services[n-1] {
			r.fail(refusedOrder)
		}
		if r.refused != "" {
			return change{}
		}
		c.services = append(c.services, service)
	}
	count := int(r.uint32())
	if count > maxReport || len(r.b) != 8*count {
		r.fail(refusedMalformed) // before room is made for them
		return change{}
	}
	for range count {
		target := lb.TargetID(r.uint64())
		if n := len(c.targets); n > 0 && target <= c.targets[n-1] {
			r.fail(refusedOrder)
			return change{}
		}
		c.targets = append(c.targets, target)
	}
	return c
}
