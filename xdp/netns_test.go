package xdp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/internal/netns"
	"github.com/halfproxy/halfproxy/lb"
)

// A lan is the network of these tests. All but far are on one link, a bridge in
// a namespace of its own; the client reaches the VIPs by way of lb, the
// backends have them on lo and answer directly.
//
//	client 10.0.0.1 ──┐                        VIPs 10.2.0.1, fd00:2::1
//	lb     10.0.0.2 ──┤ bridge                      10.2.0.64/28, fd00:2::64:0/112
//	near   10.0.0.11 ─┤
//	router 10.0.0.254 ┴─ 10.3.0.254 ── far 10.3.0.11
//
// IPv6 addresses are the same with fd00:: in front: fd00::11, fd00:3::11.
type lan struct {
	client, lb, sw, near, router, far *netns.NS
}

const (
	vipHTTP4 = "10.2.0.1:80"
	vipHTTP6 = "[fd00:2::1]:80"

	prefix4, prefix6 = "10.2.0.64/28", "fd00:2::64:0/112"
)

func newLAN(t testing.TB, lbMTU int) *lan {
	t.Helper()
	needRoot(t)
	l := &lan{}
	for name, ns := range map[string]**netns.NS{"client": &l.client, "lb": &l.lb, "sw": &l.sw, "near": &l.near, "router": &l.router, "far": &l.far} {
		n, err := netns.New(fmt.Sprintf("hptest-xdp-%d-%s", os.Getpid(), name))
		must(t, err)
		t.Cleanup(func() {
			if err := n.Close(); err != nil {
				t.Errorf("remove namespace: %v", err)
			}
		})
		*ns = n
	}
	must(t, l.sw.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "br0"
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		return errors.Join(netlink.LinkAdd(bridge), netlink.LinkSetUp(bridge))
	}))
	l.plug(t, l.client, "client", 1500)
	l.plug(t, l.lb, "lb", lbMTU)
	l.plug(t, l.near, "near", 1500)
	l.plug(t, l.router, "router", 1500)
	must(t, l.far.Veth("eth0", l.router, "eth1", 1500))

	must(t, l.client.Address("eth0", "10.0.0.1/24", "fd00::1/64"))
	must(t, l.lb.Address("eth0", "10.0.0.2/24", "fd00::2/64"))
	must(t, l.near.Address("eth0", "10.0.0.11/24", "fd00::11/64"))
	must(t, l.router.Address("eth0", "10.0.0.254/24", "fd00::fe/64"))
	must(t, l.router.Address("eth1", "10.3.0.254/24", "fd00:3::fe/64"))
	must(t, l.far.Address("eth0", "10.3.0.11/24", "fd00:3::11/64"))
	must(t, l.router.Do(func() error {
		return errors.Join(netns.Sysctl("net/ipv4/ip_forward", "1"), netns.Sysctl("net/ipv6/conf/all/forwarding", "1"))
	}))
	for _, ns := range []*netns.NS{l.near, l.far} {
		must(t, ns.Address("lo", "10.2.0.1/32", "fd00:2::1/128"))
		must(t, ns.Do(func() error { return errors.Join(localRoute(prefix4), localRoute(prefix6)) }))
	}
	must(t, l.client.Route("10.2.0.0/24", "10.0.0.2"))
	must(t, l.client.Route("fd00:2::/64", "fd00::2"))
	must(t, l.lb.Route("10.3.0.0/24", "10.0.0.254"))
	must(t, l.lb.Route("fd00:3::/64", "fd00::fe"))
	must(t, l.far.Route("0.0.0.0/0", "10.3.0.254"))
	must(t, l.far.Route("::/0", "fd00:3::fe"))
	return l
}

// localRoute makes a prefix the host's own.
func localRoute(prefix string) error {
	_, dst, err := net.ParseCIDR(prefix)
	if err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: dst, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST})
}

// plug connects eth0 of ns to a port of the bridge, with the program on it that
// XDP_TX at the other end needs.
func (l *lan) plug(t testing.TB, ns *netns.NS, name string, mtu int) {
	t.Helper()
	must(t, ns.Veth("eth0", l.sw, name, mtu))
	must(t, l.sw.Do(func() error {
		bridge, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		p, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(p, bridge); err != nil || mtu > 1500 {
			return err
		}
		pass, err := AttachPass(name)
		if err == nil {
			t.Cleanup(func() { pass.Close() })
		}
		return err
	}))
}

