package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
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

func TestADrainOfANodeWithoutANameIsOfThisOne(t *testing.T) {
	socket := filepath.Join(shortDir(t), "admin.sock")
	var got lb.Order
	server, err := admin.New(admin.Config{
		Socket: socket, Gatherer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
		Order: func(_ context.Context, o lb.Order) error {
			got = o
			return nil
		},
		Health: func() []string { return nil }, Ready: func() []string { return nil },
		Status: func() admin.Status { return admin.Status{Node: admin.Node{Name: "lb7"}} },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	defer func() { cancel(); <-done }()
	for words, want := range map[string]lb.Action{"drain node": lb.Drain, "drain node --undo": lb.Undo} {
		stdout, stderr, code := call(t, append(strings.Fields(words), "--socket", socket)...)
		if code != exitDone || !strings.HasPrefix(stdout, "node lb7 ") || got.Subject != (lb.Subject{Kind: lb.OfNode, Name: "lb7"}) || got.Action != want {
			t.Errorf("halfproxy %s: got code %d, %s%sand %+v, want an order to %s node lb7", words, code, stdout, stderr, got, want)
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
	of := func(name string) admin.Order { return admin.Order{Kind: "backend", Name: name} }
	var out bytes.Buffer
	want := "backend web/web1: 12 flows left, held by lb1, lb2\nbackend web/web1: 1 flow left, held by lb2\nbackend web1: no flows left: safe to stop\n"
	if err := drained(t.Context(), &out, client, of("web1"), time.Millisecond); err != nil || out.String() != want {
		t.Errorf("got %v,\n%swant\n%s", err, &out, want)
	}
	out.Reset()
	if err := drained(t.Context(), &out, client, of("dns/web1"), time.Millisecond); err != nil || out.String() != "backend dns/web1: no flows left: safe to stop\n" {
		t.Errorf("of one service: got %v, %s", err, &out)
	}
	stdout, stderr, code := call(t, "drain", "backend", "web1", "--wait", "--socket", socket)
	if code != exitDone || !strings.HasPrefix(stdout, "backend web1 drains on every member") || !strings.HasSuffix(stdout, "safe to stop\n") {
		t.Errorf("by the command: got code %d, %s%s", code, stdout, stderr)
	}
	gone.Store(true)
	if err := drained(t.Context(), &out, client, of("web1"), time.Millisecond); err == nil || !strings.Contains(err.Error(), "no longer drains") {
		t.Errorf("undone meanwhile: got %v, want that", err)
	}
	over, end := context.WithCancel(t.Context())
	end()
	if err := drained(over, &out, client, of("web1"), time.Millisecond); err == nil || !strings.Contains(err.Error(), "drains on") {
		t.Errorf("interrupted: got %v, want that the order stays", err)
	}
}

func TestANodeAndAServiceAreWaitedForUntilNothingComes(t *testing.T) {
	web, dns := netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("203.0.113.53/32")
	now := time.Date(2026, 11, 26, 6, 0, 0, 0, time.UTC)
	look := func(ofWeb, ofDNS uint64, routes ...netip.Prefix) admin.Status {
		now = now.Add(time.Second)
		st := admin.Status{
			Time: now,
			Services: []admin.Service{
				{Name: "web", VIPs: []lb.VIP{{Prefix: web}}, Backends: []admin.Backend{{Packets: ofWeb}, {Packets: ofWeb}}},
				{Name: "dns", VIPs: []lb.VIP{{Prefix: dns}}, Backends: []admin.Backend{{Packets: ofDNS}}},
			},
			Orders: []admin.Order{{Kind: "node", Name: "lb1", Action: "drain"}, {Kind: "service", Name: "web", Action: "drain"}, {Kind: "service", Name: "dns", Action: "undo"}},
		}
		for range 2 {
			var peer admin.Peer
			for _, r := range routes {
				peer.Routes = append(peer.Routes, admin.Route{Prefix: r, GoingAway: true})
			}
			st.BGP = append(st.BGP, peer)
		}
		return st
	}
	for _, tt := range []struct {
		kind, name string
		want       []string
	}{
		{"node", "lb1", []string{"node lb1: 4 routes left, 0 packets/s", "node lb1: 2 routes left, 30 packets/s", "node lb1: 0 routes left, 10 packets/s", ""}},
		{"service", "web", []string{"service web: 2 routes left, 0 packets/s", "service web: 0 routes left, 20 packets/s", "", ""}},
	} {
		still := trafficLeft(admin.Order{Kind: tt.kind, Name: tt.name})
		for i, st := range []admin.Status{look(100, 100, web, dns), look(110, 110, dns), look(110, 120), look(110, 120)} {
			if left, drains := still(st); left != tt.want[i] || !drains {
				t.Errorf("%s, look %d: got %q, %v, want %q", tt.kind, i, left, drains, tt.want[i])
			}
		}
	}
	if left, drains := trafficLeft(admin.Order{Kind: "service", Name: "dns"})(look(0, 0, dns)); left != "" || drains {
		t.Errorf("an order that was undone: got %q, %v, want that it does not drain", left, drains)
	}
}
