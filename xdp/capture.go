package xdp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
)

// CaptureFilter says which frames a capture is to have.
type CaptureFilter struct {
	Verdicts []Verdict    // none: any
	Service  string       // that the packet is for; empty: any, and none
	Backend  string       // that it goes to; empty: any, and none
	Host     netip.Prefix // of its source or destination; the zero value: any
	Port     uint16       // likewise; 0: any

	Incoming bool // frames as they come in
	Outgoing bool // frames as they leave, of packets that are forwarded or answered

	Sample  uint32 // one in so many of those with this address and port, by chance; 0: all
	Snaplen uint32 // bytes kept of a frame at most; 0: MostSnaplen
	Rate    uint32 // frames a second and interface at most; what is more is counted as lost
	Count   uint64 // of frames after which the capture ends; 0: it does not
}

const (
	// MostSnaplen is the most that can be kept of a frame.
	MostSnaplen = uint32(len(captureCaptured{}.Bytes))
	// LeastRate is the least that a capture can be held to.
	LeastRate = uint32(time.Second / captureTick)
)

// captureTick is how often a capture is granted further frames, and its reader
// told how it stands.
const captureTick = 100 * time.Millisecond

// Captured is a frame and what became of it.
type Captured struct {
	Time      time.Time
	Interface string // that it came in by, or leaves by
	Outgoing  bool   // as it leaves
	Verdict   Verdict
	Action    uint32 // that the program gave the driver: XDP_PASS and the like
	Service   string // empty: none was found
	Backend   string // likewise
	Length    int    // of the whole frame
	Frame     []byte // what was kept of it
}

// CaptureCount is what happened on an interface since a capture began.
type CaptureCount struct {
	Seen    uint64 // packets
	Matched uint64 // frames that were asked for
	Lost    uint64 // those of them that were more than the rate, or not read in time
}

// CaptureSink takes what a capture gives. Its first error ends the capture.
type CaptureSink interface {
	// Begin is called once, when the program captures.
	Begin() error
	// Packet must not keep the frame.
	Packet(Captured) error
	// Count is called ten times a second, and after the last packet.
	Count(map[string]CaptureCount) error
}

// capture is a capture that runs.
type capture struct {
	filter CaptureFilter
	spec   *ebpf.CollectionSpec
	maps   map[string]*ebpf.Map // beside the store's
	reader *ringbuf.Reader
	begun  time.Time
	passed uint64 // frames

	places []string    // interfaces in the order of their counts
	stale  atomic.Bool // names
	names  captureNames
	boot   time.Time // when the monotonic clock began
}

// captureNames are what the numbers in the program's maps stand for.
type captureNames struct {
	services, backends map[uint32]string
	interfaces         map[uint32]string
}

// Capture hands the frames that f asks for to the sink until ctx ends, f.Count
// frames are reached or the sink fails. While it runs, and no longer, the
// program on the interfaces is one that captures. There can be one capture at a
// time.
func (d *Dataplane) Capture(ctx context.Context, f CaptureFilter, to CaptureSink) error {
	c, err := d.beginCapture(f)
	if err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	err = to.Begin()
	if err == nil {
		err = d.pass(ctx, c, to)
	}
	ended := d.endCapture(c)
	if err == nil && ended == nil {
		err = c.finish(to)
	}
	return errors.Join(err, ended, c.close())
}

// errTakingOver is why the program cannot be asked yet.
var errTakingOver = errors.New("the program of the process before still forwards, by its own tables: ask again in some seconds")

// beginCapture puts the program that captures on the interfaces.
func (d *Dataplane) beginCapture(f CaptureFilter) (_ *capture, err error) {
	if d.TakingOver() {
		return nil, errTakingOver
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.capturing != nil {
		return nil, fmt.Errorf("another one runs since %s: there can be one at a time", d.capturing.begun.Format(time.TimeOnly))
	}
	if err := d.knows(f); err != nil {
		return nil, err
	}
	places := d.portNames()
	if len(places) == 0 {
		return nil, errors.New("the program sits on no interface")
	}
	c, err := newCapture(f, places)
	if err != nil {
		return nil, explainLoad(err)
	}
	d.capturing = c
	if err := d.renew(); err != nil {
		d.capturing = nil
		return nil, errors.Join(err, c.close())
	}
	d.log.Info("capture begins", "interfaces", strings.Join(c.places, " "))
	return c, nil
}

// endCapture puts the plain program back.
func (d *Dataplane) endCapture(c *capture) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.capturing = nil
	if len(d.portNames()) == 0 {
		return nil // closed, and the program gone
	}
	if err := d.renew(); err != nil {
		return fmt.Errorf("the program that captures stays on its interfaces until it is next made anew, without a reader and so idle: %w", err)
	}
	d.log.Info("capture ends", "frames", c.passed, "took", time.Since(c.begun).Round(time.Millisecond))
	return nil
}

