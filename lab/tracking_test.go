package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/admin"
)

// churn is a lab with a crowd, to which things happen.
type churn struct {
	*Lab
	*crowd
	t        *testing.T // of what happens now
	drained  map[*Backend]bool
	happened []happening
}

// happening is something that happened.
type happening struct {
	at   time.Time
	what string // without a name
	loss bool   // of a node
}

func (c *churn) note(what string) {
	c.happened = append(c.happened, happening{at: time.Now(), what: what})
}

// before gives the latest that happened before a moment.
func (c *churn) before(t time.Time) happening {
	var last happening
	for _, h := range c.happened {
		if h.at.Before(t) {
			last = h
		}
	}
	return last
}

const (
	crowdSize   = 2000
	crowdPause  = 2 * time.Second
	crowdLength = time.Minute
)

// startChurn has a crowd whose connections are at six of eight backends.
func startChurn(t *testing.T) *churn {
	l := start(t, Options{Backends: 8, Router: FRR, BFD: true, FlowRecords: 1 << 14})
	c := &churn{Lab: l, t: t, drained: make(map[*Backend]bool)}
	for _, b := range l.Backends()[6:] {
		b.Kill()
	}
	c.configure("changes")
	c.crowd = l.startCrowd(t.Context(), crowdSize, 5*time.Second, crowdPause, crowdLength, c.why)
	t.Cleanup(c.stop)
	begin := time.Now()
	c.await(t, time.Time{}, crowdSize)
	t.Logf("%d connections are open after %v", crowdSize, time.Since(begin).Round(time.Millisecond))
	return c
}

// configure has the nodes track what. Clients, servers and nodes share a machine, where an
// answer to a check may have to wait for its turn; a kernel accepts and refuses connections
// at once.
func (c *churn) configure(tracking string) {
	c.t.Helper()
	reconfigure(c.t, c.Lab, fmt.Sprintf("ports: [tcp/%d]\n    tracking: %s", servicePort, tracking),
		"type: http", "type: tcp", "      path: /healthz\n", "",
		fmt.Sprintf("interval: %v", checkInterval), "interval: 2s", fmt.Sprintf("timeout: %v", checkTimeout), "timeout: 1900ms",
		fmt.Sprintf("rise: %d", rise), "rise: 1", fmt.Sprintf("fall: %d", fall), "fall: 1")
}

// order gives one to a node that runs.
func (c *churn) order(words ...string) {
	c.t.Helper()
	n := c.Nodes()[slices.IndexFunc(c.Nodes(), (*Node).Running)]
	if out, err := exec.Command(built, append(words, "--socket", n.Socket)...).CombinedOutput(); err != nil {
		c.t.Fatalf("halfproxy %s on %s: %v\n%s", strings.Join(words, " "), n.Name, err, out)
	}
}

// see waits until the nodes that run hold a backend to be in a state.
func (c *churn) see(b *Backend, state string) {
	c.t.Helper()
	must(c.t, c.until(c.t.Context(), 15*time.Second, b.Name+" is "+state, func(_ *Node, s admin.Status) bool {
		return ofBackend(s, b, func(o admin.Backend) bool { return o.State == state })
	}))
}

// happens lets something happen, and gives the connections that it broke.
func (c *churn) happens(what string, event func()) []end {
	c.t.Helper()
	begin := time.Now()
	c.note(what)
	event()
	took := time.Since(begin)
	c.await(c.t, time.Now(), crowdSize/2)
	broken, so := c.broken(begin), c.numbers()
	c.t.Logf("%-48s %4d connections broke; it took %v, and %v to know; %d opened, %d requests so far", what+":", len(broken),
		took.Round(time.Millisecond), (time.Since(begin) - took).Round(time.Millisecond), so.opened, so.asked)
	return broken
}

// A node that loses its power has told nobody of what it noted down in its last moment; nor
// has any node of what it noted down just before the router noticed, and moved flows between
// the others. A record is everywhere some milliseconds after a client's second packet. Of 33
// connections a second that begin here 0.3 have one in the last 10 ms of their node, or are
// moved in the first 10 ms: of one loss that is more than mostYoung in one of 100,000 runs.
const (
	lastMoment = 100 * time.Millisecond // where two cores do everything
	unnoticed  = time.Second            // a loss is, at most: BFD takes 0.3 s
	mostYoung  = 4
)

// Of 5,000 connections one breaks whose record the node did not have that it came to, as the
// traces say; why is not known yet. That is one in 20 events here: more than mostOthers of
// one event in one of 10,000 runs, more than that of all at random in one of 1,000.
const mostOthers = 2

// young gives those of the connections that had only just begun when a node was lost.
func (c *churn) young(broken []end) (list []end) {
	for _, e := range broken {
		if slices.ContainsFunc(c.happened, func(h happening) bool {
			return h.loss && e.begun.After(h.at.Add(-lastMoment)) && e.begun.Before(h.at.Add(unnoticed))
		}) {
			list = append(list, e)
		}
	}
	return list
}

