package xdp

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/internal/netns"
	"github.com/halfproxy/halfproxy/internal/packet"
	"github.com/halfproxy/halfproxy/lb"
)

// probedTable is webTable of a service whose check goes to the VIPs.
func probedTable(forward lb.Forward, backends ...string) lb.Table {
	t := table("web", forward, 13, []string{vipHTTP4, vipHTTP6}, backends...)
	t.Service.Check.Via = lb.ViaVIP
	t.Service.GUEPort = lb.DefaultGUEPort
	return t
}

// dial is DialVIP in lb's namespace.
func (l *lan) dial(ctx context.Context, d *Dataplane, network, backend, vip string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var conn net.Conn
	err := l.lb.Do(func() (err error) {
		conn, err = d.DialVIP(ctx, network, "web", backend, netip.MustParseAddrPort(vip))
		return err
	})
	return conn, err
}

// ask sends n bytes to the VIP by way of the backend and gives the answer.
func (l *lan) ask(d *Dataplane, backend, vip string, n int) (string, error) {
	conn, err := l.dial(context.Background(), d, "tcp", backend, vip)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := conn.Write(make([]byte, n)); err != nil {
		return "", err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	return string(answer), err
}

// passes checks that both VIPs answer by way of the backend.
func (l *lan) passes(t *testing.T, when string, d *Dataplane, backend, name string) {
	t.Helper()
	for vip, source := range map[string]string{vipHTTP4: "10.0.0.2", vipHTTP6: "fd00::2"} {
		got, err := l.ask(d, backend, vip, 1)
		if want := fmt.Sprintf("%s %s 1", name, source); err != nil || got != want {
			t.Errorf("%s: %s: got %q, %v, want %q", when, vip, got, err, want)
		}
	}
}

// decapsulate takes tunnels off at far until the test ends.
func (l *lan) decapsulate(t *testing.T) {
	t.Helper()
	decap := l.attachDecap(t)
	t.Cleanup(func() { decap.Close() })
}

func (l *lan) attachDecap(t *testing.T) *Decap {
	t.Helper()
	var decap *Decap
	must(t, l.far.Do(func() (err error) {
		decap, err = AttachDecap(DecapConfig{
			Interfaces: []string{"eth0"}, Tunnels: Tunnels{IPIP: true, GRE: true, GUE: true}, GUEPort: lb.DefaultGUEPort,
			Sources: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32"), netip.MustParsePrefix("fd00::2/128")},
			VIPs:    []lb.VIP{lb.MustParseVIP("10.2.0.1"), lb.MustParseVIP("fd00:2::1")},
		})
		return err
	}))
	return decap
}

func TestProbesReachVIPsByEveryWay(t *testing.T) {
	for _, tt := range []struct {
		forward  lb.Forward
		backend  string
		checksum bool
	}{
		{lb.L2, "10.0.0.11", false}, {lb.L2, "fd00::11", false},
		{lb.IPIP, "10.3.0.11", false}, {lb.IPIP, "fd00:3::11", false},
		{lb.GRE, "10.3.0.11", false}, {lb.GRE, "fd00:3::11", false},
		{lb.GUE, "10.3.0.11", false}, {lb.GUE, "fd00:3::11", false},
		{lb.GUE, "10.3.0.11", true}, {lb.GUE, "fd00:3::11", true}, // backends drop what is wrong
	} {
		t.Run(fmt.Sprintf("%s/%s/checksum %t", tt.forward, tt.backend, tt.checksum), func(t *testing.T) {
			l := newLAN(t, 1500)
			d := l.load(t) // not attached: probes do without the program for traffic
			t.Cleanup(func() { must(t, d.Close()) })
			server, name := l.near, "near"
			if tt.forward != lb.L2 {
				server, name = l.far, "far"
				l.decapsulate(t)
			}
			serve(t, server, name)
			web := probedTable(tt.forward, tt.backend)
			web.Service.GUEChecksum = tt.checksum
			l.apply(t, d, web)
			l.resolve(t, d)
			// More than a segment: none may be too long once it is encapsulated.
			for vip, source := range map[string]string{vipHTTP4: "10.0.0.2", vipHTTP6: "fd00::2"} {
				got, err := l.ask(d, tt.backend, vip, 200_000)
				if want := fmt.Sprintf("%s %s 200000", name, source); err != nil || got != want {
					t.Errorf("%s: got %q, %v, want %q", vip, got, err, want)
				}
			}
		})
	}
}

// resolve waits until the next hops are known to a Dataplane that does not run.
func (l *lan) resolve(t *testing.T, d *Dataplane) {
	t.Helper()
	eventually(t, "next hops", func() error {
		if err := l.lb.Do(d.refresh); err != nil {
			return err
		}
		if !d.waysKnown() {
			return errors.New("some are not known")
		}
		return nil
	})
}

func TestProbesPassEveryReversePathFilter(t *testing.T) {
	l := newLAN(t, 1500)
	d := l.start(t, Native)
	l.decapsulate(t)
	serve(t, l.near, "near")
	l.apply(t, d, probedTable(lb.L2, "10.0.0.11"))
	resolved(t, d)
	device := d.probes.device.near.Name
	for _, all := range []string{"0", "1", "2"} {
		for _, each := range []string{"0", "1", "2"} {
			must(t, l.lb.Do(func() error {
				return errors.Join(
					netns.Sysctl("net/ipv4/conf/all/rp_filter", all),
					netns.Sysctl("net/ipv4/conf/eth0/rp_filter", each),
					netns.Sysctl("net/ipv4/conf/"+device+"/rp_filter", each),
				)
			}))
			l.passes(t, fmt.Sprintf("rp_filter %s for all, %s for each interface", all, each), d, "10.0.0.11", "near")
		}
	}
}

func TestProbesOfABackendThatLacksSomethingFail(t *testing.T) {
	for _, tt := range []struct {
		name    string
		forward lb.Forward
		without func(t *testing.T, l *lan)
		want    func(error) bool
	}{
		{name: "a vip", without: func(t *testing.T, l *lan) { onLoopback(t, l.near, netlink.AddrDel) }, want: func(err error) bool {
			return isTimeout(err) || errors.Is(err, unix.ENETUNREACH) // so some kernels say at once, over IPv6
		}},
		{name: "a vip, that forwards to where it is", without: func(t *testing.T, l *lan) {
			onLoopback(t, l.near, netlink.AddrDel)
			must(t, l.router.Address("lo", "10.2.0.1/32", "fd00:2::1/128"))
			must(t, l.near.Do(func() error {
				return errors.Join(netns.Sysctl("net/ipv4/ip_forward", "1"), netns.Sysctl("net/ipv6/conf/all/forwarding", "1"),
					netns.Sysctl("net/ipv4/conf/all/rp_filter", "0"), netns.Sysctl("net/ipv4/conf/eth0/rp_filter", "0"))
			}))
			must(t, l.near.Route("10.2.0.0/24", "10.0.0.254"))
			must(t, l.near.Route("fd00:2::/64", "fd00::fe"))
			serve(t, l.router, "router")
		}, want: func(err error) bool { return errors.Is(err, unix.EHOSTUNREACH) || isTimeout(err) }},
		{name: "decapsulation", forward: lb.IPIP, without: func(t *testing.T, l *lan) { serve(t, l.far, "far") }, want: isTimeout},
		{name: "the service", without: func(*testing.T, *lan) {}, want: func(err error) bool { return errors.Is(err, unix.ECONNREFUSED) }},
		{name: "power", without: func(t *testing.T, l *lan) {
			must(t, l.near.Do(func() error {
				eth0, err := netlink.LinkByName("eth0")
				return cmp.Or(err, netlink.LinkSetDown(eth0))
			}))
		}, want: func(err error) bool {
			return err != nil && strings.Contains(err.Error(), "the MAC address of 10.0.0.11, the next hop to 10.0.0.11, is not known: is it up?")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLAN(t, 1500)
			backend := "10.0.0.11"
			if tt.forward != lb.L2 {
				backend = "10.3.0.11"
			}
			d := l.start(t, Native)
			tt.without(t, l)
			l.apply(t, d, probedTable(tt.forward, backend))
			if tt.name != "power" {
				resolved(t, d)
			}
			for _, vip := range []string{vipHTTP4, vipHTTP6} {
				if got, err := l.ask(d, backend, vip, 1); !tt.want(err) {
					t.Errorf("%s: got %q, %v", vip, got, err)
				}
			}
		})
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// TestProbesAreConnectionsLikeAnyOther has libraries talk over them.
func TestProbesAreConnectionsLikeAnyOther(t *testing.T) {
	for _, forward := range []lb.Forward{lb.L2, lb.IPIP, lb.GRE, lb.GUE} {
		for _, vip := range []string{"10.2.0.1", "fd00:2::1"} {
			t.Run(fmt.Sprintf("%s/%s", forward, vip), func(t *testing.T) {
				l := newLAN(t, 1500)
				d := l.start(t, Native)
				server, backend := l.near, "10.0.0.11"
				if forward != lb.L2 {
					server, backend = l.far, "10.3.0.11"
					l.decapsulate(t)
				}
				l.apply(t, d, probedTable(forward, backend))
				resolved(t, d)
				at := func(port string) string { return net.JoinHostPort(vip, port) }
				dial := func(ctx context.Context, network, address string) (net.Conn, error) {
					return l.dial(ctx, d, network, backend, address)
				}
				for _, speaks := range []func(*testing.T, *netns.NS, func(port string) string, dialer){speaksHTTP, speaksTLS, speaksUDP} {
					speaks(t, server, at, dial)
				}
			})
		}
	}
}

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

const requestSize = 100_000 // several segments, and TLS records longer than one

var echo = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	n, _ := io.Copy(io.Discard, r.Body)
	fmt.Fprintf(w, "%s %d", r.Proto, n)
})

func post(t *testing.T, transport *http.Transport, url, want string) {
	t.Helper()
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: 3 * time.Second}
	resp, err := client.Post(url, "text/plain", bytes.NewReader(make([]byte, requestSize)))
	if err != nil {
		t.Errorf("%s: %v", url, err)
		return
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != want {
		t.Errorf("%s: got %q, %v, want %q", url, body, err, want)
	}
}

func speaksHTTP(t *testing.T, server *netns.NS, at func(string) string, dial dialer) {
	listener, err := server.Listen("tcp", at("8080"))
	must(t, err)
	s := &http.Server{Handler: echo}
	go s.Serve(listener)
	defer s.Close()
	post(t, &http.Transport{DialContext: dial}, "http://"+at("8080")+"/", fmt.Sprintf("HTTP/1.1 %d", requestSize))
}

func speaksTLS(t *testing.T, server *netns.NS, at func(string) string, dial dialer) {
	s := httptest.NewUnstartedServer(echo)
	s.Listener.Close()
	var err error
	s.Listener, err = server.Listen("tcp", at("8443"))
	must(t, err)
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	post(t, &http.Transport{
		DialContext: dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true,
	}, "https://"+at("8443")+"/", fmt.Sprintf("HTTP/2.0 %d", requestSize))
}

func speaksUDP(t *testing.T, server *netns.NS, at func(string) string, dial dialer) {
	listener, err := server.ListenPacket("udp", at("53"))
	must(t, err)
	defer listener.Close()
	go func() {
		buffer := make([]byte, 2000)
		for {
			n, from, err := listener.ReadFrom(buffer)
			if err != nil {
				return
			}
			listener.WriteTo(append([]byte("you said "), buffer[:n]...), from)
		}
	}()
	talk := func(port string) (string, error) {
		conn, err := dial(context.Background(), "udp", at(port))
		if err != nil {
			return "", err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(time.Second))
		if _, err := conn.Write([]byte("hello")); err != nil {
			return "", err
		}
		buffer := make([]byte, 2000)
		n, err := conn.Read(buffer)
		return string(buffer[:n]), err
	}
	if got, err := talk("53"); err != nil || got != "you said hello" {
		t.Errorf("udp: got %q, %v, want an answer", got, err)
	}
	// The backend's ICMP error is from the VIP, too.
	if got, err := talk("54"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("udp to a closed port: got %q, %v, want connection refused", got, err)
	}
}

// TestProbesTakeTheWayOfTraffic compares what leaves by the program for probes
// with what leaves by the one for traffic, byte for byte.
func TestProbesTakeTheWayOfTraffic(t *testing.T) {
	for _, tt := range []struct {
		forward  lb.Forward
		backend  string
		differs  []int // bytes that follow the flow, which the two know differently
		vip, src string
		checksum bool
	}{
		{forward: lb.L2, backend: "10.0.0.11", vip: vipHTTP4, src: "10.0.0.2:4711", differs: []int{22, 24, 25}}, // the ttl is a probe's own
		{forward: lb.L2, backend: "fd00::11", vip: vipHTTP6, src: "[fd00::2]:4711", differs: []int{21}},
		{forward: lb.IPIP, backend: "10.3.0.11", vip: vipHTTP4, src: "10.0.0.2:4711"},
		{forward: lb.IPIP, backend: "10.3.0.11", vip: vipHTTP6, src: "[fd00::2]:4711"},
		{forward: lb.IPIP, backend: "fd00:3::11", vip: vipHTTP4, src: "10.0.0.2:4711", differs: []int{15, 16, 17}},
		{forward: lb.GRE, backend: "10.3.0.11", vip: vipHTTP6, src: "[fd00::2]:4711"},
		{forward: lb.GUE, backend: "10.3.0.11", vip: vipHTTP4, src: "10.0.0.2:4711", differs: []int{34, 35}},
		{forward: lb.GUE, backend: "fd00:3::11", vip: vipHTTP6, src: "[fd00::2]:4711", differs: []int{15, 16, 17, 54, 55}},
		{forward: lb.GUE, backend: "10.3.0.11", vip: vipHTTP4, src: "10.0.0.2:4711", differs: []int{34, 35, 40, 41}, checksum: true},
		{forward: lb.GUE, backend: "fd00:3::11", vip: vipHTTP6, src: "[fd00::2]:4711", differs: []int{15, 16, 17, 54, 55, 60, 61}, checksum: true},
	} {
		t.Run(fmt.Sprintf("%s/%s/%s/checksum %t", tt.forward, tt.backend, tt.vip, tt.checksum), func(t *testing.T) {
			l := newLAN(t, 1500)
			d := l.start(t, Native)
			web := probedTable(tt.forward, tt.backend)
			web.Service.GUEChecksum = tt.checksum
			l.apply(t, d, web)
			resolved(t, d)
			own := d.ports[0].mac
			frame := packet.TCP(tt.src, tt.vip, packet.SYN, packet.TOS(0xb8), packet.To(net.HardwareAddr(own[:]).String()))
			verdict, want, err := d.Process(frame)
			must(t, err)
			if verdict != Forwarded {
				t.Fatalf("traffic: got %s", verdict)
			}
			number := uint32(0)
			for n := range d.probes.numbers {
				number = n
			}
			const skbSize, markAt = 192, 8 // of struct __sk_buff
			context := make([]byte, skbSize)
			binary.NativeEndian.PutUint32(context[markAt:], number)
			run := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: context}
			action, err := d.probes.device.programs.SendProbe.Run(&run)
			must(t, err)
			const redirect = 7
			if action != redirect {
				t.Errorf("action: got %d, want %d", action, redirect)
			}
			got := run.DataOut
			if tt.checksum && !bytes.Equal(got, packet.WithUDPChecksum(got)) {
				t.Errorf("checksum: got %#x in %x", outerChecksum(got), got)
			}
			for _, at := range tt.differs {
				got[at], want[at] = 0, 0
			}
			if !bytes.Equal(got, want) {
				t.Errorf("got  %x\nwant %x", got, want)
			}
		})
	}
}

