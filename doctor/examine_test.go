package doctor

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/internal/netns"
	"github.com/halfproxy/halfproxy/lb"
	"github.com/halfproxy/halfproxy/xdp"
)

// A world is a node without a fault, and everything else at the other end of
// its only cable:
//
//	lb  eth0 10.3.0.11 ── eth0  net
//	                            10.3.0.254  the router, with a BGP daemon; behind it 10.9.0.11
//	                            10.3.0.1    the backend
//
// Both ends of the cable are as native veth needs them.
type world struct {
	lb, net *netns.NS
	pass    io.Closer // the program at net's end
	bgp     net.Listener
	cfg     Config
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	w := &world{lb: namespace(t, "hptest-doc-lb"), net: namespace(t, "hptest-doc-net")}
	must(t, w.lb.Veth("eth0", w.net, "eth0", 1600))
	must(t, w.lb.Address("eth0", "10.3.0.11/24"))
	must(t, w.net.Address("eth0", "10.3.0.254/24", "10.3.0.1/24"))
	must(t, w.lb.Route("10.9.0.0/24", "10.3.0.254"))
	must(t, w.net.Do(func() (err error) {
		w.pass, err = xdp.AttachPass("eth0")
		return err
	}))
	t.Cleanup(func() { w.pass.Close() })
	w.listen(t)
	w.cfg = Config{
		File: "halfproxy.yaml", Interfaces: []string{"eth0"}, XDPMode: native,
		ClusterListen: netip.MustParseAddrPort("10.3.0.11:7946"), Join: []string{"10.3.0.12:7946"},
		HTTPListen: netip.MustParseAddrPort("127.0.0.1:9870"),
		Peers:      []Peer{{Address: netip.MustParseAddr("10.3.0.254")}},
		Services: []lb.Service{
			{
				Name: "web", VIPs: []lb.VIP{lb.MustParseVIP("203.0.113.10"), lb.MustParseVIP("2001:db8::10")},
				Backends: []lb.Backend{{Name: "web1", Address: netip.MustParseAddr("10.3.0.1")}},
			},
			{
				Name: "dns", VIPs: []lb.VIP{lb.MustParseVIP("203.0.113.53")}, Forward: lb.IPIP,
				Backends: []lb.Backend{{Name: "ns1", Address: netip.MustParseAddr("10.9.0.11")}},
			},
		},
	}
	return w
}

func namespace(t *testing.T, name string) *netns.NS {
	t.Helper()
	ns, err := netns.New(name)
	must(t, err)
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Errorf("remove namespace: %v", err)
		}
	})
	return ns
}

// listen is the router's BGP daemon.
func (w *world) listen(t *testing.T) {
	t.Helper()
	var err error
	w.bgp, err = w.net.Listen("tcp", ":179")
	must(t, err)
	t.Cleanup(func() { w.bgp.Close() })
}

// listenStrictly is one that asks for a password (RFC 2385) and for packets that
// no router has passed on (RFC 5082).
func (w *world) listenStrictly(t *testing.T, password string) {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) {
			err = errors.Join(
				asNeighbour(int(fd), Peer{Address: netip.MustParseAddr("10.3.0.11"), Password: password}),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MINTTL, 255))
		}), err)
	}}
	must(t, w.net.Do(func() (err error) {
		w.bgp, err = config.Listen(t.Context(), "tcp4", "10.3.0.254:179")
		return err
	}))
	t.Cleanup(func() { w.bgp.Close() })
}

func (w *world) examine(t *testing.T) Report {
	t.Helper()
	var report Report
	must(t, w.lb.Do(func() error {
		report = Examine(t.Context(), w.cfg)
		return nil
	}))
	return report
}

// shell runs a command line in ns.
func shell(t *testing.T, ns *netns.NS, command string) string {
	t.Helper()
	var out strings.Builder
	cmd := exec.Command("sh", "-c", command)
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, ns.Start(cmd))
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s in %s: %v: %s", command, ns.Name, err, out.String())
	}
	return out.String()
}

