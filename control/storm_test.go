package control

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

// Every backend dies at once. Its observers find that out one after the other, over
// the second that their probes are spread over.
func TestAMassFailureCostsFewTables(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.size = 3
		var names, up []string
		for i := range 1000 {
			names = append(names, fmt.Sprintf("b%03d", i))
			up = append(up, names[i]+"=up")
		}
		w.setService("web", []string{"vips=203.0.113.10", "backends=" + strings.Join(names, ",")})
		for _, m := range []string{"lb1", "lb2", "lb3"} {
			w.member(m, "sees ", up)
		}
		w.start(t.Context())
		w.wait(time.Second)
		w.calls = nil

		begin := time.Now()
		for at := 0; at < len(names); at += 10 {
			w.mu.Lock()
			for _, m := range []string{"lb1", "lb2", "lb3"} {
				r := &w.members[m].Report
				r.Observations = slices.Clone(r.Observations) // the node may still read the old ones
				for i := at; i < at+10; i++ {
					r.Observations[i].State = lb.Down
				}
				w.members[m].Heard = time.Now()
			}
			w.mu.Unlock()
			w.control.Wake()
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
		}
		var last time.Duration
		for range 30 {
			before := len(w.calls)
			w.wait(100 * time.Millisecond)
			if len(w.calls) > before {
				last = time.Since(begin)
			}
		}
		built := 0
		for _, call := range w.calls {
			if strings.HasPrefix(call, "tables") {
				built++
			}
		}
		if built == 0 || built > 10 {
			t.Errorf("tables were built %d times, want at most 10", built)
		}
		if got := w.control.Status().Services[0].Backends[999].State; got != lb.Down || last > 2*time.Second {
			t.Errorf("the last backend is %v, the last change came after %v, want down within 2 s", got, last)
		}
		w.stop()
		synctest.Wait()
	})
}
