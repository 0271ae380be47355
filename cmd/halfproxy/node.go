package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/halfproxy/halfproxy/admin"
	"github.com/halfproxy/halfproxy/bfd"
	"github.com/halfproxy/halfproxy/bgp"
	"github.com/halfproxy/halfproxy/cluster"
	"github.com/halfproxy/halfproxy/config"
	"github.com/halfproxy/halfproxy/control"
	"github.com/halfproxy/halfproxy/events"
	"github.com/halfproxy/halfproxy/health"
	"github.com/halfproxy/halfproxy/lb"
	"github.com/halfproxy/halfproxy/xdp"
)

// longestTakeover is how long the program of the process before forwards on at most
// while this one gets to know which backends are well.
const longestTakeover = 15 * time.Second

// notice is how long before what is planned routes change the other members are told: for
// them to hear of it, for who has just begun to connect to have answered, and for his
// record to be told of.
const notice = 500 * time.Millisecond

// What control asks of its subsystems, they do.
var (
	_ control.Dataplane = (*xdp.Dataplane)(nil)
	_ control.Announcer = (*bgp.Speaker)(nil)
	_ control.Cluster   = (*cluster.Cluster)(nil)
	_ control.Checker   = (*health.Checker)(nil)
)

// node is a load balancer node with all its parts.
type node struct {
	log     *slog.Logger
	started time.Time
	load    func() (config.Config, error) // reads the configuration anew

	dataplane *xdp.Dataplane
	checker   *health.Checker
	members   *cluster.Cluster // nil where the node stands alone
	speaker   *bgp.Speaker     // nil where nothing is announced
	bfd       *bfd.Client      // likewise
	hops      bgp.NextHops     // that speaker begins with
	control   *control.Controller
	admin     *admin.Server

	mu  sync.Mutex
	cfg config.Config // as last taken
}

// newNode makes the parts of a node, and reports at once what keeps it from
// running: a missing capability, a taken port. The program sits on its
// interfaces when it returns and passes every packet until there are tables.
func newNode(cfg config.Config, pin string, happened *events.Ring, registry *prometheus.Registry, log *slog.Logger) (_ *node, err error) {
	stateDir := os.Getenv("STATE_DIRECTORY") // systemd's

	n := &node{log: log.With("part", "node"), started: time.Now(), cfg: cfg}
	defer func() {
		if err != nil {
			n.leave()
		}
	}()
	n.admin, err = admin.New(admin.Config{
		Listen: cfg.HTTP.Listen, Socket: cfg.Admin.Socket,
		Status: n.status, Health: n.unhealthy, Ready: n.unready, Trace: n.trace, Capture: n.capture, Settings: n.settings, Reload: n.reload,
		Order:    func(ctx context.Context, o lb.Order) error { return n.control.Order(ctx, o) },
		Events:   happened.After,
		Traffic:  func() (admin.Traffic, error) { return n.traffic() },
		Gatherer: registry, Log: log,
	})
	if err != nil {
		return nil, err
	}
	n.dataplane, err = xdp.New(xdp.Config{
		Interfaces: cfg.Node.Interfaces, Mode: xdpModes[cfg.Node.XDPMode], Pin: pin, FlowRecords: cfg.Node.FlowRecords, Log: log, Registerer: registry,
	})
	if err != nil {
		return nil, err
	}
	if err := n.dataplane.Deny(cfg.Denied); err != nil {
		return nil, err
	}
	n.checker = health.New(health.Config{DialVIP: n.dataplane.DialVIP, Log: log, Registerer: registry})
	controls := control.Config{
		Node: cfg.Node.Name, Size: cfg.Cluster.Size, PartitionHold: cfg.Cluster.PartitionHold,
		HoldUp: cfg.BGP.HoldUp, GracefulShutdown: cfg.BGP.GracefulShutdown,
		Dataplane: n.dataplane, Announcer: nobody{}, Cluster: nobody{}, Checker: n.checker,
		Log: log, Registerer: registry,
	}
	if err := keepState(&controls, stateDir); err != nil {
		return nil, err
	}
	if cfg.Cluster.Alone() {
		controls.Secret = machineSecret()
	} else {
		n.members, err = cluster.New(cluster.Config{
			Name: cfg.Node.Name, Cluster: cfg.Cluster.Name, Listen: cfg.Cluster.Listen, Join: cfg.Cluster.Join,
			Keys: cfg.Cluster.Keys, StateDir: stateDir, Flows: n.dataplane, Log: log, Registerer: registry,
		})
		if err != nil {
			return nil, err
		}
		controls.Secret = cfg.Cluster.HashKey
		controls.Hold = n.withoutFlows
		controls.Notice = notice
		controls.Cluster = n.members
	}
	if len(cfg.BGP.Peers) > 0 {
		if err := n.newSpeaker(stateDir, registry, log); err != nil {
			return nil, err
		}
		controls.Announcer = n.speaker
	}
	n.control = control.New(controls)
	if err := n.setAggregates(cfg.BGP.Aggregates); err != nil {
		return nil, err
	}
	if err := n.dataplane.Attach(); err != nil {
		return nil, err
	}
	if n.speaker != nil && n.dataplane.TakingOver() {
		n.speaker.Resume()
	}
	return n, nil
}

