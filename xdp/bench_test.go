package xdp

import (
	"fmt"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/halfproxy/halfproxy/internal/packet"
	"github.com/halfproxy/halfproxy/lb"
)

// BenchmarkProgram tells what the program costs a packet beyond the floor: a
// program in its place that sends every packet back at once. x-floor is that
// cost in units of the floor, both medians of the same rounds. The floor has all
// that is not the program's: the kernel's dispatch, making the packet, choosing
// its flow, moving its start back after an outer header, counting the action.
//
// One VIP per family and service, 100 backends, 65,537 slots.
func BenchmarkProgram(b *testing.B) {
	d := newDataplane(b)
	var near, far4, far6 []string
	for n := range 100 {
		near = append(near, fmt.Sprintf("203.0.113.%d", n+1))
		far4 = append(far4, fmt.Sprintf("10.0.0.%d", n+1))
		far6 = append(far6, fmt.Sprintf("2001:db8:3::%x", n+1))
	}
	setWays(d, slices.Concat(near, far4, far6)...)
	apply(b, d,
		table("l2", lb.L2, 65537, vips(1), near...),
		table("ipip4", lb.IPIP, 65537, vips(4), far4...),
		table("ipip6", lb.IPIP, 65537, vips(6), far6...),
		table("gre", lb.GRE, 65537, vips(7), far4...),
		gue(6080, table("gue", lb.GUE, 65537, vips(8), far4...)),
		summing(gue(6080, table("sum", lb.GUE, 65537, vips(0x10), far4...))),
		quic(table("quic", lb.L2, 65537, vips(9), near...)))

	// Without padding, and longer than what the wrapper writes.
	tcp := func(source, vip string, options ...packet.Option) []byte {
		return packet.TCP(source, vip, append(options, packet.Payload(32))...)
	}
	udp := func(source, vip string) []byte { return packet.UDP(source, vip, packet.Payload(44)) }
	toID := func(source, vip string, id []byte) []byte {
		return packet.UDP(source, vip, packet.Data(short(id, make([]byte, 44)...)))
	}

	const pass, tx = 2, 3
	for _, bb := range []struct {
		name   string
		frame  []byte
		flows  uint32
		action uint32
	}{
		{"not a VIP/IPv4", tcp(client4, "192.0.2.200:443"), 1, pass},
		{"not a VIP/IPv6", tcp(client6, "[2001:db8:2::200]:443"), 1, pass},
		{"l2/IPv4/1 flow", tcp(client4, vips(1)[0]), 1, tx},
		{"l2/IPv4/1k flows", tcp(client4, vips(1)[0]), 1 << 10, tx},
		{"l2/IPv4/128k flows", tcp(client4, vips(1)[0]), 1 << 17, tx},
		{"l2/IPv4/1M flows", tcp(client4, vips(1)[0]), 1 << 20, tx},
		{"l2/IPv4/SYN flood", tcp(client4, vips(1)[0], packet.SYN), 1 << 24, tx},
		{"l2/IPv4/QUIC by server ID", toID(client4, vips(9)[0], second), 1 << 20, tx},
		{"l2/IPv4/QUIC by the table", toID(client4, vips(9)[0], unknown), 1 << 20, tx},
		{"l2/IPv6/1 flow", tcp(client6, vips(1)[1]), 1, tx},
		{"l2/IPv6/1M flows", tcp(client6, vips(1)[1]), 1 << 20, tx},
		{"4in4/1 flow", tcp(client4, vips(4)[0]), 1, tx},
		{"4in4/1k flows", tcp(client4, vips(4)[0]), 1 << 10, tx},
		{"4in4/128k flows", tcp(client4, vips(4)[0]), 1 << 17, tx},
		{"4in4/1M flows", tcp(client4, vips(4)[0]), 1 << 20, tx},
		{"4in4/SYN flood", tcp(client4, vips(4)[0], packet.SYN), 1 << 24, tx},
		{"4in4/UDP, 1 flow", udp(client4, vips(4)[0]), 1, tx},
		{"6in4/1M flows", tcp(client6, vips(4)[1]), 1 << 20, tx},
		{"4in6/1M flows", tcp(client4, vips(6)[0]), 1 << 20, tx},
		{"gre/1M flows", tcp(client4, vips(7)[0]), 1 << 20, tx},
		{"gue/1 flow", tcp(client4, vips(8)[0]), 1, tx},
		{"gue/1M flows", tcp(client4, vips(8)[0]), 1 << 20, tx},
		{"gue/checksums, 1M flows", tcp(client4, vips(0x10)[0]), 1 << 20, tx},
		{"gue/checksums, 1400 bytes", packet.UDP(client4, vips(0x10)[0], packet.Payload(1372)), 1 << 20, tx},
		{"6in6/1 flow", tcp(client6, vips(6)[1]), 1, tx},
		{"6in6/1M flows", tcp(client6, vips(6)[1]), 1 << 20, tx},
	} {
		b.Run(bb.name, func(b *testing.B) {
			program := newBench(b, d, bb.frame, bb.flows, bb.action, false)
			floor := newBench(b, d, bb.frame, bb.flows, tx, true)
			var nets, floors []float64
			for b.Loop() {
				f, p := floor.sample(b), program.sample(b)
				floors, nets = append(floors, f), append(nets, p-f)
			}
			program.check(b)
			floor.check(b)
			slices.Sort(floors)
			slices.Sort(nets)
			net, low := nets[len(nets)/2], floors[len(floors)/2]
			b.ReportMetric(0, "ns/op") // of a round: says nothing
			b.ReportMetric(net, "ns/packet")
			b.ReportMetric(low, "floor-ns")
			b.ReportMetric(net/low, "x-floor")
		})
	}
}