// heed does what a remedy says: in a shell here or on the other machine, or to
// the configuration.
func (w *world) heed(t *testing.T, f Finding) {
	t.Helper()
	t.Logf("%s: %s", f.What, f.Remedy)
	option, value, _ := strings.Cut(f.Remedy, ": ")
	value, _, _ = strings.Cut(value, ",")
	switch {
	case f.Where == "":
		shell(t, w.lb, f.Remedy)
	case f.Where != w.cfg.File:
		shell(t, w.net, f.Remedy)
	case option == "node.xdp_mode":
		w.cfg.XDPMode, _, _ = strings.Cut(value, ";")
	case option == "node.interfaces":
		w.cfg.Interfaces = []string{"eth0"}
	case option == "cluster.listen":
		w.cfg.ClusterListen = netip.MustParseAddrPort(value)
	case option == `services "web", forward`:
		w.cfg.Services[0].Forward = lb.IPIP
	default:
		t.Fatalf("no way to heed %q in %s", f.Remedy, f.Where)
	}
}

func TestAHealthyHostHasNoFindingAndIsLeftAsItIs(t *testing.T) {
	w := newWorld(t)
	const state = "ip -d link; ip address; ip route show table all; ip -6 route show table all; ethtool -k eth0"
	// Lifetimes count down, a first packet leaves a neighbour: not these.
	before := shell(t, w.lb, state)
	report := w.examine(t)
	if len(report.Findings)+len(report.Unchecked) > 0 {
		t.Errorf("got %+v, want nothing", report)
	}
	if after := shell(t, w.lb, state); after != before {
		t.Errorf("the host changed: got\n%s\nwant\n%s", after, before)
	}
	for _, want := range []string{"interface eth0: veth, MTU 1600, native XDP", "backends: routes to 2, 2 next hops", "BGP peer: 10.3.0.254, TCP port 179"} {
		if !slices.Contains(report.LookedAt, want) {
			t.Errorf("looked at: got %q, want %q among them", report.LookedAt, want)
		}
	}
}

