package backend

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/internal/netns"
	"github.com/halfproxy/halfproxy/lb"
	"github.com/halfproxy/halfproxy/xdp"
)

// A link joins a load balancer, which is this test with a raw socket, to the host:
//
//	lb 10.0.0.1 fd00::1 ── eth0 ─── eth0 ── host 10.0.0.11 fd00::11
//
// The client 198.51.100.7, 2001:db8:100::7 is behind lb. It is nobody's address
// there, so that no kernel answers what the host sends to it.
type link struct {
	t        *testing.T
	lb, host *netns.NS
	state    string
}

const (
	vip4, vip6       = "203.0.113.10", "2001:db8::10"
	prefix4, prefix6 = "203.0.113.64/28", "2001:db8:64::/64"
	last4, last6     = "203.0.113.79", "2001:db8:64::ffff" // in these
	client4, client6 = "198.51.100.7", "2001:db8:100::7"
	endpoint         = "127.0.0.1:9871"
)

func newLink(t *testing.T) *link {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces and BPF programs need root")
	}
	l := &link{t: t, state: t.TempDir()}
	for name, ns := range map[string]**netns.NS{"hptest-be-lb": &l.lb, "hptest-be-host": &l.host} {
		n, err := netns.New(name)
		must(t, err)
		t.Cleanup(func() {
			if err := n.Close(); err != nil {
				t.Errorf("remove namespace: %v", err)
			}
		})
		*ns = n
	}
	must(t, l.lb.Veth("eth0", l.host, "eth0", 1500))
	must(t, l.lb.Address("eth0", "10.0.0.1/24", "fd00::1/64"))
	must(t, l.host.Address("eth0", "10.0.0.11/24", "fd00::11/64"))
	must(t, l.host.Route("0.0.0.0/0", "10.0.0.1"))
	must(t, l.host.Route("::/0", "fd00::1"))
	return l
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (l *link) config() Config {
	registry := prometheus.NewRegistry()
	return Config{
		Interfaces: []string{"eth0"},
		VIPs:       []lb.VIP{lb.MustParseVIP(vip4), lb.MustParseVIP(vip6), lb.MustParseVIP(prefix4), lb.MustParseVIP(prefix6)},
		Decap:      xdp.Tunnels{IPIP: true, GRE: true, GUE: true},
		GUEPort:    lb.DefaultGUEPort,
		Sources:    []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("fd00::1/128")},
		FitMSS:     true,
		Listen:     netip.MustParseAddrPort(endpoint),
		StateDir:   l.state,
		Log:        slog.New(slog.NewTextHandler(l.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
		Registerer: registry,
		Gatherer:   registry,
	}
}

func (l *link) new(cfg Config) (b *Backend, err error) {
	err = l.host.Do(func() error {
		b, err = New(cfg)
		return err
	})
	return b, err
}

// start is a Backend that runs until stop is called, at the latest when the test
// ends.
func (l *link) start(cfg Config) (b *Backend, stop func()) {
	l.t.Helper()
	b, err := l.new(cfg)
	must(l.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	// Not in the host's namespace: a goroutine of its own never is.
	go func() { ran <- b.Run(ctx) }()
	stopped := false
	stop = func() {
		l.t.Helper()
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ran; err != nil {
			l.t.Errorf("Run: got %v, want nil", err)
		}
	}
	l.t.Cleanup(stop)
	return b, stop
}

// snapshot is everything on the host that a Backend may change, one a line.
func (l *link) snapshot() []string {
	l.t.Helper()
	var lines []string
	note := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	must(l.t, l.host.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, link := range links {
			attrs := link.Attrs()
			note("link %s mtu %d xdp %v", attrs.Name, attrs.MTU, attrs.Xdp != nil && attrs.Xdp.Attached)
			addresses, err := netlink.AddrList(link, netlink.FAMILY_ALL)
			if err != nil {
				return err
			}
			for _, a := range addresses {
				if a.IP.IsLinkLocalUnicast() {
					continue // the kernel's own, which comes in its own time
				}
				note("address %s on %s nodad %v", a.IPNet, attrs.Name, a.Flags&unix.IFA_F_NODAD != 0)
			}
			qdiscs, err := netlink.QdiscList(link)
			if err != nil {
				return err
			}
			for _, q := range qdiscs {
				note("qdisc %s on %s", q.Type(), attrs.Name)
			}
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_LOCAL, Protocol: unix.RTPROT_STATIC}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
			if err != nil {
				return err
			}
			for _, r := range routes {
				note("local %s dev %d scope %s local %v", r.Dst, r.LinkIndex, r.Scope, r.Type == unix.RTN_LOCAL)
			}
		}
		for _, conf := range []string{"all", "eth0", "eth1", "lo"} {
			for _, name := range []string{"arp_ignore", "arp_announce"} {
				path := filepath.Join("/proc/sys/net/ipv4/conf", conf, name)
				value, err := os.ReadFile(path)
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				if err != nil {
					return err
				}
				note("%s %s", path, value)
			}
		}
		return nil
	}))
	files, err := filepath.Glob(filepath.Join(l.state, "*"))
	must(l.t, err)
	for _, f := range files {
		note("file %s", f)
	}
	return lines
}

