package xdp

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/lb"
)

// Tunnels are kinds of encapsulation, each with either family inside and outside.
type Tunnels struct{ IPIP, GRE, GUE bool }

// DecapConfig says what a backend takes the outer headers off.
type DecapConfig struct {
	Interfaces []string
	Tunnels    Tunnels
	GUEPort    uint16         // 0: lb.DefaultGUEPort
	Sources    []netip.Prefix // who may send encapsulated packets
	VIPs       []lb.VIP       // whom they may be for

	Log        *slog.Logger          // nil: no log
	Registerer prometheus.Registerer // nil: no metrics
}

// Decap is the program of bpf/decap.bpf.c on the interfaces of a backend.
type Decap struct {
	log     *slog.Logger
	objects decapObjects
	hooks   []decapHook
	netlink *netlink.Handle
	ends    map[decapTunnelEnd]bool // as the program has them
	metrics *decapMetrics
}

// decapHook is an interface that the program sits on.
type decapHook struct {
	name    string
	ifindex int
	link    link.Link
	mode    Mode
}

// DecapStats counts packets by what became of them. All but those taken off
// passed to the kernel as they came, or were dropped where it says so.
type DecapStats struct {
	IPIP, GRE, GUE   uint64 // taken off
	NoTunnel         uint64
	Malformed        uint64 // headers cut or lying, outer or inner
	OtherDestination uint64 // the tunnel does not end here
	OtherSource      uint64 // not one of those allowed
	Fragment         uint64 // of a tunnel's packet
	Unsupported      uint64 // flags, options or a protocol that are not spoken here
	BadChecksum      uint64 // dropped: the outer UDP checksum is wrong
	NotVIP           uint64 // dropped: inside was a packet for somebody else
	NotECT           uint64 // dropped: congestion was met, and the ends know no ECN (RFC 6040)
}

// TakenOff is how many packets were handed on without their outer headers.
func (s DecapStats) TakenOff() uint64 { return s.IPIP + s.GRE + s.GUE }

// AttachDecap puts a program on the interfaces that takes off the outer headers
// of packets that come from Sources, go to an address that their interface has,
// and carry a packet for one of VIPs. In native mode where the driver can do it,
// else in generic mode; then the log says so. It is on all interfaces or none.
func AttachDecap(cfg DecapConfig) (*Decap, error) {
	if err := checkKernel(); err != nil {
		return nil, err
	}
	found, err := findInterfaces(cfg.Interfaces)
	if err != nil {
		return nil, err
	}
	d, err := loadDecapsulation(cfg)
	if err != nil {
		return nil, err
	}
	if err := d.attach(cfg, found); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// loadDecapsulation loads the program, which sits nowhere and accepts nothing yet.
func loadDecapsulation(cfg DecapConfig) (*Decap, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, explainLoad(fmt.Errorf("lift the limit of locked memory: %w", err))
	}
	spec, err := readProgram(loadDecap, "decapsulation program")
	if err != nil {
		return nil, err
	}
	port := cfg.GUEPort
	if port == 0 {
		port = lb.DefaultGUEPort
	}
	for name, value := range map[string]any{
		"take_ipip": cfg.Tunnels.IPIP, "take_gre": cfg.Tunnels.GRE, "take_gue": cfg.Tunnels.GUE, "gue_port": port,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("set %s of the decapsulation program: %w", name, err)
		}
	}
	// A map without room for anything is none.
	spec.Maps["sources"].MaxEntries = uint32(max(1, len(cfg.Sources)))
	spec.Maps["own_vips"].MaxEntries = uint32(max(1, len(cfg.VIPs)))
	d := &Decap{log: part(cfg.Log), ends: make(map[decapTunnelEnd]bool)}
	if err := spec.LoadAndAssign(&d.objects, nil); err != nil {
		return nil, explainLoad(fmt.Errorf("load the decapsulation program: %w", err))
	}
	for _, p := range cfg.Sources {
		if err := d.objects.Sources.Put(mappedPrefix(p), uint8(1)); err != nil {
			return nil, errors.Join(fmt.Errorf("enter source %s: %w", p, err), d.Close())
		}
	}
	if err := enterVIPs(d.objects.OwnVips, cfg.VIPs); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// enterVIPs fills a map of either program.
func enterVIPs(m *ebpf.Map, vips []lb.VIP) error {
	for _, vip := range vips {
		if err := m.Put(mappedPrefix(vip.Prefix), uint8(1)); err != nil {
			return fmt.Errorf("enter vip %s: %w", vip, err)
		}
	}
	return nil
}