func TestEveryFaultIsFoundAndGoneOnceItsRemedyIsHeeded(t *testing.T) {
	comm, err := os.ReadFile("/proc/self/comm") // what occupy runs
	must(t, err)
	self := strings.TrimSpace(string(comm))
	for _, tt := range []struct {
		fault  string
		plant  func(t *testing.T, w *world)
		want   string
		remedy func(t *testing.T, w *world) // where the finding's own is for a person
		needs  string                       // a program
		others bool                         // other findings come with it
	}{
		{
			fault: "the interface is down",
			plant: func(t *testing.T, w *world) { shell(t, w.lb, "ip link set dev eth0 down") },
			want:  "eth0: is down",
		},
		{
			fault: "the other end of the cable is off",
			plant: func(t *testing.T, w *world) { shell(t, w.net, "ip link set dev eth0 down") },
			want:  "eth0: has no carrier, its other end eth0 is down",
		},
		{
			fault: "the interface is missing",
			plant: func(_ *testing.T, w *world) { w.cfg.Interfaces = []string{"eth7"} },
			want:  "eth7: there is no such interface, there is eth0",
		},
		{
			fault: "a strict filter, and answers would leave by another interface",
			plant: func(t *testing.T, w *world) {
				shell(t, w.lb, "ip link add eth1 type veth peer name far1 && ip link set dev eth1 up && ip link set dev far1 up && ip route add default dev eth1 && sysctl -qw net.ipv4.conf.all.rp_filter=1")
			},
			want: "eth0: rp_filter is strict, and the default route leaves by eth1: what is for this host itself and comes in here from afar is dropped, ICMP errors about outer packets, BGP and answers to checks among it",
		},
		{
			fault: "another program sits on the interface, put there by ip",
			plant: func(t *testing.T, w *world) {
				shell(t, w.lb, "ip link set dev eth0 xdpdrv object ../xdp/pass_bpfel.o section xdp")
			},
			want: `eth0: another XDP program "pass" (id ID, native) has the hook`,
		},
		{
			fault: "another program sits on the interface in generic mode",
			plant: func(t *testing.T, w *world) {
				shell(t, w.lb, "ip link set dev eth0 xdpgeneric object ../xdp/pass_bpfel.o section xdp")
			},
			want: `eth0: another XDP program "pass" (id ID, generic) has the hook`,
		},
		{
			fault: "another program sits on the interface, held by a bpf_link",
			plant: func(t *testing.T, w *world) {
				must(t, w.lb.Do(func() error {
					pass, err := xdp.AttachPass("eth0")
					if err == nil {
						t.Cleanup(func() { pass.Close() })
					}
					return err
				}))
			},
			want:  `eth0: another XDP program "pass" (id ID, native) has the hook, held by bpf_link ID`,
			needs: "bpftool",
		},
		{
			fault: "the other end of a veth has no program",
			plant: func(_ *testing.T, w *world) { w.pass.Close() },
			want:  "eth0: its other end eth0 has no XDP program: what a native program sends back stays in the queue there",
		},
		{
			fault: "the other end of a veth leaves checksums out",
			plant: func(t *testing.T, w *world) { shell(t, w.net, "ethtool -K eth0 tx on") },
			want:  "eth0: its other end eth0 leaves checksums to the hardware: a native program sends such packets on without, and backends drop them",
		},
		{
			fault: "the other end of a veth has more queues than this one",
			plant: func(t *testing.T, w *world) {
				shell(t, w.lb, "ip link add eth1 numrxqueues 1 type veth peer name eth1 numtxqueues 2 netns hptest-doc-net && ip link set dev eth1 up")
				shell(t, w.net, "ip link set dev eth1 up && ethtool -L eth1 tx 2")
				w.cfg.Interfaces = []string{"eth0", "eth1"}
			},
			want:   "eth1: takes no native program while its other end eth1 has more queues to send by than it has to receive by (1)",
			others: true,
		},
		{
			fault: "merged segments before an outer header",
			plant: func(t *testing.T, w *world) {
				w.cfg.XDPMode = generic
				shell(t, w.lb, "ethtool -K eth0 gro on")
			},
			want: `eth0: generic receive offload is on: in generic mode the program sees merged segments, which do not fit their outer header (service "dns"): they are dropped as too_big`,
		},
		{
			fault: "uncut segments before an outer header",
			plant: func(t *testing.T, w *world) {
				w.cfg.XDPMode = generic
				shell(t, w.net, "ethtool -K eth0 tx on")
			},
			want: `eth0: its other end eth0 leaves segments uncut: in generic mode the program sees them so, and they do not fit their outer header (service "dns"): they are dropped as too_big`,
		},
		{
			fault: "a backend without a route",
			plant: func(t *testing.T, w *world) { shell(t, w.lb, "ip route del 10.9.0.0/24") },
			want:  `service "dns", backend "ns1": no route to 10.9.0.11 (network is unreachable)`,
		},
		{
			fault: "a backend behind a blackhole",
			plant: func(t *testing.T, w *world) { shell(t, w.lb, "ip route add blackhole 10.9.0.11") },
			want:  `service "dns", backend "ns1": no route to 10.9.0.11 (a blackhole route swallows it)`,
		},
		{
			fault: "an l2 backend behind a gateway",
			plant: func(_ *testing.T, w *world) {
				w.cfg.Services[0].Backends[0].Address = netip.MustParseAddr("10.9.0.12")
			},
			want: `service "web", backend "web1": 10.9.0.12 is behind gateway 10.3.0.254: forward l2 needs it on the node's own link`,
		},
		{
			fault: "a backend that does not answer ARP",
			plant: func(t *testing.T, w *world) { shell(t, w.net, "ip address del 10.3.0.1/24 dev eth0") },
			want:  `service "web", backend "web1": 10.3.0.1 does not answer ARP on eth0`,
		},
		{
			fault: "a gateway that does not answer ARP",
			plant: func(t *testing.T, w *world) { shell(t, w.lb, "ip route replace 10.9.0.0/24 via 10.3.0.253") },
			want:  `service "dns", backend "ns1": gateway 10.3.0.253 does not answer ARP on eth0`,
		},
		{
			fault: "no room for an outer header",
			plant: func(t *testing.T, w *world) { shell(t, w.lb, "ip link set dev eth0 mtu 1500") },
			want:  `service "dns", backend "ns1": a packet of 1500 bytes has 1520 with its outer header, and the way by eth0 takes 1500: large packets do not get through`,
		},
		{
			fault: "no room for an outer header by the route",
			plant: func(t *testing.T, w *world) { shell(t, w.lb, "ip route replace 10.9.0.0/24 via 10.3.0.254 mtu 1400") },
			want:  `service "dns", backend "ns1": a packet of 1500 bytes has 1520 with its outer header, and the way by eth0 takes 1400: large packets do not get through`,
		},
		{
			fault: "a VIP on lo",
			plant: func(t *testing.T, w *world) { shell(t, w.lb, "ip address add 203.0.113.10/32 dev lo") },
			want:  "VIP 203.0.113.10: is an address of this host, on lo: it answers itself what the program does not take",
		},
		{
			fault: "an IPv6 VIP on lo",
			plant: func(t *testing.T, w *world) { shell(t, w.lb, "ip address add 2001:db8::10/128 dev lo") },
			want:  "VIP 2001:db8::10: is an address of this host, on lo: it answers itself what the program does not take",
		},
		{
			fault: "a VIP within a local route",
			plant: func(t *testing.T, w *world) { shell(t, w.lb, "ip route add local 203.0.113.0/24 dev lo") },
			want:  "VIP 203.0.113.10: a local route makes it this host's own (local 203.0.113.0/24 dev lo): it answers itself what the program does not take",
		},
		{
			fault: "a VIP with a route of its own",
			plant: func(t *testing.T, w *world) {
				shell(t, w.lb, "ip route add 203.0.113.10 via 10.3.0.254 metric 20")
			},
			want: "VIP 203.0.113.10: has a route of its own (203.0.113.10/32 via 10.3.0.254 dev eth0 metric 20): packets loop over it whenever the program is away",
		},
		{
			fault: "an IPv6 VIP with a route of its own",
			plant: func(t *testing.T, w *world) { shell(t, w.lb, "ip route add 2001:db8::10 dev eth0") },
			want:  "VIP 2001:db8::10: has a route of its own (2001:db8::10/128 dev eth0 metric 1024): packets loop over it whenever the program is away",
		},
		{
			fault: "the port of http.listen is taken",
			plant: func(t *testing.T, w *world) { occupy(t, w.lb, "tcp", "0.0.0.0:9870") },
			want:  "http.listen 127.0.0.1:9870: " + self + " (pid ID) has the TCP port",
		},
		{
			fault: "the UDP port of cluster.listen is taken",
			plant: func(t *testing.T, w *world) { occupy(t, w.lb, "udp", "10.3.0.11:7946") },
			want:  "cluster.listen 10.3.0.11:7946: " + self + " (pid ID) has the UDP port",
		},
		{
			fault: "cluster.listen is another host's address",
			plant: func(_ *testing.T, w *world) { w.cfg.ClusterListen = netip.MustParseAddrPort("10.3.0.12:7946") },
			want:  "cluster.listen 10.3.0.12:7946: 10.3.0.12 is no address of this host",
		},
		{
			fault:  "a router without a BGP daemon",
			plant:  func(_ *testing.T, w *world) { w.bgp.Close() },
			want:   "BGP peer 10.3.0.254: refuses connections to TCP port 179: it is there, and no BGP daemon listens",
			remedy: func(t *testing.T, w *world) { w.listen(t) },
		},
		{
			fault: "a router that is not there",
			plant: func(_ *testing.T, w *world) {
				w.cfg.Peers = append(w.cfg.Peers, Peer{Address: netip.MustParseAddr("10.3.0.253")})
			},
			want:   "BGP peer 10.3.0.253: does not answer on TCP port 179: it is off, a firewall drops it, or its password differs",
			remedy: func(t *testing.T, w *world) { shell(t, w.net, "ip address add 10.3.0.253/24 dev eth0") },
		},
		{
			fault: "a router with another password",
			plant: func(t *testing.T, w *world) {
				w.bgp.Close()
				w.listenStrictly(t, "secret")
				w.cfg.Peers[0].Password = "other"
			},
			want:   "BGP peer 10.3.0.254: does not answer on TCP port 179: it is off, a firewall drops it, or its password differs",
			remedy: func(_ *testing.T, w *world) { w.cfg.Peers[0].Password = "secret" },
		},
		{
			fault: "a router that there is no route to",
			plant: func(t *testing.T, w *world) {
				w.cfg.Peers = append(w.cfg.Peers, Peer{Address: netip.MustParseAddr("192.0.2.254")})
				shell(t, w.net, "ip address add 192.0.2.254/32 dev eth0")
			},
			want: "BGP peer 192.0.2.254: this host has no route to it",
		},
	} {
		t.Run(tt.fault, func(t *testing.T) {
			if _, err := exec.LookPath(tt.needs); tt.needs != "" && err != nil {
				t.Skip(err)
			}
			w := newWorld(t)
			tt.plant(t, w)
			is := func(f Finding) bool { return withoutIDs(f.What) == tt.want }
			found := w.examine(t).Findings
			i := slices.IndexFunc(found, is)
			if i < 0 {
				t.Fatalf("got %+v, want %q", found, tt.want)
			}
			if len(found) > 1 && !tt.others {
				t.Errorf("got %+v, want one finding", found)
			}
			if tt.remedy != nil {
				tt.remedy(t, w)
			} else {
				w.heed(t, found[i])
			}
			found = w.examine(t).Findings
			if slices.ContainsFunc(found, is) {
				t.Fatalf("after its remedy: got %q still", tt.want)
			}
			// What comes to light, or came with it, is mended alike.
			for range 4 {
				if len(found) > 0 {
					w.heed(t, found[0])
					found = w.examine(t).Findings
				}
			}
			if len(found) > 0 {
				t.Errorf("after all remedies: got %+v, want nothing", found)
			}
		})
	}
}

