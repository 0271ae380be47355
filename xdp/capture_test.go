package xdp

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/halfproxy/halfproxy/internal/packet"
	"github.com/halfproxy/halfproxy/lb"
)

// captureSink keeps what it is given, with frames of their own.
type captureSink struct {
	begun   func() // called when the capture has begun
	packets []Captured
	counts  map[string]CaptureCount
	counted atomic.Int32 // how often
	fails   error
}

func (s *captureSink) Begin() error {
	if s.begun != nil {
		s.begun()
	}
	return nil
}

func (s *captureSink) Packet(c Captured) error {
	c.Frame = slices.Clone(c.Frame)
	s.packets = append(s.packets, c)
	return s.fails
}

func (s *captureSink) Count(counts map[string]CaptureCount) error {
	s.counts = counts
	s.counted.Add(1)
	return nil
}

// newCaptured is a Dataplane with an interface that its program does not sit on.
func newCaptured(t *testing.T) *Dataplane {
	t.Helper()
	d := newDataplane(t)
	i, err := newInstance(d.spec, d.store, false)
	must(t, err)
	d.ports = []*port{{name: "eth0", ifindex: 1, instance: i}}
	must(t, d.place())
	packetServices(t, d)
	return d
}

// everything is a filter that leaves nothing out.
var everything = CaptureFilter{Incoming: true, Rate: 1_000_000}

// captureOf puts frames through the program while it captures.
func captureOf(t *testing.T, d *Dataplane, f CaptureFilter, frames ...[]byte) *captureSink {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	begun, ended := make(chan struct{}), make(chan error)
	sink := &captureSink{begun: func() { close(begun) }}
	go func() { ended <- d.Capture(ctx, f, sink) }()
	select {
	case err := <-ended:
		t.Fatalf("Capture: %v", err)
	case <-begun:
	}
	within(t, time.Minute, "frames granted", func() error {
		var n int64
		if err := d.ports[0].instance.grant.Get(&n); err != nil || n <= 0 {
			return fmt.Errorf("%d, %w", n, err)
		}
		return nil
	})
	func() {
		d.mu.Lock() // a capture that has enough leaves its program in place meanwhile
		defer d.mu.Unlock()
		for _, frame := range frames {
			_, err := d.ports[0].instance.program.Run(&ebpf.RunOptions{Data: frame})
			must(t, err)
		}
	}()
	cancel()
	must(t, <-ended)
	return sink
}

