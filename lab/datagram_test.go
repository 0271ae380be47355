package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/halfproxy/halfproxy/internal/netns"
	pkt "github.com/halfproxy/halfproxy/internal/packet"
	"github.com/halfproxy/halfproxy/lb"
)

const echoPort = 5353

// Datagrams of 8 kB go to the VIP in fragments, and back past the nodes. And the way to
// the VIP can be traced.
func TestDatagramsGoThroughWholeAndInFragments(t *testing.T) {
	t.Parallel()
	for _, forward := range []lb.Forward{lb.L2, lb.IPIP} {
		t.Run(forward.String(), func(t *testing.T) {
			l := start(t, Options{Forward: forward})
			echoUDP(t, l)
			reconfigure(t, l, fmt.Sprintf("ports: [tcp/80, udp/%d]", echoPort))
			for i, vip := range VIPs.All() {
				client, gateway := clientAddrs.All()[i], clientGateway.All()[i]
				t.Run(vip.String(), func(t *testing.T) {
					t.Run("big datagrams", func(t *testing.T) { sendBigDatagrams(t, l, client, vip) })
					t.Run("fragments out of order", func(t *testing.T) {
						// The first one tells the node where the others go; those that come before it are lost.
						c := dialUDP(t, l, client, vip)
						fragments := c.fragments(8000)
						slices.Reverse(fragments[1:])
						c.sendRaw(t, fragments, 0)
						if err := c.receive(8000); err != nil {
							t.Errorf("the first one first: %v", err)
						}
						c = dialUDP(t, l, client, vip)
						fragments = c.fragments(8000)
						slices.Reverse(fragments)
						c.sendRaw(t, fragments, 0)
						if err := c.receive(8000); !errors.Is(err, os.ErrDeadlineExceeded) {
							t.Errorf("the first one last: got %v, want nothing", err)
						}
					})
					t.Run("trace of a flow", func(t *testing.T) { traceWithUDP(t, l, client, gateway, vip) })
					t.Run("trace with pings", func(t *testing.T) { traceWithPings(t, l, gateway, vip) })
				})
			}
			reconfigure(t, l, fmt.Sprintf("ports: [tcp/80, udp/%d]\n    hash: source", echoPort))
			for i, vip := range VIPs.All() {
				t.Run(vip.String()+" by source, in any order and by any node", func(t *testing.T) {
					c := dialUDP(t, l, clientAddrs.All()[i], vip)
					fragments := c.fragments(8000)
					slices.Reverse(fragments)
					for n, f := range fragments {
						c.sendRaw(t, [][]byte{f}, n%len(l.Nodes()))
					}
					if err := c.receive(8000); err != nil {
						t.Error(err)
					}
				})
			}
		})
	}
}

// echoUDP has every backend send back what comes to the VIPs.
func echoUDP(t *testing.T, l *Lab) {
	t.Helper()
	for _, b := range l.Backends() {
		for _, vip := range VIPs.All() {
			conn, err := b.ns.ListenPacket("udp", netip.AddrPortFrom(vip, echoPort).String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			go func() {
				buffer := make([]byte, 1<<16)
				for {
					n, from, err := conn.ReadFrom(buffer)
					if err != nil {
						return
					}
					_, _ = conn.WriteTo(buffer[:n], from)
				}
			}()
		}
	}
}

// udpClient is a socket of the client's, to the VIP.
type udpClient struct {
	lab  *Lab
	conn net.Conn
	vip  netip.AddrPort
}

func dialUDP(t *testing.T, l *Lab, client, vip netip.Addr) *udpClient {
	t.Helper()
	to := netip.AddrPortFrom(vip, echoPort)
	conn, err := l.clientNS.DialContext(t.Context(), "udp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if from := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr(); from != client {
		t.Fatalf("the client sends from %s, want %s", from, client)
	}
	return &udpClient{l, conn, to}
}

func (c *udpClient) port() uint16 { return c.conn.LocalAddr().(*net.UDPAddr).AddrPort().Port() }

// data is what a datagram of that size holds.
func data(size int) []byte {
	b := make([]byte, size)
	_, _ = io.ReadFull(new(content), b) // it reads without end
	return b
}

// receive waits for the echo of a datagram.
func (c *udpClient) receive(size int) error {
	if err := c.conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		return err
	}
	buffer := make([]byte, 1<<16)
	n, err := c.conn.Read(buffer)
	if err == nil && !bytes.Equal(buffer[:n], data(size)) {
		err = fmt.Errorf("%d bytes came back, or other ones, of %d", n, size)
	}
	return err
}

func sendBigDatagrams(t *testing.T, l *Lab, client, vip netip.Addr) {
	capture, err := l.CaptureClient()
	if err != nil {
		t.Fatal(err)
	}
	for range 20 { // ports, and so flows to all backends
		c := dialUDP(t, l, client, vip)
		for _, size := range []int{1, 1472, 1473, 8000} {
			if _, err := c.conn.Write(data(size)); err != nil {
				t.Fatal(err)
			}
			if err := c.receive(size); err != nil {
				t.Errorf("%d bytes from port %d: %v", size, c.port(), err)
			}
		}
	}
	frames, err := capture.Stop()
	if err != nil {
		t.Fatal(err)
	}
	fragments := map[bool]int{}
	for _, f := range frames {
		if ip := f.Data[14:]; vip.Is4() && ip[0]>>4 == 4 && binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 || vip.Is6() && ip[0]>>4 == 6 && ip[6] == 44 {
			fragments[f.Out]++
		}
	}
	if fragments[out] < 20*7 || fragments[in] < 20*7 {
		t.Errorf("%d fragments went out, %d came back: the test tests nothing", fragments[out], fragments[in])
	}
}

