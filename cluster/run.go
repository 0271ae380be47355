package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/halfproxy/halfproxy/lb"
)

const (
	streamsAtOnce = 8 // records on their way over TCP
	// goodbye is how long a leaving member waits for the others to take the
	// news of it, and then for memberlist to spread it.
	goodbye = time.Second
)

// Run joins the cluster and takes part in it until ctx ends; then it tells the
// others that it leaves, leaves, and closes the sockets. It returns ErrNameTaken
// when another member had the name first. It may be called once.
func (c *Cluster) Run(ctx context.Context) error {
	if c.ran.Swap(true) {
		return errors.New("cluster: Run was called before")
	}
	ml, err := memberlist.Create(c.library())
	if err != nil {
		return fmt.Errorf("start gossip on %s: %w", c.cfg.Listen, err)
	}
	s := &sender{c: c, ml: ml, slots: make(chan struct{}, streamsAtOnce), flowSlots: make(chan struct{}, 2), busy: make(map[string]bool)}

	var helpers sync.WaitGroup
	seeking, stop := context.WithCancel(ctx)
	helpers.Go(func() { c.seek(seeking, ml) })
	if c.cfg.Flows != nil {
		helpers.Go(func() { c.spreadFlows(seeking, s) })
		helpers.Go(func() { c.learnFlows(seeking) })
		helpers.Go(func() { c.fetchFlows(seeking, s) })
	}

	err = c.serve(ctx, s)
	stop()
	if err == nil {
		told := make(chan struct{})
		c.farewell(s)
		helpers.Go(func() {
			s.streams.Wait()
			close(told)
		})
		select {
		case <-told:
		case <-time.After(goodbye):
		}
		if err := ml.Leave(goodbye); err != nil {
			c.log.Debug("leave not spread", "err", err)
		}
	}
	// Without Leave when the name is another's: its bearer must not be
	// taken for gone. Shutdown ends the streams, which the helpers wait for.
	err = errors.Join(err, ml.Shutdown())
	helpers.Wait()
	s.streams.Wait()
	return err
}

// library is memberlist's configuration: a death is known in some 2.5 s, a
// broadcast is everywhere in some 50 ms, for 0.3 % of a CPU.
func (c *Cluster) library() *memberlist.Config {
	ml := memberlist.DefaultLANConfig()
	ml.Name, ml.Label = c.cfg.Name, c.cfg.Cluster
	ml.Transport = c.transport
	ml.BindAddr, ml.BindPort = c.cfg.Listen.Addr().String(), int(c.cfg.Listen.Port())
	ml.AdvertiseAddr, ml.AdvertisePort = ml.BindAddr, ml.BindPort
	ml.Keyring = c.keyring
	ml.Logger = c.libraryLog()
	ml.Delegate, ml.Events, ml.Conflict = delegate{c}, delegate{c}, delegate{c}

	ml.ProbeInterval, ml.ProbeTimeout = 500*time.Millisecond, 200*time.Millisecond
	ml.SuspicionMult, ml.SuspicionMaxTimeoutMult = 3, 3
	ml.GossipInterval, ml.GossipNodes, ml.RetransmitMult = 50*time.Millisecond, 4, c.queue.RetransmitMult
	ml.PushPullInterval, ml.TCPTimeout = 10*time.Second, 2*time.Second
	// LZW makes and clears a table of 64 KiB for each packet, and most of what is sent are
	// hashes, which do not get shorter.
	ml.EnableCompression = false
	ml.GossipToTheDeadTime, ml.DeadNodeReclaimTime = c.timing.gossipToTheDead, 10*time.Second
	return ml
}

// serve is the one goroutine that decides what is sent.
func (c *Cluster) serve(ctx context.Context, s *sender) error {
	heartbeat := time.NewTicker(c.timing.heartbeat)
	defer heartbeat.Stop()
	var spread <-chan time.Time // runs while changes are gathered
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-heartbeat.C:
			s.heartbeat()
			c.review(time.Now())
		case <-c.news:
			if spread == nil {
				spread = time.After(c.timing.coalesce)
			}
		case <-spread:
			spread = nil
			s.spread()
		case <-c.wake:
			if err := c.work(s); err != nil {
				return err
			}
		}
	}
}

// review lets time have its effect: members fall silent and are forgotten.
func (c *Cluster) review(now time.Time) {
	c.mu.Lock()
	forgot := c.roster.forget(now)
	transitions := c.roster.transitions(now)
	c.mu.Unlock()
	for _, t := range transitions {
		attrs := []any{"member", t.Name, "address", t.Address, "state", t.State, "was", t.from}
		if t.State == Silent || t.State == Dead {
			c.log.Warn("member's state changed", attrs...)
		} else {
			c.log.Info("member's state changed", attrs...)
		}
	}
	if forgot || len(transitions) > 0 {
		notify(c.changes)
	}
}