// start is a Dataplane on lb's eth0 that runs until the test ends.
func (l *lan) start(t testing.TB, mode Mode) *Dataplane {
	t.Helper()
	var d *Dataplane
	must(t, l.lb.Do(func() (err error) {
		if d, err = New(Config{Interfaces: []string{"eth0"}, Mode: mode, Log: testLog(t)}); err != nil {
			return err
		}
		return d.Attach()
	}))
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- l.lb.Do(func() error { return d.Run(ctx) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("Run: got %v, want nil", err)
		}
		if err := d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return d
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits for something that the kernel does in its own time, and not
// so long that the periodic look at everything would do.
func eventually(t testing.TB, what string, is func() error) {
	t.Helper()
	within(t, resync/2, what, is)
}

func within(t testing.TB, limit time.Duration, what string, is func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = is(); err == nil {
			return
		}
	}
	t.Fatalf("%s: not after %s: %v", what, limit, err)
}

// serve answers each connection to a VIP's port 80 with the name.
func serve(t testing.TB, ns *netns.NS, name string) {
	t.Helper()
	l, err := ns.Listen("tcp", ":80")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				n, _ := io.Copy(io.Discard, conn)
				fmt.Fprintf(conn, "%s %s %d", name, conn.RemoteAddr().(*net.TCPAddr).IP, n)
			}()
		}
	}()
}

// talk sends n bytes to the VIP and gives the answer.
func (l *lan) talk(vip string, n int) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := l.client.DialContext(ctx, "tcp", vip)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Write(make([]byte, n)); err != nil {
		return "", err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	return string(answer), err
}

func webTable(forward lb.Forward, backend string) lb.Table {
	return table("web", forward, 13, []string{vipHTTP4, vipHTTP6}, backend)
}

// applyIn applies in lb's namespace, as the process of a node does.
func (l *lan) apply(t testing.TB, d *Dataplane, tables ...lb.Table) {
	t.Helper()
	must(t, l.lb.Do(func() error { return d.Apply(context.Background(), tables) }))
}

// resolved waits until the next hops of all backends are known.
func resolved(t testing.TB, d *Dataplane) {
	t.Helper()
	eventually(t, "next hops", func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, s := range d.services {
			for _, b := range s.members {
				if d.store.backends[b.entry()].NextHop&hopResolved == 0 {
					return fmt.Errorf("%s is not resolved: %s", b.name, b.problem)
				}
			}
		}
		return nil
	})
}

func TestConnectionsThroughTheProgram(t *testing.T) {
	for _, tt := range []struct {
		mode    Mode
		forward lb.Forward
		backend string
		client  func(l *lan) error // what the client's side needs
	}{
		{mode: Native, forward: lb.L2, backend: "10.0.0.11"},
		{mode: Native, forward: lb.L2, backend: "fd00::11"},
		{mode: Generic, forward: lb.L2, backend: "10.0.0.11"},
		{mode: Native, forward: lb.IPIP, backend: "10.3.0.11"},
		{mode: Native, forward: lb.IPIP, backend: "fd00:3::11"},
		{mode: Generic, forward: lb.IPIP, backend: "10.3.0.11"},
	} {
		t.Run(fmt.Sprintf("%s/%s/%s", tt.mode, tt.forward, tt.backend), func(t *testing.T) {
			l := newLAN(t, 1500)
			d := l.start(t, tt.mode)
			server, name := l.near, "near"
			served := []lb.VIP{lb.MustParseVIP("10.2.0.1"), lb.MustParseVIP("fd00:2::1"), lb.MustParseVIP(prefix4), lb.MustParseVIP(prefix6)}
			if tt.forward == lb.IPIP {
				server, name = l.far, "far"
				var decap *Decap
				must(t, l.far.Do(func() (err error) {
					decap, err = AttachDecap(DecapConfig{
						Interfaces: []string{"eth0"}, Tunnels: Tunnels{IPIP: true, GRE: true, GUE: true},
						Sources: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32"), netip.MustParsePrefix("fd00::2/128")},
						VIPs:    served,
					})
					return err
				}))
				defer decap.Close()
				defer func() {
					s, err := decap.Stats()
					if err != nil || s.TakenOff() == 0 {
						t.Errorf("decapsulation: got %+v, %v, want packets", s, err)
					}
				}()
				// Room for the outer header: what the client sends is to fit.
				must(t, l.far.Do(func() error {
					return errors.Join(advmss("0.0.0.0/0", "10.3.0.254", 1300), advmss("::/0", "fd00:3::fe", 1300))
				}))
			}
			serve(t, server, name)
			web := webTable(tt.forward, tt.backend)
			web.Service.VIPs = served
			l.apply(t, d, web)
			resolved(t, d)

			for vip, client := range map[string]string{
				vipHTTP4: "10.0.0.1", vipHTTP6: "fd00::1",
				"10.2.0.64:80": "10.0.0.1", "10.2.0.79:80": "10.0.0.1", "[fd00:2::64:0]:80": "fd00::1", "[fd00:2::64:ffff]:80": "fd00::1",
			} {
				got, err := l.talk(vip, 200_000)
				if want := fmt.Sprintf("%s %s 200000", name, client); err != nil || got != want {
					t.Errorf("%s: got %q, %v, want %q", vip, got, err, want)
				}
			}
			if err := d.Attached(); err != nil {
				t.Errorf("Attached: got %v, want nil", err)
			}
			if got := d.Modes()["eth0"]; got != tt.mode {
				t.Errorf("mode: got %s, want %s", got, tt.mode)
			}
			if want := tt.mode == Generic && tt.forward == lb.IPIP; d.warned != want {
				t.Errorf("warned of merged segments: got %t, want %t", d.warned, want)
			}
			eventually(t, "counters that agree, once the last packets are through", func() error {
				s := stats(t, d)
				if s.Services["web"].Packets < 10 || s.Verdicts[Forwarded] != s.Services["web"].Count {
					return fmt.Errorf("counted %v for the service, %v forwarded", s.Services["web"].Count, s.Verdicts[Forwarded])
				}
				return nil
			})
		})
	}
}

