package main

import (
	"context"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// manager is a service manager's side of NOTIFY_SOCKET.
func manager(t *testing.T, watchdog string) (*systemd, func() string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", watchdog)
	s, err := newSystemd()
	if err != nil {
		t.Fatal(err)
	}
	return s, func() string {
		b := make([]byte, 1000)
		if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
}

func TestAServiceManagerHearsOfEveryStep(t *testing.T) {
	s, heard := manager(t, "")
	s.ready()
	if got := heard(); got != "READY=1" {
		t.Errorf("got %q, want READY=1", got)
	}
	s.reloading()
	got, usec, _ := strings.Cut(heard(), "\nMONOTONIC_USEC=")
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	if at, err := strconv.ParseInt(usec, 10, 64); err != nil || got != "RELOADING=1" || now.Nano()/1000-at > 1e6 || at > now.Nano()/1000 {
		t.Errorf("got %q at %q (%v), want RELOADING=1 now, at %d", got, usec, err, now.Nano()/1000)
	}
	s.stopping()
	if got := heard(); got != "STOPPING=1" {
		t.Errorf("got %q, want STOPPING=1", got)
	}
	if again, err := newSystemd(); again != nil || err != nil {
		t.Errorf("what this process starts would speak to the manager, too: %v, %v", again, err)
	}
	again := (*systemd)(nil)
	again.ready() // nobody wants to hear, and nothing happens
	again.feed(t.Context(), func(time.Duration) bool { t.Error("asked for a sign of life"); return false })
}

func TestTheWatchdogIsFedWhileTheControlLoopLives(t *testing.T) {
	s, heard := manager(t, "200000")
	ctx, cancel := context.WithCancel(t.Context())
	asked := make(chan time.Duration)
	alive := make(chan bool)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.feed(ctx, func(within time.Duration) bool {
			asked <- within
			return <-alive
		})
	}()
	for range 2 {
		if within := <-asked; within != 100*time.Millisecond {
			t.Errorf("asked whether it lived within %v, want half of the watchdog's time", within)
		}
		alive <- true
		if got := heard(); got != "WATCHDOG=1" {
			t.Errorf("got %q, want WATCHDOG=1", got)
		}
	}
	<-asked
	alive <- false
	<-asked
	cancel()
	alive <- false
	<-ended
	s.stopping() // the next that is heard: there was no sign of life
	if got := heard(); got != "STOPPING=1" {
		t.Errorf("after the loop died: got %q, want nothing but STOPPING=1", got)
	}
}
