package admin

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/halfproxy/halfproxy/events"
)

const (
	eventsPath = "/api/v1/events"
	// longestWait is for an answer that waits for news: less than the patience of
	// whoever asks.
	longestWait = 20 * time.Second
)

// Events is what has happened, the oldest first: the answer of /api/v1/events.
type Events struct {
	Events List[events.Event] `json:"events"`
}

// EventQuery says which events are of interest.
type EventQuery struct {
	After uint64        // the number of the last one that is known
	Since time.Time     // zero: however old
	Wait  time.Duration // for there to be any, 20 s at most
}

func parseEventQuery(v url.Values) (q EventQuery, err error) {
	if text := v.Get("after"); text != "" {
		if q.After, err = parseNumber(text); err != nil {
			return q, err
		}
	}
	if text := v.Get("since"); text != "" {
		if q.Since, err = time.Parse(time.RFC3339, text); err != nil {
			return q, fmt.Errorf("since=%q is no time: write it as %s", text, "2026-01-02T15:04:05Z")
		}
	}
	if text := v.Get("wait"); text != "" {
		if q.Wait, err = time.ParseDuration(text); err != nil || q.Wait < 0 {
			return q, fmt.Errorf("wait=%q is no length of time: write it as 10s", text)
		}
		q.Wait = min(q.Wait, longestWait)
	}
	return q, nil
}

// parseNumber reads the number of the last event that somebody knows.
func parseNumber(text string) (uint64, error) {
	number, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("after=%q is no number of an event", text)
	}
	return number, nil
}

func (q EventQuery) encode() string {
	v := make(url.Values)
	if q.After > 0 {
		v.Set("after", strconv.FormatUint(q.After, 10))
	}
	if !q.Since.IsZero() {
		v.Set("since", q.Since.Format(time.RFC3339Nano))
	}
	if q.Wait > 0 {
		v.Set("wait", q.Wait.String())
	}
	return v.Encode()
}

func (s *Server) events(w http.ResponseWriter, r *http.Request, after func(uint64) ([]events.Event, <-chan struct{})) {
	q, err := parseEventQuery(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	// Else the end of its time, sooner than ours, looks like that of the connection.
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	patience := time.After(q.Wait)
	for waits := q.Wait > 0; ; {
		list, news := after(q.After)
		list = slices.DeleteFunc(list, func(e events.Event) bool { return e.Time.Before(q.Since) })
		if len(list) > 0 || !waits {
			s.answer(w, http.StatusOK, Events{list})
			return
		}
		select {
		case <-news:
		case <-patience:
			waits = false
		case <-r.Context().Done():
			waits = false
		}
	}
}

// Events asks what has happened.
func (c *Client) Events(ctx context.Context, q EventQuery) ([]events.Event, error) {
	answer, err := ask[Events](ctx, c, "events", eventsPath+"?"+q.encode())
	return answer.Events, err
}

// WriteEvent writes e for people, on one line.
func WriteEvent(w io.Writer, e events.Event, colour bool) error {
	p := printer{colour: colour}
	tones := map[string]string{"warn": yellow, "error": red}
	_, err := fmt.Fprintf(w, "%s  %s  %-10s  %s\n", e.Time.Local().Format(time.DateTime),
		p.paint(tones[e.Level], fmt.Sprintf("%-5s", e.Level)), clean(e.Part), clean(e.String()))
	if err != nil {
		return fmt.Errorf("write events: %w", err)
	}
	return nil
}
