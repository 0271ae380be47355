package maglev_test

import (
	"crypto/sha256"
	"encoding/binary"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/halfproxy/halfproxy/maglev"
)

// reference is the table as doc.go describes it, with nothing done for speed:
// every backend's whole permutation, and exact fractions for the times.
func reference(service string, backends []maglev.Backend, size int) []uint16 {
	permutations := make([][]int, len(backends))
	phases := make([]*big.Rat, len(backends))
	for i, b := range backends {
		sum := sha256.Sum256([]byte(string(rune(len(service))) + service + b.Name)) // one byte below 128
		offset := binary.BigEndian.Uint64(sum[0:8]) % uint64(size)
		skip := binary.BigEndian.Uint64(sum[8:16])%uint64(size-1) + 1
		for j := range uint64(size) {
			permutations[i] = append(permutations[i], int((offset+j*skip)%uint64(size)))
		}
		phases[i] = big.NewRat(int64(binary.BigEndian.Uint64(sum[16:24])>>24), 1<<40)
	}
	turns := make([]int64, len(backends))
	time := func(i int) *big.Rat {
		turn := new(big.Rat).Add(big.NewRat(turns[i], 1), phases[i])
		return turn.Quo(turn, big.NewRat(int64(backends[i].Weight), 1))
	}
	times := make([]*big.Rat, len(backends))
	for i, b := range backends {
		if b.Weight > 0 {
			times[i] = time(i)
		}
	}

	table := make([]uint16, size)
	taken := make([]bool, size)
	for range size {
		next := -1
		for i := range backends {
			if times[i] != nil && (next < 0 || times[i].Cmp(times[next]) < 0) {
				next = i
			}
		}
		if next < 0 {
			return nil
		}
		free := slices.IndexFunc(permutations[next], func(slot int) bool { return !taken[slot] })
		slot := permutations[next][free]
		table[slot], taken[slot] = uint16(next), true
		turns[next]++
		times[next] = time(next)
	}
	return table
}

func TestTableIsTheOneComputedTheObviousWay(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 30 {
		backends := fleet(1 + random.IntN(30))
		heaviest := 1 + random.IntN(200)
		for i := range backends {
			backends[i].Weight = random.IntN(heaviest + 1)
		}
		compare(t, backends, 1021)
	}
	compare(t, fleet(50), 4093)
	compare(t, fleet(1100), 1021)
}

func compare(t *testing.T, backends []maglev.Backend, size int) {
	t.Helper()
	got, want := maglev.Table("web", backends, size), reference("web", backends, size)
	if !slices.Equal(got, want) {
		slot := 0
		for slot < min(len(got), len(want)) && got[slot] == want[slot] {
			slot++
		}
		t.Errorf("table of %d slots for %v: got %d slots, want %d, different from slot %d on", size, backends, len(got), len(want), slot)
	}
}
