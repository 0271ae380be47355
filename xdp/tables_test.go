package xdp

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/internal/packet"
	"github.com/halfproxy/halfproxy/lb"
)

// process puts a frame through and fails the test on any verdict but want.
func process(t testing.TB, d *Dataplane, frame []byte, want Verdict) []byte {
	t.Helper()
	verdict, out, err := d.Process(frame)
	if err != nil {
		t.Fatal(err)
	}
	if verdict != want {
		t.Fatalf("verdict: got %s, want %s", verdict, want)
	}
	return out
}

// flow is the n-th of many flows to a VIP.
func flow(n int, vip string) []byte {
	if netip.MustParseAddrPort(vip).Addr().Is4() {
		return packet.UDP(fmt.Sprintf("198.18.%d.%d:%d", n>>8&0xff, n&0xff, 1024+n%50000), vip)
	}
	return packet.UDP(fmt.Sprintf("[2001:db8:100::%x]:%d", n&0xffff, 1024+n%50000), vip)
}

// backendOf tells by the destination MAC address which backend a frame went to:
// setWays gives each its own.
func setWays(d *Dataplane, backends ...string) {
	for _, b := range backends {
		d.setWay(b, way{mac: macOf(b), source: sourceFor(b), ifindex: 1, mtu: 1500})
	}
}

func macOf(backend string) string {
	a := netip.MustParseAddr(backend).As16()
	return fmt.Sprintf("02:00:%02x:%02x:%02x:%02x", a[12], a[13], a[14], a[15])
}

func sourceFor(backend string) string {
	if netip.MustParseAddr(backend).Is4() {
		return node4
	}
	return node6
}

func TestEveryFlowGoesWhereItsSlotSays(t *testing.T) {
	d := newDataplane(t)
	backends := []string{"203.0.113.1", "203.0.113.2", "203.0.113.3"}
	setWays(d, backends...)
	random := rand.New(rand.NewPCG(5, 6))
	const size = 16381
	web := table("web", lb.L2, size, []string{vip4, vip6}, backends...)
	for i := range web.Slots {
		web.Slots[i] = uint16(random.IntN(3))
	}
	for _, key := range [][16]byte{web.HashKey, {1}, {15: 1}} { // nothing but the key changes
		web.HashKey = key
		apply(t, d, web)
		for n := range inShort(2000, 200) {
			for _, vip := range []string{vip4, vip6} {
				frame := flow(n, vip)
				out := process(t, d, frame, Forwarded)
				slot := flowHash(web.HashKey, frame) >> 32 * size >> 32
				want := packet.WithMACs(macOf(web.Backends[web.Slots[slot]].Name), nodeMAC, packet.WithTTL(8, frame))
				if !bytes.Equal(out, want) {
					t.Fatalf("flow %d, slot %d:\ngot  %x\nwant %x", n, slot, out, want)
				}
			}
		}
	}
}

func TestTheOrderOfTheFileDoesNotShow(t *testing.T) {
	backends := []string{"203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.4", "203.0.113.5"}
	var nodes []*Dataplane
	for n := range 3 {
		d := newDataplane(t)
		setWays(d, backends...)
		// Services that come before take other entries on each node.
		for range n {
			apply(t, d, table(fmt.Sprintf("before%d", n), lb.L2, 4093, []string{"192.0.2.200:1"}, backends[:n]...))
		}
		order := slices.Clone(backends)
		slices.Reverse(order)
		order = slices.Concat(order[n:], order[:n])
		web := table("web", lb.L2, 16381, []string{vip4, vip6}, order...)
		for i := range web.Slots {
			web.Slots[i] = uint16(i * i % 5)
		}
		apply(t, d, web)
		nodes = append(nodes, d)
	}
	for n := range inShort(5000, 200) {
		for _, vip := range []string{vip4, vip6} {
			frame := flow(n, vip)
			want := process(t, nodes[0], frame, Forwarded)
			for i, d := range nodes[1:] {
				if got := process(t, d, frame, Forwarded); !bytes.Equal(got, want) {
					t.Fatalf("flow %d to %s: node %d sends it to %x, node 0 to %x", n, vip, i+1, got[:6], want[:6])
				}
			}
		}
	}
}

