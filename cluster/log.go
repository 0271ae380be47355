package cluster

import (
	"log/slog"
	"strings"
	"sync"
	"time"
)

// notices lets one message of a kind through in a minute. memberlist reports a
// stranger at the port with every packet.
type notices struct {
	mu   sync.Mutex
	last map[string]time.Time
}

func (n *notices) allow(kind string, now time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if last, ok := n.last[kind]; ok && now.Sub(last) < time.Minute {
		return false
	}
	if n.last == nil {
		n.last = make(map[string]time.Time)
	}
	n.last[kind] = now
	return true
}

// symptoms are memberlist's lines that tell an operator something, by a part
// that identifies them. The rest is for debugging.
var symptoms = []struct {
	part    string
	refused refusal // empty: nothing was
	message string
	remedy  string
}{
	{"no installed keys could decrypt", refusedKey, wrongKey, wrongKeyRemedy},
	{"encryption is configured but remote state is not encrypted", refusedKey, wrongKey, wrongKeyRemedy},
	{"unacceptable label", refusedLabel, "message of another cluster refused",
		"give all nodes the same cluster name, or take the address out of the list of one of the two clusters"},
	{"handler queue full", refusedOverload, "more messages than this node can take", "look for a busy CPU on this node"},
	{"Too many pending push/pull", refusedOverload, "more messages than this node can take", "look for a busy CPU on this node"},
	{"but UDP probes failed", "", "member answers over TCP but not over UDP", "let UDP to the gossip port through all firewalls"},
}

const (
	wrongKey       = "message refused: not encrypted with a key of this cluster"
	wrongKeyRemedy = "give all nodes the same key file; while keys change, every node must hold both"
)

// libraryLog takes memberlist's log: all of it for debugging, and what an
// operator has to know as a warning. memberlist calls it under its locks.
type libraryLog struct {
	log     *slog.Logger
	notices *notices
	refuse  func(refusal)
}

func (l libraryLog) Write(b []byte) (int, error) {
	line := strings.TrimSpace(string(b))
	l.log.Debug("memberlist", "line", line)
	for _, s := range symptoms {
		if !strings.Contains(line, s.part) {
			continue
		}
		if s.refused != "" {
			l.refuse(s.refused)
		}
		if l.notices.allow(s.message, time.Now()) {
			_, from, _ := strings.Cut(line, "from=")
			l.log.Warn(s.message, "from", from, "detail", line, "remedy", s.remedy)
		}
		break
	}
	return len(b), nil
}