func advmss(destination, gateway string, mss int) error {
	_, dst, err := net.ParseCIDR(destination)
	if err != nil {
		return err
	}
	return netlink.RouteReplace(&netlink.Route{Dst: dst, Gw: net.ParseIP(gateway), AdvMSS: mss})
}

// TestABackendBehindAnotherInterface has packets redirected:
//
//	client 10.0.0.1 ── eth0 10.0.0.2 lb 10.1.0.2 eth1 ── near 10.1.0.11
func TestABackendBehindAnotherInterface(t *testing.T) {
	t.Run("1500", func(t *testing.T) { goByAnotherInterface(t, 1500) })
	t.Run("9000", func(t *testing.T) {
		if !kernelHas(t, 6, 3) {
			t.Skip("before Linux 6.3 no frames of several buffers are redirected")
		}
		goByAnotherInterface(t, jumboMTU)
	})
}

func goByAnotherInterface(t *testing.T, mtu int) {
	t.Helper()
	needRoot(t)
	l := &lan{}
	for name, ns := range map[string]**netns.NS{"client": &l.client, "lb": &l.lb, "near": &l.near} {
		n, err := netns.New(fmt.Sprintf("hptest-xdp-%d-%s", os.Getpid(), name))
		must(t, err)
		t.Cleanup(func() { n.Close() })
		*ns = n
	}
	must(t, l.lb.Veth("eth0", l.client, "eth0", mtu))
	must(t, l.lb.Veth("eth1", l.near, "eth0", mtu))
	must(t, l.client.Address("eth0", "10.0.0.1/24"))
	must(t, l.lb.Address("eth0", "10.0.0.2/24"))
	must(t, l.lb.Address("eth1", "10.1.0.2/24"))
	must(t, l.near.Address("eth0", "10.1.0.11/24"))
	must(t, l.near.Address("lo", "10.2.0.1/32", "fd00:2::1/128"))
	must(t, l.client.Route("10.2.0.0/24", "10.0.0.2"))
	must(t, l.near.Route("10.0.0.0/24", "10.1.0.2"))
	must(t, l.lb.Do(func() error { return netns.Sysctl("net/ipv4/ip_forward", "1") })) // of the answers
	must(t, l.near.Do(func() error {
		pass, err := AttachPass("eth0") // a veth takes redirected frames too only with a program
		if err == nil {
			t.Cleanup(func() { pass.Close() })
		}
		return err
	}))
	serve(t, l.near, "near")
	d := l.start(t, Native)
	l.apply(t, d, webTable(lb.L2, "10.1.0.11"))
	resolved(t, d)
	if got, err := l.talk(vipHTTP4, 200_000); err != nil || got != "near 10.0.0.1 200000" {
		t.Errorf("got %q, %v", got, err)
	}
	if got, least := stats(t, d).Services["web"].Packets, uint64(200_000/mtu); got < least || mtu > 1500 && got > 3*least {
		t.Errorf("the program forwarded %d packets, want all of the connection's", got)
	}
}

