package xdp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/internal/netns"
	"github.com/halfproxy/halfproxy/internal/packet"
	"github.com/halfproxy/halfproxy/lb"
)

// A range is where packets are shot through nodes: a generator on one end of
// each veth pair, the node's eth0 at the other. The node sends every packet back
// to where it came from, where it is counted and dropped.
type shootingRange struct {
	bpffs string
	gun   *netns.NS
	nodes []*netns.NS
}

// backend of the range, reached by way of eth0.
const target = "10.0.0.11"

func newRange(t *testing.T, nodes int) *shootingRange {
	t.Helper()
	needRoot(t)
	r := &shootingRange{bpffs: t.TempDir()}
	must(t, unix.Mount("bpf", r.bpffs, "bpf", 0, ""))
	t.Cleanup(func() {
		if err := unix.Unmount(r.bpffs, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	namespace := func(name string) *netns.NS {
		n, err := netns.New(fmt.Sprintf("hptest-xdp-%d-%s", os.Getpid(), name))
		must(t, err)
		t.Cleanup(func() {
			if err := n.Close(); err != nil {
				t.Errorf("remove namespace: %v", err)
			}
		})
		return n
	}
	r.gun = namespace("gun")
	for i := range nodes {
		r.nodes = append(r.nodes, namespace(fmt.Sprintf("node%d", i)))
		r.plug(t, i, "eth0")
	}
	return r
}

// plug gives a node an interface, and the gun one by the name of gunN.
func (r *shootingRange) plug(t *testing.T, i int, name string) {
	t.Helper()
	for _, ns := range []*netns.NS{r.gun, r.nodes[i]} { // nobody but the gun sends anything
		must(t, ns.Do(func() error { return netns.Sysctl("net/ipv6/conf/default/disable_ipv6", "1") }))
	}
	must(t, r.nodes[i].Veth(name, r.gun, gunName(i, name), 1500))
	must(t, r.nodes[i].Address(name, "10.0.0.2/24"))
	must(t, r.nodes[i].Do(func() error {
		eth0, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		m := mac(backendMAC)
		return netlink.NeighSet(&netlink.Neigh{LinkIndex: eth0.Attrs().Index, IP: net.ParseIP(target), State: netlink.NUD_PERMANENT, HardwareAddr: m[:]})
	}))
}

func gunName(i int, name string) string { return fmt.Sprintf("%s-%d", name, i) }

// pin is a node's directory. Names have dots, as host names do.
func (r *shootingRange) pin(i int) string {
	return filepath.Join(r.bpffs, "halfproxy", fmt.Sprintf("lb%d.example.net", i))
}

// pinned lists what stands in the BPF file system.
func (r *shootingRange) pinned(t *testing.T) []string {
	t.Helper()
	var found []string
	must(t, filepath.WalkDir(r.bpffs, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() && filepath.Dir(path) != r.bpffs { // where the kernel has files of its own
			path, err = filepath.Rel(r.bpffs, path)
			found = append(found, path)
		}
		return err
	}))
	return found
}

// process is a node's start: its program on eth0, or adopted there.
func (r *shootingRange) process(t *testing.T, i int, mode Mode) *Dataplane {
	t.Helper()
	var d *Dataplane
	must(t, r.nodes[i].Do(func() (err error) {
		d, err = New(Config{Interfaces: []string{"eth0"}, Mode: mode, Pin: r.pin(i), Log: testLog(t)})
		if err != nil {
			return err
		}
		return d.Attach()
	}))
	return d
}

// serve puts the tables in.
func (r *shootingRange) serve(t *testing.T, i int, d *Dataplane) {
	t.Helper()
	must(t, r.nodes[i].Do(func() error {
		return d.Apply(context.Background(), []lb.Table{table("web", lb.L2, 1021, []string{vip4}, target)})
	}))
}

func (r *shootingRange) takeOver(t *testing.T, i int, d *Dataplane) {
	t.Helper()
	must(t, r.nodes[i].Do(d.TakeOver))
	if d.TakingOver() {
		t.Error("TakeOver left something to be taken over")
	}
}

// stream is a flow of packets for the VIP.
type stream struct {
	counter *ebpf.Map // of packets sent and packets that came through
	from    *netns.NS
	gun     string                     // interface that it leaves by
	run     func(packets uint32) error // called in from; sends more when a signal comes
}

const (
	sentCount = iota
	throughCount
	streamCounts
)

// aim makes a stream through a node's eth0. Frames run live: each is sent out of
// the gun's end, through the node's program and back to the gun, which counts it.
func (r *shootingRange) aim(t *testing.T, i int) *stream {
	t.Helper()
	s := &stream{from: r.gun, gun: gunName(i, "eth0")}
	var nodeMAC net.HardwareAddr
	must(t, r.nodes[i].Do(func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err == nil {
			nodeMAC = eth0.HardwareAddr
		}
		return err
	}))
	must(t, r.gun.Do(func() error {
		gun, err := net.InterfaceByName(gunName(i, "eth0"))
		if err != nil {
			return err
		}
		if s.counter, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: streamCounts}); err != nil {
			return err
		}
		t.Cleanup(func() { s.counter.Close() })
		counts, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: countAndDrop(s.counter)})
		if err != nil {
			return err
		}
		t.Cleanup(func() { counts.Close() })
		sink, err := link.AttachXDP(link.XDPOptions{Program: counts, Interface: gun.Index, Flags: link.XDPDriverMode})
		if err != nil {
			return err
		}
		t.Cleanup(func() { sink.Close() })
		sends, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: sendOut(s.counter, gun.Index, nodeMAC)})
		if err != nil {
			return err
		}
		t.Cleanup(func() { sends.Close() })
		frame := packet.TCP(client4, vip4, packet.To(nodeMAC.String()))
		s.run = func(packets uint32) error {
			_, err := sends.Run(&ebpf.RunOptions{Data: frame, Repeat: packets, Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES, BatchSize: 64})
			return err
		}
		return nil
	}))
	return s
}

