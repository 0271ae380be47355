package xdp

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/halfproxy/halfproxy/lb"
	"github.com/halfproxy/halfproxy/maglev"
)

// tableSpeed tells how long it takes to compute a table, and to put it into use.
func tableSpeed(b *testing.B) {
	sizes := []int{16381, 65537, 655373}
	out := [][]string{{"", "16,381 slots", "swap", "65,537 slots", "swap", "655,373 slots", "swap"}}
	for _, n := range []int{10, 100, 1000, 10000} {
		equal, differing := make([]maglev.Backend, n), make([]maglev.Backend, n)
		for i := range n {
			equal[i] = maglev.Backend{Name: fmt.Sprintf("web%d", i), Weight: 100}
			differing[i] = maglev.Backend{Name: equal[i].Name, Weight: 100 + i}
		}
		line := []string{fmt.Sprintf("%d backends", n)}
		for _, size := range sizes {
			line = append(line,
				fmt.Sprintf("%.2f, %.2f",
					milliseconds(func() { maglev.Table("web", equal, size) }),
					milliseconds(func() { maglev.Table("web", differing, size) })),
				fmt.Sprintf("%.3f", swapTime(b, n, size)))
		}
		out = append(out, line)
	}
	show(`Milliseconds to compute a table, of backends of one weight and of as many weights as backends;
and to fill the idle one and turn to it. Medians.`, out...)
}

// milliseconds is the median of many times.
func milliseconds(f func()) float64 {
	var took []float64
	for begin := time.Now(); len(took) < 11 || time.Since(begin) < 300*time.Millisecond; {
		at := time.Now()
		f()
		took = append(took, 1000*time.Since(at).Seconds())
	}
	return median(took)
}

// swapTime turns a service to and fro between tables.
func swapTime(b *testing.B, backends, size int) float64 {
	registry := prometheus.NewRegistry()
	d, err := New(Config{Registerer: registry})
	must(b, err)
	defer d.Close()
	web := table("web", lb.L2, size, []string{vip4}, addresses(0, backends)...)
	var took []float64
	for n := range 11 {
		for i := range web.Slots {
			web.Slots[i] = uint16((i + n) % backends)
		}
		_, before := swaps(b, registry)
		apply(b, d, web)
		_, after := swaps(b, registry)
		took = append(took, 1000*(after-before))
	}
	return median(took)
}

// swaps are how many tables were put into use so far, and the seconds that it took.
func swaps(b *testing.B, registry *prometheus.Registry) (count uint64, seconds float64) {
	b.Helper()
	families, err := registry.Gather()
	must(b, err)
	for _, f := range families {
		if f.GetName() == "halfproxy_table_swap_duration_seconds" {
			h := f.GetMetric()[0].GetHistogram()
			return h.GetSampleCount(), h.GetSampleSum()
		}
	}
	b.Fatal("the metric of swaps has another name")
	return 0, 0
}

// addresses are n of them, at most 16,384 and others for each service.
func addresses(service, n int) []string {
	list := make([]string, n)
	for i := range list {
		at := service<<14 + i
		list[i] = netip.AddrFrom4([4]byte{10, byte(at >> 16), byte(at >> 8), byte(at)}).String()
	}
	return list
}

// serviceSpeed tells what services of 100 backends take from a cold start, and
// when a backend leaves one of them.
func serviceSpeed(b *testing.B) {
	out := [][]string{{"", "tables, s", "the rest, s", "all, s", "maps, MiB", "a service, KiB", "one leaves, ms", "swaps"}}
	var empty float64
	for _, services := range []int{0, 1, 100, 1000} {
		runtime.GC()
		begin := time.Now()
		registry := prometheus.NewRegistry()
		d, err := New(Config{Registerer: registry})
		must(b, err)
		loaded := time.Now()
		tables := make([]lb.Table, services)
		for n := range tables {
			tables[n] = table(fmt.Sprintf("s%d", n), lb.L2, 0, []string{fmt.Sprintf("10.200.%d.%d:80", n>>8, n&0xff)}, addresses(n, 100)...)
			tables[n].Slots = slotsOf(tables[n])
		}
		computed := time.Since(loaded)
		apply(b, d, tables...)
		all := time.Since(begin)
		mib := mapMemory(b, d) / (1 << 20)
		if services == 0 {
			empty = mib
		}
		line := []string{fmt.Sprintf("%d services", services),
			fmt.Sprintf("%.2f", computed.Seconds()), fmt.Sprintf("%.2f", (all - computed).Seconds()),
			fmt.Sprintf("%.2f", all.Seconds()), fmt.Sprintf("%.1f", mib), "-", "-", "-"}
		if services > 0 {
			time.Sleep(rest) // which the idle generation needs
			before, _ := swaps(b, registry)
			at := time.Now()
			t := &tables[services/2]
			t.Backends = t.Backends[1:]
			t.Slots = slotsOf(*t)
			apply(b, d, tables...)
			took := time.Since(at)
			after, _ := swaps(b, registry)
			line = append(line[:5], fmt.Sprintf("%.0f", 1024*(mib-empty)/float64(services)), fmt.Sprintf("%.2f", 1000*took.Seconds()), fmt.Sprint(after-before))
		}
		out = append(out, line)
		must(b, d.Close())
	}
	show(`Services of 100 backends and 16,381 slots from a cold start, with the memory of all maps by the
kernel's account; and then one backend leaves one of them.`, out...)
}

func slotsOf(t lb.Table) []uint16 {
	backends := make([]maglev.Backend, len(t.Backends))
	for i, b := range t.Backends {
		backends[i] = maglev.Backend{Name: b.Name, Weight: b.Weight}
	}
	return maglev.Table(t.Service.Name, backends, maglev.DefaultSize)
}

// mapMemory is the bytes that the kernel counts for the maps.
func mapMemory(b *testing.B, d *Dataplane) (sum float64) {
	b.Helper()
	for _, m := range d.store.maps {
		info, err := m.Info()
		must(b, err)
		bytes, _ := info.Memlock() // unknown: none, of a map that is empty
		sum += float64(bytes)
	}
	return sum
}
