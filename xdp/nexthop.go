package xdp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/lb"
)

// Bits of a backend's next_hop above the MAC address: HOP_* in bpf/types.h.
const (
	hopResolved = 1 << 48
	hopPathBit  = 49
	hopIPv4     = 1 << 50
	hopIPv6     = 1 << 51
	hopGRE      = 1 << 52
	hopGUE      = 1 << 53
	hopChecksum = 1 << 54
	hopVLAN     = 1 << 55
	hopLifeBit  = 56

	vlan8021AD = 0x1000 // of a path's vlan
)

const (
	// resync is how often everything is looked at again, events or not. It is
	// also how often a neighbour is asked for where the kernel cannot be told
	// to keep it (before 5.16): well under the 30 s that one counts as reachable.
	resync = 10 * time.Second
	// calm is how long events are gathered before routes are looked up again.
	calm = 50 * time.Millisecond
)

// nextHops knows the ways to the backends' addresses, as the kernel's routes
// and neighbours show them.
type nextHops struct {
	netlink *netlink.Handle // nil: no way is ever found
	log     *slog.Logger

	interfaces []int // that carry VIP traffic
	links      map[int]netlink.Link
	addresses  map[linkFamily]netip.Addr // that the node has on its links, one of each family
	neighbours map[neighbour][6]byte     // those with a usable MAC address
	permanent  map[neighbour]bool        // set by an administrator: left alone
	routes     map[netip.Addr]*route     // to every backend's address
	kept       map[neighbour]bool        // that we had the kernel keep, or a process before
	inherited  bool                      // those of a process before are known
}

// linkFamily is what a link has addresses for.
type linkFamily struct {
	ifindex int
	ipv4    bool
}

// neighbour is an address on a link.
type neighbour struct {
	ifindex int
	address netip.Addr // without a zone
}

// route is the way to a backend's address.
type route struct {
	address  netip.Addr
	backends map[*backend]struct{}

	looked bool      // the rest was looked up
	err    error     // there is no way
	via    neighbour // the backend itself or a gateway
	source netip.Addr
	own4   netip.Addr // addresses of the node to ask VIPs from on this way
	own6   netip.Addr
	out    int     // interface it leaves by: of a VLAN the one below
	vlan   uint16  // tag, as in bpf/types.h; 0: none
	mac    [6]byte // of the interface that the route names
	mtu    int
}

func newNextHops(h *netlink.Handle, log *slog.Logger) *nextHops {
	return &nextHops{
		netlink:    h,
		log:        log,
		neighbours: make(map[neighbour][6]byte),
		permanent:  make(map[neighbour]bool),
		routes:     make(map[netip.Addr]*route),
		kept:       make(map[neighbour]bool),
	}
}

// join has the way to the backend's address looked after.
func (n *nextHops) join(b *backend) {
	r := n.routes[b.address]
	if r == nil {
		r = &route{address: b.address, backends: make(map[*backend]struct{})}
		n.routes[b.address] = r
	}
	r.backends[b] = struct{}{}
}

// leave ends that.
func (n *nextHops) leave(b *backend) {
	r := n.routes[b.address]
	if r == nil {
		return
	}
	delete(r.backends, b)
	if len(r.backends) == 0 {
		delete(n.routes, b.address)
	}
}

// read takes in the kernel's links, addresses and neighbours.
func (n *nextHops) read() ([]netlink.Link, error) {
	links, err := n.netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	n.links = make(map[int]netlink.Link)
	for _, l := range links {
		n.links[l.Attrs().Index] = l
	}
	if err := errors.Join(n.readAddresses(), n.inherit()); err != nil {
		return nil, err
	}
	clear(n.neighbours)
	clear(n.permanent)
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := n.netlink.NeighList(0, family)
		if err != nil {
			return nil, fmt.Errorf("list neighbours: %w", err)
		}
		for _, entry := range list {
			n.learn(entry, false)
		}
	}
	return links, nil
}