// countAndDrop counts what the node's program sent on to the backend.
func countAndDrop(counter *ebpf.Map) asm.Instructions {
	return slices.Concat(wholeHeader(), asm.Instructions{
		asm.LoadMem(asm.R4, asm.R2, 0, asm.Word), // destination: the backend's MAC address?
		asm.JNE.Imm(asm.R4, 0x02, "drop"),
		asm.LoadMem(asm.R4, asm.R2, 4, asm.Half),
		asm.JNE.Imm(asm.R4, 0xb100, "drop"),
	}, increment(counter, throughCount), drop())
}

// sendOut sends a frame out of an interface. Frames come back to be used again
// with the MAC addresses and the TTL that the node's program gave them.
func sendOut(counter *ebpf.Map, ifindex int, to net.HardwareAddr) asm.Instructions {
	return slices.Concat(wholeHeader(), asm.Instructions{
		asm.StoreImm(asm.R2, 0, int64(int32(binary.LittleEndian.Uint32(to))), asm.Word),
		asm.StoreImm(asm.R2, 4, int64(int16(binary.LittleEndian.Uint16(to[4:]))), asm.Half),
		asm.StoreImm(asm.R2, 14+8, 57, asm.Byte),
	}, increment(counter, sentCount), asm.Instructions{
		asm.Mov.Imm(asm.R1, int32(ifindex)),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRedirect.Call(),
		asm.Return(),
	}, drop())
}

// wholeHeader has R2 point at the frame's Ethernet header, which an IPv4 header
// follows.
func wholeHeader() asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word), // data
		asm.LoadMem(asm.R3, asm.R1, 4, asm.Word), // data_end
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, 14+20),
		asm.JGT.Reg(asm.R4, asm.R3, "drop"),
	}
}

