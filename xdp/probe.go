package xdp

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/internal/ethtool"
	"github.com/halfproxy/halfproxy/lb"
)

// What probes of VIPs need in the kernel is there as long as a service has them:
//
//	hp-vip-2    the device that the VIPs' routes lead to, filter at its egress
//	hp-way-2    the other end of that veth pair, filter at its ingress
//	eth0, ...   filter at the ingress, for the answers
//
// with the programs of bpf/probe.bpf.c. 2 is the number of the first interface that
// the Dataplane has: no other can have that one, too. A process that dies leaves it
// all behind, a black hole for VIPs, and the next one clears it away.
const (
	deviceName    = "hp-vip-"
	deviceFarEnd  = "hp-way-"
	deviceAlias   = "halfproxy: health checks of VIPs"
	deviceMTU     = 1500
	deviceFarMTU  = 2000 // with an outer header
	deviceFilter  = "halfproxy_probe"
	answerFilter  = "halfproxy_answer"
	firstNumber   = 1 << 16 // beyond every priority that anything else uses
	routePriority = blackholePriority / 2
)

// probes is the way to VIPs by that of one backend.
type probes struct {
	netlink *netlink.Handle
	log     *slog.Logger

	// The Dataplane's mu guards these.
	last    uint32                // number that a backend got
	vips    map[lb.VIP]bool       // of the services to be probed
	routed  map[netip.Prefix]bool // all VIPs: some may lie within others
	numbers map[uint32]uint32     // of backends to be probed, their entries
	device  *probeDevice          // nil: not there

	mu      sync.Mutex // guards what follows; taken after the Dataplane's where both are
	lanes   map[laneID]lane
	problem error // why no probe can go out
	ends    *ebpf.Map
	entered map[netip.Addr]probeProbeEnd // in ends
}

// probeDevice is what is in the kernel.
type probeDevice struct {
	near, far  *netlink.LinkAttrs
	programs   probePrograms
	store      *store // that the programs work by
	probed     *ebpf.Map
	numbers    map[uint32]uint32 // in probed
	departures [2]*tcHook        // of near and far
	answers    map[int]*tcHook   // of the interfaces that answers come in by
	routes     map[netip.Prefix]bool
}

func newProbes(h *netlink.Handle, log *slog.Logger) *probes {
	return &probes{netlink: h, log: log, last: firstNumber, lanes: make(map[laneID]lane)}
}

