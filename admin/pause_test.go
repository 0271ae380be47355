package admin

import (
	"testing"
	"time"
)

func TestABusyNodeTellsItsStatusLessOften(t *testing.T) {
	for _, tt := range []struct {
		took time.Duration
		size int
		want time.Duration
	}{
		{time.Millisecond, 4 << 10, time.Second},
		{100 * time.Millisecond, 4 << 10, 2 * time.Second},
		{time.Millisecond, 1 << 20, 4 * time.Second},
		{10 * time.Second, 1 << 30, 30 * time.Second},
	} {
		if got := pause(tt.took, tt.size); got != tt.want {
			t.Errorf("a status that takes %v and has %d bytes: got %v, want %v", tt.took, tt.size, got, tt.want)
		}
	}
}
