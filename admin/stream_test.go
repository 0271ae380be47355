package admin_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/admin"
	"github.com/halfproxy/halfproxy/events"
)

// told is one server-sent event.
type told struct{ event, id, data string }

// look opens a stream and hands over what comes until ctx ends.
func look(t *testing.T, ctx context.Context, url string, header ...string) (<-chan told, *http.Response) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, "GET", url+"/api/v1/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(header) > 0 {
		req.Header.Set(header[0], header[1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	messages := make(chan told, 100)
	go func() {
		defer close(messages)
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, 1<<20)
		var m told
		for lines.Scan() {
			switch key, value, _ := strings.Cut(lines.Text(), ": "); key {
			case "event":
				m.event = value
			case "id":
				m.id = value
			case "data":
				m.data = value
			case "":
				if m.event != "" {
					messages <- m
				}
				m = told{}
			}
		}
	}()
	return messages, resp
}

// next is the next message of a kind.
func next(t *testing.T, messages <-chan told, event string) told {
	t.Helper()
	for end := time.After(10 * time.Second); ; {
		select {
		case m, more := <-messages:
			if !more {
				t.Fatalf("the stream ended before another %s", event)
			}
			if m.event == event {
				return m
			}
		case <-end:
			t.Fatalf("no %s within 10 s", event)
		}
	}
}

func TestViewersAreToldOneStatusForAllAndNobodyCostsNothing(t *testing.T) {
	var asked, sampled atomic.Int32
	cfg := config(t)
	cfg.Status = func() admin.Status { asked.Add(1); return troubled() }
	cfg.Traffic = func() (admin.Traffic, error) {
		n := uint64(sampled.Add(1))
		return admin.Traffic{Forwarded: 1000 * n, Bytes: 100_000 * n, Dropped: n}, nil
	}
	n := start(t, cfg)
	time.Sleep(2500 * time.Millisecond)
	if got := asked.Load(); got != 0 {
		t.Errorf("while nobody looks: got %d statuses made, want none", got)
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var viewers []<-chan told
	for range 5 {
		v, resp := look(t, ctx, n.url)
		if got := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || got != "text/event-stream" {
			t.Fatalf("got %d %s, want an event stream", resp.StatusCode, got)
		}
		viewers = append(viewers, v)
	}
	for i, v := range viewers {
		for range 3 {
			var st admin.Status
			if err := json.Unmarshal([]byte(next(t, v, "status").data), &st); err != nil || st.Node.Name != "lb1" || st.Node.Health.Status != "ok" {
				t.Fatalf("viewer %d: got %v, %v, want lb1's status", i, st.Node, err)
			}
		}
	}
	if got := asked.Load(); got < 3 || got > 6 {
		t.Errorf("3 statuses for 5 viewers: got %d made, want as many, or a few more", got)
	}
	var samples [][4]float64
	if err := json.Unmarshal([]byte(next(t, viewers[0], "traffic").data), &samples); err != nil || len(samples) == 0 {
		t.Fatalf("traffic: got %v, %v", samples, err)
	}
	if s := samples[0]; s[1] < 400 || s[1] > 600 || s[2] < 320_000 || s[2] > 480_000 || s[3] < 0.4 || s[3] > 0.6 {
		t.Errorf("traffic: got %v, want about 500 packets, 400 kbit and half a drop a second", s)
	}

	cancel()
	time.Sleep(1500 * time.Millisecond)
	before := asked.Load()
	time.Sleep(1500 * time.Millisecond)
	if got := asked.Load(); got != before {
		t.Errorf("after all have gone: got %d more statuses, want none", got-before)
	}
}

func TestAViewerIsToldTheEventsThatItDoesNotKnow(t *testing.T) {
	ring := events.NewRing(1000)
	log := slog.New(ring.Handler(slog.DiscardHandler))
	cfg := config(t)
	cfg.Events = ring.After
	n := start(t, cfg)
	for i := range 400 {
		log.Info(fmt.Sprint("event ", i))
	}
	messages := func(m told) []string {
		var list []events.Event
		if err := json.Unmarshal([]byte(m.data), &list); err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, e := range list {
			all = append(all, e.Message)
		}
		return all
	}
	v, _ := look(t, t.Context(), n.url)
	first := next(t, v, "events")
	if got := messages(first); len(got) != 300 || got[299] != "event 399" {
		t.Errorf("at first: got %d events, want the last 300", len(got))
	}
	log.Info("live")
	if got := messages(next(t, v, "events")); len(got) != 1 || got[0] != "live" {
		t.Errorf("then: got %q, want live", got)
	}
	again, _ := look(t, t.Context(), n.url, "Last-Event-ID", first.id)
	if got := messages(next(t, again, "events")); len(got) != 1 || got[0] != "live" {
		t.Errorf("after a lost connection: got %q, want live alone", got)
	}
	if _, resp := look(t, t.Context(), n.url, "Last-Event-ID", "x"); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a number that is none: got %d, want 400", resp.StatusCode)
	}
}

func TestThereAreOnlySoManyViewers(t *testing.T) {
	n := start(t, config(t))
	ctx, cancel := context.WithCancel(t.Context())
	for range 16 {
		if _, resp := look(t, ctx, n.url); resp.StatusCode != 200 {
			t.Fatalf("got %d, want 16 viewers taken", resp.StatusCode)
		}
	}
	_, resp := look(t, t.Context(), n.url)
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one more: got %d, want 503 and when to come back", resp.StatusCode)
	}
	cancel()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, resp := look(t, t.Context(), n.url); resp.StatusCode == 200 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("after all have gone nobody is taken")
		}
	}
}

func TestAStreamOutlivesTheServersTimeoutsAndEndsWithIt(t *testing.T) {
	if testing.Short() {
		t.Skip("takes as long as the timeouts")
	}
	n := start(t, config(t))
	v, _ := look(t, t.Context(), n.url)
	for end := time.Now().Add(32 * time.Second); time.Now().Before(end); {
		next(t, v, "status")
	}
	begun := time.Now()
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > time.Second {
		t.Errorf("the server took %v to stop, want it not to wait for viewers", took)
	}
	for range v {
		// what was under way, and the end
	}
}
