package control

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

// BenchmarkStep is what a node with 1,000 services of 100 backends, and two
// other members, does twice a second when nothing happens, and what one backend
// that goes down costs.
func BenchmarkStep(b *testing.B) {
	w := newWorld(nil)
	w.members["lb2"], w.members["lb3"] = &lb.Record{Member: "lb2"}, &lb.Record{Member: "lb3"}
	var observations []lb.Observation
	for i := range 1000 {
		s := lb.Service{Name: fmt.Sprintf("s%d", i), VIPs: []lb.VIP{lb.AddrVIP(netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}))}, MinHealthy: lb.Quorum{Value: 1}}
		for j := range 100 {
			s.Backends = append(s.Backends, lb.Backend{Name: fmt.Sprintf("b%d", j), Address: netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), byte(j)}), Weight: 100})
		}
		w.services = append(w.services, s)
		for _, t := range s.Targets() {
			observations = append(observations, lb.Observation{Target: t.ID(), State: lb.Up})
		}
	}
	slices.SortFunc(observations, func(a, b lb.Observation) int { return cmp.Compare(a.Target, b.Target) })
	for _, r := range w.members {
		r.Heard, r.Report.Observations, r.Report.Settled = time.Now().Add(time.Hour), observations, true
	}
	c := New(Config{Node: "lb1", Size: 3, Dataplane: quiet{w}, Announcer: quiet{w}, Cluster: w, Checker: w, Log: slog.New(slog.DiscardHandler)})
	c.SetServices(w.services)
	step := func() {
		if _, err := c.step(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	step()
	b.Run("nothing new", func(b *testing.B) {
		for b.Loop() {
			step()
		}
	})
	b.Run("a backend goes or comes", func(b *testing.B) {
		for n := 0; b.Loop(); n++ {
			observations[0].State = []lb.State{lb.Down, lb.Up}[n%2]
			step()
		}
	})
}

// quiet keeps no account of what it is told.
type quiet struct{ *world }

func (quiet) Apply(context.Context, []lb.Table) error    { return nil }
func (quiet) Announce(context.Context, []lb.Route) error { return nil }