func TestProbesLeaveNothingInTheKernel(t *testing.T) {
	l := newLAN(t, 1500)
	before := kernelState(t, l.lb)
	d := l.load(t)
	serve(t, l.near, "near")
	l.apply(t, d, webTable(lb.L2, "10.0.0.11"))
	if got := kernelState(t, l.lb); slices.ContainsFunc(got, func(s string) bool {
		return strings.Contains(s, "hp-") || strings.Contains(s, "qdisc") && !slices.Contains(before, s)
	}) {
		t.Errorf("without a check that goes to a vip: %q", got)
	}
	l.apply(t, d, probedTable(lb.L2, "10.0.0.11"))
	l.resolve(t, d)
	l.passes(t, "applied", d, "10.0.0.11", "near")
	l.apply(t, d, webTable(lb.L2, "10.0.0.11"))
	if _, err := l.ask(d, "10.0.0.11", vipHTTP4, 1); err == nil {
		t.Error("a backend that is no longer probed answers")
	}
	l.apply(t, d, probedTable(lb.L2, "10.0.0.11"))
	l.passes(t, "again", d, "10.0.0.11", "near")
	must(t, d.Close())
	if got := kernelState(t, l.lb); !slices.Equal(got, before) {
		t.Errorf("after Close:\n%s\nbefore:\n%s", strings.Join(got, "\n"), strings.Join(before, "\n"))
	}
}

