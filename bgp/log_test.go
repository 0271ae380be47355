package bgp

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	gobgplog "github.com/osrg/gobgp/v3/pkg/log"
	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

func TestTheLogTellsWhyASessionIsNotUp(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	silent := &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}
	wrongAS := bgp.NewMessageError(bgp.BGP_ERROR_OPEN_MESSAGE_ERROR, bgp.BGP_ERROR_SUB_BAD_PEER_AS, nil, "as number mismatch expected 64500, received 64501")
	change := func(from, to, why string) line {
		return line{"state changed", gobgplog.Fields{"old": from, "new": to, "reason": why}}
	}
	open := change("BGP_FSM_ACTIVE", "BGP_FSM_OPENSENT", "new-connection")
	failed := func(err error) line { return line{"failed to connect", gobgplog.Fields{"Error": err}} }
	notified := func(code, subcode uint8, says string) line {
		f := gobgplog.Fields{"Code": code, "Subcode": subcode, "Data": []byte{}}
		if says != "" {
			f["Communicated-Reason"] = says
		}
		return line{"received notification", f}
	}

	for _, tt := range []struct {
		name  string
		lines []line
		want  string
	}{
		{"nobody listens", []line{failed(refused)},
			"cannot connect: connection refused"},
		{"nobody answers", []line{failed(silent)},
			"cannot connect: no answer: is the peer up, and do password and TTL security match?"},
		{"connecting fails otherwise", []line{failed(errors.New("no such thing"))},
			"cannot connect: no such thing"},
		{"the peer has another AS number", []line{open, {"sent notification", gobgplog.Fields{"Data": wrongAS}}, change("BGP_FSM_OPENSENT", "BGP_FSM_IDLE", "invalid-msg")},
			"the peer was refused: as number mismatch expected 64500, received 64501"},
		{"the peer refuses the OPEN", []line{failed(refused), open, change("BGP_FSM_OPENSENT", "BGP_FSM_IDLE", "invalid-msg")},
			"the peer refused the session while it was being set up: its log says why; often it expects another AS number"},
		{"the peer hangs up on the OPEN", []line{open, change("BGP_FSM_OPENCONFIRM", "BGP_FSM_IDLE", "read-failed")},
			"the peer closed the connection while the session was being set up: does it know this node's address?"},
		{"the peer's operator ends the session", []line{notified(6, 2, "upgrade, back at 5"), change("BGP_FSM_ESTABLISHED", "BGP_FSM_IDLE", "notification-received …")},
			`the peer closed the session: administrative shutdown "upgrade, back at 5"`},
		{"a subcode without a name", []line{notified(6, 200, "")},
			"the peer closed the session: cease, subcode 200"},
		{"a code without a name", []line{notified(77, 1, "")},
			"the peer closed the session: code 77, subcode 1"},
		{"the hold timer", []line{{"sent notification", gobgplog.Fields{"Code": uint8(4), "Subcode": uint8(0)}}, change("BGP_FSM_ESTABLISHED", "BGP_FSM_IDLE", "hold-timer-expired")},
			"nothing heard from the peer for the hold time"},
		{"the connection breaks", []line{change("BGP_FSM_ESTABLISHED", "BGP_FSM_IDLE", "read-failed")},
			"the connection to the peer broke"},
		{"waiting for the next attempt", []line{notified(6, 3, ""), change("BGP_FSM_ESTABLISHED", "BGP_FSM_IDLE", "x"), change("BGP_FSM_IDLE", "BGP_FSM_ACTIVE", "idle-hold-timer-expired")},
			"the peer closed the session: peer deconfigured"},
		{"chatter", []line{{"IdleHoldTimer expired", gobgplog.Fields{"Duration": 5}}}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			peer := netip.MustParseAddr("192.0.2.254")
			s := newSessions(slog.New(slog.DiscardHandler))
			s.add(Peer{Address: peer})
			l := &logger{log: s.log, sessions: s}
			for _, line := range tt.lines {
				line.fields["Topic"], line.fields["Key"] = "Peer", peer.String()
				l.Debug(line.msg, line.fields)
			}
			if got := s.get(peer).reason; got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

type line struct {
	msg    string
	fields gobgplog.Fields
}

func TestFatalBecomesAnErrorAndTheFirstOneCounts(t *testing.T) {
	fatal := make(chan error, 1)
	l := &logger{log: slog.New(slog.DiscardHandler), sessions: newSessions(nil), fatal: fatal}
	l.Panic("code logic bug", gobgplog.Fields{"Key": "192.0.2.254"})
	l.Fatal("later", nil)
	got := (<-fatal).Error()
	if want := "gobgp: code logic bug: map[Key:192.0.2.254]"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestTheLibrarysChatterIsDebugAndItsWarningsAreKept(t *testing.T) {
	var out bytes.Buffer
	l := &logger{log: slog.New(slog.NewTextHandler(&out, nil)), sessions: newSessions(nil)}
	l.Debug("a", nil)
	l.Info("b", nil)
	l.Warn("c", gobgplog.Fields{"Topic": "Peer", "Key": "192.0.2.254", "State": "x", "Err": errors.New("boom")})
	l.Error("d", nil)
	got := out.String()
	for _, want := range []string{"level=WARN msg=c", "peer=192.0.2.254", "state=x", "err=boom", "level=ERROR msg=d"} {
		if !strings.Contains(got, want) {
			t.Errorf("got %q, want %q in it", got, want)
		}
	}
	for _, not := range []string{"msg=a", "msg=b", "Topic"} {
		if strings.Contains(got, not) {
			t.Errorf("got %q, want no %q in it", got, not)
		}
	}
}

func TestSessionsLogWhatAColleagueWouldBeTold(t *testing.T) {
	var out bytes.Buffer
	s := newSessions(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})))
	peer := netip.MustParseAddr("192.0.2.254")
	s.add(Peer{Address: peer})
	s.enter(peer, "active")
	s.enter(peer, "established")
	up := s.get(peer).since
	s.enter(peer, "established")
	s.explain(peer, reason{words: "the cat did it"})
	time.Sleep(time.Millisecond)
	s.enter(peer, "idle")
	down := s.get(peer)
	s.enter(peer, "active")
	if got := s.get(peer); got.since != down.since || !down.since.After(up) || got.reason != "the cat did it" {
		t.Errorf("got %+v, want it down since %v for the cat", got, down.since)
	}
	s.enter(peer, "established")
	if got := s.get(peer); got.reason != "" {
		t.Errorf("reason while up: got %q, want none", got.reason)
	}
	s.remove(peer, "no longer wanted")
	s.enter(peer, "idle") // the event of what remove did comes late

	want := `level=INFO msg="session up" peer=192.0.2.254
level=WARN msg="session down" peer=192.0.2.254 reason="the cat did it"
level=INFO msg="session up" peer=192.0.2.254
level=INFO msg="session closed" peer=192.0.2.254 reason="no longer wanted"
`
	if got := out.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestTheEndOfARemovedPeersSessionIsNotThatOfTheNextOne(t *testing.T) {
	p := peer("198.51.100.254", 64500)
	s := newSessions(slog.New(slog.DiscardHandler))
	s.add(p)
	tell := func(kind api.WatchEventResponse_PeerEvent_Type, state api.PeerState_SessionState) {
		s.event(&api.WatchEventResponse{Event: &api.WatchEventResponse_Peer{Peer: &api.WatchEventResponse_PeerEvent{
			Type: kind, Peer: &api.Peer{State: &api.PeerState{NeighborAddress: p.Address.String(), SessionState: state}},
		}}})
	}
	tell(api.WatchEventResponse_PeerEvent_STATE, api.PeerState_ACTIVE)
	tell(api.WatchEventResponse_PeerEvent_UNKNOWN, api.PeerState_IDLE)
	if got := s.get(p.Address).state; got != "active" {
		t.Errorf("got %s, want active", got)
	}
}
