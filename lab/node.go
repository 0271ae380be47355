package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/admin"
	"github.com/halfproxy/halfproxy/bfd"
	"github.com/halfproxy/halfproxy/internal/netns"
)

// Node is a load balancer: a process of the real binary in a namespace.
type Node struct {
	Name string
	Addrs
	Socket string // of the node's admin API

	lab    *Lab
	ns     *netns.NS
	config string
	log    string

	mu      sync.Mutex
	process *process // the latest; nil before the first
	wanted  bool     // it is to run: nobody has ended it
}

func (l *Lab) buildNodes() error {
	for i := range l.options.Nodes {
		name := fmt.Sprintf("lb%d", i+1)
		ns, err := l.buildNode(name, i+1)
		if err != nil {
			return err
		}
		path := func(suffix string) string { return filepath.Join(l.options.Dir, name+suffix) }
		l.nodes = append(l.nodes, &Node{
			Name: name, Addrs: nodeAddrs(i + 1), Socket: path(".sock"),
			lab: l, ns: ns, config: path(".yaml"), log: path(".log"),
		})
	}
	return nil
}

func (l *Lab) startNodes() error {
	if err := l.writeKey(); err != nil {
		return err
	}
	for i := range l.nodes {
		if err := l.writeConfig(i); err != nil {
			return err
		}
	}
	for _, n := range l.nodes {
		if err := n.Start(); err != nil {
			return err
		}
	}
	return nil
}

// Start starts the process. One that runs already is left alone.
func (n *Node) Start() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process != nil && n.process.running() {
		return nil
	}
	p, err := startProcess(n.ns, n.log, nil, n.lab.options.Binary, "run", "--config", n.config, "--pin", pinDir(n.lab.options))
	if err != nil {
		return err
	}
	n.process, n.wanted = p, true
	return nil
}

// Kill ends the process as a crash does (SIGKILL) and returns when it is gone.
// Its program stays, and forwards what still comes.
func (n *Node) Kill() error {
	return n.dismiss().kill()
}

// Terminate asks the process to leave in good order (SIGTERM). Wait waits for
// its end.
func (n *Node) Terminate() error {
	return n.dismiss().signal(syscall.SIGTERM)
}

// Restart has the process end for the next one (SIGUSR2), and starts that.
func (n *Node) Restart(ctx context.Context) error {
	if err := n.dismiss().signal(syscall.SIGUSR2); err != nil {
		return err
	}
	if err := n.Wait(ctx); err != nil {
		return err
	}
	return n.Start()
}

// Wait waits for the process to end, and gives an error if it failed.
func (n *Node) Wait(ctx context.Context) error {
	n.mu.Lock()
	p := n.process
	n.mu.Unlock()
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("%s has not ended: %w", n.Name, ctx.Err())
	}
}

// Running tells whether the process runs, and is to go on running.
func (n *Node) Running() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.wanted && n.process.running()
}

// failed tells of a process that has ended though it was to run.
func (n *Node) failed() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process == nil || !n.wanted || n.process.running() {
		return nil
	}
	return n.process.failure(fmt.Sprintf("on %s ended: %v", n.Name, n.process.err))
}

// Status asks the node how things stand.
func (n *Node) Status(ctx context.Context) (admin.Status, error) {
	return admin.NewClient(n.Socket).Status(ctx)
}

// CutLink takes the node off the switch without a word, as a power loss does:
// the router is not told. MendLink undoes it.
func (n *Node) CutLink() error { return n.lab.setPort(n.Name, netlink.LinkSetDown) }

// MendLink undoes CutLink.
func (n *Node) MendLink() error { return n.lab.setPort(n.Name, netlink.LinkSetUp) }

// CutMembers takes the node's way to other nodes away, and nothing else. MendMembers
// undoes it.
func (n *Node) CutMembers(others ...*Node) error { return n.setWays(netlink.RouteAdd, others) }

// MendMembers undoes CutMembers.
func (n *Node) MendMembers(others ...*Node) error { return n.setWays(netlink.RouteDel, others) }

func (n *Node) setWays(change func(*netlink.Route) error, others []*Node) error {
	var to []netip.Addr
	for _, other := range others {
		to = append(to, other.V4) // members gossip by IPv4
	}
	return n.blackhole(change, to...)
}

// blackhole changes routes of the node that lead nowhere.
func (n *Node) blackhole(change func(*netlink.Route) error, to ...netip.Addr) error {
	return n.ns.Do(func() error {
		for _, a := range to {
			dst := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
			if err := change(&netlink.Route{Dst: dst, Type: unix.RTN_BLACKHOLE}); err != nil {
				return fmt.Errorf("blackhole %s on %s: %w", a, n.Name, err)
			}
		}
		return nil
	})
}

// dismiss gives the process, which is not to run any longer.
func (n *Node) dismiss() *process {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.wanted = false
	return n.process
}

func (n *Node) stop() error {
	var err error
	if p := n.dismiss(); p != nil {
		err = p.stop()
	}
	// It outlives a node that was killed.
	return errors.Join(err, bfd.Bye(bfd.Socket(n.Socket)))
}
