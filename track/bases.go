package track

import (
	"slices"
	"time"
)

// None is no backend.
const None = ^uint16(0)

// Stage is a service's table as it was from a time on. Backends are numbers that mean the
// same in all stages.
type Stage struct {
	Since time.Time
	Slots []uint16 // empty: there was no backend for new flows
	Alive []bool   // by number: flows at these were let live
}

// Bases gives the slots of the last stage's table, of which size are, as those before
// leave them: a slot's base is the backend that it had in the first stage, while that one
// lives. Flows that began later have records, since the slot was in transition from the
// first change on; and it still is, however often its backend has changed and changed back.
//
// When the base fails, the slot's backend at that time becomes the base: nobody without a
// record is anywhere else.
func Bases(stages []Stage, size int, now time.Time, settle time.Duration) []Slot {
	c := NewCourse(size)
	for _, stage := range stages {
		c.Take(stage)
	}
	return c.Slots(now, settle)
}

// Course is where stages have led the slots so far, for who goes on from there.
type Course struct {
	taken []time.Time // since when each stage was
	slots []place
}

// place is a slot of a course.
type place struct {
	current, base uint16
	moved         int32 // the stage that brought the slot into transition, from 1 on
}

// NewCourse is that of so many slots before the first stage.
func NewCourse(size int) Course {
	return Course{slots: slices.Repeat([]place{{current: None, base: None}}, size)}
}

// Clone gives one that goes on by itself.
func (c Course) Clone() Course {
	return Course{slices.Clip(c.taken), slices.Clone(c.slots)}
}

// Size is the number of slots.
func (c Course) Size() int { return len(c.slots) }

// Take goes on by a stage.
func (c *Course) Take(stage Stage) {
	c.taken = append(c.taken, stage.Since)
	for i := range c.slots {
		p := &c.slots[i]
		if p.base != None && !stage.Alive[p.base] {
			p.base = None
		}
		if len(stage.Slots) == 0 {
			p.current = None
			continue
		}
		p.current = stage.Slots[i]
		switch {
		case p.base == None:
			p.base = p.current
		case p.current != p.base && p.moved == 0:
			p.moved = int32(len(c.taken))
		}
	}
}

// Slots gives the slots as they are now; for settle after a slot moved it is settling.
func (c Course) Slots(now time.Time, settle time.Duration) []Slot {
	slots := make([]Slot, len(c.slots))
	for i, p := range c.slots {
		slots[i] = Slot{Current: p.current, Base: p.base, InTransition: p.moved > 0}
		slots[i].Settling = p.moved > 0 && now.Sub(c.taken[p.moved-1]) < settle
	}
	return slots
}
