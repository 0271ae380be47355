package cluster

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

const (
	// maxSteps and maxPlaces bound the steps of a report: the bytes that they take, and the
	// backends that all their sets have. Those of services that do not fit are not told: a
	// member that did not see them itself breaks flows that they matter to, when routers
	// bring it some.
	maxSteps  = maxReport / 2
	maxPlaces = 1 << 20
)

// amendment is what makes a history from an earlier one of the same member. The whole of a
// history is the amendment of none.
type amendment struct {
	rest  lb.History // all but the steps
	gone  []uint16   // indices of the earlier one's steps
	added []addition
}

// addition is a step, as it differs from the one before it.
type addition struct {
	at      uint16 // its index in the later history
	since   time.Time
	differs []lb.Backend // new or other ones, and those that are gone, which have no address
}

// newAmendment gives what makes to from from.
func newAmendment(from, to lb.History) (amendment, error) {
	a := amendment{rest: lb.History{Begin: to.Begin, Quiet: to.Quiet, Held: to.Held}}
	if len(from.Steps) > math.MaxUint16 || len(to.Steps) > math.MaxUint16 {
		return amendment{}, fmt.Errorf("%d steps are too many", max(len(from.Steps), len(to.Steps)))
	}
	for _, name := range to.Held {
		if err := checkName(name); err != nil {
			return amendment{}, fmt.Errorf("backend %q: %w", name, err)
		}
	}
	i := 0
	for at, s := range to.Steps {
		for i < len(from.Steps) && !from.Steps[i].Equal(s) && !from.Steps[i].Since.After(s.Since) {
			a.gone = append(a.gone, uint16(i))
			i++
		}
		if i < len(from.Steps) && from.Steps[i].Equal(s) {
			i++
			continue
		}
		var before []lb.Backend
		if at > 0 {
			before = to.Steps[at-1].Backends
		}
		differs, err := differences(before, s.Backends)
		if err != nil {
			return amendment{}, fmt.Errorf("step of %v: %w", s.Since, err)
		}
		a.added = append(a.added, addition{uint16(at), s.Since, differs})
	}
	for ; i < len(from.Steps); i++ {
		a.gone = append(a.gone, uint16(i))
	}
	return a, nil
}

// differences gives, by name, what of set is not in before, and the names that set lacks.
func differences(before, set []lb.Backend) (list []lb.Backend, err error) {
	for i, b := range set {
		if i > 0 && b.Name <= set[i-1].Name {
			return nil, fmt.Errorf("backends are not sorted at %q", b.Name)
		}
		for len(before) > 0 && before[0].Name < b.Name {
			list, before = append(list, lb.Backend{Name: before[0].Name}), before[1:]
		}
		if len(before) > 0 && before[0].Name == b.Name {
			same := before[0] == b
			before = before[1:]
			if same {
				continue
			}
		}
		if err := checkName(b.Name); err != nil || !b.Address.IsValid() || b.Address.Zone() != "" || b.Weight < 0 || b.Weight > lb.MaxWeight {
			return nil, fmt.Errorf("backend %q at %v of weight %d cannot be told of", b.Name, b.Address, b.Weight)
		}
		list = append(list, lb.Backend{Name: b.Name, Address: b.Address, Weight: b.Weight})
	}
	for _, b := range before {
		list = append(list, lb.Backend{Name: b.Name})
	}
	return list, nil
}

// apply makes the later history; false: there is none that a makes of from, or its new
// sets have more backends than there is room for.
func (a amendment) apply(from lb.History, room *int) (lb.History, bool) {
	kept, gone := make([]lb.Step, 0, len(from.Steps)), a.gone
	for i, s := range from.Steps {
		if len(gone) > 0 && int(gone[0]) == i {
			gone = gone[1:]
		} else {
			kept = append(kept, s)
		}
	}
	h := a.rest
	for _, next := range a.added {
		n := int(next.at) - len(h.Steps)
		if n > len(kept) {
			return lb.History{}, false
		}
		h.Steps, kept = append(h.Steps, kept[:n]...), kept[n:]
		var before []lb.Backend
		if next.at > 0 {
			before = h.Steps[next.at-1].Backends
		}
		set, ok := differ(before, next.differs)
		*room -= len(set)
		if !ok || *room < 0 {
			return lb.History{}, false
		}
		h.Steps = append(h.Steps, lb.Step{Since: next.since, Backends: set})
	}
	h.Steps = append(h.Steps, kept...)
	return h, len(gone) == 0 && slices.IsSortedFunc(h.Steps, func(x, y lb.Step) int { return x.Since.Compare(y.Since) })
}

