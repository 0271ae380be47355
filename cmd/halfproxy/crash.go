package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/halfproxy/halfproxy/bgp"
)

const (
	// crashMemory is how long a crash counts against a peer.
	crashMemory = time.Hour
	// firstHold is how long there is no session with a peer after its second crash; it
	// doubles with each more, up to longestHold.
	firstHold   = 30 * time.Second
	longestHold = 30 * time.Minute
)

// crashes remembers, from one process to the next, whose session came up last before
// the BGP library took the process down. Nobody can catch that: a peer's message is read
// in a goroutine of the library. It costs no packet, as the program forwards on and
// routers keep their routes; but over and over it would keep the node from its work.
type crashes struct {
	log  *slog.Logger
	file string

	mu sync.Mutex
	crashRecord
}

// crashRecord is the file.
type crashRecord struct {
	Last    netip.Addr `json:"last"` // whose session came up last
	Crashes []crash    `json:"crashes"`
}

type crash struct {
	At   time.Time  `json:"at"`
	Peer netip.Addr `json:"peer"`
}

// openCrashes looks at what the process before left, gives who is to wait, and has the
// last words of this process kept. Files have names that begin with base.
func openCrashes(base string, log *slog.Logger) (*crashes, map[netip.Addr]bgp.Hold, error) {
	c := &crashes{log: log, file: base + "bgp-crashes.json"}
	words := base + "crash.log"
	if data, err := os.ReadFile(c.file); err == nil {
		if err := json.Unmarshal(data, &c.crashRecord); err != nil {
			c.crashRecord = crashRecord{} // cut short: nothing is known
		}
	}
	said, err := os.ReadFile(words)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("read the last words of the process before: %w", err)
	}
	kept := words + ".1"
	if len(said) > 0 {
		if err := os.Rename(words, kept); err != nil {
			return nil, nil, fmt.Errorf("keep the last words of the process before: %w", err)
		}
		log.Error("the process before crashed", "last_words", kept)
	}
	held := c.judge(said, kept, time.Now())

	out, err := os.OpenFile(words, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("have a place for last words: %w", err)
	}
	defer out.Close() // the runtime has its own copy
	if err := debug.SetCrashOutput(out, debug.CrashOptions{}); err != nil {
		return nil, nil, fmt.Errorf("have last words kept: %w", err)
	}
	return c, held, c.write()
}

// judge notes the crash that said tells of, if the BGP library is in it, and gives for
// how long there is to be no session with whom.
func (c *crashRecord) judge(said []byte, kept string, now time.Time) map[netip.Addr]bgp.Hold {
	if c.Last.IsValid() && bytes.Contains(said, []byte("github.com/osrg/gobgp/")) {
		c.Crashes = append(c.Crashes, crash{now, c.Last})
	}
	c.Last = netip.Addr{}
	var recent []crash
	times := make(map[netip.Addr]int)
	for _, crash := range c.Crashes {
		if crash.At.After(now) {
			crash.At = now // the clock was set back, and it would count until then
		}
		if now.Sub(crash.At) < crashMemory {
			recent = append(recent, crash)
			times[crash.Peer]++
		}
	}
	c.Crashes = recent
	held := make(map[netip.Addr]bgp.Hold)
	for peer, n := range times {
		if n < 2 {
			continue
		}
		hold := min(firstHold<<min(n-2, 10), longestHold)
		held[peer] = bgp.Hold{For: hold, Reason: fmt.Sprintf(
			"the BGP library crashed %d times within %v after this session came up, most likely by what the peer sent: put off for %v, see %s",
			n, crashMemory, hold, kept)}
	}
	return held
}

// up notes whose session came up, before anything is read in it.
func (c *crashes) up(peer netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Last = peer
	if err := c.write(); err != nil {
		c.log.Warn("a crash by what this peer sends could not be told from others", "peer", peer, "err", err)
	}
}

// write replaces the file in one step. It need not outlive the machine.
func (c *crashes) write() error {
	data, err := json.Marshal(c.crashRecord)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.file+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(c.file+".new", c.file)
}
