package xdp

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

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

// stream is a flow of packets for the VIP. No more of them are under way at once
// than the queue of a veth takes, which else overruns as soon as the two ends are
// served by different CPUs: none is lost but by the node's program.
type stream struct {
	from  *netns.NS
	count *streamCount
	live  *ebpf.Program // sends frames without a socket, fast; nil: the kernel cannot (before 5.18)
	gun   int           // interface that they leave by
	frame []byte
}

// streamCount is what the programs of a stream count in, mapped into memory.
type streamCount struct{ sent, through uint64 }

const (
	// mostUnderWay is half of a veth's queue (VETH_RING_SIZE).
	mostUnderWay = 128
	// A kernel's live frames are sent in batches.
	batch = 64
)

// aim makes a stream through a node's eth0: each packet is sent out of the gun's
// end, through the node's program and back to the gun, which counts it.
func (r *shootingRange) aim(t *testing.T, i int) *stream {
	t.Helper()
	var nodeMAC net.HardwareAddr
	must(t, r.nodes[i].Do(func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err == nil {
			nodeMAC = eth0.HardwareAddr
		}
		return err
	}))
	s := &stream{from: r.gun, frame: packet.TCP(client4, vip4, packet.To(nodeMAC.String()))}
	counter, err := ebpf.NewMap(&ebpf.MapSpec{
		Type: ebpf.Array, Flags: unix.BPF_F_MMAPABLE, KeySize: 4, ValueSize: uint32(unsafe.Sizeof(*s.count)), MaxEntries: 1,
	})
	must(t, err)
	t.Cleanup(func() { counter.Close() })
	memory, err := unix.Mmap(counter.FD(), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	t.Cleanup(func() {
		if err := unix.Munmap(memory); err != nil {
			t.Errorf("unmap: %v", err)
		}
	})
	s.count = (*streamCount)(unsafe.Pointer(&memory[0]))
	must(t, r.gun.Do(func() error {
		gun, err := net.InterfaceByName(gunName(i, "eth0"))
		if err != nil {
			return err
		}
		s.gun = gun.Index
		counts, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: countAndDrop(counter)})
		if err != nil {
			return err
		}
		t.Cleanup(func() { counts.Close() })
		sink, err := link.AttachXDP(link.XDPOptions{Program: counts, Interface: gun.Index, Flags: link.XDPDriverMode})
		if err != nil {
			return err
		}
		t.Cleanup(func() { sink.Close() })
		return nil
	}))
	if kernelHas(t, 5, 18) {
		s.live, err = ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: sendOut(counter, s.gun, nodeMAC)})
		must(t, err)
		t.Cleanup(func() { s.live.Close() })
	}
	return s
}

// countAndDrop counts what the node's program sent on to the backend.
func countAndDrop(counter *ebpf.Map) asm.Instructions {
	return slices.Concat(wholeHeader(), asm.Instructions{
		asm.LoadMem(asm.R4, asm.R2, 0, asm.Word), // destination: the backend's MAC address?
		asm.JNE.Imm(asm.R4, 0x02, "drop"),
		asm.LoadMem(asm.R4, asm.R2, 4, asm.Half),
		asm.JNE.Imm(asm.R4, 0xb100, "drop"),
	}, increment(counter, unsafe.Offsetof(streamCount{}.through)), drop())
}

