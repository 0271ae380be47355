package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/halfproxy/halfproxy/admin"
	"github.com/halfproxy/halfproxy/internal/netns"
)

// Lab is the running system.
type Lab struct {
	options  Options
	log      *slog.Logger
	clientNS *netns.NS
	routerNS *netns.NS
	switchNS *netns.NS
	nodes    []*Node
	backends []*Backend
	fib      *netlink.Handle // of the router's kernel

	stopRouter func() error // what runs as the router

	closers   []func() error // undo what was built, to be called from the last to the first
	closeOnce sync.Once
	closeErr  error
}

// Start builds the lab and starts the router and the nodes; WaitReady waits
// until they serve. When it fails nothing is left behind.
func Start(ctx context.Context, o Options) (*Lab, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	l := &Lab{options: o, log: o.Log.With("part", "lab")}
	for _, step := range []func() error{
		l.claim,
		l.buildSwitch,
		l.buildRouter,
		l.buildClient,
		l.buildBackends,
		l.buildNodes,
		l.startRouter,
		l.startNodes,
	} {
		if err := ctx.Err(); err != nil {
			return nil, errors.Join(err, l.Close())
		}
		if err := step(); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

func (l *Lab) onClose(undo func() error) { l.closers = append(l.closers, undo) }

// Close ends every process and removes every namespace and file. Calling it
// again gives the same answer.
func (l *Lab) Close() error {
	l.closeOnce.Do(func() {
		// All nodes at once: each takes its time to leave in good order.
		var stopping sync.WaitGroup
		errs := make([]error, len(l.nodes))
		for i, n := range l.nodes {
			stopping.Go(func() { errs[i] = n.stop() })
		}
		stopping.Wait()
		for _, undo := range slices.Backward(l.closers) {
			errs = append(errs, undo())
		}
		l.closeErr = errors.Join(errs...)
	})
	return l.closeErr
}

// Nodes are the load balancers, lb1 first.
func (l *Lab) Nodes() []*Node { return l.nodes }

// Backends are the servers, b1 first.
func (l *Lab) Backends() []*Backend { return l.backends }

// Client speaks HTTP from the client's namespace. Each request has a
// connection, and so a flow, of its own.
func (l *Lab) Client() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: l.clientNS.DialContext, DisableKeepAlives: true}}
}

// ClientNS is the namespace of the client, for connections of other kinds.
func (l *Lab) ClientNS() *netns.NS { return l.clientNS }

// URL is path at the VIP.
func URL(vip netip.Addr, path string) string {
	if vip.Is6() {
		return "http://[" + vip.String() + "]" + path
	}
	return "http://" + vip.String() + path
}

