package maglev_test

import (
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/halfproxy/halfproxy/maglev"
)

func ExampleTable() {
	backends := []maglev.Backend{{Name: "web1", Weight: 100}, {Name: "web2", Weight: 50}}
	table := maglev.Table("web", backends, maglev.DefaultSize)
	share := make(map[string]int)
	for _, index := range table {
		share[backends[index].Name]++
	}
	fmt.Println(share)
	// Output: map[web1:10920 web2:5461]
}

func TestSizesArePrime(t *testing.T) {
	for _, size := range maglev.Sizes {
		if !big.NewInt(int64(size)).ProbablyPrime(0) {
			t.Errorf("%d is no prime: a skip could miss slots for ever", size)
		}
	}
}

func TestEdgeCases(t *testing.T) {
	for _, tt := range []struct {
		name     string
		backends []maglev.Backend
		want     []int // slots of each backend; nil where there is no table
	}{
		{"no backend", nil, nil},
		{"no backend with a weight", []maglev.Backend{{"a", 0}, {"b", -1}}, nil},
		{"one backend", []maglev.Backend{{"a", 7}}, []int{1021}},
		{"one backend with a weight", []maglev.Backend{{"a", 0}, {"b", 1}, {"c", 0}}, []int{0, 1021, 0}},
		{"a negative weight", []maglev.Backend{{"a", 1}, {"b", math.MinInt}}, []int{1021, 0}},
		{"the greatest weight", []maglev.Backend{{"a", math.MaxInt}, {"b", 1}}, []int{1021, 0}},
		{"the greatest weight twice", []maglev.Backend{{"a", math.MaxInt}, {"b", math.MaxInt}}, []int{510, 511}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := maglev.Table("web", tt.backends, 1021)
			if tt.want == nil {
				if table != nil {
					t.Fatalf("got a table of %d slots, want none", len(table))
				}
				return
			}
			if got := slots(t, table, tt.backends, 1021); !slices.Equal(got, tt.want) {
				t.Errorf("slots of each: got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestTableRefusesWhatCannotBe(t *testing.T) {
	for _, tt := range []struct {
		name string
		n    int
		size int
		want string
	}{
		{"a size that is not offered", 1, 1000, "maglev: table size 1000 is none of [1021 4093 16381 65537 131071 655373]"},
		{"size 0", 0, 0, "maglev: table size 0 is none of [1021 4093 16381 65537 131071 655373]"},
		{"more backends than indices", 65536, 1021, `maglev: 65536 backends in service "web", at most 65535 fit a table`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			defer func() {
				if got := recover(); got != tt.want {
					t.Errorf("panic: got %v, want %s", got, tt.want)
				}
			}()
			maglev.Table("web", fleet(tt.n), tt.size)
		})
	}
}

func TestEqualBackendsDifferByOneSlotAtMost(t *testing.T) {
	for _, size := range maglev.Sizes {
		for _, n := range []int{2, 3, 10, 100, 1000, 10000, maglev.MaxBackends} {
			backends := fleet(n)
			counts := slots(t, maglev.Table("web", backends, size), backends, size)
			if got := slices.Max(counts) - slices.Min(counts); got > 1 {
				t.Errorf("%d backends, %d slots: most and fewest slots differ by %d, want 1 at most", n, size, got)
			}
		}
	}
}

func TestWeightsAreSharesToWithinTwoSlots(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for _, tt := range []struct {
		name   string
		n      int
		weight func(i int) int
	}{
		{"one to two", 2, func(i int) int { return 1 + i }},
		{"one to two, a hundred backends", 100, func(i int) int { return 1 + i%2 }},
		{"one to a thousand", 2, func(i int) int { return 1 + 999*i }},
		{"one canary", 100, func(i int) int { return min(100, 1+i*100) }},
		{"all different", 500, func(i int) int { return 1 + i }},
		{"random", 300, func(int) int { return 1 + random.IntN(100) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			const size = maglev.DefaultSize
			backends := fleet(tt.n)
			sum := 0
			for i := range backends {
				backends[i].Weight = tt.weight(i)
				sum += backends[i].Weight
			}
			for i, got := range slots(t, maglev.Table("web", backends, size), backends, size) {
				want := float64(size) * float64(backends[i].Weight) / float64(sum)
				if math.Abs(float64(got)-want) >= 2 {
					t.Errorf("weight %d of %d: got %d slots, want %.1f", backends[i].Weight, sum, got, want)
				}
			}
		})
	}
}

func TestOnlyTheRatioOfWeightsCounts(t *testing.T) {
	small, great := fleet(50), fleet(50)
	for i := range small {
		small[i].Weight = i % 7
		great[i].Weight = 1000 * small[i].Weight
	}
	if !slices.Equal(maglev.Table("web", small, 1021), maglev.Table("web", great, 1021)) {
		t.Error("weights a thousand times as great give another table")
	}
}

func TestOrderOfBackendsDoesNotMatter(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	for range 50 {
		backends := fleet(1 + random.IntN(300))
		for i := range backends {
			backends[i].Weight = random.IntN(4)
		}
		want := names(maglev.Table("web", backends, 1021), backends)
		random.Shuffle(len(backends), func(i, j int) { backends[i], backends[j] = backends[j], backends[i] })
		if got := names(maglev.Table("web", backends, 1021), backends); !slices.Equal(got, want) {
			t.Fatalf("%d backends in another order: %d of 1021 slots differ", len(backends), moved(got, want))
		}
	}
}

func TestBackendsWithoutWeightLeaveNoTrace(t *testing.T) {
	drained := fleet(100)
	drained[17].Weight = 0
	gone := slices.Delete(fleet(100), 17, 18)
	got, want := names(maglev.Table("web", drained, 1021), drained), names(maglev.Table("web", gone, 1021), gone)
	if n := moved(got, want); n != 0 {
		t.Errorf("weight 0 and not being there differ in %d slots", n)
	}
}

func TestServicesSpreadDifferently(t *testing.T) {
	backends := fleet(100)
	web, dns := maglev.Table("web", backends, maglev.DefaultSize), maglev.Table("dns", backends, maglev.DefaultSize)
	if share := 1 - float64(moved(web, dns))/float64(len(web)); share > 0.02 {
		t.Errorf("slots with the same backend in two services: got %.1f%%, want about 1%%", 100*share)
	}
	// A name's end must not be taken for the beginning of the next.
	one, two := []maglev.Backend{{"bc", 1}, {"bd", 1}}, []maglev.Backend{{"c", 1}, {"d", 1}}
	if slices.Equal(maglev.Table("a", one, 1021), maglev.Table("ab", two, 1021)) {
		t.Error(`services "a" with "bc" and "ab" with "c" have one table`)
	}
}

// The expected figures are those of a program that follows the paper, run on
// tables of the same sizes; the paper's own figure 12 shows about the same.
func TestBalanceAndDisruptionAreThePapers(t *testing.T) {
	for _, tt := range []struct {
		size, n int
		uneven  float64 // most slots of a backend, over the average
		moved   float64 // of all slots in percent when one backend leaves
	}{
		{16381, 100, 1.0012, 2.39},
		{16381, 1000, 1.0378, 0.70},
		{65537, 100, 1.0010, 1.57},
		{65537, 1000, 1.0071, 0.69},
		{655373, 1000, 1.0010, 0.43},
	} {
		backends := fleet(tt.n)
		table := maglev.Table("web", backends, tt.size)
		counts := slots(t, table, backends, tt.size)
		uneven := float64(slices.Max(counts)) * float64(tt.n) / float64(tt.size)
		if math.Abs(uneven-tt.uneven) > 0.0005 {
			t.Errorf("%d backends, %d slots: max/avg: got %.4f, want %.4f", tt.n, tt.size, uneven, tt.uneven)
		}

		before := names(table, backends)
		total, runs := 0, 10
		for i := range runs {
			left := slices.Delete(slices.Clone(backends), i*tt.n/runs, i*tt.n/runs+1)
			total += moved(before, names(maglev.Table("web", left, tt.size), left))
		}
		percent := 100 * float64(total) / float64(runs*tt.size)
		t.Logf("%d backends, %d slots: max/avg %.4f, one leaves or joins: %.2f%% moved", tt.n, tt.size, uneven, percent)
		if math.Abs(percent-tt.moved) > 0.2*tt.moved {
			t.Errorf("%d backends, %d slots: one leaves or joins: got %.2f%% moved, want %.2f%%", tt.n, tt.size, percent, tt.moved)
		}
	}
}

// One backend of weight 100 gets another; its fellows have 100 and 70. The
// last row is why turns have times of their own: in rounds as long as the
// heaviest backend's, three times as many slots would move for no reason.
func TestWeightChangeMovesLittleMoreThanItMust(t *testing.T) {
	const size, runs = 65537, 5
	for _, tt := range []struct {
		name   string
		n      int
		weight int
		excess float64 // slots that move between others, of all in percent, at most
	}{
		{"drained", 100, 0, 0.7},
		{"a canary", 1000, 1, 0.8},
		{"halved", 100, 50, 0.6},
		{"doubled", 100, 200, 0.7},
		{"ten times as heavy", 100, 1000, 1.2},
		{"one percent more", 100, 101, 0.15},
	} {
		t.Run(tt.name, func(t *testing.T) {
			must, did := 0, 0
			for run := range runs {
				backends := fleet(tt.n)
				for i := range backends {
					backends[i].Weight = 100 - 30*(i%2)
				}
				one := run * tt.n / runs
				was := maglev.Table("web", backends, size)
				before := slots(t, was, backends, size)[one]
				backends[one].Weight = tt.weight
				is := maglev.Table("web", backends, size)
				after := slots(t, is, backends, size)[one]

				must += max(after-before, before-after)
				did += moved(was, is)
			}
			excess := 100 * float64(did-must) / (size * runs)
			t.Logf("%.3f%% had to move, %.3f%% did", 100*float64(must)/(size*runs), 100*float64(did)/(size*runs))
			if excess > tt.excess {
				t.Errorf("moved beyond what had to: got %.3f%% of the slots, want %.3f%% at most", excess, tt.excess)
			}
		})
	}
}

// slots counts the slots of each backend and sees that every slot is filled,
// by a backend that may.
func slots(t *testing.T, table []uint16, backends []maglev.Backend, size int) []int {
	t.Helper()
	if len(table) != size {
		t.Fatalf("got %d slots, want %d", len(table), size)
	}
	counts := make([]int, len(backends))
	for slot, index := range table {
		if int(index) >= len(backends) || backends[index].Weight <= 0 {
			t.Fatalf("slot %d: got index %d, which no slot may hold", slot, index)
		}
		counts[index]++
	}
	return counts
}

func names(table []uint16, backends []maglev.Backend) []string {
	list := make([]string, len(table))
	for slot, index := range table {
		list[slot] = backends[index].Name
	}
	return list
}

func moved[T comparable](a, b []T) int {
	n := 0
	for i := range a {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}
