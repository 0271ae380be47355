package doctor

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func (h *host) gatherListeners(cfg Config) {
	var list []listener
	if cfg.HTTPListen.IsValid() {
		list = append(list, listener{option: "http.listen", network: "tcp", at: cfg.HTTPListen})
	}
	if cfg.ClusterListen.IsValid() {
		list = append(list,
			listener{option: "cluster.listen", network: "tcp", at: cfg.ClusterListen},
			listener{option: "cluster.listen", network: "udp", at: cfg.ClusterListen})
	}
	for _, l := range list {
		a := l.at.Addr()
		l.here = a.IsUnspecified() || a.IsLoopback() ||
			slices.ContainsFunc(h.addresses, func(own address) bool { return own.Addr() == a.WithZone("") })
		if l.here && !cfg.Running {
			l.err = bind(l.network, l.at)
			if errors.Is(l.err, unix.EADDRINUSE) {
				l.taken, l.err, l.owner = true, nil, ownerOf(l.network, l.at)
			}
		}
		h.listeners = append(h.listeners, l)
	}
}

// bind takes a port and gives it back. It does not listen, so nobody connects.
func bind(network string, at netip.AddrPort) error {
	domain, kind := unix.AF_INET, unix.SOCK_STREAM
	if at.Addr().Is6() {
		domain = unix.AF_INET6
	}
	if network == "udp" {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if network == "tcp" { // as the net package does: connections of a former process are no obstacle
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
	}
	if at.Addr().Is4() {
		return unix.Bind(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()})
	}
	to := &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	if zone := at.Addr().Zone(); zone != "" {
		l, err := netlink.LinkByName(zone)
		if err != nil {
			return err
		}
		to.ZoneId = uint32(l.Attrs().Index)
	}
	return unix.Bind(fd, to)
}

// ownerOf finds out who has a port.
func ownerOf(network string, at netip.AddrPort) owner {
	for _, table := range []string{network, network + "6"} {
		if inode := inodeOf(filepath.Join("/proc/thread-self/net", table), at); inode != "" {
			return holderOf("socket:[" + inode + "]")
		}
	}
	return owner{}
}

// inodeOf finds the socket that waits at a port in a table such as
// /proc/net/tcp (proc_net_tcp.rst): local address and state are its second and
// fourth column, the inode its tenth.
func inodeOf(table string, at netip.AddrPort) string {
	f, err := os.Open(table)
	if err != nil {
		return ""
	}
	defer f.Close()
	const listening, unconnected = "0A", "07"
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		columns := strings.Fields(lines.Text())
		if len(columns) < 10 || columns[3] != listening && columns[3] != unconnected {
			continue
		}
		local, ok := parseProcAddress(columns[1])
		if ok && local.Port() == at.Port() &&
			(local.Addr() == at.Addr() || local.Addr().IsUnspecified() || at.Addr().IsUnspecified()) {
			return columns[9]
		}
	}
	return ""
}

// parseProcAddress reads 0100007F:1F90: words in the host's byte order.
func parseProcAddress(s string) (netip.AddrPort, bool) {
	address, port, _ := strings.Cut(s, ":")
	raw, err := hex.DecodeString(address)
	if err != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	ip, ok := netip.AddrFromSlice(raw)
	number, err := strconv.ParseUint(port, 16, 16)
	return netip.AddrPortFrom(ip.Unmap(), uint16(number)), ok && err == nil
}

// holderOf finds the process that has file open, as far as we may look.
func holderOf(file string) owner {
	descriptors, _ := filepath.Glob("/proc/[0-9]*/fd/*") // the pattern is good
	for _, fd := range descriptors {
		if target, err := os.Readlink(fd); err != nil || target != file {
			continue
		}
		process := filepath.Dir(filepath.Dir(fd))
		pid, err := strconv.Atoi(filepath.Base(process))
		if err != nil {
			continue
		}
		o := owner{pid: pid, name: "a program"}
		if comm, err := os.ReadFile(filepath.Join(process, "comm")); err == nil {
			o.name = strings.TrimSpace(string(comm))
		}
		if cgroup, err := os.ReadFile(filepath.Join(process, "cgroup")); err == nil {
			o.unit = unitOf(string(cgroup))
		}
		return o
	}
	return owner{}
}

// unitOf finds a system service in /proc/PID/cgroup.
func unitOf(cgroup string) string {
	for line := range strings.Lines(cgroup) {
		_, path, ok := strings.Cut(strings.TrimSpace(line), "/system.slice/")
		if unit, _, _ := strings.Cut(path, "/"); ok && strings.HasSuffix(unit, ".service") {
			return unit
		}
	}
	return ""
}

func (h *host) gatherPeers(ctx context.Context, cfg Config) {
	if cfg.Running {
		return
	}
	for _, p := range cfg.Peers {
		found := peer{address: p.Address}
		if routes, err := netlink.RouteGet(p.Address.AsSlice()); err == nil && len(routes) > 0 {
			if source, ok := netip.AddrFromSlice(routes[0].Src); ok {
				found.source = source.Unmap()
			}
		}
		err := call(ctx, p)
		switch {
		case err == nil:
		case errors.Is(err, unix.ECONNREFUSED):
			found.outcome = refused
		case errors.Is(err, unix.ENETUNREACH):
			found.outcome = unreachable
		default:
			found.outcome = silent
		}
		h.peers = append(h.peers, found)
	}
}

// call connects to a router's BGP port and hangs up.
func call(ctx context.Context, p Peer) error {
	const bgp = 179
	dialer := net.Dialer{Timeout: patience, Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = asNeighbour(int(fd), p) }); e != nil {
			return e
		}
		return err
	}}
	conn, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(p.Address, bgp).String())
	if err != nil {
		return err
	}
	return conn.Close()
}

// asNeighbour makes a router take a connection for one of ours: with the
// password, and with the TTL that one with ttl_security asks for (RFC 5082) and
// others do not mind.
func asNeighbour(fd int, p Peer) error {
	const farthest = 255
	level, option := unix.IPPROTO_IP, unix.IP_TTL
	if p.Address.Is6() {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS
	}
	if err := unix.SetsockoptInt(fd, level, option, farthest); err != nil {
		return err
	}
	if p.Password == "" {
		return nil
	}
	var sig unix.TCPMD5Sig
	if len(p.Password) > len(sig.Key) {
		return fmt.Errorf("password of %d bytes: TCP MD5 takes %d", len(p.Password), len(sig.Key))
	}
	if p.Address.Is4() {
		sig.Addr.Family = unix.AF_INET
		ip := p.Address.As4()
		copy(sig.Addr.Data[2:], ip[:]) // after the port, as in sockaddr_in
	} else {
		sig.Addr.Family = unix.AF_INET6
		ip := p.Address.As16()
		copy(sig.Addr.Data[6:], ip[:]) // after port and flow label, as in sockaddr_in6
	}
	sig.Keylen = uint16(copy(sig.Key[:], p.Password))
	return unix.SetsockoptTCPMD5Sig(fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG, &sig)
}
