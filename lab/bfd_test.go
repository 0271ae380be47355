package lab

import (
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/admin"
	"github.com/halfproxy/halfproxy/bfd"
)

var cuts = flag.Int("cuts", 1, "how often TestBFDTakesADeadNodesRoutesAwayInTime and TestFailover cut a link")

// A node's link is cut, which tells the router nothing: without BFD it would send to
// the node for the hold time of 3 s.
func TestBFDTakesADeadNodesRoutesAwayInTime(t *testing.T) {
	for _, router := range []string{FRR, BIRD} {
		t.Run(router, func(t *testing.T) {
			l := start(t, Options{Router: router, BFD: true})
			bfdIs := func(state string) func(*Node, admin.Status) bool {
				return func(_ *Node, s admin.Status) bool { return len(s.BGP) == 1 && s.BGP[0].BFD == state }
			}
			eventually(t, l, 10*time.Second, "BFD is up", bfdIs("up"))
			time.Sleep(time.Second) // intervals are agreed on

			victim := l.Nodes()[1]
			var all []time.Duration
			for n := range *cuts {
				if n > 0 {
					must(t, victim.MendLink())
					settle(t, l)
					eventually(t, l, 10*time.Second, "BFD is up again", bfdIs("up"))
					time.Sleep(time.Second + time.Duration(rand.IntN(100))*time.Millisecond)
				}
				must(t, victim.CutLink())
				cut := time.Now()
				gone := awaitHops(t, l, 10*time.Second, "lb1", "lb3")
				all = append(all, gone.Sub(cut).Round(time.Millisecond))
				waitNextHops(t, l, "lb1", "lb3") // IPv6 too
			}
			slices.Sort(all)
			t.Logf("routes gone after %v; the middle one is %v", all, all[len(all)/2])
			if took := all[len(all)-1]; took > time.Second {
				t.Errorf("routes gone after %v, want well below the hold time of %v", took, holdTime)
			}
			eventually(t, l, 5*time.Second, "the cut node has BFD down and with it BGP", func(n *Node, s admin.Status) bool {
				return n != victim || s.BGP[0].BFD == "down" && s.BGP[0].State != "established"
			})
			if err := victim.MendLink(); err != nil {
				t.Fatal(err)
			}
			settle(t, l)
			eventually(t, l, 10*time.Second, "BFD is up again", bfdIs("up"))

			// The node dies and returns; who keeps its BFD session does not notice.
			node := l.Nodes()[0]
			before := bfdProcess(t, node)
			if err := node.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := node.Start(); err != nil {
				t.Fatal(err)
			}
			settle(t, l)
			eventually(t, l, 5*time.Second, "BFD is up", bfdIs("up"))
			if after := bfdProcess(t, node); after != before {
				t.Errorf("process %s keeps the BFD session of the node that returned, want %s as before", after, before)
			}
		})
	}
}

// bfdProcess is the ID of the process that keeps the node's BFD session.
func bfdProcess(t *testing.T, n *Node) string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	socket := bfd.Socket(n.Socket)
	for _, file := range files {
		line, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(line), "\x00bfd\x00--socket\x00"+socket) {
			return filepath.Base(filepath.Dir(file))
		}
	}
	t.Fatalf("no process keeps a BFD session for %s", n.Name)
	return ""
}
