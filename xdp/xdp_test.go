package xdp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/lb"
)

// Addresses of the tests, as they stand in most of them.
const (
	client4 = "198.51.100.7:31337"
	client6 = "[2001:db8:100::7]:31337"
	vip4    = "192.0.2.1:443"
	vip6    = "[2001:db8:2::1]:443"

	node4 = "203.0.113.254" // the node's own, outer source
	node6 = "2001:db8:3::fe"

	nodeMAC    = "02:00:00:00:00:fe" // of the interface that packets leave by
	backendMAC = "02:00:00:00:00:b1"
)

// newDataplane is the program without interfaces: Process puts frames to the
// MAC address 00:00:00:00:00:00 through it, and 1 is the interface they came by.
func newDataplane(t testing.TB) *Dataplane {
	t.Helper()
	needRoot(t)
	d, err := New(Config{Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return d
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loading BPF programs needs root")
	}
}

// kernelHas says whether the kernel has what came with this version.
func kernelHas(t testing.TB, major, minor int) bool {
	t.Helper()
	var name unix.Utsname
	must(t, unix.Uname(&name))
	var has, hasMinor int
	_, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &has, &hasMinor)
	must(t, err)
	return has > major || has == major && hasMinor >= minor
}

// inShort is n, but short in -short mode: every packet takes its time where the
// machine is an emulated one.
func inShort(n, short int) int {
	if testing.Short() {
		return short
	}
	return n
}

// testLog shows the log of a test that fails. A benchmark prints tables, and does without.
func testLog(t testing.TB) *slog.Logger {
	if _, benchmark := t.(*testing.B); benchmark {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// way is the next hop that a test gives to a backend's address.
type way struct {
	mac     string // empty: no neighbour
	source  string // of the outer header
	ifindex int    // 1 is the one that packets come by
	mtu     int
	vlan    uint16
}

// setWay stands in for the kernel's routes and neighbours. It has to come
// before Apply for the backend's first packets.
func (d *Dataplane) setWay(address string, w way) {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := netip.MustParseAddr(address)
	r := d.hops.routes[a]
	if r == nil {
		r = &route{address: a, backends: make(map[*backend]struct{})}
		d.hops.routes[a] = r
	}
	r.looked, r.err = true, nil
	r.via = neighbour{w.ifindex, a}
	r.out, r.vlan, r.mtu = w.ifindex, w.vlan, w.mtu
	r.mac = mac(nodeMAC)
	r.source = netip.Addr{}
	if w.source != "" {
		r.source = netip.MustParseAddr(w.source)
	}
	delete(d.hops.neighbours, r.via)
	if w.mac != "" {
		d.hops.neighbours[r.via] = mac(w.mac)
	}
	d.pointAll(r)
}

func mac(s string) [6]byte {
	m, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return [6]byte(m)
}

// table is a service's table: slots go round the backends, which are named
// after their addresses.
func table(name string, forward lb.Forward, size int, vips []string, backends ...string) lb.Table {
	t := lb.Table{Service: lb.Service{Name: name, Forward: forward}}
	for i := range t.HashKey {
		t.HashKey[i] = byte(i)
	}
	ports := make(map[lb.Port]bool)
	for _, v := range vips {
		at := netip.MustParseAddrPort(v)
		t.Service.VIPs = append(t.Service.VIPs, lb.AddrVIP(at.Addr()))
		ports[lb.Port{Protocol: lb.TCP, Number: at.Port()}] = true
		ports[lb.Port{Protocol: lb.UDP, Number: at.Port()}] = true
	}
	t.Service.Ports = slices.Collect(maps.Keys(ports))
	for _, b := range backends {
		t.Service.Backends = append(t.Service.Backends, lb.Backend{Name: b, Address: netip.MustParseAddr(b), Weight: 100})
	}
	t.Backends = lb.SortBackends(t.Service.Backends)
	if len(backends) > 0 {
		for i := range size {
			t.Slots = append(t.Slots, uint16(i%len(backends)))
		}
	}
	return t
}

func apply(t testing.TB, d *Dataplane, tables ...lb.Table) {
	t.Helper()
	if err := d.Apply(context.Background(), tables); err != nil {
		t.Fatalf("Apply: %v", err)
	}
}

func stats(t testing.TB, d *Dataplane) Stats {
	t.Helper()
	s, err := d.Stats()
	if err != nil {
		t.Fatalf("Stats: %v", err)
	}
	return s
}

// moved is what the counters of b show that those of a do not, in words.
func moved(a, b Stats) map[string]Count {
	diff := make(map[string]Count)
	note := func(name string, before, after Count) {
		if before != after {
			diff[name] = Count{after.Packets - before.Packets, after.Bytes - before.Bytes, after.Flows - before.Flows}
		}
	}
	for v, after := range b.Verdicts {
		note(v.String(), a.Verdicts[v], after)
	}
	for name, after := range b.Services {
		before := a.Services[name]
		note(name, before.Count, after.Count)
		for backend, count := range after.Backends {
			note(name+"/"+backend, before.Backends[backend], count)
		}
	}
	return diff
}

func TestNewSaysWhatIsThereWhenAnInterfaceIsNot(t *testing.T) {
	_, err := New(Config{Interfaces: []string{"lan9", "lo", "wan9"}})
	if err == nil {
		t.Fatal("New succeeded")
	}
	for _, want := range []string{
		"interface lan9 does not exist: there are lo",
		"interface wan9 does not exist",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %q, want it to hold %q", err, want)
		}
	}
}

func TestKernelsTooOldAreNamed(t *testing.T) {
	for _, tt := range []struct {
		release string
		want    string
	}{
		{"4.19.0-21-amd64", "kernel 4.19.0-21-amd64 is too old: 5.10 or later is needed"},
		{"5.9.16", "kernel 5.9.16 is too old: 5.10 or later is needed"},
		{"5.10.0-8-amd64", ""},
		{"6.18.44-fc-v669", ""},
		{"10.0", ""},
		{"unheard-of", ""},
	} {
		got := ""
		if err := checkRelease(tt.release); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("kernel %s: got %q, want %q", tt.release, got, tt.want)
		}
	}
}

