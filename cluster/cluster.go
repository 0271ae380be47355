package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/halfproxy/halfproxy/lb"
)

// Config says who this member is and whom it belongs to.
type Config struct {
	Name    string         // this member, unique
	Cluster string         // members of a cluster of another name are refused
	Listen  netip.AddrPort // gossip, TCP and UDP; the others reach this member here
	// Join are addresses or DNS names of members, host:port. This member's
	// own may be among them. One that is away is tried again for ever.
	Join []string
	// Keys are 16, 24 or 32 bytes long. The first encrypts, all decrypt.
	Keys [][]byte
	// StateDir keeps the boot number, so that it grows even when the clock
	// goes back between two starts. Empty: the clock decides.
	StateDir string
	// Flows takes and gives records of flows. Nil: there are none.
	Flows Flows

	Log        *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
}

// timing is how a cluster behaves in time. Tests are in more of a hurry.
type timing struct {
	heartbeat       time.Duration
	coalesce        time.Duration // changes that follow each other closely travel as one
	seek            time.Duration // mean time between two searches for missing members
	gossipToTheDead time.Duration
	limits          limits
}

func production() timing {
	return timing{
		heartbeat:       500 * time.Millisecond,
		coalesce:        10 * time.Millisecond,
		seek:            3 * time.Second,
		gossipToTheDead: time.Minute,
		limits: limits{
			silent:       2 * time.Second,
			forgetRecord: 5 * time.Minute,
			forgetDead:   24 * time.Hour,
		},
	}
}

// maxCluster bounds the cluster's name: it is part of every packet, and what
// it takes is missing for a record (see maxPacket).
const maxCluster = 64

// Cluster is this member's part in the cluster.
type Cluster struct {
	cfg       Config
	log       *slog.Logger
	timing    timing
	transport memberlist.NodeAwareTransport
	keyring   *memberlist.Keyring
	started   time.Time
	notices   notices
	metrics   metrics
	exchange  *exchange

	queue   *memberlist.TransmitLimitedQueue
	size    atomic.Int32  // of the cluster; the queue asks while it is locked
	changes chan struct{} // see Changes
	wake    chan struct{} // capacity 1: something in todo
	news    chan struct{} // capacity 1: the own record changed
	ran     atomic.Bool

	mu      sync.Mutex // guards what follows; memberlist's locks and the queue's come before it
	joins   []string   // as Config.Join
	roster  roster
	scribe  scribe // of the own record's histories
	encoded []byte // the report of the own record
	leaving bool
	todo    todo
}

// todo is what memberlist's callbacks leave to Run.
type todo struct {
	boot   uint64                  // the own boot number changed: keep it
	ask    map[string]bool         // members whose record we lack
	owe    map[string]bool         // members who lack ours
	wanted map[string]bool         // members who want all records of flows
	remind map[string]version      // of a later start that a member does not know of
	rivals map[netip.AddrPort]bool // claim our name
	fatal  error
}

func (t *todo) rival(address netip.AddrPort) {
	if len(t.rivals) < maxMembers {
		t.rivals = with(t.rivals, address, true)
	}
}

// with makes the map when it is needed: most of the time there is nothing to do.
func with[K comparable, V any](m map[K]V, key K, value V) map[K]V {
	if m == nil {
		m = make(map[K]V)
	}
	m[key] = value
	return m
}

// ErrNameTaken is what Run returns when a member that has run for longer has
// the same name.
var ErrNameTaken = errors.New("already in use")

// New checks cfg and binds the sockets, which Run closes. It speaks to nobody:
// that is Run's.
func New(cfg Config) (*Cluster, error) {
	return newCluster(cfg, production(), func(t memberlist.NodeAwareTransport) memberlist.NodeAwareTransport { return t })
}

