package xdp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/internal/netns"
	"github.com/halfproxy/halfproxy/internal/packet"
	"github.com/halfproxy/halfproxy/lb"
)

// newMSS is the program as if on the loopback device, whose limits are 1440 and 1420.
func newMSS(t testing.TB) *MSS {
	t.Helper()
	needRoot(t)
	m, err := loadMSSProgram(MSSConfig{VIPs: []lb.VIP{
		lb.MustParseVIP("192.0.2.1"), lb.MustParseVIP("2001:db8:2::1"), lb.MustParseVIP("192.0.2.64/28"), lb.MustParseVIP("2001:db8:2:64::/64"),
	}})
	must(t, err)
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	must(t, m.setLimit(newMSSHook("lo", 1), MSSLimit{IPv4: 1440, IPv6: 1420}))
	return m
}

// withTCPOptions puts options, padded with zeros, behind the TCP header of a
// frame without any, and makes lengths and checksums right again.
func withTCPOptions(frame []byte, options ...byte) []byte {
	for len(options)%4 != 0 {
		options = append(options, 0)
	}
	tcp := 14 + int(frame[14]&0xf)*4
	if frame[14]>>4 == 6 {
		tcp = 14 + 40
	}
	out := slices.Insert(slices.Clone(frame), tcp+20, options...)
	out[tcp+12] += byte(len(options)/4) << 4
	lengthen(out, len(options))
	checksums(out, tcp)
	return out
}

// checksums computes those of IPv4 and TCP anew.
func checksums(frame []byte, tcp int) {
	pseudo := slices.Clone(frame[14+8 : 14+40])
	if frame[14]>>4 == 4 {
		copy(frame[14+10:], []byte{0, 0})
		binary.BigEndian.PutUint16(frame[14+10:], ^onesSum(frame[14:tcp]))
		pseudo = slices.Clone(frame[14+12 : 14+20])
	}
	copy(frame[tcp+16:], []byte{0, 0})
	pseudo = append(pseudo, 0, 6)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(frame)-tcp))
	pseudo = append(pseudo, frame[tcp:]...)
	if len(pseudo)%2 == 1 {
		pseudo = append(pseudo, 0)
	}
	binary.BigEndian.PutUint16(frame[tcp+16:], ^onesSum(pseudo))
}

func mssOption(mss uint16) []byte { return []byte{2, 4, byte(mss >> 8), byte(mss)} }

