package xdp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/halfproxy/halfproxy/lb"
)

func TestNoPacketIsLostWhenProcessesTakeOverFromEachOther(t *testing.T) {
	takeovers, least := inShort(50, 5), uint64(inShort(1_000_000, 50_000))
	r := newRange(t, 1)
	d := r.process(t, 0, Native)
	r.serve(t, 0, d)
	s := r.aim(t, 0)
	s.wantThrough(t, "before", true)

	stop := s.fire(t)
	begin := time.Now()
	var slowest time.Duration
	for i := range takeovers {
		must(t, d.Leave()) // all that the end of a process does to the kernel's objects
		d = r.process(t, 0, Native)
		if !d.TakingOver() {
			t.Fatal("the program of the process before was not found")
		}
		r.serve(t, 0, d)
		if i%3 == 1 { // maps of other sizes than those before
			d.mu.Lock()
			must(t, d.grow(d.pages.size+uint32(i), d.entries.size*2))
			d.mu.Unlock()
		}
		at := time.Now()
		r.takeOver(t, 0, d)
		slowest = max(slowest, time.Since(at))
		if err := d.Attached(); err != nil {
			t.Fatal(err)
		}
	}
	s.wantSent(t, least)
	took := time.Since(begin)
	stop()
	if lost := s.lost(); lost != 0 {
		t.Errorf("%d of %d packets were lost", lost, s.sent())
	}
	t.Logf("%d takeovers in %v, %d packets, %.2f Mpps, slowest switch %v",
		takeovers, took.Round(time.Millisecond), s.sent(), float64(s.sent())/took.Seconds()/1e6, slowest.Round(time.Microsecond))

	must(t, d.Close())
	s.wantThrough(t, "after Close", false)
	if left := r.pinned(t); len(left) > 0 {
		t.Errorf("left after Close: %v", left)
	}
}

func TestTheTablesOfTheProcessBeforeCountUntilTheNewOnesAreIn(t *testing.T) {
	for _, mode := range []Mode{Native, Generic} {
		t.Run(mode.String(), func(t *testing.T) {
			r := newRange(t, 1)
			s := r.aim(t, 0)
			d := r.process(t, 0, mode)
			if d.TakingOver() {
				t.Error("the first process takes over from nobody")
			}
			r.serve(t, 0, d)
			s.wantThrough(t, "first process", true)
			must(t, d.Leave())
			s.wantThrough(t, "no process", true)

			d = r.process(t, 0, Auto)
			if !d.TakingOver() || d.Modes()["eth0"] != mode {
				t.Errorf("got taking over %t in mode %s, want true and %s", d.TakingOver(), d.Modes()["eth0"], mode)
			}
			if err := d.Attached(); err != nil {
				t.Errorf("Attached: got %v, want nil: a program is there", err)
			}
			if _, err := d.Trace(lb.TCP, netip.MustParseAddrPort(client4), netip.MustParseAddrPort(vip4)); err == nil {
				t.Error("Trace answers for a program that does not run yet")
			}
			s.wantThrough(t, "second process, no tables yet", true)
			if got := stats(t, d).Verdicts[Forwarded].Packets; got != 0 {
				t.Errorf("the new program counted %d packets before it was there", got)
			}
			r.serve(t, 0, d)
			r.takeOver(t, 0, d)
			s.wantThrough(t, "second process", true)
			if got := stats(t, d).Verdicts[Forwarded].Packets; got != 1000 {
				t.Errorf("the new program counted %d packets, want 1000", got)
			}
			must(t, d.Close())
			if left := r.pinned(t); len(left) > 0 {
				t.Errorf("left after Close: %v", left)
			}
		})
	}
}

func TestAStopLeavesNothingPinnedHoweverFarItHadCome(t *testing.T) {
	r := newRange(t, 1)
	s := r.aim(t, 0)
	for _, tt := range []struct {
		name string
		stop func(d *Dataplane)
	}{
		{"before tables", func(*Dataplane) {}},
		{"after tables", func(d *Dataplane) { r.serve(t, 0, d) }},
		{"after the takeover", func(d *Dataplane) { r.serve(t, 0, d); r.takeOver(t, 0, d) }},
		{"after the maps grew", func(d *Dataplane) {
			r.serve(t, 0, d)
			r.takeOver(t, 0, d)
			d.mu.Lock()
			defer d.mu.Unlock()
			must(t, d.grow(2*d.pages.size, 2*d.entries.size))
		}},
	} {
		before := r.process(t, 0, Native)
		r.serve(t, 0, before)
		must(t, before.Leave())
		s.wantThrough(t, tt.name+": process gone", true)
		d := r.process(t, 0, Native)
		tt.stop(d)
		must(t, d.Close())
		s.wantThrough(t, tt.name+": stopped", false)
		if left := r.pinned(t); len(left) > 0 {
			t.Errorf("%s: left %v", tt.name, left)
		}
		if _, err := os.Stat(filepath.Join(r.bpffs, "halfproxy", "lb0%2eexample%2enet")); err == nil {
			t.Errorf("%s: the node's directory is left", tt.name)
		}
		if left := blackholesIn(t, r.nodes[0]); len(left) > 0 {
			t.Errorf("%s: blackhole routes left: %v", tt.name, left)
		}
	}
}

