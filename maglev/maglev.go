package maglev

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"slices"
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
	calendar := newCalendar(service, backends, size)
	if calendar == nil {
		return nil
	}

	table := make([]uint16, size)
	// Most of the time goes into finding a free slot: as bits, 16 times as
	// many fit a cache line as in the table itself.
	taken := make([]uint64, size/64+1)
	end := uint32(size)
	for range size {
		i := calendar.next()
		t := &calendar.takers[i]
		slot := t.slot
		for taken[slot/64]>>(slot%64)&1 != 0 {
			slot += t.skip
			slot = min(slot, slot-end) // modulo: below end the difference is huge
		}
		taken[slot/64] |= 1 << (slot % 64)
		table[slot] = t.index
		t.slot = slot

		t.turn += 1 << phaseBits
		calendar.enter(i)
	}
	return table
}

// taker is a backend that takes slots.
type taker struct {
	turn   uint64 // the number of its next turn, and below phaseBits its phase
	due    uint64 // when that is, on the calendar, in units of 1/2^phaseBits days
	weight uint64
	after  uint32 // whose turn is next on that day
	slot   uint32 // where it looks for a free slot
	skip   uint32 // how far it goes on from one that is taken
	index  uint16 // in the caller's list
}

// phaseBits leaves 24 bits of a turn's time for its number: a table has far
// fewer slots.
const phaseBits = 40

func newTaker(service string, b Backend, index, size int) taker {
	// The length keeps ("ab", "c") and ("a", "bc") apart.
	buf := make([]byte, 0, 128)
	buf = binary.AppendUvarint(buf, uint64(len(service)))
	buf = append(buf, service...)
	buf = append(buf, b.Name...)
	sum := sha256.Sum256(buf)
	return taker{
		weight: uint64(b.Weight),
		slot:   uint32(binary.BigEndian.Uint64(sum[0:]) % uint64(size)),
		skip:   uint32(binary.BigEndian.Uint64(sum[8:])%uint64(size-1)) + 1,
		turn:   binary.BigEndian.Uint64(sum[16:]) >> (64 - phaseBits),
		index:  uint16(index),
	}
}

// calendar is when backends take turns. Its day is the time in which all of them
// together take one slot on average, so that most days have few turns, and finding
// the next one costs the same however many backends and weights there are.
type calendar struct {
	backends []Backend
	takers   []taker  // the first is nobody
	weight   uint64   // of all
	days     []uint32 // whose turn is first on each
	today    int
}

// newCalendar gives the calendar of a table, with the first turn of every backend on
// it; of none that has a weight it is nil.
func newCalendar(service string, backends []Backend, size int) *calendar {
	c := &calendar{backends: backends, takers: make([]taker, 1, len(backends)+1)}
	for i, b := range backends {
		if b.Weight <= 0 {
			continue
		}
		c.takers = append(c.takers, newTaker(service, b, i, size))
		var carry uint64
		if c.weight, carry = bits.Add64(c.weight, uint64(b.Weight), 0); carry != 0 {
			c.weight = math.MaxUint64 // its days are longer than they should be, which does no harm
		}
	}
	if len(c.takers) == 1 {
		return nil
	}
	// Each backend is behind its share by less than a turn.
	c.days = make([]uint32, size+len(c.takers))
	for i := range c.takers[1:] {
		c.enter(uint32(i + 1))
	}
	return c
}

// enter puts the next turn of a taker on its day, unless the table is full before.
func (c *calendar) enter(i uint32) {
	// At turn/t.weight all have taken turn/t.weight * c.weight slots.
	t := &c.takers[i]
	hi, lo := bits.Mul64(t.turn, c.weight)
	if hi >= t.weight {
		return
	}
	t.due, _ = bits.Div64(hi, lo, t.weight)
	day := t.due >> phaseBits
	if day >= uint64(len(c.days)) {
		return
	}
	at := &c.days[day]
	for *at != 0 && c.before(&c.takers[*at], t) {
		at = &c.takers[*at].after
	}
	t.after, *at = *at, i
}

// next takes the next turn off the calendar, and tells whose it is.
func (c *calendar) next() uint32 {
	for c.days[c.today] == 0 {
		c.today++
	}
	i := c.days[c.today]
	c.days[c.today] = c.takers[i].after
	return i
}

// before tells whether the next turn of t is before that of other: by time, in
// the rare tie by phase and then name.
func (c *calendar) before(t, other *taker) bool {
	if t.due != other.due {
		return t.due < other.due
	}
	// due is rounded: t.turn/t.weight < other.turn/other.weight, without a division.
	hi, lo := bits.Mul64(t.turn, other.weight)
	otherHi, otherLo := bits.Mul64(other.turn, t.weight)
	if hi != otherHi {
		return hi < otherHi
	}
	if lo != otherLo {
		return lo < otherLo
	}
	const phase = 1<<phaseBits - 1
	if t.turn&phase != other.turn&phase {
		return t.turn&phase < other.turn&phase
	}
	return c.backends[t.index].Name < c.backends[other.index].Name
}