// part is the log of this package's parts.
func part(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return log.With("part", "xdp")
}

func (d *Decap) attach(cfg DecapConfig, found []net.Interface) error {
	var err error
	if d.netlink, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	for _, iface := range found {
		d.hooks = append(d.hooks, decapHook{name: iface.Name, ifindex: iface.Index})
	}
	if err := d.Follow(); err != nil {
		return err
	}
	for i := range d.hooks {
		h := &d.hooks[i]
		h.link, h.mode, err = attach(h.name, Auto, func(mode Mode) (link.Link, error) {
			return link.AttachXDP(link.XDPOptions{Program: d.objects.Decapsulate, Interface: h.ifindex, Flags: xdpFlags(mode)})
		}, func(err error) {
			d.log.Warn("native mode refused, generic mode used: slower", "interface", h.name, "err", err)
		})
		if err != nil {
			return err
		}
		d.log.Info("decapsulation attached", "interface", h.name, "mode", h.mode)
	}
	if cfg.Registerer == nil {
		return nil
	}
	m := &decapMetrics{d, cfg.Registerer}
	if err := cfg.Registerer.Register(m); err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	d.metrics = m
	return nil
}

// Follow makes the addresses that the interfaces have now the ends of tunnels.
// It is to be called when they may have changed; not by two at once.
func (d *Decap) Follow() error {
	wanted := make(map[decapTunnelEnd]bool)
	for _, h := range d.hooks {
		attrs := netlink.LinkAttrs{Index: h.ifindex}
		list, err := d.netlink.AddrList(&netlink.Dummy{LinkAttrs: attrs}, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("list the addresses of %s: %w", h.name, err)
		}
		for _, a := range list {
			if ip, ok := netip.AddrFromSlice(a.IP); ok {
				wanted[tunnelEnd(h.ifindex, ip.Unmap())] = true
			}
		}
	}
	return d.setEnds(wanted)
}

func (d *Decap) setEnds(wanted map[decapTunnelEnd]bool) error {
	for end := range wanted {
		if d.ends[end] {
			continue
		}
		if err := d.objects.TunnelEnds.Put(end, uint8(1)); err != nil {
			return fmt.Errorf("enter an end of tunnels: %w", err)
		}
		d.ends[end] = true
	}
	for end := range d.ends {
		if wanted[end] {
			continue
		}
		if err := d.objects.TunnelEnds.Delete(end); err != nil {
			return fmt.Errorf("remove an end of tunnels: %w", err)
		}
		delete(d.ends, end)
	}
	return nil
}

func tunnelEnd(ifindex int, a netip.Addr) decapTunnelEnd {
	end := decapTunnelEnd{Ifindex: uint32(ifindex)}
	end.Address.Word = words(a)
	return end
}

// Attached is nil while the program sits on every interface, else it says which
// one it is missing from.
func (d *Decap) Attached() error {
	var errs []error
	for _, h := range d.hooks {
		info, err := h.link.Info()
		if err != nil {
			errs = append(errs, fmt.Errorf("ask for the decapsulation on %s: %w", h.name, err))
			continue
		}
		// A link outlives its interface.
		if x := info.XDP(); x == nil || x.Ifindex == 0 {
			errs = append(errs, fmt.Errorf("decapsulation is not on %s: the interface it was on is gone", h.name))
		}
	}
	return errors.Join(errs...)
}

// Modes tells how the program sits on each interface.
func (d *Decap) Modes() map[string]Mode {
	modes := make(map[string]Mode)
	for _, h := range d.hooks {
		modes[h.name] = h.mode
	}
	return modes
}

// Stats reads the program's counters.
func (d *Decap) Stats() (DecapStats, error) {
	var sums [decapDecapVerdictDECAP_MAX]uint64
	for v := range sums {
		var err error
		if sums[v], err = sum(d.objects.DecapVerdicts, uint32(v)); err != nil {
			return DecapStats{}, fmt.Errorf("read the counters of decapsulation: %w", err)
		}
	}
	return DecapStats{
		IPIP:             sums[decapDecapVerdictDECAP_IPIP],
		GRE:              sums[decapDecapVerdictDECAP_GRE],
		GUE:              sums[decapDecapVerdictDECAP_GUE],
		NoTunnel:         sums[decapDecapVerdictDECAP_NO_TUNNEL],
		Malformed:        sums[decapDecapVerdictDECAP_MALFORMED],
		OtherDestination: sums[decapDecapVerdictDECAP_OTHER_DESTINATION],
		OtherSource:      sums[decapDecapVerdictDECAP_OTHER_SOURCE],
		Fragment:         sums[decapDecapVerdictDECAP_FRAGMENT],
		Unsupported:      sums[decapDecapVerdictDECAP_UNSUPPORTED],
		NotVIP:           sums[decapDecapVerdictDECAP_NOT_VIP],
		BadChecksum:      sums[decapDecapVerdictDECAP_BAD_CHECKSUM],
		NotECT:           sums[decapDecapVerdictDECAP_NOT_ECT],
	}, nil
}