// fragments are the frames of a datagram as the router would hand them on, of 1400
// bytes of data at most.
func (c *udpClient) fragments(size int) [][]byte {
	from := c.conn.LocalAddr().(*net.UDPAddr).AddrPort()
	rest := pkt.IP(pkt.UDP(from.String(), c.vip.String(), pkt.Data(data(size))))
	rest = rest[len(rest)-8-size:] // UDP's header and data
	var frames [][]byte
	for offset := 0; len(rest) > 0; {
		n := min(len(rest), 1400)
		frames = append(frames, pkt.Raw(17, from.Addr(), c.vip.Addr(), rest[:n],
			pkt.TTL(63), pkt.Fragment(offset, n < len(rest)), pkt.FragmentID(c.port())))
		rest, offset = rest[n:], offset+n
	}
	return frames
}

// sendRaw sends frames to a node, past the router.
func (c *udpClient) sendRaw(t *testing.T, frames [][]byte, node int) {
	t.Helper()
	gateway, to := mac(t, c.lab.routerNS, "eth1").String(), mac(t, c.lab.Nodes()[node].ns, "eth0").String()
	var addressed [][]byte
	for _, f := range frames {
		addressed = append(addressed, pkt.WithMACs(to, gateway, f))
	}
	inject(t, c.lab, addressed)
}

// traceWithUDP sends to the service with ever more hops to go: the router says that it
// was too few, the node drops what ends there, and from the backend there is an answer.
func traceWithUDP(t *testing.T, l *Lab, client, gateway, vip netip.Addr) {
	messages := listenICMP(t, l.clientNS, vip)
	c := dialUDP(t, l, client, vip)
	for hops, want := range map[int]string{1: "exceeded at " + gateway.String(), 2: "nothing", 3: "echo", 4: "echo"} {
		setHops := ipv4.NewConn(c.conn).SetTTL
		if vip.Is6() {
			setHops = ipv6.NewConn(c.conn).SetHopLimit
		}
		if err := setHops(hops); err != nil {
			t.Fatal(err)
		}
		if _, err := c.conn.Write(data(hops)); err != nil {
			t.Fatal(err)
		}
		got := "echo"
		if err := c.receive(hops); err != nil {
			got = answerTo(messages, vip)
		}
		if got != want {
			t.Errorf("%d hops to go: got %s, want %s", hops, got, want)
		}
	}
}

// traceWithPings is what traceroute -I does: the node answers for the VIP, though these
// are the last of its hops.
func traceWithPings(t *testing.T, l *Lab, gateway, vip netip.Addr) {
	for hops, want := range map[int]string{1: "exceeded at " + gateway.String(), 2: "reply", 3: "reply"} {
		conn := listenICMP(t, l.clientNS, vip)
		request := icmp.Type(ipv4.ICMPTypeEcho)
		if vip.Is6() {
			request = ipv6.ICMPTypeEchoRequest
		}
		if err := setHops(conn, hops); err != nil {
			t.Fatal(err)
		}
		message, err := (&icmp.Message{Type: request, Body: &icmp.Echo{ID: 4712, Seq: hops}}).Marshal(nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.WriteTo(message, &net.IPAddr{IP: vip.AsSlice()}); err != nil {
			t.Fatal(err)
		}
		if got := answerTo(conn, vip); got != want {
			t.Errorf("%d hops to go: got %s, want %s", hops, got, want)
		}
	}
}

// listenICMP takes the ICMP messages of the VIP's family.
func listenICMP(t *testing.T, ns *netns.NS, vip netip.Addr) *icmp.PacketConn {
	t.Helper()
	var conn *icmp.PacketConn
	if err := ns.Do(func() (err error) {
		if vip.Is4() {
			conn, err = icmp.ListenPacket("ip4:icmp", "0.0.0.0")
		} else {
			conn, err = icmp.ListenPacket("ip6:ipv6-icmp", "::")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func setHops(conn *icmp.PacketConn, hops int) error {
	if p := conn.IPv6PacketConn(); p != nil {
		return p.SetHopLimit(hops)
	}
	return conn.IPv4PacketConn().SetTTL(hops)
}

// answerTo waits for a message about a packet to the VIP, or from it.
func answerTo(conn *icmp.PacketConn, vip netip.Addr) string {
	protocol := 1
	if vip.Is6() {
		protocol = 58
	}
	if err := conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		return err.Error()
	}
	buffer := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(buffer)
		if err != nil {
			return "nothing"
		}
		m, err := icmp.ParseMessage(protocol, buffer[:n])
		if err != nil {
			return err.Error()
		}
		switch body := m.Body.(type) {
		case *icmp.TimeExceeded:
			if quoted, _ := netip.AddrFromSlice(destinationOf(body.Data)); quoted == vip {
				return "exceeded at " + from.String()
			}
		case *icmp.Echo:
			reply := m.Type == ipv4.ICMPTypeEchoReply || m.Type == ipv6.ICMPTypeEchoReply
			if reply && from.String() == vip.String() && body.ID == 4712 {
				return "reply"
			}
		}
	}
}

// destinationOf reads the address off a quoted packet's header.
func destinationOf(quoted []byte) []byte {
	switch {
	case len(quoted) >= 40 && quoted[0]>>4 == 6:
		return quoted[24:40]
	case len(quoted) >= 20 && quoted[0]>>4 == 4:
		return quoted[16:20]
	}
	return nil
}
