package lab

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"

	"github.com/halfproxy/halfproxy/internal/netns"
	"github.com/halfproxy/halfproxy/lb"
)

// The half proxy's story, one request with every frame of it:
//
//	client 192.168.1.1 ──► router ──► lb1 ──► b1 10.3.0.1 (has VIP 10.2.0.1 on lo)
//	       ▲  192.168.1.1 > 10.2.0.1   same addresses │
//	       └────────── 10.2.0.1 > 192.168.1.1 ────────┘
func TestHalfProxySeesHalfOfAConversation(t *testing.T) {
	t.Parallel()
	for _, forward := range Forwards {
		t.Run(forward.String(), func(t *testing.T) {
			l := start(t, Options{Nodes: 1, Backends: 1, Forward: forward})
			t.Run("IPv4", func(t *testing.T) { tellHalfProxy(t, l, clientAddrs.V4, VIPs.V4) })
			t.Run("IPv6", func(t *testing.T) { tellHalfProxy(t, l, clientAddrs.V6, VIPs.V6) })
		})
	}
}

func tellHalfProxy(t *testing.T, l *Lab, client, vip netip.Addr) {
	node, backend := l.Nodes()[0], l.Backends()[0]
	captures := map[string]*Capture{}
	for name, begin := range map[string]func() (*Capture, error){
		"client": l.CaptureClient, "router": l.CaptureUplink, "node": node.Capture, "backend": backend.Capture,
	} {
		c, err := begin()
		if err != nil {
			t.Fatal(err)
		}
		captures[name] = c
	}

	resp, err := l.Client().Get(URL(vip, "/"))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	// The client takes the answer because it comes from whom it asked.
	if err != nil || string(body) != "hello from b1\n" {
		t.Errorf("client: got %q, %v, want hello from b1", body, err)
	}
	time.Sleep(100 * time.Millisecond) // for the last acknowledgement

	request := &conversation{client, vip}
	answer := &conversation{vip, client}
	frames := map[string][]packet{}
	for name, c := range captures {
		raw, err := c.Stop()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range raw {
			frames[name] = append(frames[name], decode(f))
		}
	}
	sent := find(frames["client"], out, request)
	if len(sent) < 4 { // SYN, ACK, request, FIN
		t.Fatalf("the client sent %d packets of %s, want 4 at least", len(sent), request)
	}

	t.Run("1 the router sends the client's packets to the node", func(t *testing.T) {
		same(t, find(frames["node"], out, request), sent)
		for _, p := range find(frames["router"], out, request) {
			wantMAC(t, "destination", p.eth.DstMAC, mac(t, node.ns, "eth0"))
		}
	})
	t.Run("2 the node passes them on, their addresses as they were", func(t *testing.T) {
		passed := find(frames["node"], in, request)
		same(t, passed, sent)
		for _, p := range passed {
			wantMAC(t, "source", p.eth.SrcMAC, mac(t, node.ns, "eth0"))
			wantMAC(t, "destination", p.eth.DstMAC, mac(t, backend.ns, "eth0"))
			if got, want := p.outer.String(), outerHeader(l, node, backend, vip).String(); got != want {
				t.Errorf("outer header: got %s, want %s", got, want)
			}
		}
	})
	t.Run("3 the backend gets them", func(t *testing.T) {
		same(t, find(frames["backend"], out, request), sent)
		wantHeader(t, resp.Header.Get("X-Remote"), client)
		wantHeader(t, resp.Header.Get("X-Local"), vip)
	})
	answers := find(frames["backend"], in, answer)
	t.Run("4 the backend answers as the VIP, by way of the router", func(t *testing.T) {
		if len(answers) < 3 { // SYN+ACK, answer, FIN
			t.Errorf("the backend sent %d packets of %s, want 3 at least", len(answers), answer)
		}
		for _, p := range answers {
			wantMAC(t, "destination", p.eth.DstMAC, mac(t, l.routerNS, "eth1"))
		}
	})
	t.Run("5 no answer crosses the node", func(t *testing.T) {
		for _, p := range frames["node"] {
			if p.inner != nil && p.inner.from == vip && p.inner.to == client { // else it is a check's
				t.Errorf("at the node's port: got %s (out: %v)", p.inner, p.out)
			}
		}
	})
	t.Run("6 the client gets the answers", func(t *testing.T) {
		same(t, find(frames["router"], in, answer), answers)
		same(t, find(frames["client"], in, answer), answers)
	})
}

