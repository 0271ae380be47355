package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/halfproxy/halfproxy/admin"
	"github.com/halfproxy/halfproxy/lb"
)

func TestAWatchedStatusIsShownUntilTheEndAndOverFailures(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var out bytes.Buffer
	n := 0
	err := watch(ctx, &out, time.Millisecond, func(to io.Writer) error {
		switch n++; n {
		case 2:
			fmt.Fprint(to, "half of it")
			return errors.New("is halfproxy running?")
		case 4:
			cancel()
		}
		fmt.Fprintf(to, "page %d\n", n)
		return nil
	})
	got := out.String()
	if err != nil || !strings.HasPrefix(got, "page 1\n") || !strings.Contains(got, "  is halfproxy running?\npage 3\n") || strings.Contains(got, "half of") || strings.Contains(got, "page 4") {
		t.Errorf("got %q, %v, want page 1, the error, page 3", got, err)
	}
}

func TestAPageTakesThePlaceOfTheOneBefore(t *testing.T) {
	for rows, want := range map[int]string{
		0: "\x1b[Ha\x1b[K\nb\x1b[K\nc\x1b[K\n\x1b[J",
		4: "\x1b[Ha\x1b[K\nb\x1b[K\nc\x1b[K\n\x1b[J",
		3: "\x1b[Ha\x1b[K\n... and 2 more lines\x1b[K\n\x1b[J",
		1: "\x1b[H... and 3 more lines\x1b[K\n\x1b[J",
	} {
		if got := string(onScreen([]byte("a\nb\nc\n"), rows)); got != want {
			t.Errorf("on %d rows: got %q, want %q", rows, got, want)
		}
	}
}

func TestADrainIsWaitedForWithWhatIsLeft(t *testing.T) {
	socket := filepath.Join(shortDir(t), "admin.sock")
	var asked atomic.Int32
	var gone atomic.Bool
	server, err := admin.New(admin.Config{
		Socket: socket, Gatherer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
		Order:  func(context.Context, lb.Order) error { return nil },
		Health: func() []string { return nil }, Ready: func() []string { return nil },
		Status: func() admin.Status {
			web := admin.Backend{Name: "web1", State: "draining", FlowRecords: 12, HeldBy: []string{"lb1", "lb2"}}
			dns := admin.Backend{Name: "web1", State: "draining", SafeToStop: true}
			switch n := asked.Add(1); {
			case gone.Load():
				web.State, dns.State = "up", "up"
			case n > 4:
				web.FlowRecords, web.HeldBy, web.SafeToStop = 0, nil, true
			case n > 2:
				web.FlowRecords, web.HeldBy = 1, []string{"lb2"}
			}
			return admin.Status{Services: []admin.Service{{Name: "web", Backends: []admin.Backend{web}}, {Name: "dns", Backends: []admin.Backend{dns}}}}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	defer func() { cancel(); <-done }()

	client := admin.NewClient(socket)
	var out bytes.Buffer
	want := "backend web/web1: 12 flows left, held by lb1, lb2\nbackend web/web1: 1 flow left, held by lb2\nbackend web1: no flows left: safe to stop\n"
	if err := drained(t.Context(), &out, client, "web1", time.Millisecond); err != nil || out.String() != want {
		t.Errorf("got %v,\n%swant\n%s", err, &out, want)
	}
	out.Reset()
	if err := drained(t.Context(), &out, client, "dns/web1", time.Millisecond); err != nil || out.String() != "backend dns/web1: no flows left: safe to stop\n" {
		t.Errorf("of one service: got %v, %s", err, &out)
	}
	stdout, stderr, code := call(t, "drain", "backend", "web1", "--wait", "--socket", socket)
	if code != exitDone || !strings.HasPrefix(stdout, "backend web1 drains on every member") || !strings.HasSuffix(stdout, "safe to stop\n") {
		t.Errorf("by the command: got code %d, %s%s", code, stdout, stderr)
	}
	gone.Store(true)
	if err := drained(t.Context(), &out, client, "web1", time.Millisecond); err == nil || !strings.Contains(err.Error(), "no longer drains") {
		t.Errorf("undone meanwhile: got %v, want that", err)
	}
	over, end := context.WithCancel(t.Context())
	end()
	if err := drained(over, &out, client, "web1", time.Millisecond); err == nil || !strings.Contains(err.Error(), "drains on") {
		t.Errorf("interrupted: got %v, want that the order stays", err)
	}
}
