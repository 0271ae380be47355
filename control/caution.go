package control

import (
	"slices"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

// A route that comes or goes has routers move flows, also between nodes whose own routes
// stay as they are. One that has just begun has a record that no other node has heard of
// yet. So who is about to change its routes says so first, and while somebody does all
// members are cautious: they send new flows where each of them sends older ones.

const (
	// afterwards is how long routers take to do as they are told.
	afterwards = 3 * time.Second
	// mostCaution is how long a member is listened to at most that says so all the time.
	mostCaution = 15 * time.Second
	// cautionLasts is how long the data plane is cautious when nobody asks it to go on.
	cautionLasts = 4 * tick
)

// moving is what this node says of its own routes.
type moving struct {
	since time.Time // when it began to say that they change; zero: it does not say so
	until time.Time // it does until then at least
}

// forewarn gives the routes for now: as they are where others have not been warned for
// long enough of what is planned. What is withdrawn for a fault goes at once. It needs
// c.stepping.
func (c *Controller) forewarn(routes []lb.Route, why reasons, alone bool, now time.Time) []lb.Route {
	stays := func(r lb.Route) bool {
		return announces(routes, r.Prefix) || why.vips[lb.VIP{Prefix: r.Prefix}].cause == causeDrained
	}
	var vips, kept []lb.Route
	for _, r := range c.done.routes {
		if !r.Aggregate && stays(r) {
			vips = append(vips, r)
		}
	}
	for _, r := range c.done.routes {
		if stays(r) || replaced(r, vips) {
			kept = append(kept, r)
		}
	}
	planned, changes := !slices.EqualFunc(kept, routes, lb.Route.Equal), !slices.EqualFunc(c.done.routes, routes, lb.Route.Equal)
	m := &c.moving
	if m.since.IsZero() && changes {
		m.since = now
		time.AfterFunc(c.Notice, c.Wake)
	}
	if planned && !alone && now.Sub(m.since) < c.Notice {
		for _, r := range routes {
			if !r.Aggregate && !announces(kept, r.Prefix) {
				why.vips[lb.VIP{Prefix: r.Prefix}] = obstacle{causeUnjudged, "the other members are told first that flows may come to them"}
			}
		}
		return kept
	}
	if changes {
		m.until = now.Add(afterwards)
	} else if now.After(m.until) {
		m.since = time.Time{}
	}
	return routes
}

// heed makes the data plane cautious while this node or one of the others in sight says
// that flows move. It needs c.stepping.
func (c *Controller) heed(others []lb.Record, now time.Time) {
	cautious := !c.moving.since.IsZero()
	heard := make(map[string]time.Time)
	for _, r := range others {
		if !r.Report.Moving {
			continue
		}
		since, known := c.heard[r.Member]
		if !known {
			since = now
		}
		heard[r.Member] = since
		cautious = cautious || now.Sub(since) < mostCaution
	}
	c.heard = heard
	if cautious {
		c.Dataplane.Caution(cautionLasts)
	} else {
		c.Dataplane.Caution(0)
	}
}