// wants holds what is on the host against lines.
func (l *link) wants(when string, lines []string) {
	l.t.Helper()
	if got := l.snapshot(); !slices.Equal(got, lines) {
		l.t.Errorf("%s:\ngot  %s\nwant %s", when, strings.Join(got, "\n     "), strings.Join(lines, "\n     "))
	}
}

func (l *link) hostDo(what string, fn func() error) {
	l.t.Helper()
	if err := l.host.Do(fn); err != nil {
		l.t.Fatalf("%s: %v", what, err)
	}
}

func (l *link) get(path string) (int, string) {
	l.t.Helper()
	client := http.Client{Transport: &http.Transport{DialContext: l.host.DialContext, DisableKeepAlives: true}, Timeout: 5 * time.Second}
	r, err := client.Get("http://" + endpoint + path)
	must(l.t, err)
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	must(l.t, err)
	return r.StatusCode, string(body)
}

// health is what /healthz answers.
func (l *link) health() (int, []string) {
	l.t.Helper()
	code, body := l.get("/healthz")
	var h struct {
		Status  string
		Reasons []string
	}
	must(l.t, json.Unmarshal([]byte(body), &h))
	if want := map[int]string{200: "ok", 503: "unhealthy"}[code]; h.Status != want || h.Reasons == nil {
		l.t.Errorf("/healthz: got %d with %s, want status %q and a list of reasons", code, body, want)
	}
	return code, h.Reasons
}

func TestEverythingIsTakenBackWhenItStops(t *testing.T) {
	l := newLink(t)
	l.hostDo("set a value that is to come back", func() error { return netns.Sysctl("net/ipv4/conf/eth0/arp_announce", "1") })
	before := l.snapshot()
	b, stop := l.start(l.config())
	during := strings.Join(l.snapshot(), "\n")
	for _, want := range []string{
		"link eth0 mtu 1500 xdp true", "qdisc clsact on eth0",
		"address 203.0.113.10/32 on lo", "address 2001:db8::10/128 on lo nodad true",
		"local 203.0.113.64/28 dev 1 scope host local true", "local 2001:db8:64::/64 dev 1 scope universe local true",
		"conf/all/arp_ignore 1", "conf/all/arp_announce 2", "conf/eth0/arp_ignore 1", "conf/eth0/arp_announce 2",
	} {
		if !strings.Contains(during, want) {
			t.Errorf("while it runs: got %s\nwant %s", during, want)
		}
	}
	if code, reasons := l.health(); code != http.StatusOK || len(reasons) > 0 {
		t.Errorf("health: got %d, %q, want 200", code, reasons)
	}
	stop()
	l.wants("stopped", before)
	if err := b.Close(); err != nil {
		t.Errorf("Close after Run: got %v, want nil", err)
	}
	l.wants("closed again", before)
}

