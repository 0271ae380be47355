package control

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

const (
	// calm is how long a VIP has to go without a withdrawal for those before to be
	// forgotten.
	calm = 5 * time.Minute
	// mostDoublings bounds how long a VIP is held back: 64 times HoldUp.
	mostDoublings = 6
)

// strain is what a VIP whose route was withdrawn for a fault has gone through. Routers
// damp routes that come and go, for long and all at once: we do so first, and little.
type strain struct {
	withdrawals int       // with less than calm in between
	last        time.Time // of them
	since       time.Time // when it could be announced again; zero: it cannot
}

// hold is how long it has to be able to before it is.
func (s strain) hold(holdUp time.Duration) time.Duration {
	return holdUp << min(s.withdrawals-1, mostDoublings)
}

// damp holds back those of routes that were withdrawn lately, and says why.
func (c *Controller) damp(routes []lb.Route, why reasons, now time.Time) (left []lb.Route) {
	wanted := make(map[netip.Prefix]bool, len(routes))
	for _, r := range routes {
		wanted[r.Prefix] = true
	}
	for _, r := range c.done.routes {
		// What is drained, or no longer there, has no fault.
		if o := why.vips[lb.VIP{Prefix: r.Prefix}]; wanted[r.Prefix] || o.reason == "" || o.cause == causeDrained {
			continue
		}
		s := c.done.strained[r.Prefix]
		if now.Sub(s.last) >= calm {
			s = strain{}
		}
		c.done.strained[r.Prefix] = strain{withdrawals: s.withdrawals + 1, last: now}
	}
	for prefix, s := range c.done.strained {
		switch {
		case now.Sub(s.last) >= calm:
			delete(c.done.strained, prefix)
		case !wanted[prefix]:
			s.since = time.Time{}
			c.done.strained[prefix] = s
		case s.since.IsZero():
			s.since = now
			c.done.strained[prefix] = s
		}
	}
	for _, r := range routes {
		s, strained := c.done.strained[r.Prefix]
		if !strained || r.Shutdown || announces(c.done.routes, r.Prefix) || now.Sub(s.since) >= s.hold(c.HoldUp) {
			left = append(left, r)
			continue
		}
		why.vips[lb.VIP{Prefix: r.Prefix}] = obstacle{causeDamped, fmt.Sprintf("withdrawn %s for a fault, it is announced again when it could be for %v", times(s.withdrawals), s.hold(c.HoldUp))}
	}
	return left
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}