// readAddresses takes in those that others may reach the node by and that last.
func (n *nextHops) readAddresses() error {
	list, err := n.netlink.AddrList(nil, unix.AF_UNSPEC)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	n.addresses = make(map[linkFamily]netip.Addr)
	const passing = unix.IFA_F_TEMPORARY | unix.IFA_F_DEPRECATED | unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED
	for _, entry := range list {
		a, ok := netip.AddrFromSlice(entry.IP)
		if !ok || !a.Unmap().IsGlobalUnicast() || a.Is6() && entry.Flags&passing != 0 {
			continue
		}
		key := linkFamily{entry.LinkIndex, a.Unmap().Is4()}
		if !n.addresses[key].IsValid() {
			n.addresses[key] = a.Unmap()
		}
	}
	return nil
}

// learn takes in one entry of the neighbour table. It says which one it was and
// whether that changed anything.
func (n *nextHops) learn(entry netlink.Neigh, deleted bool) (neighbour, bool) {
	address, ok := netip.AddrFromSlice(entry.IP)
	if !ok || entry.Flags&netlink.NTF_PROXY != 0 { // a proxy entry is an address that we answer for
		return neighbour{}, false
	}
	key := neighbour{entry.LinkIndex, address.Unmap()}
	// What is being probed again keeps its address until that fails.
	const usable = unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE | unix.NUD_PERMANENT
	before, known := n.neighbours[key]
	delete(n.permanent, key)
	if deleted || entry.State&usable == 0 || len(entry.HardwareAddr) != 6 {
		delete(n.neighbours, key)
		return key, known
	}
	if entry.State&unix.NUD_PERMANENT != 0 {
		n.permanent[key] = true
	}
	n.neighbours[key] = [6]byte(entry.HardwareAddr)
	return key, !known || before != n.neighbours[key]
}

// look finds the route to r's address.
func (n *nextHops) look(r *route) {
	*r = route{address: r.address, backends: r.backends, looked: true}
	found, err := n.netlink.RouteGetWithOptions(r.address.AsSlice(), &netlink.RouteGetOptions{Oif: r.address.Zone()})
	if err == nil && len(found) == 0 {
		err = unix.ENETUNREACH
	}
	if err != nil {
		r.err = fmt.Errorf("no route to %s: %w", r.address, err)
		return
	}
	to := found[0]
	link := n.links[to.LinkIndex]
	var attrs netlink.LinkAttrs
	if link != nil {
		attrs = *link.Attrs()
	}
	switch {
	case to.Type == unix.RTN_LOCAL:
		r.err = fmt.Errorf("%s is an address of this node: a backend is another host", r.address)
		return
	case to.Type != unix.RTN_UNICAST || link == nil:
		r.err = fmt.Errorf("no route to %s", r.address)
		return
	case len(attrs.HardwareAddr) != 6:
		r.err = fmt.Errorf("the way to %s leaves by %s, which is no Ethernet interface", r.address, attrs.Name)
		return
	}
	if r.out, r.vlan, r.err = n.below(link); r.err != nil {
		r.err = fmt.Errorf("the way to %s leaves by %s: %w", r.address, attrs.Name, r.err)
		return
	}
	r.via = neighbour{to.LinkIndex, r.address.WithZone("")}
	if gateway, ok := netip.AddrFromSlice(to.Gw); ok {
		r.via.address = gateway.Unmap()
	} else if via, ok := to.Via.(*netlink.Via); ok { // IPv4 by way of an IPv6 gateway
		if gateway, ok := netip.AddrFromSlice(via.Addr); ok {
			r.via.address = gateway.Unmap()
		}
	}
	if source, ok := netip.AddrFromSlice(to.Src); ok {
		r.source = source.Unmap()
	}
	r.own4, r.own6 = n.own(r, true), n.own(r, false)
	r.mac = [6]byte(attrs.HardwareAddr)
	r.mtu = attrs.MTU
	if to.MTU > 0 {
		r.mtu = min(r.mtu, to.MTU)
	}
}