// breaksNone lets something happen that breaks nobody, but young connections with a node, and
// hardly any others.
func (c *churn) breaksNone(what string, event func()) {
	c.t.Helper()
	broken := c.happens(what, event)
	if young := len(c.young(broken)); len(broken)-young > mostOthers || young > mostYoung {
		c.t.Errorf("%s: %d connections broke whose backends live, %d of them in the moment of a loss: want %d of these at most, and %d others",
			what, len(broken), young, mostYoung, mostOthers)
	}
	c.explain(broken)
}

// explain logs what is known of connections that broke.
func (c *churn) explain(broken []end) {
	c.t.Helper()
	for _, e := range broken {
		last := c.before(e.at)
		c.t.Logf("at %s: %v; it began %v after, and ended %v after the last thing that happened: %s", e.at.UTC().Format("15:04:05.000"), e,
			e.begun.Sub(last.at).Round(time.Millisecond), e.at.Sub(last.at).Round(time.Millisecond), last.what)
		if e.why != "" {
			c.t.Log(e.why)
		}
	}
}

// why is what the nodes say of a connection that has just ended.
func (c *churn) why(e end) string {
	var said strings.Builder
	for _, n := range c.Nodes() {
		if n.Running() {
			out, err := exec.Command(built, "trace", "--socket", n.Socket, "tcp", e.from.String(), e.to.String()).CombinedOutput()
			fmt.Fprintf(&said, "%s, %v later (%v):\n%s", n.Name, time.Since(e.at).Round(time.Millisecond), err, out)
		}
	}
	return said.String()
}

// lose takes a node away as a loss of power does.
func (c *churn) lose(n *Node) {
	c.t.Helper()
	c.happened = append(c.happened, happening{time.Now(), "a node is lost", true})
	must(c.t, n.CutLink())
	must(c.t, n.Kill())
}

// leave takes a node away as an operator does.
func (c *churn) leave(n *Node) {
	c.t.Helper()
	c.note("a node leaves")
	must(c.t, n.Terminate())
	must(c.t, n.Wait(c.t.Context()))
}

// regain has a node start that was lost.
func (c *churn) regain(n *Node) {
	c.t.Helper()
	must(c.t, n.MendLink())
	must(c.t, n.Start())
}

// serve waits until the router sends packets to these nodes.
func (c *churn) serve(nodes ...string) {
	c.t.Helper()
	nextHopsWithin(c.t, c.Lab, 20*time.Second, nodes...)
}

// TestConnectionsWhoseBackendsLive has things happen to 2,000 connections: one after the
// other, each while those before still matter; at random, for 10 s or as long as
// HPTEST_CHURN says; in a flood; and one of them where nothing is tracked, or the rest would show nothing.
func TestConnectionsWhoseBackendsLive(t *testing.T) {
	c := startChurn(t)
	t.Run("one after the other", func(t *testing.T) { c.t = t; c.oneAfterTheOther() })
	c.t = t
	c.restore()
	t.Run("at random", func(t *testing.T) { c.t = t; c.atRandom() })
	c.t = t
	c.restore()
	t.Run("in a flood", func(t *testing.T) { c.t = t; c.inAFlood() })
	c.t = t
	c.restore()
	t.Run("without tracking", func(t *testing.T) { c.t = t; c.withoutTracking() })
}

func (c *churn) oneAfterTheOther() {
	b, nodes := c.Backends(), c.Nodes()
	c.breaksNone("a backend comes", func() { must(c.t, b[7].Start()); c.see(b[7], "up") })
	c.breaksNone("a backend is drained", func() { c.order("drain", "backend", "b1"); c.see(b[0], "draining") })
	c.breaksNone("a backend is killed", func() { c.kill(b[1]); c.see(b[1], "down") })
	c.breaksNone("a node leaves", func() { c.leave(nodes[2]) })
	c.breaksNone("a node comes", func() { must(c.t, nodes[2].Start()); c.serve("lb1", "lb2", "lb3") })
	c.breaksNone("a node is lost", func() { c.lose(nodes[0]); c.serve("lb2", "lb3") })
	c.breaksNone("it comes back, and so does the drained backend", func() {
		c.order("drain", "backend", "b1", "--undo")
		c.regain(nodes[0])
		c.serve("lb1", "lb2", "lb3")
		c.see(b[0], "up")
	})
	c.breaksNone("a node is lost while a backend comes", func() {
		must(c.t, b[6].Start())
		c.lose(nodes[1])
		c.serve("lb1", "lb3")
		c.see(b[6], "up")
	})
}

