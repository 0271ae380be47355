package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	workers      = 4
	workerPause  = 20 * time.Millisecond
	downloads    = 12
	downloadRate = 250_000 // bytes a second

	// How much time the story gives to what it waits for.
	patience = 20 * time.Second
)

// Story shows something that halfproxy is for, in plain sentences, on a lab that was
// just started.
type Story struct {
	Name  string
	About string // what happens, in a line

	nodes, backends int // that it needs at least
	prepare         func(*Options)
	chapters        func(*teller) []chapter
}

type chapter func(context.Context) error

// Stories are those that there are, the demo's first.
func Stories() []Story {
	return []Story{
		{
			Name: "failover", About: "a node dies in the middle of downloads, a backend dies, both return", nodes: 2, backends: 2,
			chapters: func(s *teller) []chapter { return []chapter{s.nodeDies, s.backendDies, s.deaths} },
		},
		{
			Name: "drain", About: "a backend and a node are taken out of service, and nothing breaks", nodes: 2, backends: 2,
			chapters: func(s *teller) []chapter { return []chapter{s.backendDrains, s.nodeStops, s.nothingFailed} },
		},
		{
			Name: "upgrade", About: "each node's process is replaced, one after the other", nodes: 1, backends: 1,
			// The embedded router has no graceful restart: there, routes go and come.
			prepare: func(o *Options) {
				if o.Router != Embedded {
					o.GracefulRestart = 10 * time.Second
				}
			},
			chapters: func(s *teller) []chapter { return []chapter{s.upgrades, s.nothingFailed} },
		},
		{
			Name: "flood", About: "SYNs from addresses that nobody has come while a backend is drained", nodes: 1, backends: 2,
			chapters: func(s *teller) []chapter { return []chapter{s.flooded, s.nothingFailed} },
		},
		{
			Name: "partition", About: "a node loses sight of the others, and finds them again", nodes: 3, backends: 2,
			chapters: func(s *teller) []chapter { return []chapter{s.partition, s.nothingFailed} },
		},
	}
}