func TestWhatWasThereBeforeIsLeftThere(t *testing.T) {
	l := newLink(t)
	must(t, l.host.Address("lo", vip4+"/32"))
	l.hostDo("add local routes", func() error { return errors.Join(l.local(prefix4), l.local(prefix6)) })
	l.hostDo("set sysctl", func() error { return netns.Sysctl("net/ipv4/conf/all/arp_ignore", "1") })
	before := l.snapshot()
	_, stop := l.start(l.config())
	stop()
	l.wants("stopped", before)
}

func TestWithoutTunnelsThereAreNoPrograms(t *testing.T) {
	l := newLink(t)
	cfg := l.config()
	cfg.Decap, cfg.Sources = xdp.Tunnels{}, nil
	_, stop := l.start(cfg)
	if got := strings.Join(l.snapshot(), "\n"); strings.Contains(got, "xdp true") || strings.Contains(got, "clsact") || !strings.Contains(got, vip4) {
		t.Errorf("got %s\nwant the VIPs alone", got)
	}
	stop()
	cfg = l.config()
	cfg.Decap, cfg.Sources, cfg.MSS = xdp.Tunnels{}, nil, 1300
	cfg.Registerer, cfg.Gatherer = nil, nil
	l.start(cfg)
	if got := strings.Join(l.snapshot(), "\n"); strings.Contains(got, "xdp true") || !strings.Contains(got, "clsact") {
		t.Errorf("with an MSS given: got %s\nwant clsact and no XDP program", got)
	}
}

// local adds a local route, as `ip route add local PREFIX dev lo` does.
func (l *link) local(prefix string) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.RouteAdd((&loopback{lo: lo}).route(lb.MustParseVIP(prefix)))
}

// die is the death of the process: its files close, and it takes nothing back.
func die(t *testing.T, b *Backend) {
	t.Helper()
	must(t, b.decap.Close())
	b.listener.Close()
	b.lo.netlink.Close()
	for _, s := range b.sysctls {
		s.file.Close()
	}
	must(t, b.journal.file.Close())
	b.journal = nil
}

func TestAProcessThatDiedIsCleanedUpAfter(t *testing.T) {
	l := newLink(t)
	must(t, l.lb.Veth("eth1", l.host, "eth1", 1500))
	l.hostDo("set a value that is to come back", func() error { return netns.Sysctl("net/ipv4/conf/eth0/arp_announce", "1") })
	before := l.snapshot()
	cfg := l.config()
	cfg.Interfaces = []string{"eth0", "eth1"}
	b, err := l.new(cfg)
	must(t, err)
	die(t, b)
	if got := strings.Join(l.snapshot(), "\n"); strings.Contains(got, "xdp true") || !strings.Contains(got, vip4) || !strings.Contains(got, "eth1/arp_ignore 1") || !strings.Contains(got, "clsact on eth1") {
		t.Fatalf("died: got %s\nwant its VIPs, sysctls and qdiscs, and no XDP program", got)
	}

	// The next one has another VIP in place of one, and an interface less.
	cfg = l.config()
	cfg.VIPs[0], cfg.VIPs[2] = lb.MustParseVIP("203.0.113.11"), lb.MustParseVIP("203.0.113.64/27")
	_, stop := l.start(cfg)
	got := strings.Join(l.snapshot(), "\n")
	if strings.Contains(got, vip4) || !strings.Contains(got, "203.0.113.11/32") || !strings.Contains(got, vip6) ||
		strings.Contains(got, prefix4) || !strings.Contains(got, "local 203.0.113.64/27") || !strings.Contains(got, prefix6) {
		t.Errorf("started again: got %s\nwant the new VIPs in place of the old ones", got)
	}
	if strings.Contains(got, "eth1/arp_ignore 1") || strings.Contains(got, "clsact on eth1") || !strings.Contains(got, "clsact on eth0") {
		t.Errorf("started again: got %s\nwant eth1 as it was", got)
	}
	stop()
	l.wants("stopped", before)
}

