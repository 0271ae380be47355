package main

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestTrackingChangesBreaksLeast(t *testing.T) {
	w := world{
		nodes: 4, backends: 20, lasts: 2 * time.Minute, flowsPerSecond: 200, flowLength: 30 * time.Second, packetEvery: time.Second,
		backendEvery: 10 * time.Second, nodeEvery: 20 * time.Second, lifetime: time.Hour, newsLag: 300 * time.Millisecond, recordLag: 20 * time.Millisecond, seed: 1,
		spread: spreads["threshold"],
	}
	r := w.run()
	if r.broken[alone] == 0 || r.broken[perNode] == 0 || r.broken[unshared] == 0 {
		t.Errorf("broken: got %v, want some in all ways but the last: else nothing happens", r.broken)
	}
	if r.broken[shared] > r.flows/1000 {
		t.Errorf("%d of %d flows broke, want one in a thousand at most", r.broken[shared], r.flows)
	}
	if r.records[shared] > r.flows/2 {
		t.Errorf("%d records of %d flows, want fewer than half", r.records[shared], r.flows)
	}
	if again := w.run(); again != r {
		t.Errorf("the same world gave %v and %v", r, again)
	}
}

func TestRoutersSpreadFlows(t *testing.T) {
	for name, want := range map[string]struct{ least, most float64 }{
		"threshold": {0.2, 0.6}, "modulo": {0.7, 0.8}, "resilient": {0.2, 0.3},
	} {
		random := rand.New(rand.NewPCG(1, 0))
		const flows = 20_000
		moved := 0
		for range flows {
			hash := random.Uint64()
			before, after := spreads[name](hash, []int{0, 1, 2, 3}, 4), spreads[name](hash, []int{0, 2, 3}, 4)
			if after == 1 {
				t.Fatalf("%s: a flow goes to a node that is gone", name)
			}
			if before != after {
				moved++
			}
		}
		if share := float64(moved) / flows; share < want.least || share > want.most {
			t.Errorf("%s: one node of four goes, and %.2f of the flows move, want %.2f to %.2f", name, share, want.least, want.most)
		}
	}
}
