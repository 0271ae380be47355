package health

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/halfproxy/halfproxy/lb"
)

func TestStateFollowsTheAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		c := n.start(t, Config{})
		web1 := tcpTarget("web1", lb.Check{Interval: time.Second, Timeout: time.Second / 2, Rise: 2, Fall: 3})
		c.SetTargets([]lb.Target{web1})
		added := time.Now()

		state(t, c, web1, lb.Unknown)
		time.Sleep(2 * time.Second)
		state(t, c, web1, lb.Up)
		if r := c.Results()[0]; r.LastError != "" || r.LastDuration != 0 || r.Since.Before(added) || r.Since.After(added.Add(2*time.Second)) {
			t.Errorf("result of an up backend: got %+v", r)
		}

		n.answer(web1, refused)
		time.Sleep(3 * time.Second)
		state(t, c, web1, lb.Down)
		if got, want := c.Results()[0].LastError, "connection refused by [2001:db8::1]:80 after 0s"; got != want {
			t.Errorf("last error: got %q, want %q", got, want)
		}

		n.answer(web1, silent)
		time.Sleep(2 * time.Second)
		if r := c.Results()[0]; r.LastError != "no connection to [2001:db8::1]:80 within 500ms" || r.LastDuration != time.Second/2 {
			t.Errorf("result of a silent backend: got %q after %v", r.LastError, r.LastDuration)
		}

		n.answer(web1, fit)
		time.Sleep(2500 * time.Millisecond)
		state(t, c, web1, lb.Up)
	})
}

// A backend dies at any moment; from then on its probes are refused or hang
// until the timeout. The bound holds to the nanosecond of virtual time.
func TestDeadBackendIsDownInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		c := n.start(t, Config{})

		var targets []lb.Target
		for i := range 500 {
			interval := time.Duration(1+rand.IntN(5000)) * time.Millisecond
			targets = append(targets, tcpTarget(fmt.Sprint("web", i), lb.Check{
				Interval: interval, Timeout: 1 + rand.N(interval), Rise: 1 + rand.IntN(3), Fall: 1 + rand.IntN(4),
			}))
		}
		c.SetTargets(targets)
		time.Sleep(20 * time.Second)

		var deaths sync.Mutex
		died := make(map[lb.TargetID]time.Time)
		for _, target := range targets {
			state(t, c, target, lb.Up)
			time.AfterFunc(rand.N(10*time.Second), func() {
				deaths.Lock()
				defer deaths.Unlock()
				died[target.ID()] = time.Now()
				n.answer(target, []func(context.Context) error{refused, silent}[rand.IntN(2)])
			})
		}
		time.Sleep(40 * time.Second)

		nearest := 0.0
		for _, r := range c.Results() {
			bound := r.Target.Check.Interval*time.Duration(r.Target.Check.Fall) + r.Target.Check.Timeout
			took := r.Since.Sub(died[r.Target.ID()])
			if r.State != lb.Down || took > bound {
				t.Errorf("%+v: %v %v after its death, want down within %v", r.Target.Check, r.State, took, bound)
			}
			nearest = max(nearest, float64(took)/float64(bound))
		}
		t.Logf("the slowest took %.1f%% of its time", 100*nearest)
	})
}

func TestScheduleIsSoonSpreadAndSteady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		c := n.start(t, Config{})
		const interval, timeout = 10 * time.Second, 3 * time.Second
		var targets []lb.Target
		for i := range 300 {
			targets = append(targets, tcpTarget(fmt.Sprint("web", i), lb.Check{Interval: interval, Timeout: timeout, Rise: 1, Fall: 1}))
			n.answer(targets[i], []func(context.Context) error{fit, refused, silent}[i%3])
		}
		added := time.Now()
		c.SetTargets(targets)
		time.Sleep(100 * time.Second)

		var phases []time.Duration
		for _, target := range targets {
			probes := n.probes(target)
			if first := probes[0].Sub(added); first >= time.Second {
				t.Errorf("first probe after %v, want it within 1s", first)
			}
			if gap := probes[1].Sub(probes[0]); gap > interval {
				t.Errorf("second probe %v after the first, want it within %v", gap, interval)
			}
			// The second probe may have had to wait for the first to time out.
			for i := 3; i < len(probes); i++ {
				if gap := probes[i].Sub(probes[i-1]); gap != interval {
					t.Fatalf("probe %d after %v, want after exactly %v", i, gap, interval)
				}
			}
			phases = append(phases, probes[2].Sub(added)%interval)
		}
		// 300 random phases leave a gap of a sixth of the interval once in 10^21 runs.
		slices.Sort(phases)
		for i := 1; i < len(phases); i++ {
			if gap := phases[i] - phases[i-1]; gap > interval/6 {
				t.Errorf("no probe for %v of each interval: phases are not spread", gap)
			}
		}
	})
}

