package lab

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	pkt "github.com/halfproxy/halfproxy/internal/packet"
)

// Each node's file lists the backends in an order of its own. The same 10,000
// five-tuples, of both families, are put to each node's program as packets.
func TestEveryNodeSendsAFlowToTheSameBackend(t *testing.T) {
	const flows = 10_000
	l := start(t, Options{})
	gateway := mac(t, l.routerNS, "eth1")

	// Others send to the VIPs as well: the client while the lab settled, and the
	// router, which has no way to the sources of these flows and says so.
	ours := []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:ff00::/64")}
	chosen := make(map[string]map[string]string) // by node: flow to the MAC address of its backend
	for _, n := range l.Nodes() {
		capture, err := n.Capture()
		if err != nil {
			t.Fatal(err)
		}
		var frames [][]byte
		for i := range flows {
			client, vip := netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), VIPs.V4
			if i%2 == 1 {
				client, vip = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0xff, 15: byte(i)}), VIPs.V6
			}
			frames = append(frames, pkt.TCP(
				netip.AddrPortFrom(client, uint16(1024+i)).String(), netip.AddrPortFrom(vip, servicePort).String(),
				pkt.From(gateway.String()), pkt.To(mac(t, n.ns, "eth0").String())))
		}
		inject(t, l, frames)
		captured, err := capture.Stop()
		if err != nil {
			t.Fatal(err)
		}
		chosen[n.Name] = make(map[string]string)
		for _, f := range captured {
			p := decode(f)
			if p.out == in && p.inner != nil && slices.ContainsFunc(ours, func(o netip.Prefix) bool { return o.Contains(p.inner.from) }) {
				flow := fmt.Sprintf("%s %x", p.inner, p.transport[:4])
				chosen[n.Name][flow] = p.eth.DstMAC.String()
			}
		}
		if got := len(chosen[n.Name]); got != flows {
			t.Fatalf("%s passed on %d flows, want %d", n.Name, got, flows)
		}
	}

	first := l.Nodes()[0].Name
	used := make(map[string]int)
	for flow, want := range chosen[first] {
		used[want]++
		for _, n := range l.Nodes()[1:] {
			if got := chosen[n.Name][flow]; got != want {
				t.Errorf("%s: got backend %s on %s, want %s as on %s", flow, got, n.Name, want, first)
			}
		}
	}
	if len(used) != len(l.Backends()) {
		t.Errorf("flows by backend: got %v, want all %d backends used", used, len(l.Backends()))
	}
}

// sender sends whole frames out of a link of this thread's namespace.
func sender(link string) (send func(frame []byte) error, end func(), err error) {
	l, err := net.InterfaceByName(link)
	if err != nil {
		return nil, nil, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	to := &unix.SockaddrLinklayer{Ifindex: l.Index}
	return func(frame []byte) error { return unix.Sendto(fd, frame, 0, to) }, func() { unix.Close(fd) }, nil
}

// inject sends frames out of the router's side of the switch, slowly enough for
// every queue on the way.
func inject(t *testing.T, l *Lab, frames [][]byte) {
	t.Helper()
	if err := l.routerNS.Do(func() error {
		send, end, err := sender("eth1")
		if err != nil {
			return err
		}
		defer end()
		for i, frame := range frames {
			if err := send(frame); err != nil {
				return err
			}
			if i%64 == 63 {
				time.Sleep(2 * time.Millisecond)
			}
		}
		time.Sleep(100 * time.Millisecond) // the last ones arrive
		return nil
	}); err != nil {
		t.Fatalf("inject frames: %v", err)
	}
}
