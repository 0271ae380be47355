package cluster

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"

	"github.com/halfproxy/halfproxy/lb"
)

const (
	// maxSteps is the room that steps have in a report. Those of services that do not fit
	// are not told: a member that did not see them itself breaks flows that they matter
	// to, when routers bring it some.
	maxSteps = maxReport / 2
	// absent stands for a weight, of a backend that a step does not have.
	absent = math.MaxUint16
)

// fitting gives the histories that there is room for, by name of their services.
func fitting(steps map[string]lb.History) map[string]lb.History {
	room := maxSteps
	var told map[string]lb.History
	for _, service := range slices.Sorted(maps.Keys(steps)) {
		b, err := appendHistory(nil, steps[service])
		if err != nil || len(b)+1+len(service) > room {
			continue
		}
		room -= len(b) + 1 + len(service)
		told = with(told, service, steps[service])
	}
	return told
}

func appendSteps(b []byte, steps map[string]lb.History) ([]byte, error) {
	b = binary.BigEndian.AppendUint16(b, uint16(len(steps)))
	for _, service := range slices.Sorted(maps.Keys(steps)) {
		if err := checkName(service); err != nil {
			return nil, fmt.Errorf("service %q: %w", service, err)
		}
		var err error
		if b, err = appendHistory(appendName(b, service), steps[service]); err != nil {
			return nil, fmt.Errorf("steps of service %s: %w", service, err)
		}
	}
	return b, nil
}

// server is a backend of some steps.
type server struct {
	name    string
	address netip.Addr
}

func serverOf(b lb.Backend) server { return server{b.Name, b.Address} }

func (s server) compare(o server) int {
	return cmp.Or(cmp.Compare(s.name, o.name), s.address.Compare(o.address))
}

func appendHistory(b []byte, h lb.History) ([]byte, error) {
	distinct := make(map[server]bool)
	for _, s := range h.Steps {
		for _, backend := range s.Backends {
			distinct[serverOf(backend)] = true
		}
	}
	servers := slices.SortedFunc(maps.Keys(distinct), server.compare)
	if len(servers) > math.MaxUint16 || len(h.Steps) > math.MaxUint16 {
		return nil, fmt.Errorf("%d steps of %d backends are too many", len(h.Steps), len(servers))
	}

	b = appendTime(b, h.Begin)
	b = append(b, flagOf(h.Quiet))
	b = binary.BigEndian.AppendUint16(b, uint16(len(h.Held)))
	for _, name := range h.Held {
		if err := checkName(name); err != nil {
			return nil, fmt.Errorf("backend %q: %w", name, err)
		}
		b = appendName(b, name)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(servers)))
	for _, s := range servers {
		if err := checkName(s.name); err != nil || !s.address.IsValid() || s.address.Zone() != "" {
			return nil, fmt.Errorf("backend %q at %v cannot be told of", s.name, s.address)
		}
		b = appendName(b, s.name)
		address := s.address.AsSlice()
		b = append(append(b, byte(len(address))), address...)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(h.Steps)))
	for _, s := range h.Steps {
		b = appendTime(b, s.Since)
		rest := s.Backends // sorted as servers are
		for _, of := range servers {
			weight := uint16(absent)
			if len(rest) > 0 && serverOf(rest[0]) == of {
				weight, rest = uint16(rest[0].Weight), rest[1:]
			}
			b = binary.BigEndian.AppendUint16(b, weight)
		}
		if len(rest) > 0 {
			return nil, fmt.Errorf("backends of the step of %v are not sorted", s.Since)
		}
	}
	return b, nil
}

func flagOf(set bool) byte {
	if set {
		return 1
	}
	return 0
}

func (r *reader) steps() map[string]lb.History {
	var steps map[string]lb.History
	previous := ""
	for range r.uint16() {
		service := r.name()
		if r.refused == "" && service <= previous {
			r.fail(refusedOrder)
		}
		h := r.history()
		if r.refused != "" {
			return nil
		}
		steps = with(steps, service, h)
		previous = service
	}
	return steps
}

func (r *reader) history() lb.History {
	h := lb.History{Begin: r.time()}
	quiet := r.uint8()
	h.Quiet = quiet == 1
	for range r.uint16() {
		name := r.name()
		if n := len(h.Held); r.refused == "" && n > 0 && name <= h.Held[n-1] {
			r.fail(refusedOrder)
		}
		if r.refused != "" {
			return lb.History{}
		}
		h.Held = append(h.Held, name)
	}
	count := int(r.uint16())
	if quiet > 1 || count > len(r.b)/4 {
		r.fail(refusedMalformed) // before room is made for them
		return lb.History{}
	}
	servers := make([]server, count)
	for i := range servers {
		s := server{name: r.name()}
		address, ok := netip.AddrFromSlice(r.take(int(r.uint8())))
		s.address = address
		switch {
		case r.refused != "":
		case !ok:
			r.fail(refusedMalformed)
		case i > 0 && s.compare(servers[i-1]) <= 0:
			r.fail(refusedOrder)
		}
		if r.refused != "" {
			return lb.History{}
		}
		servers[i] = s
	}

	used := make([]bool, count)
	for range r.uint16() {
		step := lb.Step{Since: r.time()}
		weights := reader{b: r.take(2 * count)}
		if r.refused != "" {
			return lb.History{}
		}
		for i, s := range servers {
			weight := weights.uint16()
			if weight == absent {
				continue
			}
			if n := len(step.Backends); weight > lb.MaxWeight || n > 0 && step.Backends[n-1].Name == s.name {
				r.fail(refusedMalformed)
				return lb.History{}
			}
			used[i] = true
			step.Backends = append(step.Backends, lb.Backend{Name: s.name, Address: s.address, Weight: int(weight)})
		}
		if n := len(h.Steps); n > 0 && step.Since.Before(h.Steps[n-1].Since) {
			r.fail(refusedOrder)
			return lb.History{}
		}
		h.Steps = append(h.Steps, step)
	}
	if slices.Contains(used, false) {
		r.fail(refusedMalformed)
	}
	return h
}

func equalHistories(a, b lb.History) bool {
	return a.Begin.Equal(b.Begin) && a.Quiet == b.Quiet && slices.Equal(a.Held, b.Held) && slices.EqualFunc(a.Steps, b.Steps, func(x, y lb.Step) bool {
		return x.Since.Equal(y.Since) && slices.Equal(x.Backends, y.Backends)
	})
}

// diffSteps gives the histories that differ. One that is gone is not told of by itself:
// false.
func diffSteps(from, to map[string]lb.History) (changed map[string]lb.History, ok bool) {
	for service := range from {
		if _, there := to[service]; !there {
			return nil, false
		}
	}
	for service, h := range to {
		if old, there := from[service]; !there || !equalHistories(old, h) {
			changed = with(changed, service, h)
		}
	}
	return changed, true
}
