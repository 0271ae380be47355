package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/internal/netns"
)

// Frame is an Ethernet frame as a capture saw it.
type Frame struct {
	Out  bool // sent by the captured link's namespace, not received
	Data []byte
}

// Capture collects the frames of one link. On a node's own link the kernel
// sees none that its XDP program sends or takes: capture the switch's port.
type Capture struct {
	file *os.File
	done chan struct{} // closed once the reader has ended, and what follows is complete

	buffer []byte
	frames []Frame
	err    error
}

// CaptureClient captures at the client.
func (l *Lab) CaptureClient() (*Capture, error) { return capture(l.clientNS, "eth0") }

// CaptureUplink captures at the router, on its side of the switch.
func (l *Lab) CaptureUplink() (*Capture, error) { return capture(l.routerNS, "eth1") }

// Capture captures at the switch's port of this node: what goes out there goes
// to the node.
func (n *Node) Capture() (*Capture, error) { return capture(n.lab.switchNS, n.Name) }

// Capture captures at the switch's port of this backend: what goes out there
// goes to the backend.
func (b *Backend) Capture() (*Capture, error) { return capture(b.lab.switchNS, b.Name) }

func capture(ns *netns.NS, link string) (*Capture, error) {
	c := &Capture{done: make(chan struct{}), buffer: make([]byte, 1<<16)}
	if err := ns.Do(func() error {
		i, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		// Protocol 0 receives nothing before it is bound to the link.
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		c.file = os.NewFile(uintptr(fd), link)
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index}),
		)
	}); err != nil {
		if c.file != nil {
			c.file.Close()
		}
		return nil, fmt.Errorf("capture on %s in %s: %w", link, ns.Name, err)
	}
	go c.read()
	return c, nil
}

// read takes frames until Stop sets a deadline.
func (c *Capture) read() {
	defer close(c.done)
	conn, err := c.file.SyscallConn()
	for err == nil {
		var failed error
		err = errors.Join(conn.Read(func(fd uintptr) bool {
			failed = c.take(fd)
			return !errors.Is(failed, unix.EAGAIN)
		}), failed)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		c.err = err
	}
}

// take takes one frame, or gives EAGAIN where there is none.
func (c *Capture) take(fd uintptr) error {
	n, from, err := unix.Recvfrom(int(fd), c.buffer, 0)
	if err != nil {
		return err
	}
	link, ok := from.(*unix.SockaddrLinklayer)
	c.frames = append(c.frames, Frame{Out: ok && link.Pkttype == unix.PACKET_OUTGOING, Data: bytes.Clone(c.buffer[:n])})
	return nil
}

// Stop ends the capture and gives the frames in the order in which they passed.
// Frames that the kernel had no room for are an error: what was not seen cannot
// be ruled out.
func (c *Capture) Stop() ([]Frame, error) {
	defer c.file.Close()
	if err := c.file.SetReadDeadline(time.Now()); err != nil {
		return nil, err
	}
	<-c.done
	conn, err := c.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	var stats *unix.TpacketStats
	var failed error
	err = conn.Control(func(fd uintptr) {
		for failed == nil { // what the reader left
			failed = c.take(fd)
		}
		if errors.Is(failed, unix.EAGAIN) {
			stats, failed = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
		}
	})
	if err := errors.Join(err, failed, c.err); err != nil {
		return nil, fmt.Errorf("capture on %s: %w", c.file.Name(), err)
	}
	if stats.Drops > 0 {
		return nil, fmt.Errorf("capture on %s missed %d frames of %d", c.file.Name(), stats.Drops, stats.Packets)
	}
	return c.frames, nil
}

// clientPorts gives, for each node, the client's ports from which packets went
// to it while during ran.
func (l *Lab) clientPorts(during func() error) (map[string]map[uint16]bool, error) {
	captures := make([]*Capture, 0, len(l.nodes))
	var errs []error
	for _, n := range l.nodes {
		c, err := n.Capture()
		if err != nil {
			errs = append(errs, err)
			break
		}
		captures = append(captures, c)
	}
	if len(errs) == 0 {
		errs = append(errs, during())
	}
	ports := map[string]map[uint16]bool{}
	for i, c := range captures {
		frames, err := c.Stop()
		errs = append(errs, err)
		seen := map[uint16]bool{}
		for _, f := range frames {
			if p, ok := f.clientPort(); ok && f.Out {
				seen[p] = true
			}
		}
		ports[l.nodes[i].Name] = seen
	}
	return ports, errors.Join(errs...)
}

// clientPort gives the port that a packet from the client to a VIP comes from.
func (f Frame) clientPort() (uint16, bool) {
	const ethernet = 14
	if len(f.Data) < ethernet+20 {
		return 0, false
	}
	packet := f.Data[ethernet:]
	var to netip.Addr
	var transport int
	switch binary.BigEndian.Uint16(f.Data[12:]) {
	case unix.ETH_P_IP:
		to, transport = netip.AddrFrom4([4]byte(packet[16:])), 4*int(packet[0]&0xf)
	case unix.ETH_P_IPV6:
		if len(packet) < 40 {
			return 0, false
		}
		to, transport = netip.AddrFrom16([16]byte(packet[24:])), 40
	}
	if (to != VIPs.V4 && to != VIPs.V6) || len(packet) < transport+2 {
		return 0, false
	}
	return binary.BigEndian.Uint16(packet[transport:]), true
}