// kernelState lists what somebody may have put into a namespace: links, routes
// of all tables, rules, qdiscs, filters.
func kernelState(t *testing.T, ns *netns.NS) []string {
	t.Helper()
	var state []string
	must(t, ns.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			state = append(state, fmt.Sprintf("link %s %s", l.Attrs().Name, l.Type()))
			qdiscs, err := netlink.QdiscList(l)
			if err != nil {
				return err
			}
			for _, q := range qdiscs {
				state = append(state, fmt.Sprintf("qdisc %s %s", l.Attrs().Name, q))
			}
			for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
				filters, err := netlink.FilterList(l, parent)
				if err != nil {
					return err
				}
				for _, f := range filters {
					state = append(state, fmt.Sprintf("filter %s %s", l.Attrs().Name, f.(*netlink.BpfFilter).Name))
				}
			}
		}
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
			if err != nil {
				return err
			}
			for _, r := range routes {
				state = append(state, fmt.Sprintf("route %s", r))
			}
			rules, err := netlink.RuleList(family)
			if err != nil {
				return err
			}
			for _, r := range rules {
				state = append(state, r.String())
			}
		}
		return nil
	}))
	slices.Sort(state)
	return state
}

func TestProbesOfAProcessThatDied(t *testing.T) {
	l := newLAN(t, 1500)
	before := kernelState(t, l.lb)
	serve(t, l.near, "near")
	died := l.load(t)
	l.apply(t, died, probedTable(lb.L2, "10.0.0.11"))
	died.probes.device = nil // it never comes to remove it
	must(t, died.Close())
	must(t, l.lb.Do(func() error { // of one that died before an interface was renumbered
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "hp-vip-99"
		veth := netlink.NewVeth(attrs)
		veth.PeerName = "hp-way-99"
		return netlink.LinkAdd(veth)
	}))

	if got := blackholesIn(t, l.lb); len(got) > 0 {
		t.Fatalf("blackhole routes left: %v", got)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if _, err := l.lb.DialContext(ctx, "tcp", vipHTTP4); !isTimeout(err) {
		t.Errorf("to the vip by what is left: got %v, want a timeout", err)
	}

	d := l.load(t)
	l.apply(t, d, probedTable(lb.L2, "10.0.0.11"))
	l.resolve(t, d)
	l.passes(t, "taken over", d, "10.0.0.11", "near")
	must(t, d.Close())
	if got := kernelState(t, l.lb); !slices.Equal(got, before) {
		t.Errorf("after Close:\n%s\nbefore the one that died:\n%s", strings.Join(got, "\n"), strings.Join(before, "\n"))
	}
}

// TestNobodyElseReachesAVIP has the node's own connections to VIPs, and what it
// would forward, end where they ended before.
func TestNobodyElseReachesAVIP(t *testing.T) {
	l := newLAN(t, 1500)
	d := l.load(t)
	defer d.Close()
	serve(t, l.near, "near")
	l.apply(t, d, probedTable(lb.L2, "10.0.0.11"))
	l.resolve(t, d)
	must(t, l.lb.Do(func() error { return netns.Sysctl("net/ipv4/ip_forward", "1") }))
	for _, ns := range []*netns.NS{l.lb, l.client} {
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		if _, err := ns.DialContext(ctx, "tcp", vipHTTP4); !isTimeout(err) {
			t.Errorf("from %s: got %v, want a timeout", ns.Name, err)
		}
		cancel()
	}
	l.passes(t, "meanwhile", d, "10.0.0.11", "near")
}

func TestProbesGoOnWhenTablesGrowAndBackendsMove(t *testing.T) {
	l := newLAN(t, 1500)
	d := l.start(t, Native)
	l.decapsulate(t)
	serve(t, l.near, "near")
	serve(t, l.far, "far")
	both := probedTable(lb.IPIP, "10.3.0.11")
	l.apply(t, d, both)
	resolved(t, d)
	l.passes(t, "at first", d, "10.3.0.11", "far")
	conn, err := l.dial(context.Background(), d, "tcp", "10.3.0.11", vipHTTP4)
	must(t, err)
	defer conn.Close()

	many := probedTable(lb.IPIP, "10.3.0.11")
	for i := range 2 * firstBackends {
		many.Service.Backends = append(many.Service.Backends, lb.Backend{Name: fmt.Sprint("b", i), Address: netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})})
	}
	l.apply(t, d, many)
	l.passes(t, "with many", d, "10.3.0.11", "far")
	l.apply(t, d, both)
	l.passes(t, "alone again", d, "10.3.0.11", "far")

	conn.SetDeadline(time.Now().Add(time.Second))
	must(t, conn.(*net.TCPConn).CloseWrite())
	if got, err := io.ReadAll(conn); err != nil || string(got) != "far 10.0.0.2 0" {
		t.Errorf("a connection from before: got %q, %v, want an answer", got, err)
	}
}