// newCluster puts between memberlist and the network what wrap makes of it.
func newCluster(cfg Config, t timing, wrap func(memberlist.NodeAwareTransport) memberlist.NodeAwareTransport) (*Cluster, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Cluster{
		cfg:     cfg,
		log:     cfg.Log.With("part", "cluster"),
		timing:  t,
		joins:   slices.Clone(cfg.Join),
		started: time.Now(),
		scribe:  make(scribe),
		changes: make(chan struct{}, 1),
		wake:    make(chan struct{}, 1),
		news:    make(chan struct{}, 1),
	}
	c.keyring, _ = memberlist.NewKeyring(cfg.Keys, cfg.Keys[0]) // validate has checked them
	c.queue = &memberlist.TransmitLimitedQueue{
		NumNodes:       func() int { return int(c.size.Load()) },
		RetransmitMult: 4,
	}
	boot, err := nextBoot(cfg.StateDir, c.started)
	if err != nil {
		return nil, err
	}
	self := memberlist.Node{Name: cfg.Name, Addr: cfg.Listen.Addr().AsSlice(), Port: cfg.Listen.Port()}
	c.roster = newRoster(self, boot, t.limits, c.started)
	metrics, unregister, err := newMetrics(cfg.Registerer, c.Members)
	if err != nil {
		return nil, err
	}
	c.metrics = metrics
	c.exchange = newExchange(metrics)
	transport, err := listen(cfg.Listen, c.libraryLog())
	if err != nil {
		unregister()
		return nil, err
	}
	c.transport = wrap(transport)
	return c, nil
}

// validate gives every error at once. No key is ever part of one.
func (cfg Config) validate() error {
	var errs []error
	if err := checkName(cfg.Name); err != nil {
		errs = append(errs, fmt.Errorf("member name %q: %w", cfg.Name, err))
	}
	if len(cfg.Cluster) == 0 || len(cfg.Cluster) > maxCluster {
		errs = append(errs, fmt.Errorf("cluster name %q must be 1 to %d bytes long: all nodes need the same", cfg.Cluster, maxCluster))
	}
	at := cfg.Listen.Addr()
	if !at.IsValid() || at.IsUnspecified() || at.IsMulticast() || at.Is4In6() || at.Zone() != "" || cfg.Listen.Port() == 0 {
		errs = append(errs, fmt.Errorf("listen address %s must be an address of this host and a port: the other members reach this one there", cfg.Listen))
	}
	return errors.Join(append(errs, checkJoin(cfg.Join, cfg.Listen), checkKeys(cfg.Keys))...)
}

func checkJoin(join []string, listen netip.AddrPort) error {
	var errs []error
	for i, hostPort := range join {
		host, _, err := splitHostPort(hostPort)
		if err != nil {
			errs = append(errs, fmt.Errorf("join[%d] %q: %w", i, hostPort, err))
			continue
		}
		if address, err := netip.ParseAddr(host); err == nil && listen.IsValid() && address.Unmap().Is4() != listen.Addr().Is4() {
			errs = append(errs, fmt.Errorf("join[%d] %q is of another address family than the listen address %s: members must share one", i, hostPort, listen))
		}
	}
	return errors.Join(errs...)
}

func checkKeys(keys [][]byte) error {
	if len(keys) == 0 {
		return errors.New("no key: whoever reaches the port could join; make one with `head -c 32 /dev/urandom | base64`")
	}
	var errs []error
	for i, key := range keys {
		if err := memberlist.ValidateKey(key); err != nil {
			errs = append(errs, fmt.Errorf("key %d is %d bytes long: it must be 16, 24 or 32", i+1, len(key)))
		}
	}
	return errors.Join(errs...)
}

func (c *Cluster) libraryLog() *log.Logger {
	return log.New(libraryLog{log: c.log, notices: &c.notices, refuse: c.refuse}, "", 0)
}