// wantProbes finds what there is to be probed. Whoever has a number keeps it, and
// none is given twice: a socket may still be using it.
func (d *Dataplane) wantProbes(tables []lb.Table, vips map[netip.Prefix]bool) {
	p := d.probes
	p.vips, p.routed, p.numbers = make(map[lb.VIP]bool), vips, make(map[uint32]uint32)
	there := make(map[laneID]bool)
	for _, t := range tables {
		wanted := t.Service.Check.Via == lb.ViaVIP
		for _, b := range d.services[t.Service.Name].members {
			switch {
			case !wanted:
				b.number = 0
				continue
			case b.number == 0:
				p.last++
				b.number = p.last
			}
			p.numbers[b.number] = b.entry()
			there[b.lane()] = true
		}
		if wanted {
			for _, vip := range t.Service.VIPs {
				p.vips[vip] = true
			}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.lanes, func(id laneID, _ lane) bool { return !there[id] })
}

// fitProbes makes what is in the kernel fit what is to be probed. Packets are
// forwarded without it: what keeps it from being done is said by every probe.
func (d *Dataplane) fitProbes() {
	p := d.probes
	if p.netlink == nil {
		return
	}
	err := p.fit(d)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil && (p.problem == nil || p.problem.Error() != err.Error()) {
		p.log.Error("no health check can go to a vip, will retry", "err", err)
	}
	p.problem = err
}

func (p *probes) fit(d *Dataplane) error {
	if len(p.vips) == 0 {
		return p.clear()
	}
	if err := p.fitDevice(d); err != nil {
		return err
	}
	return errors.Join(
		p.device.fitPrograms(p, d.store),
		p.device.fitAnswers(p, d.answerLinks()),
		p.device.fitNumbers(p.numbers),
		p.fitEnds(),
		p.device.fitRoutes(p),
	)
}

// answerLinks are the interfaces that answers may come in by.
func (d *Dataplane) answerLinks() map[int]string {
	links := make(map[int]string)
	d.attached.Lock()
	defer d.attached.Unlock()
	for _, p := range d.ports {
		if p.lost == nil {
			links[p.ifindex] = p.name
		}
	}
	for _, r := range d.hops.routes {
		if r.looked && r.err == nil && d.hops.links[r.via.ifindex] != nil {
			links[r.via.ifindex] = d.hops.links[r.via.ifindex].Attrs().Name
		}
	}
	return links
}

// fitDevice makes the device, if it is not there or not as it was made.
func (p *probes) fitDevice(d *Dataplane) error {
	if p.device != nil {
		near, err := p.isUp(p.device.near)
		far, farErr := p.isUp(p.device.far)
		if err := errors.Join(err, farErr); err != nil || near && far {
			return err
		}
		p.log.Warn("device for health checks of vips was removed or taken down, it is made anew", "device", p.device.near.Name)
		if err := p.removeDevice(); err != nil {
			return err
		}
	}
	links, err := p.netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	d.attached.Lock()
	number := strconv.Itoa(d.ports[0].ifindex)
	d.attached.Unlock()
	if err := p.clearLeft(links, deviceName+number); err != nil {
		return err
	}
	if p.device, err = p.makeDevice(number); err != nil {
		return err
	}
	p.log.Info("device for health checks of vips made", "device", p.device.near.Name)
	return nil
}

// isUp says whether the end of the pair that was made is still there, and up.
func (p *probes) isUp(end *netlink.LinkAttrs) (bool, error) {
	l, err := p.netlink.LinkByIndex(end.Index)
	if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", end.Name, err)
	}
	return l.Attrs().Name == end.Name && l.Attrs().Flags&net.FlagUp != 0, nil
}

// makeDevice makes the pair, without routes that lead to it and without filters.
func (p *probes) makeDevice(number string) (_ *probeDevice, err error) {
	name, farEnd := deviceName+number, deviceFarEnd+number
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, deviceMTU
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerMTU = farEnd, deviceFarMTU
	if err := p.netlink.LinkAdd(veth); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) {
			return nil, fmt.Errorf("make the veth device %s: %w: the kernel has none, load its module veth", name, err)
		}
		return nil, fmt.Errorf("make the veth device %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("set up the veth device %s: %w", name, err), p.netlink.LinkDel(veth))
		}
	}()
	device := &probeDevice{answers: make(map[int]*tcHook), routes: make(map[netip.Prefix]bool)}
	for end, at := range map[string]**netlink.LinkAttrs{name: &device.near, farEnd: &device.far} {
		l, err := p.netlink.LinkByName(end)
		if err != nil {
			return nil, err
		}
		if err := errors.Join(
			p.netlink.LinkSetAlias(l, deviceAlias),
			p.netlink.LinkSetARPOff(l), // everything is on the link
			p.netlink.LinkSetIP6AddrGenMode(l, nl.IN6_ADDR_GEN_MODE_NONE),
			ethtool.ChecksumOff(end),
			p.netlink.LinkSetUp(l),
		); err != nil {
			return nil, err
		}
		*at = l.Attrs()
	}
	for i, end := range []*tcHook{{parent: netlink.HANDLE_MIN_EGRESS}, {parent: netlink.HANDLE_MIN_INGRESS}} {
		at := [...]*netlink.LinkAttrs{device.near, device.far}[i]
		end.link, end.ifindex, end.name = at.Name, at.Index, deviceFilter
		device.departures[i] = end
	}
	return device, nil
}