// Tell tells it. It takes about half a minute and gives an error for every promise that
// was broken.
func (st Story) Tell(ctx context.Context, l *Lab, out io.Writer) error {
	if len(l.nodes) < st.nodes || len(l.backends) < st.backends {
		return fmt.Errorf("the story %s needs %d nodes and %d backends at least, not %d and %d", st.Name, st.nodes, st.backends, len(l.nodes), len(l.backends))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &teller{Lab: l, out: out, live: newLive(out), begun: time.Now()}
	if s.live != nil {
		s.out = s.live
	}
	err := s.tell(ctx, st)
	if s.load != nil {
		s.load.stop()
	}
	cancel()
	s.watching.Wait()
	return errors.Join(append(s.broken, err)...)
}

// teller is in the middle of a story.
type teller struct {
	*Lab
	out      io.Writer
	live     *live // nil: out is no terminal
	watching sync.WaitGroup
	begun    time.Time
	load     *load
	broken   []error // promises

	// What the summary counts.
	died     int // failed requests that a backend's death explains
	started  int // downloads
	complete int // of those
	lost     int // of those, with their backend

	// While a backend returned: requests under way then may have lost theirs.
	returned, settled time.Time
}

func (s *teller) tell(ctx context.Context, st Story) error {
	for _, tell := range append([]chapter{s.assembly, s.everyday}, st.chapters(s)...) {
		if err := tell(ctx); err != nil {
			return err
		}
	}
	return nil
}

// say prints a sentence with the time since the beginning.
func (s *teller) say(format string, args ...any) {
	fmt.Fprintf(s.out, "[%5.1fs] %s\n", time.Since(s.begun).Seconds(), fmt.Sprintf(format, args...))
}

// breach notes a broken promise, and says so.
func (s *teller) breach(format string, args ...any) {
	err := fmt.Errorf(format, args...)
	s.say("PROMISE BROKEN: %v", err)
	s.broken = append(s.broken, err)
}

func (s *teller) assembly(ctx context.Context) error {
	s.say("%d nodes start. Each loads its program, asks the %d backends for the VIPs, tells the others what it found, and announces", len(s.nodes), len(s.backends))
	s.more("the service's virtual addresses (VIPs) %s and %s to the router, by BGP.", VIPs.V4, VIPs.V6)
	if err := s.settle(ctx); err != nil {
		return err
	}
	s.say("Ready: the router spreads connections to the VIPs over %s, and all hold the same table of which", s.nodeNames())
	s.more("connection belongs to which backend. No node needs to remember any.")
	return nil
}

// more continues a sentence on the next line.
func (s *teller) more(format string, args ...any) {
	fmt.Fprintf(s.out, "         %s\n", fmt.Sprintf(format, args...))
}

func (s *teller) everyday(ctx context.Context) error {
	before, err := s.packets(ctx)
	if err != nil {
		return err
	}
	begin := time.Now()
	s.load = s.startLoad(ctx, workers, workerPause)
	if s.live != nil {
		s.watching.Go(func() { s.live.run(ctx, s) })
	}
	s.say("Traffic: %d visitors ask for a page again and again, by IPv4 and IPv6, with a new connection each time.", workers)
	if err := s.pause(ctx, 4*time.Second); err != nil {
		return err
	}
	after, err := s.packets(ctx)
	if err != nil {
		return err
	}
	asked := s.load.between(begin, time.Now())
	s.judge(asked)
	s.say("%d requests, %d failed. Who served them:", len(asked), len(failures(asked)))
	s.table(before, after, asked)
	return nil
}

func (s *teller) nodeDies(ctx context.Context) error {
	all, err := s.download(ctx, 8*time.Second)
	if err != nil {
		return err
	}
	s.say("%d long downloads begin, beside the traffic.", downloads)
	carried, err := s.carriers(ctx, all)
	if err != nil {
		return err
	}
	victim := slices.MaxFunc(s.nodes, func(a, b *Node) int { return cmp.Compare(carried[a.Name], carried[b.Name]) })

	s.say("The router has spread them over the nodes: %s.", s.shares(carried))
	begin := time.Now()
	if err := victim.Kill(); err != nil {
		return err
	}
	s.say("%s is killed (SIGKILL) in the middle of %d downloads.", victim.Name, carried[victim.Name])
	gone, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	within, err := s.routesGone(gone, victim, begin)
	if err != nil {
		return err
	}
	s.say("%s later the router sends nothing to %s any more: its connections now reach other nodes,", round(within), victim.Name)
	s.more("which pass them on to the same backends as before.")
	if err := s.await(ctx, all, nil); err != nil {
		return err
	}
	s.say("The %d downloads have ended; %d are complete, every byte as it was sent.", downloads, s.complete)
	asked := s.load.between(begin, time.Now())
	s.judge(asked)
	s.say("Meanwhile %d requests, %d failed. The slowest took %s: what was on its way to %s was lost, and TCP sent it again.",
		len(asked), len(failures(asked)), round(slowest(asked)), victim.Name)

	if err := victim.Start(); err != nil {
		return err
	}
	begin = time.Now()
	s.say("%s is started again.", victim.Name)
	if err := s.settle(ctx); err != nil {
		return err
	}
	s.say("%s later it is back: same table as the others, and its share of the connections.", round(time.Since(begin)))
	asked = s.load.between(begin, time.Now())
	s.judge(asked)
	s.say("Meanwhile %d requests, %d failed.", len(asked), len(failures(asked)))
	return nil
}

func (s *teller) backendDies(ctx context.Context) error {
	all, err := s.download(ctx, 5*time.Second)
	if err != nil {
		return err
	}
	served, victim := s.busiest(all)
	s.say("%d downloads more begin; %s.", downloads, s.shares(served))
	if err := s.pause(ctx, time.Second); err != nil {
		return err
	}

	begin := time.Now()
	victim.Kill()
	s.say("%s is killed: its server is gone, and with it the %d downloads that it was sending.", victim.Name, served[victim.Name])
	if err := s.settle(ctx); err != nil {
		return err
	}
	within := time.Since(begin)
	s.say("%s later every node has found out and taken %s out of its table (promised: %s).", round(within), victim.Name, s.DetectTime())
	if within > s.DetectTime() {
		s.breach("%s was in use for %s after its death, not for %s at most", victim.Name, round(within), s.DetectTime())
	}
	complete := s.complete
	if err := s.await(ctx, all, victim); err != nil {
		return err
	}
	s.say("Of the %d downloads that other backends sent, %d are complete: nobody moved them.", downloads-served[victim.Name], s.complete-complete)
	asked := s.load.between(begin, time.Now())
	failed := failures(asked)
	s.died = len(failed)
	s.judge(s.load.since(begin.Add(s.DetectTime())))
	last := time.Duration(0)
	if len(failed) > 0 {
		last = failed[len(failed)-1].begun.Sub(begin)
	}
	s.say("Meanwhile %d requests, %d failed, the last of them begun %s after the death.", len(asked), len(failed), round(last))

	if err := victim.Start(); err != nil {
		return err
	}
	begin = time.Now()
	s.say("%s is started again.", victim.Name)
	if err := s.settle(ctx); err != nil {
		return err
	}
	settled := time.Now()
	s.say("%s later every node uses it again.", round(settled.Sub(begin)))
	if err := s.pause(ctx, 2*time.Second); err != nil {
		return err
	}
	s.returned, s.settled = begin, settled
	s.say("Its share of all connections moved to it at once; requests under way just then that broke: %d.",
		len(failures(s.load.between(begin, settled))))
	asked = s.load.since(settled)
	s.judge(asked)
	s.say("Since then %d requests, %d failed; %s.", len(asked), len(failures(asked)), s.shares(byBackend(asked)))
	return nil
}

func (s *teller) deaths(context.Context) error {
	s.load.stop()
	asked := s.load.since(time.Time{})
	failed := failures(asked)
	// Once more: one that broke in silence has only now used up its patience.
	moved := len(failures(s.load.between(s.returned, s.settled)))
	s.say("Done. Of %d requests %d failed: %d while a dead backend was not yet known to be dead, %d under way when",
		len(asked), len(failed), s.died, moved)
	s.more("their backend changed because one returned, %d at any other time.", len(failed)-s.died-moved)
	s.more("Of %d downloads %d are complete; %d broke with their backend, %d for any other reason.",
		s.started, s.complete, s.lost, s.started-s.complete-s.lost)
	return nil
}

// download begins downloads that take so long.
func (s *teller) download(ctx context.Context, length time.Duration) ([]*transfer, error) {
	all, err := s.startDownloads(ctx, downloads, downloadRate, length)
	if err != nil {
		return nil, fmt.Errorf("start downloads: %w", err)
	}
	s.started += len(all)
	return all, nil
}

// busiest gives how many of these downloads each backend serves, and the one with most.
func (s *teller) busiest(all []*transfer) (served map[string]int, most *Backend) {
	served = map[string]int{}
	for _, d := range all {
		served[d.backend]++
	}
	return served, slices.MaxFunc(s.backends, func(a, b *Backend) int { return cmp.Compare(served[a.Name], served[b.Name]) })
}

// await waits for the end of downloads. Those of a backend that has died, if
// any, may break.
func (s *teller) await(ctx context.Context, all []*transfer, dead *Backend) error {
	for _, d := range all {
		err := d.wait()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			s.complete++
		case dead != nil && d.backend == dead.Name:
			s.lost++
		default:
			s.breach("a download that %s served broke: %w", d.backend, err)
		}
	}
	return nil
}

