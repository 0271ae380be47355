package lab

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

func TestTheVIPAnswersBehindEveryRouterWithEveryForward(t *testing.T) {
	t.Parallel()
	for _, router := range []string{Embedded, FRR, BIRD} {
		for _, forward := range Forwards {
			if router != Embedded && forward > lb.IPIP {
				continue // to the router it is all one
			}
			t.Run(fmt.Sprintf("%s %s", router, forward), func(t *testing.T) {
				l := start(t, Options{Router: router, Forward: forward})
				t.Run("IPv4", func(t *testing.T) { testHTTP(t, l, clientAddrs.V4, VIPs.V4) })
				t.Run("IPv6", func(t *testing.T) { testHTTP(t, l, clientAddrs.V6, VIPs.V6) })
			})
		}
	}
}

func testHTTP(t *testing.T, l *Lab, client, vip netip.Addr) {
	captures := map[string]*Capture{}
	for _, n := range l.Nodes() {
		c, err := n.Capture()
		if err != nil {
			t.Fatal(err)
		}
		captures[n.Name] = c
	}
	served := map[string]int{}
	for range 60 {
		resp, err := l.Client().Get(URL(vip, "/"))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		name := resp.Header.Get("X-Backend")
		served[name]++
		if want := fmt.Sprintf("hello from %s\n", name); err != nil || string(body) != want {
			t.Errorf("got %q, %v, want %q", body, err, want)
		}
		wantHeader(t, resp.Header.Get("X-Remote"), client)
		wantHeader(t, resp.Header.Get("X-Local"), vip)
	}
	if len(served) != len(l.Backends()) {
		t.Errorf("of 60 requests each backend served %v, want all %d to serve", served, len(l.Backends()))
	}
	for name, c := range captures {
		frames, err := c.Stop()
		if err != nil {
			t.Fatal(err)
		}
		passed := 0
		for _, f := range frames {
			p := decode(f)
			switch {
			case p.inner == nil:
			case p.inner.from == vip && p.inner.to == client:
				t.Errorf("at %s: got an answer, %s, want none", name, p.inner)
			case p.inner.from == client && p.inner.to == vip && p.out == in:
				passed++
			}
		}
		if passed == 0 {
			t.Errorf("%s passed no packet on, want its share of 60 requests", name)
		}
	}
}

// Everything at once that a node's death must not break: downloads and uploads
// of 32 s each, and 1,000 connections that are open and mostly idle. Each node
// dies once, so that everything loses the node that carries it.
func TestNoConnectionBreaksWhenTheNodeThatCarriesItDies(t *testing.T) {
	const (
		transfers = 6
		idle      = 1000
		rate      = 250_000
		length    = 32 * time.Second
	)
	l := start(t, Options{})
	connections := openConnections(t, l, idle)
	begun := time.Now()
	down, err := l.startDownloads(t.Context(), transfers, rate, length)
	if err != nil {
		t.Fatal(err)
	}
	up := startUploads(t, l, transfers, rate, length)

	for _, n := range l.Nodes() {
		carried := carriedBy(t, l, connections, down)
		t.Logf("after %v %s is killed; connections and downloads by node: %v", time.Since(begun).Round(time.Millisecond), n.Name, carried)
		if carried[n.Name] < idle/len(l.Nodes())/2 {
			t.Errorf("%s carries %d, want about a third", n.Name, carried[n.Name])
		}
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		useConnections(t, connections, "after the death of "+n.Name)
		settle(t, l)
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
		settle(t, l)
		useConnections(t, connections, "after the return of "+n.Name)
	}

	for _, d := range down {
		if err := d.wait(); err != nil {
			t.Errorf("a download from %s: %v", d.backend, err)
		}
	}
	for err := range up {
		if err != nil {
			t.Errorf("an upload: %v", err)
		}
	}
	if took := time.Since(begun); took < 30*time.Second {
		t.Errorf("the transfers took %v, want 30s at least", took)
	}
}

// startUploads gives a channel with the outcome of each upload, closed after
// the last.
func startUploads(t *testing.T, l *Lab, n int, rate int64, length time.Duration) <-chan error {
	size := rate * int64(length/time.Second)
	hash := sha256.New()
	if _, err := io.Copy(hash, io.LimitReader(new(content), size)); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%d %x\n", size, hash.Sum(nil))
	outcomes := make(chan error, n)
	var running sync.WaitGroup
	for i := range n {
		running.Go(func() {
			outcomes <- func() error {
				body := &paced{reader: io.LimitReader(new(content), size), rate: rate}
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, URL(VIPs.All()[i%2], "/upload"), body)
				if err != nil {
					return err
				}
				req.ContentLength = size
				resp, err := l.Client().Do(req)
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				got, err := io.ReadAll(resp.Body)
				if err == nil && string(got) != want {
					err = fmt.Errorf("got %q, want %q", got, want)
				}
				return err
			}()
		})
	}
	go func() {
		running.Wait()
		close(outcomes)
	}()
	return outcomes
}

// connection is one that stays open.
type connection struct {
	net.Conn
	reader *bufio.Reader
}

