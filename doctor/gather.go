package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/lb"
)

// patience is how long a neighbour or a router may take to answer. The kernel
// asks for a neighbour once a second, and may have done so just before.
const patience = 1500 * time.Millisecond

// gather collects the facts about this host that cfg is about. All sockets are
// opened by the calling thread, in its network namespace.
func gather(ctx context.Context, cfg Config) host {
	h := host{root: os.Geteuid() == 0, cpus: runtime.NumCPU(), pageSize: os.Getpagesize()}
	h.gatherSystem()
	h.noBPFFS = cfg.Pins != "" && h.root && !inBPFFS(cfg.Pins)
	links, err := netlink.LinkList()
	if err != nil {
		h.unknown = append(h.unknown, fmt.Sprintf("interfaces, routes and VIPs: list interfaces: %v", err))
		return h
	}
	byIndex := make(map[int]*netlink.LinkAttrs)
	for _, l := range links {
		byIndex[l.Attrs().Index] = l.Attrs()
		if isEthernet(l.Attrs()) {
			h.others = append(h.others, l.Attrs().Name)
		}
	}
	h.gatherAddresses(byIndex)
	h.gatherLinks(cfg, byIndex)
	h.exits4, h.exits6 = namesOf(outgoing(netlink.FAMILY_V4)), namesOf(outgoing(netlink.FAMILY_V6))
	h.gatherWays(ctx, cfg, byIndex)
	h.gatherVIPs(cfg, byIndex)
	h.gatherListeners(cfg)
	h.gatherNames(ctx, cfg)
	h.gatherPeers(ctx, cfg)
	return h
}

func (h *host) gatherSystem() {
	var uname unix.Utsname
	if err := unix.Uname(&uname); err == nil {
		h.release = unix.ByteSliceToString(uname.Release[:])
	}
	if _, err := fmt.Sscanf(h.release, "%d.%d", &h.major, &h.minor); err != nil {
		h.unknown = append(h.unknown, fmt.Sprintf("the kernel's version: %q", h.release))
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err == nil {
		h.capabilities = uint64(data[1].Effective)<<32 | uint64(data[0].Effective)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err == nil {
		h.memlock = limit.Cur
	}
}

func (h *host) gatherAddresses(byIndex map[int]*netlink.LinkAttrs) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		h.unknown = append(h.unknown, fmt.Sprintf("this host's addresses: %v", err))
	}
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.IP)
		l := byIndex[a.LinkIndex]
		if !ok || l == nil {
			continue
		}
		bits, _ := a.Mask.Size()
		h.addresses = append(h.addresses, address{netip.PrefixFrom(ip.Unmap(), bits), l.Name})
	}
}

// outgoing gives the interfaces that the default routes of a family leave by.
func outgoing(family int) []*netlink.LinkAttrs {
	routes, err := netlink.RouteList(nil, family)
	if err != nil {
		return nil
	}
	var list []*netlink.LinkAttrs
	for _, r := range routes {
		if r.Dst != nil {
			if bits, _ := r.Dst.Mask.Size(); bits > 0 {
				continue
			}
		}
		hops := []int{r.LinkIndex}
		for _, hop := range r.MultiPath {
			hops = append(hops, hop.LinkIndex)
		}
		for _, index := range hops {
			l, err := netlink.LinkByIndex(index)
			if err == nil && !slices.ContainsFunc(list, func(known *netlink.LinkAttrs) bool { return known.Index == index }) {
				list = append(list, l.Attrs())
			}
		}
	}
	return list
}

func namesOf(links []*netlink.LinkAttrs) (names []string) {
	for _, l := range links {
		names = append(names, l.Name)
	}
	return names
}

// rpFilter is the value that counts for an interface.
func rpFilter(name string) (value int) {
	for _, of := range []string{"all", name} {
		text, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + of + "/rp_filter")
		if err != nil {
			continue
		}
		if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			value = max(value, n)
		}
	}
	return value
}

