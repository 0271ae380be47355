package admin_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/admin"
	"github.com/halfproxy/halfproxy/lb"
)

func TestOrdersReachTheNodeAsTheyWereGiven(t *testing.T) {
	until := time.Date(2026, 3, 14, 4, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		given admin.Order
		want  lb.Order
		fault string // in place of an order that arrives
	}{
		{admin.Order{Kind: "backend", Name: "web/web1", Action: "weigh", Weight: 50, By: "alice", Until: until},
			lb.Order{Subject: lb.Subject{Kind: lb.OfBackend, Service: "web", Name: "web1"}, Action: lb.Weigh, Weight: 50, By: "alice", Until: until}, ""},
		{admin.Order{Kind: "node", Name: "lb1", Action: "drain", By: "al\x1bice"},
			lb.Order{Subject: lb.Subject{Kind: lb.OfNode, Name: "lb1"}, Action: lb.Drain, By: "al?ice"}, ""},
		{admin.Order{Kind: "service", Name: "web", Action: "undo", By: "alice"},
			lb.Order{Subject: lb.Subject{Kind: lb.OfService, Name: "web"}, By: "alice"}, ""},
		{admin.Order{Kind: "cluster", Name: "x", Action: "drain", By: "alice"}, lb.Order{}, `"cluster" is nothing that can be told`},
		{admin.Order{Kind: "backend", Name: "/web1", Action: "drain", By: "alice"}, lb.Order{}, "no service before the /"},
		{admin.Order{Kind: "backend", Action: "drain", By: "alice"}, lb.Order{}, "has no name"},
		{admin.Order{Kind: "backend", Name: "web1", Action: "explode", By: "alice"}, lb.Order{}, `"explode" is nothing to do to a backend`},
		{admin.Order{Kind: "backend", Name: "web1", Action: "drain"}, lb.Order{}, "who gives it"},
		{admin.Order{Kind: "backend", Name: "web9", Action: "drain", By: "alice"}, lb.Order{}, "no such thing"},
	} {
		cfg := config(t)
		var got []lb.Order
		cfg.Order = func(_ context.Context, o lb.Order) error {
			if o.Subject.Name == "web9" {
				return errors.New("no such thing")
			}
			got = append(got, o)
			return nil
		}
		n := start(t, cfg)
		err := admin.NewClient(cfg.Socket).Order(t.Context(), tt.given)
		n.stop()
		switch {
		case tt.fault != "" && (err == nil || !strings.Contains(err.Error(), tt.fault) || strings.Contains(err.Error(), "same version")):
			t.Errorf("%+v: got %v, want %q", tt.given, err, tt.fault)
		case tt.fault == "" && (err != nil || len(got) != 1 || got[0] != tt.want):
			t.Errorf("%+v: got %+v, %v, want %+v", tt.given, got, err, tt.want)
		}
	}
}

func TestWhatIsNoOrderIsRefused(t *testing.T) {
	n := start(t, config(t))
	for _, body := range []string{"", "drain", `{"kind": "backend", "colour": "red"}`, `{"kind": "` + strings.Repeat("x", 64<<10) + `"}`} {
		resp, err := n.socket.Post("http://halfproxy/api/v1/orders", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 400 {
			t.Errorf("%.40s: got %d, want 400", body, resp.StatusCode)
		}
	}
}
