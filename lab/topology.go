package lab

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/internal/netns"
	"github.com/halfproxy/halfproxy/lb"
	"github.com/halfproxy/halfproxy/xdp"
)

// What stands where. The switch is a bridge in a namespace; every line is a
// veth pair, its far end named after who is there.
//
//	┌──────────────────┐
//	│ client           │
//	│   eth0           │ 192.168.1.1/24     2001:db8:1::1/64
//	└────┬─────────────┘
//	┌────┴─────────────┐
//	│   eth0           │ 192.168.1.254/24   2001:db8:1::254/64
//	│ router           │ VIPs: one next hop for each node that announces them
//	│   eth1           │ 10.3.0.254/24      2001:db8:3::254/64
//	└────┬─────────────┘
//	┌────┴─────────────────────────────────────────┐
//	│ router             switch                    │
//	│   lb1  lb2  …                b1  b2  …       │
//	└────┬────┬────────────────────┬───┬───────────┘
//	   ┌─┴────┴──┐               ┌─┴───┴───┐
//	   │ eth0    │               │ eth0    │
//	   │ lb1 …   │               │ b1 …    │ lo: 10.2.0.1  2001:db8:2::1 (the VIPs)
//	   └─────────┘               └─────────┘
//	   10.3.0.11/24 …            10.3.0.1/24 …
//	   2001:db8:3::11/64 …       2001:db8:3::b:1/64 …
//
// A request goes client, router, lb, backend; its answer goes backend, router,
// client: backends have the VIPs and route by way of the router, not of a node.
const (
	maxNodes    = 89 // up to 10.3.0.99
	maxBackends = 10 // up to 10.3.0.10: the nodes come next

	mtu = 1500
	// segmentMTU, of the router's, nodes' and backends' links, leaves room for
	// an outer header around a packet of 1500 bytes.
	segmentMTU = 1600
)

// Addrs are the two addresses that everybody here has.
type Addrs struct{ V4, V6 netip.Addr }

// VIPs are what the client asks for and the backends have on lo.
var VIPs = addrs("10.2.0.1", "2001:db8:2::1")

var (
	clientAddrs   = addrs("192.168.1.1", "2001:db8:1::1")
	clientGateway = addrs("192.168.1.254", "2001:db8:1::254")
	routerAddrs   = addrs("10.3.0.254", "2001:db8:3::254")
)

func addrs(v4, v6 string) Addrs {
	return Addrs{netip.MustParseAddr(v4), netip.MustParseAddr(v6)}
}

// nodeAddrs read alike: lb1 is 10.3.0.11 and 2001:db8:3::11.
func nodeAddrs(i int) Addrs {
	return addrs(fmt.Sprintf("10.3.0.%d", 10+i), fmt.Sprintf("2001:db8:3::%d", 10+i))
}

func backendAddrs(i int) Addrs {
	return addrs(fmt.Sprintf("10.3.0.%d", i), fmt.Sprintf("2001:db8:3::b:%d", i))
}

// All gives both.
func (a Addrs) All() []netip.Addr { return []netip.Addr{a.V4, a.V6} }

// on gives both with the length of their link's prefix.
func (a Addrs) on(bits4, bits6 int) []string {
	return []string{netip.PrefixFrom(a.V4, bits4).String(), netip.PrefixFrom(a.V6, bits6).String()}
}

// defaultRoute leads out of ns by way of gateway. packetSize is the biggest
// packet to send there, 0 for what the link takes.
func defaultRoute(ns *netns.NS, gateway Addrs, packetSize int) error {
	return ns.Do(func() error {
		for _, gw := range gateway.All() {
			if err := netlink.RouteReplace(&netlink.Route{Gw: gw.AsSlice(), MTU: packetSize}); err != nil {
				return fmt.Errorf("default route via %s in %s: %w", gw, ns.Name, err)
			}
		}
		return nil
	})
}

// namespace makes one of the lab's namespaces, whatever the host's own settings
// are: a new one starts with those.
func (l *Lab) namespace(name string) (*netns.NS, error) {
	ns, err := netns.New(l.options.Prefix + name)
	if err != nil {
		return nil, err
	}
	l.onClose(func() error {
		// Visitors may have started something here too.
		return errors.Join(killAll(filepath.Join(netnsDir, ns.Name)), ns.Close())
	})
	return ns, ns.Do(func() error {
		return sysctls(
			"net/ipv4/conf/all/rp_filter", "0",
			"net/ipv4/conf/default/rp_filter", "0",
			"net/ipv6/conf/default/accept_ra", "0",
			"net/ipv6/conf/all/disable_ipv6", "0",
		)
	})
}

// plug joins ns to the switch: its eth0 or eth1 to a port called port.
func (l *Lab) plug(ns *netns.NS, link, port string) error {
	if err := ns.Veth(link, l.switchNS, port, segmentMTU); err != nil {
		return err
	}
	return l.switchNS.Do(func() error {
		bridge, err := netlink.LinkByName("bridge")
		if err != nil {
			return err
		}
		p, err := netlink.LinkByName(port)
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(p, bridge)
	})
}

func (l *Lab) buildSwitch() error {
	var err error
	if l.switchNS, err = l.namespace("switch"); err != nil {
		return err
	}
	return l.switchNS.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = "bridge", segmentMTU
		snooping := false // nobody queries for multicast groups here
		bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
		if err := netlink.LinkAdd(bridge); err != nil {
			return fmt.Errorf("create bridge: %w", err)
		}
		return netlink.LinkSetUp(bridge)
	})
}

