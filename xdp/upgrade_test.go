package xdp

import (
	"bytes"
	_ "embed"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// earlierObject is the program as it was when programs came to be pinned. It is
// never built anew: such as this is what an upgrade meets.
//
//go:embed testdata/earlier.o
var earlierObject []byte

// What that program's maps hold.
type (
	earlierVIP struct {
		Address  [16]byte
		Port     [2]byte
		Protocol uint8
		Family   uint8
	}
	earlierService struct {
		Key    [2][2]uint64
		Table  [2]struct{ Slots, Size, Backends uint32 }
		Active uint32
		_      uint32
	}
	earlierPath struct {
		Source  [6]byte
		MTU     uint16
		Ifindex uint32
		_       [12]uint32 // outer header
	}
	earlierBackend struct {
		NextHop uint64
		Path    [2]earlierPath
	}
	earlierPort struct {
		MAC     uint64
		Ifindex uint32
		_       uint32
	}
	earlierCounter struct{ Packets, Bytes uint64 }
)

// earlierProcess is what a process of the earlier version does to the kernel's
// objects from its start to its death: its program is on eth0 from then on, in
// the place of what a process before left there. It gives a count of the packets
// that this program forwards.
func (r *shootingRange) earlierProcess(t *testing.T, i int) func() uint64 {
	t.Helper()
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(earlierObject))
	must(t, err)
	loaded, err := ebpf.NewCollection(spec)
	must(t, err)
	defer loaded.Close()
	counters, err := loaded.Maps["verdicts"].Clone()
	must(t, err)
	t.Cleanup(func() { counters.Close() })

	must(t, r.nodes[i].Do(func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		self, vip := macBits([6]byte(eth0.HardwareAddr)), netip.MustParseAddrPort(vip4)
		service := earlierService{}
		service.Table[0].Size = 1
		backend := earlierBackend{NextHop: hopResolved | macBits(mac(backendMAC))}
		backend.Path[0] = earlierPath{Source: [6]byte(eth0.HardwareAddr), MTU: 1500, Ifindex: uint32(eth0.Index)}
		key := earlierVIP{Address: vip.Addr().As16(), Port: [2]byte{byte(vip.Port() >> 8), byte(vip.Port())}, Protocol: 6, Family: 4}
		for _, put := range []struct {
			name       string
			key, value any
		}{
			{"services", uint32(0), service},
			{"slots", uint32(0), [2048]uint16{}},
			{"backends", uint32(0), backend},
			{"vips", key, uint32(0)},
		} {
			if err := loaded.Maps[put.name].Put(put.key, put.value); err != nil {
				return fmt.Errorf("map %s: %w", put.name, err)
			}
		}
		if err := loaded.Variables["self"].Set(earlierPort{MAC: self, Ifindex: uint32(eth0.Index)}); err != nil {
			return err
		}

		program := loaded.Programs["balance"]
		there := &pins{dir: filepath.Join(r.bpffs, "halfproxy", pinName(filepath.Base(r.pin(i))))}
		before := there.numbers()
		number := filepath.Join(there.dir, fmt.Sprint(slices.Max(append(before, 0))+1))
		for _, dir := range []string{filepath.Join(there.dir, linksDir), filepath.Join(number, programsDir), filepath.Join(number, mapsDir)} {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
		}
		l, err := link.LoadPinnedLink(there.linkPath("eth0"), nil)
		if err == nil {
			err = l.Update(program)
		} else if l, err = link.AttachXDP(link.XDPOptions{Program: program, Interface: eth0.Index, Flags: link.XDPDriverMode}); err == nil {
			err = l.Pin(there.linkPath("eth0"))
		}
		if err != nil {
			return err
		}
		defer l.Close()
		for name, m := range loaded.Maps {
			if !strings.HasPrefix(name, ".") { // as are .bss and the like
				if err := m.Pin(filepath.Join(number, mapsDir, name)); err != nil {
					return err
				}
			}
		}
		if err := program.Pin(filepath.Join(number, programsDir, "eth0")); err != nil {
			return err
		}
		for _, n := range before {
			if err := os.RemoveAll(filepath.Join(there.dir, fmt.Sprint(n))); err != nil {
				return err
			}
		}
		return nil
	}))
	return func() uint64 {
		var perCPU []earlierCounter
		must(t, counters.Lookup(uint32(0), &perCPU))
		var sum uint64
		for _, c := range perCPU {
			sum += c.Packets
		}
		return sum
	}
}

// Each packet is forwarded by the one version or the other, and by one alone:
// what they counted is what was sent and what came through.
func TestAnotherVersionTakesOverAndBackWithoutLosingAPacket(t *testing.T) {
	rounds, least := inShort(20, 3), uint64(inShort(1_000_000, 50_000))
	r := newRange(t, 1)
	earlier := []func() uint64{r.earlierProcess(t, 0)}
	var later []func() uint64
	s := r.aim(t, 0)
	stop := s.fire(t)
	for range rounds {
		d := r.process(t, 0, Native)
		if !d.TakingOver() {
			t.Fatal("the program of the earlier version was not found")
		}
		r.serve(t, 0, d)
		r.takeOver(t, 0, d)
		counters, err := d.store.maps[bpfMapVerdicts].Clone()
		must(t, err)
		defer counters.Close()
		later = append(later, func() uint64 {
			var perCPU []bpfCounter
			must(t, counters.Lookup(uint32(Forwarded), &perCPU))
			var sum uint64
			for _, c := range perCPU {
				sum += c.Packets
			}
			return sum
		})
		s.wantSent(t, s.sent()+1000)
		must(t, d.Leave())
		earlier = append(earlier, r.earlierProcess(t, 0))
		s.wantSent(t, s.sent()+1000)
	}
	s.wantSent(t, least)
	stop()

	if lost := s.lost(); lost != 0 {
		t.Errorf("%d of %d packets were lost", lost, s.sent())
	}
	sum := func(versions []func() uint64) (sum uint64) {
		for _, forwarded := range versions {
			n := forwarded()
			if n < 1000 {
				t.Errorf("a process forwarded %d packets, want 1000 at least", n)
			}
			sum += n
		}
		return sum
	}
	byEarlier, byLater := sum(earlier), sum(later)
	if byEarlier+byLater != s.sent() {
		t.Errorf("the earlier version forwarded %d packets, this one %d: want %d together", byEarlier, byLater, s.sent())
	}
	t.Logf("%d times there and back, %d packets, %d of them by this version", rounds, s.sent(), byLater)

	d := r.process(t, 0, Native)
	must(t, d.Close())
	if left := r.pinned(t); len(left) > 0 {
		t.Errorf("left after Close: %v", left)
	}
}
