package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/cluster"
	"github.com/halfproxy/halfproxy/control"
	"github.com/halfproxy/halfproxy/lb"
)

// BenchmarkAgreement runs clusters in this process that balance ten services of 100
// backends each. Gossip and decisions are those of a node; what a node's checks find is
// given to it, and its data plane only looks at the tables that it is handed.
//
// news-*-ms is how long after all nodes found a backend down, or up again, the last
// node has the table for it, cpu-ms the CPU that it takes all nodes, whatever they do
// between changes included. In a mass failure every backend fails within a second:
// mass-ms is how long after that second every node has no backend in its tables any
// more, and then has all of them again; tables is how many sets of tables the busiest
// node was handed in both.
func BenchmarkAgreement(b *testing.B) {
	for _, tt := range []struct{ nodes, changes int }{{5, 30}, {5, 100}} {
		b.Run(fmt.Sprintf("%d nodes, %d changes", tt.nodes, tt.changes), func(b *testing.B) {
			for b.Loop() {
				measureAgreement(b, tt.nodes, tt.changes)
			}
		})
	}
}

func measureAgreement(b *testing.B, n, changes int) {
	ctx, cancel := context.WithCancel(b.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	services := thousandBackends()
	var join []string
	for i := range min(n, 5) {
		join = append(join, simulated(i).String())
	}
	nodes := make([]*simulation, n)
	for i := range nodes {
		nodes[i] = newSimulation(b, i, n, join, services)
		running.Go(func() { nodes[i].run(ctx) })
	}
	targets := nodes[0].observations
	wait := func(backends int) time.Time {
		deadline := time.Now().Add(2 * time.Minute)
		for _, s := range nodes {
			for s.backends() != backends {
				if time.Now().After(deadline) {
					b.Fatalf("%s has %d backends in its tables, not %d", s.name, s.backends(), backends)
				}
				time.Sleep(time.Millisecond)
			}
		}
		return time.Now()
	}
	wait(len(targets))
	time.Sleep(5 * time.Second) // what joining set off is over

	var took []time.Duration
	busy := cpuTime()
	for i := range changes / 2 {
		for _, state := range []lb.State{lb.Down, lb.Up} {
			begin := time.Now()
			for _, s := range nodes {
				s.find(i*17, state)
			}
			left := len(targets)
			if state == lb.Down {
				left--
			}
			took = append(took, wait(left).Sub(begin))
			time.Sleep(750 * time.Millisecond) // changes that follow one another closely are gathered
		}
	}
	b.ReportMetric(float64((cpuTime()-busy).Milliseconds())/float64(len(took)), "cpu-ms")
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Milliseconds()), "news-ms")
	b.ReportMetric(float64(took[(len(took)*99+99)/100-1].Milliseconds()), "news-p99-ms")

	var mass time.Duration
	before := make([]int, n)
	for i, s := range nodes {
		before[i] = s.handed()
	}
	for _, state := range []lb.State{lb.Down, lb.Up} {
		var finding sync.WaitGroup
		for _, s := range nodes {
			finding.Go(func() {
				for at, i := range rand.Perm(len(targets)) {
					if at%10 == 0 {
						time.Sleep(10 * time.Millisecond)
					}
					s.find(i, state)
				}
			})
		}
		finding.Wait()
		found := time.Now()
		left := 0
		if state == lb.Up {
			left = len(targets)
		}
		mass = max(mass, wait(left).Sub(found))
	}
	tables := 0
	for i, s := range nodes {
		tables = max(tables, s.handed()-before[i])
	}
	b.ReportMetric(float64(mass.Milliseconds()), "mass-ms")
	b.ReportMetric(float64(tables), "tables")
	b.ReportMetric(0, "ns/op")
}

// cpuTime is what this process has used.
func cpuTime() time.Duration {
	var use syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &use) != nil {
		return 0
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}

func thousandBackends() (services []lb.Service) {
	for i := range 10 {
		s := lb.Service{Name: fmt.Sprintf("s%d", i), VIPs: []lb.VIP{lb.AddrVIP(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}))}, MinHealthy: lb.Quorum{Value: 1}}
		for j := range 100 {
			s.Backends = append(s.Backends, lb.Backend{Name: fmt.Sprintf("b%d", j), Address: netip.AddrFrom4([4]byte{10, 0, byte(i), byte(j)}), Weight: 100})
		}
		services = append(services, s)
	}
	return services
}

// simulated is where the node of a number gossips: loopback addresses of no other test.
func simulated(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 49, 0, byte(i + 1)}), 7946)
}

// simulation is a node whose checker and data plane it plays itself.
type simulation struct {
	name    string
	members *cluster.Cluster
	control *control.Controller
	changes chan struct{}

	mu           sync.Mutex
	observations []lb.Observation
	tables       []lb.Table
	applied      int
}

func newSimulation(b *testing.B, i, size int, join []string, services []lb.Service) *simulation {
	s := &simulation{name: fmt.Sprintf("lb%d", i+1), changes: make(chan struct{}, 1)}
	for _, service := range services {
		for _, t := range service.Targets() {
			s.observations = append(s.observations, lb.Observation{Target: t.ID(), State: lb.Up})
		}
	}
	slices.SortFunc(s.observations, func(a, b lb.Observation) int { return cmp.Compare(a.Target, b.Target) })
	log := slog.New(slog.DiscardHandler)
	var err error
	s.members, err = cluster.New(cluster.Config{Name: s.name, Cluster: "bench", Listen: simulated(i), Join: join, Keys: [][]byte{make([]byte, 32)}, Log: log})
	if err != nil {
		b.Fatal(err)
	}
	s.control = control.New(control.Config{
		Node: s.name, Size: size, Secret: []byte("bench"), PartitionHold: 15 * time.Second,
		Dataplane: s, Announcer: nobody{}, Cluster: s.members, Checker: s, Log: log,
	})
	s.control.SetServices(services)
	return s
}

func (s *simulation) run(ctx context.Context) {
	var parts sync.WaitGroup
	parts.Go(func() { _ = s.members.Run(ctx) })
	parts.Go(func() { _ = s.control.Run(ctx) })
	for {
		select {
		case <-ctx.Done():
			parts.Wait()
			return
		case <-s.changes:
		case <-s.members.Changes():
		}
		s.control.Wake()
	}
}

// find makes state what this node's checks found of the ith target.
func (s *simulation) find(i int, state lb.State) {
	s.mu.Lock()
	s.observations = slices.Clone(s.observations)
	s.observations[i].State = state
	s.mu.Unlock()
	select {
	case s.changes <- struct{}{}:
	default:
	}
}

// backends is how many there are in the tables.
func (s *simulation) backends() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tables {
		n += len(t.Backends)
	}
	return n
}

func (s *simulation) handed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.applied
}

func (s *simulation) SetTargets([]lb.Target) {}

func (s *simulation) Observations() []lb.Observation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.observations
}

func (s *simulation) Apply(_ context.Context, tables []lb.Table) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tables = tables
	s.applied++
	return nil
}

func (s *simulation) Attached() error { return nil }

func (s *simulation) Strayed(string) time.Time { return time.Time{} }

func (s *simulation) Holds(string, []string) []string { return nil }

func (s *simulation) Caution(time.Duration) {}
