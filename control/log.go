package control

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

// logFailure says that applying failed, once while it fails the same way.
func (c *Controller) logFailure(err error) {
	failure := ""
	if err != nil {
		failure = err.Error()
	}
	if failure != "" && failure != c.done.failure {
		c.Log.Error("state not applied, will retry", "err", err, "after", tick)
	}
	c.done.failure = failure
}

func (c *Controller) logBlind(blind bool) {
	switch {
	case blind && !c.done.blind:
		c.Log.Warn("this node is blind: backends are down for it that the others see up; its routes are withdrawn and its votes do not count",
			"remedy", "look at its way to the backends")
	case !blind && c.done.blind:
		c.Log.Info("this node sees backends as the others do again")
	}
}

// logPanic tells when a service begins to ignore health, and when that is over.
func (c *Controller) logPanic(d decision) {
	was := c.done.decisions[d.service.Name].panic
	switch {
	case d.panic != "" && was == "":
		c.Log.Warn("health is ignored and all backends are used", "service", d.service.Name, "why", d.panic,
			"remedy", "look at the backends, and at what checks them")
	case d.panic == "" && was != "":
		c.Log.Info("health counts again", "service", d.service.Name)
	}
}

// logChanges tells what a colleague would be told.
func (c *Controller) logChanges(decisions []decision) {
	for _, d := range decisions {
		c.logPanic(d)
		c.logPassage(d)
		previous := c.done.decisions[d.service.Name].backends
		if slices.Equal(previous, d.backends) {
			continue
		}
		for _, b := range d.backends {
			i := slices.IndexFunc(previous, func(p BackendStatus) bool { return p.Name == b.Name })
			if i >= 0 && previous[i].State == b.State || i < 0 && b.State == lb.Unknown {
				continue
			}
			level := slog.LevelInfo
			if b.State == lb.Down {
				level = slog.LevelWarn
			}
			log := c.Log
			if b.Ahead > 0 {
				log = log.With("slow_start", d.service.Check.SlowStart)
			}
			log.Log(context.Background(), level, "backend changed", "service", d.service.Name, "backend", b.Name,
				"state", b.State.String(), "healthy_observers", b.Up, "observers", b.Observers)
		}
	}
}

// logPassage tells when a service's flows begin to be kept where they are though its
// table has others for them, and when that is over.
func (c *Controller) logPassage(d decision) {
	was, is := c.done.decisions[d.service.Name].inTransition(), d.inTransition()
	switch {
	case is && !was:
		c.Log.Info("transition begins: older flows stay where they are", "service", d.service.Name,
			"slots", d.bases.transition, "for", d.service.Lifetime())
	case was && !is:
		c.Log.Info("transition is over: every flow goes by the table", "service", d.service.Name)
	}
}

// logCluster tells what becomes of the members' votes.
func (c *Controller) logCluster(found finding, inSight int) {
	c.done.quorate = c.done.quorate || !found.frozen
	if c.done.quorate && found.frozen != c.done.frozen { // one that has just started has yet to hear of the others
		attrs := []any{"in_sight", inSight, "size", c.jury.size}
		if found.frozen {
			c.Log.Warn("verdicts stay as they were: too few members in sight for a majority", append(attrs, "for", c.jury.hold)...)
		} else {
			c.Log.Info("verdicts are decided again", attrs...)
		}
		c.done.frozen = found.frozen
	}
	blinded := slices.Sorted(slices.Values(found.blind))
	for _, m := range blinded {
		if _, was := slices.BinarySearch(c.done.blinded, m); !was && m != c.Node {
			c.Log.Warn("member is blind: it sees most backends down that the others see up, and does not vote", "member", m)
		}
	}
	for _, m := range c.done.blinded {
		if _, still := slices.BinarySearch(blinded, m); !still && m != c.Node {
			c.Log.Info("member votes again", "member", m)
		}
	}
	c.done.blinded = blinded
}

// logOrders tells of orders whose time is over. Of those that are given, or undone, order
// and hear tell.
func (c *Controller) logOrders(now time.Time) {
	for _, o := range c.done.inForce {
		if c.orders[o.Subject] == o && !o.InForce(now) {
			c.Log.Info("order is over", "order", o.String())
		}
	}
	c.done.inForce = c.orders.inForce(now)
}

// logHeld tells why VIPs are withdrawn, or cannot be announced. That nothing is judged yet
// is so at every start, and not worth a line.
func (c *Controller) logHeld(why reasons) {
	held := make(map[lb.VIP]cause, len(why.vips))
	for _, vip := range slices.SortedFunc(maps.Keys(why.vips), lb.VIP.Compare) {
		o := why.vips[vip]
		if o.reason == "" {
			continue
		}
		held[vip] = o.cause
		if c.done.held[vip] == o.cause || o.cause == causeUnjudged {
			continue
		}
		level := slog.LevelWarn
		if o.cause == causeDrained {
			level = slog.LevelInfo
		}
		c.Log.Log(context.Background(), level, "vip held back", "vip", vip, "cause", string(o.cause), "reason", o.reason)
	}
	c.done.held = held
}
