package health

import "github.com/halfproxy/halfproxy/lb"

// tally makes a state out of single answers.
type tally struct {
	state lb.State // Unknown, Up or Down
	fit   bool     // the last answer
	row   int      // how many like it came in a row
}

// count adds an answer and tells whether it changed the state. Rise successes
// in a row make it Up, fall failures make it Down; what it was before, Unknown
// included, makes no difference.
func (t *tally) count(fit bool, check lb.Check) bool {
	if fit != t.fit {
		t.fit, t.row = fit, 0
	}
	t.row++
	next, needed := lb.Down, check.Fall
	if fit {
		next, needed = lb.Up, check.Rise
	}
	if t.state == next || t.row < needed {
		return false
	}
	t.state = next
	return true
}
