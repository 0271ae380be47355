package lab

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/halfproxy/halfproxy/internal/netns"
	"github.com/halfproxy/halfproxy/lb"
)

func TestAnAnnouncedVIPAnswersPing(t *testing.T) {
	t.Parallel()
	l := start(t, Options{})
	for _, vip := range VIPs.All() {
		if err := ping(l.ClientNS(), vip); err != nil {
			t.Errorf("ping %s: %v", vip, err)
		}
	}
	if err := ping(l.ClientNS(), nodeAddrs(1).V4); err != nil {
		t.Errorf("ping of a node, which is its kernel's to answer: %v", err)
	}
}

// ping asks once and waits for the answer of the address it asked.
func ping(ns *netns.NS, to netip.Addr) error {
	network, protocol, request, reply := "ip4:icmp", 1, icmp.Type(ipv4.ICMPTypeEcho), icmp.Type(ipv4.ICMPTypeEchoReply)
	if to.Is6() {
		network, protocol, request, reply = "ip6:ipv6-icmp", 58, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	conn, err := ns.ListenPacket(network, "")
	if err != nil {
		return err
	}
	defer conn.Close()
	const id, seq = 4711, 1
	message, err := (&icmp.Message{Type: request, Body: &icmp.Echo{ID: id, Seq: seq, Data: []byte("half a proxy")}}).Marshal(nil)
	if err != nil {
		return err
	}
	if _, err := conn.WriteTo(message, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return err
	}
	if err := conn.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	buffer := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(buffer)
		if err != nil {
			return err
		}
		answer, err := icmp.ParseMessage(protocol, buffer[:n])
		if err != nil {
			return err
		}
		echo, ok := answer.Body.(*icmp.Echo)
		if answer.Type != reply || !ok || echo.ID != id {
			continue
		}
		if from.String() != to.String() || string(echo.Data) != "half a proxy" {
			return fmt.Errorf("got %q from %s", echo.Data, from)
		}
		return nil
	}
}

// The way to the backends has room for 1500 bytes, and what the client sends is
// that long: it has to hear from a node what fits once the outer header is on.
func TestUploadsFindThePathsMTU(t *testing.T) {
	t.Parallel()
	for _, forward := range Forwards {
		if forward == lb.L2 {
			continue
		}
		t.Run(forward.String(), func(t *testing.T) {
			l := start(t, Options{Forward: forward})
			for _, n := range l.Nodes() {
				if err := n.ns.Do(func() error {
					link, err := netlink.LinkByName("eth0")
					if err != nil {
						return err
					}
					return netlink.LinkSetMTU(link, 1500)
				}); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Second) // the nodes look at their links again
			begun := time.Now()
			for err := range startUploads(t, l, 4, 1_000_000, 2*time.Second) {
				if err != nil {
					t.Error(err)
				}
			}
			if took := time.Since(begun); took > 10*time.Second {
				t.Errorf("the uploads took %v, want little more than 2s", took)
			}
		})
	}
}
