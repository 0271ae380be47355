package xdp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

// service is a service as it stands in the maps.
type service struct {
	name     string
	number   uint32              // its entry of services
	room     region              // its entries of backends
	unused   []uint32            // entries of room that nobody has
	members  map[string]*backend // by name
	leaving  map[*backend]uint32 // and their entries
	departed Count               // of backends that left

	lifetime   uint16   // of records, in ticks; 0: there are none
	lives      uint8    // that backends have had, of services before it with its number too
	limit      lb.Limit // as the program has it, be it of no use any more
	quic       lb.QUIC
	serverIDs  map[bpfServerId]uint32 // the entries that they lead to
	countsQUIC bool

	pages  region    // its slots
	turned time.Time // when a packet may last have seen the other generation
	// after is what went out of use, to rest once the table has turned.
	after []func()
}

// backend is a backend of one service.
type backend struct {
	service *service
	name    string
	address netip.Addr
	forward lb.Forward
	tunnel  tunnel
	index   uint32 // counted from the service's first entry
	tally   tally
	turned  time.Time // when a packet may last have seen the other path
	problem string    // why there is no way to it
	number  uint32    // that its probes have; 0: there are none

	life  uint8 // that its records have
	lives bool  // flows at it are let live
	// watched: packets to it are counted for Holds, be its service without records.
	watched bool
	use     use
}

// inReview tells whether each look at the records counts packets to it.
func (b *backend) inReview() bool { return b.watched || b.service.lifetime > 0 }

// lifeBits are the life as it stands in the entry.
func (b *backend) lifeBits() uint64 { return uint64(b.life) << hopLifeBit }

func (b *backend) entry() uint32 { return b.service.room.start + b.index }

// flags are what stands in a service's active beside 0 or 1 (bpf/types.h).
func (d *Dataplane) flags(s lb.Service) uint32 {
	f := uint32(s.HashFields())<<1 | d.denyingFlag() | quicFlags(s.QUIC)
	if s.Limit != (lb.Limit{}) {
		f |= limited
	}
	return f
}

// fieldsOf is what a packet finds there of them.
func fieldsOf(active uint32) lb.HashFields { return lb.HashFields(active >> 1 & 0xf) }

// Apply makes tables the whole of what the program forwards by. Only what
// differs is written; a packet sees a service's old table or its new one, never
// a mixture. Calling it again with the same tables does nothing; after an error,
// calling it again does what was left undone.
func (d *Dataplane) Apply(ctx context.Context, tables []lb.Table) error {
	directory, err := newDirectory(tables)
	if err := errors.Join(check(tables), err); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	defer func() { d.applied++ }()
	if err := ctx.Err(); err != nil {
		return err
	}
	if d.store == nil {
		return errClosed
	}
	d.settle(time.Now())
	if err := d.reserve(tables); err != nil {
		return err
	}

	// The way up: backends, tables, then the VIPs that lead packets there.
	// The blackholes first of all, that nothing loops through the kernel.
	if err := d.blackhole.add(directory.prefixes()); err != nil {
		return err
	}
	named := make(map[string]bool)
	for _, t := range tables {
		named[t.Service.Name] = true
		if err := d.enroll(t); err != nil {
			return fmt.Errorf("service %s: %w", t.Service.Name, err)
		}
	}
	d.wantProbes(tables, directory.prefixes())
	if err := d.resolveNew(); err != nil {
		return err
	}
	scratch := []bpfSlot(nil)
	for _, t := range tables {
		s := d.services[t.Service.Name]
		err := d.swap(s, t, &scratch)
		if err == nil {
			err = d.applyServerIDs(s, t)
		}
		if err != nil {
			return fmt.Errorf("service %s: %w", s.name, err)
		}
		d.endLives(s, t)
		d.release(s)
	}
	d.learnForetold(time.Now())
	if err := d.direct(directory); err != nil {
		return err
	}
	// The way down: the VIPs are gone, so are packets for what they led to.
	for name, s := range d.services {
		if named[name] {
			continue
		}
		if err := d.remove(s); err != nil {
			return fmt.Errorf("service %s: %w", name, err)
		}
	}
	d.warnOfMergedSegments(tables)
	d.fitProbes()
	d.attached.Lock()
	err = d.aim()
	d.attached.Unlock()
	return errors.Join(err, d.blackhole.keep(directory.prefixes()))
}

