package events_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/events"
)

// texts gives events as people read them.
func texts(list []events.Event) []string {
	var all []string
	for _, e := range list {
		all = append(all, fmt.Sprintf("%s %s: %s", e.Level, e.Part, e))
	}
	return all
}

func compare(t *testing.T, what string, got, want []string) {
	t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%s: got\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestEventsAreWhatIsLogged(t *testing.T) {
	ring := events.NewRing(10)
	var out bytes.Buffer
	log := slog.New(ring.Handler(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelWarn})))

	part := log.With("part", "bgp")
	part.Info("session up", "peer", netip.MustParseAddr("192.0.2.1"))
	part.Debug("not of interest")
	one, two := part.With("service", "web"), part.With("service", "dns")
	one.Warn("backend is down for this node", "err", errors.New(`status 503, want "2xx"`))
	two.Error("lost", "after", 1500*time.Millisecond)
	one.WithGroup("g").Info("grouped", slog.Group("h", "k", 1), "empty", "")
	log.WithGroup("").Info("plain")

	list, _ := ring.After(0)
	compare(t, "events", texts(list), []string{
		"info bgp: session up peer=192.0.2.1",
		`warn bgp: backend is down for this node service=web err="status 503, want \"2xx\""`,
		"error bgp: lost service=dns after=1.5s",
		`info bgp: grouped service=web g.h.k=1 g.empty=""`,
		"info : plain",
	})
	var logged []string
	for line := range strings.Lines(out.String()) {
		_, line, _ = strings.Cut(strings.TrimSpace(line), " ")
		logged = append(logged, line)
	}
	compare(t, "the log, which is to have warnings only", logged, []string{
		`level=WARN msg="backend is down for this node" part=bgp service=web err="status 503, want \"2xx\""`,
		"level=ERROR msg=lost part=bgp service=dns after=1.5s",
	})
}

func TestTheLastEventsAreKept(t *testing.T) {
	ring := events.NewRing(3)
	log := slog.New(ring.Handler(slog.DiscardHandler))
	_, news := ring.After(0)
	var third uint64
	for i := range 5 {
		log.Info(fmt.Sprint(i))
		if i == 2 {
			list, _ := ring.After(0)
			third = list[2].Number
		}
	}
	select {
	case <-news:
	default:
		t.Error("nobody who waited was told of another event")
	}
	list, news := ring.After(0)
	compare(t, "all", texts(list), []string{"info : 2", "info : 3", "info : 4"})
	list, _ = ring.After(third)
	compare(t, "after the third", texts(list), []string{"info : 3", "info : 4"})
	if list, _ = ring.After(list[1].Number); len(list) > 0 {
		t.Errorf("after the last: got %v, want none", list)
	}
	select {
	case <-news:
		t.Error("told of another event, though there is none")
	default:
	}
}

func TestTheNextProcessCountsOn(t *testing.T) {
	number := func() uint64 {
		ring := events.NewRing(1)
		slog.New(ring.Handler(slog.DiscardHandler)).Info("begin")
		list, _ := ring.After(0)
		return list[0].Number
	}
	before := number()
	time.Sleep(2 * time.Millisecond)
	if after := number(); after <= before {
		t.Errorf("got %d after %d, want more", after, before)
	}
}

func TestWhoFollowedAProcessWhoseClockWasAheadMissesNothing(t *testing.T) {
	ring := events.NewRing(2)
	ahead := uint64(time.Now().Add(6 * time.Hour).UnixMilli())
	slog.New(ring.Handler(slog.DiscardHandler)).Info("begin")
	if list, _ := ring.After(ahead); len(list) != 1 {
		t.Errorf("after %d: got %v, want what has happened", ahead, list)
	}
}

func TestLongValuesAreCut(t *testing.T) {
	ring := events.NewRing(1)
	slog.New(ring.Handler(slog.DiscardHandler)).Info(strings.Repeat("é", 5000), "err", strings.Repeat("x", 5000))
	list, _ := ring.After(0)
	if e := list[0]; len(e.Message) > 1100 || len(e.Attributes[0].Value) > 1100 || !strings.HasSuffix(e.Message, "é…") {
		t.Errorf("got %d and %d bytes, want about 1000 of each", len(e.Message), len(e.Attributes[0].Value))
	}
}

func TestAttributesKeepTheirOrderInJSON(t *testing.T) {
	want := events.Attributes{{"z", "last <first>"}, {"a", ""}, {"m", `"`}}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got events.Attributes
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v by way of %s, want %v", got, text, want)
	}
	if none, _ := json.Marshal(events.Event{}); !strings.Contains(string(none), `"attributes":{}`) {
		t.Errorf("without attributes: got %s, want an empty object", none)
	}
	for _, bad := range []string{`{"a":1}`, `{"a"`, `[`} {
		if err := json.Unmarshal([]byte(bad), &got); err == nil {
			t.Errorf("%s: got %v, want an error", bad, got)
		}
	}
}