func TestMSS(t *testing.T) {
	m := newMSS(t)
	const next = 1<<32 - 1 // TC_ACT_UNSPEC
	type row struct {
		name    string
		in, out []byte // out nil: as it came in
	}
	var rows []row
	for _, family := range []struct {
		name, vip, other, client string
		limit                    uint16
	}{
		{"IPv4", vip4, "192.0.2.2:443", client4, 1440},
		{"IPv6", vip6, "[2001:db8:2::2]:443", client6, 1420},
		{"the last of a prefix", "192.0.2.79:443", "192.0.2.80:443", client4, 1440},
		{"the last of an IPv6 prefix", "[2001:db8:2:64:ffff:ffff:ffff:ffff]:443", "[2001:db8:2:65::]:443", client6, 1420},
	} {
		synAck := func(options ...byte) []byte {
			return withTCPOptions(packet.TCP(family.vip, family.client, packet.SYN, packet.ACK, packet.Payload(0)), options...)
		}
		lowered := func(name string, before, after []byte, mss uint16) row {
			with := func(mss uint16) []byte { return synAck(slices.Concat(before, mssOption(mss), after)...) }
			return row{name, with(mss), with(family.limit)}
		}
		same := func(name string, frame []byte) row { return row{name, frame, nil} }
		big := mssOption(1460)
		linux := []byte{4, 2, 8, 10, 0, 1, 2, 3, 4, 5, 6, 7, 1, 3, 3, 7} // SACK, timestamps, NOP, window scale
		for _, r := range []row{
			lowered("as Linux sends it", nil, linux, 1460),
			lowered("alone", nil, nil, 1460),
			lowered("one too big", nil, nil, family.limit+1),
			lowered("as big as can be", nil, nil, 65535),
			lowered("whose checksum's carry turns", nil, nil, 0xff00),
			lowered("at an odd offset", []byte{1}, nil, 1460),
			lowered("at an odd offset, as big as can be", []byte{1}, linux[:12], 65535),
			lowered("behind two NOPs", []byte{1, 1}, nil, 8960),
			lowered("behind all others", linux, nil, 8960),
			lowered("behind 36 NOPs", bytes.Repeat([]byte{1}, 36), nil, 8960),
			lowered("behind an unknown option", []byte{254, 5, 1, 2, 3}, nil, 8960),

			same("just as big as fits", synAck(mssOption(family.limit)...)),
			same("smaller: never raised", synAck(mssOption(536)...)),
			same("of 0", synAck(mssOption(0)...)),
			same("without options", packet.TCP(family.vip, family.client, packet.SYN, packet.ACK, packet.Payload(0))),
			same("with others alone", synAck(linux...)),
			same("with NOPs alone", synAck(bytes.Repeat([]byte{1}, 40)...)),
			same("behind the list's end", synAck(slices.Concat([]byte{0}, big)...)),
			same("of a length that no MSS has", synAck(2, 3, 0xff, 1)),
			same("cut by the header's end", withTCPOptions(packet.TCP(family.vip, family.client, packet.SYN, packet.ACK), 1, 1, 1, 1, 1, 2, 4, 0xff)),
			same("behind an option of length 0", synAck(slices.Concat([]byte{254, 0}, big)...)),
			same("behind an option of length 1", synAck(slices.Concat([]byte{254, 1}, big)...)),
			same("behind an option that goes beyond the header", synAck(slices.Concat([]byte{254, 41}, big)...)),
			same("in the payload alone", packet.TCP(family.vip, family.client, packet.SYN, packet.ACK, packet.Payload(40))),

			same("SYN of the VIP", withTCPOptions(packet.TCP(family.vip, family.client, packet.SYN), big...)),
			same("ACK of the VIP", withTCPOptions(packet.TCP(family.vip, family.client), big...)),
			same("SYN-ACK of another address", withTCPOptions(packet.TCP(family.other, family.client, packet.SYN, packet.ACK), big...)),
			same("SYN-ACK to the VIP", withTCPOptions(packet.TCP(family.client, family.vip, packet.SYN, packet.ACK), big...)),
			same("UDP", packet.UDP(family.vip, family.client)),
		} {
			r.name = family.name + ": " + r.name
			rows = append(rows, r)
		}
		for whole, n := synAck(slices.Concat(linux, big)...), 14; n < len(whole); n++ {
			rows = append(rows, same(fmt.Sprintf("%s: cut to %d bytes", family.name, n), whole[:n]))
		}
		// A data offset that lies leads into the payload or into nothing.
		for offset := range byte(16) {
			frame := synAck(mssOption(1000)...)
			tcp := 14 + 20
			if family.limit == 1420 {
				tcp = 14 + 40
			}
			frame[tcp+12] = offset << 4
			rows = append(rows, same(fmt.Sprintf("%s: data offset %d", family.name, offset), frame))
		}
	}
	rows = append(rows,
		row{"IPv4 options", ip4Options(1460), ip4Options(1440)},
		row{"a first fragment", changed(ip4Options(1460), 6, 0x20), nil},
		row{"ARP", packet.ARP("192.0.2.1", "192.0.2.2"), nil},
	)
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			before, err := m.Lowered()
			must(t, err)
			run := ebpf.RunOptions{Data: r.in, DataOut: make([]byte, len(r.in)+256)}
			action, err := m.objects.FitMss.Run(&run)
			if err != nil && len(r.in) < 14+40 {
				t.Skipf("this kernel runs no packet cut to %d bytes: %v", len(r.in), err)
			}
			must(t, err)
			after, err := m.Lowered()
			must(t, err)
			want, count := r.out, uint64(1)
			if want == nil {
				want, count = r.in, 0
			}
			if !bytes.Equal(run.DataOut, want) {
				t.Errorf("frame:\ngot  %x\nwant %x", run.DataOut, want)
			}
			if after-before != count {
				t.Errorf("lowered: got %d, want %d", after-before, count)
			}
			if action != next {
				t.Errorf("action: got %#x, want %#x: the next filter's turn", action, uint32(next))
			}
		})
	}
}

// ip4Options is a SYN-ACK with options in its IPv4 header and an MSS.
func ip4Options(mss uint16) []byte {
	return withTCPOptions(packet.TCP(vip4, client4, packet.SYN, packet.ACK, packet.IPv4Options(8)), mssOption(mss)...)
}

