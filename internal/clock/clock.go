// Package clock is for tests of what the wall clock's being set does: no test may set the
// machine's, and a process does not notice it but by the times that it takes.
package clock

import (
	"testing"
	"time"
	"unsafe"
)

// Set gives the moment of now as it would have been taken if the wall clock had been set
// forward, or back, by d before: another time of day, the same monotonic reading.
func Set(t testing.TB, now time.Time, d time.Duration) time.Time {
	t.Helper()
	if unsafe.Sizeof(now) < 16 || now.Round(0) == now { //nolint:staticcheck // the representation is meant
		t.Fatalf("%v has no monotonic reading", now)
	}
	// time.Time begins with a flag, 33 bits of seconds and 30 of nanoseconds.
	was := now
	*(*uint64)(unsafe.Pointer(&now)) += uint64(d/time.Second) << 30
	if got := now.Sub(was); got != 0 {
		t.Fatalf("set by %v: the monotonic reading is another one by %v", d, got)
	}
	if got := now.Round(0).Sub(was.Round(0)); got != d.Truncate(time.Second) {
		t.Fatalf("set by %v: the time of day is another one by %v", d, got)
	}
	return now
}