func TestACaptureHasFramesAsTheyCameAndAsTheyLeft(t *testing.T) {
	d := newCaptured(t)
	var rows []row
	for _, w := range ways {
		for i, client := range []string{client4, client6} {
			name := fmt.Sprintf("%s %d ", w.name, 4+2*i)
			rows = append(rows,
				row{name: name + "TCP", in: packet.TCP(client, w.vips[i], packet.Payload(701)), counted: w.counted},
				row{name: name + "padded", in: packet.UDP(client, w.vips[i], packet.Padding(7)), counted: w.counted},
				row{name: name + "tagged", in: packet.Tagged(packet.UDP(client, w.vips[i]), 0x88a80001, 0x81000002), counted: w.counted},
				row{name: name + "full", in: packet.TCP(client, w.vips[i], packet.Payload(1380)), counted: w.counted},
			)
		}
	}
	rows = append(rows,
		row{name: "redirected", in: packet.TCP(client4, "192.0.2.11:443"), counted: "far/203.0.113.11"},
		row{name: "too big, told", in: packet.TCP(client6, vips(6)[1], packet.Payload(1440)), verdict: AnsweredTooBig, counted: "six/2001:db8:3::1"},
		row{name: "too big, not told", in: packet.TCP(client4, vips(4)[0], packet.Payload(1460), packet.MayFragment), verdict: TooBig, counted: "four/203.0.113.1"},
		row{name: "ping", in: packet.Echo("198.51.100.7", "192.0.2.1"), verdict: AnsweredEcho},
		row{name: "no VIP", in: packet.TCP(client4, "192.0.2.200:443"), verdict: NotVIP},
		row{name: "no IP", in: packet.ARP("198.51.100.7", "192.0.2.1", packet.To("00:00:00:00:00:00")), verdict: NotIP},
		row{name: "another's", in: packet.TCP(client4, vip4, packet.To("02:00:00:00:00:99")), verdict: OtherMAC},
		row{name: "no backend", in: packet.TCP(client4, vips(9)[0]), verdict: NoBackend, counted: "empty/"},
		row{name: "no neighbour", in: packet.TCP(client4, vips(0x10)[0]), verdict: NoNeighbour, counted: "lost/203.0.113.10"},
		row{name: "old", in: packet.TCP(client4, vip4, packet.TTL(1)), verdict: TTLExpired, counted: "web/"},
		row{name: "14 bytes", in: packet.TCP(client4, vip4)[:14], verdict: Malformed},
		row{name: "an odd number of bytes", in: packet.TCP(client4, vip4)[:33], verdict: Malformed},
	)
	var frames [][]byte
	var want []Captured
	var names []string // of what is wanted
	for _, r := range rows {
		resetLimits(t, d)
		asked, err := d.ask(r.in)
		must(t, err)
		service, backend, _ := strings.Cut(r.counted, "/")
		frames, names = append(frames, r.in), append(names, r.name)
		came := Captured{Interface: "eth0", Verdict: r.verdict, Action: asked.action, Service: service, Backend: backend, Length: len(r.in), Frame: r.in}
		want = append(want, came)
		if asked.action <= 2 { // not sent on
			continue
		}
		left := came
		left.Outgoing, left.Length, left.Frame = true, len(asked.frame), asked.frame
		if asked.action == 4 {
			left.Interface = "interface 7" // which there is not
		}
		want, names = append(want, left), append(names, r.name+", as it left")
	}
	resetLimits(t, d)
	both := everything
	both.Outgoing = true
	begin := time.Now()
	got := captureOf(t, d, both, frames...).packets
	if len(got) != len(want) {
		t.Fatalf("%d frames were captured, want %d", len(got), len(want))
	}
	for i := range got {
		if at := got[i].Time; at.Before(begin.Add(-time.Second)) || at.After(time.Now().Add(time.Second)) {
			t.Errorf("%s: got time %s, want it now", names[i], at)
		}
		if !bytes.Equal(got[i].Frame, want[i].Frame) {
			t.Errorf("%s:\ngot  %x\nwant %x", names[i], got[i].Frame, want[i].Frame)
		}
		got[i].Time, got[i].Frame, want[i].Frame = time.Time{}, nil, nil
		if fmt.Sprintf("%+v", got[i]) != fmt.Sprintf("%+v", want[i]) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", names[i], got[i], want[i])
		}
	}
}