// amendSteps gives all histories as amendments make them.
func amendSteps(from map[string]lb.History, amendments map[string]amendment) (to map[string]lb.History, ok bool) {
	if len(amendments) == 0 {
		return from, true
	}
	to = maps.Clone(from)
	room := maxPlaces
	for service, a := range amendments {
		h, ok := a.apply(from[service], &room)
		switch {
		case !ok:
			return nil, false
		case isNothing(h):
			delete(to, service)
		default:
			to = with(to, service, h)
		}
	}
	total := 0
	for _, h := range to {
		total += places(h)
	}
	if len(to) == 0 {
		to = nil
	}
	return to, total <= maxPlaces
}

// differ makes the set of which differences told; false: they were of another one.
func differ(before, differs []lb.Backend) ([]lb.Backend, bool) {
	set := make([]lb.Backend, 0, len(before)+len(differs))
	for _, b := range differs {
		i, there := slices.BinarySearchFunc(before, b, func(x, y lb.Backend) int { return strings.Compare(x.Name, y.Name) })
		set = append(set, before[:i]...)
		if there && before[i] == b || !there && !b.Address.IsValid() {
			return nil, false
		}
		if b.Address.IsValid() {
			set = append(set, b)
		}
		if there {
			i++
		}
		before = before[i:]
	}
	return append(set, before...), true
}

// places is how many backends all sets of a history have.
func places(h lb.History) (n int) {
	for _, s := range h.Steps {
		n += len(s.Backends)
	}
	return n
}

// scribe writes histories, each once for as long as it stays as it is. A nil one remembers
// nothing.
type scribe map[string]written

type written struct {
	history lb.History
	encoded []byte
}

// whole gives the amendment of none that makes h.
func (s scribe) whole(service string, h lb.History) ([]byte, error) {
	if w, there := s[service]; there && equalHistories(w.history, h) {
		return w.encoded, nil
	}
	a, err := newAmendment(lb.History{}, h)
	if err != nil {
		return nil, fmt.Errorf("steps of service %s: %w", service, err)
	}
	encoded := a.append(nil)
	if s != nil {
		s[service] = written{h, encoded}
	}
	return encoded, nil
}

// fitting gives the histories that there is room for, by name of their services.
func (s scribe) fitting(steps map[string]lb.History) map[string]lb.History {
	maps.DeleteFunc(s, func(service string, _ written) bool {
		_, there := steps[service]
		return !there
	})
	room, roomForPlaces := maxSteps, maxPlaces
	var told map[string]lb.History
	for _, service := range slices.Sorted(maps.Keys(steps)) {
		h := steps[service]
		encoded, err := s.whole(service, h)
		size := 1 + len(service) + len(encoded)
		if err != nil || isNothing(h) || size > room || places(h) > roomForPlaces {
			continue
		}
		room, roomForPlaces = room-size, roomForPlaces-places(h)
		told = with(told, service, h)
	}
	return told
}

func (s scribe) appendSteps(b []byte, steps map[string]lb.History) ([]byte, error) {
	b = binary.BigEndian.AppendUint16(b, uint16(len(steps)))
	for _, service := range slices.Sorted(maps.Keys(steps)) {
		if err := checkName(service); err != nil {
			return nil, fmt.Errorf("service %q: %w", service, err)
		}
		encoded, err := s.whole(service, steps[service])
		if err != nil {
			return nil, err
		}
		b = append(appendName(b, service), encoded...)
	}
	return b, nil
}

func isNothing(h lb.History) bool {
	return len(h.Steps) == 0 && h.Begin.IsZero() && !h.Quiet && len(h.Held) == 0
}

func appendAmendments(b []byte, amendments map[string]amendment) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(amendments)))
	for _, service := range slices.Sorted(maps.Keys(amendments)) {
		b = amendments[service].append(appendName(b, service))
	}
	return b
}