func TestEachBackendIsAskedItself(t *testing.T) {
	l := newLAN(t, 1500)
	d := l.start(t, Native)
	serve(t, l.near, "near")
	must(t, l.router.Address("lo", "10.2.0.1/32", "fd00:2::1/128"))
	serve(t, l.router, "router")
	l.apply(t, d, probedTable(lb.L2, "10.0.0.11", "10.0.0.254"))
	resolved(t, d)
	for range 3 {
		l.passes(t, "one", d, "10.0.0.11", "near")
		l.passes(t, "other", d, "10.0.0.254", "router")
	}
}

func TestWhatIsLackingForProbesIsSaid(t *testing.T) {
	l := newLAN(t, 1500)
	d := l.load(t)
	defer d.Close()
	want := func(backend, vip, words string) {
		t.Helper()
		if _, err := l.dial(context.Background(), d, "tcp", backend, vip); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s by way of %s: got %v, want %q", vip, backend, err, words)
		}
	}
	want("10.0.0.11", vipHTTP4, "the data plane does not have the backend yet")
	l.apply(t, d, webTable(lb.L2, "10.0.0.11"))
	want("10.0.0.11", vipHTTP4, "the data plane does not have the backend yet") // to be asked
	l.apply(t, d, probedTable(lb.L2, "10.0.0.11", "10.3.0.11", "198.51.100.1"))
	must(t, l.lb.Do(d.refresh))
	want("10.3.0.11", vipHTTP4, "10.3.0.11 is behind gateway 10.0.0.254: l2 needs it on the node's own link")
	want("198.51.100.1", vipHTTP4, "no route to 198.51.100.1")
	must(t, l.lb.Do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addr, _ := netlink.ParseAddr("fd00::2/64")
		return netlink.AddrDel(eth0, addr)
	}))
	l.apply(t, d, probedTable(lb.L2, "10.0.0.11"))
	must(t, l.lb.Do(d.refresh))
	want("10.0.0.11", vipHTTP6, "the node has no IPv6 address to ask vip fd00:2::1 from: give one to its interface")
	must(t, l.lb.Do(func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: blackhole(netip.MustParsePrefix("10.2.0.1/32")).Dst, Type: unix.RTN_BLACKHOLE})
	}))
	want("10.0.0.11", vipHTTP4, "a blackhole route comes before ours, `ip route get 10.2.0.1` shows it: remove it")
}

