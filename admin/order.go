package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

const ordersPath = "/api/v1/orders"

// Order is what somebody asked for at run time, of the whole cluster.
type Order struct {
	Kind   string    `json:"kind"`             // node, service or backend
	Name   string    `json:"name"`             // of a backend web1, or web/web1 for that of one service
	Action string    `json:"action"`           // drain, fail, weigh or undo
	Weight int       `json:"weight,omitempty"` // of weigh
	By     string    `json:"by"`
	Member string    `json:"member"`      // that took it
	At     time.Time `json:"at,omitzero"` // when it did
	Until  time.Time `json:"until,omitzero"`
}

// NewOrder gives o as it is shown.
func NewOrder(o lb.Order) Order {
	return Order{
		Kind: o.Subject.Kind.String(), Name: o.Subject.Called(), Action: o.Action.String(), Weight: o.Weight,
		By: o.By, Member: o.Member, At: o.At, Until: o.Until,
	}
}

// order gives o with its words checked.
func (o Order) order() (lb.Order, error) {
	subject, err := lb.ParseSubject(o.Kind, o.Name)
	if err != nil {
		return lb.Order{}, err
	}
	for action := lb.Undo; action <= lb.Weigh; action++ {
		if action.String() == o.Action {
			return lb.Order{Subject: subject, Action: action, Weight: o.Weight, By: clean(o.By), Until: o.Until}, nil
		}
	}
	return lb.Order{}, fmt.Errorf("%q is nothing to do to a %s: use drain, fail, weigh or undo", o.Action, o.Kind)
}

func (s *Server) order(w http.ResponseWriter, r *http.Request, take func(context.Context, lb.Order) error) {
	var wanted Order
	if !asked(w, r, "order", &wanted) {
		return
	}
	order, err := wanted.order()
	if err == nil && order.By == "" {
		err = errors.New("the order does not say who gives it")
	}
	if err == nil {
		err = take(r.Context(), order)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