func TestACaptureHasWhatItsFilterAsksForAndNoMore(t *testing.T) {
	d := newCaptured(t)
	frames := map[string][]byte{
		"web4":    packet.TCP(client4, vips(1)[0]),
		"web6":    packet.UDP(client6, vips(1)[1]),
		"four4":   packet.TCP("198.51.100.9:31338", vips(4)[0]),
		"tagged6": packet.Tagged(packet.TCP("[2001:db8:100::9]:31338", vips(6)[1]), 0x88a80001, 0x81000002),
		"options": packet.UDP("198.51.100.200:53", vips(4)[0], packet.IPv4Options(8)),
		"later":   packet.UDP("203.0.113.77:53", vips(1)[0], packet.Fragment(8, false)),
		"ping":    packet.Echo("198.51.100.7", "192.0.2.1"),
		"other":   packet.TCP(client4, "192.0.2.200:80"),
		"empty":   packet.TCP(client4, vips(9)[0]),
		"old":     packet.TCP(client4, vip4, packet.TTL(1)),
		"lost":    packet.TCP(client6, vips(0x10)[1]),
		"arp":     packet.ARP("198.51.100.7", "192.0.2.1", packet.To("00:00:00:00:00:00")),
		"cut":     packet.TCP(client4, vip4)[:14+20+2],
	}
	names, ordered := slices.Sorted(maps.Keys(frames)), [][]byte{}
	for _, name := range names {
		ordered = append(ordered, frames[name])
	}
	for _, tt := range []struct {
		name string
		ask  func(*CaptureFilter)
		want string
	}{
		{"all", func(*CaptureFilter) {}, "arp cut empty four4 later lost old options other ping tagged6 web4 web6"},
		{"one verdict", func(f *CaptureFilter) { f.Verdicts = []Verdict{Forwarded} }, "four4 options tagged6 web4 web6"},
		{"two verdicts", func(f *CaptureFilter) { f.Verdicts = []Verdict{NotIP, TTLExpired} }, "arp old"},
		{"drops", func(f *CaptureFilter) { f.Verdicts = Drops() }, "empty later lost old"},
		{"a service", func(f *CaptureFilter) { f.Service = "web" }, "old web4 web6"},
		{"a backend", func(f *CaptureFilter) { f.Backend = "203.0.113.1" }, "four4 options web4 web6"},
		{"a service's backend", func(f *CaptureFilter) { f.Service, f.Backend = "four", "203.0.113.1" }, "four4 options"},
		{"a source", func(f *CaptureFilter) { f.Host = netip.MustParsePrefix("198.51.100.7/32") }, "cut empty old other ping web4"},
		{"a prefix", func(f *CaptureFilter) { f.Host = netip.MustParsePrefix("198.51.100.0/25") }, "cut empty four4 old other ping web4"},
		{"a prefix with bits beyond", func(f *CaptureFilter) { f.Host = netip.MustParsePrefix("198.51.100.7/25") }, "cut empty four4 old other ping web4"},
		{"a destination", func(f *CaptureFilter) { f.Host = netip.MustParsePrefix("192.0.2.4/32") }, "four4 options"},
		{"all IPv4", func(f *CaptureFilter) { f.Host = netip.MustParsePrefix("0.0.0.0/0") }, "cut empty four4 later old options other ping web4"},
		{"all IPv6", func(f *CaptureFilter) { f.Host = netip.MustParsePrefix("::/0") }, "lost tagged6 web6"},
		{"an IPv6 address", func(f *CaptureFilter) { f.Host = netip.MustParsePrefix("2001:db8:100::9/128") }, "tagged6"},
		{"an IPv6 prefix", func(f *CaptureFilter) { f.Host = netip.MustParsePrefix("2001:db8:100::/124") }, "lost tagged6 web6"},
		{"a source port", func(f *CaptureFilter) { f.Port = 31338 }, "four4 tagged6"},
		{"a source port behind options", func(f *CaptureFilter) { f.Port = 53 }, "options"},
		{"a destination port", func(f *CaptureFilter) { f.Port = 80 }, "other"},
		{"port and address", func(f *CaptureFilter) { f.Host, f.Port = netip.MustParsePrefix("192.0.2.4/32"), 31338 }, "four4"},
		{"all that is there", func(f *CaptureFilter) {
			f.Host, f.Port, f.Service, f.Backend = netip.MustParsePrefix("198.51.100.0/24"), 443, "web", "203.0.113.1"
			f.Verdicts = []Verdict{Forwarded, NoBackend}
		}, "web4"},
		{"nothing", func(f *CaptureFilter) { f.Host = netip.MustParsePrefix("192.0.2.99/32") }, ""},
	} {
		f := everything
		tt.ask(&f)
		sink := captureOf(t, d, f, ordered...)
		var got []string
		for _, p := range sink.packets {
			for i, frame := range ordered {
				if bytes.Equal(p.Frame, frame) {
					got = append(got, names[i])
				}
			}
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, strings.Join(got, " "), tt.want)
		}
		if count := sink.counts["eth0"]; count != (CaptureCount{Seen: uint64(len(frames)), Matched: uint64(len(sink.packets))}) {
			t.Errorf("%s: got %+v, want %d seen, %d matched and none lost", tt.name, count, len(frames), len(sink.packets))
		}
	}
}

