package lab

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/halfproxy/halfproxy/internal/terminal"
)

// live keeps one line of a terminal up to date below what the story says: how many
// requests there are, what each node carries and how the backends are.
type live struct {
	out   io.Writer
	width int // of the terminal

	mu   sync.Mutex
	line string
}

// newLive is nil where out is no terminal.
func newLive(out io.Writer) *live {
	columns, _, is := terminal.Size(out)
	if !is {
		return nil
	}
	return &live{out: out, width: columns}
}

const (
	liveEvery = 500 * time.Millisecond
	eraseLine = "\r\x1b[2K"
)

// Write puts sentences above the line.
func (v *live) Write(p []byte) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.line != "" {
		fmt.Fprint(v.out, eraseLine)
	}
	n, err := v.out.Write(p)
	fmt.Fprint(v.out, v.line)
	return n, err
}

func (v *live) show(line string) {
	if runes := []rune(line); v.width > 0 && len(runes) >= v.width {
		line = string(runes[:v.width-1])
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.line != "" || line != "" {
		fmt.Fprint(v.out, eraseLine, line)
	}
	v.line = line
}

// run shows what goes on in s until ctx ends.
func (v *live) run(ctx context.Context, s *teller) {
	defer v.show("")
	before := map[[2]string]uint64{}
	ticker := time.NewTicker(liveEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			v.show(s.glance(ctx, now, before))
		}
	}
}

// glance is the line. It leaves in before what each node has passed on until now.
func (s *teller) glance(ctx context.Context, now time.Time, before map[[2]string]uint64) string {
	asked := s.load.between(now.Add(-liveEvery), now)
	parts := []string{fmt.Sprintf("%3d requests/s, %d failed", len(asked)*int(time.Second/liveEvery), len(failures(s.load.since(time.Time{}))))}
	states := map[string]string{}
	for _, n := range s.nodes {
		if !n.Running() {
			parts = append(parts, n.Name+" gone")
			continue
		}
		st, err := n.Status(ctx)
		if err != nil {
			parts = append(parts, n.Name+" starts")
			continue
		}
		passed := uint64(0)
		for _, service := range st.Services {
			for _, b := range service.Backends {
				key := [2]string{n.Name, service.Name + b.Name}
				passed += b.Packets - min(before[key], b.Packets)
				before[key] = b.Packets
				states[b.Name] = b.State
			}
		}
		parts = append(parts, fmt.Sprintf("%s %5d packets/s", n.Name, passed*uint64(time.Second/liveEvery)))
	}
	for _, b := range s.backends {
		if state := states[b.Name]; state != "" {
			parts = append(parts, b.Name+" "+state)
		}
	}
	return strings.Join(parts, " │ ")
}