func TestARunningNodeIsNoFault(t *testing.T) {
	w := newWorld(t)
	occupy(t, w.lb, "tcp", "127.0.0.1:9870")
	occupy(t, w.lb, "udp", "10.3.0.11:7946")
	w.bgp.Close() // it has accepted the node's session, and takes no other
	shell(t, w.lb, "ip link set dev eth0 xdpdrv object ../xdp/pass_bpfel.o section xdp")
	for _, vip := range []string{"203.0.113.10", "2001:db8::10"} { // as it has while checks go by way of VIPs
		shell(t, w.lb, "ip route add "+vip+" dev eth0 proto 176 metric 512 && ip route add blackhole "+vip+" proto 176 metric 1024")
	}
	w.cfg.Running, w.cfg.Attached = true, []string{"eth0"}
	if report := w.examine(t); len(report.Findings) > 0 {
		t.Errorf("got %+v, want nothing", report.Findings)
	}

	w.cfg.Attached = nil
	report := w.examine(t)
	if len(report.Findings) != 1 || withoutIDs(report.Findings[0].What) != `eth0: another XDP program "pass" (id ID, native) has the hook` {
		t.Errorf("where the node's own is not: got %+v, want the program", report.Findings)
	}
}

func TestAProgramThatOutlivedItsNodeIsNobodyElses(t *testing.T) {
	w := newWorld(t)
	w.cfg.Pins = filepath.Join(bpffs(t), "halfproxy")
	start := func() *xdp.Dataplane {
		t.Helper()
		var d *xdp.Dataplane
		must(t, w.lb.Do(func() (err error) {
			d, err = xdp.New(xdp.Config{Interfaces: w.cfg.Interfaces, Pin: filepath.Join(w.cfg.Pins, "lb1")})
			if err != nil {
				return err
			}
			return d.Attach()
		}))
		return d
	}
	says := func(when string, want ...string) {
		t.Helper()
		var got []string
		for _, f := range w.examine(t).Findings {
			got = append(got, f.What)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", when, got, want)
		}
	}
	dir := filepath.Join(w.cfg.Pins, "lb1")

	node := start()
	says("while a node that was not asked runs", "eth0: another halfproxy that runs has its program there, pinned in "+dir)
	must(t, node.Leave())
	says("after a crash", "eth0: the program of a node that ended without an orderly stop goes on by its old tables, pinned in "+dir)

	node = start()
	w.cfg.Running, w.cfg.Attached = true, []string{"eth0"}
	says("after the next start")
	must(t, node.Close())
	w.cfg.Running, w.cfg.Attached = false, nil
	says("after an orderly stop")
}

