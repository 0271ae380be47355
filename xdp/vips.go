package xdp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"

	"github.com/halfproxy/halfproxy/lb"
)

// Flags in bpf/types.h: of a key's family.
const (
	anyPort  = 0x10
	ofPrefix = 0x20
)

// noService is the value of a VIP's own entry in vips.
const noService = ^uint32(0)

// mostPrefixes is how many VIPs may be prefixes: half of what vip_prefixes holds,
// as new ones are entered before old ones are taken out.
const mostPrefixes = 4096

// endpoint is what packets find a service by: a VIP and a port. Without a number
// it is all ports of the protocol, as fragments need it, or its ranges; without
// a protocol it is the VIP itself.
type endpoint struct {
	vip  lb.VIP
	port lb.Port
}

func (e endpoint) String() string {
	if e.port == (lb.Port{}) {
		return e.vip.String()
	}
	return fmt.Sprintf("%s %s", e.vip, e.port)
}

// directory says which service a packet is for.
type directory struct {
	vips   map[endpoint]string // services; none: the VIP itself
	ranges map[endpoint][]portRange
}

// portRange is a range of ports and the service that has it.
type portRange struct {
	port    lb.Port
	service string
}

// holding is what services have of a VIP.
type holding struct {
	ports  map[lb.Port]string
	ranges map[lb.Protocol][]portRange
	owners map[lb.Protocol]string // the one service that has all of it, empty where there are several
}

// newDirectory finds what cannot be looked up, beside the directory of what can.
func newDirectory(tables []lb.Table) (directory, error) {
	held := make(map[lb.VIP]*holding)
	portless := make(map[string]bool) // services whose flows need no ports
	var errs []error
	for _, t := range tables {
		portless[t.Service.Name] = !t.Service.HashFields().NeedPorts()
		for _, vip := range t.Service.VIPs {
			if held[vip] == nil {
				held[vip] = &holding{make(map[lb.Port]string), make(map[lb.Protocol][]portRange), make(map[lb.Protocol]string)}
			}
			errs = append(errs, held[vip].enter(t.Service, vip))
		}
	}

	prefixes := 0
	for vip := range held {
		if !vip.IsSingleIP() {
			prefixes++
		}
	}
	if prefixes > mostPrefixes {
		errs = append(errs, fmt.Errorf("%d vips are prefixes: the program has room for %d", prefixes, mostPrefixes))
	}

	d := directory{make(map[endpoint]string), make(map[endpoint][]portRange)}
	around := lb.Around(slices.Collect(maps.Keys(held)))
	for _, vip := range slices.SortedFunc(maps.Keys(held), lb.VIP.Compare) {
		h := held[vip]
		if wider, nested := around[vip]; nested {
			h.inherit(held[wider], vip)
		}
		d.vips[endpoint{vip: vip}] = ""
		for port, service := range h.ports {
			d.vips[endpoint{vip, port}] = service
		}
		for protocol, service := range h.owners {
			if portless[service] {
				d.vips[endpoint{vip, lb.Port{Protocol: protocol}}] = service
			}
		}
		for protocol, list := range h.ranges {
			d.ranges[endpoint{vip, lb.Port{Protocol: protocol}}] = list
			if most := len(bpfRanges{}.Range); len(list) > most {
				errs = append(errs, fmt.Errorf("vip %s has %d ranges of %s ports, with those of the prefixes that it lies in: the program looks through %d", vip, len(list), protocol, most))
			}
		}
	}
	return d, errors.Join(errs...)
}

