package xdp

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/internal/packet"
	"github.com/halfproxy/halfproxy/lb"
)

// BenchmarkSpeed prints tables (make bench). It runs once, be there but time for more.
func BenchmarkSpeed(b *testing.B) {
	needRoot(b)
	for _, part := range []struct {
		name string
		tell func(*testing.B)
	}{{"packets", packetSpeed}, {"veth", vethSpeed}, {"tables", tableSpeed}, {"services", serviceSpeed}, {"tracking", trackingSpeed}, {"records", recordsHeld}, {"sharing", sharingSpeed}} {
		b.Run(part.name, func(b *testing.B) {
			part.tell(b)
			b.ReportMetric(0, "ns/op") // of all of it: says nothing
		})
	}
}

// Actions of XDP.
const (
	xdpDrop = 1
	xdpPass = 2
)

// scenario is packets of one kind, for the services that are the table's columns.
type scenario struct {
	name   string
	flows  uint32
	action uint32
	frames []scene // of benchColumns
}

func benchColumns() []string { return []string{"l2", "ipip", "gre", "gue"} }

// scene is one figure of the table, as it is measured round by round.
type scene struct {
	frame      []byte  // nil: none
	goal       float64 // multiples of the floor; 0: none
	net, ratio []float64
	whole      []float64 // ratios by the CPU time of whole runs, where there is a goal
}

// packetSpeed tells what the program costs a packet beyond the floor: a
// program in its place that sends every packet back at once. The floor has all that
// is not the program's: the kernel's dispatch, making the packet, choosing its flow,
// a call, moving its start back after an outer header, counting the action.
func packetSpeed(b *testing.B) {
	d := newDataplane(b)
	var near, far4, far6 []string
	for n := range 100 {
		near = append(near, fmt.Sprintf("203.0.113.%d", n+1))
		far4 = append(far4, fmt.Sprintf("10.0.0.%d", n+1))
		far6 = append(far6, fmt.Sprintf("2001:db8:3::%x", n+1))
	}
	setWays(d, slices.Concat(near, far4, far6)...)
	const slots = 65537
	apply(b, d,
		table("l2", lb.L2, slots, vips(1), near...),
		table("ipip4", lb.IPIP, slots, vips(2), far4...),
		table("ipip6", lb.IPIP, slots, vips(3), far6...),
		table("gre4", lb.GRE, slots, vips(4), far4...),
		table("gre6", lb.GRE, slots, vips(5), far6...),
		gue(6080, table("gue4", lb.GUE, slots, vips(6), far4...)),
		gue(6080, table("gue6", lb.GUE, slots, vips(7), far6...)),
		summing(gue(6080, table("sum4", lb.GUE, slots, vips(8), far4...))),
		quic(table("quic", lb.L2, slots, vips(9), near...)))
	scenarios := benchScenarios()
	setGoals(b, scenarios)

	runtime.LockOSThread() // whose CPU time is taken
	defer runtime.UnlockOSThread()
	w := newWrapper(b, d)
	const rounds, pairs = 31, 3
	var floors, empties, calls, wholeFloors, wholeEmpties []float64
	frame := scenarios[0].frames[0].frame
	for range rounds {
		begin := time.Now()
		nanoseconds(b, w.floor.Empty, frame, 2)
		calls = append(calls, 1000*time.Since(begin).Seconds())
		empties = append(empties, nanoseconds(b, w.floor.Empty, frame, packets))
		wholeEmpties = append(wholeEmpties, wholeRun(b, w.floor.Empty, frame))
		for _, s := range scenarios {
			for i := range s.frames {
				f := &s.frames[i]
				if f.frame == nil {
					continue
				}
				var floor, program float64 // means: the kernel tells whole nanoseconds
				for range pairs {
					floor += w.sample(b, &w.floor, f.frame, s.flows, xdpTX) / pairs
					program += w.sample(b, &w.program, f.frame, s.flows, s.action) / pairs
				}
				floors = append(floors, floor)
				f.net = append(f.net, program-floor)
				f.ratio = append(f.ratio, (program-floor)/floor)
				if f.goal == 0 {
					continue
				}
				floor, program = wholeRun(b, w.floor.Measure, f.frame), wholeRun(b, w.program.Measure, f.frame)
				wholeFloors = append(wholeFloors, floor)
				f.whole = append(f.whole, (program-floor)/floor)
			}
		}
	}

	out := [][]string{slices.Concat([]string{""}, benchColumns())}
	for _, s := range scenarios {
		line := []string{s.name}
		for _, f := range s.frames {
			text := "-"
			if f.frame != nil {
				text = fmt.Sprintf("%.1f  %.2fx", median(f.net), median(f.ratio))
			}
			line = append(line, text)
		}
		out = append(out, line)
	}
	show(fmt.Sprintf(`Nanoseconds a packet beyond the floor, and that as multiples of the floor. The floor was %.1f ns,
of which %.1f ns are the kernel's for running an empty program. What it takes besides to set up a
run (%.1f ms) is in none of these. Medians of %d interleaved rounds.`, median(floors), median(empties), median(calls), rounds), out...)
	showGoals(scenarios, median(wholeFloors), median(wholeEmpties))
}