func TestMSSIsLeftAloneOnOtherInterfaces(t *testing.T) {
	m := newMSS(t)
	must(t, m.objects.MssLimits.Delete(uint32(1)))
	in := ip4Options(1460)
	run := ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in)+256)}
	if _, err := m.objects.FitMss.Run(&run); err != nil || !bytes.Equal(run.DataOut, in) {
		t.Errorf("got %x, %v, want it as it came", run.DataOut, err)
	}
}

func TestMSSMetrics(t *testing.T) {
	m := newMSS(t)
	for range 3 {
		_, err := m.objects.FitMss.Run(&ebpf.RunOptions{Data: ip4Options(1460), DataOut: make([]byte, 512)})
		must(t, err)
	}
	collector := &mssMetrics{m, prometheus.NewRegistry()}
	err := testutil.CollectAndCompare(collector, strings.NewReader(`
# HELP halfproxy_backend_mss_lowered_total SYN-ACKs of a VIP whose MSS was lowered to fit the encapsulation.
# TYPE halfproxy_backend_mss_lowered_total counter
halfproxy_backend_mss_lowered_total 3
`))
	if err != nil {
		t.Error(err)
	}
	problems, err := testutil.CollectAndLint(collector)
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: got %v, %v, want nothing", problems, err)
	}
}

// egress is a namespace with an interface, and what tc has on it.
type egress struct {
	*netns.NS
	t     *testing.T
	index int
}

func newEgress(t *testing.T) egress {
	t.Helper()
	needRoot(t)
	e := egress{t: t}
	var peer *netns.NS
	for name, ns := range map[string]**netns.NS{"hptest-xdp-mss": &e.NS, "hptest-xdp-peer": &peer} {
		n, err := netns.New(name)
		must(t, err)
		t.Cleanup(func() { n.Close() })
		*ns = n
	}
	must(t, e.Veth("eth0", peer, "eth0", 1500))
	must(t, e.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err == nil {
			e.index = l.Attrs().Index
		}
		return err
	}))
	return e
}

func (e egress) attach() (m *MSS, err error) {
	err = e.Do(func() (err error) {
		m, err = AttachMSS(MSSConfig{
			Interfaces: []string{"eth0"}, VIPs: []lb.VIP{lb.MustParseVIP("192.0.2.1")}, Log: testLog(e.t),
			Limit: func(mtu int) MSSLimit { return MSSLimit{uint16(mtu - 60), uint16(mtu - 80)} },
		})
		return err
	})
	return m, err
}

// wants holds the qdisc and the names of the filters at egress against what is there.
func (e egress) wants(when string, clsact bool, names ...string) {
	e.t.Helper()
	var filters []string
	var found bool
	must(e.t, e.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		qdiscs, err := netlink.QdiscList(l)
		if err != nil {
			return err
		}
		found = slices.ContainsFunc(qdiscs, func(q netlink.Qdisc) bool { return q.Type() == "clsact" })
		if !found {
			return nil
		}
		list, err := netlink.FilterList(l, netlink.HANDLE_MIN_EGRESS)
		for _, f := range list {
			if f, ok := f.(*netlink.BpfFilter); ok {
				filters = append(filters, f.Name)
			}
		}
		return err
	}))
	if found != clsact || !slices.Equal(filters, names) {
		e.t.Errorf("%s: clsact %v, filters %v, want %v, %v", when, found, filters, clsact, names)
	}
}

func TestMSSLeavesTheInterfaceAsItWas(t *testing.T) {
	e := newEgress(t)
	e.wants("before", false)
	m, err := e.attach()
	must(t, err)
	e.wants("attached", true, mssFilter)
	if err := m.Attached(); err != nil {
		t.Errorf("Attached: got %v, want nil", err)
	}
	must(t, m.Close())
	e.wants("closed", false)
	if err := m.Close(); err != nil {
		t.Errorf("a second Close: got %v, want nil", err)
	}
}

func TestMSSLeavesWhatIsNotItsOwn(t *testing.T) {
	e := newEgress(t)
	must(t, e.Do(func() error { return netlink.QdiscAdd(clsact(e.index)) }))
	m, err := e.attach()
	must(t, err)
	must(t, m.Close())
	e.wants("closed, on somebody's qdisc", true)

	// A qdisc of ours that somebody uses meanwhile.
	must(t, e.Do(func() error { return netlink.QdiscDel(clsact(e.index)) }))
	m, err = e.attach()
	must(t, err)
	other := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: e.index, Parent: netlink.HANDLE_MIN_EGRESS, Handle: netlink.MakeHandle(0, 1), Protocol: unix.ETH_P_ALL, Priority: 9,
		},
		Fd: m.objects.FitMss.FD(), Name: "somebody", DirectAction: true,
	}
	must(t, e.Do(func() error { return netlink.FilterAdd(other) }))
	must(t, m.Close())
	e.wants("closed, with somebody's filter beside", true, "somebody")
}