func TestMissingCapabilitiesAreNamed(t *testing.T) {
	needRoot(t)
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends without its capabilities
		none := [2]unix.CapUserData{}
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			failed <- err
			return
		}
		_, err := New(Config{})
		failed <- err
	}()
	err := <-failed
	if want := "CAP_BPF and CAP_NET_ADMIN are needed"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want it to hold %q", err, want)
	}
	if !errors.Is(err, unix.EPERM) {
		t.Errorf("%v does not wrap EPERM", err)
	}
}

func TestRunWithoutInterfacesEndsWithItsContext(t *testing.T) {
	d := newDataplane(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := d.Run(ctx); err != nil {
		t.Errorf("Run: got %v, want nil", err)
	}
	if err := d.Attached(); err != nil {
		t.Errorf("Attached: got %v, want nil: there is nothing to attach to", err)
	}
}

// Whoever still asks at a stop, a scrape of the metrics say, gets an answer.
func TestAClosedDataplaneSaysSo(t *testing.T) {
	d := newDataplane(t)
	web := table("web", lb.L2, 13, []string{vip4}, "203.0.113.1")
	web.Alive = web.Backends
	apply(t, d, web)
	must(t, d.Close())
	_, statsErr := d.Stats()
	_, verdictsErr := d.Verdicts()
	_, traceErr := d.Trace(lb.TCP, netip.MustParseAddrPort(client4), netip.MustParseAddrPort(vip4))
	for what, err := range map[string]error{
		"Stats": statsErr, "Verdicts": verdictsErr, "Trace": traceErr,
		"Apply": d.Apply(t.Context(), []lb.Table{web}),
		"Deny":  d.Deny([]netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}),
	} {
		if !errors.Is(err, errClosed) {
			t.Errorf("%s: got %v, want %v", what, err, errClosed)
		}
	}
	d.Caution(time.Second)
	d.tellTime(time.Now())
	d.judgeNow(time.Now())
	if at := d.Strayed("web"); !at.IsZero() {
		t.Errorf("Strayed: got %v, want never", at)
	}
	must(t, d.LearnFlows([]lb.FlowRecord{{Key: 1, Backend: 2}}))
	must(t, d.AllFlows(func(list []lb.FlowRecord) bool {
		t.Errorf("AllFlows: got %v, want none", list)
		return true
	}))
	must(t, d.reviewRecords(time.Now()))
}
