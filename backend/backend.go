package backend

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/halfproxy/halfproxy/internal/httpserver"
	"github.com/halfproxy/halfproxy/lb"
	"github.com/halfproxy/halfproxy/xdp"
)

// Config says what the host is to own, and from whom it takes packets.
type Config struct {
	Interfaces []string // that packets come in by and answers leave by
	VIPs       []lb.VIP
	Decap      xdp.Tunnels // what is taken off; none: no program
	GUEPort    uint16
	Sources    []netip.Prefix // who may send encapsulated packets
	FitMSS     bool           // of the VIPs' SYN-ACKs
	MSS        uint16         // to this; 0: to what fits under the encapsulation

	Listen   netip.AddrPort // health endpoint and metrics
	StateDir string         // for the journal; gone after a reboot, as what is in it

	Log        *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
	Gatherer   prometheus.Gatherer   // what /metrics shows; nil: there is none
}

// Backend is a host made the owner of VIPs.
type Backend struct {
	log        *slog.Logger
	registerer prometheus.Registerer
	gatherer   prometheus.Gatherer
	listener   net.Listener
	decap      *xdp.Decap // nil: nothing is taken off
	mss        *xdp.MSS   // nil: nothing is fitted
	sysctls    []*sysctl
	lo         *loopback
	interfaces map[string]int // by name, their indices
	gauge      prometheus.Collector

	closing sync.Mutex
	journal *journal // nil once Close was called
}

// look is how often the interfaces' addresses and MTU are looked at, and what
// was set up.
const look = 2 * time.Second

// ErrMadeAnew is what Run ends with when an interface that had gone is back: it
// has nothing of what New put on it. Another New does.
var ErrMadeAnew = errors.New("interface was made anew")

// New does everything that it takes, or nothing: when it fails, what it had done
// is taken back. Close, which Run calls when it ends, takes it back.
func New(cfg Config) (_ *Backend, err error) {
	b := &Backend{log: cfg.Log.With("part", "backend"), registerer: cfg.Registerer, gatherer: cfg.Gatherer}
	if b.journal, err = openJournal(cfg.StateDir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close())
		}
	}()
	if b.listener, err = httpserver.Listen(cfg.Listen); err != nil {
		return nil, err
	}
	if err = b.attach(cfg); err != nil {
		return nil, err
	}
	if b.sysctls, err = setSysctls(cfg.Interfaces, b.journal); err != nil {
		return nil, err
	}
	if b.lo, err = openLoopback(cfg.VIPs); err != nil {
		return nil, err
	}
	if b.interfaces, err = b.lo.indices(cfg.Interfaces); err != nil {
		return nil, err
	}
	if err = b.lo.put(b.journal, b.log); err != nil {
		return nil, err
	}
	if cfg.Registerer != nil {
		gauge := healthGauge(b)
		if err = cfg.Registerer.Register(gauge); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
		b.gauge = gauge
	}
	b.log.Info("host owns the vips", "vips", len(cfg.VIPs), "interfaces", strings.Join(cfg.Interfaces, " "))
	return b, nil
}

// attach puts the programs on the interfaces, those that there is work for.
func (b *Backend) attach(cfg Config) (err error) {
	if err := xdp.RemoveLeftMSS(); err != nil {
		return err
	}
	tunnels := cfg.Decap != xdp.Tunnels{}
	for _, s := range cfg.Sources {
		if tunnels && s.Bits() == 0 {
			b.log.Warn("everybody may send encapsulated packets, with any source address inside: list the load balancers alone in sources", "source", s)
		}
	}
	if tunnels {
		b.decap, err = xdp.AttachDecap(xdp.DecapConfig{
			Interfaces: cfg.Interfaces, Tunnels: cfg.Decap, GUEPort: cfg.GUEPort, Sources: cfg.Sources, VIPs: cfg.VIPs,
			Log: cfg.Log, Registerer: cfg.Registerer,
		})
		if err != nil {
			return err
		}
	}
	if !cfg.FitMSS || !tunnels && cfg.MSS == 0 {
		return nil
	}
	b.mss, err = xdp.AttachMSS(xdp.MSSConfig{
		Interfaces: cfg.Interfaces, VIPs: cfg.VIPs, Limit: cfg.mssLimit, Log: cfg.Log, Registerer: cfg.Registerer,
	})
	return err
}

// Run serves the health endpoint and keeps the programs up to date with their
// interfaces until ctx ends or an interface was made anew, then takes everything
// back.
func (b *Backend) Run(ctx context.Context) error {
	life, end := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() {
		defer end()
		served <- b.serve(life)
	}()
	err := b.watch(life)
	end()
	return errors.Join(err, <-served, b.Close())
}

func (b *Backend) watch(ctx context.Context) error {
	ticker := time.NewTicker(look)
	defer ticker.Stop()
	var before []string
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		for name, index := range b.interfaces {
			now, err := b.lo.indices([]string{name})
			if err == nil && now[name] != index {
				return fmt.Errorf("%s: %w", name, ErrMadeAnew)
			}
		}
		b.follow()
		before = b.tell(before, b.Unhealthy())
	}
}

// follow's errors are those of an interface that is gone: Unhealthy tells of it.
func (b *Backend) follow() {
	if b.decap != nil {
		if err := b.decap.Follow(); err != nil {
			b.log.Debug("addresses not followed", "err", err)
		}
	}
	if b.mss != nil {
		if err := b.mss.Follow(); err != nil {
			b.log.Debug("mtu not followed", "err", err)
		}
	}
}

// tell logs what became of the host's health, and gives after.
func (b *Backend) tell(before, after []string) []string {
	if slices.Equal(before, after) {
		return after
	}
	for _, reason := range after {
		b.log.Warn("backend is not as it has to be", "reason", reason)
	}
	if len(after) == 0 {
		b.log.Info("backend is again as it has to be")
	}
	return after
}

// Unhealthy gives the reasons why packets for the VIPs may not be served, none
// when everything is in place. It may be called by several at once.
func (b *Backend) Unhealthy() []string {
	var errs []error
	if b.decap != nil {
		errs = append(errs, b.decap.Attached())
	}
	if b.mss != nil {
		errs = append(errs, b.mss.Attached())
	}
	for _, s := range b.sysctls {
		errs = append(errs, s.check())
	}
	errs = append(errs, b.lo.check())
	var reasons []string
	if err := errors.Join(errs...); err != nil {
		reasons = strings.Split(err.Error(), "\n")
	}
	return reasons
}

// Close takes back everything that New did, for a caller that does not come to
// Run. A second call does nothing. What could not be taken back stays in the
// journal, for the next start.
func (b *Backend) Close() error {
	b.closing.Lock()
	defer b.closing.Unlock()
	if b.journal == nil {
		return nil
	}
	if b.gauge != nil {
		b.registerer.Unregister(b.gauge)
	}
	if b.listener != nil {
		b.listener.Close()
	}
	var errs []error
	if b.lo != nil {
		errs = append(errs, b.lo.takeBack(b.journal))
		b.lo.netlink.Close()
	}
	for _, s := range b.sysctls {
		errs = append(errs, s.restore(b.journal))
		s.file.Close()
	}
	if b.mss != nil {
		errs = append(errs, b.mss.Close())
	}
	if b.decap != nil {
		errs = append(errs, b.decap.Close())
	}
	errs = append(errs, b.journal.close())
	b.journal = nil
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("take back what was set up: %w", err)
	}
	b.log.Info("everything taken back")
	return nil
}
