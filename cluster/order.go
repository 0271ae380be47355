package cluster

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

// maxOrders is how many orders a report can have.
const maxOrders = 1024

func appendOrders(b []byte, orders []lb.Order) ([]byte, error) {
	if len(orders) > maxOrders {
		return nil, fmt.Errorf("%d orders: at most %d can be told", len(orders), maxOrders)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(orders)))
	for _, o := range orders {
		for what, text := range map[string]string{"service": o.Subject.Service, "name": o.Subject.Name, "giver": o.By, "member": o.Member} {
			if err := checkName(text); err != nil && (text != "" || what == "name" || what == "member") {
				return nil, fmt.Errorf("%s %q in the order about %s: %w", what, text, o.Subject, err)
			}
		}
		b = append(b, byte(o.Subject.Kind))
		b = appendName(appendName(b, o.Subject.Service), o.Subject.Name)
		b = append(b, byte(o.Action))
		b = binary.BigEndian.AppendUint16(b, uint16(o.Weight))
		b = appendName(b, o.By)
		b = appendTime(appendTime(b, o.At), o.Until)
		b = appendName(b, o.Member)
		b = binary.BigEndian.AppendUint64(b, o.Version)
	}
	return b, nil
}

// appendTime makes the zero time 0.
func appendTime(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return binary.BigEndian.AppendUint64(b, 0)
	}
	return binary.BigEndian.AppendUint64(b, uint64(max(t.UnixMilli(), 1)))
}

func (r *reader) orders() []lb.Order {
	var orders []lb.Order
	for range r.uint16() {
		var o lb.Order
		o.Subject.Kind = lb.SubjectKind(r.uint8())
		o.Subject.Service, o.Subject.Name = r.text(), r.name()
		o.Action = lb.Action(r.uint8())
		o.Weight = int(r.uint16())
		o.By = r.text()
		o.At, o.Until = r.time(), r.time()
		o.Member, o.Version = r.name(), r.uint64()
		switch {
		case r.refused != "":
		case len(orders) == maxOrders, o.Subject.Kind < lb.OfNode || o.Subject.Kind > lb.OfBackend, o.Action > lb.Weigh,
			o.Weight > lb.MaxWeight, o.Version > math.MaxInt64:
			r.fail(refusedMalformed)
		case len(orders) > 0 && o.Subject.Compare(orders[len(orders)-1].Subject) <= 0:
			r.fail(refusedOrder)
		}
		if r.refused != "" {
			return nil
		}
		orders = append(orders, o)
	}
	return orders
}

// text is a name that may be empty.
func (r *reader) text() string {
	if len(r.b) > 0 && r.b[0] == 0 {
		r.take(1)
		return ""
	}
	return r.name()
}

func (r *reader) time() time.Time {
	ms := r.uint64()
	if ms > math.MaxInt64/uint64(time.Millisecond) {
		r.fail(refusedMalformed)
	}
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(int64(ms)).UTC()
}
