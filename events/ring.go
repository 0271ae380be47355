package events

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// Kept is how many events a node keeps: some MB at most.
const Kept = 4096

// longest is how much of a message or a value is kept, in bytes: the ring is to stay
// small whatever is logged.
const longest = 1 << 10

// Ring holds the last events.
type Ring struct {
	mu     sync.Mutex
	events []Event // the oldest at place next, once there are as many as fit
	next   int
	last   uint64        // number
	news   chan struct{} // closed when there is another event
}

// NewRing gives a ring for so many events.
func NewRing(size int) *Ring {
	return &Ring{
		events: make([]Event, 0, size),
		// A node logs less than an event a millisecond, so its next process begins
		// further on than it has come.
		last: uint64(time.Now().UnixMilli()),
		news: make(chan struct{}),
	}
}

func (r *Ring) add(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last++
	e.Number = r.last
	if len(r.events) < cap(r.events) {
		r.events = append(r.events, e)
	} else {
		r.events[r.next] = e
		r.next = (r.next + 1) % len(r.events)
	}
	close(r.news)
	r.news = make(chan struct{})
}

// After gives the events that are kept with a greater number than the given one, the
// oldest first, and a channel that is closed when there is another. A number that there
// has not been yet is of a process before, whose clock was ahead: all are later.
func (r *Ring) After(number uint64) (list []Event, news <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if number > r.last {
		number = 0
	}
	for i := range r.events {
		e := r.events[(r.next+i)%len(r.events)]
		if e.Number > number {
			list = append(list, e)
		}
	}
	return list, r.news
}

// Handler gives a handler that keeps what is logged as info or worse, and hands all that
// next wants to next.
func (r *Ring) Handler(next slog.Handler) slog.Handler { return &handler{ring: r, next: next} }

type handler struct {
	ring  *Ring
	next  slog.Handler
	part  string
	attrs Attributes
	group string // prefix of keys
}

// Enabled implements slog.Handler.
func (h *handler) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo || h.next.Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (h *handler) Handle(ctx context.Context, record slog.Record) error {
	if record.Level >= slog.LevelInfo {
		of := *h
		of.attrs = of.attrs[:len(of.attrs):len(of.attrs)] // others share what follows
		record.Attrs(func(a slog.Attr) bool { of.take(h.group, a); return true })
		h.ring.add(Event{
			Time: record.Time, Level: levelName(record.Level), Part: of.part,
			Message: cut(record.Message), Attributes: of.attrs,
		})
	}
	if !h.next.Enabled(ctx, record.Level) {
		return nil
	}
	return h.next.Handle(ctx, record)
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	of := *h
	of.next = h.next.WithAttrs(attrs)
	of.attrs = of.attrs[:len(of.attrs):len(of.attrs)]
	for _, a := range attrs {
		of.take(h.group, a)
	}
	return &of
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	of := *h
	of.next = h.next.WithGroup(name)
	if name != "" {
		of.group += name + "."
	}
	return &of
}

// take adds an attribute, those of a group each.
func (h *handler) take(group string, a slog.Attr) {
	value := a.Value.Resolve()
	switch {
	case value.Kind() == slog.KindGroup:
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, inner := range value.Group() {
			h.take(group, inner)
		}
	case a.Key == "part" && group == "":
		h.part = value.String()
	case a.Key != "":
		h.attrs = append(h.attrs, Attribute{group + a.Key, cut(value.String())})
	}
}

func cut(text string) string {
	if len(text) <= longest {
		return text
	}
	return strings.ToValidUTF8(text[:longest], "") + "…"
}
