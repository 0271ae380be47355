package xdp

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/cilium/ebpf/rlimit"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/lb"
)

// MSSLimit is the biggest MSS that a VIP of either family may tell its clients.
type MSSLimit struct{ IPv4, IPv6 uint16 }

// MSSConfig says whose SYN-ACKs are fitted, and to what.
type MSSConfig struct {
	Interfaces []string               // that answers leave by
	VIPs       []lb.VIP               // whose answers they are
	Limit      func(mtu int) MSSLimit // what fits an interface of this MTU
	Log        *slog.Logger           // nil: no log
	Registerer prometheus.Registerer  // nil: no metrics
}

// MSS is the program of bpf/mss.bpf.c on the interfaces of a backend: a filter
// at the egress hook of tc.
type MSS struct {
	log     *slog.Logger
	limit   func(mtu int) MSSLimit
	objects mssObjects
	netlink *netlink.Handle
	hooks   []*mssHook
	metrics *mssMetrics
}

// mssHook is an interface that the program sits on.
type mssHook struct {
	tcHook
	limit MSSLimit // that the program has
}

// mssFilter is the name of our filters.
const mssFilter = "halfproxy_mss"

func newMSSHook(link string, ifindex int) *mssHook {
	return &mssHook{tcHook: tcHook{link: link, ifindex: ifindex, parent: netlink.HANDLE_MIN_EGRESS, name: mssFilter}}
}

// AttachMSS puts a program on the interfaces that lowers the MSS in the SYN-ACKs
// of VIPs to Limit. It is on all interfaces or none.
func AttachMSS(cfg MSSConfig) (*MSS, error) {
	if err := checkKernel(); err != nil {
		return nil, err
	}
	found, err := findInterfaces(cfg.Interfaces)
	if err != nil {
		return nil, err
	}
	m, err := loadMSSProgram(cfg)
	if err != nil {
		return nil, err
	}
	for _, iface := range found {
		m.hooks = append(m.hooks, newMSSHook(iface.Name, iface.Index))
	}
	if err := m.attach(cfg.Registerer); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// loadMSSProgram loads the program, which sits nowhere yet.
func loadMSSProgram(cfg MSSConfig) (*MSS, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, explainLoad(fmt.Errorf("lift the limit of locked memory: %w", err))
	}
	spec, err := loadMss()
	if err != nil {
		return nil, fmt.Errorf("read the embedded program that fits the MSS: %w", err)
	}
	spec.Maps["own_vips"].MaxEntries = uint32(max(1, len(cfg.VIPs)))
	m := &MSS{log: part(cfg.Log), limit: cfg.Limit}
	if err := spec.LoadAndAssign(&m.objects, nil); err != nil {
		return nil, explainLoad(fmt.Errorf("load the program that fits the MSS: %w", err))
	}
	if err := enterVIPs(m.objects.OwnVips, cfg.VIPs); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

func (m *MSS) attach(registerer prometheus.Registerer) error {
	var err error
	if m.netlink, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	if err := m.Follow(); err != nil {
		return err
	}
	for _, h := range m.hooks {
		if err := h.attach(m.netlink, m.objects.FitMss); err != nil {
			return fmt.Errorf("%w; or set mss to off", err)
		}
		m.log.Info("mss fitting attached", "interface", h.link, "ipv4", h.limit.IPv4, "ipv6", h.limit.IPv6)
	}
	if registerer == nil {
		return nil
	}
	metrics := &mssMetrics{m, registerer}
	if err := registerer.Register(metrics); err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	m.metrics = metrics
	return nil
}

// RemoveLeftMSS removes what AttachMSS put on interfaces for a process that died:
// the filters, and the qdiscs where nobody else uses them.
func RemoveLeftMSS() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		if err := newMSSHook(l.Attrs().Name, l.Attrs().Index).clear(h); err != nil {
			return err
		}
	}
	return nil
}

// Follow fits the limits to the MTU that the interfaces have now. It is to be
// called when that may have changed; not by two at once.
func (m *MSS) Follow() error {
	for _, h := range m.hooks {
		l, err := m.netlink.LinkByIndex(h.ifindex)
		if err != nil {
			return fmt.Errorf("ask for the MTU of %s: %w", h.link, err)
		}
		if err := m.setLimit(h, m.limit(l.Attrs().MTU)); err != nil {
			return err
		}
	}
	return nil
}

func (m *MSS) setLimit(h *mssHook, limit MSSLimit) error {
	if limit == h.limit {
		return nil
	}
	if err := m.objects.MssLimits.Put(uint32(h.ifindex), mssMssLimit{Ipv4: limit.IPv4, Ipv6: limit.IPv6}); err != nil {
		return fmt.Errorf("enter the mss of %s: %w", h.link, err)
	}
	h.limit = limit
	return nil
}

// Attached is nil while the program sits on every interface, else it says which
// one it is missing from.
func (m *MSS) Attached() error {
	var errs []error
	for _, h := range m.hooks {
		there, err := h.attached(m.netlink)
		if err != nil {
			errs = append(errs, err)
		} else if !there {
			errs = append(errs, fmt.Errorf("mss fitting is not on %s: its filter was removed: restart", h.link))
		}
	}
	return errors.Join(errs...)
}

// Lowered is how many SYN-ACKs had their MSS lowered.
func (m *MSS) Lowered() (uint64, error) {
	n, err := sum(m.objects.MssLowered, 0)
	if err != nil {
		return 0, fmt.Errorf("read the counter of lowered mss: %w", err)
	}
	return n, nil
}

// Close takes the program off the interfaces, and the qdisc that it needed if
// it was put there for it and nobody else uses it. A second call does nothing.
func (m *MSS) Close() error {
	if m.metrics != nil {
		m.metrics.registerer.Unregister(m.metrics)
		m.metrics = nil
	}
	var errs []error
	for _, h := range m.hooks {
		errs = append(errs, h.detach(m.netlink))
	}
	m.hooks = nil
	if m.netlink != nil {
		m.netlink.Close()
		m.netlink = nil
	}
	return errors.Join(append(errs, m.objects.Close())...)
}

var mssLoweredDesc = prometheus.NewDesc("halfproxy_backend_mss_lowered_total", "SYN-ACKs of a VIP whose MSS was lowered to fit the encapsulation.", nil, nil)

// mssMetrics reads the program's counter when it is scraped.
type mssMetrics struct {
	m          *MSS
	registerer prometheus.Registerer
}

func (m *mssMetrics) Describe(ch chan<- *prometheus.Desc) { ch <- mssLoweredDesc }

func (m *mssMetrics) Collect(ch chan<- prometheus.Metric) {
	n, err := m.m.Lowered()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(mssLoweredDesc, err)
		return
	}
	ch <- prometheus.MustNewConstMetric(mssLoweredDesc, prometheus.CounterValue, float64(n))
}