func TestPinsNeedABPFFileSystem(t *testing.T) {
	w := newWorld(t)
	w.cfg.Pins = filepath.Join(t.TempDir(), "halfproxy")
	t.Cleanup(func() { unix.Unmount(filepath.Dir(w.cfg.Pins), 0) })
	found := w.examine(t).Findings
	if len(found) != 1 || found[0].Check != "pin" {
		t.Fatalf("got %+v, want that there is none", found)
	}
	w.heed(t, found[0])
	if found = w.examine(t).Findings; len(found) > 0 {
		t.Errorf("after its remedy: got %+v, want nothing", found)
	}
}

// bpffs is a BPF file system for this test.
func bpffs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, unix.Mount("bpf", dir, "bpf", 0, ""))
	t.Cleanup(func() { unix.Unmount(dir, 0) })
	return dir
}

func TestWithoutAConfigurationTheWayOutIsLookedAt(t *testing.T) {
	w := newWorld(t)
	shell(t, w.lb, "ip route add default via 10.3.0.254")
	w.cfg = Config{}
	report := w.examine(t)
	if len(report.Findings) > 0 || !slices.Contains(report.LookedAt, "interface eth0: veth, MTU 1600, native XDP") {
		t.Errorf("got %+v, want eth0 looked at and nothing found", report)
	}
}

