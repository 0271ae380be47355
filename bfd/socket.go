package bfd

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

const (
	singleHopPort = 3784 // RFC 5881, 4
	multihopPort  = 4784 // RFC 5883, 5

	// Source ports are of this range, each session's its own (RFC 5881, 4).
	firstSourcePort = 49152
	lastSourcePort  = 65535

	// Class selector 6, network control: what tells of congestion must not be in it.
	trafficClass = 0xc0
)

// datagram is what came in.
type datagram struct {
	from, to netip.Addr
	ttl      int
	multihop bool
	at       time.Time
	payload  []byte
}

// listener is a socket that packets of one family and kind come in by.
type listener struct {
	conn     *net.UDPConn
	v4       *ipv4.PacketConn // one of them
	v6       *ipv6.PacketConn
	multihop bool
}

// listen opens sockets of both families for both kinds. A host without IPv6 does
// without.
func listen() (all []*listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range all {
				l.close()
			}
		}
	}()
	for _, port := range []uint16{singleHopPort, multihopPort} {
		for _, address := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			network := "udp6"
			if address.Is4() {
				network = "udp4"
			}
			conn, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(netip.AddrPortFrom(address, port)))
			switch {
			case errors.Is(err, syscall.EAFNOSUPPORT), errors.Is(err, syscall.EADDRNOTAVAIL):
				continue
			case errors.Is(err, syscall.EADDRINUSE):
				return all, fmt.Errorf("listen on UDP port %d: %w: another BFD daemon runs on this host (FRR's bfdd, BIRD?): stop it there", port, err)
			case err != nil:
				return all, fmt.Errorf("listen on UDP port %d: %w", port, err)
			}
			l := &listener{conn: conn, multihop: port == multihopPort}
			if address.Is4() {
				l.v4 = ipv4.NewPacketConn(conn)
				err = l.v4.SetControlMessage(ipv4.FlagTTL|ipv4.FlagDst, true)
			} else {
				l.v6 = ipv6.NewPacketConn(conn)
				err = l.v6.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagDst, true)
			}
			all = append(all, l)
			if err != nil {
				return all, fmt.Errorf("ask for the TTL of packets on UDP port %d: %w", port, err)
			}
		}
	}
	return all, nil
}

func (l *listener) close() { _ = l.conn.Close() }

// read hands packets over until the socket is closed. When nobody takes them they are
// lost, as any packet may be.
func (l *listener) read(packets chan<- datagram) {
	b := make([]byte, 256)
	for {
		d := datagram{multihop: l.multihop}
		var n int
		var from net.Addr
		var err error
		if l.v4 != nil {
			var c *ipv4.ControlMessage
			if n, c, from, err = l.v4.ReadFrom(b); c != nil {
				d.ttl, d.to = c.TTL, address(c.Dst)
			}
		} else {
			var c *ipv6.ControlMessage
			if n, c, from, err = l.v6.ReadFrom(b); c != nil {
				d.ttl, d.to = c.HopLimit, address(c.Dst)
			}
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		udp, ok := from.(*net.UDPAddr)
		if err != nil || !ok {
			continue
		}
		d.at, d.from = time.Now(), udp.AddrPort().Addr().Unmap()
		d.payload = append([]byte(nil), b[:n]...)
		select {
		case packets <- d:
		default:
		}
	}
}

func address(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// sender is a session's socket: packets are sent from a port of its own.
type sender struct {
	conn *net.UDPConn
	b    []byte
}

func newSender(p Peer) (*sender, error) {
	dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
		failed := c.Control(func(fd uintptr) { err = configure(int(fd), p.Address.Is4()) })
		return errors.Join(failed, err)
	}}
	local := p.Local
	if !local.IsValid() {
		local = netip.IPv6Unspecified()
		if p.Address.Is4() {
			local = netip.IPv4Unspecified()
		}
	}
	var err error
	for range 16 {
		source := firstSourcePort + rand.N(uint16(lastSourcePort-firstSourcePort))
		dialer.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, source))
		var conn net.Conn
		if conn, err = dialer.Dial("udp", p.target()); err == nil {
			return &sender{conn: conn.(*net.UDPConn)}, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	return nil, fmt.Errorf("open a socket to %s: %w", p.Address, err)
}

// target is where packets go.
func (p Peer) target() string {
	port := uint16(singleHopPort)
	if p.Multihop {
		port = multihopPort
	}
	return netip.AddrPortFrom(p.Address, port).String()
}

// moved tells whether the kernel would send to the peer from another address than it did
// when the socket was made.
func (s *sender) moved(p Peer) bool {
	if p.Local.IsValid() {
		return false
	}
	now, err := net.Dial("udp", p.target())
	if err != nil {
		return false
	}
	defer now.Close()
	return !now.LocalAddr().(*net.UDPAddr).IP.Equal(s.conn.LocalAddr().(*net.UDPAddr).IP)
}

// configure has packets leave with TTL 255 (RFC 5881, 5) as network control.
func configure(fd int, isIPv4 bool) error {
	if isIPv4 {
		return errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, 255),
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, trafficClass))
	}
	return errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 255),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, trafficClass))
}

func (s *sender) send(p Packet, key []byte) error {
	s.b = p.Append(s.b[:0], key)
	_, err := s.conn.Write(s.b)
	// What an ICMP error says of an earlier packet: the other side may not listen yet.
	if errors.Is(err, syscall.ECONNREFUSED) {
		_, err = s.conn.Write(s.b)
		if errors.Is(err, syscall.ECONNREFUSED) {
			return nil
		}
	}
	return err
}

func (s *sender) close() {
	if s != nil {
		_ = s.conn.Close()
	}
}
