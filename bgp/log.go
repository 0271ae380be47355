package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"syscall"

	gobgplog "github.com/osrg/gobgp/v3/pkg/log"
	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// logger is GoBGP's log: its chatter at Debug, its warnings as they are, and
// of what it calls fatal an error that ends Run. It also hears there why
// sessions end, which GoBGP says nowhere else.
type logger struct {
	log      *slog.Logger
	sessions *sessions
	// fatal has room for the first error; the later ones are its consequences.
	fatal chan<- error
}

func (l *logger) Debug(msg string, f gobgplog.Fields) { l.write(slog.LevelDebug, msg, f) }
func (l *logger) Info(msg string, f gobgplog.Fields)  { l.write(slog.LevelDebug, msg, f) }
func (l *logger) Warn(msg string, f gobgplog.Fields)  { l.write(slog.LevelWarn, msg, f) }
func (l *logger) Error(msg string, f gobgplog.Fields) { l.write(slog.LevelError, msg, f) }

// Fatal returns, other than GoBGP has it: so Run can still withdraw and stop.
func (l *logger) Fatal(msg string, f gobgplog.Fields) { l.fail(msg, f) }
func (l *logger) Panic(msg string, f gobgplog.Fields) { l.fail(msg, f) }

// GetLevel asks for everything: failed connections are told at Debug only.
func (l *logger) GetLevel() gobgplog.LogLevel { return gobgplog.DebugLevel }
func (l *logger) SetLevel(gobgplog.LogLevel)  {}

func (l *logger) write(level slog.Level, msg string, f gobgplog.Fields) {
	if msg == "received update" {
		l.sessions.receive(fmt.Sprint(f["Key"]), announcedIn(f))
	} else if peer, err := netip.ParseAddr(fmt.Sprint(f["Key"])); err == nil {
		if r, ok := explain(msg, f); ok {
			l.sessions.explain(peer, r)
			level = slog.LevelDebug // the sessions tell of it
		}
	}
	if l.log.Enabled(context.Background(), level) {
		l.log.LogAttrs(context.Background(), level, msg, attrs(f)...)
	}
}

// announcedIn counts the prefixes in an UPDATE.
func announcedIn(f gobgplog.Fields) int {
	nlri, _ := f["nlri"].([]*bgp.IPAddrPrefix)
	n := len(nlri)
	attributes, _ := f["attributes"].([]bgp.PathAttributeInterface)
	for _, a := range attributes {
		if reach, ok := a.(*bgp.PathAttributeMpReachNLRI); ok {
			n += len(reach.Value)
		}
	}
	return n
}

func (l *logger) fail(msg string, f gobgplog.Fields) {
	select {
	case l.fatal <- fmt.Errorf("gobgp: %s: %v", msg, map[string]any(f)):
	default:
	}
}

func attrs(f gobgplog.Fields) []slog.Attr {
	out := make([]slog.Attr, 0, len(f))
	for key, value := range f {
		switch key {
		case "Topic":
			continue
		case "Key":
			key = "peer"
		case "Error", "Err":
			key = "err"
		}
		// Values are GoBGP's own, some without JSON that is worth reading.
		out = append(out, slog.String(strings.ToLower(key), fmt.Sprint(value)))
	}
	return out
}

// reason is one thing that the log says of a session.
type reason struct {
	words   string
	general bool // says of any cause that there is one
	begins  bool // not a reason: a new attempt begins
	up      bool // nor this: the session is up, and nothing has been read in it yet
}