func TestPinsNameWhatRunsAndNothingElse(t *testing.T) {
	r := newRange(t, 1)
	const node = "halfproxy/lb0%2eexample%2enet/"
	numbers := func() []string {
		var found []string
		for _, path := range r.pinned(t) {
			number, _, _ := strings.Cut(strings.TrimPrefix(path, node), "/")
			if !slices.Contains(found, number) {
				found = append(found, number)
			}
		}
		return found
	}
	d := r.process(t, 0, Native)
	r.serve(t, 0, d)
	for _, want := range []string{"links/eth0", "1/programs/eth0", "1/maps/vips", "1/maps/services", "1/maps/slots", "1/maps/backends"} {
		if !slices.Contains(r.pinned(t), node+want) {
			t.Errorf("got %v, want %s among them", r.pinned(t), want)
		}
	}
	d.mu.Lock()
	must(t, d.grow(2*d.pages.size, d.entries.size))
	d.mu.Unlock()
	if got := numbers(); !slices.Equal(got, []string{"2", "links"}) {
		t.Errorf("after the maps grew: got %v, want 2 in the place of 1", got)
	}
	must(t, d.Leave())

	// An upgrade that failed on its way left these.
	must(t, os.MkdirAll(filepath.Join(r.bpffs, node, "7", mapsDir), 0o700))
	stray, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	must(t, err)
	must(t, stray.Pin(filepath.Join(r.bpffs, node, "7", mapsDir, "vips")))
	stray.Close()
	d = r.process(t, 0, Native)
	if got := numbers(); !slices.Equal(got, []string{"2", "7", "links"}) {
		t.Errorf("before the takeover: got %v, want those that were there", got)
	}
	r.serve(t, 0, d)
	r.takeOver(t, 0, d)
	if got := numbers(); !slices.Equal(got, []string{"8", "links"}) {
		t.Errorf("after the takeover: got %v, want 8 alone", got)
	}
	must(t, d.Close())
}

