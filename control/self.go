package control

import (
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

// self is what this member makes of what it sees.
type self struct {
	begun   time.Time // when it first had something to check
	settled bool      // what it sees is a vote
	blind   time.Time // since when it is blind; zero: it is not
}

// settle makes what this member sees a vote once it has made up its mind about
// all of the targets that it is to check, or has had the time to: the first answers after a start are
// those of the quick and the dead, and of a network that is only coming up.
func (s *self) settle(p plan, assigned int, observations []lb.Observation, now time.Time) bool {
	if s.begun.IsZero() && len(p.targets) > 0 {
		s.begun = now
	}
	if !s.settled {
		judged := 0
		for range opinions(p.targets, observations) {
			judged++
		}
		s.settled = judged >= assigned || now.Sub(s.begun) >= p.patience
	}
	return s.settled
}

// see takes in whether this member is blind now, and tells whether it has been for
// so long that it is no matter of who sees a failure first.
func (s *self) see(blind bool, p plan, now time.Time) bool {
	if !blind {
		s.blind = time.Time{}
		return false
	}
	if s.blind.IsZero() {
		s.blind = now
	}
	return now.Sub(s.blind) >= p.patience
}
