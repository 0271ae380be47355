package control

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/halfproxy/halfproxy/lb"
)

// TestMembersWithTheSameRecordsHaveTheSameTables shuffles the file's order and
// the order in which records came.
func TestMembersWithTheSameRecordsHaveTheSameTables(t *testing.T) {
	const seed = 1
	random := rand.New(rand.NewPCG(seed, 0))
	service := lb.Service{Name: "web", MinHealthy: lb.Quorum{Value: 1}}
	for i := range 20 {
		service.Backends = append(service.Backends, lb.Backend{
			Name: fmt.Sprintf("web%d", i), Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), Weight: random.IntN(3) * 50,
		})
	}
	p := newPlan([]lb.Service{service})
	var records []lb.Record
	for m := range 5 {
		r := lb.Record{Member: fmt.Sprintf("lb%d", m)}
		for _, target := range p.targets {
			r.Report.Observations = append(r.Report.Observations, lb.Observation{Target: target, State: lb.State(random.IntN(3))})
		}
		records = append(records, r)
	}
	table := func(service lb.Service, secret string) lb.Digest {
		p := newPlan([]lb.Service{service})
		return decide(p.services[0], judge(p.targets, records), directives{}, []byte(secret), decision{}).digest
	}

	want := table(service, "secret")
	for range 20 {
		service.Backends = slices.Clone(service.Backends)
		random.Shuffle(len(service.Backends), func(i, j int) {
			service.Backends[i], service.Backends[j] = service.Backends[j], service.Backends[i]
		})
		random.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
		if got := table(service, "secret"); got != want {
			t.Fatalf("digest of the table: got %v, want %v (seed %d)", got, want, seed)
		}
	}
	if table(service, "other") == want {
		t.Error("another secret gives the same table and hash key")
	}
}

func TestATableIsTakenOverOnlyWhenItWouldComeOutTheSame(t *testing.T) {
	service := lb.Service{Name: "web", MinHealthy: lb.Quorum{Value: 1}, Backends: []lb.Backend{
		{Name: "web1", Address: netip.MustParseAddr("192.0.2.1"), Weight: 1},
		{Name: "web2", Address: netip.MustParseAddr("192.0.2.2"), Weight: 1},
	}}
	up := judgement{state: lb.Up, up: 1, observers: 1}
	down := judgement{state: lb.Down, observers: 1}
	decided := func(previous decision, verdicts ...judgement) decision {
		return decide(newPlan([]lb.Service{service}).services[0], verdicts, directives{}, nil, previous)
	}
	verdicts := func(web1, web2 judgement) []judgement { // in the order of the plan's targets
		list := make([]judgement, 2)
		at := newPlan([]lb.Service{service}).services[0].targets
		list[at[0]], list[at[1]] = web1, web2
		return list
	}

	first := decided(decision{}, verdicts(up, up)...)
	for name, again := range map[string]decision{
		"nothing is new":              decided(first, verdicts(up, up)...),
		"only more observers tell so": decided(first, verdicts(judgement{state: lb.Up, up: 2, observers: 2}, up)...),
	} {
		if &again.table.Slots[0] != &first.table.Slots[0] {
			t.Errorf("%s: the table was built again", name)
		}
	}
	service.Hash = lb.HashSource
	if got := decided(first, verdicts(up, up)...); got.digest == first.digest {
		t.Error("another hash, and still the old table")
	}
	service.Hash = 0
	if got := decided(first, verdicts(up, down)...); got.digest == first.digest {
		t.Error("a backend went down, and still the old table")
	}
	service.Backends = slices.Clone(service.Backends)
	service.Backends[0].Weight = 3
	if got := decided(first, verdicts(up, up)...); got.digest == first.digest {
		t.Error("another weight, and still the old table")
	}
}

func TestTheMiddleObserverSaysHowFarASlowStartIs(t *testing.T) {
	for _, tt := range []struct {
		seen string // by each observer: steps ahead, or - where it is down
		want uint8
	}{
		{"0", 0}, {"4", 4}, {"40", 4}, {"04", 4}, {"43", 4}, {"00", 0},
		{"400", 0}, {"440", 4}, {"431", 3}, {"44-", 4}, {"4-", 4}, {"4--", 0}, {"2200", 2}, {"2000", 0}, {"43210", 2},
	} {
		var records []lb.Record
		for _, seen := range tt.seen {
			o := lb.Observation{Target: 1, State: lb.Down}
			if seen != '-' {
				o = lb.Observation{Target: 1, State: lb.Up, Ahead: uint8(seen - '0')}
			}
			records = append(records, lb.Record{Report: lb.Report{Observations: []lb.Observation{o}}})
		}
		for range len(records) { // whatever their order
			records = append(records[1:], records[0])
			if got := judge([]lb.TargetID{1}, records)[0].ahead; got != tt.want {
				t.Errorf("of %s: got %d, want %d", tt.seen, got, tt.want)
			}
		}
	}
}

func TestMetricsAreWellFormed(t *testing.T) {
	registry := prometheus.NewRegistry()
	w := newWorld(t)
	w.setService("web", []string{"vips=203.0.113.10,2001:db8::10,203.0.113.64/28", "backends=web1,web2"})
	w.member("lb1", "sees web1=up web2=down", []string{"web1=up", "web2=down"})
	c := New(Config{
		Node: "lb1", Size: 1, Dataplane: w, Announcer: w, Cluster: w, Checker: w,
		Log: slog.New(slog.DiscardHandler), Registerer: registry,
	})
	w.members["lb1"].Heard = time.Now()
	c.SetServices(w.services)
	if _, err := c.step(t.Context()); err != nil {
		t.Fatal(err)
	}
	if problems, err := testutil.CollectAndLint(collector{c}); err != nil || len(problems) > 0 {
		t.Errorf("lint: got %v, %v, want nothing", problems, err)
	}
	for name, want := range map[string]int{
		"halfproxy_backend_up": 2, "halfproxy_backend_weight": 2, "halfproxy_service_panic": 1, "halfproxy_vip_announced": 3,
		"halfproxy_table_digest_mismatch": 1, "halfproxy_config_mismatch": 1,
	} {
		if got, err := testutil.GatherAndCount(registry, name); err != nil || got != want {
			t.Errorf("%s: got %d series, %v, want %d", name, got, err, want)
		}
	}
	const announced = `# HELP halfproxy_vip_announced Whether this node announces the VIP.
# TYPE halfproxy_vip_announced gauge
halfproxy_vip_announced{vip="2001:db8::10"} 1
halfproxy_vip_announced{vip="203.0.113.10"} 1
halfproxy_vip_announced{vip="203.0.113.64/28"} 1
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(announced), "halfproxy_vip_announced"); err != nil {
		t.Error(err)
	}
}
