package main

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const library = "panic: runtime error\n\ngoroutine 7 [running]:\ngithub.com/osrg/gobgp/v3/pkg/server.(*fsmHandler).handlingError(0x0)\n"

func TestAPeerWhoseSessionsEndInCrashesIsPutOff(t *testing.T) {
	bad, good := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	now := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	var c crashRecord
	for _, step := range []struct {
		name  string
		after time.Duration
		last  netip.Addr
		said  string
		want  time.Duration // that bad is put off for
	}{
		{"a first crash may be bad luck", 0, bad, library, 0},
		{"a second one is none", time.Second, bad, library, 30 * time.Second},
		{"another's crash changes nothing", time.Second, good, library, 30 * time.Second},
		{"and neither does one that is not the library's", time.Second, bad, "panic: of our own", 30 * time.Second},
		{"or an end in good order", time.Second, bad, "", 30 * time.Second},
		{"or one before any session was up", time.Second, netip.Addr{}, library, 30 * time.Second},
		{"a third one takes longer", time.Minute, bad, library, time.Minute},
		{"a fourth one takes longer still", time.Minute, bad, library, 2 * time.Minute},
		{"a clock that is set back forgets nothing", -24 * time.Hour, bad, "", 2 * time.Minute},
		{"an hour later all is forgotten", time.Hour, bad, "", 0},
	} {
		now = now.Add(step.after)
		c.Last = step.last
		held := c.judge([]byte(step.said), "crash.log.1", now)
		if got := held[bad]; got.For != step.want || (got.Reason != "") != (step.want > 0) {
			t.Errorf("%s: got %+v, want it put off for %v", step.name, got, step.want)
		}
		if got, held := held[good]; held {
			t.Errorf("%s: the other peer is put off, too: %+v", step.name, got)
		}
	}
}

func TestWhatACrashLeavesIsFoundByTheNextProcess(t *testing.T) {
	dir := t.TempDir()
	peer := netip.MustParseAddr("192.0.2.1")
	var log strings.Builder
	for i := range 3 {
		c, held, err := openCrashes(dir+"/lb1-", slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		if got := held[peer]; (got.For > 0) != (i == 2) || i == 2 && !strings.Contains(got.Reason, filepath.Join(dir, "lb1-crash.log.1")) {
			t.Errorf("process %d: got %+v", i, got)
		}
		c.up(peer)
		if err := os.WriteFile(filepath.Join(dir, "lb1-crash.log"), []byte(library), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(log.String(), "the process before crashed"); n != 2 {
		t.Errorf("log: got %d crashes, want 2:\n%s", n, log.String())
	}
	if err := os.WriteFile(filepath.Join(dir, "lb1-bgp-crashes.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, held, err := openCrashes(dir+"/lb1-", slog.New(slog.DiscardHandler)); err != nil || len(held) > 0 {
		t.Errorf("a file that was cut short: got %v, %v, want nothing held", held, err)
	}
}