func TestABackendsNewMACAddressIsTakenUp(t *testing.T) {
	l := newLAN(t, 1500)
	d := l.start(t, Native)
	serve(t, l.near, "near")
	l.apply(t, d, webTable(lb.L2, "10.0.0.11"))
	resolved(t, d)
	if got, err := l.talk(vipHTTP4, 1); err != nil {
		t.Fatalf("before: %q, %v", got, err)
	}
	must(t, l.near.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		m := mac("02:00:00:00:77:77")
		return errors.Join(netns.Sysctl("net/ipv4/conf/eth0/arp_notify", "1"), netlink.LinkSetHardwareAddr(link, m[:]))
	}))
	eventually(t, "new MAC address in the backend's entry", func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		got := d.store.backends[d.services["web"].members["10.0.0.11"].entry()].NextHop & (1<<48 - 1)
		if want := macBits(mac("02:00:00:00:77:77")); got != want {
			return fmt.Errorf("got %#x, want %#x", got, want)
		}
		return nil
	})
	if got, err := l.talk(vipHTTP4, 1); err != nil || got != "near 10.0.0.1 1" {
		t.Errorf("after: got %q, %v", got, err)
	}
}

func TestABackendThatCannotBeReachedIsSaidSoAndTakenUpWhenItCan(t *testing.T) {
	l := newLAN(t, 1500)
	d := l.start(t, Native)
	serve(t, l.near, "near")
	problem := func() string {
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, b := range d.services["web"].members {
			return b.problem
		}
		return ""
	}

	l.apply(t, d, webTable(lb.L2, "10.3.0.11"))
	if got, want := problem(), "10.3.0.11 is behind gateway 10.0.0.254: l2 needs it on the node's own link"; !strings.Contains(got, want) {
		t.Errorf("l2 by way of a gateway: got %q, want it to hold %q", got, want)
	}
	l.apply(t, d, webTable(lb.L2, "10.0.0.2"))
	if got, want := problem(), "10.0.0.2 is an address of this node"; !strings.Contains(got, want) {
		t.Errorf("the node itself: got %q, want it to hold %q", got, want)
	}
	l.apply(t, d, webTable(lb.L2, "10.9.0.1"))
	if got, want := problem(), "no route to 10.9.0.1"; !strings.Contains(got, want) {
		t.Errorf("no route: got %q, want it to hold %q", got, want)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if _, err := l.client.DialContext(ctx, "tcp", vipHTTP4); err == nil {
		t.Error("a connection to a backend without a way succeeded")
	}
	if got := stats(t, d).Verdicts[NoNeighbour].Packets; got == 0 {
		t.Error("no packet was counted as no_neighbour")
	}
	// The address comes up, on the link: the route event alone must be enough.
	must(t, l.near.Address("eth0", "10.9.0.1/24"))
	must(t, l.lb.Address("eth0", "10.9.0.2/24"))
	resolved(t, d)
	if got, err := l.talk(vipHTTP4, 1); err != nil || got != "near 10.0.0.1 1" {
		t.Errorf("after: got %q, %v", got, err)
	}
	if got := problem(); got != "" {
		t.Errorf("problem after it was solved: %q", got)
	}
}

func TestAnInterfaceThatIsMadeAnewGetsTheProgramAgain(t *testing.T) {
	l := newLAN(t, 1500)
	d := l.start(t, Native)
	serve(t, l.near, "near")
	l.apply(t, d, webTable(lb.L2, "10.0.0.11"))
	resolved(t, d)

	must(t, l.lb.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	}))
	eventually(t, "Attached tells of it", func() error {
		if err := d.Attached(); err == nil || !strings.Contains(err.Error(), "the program is not on eth0: ") {
			return fmt.Errorf("Attached says: %w", err)
		}
		return nil
	})
	if modes := d.Modes(); len(modes) != 0 {
		t.Errorf("modes without the interface: %v, want none", modes)
	}

	l.plug(t, l.lb, "lb", 1500)
	must(t, l.lb.Address("eth0", "10.0.0.2/24", "fd00::2/64"))
	eventually(t, "the program on the new interface", d.Attached)
	resolved(t, d)
	eventually(t, "connections again", func() error {
		got, err := l.talk(vipHTTP4, 1)
		if err == nil && got != "near 10.0.0.1 1" {
			return fmt.Errorf("answer %q", got)
		}
		return err
	})
}