func TestApplyingTheSameTablesTwiceWritesNothing(t *testing.T) {
	d := newDataplane(t)
	setWays(d, "203.0.113.1", "203.0.113.2")
	tables := func() []lb.Table {
		return []lb.Table{
			table("web", lb.L2, 1021, []string{vip4}, "203.0.113.1", "203.0.113.2"),
			table("dns", lb.IPIP, 4093, []string{"192.0.2.53:53"}, "203.0.113.2"),
			table("empty", lb.L2, 4093, []string{"192.0.2.54:53"}),
		}
	}
	apply(t, d, tables()...)
	services, backends := slices.Clone(d.store.services), slices.Clone(d.store.backends)
	free := slices.Clone(d.pages.free)
	other := tables()
	slices.Reverse(other)
	apply(t, d, other...)
	if !slices.Equal(d.store.services, services) || !slices.Equal(d.store.backends, backends) || !slices.Equal(d.pages.free, free) {
		t.Error("the second Apply of the same tables wrote to the maps")
	}
	if len(d.resting) != 0 {
		t.Errorf("the second Apply of the same tables let %d things rest", len(d.resting))
	}
}

func TestServicesComeGoAndMove(t *testing.T) {
	d := newDataplane(t)
	setWays(d, "203.0.113.1", "203.0.113.2")
	a := table("a", lb.L2, 13, []string{vip4}, "203.0.113.1")
	b := table("b", lb.L2, 13, []string{vip6}, "203.0.113.2")
	apply(t, d, a, b)
	process(t, d, flow(1, vip4), Forwarded)
	process(t, d, flow(1, vip6), Forwarded)

	apply(t, d, b)
	process(t, d, flow(1, vip4), NotVIP)
	process(t, d, flow(1, vip6), Forwarded)
	if _, there := stats(t, d).Services["a"]; there {
		t.Error("Stats still knows service a, which is gone")
	}

	setWays(d, "203.0.113.1")
	moved := table("b", lb.L2, 13, []string{vip4}, "203.0.113.2")
	apply(t, d, moved, table("c", lb.L2, 13, []string{vip6}, "203.0.113.1"))
	if out := process(t, d, flow(1, vip4), Forwarded); !bytes.Equal(out[:6], macBytes("203.0.113.2")) {
		t.Errorf("vip %s moved to b: its packets go to %x", vip4, out[:6])
	}
	if out := process(t, d, flow(1, vip6), Forwarded); !bytes.Equal(out[:6], macBytes("203.0.113.1")) {
		t.Errorf("vip %s moved to c: its packets go to %x", vip6, out[:6])
	}

	apply(t, d)
	process(t, d, flow(1, vip4), NotVIP)
	process(t, d, packet.UDP(client4, vip4, packet.Fragment(0, true)), NotVIP)
	time.Sleep(rest)
	apply(t, d)
	if want := []region{{0, d.pages.size}}; !slices.Equal(d.pages.free, want) {
		t.Errorf("all services gone: free pages %v, want %v", d.pages.free, want)
	}
	if want := []region{{0, d.entries.size}}; !slices.Equal(d.entries.free, want) {
		t.Errorf("all services gone: free entries %v, want %v", d.entries.free, want)
	}
	if want := []region{{0, d.numbers.size}}; !slices.Equal(d.numbers.free, want) {
		t.Errorf("all services gone: free service numbers %v, want %v", d.numbers.free, want)
	}
	if len(d.hops.routes) != 0 {
		t.Errorf("all services gone: %d ways still looked after", len(d.hops.routes))
	}
}

func macBytes(backend string) []byte { m := mac(macOf(backend)); return m[:] }

func TestAServiceChangesItsForwardAndItsBackendsAddress(t *testing.T) {
	d := newDataplane(t)
	setWays(d, "203.0.113.1", "203.0.113.2")
	web := table("web", lb.L2, 13, []string{vip4}, "203.0.113.1")
	apply(t, d, web)
	frame := flow(1, vip4)
	if got, want := process(t, d, frame, Forwarded), packet.WithMACs(macOf("203.0.113.1"), nodeMAC, packet.WithTTL(8, frame)); !bytes.Equal(got, want) {
		t.Errorf("l2:\ngot  %x\nwant %x", got, want)
	}
	web.Service.Forward = lb.IPIP
	apply(t, d, web)
	if got, want := process(t, d, frame, Forwarded), packet.WithMACs(macOf("203.0.113.1"), nodeMAC, packet.Encapsulate(node4, "203.0.113.1", 0, frame)); !bytes.Equal(got, want) {
		t.Errorf("ipip:\ngot  %x\nwant %x", got, want)
	}
	web.Backends[0].Address = netip.MustParseAddr("203.0.113.2")
	web.Service.Backends = web.Backends
	apply(t, d, web)
	if got, want := process(t, d, frame, Forwarded), packet.WithMACs(macOf("203.0.113.2"), nodeMAC, packet.Encapsulate(node4, "203.0.113.2", 0, frame)); !bytes.Equal(got, want) {
		t.Errorf("another address:\ngot  %x\nwant %x", got, want)
	}
	if got := stats(t, d).Services["web"].Backends["203.0.113.1"].Packets; got != 3 {
		t.Errorf("packets of the backend over all its changes: got %d, want 3", got)
	}
}