// NextHops are the nodes that the router's kernel sends a VIP's packets to, by
// name and in order. A next hop that is no node is an error.
func (l *Lab) NextHops(vip netip.Addr) ([]string, error) {
	family := netlink.FAMILY_V4
	if vip.Is6() {
		family = netlink.FAMILY_V6
	}
	routes, err := l.fib.RouteListFiltered(family, kernelRoute(netip.PrefixFrom(vip, vip.BitLen())), netlink.RT_FILTER_DST)
	if err != nil {
		return nil, fmt.Errorf("list the router's routes to %s: %w", vip, err)
	}
	var names []string
	for _, r := range routes {
		hops := r.MultiPath
		if len(hops) == 0 {
			hops = []*netlink.NexthopInfo{{Gw: r.Gw}}
		}
		for _, hop := range hops {
			gw, _ := netip.AddrFromSlice(hop.Gw)
			i := slices.IndexFunc(l.nodes, func(n *Node) bool { return slices.Contains(n.Addrs.All(), gw.Unmap()) })
			if i < 0 {
				return nil, fmt.Errorf("the router sends %s to %q, which is no node: %s", vip, hop.Gw, r)
			}
			names = append(names, l.nodes[i].Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// routesGone waits until the router has no route to n, and says how long after
// begin that was.
func (l *Lab) routesGone(ctx context.Context, n *Node, begin time.Time) (time.Duration, error) {
	for _, vip := range VIPs.All() {
		for {
			hops, err := l.NextHops(vip)
			if err != nil {
				return 0, err
			}
			if !slices.Contains(hops, n.Name) {
				break
			}
			select {
			case <-ctx.Done():
				return 0, fmt.Errorf("the router still sends %s to %s: %w", vip, n.Name, ctx.Err())
			case <-time.After(time.Millisecond):
			}
		}
	}
	return time.Since(begin), nil
}

// DetectTime is how long after a backend's death a node may still send it new
// connections: until enough checks in a row have failed and all have heard.
func (l *Lab) DetectTime() time.Duration {
	return fall*checkInterval + checkTimeout + 500*time.Millisecond
}

// WaitReady waits until the system has settled: the router has a route to each
// node that runs, and every node agrees on the same table and on which backends
// are up, namely those that run.
func (l *Lab) WaitReady(ctx context.Context) error {
	for {
		for _, n := range l.nodes {
			if err := n.failed(); err != nil {
				return err
			}
		}
		err := l.settled(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the lab has not settled: %w: %w (logs in %s)", ctx.Err(), err, l.options.Dir)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// settled is nil, or says what WaitReady still waits for.
func (l *Lab) settled(ctx context.Context) error {
	var running []*Node
	var names []string
	for _, n := range l.nodes {
		if n.Running() {
			running, names = append(running, n), append(names, n.Name)
		}
	}
	for _, vip := range VIPs.All() {
		hops, err := l.NextHops(vip)
		if err != nil {
			return err
		}
		if !slices.Equal(hops, names) {
			return fmt.Errorf("the router sends %s to %v, not yet to %v", vip, hops, names)
		}
	}
	var first string
	for _, n := range running {
		digests, err := l.agrees(ctx, n)
		if err != nil {
			return err
		}
		if first == "" {
			first = digests
		}
		if digests != first {
			return fmt.Errorf("table digests of %s are %s, those of %s %s", running[0].Name, first, n.Name, digests)
		}
	}
	return nil
}

// agrees says whether the backends that run are those that n uses, and gives
// the digests of its tables.
func (l *Lab) agrees(ctx context.Context, n *Node) (string, error) {
	status, err := n.Status(ctx)
	if err != nil {
		return "", err
	}
	var digests []string
	for _, s := range status.Services {
		digests = append(digests, s.TableDigest)
		for _, b := range s.Backends {
			i := slices.IndexFunc(l.backends, func(o *Backend) bool { return o.Name == b.Name })
			if up := b.State == "up"; up != l.backends[i].Running() {
				return "", fmt.Errorf("%s holds %s to be %s", n.Name, b.Name, b.State)
			}
		}
	}
	return strings.Join(digests, " "), nil
}

// until waits until holds is true of the status of every node that runs.
func (l *Lab) until(ctx context.Context, within time.Duration, what string, holds func(*Node, admin.Status) bool) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		missing := ""
		for _, n := range l.nodes {
			if !n.Running() {
				continue
			}
			if st, err := n.Status(ctx); err != nil || !holds(n, st) {
				missing = n.Name
			}
		}
		if missing == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %v: %s; it does not hold on %s: %w", within, what, missing, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// WriteLogs writes the end of every log there is, for the eyes of whoever has
// to find out what went wrong.
func (l *Lab) WriteLogs(w io.Writer, lines int) {
	logs, _ := filepath.Glob(filepath.Join(l.options.Dir, "*.log")) // the pattern is good
	more, _ := filepath.Glob(filepath.Join(l.options.Dir, "router", "*.log"))
	for _, path := range append(logs, more...) {
		content, err := os.ReadFile(path)
		if err != nil {
			fmt.Fprintf(w, "--- %v\n", err)
			continue
		}
		fmt.Fprintf(w, "--- %s\n%s\n", path, tail(content, lines))
	}
}

func tail(content []byte, lines int) string {
	all := strings.Split(strings.TrimRight(string(content), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