func increment(counter *ebpf.Map, index int64) asm.Instructions {
	return asm.Instructions{
		asm.StoreImm(asm.RFP, -4, index, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, counter.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "drop"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
	}
}

func drop() asm.Instructions {
	const xdpDrop = 1
	return asm.Instructions{asm.Mov.Imm(asm.R0, xdpDrop).WithSymbol("drop"), asm.Return()}
}

func (s *stream) count(t *testing.T, index uint32) uint64 {
	t.Helper()
	var perCPU []uint64
	must(t, s.counter.Lookup(index, &perCPU))
	var sum uint64
	for _, n := range perCPU {
		sum += n
	}
	return sum
}

func (s *stream) sent(t *testing.T) uint64 { return s.count(t, sentCount) }

// lost is what neither came through nor met a full queue of the veth pair: that
// happens before the node's program has a packet, or after.
func (s *stream) lost(t *testing.T) uint64 {
	t.Helper()
	return s.sent(t) - s.count(t, throughCount) - s.overrun(t)
}

func (s *stream) overrun(t *testing.T) (packets uint64) {
	t.Helper()
	must(t, s.from.Do(func() error {
		gun, err := netlink.LinkByName(s.gun)
		if err == nil {
			packets = gun.Attrs().Statistics.TxDropped + gun.Attrs().Statistics.RxDropped
		}
		return err
	}))
	return packets
}

// wantThrough is that all packets come through, or none.
func (s *stream) wantThrough(t *testing.T, when string, through bool) {
	t.Helper()
	sent, lost := s.sent(t), s.lost(t)
	must(t, s.from.Do(func() error { return s.run(1000) }))
	time.Sleep(20 * time.Millisecond)
	sent, lost = s.sent(t)-sent, s.lost(t)-lost
	want := sent
	if through {
		want = 0
	}
	if lost != want || sent == 0 {
		t.Errorf("%s: %d of %d packets were lost, want %d", when, lost, sent, want)
	}
}

// fire shoots without a pause until it is stopped, on a CPU of its own.
func (s *stream) fire(t *testing.T) (stop func()) {
	t.Helper()
	var stopped atomic.Bool
	done := make(chan error)
	go func() {
		done <- s.from.Do(func() error { // on a thread that ends with it
			err := unix.SchedSetaffinity(0, &unix.CPUSet{2})
			for err == nil && !stopped.Load() {
				err = s.run(1 << 16)
			}
			return err
		})
	}()
	return func() {
		stopped.Store(true)
		must(t, <-done)
		time.Sleep(50 * time.Millisecond)
	}
}

func TestNoPacketIsLostWhenProcessesTakeOverFromEachOther(t *testing.T) {
	const takeovers, least = 50, 1_000_000
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
	for s.sent(t) < least {
		time.Sleep(10 * time.Millisecond)
	}
	took := time.Since(begin)
	stop()
	sent, lost := s.sent(t), s.lost(t)
	if lost != 0 {
		t.Errorf("%d of %d packets were lost", lost, sent)
	}
	t.Logf("%d takeovers in %v, %d packets, %d lost, %d met a full queue, %.2f Mpps, slowest switch %v",
		takeovers, took.Round(time.Millisecond), sent, lost, s.overrun(t), float64(sent)/took.Seconds()/1e6, slowest.Round(time.Microsecond))

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
			if mode == Native { // live frames end at a veth that has no native program
				s.wantThrough(t, "first process", true)
			}
			must(t, d.Leave())
			if mode == Native {
				s.wantThrough(t, "no process", true)
			}

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
			if mode == Native {
				s.wantThrough(t, "second process, no tables yet", true)
				if got := stats(t, d).Verdicts[Forwarded].Packets; got != 0 {
					t.Errorf("the new program counted %d packets before it was there", got)
				}
			}
			r.serve(t, 0, d)
			r.takeOver(t, 0, d)
			if mode == Native {
				s.wantThrough(t, "second process", true)
				if got := stats(t, d).Verdicts[Forwarded].Packets; got < 1000 {
					t.Errorf("the new program counted %d packets, want 1000", got)
				}
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
	if lost := s.lost(t); lost != 0 {
		t.Errorf("%d of %d packets were lost", lost, s.sent(t))
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