// enter makes s's ports h's.
func (h *holding) enter(s lb.Service, vip lb.VIP) error {
	var errs []error
	for _, p := range s.Ports {
		h.own(p.Protocol, s.Name)
		if p.Last == 0 {
			if other, taken := h.ports[p]; taken && other != s.Name {
				errs = append(errs, fmt.Errorf("service %q: vip %s %s already belongs to %q", s.Name, vip, p, other))
			}
			h.ports[p] = s.Name
			continue
		}
		for _, other := range h.ranges[p.Protocol] {
			if other.port.Clashes(p) && other.service != s.Name {
				errs = append(errs, fmt.Errorf("service %q: vip %s %s overlaps %s of %q", s.Name, vip, p, other.port, other.service))
			}
		}
		h.ranges[p.Protocol] = append(h.ranges[p.Protocol], portRange{p, s.Name})
	}
	return errors.Join(errs...)
}

func (h *holding) own(p lb.Protocol, service string) {
	if owner, shared := h.owners[p]; shared && owner != service {
		service = ""
	}
	h.owners[p] = service
}

// inherit adds what vip has not itself of the prefix around it. For an address
// the program looks there too, for a prefix it does not.
func (h *holding) inherit(wider *holding, vip lb.VIP) {
	for protocol, service := range wider.owners {
		h.own(protocol, service)
	}
	if vip.IsSingleIP() {
		return
	}
	for port, service := range wider.ports {
		within := func(r portRange) bool { return r.port.Number <= port.Number && port.Number <= r.port.Last }
		if _, own := h.ports[port]; !own && !slices.ContainsFunc(h.ranges[port.Protocol], within) {
			h.ports[port] = service
		}
	}
	for protocol, list := range wider.ranges {
		h.ranges[protocol] = slices.Concat(h.ranges[protocol], list) // the first that fits is taken
	}
}

// prefixes are the routes to all VIPs.
func (d directory) prefixes() map[netip.Prefix]bool {
	prefixes := make(map[netip.Prefix]bool)
	for e := range d.vips {
		prefixes[e.vip.Prefix] = true
	}
	return prefixes
}

// number stands for a VIP that is a prefix in the keys of vips and port_ranges.
type number struct {
	is      uint32
	entered bool // in vip_prefixes
}

// direct makes to the whole of what the program looks up.
func (d *Dataplane) direct(to directory) error {
	wanted := make(map[lb.VIP]bool)
	for e := range to.vips {
		if !e.vip.IsSingleIP() {
			wanted[e.vip] = true
		}
	}
	for vip := range wanted {
		if _, there := d.prefixes[vip]; !there {
			d.lastPrefix++ // never again: a packet may have just read one that is given up
			d.prefixes[vip] = number{is: d.lastPrefix}
		}
	}

	// What goes stays until there is what comes in its place.
	both := maps.Clone(d.vips)
	for e, name := range to.vips {
		both[e] = d.numberOf(name)
	}
	if err := d.enterVIPs(both); err != nil {
		return err
	}
	if err := d.enterRanges(to.ranges); err != nil {
		return err
	}
	if err := d.enterPrefixes(wanted); err != nil {
		return err
	}
	atomic.StoreUint32(&d.store.directory.Ranges, uint32(len(to.ranges)))
	atomic.StoreUint32(&d.store.directory.Prefixes, uint32(len(wanted)))

	gone := func(vip lb.VIP) bool { return !wanted[vip] }
	for vip := range d.prefixes {
		if gone(vip) {
			if err := takeOut(d.store.maps[bpfMapVipPrefixes], mappedPrefix(vip.Prefix)); err != nil {
				return fmt.Errorf("take out vip %s: %w", vip, err)
			}
			d.prefixes[vip] = number{is: d.prefixes[vip].is}
		}
	}
	maps.DeleteFunc(both, func(e endpoint, _ uint32) bool {
		_, stays := to.vips[e]
		return !stays
	})
	if err := d.enterVIPs(both); err != nil {
		return err
	}
	for e := range d.ranges {
		if _, stays := to.ranges[e]; !stays {
			if err := takeOut(d.store.maps[bpfMapPortRanges], d.rangesKey(e)); err != nil {
				return fmt.Errorf("take out the port ranges of vip %s: %w", e, err)
			}
			delete(d.ranges, e)
		}
	}
	maps.DeleteFunc(d.prefixes, func(vip lb.VIP, _ number) bool { return gone(vip) })
	return nil
}