func TestProbesGoOnWhenSomebodyTakesTheirDeviceAway(t *testing.T) {
	l := newLAN(t, 1500)
	d := l.start(t, Native)
	serve(t, l.near, "near")
	l.apply(t, d, probedTable(lb.L2, "10.0.0.11"))
	resolved(t, d)
	for _, away := range []struct {
		name string
		do   func(link netlink.Link) error
	}{
		{"removed", netlink.LinkDel},
		{"down", netlink.LinkSetDown},
		{"filters of the interface", func(netlink.Link) error {
			eth0, err := netlink.LinkByName("eth0")
			return cmp.Or(err, netlink.QdiscDel(clsact(eth0.Attrs().Index)), netlink.LinkSetAlias(eth0, "an event"))
		}},
	} {
		must(t, l.lb.Do(func() error {
			link, err := netlink.LinkByName(d.probes.device.near.Name)
			return cmp.Or(err, away.do(link))
		}))
		eventually(t, away.name, func() error {
			var errs []error
			for _, vip := range []string{vipHTTP4, vipHTTP6} {
				_, err := l.ask(d, "10.0.0.11", vip, 1)
				errs = append(errs, err)
			}
			d.mu.Lock()
			defer d.mu.Unlock()
			for _, hook := range d.probes.device.answers {
				there, err := hook.attached(d.netlink)
				if errs = append(errs, err); !there {
					errs = append(errs, errors.New("no filter for answers"))
				}
			}
			return errors.Join(errs...)
		})
	}
}