func TestProbesMissedBeforeRunAreNotMadeUpFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		c := n.checker(Config{})
		var targets []lb.Target
		for i := range 100 {
			targets = append(targets, tcpTarget(fmt.Sprint("web", i), lb.Check{Interval: time.Second, Timeout: time.Second / 2, Rise: 1, Fall: 1}))
		}
		c.SetTargets(targets)
		time.Sleep(time.Hour)

		n.run(t, c)
		begin := time.Now()
		time.Sleep(time.Second)
		at := make(map[time.Duration]int)
		for _, target := range targets {
			probes := n.probes(target)
			if len(probes) < 1 || len(probes) > 2 {
				t.Fatalf("got %d probes in the first second, want 1 or 2", len(probes))
			}
			at[probes[0].Sub(begin).Truncate(10*time.Millisecond)]++
		}
		if len(at) < 20 {
			t.Errorf("first probes of 100 targets: got %d distinct hundredths of a second, want them spread", len(at))
		}
	})
}

// A probe that ends a little after the next one was due, as a busy machine
// has it, must not cost that next one.
func TestProbeThatOutlastsItsIntervalDelaysTheNextButDoesNotSkipIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		c := n.start(t, Config{})
		web1 := tcpTarget("web1", lb.Check{Interval: time.Second, Timeout: 999 * time.Millisecond, Rise: 1, Fall: 1})
		n.answer(web1, func(ctx context.Context) error {
			<-ctx.Done()
			time.Sleep(2 * time.Millisecond)
			return ctx.Err()
		})
		c.SetTargets([]lb.Target{web1})
		time.Sleep(20 * time.Second)
		if got := len(n.probes(web1)); got < 18 {
			t.Errorf("probes in 20 intervals: got %d, want at least 18", got)
		}
		if got := n.most(); got != 1 {
			t.Errorf("probes of one target at once: got %d, want 1", got)
		}
	})
}

// TestVIPsTakeTurns has one VIP out of three fail: it is found, though each probe
// asks for one alone, and it holds the backend down until it is back.
func TestVIPsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var asked []string
		missing := ""
		c := New(Config{DialVIP: func(_ context.Context, _, _, _ string, vip netip.AddrPort) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, vip.String())
			if vip.String() == missing {
				return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
			}
			ours, theirs := net.Pipe()
			theirs.Close()
			return ours, nil
		}})
		newNetwork().run(t, c)
		web1 := tcpTarget("web1", lb.Check{Via: lb.ViaVIP, Interval: time.Second, Timeout: time.Second / 2, Rise: 2, Fall: 3})
		web1.VIPs = []lb.VIP{lb.MustParseVIP("203.0.113.10"), lb.MustParseVIP("203.0.113.64/28"), lb.MustParseVIP("2001:db8::10")}
		turns := func(from int) []string {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(asked[from:])
		}
		c.SetTargets([]lb.Target{web1})
		time.Sleep(8 * time.Second)
		state(t, c, web1, lb.Up)
		one, prefix, six := "203.0.113.10:80", "203.0.113.65:80", "[2001:db8::10]:80"
		if got, want := turns(0)[:6], []string{one, prefix, six, one, prefix, six}; !slices.Equal(got, want) {
			t.Errorf("asked %q, want %q", got, want)
		}

		mu.Lock()
		missing = six
		mu.Unlock()
		// It is its turn within three intervals, and fails three times.
		time.Sleep(6 * time.Second)
		state(t, c, web1, lb.Down)
		n := len(turns(0))
		time.Sleep(5 * time.Second)
		if got := turns(n); slices.ContainsFunc(got, func(vip string) bool { return vip != six }) {
			t.Errorf("asked %q while %s fails", got, six)
		}
		mu.Lock()
		missing = ""
		mu.Unlock()
		time.Sleep(3 * time.Second)
		state(t, c, web1, lb.Up)
	})
}

