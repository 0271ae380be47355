package lab

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// floodSources are addresses for benchmarks (RFC 2544), which nobody here has.
var floodSources = netip.MustParsePrefix("198.18.0.0/15")

// startFlood has the client send SYNs to the IPv4 VIP, so many a second, each from
// another address and port, until stop, which gives how many.
func (l *Lab) startFlood(rate int) (stop func() (sent int, err error), err error) {
	// What the VIP answers leads nowhere.
	err = l.routerNS.Do(func() error {
		route := kernelRoute(floodSources)
		route.Type, route.Protocol = unix.RTN_BLACKHOLE, unix.RTPROT_STATIC
		return netlink.RouteReplace(route)
	})
	if err != nil {
		return nil, fmt.Errorf("discard route %s: %w", floodSources, err)
	}
	fd := -1
	if err := l.clientNS.Do(func() error {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	}); err != nil {
		return nil, fmt.Errorf("raw socket: %w", err)
	}
	sent, end, ended := 0, make(chan struct{}), make(chan error)
	go func() {
		defer unix.Close(fd)
		for begin := time.Now(); ; {
			select {
			case <-end:
				ended <- nil
				return
			default:
			}
			due := int(time.Since(begin).Seconds() * float64(rate))
			for range min(due-sent, 1000) { // if it is too slow it has to end all the same
				if err := unix.Sendto(fd, syn(rand.Uint32(), uint16(rand.Uint32())), 0, &unix.SockaddrInet4{Addr: VIPs.V4.As4()}); err != nil {
					<-end
					ended <- fmt.Errorf("send a SYN: %w", err)
					return
				}
				sent++
			}
			if sent >= due {
				time.Sleep(time.Millisecond)
			}
		}
	}()
	return func() (int, error) {
		close(end)
		err := <-ended
		return sent, err
	}, nil
}

// syn is the packet from one of floodSources that random picks. The kernel fills in the
// header's length and checksum, as IPPROTO_RAW has it (raw(7)).
func syn(random uint32, port uint16) []byte {
	p := make([]byte, 40)
	p[0], p[8], p[9] = 4<<4|5, 64, unix.IPPROTO_TCP
	first := floodSources.Addr().As4()
	binary.BigEndian.PutUint32(p[12:], binary.BigEndian.Uint32(first[:])|random>>floodSources.Bits())
	to := VIPs.V4.As4()
	copy(p[16:], to[:])
	binary.BigEndian.PutUint16(p[20:], port)
	binary.BigEndian.PutUint16(p[22:], servicePort)
	p[32], p[33] = 5<<4, 1<<1 // data offset, SYN
	binary.BigEndian.PutUint16(p[34:], 65535)
	binary.BigEndian.PutUint16(p[36:], checksum(p[12:], unix.IPPROTO_TCP, 20))
	return p
}

// checksum is that of TCP: over addresses and segment, which follow each other here, and
// the rest of the pseudo header (RFC 9293, 3.1).
func checksum(b []byte, protocol, length uint32) uint16 {
	sum := protocol + length
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