var _ [12]struct{} = [decapDecapVerdictDECAP_MAX]struct{}{} // one field of DecapStats per verdict

// sum adds up what the processors have counted under key.
func sum(m *ebpf.Map, key uint32) (total uint64, err error) {
	var perCPU []uint64
	if err := m.Lookup(key, &perCPU); err != nil {
		return 0, err
	}
	for _, n := range perCPU {
		total += n
	}
	return total, nil
}

// Close takes the program off the interfaces. A second call does nothing.
func (d *Decap) Close() error {
	if d.metrics != nil {
		d.metrics.registerer.Unregister(d.metrics)
		d.metrics = nil
	}
	var errs []error
	for _, h := range d.hooks {
		if h.link == nil {
			continue
		}
		if err := h.link.Close(); err != nil { // not pinned: closing detaches
			errs = append(errs, fmt.Errorf("take the decapsulation off %s: %w", h.name, err))
		}
	}
	d.hooks = nil
	if d.netlink != nil {
		d.netlink.Close()
		d.netlink = nil
	}
	return errors.Join(append(errs, d.objects.Close())...)
}

var (
	decapsulatedDesc = prometheus.NewDesc("halfproxy_backend_decapsulated_packets_total", "Packets handed to the kernel without their outer headers, by kind of tunnel.", []string{"kind"}, nil)
	refusedDesc      = prometheus.NewDesc("halfproxy_backend_refused_packets_total", "Packets of tunnels that were not taken off, by reason.", []string{"reason"}, nil)
)

// decapMetrics reads the program's counters when it is scraped.
type decapMetrics struct {
	d          *Decap
	registerer prometheus.Registerer
}

func (m *decapMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- decapsulatedDesc
	ch <- refusedDesc
}

func (m *decapMetrics) Collect(ch chan<- prometheus.Metric) {
	s, err := m.d.Stats()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(decapsulatedDesc, err)
		return
	}
	counter := func(desc *prometheus.Desc, value uint64, label string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(value), label)
	}
	counter(decapsulatedDesc, s.IPIP, "ipip")
	counter(decapsulatedDesc, s.GRE, "gre")
	counter(decapsulatedDesc, s.GUE, "gue")
	counter(refusedDesc, s.Malformed, "malformed")
	counter(refusedDesc, s.OtherDestination, "other_destination")
	counter(refusedDesc, s.OtherSource, "other_source")
	counter(refusedDesc, s.Fragment, "fragment")
	counter(refusedDesc, s.Unsupported, "unsupported")
	counter(refusedDesc, s.BadChecksum, "bad_checksum")
	counter(refusedDesc, s.NotVIP, "not_vip")
	counter(refusedDesc, s.NotECT, "not_ect")
}

// AttachPass puts a program on the interface, in native mode, that lets
// everything through. A veth takes what its peer's program sends back the way
// it came (XDP_TX) only while it has a program of its own. Close takes it off.
func AttachPass(iface string) (io.Closer, error) {
	found, err := findInterfaces([]string{iface})
	if err != nil {
		return nil, err
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, explainLoad(fmt.Errorf("lift the limit of locked memory: %w", err))
	}
	spec, err := readProgram(loadPass, "passing program")
	if err != nil {
		return nil, err
	}
	var objects passObjects
	if err := spec.LoadAndAssign(&objects, nil); err != nil {
		return nil, explainLoad(fmt.Errorf("load the passing program: %w", err))
	}
	defer objects.Close() // the link holds the program
	l, _, err := attach(iface, Native, func(mode Mode) (link.Link, error) {
		return link.AttachXDP(link.XDPOptions{Program: objects.Pass, Interface: found[0].Index, Flags: xdpFlags(mode)})
	}, func(error) {})
	return l, err
}