// Aggregate makes aggregates those prefixes around VIPs that routers are told of, so
// that the kernel drops what comes for an address in them that is no VIP: it would
// send that back.
func (d *Dataplane) Aggregate(aggregates []netip.Prefix) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.blackhole.aggregate(aggregates)
}

// warnOfMergedSegments tells once that generic mode and encapsulation go ill
// together: the program runs after the kernel has merged segments (GRO), and
// those do not fit in an outer header.
func (d *Dataplane) warnOfMergedSegments(tables []lb.Table) {
	encapsulated := slices.ContainsFunc(tables, func(t lb.Table) bool { return t.Service.Forward != lb.L2 })
	if d.warned || !encapsulated {
		return
	}
	for name, mode := range d.Modes() {
		if mode == Generic {
			d.warned = true
			d.log.Warn("encapsulation in generic mode drops merged segments as too_big: switch merging off with `ethtool -K IFACE gro off lro off`", "interface", name)
		}
	}
}

// check finds what cannot be applied.
func check(tables []lb.Table) error {
	seen := make(map[string]bool)
	var errs []error
	for _, t := range tables {
		name := t.Service.Name
		if seen[name] {
			errs = append(errs, fmt.Errorf("service %q listed twice", name))
		}
		seen[name] = true
		if t.Service.Forward > lb.GUE {
			errs = append(errs, fmt.Errorf("service %q: the program cannot forward by %s", name, t.Service.Forward))
		}
		errs = append(errs, checkServerIDs(t))
		for _, s := range t.Slots {
			if int(s) >= len(t.Backends) {
				errs = append(errs, fmt.Errorf("service %q: a slot holds backend %d of %d", name, s, len(t.Backends)))
				break
			}
		}
		errs = append(errs, checkBases(t))
	}
	return errors.Join(errs...)
}

// later has then done when no packet can be using what is out of use now.
func (d *Dataplane) later(then func()) {
	d.resting = append(d.resting, resting{time.Now().Add(rest), then})
}

// settle does what has rested long enough.
func (d *Dataplane) settle(now time.Time) {
	for len(d.resting) > 0 && !now.Before(d.resting[0].until) {
		then := d.resting[0].then
		d.resting = d.resting[1:]
		then()
	}
}

// pagesFor is the pages that a table of so many slots takes.
func pagesFor(slots int) uint32 { return (uint32(slots) + slotsPerPage - 1) / slotsPerPage }

// roomFor is the entries that are set aside for so many backends: some more,
// so that one that comes need not move the others.
func roomFor(backends int) uint32 { return min((uint32(backends)*5/4+4)&^3, lb.MaxBackends) }

// reserve grows the maps once for all tables, in the place of many times. It
// counts on a table's old and new slots being there at the same time, and on
// gaps.
func (d *Dataplane) reserve(tables []lb.Table) error {
	var pages, entries, widestTable, widestRoom uint32
	for _, t := range tables {
		p, e := pagesFor(len(t.Slots)), roomFor(max(len(t.Backends), len(t.Service.Backends)))
		pages, widestTable = pages+p, max(widestTable, p)
		entries, widestRoom = entries+e, max(widestRoom, e)
	}
	pages += pages/4 + widestTable
	entries += entries/4 + widestRoom
	if pages <= d.pages.size && entries <= d.entries.size {
		return nil
	}
	return d.grow(d.pages.sizeFor(pages), d.entries.sizeFor(entries))
}

// takePages and takeEntries find room: what is free, what has rested, or more.
func (d *Dataplane) takePages(n uint32) (region, error) {
	return d.take(&d.pages, n, func() error { return d.grow(d.pages.sizeFor(d.pages.size+n), d.entries.size) })
}

