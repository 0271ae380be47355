package cluster

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestTheLibrarysLogIsDebugExceptForWhatAnOperatorCanMend(t *testing.T) {
	for _, tt := range []struct {
		line    string
		refused refusal
		want    string // the warning
	}{
		{"[DEBUG] memberlist: Stream connection from=192.0.2.9:4711", "", ""},
		{"[ERR] memberlist: Failed to send gossip to 192.0.2.9:7946: network is unreachable", "", ""},
		{"[ERR] memberlist: Decrypt packet failed: no installed keys could decrypt the message from=192.0.2.9:4711", refusedKey, wrongKey},
		{"[ERR] memberlist: failed to receive: encryption is configured but remote state is not encrypted from=192.0.2.9:4711", refusedKey, wrongKey},
		{`[ERR] memberlist: discarding packet with unacceptable label "x": from=192.0.2.9:4711`, refusedLabel, "message of another cluster refused"},
		{"[WARN] memberlist: handler queue full, dropping message (8) from=192.0.2.9:4711", refusedOverload, "more messages than this node can take"},
		{"[WARN] memberlist: Was able to connect to lb2 over TCP but UDP probes failed, network may be misconfigured", "", "member answers over TCP but not over UDP"},
	} {
		var out bytes.Buffer
		var refused []refusal
		l := libraryLog{
			log:     slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})),
			notices: &notices{},
			refuse:  func(why refusal) { refused = append(refused, why) },
		}
		for range 3 {
			if _, err := l.Write([]byte(tt.line + "\n")); err != nil {
				t.Error(err)
			}
		}
		if got := strings.Count(out.String(), "level=DEBUG"); got != 3 {
			t.Errorf("%s: got %d lines for debugging, want 3", tt.line, got)
		}
		switch warnings := strings.Count(out.String(), "level=WARN"); {
		case tt.want == "" && warnings != 0:
			t.Errorf("%s: got warnings\n%s", tt.line, &out)
		case tt.want != "" && (warnings != 1 || !strings.Contains(out.String(), tt.want) || !strings.Contains(out.String(), "remedy=")):
			t.Errorf("%s: got\n%swant one warning %q with a remedy", tt.line, &out, tt.want)
		}
		if tt.refused == "" && len(refused) != 0 || tt.refused != "" && (len(refused) != 3 || refused[0] != tt.refused) {
			t.Errorf("%s: got refusals %v, want 3 of %q", tt.line, refused, tt.refused)
		}
	}
}

func TestANoticeIsGivenOnceAMinute(t *testing.T) {
	var n notices
	for _, step := range []struct {
		kind string
		now  time.Time
		want bool
	}{
		{"a", epoch, true},
		{"a", after(59 * time.Second), false},
		{"b", after(59 * time.Second), true},
		{"a", after(time.Minute), true},
	} {
		if got := n.allow(step.kind, step.now); got != step.want {
			t.Errorf("%s after %v: got %v, want %v", step.kind, step.now.Sub(epoch), got, step.want)
		}
	}
}
