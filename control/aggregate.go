package control

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/halfproxy/halfproxy/lb"
)

// aggregate adds the aggregates around routes to them, and has each route say which
// peers are told of an aggregate in its place. An aggregate is shut down with the last
// of its VIPs.
func aggregate(routes []lb.Route, aggregates []lb.Aggregate) []lb.Route {
	routes = slices.Clone(routes)
	for _, a := range aggregates {
		around := lb.Route{Prefix: a.Prefix, Announcement: a.Announcement, Aggregate: true, Shutdown: true}
		serves := false
		for i, r := range routes {
			if !r.Aggregate && a.Prefix.Overlaps(r.Prefix) {
				routes[i].Suppressed = a.Alone
				around.Shutdown = around.Shutdown && r.Shutdown
				serves = true
			}
		}
		if serves {
			routes = append(routes, around)
		}
	}
	slices.SortFunc(routes, func(a, b lb.Route) int { return a.Prefix.Compare(b.Prefix) })
	return routes
}

// replaced tells whether r is an aggregate with VIPs in it that are among routes.
func replaced(r lb.Route, routes []lb.Route) bool {
	return slices.ContainsFunc(routes, func(o lb.Route) bool { return r.IsAround(o.Prefix) })
}

// AggregateStatus is how an aggregate stood.
type AggregateStatus struct {
	Prefix    lb.VIP
	Announced bool // and not about to be withdrawn
	HeldBack       // why it is not
	VIPs      int  // in it
	Serving   int  // those of them that it is announced for
}

// aggregates tells how the aggregates of p stand, by how its VIPs do.
func (c *Controller) aggregates(p plan, st *Status) []AggregateStatus {
	var vips []lb.VIP
	for _, s := range p.services {
		vips = append(vips, s.VIPs...)
	}
	slices.SortFunc(vips, lb.VIP.Compare)
	vips = slices.Compact(vips)
	var list []AggregateStatus
	for _, a := range p.aggregates {
		as := AggregateStatus{Prefix: lb.VIP{Prefix: a.Prefix}}
		var held []string
		for _, vip := range vips {
			if !a.Prefix.Overlaps(vip.Prefix) {
				continue
			}
			as.VIPs++
			if h, is := st.HeldBack[vip]; is {
				held = append(held, fmt.Sprintf("%s: %s", vip, h.Reason))
				as.Cause = cmp.Or(as.Cause, h.Cause)
			} else if announces(c.done.routes, vip.Prefix) {
				as.Serving++
			}
		}
		i := slices.IndexFunc(c.done.routes, func(r lb.Route) bool { return r.Prefix == a.Prefix && r.Aggregate })
		as.Announced = i >= 0 && !c.done.routes[i].Shutdown
		if as.Reason = summary(held); as.Announced && as.Serving > 0 {
			as.HeldBack = HeldBack{}
		}
		list = append(list, as)
	}
	return list
}

// summary gives the first few of reasons, and how many there are besides.
func summary(reasons []string) string {
	const most = 3
	if n := len(reasons) - most; n > 0 {
		reasons = append(slices.Clone(reasons[:most]), fmt.Sprintf("and of %d more VIPs", n))
	}
	return strings.Join(reasons, "; ")
}
