package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// systemd is what started this process, if it wants to hear of it (sd_notify(3)). Nil:
// nobody does.
type systemd struct {
	conn net.Conn
	// watchdog is how long it waits for a sign of life before it kills us; 0: for ever.
	watchdog time.Duration
}

// newSystemd goes by the environment, and takes from it what is not for the processes
// that we start.
func newSystemd() (*systemd, error) {
	path := os.Getenv("NOTIFY_SOCKET")
	usec, pid := os.Getenv("WATCHDOG_USEC"), os.Getenv("WATCHDOG_PID")
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		if err := os.Unsetenv(name); err != nil {
			return nil, err
		}
	}
	if path == "" {
		return nil, nil
	}
	conn, err := net.Dial("unixgram", path) // net takes a leading @ for an abstract one, too
	if err != nil {
		return nil, fmt.Errorf("reach the service manager by NOTIFY_SOCKET: %w", err)
	}
	s := &systemd{conn: conn}
	if n, err := strconv.ParseInt(usec, 10, 64); err == nil && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		s.watchdog = time.Duration(n) * time.Microsecond
	}
	return s, nil
}

// tell sends assignments, one a line. One that does not arrive has nobody who could do
// anything about it.
func (s *systemd) tell(state string) {
	if s != nil {
		_, _ = s.conn.Write([]byte(state))
	}
}

func (s *systemd) ready()    { s.tell("READY=1") }
func (s *systemd) stopping() { s.tell("STOPPING=1") }

// reloading is to be followed by ready.
func (s *systemd) reloading() {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return
	}
	s.tell(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000))
}

// feed gives signs of life while alive says so, until ctx ends. It is the control loop
// that has to be alive: a node that decides nothing any more is worse than one that is
// started anew.
func (s *systemd) feed(ctx context.Context, alive func(within time.Duration) bool) {
	if s == nil || s.watchdog == 0 {
		return
	}
	ticker := time.NewTicker(s.watchdog / 4)
	defer ticker.Stop()
	for {
		if alive(s.watchdog / 2) {
			s.tell("WATCHDOG=1")
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