func TestProbesLeaveWhatIsNotTheirs(t *testing.T) {
	l := newLAN(t, 1500)
	var eth0 netlink.Link
	must(t, l.lb.Do(func() (err error) {
		eth0, err = netlink.LinkByName("eth0")
		return cmp.Or(err, netlink.QdiscAdd(clsact(eth0.Attrs().Index)))
	}))
	before := kernelState(t, l.lb)
	d := l.load(t)
	serve(t, l.near, "near")
	l.apply(t, d, probedTable(lb.L2, "10.0.0.11"))
	l.resolve(t, d)
	l.passes(t, "beside a qdisc of somebody's", d, "10.0.0.11", "near")
	must(t, d.Close())
	if got := kernelState(t, l.lb); !slices.Equal(got, before) {
		t.Errorf("after Close:\n%s\nbefore:\n%s", strings.Join(got, "\n"), strings.Join(before, "\n"))
	}

	// Where another's filter is in ours place the reason is in every probe.
	m, err := loadMSSProgram(MSSConfig{})
	must(t, err)
	defer m.Close()
	must(t, l.lb.Do(func() error {
		return netlink.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: eth0.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: netlink.MakeHandle(0, 1),
				Protocol: unix.ETH_P_ALL, Priority: filterPriority,
			},
			Fd: m.objects.FitMss.FD(), Name: "somebody", DirectAction: true,
		})
	}))
	before = kernelState(t, l.lb)
	d = l.load(t)
	l.apply(t, d, probedTable(lb.L2, "10.0.0.11"))
	if _, err := l.ask(d, "10.0.0.11", vipHTTP4, 1); err == nil || !strings.Contains(err.Error(), "another filter has priority 176 at the ingress of eth0") {
		t.Errorf("beside another's filter: got %v, want it named", err)
	}
	must(t, d.Close())
	if got := kernelState(t, l.lb); !slices.Equal(got, before) {
		t.Errorf("after Close:\n%s\nbefore:\n%s", strings.Join(got, "\n"), strings.Join(before, "\n"))
	}
}

