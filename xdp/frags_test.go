package xdp

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/halfproxy/halfproxy/internal/netns"
	"github.com/halfproxy/halfproxy/internal/packet"
	"github.com/halfproxy/halfproxy/lb"
)

const jumboMTU = 9000

// newJumbo has the services of the packet tests, and 9000 bytes of way to their
// backends. What a test puts through it in one go fills three buffers.
func newJumbo(t *testing.T) *Dataplane {
	t.Helper()
	d := newDataplane(t)
	if !kernelHas(t, 5, 18) {
		t.Skip("before Linux 5.18 no frame has several buffers")
	}
	packetServices(t, d)
	d.setWay("203.0.113.1", way{mac: backendMAC, source: node4, ifindex: 1, mtu: jumboMTU})
	d.setWay("2001:db8:3::1", way{mac: backendMAC, source: node6, ifindex: 1, mtu: jumboMTU})
	return d
}

func TestJumboFrames(t *testing.T) {
	d := newJumbo(t)
	var rows []row
	for _, w := range slices.Concat(ways, summedWays) {
		for n, client := range []string{client4, client6} {
			most := jumboMTU - w.overhead - 28 - 20*n // of UDP's payload
			vip := w.vips[n]
			add := func(name string, in []byte) {
				rows = append(rows, sameFlow(fmt.Sprintf("%s, IPv%d: %s", w.name, 4+2*n, name), in, packet.UDP(client, vip), w.send, w.counted))
			}
			// The first buffer ends somewhere among these.
			for size := 3300; size < 3600; size += 37 {
				add(fmt.Sprintf("%d bytes", size), packet.UDP(client, vip, packet.Payload(size)))
			}
			for size := most - 5; size <= most; size++ {
				add(fmt.Sprintf("%d bytes", size), packet.UDP(client, vip, packet.Payload(size)))
			}
			add("TCP", packet.TCP(client, vip, packet.Payload(8000)))
			add("nothing but ones", packet.UDP(client, vip, packet.Data(bytes.Repeat([]byte{0xff}, 8001))))
			if w.overhead > 0 {
				add("padding is left out", packet.UDP(client, vip, packet.Payload(8000), packet.Padding(5)))
				mtu := uint32(jumboMTU - w.overhead)
				in := packet.UDP(client, vip, packet.Payload(most+1))
				rows = append(rows, row{name: w.name + ": one byte too big", in: in, verdict: AnsweredTooBig, out: tooBig(in, mtu)})
			}
		}
	}
	cut := packet.UDP(client4, vip4, packet.Payload(8000))
	rows = append(rows,
		forwarded("l2: IPv4 options", packet.UDP(client4, vip4, packet.Payload(8000), packet.IPv4Options(40)), l2, "web/203.0.113.1"),
		forwarded("l2: extension headers", packet.UDP(client6, vip6, packet.Payload(8000), packet.HopByHop), l2, "web/203.0.113.1"),
		opening(forwarded("l2: a SYN with data", packet.TCP(client4, vip4, packet.SYN, packet.Payload(8000)), l2, "web/203.0.113.1")),
		row{name: "not a VIP", in: packet.UDP(client4, "192.0.2.200:443", packet.Payload(8000)), verdict: NotVIP},
		row{name: "no service of the VIP", in: packet.UDP(client6, "[2001:db8:2::1]:444", packet.Payload(8000)), verdict: NotVIP},
		row{name: "one byte less than it says", in: cut[:len(cut)-1], verdict: Malformed},
		row{name: "TTL 1", in: packet.UDP(client4, vip4, packet.Payload(8000), packet.TTL(1)), verdict: TTLExpired},
		row{name: "more than the MTU of another interface, without DF", in: packet.UDP(client4, "192.0.2.11:443", packet.Payload(8000), packet.MayFragment), verdict: TooBig},
	)
	for _, r := range rows {
		resetLimits(t, d)
		t.Run(r.name, func(t *testing.T) { r.check(t, d) })
	}
}