func TestACaptureOfWhatLeavesHasNothingElse(t *testing.T) {
	d := newCaptured(t)
	f := everything
	f.Incoming, f.Outgoing, f.Service = false, true, "web"
	sink := captureOf(t, d, f, packet.TCP(client4, vip4), packet.TCP(client4, vip4, packet.TTL(1)), packet.TCP(client4, vips(4)[0]))
	if len(sink.packets) != 1 || !sink.packets[0].Outgoing || sink.packets[0].Verdict != Forwarded {
		t.Errorf("%d frames were captured, want the one that was forwarded", len(sink.packets))
	}
	if got, want := sink.counts["eth0"], (CaptureCount{Seen: 3, Matched: 1}); got != want {
		t.Errorf("counts: got %+v, want %+v", got, want)
	}
}

func TestACaptureKeepsNoMoreThanItIsAskedTo(t *testing.T) {
	d := newCaptured(t)
	frame := packet.TCP(client4, vips(4)[0], packet.Payload(1000))
	wantKept(t, d, frame, 1, 14, 64, 65, 127, 0)
}

// wantKept captures a frame with each of snaplens, 0 being all of it.
func wantKept(t *testing.T, d *Dataplane, frame []byte, snaplens ...uint32) {
	t.Helper()
	for _, snaplen := range snaplens {
		f := everything
		f.Snaplen = snaplen
		kept := frame
		if snaplen > 0 {
			kept = frame[:min(int(snaplen), len(frame))]
		}
		got := captureOf(t, d, f, frame).packets
		if len(got) != 1 || !bytes.Equal(got[0].Frame, kept) || got[0].Length != len(frame) {
			t.Errorf("snaplen %d: got %d frames, want one of which there are %d bytes of %d", snaplen, len(got), len(kept), len(frame))
		}
	}
}

func TestACaptureSamplesByChance(t *testing.T) {
	d := newCaptured(t)
	f := everything
	f.Sample = 10
	const packets = 10_000
	sink := captureOf(t, d, f, slices.Repeat([][]byte{packet.TCP(client4, vip4)}, packets)...)
	// 1000 are expected, with a standard deviation of 30.
	if n := len(sink.packets); n < 1000-6*30 || n > 1000+6*30 {
		t.Errorf("%d of %d packets were captured, want some 1000", n, packets)
	}
	if c := sink.counts["eth0"]; c.Seen != packets || c.Matched != uint64(len(sink.packets)) || c.Lost != 0 {
		t.Errorf("counts: got %+v", c)
	}
}

func TestACaptureEndsAfterSoManyFrames(t *testing.T) {
	d := newCaptured(t)
	f := everything
	f.Count, f.Outgoing = 5, true
	// The capture does not wait for its context.
	if n := len(captureOf(t, d, f, slices.Repeat([][]byte{packet.TCP(client4, vip4)}, 20)...).packets); n != 5 {
		t.Errorf("%d frames were captured, want 5", n)
	}
}

func TestWhatIsMoreThanTheRateIsCountedAsLost(t *testing.T) {
	d := newCaptured(t)
	f := everything
	f.Rate = 100 * LeastRate
	const packets = 20_000
	begin := time.Now()
	sink := captureOf(t, d, f, slices.Repeat([][]byte{packet.TCP(client4, vip4)}, packets)...)
	most := int(f.Rate)*(int(time.Since(begin)/time.Second)+1) + int(f.Rate/LeastRate)
	c := sink.counts["eth0"]
	if n := len(sink.packets); n == 0 || n > most || c.Matched != packets || c.Lost != uint64(packets-n) {
		t.Errorf("%d frames were captured and %+v counted, want at most %d, and all of %d counted", n, c, most, packets)
	}
}

