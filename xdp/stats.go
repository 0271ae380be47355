package xdp

import (
	"fmt"
	"iter"
	"slices"

	"github.com/cilium/ebpf"
)

// Count is packets, the bytes of their frames as they came in, and how many of
// them opened a flow: TCP's SYN and SCTP's INIT do. UDP has no first packet.
type Count struct{ Packets, Bytes, Flows uint64 }

func (c *Count) add(o Count) {
	c.Packets += o.Packets
	c.Bytes += o.Bytes
	c.Flows += o.Flows
}

// Stats is what the program counted since New.
type Stats struct {
	Verdicts map[Verdict]Count
	Services map[string]ServiceStats // what was forwarded
	Records  RecordStats
}

// ServiceStats holds a service's total and its share for each backend. A
// backend that left the service stays in the total.
type ServiceStats struct {
	Count
	Backends map[string]Count
	QUIC     *QUICStats     // nil: connection IDs are not looked at
	Uses     map[string]Use // of backends that get no new flows; of all while slots are in transition
}

// tally is what a backend was counted for, wherever its entry was.
type tally struct {
	past  Count // in entries that it no longer has
	spans []span
}

// span is an entry's counter from a certain value on.
type span struct {
	entry uint32
	from  bpfCounter
}

func (t *tally) begin(entry uint32, from bpfCounter) {
	t.spans = append(t.spans, span{entry, from})
}

// Stats reads all counters. None of them falls while its service and backend
// are applied, whatever happens to their tables.
func (d *Dataplane) Stats() (Stats, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	stats := Stats{Services: make(map[string]ServiceStats)}
	var err error
	if stats.Verdicts, err = d.verdicts(); err != nil {
		return Stats{}, err
	}
	counters, err := newCounters(d.store.maps[bpfMapBackendCounters])
	if err != nil {
		return Stats{}, err
	}
	if stats.Records, err = d.recordStats(); err != nil {
		return Stats{}, err
	}
	for name, s := range d.services {
		service := ServiceStats{Count: s.departed, Backends: make(map[string]Count, len(s.members)), Uses: s.uses()}
		for b := range s.all() {
			count, err := b.tally.total(counters)
			if err != nil {
				return Stats{}, fmt.Errorf("read the counter of service %s, backend %s: %w", name, b.name, err)
			}
			service.add(count)
			if s.members[b.name] == b {
				service.Backends[b.name] = count
			}
		}
		if s.countsQUIC {
			if service.QUIC, err = d.readQUIC(s); err != nil {
				return Stats{}, err
			}
		}
		stats.Services[name] = service
	}
	return stats, nil
}

// Verdicts reads the counters of verdicts alone, which costs next to nothing however many
// services there are.
func (d *Dataplane) Verdicts() (map[Verdict]Count, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.verdicts()
}

// verdicts needs d.mu.
func (d *Dataplane) verdicts() (map[Verdict]Count, error) {
	if d.store == nil {
		return nil, errClosed
	}
	counters, err := newCounters(d.store.maps[bpfMapVerdicts])
	if err != nil {
		return nil, err
	}
	counts := make(map[Verdict]Count, len(verdictNames))
	for v := range verdictNames {
		c, err := counters.read(uint32(v))
		if err != nil {
			return nil, fmt.Errorf("read the counter of verdict %s: %w", Verdict(v), err)
		}
		counts[Verdict(v)] = Count{c.Packets, c.Bytes, c.Flows}
	}
	return counts, nil
}

// all gives every backend that packets may still be counted for, and its entry.
func (s *service) all() iter.Seq2[*backend, uint32] {
	return func(yield func(*backend, uint32) bool) {
		for _, b := range s.members {
			if !yield(b, b.entry()) {
				return
			}
		}
		for b, entry := range s.leaving {
			if !yield(b, entry) {
				return
			}
		}
	}
}

func (t *tally) total(c *counters) (Count, error) {
	total := t.past
	for _, s := range t.spans {
		now, err := c.read(s.entry)
		if err != nil {
			return Count{}, err
		}
		total.add(since(s.from, now))
	}
	return total, nil
}

func since(from, now bpfCounter) Count {
	return Count{now.Packets - from.Packets, now.Bytes - from.Bytes, now.Flows - from.Flows}
}

// endTally closes the tally's account with an entry, which is free after it.
func (d *Dataplane) endTally(t *tally, entry uint32) {
	i := slices.IndexFunc(t.spans, func(s span) bool { return s.entry == entry })
	counters, err := newCounters(d.store.maps[bpfMapBackendCounters])
	var now bpfCounter
	if err == nil {
		now, err = counters.read(entry)
	}
	if err != nil { // of an array that is there: never seen
		d.log.Error("counter lost", "entry", entry, "err", err)
		return
	}
	t.past.add(since(t.spans[i].from, now))
	t.spans = slices.Delete(t.spans, i, i+1)
	d.tails[entry] = now
}

// foldCounters closes the accounts with counters that go out of use: the new
// ones begin at nothing.
func (d *Dataplane) foldCounters(old *ebpf.Map) error {
	counters, err := newCounters(old)
	if err != nil {
		return err
	}
	for _, s := range d.services {
		for b := range s.all() {
			if b.tally.past, err = b.tally.total(counters); err != nil {
				return fmt.Errorf("read the counter of service %s, backend %s: %w", s.name, b.name, err)
			}
			for i := range b.tally.spans {
				b.tally.spans[i].from = bpfCounter{}
			}
		}
	}
	clear(d.tails)
	return nil
}

// counters sums the per-CPU counters of a map.
type counters struct {
	m      *ebpf.Map
	perCPU []bpfCounter
}

func newCounters(m *ebpf.Map) (*counters, error) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("count the CPUs: %w", err)
	}
	return &counters{m, make([]bpfCounter, cpus)}, nil
}

func (c *counters) read(index uint32) (sum bpfCounter, err error) {
	if err := c.m.Lookup(index, &c.perCPU); err != nil {
		return sum, err
	}
	for _, cpu := range c.perCPU {
		sum.Packets += cpu.Packets
		sum.Bytes += cpu.Bytes
		sum.Flows += cpu.Flows
	}
	return sum, nil
}