func TestTaggedJumboFrames(t *testing.T) {
	d := newJumbo(t)
	for _, w := range ways {
		in := packet.UDP(client4, w.vips[0], packet.Payload(8000))
		r := sameFlow(w.name, in, in, w.send, w.counted)
		r.in, r.out = packet.Tagged(r.in, 0x88a80001, 0x81000002), packet.Tagged(r.out, 0x88a80001, 0x81000002)
		t.Run(w.name, func(t *testing.T) { r.check(t, d) })
	}
}

func TestJumboPingsAreAnswered(t *testing.T) {
	d := newJumbo(t)
	for _, ends := range [][2]string{{"198.51.100.7", "192.0.2.1"}, {"2001:db8:100::7", "2001:db8:2::1"}} {
		in := packet.Echo(ends[0], ends[1], packet.Payload(8000))
		a, err := d.ask(in)
		must(t, err)
		if got := Verdict(a.trace.Verdict); got != AnsweredEcho || len(a.frame) != len(in) || !bytes.Equal(a.frame[len(in)-7900:], in[len(in)-7900:]) {
			t.Errorf("%s: got %s, a frame of %d bytes, want it answered with the same %d", ends[1], got, len(a.frame), len(in))
		}
	}
}

func TestJumboFramesAreTakenOutOfTheirHeaders(t *testing.T) {
	newJumbo(t)
	d := newDecap(t, allTunnels)
	for _, kind := range kinds {
		for _, outer := range [][2]string{{node4, here4}, {node6, here6}} {
			for _, inner := range [][]byte{packet.UDP(client4, vip4, packet.Payload(8000)), packet.UDP(client6, vip6, packet.Payload(8000))} {
				in := kind.encapsulate(outer[0], outer[1], inner)
				decapRow{kind.name, in, inner, kind.counted}.check(t, d)
				decapRow{kind.name + ", cut", in[:len(in)-1], nil, DecapStats{Malformed: 1}}.check(t, d)
			}
		}
	}
	inner := packet.UDP(client4, vip4, packet.Payload(8001))
	summed := packet.WithUDPChecksum(inGUE(node4, here4, inner))
	decapRow{"a right checksum", summed, inner, DecapStats{GUE: 1}}.check(t, d)
	wrong := slices.Clone(summed)
	wrong[len(wrong)-1]++
	decapRow{"a wrong checksum", wrong, nil, DecapStats{BadChecksum: 1}}.check(t, d)
}

func TestACaptureHasAllOfAJumboFrame(t *testing.T) {
	newJumbo(t)
	d := newCaptured(t)
	frame := packet.UDP(client4, vip4, packet.Payload(8957))
	wantKept(t, d, frame, 64, 3500, 3600, 8998, 8999, 0)
}

// setMTU raises that of all links of the lan.
func (l *lan) setMTU(t *testing.T, mtu int) {
	t.Helper()
	// A veth takes no more than the program at its other end: that of the bridge first.
	for _, ns := range []*netns.NS{l.sw, l.client, l.lb, l.near, l.router, l.far, l.sw} {
		must(t, ns.Do(func() error {
			links, err := netlink.LinkList()
			if err != nil {
				return err
			}
			for _, link := range links {
				if link.Type() == "veth" || link.Type() == "bridge" {
					if err := netlink.LinkSetMTU(link, mtu); err != nil {
						return fmt.Errorf("%s: %w", link.Attrs().Name, err)
					}
				}
			}
			return nil
		}))
	}
}