func (c *connection) ask() error {
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: lab\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// openConnections opens n, alternately by IPv4 and IPv6, and uses each once.
func openConnections(t *testing.T, l *Lab, n int) []*connection {
	connections := make([]*connection, n)
	inParallel(n, func(i int) {
		address := netip.AddrPortFrom(VIPs.All()[i%2], servicePort).String()
		conn, err := l.ClientNS().DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Errorf("connection %d: %v", i, err)
			return
		}
		connections[i] = &connection{conn, bufio.NewReader(conn)}
	})
	t.Cleanup(func() {
		for _, c := range connections {
			if c != nil {
				c.Close()
			}
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	useConnections(t, connections, "at first")
	return connections
}

// useConnections makes a request on each.
func useConnections(t *testing.T, connections []*connection, when string) {
	t.Helper()
	var broken atomic.Int64
	inParallel(len(connections), func(i int) {
		if err := connections[i].ask(); err != nil && broken.Add(1) <= 3 {
			t.Errorf("connection %d, %s: %v", i, when, err)
		}
	})
	if n := broken.Load(); n > 0 {
		t.Errorf("%d of %d connections broke %s, want none", n, len(connections), when)
	}
}

// inParallel calls f(0) to f(n-1), a few at a time.
func inParallel(n int, f func(i int)) {
	var next atomic.Int64
	var workers sync.WaitGroup
	for range 16 {
		workers.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	workers.Wait()
}

// carriedBy counts the flows that each node carries.
func carriedBy(t *testing.T, l *Lab, connections []*connection, down []*transfer) map[string]int {
	t.Helper()
	ports, err := l.clientPorts(func() error {
		useConnections(t, connections, "with all nodes")
		time.Sleep(time.Second) // for a packet of each download
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	carried := map[string]int{}
	for name, seen := range ports {
		for _, c := range connections {
			if seen[c.LocalAddr().(*net.TCPAddr).AddrPort().Port()] {
				carried[name]++
			}
		}
		for _, d := range down {
			if seen[d.port] {
				carried[name]++
			}
		}
	}
	return carried
}

func TestABackendThatDiesIsOutOfEveryTableInTime(t *testing.T) {
	for name, death := range map[string]struct {
		die, live func(*Backend) error
	}{
		"its server ends": {
			func(b *Backend) error { b.Kill(); return nil }, (*Backend).Start,
		},
		"its link is cut": {(*Backend).CutLink, (*Backend).MendLink},
	} {
		t.Run(name, func(t *testing.T) {
			l := start(t, Options{})
			before := digests(t, l)
			begin := time.Now()
			if err := death.die(l.Backends()[1]); err != nil {
				t.Fatal(err)
			}
			settle(t, l)
			if took := time.Since(begin); took > l.DetectTime() {
				t.Errorf("in use for %v after its death, want %v at most", took, l.DetectTime())
			} else {
				t.Logf("out of every table after %v, promised %v", took.Round(time.Millisecond), l.DetectTime())
			}
			if without := digests(t, l); without == before {
				t.Error("the tables without b2 have the same digests as those with it")
			}
			for range 60 {
				backend, err := hello(t.Context(), l.Client(), URL(VIPs.V4, "/"))
				if err != nil || backend == "b2" {
					t.Fatalf("got an answer from %q, %v, want one from b1 or b3", backend, err)
				}
			}
			if err := death.live(l.Backends()[1]); err != nil {
				t.Fatal(err)
			}
			settle(t, l)
			digests(t, l) // not those of before: slots that changed are in transition
			// Not at once: the nodes have just announced, and send new flows where older
			// ones of their slots would go for a while.
			for end := time.Now().Add(10 * time.Second); ; {
				backend, err := hello(t.Context(), l.Client(), URL(VIPs.V4, "/"))
				if err != nil {
					t.Fatal(err)
				}
				if backend == "b2" {
					break
				}
				if time.Now().After(end) {
					t.Fatal("b2 has been back for 10 s, and no request came to it")
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
}

// digests gives the digests of the tables, which must be the same everywhere.
func digests(t *testing.T, l *Lab) string {
	t.Helper()
	byNode := map[string][]string{}
	for _, n := range l.Nodes() {
		status, err := n.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, s := range status.Services {
			all = append(all, s.Name+" "+s.TableDigest)
		}
		key := strings.Join(all, ", ")
		byNode[key] = append(byNode[key], n.Name)
	}
	if len(byNode) != 1 {
		t.Fatalf("digests differ: %v", byNode)
	}
	for key := range byNode {
		return key
	}
	return ""
}

func TestANodeThatIsToldToStopLeavesWithoutAFailedRequest(t *testing.T) {
	l := start(t, Options{Router: FRR})
	victim := l.Nodes()[1]
	load := l.startLoad(t.Context(), 8, 5*time.Millisecond)
	time.Sleep(time.Second)
	begin := time.Now()
	if err := victim.Terminate(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	gone, err := l.routesGone(ctx, victim, begin)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("its routes are out of FRR's kernel table after %v", gone.Round(time.Millisecond))
	if gone > time.Second {
		t.Errorf("routes: gone after %v, want 1s at most", gone)
	}
	if err := victim.Wait(ctx); err != nil {
		t.Errorf("exit: got %v, want none", err)
	}
	t.Logf("it has ended after %v", time.Since(begin).Round(time.Millisecond))
	time.Sleep(time.Second)
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	settle(t, l)
	time.Sleep(time.Second)
	load.stop()
	asked := load.since(time.Time{})
	failed := failures(asked)
	t.Logf("%d requests, the slowest took %v", len(asked), slowest(asked))
	if len(asked) < 500 {
		t.Errorf("got %d requests, want a load of 500 at least", len(asked))
	}
	if len(failed) > 0 {
		t.Errorf("%d of %d requests failed, want none; the first: %v", len(failed), len(asked), failed[0].err)
	}
}