// setGoals has scenes reach what is at most so many multiples of the floor.
func setGoals(b *testing.B, scenarios []scenario) {
	for _, goal := range []struct {
		scenario, column string
		most             float64
	}{
		{"TCP, 1 flow", "ipip", 2.0},
		{"TCP, 128k flows", "ipip", 2.0},
		{"TCP, 1M flows", "ipip", 2.1},
		{"SYN flood, 16M sources", "ipip", 2.0},
		{"IPv6 TCP, 128k flows", "ipip", 2.6},
		{"TCP, 1 flow", "gue", 2.4},
		{"not a VIP", "l2", 0.8},
		{"TCP, 1M flows", "l2", 1.5},
	} {
		at := slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == goal.scenario })
		if at < 0 {
			b.Fatalf("a goal is of %q, which is not measured", goal.scenario)
		}
		scenarios[at].frames[slices.Index(benchColumns(), goal.column)].goal = goal.most
	}
}

func showGoals(scenarios []scenario, floor, empty float64) {
	out := [][]string{{"", "goal", "the loop's time", "whole runs"}}
	for _, s := range scenarios {
		for i, f := range s.frames {
			if f.goal > 0 {
				out = append(out, []string{s.name + ", " + benchColumns()[i],
					fmt.Sprintf("%.1f", f.goal), fmt.Sprintf("%.2f", median(f.ratio)), fmt.Sprintf("%.2f", median(f.whole))})
			}
		}
	}
	show(fmt.Sprintf(`The goals, as multiples of the floor: at most so many; by the time of the kernel's loop, as above; and by
the thread's CPU time of whole runs of %d packets, their set-up included. By that the floor was
%.1f ns, of which an empty program was %.1f.`, wholePackets, floor, empty), out...)
}

func benchScenarios() []scenario {
	// Without padding, and longer than what the wrapper writes.
	tcp := func(source string, options ...packet.Option) func(string) []byte {
		return func(vip string) []byte { return packet.TCP(source, vip, append(options, packet.Payload(32))...) }
	}
	udp := func(source string, payload packet.Option) func(string) []byte {
		return func(vip string) []byte { return packet.UDP(source, vip, payload) }
	}
	four := func(n int) string { return vips(n)[0] }
	six := func(n int) string { return vips(n)[1] }
	tx := func(name string, flows uint32, frame func(vip string) []byte, vips ...string) scenario {
		s := scenario{name: name, flows: flows, action: xdpTX, frames: make([]scene, 4)}
		for i, vip := range vips {
			if vip != "" {
				s.frames[i].frame = frame(vip)
			}
		}
		return s
	}
	pass := func(name string, frame []byte) scenario {
		return scenario{name: name, flows: 1, action: xdpPass, frames: []scene{{frame: frame}, {}, {}, {}}}
	}
	ways4 := []string{four(1), four(2), four(4), four(6)}
	ways6 := []string{six(1), six(3), six(5), six(7)}
	ack4, ack6, syn := tcp(client4), tcp(client6), tcp(client4, packet.SYN)
	udp4, udp6 := udp(client4, packet.Payload(44)), udp(client6, packet.Payload(44))
	toID := func(id []byte) func(string) []byte { return udp(client4, packet.Data(short(id, make([]byte, 44)...))) }
	const k, M = 1 << 10, 1 << 20
	return []scenario{
		tx("TCP, 1 flow", 1, ack4, ways4...),
		tx("TCP, 1k flows", k, ack4, ways4...),
		tx("TCP, 128k flows", 128*k, ack4, ways4...),
		tx("TCP, 1M flows", M, ack4, ways4...),
		tx("SYN of 128k new flows", 128*k, syn, ways4...),
		tx("SYN flood, 16M sources", 16*M, syn, ways4...),
		tx("UDP, 1 flow", 1, udp4, ways4...),
		tx("UDP, 128k flows", 128*k, udp4, ways4...),
		tx("IPv6 TCP, 1 flow", 1, ack6, ways6...),
		tx("IPv6 TCP, 128k flows", 128*k, ack6, ways6...),
		tx("IPv6 TCP, 1M flows", M, ack6, ways6...),
		tx("IPv6 UDP, 128k flows", 128*k, udp6, ways6...),
		tx("IPv6 over IPv4, 128k flows", 128*k, ack6, "", six(2), six(4), six(6)),
		tx("IPv4 over IPv6, 128k flows", 128*k, ack4, "", four(3), four(5), four(7)),
		tx("with UDP checksums, 128k flows", 128*k, ack4, "", "", "", four(8)),
		tx("the same, of 1,400 bytes", 128*k, udp(client4, packet.Payload(1372)), "", "", "", four(8)),
		tx("QUIC by server ID, 128k flows", 128*k, toID(second), four(9)),
		tx("QUIC by the table, 128k flows", 128*k, toID(unknown), four(9)),
		pass("not a VIP", ack4("192.0.2.200:443")),
		pass("not a VIP, IPv6", ack6("[2001:db8:2::200]:443")),
	}
}

