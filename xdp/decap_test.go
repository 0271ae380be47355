package xdp

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/halfproxy/halfproxy/internal/packet"
)

func TestDecapsulation(t *testing.T) {
	needRoot(t)
	d, err := loadDecapsulation(
		[]netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:3::1")},
		[]netip.Prefix{netip.MustParsePrefix("203.0.113.128/25"), netip.MustParsePrefix("2001:db8:3::/112"), netip.MustParsePrefix("192.0.2.7/32")})
	must(t, err)
	defer d.Close()

	const here4, here6 = "203.0.113.1", "2001:db8:3::1"
	in4, in6 := packet.TCP(client4, vip4), packet.UDP(client6, vip6)
	encapsulate := packet.Encapsulate
	changed := func(frame []byte, at int, value byte) []byte {
		frame = slices.Clone(frame)
		frame[14+at] = value
		return frame
	}
	type row struct {
		name string
		in   []byte
		out  []byte // nil: as it came in
		want DecapStats
	}
	rows := []row{
		{"4in4", encapsulate(node4, here4, 0, in4), in4, DecapStats{TakenOff: 1}},
		{"6in4", encapsulate(node4, here4, 0, in6), in6, DecapStats{TakenOff: 1}},
		{"4in6", encapsulate(node6, here6, 5, in4), in4, DecapStats{TakenOff: 1}},
		{"6in6", encapsulate(node6, here6, 5, in6), in6, DecapStats{TakenOff: 1}},
		{"source allowed as one address", encapsulate("192.0.2.7", here4, 0, in4), in4, DecapStats{TakenOff: 1}},
		{"tunnel in a tunnel: one header is taken off", encapsulate(node4, here4, 0, encapsulate(node4, here4, 0, in4)), encapsulate(node4, here4, 0, in4), DecapStats{TakenOff: 1}},

		{"source beside the one allowed", encapsulate("192.0.2.8", here4, 0, in4), nil, DecapStats{Refused: 1}},
		{"source beside the prefix allowed", encapsulate("203.0.113.127", here4, 0, in4), nil, DecapStats{Refused: 1}},
		{"IPv6 source beside the prefix allowed", encapsulate("2001:db8:3::1:fe", here6, 0, in4), nil, DecapStats{Refused: 1}},
		{"another host's address", encapsulate(node4, "203.0.113.2", 0, in4), nil, DecapStats{OtherDestination: 1}},
		{"another host's IPv6 address", encapsulate(node6, "2001:db8:3::2", 0, in6), nil, DecapStats{OtherDestination: 1}},
		{"TCP to this host", packet.TCP(client4, here4+":80"), nil, DecapStats{NoTunnel: 1}},
		{"UDP over IPv6 to this host", packet.UDP(client6, "["+here6+"]:80"), nil, DecapStats{NoTunnel: 1}},
		{"ARP", packet.ARP("198.51.100.7", here4), nil, DecapStats{NoTunnel: 1}},
		{"fragment of a tunnel's packet", changed(encapsulate(node4, here4, 0, in4), 6, 0x20), nil, DecapStats{NoTunnel: 1}},
		{"IPv6 in a tunnel that says IPv4", changed(encapsulate(node4, here4, 0, in6), 9, 4), nil, DecapStats{Malformed: 1}},
		{"IPv4 in a tunnel that says IPv6", changed(encapsulate(node6, here6, 0, in4), 6, 41), nil, DecapStats{Malformed: 1}},
		{"outer header that says it is shorter than it is", changed(encapsulate(node4, here4, 0, in4), 0, 0x44), nil, DecapStats{Malformed: 1}},
		{"outer length beyond the frame", changed(encapsulate(node4, here4, 0, in4), 3, 0xff), nil, DecapStats{Malformed: 1}},
	}
	for _, whole := range [][]byte{encapsulate(node4, here4, 0, in4), encapsulate(node6, here6, 0, in6)} {
		for n := 14; n < len(whole); n++ {
			rows = append(rows, row{"cut", whole[:n], nil, DecapStats{Malformed: 1}})
		}
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			before, err := d.Stats()
			must(t, err)
			run := ebpf.RunOptions{Data: r.in, DataOut: make([]byte, len(r.in)+256)}
			action, err := d.objects.Decapsulate.Run(&run)
			must(t, err)
			after, err := d.Stats()
			must(t, err)
			const pass = 2
			if action != pass {
				t.Errorf("action: got %d, want %d", action, pass)
			}
			want := r.out
			if want == nil {
				want = r.in
			}
			if !bytes.Equal(run.DataOut, want) {
				t.Errorf("frame:\ngot  %x\nwant %x", run.DataOut, want)
			}
			got := DecapStats{
				after.TakenOff - before.TakenOff, after.NoTunnel - before.NoTunnel, after.OtherDestination - before.OtherDestination,
				after.Refused - before.Refused, after.Malformed - before.Malformed,
			}
			if got != r.want {
				t.Errorf("counted: got %+v, want %+v", got, r.want)
			}
		})
	}
}