func TestAttachedAsksTheKernel(t *testing.T) {
	l := newLAN(t, 1500)
	d := l.load(t)
	defer d.Close()
	if err := d.Attached(); err == nil || !strings.Contains(err.Error(), "the program is not on eth0: it has not been attached yet") {
		t.Errorf("before Attach: got %v", err)
	}
	must(t, l.lb.Do(d.Attach))
	must(t, l.lb.Do(d.Attach)) // again: nothing to do
	if err := d.Attached(); err != nil {
		t.Errorf("after Attach: got %v, want nil", err)
	}
	must(t, l.lb.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	}))
	if err := d.Attached(); err == nil || !strings.Contains(err.Error(), "the program is not on eth0: the interface it was on is gone") {
		t.Errorf("after the interface went: got %v", err)
	}
}

func TestAnInterfaceTakenByAnotherProgramIsNamed(t *testing.T) {
	l := newLAN(t, 1500)
	for _, tt := range []struct{ other, ours Mode }{{Native, Auto}, {Native, Native}, {Generic, Auto}, {Native, Generic}} {
		must(t, l.lb.Do(func() error {
			var objects passObjects
			if err := loadPassObjects(&objects, nil); err != nil {
				return err
			}
			defer objects.Close()
			eth0, err := net.InterfaceByName("eth0")
			if err != nil {
				return err
			}
			other, err := link.AttachXDP(link.XDPOptions{Program: objects.Pass, Interface: eth0.Index, Flags: xdpFlags(tt.other)})
			if err != nil {
				return err
			}
			defer other.Close()
			d, err := New(Config{Interfaces: []string{"eth0"}, Mode: tt.ours})
			if err != nil {
				return err
			}
			defer d.Close()
			err = d.Attach()
			if want := "another XDP program sits on eth0: `ip link set dev eth0 xdp off`"; err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s under %s: got %v, want it to hold %q", tt.ours, tt.other, err, want)
			}
			if err := d.Attached(); err == nil {
				t.Errorf("%s under %s: Attached is nil", tt.ours, tt.other)
			}
			return nil
		}))
	}
}

func TestAutoFallsBackToGenericWhereNativeIsRefused(t *testing.T) {
	needRoot(t)
	node, err := netns.New(fmt.Sprintf("hptest-xdp-%d-node", os.Getpid()))
	must(t, err)
	defer node.Close()
	must(t, node.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "br0"
		bridge := &netlink.Bridge{LinkAttrs: attrs} // which takes no native program
		if err := errors.Join(netlink.LinkAdd(bridge), netlink.LinkSetUp(bridge)); err != nil {
			return err
		}
		for _, mode := range []Mode{Auto, Native} {
			d, err := New(Config{Interfaces: []string{"br0"}, Mode: mode})
			if err != nil {
				return err
			}
			err = d.Attach()
			if mode == Auto && (err != nil || d.Modes()["br0"] != Generic) {
				t.Errorf("auto: got %v, %v, want generic", d.Modes(), err)
			}
			if want := "attach the program to br0 in native mode"; mode == Native && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("native: got %v, want %q", err, want)
			}
			if err := d.Close(); err != nil {
				return err
			}
		}
		return nil
	}))
}

// blackholesIn lists the blackhole routes that are marked as ours.
func blackholesIn(t *testing.T, ns *netns.NS) []string {
	t.Helper()
	var found []string
	must(t, ns.Do(func() error {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			routes, err := netlink.RouteListFiltered(family, &netlink.Route{Protocol: lb.KernelProtocol}, netlink.RT_FILTER_PROTOCOL)
			if err != nil {
				return err
			}
			for _, r := range routes {
				if r.Type == unix.RTN_BLACKHOLE {
					found = append(found, r.Dst.String())
				}
			}
		}
		return nil
	}))
	slices.Sort(found)
	return found
}

