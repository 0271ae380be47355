package lb

import "time"

// SlowSteps is in how many steps a backend that was down gets back to all of its weight:
// each costs a table, so they are few.
const SlowSteps = 5

// Ahead is how many of the SlowSteps a backend has yet to take that came back up so long
// ago. It begins at the first of them, a fifth of its weight.
func (c Check) Ahead(up time.Duration) uint8 {
	const ahead = SlowSteps - 1
	if up >= c.SlowStart {
		return 0
	}
	return ahead - uint8(ahead*max(up, 0)/c.SlowStart)
}

// Slowed is what a backend has of its weight with so many steps ahead of it.
func Slowed(weight int, ahead uint8) int {
	if ahead == 0 || weight == 0 {
		return weight
	}
	return max(weight*(SlowSteps-int(ahead))/SlowSteps, 1)
}