// clearLeft removes what processes that died left behind: what has our name, and
// devices named after an interface that no program sits on.
func (p *probes) clearLeft(links []netlink.Link, ours string) error {
	carries := make(map[string]bool)
	for _, l := range links {
		x := l.Attrs().Xdp
		carries[deviceName+strconv.Itoa(l.Attrs().Index)] = x != nil && x.Attached
	}
	for _, l := range links {
		name := l.Attrs().Name
		if strings.HasPrefix(name, deviceName) && l.Type() == "veth" && (name == ours || !carries[name]) {
			if err := p.netlink.LinkDel(l); err != nil {
				return fmt.Errorf("remove the device %s that an earlier process left: %w", name, err)
			}
			continue
		}
		hook := answerHook(l.Attrs().Index, name)
		if err := hook.clear(p.netlink); err != nil && !errors.Is(err, unix.ENODEV) { // the other end of what was removed
			return err
		}
	}
	return nil
}

func answerHook(ifindex int, name string) *tcHook {
	return &tcHook{link: name, ifindex: ifindex, parent: netlink.HANDLE_MIN_INGRESS, name: answerFilter}
}

// fitPrograms loads the programs over the store's backends, and puts them on the
// device. Where they were already the new ones take their places.
func (v *probeDevice) fitPrograms(p *probes, s *store) error {
	if v.store == s {
		return nil
	}
	spec, err := loadProbe()
	if err != nil {
		return fmt.Errorf("read the embedded program of probes: %w", err)
	}
	if err := p.makeEnds(spec.Maps[probeMapProbeEnds]); err != nil {
		return err
	}
	var mac [6]byte
	copy(mac[:], v.near.HardwareAddr)
	backends := s.maps[bpfMapBackends]
	spec.Maps[probeMapBackends].MaxEntries = backends.MaxEntries()
	spec.Maps[probeMapProbed].MaxEntries = backends.MaxEntries()
	probed, err := ebpf.NewMap(spec.Maps[probeMapProbed])
	if err != nil {
		return explainLoad(fmt.Errorf("map %s: %w", probeMapProbed, err))
	}
	var programs probePrograms
	if err = errors.Join(
		spec.Variables[probeVarDeviceIfindex].Set(uint32(v.near.Index)),
		spec.Variables[probeVarDeviceMac].Set(macBits(mac)),
	); err == nil {
		err = spec.LoadAndAssign(&programs, &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{
			probeMapBackends: backends, probeMapProbed: probed, probeMapProbeEnds: p.ends,
		}})
	}
	if err != nil {
		return errors.Join(explainLoad(fmt.Errorf("load the programs of probes: %w", err)), probed.Close())
	}
	err = errors.Join(v.closePrograms(), fill(probed, p.numbers))
	v.programs, v.probed, v.numbers = programs, probed, maps.Clone(p.numbers)
	err = errors.Join(err, v.departures[0].attach(p.netlink, programs.NumberProbe), v.departures[1].attach(p.netlink, programs.SendProbe))
	for _, hook := range v.answers {
		err = errors.Join(err, hook.attach(p.netlink, programs.TakeAnswer))
	}
	if err == nil {
		v.store = s
	}
	return err
}

func fill(m *ebpf.Map, entries map[uint32]uint32) error {
	for number, entry := range entries {
		if err := m.Put(number, entry); err != nil {
			return fmt.Errorf("enter a backend to be probed: %w", err)
		}
	}
	return nil
}

// makeEnds makes the map of the ends, which every program goes on with.
func (p *probes) makeEnds(spec *ebpf.MapSpec) (err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ends != nil {
		return nil
	}
	if p.ends, err = ebpf.NewMap(spec); err != nil {
		return explainLoad(fmt.Errorf("map %s: %w", probeMapProbeEnds, err))
	}
	p.entered = make(map[netip.Addr]probeProbeEnd)
	return nil
}