func (a amendment) append(b []byte) []byte {
	b = appendTime(b, a.rest.Begin)
	b = append(b, flagOf(a.rest.Quiet))
	b = binary.BigEndian.AppendUint16(b, uint16(len(a.rest.Held)))
	for _, name := range a.rest.Held {
		b = appendName(b, name)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(a.gone)))
	for _, i := range a.gone {
		b = binary.BigEndian.AppendUint16(b, i)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(a.added)))
	for _, s := range a.added {
		b = appendTime(binary.BigEndian.AppendUint16(b, s.at), s.since)
		b = binary.BigEndian.AppendUint16(b, uint16(len(s.differs)))
		for _, d := range s.differs {
			address := d.Address.AsSlice()
			b = append(append(appendName(b, d.Name), byte(len(address))), address...)
			if len(address) > 0 {
				b = binary.BigEndian.AppendUint16(b, uint16(d.Weight))
			}
		}
	}
	return b
}

func flagOf(set bool) byte {
	if set {
		return 1
	}
	return 0
}

// steps reads whole histories.
func (r *reader) steps() map[string]lb.History {
	amendments := r.amendments()
	steps, ok := amendSteps(nil, amendments)
	if !ok || len(steps) < len(amendments) {
		r.fail(refusedMalformed)
	}
	return steps
}

func (r *reader) amendments() map[string]amendment {
	var amendments map[string]amendment
	previous := ""
	for range r.uint16() {
		service := r.name()
		if r.refused == "" && service <= previous {
			r.fail(refusedOrder)
		}
		a := r.amendment()
		if r.refused != "" {
			return nil
		}
		amendments = with(amendments, service, a)
		previous = service
	}
	return amendments
}

func (r *reader) amendment() amendment {
	a := amendment{rest: lb.History{Begin: r.time()}}
	quiet := r.uint8()
	if quiet > 1 {
		r.fail(refusedMalformed)
	}
	a.rest.Quiet = quiet == 1
	for range r.uint16() {
		name := r.name()
		if n := len(a.rest.Held); r.refused == "" && n > 0 && name <= a.rest.Held[n-1] {
			r.fail(refusedOrder)
		}
		if r.refused != "" {
			return amendment{}
		}
		a.rest.Held = append(a.rest.Held, name)
	}
	for range r.uint16() {
		i := r.uint16()
		if n := len(a.gone); r.refused == "" && n > 0 && i <= a.gone[n-1] {
			r.fail(refusedOrder)
		}
		if r.refused != "" {
			return amendment{}
		}
		a.gone = append(a.gone, i)
	}
	for range r.uint16() {
		s := addition{at: r.uint16(), since: r.time(), differs: r.differs()}
		if n := len(a.added); r.refused == "" && n > 0 && s.at <= a.added[n-1].at {
			r.fail(refusedOrder)
		}
		if r.refused != "" {
			return amendment{}
		}
		a.added = append(a.added, s)
	}
	return a
}

func (r *reader) differs() []lb.Backend {
	var differs []lb.Backend
	for range r.uint16() {
		b := lb.Backend{Name: r.name()}
		if address := r.take(int(r.uint8())); len(address) > 0 {
			b.Address, _ = netip.AddrFromSlice(address)
			b.Weight = int(r.uint16())
			if !b.Address.IsValid() || b.Weight > lb.MaxWeight {
				r.fail(refusedMalformed)
			}
		}
		if n := len(differs); r.refused == "" && n > 0 && b.Name <= differs[n-1].Name {
			r.fail(refusedOrder)
		}
		if r.refused != "" {
			return nil
		}
		differs = append(differs, b)
	}
	return differs
}

func equalHistories(a, b lb.History) bool {
	return a.Begin.Equal(b.Begin) && a.Quiet == b.Quiet && slices.Equal(a.Held, b.Held) && slices.EqualFunc(a.Steps, b.Steps, lb.Step.Equal)
}

// diffSteps gives what makes of each history the later one. One that is gone is one with
// nothing to tell.
func diffSteps(from, to map[string]lb.History) (changed map[string]amendment, err error) {
	all := maps.Clone(to)
	for service := range from {
		if _, there := to[service]; !there {
			all = with(all, service, lb.History{})
		}
	}
	for service, h := range all {
		if !equalHistories(from[service], h) {
			a, err := newAmendment(from[service], h)
			if err != nil {
				return nil, fmt.Errorf("steps of service %s: %w", service, err)
			}
			changed = with(changed, service, a)
		}
	}
	return changed, nil
}