func TestProbesFitTheirWay(t *testing.T) {
	l := newLAN(t, 1500)
	d := l.load(t)
	defer d.Close()
	l.decapsulate(t)
	serve(t, l.far, "far")
	must(t, l.lb.Do(func() error {
		_, dst, _ := net.ParseCIDR("10.3.0.0/24")
		return netlink.RouteReplace(&netlink.Route{Dst: dst, Gw: net.ParseIP("10.0.0.254"), MTU: 1400})
	}))
	l.apply(t, d, probedTable(lb.GUE, "10.3.0.11"))
	l.resolve(t, d)
	for vip, header := range map[string]int{vipHTTP4: 20, vipHTTP6: 40} {
		conn, err := l.dial(context.Background(), d, "tcp", "10.3.0.11", vip)
		must(t, err)
		raw, err := conn.(*net.TCPConn).SyscallConn()
		must(t, err)
		var info *unix.TCPInfo
		must(t, cmp.Or(raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }), err))
		conn.Close()
		const timestamps = 12
		if want := uint32(1400 - 32 - header - 20 - timestamps); info.Snd_mss != want {
			t.Errorf("%s: segments of %d, want %d", vip, info.Snd_mss, want)
		}
	}
	// To a datagram as long as that there is an answer, to a longer one there is none.
	for size, passes := range map[int]bool{1400 - 32 - 28: true, 1400 - 32 - 28 + 1: false} {
		listener, err := l.far.ListenPacket("udp", "10.2.0.1:7")
		must(t, err)
		conn, err := l.dial(context.Background(), d, "udp", "10.3.0.11", "10.2.0.1:7")
		must(t, err)
		conn.Write(make([]byte, size))
		listener.SetDeadline(time.Now().Add(200 * time.Millisecond))
		if n, _, err := listener.ReadFrom(make([]byte, 2000)); (err == nil && n == size) != passes {
			t.Errorf("a datagram of %d bytes: got %d bytes, %v, want it to pass: %t", size, n, err, passes)
		}
		conn.Close()
		listener.Close()
	}
}

// TestProbesLeaveInTheBackendsVLAN looks at the tag at the other end.
func TestProbesLeaveInTheBackendsVLAN(t *testing.T) {
	l := newLAN(t, 1500)
	d := l.load(t)
	defer d.Close()
	l.apply(t, d, probedTable(lb.L2, "10.0.0.11"))
	l.resolve(t, d)
	for _, vlan := range []uint16{20, 30 | vlan8021AD} {
		d.mu.Lock()
		for _, r := range d.hops.routes { // as if it led to a VLAN device on eth0
			r.vlan = vlan
			d.pointAll(r)
		}
		d.mu.Unlock()
		var socket int
		must(t, l.near.Do(func() (err error) {
			all := uint16(unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xff00)
			if socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all)); err != nil {
				return err
			}
			return cmp.Or(unix.SetsockoptInt(socket, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
				unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}))
		}))
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		l.dial(ctx, d, "tcp", "10.0.0.11", vipHTTP4) // nobody there speaks in VLANs
		cancel()
		tag, kind := tagOf(t, socket)
		unix.Close(socket)
		want := uint16(unix.ETH_P_8021Q)
		if vlan&vlan8021AD != 0 {
			want = unix.ETH_P_8021AD
		}
		if tag != vlan&0xfff || kind != want {
			t.Errorf("vlan %#x: got tag %d of kind %#x", vlan, tag, kind)
		}
	}
}