func TestApplySaysEverythingThatIsWrongAndChangesNothing(t *testing.T) {
	d := newDataplane(t)
	setWays(d, "203.0.113.1")
	good := table("web", lb.L2, 13, []string{vip4}, "203.0.113.1")
	apply(t, d, good)

	thief := table("thief", lb.L2, 13, []string{vip4}, "203.0.113.1")
	broken := table("broken", lb.Forward(9), 13, []string{vip6}, "203.0.113.1")
	broken.Slots[3] = 1
	err := d.Apply(context.Background(), []lb.Table{good, thief, broken, broken})
	if err == nil {
		t.Fatal("Apply took it")
	}
	for _, want := range []string{
		`service "thief": vip 192.0.2.1 tcp/443 already belongs to "web"`,
		`service "broken": the program cannot forward by forward-9`,
		`service "broken": a slot holds backend 1 of 1`,
		`service "broken" listed twice`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got:\n%v\nwant it to hold %q", err, want)
		}
	}
	process(t, d, flow(1, vip4), Forwarded)
	process(t, d, flow(1, vip6), NotVIP)

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := d.Apply(ctx, nil); err == nil {
		t.Error("Apply with a context that has ended succeeded")
	}
}

// TestNoPacketSeesHalfATable turns a service round three tables that differ in
// key and slots while packets flow. Each packet must come out as one of them has
// it: a table that is half of another's slots, or under another's key, would
// send it to some other of the many backends.
func TestNoPacketSeesHalfATable(t *testing.T) {
	d := newDataplane(t)
	var backends []string
	for n := range 200 {
		backends = append(backends, fmt.Sprintf("203.0.113.%d", n+1))
	}
	setWays(d, backends...)
	random := rand.New(rand.NewPCG(9, 10))
	var tables []lb.Table
	for n := range 3 {
		web := table("web", lb.L2, 655373, []string{vip4}, backends...) // so big that filling it takes a while
		web.HashKey = [16]byte{byte(n)}
		for i := range web.Slots {
			web.Slots[i] = uint16(random.IntN(len(backends)))
		}
		tables = append(tables, web)
	}
	type flight struct {
		frame   []byte
		allowed [][]byte // destination MAC addresses, one a table
	}
	var flights []flight
	for n := range inShort(4096, 512) {
		f := flight{frame: flow(n, vip4)}
		for _, web := range tables {
			slot := flowHash(web.HashKey, f.frame) >> 32 * uint64(len(web.Slots)) >> 32
			f.allowed = append(f.allowed, macBytes(web.Backends[web.Slots[slot]].Name))
		}
		flights = append(flights, f)
	}
	apply(t, d, tables[0])
	process(t, d, flights[0].frame, Forwarded) // loads the program that is asked

	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var turning sync.WaitGroup
	turns := 0
	turning.Go(func() {
		for ctx.Err() == nil {
			turns++
			if err := d.Apply(context.Background(), []lb.Table{tables[turns%3]}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	defer turning.Wait()
	var seen [3]int
	for n := 0; ctx.Err() == nil; n++ {
		f := flights[n%len(flights)]
		out := process(t, d, f.frame, Forwarded)
		by := slices.IndexFunc(f.allowed, func(mac []byte) bool { return bytes.Equal(out[:6], mac) })
		if by < 0 {
			cancel()
			t.Fatalf("packet %d went to %x: the tables have %x", n, out[:6], f.allowed)
		}
		seen[by]++
	}
	turning.Wait()
	if slices.Min(seen[:]) == 0 {
		t.Errorf("packets by each table: %v, want some by all", seen)
	}
	t.Logf("%d turns, packets by each table: %v", turns, seen)
}

func TestWhatWentOutOfUseRests(t *testing.T) {
	d := newDataplane(t)
	web := table("web", lb.L2, 4093, []string{vip4}, "203.0.113.1", "203.0.113.2")
	apply(t, d, web)
	old := d.services["web"].pages

	begin := time.Now()
	web.Slots[0] = 1
	apply(t, d, web)
	for _, free := range d.pages.free {
		if free.start < old.end() && old.start < free.end() {
			t.Errorf("pages %v are free at once: a packet may be reading them", old)
		}
	}
	web.Slots[0] = 0
	apply(t, d, web) // fills the generation that packets may still be reading
	if took := time.Since(begin); took < rest {
		t.Errorf("two turns within %s, want them %s apart", took, rest)
	}
	time.Sleep(rest)
	apply(t, d, web)
	var free uint32
	for _, f := range d.pages.free {
		free += f.size
	}
	if want := d.pages.size - d.services["web"].pages.size; free != want {
		t.Errorf("after a rest %d pages are free, want %d", free, want)
	}
}

// TestCountersNeverFall changes a service in every way there is, with packets
// in between, and holds the counters against what was sent.
func TestCountersNeverFall(t *testing.T) {
	d := newDataplane(t)
	var all []string
	for n := range 200 {
		all = append(all, fmt.Sprintf("203.0.113.%d", n+1))
	}
	setWays(d, all...)
	random := rand.New(rand.NewPCG(7, 8))
	want := make(map[string]uint64) // of backends that stayed
	var total uint64
	members := all[:3]
	var last Stats
	for step := range inShort(60, 20) {
		was := members
		switch step % 6 {
		case 0: // some more: the service's entries move now and then
			members = all[:min(len(members)+random.IntN(10), len(all))]
		case 5: // some more, none that were there
			begin := min(100, 2*len(members))
			members = all[begin:min(begin+len(members)+5, len(all))]
		case 2: // fewer
			members = members[:max(3, len(members)-random.IntN(8))]
		case 4: // all others
			begin := random.IntN(len(all) - len(members))
			members = all[begin : begin+len(members)]
		}
		for _, b := range was {
			if !slices.Contains(members, b) {
				delete(want, b)
			}
		}
		setWays(d, members...)
		tables := []lb.Table{table("web", lb.L2, 1021+random.IntN(5000), []string{vip4}, members...)}
		if step%6 == 3 { // backends that the table leaves out stay in the service
			half := table("web", lb.L2, 1021, []string{vip4}, members[:len(members)/2+1]...)
			half.Service.Backends = tables[0].Service.Backends
			tables[0] = half
		}
		if step%20 == 19 { // another service so big that all maps grow
			tables = append(tables, table(fmt.Sprintf("big%d", step), lb.L2, int(d.pages.size*slotsPerPage), []string{"192.0.2.99:1"}, all...))
		}
		size := d.pages.size
		apply(t, d, tables...)
		if grew := d.pages.size > size; step%20 == 19 && !grew {
			t.Fatalf("step %d: maps of %d pages did not grow", step, size)
		}
		setWays(d, members...)

		owner := make(map[uint32]string)
		for name, b := range d.services["web"].members {
			if other, taken := owner[b.index]; taken {
				t.Fatalf("step %d: %s and %s share entry %d", step, name, other, b.index)
			}
			owner[b.index] = name
		}
		for range 50 {
			out := process(t, d, flow(random.IntN(1<<16), vip4), Forwarded)
			i := slices.IndexFunc(members, func(b string) bool { return bytes.Equal(out[:6], macBytes(b)) })
			if i < 0 {
				t.Fatalf("step %d: a packet went to %x, which is none of the backends", step, out[:6])
			}
			want[members[i]]++
			total++
		}
		now := stats(t, d)
		web := now.Services["web"]
		if web.Packets != total || web.Bytes != total*46 {
			t.Fatalf("step %d: service counted %v, want %d packets of 46 bytes", step, web.Count, total)
		}
		got := make(map[string]uint64)
		for name, c := range web.Backends {
			if c.Packets != 0 {
				got[name] = c.Packets
			}
			if c.Bytes != c.Packets*46 {
				t.Fatalf("step %d: backend %s counted %v, want packets of 46 bytes", step, name, c)
			}
		}
		if !maps.Equal(got, want) {
			t.Fatalf("step %d: backends counted %v, want %v", step, got, want)
		}
		if len(web.Backends) != len(members) {
			t.Fatalf("step %d: Stats knows %d backends, want %d", step, len(web.Backends), len(members))
		}
		for v, c := range now.Verdicts {
			if before := last.Verdicts[v]; c.Packets < before.Packets || c.Bytes < before.Bytes {
				t.Fatalf("step %d: verdict %s fell from %v to %v", step, v, before, c)
			}
		}
		last = now
		if step%3 == 0 {
			time.Sleep(rest) // what went out of use is used again
		}
	}
}

func TestNoPacketIsLostWhileTheMapsGrow(t *testing.T) {
	d := newDataplane(t)
	setWays(d, "203.0.113.1", "203.0.113.2")
	tables := []lb.Table{table("web", lb.L2, 4093, []string{vip4}, "203.0.113.1", "203.0.113.2")}
	apply(t, d, tables...)
	frame := flow(1, vip4)
	want := process(t, d, frame, Forwarded)

	var growing sync.WaitGroup
	done := make(chan struct{})
	growing.Go(func() {
		defer close(done)
		for n := range 4 {
			size := d.pages.size
			tables = append(tables, table(fmt.Sprint("big", n), lb.L2, int(size*slotsPerPage), []string{fmt.Sprintf("192.0.2.99:%d", n+1)}, "203.0.113.2"))
			if err := d.Apply(context.Background(), tables); err != nil {
				t.Error(err)
			}
			if d.pages.size == size {
				t.Errorf("maps of %d pages did not grow", size)
			}
		}
	})
	sent := uint64(1)
	for grown := false; !grown; sent++ {
		select {
		case <-done:
			grown = true
		default:
		}
		if got := process(t, d, frame, Forwarded); !bytes.Equal(got, want) {
			t.Fatalf("packet %d:\ngot  %x\nwant %x", sent, got, want)
		}
	}
	growing.Wait()
	if got := stats(t, d).Services["web"].Packets; got != sent {
		t.Errorf("counted %d packets, want the %d that were sent", got, sent)
	}
	t.Logf("%d packets while the maps grew to %d slots", sent, d.pages.size*slotsPerPage)
}

func TestABackendKeepsItsIndexWhileOthersComeAndGo(t *testing.T) {
	d := newDataplane(t)
	apply(t, d, table("web", lb.L2, 13, []string{vip4}, "203.0.113.1", "203.0.113.2", "203.0.113.3"))
	index := d.services["web"].members["203.0.113.2"].index
	apply(t, d, table("web", lb.L2, 13, []string{vip4}, "203.0.113.2"))
	apply(t, d, table("web", lb.L2, 13, []string{vip4}, "203.0.113.0", "203.0.113.2", "203.0.113.4"))
	if got := d.services["web"].members["203.0.113.2"].index; got != index {
		t.Errorf("index: got %d, want %d as before", got, index)
	}
}

func TestATableFollowsItsBackendsWhenTheyMove(t *testing.T) {
	d := newDataplane(t)
	setWays(d, "203.0.113.1", "203.0.113.2")
	web := table("web", lb.L2, 13, []string{vip4}, "203.0.113.1", "203.0.113.2")
	apply(t, d, web)
	room := d.services["web"].room
	frame := flow(1, vip4)
	want := process(t, d, frame, Forwarded)

	// Many more in the service, none of them in the table: no slot changes.
	for n := range 50 {
		web.Service.Backends = append(web.Service.Backends, lb.Backend{Name: fmt.Sprint("more", n), Address: netip.MustParseAddr("203.0.113.3")})
	}
	apply(t, d, web)
	s := d.services["web"]
	if s.room == room {
		t.Fatal("the backends did not move: the test tests nothing")
	}
	entry := d.store.services[s.number]
	if got := entry.Table[entry.Active&1].Backends; got != s.room.start {
		t.Errorf("the table's backends begin at %d, want %d, where they are", got, s.room.start)
	}
	if got := process(t, d, frame, Forwarded); !bytes.Equal(got, want) {
		t.Errorf("after the move:\ngot  %x\nwant %x", got, want)
	}
}

func TestABackendDoesNotInheritTheWayOfTheOneBefore(t *testing.T) {
	d := newDataplane(t)
	setWays(d, "203.0.113.1")
	apply(t, d, table("web", lb.L2, 13, []string{vip4}, "203.0.113.1"))
	process(t, d, flow(1, vip4), Forwarded)
	apply(t, d)
	time.Sleep(rest)
	apply(t, d, table("web", lb.L2, 13, []string{vip4}, "203.0.113.2"))
	process(t, d, flow(1, vip4), NoNeighbour)
}

func TestAPathIsReplacedBesideTheOldOne(t *testing.T) {
	d := newDataplane(t)
	setWays(d, "203.0.113.1")
	apply(t, d, table("web", lb.IPIP, 13, []string{vip4}, "203.0.113.1"))
	entry := &d.store.backends[d.services["web"].members["203.0.113.1"].entry()]
	before := *entry
	side := before.NextHop >> hopPathBit & 1

	begin := time.Now()
	d.setWay("203.0.113.1", way{mac: backendMAC, source: "203.0.113.99", ifindex: 1, mtu: 1400})
	if entry.Path[side] != before.Path[side] {
		t.Error("the path in use was written over: a packet may be reading it")
	}
	if entry.NextHop>>hopPathBit&1 == side {
		t.Error("the next hop still leads to the old path")
	}
	want := toBackend(packet.Encapsulate("203.0.113.99", "203.0.113.1", 0, flow(1, vip4)))
	if got := process(t, d, flow(1, vip4), Forwarded); !bytes.Equal(got, want) {
		t.Errorf("by the new path:\ngot  %x\nwant %x", got, want)
	}
	d.setWay("203.0.113.1", way{mac: backendMAC, source: "203.0.113.98", ifindex: 1, mtu: 1400})
	if took := time.Since(begin); took < rest {
		t.Errorf("two changes within %s, want them %s apart", took, rest)
	}
}

func TestAThousandServicesOfAHundredBackends(t *testing.T) {
	if testing.Short() {
		t.Skip("100,000 backends take a while")
	}
	d := newDataplane(t)
	const services, backends, size = 1000, 100, 16381
	var tables []lb.Table
	for s := range services {
		var names []string
		for b := range backends {
			names = append(names, fmt.Sprintf("10.%d.%d.%d", s>>8, s&0xff, b+1))
		}
		tables = append(tables, table(fmt.Sprintf("s%d", s), lb.L2, size, []string{fmt.Sprintf("10.200.%d.%d:80", s>>8, s&0xff)}, names...))
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	timed := func(what string, limit time.Duration) {
		t.Helper()
		begin, cpu := time.Now(), cpuTime()
		apply(t, d, tables...)
		took := cpuTime() - cpu // whatever else the machine has to do
		t.Logf("%s: %s, %s of CPU", what, time.Since(begin).Round(time.Millisecond), took.Round(time.Millisecond))
		if took > limit {
			t.Errorf("%s took %s of CPU, want at most %s", what, took, limit)
		}
	}
	timed("cold Apply", 10*time.Second)
	timed("the same again", 5*time.Second)
	for i := range tables {
		for j := range tables[i].Slots {
			tables[i].Slots[j] = uint16((j + 1) % backends)
		}
	}
	timed("every slot another", 10*time.Second)
	begin := time.Now()
	stats(t, d)
	t.Logf("Stats: %s", time.Since(begin).Round(time.Millisecond))

	slots, entries := int(d.pages.size*slotsPerPage*2), int(d.entries.size)*128
	t.Logf("memory: %d MiB of slots (%d MiB needed), %d MiB of backends, %d MiB of Go's heap",
		slots>>20, services*size*2>>20, entries>>20, int64(heap()-before)>>20)
	if slots > 2*services*size*2 {
		t.Errorf("slots take %d bytes, want at most twice the %d of the tables", slots, services*size*2)
	}
	process(t, d, flow(1, "10.200.3.231:80"), NoNeighbour)
}

// While what went out of use rests, a service that has lost most of its backends gets some
// more than fit beside them: those that stayed keep their indexes, however great.
func TestABackendsEntryIsItsServicesHoweverManyWereBefore(t *testing.T) {
	d := newDataplane(t)
	all := many(100)
	apply(t, d, table("web", lb.L2, 13, []string{vip4}, all...))
	members := d.services["web"].members
	last := slices.MaxFunc(all, func(a, b string) int { return cmp.Compare(members[a].index, members[b].index) })
	apply(t, d, table("web", lb.L2, 13, []string{vip4}, last))
	for i := range d.resting {
		d.resting[i].until = d.resting[i].until.Add(time.Hour)
	}
	apply(t, d, table("web", lb.L2, 13, []string{vip4}, append(many(40), last)...))

	s := d.services["web"]
	taken := make(map[uint32]string)
	for name, b := range s.members {
		if other := taken[b.entry()]; other != "" || b.entry() < s.room.start || b.entry() >= s.room.end() {
			t.Errorf("%s has entry %d, which is %q's, want one of %v for itself", name, b.entry(), other, s.room)
		}
		taken[b.entry()] = name
	}
}