func (d *Dataplane) takeEntries(n uint32) (region, error) {
	return d.take(&d.entries, n, func() error { return d.grow(d.pages.size, d.entries.sizeFor(d.entries.size+n)) })
}

func (d *Dataplane) take(s *space, n uint32, grow func() error) (region, error) {
	if n == 0 {
		return region{}, nil
	}
	r, ok := s.take(n)
	if !ok && len(d.resting) > 0 {
		time.Sleep(time.Until(d.resting[len(d.resting)-1].until))
		d.settle(time.Now())
		r, ok = s.take(n)
	}
	if !ok {
		if err := grow(); err != nil {
			return region{}, err
		}
		r, _ = s.take(n)
	}
	return r, nil
}

// enroll gives every backend of the service an entry, which it keeps while it
// belongs to the service: those that the table leaves out included, so that
// their counters live on and their next hops are known when they return.
func (d *Dataplane) enroll(t lb.Table) error {
	s := d.services[t.Service.Name]
	if s == nil {
		number, ok := d.numbers.take(1)
		if !ok {
			return fmt.Errorf("the program has room for %d services", d.numbers.size)
		}
		s = &service{
			name: t.Service.Name, number: number.start, members: make(map[string]*backend), leaving: make(map[*backend]uint32),
			serverIDs: make(map[bpfServerId]uint32), lives: d.lives[number.start],
		}
		d.services[s.name] = s
	}
	s.quic = t.Service.QUIC
	if s.enrolled(t) {
		return nil
	}

	wanted := make(map[string]netip.Addr, len(t.Backends))
	for _, b := range slices.Concat(t.Service.Backends, t.Alive, t.Backends) {
		wanted[b.Name] = b.Address
	}
	if len(wanted) > lb.MaxBackends {
		return fmt.Errorf("%d backends: a service can have %d", len(wanted), lb.MaxBackends)
	}
	for name, b := range s.members {
		if _, stays := wanted[name]; !stays {
			d.dismiss(b)
		}
	}
	missing := len(wanted) - len(s.members)
	if missing > len(s.unused) {
		if err := d.move(s, len(wanted)); err != nil {
			return err
		}
	}
	for name, address := range wanted {
		b := s.members[name]
		if b == nil {
			index := s.unused[0]
			s.unused = s.unused[1:]
			s.lives++
			b = &backend{service: s, name: name, index: index, life: s.lives}
			s.members[name] = b
			d.occupy(b, b.entry())
		}
		d.name(b, address)
		b.forward, b.tunnel = t.Service.Forward, tunnelOf(t.Service)
		if b.address != address {
			d.hops.leave(b)
			if b.address.IsValid() { // what was there is gone
				b.begin()
			}
			b.address = address
			d.hops.join(b)
		}
	}
	return nil
}

// enrolled tells whether the service has the table's backends as they are, as of most
// services it does when Apply is called.
func (s *service) enrolled(t lb.Table) bool {
	if len(s.members) != len(t.Service.Backends) {
		return false
	}
	tunnel := tunnelOf(t.Service)
	for _, list := range [...][]lb.Backend{t.Service.Backends, t.Alive, t.Backends} {
		for _, b := range list {
			m := s.members[b.Name]
			if m == nil || m.address != b.Address || m.forward != t.Service.Forward || m.tunnel != tunnel {
				return false
			}
		}
	}
	return true
}

// occupy makes a free entry b's: without a next hop until its way is written,
// and counted from where the one before left off.
func (d *Dataplane) occupy(b *backend, entry uint32) {
	atomic.StoreUint64(&d.store.backends[entry].NextHop, b.lifeBits())
	b.tally.begin(entry, d.tails[entry])
}

// dismiss takes a backend out of its service. Its entry and its counters rest
// until no table leads to it.
func (d *Dataplane) dismiss(b *backend) {
	s := b.service
	d.hops.leave(b)
	delete(d.records.owners, d.store.ids[b.entry()])
	delete(s.members, b.name)
	room, entry := s.room, b.entry()
	s.leaving[b] = entry
	s.after = append(s.after, func() {
		d.endTally(&b.tally, entry)
		s.departed.add(b.tally.past)
		delete(s.leaving, b)
		if s.room == room {
			s.unused = append(s.unused, b.index)
		}
	})
}

