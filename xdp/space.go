package xdp

import "slices"

// region is a run of an array's entries.
type region struct{ start, size uint32 }

func (r region) end() uint32 { return r.start + r.size }

// space says which entries of an array are free. Its zero value has none: grow
// adds them.
type space struct {
	size uint32
	free []region // by start, none empty, no two that touch
}

// grow makes the space size entries long.
func (s *space) grow(size uint32) {
	if size > s.size {
		added := region{s.size, size - s.size}
		s.size = size
		s.give(added)
	}
}

// sizeFor is the size to grow to when so many entries are needed: well beyond
// them, so that it is not asked for again at once.
func (s *space) sizeFor(needed uint32) uint32 {
	if needed <= s.size {
		return s.size
	}
	return max(needed, s.size+s.size/2)
}

// take finds n entries in a row, the first that fit. False: there are none.
func (s *space) take(n uint32) (region, bool) {
	for i, f := range s.free {
		if f.size < n {
			continue
		}
		s.free[i] = region{f.start + n, f.size - n}
		if f.size == n {
			s.free = slices.Delete(s.free, i, i+1)
		}
		return region{f.start, n}, true
	}
	return region{}, false
}

// give takes r back and merges it with its free neighbours.
func (s *space) give(r region) {
	if r.size == 0 {
		return
	}
	i, _ := slices.BinarySearchFunc(s.free, r.start, func(f region, start uint32) int {
		return int(int64(f.start) - int64(start))
	})
	s.free = slices.Insert(s.free, i, r)
	if i+1 < len(s.free) && s.free[i].end() == s.free[i+1].start {
		s.free[i].size += s.free[i+1].size
		s.free = slices.Delete(s.free, i+1, i+2)
	}
	if i > 0 && s.free[i-1].end() == s.free[i].start {
		s.free[i-1].size += s.free[i].size
		s.free = slices.Delete(s.free, i, i+1)
	}
}