// judge finds failures among requests that had none to have.
func (s *teller) judge(requests []request) {
	if failed := failures(requests); len(failed) > 0 {
		s.breach("%d of %d requests failed that were to succeed, the first with: %w", len(failed), len(requests), failed[0].err)
	}
}

func (s *teller) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return s.WaitReady(ctx)
}

func (s *teller) pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// carriers counts the downloads whose packets each node gets, by watching the
// switch for a moment.
func (s *teller) carriers(ctx context.Context, all []*transfer) (map[string]int, error) {
	ports, err := s.clientPorts(func() error { return s.pause(ctx, time.Second) })
	if err != nil {
		return nil, err
	}
	carried := map[string]int{}
	for name, seen := range ports {
		for _, d := range all {
			if seen[d.port] {
				carried[name]++
			}
		}
	}
	return carried, nil
}

// packets asks the nodes how many packets each has passed on to each backend.
func (s *teller) packets(ctx context.Context) (map[[2]string]uint64, error) {
	passed := map[[2]string]uint64{}
	for _, n := range s.nodes {
		status, err := n.Status(ctx)
		if err != nil {
			return nil, err
		}
		for _, service := range status.Services {
			for _, b := range service.Backends {
				passed[[2]string{n.Name, b.Name}] += b.Packets
			}
		}
	}
	return passed, nil
}

// table shows a row a node and a column a backend.
func (s *teller) table(before, after map[[2]string]uint64, asked []request) {
	row := func(name string, cells func(backend string) string, comment string) {
		line := fmt.Sprintf("         %10s", name)
		for _, b := range s.backends {
			line += fmt.Sprintf("%8s", cells(b.Name))
		}
		fmt.Fprintln(s.out, strings.TrimRight(line+"   "+comment, " "))
	}
	row("", func(b string) string { return b }, "")
	served := byBackend(asked)
	row("requests", func(b string) string { return fmt.Sprint(served[b]) }, "answered by each backend, straight to the visitor")
	for _, n := range s.nodes {
		row(n.Name, func(b string) string {
			key := [2]string{n.Name, b}
			return fmt.Sprint(after[key] - before[key])
		}, "packets of visitors that "+n.Name+" passed on to each")
	}
}

func byBackend(requests []request) map[string]int {
	served := map[string]int{}
	for _, r := range requests {
		if r.err == nil {
			served[r.backend]++
		}
	}
	return served
}

// shares is "lb1 has 3, lb2 5, lb3 4".
func (s *teller) shares(counts map[string]int) string {
	var parts []string
	verb := " has"
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s%s %d", name, verb, counts[name]))
		verb = ""
	}
	return strings.Join(parts, ", ")
}

func (s *teller) nodeNames() string {
	var names []string
	for _, n := range s.nodes {
		names = append(names, n.Name)
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}

func slowest(requests []request) time.Duration {
	var d time.Duration
	for _, r := range requests {
		d = max(d, r.ended.Sub(r.begun))
	}
	return d
}

// round leaves what a reader cares for.
func round(d time.Duration) time.Duration {
	if d < 10*time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(100 * time.Millisecond)
}