func TestASecondOneOnTheHostIsRefusedAndHarmless(t *testing.T) {
	l := newLink(t)
	l.start(l.config())
	during := l.snapshot()
	_, err := l.new(l.config())
	if want := "another halfproxy backend runs on this host"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want it to hold %q", err, want)
	}
	l.wants("after the second one", during)
}

func TestAStartThatFailsTakesBackWhatItDid(t *testing.T) {
	l := newLink(t)
	before := l.snapshot()
	for _, tt := range []struct {
		name  string
		spoil func(*Config)
		want  string
	}{
		{"an interface that is not there", func(c *Config) { c.Interfaces = []string{"eth0", "eth9"} }, "interface eth9 does not exist: there are lo, eth0"},
		{"an interface that is not there, and no programs", func(c *Config) {
			c.Interfaces, c.Decap, c.FitMSS = []string{"eth0", "eth9"}, xdp.Tunnels{}, false
		}, "interface eth9 does not exist: `ip link` lists those there are"},
		{"a VIP that is the host's own address", func(c *Config) { c.VIPs[1] = lb.MustParseVIP("10.0.0.11") }, "vip 10.0.0.11 is an address of eth0, which answers ARP for it: remove it there"},
		{"a prefix with the host's own address", func(c *Config) { c.VIPs[2] = lb.MustParseVIP("10.0.0.8/29") }, "vip 10.0.0.8/29 has in it 10.0.0.11, an address of eth0: give prefixes without it"},
		{"a prefix with the router's address", func(c *Config) { c.VIPs[2] = lb.MustParseVIP("10.0.0.0/30") }, "vip 10.0.0.0/30 has in it 10.0.0.1, a gateway of this host, which could not be reached any more: give VIPs without it"},
		{"a prefix with the router's address, IPv6", func(c *Config) { c.VIPs[2] = lb.MustParseVIP("fd00::/124") }, "vip fd00::/124 has in it fd00::1, a gateway of this host"},
		{"an address that the host does not have", func(c *Config) { c.Listen = netip.MustParseAddrPort("192.0.2.9:9871") }, "change http.listen"},
		{"a metric that is taken", func(c *Config) {
			c.Registerer.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "halfproxy_backend_healthy", Help: "another"}))
		}, "register metrics"},
	} {
		cfg := l.config()
		tt.spoil(&cfg)
		if _, err := l.new(cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want it to hold %q", tt.name, err, tt.want)
		}
		l.wants(tt.name, before)
	}
	l.hostDo("lo down", func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(lo)
	})
	cfg := l.config()
	cfg.Listen = netip.MustParseAddrPort("10.0.0.11:9871")
	if _, err := l.new(cfg); err == nil || !strings.Contains(err.Error(), "`ip link set lo up`") {
		t.Errorf("lo down: got %v, want the command that brings it up", err)
	}
}