// explain puts a log line into an operator's words. A line that is no reason,
// or that another release of GoBGP words differently, gives none.
func explain(msg string, f gobgplog.Fields) (reason, bool) {
	switch msg {
	case "failed to connect":
		err, _ := f["Error"].(error)
		return reason{words: connectFailed(err)}, true
	case "received notification":
		return reason{words: "the peer closed the session: " + notification(f)}, true
	case "sent notification":
		if e, ok := f["Data"].(*bgp.MessageError); ok {
			return reason{words: "the peer was refused: " + e.Message}, true
		}
		if f["Code"] == uint8(bgp.BGP_ERROR_HOLD_TIMER_EXPIRED) {
			return reason{words: "nothing heard from the peer for the hold time"}, true
		}
		return reason{words: "the session was closed by this node: " + notification(f)}, true
	case "state changed":
		return explainChange(fmt.Sprint(f["old"]), fmt.Sprint(f["new"]), fmt.Sprint(f["reason"]))
	}
	return reason{}, false
}

func explainChange(from, to, why string) (reason, bool) {
	settingUp := from == bgp.BGP_FSM_OPENSENT.String() || from == bgp.BGP_FSM_OPENCONFIRM.String()
	switch {
	case to == bgp.BGP_FSM_OPENSENT.String():
		return reason{begins: true}, true
	case to == bgp.BGP_FSM_ESTABLISHED.String():
		return reason{up: true}, true
	case to != bgp.BGP_FSM_IDLE.String():
		return reason{}, false
	case settingUp && why == "invalid-msg":
		// A NOTIFICATION, most likely; GoBGP does not keep what it says.
		return reason{general: true, words: "the peer refused the session while it was being set up: its log says why; often it expects another AS number"}, true
	case settingUp && why == "read-failed":
		return reason{general: true, words: "the peer closed the connection while the session was being set up: does it know this node's address?"}, true
	case why == "read-failed" || why == "write-failed":
		return reason{general: true, words: "the connection to the peer broke"}, true
	case why == "idle-hold-timer-expired" || from == to:
		return reason{}, false
	}
	return reason{general: true, words: why}, true
}

func connectFailed(err error) string {
	var errno syscall.Errno
	var timeout net.Error
	switch {
	case errors.As(err, &errno):
		return "cannot connect: " + errno.Error()
	case errors.As(err, &timeout) && timeout.Timeout():
		// A wrong password and TTL security on one side are silent, too.
		return "cannot connect: no answer: is the peer up, and do password and TTL security match?"
	}
	return fmt.Sprint("cannot connect: ", err)
}

// notification names a NOTIFICATION's code and, with it, what the peer's
// operator says (RFC 9003).
func notification(f gobgplog.Fields) string {
	code, _ := f["Code"].(uint8)
	subcode, _ := f["Subcode"].(uint8)
	words := fmt.Sprintf("code %d, subcode %d", code, subcode)
	if name, ok := notifications[[2]uint8{code, subcode}]; ok {
		words = name
	} else if name, ok := notifications[[2]uint8{code, 0}]; ok {
		words = fmt.Sprintf("%s, subcode %d", name, subcode)
	}
	if says, _ := f["Communicated-Reason"].(string); says != "" {
		words += fmt.Sprintf(" %q", says)
	}
	return words
}

// notifications are IANA's "BGP Error (Notification) Codes" and subcodes that
// tell an operator something.
var notifications = map[[2]uint8]string{
	{1, 0}:  "message header error",
	{2, 0}:  "error in the OPEN message",
	{2, 1}:  "unsupported BGP version",
	{2, 2}:  "it expects another AS number",
	{2, 3}:  "bad BGP identifier: is the router id unique?",
	{2, 6}:  "unacceptable hold time",
	{2, 7}:  "unsupported capability",
	{3, 0}:  "error in an UPDATE message",
	{4, 0}:  "hold timer expired",
	{5, 0}:  "state machine error",
	{6, 0}:  "cease",
	{6, 1}:  "maximum number of prefixes reached",
	{6, 2}:  "administrative shutdown",
	{6, 3}:  "peer deconfigured",
	{6, 4}:  "administrative reset",
	{6, 5}:  "connection rejected",
	{6, 6}:  "other configuration change",
	{6, 7}:  "connection collision",
	{6, 8}:  "out of resources",
	{6, 9}:  "hard reset", // RFC 8538
	{6, 10}: "BFD down",   // RFC 9384
}