func TestMSSOfAProcessThatDiedIsRemoved(t *testing.T) {
	e := newEgress(t)
	died, err := e.attach()
	must(t, err)
	died.hooks[0].program, died.hooks[0].qdisc = 0, false // it never comes to remove them
	must(t, died.Close())
	e.wants("died", true, mssFilter)

	if _, err := e.attach(); err == nil || !strings.Contains(err.Error(), "another filter has priority 176 at the egress of eth0") {
		t.Errorf("in its presence: got %v, want it named", err)
	}
	e.wants("after an attempt", true, mssFilter)
	must(t, e.Do(RemoveLeftMSS))
	e.wants("removed", false)
	must(t, e.Do(RemoveLeftMSS))
}

func TestMSSTellsThatItsFilterWasRemovedAndFollowsTheMTU(t *testing.T) {
	e := newEgress(t)
	m, err := e.attach()
	must(t, err)
	must(t, e.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkSetMTU(l, 1400)
	}))
	must(t, m.Follow())
	var got mssMssLimit
	must(t, m.objects.MssLimits.Lookup(uint32(e.index), &got))
	if want := (mssMssLimit{Ipv4: 1340, Ipv6: 1320}); got != want {
		t.Errorf("limits at MTU 1400: got %+v, want %+v", got, want)
	}
	must(t, e.Do(func() error { return netlink.FilterDel(m.hooks[0].filter()) }))
	if err := m.Attached(); err == nil || !strings.Contains(err.Error(), "mss fitting is not on eth0") {
		t.Errorf("Attached without the filter: got %v", err)
	}
	must(t, m.Close())
	e.wants("closed", false)
}

// FuzzMSS holds whatever goes out against what is true of every frame: it goes
// on, as long as it was; and it is as it was, but for an MSS that went down to
// the limit and the checksum that goes with it.
func FuzzMSS(f *testing.F) {
	for _, family := range [][2]string{{vip4, client4}, {vip6, client6}} {
		plain := packet.TCP(family[0], family[1], packet.SYN, packet.ACK)
		f.Add(plain)
		f.Add(withTCPOptions(plain, mssOption(1460)...))
		f.Add(withTCPOptions(plain, slices.Concat([]byte{1, 3, 3, 7, 4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}, mssOption(8960))...))
		f.Add(withTCPOptions(plain, slices.Concat([]byte{1}, mssOption(65535), []byte{254, 0})...))
	}
	m := newMSS(f)
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < 14+40 || len(frame) > 3000 {
			t.Skip("not a frame that BPF_PROG_TEST_RUN takes")
		}
		before, err := m.Lowered()
		must(t, err)
		run := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)}
		action, err := m.objects.FitMss.Run(&run)
		must(t, err)
		after, err := m.Lowered()
		must(t, err)
		if action != 1<<32-1 || len(run.DataOut) != len(frame) {
			t.Fatalf("action %#x, %d bytes became %d", action, len(frame), len(run.DataOut))
		}
		if after == before {
			if !bytes.Equal(run.DataOut, frame) {
				t.Fatalf("not counted, and it was touched:\ngot  %x\nwant %x", run.DataOut, frame)
			}
			return
		}
		tcp := 14 + int(frame[14]&0xf)*4
		limit := mssOption(1440)
		if frame[14]>>4 == 6 {
			tcp, limit = 14+40, mssOption(1420)
		}
		// Put back what it was, and everything must be.
		out := slices.Clone(run.DataOut)
		copy(out[tcp+16:tcp+18], frame[tcp+16:tcp+18])
		for at := tcp + 20; at+4 <= len(out); at++ {
			if bytes.Equal(out[at:at+4], limit) && !bytes.Equal(out[at:at+4], frame[at:at+4]) {
				copy(out[at+2:at+4], frame[at+2:at+4])
				break
			}
		}
		if !bytes.Equal(out, frame) {
			t.Fatalf("more than the MSS was touched:\ngot  %x\nwant %x", run.DataOut, frame)
		}
	})
}
