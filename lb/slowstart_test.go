package lb_test

import (
	"slices"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

func TestWeightGrowsInFiveSteps(t *testing.T) {
	for _, tt := range []struct {
		slow   time.Duration
		weight int
		want   []int // at every eighth of it, to the end
	}{
		{40 * time.Second, 100, []int{20, 20, 40, 40, 60, 60, 80, 80, 100, 100}},
		{40 * time.Second, 3, []int{1, 1, 1, 1, 1, 1, 2, 2, 3, 3}},
		{40 * time.Second, 0, []int{0, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
		{time.Hour, lb.MaxWeight, []int{2000, 2000, 4000, 4000, 6000, 6000, 8000, 8000, 10000, 10000}},
		{0, 100, []int{100, 100, 100, 100, 100, 100, 100, 100, 100, 100}},
	} {
		var got []int
		for i := range 10 {
			got = append(got, lb.Slowed(tt.weight, lb.Check{SlowStart: tt.slow}.Ahead(tt.slow*time.Duration(i)/8)))
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("weight %d over %v: got %v, want %v", tt.weight, tt.slow, got, tt.want)
		}
	}
	if got := (lb.Check{SlowStart: time.Minute}).Ahead(-time.Second); got != lb.SlowSteps-1 {
		t.Errorf("before it came back: got %d steps ahead, want %d", got, lb.SlowSteps-1)
	}
}