// show prints rows in columns, the first to the left and the others to the right.
func show(title string, rows ...[]string) {
	fmt.Printf("\n\n%s\n\n", title)
	widest := 0
	for _, row := range rows {
		widest = max(widest, len(row[0]))
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', tabwriter.AlignRight)
	for _, row := range rows {
		fmt.Fprintf(w, "%-*s\t%s\t\n", widest, row[0], strings.Join(row[1:], "\t"))
	}
	w.Flush()
	fmt.Println()
}

func median(values []float64) float64 {
	values = slices.Sorted(slices.Values(values))
	return values[len(values)/2]
}

// wrapper is bpf/bench.bpf.c, around the program and around nothing.
type wrapper struct{ program, floor benchObjects }

func newWrapper(b *testing.B, d *Dataplane) *wrapper {
	b.Helper()
	w := new(wrapper)
	for o, floor := range map[*benchObjects]bool{&w.program: false, &w.floor: true} {
		spec, err := loadBench()
		must(b, err)
		must(b, load(o, spec, d.store.maps, map[string]any{"floor_only": floor, "self": benchPort{Ifindex: 1}}))
		b.Cleanup(func() { o.Close() })
	}
	return w
}

// sample is the nanoseconds that one packet takes, all of which have to end as action.
func (w *wrapper) sample(b *testing.B, o *benchObjects, frame []byte, flows, action uint32) float64 {
	b.Helper()
	must(b, o.Bench.Set(packetsOf(frame, flows)))
	before, err := actions(o)
	must(b, err)
	if o != &w.floor { // the caches that another program had are warmed
		nanoseconds(b, o.Measure, frame, packets/4)
	}
	took := nanoseconds(b, o.Measure, frame, packets)
	after, err := actions(o)
	must(b, err)
	for a, n := range after {
		if n != before[a] && uint32(a) != action {
			b.Fatalf("%d packets ended as action %d, want %d", n-before[a], a, action)
		}
	}
	return took
}

const packets = 20000 // of a sample

// nanoseconds are what each of so many packets takes, by the kernel's own clock around
// the loop of them.
func nanoseconds(b *testing.B, p *ebpf.Program, frame []byte, packets int) float64 {
	b.Helper()
	_, took, err := p.Benchmark(frame, packets, nil)
	must(b, err)
	return float64(took.Nanoseconds()) + 0.5 // of which the kernel cuts off the fraction
}

const wholePackets = 50000 // of a whole run

// wholeRun is the CPU time that each packet of a whole run takes, in nanoseconds, the
// run's set-up included. The program has to know what packets to make.
func wholeRun(b *testing.B, p *ebpf.Program, frame []byte) float64 {
	b.Helper()
	begin := threadTime(b)
	nanoseconds(b, p, frame, wholePackets)
	return float64(threadTime(b)-begin) / wholePackets
}

// threadTime is the CPU time of this thread.
func threadTime(b *testing.B) time.Duration {
	b.Helper()
	var used unix.Timespec
	must(b, unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &used))
	return time.Duration(used.Nano())
}

// packetsOf says what packets to make: frame's headers, from this many sources.
func packetsOf(frame []byte, flows uint32) benchBench {
	b := benchBench{Frame: uint32(len(frame)), Source: 14 + 12, Flows: flows - 1}
	if frame[14]>>4 == 6 {
		b.Source = 14 + 8 + 12
	}
	copy(b.Headers[:], frame)
	return b
}

// actions are the packets that ended as each action.
func actions(o *benchObjects) (packets [5]uint64, err error) {
	counters, err := newCounters(o.Actions)
	if err != nil {
		return packets, err
	}
	for a := range packets {
		c, err := counters.read(uint32(a))
		if err != nil {
			return packets, err
		}
		packets[a] = c.Packets
	}
	return packets, nil
}