// bench is an instance of the wrapper in bpf/bench.bpf.c.
type bench struct {
	objects benchObjects
	frame   []byte
	action  uint32 // that all packets must end as
}

func newBench(b *testing.B, d *Dataplane, frame []byte, flows, action uint32, floor bool) *bench {
	b.Helper()
	spec, err := loadBench()
	must(b, err)
	for name, m := range d.store.maps {
		spec.Maps[name].MaxEntries = m.MaxEntries()
	}
	must(b, spec.Variables["floor_only"].Set(floor))
	state := benchBench{Frame: uint32(len(frame)), Source: 14 + 12, Flows: flows - 1}
	if frame[14]>>4 == 6 {
		state.Source = 14 + 8 + 12
	}
	copy(state.Headers[:], frame)
	must(b, spec.Variables["bench"].Set(state))
	must(b, spec.Variables["self"].Set(benchPort{Ifindex: 1}))
	x := &bench{frame: frame, action: action}
	must(b, spec.LoadAndAssign(&x.objects, &ebpf.CollectionOptions{MapReplacements: d.store.maps}))
	b.Cleanup(func() { x.objects.Close() })
	return x
}

// sample is the time of one packet, over many: the first ones warm the caches
// that the other program had.
func (x *bench) sample(b *testing.B) float64 {
	const warm, packets = 5000, 20000
	if _, _, err := x.objects.Measure.Benchmark(x.frame, warm, nil); err != nil {
		b.Fatal(err)
	}
	_, took, err := x.objects.Measure.Benchmark(x.frame, packets, nil)
	if err != nil {
		b.Fatal(err)
	}
	return float64(took.Nanoseconds())
}

// check fails the benchmark when packets ended otherwise than they should.
func (x *bench) check(b *testing.B) {
	counters, err := newCounters(x.objects.Actions)
	must(b, err)
	for action := range x.objects.Actions.MaxEntries() {
		c, err := counters.read(action)
		must(b, err)
		if c.Packets != 0 && action != x.action {
			b.Fatalf("%d packets ended as action %d, want %d", c.Packets, action, x.action)
		}
	}
}