// SetKeys makes keys the whole of what decrypts, and the first what encrypts, as
// Config.Keys. No connection or record is lost as long as each member has the key
// that any other encrypts by.
func (c *Cluster) SetKeys(keys [][]byte) error {
	if err := checkKeys(keys); err != nil {
		return err
	}
	var errs []error
	for _, key := range keys {
		errs = append(errs, c.keyring.AddKey(key))
	}
	errs = append(errs, c.keyring.UseKey(keys[0]))
	for _, key := range c.keyring.GetKeys() {
		if !slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, key) }) {
			errs = append(errs, c.keyring.RemoveKey(key))
		}
	}
	return errors.Join(errs...)
}

// SetJoin makes join the whole of whom this member looks for, as Config.Join.
func (c *Cluster) SetJoin(join []string) error {
	if err := checkJoin(join, c.cfg.Listen); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.joins = slices.Clone(join)
	return nil
}

// Publish makes r what this member tells the others, whole each time. It does
// not block, may be called before Run, and keeps nothing of r. Telling the same
// again sends nothing.
func (c *Cluster) Publish(r lb.Report) {
	c.mu.Lock()
	r = normal(r, c.scribe)
	r.Leaving = r.Leaving || c.leaving
	changed, err := c.publish(r)
	c.mu.Unlock()
	if err != nil {
		c.log.Error("report not published, the others keep the last one", "err", err)
		return
	}
	if changed {
		notify(c.news)
		notify(c.changes)
	}
}

// publish needs c.mu.
func (c *Cluster) publish(r lb.Report) (changed bool, err error) {
	encoded, err := encodeReport(r, c.scribe)
	if err != nil {
		return false, err
	}
	if c.encoded != nil && bytes.Equal(encoded, c.encoded) {
		return false, nil
	}
	c.encoded = encoded
	c.roster.publish(r, encoded)
	return true, nil
}

// Records gives every member's newest record, its own included, by name. Heard
// carries a monotonic reading, and is now for the own record. The reports are
// shared with later calls: they may be read only.
func (c *Cluster) Records() []lb.Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.roster.records(time.Now())
}

// Members gives all members by name, this one included. Who left is listed for
// five minutes, who died for a day.
func (c *Cluster) Members() []Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.roster.members(time.Now())
}

// Changes has something to receive after a report in Records or anything in
// Members has changed. Heard alone, which changes all the time, does not count.
func (c *Cluster) Changes() <-chan struct{} { return c.changes }