func TestVIPsHaveBlackholeRoutesWhileTheyAreApplied(t *testing.T) {
	l := newLAN(t, 1500)
	want := func(when string, routes ...string) {
		t.Helper()
		if got := blackholesIn(t, l.lb); !slices.Equal(got, routes) {
			t.Errorf("%s: blackhole routes %v, want %v", when, got, routes)
		}
	}
	// Left behind by a process that crashed.
	must(t, l.lb.Do(func() error {
		var errs []error
		for _, vip := range []string{"10.2.0.99", "10.2.0.1", "10.2.7.0/28", "10.2.8.0/28"} {
			errs = append(errs, netlink.RouteAdd(blackhole(lb.MustParseVIP(vip).Prefix)))
		}
		return errors.Join(errs...)
	}))
	d := l.load(t)
	l.apply(t, d, webTable(lb.L2, "10.0.0.11"))
	want("applied", "10.2.0.1/32", "fd00:2::1/128")
	l.apply(t, d, table("web", lb.L2, 13, []string{"10.2.0.1:80", "10.2.0.2:80"}, "10.0.0.11"))
	want("another VIP", "10.2.0.1/32", "10.2.0.2/32")
	prefixes := webTable(lb.L2, "10.0.0.11")
	prefixes.Service.VIPs = []lb.VIP{lb.MustParseVIP("10.2.0.0/24"), lb.MustParseVIP("10.2.0.16/28"), lb.MustParseVIP("fd00:2::/64")}
	l.apply(t, d, prefixes)
	want("prefixes", "10.2.0.0/24", "10.2.0.16/28", "fd00:2::/64")
	l.apply(t, d)
	want("nothing applied")
	must(t, d.Aggregate([]netip.Prefix{netip.MustParsePrefix("10.2.0.0/24"), netip.MustParsePrefix("fd00:2::/64")}))
	want("aggregates", "10.2.0.0/24", "fd00:2::/64")
	l.apply(t, d, webTable(lb.L2, "10.0.0.11"))
	want("VIPs in them", "10.2.0.0/24", "10.2.0.1/32", "fd00:2::/64", "fd00:2::1/128")
	must(t, d.Aggregate([]netip.Prefix{netip.MustParsePrefix("10.2.0.0/24")}))
	want("one aggregate less", "10.2.0.0/24", "10.2.0.1/32", "fd00:2::1/128")
	must(t, d.Close())
	want("closed")
}

// load is a Dataplane for lb's eth0 that is neither attached nor runs.
func (l *lan) load(t *testing.T) *Dataplane {
	t.Helper()
	var d *Dataplane
	must(t, l.lb.Do(func() (err error) {
		d, err = New(Config{Interfaces: []string{"eth0"}, Log: testLog(t)})
		return err
	}))
	return d
}

func TestTheKernelKeepsNextHopsResolvedUntilClose(t *testing.T) {
	l := newLAN(t, 1500)
	d := l.load(t)
	index := 0
	must(t, l.lb.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err == nil {
			index = link.Attrs().Index
		}
		return err
	}))
	byHand := mac("02:00:00:00:55:55")
	permanent := func(address string) {
		t.Helper()
		must(t, l.lb.Do(func() error {
			return netlink.NeighSet(&netlink.Neigh{LinkIndex: index, IP: net.ParseIP(address), State: netlink.NUD_PERMANENT, HardwareAddr: byHand[:]})
		}))
	}
	entries := func() map[string]netlink.Neigh {
		t.Helper()
		found := make(map[string]netlink.Neigh)
		must(t, l.lb.Do(func() error {
			list, err := netlink.NeighList(index, 0)
			for _, n := range list {
				found[n.IP.String()] = n
			}
			return err
		}))
		return found
	}

	permanent("10.0.0.99")
	l.apply(t, d,
		table("web", lb.L2, 13, []string{vipHTTP4}, "10.0.0.11", "fd00::11", "10.0.0.99"),
		table("far", lb.IPIP, 13, []string{vipHTTP6}, "10.3.0.11"))
	for _, address := range []string{"10.0.0.11", "fd00::11", "10.0.0.254"} {
		eventually(t, address+" resolved and managed", func() error {
			n := entries()[address]
			if managed := n.FlagsExt&netlink.NTF_EXT_MANAGED != 0; managed != kernelHas(t, 5, 16) || len(n.HardwareAddr) != 6 {
				return fmt.Errorf("entry %+v", n)
			}
			return nil
		})
	}
	// An administrator takes one over; the node learns of it and lets go.
	permanent("10.0.0.11")
	l.apply(t, d, table("web", lb.L2, 13, []string{vipHTTP4}, "10.0.0.11", "10.0.0.99", "10.0.0.98"))
	must(t, d.Close())
	after := entries()
	for address, n := range after {
		if n.FlagsExt&netlink.NTF_EXT_MANAGED != 0 {
			t.Errorf("%s is still managed after Close: %+v", address, n)
		}
	}
	for _, address := range []string{"10.0.0.11", "10.0.0.99"} {
		if n := after[address]; n.State != netlink.NUD_PERMANENT || !slices.Equal(n.HardwareAddr, byHand[:]) {
			t.Errorf("the administrator's entry of %s was touched: %+v", address, n)
		}
	}
}