func TestACaptureFollowsItsServiceAndBackend(t *testing.T) {
	d := newCaptured(t)
	d.setWay("203.0.113.2", way{mac: "02:00:00:00:00:b2", ifindex: 1, mtu: 1500})
	f := everything
	f.Service, f.Backend = "web", "203.0.113.1"
	sink := &captureSink{}
	frame := packet.TCP(client4, vip4)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- d.Capture(ctx, f, sink) }()
	wantOne := func(when string, want bool) {
		t.Helper()
		// What is granted between two counts is so by the tables as they are now.
		from := sink.counted.Load()
		within(t, time.Minute, when, func() error {
			if n := sink.counted.Load() - from; n < 2 {
				return fmt.Errorf("counted %d times", n)
			}
			return nil
		})
		d.mu.Lock() // no Capture is at its numbers meanwhile
		defer d.mu.Unlock()
		before := captureCountsOf(t, d)
		_, err := d.ports[0].instance.program.Run(&ebpf.RunOptions{Data: frame})
		must(t, err)
		if got := captureCountsOf(t, d).Matched - before.Matched; got == 1 != want {
			t.Errorf("%s: %d frames matched, want one: %t", when, got, want)
		}
	}
	wantOne("as it began", true)
	d.mu.Lock()
	err := d.grow(2*d.pages.size, 2*d.entries.size)
	d.mu.Unlock()
	must(t, err)
	wantOne("after the maps grew", true)
	apply(t, d, table("other", lb.L2, 13, vips(2), "203.0.113.2"))
	wantOne("without its service", false)
	// The numbers are others' now.
	apply(t, d, table("other", lb.L2, 13, vips(2), "203.0.113.2"), table("more", lb.L2, 13, vips(3), "203.0.113.2"),
		table("web", lb.L2, 13, vips(1), "203.0.113.1"))
	wantOne("with its service again", true)
	apply(t, d, table("web", lb.L2, 13, vips(1), "203.0.113.2"))
	wantOne("with another backend", false)
	cancel()
	must(t, <-ended)
	if len(sink.packets) != 3 {
		t.Errorf("%d frames were captured, want 3", len(sink.packets))
	}
	for _, p := range sink.packets {
		if p.Service != "web" || p.Backend != "203.0.113.1" {
			t.Errorf("got a frame of service %q and backend %q, want web and 203.0.113.1", p.Service, p.Backend)
		}
	}
}

func captureCountsOf(t *testing.T, d *Dataplane) CaptureCount {
	t.Helper()
	sink := &captureSink{}
	must(t, d.capturing.count(sink))
	return sink.counts["eth0"]
}