// gatherWays looks up the routes to all backends, and has the kernel ask for
// those next hops that it does not know the link-layer address of.
func (h *host) gatherWays(ctx context.Context, cfg Config, byIndex map[int]*netlink.LinkAttrs) {
	for _, s := range cfg.Services {
		for _, b := range s.Backends {
			w := way{service: s.Name, backend: b.Name, forward: s.Forward, address: b.Address}
			for _, vip := range s.VIPs {
				w.ipv4 = w.ipv4 || vip.Addr().Is4()
				w.ipv6 = w.ipv6 || vip.Addr().Is6()
			}
			w.look(byIndex)
			h.ways = append(h.ways, w)
		}
	}
	h.resolve(ctx, byIndex)
}

// look asks the kernel for the route.
func (w *way) look(byIndex map[int]*netlink.LinkAttrs) {
	found, err := netlink.RouteGetWithOptions(w.address.AsSlice(), &netlink.RouteGetOptions{Oif: w.address.Zone()})
	if err != nil || len(found) == 0 {
		w.noRoute = whyNoRoute(err)
		return
	}
	to := found[0]
	l := byIndex[to.LinkIndex]
	switch {
	case to.Type == unix.RTN_LOCAL:
		w.local = true
		return
	case to.Type != unix.RTN_UNICAST || l == nil:
		w.noRoute = "none that leads anywhere"
		return
	}
	w.hop = hop{address: w.address.WithZone(""), link: l.Name}
	if gateway, ok := netip.AddrFromSlice(to.Gw); ok {
		w.hop.address = gateway.Unmap()
	} else if via, ok := to.Via.(*netlink.Via); ok { // IPv4 by way of an IPv6 gateway
		if gateway, ok := netip.AddrFromSlice(via.Addr); ok {
			w.hop.address = gateway.Unmap()
		}
	}
	w.onLink = w.hop.address == w.address.WithZone("")
	w.ethernet = isEthernet(l)
	w.linkMTU, w.mtu = l.MTU, l.MTU
	if to.MTU > 0 {
		w.mtu = min(w.mtu, to.MTU)
		// What was learned of the path is not in the route that matches.
		entry, err := netlink.RouteGetWithOptions(w.address.AsSlice(), &netlink.RouteGetOptions{Oif: w.address.Zone(), FIBMatch: true})
		w.routeMTU = err == nil && len(entry) > 0 && entry[0].MTU > 0
	}
}

// whyNoRoute puts the kernel's answer into words (rtnetlink(7), fib_props).
func whyNoRoute(err error) string {
	switch {
	case errors.Is(err, unix.EINVAL):
		return "a blackhole route swallows it"
	case errors.Is(err, unix.EHOSTUNREACH):
		return "a route says that it is unreachable"
	case errors.Is(err, unix.EACCES):
		return "a route prohibits it"
	case err != nil:
		return err.Error()
	}
	return "none"
}

// resolve finds out which next hops are silent.
func (h *host) resolve(ctx context.Context, byIndex map[int]*netlink.LinkAttrs) {
	states := neighbours(byIndex)
	open := make(map[hop]bool)
	for _, w := range h.ways {
		if w.ethernet && states[w.hop]&usable == 0 && !open[w.hop] {
			open[w.hop] = true
			poke(w.address)
		}
	}
	for deadline := time.Now().Add(patience); len(open) > 0 && time.Now().Before(deadline) && ctx.Err() == nil; {
		time.Sleep(20 * time.Millisecond)
		states = neighbours(byIndex)
		for hop := range open {
			if states[hop]&usable != 0 {
				delete(open, hop)
			}
		}
	}
	said := make(map[hop]bool)
	for i := range h.ways {
		hop := h.ways[i].hop
		switch {
		case !open[hop]:
		case states[hop]&(unix.NUD_INCOMPLETE|unix.NUD_FAILED) != 0:
			h.ways[i].hop.silent = true
		case !said[hop]: // a firewall of ours may keep the datagram back
			said[hop] = true
			h.unknown = append(h.unknown, fmt.Sprintf("whether next hop %s on %s answers: the kernel did not ask for it", hop.address, hop.link))
		}
	}
}

// usable are the states in which a neighbour has a link-layer address.
const usable = unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE | unix.NUD_PERMANENT

