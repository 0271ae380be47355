package health

import (
	"strings"
	"testing"

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
				changed := tally.count(answer == '+', lb.Check{Rise: tt.rise, Fall: tt.fall})
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