func TestACaptureThatCannotBeIsRefused(t *testing.T) {
	refused := func(d *Dataplane, f CaptureFilter, want string) {
		t.Helper()
		sink := &captureSink{begun: func() { t.Errorf("begun, want %q", want) }}
		if err := d.Capture(t.Context(), f, sink); err == nil || err.Error() != want {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	refused(newDataplane(t), everything, "capture: the program sits on no interface")

	d := newCaptured(t)
	f := everything
	f.Service = "wob"
	refused(d, f, `capture: there is no service "wob", but empty, far, four, gre4, gre6, gue4, gue6, lost, quic, six, sum4, sum6, web, wide`)
	f.Service, f.Backend = "web", "203.0.113.9"
	refused(d, f, `capture: service "web" has no backend "203.0.113.9"`)
	f.Service = ""
	refused(d, f, `capture: no service has a backend "203.0.113.9"`)

	ctx, cancel := context.WithCancel(t.Context())
	sink := &captureSink{begun: func() {
		refused(d, everything, fmt.Sprintf("capture: another one runs since %s: there can be one at a time", d.capturing.begun.Format(time.TimeOnly)))
		cancel()
	}}
	must(t, d.Capture(ctx, everything, sink))

	d.ports[0].held = true
	refused(d, everything, "capture: the program of the process before still forwards, by its own tables: ask again in some seconds")
	d.ports[0].held = false
	must(t, d.Close())
	refused(d, everything, "capture: the program sits on no interface")
}

func TestACaptureWhoseSinkFailsIsOver(t *testing.T) {
	d := newCaptured(t)
	sink := &captureSink{fails: fmt.Errorf("nobody reads")}
	ended := make(chan error, 1)
	go func() { ended <- d.Capture(t.Context(), everything, sink) }()
	var err error
	for over := false; !over; {
		d.mu.Lock()
		d.ports[0].instance.program.Run(&ebpf.RunOptions{Data: packet.TCP(client4, vip4)})
		d.mu.Unlock()
		select {
		case err = <-ended:
			over = true
		case <-time.After(captureTick):
		}
	}
	if err == nil || err.Error() != "nobody reads" {
		t.Errorf("got %v, want the sink's error", err)
	}
	if d.capturing != nil || d.ports[0].instance.grant != nil {
		t.Error("the program still captures")
	}
}

// programOn is the name of the program that sits on an interface.
func programOn(t *testing.T, d *Dataplane) string {
	t.Helper()
	d.attached.Lock()
	defer d.attached.Unlock()
	info, err := d.ports[0].link.Info()
	must(t, err)
	p, err := ebpf.NewProgramFromID(info.Program)
	must(t, err)
	defer p.Close()
	about, err := p.Info()
	must(t, err)
	return about.Name
}

func TestNoPacketIsLostWhileCapturesComeAndGo(t *testing.T) {
	captures, least := inShort(20, 4), uint64(inShort(1_000_000, 50_000))
	r := newRange(t, 1)
	d := r.process(t, 0, Native)
	defer d.Close()
	r.serve(t, 0, d)
	s := r.aim(t, 0)
	s.wantThrough(t, "before", true)
	stop := s.fire(t)
	f := everything
	f.Rate, f.Count = 10_000, 500
	for range captures {
		sink := &captureSink{}
		must(t, r.nodes[0].Do(func() error { return d.Capture(t.Context(), f, sink) }))
		if name := programOn(t, d); name != "balance" {
			t.Fatalf("after a capture the program is %s, want balance", name)
		}
		if len(sink.packets) != int(f.Count) {
			t.Errorf("%d frames were captured, want %d", len(sink.packets), f.Count)
		}
		for _, p := range sink.packets {
			if p.Verdict != Forwarded || p.Service != "web" || p.Backend != target || p.Interface != "eth0" {
				t.Fatalf("got %+v, want it forwarded to %s", p, target)
			}
		}
	}
	s.wantSent(t, least)
	stop()
	if lost := s.lost(); lost > 0 {
		t.Errorf("%d of %d packets were lost", lost, s.sent())
	}
	for _, name := range r.pinned(t) {
		if strings.HasSuffix(name, "maps/ring") {
			t.Errorf("%s is pinned, want none of a capture's maps", name)
		}
	}
}

// A flood is forwarded on, and no more is captured than was agreed.
func TestAFloodIsNotAllCaptured(t *testing.T) {
	r := newRange(t, 1)
	d := r.process(t, 0, Native)
	defer d.Close()
	r.serve(t, 0, d)
	s := r.aim(t, 0)
	stop := s.fire(t)
	f := everything
	f.Rate = 1000
	const seconds = 2
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	sink := &captureSink{begun: func() { time.AfterFunc(seconds*time.Second, cancel) }}
	must(t, r.nodes[0].Do(func() error { return d.Capture(ctx, f, sink) }))
	stop()
	c := sink.counts["eth0"]
	if n := len(sink.packets); n < 500 || n > int(f.Rate)*seconds+500 || c.Lost != c.Matched-uint64(n) || c.Matched != c.Seen || c.Lost == 0 {
		t.Errorf("%d frames were captured in %d s, and %+v counted, want some %d a second and the rest lost", n, seconds, c, f.Rate)
	}
	if lost := s.lost(); lost > 0 {
		t.Errorf("%d of %d packets were lost", lost, s.sent())
	}
}
