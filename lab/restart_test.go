package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pkt "github.com/halfproxy/halfproxy/internal/packet"
)

// pinned lists what the lab's nodes have pinned, but what the kernel puts there.
func pinned(t *testing.T, l *Lab) []string {
	t.Helper()
	var found []string
	if err := filepath.WalkDir(pinDir(l.options), func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && filepath.Dir(path) != pinDir(l.options) {
			found = append(found, path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

// Packets come to the node without a pause, past the router, which would send
// them elsewhere: while the process is killed, while there is none, and while the
// next one starts and takes over.
func TestAKilledNodeForwardsOnUntilItsNextProcessTakesOver(t *testing.T) {
	l := start(t, Options{Nodes: 1})
	n := l.Nodes()[0]
	gateway, node := mac(t, l.routerNS, "eth1").String(), mac(t, n.ns, "eth0").String()
	var frames [][]byte
	for i := range 2000 {
		client, vip := netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), VIPs.V4
		if i%2 == 1 {
			client, vip = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0xff, 15: byte(i)}), VIPs.V6
		}
		frames = append(frames, pkt.TCP(netip.AddrPortFrom(client, uint16(1024+i)).String(), netip.AddrPortFrom(vip, servicePort).String(),
			pkt.From(gateway), pkt.To(node)))
	}
	capture, err := n.Capture()
	if err != nil {
		t.Fatal(err)
	}

	restarted := make(chan error, 1)
	go func() {
		restarted <- func() error {
			if err := n.Kill(); err != nil {
				return err
			}
			time.Sleep(time.Second)
			if err := n.Start(); err != nil {
				return err
			}
			for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				log, err := os.ReadFile(n.log)
				if err != nil {
					return err
				}
				if strings.Contains(string(log), "program taken over") {
					return nil
				}
			}
			return errors.New("the new process has not taken over")
		}()
	}()
	for running := true; running; {
		inject(t, l, frames)
		select {
		case err := <-restarted:
			if err != nil {
				t.Fatal(err)
			}
			running = false
		default:
		}
	}
	inject(t, l, frames)
	settle(t, l)

	captured, err := capture.Stop()
	if err != nil {
		t.Fatal(err)
	}
	came, passed := 0, 0
	backends := make(map[string]map[string]bool) // of each flow
	for _, f := range captured {
		p := decode(f)
		if p.inner == nil || p.inner.to != VIPs.V4 && p.inner.to != VIPs.V6 || slices.Contains(n.All(), p.inner.from) {
			continue // but for its own probes
		}
		switch {
		case p.out == out && p.eth.DstMAC.String() == node:
			came++
		case p.out == in && p.eth.SrcMAC.String() == node:
			passed++
			flow := fmt.Sprintf("%s %x", p.inner, p.transport[:4])
			if backends[flow] == nil {
				backends[flow] = make(map[string]bool)
			}
			backends[flow][p.eth.DstMAC.String()] = true
		}
	}
	t.Logf("%d packets came to the node over its restart, %d of them were lost", came, came-passed)
	if came < 3*len(frames) || passed != came {
		t.Errorf("%d of %d packets were passed on, want all", passed, came)
	}
	for flow, used := range backends {
		if len(used) > 1 {
			t.Errorf("flow %s went to %d backends", flow, len(used))
		}
	}

	if err := n.Terminate(); err != nil {
		t.Fatal(err)
	}
	if err := n.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := pinned(t, l); len(left) > 0 {
		t.Errorf("left pinned by a node that was stopped: %v", left)
	}
}