// outerHeader is what a node puts before a packet, nil where nothing.
func outerHeader(l *Lab, n *Node, b *Backend, vip netip.Addr) *conversation {
	switch {
	case l.options.Forward == lb.L2:
		return nil
	case vip.Is4():
		return &conversation{n.V4, b.V4}
	default:
		return &conversation{n.V6, b.V6}
	}
}

// conversation is one direction of it.
type conversation struct{ from, to netip.Addr }

func (c *conversation) String() string {
	if c == nil {
		return "none"
	}
	return fmt.Sprintf("%s > %s", c.from, c.to)
}

// packet is a frame taken apart.
type packet struct {
	out       bool
	eth       *layers.Ethernet
	outer     *conversation // of ipip; nil without
	inner     *conversation // of the packet that the client or the backend sent
	transport []byte        // of the inner packet, all but the checksum
}

const (
	in  = false
	out = true
)

func decode(f Frame) packet {
	p := packet{out: f.Out}
	all := gopacket.NewPacket(f.Data, layers.LayerTypeEthernet, gopacket.Default).Layers()
	for i, layer := range all {
		if udp, ok := layer.(*layers.UDP); ok && udp.DstPort == lb.DefaultGUEPort && len(udp.Payload) > 4 {
			inner := map[byte]gopacket.LayerType{4: layers.LayerTypeIPv4, 41: layers.LayerTypeIPv6}[udp.Payload[1]]
			all = append(all[:i+1], gopacket.NewPacket(udp.Payload[4:], inner, gopacket.Default).Layers()...)
		}
	}
	for _, layer := range all {
		var c *conversation
		switch layer := layer.(type) {
		case *layers.Ethernet:
			p.eth = layer
		case *layers.IPv4:
			c = &conversation{address(layer.SrcIP), address(layer.DstIP)}
		case *layers.IPv6:
			c = &conversation{address(layer.SrcIP), address(layer.DstIP)}
		}
		if c != nil {
			p.outer, p.inner, p.transport = p.inner, c, bytes.Clone(layer.LayerPayload())
		}
	}
	// A veth pair leaves the checksum to be filled in further on; that the other
	// end takes the packet shows that it was.
	if len(p.transport) >= 20 {
		copy(p.transport[16:18], []byte{0, 0})
	}
	return p
}

func address(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// find gives the packets of one direction of the conversation.
func find(packets []packet, direction bool, c *conversation) []packet {
	var found []packet
	for _, p := range packets {
		if p.out == direction && p.inner != nil && *p.inner == *c {
			found = append(found, p)
		}
	}
	return found
}

// same compares what the IP packets carry: ports, numbers, flags and data.
func same(t *testing.T, got, want []packet) {
	t.Helper()
	equal := func(a, b packet) bool { return bytes.Equal(a.transport, b.transport) }
	if !slices.EqualFunc(got, want, equal) {
		t.Errorf("got %d packets, want the same %d:\n%s\n%s", len(got), len(want), dump(got), dump(want))
	}
}

func dump(packets []packet) string {
	var b bytes.Buffer
	for _, p := range packets {
		fmt.Fprintf(&b, "  %x\n", p.transport)
	}
	return b.String()
}

func mac(t *testing.T, ns *netns.NS, link string) net.HardwareAddr {
	t.Helper()
	var mac net.HardwareAddr
	if err := ns.Do(func() error {
		l, err := netlink.LinkByName(link)
		if err == nil {
			mac = l.Attrs().HardwareAddr
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return mac
}

func wantMAC(t *testing.T, what string, got, want net.HardwareAddr) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s MAC: got %s, want %s", what, got, want)
	}
}

// wantHeader compares the address of a socket, as a backend reports it.
func wantHeader(t *testing.T, got string, want netip.Addr) {
	t.Helper()
	if a, err := netip.ParseAddrPort(got); err != nil || a.Addr() != want {
		t.Errorf("address at the backend's socket: got %q, %v, want %s", got, err, want)
	}
}
