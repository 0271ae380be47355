package track

import "time"

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
	slots := make([]Slot, size)
	for i := range slots {
		slots[i] = Slot{Current: None, Base: None}
	}
	for _, stage := range stages {
		settling := now.Sub(stage.Since) < settle
		for i := range slots {
			s := &slots[i]
			if s.Base != None && !stage.Alive[s.Base] {
				s.Base = None
			}
			if len(stage.Slots) == 0 {
				s.Current = None
				continue
			}
			s.Current = stage.Slots[i]
			switch {
			case s.Base == None:
				s.Base = s.Current
			case s.Current != s.Base && !s.InTransition:
				s.InTransition, s.Settling = true, settling
			}
		}
	}
	return slots
}