func TestHealthSaysWhatIsMissing(t *testing.T) {
	l := newLink(t)
	before := l.snapshot()
	_, stop := l.start(l.config())
	vip := address(netip.MustParseAddr(vip6))
	onLo := func(change func(netlink.Link, *netlink.Addr) error) func() error {
		return func() error {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			return change(lo, vip)
		}
	}
	for _, tt := range []struct {
		spoil, mend func() error
		want        string
	}{
		{onLo(netlink.AddrDel), onLo(netlink.AddrAdd), "vip 2001:db8::10 is not on lo: restart, or `ip address add 2001:db8::10/128 dev lo`"},
		{
			func() error {
				return netlink.RouteDel(&netlink.Route{Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Dst: &net.IPNet{IP: net.IP{203, 0, 113, 64}, Mask: net.CIDRMask(28, 32)}})
			},
			func() error { return l.local(prefix4) },
			"vip 203.0.113.64/28 is not on lo: restart, or `ip route add local 203.0.113.64/28 dev lo`",
		},
		{
			func() error { return netns.Sysctl("net/ipv4/conf/all/arp_ignore", "0") },
			func() error { return netns.Sysctl("net/ipv4/conf/all/arp_ignore", "1") },
			"sysctl net.ipv4.conf.all.arp_ignore is 0: set it to 1",
		},
	} {
		l.hostDo("spoil", tt.spoil)
		if code, reasons := l.health(); code != http.StatusServiceUnavailable || len(reasons) != 1 || !strings.Contains(reasons[0], tt.want) {
			t.Errorf("got %d, %q, want 503 and %q", code, reasons, tt.want)
		}
		if _, metrics := l.get("/metrics"); !strings.Contains(metrics, "halfproxy_backend_healthy 0") {
			t.Errorf("%s: halfproxy_backend_healthy is not 0", tt.want)
		}
		l.hostDo("mend", tt.mend)
		if code, reasons := l.health(); code != http.StatusOK {
			t.Errorf("mended: got %d, %q, want 200", code, reasons)
		}
	}
	l.hostDo("remove clsact and its filter", func() error {
		clsact := netlink.QdiscAttrs{LinkIndex: l.index(), Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
		return netlink.QdiscDel(&netlink.Clsact{QdiscAttrs: clsact})
	})
	if code, reasons := l.health(); code != http.StatusServiceUnavailable || !strings.Contains(strings.Join(reasons, "\n"), "mss fitting is not on eth0") {
		t.Errorf("without the filter: got %d, %q", code, reasons)
	}
	stop()
	l.wants("stopped, though somebody took away from it", before)
}

// index is eth0's, in the calling thread's namespace.
func (l *link) index() int {
	i, err := net.InterfaceByName("eth0")
	must(l.t, err)
	return i.Index
}

func TestAnInterfaceThatGoesAwayIsToldOf(t *testing.T) {
	l := newLink(t)
	_, stop := l.start(l.config())
	l.hostDo("remove eth0", func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(eth0)
	})
	if code, reasons := l.health(); code != http.StatusServiceUnavailable || !strings.Contains(strings.Join(reasons, "\n"), "decapsulation is not on eth0") {
		t.Errorf("got %d, %q, want 503 and that decapsulation is not on eth0", code, reasons)
	}
	stop()
	if got := strings.Join(l.snapshot(), "\n"); strings.Contains(got, vip4) || strings.Contains(got, "file ") {
		t.Errorf("stopped: got %s\nwant no VIP and no journal", got)
	}
}

func TestAnInterfaceThatIsMadeAnewEndsTheRun(t *testing.T) {
	l := newLink(t)
	b, err := l.new(l.config())
	must(t, err)
	ran := make(chan error, 1)
	go func() { ran <- b.Run(t.Context()) }()
	l.hostDo("remove eth0", func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(eth0)
	})
	must(t, l.lb.Veth("eth0", l.host, "eth0", 1500))
	select {
	case err := <-ran:
		if !errors.Is(err, ErrMadeAnew) || !strings.HasPrefix(err.Error(), "eth0: ") {
			t.Errorf("Run: got %v, want ErrMadeAnew of eth0", err)
		}
	case <-time.After(5 * look):
		t.Fatal("Run goes on")
	}
	_, stop := l.start(l.config()) // nothing of the first is in its way
	if got := strings.Join(l.snapshot(), "\n"); !strings.Contains(got, "xdp true") {
		t.Errorf("another one: got %s\nwant the program on the new eth0", got)
	}
	stop()
}

// wire is the load balancer's end of the link.
type wire struct {
	t        *testing.T
	fd       int
	from, to net.HardwareAddr
}

func (l *link) wire() *wire {
	l.t.Helper()
	w := &wire{t: l.t}
	mac := func(ns *netns.NS) (index int, address net.HardwareAddr) {
		must(l.t, ns.Do(func() error {
			i, err := net.InterfaceByName("eth0")
			if err == nil {
				index, address = i.Index, i.HardwareAddr
			}
			return err
		}))
		return index, address
	}
	var index int
	index, w.from = mac(l.lb)
	_, w.to = mac(l.host)
	must(l.t, l.lb.Do(func() (err error) {
		protocol := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff})
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(protocol)); err != nil {
			return err
		}
		timeout := unix.Timeval{Usec: 50_000}
		return errors.Join(
			unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: index}),
			unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout))
	}))
	l.t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