// TestASharedCheckGoesOnByTheWayOfWhoIsLeft takes away the service whose backend a
// shared check asks by.
func TestASharedCheckGoesOnByTheWayOfWhoIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var last string
		c := New(Config{DialVIP: func(_ context.Context, _, service, backend string, _ netip.AddrPort) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			last = service + " " + backend
			ours, theirs := net.Pipe()
			theirs.Close()
			return ours, nil
		}})
		newNetwork().run(t, c)
		web := tcpTarget("web1", lb.Check{Via: lb.ViaVIP, Interval: time.Second, Timeout: time.Second / 2, Rise: 2, Fall: 3})
		web.VIPs = []lb.VIP{lb.MustParseVIP("203.0.113.10")}
		api := web
		api.Service, api.Backend = "api", "server1"
		for _, tt := range []struct {
			targets []lb.Target
			asks    string
		}{{[]lb.Target{web, api}, "web web1"}, {[]lb.Target{api, web}, "web web1"}, {[]lb.Target{api}, "api server1"}, {[]lb.Target{web, api}, "api server1"}} {
			c.SetTargets(tt.targets)
			time.Sleep(5 * time.Second)
			state(t, c, api, lb.Up)
			mu.Lock()
			if last != tt.asks {
				t.Errorf("asked by way of %q, want %q", last, tt.asks)
			}
			mu.Unlock()
		}
	})
}

func TestObservationsTellHowFarASlowStartIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		c := n.start(t, Config{})
		web1 := tcpTarget("web1", lb.Check{Interval: time.Second, Timeout: time.Second / 2, Rise: 1, Fall: 1, SlowStart: 40 * time.Second})
		c.SetTargets([]lb.Target{web1})
		ahead := func(want ...uint8) {
			t.Helper()
			var got []uint8
			for range want {
				got = append(got, c.Observations()[0].Ahead)
				time.Sleep(10 * time.Second)
			}
			if !slices.Equal(got, want) {
				t.Errorf("steps ahead, every 10s: got %v, want %v", got, want)
			}
		}
		time.Sleep(2 * time.Second)
		ahead(0, 0)
		n.answer(web1, refused)
		time.Sleep(2 * time.Second)
		ahead(0, 0)
		n.answer(web1, fit)
		time.Sleep(2 * time.Second)
		ahead(4, 3, 2, 1, 0, 0)
	})
}

func TestKeptTargetsKeepTheirHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		c := n.start(t, Config{})
		check := lb.Check{Interval: 10 * time.Second, Timeout: time.Second, Rise: 3, Fall: 3}
		web1, web2, web3 := tcpTarget("web1", check), tcpTarget("web2", check), tcpTarget("web3", check)
		c.SetTargets([]lb.Target{web1, web2})
		time.Sleep(time.Minute)
		before := c.Results()

		c.SetTargets([]lb.Target{web3, web1, web1})
		after := c.Results()
		if len(after) != 2 || !reflect.DeepEqual(after[0], before[0]) {
			t.Errorf("results: got %+v, want %+v and one of web3", after, before[0])
		}
		state(t, c, web1, lb.Up)
		state(t, c, web3, lb.Unknown)
		time.Sleep(time.Minute)
		if gaps := gaps(n.probes(web1)[1:]); len(gaps) != 1 || !gaps[10*time.Second] {
			t.Errorf("schedule of a kept target: got gaps %v, want 10s only", gaps)
		}

		other := web1
		other.Check.Path = "/other"
		c.SetTargets([]lb.Target{other, web3})
		state(t, c, other, lb.Unknown)
		state(t, c, web3, lb.Up)
		if got := len(c.Observations()); got != 2 {
			t.Errorf("observations: got %d, want 2", got)
		}
	})
}

func TestServicesThatAskTheSameShareAProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewPedanticRegistry()
		n := newNetwork()
		c := n.start(t, Config{Registerer: registry})
		web := tcpTarget("web1", lb.Check{Interval: time.Second, Timeout: time.Second / 2, Rise: 1, Fall: 1})
		api := web
		api.Service, api.Backend = "api", "server1"
		n.answer(web, refused)
		c.SetTargets([]lb.Target{web, api})
		time.Sleep(10*time.Second + time.Second/2)

		probes := len(n.probes(web))
		if probes < 10 || probes > 12 {
			t.Errorf("probes in 10.5 s: got %d, want one a second for both, and one at first", probes)
		}
		if got := len(c.Observations()); got != 1 {
			t.Errorf("observations: got %d, want 1", got)
		}
		if err := testutil.GatherAndCompare(registry, strings.NewReader(fmt.Sprintf(`# HELP halfproxy_check_failures_total Probes of a backend that failed, also when too few in a row to make it down.
# TYPE halfproxy_check_failures_total counter
halfproxy_check_failures_total{backend="server1",service="api"} %d
halfproxy_check_failures_total{backend="web1",service="web"} %[1]d
`, probes)), "halfproxy_check_failures_total"); err != nil {
			t.Error(err)
		}
		var readers []string
		for _, r := range c.Results() {
			readers = append(readers, fmt.Sprint(r.Target.Service, "/", r.Target.Backend, " ", r.State))
		}
		if want := []string{"api/server1 down", "web/web1 down"}; !slices.Equal(readers, want) {
			t.Errorf("results: got %q, want %q", readers, want)
		}

		// The one that goes leaves the other its history.
		c.SetTargets([]lb.Target{api})
		state(t, c, api, lb.Down)
		if got, err := testutil.GatherAndCount(registry, "halfproxy_check_failures_total"); got != 1 || err != nil {
			t.Errorf("series: got %d, %v, want 1", got, err)
		}
	})
}

func TestRemovedTargetStopsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewPedanticRegistry()
		n := newNetwork()
		c := n.start(t, Config{Registerer: registry})
		web1 := tcpTarget("web1", lb.Check{Interval: time.Hour, Timeout: time.Hour - 1, Rise: 1, Fall: 1})
		n.answer(web1, silent)
		c.SetTargets([]lb.Target{web1})
		time.Sleep(time.Second)
		if got := n.underWay(); got != 1 {
			t.Fatalf("probes under way: got %d, want 1", got)
		}

		c.SetTargets(nil)
		synctest.Wait()
		if got := n.underWay(); got != 0 {
			t.Errorf("probes under way after the removal: got %d, want 0", got)
		}
		if got := len(c.Observations()) + len(c.Results()); got != 0 {
			t.Errorf("observations and results after the removal: got %d, want none", got)
		}
		if got, err := testutil.GatherAndCount(registry, "halfproxy_check_duration_seconds", "halfproxy_check_failures_total"); got != 0 || err != nil {
			t.Errorf("series after the removal: got %d, %v, want none", got, err)
		}
		time.Sleep(24 * time.Hour)
		if got := len(n.probes(web1)); got != 1 {
			t.Errorf("probes a day later: got %d, want the 1 from before", got)
		}

		c.SetTargets([]lb.Target{web1})
		state(t, c, web1, lb.Unknown)
	})
}

func TestChangesTellOfChangesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		c := n.start(t, Config{})
		web1 := tcpTarget("web1", lb.Check{Interval: time.Second, Timeout: time.Second / 2, Rise: 2, Fall: 2})
		expect := func(what string, want bool) {
			t.Helper()
			synctest.Wait()
			got := false
			select {
			case <-c.Changes():
				got = true
			default:
			}
			if got != want {
				t.Errorf("%s: got change %v, want %v", what, got, want)
			}
		}
		expect("before any target", false)
		c.SetTargets([]lb.Target{web1})
		expect("a new target", true)
		c.SetTargets([]lb.Target{web1})
		expect("the same target again", false)
		time.Sleep(2 * time.Second)
		expect("up", true)
		time.Sleep(time.Minute)
		expect("still up", false)
		n.answer(web1, refused)
		time.Sleep(time.Second)
		expect("one failure of two", false)
		time.Sleep(time.Second)
		expect("down", true)
		c.SetTargets(nil)
		expect("a target less", true)
	})
}

func TestRunEndsWithItsLastProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		c := n.checker(Config{})
		web1 := tcpTarget("web1", lb.Check{Interval: time.Second, Timeout: time.Second / 2, Rise: 1, Fall: 1})
		const unwinding = 100 * time.Millisecond
		n.answer(web1, func(ctx context.Context) error {
			<-ctx.Done()
			time.Sleep(unwinding)
			return ctx.Err()
		})
		c.SetTargets([]lb.Target{web1})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		for n.underWay() == 0 {
			time.Sleep(time.Millisecond)
		}

		cancel()
		stopped := time.Now()
		if err := <-done; err != nil {
			t.Errorf("Run: got %v, want nil", err)
		}
		if took := time.Since(stopped); took != unwinding {
			t.Errorf("Run ended %v after its context, want when the probe has, after %v", took, unwinding)
		}
		// That the node stops says nothing about the backend.
		state(t, c, web1, lb.Unknown)
		if got := c.Results()[0].LastError; got != "" {
			t.Errorf("last error: got %q, want none", got)
		}
	})
}

func TestTenThousandTargetsAreOnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		c := n.start(t, Config{})
		check := lb.Check{Interval: time.Second, Timeout: time.Second / 4, Rise: 1, Fall: 3}
		var targets []lb.Target
		for i := range 10_000 {
			targets = append(targets, tcpTarget(fmt.Sprint("web", i), check))
			if i%10 == 0 {
				n.answer(targets[i], silent)
			}
		}
		c.SetTargets(targets)
		time.Sleep(5 * time.Second)
		for i, target := range targets {
			probes := n.probes(target)
			if gaps := gaps(probes[2:]); len(gaps) != 1 || !gaps[time.Second] {
				t.Fatalf("target %d: got gaps %v, want 1s only", i, gaps)
			}
		}

		up := 0
		for _, o := range c.Observations() {
			if o.State == lb.Up {
				up++
			}
		}
		if up != 9000 {
			t.Errorf("targets up: got %d, want 9000", up)
		}
		if !slices.IsSortedFunc(c.Observations(), func(a, b lb.Observation) int { return cmp.Compare(a.Target, b.Target) }) {
			t.Error("observations are not sorted by target")
		}
	})
}

func TestIdleTargetsCostNoGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		c := n.start(t, Config{})
		synctest.Wait()
		before := runtime.NumGoroutine()
		var targets []lb.Target
		for i := range 10_000 {
			targets = append(targets, tcpTarget(fmt.Sprint("web", i), lb.Check{Interval: time.Hour, Timeout: time.Second, Rise: 1, Fall: 1}))
		}
		c.SetTargets(targets)
		time.Sleep(time.Second)
		synctest.Wait()
		if got := len(n.probes(targets[0])); got != 1 {
			t.Fatalf("probes: got %d, want 1", got)
		}
		if after := runtime.NumGoroutine(); after > before+10 {
			t.Errorf("goroutines with 10,000 idle targets: got %d, want the %d of before", after, before)
		}
	})
}

// TestProbesLeaveNothingBehind has real probes of all kinds of ends, and counts what
// the process has before and after.
func TestProbesLeaveNothingBehind(t *testing.T) {
	has := func() (goroutines, files int) {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return runtime.NumGoroutine(), len(entries)
	}
	serving := func(handle func(net.Conn)) netip.AddrPort {
		l := listen(t, "127.0.0.1", nil)
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					handle(conn)
				}()
			}
		}()
		return addrOf(l)
	}
	page := serving(func(conn net.Conn) {
		conn.Read(make([]byte, 1<<10))
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		io.Copy(io.Discard, conn)
	})
	mute := serving(func(conn net.Conn) { io.Copy(io.Discard, conn) })
	packets := servePackets(t, "127.0.0.1", func([]byte) []byte { return nil })
	dns := lb.Check{Type: lb.CheckDNS, Query: "example.org.", RecordType: "A", Rcode: "NOERROR", Over: []lb.Protocol{lb.UDP, lb.TCP}}
	var targets []lb.Target
	for _, question := range []struct {
		at    netip.AddrPort
		check lb.Check
	}{
		{page, lb.Check{Type: lb.CheckTCP}},
		{page, get(lb.Check{})}, {mute, get(lb.Check{})}, {closedPort(t), get(lb.Check{})}, {fullBacklog(t), get(lb.Check{})},
		{page, get(lb.Check{HTTP2: true})}, {mute, get(lb.Check{HTTP2: true})},
		{page, get(lb.Check{Type: lb.CheckHTTPS})}, {mute, get(lb.Check{Type: lb.CheckHTTPS})},
		{page, lb.Check{Type: lb.CheckGRPC}}, {mute, lb.Check{Type: lb.CheckGRPC}}, {closedPort(t), lb.Check{Type: lb.CheckGRPC}},
		{packets, dns}, {closedPacketPort(t), dns}, {packets, lb.Check{Type: lb.CheckUDP}},
		{page, lb.Check{Type: lb.CheckExec, Command: []string{"/bin/sleep", "60"}}},
	} {
		check := question.check
		check.Port, check.Interval, check.Timeout, check.Rise, check.Fall = question.at.Port(), 50*time.Millisecond, 40*time.Millisecond, 1, 1
		targets = append(targets, lb.Target{Service: "web", Backend: fmt.Sprint("web", len(targets)), Address: question.at.Addr(), Check: check})
	}

	goroutines, files := has()
	c := New(Config{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	c.SetTargets(targets)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if !slices.ContainsFunc(c.Observations(), func(o lb.Observation) bool { return o.State == lb.Unknown }) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("not every target was asked")
		}
	}
	time.Sleep(time.Second)
	c.SetTargets(nil)
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		g, f := has() // the servers' ends go by and by
		if g <= goroutines && f <= files {
			return
		}
		if time.Now().After(end) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("got %d goroutines and %d files after all probes, want the %d and %d of before\n%s", g, f, goroutines, files, stacks[:runtime.Stack(stacks, true)])
		}
	}
}

func TestProbesUnderWayAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		c := n.start(t, Config{})
		var targets []lb.Target
		for i := range maxProbes + 1000 {
			targets = append(targets, tcpTarget(fmt.Sprint("web", i), lb.Check{Interval: time.Minute, Timeout: 5 * time.Second, Rise: 1, Fall: 1}))
			n.answer(targets[i], silent)
		}
		c.SetTargets(targets)
		time.Sleep(2 * time.Second)
		if got := n.underWay(); got != maxProbes {
			t.Errorf("probes under way: got %d, want %d", got, maxProbes)
		}
		time.Sleep(10 * time.Second)
		if got := n.most(); got != maxProbes {
			t.Errorf("most probes under way: got %d, want %d", got, maxProbes)
		}
		for _, r := range c.Results() {
			if r.State != lb.Down {
				t.Fatalf("%s: got %v, want down: its probe had to wait, not to be left out", r.Target.Backend, r.State)
			}
		}
	})
}

func TestMetricsCountEveryProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewPedanticRegistry()
		n := newNetwork()
		c := n.start(t, Config{Registerer: registry})
		web1 := tcpTarget("web1", lb.Check{Interval: time.Second, Timeout: time.Second / 2, Rise: 1, Fall: 1})
		n.answer(web1, silent)
		c.SetTargets([]lb.Target{web1})
		for len(n.probes(web1)) < 3 {
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(500 * time.Millisecond)
		want := `
# HELP halfproxy_check_duration_seconds How long the probes of a backend took, failed ones included.
# TYPE halfproxy_check_duration_seconds histogram
halfproxy_check_duration_seconds_bucket{backend="web1",service="web",le="0.0005"} 0
halfproxy_check_duration_seconds_bucket{backend="web1",service="web",le="0.001"} 0
halfproxy_check_duration_seconds_bucket{backend="web1",service="web",le="0.005"} 0
halfproxy_check_duration_seconds_bucket{backend="web1",service="web",le="0.01"} 0
halfproxy_check_duration_seconds_bucket{backend="web1",service="web",le="0.05"} 0
halfproxy_check_duration_seconds_bucket{backend="web1",service="web",le="0.1"} 0
halfproxy_check_duration_seconds_bucket{backend="web1",service="web",le="0.5"} 3
halfproxy_check_duration_seconds_bucket{backend="web1",service="web",le="1"} 3
halfproxy_check_duration_seconds_bucket{backend="web1",service="web",le="5"} 3
halfproxy_check_duration_seconds_bucket{backend="web1",service="web",le="+Inf"} 3
halfproxy_check_duration_seconds_sum{backend="web1",service="web"} 1.5
halfproxy_check_duration_seconds_count{backend="web1",service="web"} 3
# HELP halfproxy_check_failures_total Probes of a backend that failed, also when too few in a row to make it down.
# TYPE halfproxy_check_failures_total counter
halfproxy_check_failures_total{backend="web1",service="web"} 3
`
		if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "halfproxy_check_duration_seconds", "halfproxy_check_failures_total"); err != nil {
			t.Error(err)
		}
		if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
			t.Errorf("lint: got %v, %v, want nothing", problems, err)
		}
	})
}

func TestLogTellsOfChangesWithTheReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		n := newNetwork()
		c := n.start(t, Config{Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{
			ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				if a.Key == slog.TimeKey {
					return slog.Attr{}
				}
				return a
			},
		}))})
		web1 := tcpTarget("web1", lb.Check{Interval: time.Second, Timeout: time.Second / 2, Rise: 2, Fall: 2})
		c.SetTargets([]lb.Target{web1})
		time.Sleep(10 * time.Second)
		n.answer(web1, refused)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		want := `level=INFO msg="backend is up for this node" part=health service=web backend=web1
level=WARN msg="backend is down for this node" part=health service=web backend=web1 err="connection refused by [2001:db8::1]:80 after 0s"
`
		if log.String() != want {
			t.Errorf("log:\n got %s\nwant %s", &log, want)
		}
	})
}

// network stands for all backends: it answers dials in virtual time.
type network struct {
	mu      sync.Mutex
	answers map[string]func(context.Context) error // by backend's address; fit where there is none
	log     map[string][]time.Time                 // dials of each
	now     int                                    // dials under way
	peak    int                                    // most of them ever
}

func newNetwork() *network {
	return &network{answers: make(map[string]func(context.Context) error), log: make(map[string][]time.Time)}
}

// The ways a backend answers a dial.
func fit(context.Context) error     { return nil }
func refused(context.Context) error { return &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED} }
func silent(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func (n *network) dial(ctx context.Context, _, address string) (net.Conn, error) {
	n.mu.Lock()
	n.log[address] = append(n.log[address], time.Now())
	n.now++
	n.peak = max(n.peak, n.now)
	answer := n.answers[address]
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		n.now--
		n.mu.Unlock()
	}()
	if answer != nil {
		if err := answer(ctx); err != nil {
			return nil, err
		}
	}
	ours, theirs := net.Pipe()
	theirs.Close()
	return ours, nil
}

func (n *network) answer(t lb.Target, answer func(context.Context) error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answers[address(t)] = answer
}

func (n *network) probes(t lb.Target) []time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.log[address(t)])
}

func (n *network) underWay() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.now
}

func (n *network) most() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.peak
}

// checker makes a Checker that dials the network.
func (n *network) checker(cfg Config) *Checker {
	c := New(cfg)
	c.dial = n.dial
	return c
}

// run runs c until the test ends.
func (n *network) run(t *testing.T, c *Checker) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: got %v, want nil", err)
		}
		if got := n.underWay(); got != 0 {
			t.Errorf("probes under way after Run: got %d, want 0", got)
		}
	})
}

func (n *network) start(t *testing.T, cfg Config) *Checker {
	c := n.checker(cfg)
	n.run(t, c)
	return c
}

// tcpTarget is a tcp check of a backend named web and a number, which is in
// its address.
func tcpTarget(backend string, check lb.Check) lb.Target {
	number, err := strconv.ParseUint(strings.TrimPrefix(backend, "web"), 10, 16)
	if err != nil {
		panic(err)
	}
	address := netip.MustParseAddr("2001:db8::").As16()
	binary.BigEndian.PutUint16(address[14:], uint16(number))
	check.Type, check.Port = lb.CheckTCP, 80
	return lb.Target{Service: "web", Backend: backend, Address: netip.AddrFrom16(address), Check: check}
}

func address(t lb.Target) string { return netip.AddrPortFrom(t.Address, t.Check.Port).String() }

// state compares what c observes of target.
func state(t *testing.T, c *Checker, target lb.Target, want lb.State) {
	t.Helper()
	id := target.ID()
	for _, o := range c.Observations() {
		if o.Target == id {
			if o.State != want {
				t.Errorf("%s: got %v, want %v", target.Backend, o.State, want)
			}
			return
		}
	}
	t.Errorf("%s: got no observation, want %v", target.Backend, want)
}

// gaps is the set of times between probes.
func gaps(probes []time.Time) map[time.Duration]bool {
	set := make(map[time.Duration]bool)
	for i := 1; i < len(probes); i++ {
		set[probes[i].Sub(probes[i-1])] = true
	}
	return set
}
