package health

import (
	"fmt"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

// tally makes a state out of single answers.
type tally struct {
	state lb.State  // Unknown, Up or Down
	since time.Time // of the state
	back  bool      // it is Up after it was Down

	fit      bool // the last answer
	row      int  // how many like it came in a row
	rowBegan time.Time

	flaps int // how often it went down again too soon, less what calm has made up for
}

// count adds an answer that came now and tells whether it changed the state. Rise
// successes in a row make it Up, fall failures make it Down; what it was before,
// Unknown included, makes no difference.
//
// But a backend that goes down again within FlapHold of coming up is asked for
// twice as many successes as before, as far as those take FlapHold. Each FlapHold
// of calm, which is being up, or failing without exception, halves them again.
func (t *tally) count(fit bool, check lb.Check, now time.Time) bool {
	if fit != t.fit || t.row == 0 {
		if t.state == lb.Down && fit {
			t.calm(now.Sub(t.rowBegan), check)
		}
		t.fit, t.row, t.rowBegan = fit, 0, now
	}
	t.row++
	next, needed := lb.Down, check.Fall
	if fit {
		next, needed = lb.Up, rise(check, t.flaps)
	}
	if t.state == next || t.row < needed {
		return false
	}
	if t.state == lb.Up {
		t.fell(t.rowBegan.Sub(t.since), check)
	}
	t.back = t.state == lb.Down
	t.state, t.since = next, now
	return true
}

// fell takes in that it goes down after it was well for so long.
func (t *tally) fell(well time.Duration, check lb.Check) {
	switch {
	case well >= check.FlapHold:
		t.calm(well, check)
	case t.back && rise(check, t.flaps) < mostRise(check):
		t.flaps++
	}
}

func (t *tally) calm(lasted time.Duration, check lb.Check) {
	if check.FlapHold > 0 {
		t.flaps -= min(t.flaps, int(lasted/check.FlapHold))
	}
}

// ahead is how many steps of its slow start are before a backend that was seen down. Of
// one that was up when this node first asked nobody here knows since when it is.
func (t *tally) ahead(check lb.Check, now time.Time) uint8 {
	if t.state != lb.Up || !t.back {
		return 0
	}
	return check.Ahead(now.Sub(t.since))
}

// held tells why it is Down though it is well by the check's own rise.
func (t *tally) held(check lb.Check) string {
	if t.state != lb.Down || !t.fit || t.row < check.Rise {
		return ""
	}
	return fmt.Sprintf("held down as it keeps going up and down: %d of %d successes in a row that it needs now", t.row, rise(check, t.flaps))
}

// rise is how many successes in a row it takes after so many flaps.
func rise(check lb.Check, flaps int) int { return min(check.Rise<<flaps, mostRise(check)) }

func mostRise(check lb.Check) int {
	return max(check.Rise, int(check.FlapHold/max(check.Interval, 1)))
}
