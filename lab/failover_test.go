package lab

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/admin"
)

// TestFailover breaks and changes a node of three while 20,000 packets a second of 200
// connections come, and counts what reaches the backends. docs/failover.md has its
// figures. A connection's gap is known to its pace, which is 10 ms here.
//
// BFD is there where it makes the difference: a machine that is so busy that FRR's or
// BIRD's falls silent for 300 ms would be measured elsewhere.
func TestFailover(t *testing.T) {
	needRoot(t)
	next := anotherVersion(t)
	for _, router := range []string{FRR, BIRD} {
		t.Run(router, func(t *testing.T) { failOver(t, router, false, next) })
		t.Run(router+" and BFD", func(t *testing.T) { failOver(t, router, true, next) })
	}
}

func failOver(t *testing.T, router string, withBFD bool, next string) {
	const restartTime = 10 * time.Second
	l := start(t, Options{Router: router, BFD: withBFD, GracefulRestart: restartTime})
	awaitBFD := func() {
		if withBFD {
			eventually(t, l, 10*time.Second, "BFD is up", func(_ *Node, s admin.Status) bool { return s.BGP[0].BFD == "up" })
			time.Sleep(time.Second) // intervals are agreed on
		}
	}
	awaitBFD()
	n := l.Nodes()[1]
	before := forwarded(t, l)
	steady := startStream(t, l, 20_000, 200)
	time.Sleep(time.Second)
	if r := steady.end(t); r.lost > 0 {
		t.Fatalf("while nothing happens: %v", r)
	}
	for name, packets := range forwarded(t, l) {
		if share := packets - before[name]; share < 4000 {
			t.Fatalf("%s forwards %d of 20,000 packets, want about a third", name, share)
		}
	}
	for _, tt := range []struct {
		name string
		do   func(t *testing.T)
		mend func() error
		// keeps says that the router's routes do not change at all.
		keeps bool
		bfd   bool          // it is there
		most  time.Duration // that a flow's packets may be lost for; without BFD a cut costs the hold time of 3 s
		times int           // 0: once
	}{
		{name: "SIGTERM", do: func(t *testing.T) {
			must(t, n.Terminate())
			must(t, n.Wait(t.Context()))
		}, mend: n.Start},
		{name: "restart", keeps: true, do: func(t *testing.T) {
			must(t, n.Restart(t.Context()))
			back(t, n)
		}},
		{name: "SIGTERM while it restarts", do: func(t *testing.T) {
			file, err := os.ReadFile(n.config)
			must(t, err)
			// Or it would wait for packets to end for as long as its session takes to come up.
			must(t, os.WriteFile(n.config, []byte(strings.Replace(string(file), "linger: 3s", "linger: 1s", 1)), 0o600))
			must(t, n.Restart(t.Context()))
			for s, err := n.Status(t.Context()); err != nil || len(s.BGP) == 0; s, err = n.Status(t.Context()) {
				time.Sleep(10 * time.Millisecond)
			}
			must(t, n.Terminate())
			must(t, n.Wait(t.Context()))
		}, mend: func() error { return errors.Join(l.writeConfig(1), n.Start()) }},
		{name: "upgrade to another binary", keeps: true, do: func(t *testing.T) {
			l.options.Binary = next
			must(t, n.Restart(t.Context()))
			back(t, n)
		}},
		{name: "crash and restart", keeps: true, do: func(t *testing.T) {
			must(t, n.Kill())
			time.Sleep(time.Second)
			must(t, n.Start())
			back(t, n)
		}},
		{name: "reload without one backend", keeps: true, do: func(t *testing.T) {
			without(t, n, "b3")
			time.Sleep(time.Second)
			must(t, l.writeConfig(1))
			must(t, admin.NewClient(n.Socket).Reload(t.Context()))
		}},
		{name: "SIGKILL and no restart", do: func(t *testing.T) {
			killed := time.Now()
			must(t, n.Kill())
			hops := awaitHops(t, l, restartTime+5*time.Second, "lb1", "lb3")
			t.Logf("routes gone %v after SIGKILL", hops.Sub(killed).Round(10*time.Millisecond))
			if took := hops.Sub(killed); took < restartTime-time.Second || took > restartTime+2*time.Second {
				t.Errorf("routes were there for %v, want the restart time of %v", took, restartTime)
			}
		}, mend: n.Start},
		{name: "node frozen (SIGSTOP)", do: func(t *testing.T) {
			stopped := time.Now()
			must(t, n.process.signal(syscall.SIGSTOP))
			hops := awaitHops(t, l, 10*time.Second, "lb1", "lb3")
			t.Logf("routes gone %v after SIGSTOP", hops.Sub(stopped).Round(10*time.Millisecond))
		}, mend: func() error { return n.process.signal(syscall.SIGCONT) }},
		{name: "router restarts", most: 20 * time.Second, do: func(t *testing.T) {
			gone := time.Now()
			must(t, l.RestartRouter())
			back := awaitHops(t, l, 20*time.Second, "lb1", "lb2", "lb3")
			t.Logf("routes of all nodes back after %v", back.Sub(gone).Round(10*time.Millisecond))
		}},
		{name: "link cut", bfd: true, most: time.Second, times: *cuts, do: func(t *testing.T) {
			cut := time.Now()
			must(t, n.CutLink())
			hops := awaitHops(t, l, 10*time.Second, "lb1", "lb3")
			t.Logf("routes gone %v after the cut", hops.Sub(cut).Round(time.Millisecond))
		}, mend: n.MendLink},
		{name: "SIGKILL of all its processes and no restart", bfd: true, do: func(t *testing.T) {
			keeper, err := strconv.Atoi(bfdProcess(t, n))
			must(t, err)
			killed := time.Now()
			must(t, syscall.Kill(keeper, syscall.SIGKILL))
			must(t, n.Kill())
			hops := awaitHops(t, l, restartTime+5*time.Second, "lb1", "lb3")
			t.Logf("routes gone %v after SIGKILL", hops.Sub(killed).Round(10*time.Millisecond))
		}, mend: n.Start},
	} {
		if tt.bfd != withBFD {
			continue
		}
		for range max(tt.times, 1) {
			ok := t.Run(tt.name, func(t *testing.T) {
				changes := l.watchHops(t)
				s := startStream(t, l, 20_000, 200)
				time.Sleep(500*time.Millisecond + time.Duration(rand.IntN(100))*time.Millisecond)
				tt.do(t)
				time.Sleep(time.Second)
				r := s.end(t)
				seen := changes()
				t.Logf("%s: %v; next hops %v", router, r, seen)
				if r.gap > tt.most || tt.most == 0 && r.lost > 0 {
					t.Errorf("got %v, want a gap of %v at most", r, tt.most)
				}
				if all := "lb1 lb2 lb3"; tt.keeps && !slices.Equal(seen, []string{all}) {
					t.Errorf("the router's next hops: got %q, want %s all the time", seen, all)
				}
			})
			if tt.mend != nil {
				must(t, tt.mend())
			}
			settle(t, l)
			if !ok {
				return // what comes next would be another's fault
			}
			awaitBFD()
		}
	}
}