// below gives the interface that frames by a link leave the host by, and their tag:
// XDP sends by no VLAN device.
func (n *nextHops) below(link netlink.Link) (ifindex int, vlan uint16, err error) {
	device, tagged := link.(*netlink.Vlan)
	if !tagged {
		return link.Attrs().Index, 0, nil
	}
	parent := n.links[device.ParentIndex]
	if parent == nil {
		return 0, 0, errors.New("the interface below this VLAN is in another network namespace")
	}
	if _, nested := parent.(*netlink.Vlan); nested {
		return 0, 0, fmt.Errorf("it is a VLAN within the VLAN %s, and the program puts on one tag alone", parent.Attrs().Name)
	}
	vlan = uint16(device.VlanId)
	if device.VlanProtocol == netlink.VLAN_PROTOCOL_8021AD {
		vlan |= vlan8021AD
	}
	return parent.Attrs().Index, vlan, nil
}

// own is an address of the node that packets of the family may have which leave
// by r: as the kernel would take, else of the same interface, else of those that
// carry VIP traffic, else of the loopback device.
func (n *nextHops) own(r *route, ipv4 bool) netip.Addr {
	if r.source.IsValid() && r.source.Is4() == ipv4 && r.source.IsGlobalUnicast() {
		return r.source
	}
	const loopback = 1
	for _, ifindex := range slices.Concat([]int{r.via.ifindex}, n.interfaces, []int{loopback}) {
		if a := n.addresses[linkFamily{ifindex, ipv4}]; a.IsValid() {
			return a
		}
	}
	return netip.Addr{}
}

// inherit looks, once, for what a process before had the kernel keep.
func (n *nextHops) inherit() error {
	if n.inherited {
		return nil
	}
	keys, err := keptNeighbours()
	for _, key := range keys {
		n.kept[key] = true
	}
	n.inherited = err == nil
	return err
}

// keep has the kernel resolve every next hop, and keep it resolved: packets that
// the program sends are not seen by the neighbour table, which would forget.
// Kernels before 5.16 know no managed entries and take it as being asked once.
// Those that are not needed any more are let go, unless the program of a process
// before may need them.
func (n *nextHops) keep(held bool) error {
	wanted := make(map[neighbour]bool)
	for _, r := range n.routes {
		if r.err == nil && r.looked {
			wanted[r.via] = true
		}
	}
	var errs []error
	for key := range wanted {
		if n.permanent[key] {
			continue
		}
		if err := keepNeighbour(key); err != nil {
			errs = append(errs, err)
			continue
		}
		n.kept[key] = true
	}
	for key := range n.kept {
		if !wanted[key] && !held {
			errs = append(errs, n.drop(key))
		}
	}
	return errors.Join(errs...)
}

// drop leaves a neighbour to the kernel again, which resolves it anew if it is
// in use.
func (n *nextHops) drop(key neighbour) error {
	delete(n.kept, key)
	if n.permanent[key] {
		return nil
	}
	err := n.netlink.NeighDel(&netlink.Neigh{LinkIndex: key.ifindex, IP: key.address.AsSlice(), Family: family(key.address)})
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove neighbour %s: %w", key.address, err)
	}
	return nil
}