func (l *Lab) buildRouter() error {
	ns, err := l.namespace("router")
	if err != nil {
		return err
	}
	l.routerNS = ns
	if err := ns.Do(func() error {
		return sysctls(
			"net/ipv4/ip_forward", "1",
			"net/ipv6/conf/all/forwarding", "1",
			// Spread flows, not pairs of hosts, over the next hops.
			"net/ipv4/fib_multipath_hash_policy", "1",
			"net/ipv6/fib_multipath_hash_policy", "1",
			"net/ipv4/conf/all/send_redirects", "0",
			"net/ipv4/conf/default/send_redirects", "0",
		)
	}); err != nil {
		return err
	}
	if err := l.plug(ns, "eth1", "router"); err != nil {
		return err
	}
	return errors.Join(
		ns.Address("eth1", routerAddrs.on(24, 64)...),
		ns.Do(discardRest),
	)
}

// discardRest drops what goes to the VIPs' networks while no route to the VIP
// is there, as a router does that announces them further on as a whole. FRR 8.4
// changes an IPv6 route by removing it and adding it anew: what comes in
// between would be told that there is no route, and a client would give up.
func discardRest() error {
	for _, vip := range VIPs.All() {
		route := kernelRoute(netip.PrefixFrom(vip, vip.BitLen()-8).Masked())
		route.Type, route.Protocol = unix.RTN_BLACKHOLE, unix.RTPROT_STATIC
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("discard route %s: %w", route.Dst, err)
		}
	}
	return nil
}

func (l *Lab) buildClient() error {
	ns, err := l.namespace("client")
	if err != nil {
		return err
	}
	l.clientNS = ns
	if err := ns.Veth("eth0", l.routerNS, "eth0", mtu); err != nil {
		return err
	}
	return errors.Join(
		ns.Address("eth0", clientAddrs.on(24, 64)...),
		l.routerNS.Address("eth0", clientGateway.on(24, 64)...),
		defaultRoute(ns, clientGateway, 0),
	)
}

// buildNode makes the namespace of node i and its link. The switch's port
// carries a program too: veth delivers what a program sends back only to an
// end that has one.
func (l *Lab) buildNode(name string, i int) (*netns.NS, error) {
	ns, err := l.namespace(name)
	if err != nil {
		return nil, err
	}
	if err := l.plug(ns, "eth0", name); err != nil {
		return nil, err
	}
	if err := errors.Join(
		ns.Address("eth0", nodeAddrs(i).on(24, 64)...),
		defaultRoute(ns, routerAddrs, 0),
	); err != nil {
		return nil, err
	}
	return ns, l.attach(l.switchNS, func() (io.Closer, error) { return xdp.AttachPass(name) })
}

// buildBackend makes the namespace of backend i, its link and its VIPs, and
// with ipip the program that takes the outer header off.
func (l *Lab) buildBackend(name string, i int) (*netns.NS, error) {
	ns, err := l.namespace(name)
	if err != nil {
		return nil, err
	}
	if err := ns.Do(func() error {
		// The VIPs are on every backend: none may answer ARP for them.
		return sysctls(
			"net/ipv4/conf/all/arp_ignore", "1",
			"net/ipv4/conf/all/arp_announce", "2",
		)
	}); err != nil {
		return nil, err
	}
	if err := l.plug(ns, "eth0", name); err != nil {
		return nil, err
	}
	if err := errors.Join(
		ns.Address("eth0", backendAddrs(i).on(24, 64)...),
		ns.Address("lo", VIPs.on(32, 128)...),
		defaultRoute(ns, routerAddrs, mtu), // what fits the client's link too
	); err != nil {
		return nil, err
	}
	if l.options.Forward == lb.L2 {
		return ns, nil
	}
	var sources []netip.Prefix
	for i := range l.options.Nodes {
		for _, a := range nodeAddrs(i + 1).All() {
			sources = append(sources, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return ns, l.attach(ns, func() (io.Closer, error) {
		return xdp.AttachDecap(xdp.DecapConfig{
			Interfaces: []string{"eth0"}, Tunnels: xdp.Tunnels{IPIP: true, GRE: true, GUE: true}, Sources: sources,
			VIPs: []lb.VIP{lb.AddrVIP(VIPs.V4), lb.AddrVIP(VIPs.V6)},
		})
	})
}

// attach attaches a program in ns for as long as the lab stands.
func (l *Lab) attach(ns *netns.NS, attach func() (io.Closer, error)) error {
	return ns.Do(func() error {
		program, err := attach()
		if err != nil {
			return err
		}
		l.onClose(program.Close)
		return nil
	})
}

// setPort does something to the switch's port called name.
func (l *Lab) setPort(name string, set func(netlink.Link) error) error {
	return l.switchNS.Do(func() error {
		port, err := netlink.LinkByName(name)
		if err == nil {
			err = set(port)
		}
		if err != nil {
			return fmt.Errorf("port %s of the switch: %w", name, err)
		}
		return nil
	})
}

// sysctls sets names to values, given in pairs, in the calling thread's
// namespace.
func sysctls(pairs ...string) error {
	for i := 0; i < len(pairs); i += 2 {
		if err := netns.Sysctl(pairs[i], pairs[i+1]); err != nil {
			return err
		}
	}
	return nil
}