// sendOut sends a frame out of an interface, unless there are enough under way.
// Frames come back to be used again with the MAC addresses and the TTL that the
// node's program gave them.
func sendOut(counter *ebpf.Map, ifindex int, to net.HardwareAddr) asm.Instructions {
	return slices.Concat(asm.Instructions{
		asm.LoadMapValue(asm.R4, counter.FD(), 0),
		asm.LoadMem(asm.R5, asm.R4, int16(unsafe.Offsetof(streamCount{}.sent)), asm.DWord),
		asm.LoadMem(asm.R4, asm.R4, int16(unsafe.Offsetof(streamCount{}.through)), asm.DWord),
		asm.Sub.Reg(asm.R5, asm.R4),
		asm.JGE.Imm(asm.R5, mostUnderWay, "drop"),
	}, wholeHeader(), asm.Instructions{
		asm.StoreImm(asm.R2, 0, int64(int32(binary.LittleEndian.Uint32(to))), asm.Word),
		asm.StoreImm(asm.R2, 4, int64(int16(binary.LittleEndian.Uint16(to[4:]))), asm.Half),
		asm.StoreImm(asm.R2, 14+8, 57, asm.Byte),
	}, increment(counter, unsafe.Offsetof(streamCount{}.sent)), asm.Instructions{
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

func increment(counter *ebpf.Map, offset uintptr) asm.Instructions {
	return asm.Instructions{
		asm.LoadMapValue(asm.R1, counter.FD(), uint32(offset)),
		asm.Mov.Imm(asm.R2, 1),
		asm.StoreXAdd(asm.R1, asm.R2, asm.DWord),
	}
}

func drop() asm.Instructions {
	return asm.Instructions{asm.Mov.Imm(asm.R0, xdpDrop).WithSymbol("drop"), asm.Return()}
}

func (s *stream) sent() uint64 { return atomic.LoadUint64(&s.count.sent) }

// lost is what has not come through. Once it has settled it never will.
func (s *stream) lost() uint64 { return s.sent() - atomic.LoadUint64(&s.count.through) }

// patience is how long packets may be under way where others want the CPUs too.
const patience = time.Second

// settle waits until no packets are under way any more.
func (s *stream) settle() {
	for end := time.Now().Add(patience); s.lost() > 0 && time.Now().Before(end); {
		time.Sleep(rest)
	}
}

// send sends packets by a socket, as fast as they come through. It is called in
// the gun's namespace.
func (s *stream) send(packets int) error {
	socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	to := &unix.SockaddrLinklayer{Ifindex: s.gun}
	for range packets {
		for end := time.Now().Add(patience); s.lost() >= mostUnderWay; {
			if time.Now().After(end) {
				return nil // they do not come through
			}
		}
		atomic.AddUint64(&s.count.sent, 1)
		if err := unix.Sendto(socket, s.frame, 0, to); err != nil {
			return err
		}
	}
	return nil
}

// shoot sends packets as fast as the kernel can: more, when a signal comes, and
// fewer when they do not come through.
func (s *stream) shoot(packets uint32) error {
	if s.live == nil {
		return s.send(int(packets))
	}
	_, err := s.live.Run(&ebpf.RunOptions{Data: s.frame, Repeat: packets, Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES, BatchSize: batch})
	return err
}

// wantThrough is that all packets come through, or none.
func (s *stream) wantThrough(t *testing.T, when string, through bool) {
	t.Helper()
	*s.count = streamCount{}
	must(t, s.from.Do(func() error { return s.send(1000) }))
	s.settle()
	sent, lost := s.sent(), s.lost()
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
	*s.count = streamCount{}
	var stopped atomic.Bool
	done := make(chan error)
	go func() {
		done <- s.from.Do(func() error { // on a thread that ends with it
			err := unix.SchedSetaffinity(0, &unix.CPUSet{2})
			for err == nil && !stopped.Load() {
				err = s.shoot(1 << 12)
			}
			return err
		})
	}()
	stop = sync.OnceFunc(func() {
		stopped.Store(true)
		if err := <-done; err != nil {
			t.Error(err)
		}
		s.settle()
	})
	t.Cleanup(stop)
	return stop
}

// wantSent waits until so many packets were sent, which takes seconds.
func (s *stream) wantSent(t *testing.T, packets uint64) {
	t.Helper()
	for end := time.Now().Add(time.Minute); s.sent() < packets; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d of %d packets were sent, %d of them lost: the stream has come to a stop", s.sent(), packets, s.lost())
		}
	}
}
