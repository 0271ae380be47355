package xdp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/lb"
)

// pathErrors is what routers on the paths to backends say of outer packets that are too
// big for them. The node's kernel knows of nobody who has sent one, and would forget it.
// For a raw socket of the outer packet's protocol it keeps the path's MTU (RFC 1191, RFC
// 8201) where next hops are looked up. So there are such sockets, which take errors alone.
type pathErrors struct {
	d       *Dataplane
	readers *sync.WaitGroup
	sockets map[outerKind]*os.File // nil: there could be none
	told    bool                   // of that
}

func newPathErrors(d *Dataplane, readers *sync.WaitGroup) *pathErrors {
	return &pathErrors{d: d, readers: readers, sockets: make(map[outerKind]*os.File)}
}

// outerKind tells outer packets apart whose errors come to one socket.
type outerKind struct{ family, protocol int }

// outerKinds are those of a backend at an address.
func outerKinds(forward lb.Forward, address netip.Addr) []outerKind {
	f := family(address)
	switch forward {
	case lb.IPIP:
		return []outerKind{{f, unix.IPPROTO_IPIP}, {f, unix.IPPROTO_IPV6}}
	case lb.GRE:
		return []outerKind{{f, unix.IPPROTO_GRE}}
	case lb.GUE:
		return []outerKind{{f, unix.IPPROTO_UDP}}
	}
	return nil
}

// listen hears of the outer packets that backends get now, from here on and until ctx ends.
func (p *pathErrors) listen(ctx context.Context) {
	p.d.mu.Lock()
	wanted := make(map[outerKind]bool)
	for _, r := range p.d.hops.routes {
		for b := range r.backends {
			for _, kind := range outerKinds(b.forward, r.address) {
				wanted[kind] = true
			}
		}
	}
	p.d.mu.Unlock()
	for kind := range wanted {
		if _, tried := p.sockets[kind]; tried {
			continue
		}
		socket, err := openErrorSocket(kind)
		p.sockets[kind] = socket
		if err != nil {
			if !p.told {
				p.d.log.Warn("what routers say of outer packets that are too big is not heard", "err", err,
					"remedy", "give the process CAP_NET_RAW, or have no link on the way to the backends take less than the node's own")
			}
			p.told = true
			continue
		}
		context.AfterFunc(ctx, func() { socket.Close() })
		p.readers.Go(func() {
			for {
				about, err := nextTooBig(socket)
				if err != nil {
					return // it was closed
				}
				p.d.lookAgain(about)
			}
		})
	}
}

// lookAgain takes in what the kernel has learned of the path to an address.
func (d *Dataplane) lookAgain(address netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.hops.routes[address]
	if r == nil || !r.looked || d.store == nil {
		return
	}
	before := r.mtu
	d.hops.look(r)
	d.pointAll(r)
	if r.mtu != before {
		d.log.Info("MTU of the path to backends told by a router", "address", address, "mtu", r.mtu, "was", before)
	}
}

func openErrorSocket(kind outerKind) (*os.File, error) {
	fd, err := unix.Socket(kind.family, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, kind.protocol)
	if err != nil {
		return nil, fmt.Errorf("open a raw socket: %w", err)
	}
	level, option := unix.IPPROTO_IP, unix.IP_RECVERR
	if kind.family == unix.AF_INET6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVERR
	}
	nothing := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K} // 0 bytes of any packet
	err = errors.Join(
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &nothing}),
		unix.SetsockoptInt(fd, level, option, 1),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("have a raw socket take errors alone: %w", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "raw socket"), nil
}

// nextTooBig waits for an error about a packet that was too big, and gives where that was
// to go.
func nextTooBig(socket *os.File) (about netip.Addr, err error) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return about, err
	}
	control := make([]byte, 512)
	err = raw.Read(func(fd uintptr) bool {
		for {
			_, n, _, to, err := unix.Recvmsg(int(fd), nil, control, unix.MSG_ERRQUEUE)
			if err != nil {
				return false // there are no more: wait
			}
			if about = tooBigFor(control[:n], to); about.IsValid() {
				return true
			}
		}
	})
	return about, err
}

// tooBigFor is where the packet was to go that an error is about, if it was too big.
func tooBigFor(control []byte, to unix.Sockaddr) netip.Addr {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return netip.Addr{}
	}
	for _, m := range messages {
		// struct sock_extended_err begins with the error's number.
		if len(m.Data) < 4 || syscall.Errno(binary.NativeEndian.Uint32(m.Data)) != unix.EMSGSIZE {
			continue
		}
		switch to := to.(type) {
		case *unix.SockaddrInet4:
			return netip.AddrFrom4(to.Addr)
		case *unix.SockaddrInet6:
			return netip.AddrFrom16(to.Addr)
		}
	}
	return netip.Addr{}
}