// neighbours gives the states of all that the kernel knows.
func neighbours(byIndex map[int]*netlink.LinkAttrs) map[hop]int {
	states := make(map[hop]int)
	list, err := netlink.NeighList(0, netlink.FAMILY_ALL)
	if err != nil {
		return states // resolve says that it does not know
	}
	for _, n := range list {
		if ip, ok := netip.AddrFromSlice(n.IP); ok && byIndex[n.LinkIndex] != nil {
			states[hop{address: ip.Unmap(), link: byIndex[n.LinkIndex].Name}] = n.State
		}
	}
	return states
}

// poke sends a datagram that makes the kernel ask for the next hop. An entry
// that was asked for over netlink would lose the flags that a running node gave
// to it.
func poke(a netip.Addr) {
	const discard = 9 // RFC 863
	conn, err := net.Dial("udp", netip.AddrPortFrom(a, discard).String())
	if err != nil {
		return
	}
	defer conn.Close()
	conn.Write([]byte{0}) //nolint:errcheck // resolve sees what came of it
}

func (h *host) gatherVIPs(cfg Config, byIndex map[int]*netlink.LinkAttrs) {
	for _, every := range everyVIP(cfg.Services) {
		v := vip{VIP: every}
		for _, own := range h.addresses {
			if v.Contains(own.Addr()) {
				v.on = append(v.on, own)
			}
		}
		v.local, v.route = ownRoutes(v.VIP, byIndex)
		h.vips = append(h.vips, v)
	}
}

// everyVIP is each VIP once.
func everyVIP(services []lb.Service) []lb.VIP {
	var list []lb.VIP
	for _, s := range services {
		list = append(list, s.VIPs...)
	}
	slices.SortFunc(list, lb.VIP.Compare)
	return slices.Compact(list)
}

// ownRoutes finds what this host's routes do with a VIP: a local one that takes
// it in, one of its own that sends it somewhere.
func ownRoutes(vip lb.VIP, byIndex map[int]*netlink.LinkAttrs) (local, away string) {
	found, err := netlink.RouteGetWithOptions(vip.Addr().AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
	if err == nil && len(found) > 0 && found[0].Type == unix.RTN_LOCAL && found[0].Dst != nil {
		local = "local " + found[0].Dst.String()
		if l := byIndex[found[0].LinkIndex]; l != nil {
			local += " dev " + l.Name
		}
		// The kernel may look for both of these in one, and names that.
		if table := found[0].Table; table != unix.RT_TABLE_LOCAL && table != unix.RT_TABLE_MAIN {
			local += fmt.Sprintf(" table %d", table)
		}
	}
	family := netlink.FAMILY_V4
	if vip.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	alone := &net.IPNet{IP: vip.Addr().AsSlice(), Mask: net.CIDRMask(vip.Bits(), vip.Addr().BitLen())}
	routes, err := netlink.RouteListFiltered(family, &netlink.Route{Dst: alone}, netlink.RT_FILTER_DST)
	if err != nil {
		return local, ""
	}
	for _, r := range routes {
		if r.Type != unix.RTN_UNICAST || r.Protocol == unix.RTPROT_KERNEL || r.Protocol == lb.KernelProtocol {
			continue
		}
		away = alone.String()
		if r.Gw != nil {
			away += " via " + r.Gw.String()
		}
		if l := byIndex[r.LinkIndex]; l != nil {
			away += " dev " + l.Name
		}
		if r.Priority != 0 {
			away += fmt.Sprintf(" metric %d", r.Priority)
		}
		return local, away
	}
	return local, ""
}

func (h *host) gatherNames(ctx context.Context, cfg Config) {
	ctx, cancel := context.WithTimeout(ctx, 2*patience) // with a second try
	defer cancel()
	for _, join := range cfg.Join {
		server, _, err := net.SplitHostPort(join)
		if err != nil {
			server = join
		}
		if _, err := netip.ParseAddr(server); err != nil {
			h.names = append(h.names, name{name: server})
		}
	}
	var all sync.WaitGroup
	for i := range h.names {
		all.Go(func() {
			_, err := net.DefaultResolver.LookupNetIP(ctx, "ip", h.names[i].name)
			if dns, ok := errors.AsType[*net.DNSError](err); ok {
				err = errors.New(dns.Err)
			}
			h.names[i].err = err
		})
	}
	all.Wait()
}
