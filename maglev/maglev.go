package maglev

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
	"strings"
)

// Sizes are the sizes a table may have, all prime. A hundred slots a backend
// keep the busiest within one percent of the others.
var Sizes = [...]int{1021, 4093, 16381, 65537, 131071, 655373}

// DefaultSize keeps a service's table in a core's cache.
const DefaultSize = 16381

// MaxBackends keeps the index 65535 free: whoever stores a table may give it
// the meaning "none".
const MaxBackends = 1<<16 - 1

// Backend is a backend as far as the table is concerned.
type Backend struct {
	Name   string // unique among the backends of a service
	Weight int    // share of the slots relative to its fellows; 0 or less gets none
}

// Table gives, for each of size slots, an index into backends. Where no
// backend has a weight there is no table: it is nil.
//
// The order of backends does not matter: in any other order the same names
// have the same slots. Backends of one weight differ by one slot at most; a
// backend whose share is less than a slot has one or none.
//
// Table panics if size is none of Sizes or backends are more than MaxBackends:
// a configuration that asks for either has to be refused long before.
func Table(service string, backends []Backend, size int) []uint16 {
	if !slices.Contains(Sizes[:], size) {
		panic(fmt.Sprintf("maglev: table size %d is none of %d", size, Sizes))
	}
	if len(backends) > MaxBackends {
		panic(fmt.Sprintf("maglev: %d backends in service %q, at most %d fit a table", len(backends), service, MaxBackends))
	}
	cycles := newCycles(service, backends, size)
	if len(cycles) == 0 {
		return nil
	}

	table := make([]uint16, size)
	// Most of the time goes into finding a free slot: as bits, 16 times as
	// many fit a cache line as in the table itself.
	taken := make([]uint64, size/64+1)
	end := uint32(size)
	for range size {
		c := &cycles[0]
		t := &c.takers[c.at]
		slot := t.slot
		for taken[slot/64]>>(slot%64)&1 != 0 {
			if slot += t.skip; slot >= end {
				slot -= end
			}
		}
		taken[slot/64] |= 1 << (slot % 64)
		table[slot] = t.index
		t.slot = slot

		c.advance()
		sink(cycles, 0, backends)
	}
	return table
}

// taker is a backend that takes slots.
type taker struct {
	phase uint64 // of its turns, in units of 1/2^phaseBits
	slot  uint32 // where it looks for a free slot
	skip  uint32 // how far it goes on from one that is taken
	index uint16 // in the caller's list
}

// phaseBits leaves 24 bits of a turn's time for the round: a table has far
// fewer slots.
const phaseBits = 40

func newTaker(service, backend string, index, size int) taker {
	// The length keeps ("ab", "c") and ("a", "bc") apart.
	buf := make([]byte, 0, 128)
	buf = binary.AppendUvarint(buf, uint64(len(service)))
	buf = append(buf, service...)
	buf = append(buf, backend...)
	sum := sha256.Sum256(buf)
	return taker{
		slot:  uint32(binary.BigEndian.Uint64(sum[0:]) % uint64(size)),
		skip:  uint32(binary.BigEndian.Uint64(sum[8:])%uint64(size-1)) + 1,
		phase: binary.BigEndian.Uint64(sum[16:]) >> (64 - phaseBits),
		index: uint16(index),
	}
}

// cycle is all backends of one weight. They take turns by phase, round after
// round, so that of any number of them only one is next.
type cycle struct {
	weight uint64
	takers []taker // by phase, then name
	at     int     // whose turn is next
	round  uint64  // how many turns that one has had
	turn   uint64  // round + phase in fixed point: the next turn is at the time turn/weight
}

func (c *cycle) advance() {
	if c.at++; c.at == len(c.takers) {
		c.at = 0
		c.round++
	}
	c.turn = c.round<<phaseBits | c.takers[c.at].phase
}

// newCycles gives a heap of cycles: the first has the next turn.
func newCycles(service string, backends []Backend, size int) []cycle {
	takers := make([]taker, 0, len(backends))
	for i, b := range backends {
		if b.Weight > 0 {
			takers = append(takers, newTaker(service, b.Name, i, size))
		}
	}
	weight := func(t taker) int { return backends[t.index].Weight }
	slices.SortFunc(takers, func(a, b taker) int {
		if d := cmp.Compare(weight(a), weight(b)); d != 0 {
			return d
		}
		if d := cmp.Compare(a.phase, b.phase); d != 0 {
			return d
		}
		return strings.Compare(backends[a.index].Name, backends[b.index].Name)
	})

	var cycles []cycle
	for start := 0; start < len(takers); {
		w := weight(takers[start])
		end := start + 1
		for end < len(takers) && weight(takers[end]) == w {
			end++
		}
		cycles = append(cycles, cycle{weight: uint64(w), takers: takers[start:end], turn: takers[start].phase})
		start = end
	}
	for i := len(cycles)/2 - 1; i >= 0; i-- {
		sink(cycles, i, backends)
	}
	return cycles
}

// sink restores the heap below i, after the next turn of cycles[i] came later.
// With the usual single cycle it has nothing to do; with a weight a backend it
// is what keeps ten thousand of them from being compared for each slot.
func sink(cycles []cycle, i int, backends []Backend) {
	for {
		first := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(cycles); child++ {
			if cycles[child].before(&cycles[first], backends) {
				first = child
			}
		}
		if first == i {
			return
		}
		cycles[i], cycles[first] = cycles[first], cycles[i]
		i = first
	}
}

// before tells whether the next turn of c is before that of other: by time, in
// the rare tie by phase and then name, as within a cycle.
func (c *cycle) before(other *cycle, backends []Backend) bool {
	// c.turn/c.weight < other.turn/other.weight, without a division.
	hi, lo := bits.Mul64(c.turn, other.weight)
	otherHi, otherLo := bits.Mul64(other.turn, c.weight)
	if hi != otherHi {
		return hi < otherHi
	}
	if lo != otherLo {
		return lo < otherLo
	}
	t, o := c.takers[c.at], other.takers[other.at]
	if t.phase != o.phase {
		return t.phase < o.phase
	}
	return backends[t.index].Name < backends[o.index].Name
}
