package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Run is the body of `halfproxy lab`: it builds the lab, tells the story and
// takes everything down again. With no story the lab stands, to
// be played with, until ctx ends.
func Run(ctx context.Context, o Options, story *Story, out io.Writer) (err error) {
	o, err = o.withDefaults()
	if err != nil {
		return err
	}
	if story != nil && story.prepare != nil {
		story.prepare(&o)
	}
	begun := time.Now()
	l, err := Start(ctx, o)
	if err != nil {
		return err
	}
	picture(out, o.Nodes, o.Backends)
	defer func() {
		if ctx.Err() != nil && story != nil {
			err = fmt.Errorf("the story was interrupted: %w", ctx.Err())
		} else if err != nil {
			l.WriteLogs(out, 20)
		}
		closeErr := l.Close()
		if closeErr == nil {
			fmt.Fprintf(out, "Everything is taken down again, %s after it began.\n", round(time.Since(begun)))
		}
		err = errors.Join(err, closeErr)
	}()
	if story != nil {
		return story.Tell(ctx, l, out)
	}
	if err := l.WaitReady(ctx); ctx.Err() != nil {
		return nil
	} else if err != nil {
		return err
	}
	l.Describe(out)
	<-ctx.Done()
	return nil
}

// picture draws the lab for people who have never seen it.
func picture(w io.Writer, nodes, backends int) {
	branch := func(i, n int) string {
		switch {
		case i >= n:
			return "      "
		case n == 1:
			return "─────►"
		case i == 0:
			return "──┬──►"
		case i == n-1:
			return "  └──►"
		}
		return "  ├──►"
	}
	fmt.Fprintln(w)
	for i := range max(nodes, backends, 2) {
		left, node, backend := "                             ", "", ""
		switch i {
		case 0:
			left = "client ──────────► router ───"
		case 1:
			left = fmt.Sprintf("%-17s  %-10s", clientAddrs.V4, routerAddrs.V4)
		}
		if i < nodes {
			node = fmt.Sprintf("lb%d %s", i+1, nodeAddrs(i+1).V4)
		}
		if i < backends {
			backend = fmt.Sprintf("b%d %s", i+1, backendAddrs(i+1).V4)
		}
		fmt.Fprintf(w, "  %-29s%s %-14s%s %s\n", left, branch(i, nodes), node, branch(i, backends), backend)
	}
	fmt.Fprintf(w, `    ▲                                                           │
    └────────── answers go straight back, past the lbs ─────────┘

The client asks for %s or %s, the service's virtual addresses (VIPs). Every
backend (b) has them on its loopback. The load balancers (lb) pass a packet on as it
is, so the backend can answer by itself: they only ever see half of a conversation.

`, VIPs.V4, VIPs.V6)
}

// Describe says what stands and how to play with it.
func (l *Lab) Describe(w io.Writer) {
	o := l.options
	client, node, backend := l.clientNS.Name, l.nodes[0], l.backends[0]
	fmt.Fprintf(w, "The lab stands: %d nodes, %d backends, router %s, packets forwarded by %s. Ctrl-C takes it down.\n\n",
		len(l.nodes), len(l.backends), o.Router, o.Forward)
	for _, row := range [][2]string{
		{"ask for the page", "ip netns exec " + client + " curl " + URL(VIPs.V4, "/")},
		{"by IPv6", "ip netns exec " + client + " curl -g '" + URL(VIPs.V6, "/") + "'"},
		{"a long download", "ip netns exec " + client + " curl -o /dev/null '" + URL(VIPs.V4, "/download?bytes=60000000&rate=1000000") + "'"},
		{"what " + node.Name + " holds to be true", o.Binary + " status --socket " + node.Socket},
		{"the router's routes", "ip -n " + l.routerNS.Name + " route"},
		{"packets to and from " + node.Name, "ip netns exec " + l.switchNS.Name + " tcpdump -eni " + node.Name},
		{"a crash of " + node.Name, fmt.Sprintf("kill -9 %d", node.process.cmd.Process.Pid)},
		{"its return", strings.Join([]string{"nsenter --net=/run/netns/" + node.ns.Name, o.Binary, "run --config", node.config}, " ")},
		{"a power loss of " + backend.Name, "ip -n " + l.switchNS.Name + " link set " + backend.Name + " down"},
		{"its return", "ip -n " + l.switchNS.Name + " link set " + backend.Name + " up"},
		{"configurations and logs", o.Dir},
	} {
		fmt.Fprintf(w, "  %-26s %s\n", row[0], row[1])
	}
	fmt.Fprintln(w)
}
