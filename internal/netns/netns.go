// Package netns makes network namespaces and runs code and programs in them,
// for the lab and for tests. It needs root.
package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/internal/ethtool"
)

// NS is a named network namespace: `ip netns exec NAME` works as well.
type NS struct {
	Name string

	mu     sync.RWMutex // a client that gave up leaves a dial behind, which may outlive the namespace
	handle netns.NsHandle
}

// New makes the namespace name, with lo up and IPv6 addresses usable at once.
// A namespace of that name that exists already is an error.
func New(name string) (*NS, error) {
	if _, err := os.Stat(filepath.Join("/run/netns", name)); err == nil {
		return nil, fmt.Errorf("network namespace %s exists: remove it with `ip netns del %s`", name, name)
	}
	n := &NS{Name: name}
	err := onThread(func() error {
		var err error
		// Moves this thread into the new namespace; onThread throws it away.
		n.handle, err = netns.NewNamed(name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("create network namespace %s: %w", name, err)
	}
	if err := n.Do(prepare); err != nil {
		return nil, errors.Join(fmt.Errorf("prepare network namespace %s: %w", name, err), n.Close())
	}
	return n, nil
}

// prepare runs before any link comes up: duplicate address detection would
// hold every IPv6 address back for seconds.
func prepare() error {
	for _, conf := range []string{"all", "default"} {
		if err := Sysctl("net/ipv6/conf/"+conf+"/accept_dad", "0"); err != nil {
			return err
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// Close removes the namespace. What runs in it goes on until it ends.
func (n *NS) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return errors.Join(n.handle.Close(), netns.DeleteNamed(n.Name))
}

// Do runs fn on a thread in the namespace. Goroutines that fn starts are not
// in it; sockets that fn opens stay in it, whoever uses them.
func (n *NS) Do(fn func() error) error {
	return onThread(func() error {
		if err := n.enter(); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", n.Name, err)
		}
		return fn()
	})
}

func (n *NS) enter() error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return netns.Set(n.handle)
}

// onThread runs fn on a thread of its own that ends with it: a goroutine that
// returns locked takes its thread along, so no other ever sees its namespace.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- fn()
	}()
	return <-done
}

// DialContext connects from the namespace; it fits http.Transport.
func (n *NS) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := n.Do(func() error {
		var d net.Dialer
		var err error
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen opens a stream listener in the namespace.
func (n *NS) Listen(network, address string) (net.Listener, error) {
	var l net.Listener
	err := n.Do(func() error {
		var err error
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}

// ListenPacket opens a datagram socket in the namespace.
func (n *NS) ListenPacket(network, address string) (net.PacketConn, error) {
	var c net.PacketConn
	err := n.Do(func() error {
		var err error
		c, err = net.ListenPacket(network, address)
		return err
	})
	return c, err
}

// Start starts cmd in the namespace, with the mounts of this process, so that
// the bpffs it sees is ours.
func (n *NS) Start(cmd *exec.Cmd) error { return n.Do(cmd.Start) }

// Sysctl writes value to /proc/sys/name in the namespace of the calling
// thread.
func Sysctl(name, value string) error {
	path := filepath.Join("/proc/sys", name)
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set sysctl %s to %s: %w", name, value, err)
	}
	return nil
}

// Veth makes a veth pair with one end in n and the other in peer, both up,
// with transmit checksum offload off at peer's end: a native XDP program at
// n's end that sends a packet on loses the kernel's note that its checksum is
// still to be filled in, so it has to be there when the packet arrives.
func (n *NS) Veth(name string, peer *NS, peerName string, mtu int) error {
	err := n.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = name, mtu
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: peerName, PeerNamespace: netlink.NsFd(int(peer.handle))}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		return netlink.LinkSetUp(veth)
	})
	if err == nil {
		err = peer.Do(func() error {
			link, err := netlink.LinkByName(peerName)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetMTU(link, mtu); err != nil {
				return err
			}
			if err := ethtool.ChecksumOff(peerName); err != nil {
				return err
			}
			return netlink.LinkSetUp(link)
		})
	}
	if err != nil {
		return fmt.Errorf("veth %s in %s to %s in %s: %w", name, n.Name, peerName, peer.Name, err)
	}
	return nil
}

// Address gives the link an address in CIDR notation.
func (n *NS) Address(link string, cidr ...string) error {
	return n.Do(func() error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return fmt.Errorf("link %s in %s: %w", link, n.Name, err)
		}
		for _, c := range cidr {
			addr, err := netlink.ParseAddr(c)
			if err != nil {
				return err
			}
			if addr.IP.To4() == nil {
				addr.Flags = unix.IFA_F_NODAD // without it even lo's is not usable at once
			}
			if err := netlink.AddrAdd(l, addr); err != nil {
				return fmt.Errorf("address %s on %s in %s: %w", c, link, n.Name, err)
			}
		}
		return nil
	})
}

// Route sends destination, in CIDR notation, by way of gateway.
func (n *NS) Route(destination, gateway string) error {
	return n.Do(func() error {
		_, dst, err := net.ParseCIDR(destination)
		if err != nil {
			return err
		}
		if err := netlink.RouteReplace(&netlink.Route{Dst: dst, Gw: net.ParseIP(gateway)}); err != nil {
			return fmt.Errorf("route %s via %s in %s: %w", destination, gateway, n.Name, err)
		}
		return nil
	})
}
