package main

import (
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/control"
	"github.com/halfproxy/halfproxy/internal/clock"
	"github.com/halfproxy/halfproxy/lb"
)

func TestAProgramIsTakenOverOnceTablesAreInAndWhole(t *testing.T) {
	service := func(table lb.Digest, states ...lb.State) control.ServiceStatus {
		s := control.ServiceStatus{Table: table}
		for _, state := range states {
			s.Backends = append(s.Backends, control.BackendStatus{State: state})
		}
		return s
	}
	for _, tt := range []struct {
		name       string
		status     control.Status
		in, judged bool
	}{
		{"before the first step", control.Status{}, false, true},
		{"nothing to serve", control.Status{Config: 1}, true, true},
		{"tables not applied", control.Status{Config: 1, Services: []control.ServiceStatus{service(1, lb.Up), service(0, lb.Up)}}, false, true},
		{"a backend not judged", control.Status{Config: 1, Services: []control.ServiceStatus{service(1, lb.Up, lb.Unknown), service(2, lb.Up)}}, true, false},
		{"all judged, not all up", control.Status{Config: 1, Services: []control.ServiceStatus{service(1, lb.Up, lb.Down, lb.Drained)}}, true, true},
	} {
		if in, judged := tables(tt.status); in != tt.in || judged != tt.judged {
			t.Errorf("%s: got in %t, judged %t, want %t, %t", tt.name, in, judged, tt.in, tt.judged)
		}
	}
}

func TestAgesAreRightAfterTheClockWasSet(t *testing.T) {
	began := time.Now()
	for _, by := range []time.Duration{0, 6 * time.Hour, -6 * time.Hour} {
		now := clock.Set(t, began.Add(time.Minute), by)
		shown := byClock(began, now).Round(0)
		if off := now.Round(0).Sub(shown) - time.Minute; off.Abs() > time.Second {
			t.Errorf("clock set by %v: shown as since %v at %v, want a minute", by, shown, now)
		}
		if later := byClock(began, now.Add(time.Nanosecond)).Round(0); !later.Equal(shown) {
			t.Errorf("clock set by %v: shown as since %v and then %v, want the same", by, shown, later)
		}
	}
	for range 1000 { // of two clocks that are read one after the other
		if got := byClock(began, time.Now()); !got.Equal(began) {
			t.Fatalf("got %v, want %v as it was", got, began)
		}
	}
}