// forwarded counts the packets that each node has sent to backends.
func forwarded(t *testing.T, l *Lab) map[string]uint64 {
	t.Helper()
	counts := make(map[string]uint64)
	for _, n := range l.Nodes() {
		s, err := n.Status(t.Context())
		must(t, err)
		for _, service := range s.Services {
			for _, b := range service.Backends {
				counts[n.Name] += b.Packets
			}
		}
	}
	return counts
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// back waits until the new process of a node has taken over and announces again.
func back(t *testing.T, n *Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		s, err := n.Status(ctx)
		if err == nil && len(s.BGP) == 1 && s.BGP[0].State == "established" && s.BGP[0].Announced == 2 {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s is not back: %+v, %v", n.Name, s.BGP, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// without has a node take a configuration without one of the backends.
func without(t *testing.T, n *Node, backend string) {
	t.Helper()
	rewrite(t, n, func(file string) string {
		var kept []string
		for line := range strings.Lines(file) {
			if !strings.Contains(line, "{name: "+backend+",") {
				kept = append(kept, line)
			}
		}
		return strings.Join(kept, "")
	})
}

// anotherVersion builds the program once more, with another number.
func anotherVersion(t *testing.T) string {
	t.Helper()
	path := filepath.Join(filepath.Dir(built), "halfproxy-next")
	build := exec.Command("go", "build", "-ldflags", "-X main.version=next", "-o", path, "../cmd/halfproxy")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build another version: %v\n%s", err, out)
	}
	return path
}

// awaitHops waits until the router sends the IPv4 VIP's packets to these nodes, and
// says when that was.
func awaitHops(t *testing.T, l *Lab, most time.Duration, want ...string) time.Time {
	t.Helper()
	for deadline := time.Now().Add(most); ; time.Sleep(time.Millisecond) {
		hops, err := l.NextHops(VIPs.V4)
		if err == nil && slices.Equal(hops, want) {
			return time.Now()
		}
		if time.Now().After(deadline) {
			t.Fatalf("next hops: got %v, %v, want %v", hops, err, want)
		}
	}
}

// watchHops looks at the router's next hops all the time, and gives those that there
// were, one after the other.
func (l *Lab) watchHops(t *testing.T) func() []string {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	seen := make(chan []string, 1)
	go func() {
		var list []string
		for ctx.Err() == nil {
			for _, vip := range VIPs.All() {
				hops, err := l.NextHops(vip)
				now := strings.Join(hops, " ")
				if err != nil {
					now = err.Error()
				}
				if len(list) == 0 || list[len(list)-1] != now {
					list = append(list, now)
				}
			}
			time.Sleep(2 * time.Millisecond)
		}
		seen <- list
	}()
	return func() []string {
		stop()
		return <-seen
	}
}
