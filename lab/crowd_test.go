package lab

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"
)

// crowd is clients that each keep a connection open and make a request on it now and
// then. One whose connection ends opens another.
type crowd struct {
	l      *Lab
	pause  time.Duration // between two requests on a connection, on average
	length time.Duration // of a connection, on average; 0: it stays
	cancel context.CancelFunc
	all    sync.WaitGroup

	mu      sync.Mutex
	clients []client
	so      numbers
	ends    []end
	killed  map[string][]span // backends, and when
	inquire func(end) string  // is called at once for the first that broke; nil: nobody knows
	asked   int               // times that it was
}

// numbers are what there was so far.
type numbers struct{ opened, asked int }

func (c *crowd) numbers() numbers {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.so
}

// client is where its connection is.
type client struct {
	backend string // empty: it has none
	asked   time.Time
}

// end is that of a connection which somebody else than its client ended.
type end struct {
	backend   string   // empty: it has answered nothing
	from, to  net.Addr // nil: it was never there
	begun, at time.Time
	err       error
	why       string
}

// span is from a time to another.
type span struct{ from, to time.Time }

const (
	crowdPatience = 15 * time.Second // for an answer: what is slow is not broken
	mostAsked     = 20
)

// startCrowd has so many clients begin within a time.
func (l *Lab) startCrowd(ctx context.Context, clients int, within, pause, length time.Duration, inquire func(end) string) *crowd {
	ctx, cancel := context.WithCancel(ctx)
	c := &crowd{l: l, pause: pause, length: length, cancel: cancel, inquire: inquire, clients: make([]client, clients), killed: make(map[string][]span)}
	for i := range clients {
		c.all.Go(func() {
			sleep(ctx, within*time.Duration(i)/time.Duration(clients))
			for ctx.Err() == nil {
				c.connect(ctx, i)
			}
		})
	}
	return c
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// connect is a connection of a client, from its begin to its end.
func (c *crowd) connect(ctx context.Context, i int) {
	e := end{begun: time.Now()}
	e.err = c.converse(ctx, i, &e)
	if ctx.Err() != nil {
		return
	}
	e.at = time.Now()
	c.mu.Lock()
	c.clients[i] = client{}
	inquire := e.err != nil && c.inquire != nil && c.asked < mostAsked && c.broke(e)
	if inquire {
		c.asked++
	}
	c.mu.Unlock()
	if e.err == nil {
		return
	}
	if inquire {
		e.why = c.inquire(e)
	}
	c.mu.Lock()
	c.ends = append(c.ends, e)
	c.mu.Unlock()
	sleep(ctx, 100*time.Millisecond)
}

func (c *crowd) converse(ctx context.Context, i int, e *end) error {
	var over time.Time
	if c.length > 0 {
		over = e.begun.Add(time.Duration(rand.ExpFloat64() * float64(c.length)))
	}
	dialing, stop := context.WithTimeout(ctx, crowdPatience)
	defer stop()
	conn, err := c.l.clientNS.DialContext(dialing, "tcp", net.JoinHostPort(VIPs.All()[i%2].String(), fmt.Sprint(servicePort)))
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	e.from, e.to = conn.LocalAddr(), conn.RemoteAddr()
	for in := bufio.NewReaderSize(conn, 512); over.IsZero() || time.Now().Before(over); {
		begin := time.Now()
		backend, err := ask(conn, in)
		if err != nil {
			return err
		}
		if e.backend != "" && backend != e.backend {
			return fmt.Errorf("%s answers on a connection to %s", backend, e.backend)
		}
		c.mu.Lock()
		c.so.asked++
		if e.backend == "" {
			c.so.opened++
		}
		e.backend = backend
		c.clients[i] = client{backend, begin}
		c.mu.Unlock()
		sleep(ctx, c.pause/2+rand.N(c.pause))
	}
	return nil
}

// ask makes a request on a connection.
func ask(conn net.Conn, in *bufio.Reader) (backend string, err error) {
	if err := conn.SetDeadline(time.Now().Add(crowdPatience)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: lab\r\n\r\n"); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.Header.Get("X-Backend"), err
}

func (c *crowd) stop() {
	c.cancel()
	c.all.Wait()
}

// kill is the death of a backend, with its connections.
func (c *crowd) kill(b *Backend) {
	c.mu.Lock()
	c.killed[b.Name] = append(c.killed[b.Name], span{time.Now(), time.Now().Add(time.Hour)})
	last := &c.killed[b.Name][len(c.killed[b.Name])-1]
	c.mu.Unlock()
	b.Kill()
	c.mu.Lock()
	defer c.mu.Unlock()
	last.to = time.Now()
}

// await waits until every client that has a connection has had an answer on it to what it
// asked since a moment, and so many have one.
func (c *crowd) await(t *testing.T, since time.Time, least int) {
	t.Helper()
	for end := time.Now().Add(4 * crowdPatience); ; time.Sleep(20 * time.Millisecond) {
		c.mu.Lock()
		open, silent := 0, 0
		for _, client := range c.clients {
			if client.backend != "" {
				open++
				if client.asked.Before(since) {
					silent++
				}
			}
		}
		c.mu.Unlock()
		if open >= least && silent == 0 {
			return
		}
		if time.Now().After(end) {
			c.mu.Lock()
			defer c.mu.Unlock()
			t.Fatalf("%d connections are open, want %d; on %d nothing was heard since %v; %d opened so far, the last ones that ended: %v",
				open, least, silent, since, c.so.opened, c.ends[max(0, len(c.ends)-10):])
		}
	}
}

// broken gives the connections that ended since a moment though their backends lived.
// Where it is not known which one had it, any of those that died may have been it.
func (c *crowd) broken(since time.Time) []end {
	c.mu.Lock()
	defer c.mu.Unlock()
	var broken []end
	for _, e := range c.ends {
		if e.at.After(since) && c.broke(e) {
			broken = append(broken, e)
		}
	}
	return broken
}

// broke tells whether the end is one whose backend lived. It needs c.mu.
func (c *crowd) broke(e end) bool {
	for name, times := range c.killed {
		if (e.backend == "" || e.backend == name) &&
			slices.ContainsFunc(times, func(s span) bool { return !s.from.After(e.at) && !s.to.Before(e.begun) }) {
			return false
		}
	}
	return e.from != nil
}

// failed gives those that could not be opened, of all that were tried since a moment.
func (c *crowd) failed(since time.Time) []end {
	c.mu.Lock()
	defer c.mu.Unlock()
	var failed []end
	for _, e := range c.ends {
		if e.from == nil && e.begun.After(since) {
			failed = append(failed, e)
		}
	}
	return failed
}

func (e end) String() string {
	return fmt.Sprintf("one to %s, after %v: %v", cmp.Or(e.backend, "nobody knows whom"), e.at.Sub(e.begun).Round(time.Millisecond), e.err)
}