func (c *churn) atRandom() {
	lasts := 10 * time.Second
	if text := os.Getenv("HPTEST_CHURN"); text != "" {
		var err error
		lasts, err = time.ParseDuration(text)
		must(c.t, err)
	}
	const seed = 6
	random := rand.New(rand.NewPCG(seed, 0))
	before := c.numbers()
	begin, events := time.Now(), 0
	for time.Since(begin) < lasts {
		at := time.Since(begin)
		if what := c.something(random); what != "" {
			events++
			c.t.Logf("%6.1f s: %s", at.Seconds(), what)
		}
		time.Sleep(time.Duration(300+random.IntN(1500)) * time.Millisecond)
	}
	c.await(c.t, time.Now(), crowdSize/2)
	broken, after := c.broken(begin), c.numbers()
	there := after.opened - before.opened + crowdSize
	c.t.Logf("%d events in %v: %d of %d connections broke (%.4f %%); %d requests; seed %d",
		events, lasts, len(broken), there, 100*float64(len(broken))/float64(there), after.asked-before.asked, seed)
	all, broke := make(map[string]int), make(map[string]int)
	losses := 0
	for _, h := range c.happened {
		if h.at.After(begin) {
			all[h.what]++
		}
		if h.loss && h.at.After(begin) {
			losses++
		}
	}
	for _, e := range broken {
		broke[c.before(e.at).what]++
	}
	for _, what := range slices.Sorted(maps.Keys(all)) {
		c.t.Logf("%-24s %3d times, %d connections broke after it", what+":", all[what], broke[what])
	}
	young := len(c.young(broken))
	if most := max(mostOthers, there/10_000); len(broken)-young > most || young > mostYoung+losses/4 {
		c.t.Errorf("%d of %d connections broke, %d of them in the moment of a loss: want %d at most of the others, and %d of these",
			len(broken), there, young, most, mostYoung+losses/4)
	}
	c.explain(broken)
}

// something happens, and is told; or does not, where it would leave too little.
func (c *churn) something(random *rand.Rand) string {
	b, n := c.Backends()[random.IntN(8)], c.Nodes()[random.IntN(3)]
	serving := 0
	for _, b := range c.Backends() {
		if b.Running() && !c.drained[b] {
			serving++
		}
	}
	lost := slices.IndexFunc(c.Nodes(), func(n *Node) bool { return !n.Running() })
	switch pick := random.IntN(3); {
	case pick == 0 && !b.Running():
		c.note("a backend comes")
		must(c.t, b.Start())
		return b.Name + " comes"
	case pick == 0 && serving > 4:
		c.note("a backend is killed")
		c.kill(b)
		return b.Name + " is killed"
	case pick == 1 && c.drained[b]:
		c.note("a drain ends")
		c.order("drain", "backend", b.Name, "--undo")
		delete(c.drained, b)
		return b.Name + " is drained no more"
	case pick == 1 && serving > 4 && b.Running():
		c.note("a backend is drained")
		c.order("drain", "backend", b.Name)
		c.drained[b] = true
		return b.Name + " is drained"
	case pick == 2 && lost >= 0:
		c.note("a node comes")
		c.regain(c.Nodes()[lost])
		return c.Nodes()[lost].Name + " comes back"
	case pick == 2 && random.IntN(2) == 0:
		c.leave(n)
		return n.Name + " leaves"
	case pick == 2:
		c.lose(n)
		return n.Name + " is lost"
	}
	return ""
}

// restore has all backends and nodes there.
func (c *churn) restore() {
	c.t.Helper()
	for b := range c.drained {
		c.order("drain", "backend", b.Name, "--undo")
	}
	clear(c.drained)
	for _, b := range c.Backends() {
		must(c.t, b.Start())
	}
	for _, n := range c.Nodes() {
		if !n.Running() {
			c.regain(n)
		}
	}
	settle(c.t, c.Lab)
	c.await(c.t, time.Now(), crowdSize)
}

// withoutTracking breaks what Maglev alone does: the connections to a backend that is
// drained, an eighth, and those that are elsewhere than their slots' current backends.
func (c *churn) withoutTracking() {
	c.mu.Lock()
	c.asked = mostAsked // it is known why
	c.mu.Unlock()
	begin := time.Now()
	c.configure("none")
	c.order("drain", "backend", "b1")
	c.see(c.Backends()[0], "draining")
	limit, stop := context.WithTimeout(c.t.Context(), crowdPatience)
	defer stop()
	broken := 0
	for broken < crowdSize/10 && limit.Err() == nil {
		sleep(limit, 100*time.Millisecond)
		broken = len(c.broken(begin))
	}
	resets := make(map[string]int) // by VIP
	for _, e := range c.broken(begin) {
		if errors.Is(e.err, syscall.ECONNRESET) {
			resets[e.to.String()]++
		}
	}
	c.t.Logf("without tracking, a backend is drained: %d connections broke within %v; reset: %v", broken, time.Since(begin).Round(time.Millisecond), resets)
	if broken < crowdSize/10 {
		c.t.Error("want a tenth at least")
	}
	for _, vip := range VIPs.All() {
		if n := resets[netip.AddrPortFrom(vip, servicePort).String()]; n < crowdSize/50 {
			c.t.Errorf("%d connections to %s were reset by a backend that does not know them, want many", n, vip)
		}
	}
}