// renew puts the program as it has to be now in the place of every instance.
func (d *Dataplane) renew() error {
	replaced, err := d.replace(d.store)
	if err != nil {
		return err
	}
	return d.retire(replaced)
}

// knows says whether there is what the filter names.
func (d *Dataplane) knows(f CaptureFilter) error {
	if f.Service != "" && d.services[f.Service] == nil {
		return fmt.Errorf("there is no service %q, but %s", f.Service, strings.Join(slices.Sorted(maps.Keys(d.services)), ", "))
	}
	if f.Backend == "" {
		return nil
	}
	switch entries := d.entriesOf(f); {
	case len(entries) == 0 && f.Service != "":
		return fmt.Errorf("service %q has no backend %q", f.Service, f.Backend)
	case len(entries) == 0:
		return fmt.Errorf("no service has a backend %q", f.Backend)
	case len(entries) > mostAims:
		return fmt.Errorf("backend %q is in more than %d services: name one of them as well", f.Backend, mostAims)
	}
	return nil
}

// mostAims is how many entries a capture's backend may have.
const mostAims = len(captureTargets{}.Backends)

// entriesOf are those of the backend that the filter names.
func (d *Dataplane) entriesOf(f CaptureFilter) (entries []uint32) {
	for name, s := range d.services {
		if f.Service != "" && f.Service != name {
			continue
		}
		for b, entry := range s.all() {
			if b.name == f.Backend {
				entries = append(entries, entry)
			}
		}
	}
	return entries
}

// aim tells the instances that capture where the service and the backend are
// that were asked for: tables move. It needs d.mu and d.attached.
func (d *Dataplane) aim() error {
	c := d.capturing
	if c == nil {
		return nil
	}
	c.stale.Store(true)
	aim := captureTargets{Service: none - 1} // which is none, and not that of packets without
	if s := d.services[c.filter.Service]; s != nil {
		aim.Service = s.number
	}
	if c.filter.Backend != "" {
		aim.BackendsUsed = uint32(copy(aim.Backends[:], d.entriesOf(c.filter)))
	}
	for _, p := range d.ports {
		if p.instance.aim == nil {
			continue
		}
		if err := p.instance.aim.Set(aim); err != nil {
			return fmt.Errorf("tell the program of %s what to capture: %w", p.name, err)
		}
	}
	return nil
}

func (d *Dataplane) portNames() []string {
	d.attached.Lock()
	defer d.attached.Unlock()
	names := make([]string, len(d.ports))
	for i, p := range d.ports {
		names[i] = p.name
	}
	return names
}

func newCapture(f CaptureFilter, places []string) (_ *capture, err error) {
	c := &capture{filter: f, begun: time.Now(), places: places, maps: make(map[string]*ebpf.Map)}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	if c.spec, err = readProgram(loadCapture, "program"); err != nil {
		return nil, err
	}
	c.spec.Maps[captureMapCaptureCounts].MaxEntries = uint32(len(places))
	for _, name := range []string{captureMapRing, captureMapCaptureCounts} {
		if c.maps[name], err = ebpf.NewMap(c.spec.Maps[name]); err != nil {
			return nil, fmt.Errorf("map %s: %w", name, err)
		}
	}
	if c.reader, err = ringbuf.NewReader(c.maps[captureMapRing]); err != nil {
		return nil, fmt.Errorf("open the ring of frames: %w", err)
	}
	return c, nil
}

// newInstance loads the program that captures over the store's maps, for the
// interface at this place.
func (c *capture) newInstance(s *store, place int) (*instance, error) {
	var parts struct {
		Program *ebpf.Program  `ebpf:"capture"`
		Self    *ebpf.Variable `ebpf:"self"`
		Traces  *ebpf.Map      `ebpf:"traces"`
		Grant   *ebpf.Variable `ebpf:"grant"`
		Aim     *ebpf.Variable `ebpf:"aim"`
	}
	all := maps.Clone(s.maps)
	maps.Copy(all, c.maps)
	constants := map[string]any{captureVarTraced: true, captureVarAsked: c.filter.compile(place)}
	if err := load(&parts, c.spec, all, constants); err != nil {
		return nil, err
	}
	return &instance{parts.Program, parts.Self, parts.Traces, parts.Grant, parts.Aim}, nil
}