// work does what the callbacks left to do.
func (c *Cluster) work(s *sender) error {
	c.mu.Lock()
	do := c.todo
	c.todo = todo{}
	c.mu.Unlock()
	if do.fatal != nil {
		return do.fatal
	}
	now := time.Now()
	c.review(now)
	if do.boot != 0 {
		if err := keepBoot(c.cfg.StateDir, do.boot); err != nil {
			c.log.Warn("boot number not kept", "err", err)
		}
	}
	for _, node := range s.others() {
		if do.ask[node.Name] {
			s.packet(node, request{c.cfg.Name}.encode())
		}
		if do.owe[node.Name] {
			s.stream(node)
		}
		if do.wanted[node.Name] {
			s.streamFlows(node)
		}
		if v, ok := do.remind[node.Name]; ok {
			s.packet(node, heartbeat{node.Name, v}.encode())
		}
	}
	for rival := range do.rivals {
		s.claim(rival, now)
	}
	return nil
}

// farewell tells the others before memberlist does: for it, a member that left
// and one that died look the same.
func (c *Cluster) farewell(s *sender) {
	c.mu.Lock()
	c.leaving = true
	var report lb.Report
	if own := c.roster.own().record; own != nil {
		report = own.report
	}
	report.Leaving = true
	_, err := c.publish(report)
	c.mu.Unlock()
	if err != nil {
		c.log.Warn("leaving not told", "err", err)
	}
	s.spread()
	for _, node := range s.others() {
		s.stream(node)
	}
}

// sender sends for one Run.
type sender struct {
	c         *Cluster
	ml        *memberlist.Memberlist
	told      *record // that was last sent to everybody
	streams   sync.WaitGroup
	slots     chan struct{} // bounds the streams
	flowSlots chan struct{} // and those of records of flows

	mu   sync.Mutex
	busy map[string]bool // members that a stream is under way to; true: and another is wanted
}

func (s *sender) others() []memberlist.Node {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.c.roster.others()
}

func (s *sender) record() *record {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.c.roster.own().record
}

func (s *sender) packet(to memberlist.Node, b []byte) {
	if err := s.ml.SendBestEffort(&to, b); err != nil {
		s.c.log.Debug("packet not sent", "member", to.Name, "err", err)
	}
}

func (s *sender) heartbeat() {
	s.c.mu.Lock()
	b := heartbeat{s.c.cfg.Name, s.c.roster.version()}.encode()
	s.c.mu.Unlock()
	for _, node := range s.others() {
		s.packet(node, b)
	}
}

// spread sends everybody the own record, or what differs from the last one sent.
func (s *sender) spread() {
	record := s.record()
	if record == nil {
		return
	}
	whole := news{record}.encode()
	b := s.shorter(whole, record)
	s.told = record
	for _, node := range s.others() {
		if len(b) <= maxPacket {
			s.packet(node, b)
		} else {
			s.stream(node)
		}
	}
	s.c.broadcast(record, func() []byte { return whole })
}

// shorter gives what makes record from the last one that was sent, where that is
// shorter than the whole.
func (s *sender) shorter(whole []byte, record *record) []byte {
	if s.told == nil || s.told.boot != record.boot || s.told == record {
		return whole
	}
	c, ok := diff(s.told.report, record.report)
	if !ok {
		return whole
	}
	c.member, c.base, c.sequence = record.member, s.told.version, record.sequence
	if b := c.encode(); len(b) < len(whole) {
		return b
	}
	return whole
}

// stream sends the own record over TCP, one at a time to each member. What
// fails is asked for after the next heartbeat.
func (s *sender) stream(to memberlist.Node) {
	s.mu.Lock()
	_, underWay := s.busy[to.Name]
	s.busy[to.Name] = underWay
	s.mu.Unlock()
	if underWay {
		return
	}
	s.streams.Go(func() {
		s.slots <- struct{}{}
		defer func() { <-s.slots }()
		var sent *record
		for again := true; again; {
			if record := s.record(); record != nil && record != sent {
				if err := s.ml.SendReliable(&to, news{record}.encode()); err != nil {
					s.c.log.Debug("record not sent", "member", to.Name, "err", err)
				}
				sent = record
			}
			s.mu.Lock()
			again = s.busy[to.Name]
			s.busy[to.Name] = false
			if !again {
				delete(s.busy, to.Name)
			}
			s.mu.Unlock()
		}
	})
}

// claim tells whoever is at address that this member bears its name.
func (s *sender) claim(address netip.AddrPort, now time.Time) {
	b := claim{s.c.cfg.Name, now.Sub(s.c.started), s.c.cfg.Listen}.encode()
	to := memberlist.Address{Addr: address.String(), Name: s.c.cfg.Name}
	if err := s.ml.SendToAddress(to, b); err != nil {
		s.c.log.Debug("claim not sent", "address", address, "err", err)
	}
}
