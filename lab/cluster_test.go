package lab

import (
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/halfproxy/halfproxy/admin"
)

// An order is given to one node, by the command that people use.
func TestAnOrderHoldsOnEveryNodeAndOverRestarts(t *testing.T) {
	t.Parallel()
	l := start(t, Options{})
	order := func(n *Node, words ...string) string {
		t.Helper()
		out, err := exec.Command(built, append(words, "--socket", n.Socket)...).CombinedOutput()
		if err != nil {
			t.Fatalf("halfproxy %s on %s: %v\n%s", strings.Join(words, " "), n.Name, err, out)
		}
		return string(out)
	}
	everywhere := func(backend, state string) {
		t.Helper()
		eventually(t, l, 5*time.Second, backend+" is "+state, func(_ *Node, s admin.Status) bool {
			i := slices.IndexFunc(s.Services[0].Backends, func(b admin.Backend) bool { return b.Name == backend })
			return s.Services[0].Backends[i].State == state
		})
	}
	nodes := l.Nodes()

	if says := order(nodes[1], "drain", "backend", "b1"); !strings.Contains(says, "--undo") {
		t.Errorf("got %q, want the way back in it", says)
	}
	everywhere("b1", "draining")
	digests(t, l)

	for _, n := range nodes {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
		everywhere("b1", "draining")
		waitNextHops(t, l, "lb1", "lb2", "lb3")
	}

	order(nodes[2], "drain", "backend", "b1", "--undo")
	everywhere("b1", "up")
	order(nodes[0], "weight", "backend", "web/b2", "7", "--for", "1h")
	eventually(t, l, 5*time.Second, "b2 has weight 7", func(_ *Node, s admin.Status) bool {
		return slices.ContainsFunc(s.Services[0].Backends, func(b admin.Backend) bool { return b.Name == "b2" && b.Weight == 7 && b.Order != "" })
	})

	order(nodes[0], "drain", "node", nodes[0].Name)
	waitNextHops(t, l, "lb2", "lb3")
	order(nodes[1], "drain", "service", "web")
	waitNextHops(t, l)
	order(nodes[2], "drain", "service", "web", "--undo")
	order(nodes[0], "drain", "node", nodes[0].Name, "--undo")
	waitNextHops(t, l, "lb1", "lb2", "lb3")

	for _, words := range []string{"drain backend b9", "drain node lb9", "fail backend b1 --undo"} {
		if out, err := exec.Command(built, append(strings.Fields(words), "--socket", nodes[0].Socket)...).CombinedOutput(); err == nil {
			t.Errorf("halfproxy %s: got %s, want a refusal", words, out)
		}
	}
}

// The way from one node to the backends is cut, not that to the members and the
// router: it would go on taking traffic that it can bring nowhere.
func TestABlindNodeWithdrawsWhileTrafficGoesOn(t *testing.T) {
	l := start(t, Options{})
	blind := l.Nodes()[2]
	var backends []netip.Addr
	for _, b := range l.Backends() {
		backends = append(backends, b.V4)
	}
	mend := cutTo(t, blind, backends...)
	waitNextHops(t, l, "lb1", "lb2")

	load := l.startLoad(t.Context(), 4, 5*time.Millisecond)
	time.Sleep(2 * time.Second)
	load.stop()
	failed := 0
	for _, r := range load.requests {
		if r.err != nil {
			failed++
		}
	}
	if failed > 0 || len(load.requests) < 100 {
		t.Errorf("%d of %d requests failed though the blind node had withdrawn, want none of many", failed, len(load.requests))
	}
	for _, n := range l.Nodes() {
		s, err := n.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(s.Cluster.Blind, []string{blind.Name}) {
			t.Errorf("%s takes %v for blind, want %s", n.Name, s.Cluster.Blind, blind.Name)
		}
		for _, b := range s.Services[0].Backends {
			if b.State != "up" {
				t.Errorf("%s: %s is %s, want up: who says otherwise is blind", n.Name, b.Name, b.State)
			}
		}
		if announced := s.Services[0].Announced; announced != (n != blind) {
			t.Errorf("%s: announced %t: %s", n.Name, announced, s.Services[0].Reason)
		}
	}

	mend()
	waitNextHops(t, l, "lb1", "lb2", "lb3")
}

// The gossip of one node is cut from that of the others, and nothing else.
func TestAMinorityFreezesAndAMajorityGoesOn(t *testing.T) {
	l := start(t, Options{})
	nodes := l.Nodes()
	mends := []func(){
		cutTo(t, nodes[2], nodes[0].V4, nodes[1].V4),
		cutTo(t, nodes[0], nodes[2].V4),
		cutTo(t, nodes[1], nodes[2].V4),
	}
	eventually(t, l, 10*time.Second, "lb3 is frozen, the others are not", func(n *Node, s admin.Status) bool {
		return s.Cluster.Frozen == (n == nodes[2])
	})
	l.Backends()[0].Kill()
	eventually(t, l, 5*time.Second, "b1 is down for the majority and as it was for lb3", func(n *Node, s admin.Status) bool {
		state := s.Services[0].Backends[0].State
		return state == "up" && n == nodes[2] || state == "down" && n != nodes[2]
	})
	waitNextHops(t, l, "lb1", "lb2", "lb3") // silence withdraws nothing

	for _, mend := range mends {
		mend()
	}
	eventually(t, l, 15*time.Second, "all agree", func(_ *Node, s admin.Status) bool {
		return !s.Cluster.Frozen && s.Cluster.InSight == 3 && s.Services[0].Backends[0].State == "down"
	})
}

// cutTo takes away a node's way to some addresses. The function that it gives
// brings it back.
func cutTo(t *testing.T, n *Node, addresses ...netip.Addr) func() {
	t.Helper()
	must(t, n.blackhole(netlink.RouteAdd, addresses...))
	return func() { must(t, n.blackhole(netlink.RouteDel, addresses...)) }
}

// eventually waits until holds is true of every node's status.
func eventually(t *testing.T, l *Lab, limit time.Duration, what string, holds func(*Node, admin.Status) bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		missing := ""
		for _, n := range l.Nodes() {
			s, err := n.Status(t.Context())
			if err != nil || len(s.Services) == 0 || !holds(n, s) { // one that has just started has no services yet
				missing = n.Name
			}
		}
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s; it does not hold on %s", limit, what, missing)
		}
	}
}

// waitNextHops waits until the router has these nodes as next hops of both VIPs.
func waitNextHops(t *testing.T, l *Lab, want ...string) {
	t.Helper()
	nextHopsWithin(t, l, 10*time.Second, want...)
}

func nextHopsWithin(t *testing.T, l *Lab, limit time.Duration, want ...string) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		v4, err4 := l.NextHops(VIPs.V4)
		v6, err6 := l.NextHops(VIPs.V6)
		if err4 == nil && err6 == nil && slices.Equal(v4, want) && slices.Equal(v6, want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("next hops: got %v, %v and %v, %v, want %v", v4, err4, v6, err6, want)
		}
	}
}
