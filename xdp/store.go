package xdp

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// slotsPerPage is the unit in which tables take slots.
const slotsPerPage = uint32(len(bpfSlotPage{}.Slots))

// store is the maps, which all instances of the program share, with those that
// are written while packets flow mapped into memory.
type store struct {
	maps map[string]*ebpf.Map

	directory *bpfDirectory
	vips      []bpfVipBucket // the two halves
	services  []bpfService
	slots     []bpfSlot // of all pages, end to end
	backends  []bpfBackend
	ids       []uint64 // of the backends
	pace      *bpfPace
	strayed   []uint64 // by service
	mappings  [][]byte
}

// newStore makes maps with room for so many pages of slots and backends. With
// an old store it takes over the maps and the contents of that one, which both
// then share; the backends' counters begin at nothing.
func newStore(spec *ebpf.CollectionSpec, old *store, pages, backends uint32) (_ *store, err error) {
	sizes := map[string]uint32{bpfMapSlots: pages, bpfMapBackends: backends, bpfMapBackendCounters: backends, bpfMapBackendIds: backends}
	s := &store{maps: make(map[string]*ebpf.Map)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	for _, name := range []string{
		bpfMapVips, bpfMapPortRanges, bpfMapVipPrefixes, bpfMapDirectory, bpfMapServices, bpfMapSlots, bpfMapBackends,
		bpfMapBackendCounters, bpfMapVerdicts, bpfMapLimits, bpfMapEchoLimits, bpfMapDenied, bpfMapAllowances, bpfMapSources, bpfMapFragments,
		bpfMapServerIds, bpfMapQuicCounters, bpfMapBackendIds, bpfMapRecords, bpfMapPace, bpfMapStrayed, bpfMapTrackedPackets, bpfMapConfirmed,
	} {
		size, grows := sizes[name]
		if old != nil && !grows {
			s.maps[name], err = old.maps[name].Clone()
		} else {
			m := spec.Maps[name].Copy()
			if grows {
				m.MaxEntries = size
			}
			s.maps[name], err = ebpf.NewMap(m)
		}
		if err != nil {
			return nil, fmt.Errorf("map %s: %w", name, err)
		}
	}
	if s.vips, err = mapArray[bpfVipBucket](s, bpfMapVips); err != nil {
		return nil, err
	}
	directory, err := mapArray[bpfDirectory](s, bpfMapDirectory)
	if err != nil {
		return nil, err
	}
	s.directory = &directory[0]
	if s.services, err = mapArray[bpfService](s, bpfMapServices); err != nil {
		return nil, err
	}
	if s.backends, err = mapArray[bpfBackend](s, bpfMapBackends); err != nil {
		return nil, err
	}
	if s.ids, err = mapArray[uint64](s, bpfMapBackendIds); err != nil {
		return nil, err
	}
	pace, err := mapArray[bpfPace](s, bpfMapPace)
	if err != nil {
		return nil, err
	}
	s.pace = &pace[0]
	if s.strayed, err = mapArray[uint64](s, bpfMapStrayed); err != nil {
		return nil, err
	}
	slotPages, err := mapArray[bpfSlotPage](s, bpfMapSlots)
	if err != nil {
		return nil, err
	}
	s.slots = unsafe.Slice((*bpfSlot)(unsafe.Pointer(&slotPages[0])), len(slotPages)*int(slotsPerPage))
	if old != nil {
		copy(s.slots, old.slots)
		copy(s.backends, old.backends)
		copy(s.ids, old.ids)
	}
	return s, nil
}

// mapArray maps an array's entries into memory.
func mapArray[T any](s *store, name string) ([]T, error) {
	m := s.maps[name]
	var entry T
	if size := uint32(unsafe.Sizeof(entry)); size != m.ValueSize() {
		return nil, fmt.Errorf("map %s: entries of %d bytes are taken for %d: run go generate", name, m.ValueSize(), size)
	}
	page := os.Getpagesize()
	size := (int(m.MaxEntries())*int(m.ValueSize()) + page - 1) / page * page
	memory, err := unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s into memory: %w", name, err)
	}
	s.mappings = append(s.mappings, memory)
	return unsafe.Slice((*T)(unsafe.Pointer(&memory[0])), m.MaxEntries()), nil
}