// tagOf reads frames until one is for the VIP, and gives its tag.
func tagOf(t *testing.T, socket int) (tag, kind uint16) {
	t.Helper()
	frame, control := make([]byte, 2000), make([]byte, 200)
	for {
		n, controlSize, _, _, err := unix.Recvmsg(socket, frame, control, 0)
		must(t, err)
		if n < 34 || !bytes.Equal(frame[30:34], []byte{10, 2, 0, 1}) {
			continue
		}
		messages, err := unix.ParseSocketControlMessage(control[:controlSize])
		must(t, err)
		for _, m := range messages {
			const tci, tpid = 16, 18 // of struct tpacket_auxdata
			return binary.NativeEndian.Uint16(m.Data[tci:]), binary.NativeEndian.Uint16(m.Data[tpid:])
		}
	}
}

// TestEndedProbesKeepNoPorts has the node end connections, as it ends those of tcp
// checks: all backends of a VIP share its ports, which would run out.
func TestEndedProbesKeepNoPorts(t *testing.T) {
	l := newLAN(t, 1500)
	d := l.start(t, Native)
	heard := make(chan string, 200)
	for _, address := range []string{vipHTTP4, vipHTTP6} {
		listener, err := l.near.Listen("tcp", address)
		must(t, err)
		defer listener.Close()
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					n, err := conn.Read(make([]byte, 1))
					heard <- fmt.Sprint(n, err)
				}()
			}
		}()
	}
	l.apply(t, d, probedTable(lb.L2, "10.0.0.11"))
	resolved(t, d)
	const probes = 50
	for range probes {
		for _, vip := range []string{vipHTTP4, vipHTTP6} {
			conn, err := l.dial(context.Background(), d, "tcp", "10.0.0.11", vip)
			must(t, err)
			conn.Close()
			// To the backend it is the end of a connection as any other.
			if got := <-heard; got != "0 EOF" {
				t.Errorf("%s: the backend read %s", vip, got)
			}
		}
	}
	within(t, time.Minute, "no ports kept", func() error {
		return l.lb.Do(func() error {
			for _, file := range []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"} {
				data, err := os.ReadFile(file)
				if err != nil {
					return err
				}
				if n := strings.Count(string(data), "\n") - 1; n > probes/10 {
					return fmt.Errorf("%s has %d sockets after %d connections", file, n, probes)
				}
			}
			return nil
		})
	})
}

// BenchmarkProbes is what a connection and its end cost, all of it on this
// machine: both ends and the network between. cpu-us/op is what all threads took.
func BenchmarkProbes(b *testing.B) {
	l := newLAN(b, 1500)
	d := l.start(b, Native)
	serve(b, l.near, "near")
	l.apply(b, d, probedTable(lb.L2, "10.0.0.11"))
	resolved(b, d)
	must(b, l.near.Address("lo", "10.0.0.12/32"))
	direct, err := l.near.Listen("tcp", "10.0.0.11:81")
	must(b, err)
	defer direct.Close()
	go func() {
		for {
			conn, err := direct.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	for name, dial := range map[string]func(ctx context.Context) (net.Conn, error){
		"direct": func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", "10.0.0.11:81")
		},
		"vip": func(ctx context.Context) (net.Conn, error) {
			return d.DialVIP(ctx, "tcp", "web", "10.0.0.11", netip.MustParseAddrPort(vipHTTP4))
		},
	} {
		b.Run(name, func(b *testing.B) {
			must(b, l.lb.Do(func() error {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				before := cpuTime()
				b.ResetTimer()
				for range b.N {
					conn, err := dial(ctx)
					if err != nil {
						return err
					}
					conn.Close()
				}
				b.ReportMetric(float64((cpuTime()-before).Microseconds())/float64(b.N), "cpu-us/op")
				return nil
			}))
		})
	}
}

func cpuTime() time.Duration {
	var usage unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
