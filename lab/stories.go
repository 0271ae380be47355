package lab

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/halfproxy/halfproxy/admin"
)

// nothingFailed is how a story ends in which nothing was to fail.
func (s *teller) nothingFailed(context.Context) error {
	s.load.stop()
	asked := s.load.since(time.Time{})
	s.judge(asked)
	s.say("Done. Of %d requests %d failed.", len(asked), len(failures(asked)))
	if s.started > 0 {
		s.more("Of %d downloads %d are complete.", s.started, s.complete)
	}
	return nil
}

func (s *teller) backendDrains(ctx context.Context) error {
	all, err := s.download(ctx, 8*time.Second)
	if err != nil {
		return err
	}
	served, victim := s.busiest(all)
	s.say("%d long downloads begin, beside the traffic; %s.", len(all), s.shares(served))

	begin := time.Now()
	if err := s.order(ctx, "drain", victim); err != nil {
		return err
	}
	s.say("`halfproxy drain backend %s` is given to %s.", victim.Name, s.nodes[0].Name)
	if err := s.until(ctx, patience, victim.Name+" gets no new connections", func(_ *Node, st admin.Status) bool {
		return ofBackend(st, victim, func(b admin.Backend) bool { return b.State == "draining" || b.State == "drained" })
	}); err != nil {
		return err
	}
	drained := time.Now()
	s.say("%s later no node gives it new connections. Its downloads go on: %s", round(drained.Sub(begin)), s.held(ctx, victim))
	if err := s.pause(ctx, 2*time.Second); err != nil {
		return err
	}
	asked := s.load.since(drained)
	if n := byBackend(asked)[victim.Name]; n > 0 {
		s.breach("%s served %d requests that came after it was drained", victim.Name, n)
	}
	s.say("Since then %d requests: %s.", len(asked), s.shares(byBackend(asked)))
	if err := s.await(ctx, all, nil); err != nil {
		return err
	}
	s.say("The downloads have ended; %d are complete, the %d from %s too.", s.complete, served[victim.Name], victim.Name)
	s.more("After a minute without a packet `halfproxy status` would say that it is safe to stop. No download is left: it is stopped now.")
	victim.Kill()
	if err := s.pause(ctx, time.Second); err != nil {
		return err
	}

	if err := victim.Start(); err != nil {
		return err
	}
	begin = time.Now()
	if err := s.order(ctx, "undo", victim); err != nil {
		return err
	}
	s.say("It is started again, and `halfproxy drain backend %s --undo` is given.", victim.Name)
	if err := s.settle(ctx); err != nil {
		return err
	}
	s.say("%s later every node uses it again.", round(time.Since(begin)))
	return nil
}

func (s *teller) nodeStops(ctx context.Context) error {
	all, err := s.download(ctx, 6*time.Second)
	if err != nil {
		return err
	}
	carried, err := s.carriers(ctx, all)
	if err != nil {
		return err
	}
	victim := s.nodes[len(s.nodes)-1]
	s.say("%d downloads more begin, by way of the nodes: %s.", len(all), s.shares(carried))
	begin := time.Now()
	if err := victim.Terminate(); err != nil {
		return err
	}
	s.say("%s is told to stop (SIGTERM). It tells the router to prefer others, withdraws, and forwards what still comes.", victim.Name)
	gone, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	within, err := s.routesGone(gone, victim, begin)
	if err != nil {
		return err
	}
	if err := victim.Wait(gone); err != nil {
		return err
	}
	s.say("%s later the router sends it nothing any more, and %s after the signal it has ended.", round(within), round(time.Since(begin)))
	if err := s.await(ctx, all, nil); err != nil {
		return err
	}
	s.say("The downloads have ended; of all %d until now %d are complete.", s.started, s.complete)
	if err := victim.Start(); err != nil {
		return err
	}
	if err := s.settle(ctx); err != nil {
		return err
	}
	s.say("It is started again, and has its share.")
	return nil
}

func (s *teller) upgrades(ctx context.Context) error {
	all, err := s.download(ctx, 10*time.Second)
	if err != nil {
		return err
	}
	s.say("%d long downloads begin, beside the traffic.", len(all))
	for _, n := range s.nodes {
		begin := time.Now()
		if err := n.Restart(ctx); err != nil {
			return err
		}
		if err := s.settle(ctx); err != nil {
			return err
		}
		asked := s.load.between(begin, time.Now())
		s.judge(asked)
		s.say("%s has a new process, which took over program and tables in the kernel: %s until all was as before, meanwhile %d requests, %d failed.",
			n.Name, round(time.Since(begin)), len(asked), len(failures(asked)))
	}
	if s.options.Router == Embedded {
		s.more("The embedded router took the node's routes out for that time. FRR and BIRD keep them (graceful restart): `--router frr`.")
	}
	if err := s.await(ctx, all, nil); err != nil {
		return err
	}
	s.say("The downloads have ended; %d are complete.", s.complete)
	return nil
}

// floodRate is what leaves something of a small machine to those who are no flood.
const floodRate = 20_000