// notify never blocks: one note says as much as two.
func notify(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

func (c *Cluster) refuse(why refusal) { c.metrics.refused.WithLabelValues(string(why)).Inc() }

// note lets a callback of memberlist change what c.mu guards, and has Run look
// at it.
func (c *Cluster) note(change func(now time.Time) refusal) {
	c.mu.Lock()
	why := change(time.Now())
	c.size.Store(int32(len(c.roster.others()) + 1))
	c.mu.Unlock()
	if why != "" {
		c.refuse(why)
	}
	notify(c.wake)
}

// receive takes a message of any kind.
func (c *Cluster) receive(b []byte) {
	m, why := decode(b)
	if why != "" {
		c.refuse(why)
		if c.notices.allow("refused "+string(why), time.Now()) {
			c.log.Warn("message not understood", "reason", string(why), "bytes", len(b),
				"remedy", "see that all nodes run the same version")
		}
		return
	}
	now := time.Now()
	switch m := m.(type) {
	case heartbeat:
		c.beat(m, now)
	case news:
		if c.take(m.record, true, now, now) {
			c.pass(m.record, now)
		}
	case relay:
		heard := now.Add(-m.age)
		if c.take(m.record, false, heard, now) {
			c.pass(m.record, heard)
		}
	case state:
		for _, r := range m {
			c.take(r.record, false, now.Add(-r.age), now)
		}
	case change:
		c.amend(m, now)
	case versions:
		for _, v := range m {
			c.compare(v)
		}
	case request:
		c.note(func(time.Time) refusal {
			c.todo.owe = with(c.todo.owe, m.member, true)
			return ""
		})
	case claim:
		c.contest(m, now)
	case flows:
		c.exchange.receive(m)
	case wanted:
		c.note(func(time.Time) refusal {
			c.todo.wanted = with(c.todo.wanted, m.member, true)
			return ""
		})
	}
}

func (c *Cluster) beat(h heartbeat, now time.Time) {
	c.mu.Lock()
	p := c.roster.beat(h, now)
	if p.behind {
		c.todo.ask = with(c.todo.ask, h.member, true)
	}
	if p.past {
		c.todo.remind = with(c.todo.remind, h.member, c.roster.peers[h.member].version())
	}
	c.mu.Unlock()
	if p.beyond {
		c.outlive(h.boot)
	}
	if p.changed || p.behind || p.past {
		notify(c.wake)
	}
	if p.changed {
		notify(c.changes)
	}
}

// take tells whether the record is news.
func (c *Cluster) take(r *record, direct bool, heard, now time.Time) bool {
	c.mu.Lock()
	out, why := c.roster.take(r, direct, heard, now)
	c.mu.Unlock()
	switch {
	case why != "":
		c.refuse(why)
	case out == beyond:
		c.outlive(r.boot)
	case out == newer:
		c.metrics.received.Inc()
		notify(c.wake)
		notify(c.changes)
		return true
	}
	return false
}

// amend makes a member's newer record from the one that is held of it, or asks for
// the whole.
func (c *Cluster) amend(m change, now time.Time) {
	c.mu.Lock()
	r, why := c.roster.amend(m)
	c.mu.Unlock()
	switch {
	case why != "":
		c.refuse(why)
	case r != nil:
		c.take(r, true, now, now)
	default:
		c.compare(heartbeat{m.member, version{m.base.boot, m.sequence}})
	}
}

// compare asks for the record of a member that others have a newer one of.
func (c *Cluster) compare(v heartbeat) {
	c.mu.Lock()
	p := c.roster.compare(v)
	if p.behind {
		c.todo.ask = with(c.todo.ask, v.member, true)
	}
	c.mu.Unlock()
	if p.beyond {
		c.outlive(v.boot)
	}
	if p.behind {
		notify(c.wake)
	}
}

// outlive makes this member newer than what the others have seen of it.
func (c *Cluster) outlive(boot uint64) {
	c.note(func(time.Time) refusal {
		c.roster.outlive(boot)
		c.todo.boot = c.roster.own().boot
		return ""
	})
	notify(c.news)
	c.log.Info("the others know of a later start of this member: boot number raised", "seen", boot)
}

// pass hands a record on: memberlist does not relay what it brings.
func (c *Cluster) pass(r *record, heard time.Time) {
	c.broadcast(r, func() []byte { return relay{time.Since(heard), r}.encode() })
}

// broadcast puts a message with r into memberlist's gossip, if it fits there.
func (c *Cluster) broadcast(r *record, message func() []byte) {
	if 8*len(r.report.Observations) > maxPacket {
		return // before it is encoded
	}
	if len(message()) <= maxPacket {
		c.queue.QueueBroadcast(broadcast{r.member, message})
	}
}

// contest answers one who runs under our name. The one that has run for longer
// stays; uptimes need no clocks that agree. Too close to call, the lower
// address does.
func (c *Cluster) contest(m claim, now time.Time) {
	if m.member != c.cfg.Name || m.address == c.cfg.Listen {
		return
	}
	uptime := now.Sub(c.started)
	yield := uptime < m.uptime
	if (uptime - m.uptime).Abs() < time.Second {
		yield = m.address.Compare(c.cfg.Listen) < 0
	}
	c.note(func(time.Time) refusal {
		if yield {
			c.todo.fatal = fmt.Errorf("member name %q: %w by the member at %s: give each node a name of its own", c.cfg.Name, ErrNameTaken, m.address)
		} else {
			c.todo.rival(m.address) // it may not know of us yet
		}
		return refusedConflict
	})
	if !yield && c.notices.allow("own name", now) {
		c.log.Error("another member runs under this one's name", "member", c.cfg.Name, "address", m.address,
			"remedy", "give each node a name of its own; this one stays, the other is told to stop")
	}
}
