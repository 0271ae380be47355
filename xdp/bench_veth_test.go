package xdp

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/internal/netns"
	"github.com/halfproxy/halfproxy/internal/packet"
	"github.com/halfproxy/halfproxy/lb"
)

// vethSpeed tells how many packets go through a pair of veth devices each:
//
//	generator, sink ── program        generator, sink ── XDP_TX
//	10.9.0.254          10.9.0.1
//
// all on one CPU. The backends are addresses of the generator's side.
func vethSpeed(b *testing.B) {
	d, ends := newVeths(b)
	var o benchObjects
	spec, err := loadBench()
	must(b, err)
	must(b, load(&o, spec, d.store.maps, nil))
	b.Cleanup(func() { o.Close() })
	must(b, ends.router.Do(func() error { return errors.Join(attachTo(b, "eth0", o.Sink), attachTo(b, "plain", o.Sink)) }))
	must(b, ends.lb.Do(func() error { return attachTo(b, "plain", o.Empty) }))

	type cell struct {
		through, vip  string
		flows         uint32
		rates, shares []float64
	}
	var cells []*cell
	for _, flows := range []uint32{1, 128 << 10} {
		cells = append(cells, &cell{through: "plain", vip: "192.0.2.1:443", flows: flows})
		for n := range 4 {
			cells = append(cells, &cell{through: "eth0", vip: fmt.Sprintf("192.0.2.%d:443", n+1), flows: flows})
		}
	}
	const rounds = 41
	must(b, ends.router.Do(func() error {
		if err := oneCPU(); err != nil {
			return err
		}
		for range rounds {
			var plain float64
			for _, c := range cells {
				rate, err := ends.rate(&o, c.through, c.vip, c.flows)
				if err != nil {
					return err
				}
				if c.through == "plain" {
					plain = rate
				}
				c.rates = append(c.rates, rate)
				c.shares = append(c.shares, rate/plain)
			}
		}
		return nil
	}))

	out := [][]string{{"", "XDP_TX alone", "l2", "ipip", "gre", "gue"}}
	for _, name := range []string{"1 flow", "128k flows"} {
		line := []string{name}
		for _, c := range cells[:5] {
			text := fmt.Sprintf("%.2f", median(c.rates))
			if c.through != "plain" {
				text += fmt.Sprintf("  %.0f%%", 100*median(c.shares))
			}
			line = append(line, text)
		}
		cells = cells[5:]
		out = append(out, line)
	}
	show(fmt.Sprintf(`Million packets a second through a veth pair, generator, program and sink on one CPU, and that
in percent of a program that does nothing but XDP_TX. Medians of %d interleaved rounds.`, rounds), out...)
}

// veths are the two ends of both pairs of devices.
type veths struct {
	router, lb *netns.NS
	macs       map[string][6]byte // of lb's devices
}

func newVeths(b *testing.B) (*Dataplane, *veths) {
	b.Helper()
	v := &veths{macs: make(map[string][6]byte)}
	for name, ns := range map[string]**netns.NS{"router": &v.router, "lb": &v.lb} {
		n, err := netns.New(fmt.Sprintf("hptest-speed-%d-%s", os.Getpid(), name))
		must(b, err)
		b.Cleanup(func() { must(b, n.Close()) })
		*ns = n
	}
	for _, name := range []string{"eth0", "plain"} {
		must(b, v.router.Veth(name, v.lb, name, 1500))
		must(b, v.lb.Do(func() error {
			l, err := netlink.LinkByName(name)
			if err == nil {
				v.macs[name] = [6]byte(l.Attrs().HardwareAddr)
			}
			return err
		}))
	}
	must(b, v.lb.Address("eth0", "10.9.0.1/16"))
	must(b, v.router.Address("eth0", "10.9.0.254/16"))
	must(b, v.lb.Route("10.10.0.0/16", "10.9.0.254"))
	var near, far []string
	for n := range 100 {
		near = append(near, fmt.Sprintf("10.9.1.%d", n+1))
		far = append(far, fmt.Sprintf("10.10.0.%d", n+1))
		must(b, v.router.Address("eth0", near[n]+"/32"))
	}
	l := &lan{lb: v.lb}
	d := l.start(b, Native)
	const slots = 65537
	l.apply(b, d,
		table("l2", lb.L2, slots, []string{"192.0.2.1:443"}, near...),
		table("ipip", lb.IPIP, slots, []string{"192.0.2.2:443"}, far...),
		table("gre", lb.GRE, slots, []string{"192.0.2.3:443"}, far...),
		gue(6080, table("gue", lb.GUE, slots, []string{"192.0.2.4:443"}, far...)))
	resolved(b, d)
	return d, v
}

func attachTo(b *testing.B, device string, p *ebpf.Program) error {
	l, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	x, err := link.AttachXDP(link.XDPOptions{Program: p, Interface: l.Attrs().Index, Flags: link.XDPDriverMode})
	if err == nil {
		b.Cleanup(func() { x.Close() })
	}
	return err
}

// oneCPU keeps the thread on one CPU, the last that it may use.
func oneCPU() error {
	var may, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		return err
	}
	for cpu := range 8 * len(may) * 8 {
		if may.IsSet(cpu) {
			one.Zero()
			one.Set(cpu)
		}
	}
	return unix.SchedSetaffinity(0, &one)
}

// rate sends packets and gives how many million a second came back. It runs on a
// thread in the router's namespace.
func (v *veths) rate(o *benchObjects, through, vip string, flows uint32) (float64, error) {
	const packets = 100_000
	l, err := netlink.LinkByName(through)
	if err != nil {
		return 0, err
	}
	mac := v.macs[through]
	frame := packet.TCP(client4, vip, packet.Payload(32))
	copy(frame, mac[:])
	packet := packetsOf(frame, flows)
	packet.Ifindex = uint32(l.Attrs().Index)
	if err := o.Bench.Set(packet); err != nil {
		return 0, err
	}
	var back uint64
	for range 10 { // on a busy machine some are lost: a run counts that lost none
		before, err := actions(o)
		if err != nil {
			return 0, err
		}
		begin := time.Now()
		if _, err := o.Generate.Run(&ebpf.RunOptions{Data: frame, Repeat: packets, Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES}); err != nil {
			return 0, err
		}
		for time.Since(begin) < time.Second {
			now, err := actions(o)
			if err != nil {
				return 0, err
			}
			if back = now[xdpDrop] - before[xdpDrop]; back >= packets {
				return packets / time.Since(begin).Seconds() / 1e6, nil
			}
		}
	}
	return 0, fmt.Errorf("%d of %d packets to %s by way of %s came back", back, packets, vip, through)
}
