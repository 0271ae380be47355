package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/halfproxy/halfproxy/internal/words"
	"github.com/halfproxy/halfproxy/lb"
)

const (
	// mostOrders is how many orders a cluster remembers: each report carries all.
	mostOrders = 1024
	// remembered is how long what is undone or over is kept: a member that was away
	// for longer brings the order back.
	remembered = 30 * 24 * time.Hour
)

// book holds the last order about each subject, undone ones included: the only way
// to tell a member that missed it. Members that hold the same orders hold the same
// book, in whatever order and however often those came.
type book map[lb.Subject]lb.Order

// merge takes in orders that are news, and calls took with each and the one about the
// same subject before.
func (b book) merge(orders []lb.Order, took func(o, before lb.Order)) {
	for _, o := range orders {
		known, there := b[o.Subject]
		if there && !o.Supersedes(known) || !there && len(b) >= mostOrders {
			continue
		}
		b[o.Subject] = o
		took(o, known)
	}
}

// forget drops what is long over, and tells whether there was any.
func (b book) forget(now time.Time) bool {
	before := len(b)
	maps.DeleteFunc(b, func(_ lb.Subject, o lb.Order) bool {
		over := o.At
		if !o.Until.IsZero() {
			over = o.Until
		}
		return !o.InForce(now) && now.Sub(over) > remembered
	})
	return len(b) < before
}

// list gives all orders by subject.
func (b book) list() []lb.Order {
	return slices.SortedFunc(maps.Values(b), func(o, p lb.Order) int { return o.Subject.Compare(p.Subject) })
}

// inForce gives the orders that ask for something now, by subject.
func (b book) inForce(now time.Time) []lb.Order {
	return slices.DeleteFunc(b.list(), func(o lb.Order) bool { return !o.InForce(now) })
}

// about gives the order in force about a subject, a backend's own before that of
// all backends of its name.
func (b book) about(now time.Time, subjects ...lb.Subject) (lb.Order, bool) {
	for _, s := range subjects {
		if o, there := b[s]; there && o.InForce(now) {
			return o, true
		}
	}
	return lb.Order{}, false
}

// directives are what orders ask for of one service. They are comparable but for
// their backends.
type directives struct {
	service  lb.Order   // Drain, or none
	backends []lb.Order // of each of the service's backends, or none
}

func (b book) directives(s planned, now time.Time) directives {
	var d directives
	if len(b) == 0 {
		return d
	}
	d.service, _ = b.about(now, lb.Subject{Kind: lb.OfService, Name: s.Name})
	for i, backend := range s.Backends {
		o, there := b.about(now,
			lb.Subject{Kind: lb.OfBackend, Service: s.Name, Name: backend.Name}, lb.Subject{Kind: lb.OfBackend, Name: backend.Name})
		if there && d.backends == nil {
			d.backends = make([]lb.Order, len(s.Backends))
		}
		if there {
			d.backends[i] = o
		}
	}
	return d
}

// backend is the order about the service's i-th backend; Undo: there is none.
func (d directives) backend(i int) lb.Order {
	if d.backends == nil {
		return lb.Order{}
	}
	return d.backends[i]
}

func (d directives) equal(o directives) bool {
	return d.service == o.service && slices.Equal(d.backends, o.backends)
}

// ErrUnknownSubject is the error of an order about something that this node's
// configuration does not have.
var ErrUnknownSubject = errors.New("this node's configuration has no such thing")

// Order takes an order, of which Subject, Action, Weight, By and Until count. When
// it returns without an error the order is in force on this node and on its way to
// the others.
func (c *Controller) Order(ctx context.Context, o lb.Order) error {
	c.stepping.Lock()
	err := c.take(o, time.Now())
	c.stepping.Unlock()
	if err != nil {
		return err
	}
	_, err = c.step(ctx)
	return err
}