// send puts layers, outermost first, into a frame to the host.
func (w *wire) send(etherType layers.EthernetType, all ...gopacket.SerializableLayer) {
	w.t.Helper()
	buffer := gopacket.NewSerializeBuffer()
	all = append([]gopacket.SerializableLayer{&layers.Ethernet{SrcMAC: w.from, DstMAC: w.to, EthernetType: etherType}}, all...)
	must(w.t, gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, all...))
	_, err := unix.Write(w.fd, buffer.Bytes())
	must(w.t, err)
}

// receive waits for a packet from the host that fits, nil if there is none.
func (w *wire) receive(fits func(gopacket.Packet) bool) gopacket.Packet {
	w.t.Helper()
	data := make([]byte, 4096)
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		n, from, err := unix.Recvfrom(w.fd, data, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		must(w.t, err)
		if from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if p := gopacket.NewPacket(slices.Clone(data[:n]), layers.LayerTypeEthernet, gopacket.Default); fits(p) {
			return p
		}
	}
	return nil
}

// A tunnel puts its headers before an inner packet of either family.
type tunnel struct {
	name string
	gre  bool
	gue  bool
	ipv6 bool // outside
}

func (tt tunnel) headers(inner6 bool) (layers.EthernetType, []gopacket.SerializableLayer) {
	protocol, etherType := layers.IPProtocolIPv4, layers.EthernetTypeIPv4
	if inner6 {
		protocol, etherType = layers.IPProtocolIPv6, layers.EthernetTypeIPv6
	}
	var between []gopacket.SerializableLayer
	outer := protocol
	udp := &layers.UDP{SrcPort: 50000, DstPort: lb.DefaultGUEPort}
	switch {
	case tt.gre:
		outer, between = layers.IPProtocolGRE, []gopacket.SerializableLayer{&layers.GRE{Protocol: etherType}}
	case tt.gue:
		outer, between = layers.IPProtocolUDP, []gopacket.SerializableLayer{udp, gopacket.Payload{0, byte(protocol), 0, 0}}
	}
	if tt.ipv6 {
		ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: outer, SrcIP: net.ParseIP("fd00::1"), DstIP: net.ParseIP("fd00::11")}
		udp.SetNetworkLayerForChecksum(ip)
		return layers.EthernetTypeIPv6, append([]gopacket.SerializableLayer{ip}, between...)
	}
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: outer, SrcIP: net.ParseIP("10.0.0.1"), DstIP: net.ParseIP("10.0.0.11"), Flags: layers.IPv4DontFragment}
	udp.SetNetworkLayerForChecksum(ip)
	return layers.EthernetTypeIPv4, append([]gopacket.SerializableLayer{ip}, between...)
}

// serve greets whoever connects to a VIP.
func (l *link) serve() {
	l.t.Helper()
	listener, err := l.host.Listen("tcp", ":80")
	must(l.t, err)
	l.t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				fmt.Fprintf(conn, "hello %s", conn.RemoteAddr())
			}()
		}
	}()
}

var everyTunnel = []tunnel{
	{name: "ipip"}, {name: "gre", gre: true}, {name: "gue", gue: true},
	{name: "ipip", ipv6: true}, {name: "gre", gre: true, ipv6: true}, {name: "gue", gue: true, ipv6: true},
}

