package bfd

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/internal/netns"
)

// process is a Server as its own process would run it.
type process struct {
	socket string
	done   chan error
	cancel context.CancelFunc
}

func runServer(t *testing.T, ns *netns.NS, linger time.Duration) *process {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "hptest-bfd-") // a socket's path is short
	must(t, err)
	p := &process{socket: filepath.Join(dir, "bfd.sock"), done: make(chan error, 1)}
	p.start(t, ns, linger)
	t.Cleanup(func() {
		p.cancel()
		if err := p.wait(); err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	return p
}

func (p *process) start(t *testing.T, ns *netns.NS, linger time.Duration) {
	t.Helper()
	s, err := NewServer(p.socket, linger, slog.New(slog.NewTextHandler(t.Output(), nil)))
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	go func() { p.done <- ns.Do(func() error { return s.Run(ctx) }) }()
}

func (p *process) wait() error {
	select {
	case err := <-p.done:
		p.done <- err
		return err
	case <-time.After(5 * time.Second):
		return errors.New("the server has not ended")
	}
}

// connect runs a client; leave ends it as a restart does, quit as a stop does.
func connect(t *testing.T, socket string, spawn func() error, peers ...Peer) (c *Client, leave, quit func()) {
	t.Helper()
	if spawn == nil {
		spawn = func() error { return errors.New("there is nothing to start") }
	}
	c = NewClient(socket, spawn, slog.New(slog.NewTextHandler(t.Output(), nil)))
	must(t, c.SetPeers(peers))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	quit = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		done <- nil
	}
	t.Cleanup(quit)
	leave = quit
	return c, leave, func() { c.End(); leave() }
}

func waitUp(t *testing.T, c *Client) Status {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		list, err := c.Statuses()
		if err == nil && len(list) == 1 && list[0].State == Up {
			return list[0]
		}
		if time.Now().After(deadline) {
			t.Fatalf("not up: %+v, %v", list, err)
		}
	}
}

func TestSessionsOutliveTheDaemonThatAskedForThem(t *testing.T) {
	a, b := hosts(t)
	sb, _ := speak(t, b, peerAt(a4, 50*ms))
	p := runServer(t, a, time.Minute)

	first, leave, _ := connect(t, p.socket, nil, peerAt(b4, 50*ms))
	before := waitUp(t, first)
	leave()
	time.Sleep(500 * ms) // nobody is there

	second, _, quit := connect(t, p.socket, nil, peerAt(b4, 50*ms))
	after := waitUp(t, second)
	if after.Ups != 1 || !after.Since.Equal(before.Since) || sb.Statuses()[0].Ups != 1 {
		t.Errorf("got %+v, want the session of before: %+v", after, before)
	}
	quit()
	if err := p.wait(); err != nil {
		t.Errorf("after a planned end: %v", err)
	}
	wait(t, sb, Down, 5*time.Second)
	if st := sb.Statuses()[0]; st.Remote != AdminDown {
		t.Errorf("got %+v, want the end told of", st)
	}
}

func TestADaemonThatDoesNotComeBackIsNotWaitedForForEver(t *testing.T) {
	a, b := hosts(t)
	sb, _ := speak(t, b, peerAt(a4, 50*ms))
	p := runServer(t, a, 300*ms)
	c, leave, _ := connect(t, p.socket, nil, peerAt(b4, 50*ms))
	waitUp(t, c)
	leave()
	if err := p.wait(); err != nil {
		t.Error(err)
	}
	wait(t, sb, Down, 5*time.Second)
	if st := sb.Statuses()[0]; st.Remote != AdminDown {
		t.Errorf("got %+v, want the end told of", st)
	}
}

func TestAClientStartsTheProcessWhereThereIsNone(t *testing.T) {
	a, b := hosts(t)
	speak(t, b, peerAt(a4, 50*ms))
	p := runServer(t, a, time.Minute)
	p.cancel()
	must(t, p.wait())
	<-p.done

	starts := 0
	c, _, _ := connect(t, p.socket, func() error { starts++; p.start(t, a, time.Minute); return nil }, peerAt(b4, 50*ms))
	waitUp(t, c)
	p.cancel() // it dies
	must(t, p.wait())
	<-p.done
	time.Sleep(100 * ms)
	if _, err := c.Statuses(); err == nil {
		t.Error("a lost process is no error")
	}
	waitUp(t, c)
	if starts != 2 {
		t.Errorf("started %d times, want 2", starts)
	}
}

func TestTheDaemonThatTookOverIsTheOneThatCounts(t *testing.T) {
	a, b := hosts(t)
	speak(t, b, peerAt(a4, 50*ms))
	p := runServer(t, a, time.Minute)
	first, _, _ := connect(t, p.socket, nil, peerAt(b4, 50*ms))
	waitUp(t, first)
	conn, err := net.Dial("unix", p.socket)
	must(t, err)
	defer conn.Close()
	lines := bufio.NewScanner(conn)
	if !lines.Scan() || !strings.Contains(lines.Text(), `"Protocol":1`) {
		t.Errorf("the newcomer hears %q", lines.Text())
	}
}

func TestAProcessOfAnotherVersionIsEndedAndStartedAnew(t *testing.T) {
	a, b := hosts(t)
	speak(t, b, peerAt(a4, 50*ms))
	dir, err := os.MkdirTemp("/tmp", "hptest-bfd-")
	must(t, err)
	defer os.RemoveAll(dir)
	p := &process{socket: filepath.Join(dir, "bfd.sock"), done: make(chan error, 1)}
	old, err := net.Listen("unix", p.socket)
	must(t, err)
	told := make(chan string, 1)
	go func() {
		conn, err := old.Accept()
		if err != nil {
			return
		}
		defer old.Close()
		defer conn.Close()
		_, _ = conn.Write([]byte(`{"Protocol":0}` + "\n"))
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			if strings.Contains(lines.Text(), `"Bye":true`) {
				told <- lines.Text()
				return
			}
		}
	}()
	c, _, _ := connect(t, p.socket, func() error { p.start(t, a, time.Minute); return nil }, peerAt(b4, 50*ms))
	waitUp(t, c)
	defer func() { p.cancel(); <-p.done }()
	select {
	case <-told:
	default:
		t.Error("the old process was not told to end")
	}
}

func TestTheSocketIsItsOwnersAlone(t *testing.T) {
	a, _ := hosts(t)
	p := runServer(t, a, time.Minute)
	info, err := os.Stat(p.socket)
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("got mode %v, want 0600: keys go through it", info.Mode().Perm())
	}
	if _, err := NewServer(p.socket, time.Minute, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "listens there already") {
		t.Errorf("a second process: got %v", err)
	}
}
