package xdp

import (
	"math/rand/v2"
	"testing"
)

// TestSpaceAgainstAListOfEntries takes and gives at random and holds the result
// against the plainest way to keep account: one flag for each entry.
func TestSpaceAgainstAListOfEntries(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	var s space
	var taken []bool
	var held []region
	for step := range 20000 {
		switch n := random.IntN(10); {
		case n == 0 && len(taken) < 300:
			s.grow(s.size + uint32(random.IntN(20)))
			for uint32(len(taken)) < s.size {
				taken = append(taken, false)
			}
		case n < 6:
			size := uint32(1 + random.IntN(12))
			r, ok := s.take(size)
			if fits := longestGap(taken) >= int(size); ok != fits {
				t.Fatalf("step %d: take(%d) says %t, want %t of %v", step, size, ok, fits, taken)
			}
			if !ok {
				continue
			}
			if r.size != size || r.end() > s.size {
				t.Fatalf("step %d: take(%d) gave %v of %d", step, size, r, s.size)
			}
			for i := r.start; i < r.end(); i++ {
				if taken[i] {
					t.Fatalf("step %d: take(%d) gave %v: entry %d is in use", step, size, r, i)
				}
				taken[i] = true
			}
			held = append(held, r)
		case len(held) > 0:
			i := random.IntN(len(held))
			r := held[i]
			held[i] = held[len(held)-1]
			held = held[:len(held)-1]
			s.give(r)
			for i := r.start; i < r.end(); i++ {
				taken[i] = false
			}
		}
		for i, f := range s.free {
			if f.size == 0 || i > 0 && s.free[i-1].end() >= f.start {
				t.Fatalf("step %d: free regions %v are not apart", step, s.free)
			}
		}
	}
}

func longestGap(taken []bool) int {
	longest, gap := 0, 0
	for _, t := range taken {
		if gap++; t {
			gap = 0
		}
		longest = max(longest, gap)
	}
	return longest
}
