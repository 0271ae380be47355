package bgp

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestASessionIsPutOffAndTheStatusSaysWhy(t *testing.T) {
	r := startRouters(t)
	cfg := config(r.peers()...)
	const why = "this process crashed each time that the session came up"
	cfg.Held = map[netip.Addr]Hold{r.changed.address: {5 * time.Second, why}, r.inside.address: {time.Hour, why}}
	up := make(chan netip.Addr, 10)
	cfg.Up = func(peer netip.Addr) { up <- peer }
	s := start(t, cfg)
	announce(t, s, "203.0.113.10/32")
	until(t, soon, func() string { return states(s, established, "", "") })
	if p := s.Peers(); p[1].LastError != why || p[1].State != idle || r.changed.up() > 0 {
		t.Errorf("while it is put off: got %+v, want %q", p[1], why)
	}
	until(t, 2*soon, func() string { return states(s, established, established, "") })
	if first, second := <-up, <-up; first != r.plain.address || second != r.changed.address {
		t.Errorf("up: got %v and %v", first, second)
	}

	// A peer that is put off can go like any other, and comes back at once.
	if err := s.SetPeers(context.Background(), r.peers()[:2]); err != nil {
		t.Fatal(err)
	}
	if err := s.SetPeers(context.Background(), r.peers()); err != nil {
		t.Fatal(err)
	}
	until(t, soon, func() string { return states(s, established, established, established) })
	if !strings.Contains(s.journal.String(), `msg="session put off"`) {
		t.Error("the log says nothing")
	}
}

// What ends the wait may have begun when the peer goes, and waits for what removes it.
func TestAPeerCanGoWhileItsWaitEnds(t *testing.T) {
	needNamespace(t)
	p := peer("198.51.100.254", 64500)
	s := start(t, config())
	s.mu.Lock()
	s.take([]Peer{p})
	s.hold(p, Hold{For: time.Millisecond})
	time.Sleep(20 * time.Millisecond)
	err := s.change(context.Background(), nil, NextHops{})
	s.mu.Unlock()
	if err != nil {
		t.Errorf("remove it: %v", err)
	}
	time.Sleep(20 * time.Millisecond)
	if known := s.sessions.get(p.Address); len(s.Peers()) > 0 || !known.since.IsZero() {
		t.Errorf("after it was removed: got %+v, %+v, want nothing of it", s.Peers(), known)
	}
}
