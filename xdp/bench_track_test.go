package xdp

import (
	"fmt"
	"testing"

	"github.com/halfproxy/halfproxy/internal/packet"
	"github.com/halfproxy/halfproxy/lb"
)

// trackingSpeed tells what tracking costs a packet, beside what it costs where nothing is
// tracked, of the same rounds.
func trackingSpeed(b *testing.B) {
	d := newDataplane(b)
	setWays(d, tracked...)
	none := table("none", lb.L2, 16381, vips(1), tracked...)
	none.Service.Tracking = lb.TrackNone
	apply(b, d,
		none,
		moving(table("rest", lb.L2, 16381, vips(2), tracked...), atRest),
		moving(table("moved", lb.L2, 16381, vips(3), tracked...), hasMoved),
		moving(table("recorded", lb.L2, 16381, vips(4), tracked...), hasMoved),
		moving(table("all", lb.L2, 16381, vips(5), tracked...), returned))
	copy(d.store.pages(d.services["rest"].pages), d.store.pages(d.services["none"].pages)) // its slots go round the backends, too

	const flows, rounds = 1 << 17, 31
	frame := func(vip int, options ...packet.Option) []byte {
		return packet.TCP(client4, vips(vip)[0], append(options, packet.Payload(32))...)
	}
	d.store.pace.Burst = ^uint64(0) >> 1 // as many records as they like
	w := newWrapper(b, d)
	for _, vip := range []int{4, 5} {
		for range 60 {
			w.sample(b, &w.program, frame(vip, packet.SYN), flows, xdpTX)
		}
	}
	cases := []struct {
		name       string
		frame      []byte
		net, ratio []float64
	}{
		{name: "tracking none", frame: frame(1)},
		{name: "changes, slots at rest", frame: frame(2)},
		{name: "changes, slots in transition, older flows", frame: frame(3)},
		{name: "changes, slots in transition, flows with records", frame: frame(4)},
		{name: "all, flows with records", frame: frame(5)},
		{name: "all, SYN of flows with records", frame: frame(5, packet.SYN)},
	}
	for range rounds {
		var plain float64
		for i := range cases {
			c := &cases[i]
			var net float64
			const pairs = 5
			for range pairs {
				net += (w.sample(b, &w.program, c.frame, flows, xdpTX) - w.sample(b, &w.floor, c.frame, flows, xdpTX)) / pairs
			}
			if i == 0 {
				plain = net
			}
			c.net, c.ratio = append(c.net, net), append(c.ratio, net/plain)
		}
	}
	out := [][]string{{"l2, 128k flows of TCP", "ns", "of none"}}
	for _, c := range cases {
		out = append(out, []string{c.name, fmt.Sprintf("%.1f", median(c.net)), fmt.Sprintf("%.2fx", median(c.ratio))})
	}
	show(fmt.Sprintf("What tracking costs: nanoseconds a packet beyond the floor. Medians of %d interleaved rounds.", rounds), out...)
}