// take needs c.stepping.
func (c *Controller) take(o lb.Order, now time.Time) error {
	if err := c.valid(o, now); err != nil {
		return err
	}
	known, there := c.orders[o.Subject]
	if !there && len(c.orders) >= mostOrders {
		return fmt.Errorf("%d orders are remembered already: undo what is not needed, it is forgotten after %v", mostOrders, remembered)
	}
	o.At, o.Until, o.Member = wire(now), wire(o.Until), c.Node
	// The clock, that a book that was forgotten is no trap; the count, that a
	// clock that went back is none.
	o.Version = max(uint64(max(now.UnixNano(), 1)), known.Version+1)
	c.orders[o.Subject] = o
	c.Log.Info("order taken", "order", o.String())
	c.keepOrders()
	return nil
}

// wire is a time as orders carry it: equal orders have equal times.
func wire(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

// valid tells what is wrong with an order.
func (c *Controller) valid(o lb.Order, now time.Time) error {
	if o.Action == lb.Undo {
		if known := c.orders[o.Subject]; !known.InForce(now) {
			return fmt.Errorf("nothing to undo: no order about %s is in force%s", o.Subject, c.instead(now))
		}
		return nil
	}
	if !o.Until.IsZero() && !now.Before(o.Until) {
		return fmt.Errorf("the order about %s would end at %s, which is past", o.Subject, o.Until.UTC().Format(time.RFC3339))
	}
	var problem string
	switch kind := o.Subject.Kind; {
	case kind == lb.OfNode && o.Subject.Name != c.Node:
		return fmt.Errorf("this is node %s, and a node is drained from itself: give the order on node %s", c.Node, o.Subject.Name)
	case kind != lb.OfBackend && o.Action != lb.Drain:
		problem = fmt.Sprintf("a %s can be drained only", kind)
	case o.Action == lb.Weigh && (o.Weight < 0 || o.Weight > lb.MaxWeight):
		problem = fmt.Sprintf("weight %d is out of range: give a number from 0 to %d", o.Weight, lb.MaxWeight)
	case kind == lb.OfNode || c.current().has(o.Subject):
		return nil
	default:
		return fmt.Errorf("%s: %w: %s", o.Subject, ErrUnknownSubject, c.current().meant(o.Subject))
	}
	return fmt.Errorf("%s of %s: %s", o.Action, o.Subject, problem)
}

// instead lists what could be undone.
func (c *Controller) instead(now time.Time) string {
	list := c.orders.inForce(now)
	if len(list) == 0 {
		return ", nor about anything else"
	}
	text := "; in force are: "
	for i, o := range list {
		if i > 0 {
			text += ", "
		}
		text += o.Subject.String()
	}
	return text
}

func (p plan) has(subject lb.Subject) bool {
	return slices.ContainsFunc(p.services, func(s planned) bool {
		if subject.Kind == lb.OfService {
			return s.Name == subject.Name
		}
		return (subject.Service == "" || subject.Service == s.Name) &&
			slices.ContainsFunc(s.Backends, func(b lb.Backend) bool { return b.Name == subject.Name })
	})
}

// meant is the remedy for a subject that there is not.
func (p plan) meant(subject lb.Subject) string {
	var names []string
	for _, s := range p.services {
		if subject.Kind == lb.OfService {
			names = append(names, s.Name)
			continue
		}
		for _, b := range s.Backends {
			names = append(names, b.Name, s.Name+"/"+b.Name)
		}
	}
	if near, found := words.Nearest(subject.Called(), names); found {
		return fmt.Sprintf("did you mean %q?", near)
	}
	return "`halfproxy status` lists what there is"
}

// hear takes in what the others hold of orders. It needs c.stepping.
func (c *Controller) hear(records []lb.Record, now time.Time) {
	changed := c.orders.forget(now)
	for _, r := range records {
		if r.Member != c.Node {
			c.orders.merge(r.Report.Orders, func(o, before lb.Order) {
				changed = true
				if o.InForce(now) || before.InForce(now) {
					c.Log.Info("order taken", "order", o.String())
				}
			})
		}
	}
	if changed {
		c.keepOrders()
	}
}

func (c *Controller) keepOrders() {
	if c.KeepOrders == nil {
		return
	}
	if err := c.KeepOrders(c.orders.list()); err != nil {
		c.Log.Warn("orders not kept: a restart of all members at once would forget them", "err", err)
	}
}