func (n *nextHops) clear() error {
	var errs []error
	for key := range n.kept {
		errs = append(errs, n.drop(key))
	}
	return errors.Join(errs...)
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// wayTo is what the program needs to send b a packet by r: its next hop without
// the bit of the path, and the path. No next hop: it is not resolved.
func (n *nextHops) wayTo(b *backend, r *route) (uint64, bpfPath, error) {
	if !r.looked {
		return 0, bpfPath{}, nil
	}
	if r.err != nil {
		return 0, bpfPath{}, r.err
	}
	if b.forward == lb.L2 && r.via.address != r.address.WithZone("") {
		return 0, bpfPath{}, fmt.Errorf("%s is behind gateway %s: l2 needs it on the node's own link, the other ways do not", r.address, r.via.address)
	}
	path := bpfPath{Source: r.mac, Mtu: uint16(min(r.mtu, 1<<16-1)), Ifindex: uint32(r.out), Vlan: r.vlan}
	var bits uint64
	if r.vlan != 0 {
		bits = hopVLAN
	}
	if b.forward != lb.L2 {
		source, vary := b.tunnel.source(r)
		if !source.IsValid() {
			return 0, bpfPath{}, fmt.Errorf("the node has no address to send to %s from", r.address)
		}
		path.Outer, path.Vary = outerHeader(source, r.address), vary
		path.Port = bigEndian(b.tunnel.port)
		if r.address.Is4() {
			bits |= hopIPv4
		} else {
			bits |= hopIPv6
		}
		switch b.forward {
		case lb.GRE:
			bits |= hopGRE
		case lb.GUE:
			bits |= hopGUE
			if b.tunnel.checksum {
				bits |= hopChecksum
				path.Mtu = min(path.Mtu, mostSummed)
			}
		}
	}
	mac, known := n.neighbours[r.via]
	if !known {
		return 0, path, nil
	}
	return hopResolved | bits | macBits(mac), path, nil
}

// mostSummed is MOST_SUMMED in bpf/checksum.h: the biggest outer packet that the
// program computes a UDP checksum of.
const mostSummed = 9728

// tunnel is how a service's packets are encapsulated, beyond the kind of it.
type tunnel struct {
	port             uint16       // of gue
	checksum         bool         // of gue
	prefix4, prefix6 netip.Prefix // that the outer source is from; not valid: the node's own address
}

func tunnelOf(s lb.Service) tunnel {
	t := tunnel{port: s.GUEPort, checksum: s.GUEChecksum}
	for _, p := range s.OuterSources {
		if p.Addr().Is4() {
			t.prefix4 = p.Masked()
		} else {
			t.prefix6 = p.Masked()
		}
	}
	return t
}

// source is the outer source address on the way r, and the bits of its last 32
// that follow the flow.
func (t tunnel) source(r *route) (netip.Addr, uint32) {
	prefix := t.prefix6
	if r.address.Is4() {
		prefix = t.prefix4
	}
	if !prefix.IsValid() {
		return r.source, 0
	}
	var mask [4]byte
	free := min(prefix.Addr().BitLen()-prefix.Bits(), 32)
	binary.BigEndian.PutUint32(mask[:], uint32(1<<free-1))
	return prefix.Addr(), binary.NativeEndian.Uint32(mask[:])
}

// outerHeader is the outer header but for what each packet brings.
func outerHeader(source, destination netip.Addr) [10]uint32 {
	const ttl = 64
	var b [40]byte
	if destination.Is4() {
		b[0] = 0x45
		b[6] = 0x40 // don't fragment; with it, the ID may be 0 (RFC 6864)
		b[8] = ttl
		copy(b[12:], source.AsSlice())
		copy(b[16:], destination.AsSlice())
		var sum uint32
		for i := 0; i < 20; i += 2 {
			sum += uint32(binary.NativeEndian.Uint16(b[i:]))
		}
		for sum > 1<<16-1 {
			sum = sum>>16 + sum&(1<<16-1)
		}
		binary.NativeEndian.PutUint16(b[10:], uint16(sum))
	} else {
		b[7] = ttl
		copy(b[8:], source.AsSlice())
		copy(b[24:], destination.AsSlice())
	}
	var words [10]uint32
	for i := range words {
		words[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return words
}

// point writes the way to a backend into its entry. A packet sees the old way
// or the new one.
func (d *Dataplane) point(b *backend, hop uint64, path bpfPath) {
	entry := &d.store.backends[b.entry()]
	now := entry.NextHop
	if hop == 0 {
		if now&hopResolved != 0 {
			atomic.StoreUint64(&entry.NextHop, now&^uint64(hopResolved))
		}
		return
	}
	side := now >> hopPathBit & 1
	if entry.Path[side] != path {
		time.Sleep(time.Until(b.turned.Add(rest)))
		side = 1 - side
		entry.Path[side] = path
		b.turned = time.Now()
	}
	if hop |= side<<hopPathBit | b.lifeBits(); hop != now {
		atomic.StoreUint64(&entry.NextHop, hop)
	}
}

// pointAll writes the way that r is to all its backends, and tells of those
// that have none.
func (d *Dataplane) pointAll(r *route) {
	for b := range r.backends {
		hop, path, err := d.hops.wayTo(b, r)
		problem := ""
		if err != nil {
			problem = err.Error()
		}
		if problem != b.problem {
			if problem != "" {
				d.log.Warn("no way to backend, its packets are dropped", "service", b.service.name, "backend", b.name, "err", problem)
			} else {
				d.log.Info("way to backend found", "service", b.service.name, "backend", b.name)
			}
			b.problem = problem
		}
		d.point(b, hop, path)
		d.setLane(b, r, hop)
	}
}

// resolveNew looks up the ways that were not yet, before packets need them, and
// writes those of backends that are new on a known way.
func (d *Dataplane) resolveNew() error {
	fresh := false
	for _, r := range d.hops.routes {
		if r.looked {
			d.pointAll(r)
		} else {
			fresh = true
		}
	}
	if !fresh || d.netlink == nil {
		return nil
	}
	if _, err := d.hops.read(); err != nil {
		return err
	}
	for _, r := range d.hops.routes {
		if !r.looked {
			d.hops.look(r)
			d.pointAll(r)
		}
	}
	return d.hops.keep(d.TakingOver())
}

// refresh looks at links, neighbours and routes again, all of them.
func (d *Dataplane) refresh() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	links, err := d.hops.read()
	if err != nil {
		return err
	}
	err = d.follow(links)
	for _, r := range d.hops.routes {
		d.hops.look(r)
		d.pointAll(r)
	}
	err = errors.Join(err, d.hops.keep(d.TakingOver()))
	d.fitProbes()
	return err
}

// watch follows the kernel's events, and routers' errors, until ctx ends.
func (d *Dataplane) watch(ctx context.Context, errs *pathErrors) error {
	for {
		err := d.listen(ctx, errs)
		if ctx.Err() != nil {
			return nil
		}
		// Too many events at once overrun the socket: begin again with a look at everything.
		d.log.Warn("kernel's events lost, will listen again", "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

func (d *Dataplane) listen(ctx context.Context, errs *pathErrors) error {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_NEIGH, unix.RTNLGRP_LINK,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		return fmt.Errorf("listen to the kernel's events: %w", err)
	}
	events := make(chan []syscall.NetlinkMessage)
	failed := make(chan error, 1)
	receiving, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		socket.Close()
		for range events { // until receive has ended
		}
	}()
	go func() {
		defer close(events)
		failed <- receive(receiving, socket, events)
	}()

	look := func() {
		if err := d.refresh(); err != nil {
			d.log.Warn("next hops not brought up to date, will retry", "err", err)
		}
		errs.listen(ctx)
	}
	look() // what happened before the first event
	ticker := time.NewTicker(resync)
	defer ticker.Stop()
	var settled <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case messages, open := <-events:
			if open && d.hear(messages) && settled == nil {
				settled = time.After(calm)
			}
		case <-settled:
			settled = nil
			look()
		case <-ticker.C:
			look()
		}
	}
}

func receive(ctx context.Context, socket *nl.NetlinkSocket, events chan<- []syscall.NetlinkMessage) error {
	for {
		messages, _, err := socket.Receive()
		if err != nil {
			return fmt.Errorf("receive the kernel's events: %w", err)
		}
		select {
		case events <- messages:
		case <-ctx.Done():
			return nil
		}
	}
}

// hear takes in what neighbours changed, at once, and says whether something
// else did that calls for a look at everything.
func (d *Dataplane) hear(messages []syscall.NetlinkMessage) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	look := false
	changed := make(map[neighbour]bool)
	for _, m := range messages {
		if m.Header.Type != unix.RTM_NEWNEIGH && m.Header.Type != unix.RTM_DELNEIGH {
			look = true
			continue
		}
		entry, err := netlink.NeighDeserialize(m.Data)
		if err != nil || entry.Family != unix.AF_INET && entry.Family != unix.AF_INET6 {
			continue
		}
		if key, differs := d.hops.learn(*entry, m.Header.Type == unix.RTM_DELNEIGH); differs {
			changed[key] = true
		}
	}
	if len(changed) > 0 {
		for _, r := range d.hops.routes {
			if changed[r.via] {
				d.pointAll(r)
			}
		}
	}
	return look
}
