package bfd

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

var errEnded = errors.New("it ended")

// Socket is where the BFD process of the node with this admin socket is asked.
func Socket(admin string) string {
	return strings.TrimSuffix(admin, filepath.Ext(admin)) + "-bfd.sock"
}

// Client has another process keep sessions, and starts that where there is none.
type Client struct {
	socket  string
	spawn   func() error
	log     *slog.Logger
	changes chan struct{}
	wake    chan struct{}

	mu       sync.Mutex
	wanted   []Peer
	statuses []Status
	problem  string
	over     bool
}

// NewClient makes a client of the process that listens on the socket; spawn starts it.
func NewClient(socket string, spawn func() error, log *slog.Logger) *Client {
	return &Client{
		socket: socket, spawn: spawn, log: log.With("part", "bfd"),
		changes: make(chan struct{}, 1), wake: make(chan struct{}, 1),
	}
}

// SetPeers makes peers the whole set of sessions there are to be. It does not wait.
func (c *Client) SetPeers(peers []Peer) error {
	if err := validate(peers); err != nil {
		return err
	}
	c.mu.Lock()
	c.wanted = peers
	c.mu.Unlock()
	notify(c.wake)
	return nil
}

// End has the sessions end as planned when Run does. Without it they outlive Run, and
// the process that comes next takes them over.
func (c *Client) End() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
}

// Statuses is how sessions stood when last heard of, a second ago at most while there
// is no error.
func (c *Client) Statuses() ([]Status, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.problem != "" {
		return c.statuses, errors.New(c.problem)
	}
	return c.statuses, nil
}

// Bye ends the process that listens on the socket, and its sessions as planned. Where
// there is none it does nothing.
func Bye(socket string) error {
	conn, err := net.Dial("unix", socket)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := json.NewEncoder(conn).Encode(request{Protocol: protocol, Bye: true}); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, conn) // until it has ended
	return err
}

// Changes has something to receive after Statuses has changed.
func (c *Client) Changes() <-chan struct{} { return c.changes }

var peerUpDesc = prometheus.NewDesc("halfproxy_bfd_peer_up", "Whether the BFD session with the peer is up.", []string{"peer"}, nil)

// Describe implements prometheus.Collector.
func (c *Client) Describe(ch chan<- *prometheus.Desc) { ch <- peerUpDesc }

// Collect implements prometheus.Collector: one series for each session that is
// wanted, of which none is up while the process is away.
func (c *Client) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	up := make(map[netip.Addr]float64)
	for _, p := range c.wanted {
		up[p.Address] = 0
	}
	for _, s := range c.statuses {
		if _, wanted := up[s.Address]; wanted && s.State == Up {
			up[s.Address] = 1
		}
	}
	c.mu.Unlock()
	for peer, value := range up {
		ch <- prometheus.MustNewConstMetric(peerUpDesc, prometheus.GaugeValue, value, peer.String())
	}
}

// retry is how soon a lost process is looked for again.
const retry = 500 * time.Millisecond

// Run sees to it that the process runs and knows what is wanted, until ctx ends.
// Where no session is wanted and none was there is no process.
func (c *Client) Run(ctx context.Context) error {
	for c.idle() {
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		}
	}
	for {
		err := c.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		c.fail(err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry):
		}
	}
}

// idle tells whether nothing is wanted, and no process of before is to be told so.
func (c *Client) idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := os.Stat(c.socket)
	return len(c.wanted) == 0 && err != nil
}

func (c *Client) fail(err error) {
	text := fmt.Sprintf("the BFD process is away: %v", err)
	c.mu.Lock()
	fresh := c.problem != text
	c.problem, c.statuses = text, nil
	c.mu.Unlock()
	if fresh {
		c.log.Error("BFD process lost, looking for it again", "err", err)
		notify(c.changes)
	}
}

// connect starts the process where nobody listens.
func (c *Client) connect(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.socket)
	if err == nil {
		return conn, nil
	}
	if err := c.spawn(); err != nil {
		return nil, fmt.Errorf("start it: %w", err)
	}
	for range 50 {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		if conn, err = d.DialContext(ctx, "unix", c.socket); err == nil {
			return conn, nil
		}
	}
	return nil, fmt.Errorf("it does not listen on %s: %w: see its log", c.socket, err)
}

// session speaks to the process until it or ctx ends.
func (c *Client) session(ctx context.Context) error {
	conn, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	heard := make(chan error, 1)
	go func() { heard <- c.listen(conn) }()
	out := json.NewEncoder(conn)
	notify(c.wake)
	for {
		select {
		case err := <-heard:
			return err
		case <-c.wake:
			c.mu.Lock()
			r := request{Protocol: protocol, Peers: c.wanted}
			c.mu.Unlock()
			if err := out.Encode(r); err != nil {
				return err
			}
		case <-ctx.Done():
			c.mu.Lock()
			over := c.over
			c.mu.Unlock()
			if !over {
				return nil
			}
			if err := out.Encode(request{Protocol: protocol, Bye: true}); err != nil {
				return err
			}
			if err := <-heard; !errors.Is(err, errEnded) {
				return err
			}
			return nil
		}
	}
}

// listen takes in what the process tells.
func (c *Client) listen(conn net.Conn) error {
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r report
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return fmt.Errorf("read its report: %w", err)
		}
		if r.Protocol != protocol {
			// Of another version: its sessions end, and ours begin.
			_ = json.NewEncoder(conn).Encode(request{Bye: true})
			return fmt.Errorf("it speaks protocol %d, this version %d: it is ended and started anew", r.Protocol, protocol)
		}
		c.mu.Lock()
		c.statuses, c.problem = r.Statuses, r.Refused
		c.mu.Unlock()
		notify(c.changes)
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return errEnded
}
