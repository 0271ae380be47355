package xdp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// laneID is a backend of a service.
type laneID struct{ service, backend string }

// lane is how sockets reach a VIP by way of one backend.
type lane struct {
	number  uint32 // of the backend
	address netip.Addr
	via     neighbour
	source4 netip.Addr // of the node, to ask from
	source6 netip.Addr
	room    int    // for an IP packet, with what goes before it taken off
	silent  bool   // the next hop's MAC address is not known
	problem string // why there is no way at all
}

func (b *backend) lane() laneID { return laneID{b.service.name, b.name} }

// probeTTL lets a packet be taken in by the backend that it is sent to, and go
// no further: one without the VIP that forwards packets would else pass it on
// to where the VIP is, and be taken for well.
const probeTTL = 1

// setLane notes what the way r means for the probes of b.
func (d *Dataplane) setLane(b *backend, r *route, hop uint64) {
	if b.number == 0 {
		return
	}
	l := lane{
		number: b.number, address: r.address, via: r.via,
		source4: r.own4, source6: r.own6,
		room: r.mtu - b.forward.Overhead(r.address), silent: hop&hopResolved == 0, problem: b.problem,
	}
	d.probes.mu.Lock()
	defer d.probes.mu.Unlock()
	d.probes.lanes[b.lane()] = l
}

// DialVIP connects to a VIP as it is served by one backend of a service, whose
// check says that it is to be probed so: what is sent is rewritten or encapsulated
// by the backend's entry, as traffic is. network is tcp or udp. The connection is
// one like any other.
func (d *Dataplane) DialVIP(ctx context.Context, network, service, backend string, vip netip.AddrPort) (net.Conn, error) {
	l, err := d.probes.lane(laneID{service, backend})
	if err != nil {
		return nil, err
	}
	if l.silent {
		// Nobody but a probe may have any use for it at the moment. If that
		// fails, so will this.
		_ = keepNeighbour(l.via)
		return nil, fmt.Errorf("the MAC address of %s, the next hop to %s, is not known: is it up?", l.via.address, l.address)
	}
	source := l.source6
	if vip.Addr().Is4() {
		source = l.source4
	}
	if !source.IsValid() {
		family := "IPv6"
		if vip.Addr().Is4() {
			family = "IPv4"
		}
		return nil, fmt.Errorf("the node has no %s address to ask vip %s from: give one to its interface", family, vip.Addr())
	}
	if err := d.probes.expect(source); err != nil {
		return nil, err
	}
	dialer := net.Dialer{
		KeepAlive: -1,
		Control: func(network, _ string, c syscall.RawConn) error {
			var err error
			failed := c.Control(func(fd uintptr) { err = l.prepare(int(fd), network) })
			return cmp.Or(failed, err)
		},
	}
	if strings.HasPrefix(network, "udp") {
		dialer.LocalAddr = &net.UDPAddr{IP: source.AsSlice()}
	} else {
		dialer.LocalAddr = &net.TCPAddr{IP: source.AsSlice()}
	}
	conn, err := dialer.DialContext(ctx, network, vip.String())
	if errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("%w: a blackhole route comes before ours, `ip route get %s` shows it: remove it", err, vip.Addr())
	}
	return conn, err
}

// prepare makes the socket's packets take the lane. network is tcp4, udp6 and
// the like.
func (l lane) prepare(fd int, network string) error {
	ipv4 := strings.HasSuffix(network, "4")
	option := func(what string, level, name, value int) error {
		if err := unix.SetsockoptInt(fd, level, name, value); err != nil {
			return fmt.Errorf("set %s of a probe's socket: %w", what, err)
		}
		return nil
	}
	errs := []error{option("the priority", unix.SOL_SOCKET, unix.SO_PRIORITY, int(l.number))}
	if ipv4 {
		errs = append(errs, option("the ttl", unix.IPPROTO_IP, unix.IP_TTL, probeTTL))
	} else {
		errs = append(errs, option("the hop limit", unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, probeTTL))
	}
	if strings.HasPrefix(network, "udp") {
		// Else a socket of UDP is told of closed ports alone, not of a backend that would
		// have passed on what it got.
		if ipv4 {
			errs = append(errs, option("reports of errors", unix.IPPROTO_IP, unix.IP_RECVERR, 1))
		} else {
			errs = append(errs, option("reports of errors", unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1))
		}
	}
	if strings.HasPrefix(network, "tcp") {
		// A port need not be free, but for connections to the same VIP.
		errs = append(errs, option("late binding", unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1))
		const tcpHeader, least, most = 20, 88, 32767 // bounds of the option
		room := l.room - tcpHeader - 20
		if !ipv4 {
			room -= 20
		}
		// Whoever ends a connection keeps its ports for a minute, and all backends of
		// a VIP would share them. So it is given up as soon as its end has arrived.
		errs = append(errs, option("the linger time", unix.IPPROTO_TCP, unix.TCP_LINGER2, -1))
		errs = append(errs, option("the segment size", unix.IPPROTO_TCP, unix.TCP_MAXSEG, min(max(room, least), most)))
	}
	return errors.Join(errs...)
}

// lane gives a backend's, or why there is none.
func (p *probes) lane(id laneID) (lane, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l, there := p.lanes[id]
	switch {
	case p.netlink == nil:
		return lane{}, errors.New("the data plane has no interface")
	case p.problem != nil:
		return lane{}, p.problem
	case !there:
		return lane{}, errors.New("the data plane does not have the backend yet")
	case l.problem != "":
		return lane{}, errors.New(l.problem)
	}
	return l, nil
}

// expect has answers to the node's address taken.
func (p *probes) expect(source netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ends == nil {
		return errors.New("the data plane does not have the vip yet")
	}
	return p.enter(source, probeProbeEndPROBE_SOURCE)
}

// addressKey is an address as probe_ends has it.
func addressKey(a netip.Addr) bpfVipKey {
	key := bpfVipKey{Address: words(a), Family: 6}
	if a.Is4() {
		key.Family = 4
	}
	return key
}