// compile is the filter as the program takes it.
func (f CaptureFilter) compile(place int) captureFilter {
	asked := captureFilter{
		Verdicts: ^uint64(0), Snaplen: MostSnaplen, Sample: f.Sample, Place: uint32(place), Port: bigEndian(f.Port),
		Incoming: f.Incoming, Outgoing: f.Outgoing, ByService: f.Service != "", ByBackend: f.Backend != "",
	}
	if f.Snaplen > 0 {
		asked.Snaplen = min(f.Snaplen, MostSnaplen)
	}
	if len(f.Verdicts) > 0 {
		asked.Verdicts = 0
	}
	for _, v := range f.Verdicts {
		asked.Verdicts |= 1 << v
	}
	for v := range Verdict(len(verdictNames)) {
		asked.Changed = asked.Changed || asked.Verdicts>>v&1 == 1 && v.mayChange()
	}
	if f.Host.IsValid() {
		host := mappedPrefix(f.Host)
		asked.Family = 6
		if f.Host.Addr().Is4() {
			asked.Family = 4
		}
		asked.Host, asked.Mask = host.Address, words(netip.AddrFrom16([16]byte(net.CIDRMask(int(host.Bits), 128))))
	}
	return asked
}

// pass hands frames on until the capture is to end.
func (d *Dataplane) pass(ctx context.Context, c *capture, to CaptureSink) error {
	for ctx.Err() == nil && !c.full() {
		if err := d.grant(c); err != nil {
			return err
		}
		tick := time.Now().Add(captureTick)
		c.reader.SetDeadline(tick)
		for !c.full() && time.Now().Before(tick) {
			more, err := c.next(to)
			if err != nil {
				return err
			}
			if !more {
				break
			}
		}
		if err := c.count(to); err != nil {
			return err
		}
	}
	return nil
}

// finish hands on what was captured until the program was replaced.
func (c *capture) finish(to CaptureSink) error {
	time.Sleep(rest)
	c.reader.SetDeadline(c.begun) // long past: waits for nothing
	for more := true; more && !c.full(); {
		var err error
		if more, err = c.next(to); err != nil {
			return err
		}
	}
	return c.count(to)
}

func (c *capture) full() bool { return c.filter.Count > 0 && c.passed >= c.filter.Count }

// grant grants the program as many frames as it may hand over until the next
// tick, and brings up to date what its numbers mean.
func (d *Dataplane) grant(c *capture) error {
	if c.stale.Swap(false) {
		c.names = d.captureNames()
	}
	c.boot = time.Now().Add(-monotonic())
	d.attached.Lock()
	defer d.attached.Unlock()
	for _, p := range d.ports {
		if p.instance.grant == nil {
			continue
		}
		if err := p.instance.grant.Set(int64(c.filter.Rate / LeastRate)); err != nil {
			return fmt.Errorf("grant the program of %s more frames: %w", p.name, err)
		}
	}
	return nil
}

func (d *Dataplane) captureNames() captureNames {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := captureNames{make(map[uint32]string), make(map[uint32]string), make(map[uint32]string)}
	for _, s := range d.services {
		n.services[s.number] = s.name
		for b, entry := range s.all() {
			n.backends[entry] = b.name
		}
	}
	for index, l := range d.hops.links {
		n.interfaces[uint32(index)] = l.Attrs().Name
	}
	d.attached.Lock()
	defer d.attached.Unlock()
	for _, p := range d.ports {
		n.interfaces[uint32(p.ifindex)] = p.name
	}
	return n
}

// next hands on one frame, if there is one before the reader's deadline.
func (c *capture) next(to CaptureSink) (bool, error) {
	var record ringbuf.Record
	err := c.reader.ReadInto(&record)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read a frame: %w", err)
	}
	c.passed++
	return true, to.Packet(c.decode(record.RawSample))
}

// decode reads struct captured.
func (c *capture) decode(raw []byte) Captured {
	at, raw := binary.NativeEndian.Uint64(raw), raw[8:]
	var head [8]uint32
	for i := range head {
		head[i] = binary.NativeEndian.Uint32(raw[4*i:])
	}
	ifindex, length, kept, verdict, action, service, backend, outgoing := head[0], head[1], head[2], head[3], head[4], head[5], head[6], head[7]
	by := c.names.interfaces[ifindex]
	if by == "" {
		by = fmt.Sprintf("interface %d", ifindex)
	}
	return Captured{
		Time: c.boot.Add(time.Duration(at)), Interface: by, Outgoing: outgoing != 0,
		Verdict: Verdict(verdict), Action: action, Service: c.names.services[service], Backend: c.names.backends[backend],
		Length: int(length), Frame: raw[4*len(head):][:kept],
	}
}

func (c *capture) count(to CaptureSink) error {
	counts := make(map[string]CaptureCount)
	for i, name := range c.places {
		var perCPU []captureCaptureCount
		if err := c.maps[captureMapCaptureCounts].Lookup(uint32(i), &perCPU); err != nil {
			return fmt.Errorf("read the counts of %s: %w", name, err)
		}
		var sum CaptureCount
		for _, cpu := range perCPU {
			sum.Seen += cpu.Seen
			sum.Matched += cpu.Matched
			sum.Lost += cpu.Lost
		}
		counts[name] = sum
	}
	return to.Count(counts)
}

func (c *capture) close() error {
	var errs []error
	if c.reader != nil {
		errs = append(errs, c.reader.Close())
	}
	for _, m := range c.maps {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}