// What first fragments said would be lost with the maps, and the other fragments
// with it.
func TestFragmentsThatAreUnderWayFindTheirPortsAfterATakeover(t *testing.T) {
	r := newRange(t, 1)
	d := r.process(t, 0, Native)
	r.serve(t, 0, d)
	key, want := bpfFragmentKey{Id: 4711, Family: 4}, bpfFragment{Until: 1 << 60, Ports: 0x01020304}
	must(t, d.store.maps[bpfMapFragments].Put(key, want))
	for _, change := range []func(d *Dataplane){
		func(*Dataplane) {},
		func(d *Dataplane) { // the map as another version has it
			must(t, d.store.maps[bpfMapFragments].Unpin())
			other, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 44, ValueSize: 8, MaxEntries: 16})
			must(t, err)
			must(t, other.Pin(filepath.Join(d.pins.dir, fmt.Sprint(d.pins.current), mapsDir, bpfMapFragments)))
			other.Close()
			want = bpfFragment{}
		},
	} {
		change(d)
		must(t, d.Leave())
		d = r.process(t, 0, Native)
		r.serve(t, 0, d)
		r.takeOver(t, 0, d)
		var got bpfFragment
		if err := d.store.maps[bpfMapFragments].Lookup(key, &got); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	must(t, d.Close())
	if left := r.pinned(t); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestNeighboursOfBackendsThatWentWhileNoProcessRanAreLetGo(t *testing.T) {
	if !kernelHas(t, 5, 16) {
		t.Skip("the kernel has no managed neighbours")
	}
	r := newRange(t, 1)
	managed := func() (found []string) {
		t.Helper()
		must(t, r.nodes[0].Do(func() error {
			list, err := netlink.NeighList(0, netlink.FAMILY_V4)
			for _, n := range list {
				if n.FlagsExt&netlink.NTF_EXT_MANAGED != 0 {
					found = append(found, n.IP.String())
				}
			}
			return err
		}))
		slices.Sort(found)
		return found
	}
	want := func(when string, addresses ...string) {
		t.Helper()
		if got := managed(); !slices.Equal(got, addresses) {
			t.Errorf("%s: managed neighbours %v, want %v", when, got, addresses)
		}
	}
	serve := func(d *Dataplane, backends ...string) {
		t.Helper()
		must(t, r.nodes[0].Do(func() error {
			return d.Apply(context.Background(), []lb.Table{table("web", lb.L2, 1021, []string{vip4}, backends...)})
		}))
	}
	must(t, r.nodes[0].Do(func() error { // an administrator's
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		return netlink.NeighSet(&netlink.Neigh{LinkIndex: eth0.Index, IP: net.ParseIP("10.0.0.77"), Flags: netlink.NTF_USE, FlagsExt: netlink.NTF_EXT_MANAGED})
	}))
	d := r.process(t, 0, Native)
	serve(d, "10.0.0.31", "10.0.0.32")
	want("served", "10.0.0.31", "10.0.0.32", "10.0.0.77")
	must(t, d.Leave())

	d = r.process(t, 0, Native)
	serve(d, "10.0.0.31")
	want("before the takeover", "10.0.0.31", "10.0.0.32", "10.0.0.77")
	r.takeOver(t, 0, d)
	must(t, r.nodes[0].Do(d.refresh))
	want("after the takeover", "10.0.0.31", "10.0.0.77")
	must(t, d.Leave())

	d = r.process(t, 0, Native)
	must(t, r.nodes[0].Do(d.Close)) // before it had tables
	want("closed", "10.0.0.77")
}

func TestAnInterfaceThatWentWhileNoProcessRanGetsTheProgramAnew(t *testing.T) {
	r := newRange(t, 1)
	for _, meanwhile := range []bool{false, true} { // with a process that has not taken over yet
		d := r.process(t, 0, Native)
		r.serve(t, 0, d)
		must(t, d.Leave())
		if meanwhile {
			d = r.process(t, 0, Native)
		}
		must(t, r.nodes[0].Do(func() error {
			eth0, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return netlink.LinkDel(eth0)
		}))
		if !meanwhile {
			if err := r.nodes[0].Do(func() error {
				_, err := New(Config{Interfaces: []string{"eth0"}, Pin: r.pin(0)})
				return err
			}); err == nil {
				t.Error("New succeeded without its interface")
			}
		}
		r.plug(t, 0, "eth0")
		if meanwhile {
			must(t, r.nodes[0].Do(d.refresh))
		} else {
			d = r.process(t, 0, Native)
		}
		if err := d.Attached(); err != nil || d.TakingOver() {
			t.Errorf("got %v, taking over %t, want the program itself on the new interface", err, d.TakingOver())
		}
		r.serve(t, 0, d)
		r.aim(t, 0).wantThrough(t, "new interface", true)
		must(t, d.Close())
		if left := r.pinned(t); len(left) > 0 {
			t.Errorf("left %v", left)
		}
	}
}

func TestNodesSideBySideKeepTheirPinsApart(t *testing.T) {
	r := newRange(t, 2)
	streams := []*stream{r.aim(t, 0), r.aim(t, 1)}
	a, b := r.process(t, 0, Native), r.process(t, 1, Native)
	r.serve(t, 0, a)
	r.serve(t, 1, b)
	must(t, a.Leave())
	streams[0].wantThrough(t, "first node without a process", true)

	// The second one restarts and must not touch what the first one left.
	must(t, b.Leave())
	b = r.process(t, 1, Native)
	r.serve(t, 1, b)
	r.takeOver(t, 1, b)
	streams[0].wantThrough(t, "first node after the second one took over", true)
	must(t, b.Close())
	streams[1].wantThrough(t, "second node stopped", false)
	streams[0].wantThrough(t, "first node after the second one stopped", true)

	a = r.process(t, 0, Native)
	if !a.TakingOver() {
		t.Error("the first node did not find what it had left")
	}
	must(t, a.Close())
	if left := r.pinned(t); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestANodesNewNameTakesOverWhatTheOldOneLeft(t *testing.T) {
	r := newRange(t, 1)
	s := r.aim(t, 0)
	d := r.process(t, 0, Native)
	r.serve(t, 0, d)
	must(t, d.Leave())

	stop := s.fire(t)
	must(t, r.nodes[0].Do(func() (err error) {
		if d, err = New(Config{Interfaces: []string{"eth0"}, Pin: filepath.Join(r.bpffs, "halfproxy", "renamed"), Log: testLog(t)}); err != nil {
			return err
		}
		return d.Attach()
	}))
	if !d.TakingOver() {
		t.Error("what the old name left was not found")
	}
	r.serve(t, 0, d)
	r.takeOver(t, 0, d)
	stop()
	if lost := s.lost(); lost != 0 {
		t.Errorf("%d of %d packets were lost", lost, s.sent())
	}
	for _, path := range r.pinned(t) {
		if !strings.HasPrefix(path, "halfproxy/renamed/") {
			t.Errorf("left of the old name: %s", path)
		}
	}
	must(t, d.Close())
}

func TestWhatADeadNodeLeftIsClearedAwayOnceItsInterfaceIsGone(t *testing.T) {
	r := newRange(t, 2)
	dead := r.process(t, 0, Native)
	r.serve(t, 0, dead)
	must(t, dead.Leave())
	d := r.process(t, 1, Native)
	if !slices.ContainsFunc(r.pinned(t), func(path string) bool { return strings.HasPrefix(path, "halfproxy/lb0%2e") }) {
		t.Error("what still forwards was cleared away")
	}
	must(t, d.Leave())
	must(t, r.nodes[0].Do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(eth0)
	}))
	d = r.process(t, 1, Native)
	r.serve(t, 1, d)
	r.takeOver(t, 1, d)
	for _, path := range r.pinned(t) {
		if strings.HasPrefix(path, "halfproxy/lb0%2e") {
			t.Errorf("left of the dead node: %s", path)
		}
	}
	must(t, d.Close())
}

