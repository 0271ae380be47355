package admin_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/admin"
	"github.com/halfproxy/halfproxy/events"
)

func TestEventsAreGivenFromWhereTheReaderIs(t *testing.T) {
	ring := events.NewRing(10)
	log := slog.New(ring.Handler(slog.DiscardHandler)).With("part", "control")
	cfg := config(t)
	cfg.Events = ring.After
	n := start(t, cfg)
	log.Info("one", "vip", "203.0.113.10")
	time.Sleep(10 * time.Millisecond)
	between := time.Now()
	log.Warn("two")

	get := func(query string) []events.Event {
		resp, body := ask(t, http.DefaultClient, "GET", n.url+"/api/v1/events?"+query)
		var got admin.Events
		if err := json.Unmarshal([]byte(body), &got); err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s: got %d, %v: %s", query, resp.StatusCode, err, body)
		}
		return got.Events
	}
	messages := func(list []events.Event) string {
		var all []string
		for _, e := range list {
			all = append(all, e.String())
		}
		return strings.Join(all, "|")
	}
	all := get("")
	if got, want := messages(all), "one vip=203.0.113.10|two"; got != want {
		t.Fatalf("all: got %q, want %q", got, want)
	}
	for query, want := range map[string]string{
		fmt.Sprintf("after=%d", all[0].Number):                       "two",
		fmt.Sprintf("after=%d", all[1].Number):                       "",
		"since=" + url.QueryEscape(between.Format(time.RFC3339Nano)): "two",
		"wait=5s": "one vip=203.0.113.10|two", // there are some: nothing to wait for
		fmt.Sprintf("after=%d&wait=50ms", all[1].Number): "",
	} {
		if got := messages(get(query)); got != want {
			t.Errorf("%s: got %q, want %q", query, got, want)
		}
	}

	begun := time.Now()
	time.AfterFunc(100*time.Millisecond, func() { log.Info("three") })
	if got := messages(get(fmt.Sprintf("after=%d&wait=10s", all[1].Number))); got != "three" || time.Since(begun) > 5*time.Second {
		t.Errorf("waiting: got %q after %v, want three at once", got, time.Since(begun))
	}
	got, err := admin.NewClient(n.path).Events(t.Context(), admin.EventQuery{After: all[0].Number, Since: between, Wait: time.Second})
	if err != nil || messages(got) != "two|three" {
		t.Errorf("by the client: got %q, %v, want two and three", messages(got), err)
	}
	for _, bad := range []string{"after=x", "since=yesterday", "wait=long", "wait=-1s"} {
		if resp, body := ask(t, http.DefaultClient, "GET", n.url+"/api/v1/events?"+bad); resp.StatusCode != http.StatusBadRequest || !strings.Contains(body, bad[:4]) {
			t.Errorf("%s: got %d %q, want it refused", bad, resp.StatusCode, body)
		}
	}
}

func TestAnEventIsOneLineOfText(t *testing.T) {
	at := time.Date(2026, 3, 14, 3, 7, 0, 0, time.Local)
	e := events.Event{Time: at, Level: "warn", Part: "control", Message: "vip held back",
		Attributes: events.Attributes{{Key: "vip", Value: "203.0.113.10"}, {Key: "reason", Value: "no\nbackend \x1b[2J"}}}
	for colour, want := range map[bool]string{
		false: "2026-03-14 03:07:00  warn   control     vip held back vip=203.0.113.10 reason=\"no\\nbackend \\x1b[2J\"\n",
		true:  "2026-03-14 03:07:00  \x1b[33mwarn \x1b[0m  control     vip held back vip=203.0.113.10 reason=\"no\\nbackend \\x1b[2J\"\n",
	} {
		var out strings.Builder
		if err := admin.WriteEvent(&out, e, colour); err != nil || out.String() != want {
			t.Errorf("in colour %v: got %q, %v, want %q", colour, out.String(), err, want)
		}
	}
}