// A whole TCP connection through each tunnel: the host's kernel takes the client's
// segments, so all of their bytes came through, and answers the client itself.
func TestConnectionsComeThroughEveryTunnelWithAnMSSThatFits(t *testing.T) {
	for _, mode := range []xdp.Mode{xdp.Native, xdp.Generic} {
		t.Run(mode.String(), func(t *testing.T) {
			l := newLink(t)
			if mode == xdp.Generic { // a veth refuses native mode while its peer sends by more queues than it has
				if out, err := exec.Command("ip", "netns", "exec", "hptest-be-lb", "ethtool", "-L", "eth0", "tx", "2").CombinedOutput(); err != nil {
					t.Fatalf("give the peer a second queue: %v: %s", err, out)
				}
			}
			b, stop := l.start(l.config())
			if got := b.decap.Modes()["eth0"]; got != mode {
				t.Errorf("mode: got %s, want %s", got, mode)
			}
			l.serve()
			w := l.wire()
			port := layers.TCPPort(40000)
			for _, tt := range everyTunnel {
				for _, vip := range []string{vip4, vip6, last4, last6} {
					port++
					inner6 := netip.MustParseAddr(vip).Is6()
					families := map[bool]string{false: "4", true: "6"}
					t.Run(fmt.Sprintf("%s %sin%s to %s", tt.name, families[inner6], families[tt.ipv6], vip), func(t *testing.T) {
						w.t = t
						// The biggest headers that may come: IPv6, UDP and GUE.
						w.connect(tt, vip, port, 1500-40-12-map[bool]int{false: 40, true: 60}[inner6])
					})
				}
			}
			l.wantMetrics()
			stop()
		})
	}
}

// wantMetrics holds the counters against what every tunnel's connection makes.
func (l *link) wantMetrics() {
	l.t.Helper()
	_, metrics := l.get("/metrics")
	for _, want := range []string{
		`halfproxy_backend_mss_lowered_total 24`, `halfproxy_backend_healthy 1`, `halfproxy_backend_refused_packets_total{reason="not_vip"} 0`,
	} {
		if !strings.Contains(metrics, want) {
			l.t.Errorf("/metrics: got no %q", want)
		}
	}
	for _, kind := range []string{"ipip", "gre", "gue"} {
		if strings.Contains(metrics, fmt.Sprintf("halfproxy_backend_decapsulated_packets_total{kind=%q} 0", kind)) {
			l.t.Errorf("/metrics: no packets of %s", kind)
		}
	}
}

// connect shakes hands and is greeted; mss is what the host has to tell.
func (w *wire) connect(tt tunnel, vip string, port layers.TCPPort, mss int) {
	w.t.Helper()
	inner6 := netip.MustParseAddr(vip).Is6()
	segment := func(tcp layers.TCP, payload string) {
		w.t.Helper()
		tcp.SrcPort, tcp.DstPort, tcp.Window = port, 80, 64240
		etherType, all := tt.headers(inner6)
		if inner6 {
			ip := &layers.IPv6{Version: 6, HopLimit: 57, NextHeader: layers.IPProtocolTCP, SrcIP: net.ParseIP(client6), DstIP: net.ParseIP(vip)}
			tcp.SetNetworkLayerForChecksum(ip)
			all = append(all, ip)
		} else {
			ip := &layers.IPv4{Version: 4, TTL: 57, Protocol: layers.IPProtocolTCP, SrcIP: net.ParseIP(client4), DstIP: net.ParseIP(vip)}
			tcp.SetNetworkLayerForChecksum(ip)
			all = append(all, ip)
		}
		w.send(etherType, append(all, &tcp, gopacket.Payload(payload))...)
	}
	answer := func(fits func(*layers.TCP) bool) *layers.TCP {
		p := w.receive(func(p gopacket.Packet) bool {
			tcp, ok := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
			return ok && tcp.DstPort == port && fits(tcp)
		})
		if p == nil {
			return nil
		}
		must(w.t, p.TransportLayer().(*layers.TCP).SetNetworkLayerForChecksum(p.NetworkLayer()))
		if err, mismatches := p.VerifyChecksums(); err != nil || len(mismatches) > 0 {
			w.t.Errorf("checksums of the answer: %v, %+v", err, mismatches)
		}
		source, _ := netip.AddrFromSlice(p.NetworkLayer().NetworkFlow().Src().Raw())
		if source.String() != vip {
			w.t.Errorf("the answer comes from %s, want %s", source, vip)
		}
		return p.Layer(layers.LayerTypeTCP).(*layers.TCP)
	}

	segment(layers.TCP{SYN: true, Seq: 1000, Options: []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{0x05, 0xb4}}}}, "")
	synAck := answer(func(tcp *layers.TCP) bool { return tcp.SYN && tcp.ACK })
	if synAck == nil {
		w.t.Fatal("no SYN-ACK")
	}
	if synAck.Options[0].OptionType != layers.TCPOptionKindMSS || int(binary.BigEndian.Uint16(synAck.Options[0].OptionData)) != mss {
		w.t.Errorf("options of the SYN-ACK: got %v, want an MSS of %d first", synAck.Options, mss)
	}
	segment(layers.TCP{ACK: true, Seq: 1001, Ack: synAck.Seq + 1}, "")
	data := answer(func(tcp *layers.TCP) bool { return len(tcp.Payload) > 0 })
	client := map[bool]string{false: client4, true: client6}[inner6]
	if want := "hello " + net.JoinHostPort(client, fmt.Sprint(uint16(port))); data == nil || string(data.Payload) != want {
		w.t.Errorf("data: got %v, want %q", data, want)
	}
}