// pages gives the slots of a run of pages.
func (s *store) pages(r region) []bpfSlot {
	return s.slots[r.start*slotsPerPage : r.end()*slotsPerPage]
}

func (s *store) close() error {
	var errs []error
	for _, memory := range s.mappings {
		errs = append(errs, unix.Munmap(memory))
	}
	for m := range maps.Values(s.maps) {
		errs = append(errs, m.Close())
	}
	*s = store{}
	return errors.Join(errs...)
}

// instance is the program as loaded for one interface, or to be asked.
type instance struct {
	program *ebpf.Program
	self    *ebpf.Variable
	traces  *ebpf.Map
	// Of an instance that captures; else nil.
	grant, aim *ebpf.Variable
}

// newInstance loads the program over the store's maps.
func newInstance(spec *ebpf.CollectionSpec, s *store, traced bool) (*instance, error) {
	var parts struct {
		Program *ebpf.Program  `ebpf:"balance"`
		Self    *ebpf.Variable `ebpf:"self"`
		Traces  *ebpf.Map      `ebpf:"traces"`
	}
	if err := load(&parts, spec, s.maps, map[string]any{bpfVarTraced: traced}); err != nil {
		return nil, err
	}
	return &instance{program: parts.Program, self: parts.Self, traces: parts.Traces}, nil
}

// load loads those parts of spec that are asked for, over maps that are there
// and with constants set.
func load(parts any, spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map, constants map[string]any) error {
	spec = spec.Copy()
	for name, m := range maps {
		spec.Maps[name].MaxEntries = m.MaxEntries()
	}
	for name, value := range constants {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set variable %s: %w", name, err)
		}
	}
	return spec.LoadAndAssign(parts, &ebpf.CollectionOptions{MapReplacements: maps})
}

func (i *instance) Close() error {
	return errors.Join(i.program.Close(), i.traces.Close())
}

// sit tells the instance which interface it sits on.
func (i *instance) sit(mac [6]byte, ifindex int) error {
	return i.self.Set(bpfPort{Mac: macBits(mac), Ifindex: uint32(ifindex)})
}

// answer is what an instance that is traced did with a frame.
type answer struct {
	trace  bpfTrace
	action uint32 // XDP_PASS and the like
	frame  []byte
}

// ask puts a frame through the instance.
func (i *instance) ask(frame []byte) (a answer, err error) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return answer{}, fmt.Errorf("count the CPUs: %w", err)
	}
	unasked := bpfTrace{Verdict: bpfVerdictVERDICT_MAX, Service: none, Slot: none, Backend: none, Tracked: bpfTrackedTRACKED_MAX}
	traces := slices.Repeat([]bpfTrace{unasked}, cpus)
	if err := i.traces.Put(uint32(0), traces); err != nil {
		return answer{}, fmt.Errorf("clear the program's trace: %w", err)
	}
	run := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)}
	if a.action, err = i.program.Run(&run); err != nil {
		return answer{}, fmt.Errorf("run the program on a frame of %d bytes: %w", len(frame), err)
	}
	if err := i.traces.Lookup(uint32(0), &traces); err != nil {
		return answer{}, fmt.Errorf("read the program's trace: %w", err)
	}
	for _, a.trace = range traces { // that of the CPU it ran on
		if a.trace != unasked {
			break
		}
	}
	a.frame = run.DataOut
	return a, nil
}

// macBits is a MAC address as the program compares and writes it.
func macBits(mac [6]byte) uint64 {
	var bits uint64
	for i, b := range mac {
		bits |= uint64(b) << (8 * i)
	}
	return bits
}