func (s *teller) flooded(ctx context.Context) error {
	all, err := s.download(ctx, 8*time.Second)
	if err != nil {
		return err
	}
	_, victim := s.busiest(all)
	s.say("%d long downloads begin, beside the traffic.", len(all))
	before, err := s.packets(ctx)
	if err != nil {
		return err
	}
	stop, err := s.startFlood(floodRate)
	if err != nil {
		return err
	}
	begin := time.Now()
	s.say("A flood begins: %d SYNs a second, each from another address and port.", floodRate)
	err = s.pause(ctx, 2*time.Second)
	if err == nil {
		err = s.order(ctx, "drain", victim)
		s.say("In the middle of it %s is drained: flows of the slots that it had are tracked, new ones of the flood among them.", victim.Name)
	}
	if err == nil {
		err = s.pause(ctx, 3*time.Second)
	}
	sent, floodErr := stop()
	if err != nil || floodErr != nil {
		return errors.Join(err, floodErr)
	}
	after, err := s.packets(ctx)
	if err != nil {
		return err
	}
	passed := uint64(0)
	for key, n := range after {
		passed += n - before[key]
	}
	records := 0
	for _, n := range s.nodes {
		st, err := n.Status(ctx)
		if err != nil {
			return err
		}
		for _, service := range st.Services {
			for _, b := range service.Backends {
				records += b.FlowRecords
			}
		}
	}
	asked := s.load.between(begin, time.Now())
	s.judge(asked)
	s.say("It ends after %d SYNs. The nodes have passed on %d packets and hold %d records of flows, which is all that it left with them.", sent, passed, records)
	s.more("Meanwhile %d requests, %d failed; the slowest took %s.", len(asked), len(failures(asked)), round(slowest(asked)))
	if err := s.await(ctx, all, nil); err != nil {
		return err
	}
	s.say("The downloads have ended; %d are complete.", s.complete)
	if err := s.order(ctx, "undo", victim); err != nil {
		return err
	}
	return s.settle(ctx)
}

func (s *teller) partition(ctx context.Context) error {
	alone := s.nodes[len(s.nodes)-1]
	cut := func(change func(*Node, ...*Node) error) error {
		for _, n := range s.nodes {
			others := s.nodes[:len(s.nodes)-1]
			if n != alone {
				others = []*Node{alone}
			}
			if err := change(n, others...); err != nil {
				return err
			}
		}
		return nil
	}
	if err := cut((*Node).CutMembers); err != nil {
		return err
	}
	begin := time.Now()
	s.say("%s and the others no longer hear each other. Their ways to the router and to the backends stay.", alone.Name)
	if err := s.until(ctx, patience, alone.Name+" is frozen", func(n *Node, st admin.Status) bool { return st.Cluster.Frozen == (n == alone) }); err != nil {
		return err
	}
	s.say("%s later %s knows that it is no majority: its verdicts stay as they were. Silence withdraws nothing, so all still have routes.",
		round(time.Since(begin)), alone.Name)
	victim := s.backends[0]
	if err := s.order(ctx, "drain", victim); err != nil {
		return err
	}
	drains := func(st admin.Status) bool {
		return ofBackend(st, victim, func(b admin.Backend) bool { return b.State == "draining" || b.State == "drained" })
	}
	if err := s.until(ctx, patience, victim.Name+" is drained where the order arrives", func(n *Node, st admin.Status) bool { return drains(st) == (n != alone) }); err != nil {
		return err
	}
	s.say("An order, to drain %s, is given to %s and holds on all but %s.", victim.Name, s.nodes[0].Name, alone.Name)
	if err := s.pause(ctx, 2*time.Second); err != nil {
		return err
	}
	hops, err := s.NextHops(VIPs.V4)
	if err != nil {
		return err
	}
	if len(hops) != len(s.nodes) {
		s.breach("the router sends to %v only", hops)
	}
	asked := s.load.between(begin, time.Now())
	s.judge(asked)
	s.say("Meanwhile %d requests, %d failed; the router sends them to %s.", len(asked), len(failures(asked)), strings.Join(hops, ", "))

	if err := cut((*Node).MendMembers); err != nil {
		return err
	}
	begin = time.Now()
	s.say("They hear each other again.")
	if err := s.until(ctx, patience, "all agree", func(_ *Node, st admin.Status) bool {
		return !st.Cluster.Frozen && st.Cluster.InSight == len(s.nodes) && drains(st)
	}); err != nil {
		return err
	}
	s.say("%s later all see each other, and %s has the order too.", round(time.Since(begin)), alone.Name)
	if err := s.order(ctx, "undo", victim); err != nil {
		return err
	}
	return s.settle(ctx)
}

// order gives one about a backend to the first node.
func (s *teller) order(ctx context.Context, action string, b *Backend) error {
	return admin.NewClient(s.nodes[0].Socket).Order(ctx, admin.Order{Kind: "backend", Name: b.Name, Action: action, By: "the lab"})
}

// ofBackend tells whether holds is true of a backend in all services.
func ofBackend(st admin.Status, b *Backend, holds func(admin.Backend) bool) bool {
	for _, service := range st.Services {
		i := slices.IndexFunc(service.Backends, func(o admin.Backend) bool { return o.Name == b.Name })
		if i < 0 || !holds(service.Backends[i]) {
			return false
		}
	}
	return len(st.Services) > 0
}

// held says what the first node's status says of flows at a backend.
func (s *teller) held(ctx context.Context, victim *Backend) string {
	st, err := s.nodes[0].Status(ctx)
	if err != nil {
		return err.Error()
	}
	var by []string
	for _, service := range st.Services {
		for _, b := range service.Backends {
			if b.Name == victim.Name {
				by = append(by, b.HeldBy...)
			}
		}
	}
	if len(by) == 0 {
		return "no flows are at it: safe to stop."
	}
	slices.Sort(by)
	return "older flows are still at it, by way of " + strings.Join(slices.Compact(by), ", ") + ": not safe to stop."
}