// keepState has control go on with the orders and steps of the process before, and keep
// them for the next one, where there is a state directory.
func keepState(controls *control.Config, stateDir string) (err error) {
	if stateDir == "" {
		return nil
	}
	orders := keptFile[[]lb.Order]{filepath.Join(stateDir, "orders.json"), "orders"}
	if controls.Orders, err = orders.read(); err != nil {
		return err
	}
	controls.KeepOrders = orders.write
	steps := keptFile[map[string]lb.History]{filepath.Join(stateDir, "steps.json"), "steps of tables"}
	if controls.Histories, err = steps.read(); err != nil {
		return err
	}
	controls.KeepHistories = steps.write
	return nil
}

// run lets every part do its work until ctx ends or a part fails. Then routes
// go first, packets are forwarded a little longer, and only then do the parts
// stop; unless errRestart is the cause.
func (n *node) run(ctx context.Context, manager *systemd) error {
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	parts, life := errgroup.WithContext(life)
	start := func(name string, run func(context.Context) error) {
		parts.Go(func() error {
			if err := run(life); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	n.control.SetServices(n.cfg.Services)
	start("data plane", n.dataplane.Run)
	start("takeover", n.takeOver)
	start("health checks", n.checker.Run)
	start("control", n.control.Run)
	start("news", n.passNews)
	start("deny list", n.watchDenied)
	start("admin", n.admin.Run)
	if n.members != nil {
		start("cluster", n.members.Run)
		start("records of flows", n.shareFlows)
	}
	if n.speaker != nil {
		start("bgp", n.speak)
		start("bfd", n.bfd.Run)
		start("bfd and bgp", n.watchBFD)
		start("next hops", n.watchNextHops)
	}

	parts.Go(func() error {
		manager.feed(life, n.alive)
		return nil
	})
	manager.ready()

	select {
	case <-life.Done():
	case <-ctx.Done():
		manager.stopping()
		if errors.Is(context.Cause(ctx), errRestart) {
			n.depart()
		} else {
			n.stop(life)
		}
		end()
	}
	return parts.Wait()
}

// alive tells whether control has come to a decision lately.
func (n *node) alive(within time.Duration) bool {
	last := n.control.Status().Time
	if last.IsZero() {
		last = n.started
	}
	return time.Since(last) < within
}

// passNews wakes control when there is something new to decide on.
func (n *node) passNews(ctx context.Context) error {
	var members <-chan struct{}
	if n.members != nil {
		members = n.members.Changes()
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.checker.Changes():
		case <-members:
		}
		n.control.Wake()
	}
}

// shareFlows tells the other members of flows whose backend their tables may not say.
func (n *node) shareFlows(ctx context.Context) error {
	const rest, most = time.Millisecond, 1 << 14 // the program wakes nobody who rests
	failing := false
	for {
		list, err := n.dataplane.FreshFlows(ctx, most)
		if err != nil && !failing {
			n.log.Warn("records of flows not shared: flows may break that routers move to another node", "err", err)
		}
		failing = err != nil
		if len(list) > 0 {
			n.members.ShareFlows(list)
		}
		pause := rest
		if failing {
			pause = time.Second
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// withoutFlows says what a node lacks that has just joined.
func (n *node) withoutFlows() string {
	if n.members.FlowsFetched() {
		return ""
	}
	return "the other members' records of flows have not come yet"
}

// takeOver waits until our tables are as whole as those of the process before,
// by which packets are forwarded until then. Where backends are not judged it
// waits for longestTakeover at most.
func (n *node) takeOver(ctx context.Context) error {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for n.dataplane.TakingOver() {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		in, judged := tables(n.control.Status())
		if !in || !judged && time.Since(n.started) < longestTakeover {
			continue
		}
		if err := n.dataplane.TakeOver(); err != nil {
			n.log.Error("program not taken over, will retry", "err", err)
			ticker.Reset(time.Second)
		}
	}
	return nil
}

// tables says whether every service's table is in, and whether each was built
// with a verdict on every backend.
func tables(st control.Status) (in, judged bool) {
	in, judged = st.Config != 0, true
	for _, s := range st.Services {
		in = in && s.Table != 0
		for _, b := range s.Backends {
			judged = judged && b.State != lb.Unknown
		}
	}
	return in, judged
}

// close gives back what newNode took hold of. The parts no longer run.
func (n *node) close() { n.end((*xdp.Dataplane).Close) }

// leave is close as for a crash: what is pinned goes on forwarding, and the next
// process takes it over.
func (n *node) leave() { n.end((*xdp.Dataplane).Leave) }

func (n *node) end(end func(*xdp.Dataplane) error) {
	if n.admin != nil {
		n.admin.Close()
	}
	if n.dataplane == nil {
		return
	}
	if err := end(n.dataplane); err != nil {
		n.log.Error("data plane left something behind", "err", err)
	}
}

// config is the configuration as last taken.
func (n *node) config() config.Config {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cfg
}

// reload takes the configuration anew. A wrong one changes nothing; neither
// does one that asks for what only a restart can change.
func (n *node) reload(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			n.log.Error("configuration not taken, the old one stays", "err", err)
		}
	}()
	cfg, err := n.load()
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := restartNeeded(n.cfg, cfg); err != nil {
		return err
	}
	if n.speaker != nil {
		if err := n.speaker.SetPeers(ctx, peers(cfg)); err != nil {
			return fmt.Errorf("change bgp.peers: %w", err)
		}
		if err := n.bfd.SetPeers(bfdPeers(cfg)); err != nil {
			return fmt.Errorf("change bgp.peers: %w", err)
		}
	}
	if n.members != nil {
		if err := n.members.SetKeys(cfg.Cluster.Keys); err != nil {
			return fmt.Errorf("change cluster.key_file: %w", err)
		}
		if err := n.members.SetJoin(cfg.Cluster.Join); err != nil {
			return fmt.Errorf("change cluster.join: %w", err)
		}
	}
	n.control.SetQuorum(cfg.Cluster.Size, cfg.Cluster.PartitionHold)
	if err := n.dataplane.Deny(cfg.Denied); err != nil {
		return fmt.Errorf("change node.deny_file: %w", err)
	}
	if err := n.setAggregates(cfg.BGP.Aggregates); err != nil {
		return fmt.Errorf("change bgp.aggregates: %w", err)
	}
	n.control.SetServices(cfg.Services)
	n.cfg = cfg
	n.log.Info("configuration taken", "services", len(cfg.Services), "peers", len(cfg.BGP.Peers))
	return nil
}

// restartNeeded names all that differs between old and new and cannot change
// while the node runs.
func restartNeeded(old, new config.Config) error {
	var errs []error
	for _, c := range config.Diff(old.Settings(), new.Settings()) {
		if c.NeedsRestart() {
			errs = append(errs, fmt.Errorf("%s: %s", c, effect(c)))
		}
	}
	return errors.Join(errs...)
}

var xdpModes = map[string]xdp.Mode{
	config.XDPAuto:    xdp.Auto,
	config.XDPNative:  xdp.Native,
	config.XDPGeneric: xdp.Generic,
}

// machineSecret keys the flow hashes of a node that shares no key with anybody.
// It stays the same over restarts. The machine's ID is to be kept from others
// and used hashed only, says machine-id(5).
func machineSecret() []byte {
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		id = []byte(rand.Text()) // no ID to keep: flows find another backend after a restart
	}
	secret := sha256.Sum256(append([]byte("halfproxy "), id...))
	return secret[:]
}

// nobody is the cluster of a node that stands alone, and the routers of one
// that announces nothing.
type nobody struct{}

func (nobody) Publish(lb.Report)                          {}
func (nobody) Records() []lb.Record                       { return nil }
func (nobody) Announce(context.Context, []lb.Route) error { return nil }