// fitAnswers has answers taken where they may come in, and nowhere else.
func (v *probeDevice) fitAnswers(p *probes, links map[int]string) error {
	var errs []error
	for index, hook := range v.answers {
		if links[index] == "" {
			delete(v.answers, index)
			errs = append(errs, hook.detach(p.netlink))
		}
	}
	for index, name := range links {
		hook := v.answers[index]
		if hook == nil {
			hook = answerHook(index, name)
			v.answers[index] = hook
		}
		there, err := hook.attached(p.netlink)
		if err == nil && !there {
			err = hook.attach(p.netlink, v.programs.TakeAnswer)
		}
		if err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// fitNumbers leads packets with a backend's number to the backend's entry.
func (v *probeDevice) fitNumbers(wanted map[uint32]uint32) error {
	fresh := maps.Clone(wanted)
	maps.DeleteFunc(fresh, func(number, entry uint32) bool { old, there := v.numbers[number]; return there && old == entry })
	if err := fill(v.probed, fresh); err != nil {
		return err
	}
	maps.Copy(v.numbers, fresh)
	for number := range v.numbers {
		if _, stays := wanted[number]; !stays {
			if err := takeOut(v.probed, number); err != nil {
				return fmt.Errorf("take out a backend that was probed: %w", err)
			}
			delete(v.numbers, number)
		}
	}
	return nil
}

// fitEnds has answers of the VIPs known.
func (p *probes) fitEnds() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	wanted := make(map[netip.Addr]bool)
	for vip := range p.vips {
		wanted[vip.Sample()] = true
		if err := p.enter(vip.Sample(), probeProbeEndPROBE_VIP); err != nil {
			return err
		}
	}
	for a, end := range p.entered {
		if end == probeProbeEndPROBE_VIP && !wanted[a] {
			if err := takeOut(p.ends, addressKey(a)); err != nil {
				return fmt.Errorf("take out vip %s: %w", a, err)
			}
			delete(p.entered, a)
		}
	}
	return nil
}

// enter makes a known as what answers come from or go to.
func (p *probes) enter(a netip.Addr, end probeProbeEnd) error {
	if old, there := p.entered[a]; there && old == end {
		return nil
	}
	if err := p.ends.Put(addressKey(a), end); err != nil {
		return fmt.Errorf("enter %s as an end of probes: %w", a, err)
	}
	p.entered[a] = end
	return nil
}

// fitRoutes leads VIPs to the device: before their blackhole
// routes, which stay for the time when the device is gone.
func (v *probeDevice) fitRoutes(p *probes) error {
	for vip := range p.routed {
		if v.routes[vip] {
			continue
		}
		err := p.netlink.RouteAdd(v.route(vip))
		if errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("vip %s has another route of metric %d: `ip route show %[1]s` shows it, give it another: %[3]w", vip, routePriority, err)
		}
		if err != nil {
			return fmt.Errorf("add the route of vip %s to %s: %w", vip, v.near.Name, err)
		}
		v.routes[vip] = true
	}
	for vip := range v.routes {
		if p.routed[vip] {
			continue
		}
		if err := p.netlink.RouteDel(v.route(vip)); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove the route of vip %s to %s: %w", vip, v.near.Name, err)
		}
		delete(v.routes, vip)
	}
	return nil
}

func (v *probeDevice) route(vip netip.Prefix) *netlink.Route {
	return &netlink.Route{
		Dst:       &net.IPNet{IP: vip.Addr().AsSlice(), Mask: net.CIDRMask(vip.Bits(), vip.Addr().BitLen())},
		LinkIndex: v.near.Index,
		Scope:     netlink.SCOPE_LINK,
		Protocol:  lb.KernelProtocol,
		Priority:  routePriority,
	}
}

func (v *probeDevice) closePrograms() error {
	err := v.programs.Close()
	if v.probed != nil {
		err = errors.Join(err, v.probed.Close())
	}
	return err
}

// removeDevice removes all that is outside our own memory, but for the ends.
func (p *probes) removeDevice() error {
	v := p.device
	if v == nil {
		return nil
	}
	var errs []error
	for _, hook := range v.answers { // the others go with the device
		errs = append(errs, hook.detach(p.netlink))
	}
	err := p.netlink.LinkDel(&netlink.Veth{LinkAttrs: *v.near}) // the far end and the routes go along
	if err != nil && !errors.Is(err, unix.ENODEV) {
		errs = append(errs, fmt.Errorf("remove the device %s: %w", v.near.Name, err))
	}
	errs = append(errs, v.closePrograms())
	p.device = nil
	return errors.Join(errs...)
}

// clear removes everything.
func (p *probes) clear() error {
	err := p.removeDevice()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ends != nil {
		err = errors.Join(err, p.ends.Close())
		p.ends, p.entered = nil, nil
	}
	return err
}