func TestNoARPIsAnsweredForVIPs(t *testing.T) {
	l := newLink(t)
	w := l.wire()
	asked := func(address string) bool {
		w.send(layers.EthernetTypeARP, &layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: layers.ARPRequest,
			SourceHwAddress: w.from, SourceProtAddress: net.ParseIP("10.0.0.1").To4(),
			DstHwAddress: make([]byte, 6), DstProtAddress: net.ParseIP(address).To4(),
		})
		// The host answers in order: with this one there, no other is to come.
		w.send(layers.EthernetTypeARP, &layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: layers.ARPRequest,
			SourceHwAddress: w.from, SourceProtAddress: net.ParseIP("10.0.0.1").To4(),
			DstHwAddress: make([]byte, 6), DstProtAddress: net.ParseIP("10.0.0.11").To4(),
		})
		found := false
		if w.receive(func(p gopacket.Packet) bool {
			arp, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP)
			if !ok || arp.Operation != layers.ARPReply {
				return false
			}
			found = found || net.IP(arp.SourceProtAddress).String() == address
			return net.IP(arp.SourceProtAddress).String() == "10.0.0.11"
		}) == nil {
			t.Fatal("the host answers no ARP at all")
		}
		return found
	}
	must(t, l.host.Address("lo", vip4+"/32"))
	l.hostDo("add a local route", func() error { return l.local(prefix4) })
	if !asked(vip4) || !asked(last4) {
		t.Fatal("a host with an address on lo and the usual sysctls does not answer: the test shows nothing")
	}
	_, stop := l.start(l.config())
	for _, vip := range []string{vip4, last4} {
		if asked(vip) {
			t.Errorf("the host answers ARP for %s", vip)
		}
	}
	stop()
}

func TestAnAddressThatComesLaterEndsTunnelsToo(t *testing.T) {
	l := newLink(t)
	b, _ := l.start(l.config())
	must(t, l.host.Address("eth0", "10.0.0.12/24"))
	w := l.wire()
	for end := time.Now().Add(5 * look); ; time.Sleep(50 * time.Millisecond) {
		etherType, all := tunnel{}.headers(false)
		all[0].(*layers.IPv4).DstIP = net.ParseIP("10.0.0.12")
		udp := &layers.UDP{SrcPort: 1, DstPort: 2}
		ip := &layers.IPv4{Version: 4, TTL: 57, Protocol: layers.IPProtocolUDP, SrcIP: net.ParseIP(client4), DstIP: net.ParseIP(vip4)}
		udp.SetNetworkLayerForChecksum(ip)
		w.send(etherType, append(all, ip, udp)...)
		s, err := b.decap.Stats()
		must(t, err)
		if s.IPIP > 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("got %+v, want packets taken off", s)
		}
	}
}
