package main

import (
	"testing"
	"time"
)

func TestTrackingChangesBreaksLeast(t *testing.T) {
	w := world{
		nodes: 4, backends: 20, lasts: 2 * time.Minute, flowsPerSecond: 200, flowLength: 30 * time.Second, packetEvery: time.Second,
		backendEvery: 10 * time.Second, nodeEvery: 20 * time.Second, lifetime: time.Hour, newsLag: 300 * time.Millisecond, recordLag: 20 * time.Millisecond, seed: 1,
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
