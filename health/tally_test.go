package health

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

func TestTallyWaitsForRiseAndFall(t *testing.T) {
	for _, tt := range []struct {
		name       string
		rise, fall int
		answers    string // + is a success, - a failure
		want       string // the state after each: u, d, or ? for Unknown
	}{
		{"up after rise successes", 2, 3, "+++", "?uu"},
		{"down after fall failures", 2, 3, "----", "??dd"},
		{"unknown while answers alternate", 2, 2, "+-+-+-", "??????"},
		{"a single failure is forgiven", 2, 3, "++-+--+---", "?uuuuuuuud"},
		{"a single success is no recovery", 2, 3, "---+-+-++", "??dddddd" + "u"},
		{"at once where both are one", 1, 1, "+-+-", "udud"},
		{"failures before do not hinder", 3, 2, "-+-+++", "?????u"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var tally tally
			var got strings.Builder
			was := lb.Unknown
			for i, answer := range tt.answers {
				changed := tally.count(answer == '+', lb.Check{Rise: tt.rise, Fall: tt.fall}, time.Time{})
				if changed != (tally.state != was) {
					t.Errorf("answer %d: got changed %v, %s before and %s after", i, changed, was, tally.state)
				}
				was = tally.state
				got.WriteByte("?ud"[was])
			}
			if got.String() != tt.want {
				t.Errorf("states after %s: got %s, want %s", tt.answers, &got, tt.want)
			}
		})
	}
}

// A backend that is up for 3 s and down for 3 s, asked once a second, needs more
// successes from time to time until it is not up any more.
func TestFlappingIsHeldDownWithGrowingPatience(t *testing.T) {
	check := lb.Check{Interval: time.Second, Rise: 2, Fall: 2, FlapHold: 16 * time.Second}
	now := time.Unix(0, 0)
	var tally tally
	play := func(fit bool, times int) {
		for range times {
			now = now.Add(check.Interval)
			tally.count(fit, check, now)
		}
	}
	// untilUp is how many successes it takes.
	untilUp := func() int {
		for n := 1; n <= 100; n++ {
			if play(true, 1); tally.state == lb.Up {
				return n
			}
		}
		t.Fatal("it never comes up")
		return 0
	}

	var needed []int
	for range 7 {
		needed = append(needed, untilUp())
		play(false, 3)
	}
	// The first time it came from nowhere, so its fall is no flap.
	if want := []int{2, 2, 4, 8, 16, 16, 16}; !slices.Equal(needed, want) {
		t.Errorf("successes needed: got %v, want %v", needed, want)
	}

	play(true, 3)
	if got, want := tally.held(check), "held down as it keeps going up and down: 3 of 16 successes in a row that it needs now"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	play(true, 13)
	if tally.state != lb.Up || tally.held(check) != "" {
		t.Errorf("after 16 successes: got %v, held %q", tally.state, tally.held(check))
	}

	// Two times of calm halve the patience twice, being down as well as being up.
	for _, fit := range []bool{true, false} {
		before := rise(check, tally.flaps)
		play(fit, 40)
		play(!fit, 2)
		if got := rise(check, tally.flaps); got != max(check.Rise, before/4) {
			t.Errorf("after calm with answers %v: got %d successes needed, want %d", fit, got, max(check.Rise, before/4))
		}
	}
}

func TestNobodyIsHeldDownUnlessAsked(t *testing.T) {
	check := lb.Check{Interval: time.Second, Rise: 1, Fall: 1}
	var tally tally
	now := time.Unix(0, 0)
	for i := range 100 {
		now = now.Add(time.Second)
		if !tally.count(i%2 == 0, check, now) {
			t.Fatalf("answer %d changed nothing", i)
		}
	}
}

func TestSlowStartIsOfBackendsThatWereSeenDown(t *testing.T) {
	check := lb.Check{Interval: time.Second, Rise: 1, Fall: 1, SlowStart: 40 * time.Second}
	now := time.Unix(0, 0)
	var tally tally
	count := func(fit bool) { tally.count(fit, check, now) }
	want := func(when string, ahead uint8) {
		t.Helper()
		if got := tally.ahead(check, now); got != ahead {
			t.Errorf("%s: got %d steps ahead, want %d", when, got, ahead)
		}
	}
	want("never asked", 0)
	count(true)
	want("up at first", 0)
	count(false)
	want("down", 0)
	count(true)
	want("back", 4)
	now = now.Add(20 * time.Second)
	count(true)
	want("half the time", 2)
	count(false)
	count(true)
	want("back again", 4)
	now = now.Add(40 * time.Second)
	want("after it", 0)
}