func TestJumboConnectionsThroughTheProgram(t *testing.T) {
	if !kernelHas(t, 5, 18) {
		t.Skip("before Linux 5.18 a native program takes no jumbo frames")
	}
	for _, tt := range []struct {
		mode    Mode
		forward lb.Forward
		backend string
	}{
		{Native, lb.L2, "10.0.0.11"},
		{Generic, lb.L2, "10.0.0.11"},
		{Native, lb.IPIP, "10.3.0.11"},
		{Native, lb.IPIP, "fd00:3::11"},
		{Native, lb.GRE, "10.3.0.11"},
		{Native, lb.GRE, "fd00:3::11"},
		{Native, lb.GUE, "10.3.0.11"},
		{Native, lb.GUE, "fd00:3::11"},
	} {
		t.Run(fmt.Sprintf("%s/%s/%s", tt.mode, tt.forward, tt.backend), func(t *testing.T) {
			l := newLAN(t, 1500)
			l.setMTU(t, jumboMTU)
			d := l.start(t, tt.mode)
			server, name := l.near, "near"
			if tt.forward != lb.L2 {
				server, name = l.far, "far"
				decap := l.attachDecap(t)
				t.Cleanup(func() { decap.Close() })
				if mode := decap.hooks[0].mode; mode != Native {
					t.Errorf("decapsulation: got mode %s, want native", mode)
				}
				must(t, l.far.Do(func() error {
					const room = 40 + 8 + 4 // for the outer headers
					return errors.Join(advmss("0.0.0.0/0", "10.3.0.254", jumboMTU-room-40), advmss("::/0", "fd00:3::fe", jumboMTU-room-60))
				}))
			}
			serve(t, server, name)
			web := webTable(tt.forward, tt.backend)
			web.Service.GUEPort, web.Service.GUEChecksum = lb.DefaultGUEPort, tt.forward == lb.GUE
			l.apply(t, d, web)
			resolved(t, d)
			if got := d.Modes()["eth0"]; got != tt.mode {
				t.Errorf("mode: got %s, want %s", got, tt.mode)
			}

			const size = 500_000
			for vip, client := range map[string]string{vipHTTP4: "10.0.0.1", vipHTTP6: "fd00::1"} {
				got, err := l.talk(vip, size)
				if want := fmt.Sprintf("%s %s %d", name, client, size); err != nil || got != want {
					t.Errorf("%s: got %q, %v, want %q", vip, got, err, want)
				}
			}
			eventually(t, "segments of 8 kB", func() error {
				s := stats(t, d)
				web := s.Services["web"]
				if web.Bytes < 2*size || web.Packets > 2*size/4000 || s.Verdicts[Forwarded] != web.Count {
					return fmt.Errorf("counted %v for the service, %v forwarded", web.Count, s.Verdicts[Forwarded])
				}
				return nil
			})
		})
	}
}

// Before Linux 5.18 native mode is refused, and how it could be had is said.
func TestWhatAnMTUKeepsFromNativeModeIsSaid(t *testing.T) {
	needRoot(t)
	l := newLAN(t, jumboMTU)
	if kernelHas(t, 5, 18) {
		if got := l.start(t, Auto).Modes()["eth0"]; got != Native {
			t.Errorf("mode: got %s, want native", got)
		}
		return
	}
	must(t, l.lb.Do(func() error {
		d, err := New(Config{Interfaces: []string{"eth0"}, Mode: Native})
		if err != nil {
			return err
		}
		defer d.Close()
		if err := d.Attach(); err == nil || !strings.Contains(err.Error(), "its MTU is 9000") || !strings.Contains(err.Error(), "`ip link set dev eth0 mtu 3506`") {
			t.Errorf("got %v, want the MTU and the remedy in it", err)
		}
		return nil
	}))
	if got := l.start(t, Auto).Modes()["eth0"]; got != Generic {
		t.Errorf("mode: got %s, want generic", got)
	}
}

// What knows of no frames of several buffers cannot come in our place, nor does
// it do harm by trying.
func TestAnEarlierProgramIsRefusedWhereFramesAreTooBigForIt(t *testing.T) {
	if !kernelHas(t, 5, 18) {
		t.Skip("before Linux 5.18 no program takes jumbo frames")
	}
	l := newLAN(t, 1500)
	l.setMTU(t, jumboMTU)
	d := l.start(t, Native)
	serve(t, l.near, "near")
	l.apply(t, d, webTable(lb.L2, "10.0.0.11"))
	resolved(t, d)

	spec, err := loadBpf()
	must(t, err)
	earlier, err := newInstance(spec, d.store, false)
	must(t, err)
	defer earlier.Close()
	if err := d.ports[0].link.Update(earlier.program); err == nil {
		t.Error("a program for one buffer was taken at an MTU of 9000")
	}
	if got, err := l.talk(vipHTTP4, 100_000); err != nil || got != "near 10.0.0.1 100000" {
		t.Errorf("after that: got %q, %v", got, err)
	}
}
