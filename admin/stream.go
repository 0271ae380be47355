package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/halfproxy/halfproxy/events"
)

const (
	mostViewers = 16
	mostMissed  = 8 // messages that a viewer may be behind
	mostTold    = 300
	// writing is for one message, after which a viewer counts as gone.
	writing = 10 * time.Second

	// Between two statuses: a second, or as much more as keeps telling them from taking
	// more than a twentieth of a CPU, or 256 kB a second for each viewer.
	fastest    = time.Second
	slowest    = 30 * time.Second
	leisure    = 20
	throughput = 256 << 10

	sampling    = 2 * time.Second
	mostSamples = int(10 * time.Minute / sampling)
)

// Traffic is what was counted until now.
type Traffic struct{ Forwarded, Bytes, Dropped uint64 }

// stream tells viewers how things stand, by server-sent events: status, as /api/v1/status
// has it, events, and traffic, which are samples of the last ten minutes first and then
// what comes. Each message is made once for all viewers, and none while there are none;
// only traffic is sampled all the time, by a look at a handful of counters.
type stream struct {
	log     *slog.Logger
	status  func() Status
	traffic func() (Traffic, error)
	events  func(after uint64) ([]events.Event, <-chan struct{})
	come    chan struct{} // capacity 1: there is a viewer

	mu      sync.Mutex
	viewers map[*viewer]bool
	samples []sample
	before  Traffic
	at      time.Time // of before; zero: there is none
	untold  []sample  // not told yet
	told    uint64    // the last event that viewers know
}

// sample is a moment in ms, and packets forwarded, bits and packets dropped a second
// since the one before.
type sample [4]float64

type viewer struct {
	messages chan []byte // closed when the viewer is too slow
}

func newStream(cfg Config, status func() Status, log *slog.Logger) *stream {
	return &stream{
		log: log, status: status, traffic: cfg.Traffic, events: cfg.Events,
		come: make(chan struct{}, 1), viewers: make(map[*viewer]bool),
	}
}

// run tells viewers until ctx ends.
func (s *stream) run(ctx context.Context) {
	ticker := time.NewTicker(sampling)
	defer ticker.Stop()
	if s.traffic == nil {
		ticker.Stop()
	}
	var due <-chan time.Time // nil while nobody looks
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			s.sample(now)
			continue
		case <-s.come:
			if due == nil {
				due = time.After(0)
			}
			continue
		case <-due:
			due = nil
		}
		if begun := time.Now(); s.watched() {
			size := s.tell()
			due = time.After(pause(time.Since(begun), size))
		}
	}
}

// pause is the time to the next status after one that took so long and has this size.
func pause(took time.Duration, size int) time.Duration {
	return min(max(fastest, leisure*took, time.Duration(size)*time.Second/throughput), slowest)
}

func (s *stream) watched() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.viewers) > 0
}

// tell sends all viewers what is new, and gives the size of the status.
func (s *stream) tell() int {
	status, err := message("status", 0, s.status())
	if err != nil {
		s.log.Error("status not told", "err", err)
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	news := [][]byte{status}
	if list, _ := s.events(s.told); len(list) > 0 {
		s.told = list[len(list)-1].Number
		news = append(news, must(message("events", s.told, list)))
	}
	if len(s.untold) > 0 {
		news = append(news, must(message("traffic", 0, s.untold)))
		s.untold = nil
	}
	for v := range s.viewers {
		if cap(v.messages)-len(v.messages) < len(news) {
			delete(s.viewers, v)
			close(v.messages)
			continue
		}
		for _, m := range news {
			v.messages <- m
		}
	}
	return len(status)
}

func (s *stream) sample(now time.Time) {
	t, err := s.traffic()
	if err != nil {
		return // whoever reads the status hears of it
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if seconds := now.Sub(s.at).Seconds(); !s.at.IsZero() && seconds > 0 {
		rate := func(now, before uint64) float64 { return float64(max(now, before)-before) / seconds }
		x := sample{
			float64(now.UnixMilli()), rate(t.Forwarded, s.before.Forwarded), 8 * rate(t.Bytes, s.before.Bytes), rate(t.Dropped, s.before.Dropped),
		}
		s.samples = append(s.samples, x)
		s.samples = s.samples[max(0, len(s.samples)-mostSamples):]
		if len(s.viewers) > 0 {
			s.untold = append(s.untold, x)
		}
	}
	s.before, s.at = t, now
}

// join adds a viewer who knows the events up to a number. What it is to be told at once
// waits for it; nil: there are too many viewers.
func (s *stream) join(after uint64) *viewer {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.viewers) >= mostViewers {
		return nil
	}
	v := &viewer{messages: make(chan []byte, mostMissed)}
	list, _ := s.events(after)
	if len(s.viewers) == 0 { // else the others are yet to be told of the last ones, and v once more
		s.untold = nil
		if all, _ := s.events(0); len(all) > 0 {
			s.told = all[len(all)-1].Number
		}
	}
	if list = list[max(0, len(list)-mostTold):]; len(list) > 0 {
		v.messages <- must(message("events", list[len(list)-1].Number, list))
	}
	if len(s.samples) > 0 {
		v.messages <- must(message("traffic", 0, s.samples))
	}
	s.viewers[v] = true
	select {
	case s.come <- struct{}{}:
	default:
	}
	return v
}

func (s *stream) leave(v *viewer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.viewers, v)
}

func (s *stream) serve(w http.ResponseWriter, r *http.Request) {
	after, err := lastKnown(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if r.Method == http.MethodHead {
		w.Header().Set("Content-Type", "text/event-stream")
		return
	}
	v := s.join(after)
	if v == nil {
		w.Header().Set("Retry-After", "5")
		http.Error(w, fmt.Sprintf("%d look at this node already, which is as many as it tells: close some, or ask /api/v1/status", mostViewers), http.StatusServiceUnavailable)
		return
	}
	defer s.leave(v)
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(time.Time{}) // else the end of its time looks like that of the connection
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would hold messages back
	next := []byte("retry: 1000\n\n")
	for {
		_ = c.SetWriteDeadline(time.Now().Add(writing))
		_, err := w.Write(next)
		if err = errors.Join(err, c.Flush()); err != nil {
			s.log.Debug("viewer lost", "err", err)
			return
		}
		var more bool
		select {
		case <-r.Context().Done():
			return
		case next, more = <-v.messages:
			if !more {
				s.log.Debug("viewer too slow")
				return
			}
		}
	}
}

// lastKnown is the number of the last event that a viewer knows: the browser tells it when
// it connects again by itself, the page when it does.
func lastKnown(r *http.Request) (after uint64, err error) {
	for _, text := range []string{r.Header.Get("Last-Event-ID"), r.URL.Query().Get("after")} {
		if text == "" {
			continue
		}
		number, err := parseNumber(text)
		if err != nil {
			return 0, err
		}
		after = max(after, number)
	}
	return after, nil
}

// message is one server-sent event. An id of 0 is none.
func message(event string, id uint64, data any) ([]byte, error) {
	text, err := json.Marshal(data) // which has no line breaks
	if err != nil {
		return nil, err
	}
	m := []byte("event: " + event + "\n")
	if id > 0 {
		m = fmt.Appendf(m, "id: %d\n", id)
	}
	m = append(append(m, "data: "...), text...)
	return append(m, "\n\n"...), nil
}

func must(m []byte, err error) []byte {
	if err != nil {
		panic(err) // of numbers and texts alone: cannot be
	}
	return m
}