func TestAnInterfaceThatIsNoLongerConfiguredIsLeftAtTheTakeover(t *testing.T) {
	r := newRange(t, 1)
	r.plug(t, 0, "eth1")
	s := r.aim(t, 0) // of eth0
	start := func(interfaces ...string) *Dataplane {
		var d *Dataplane
		must(t, r.nodes[0].Do(func() (err error) {
			if d, err = New(Config{Interfaces: interfaces, Pin: r.pin(0), Log: testLog(t)}); err != nil {
				return err
			}
			return d.Attach()
		}))
		return d
	}
	d := start("eth0", "eth1")
	r.serve(t, 0, d)
	must(t, d.Leave())
	d = start("eth1")
	s.wantThrough(t, "before the takeover", true)
	r.serve(t, 0, d)
	r.takeOver(t, 0, d)
	s.wantThrough(t, "after the takeover", false)
	must(t, d.Close())
}

func TestAnotherModeThanThatOfTheProcessBeforeIsHad(t *testing.T) {
	r := newRange(t, 1)
	must(t, r.process(t, 0, Native).Leave())
	d := r.process(t, 0, Generic)
	if got := d.Modes()["eth0"]; got != Generic || d.TakingOver() {
		t.Errorf("got mode %s, taking over %t, want generic at once", got, d.TakingOver())
	}
	must(t, d.Close())
}

func TestAStartThatFailsLeavesNoDirectory(t *testing.T) {
	r := newRange(t, 1)
	d := r.process(t, 0, Native)
	must(t, r.nodes[0].Do(func() error { // the interface is taken
		other, err := New(Config{Interfaces: []string{"eth0"}, Pin: filepath.Join(r.bpffs, "halfproxy", "other"), Log: testLog(t)})
		if err != nil {
			return err
		}
		if err := other.Attach(); err == nil {
			t.Error("the program of a process that lives was taken over")
		}
		return other.Leave()
	}))
	if _, err := os.Stat(filepath.Join(r.bpffs, "halfproxy", "other")); err == nil {
		t.Error("the directory of the node that failed is left")
	}
	if err := d.Attached(); err != nil {
		t.Errorf("the one that runs: got %v, want it left alone", err)
	}
	must(t, d.Close())
}

func TestTwoProcessesOfOneNameDoNotShareTheirPins(t *testing.T) {
	r := newRange(t, 1)
	d := r.process(t, 0, Native)
	defer d.Close()
	var err error
	must(t, r.nodes[0].Do(func() error {
		_, err = New(Config{Interfaces: []string{"eth0"}, Pin: r.pin(0)})
		return nil
	}))
	if want := "another halfproxy holds it: stop that one, or give this node a name of its own"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want it to hold %q", err, want)
	}
	if err := d.Attached(); err != nil {
		t.Errorf("the first one: got %v, want it left alone", err)
	}
}

func TestWithoutABPFFileSystemTheProgramEndsWithItsProcess(t *testing.T) {
	r := newRange(t, 1)
	s := r.aim(t, 0)
	var log strings.Builder
	var d *Dataplane
	must(t, r.nodes[0].Do(func() (err error) {
		if d, err = New(Config{Interfaces: []string{"eth0"}, Pin: filepath.Join(t.TempDir(), "lb1"), Log: slog.New(slog.NewTextHandler(&log, nil))}); err != nil {
			return err
		}
		return d.Attach()
	}))
	if want := "is in no BPF file system: `mount -t bpf bpf /sys/fs/bpf` makes one"; !strings.Contains(log.String(), want) {
		t.Errorf("got the log %q, want it to hold %q", log.String(), want)
	}
	r.serve(t, 0, d)
	s.wantThrough(t, "running", true)
	must(t, d.Leave())
	s.wantThrough(t, "process gone", false)
	if left := blackholesIn(t, r.nodes[0]); len(left) > 0 {
		t.Errorf("blackhole routes left: %v", left)
	}
}
