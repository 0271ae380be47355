package control

import (
	"hash/fnv"
	"slices"

	"github.com/halfproxy/halfproxy/lb"
)

// assigned gives the targets that this member is to check. Where a check asks for k
// observers, every member ranks all for each target by rendezvous hashing (Thaler,
// Ravishankar, 1998), and checks what it is among the first for: as many of the rank
// as it takes until k of them have an opinion. So a member that comes takes over from
// one that goes on until the newcomer has made up its mind, and one that dies is
// stood in for; at no moment does nobody look.
//
// others are the records in sight, without this member's own. The answer is the
// places of the targets among p.targets.
func (p plan) assigned(self string, others []lb.Record) []int {
	before := make([]int, len(p.targets))  // members of a higher rank
	holding := make([]int, len(p.targets)) // and those of them that have an opinion
	own := rank(self)
	if len(p.observers) == 0 || slices.Max(p.observers) == 0 {
		others = nil // everybody checks everything, whoever they are
	}
	for _, r := range others {
		theirs := rank(r.Member)
		higher := make([]bool, len(p.targets))
		for i, id := range p.targets {
			if theirs(id) > own(id) {
				higher[i] = true
				before[i]++
			}
		}
		for i := range opinions(p.targets, r.Report.Observations) {
			if higher[i] {
				holding[i]++
			}
		}
	}
	var list []int
	for i, k := range p.observers {
		// Twice as many at most: when a cluster starts nobody has an opinion.
		if k == 0 || holding[i] < k && before[i] < 2*k {
			list = append(list, i)
		}
	}
	return list
}

// assign has this member check what it is to check by plan p. It needs c.stepping.
func (c *Controller) assign(p plan, others []lb.Record) {
	assigned := p.assigned(c.Node, others)
	if c.done.checked == p.digest && slices.Equal(assigned, c.done.assigned) {
		return
	}
	c.done.checked, c.done.assigned = p.digest, assigned
	var targets []lb.Target
	for n, t := range p.all {
		if _, ours := slices.BinarySearch(assigned, p.places[n]); ours {
			targets = append(targets, t)
		}
	}
	c.Checker.SetTargets(targets)
}

// rank gives a member's place among all for a target: the greater, the earlier.
func rank(member string) func(lb.TargetID) uint64 {
	h := fnv.New64a()
	h.Write([]byte(member))
	seed := h.Sum64()
	return func(id lb.TargetID) uint64 { return mix(seed ^ mix(uint64(id))) }
}

// mix is the finaliser of SplitMix64 (Steele, Lea, Flood, 2014): each bit that goes
// in changes half of those that come out.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
