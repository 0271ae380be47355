package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/halfproxy/halfproxy/admin"
	"github.com/halfproxy/halfproxy/events"
)

// serveEvents has a node of which there is nothing but its admin socket.
func serveEvents(t *testing.T, socket string) (log *slog.Logger, stop func()) {
	t.Helper()
	ring := events.NewRing(300)
	server, err := admin.New(admin.Config{
		Socket: socket, Events: ring.After, Traffic: func() (admin.Traffic, error) { return admin.Traffic{}, nil },
		Gatherer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	return slog.New(ring.Handler(slog.DiscardHandler)).With("part", "control"), stop
}

func TestEventsShowsTheLastOnes(t *testing.T) {
	socket := filepath.Join(shortDir(t), "admin.sock")
	log, stop := serveEvents(t, socket)
	defer stop()
	for i := range 150 {
		log.Info("event", "i", i)
	}
	for _, tt := range []struct {
		args  string
		lines int
	}{
		{"", 100}, {"--last 7", 7}, {"--last 0", 150}, {"--since 1h", 150}, {"--since 1h --last 3", 3}, {"--since 0s", 0},
	} {
		stdout, stderr, code := call(t, append([]string{"events", "--socket", socket}, strings.Fields(tt.args)...)...)
		if n := strings.Count(stdout, "\n"); code != exitDone || n != tt.lines || n > 0 && !strings.HasSuffix(stdout, "info   control     event i=149\n") {
			t.Errorf("events %s: got code %d, %d lines, want %d of the last:\n%s%s", tt.args, code, n, tt.lines, stdout, stderr)
		}
	}
}

func TestEventsAreFollowedOverARestart(t *testing.T) {
	socket := filepath.Join(shortDir(t), "admin.sock")
	log, stop := serveEvents(t, socket)
	log.Info("before")

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	read, write := io.Pipe()
	var stderr bytes.Buffer
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, []string{"events", "--follow", "--json", "--socket", socket}, write, &stderr)
		write.Close()
	}()
	lines := bufio.NewScanner(read)
	next := func(want string) {
		t.Helper()
		var e events.Event
		if !lines.Scan() {
			t.Fatalf("no more lines, want %s; %s", want, &stderr)
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil || e.Message != want {
			t.Fatalf("got %s, %v, want %s", lines.Text(), err, want)
		}
	}
	next("before")
	log.Info("live")
	next("live")
	stop()
	time.Sleep(5 * time.Millisecond) // no process starts faster, and events are numbered by that
	log, stop = serveEvents(t, socket)
	defer stop()
	log.Info("after the restart")
	next("after the restart")
	cancel()
	if lines.Scan() {
		t.Errorf("after the end: got %s", lines.Text())
	}
	if got := <-code; got != exitDone || strings.Count(stderr.String(), "waiting for it") > 1 {
		t.Errorf("got code %d, %q, want 0 and one line at most", got, &stderr)
	}
}

// shortDir is short, since a socket's path has 107 bytes at most.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hptest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