// withoutIDs puts ID in the place of numbers that the kernel gives out.
func withoutIDs(s string) string {
	words := strings.Split(s, " ")
	for i, word := range words {
		if i == 0 {
			continue
		}
		switch words[i-1] {
		case "(id", "(pid", "bpf_link":
			words[i] = "ID" + strings.TrimLeft(word, "0123456789")
		}
	}
	return strings.Join(words, " ")
}

// occupy has a process of its own wait at a port in ns: this test's binary, see
// TestMain.
func occupy(t *testing.T, ns *netns.NS, network, address string) {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(self)
	cmd.Env = []string{"HPTEST_OCCUPY=" + network + " " + address}
	ready, err := cmd.StdoutPipe()
	must(t, err)
	must(t, ns.Start(cmd))
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	if _, err := io.ReadFull(ready, make([]byte, 1)); err != nil {
		t.Fatalf("wait for %s %s to be taken: %v", network, address, err)
	}
}

func TestMain(m *testing.M) {
	network, address, occupied := strings.Cut(os.Getenv("HPTEST_OCCUPY"), " ")
	if !occupied {
		os.Exit(runTests(m))
	}
	var err error
	if network == "udp" {
		var socket net.PacketConn
		if socket, err = net.ListenPacket(network, address); err == nil {
			fmt.Print("!")
			_, _, err = socket.ReadFrom(make([]byte, 1)) // nobody sends: it waits until killed
		}
	} else {
		var socket net.Listener
		if socket, err = net.Listen(network, address); err == nil {
			fmt.Print("!")
			_, err = socket.Accept()
		}
	}
	fmt.Fprintln(os.Stderr, "occupy:", err)
	os.Exit(1)
}

// runTests takes away what iproute2 leaves behind: where there is no BPF file
// system it mounts one to load a program.
func runTests(m *testing.M) int {
	const dir = "/sys/fs/bpf"
	before := inBPFFS(dir)
	code := m.Run()
	if !before && inBPFFS(dir) {
		if err := unix.Unmount(dir, 0); err != nil {
			fmt.Fprintf(os.Stderr, "unmount %s: %v\n", dir, err)
			return 1
		}
	}
	return code
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