func (d *Dataplane) numberOf(service string) uint32 {
	if service == "" {
		return noService
	}
	return d.services[service].number
}

// enterVIPs makes wanted the whole of what vips has, in one step.
func (d *Dataplane) enterVIPs(wanted map[endpoint]uint32) error {
	if maps.Equal(wanted, d.vips) {
		return nil
	}
	entries := make([]bpfVipEntry, 0, len(wanted))
	for e, number := range wanted {
		entries = append(entries, bpfVipEntry{Key: d.vipKey(e), Service: number})
	}
	now := atomic.LoadUint64(&d.store.directory.Buckets)
	half := len(d.store.vips) / 2
	first := 0
	if now>>32 == 0 {
		first = half
	}
	time.Sleep(time.Until(d.directed.Add(rest)))
	buckets, ok := place(d.store.vips[first:first+half], entries)
	if !ok {
		return fmt.Errorf("%d pairs of VIP and port: there is room for %d", len(entries), half)
	}
	atomic.StoreUint64(&d.store.directory.Buckets, uint64(first)<<32|uint64(buckets-1))
	d.directed = time.Now()
	d.vips = maps.Clone(wanted)
	return nil
}

func (d *Dataplane) enterRanges(wanted map[endpoint][]portRange) error {
	for e, list := range wanted {
		var ranges bpfRanges
		for i, r := range list {
			ranges.Range[i] = bpfRange{First: r.port.Number, Last: r.port.Last, Service: d.services[r.service].number + 1}
		}
		if old, there := d.ranges[e]; there && old == ranges {
			continue
		}
		if err := d.store.maps[bpfMapPortRanges].Put(d.rangesKey(e), ranges); err != nil {
			return fmt.Errorf("enter the port ranges of vip %s: %w", e, err)
		}
		d.ranges[e] = ranges
	}
	return nil
}

// enterPrefixes leads packets to what is entered under the prefixes' numbers.
func (d *Dataplane) enterPrefixes(wanted map[lb.VIP]bool) error {
	m := d.store.maps[bpfMapVipPrefixes]
	for vip := range wanted {
		n := d.prefixes[vip]
		if n.entered {
			continue
		}
		if err := m.Put(mappedPrefix(vip.Prefix), n.is); err != nil {
			return fmt.Errorf("enter vip %s: %w", vip, err)
		}
		d.prefixes[vip] = number{n.is, true}
	}
	return nil
}

// takeOut deletes what may be gone already.
func takeOut(m *ebpf.Map, key any) error {
	if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

// vipKey is the endpoint in vips.
func (d *Dataplane) vipKey(e endpoint) bpfVipKey {
	key := d.rangesKey(e)
	key.Port = bigEndian(e.port.Number)
	if e.port.Protocol != 0 && e.port.Number == 0 {
		key.Family |= anyPort
	}
	return key
}

// rangesKey is the endpoint in port_ranges.
func (d *Dataplane) rangesKey(e endpoint) bpfVipKey {
	key := bpfVipKey{Address: words(e.vip.Addr()), Protocol: uint8(e.port.Protocol), Family: 6}
	if e.vip.Addr().Is4() {
		key.Family = 4
	}
	if !e.vip.IsSingleIP() {
		key.Address = [4]uint32{d.prefixes[e.vip].is}
		key.Family |= ofPrefix
	}
	return key
}

// bigEndian is a port as it lies in a packet, and back.
func bigEndian(port uint16) uint16 { return port>>8 | port<<8 }

// words is an address as it lies in a packet, an IPv4 one mapped.
func words(a netip.Addr) (w [4]uint32) {
	b := a.As16()
	for i := range w {
		w[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return w
}

// mappedPrefix is a prefix as the programs look it up: an IPv4 one mapped.
func mappedPrefix(p netip.Prefix) bpfPrefix {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return bpfPrefix{Bits: uint32(bits), Address: words(p.Addr())}
}
