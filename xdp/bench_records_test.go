package xdp

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/halfproxy/halfproxy/internal/packet"
	"github.com/halfproxy/halfproxy/lb"
	"github.com/halfproxy/halfproxy/maglev"
	"github.com/halfproxy/halfproxy/track"
)

// recordsHeld tells how many records a million flows have, all of which began after one
// backend of a hundred was drained and another took its place.
func recordsHeld(b *testing.B) {
	const flows = 1 << 20
	d, err := New(Config{Log: testLog(b), FlowRecords: 2 * flows})
	must(b, err)
	b.Cleanup(func() { must(b, d.Close()) })
	var names []string
	for n := range 101 {
		names = append(names, fmt.Sprintf("203.0.113.%d", n+1))
	}
	setWays(d, names...)
	changes, _ := replacing(table("changes", lb.L2, 0, vips(1), names...))
	all, moved := replacing(table("all", lb.L2, 0, vips(2), names...))
	for i := range all.Bases {
		all.Bases[i].InTransition = true
	}
	apply(b, d, changes, all)
	d.store.pace.Burst = ^uint64(0) >> 1 // as many records as they like

	w := newWrapper(b, d)
	each := float64(mapBytes(b, d.records.m)) / float64(d.records.m.MaxEntries())
	out := [][]string{{"tracking", "records", "a flow", "bytes each", "MiB", "of all"}}
	var whole float64
	for i, t := range []lb.Table{all, changes} {
		forgetRecords(b, d)
		for range 16 * flows / packets { // at random: one flow in 9 million is not among them
			w.sample(b, &w.program, packet.TCP(client4, vips(2 - i)[0], packet.SYN, packet.Payload(32)), flows, xdpTX)
		}
		held, err := sift(d.records.m, func(uint64, bpfRecord) bool { return true })
		must(b, err)
		bytes := float64(held) * each
		if i == 0 {
			whole = bytes
		} else if bytes > whole/10 {
			b.Errorf("records of %.0f bytes, want a tenth of %.0f at most", bytes, whole)
		}
		out = append(out, []string{
			t.Service.Name, fmt.Sprint(held), fmt.Sprintf("%.3f", float64(held)/flows),
			fmt.Sprintf("%.0f", each), fmt.Sprintf("%.1f", bytes/(1<<20)), fmt.Sprintf("%.1f %%", 100*bytes/whole),
		})
	}
	show(fmt.Sprintf("What is remembered of %d flows, after one backend of a hundred was replaced: %d of %d slots are in transition.", flows, moved, len(all.Slots)), out...)
}

// replacing drains the first of a table's backends where the last one comes. It gives the
// number of slots that are in transition, too.
func replacing(t lb.Table) (_ lb.Table, moved int) {
	numbers := make([]bool, len(t.Backends))
	for i := range numbers {
		numbers[i] = true
	}
	stage := func(since time.Time, without int) track.Stage {
		set := make([]maglev.Backend, len(t.Backends))
		for i, b := range t.Backends {
			set[i] = maglev.Backend{Name: b.Name, Weight: 1}
		}
		set[without].Weight = 0
		return track.Stage{Since: since, Slots: maglev.Table(t.Service.Name, set, maglev.DefaultSize), Alive: numbers}
	}
	now := time.Now()
	stages := []track.Stage{stage(now.Add(-time.Minute), len(numbers)-1), stage(now, 0)}
	t.Alive, t.Slots = t.Backends, stages[1].Slots
	for _, s := range track.Bases(stages, len(t.Slots), now, 0) {
		t.Bases = append(t.Bases, lb.Base{Backend: s.Base, InTransition: s.InTransition})
		if s.InTransition {
			moved++
		}
	}
	return t, moved
}

// mapBytes is the memory that the kernel says a map takes.
func mapBytes(b *testing.B, m *ebpf.Map) (bytes uint64) {
	b.Helper()
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", m.FD()))
	must(b, err)
	for line := range strings.Lines(string(info)) {
		if _, err := fmt.Sscanf(line, "memlock: %d", &bytes); err == nil {
			return bytes
		}
	}
	b.Fatalf("no memlock in %s", info)
	return 0
}

// sharingSpeed tells what it costs to hear from the program of records that are to be told
// of, and to take those of others.
func sharingSpeed(b *testing.B) {
	from, to := newDataplane(b), newDataplane(b)
	web := moving(table("web", lb.L2, 16381, vips(1), tracked...), hasMoved)
	for _, d := range []*Dataplane{from, to} {
		setWays(d, tracked...)
		apply(b, d, web)
	}
	from.store.pace.Burst = ^uint64(0) >> 1
	w := newWrapper(b, from)
	const each, rounds = 1 << 14, 31
	var heard, taken []float64
	for range rounds {
		forgetRecords(b, from)
		forgetRecords(b, to)
		for _, option := range []packet.Option{packet.SYN, packet.ACK} {
			for range 4 {
				w.sample(b, &w.program, packet.TCP(client4, vips(1)[0], option, packet.Payload(32)), each, xdpTX)
			}
		}
		begin := time.Now()
		list, err := from.FreshFlows(b.Context(), 2*each)
		must(b, err)
		heard = append(heard, float64(time.Since(begin).Nanoseconds())/float64(len(list)))
		begin = time.Now()
		must(b, to.LearnFlows(list))
		taken = append(taken, float64(time.Since(begin).Nanoseconds())/float64(len(list)))
	}
	row := func(what string, ns float64) []string {
		return []string{what, fmt.Sprintf("%.0f", ns), fmt.Sprintf("%.1f %%", 100*50_000*ns/1e9)}
	}
	show(fmt.Sprintf("What sharing costs beside the network. Medians of %d rounds of some %d records.", rounds, each),
		[]string{"a record", "ns", "of a core at 50,000/s"}, row("heard of from the program", median(heard)), row("of another node, written", median(taken)))
}