// move gives the service entries for so many backends in another place. Those that stay
// keep their indexes, which are greater where more were before and their entries rest.
func (d *Dataplane) move(s *service, backends int) error {
	for _, b := range s.members {
		backends = max(backends, int(b.index)+1)
	}
	room, err := d.takeEntries(roomFor(backends))
	if err != nil {
		return err
	}
	old := s.room
	for _, b := range s.members {
		from := b.entry()
		d.occupy(b, room.start+b.index)
		s.after = append(s.after, func() { d.endTally(&b.tally, from) })
	}
	if old.size > 0 {
		s.after = append(s.after, func() { d.entries.give(old) })
	}
	s.room = room
	s.unused = s.unused[:0]
	taken := make(map[uint32]bool)
	for _, b := range s.members {
		taken[b.index] = true
	}
	for i := range room.size {
		if !taken[i] {
			s.unused = append(s.unused, i)
		}
	}
	return nil
}

// places are where a table's backends stand among the service's entries.
func (s *service) places(list []lb.Backend) []uint16 {
	places := make([]uint16, len(list))
	for i, b := range list {
		places[i] = uint16(s.members[b.Name].index)
	}
	return places
}

// swap fills the idle generation with the table and turns to it.
func (d *Dataplane) swap(s *service, t lb.Table, scratch *[]bpfSlot) error {
	place := s.places(t.Backends)
	wanted := (*scratch)[:0]
	for _, slot := range t.Slots {
		wanted = append(wanted, bpfSlot{Current: place[slot]})
	}
	s.base(wanted, t)
	*scratch = wanted
	key := [2]uint64{binary.LittleEndian.Uint64(t.HashKey[:8]), binary.LittleEndian.Uint64(t.HashKey[8:])}

	entry := &d.store.services[s.number]
	active := entry.Active & 1
	now := entry.Table[active]
	if err := d.allow(s, t.Service.Limit); err != nil {
		return err
	}
	flags := d.flags(t.Service)
	if now.Size == uint32(len(wanted)) && entry.Active == active|flags && now.Backends == s.room.start && entry.Key[active] == key &&
		slices.Equal(d.store.pages(s.pages)[:now.Size], wanted) {
		return nil
	}

	pages, err := d.takePages(pagesFor(len(wanted)))
	if err != nil {
		return err
	}
	entry = &d.store.services[s.number] // the map may have grown
	time.Sleep(time.Until(s.turned.Add(rest)))
	begin := time.Now()
	copy(d.store.pages(pages), wanted)
	idle := 1 - active
	entry.Key[idle] = key
	entry.Table[idle] = bpfTable{Slots: pages.start, Size: uint32(len(wanted)), Backends: s.room.start}
	atomic.StoreUint32(&entry.Active, idle|flags)
	s.turned = time.Now()
	d.metrics.swapped(s.turned.Sub(begin))

	if old := s.pages; old.size > 0 {
		s.after = append(s.after, func() { d.pages.give(old) })
	}
	s.pages = pages
	return nil
}

// release lets rest what neither the service's table nor its server IDs lead to
// any more.
func (d *Dataplane) release(s *service) {
	if len(s.after) == 0 {
		return
	}
	after := s.after
	s.after = nil
	d.later(func() {
		for _, then := range after {
			then()
		}
	})
}

// remove takes out a service that no VIP leads to any more.
func (d *Dataplane) remove(s *service) error {
	if err := errors.Join(d.applyServerIDs(s, lb.Table{}), d.stopCountingQUIC(s)); err != nil {
		return err
	}
	for _, b := range s.members {
		d.dismiss(b)
	}
	delete(d.services, s.name)
	s.after = append(s.after, func() {
		d.pages.give(s.pages)
		d.entries.give(s.room)
		d.store.services[s.number] = bpfService{}
		d.store.strayed[s.number] = 0
		d.numbers.give(region{s.number, 1})
		d.lives[s.number] = s.lives
	})
	d.release(s)
	return nil
}
