package xdp

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/lb"
)

// What stands in a slot beside the base, as in bpf/types.h.
const (
	inTransition = 0x8000
	settling     = 0x4000
	baseBackend  = lb.MaxBackends - 1
)

// State of a record, as in bpf/types.h.
const (
	recordConfirmed = 1
	recordClosing   = 2
	recordDatagrams = 4
	recordLearned   = 8
)

// Time as records have it, by a clock that nobody sets: all of them would be over at once
// when the other one is set forward. 16 bits of it are a day and a half.
const tick = 2 * time.Second

func ticks(d time.Duration) uint16 { return uint16(min((d+tick-1)/tick, 1<<15)) }

// tickOf needs a t with a monotonic reading.
func tickOf(t time.Time) uint32 { return uint32((monotonic() + time.Until(t)) / tick) }

// How long a record lives of which no packet comes, where that is not its service's
// Lifetime: unconfirmed ones may be a flood's, and are shorter than a handshake takes for
// nobody.
const (
	unconfirmedLife = 6 * time.Second
	closingLife     = time.Minute
	datagramsLife   = 5 * time.Minute
)

// records is what user space knows of the flows' records.
type records struct {
	m      *ebpf.Map // a handle of its own: the store's is closed when maps grow
	held   int       // when last counted
	owners map[uint64]*backend

	foretold []foretold
	learned  uint64 // records of other nodes that were taken
	judge    judge  // as of
	judged   uint64 // this Dataplane.applied; guarded by Dataplane.mu, as what stands above

	fresh *ringbuf.Reader

	sharing sync.Mutex      // guards what follows
	again   []lb.FlowRecord // to be told of once more
	round   uint64
}

// newRecords has the program make a sixteenth of all records in a second at most: those
// that nobody confirms are over before they fill a half.
func newRecords(s *store) (*records, error) {
	m, err := s.maps[bpfMapRecords].Clone()
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", bpfMapRecords, err)
	}
	rate := max(m.MaxEntries()/16, 1)
	s.pace.Interval = uint64(time.Second) / uint64(rate)
	s.pace.Burst = uint64(time.Second) / 4
	s.pace.Now = tickOf(time.Now())
	fresh, err := ringbuf.NewReader(s.maps[bpfMapConfirmed])
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map %s: %w", bpfMapConfirmed, err), m.Close())
	}
	return &records{m: m, fresh: fresh, owners: make(map[uint64]*backend)}, nil
}

func (r *records) close() error {
	return errors.Join(r.m.Close(), r.fresh.Close())
}

// backendID names a backend in all processes and on all nodes.
func backendID(service, name string, address netip.Addr) uint64 {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %s", service, name, address))
	return binary.BigEndian.Uint64(sum[:])
}

// checkBases finds what bases cannot say.
func checkBases(t lb.Table) error {
	if t.Bases == nil {
		return nil
	}
	if len(t.Bases) != len(t.Slots) {
		return fmt.Errorf("service %q: %d bases of %d slots", t.Service.Name, len(t.Bases), len(t.Slots))
	}
	for _, b := range t.Bases {
		if int(b.Backend) >= len(t.Alive) {
			return fmt.Errorf("service %q: a slot's base is backend %d of %d that live", t.Service.Name, b.Backend, len(t.Alive))
		}
	}
	return nil
}

// base puts the table's bases into slots.
func (s *service) base(slots []bpfSlot, t lb.Table) {
	s.lifetime = 0
	if t.Bases == nil {
		return
	}
	place, lifetime := s.places(t.Alive), ticks(t.Service.Lifetime())
	for i, b := range t.Bases {
		if !b.InTransition {
			continue
		}
		s.lifetime = lifetime
		slots[i].Base = place[b.Backend] | inTransition
		if b.Settling {
			slots[i].Base |= settling
		}
	}
}

// begin is the beginning of another life: records of the one before are worth nothing.
func (b *backend) begin() {
	b.service.lives++
	b.life = b.service.lives
}

// endLives makes the records worthless that lead to backends which failed. It comes after
// the table has turned: there no flow goes by them any more.
func (d *Dataplane) endLives(s *service, t lb.Table) {
	lives := make(map[string]bool)
	for _, list := range [][]lb.Backend{t.Backends, t.Alive} {
		for _, b := range list {
			lives[b.Name] = true
		}
	}
	for _, b := range s.members {
		if b.lives && !lives[b.name] {
			b.begin()
		}
		b.lives = lives[b.name]
		entry := &d.store.backends[b.entry()]
		if entry.NextHop>>hopLifeBit != uint64(b.life) {
			atomic.StoreUint64(&entry.NextHop, entry.NextHop&(1<<hopLifeBit-1)|b.lifeBits())
		}
	}
}

// use is what a backend that is watched, or of a service with records, is of use for.
type use struct {
	records int       // that lead to it
	packets uint64    // when last counted
	rate    float64   // packets a second since the time before
	counted time.Time // when
	last    time.Time // when packets were last seen to have come
}

// keepRecords tells the program the time, and removes records that are over.
func (d *Dataplane) keepRecords(ctx context.Context) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	var due time.Time
	for {
		if begin := time.Now(); !begin.Before(due) {
			if err := d.reviewRecords(begin); err != nil {
				d.log.Warn("records of flows not looked through, will retry", "err", err)
			}
			now := time.Now()
			due = now.Add(20 * now.Sub(begin)) // a twentieth of a core at most
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			d.tellTime(time.Now())
		}
	}
}

// tellTime tells the program.
func (d *Dataplane) tellTime(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.store != nil {
		atomic.StoreUint32(&d.store.pace.Now, tickOf(now))
	}
}

// Caution has flows that begin within so long, in slots in transition, go where every node
// finds them without a record. It replaces the one before: 0 ends it.
func (d *Dataplane) Caution(lasts time.Duration) {
	until := uint64(0)
	if lasts > 0 {
		until = uint64(monotonic() + lasts)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.store != nil {
		atomic.StoreUint64(&d.store.pace.Cautious, until)
	}
}

// monotonic is the time by the program's clock, which is always there.
func monotonic() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return time.Duration(now.Nano())
}

// judge tells records that are worth something from others.
type judge struct {
	now      uint16
	services map[uint16]judgedService
}

// judgedService is a service with records.
type judgedService struct {
	lifetime uint16
	lives    map[uint16]uint8  // of backends, by index
	ids      map[uint16]uint64 // likewise
	held     map[uint16]int    // records that lead to each
}

// newJudge needs d.mu.
func (d *Dataplane) newJudge(now time.Time) judge {
	j := judge{now: uint16(tickOf(now)), services: make(map[uint16]judgedService)}
	for _, s := range d.services {
		if s.lifetime == 0 {
			continue
		}
		of := judgedService{s.lifetime, make(map[uint16]uint8), make(map[uint16]uint64), make(map[uint16]int)}
		for _, b := range s.members {
			of.lives[uint16(b.index)], of.ids[uint16(b.index)] = b.life, d.store.ids[b.entry()]
		}
		j.services[uint16(s.number)] = of
	}
	return j
}

// keeps tells whether a record is to stay.
func (j judge) keeps(r bpfRecord) bool {
	s, known := j.services[r.Service]
	if !known {
		return false
	}
	if life, there := s.lives[r.Backend]; !there || life != r.Life {
		return false
	}
	limit := s.lifetime
	switch {
	case r.State&(recordConfirmed|recordLearned) == 0:
		limit = min(limit, ticks(unconfirmedLife))
	case r.State&recordClosing != 0:
		limit = min(limit, ticks(closingLife))
	case r.State&recordDatagrams != 0:
		limit = min(limit, ticks(datagramsLife))
	}
	age := j.now - r.Used
	return age <= limit || age > 1<<15 // used after j.now
}

// recent tells whether a record was of use just before j was made, or since: the table may
// have turned meanwhile, and it may be worth something of which j does not know.
func (j judge) recent(r bpfRecord) bool { return int16(r.Used-j.now) >= -1 }

// reviewRecords removes the records that are over and counts the others.
func (d *Dataplane) reviewRecords(now time.Time) error {
	d.mu.Lock()
	if d.store == nil {
		d.mu.Unlock()
		return nil
	}
	j := d.newJudge(now)
	d.mu.Unlock()

	held, again, err := d.records.review(j)
	if err != nil {
		return err
	}
	d.records.tellAgain(again)

	d.mu.Lock()
	defer d.mu.Unlock()
	if d.store == nil {
		return nil
	}
	d.records.held = held
	d.learnForetold(now)
	counters, err := newCounters(d.store.maps[bpfMapBackendCounters])
	if err != nil {
		return err
	}
	for _, s := range d.services {
		of := j.services[uint16(s.number)]
		for _, b := range s.members {
			if !b.inReview() {
				b.use = use{}
				continue
			}
			total, err := b.tally.total(counters)
			if err != nil {
				return fmt.Errorf("read the counter of service %s, backend %s: %w", s.name, b.name, err)
			}
			b.use.count(total.Packets, now)
			b.use.records = 0
			if of.lives[uint16(b.index)] == b.life {
				b.use.records = of.held[uint16(b.index)]
			}
		}
	}
	return nil
}

// review removes the records that are over by what j knows. It gives how many there are, and
// those that the others are to be told of again.
func (r *records) review(j judge) (held int, again []lb.FlowRecord, err error) {
	turn := r.nextTurn()
	held, err = sift(r.m, func(key uint64, r bpfRecord) bool {
		if !j.keeps(r) {
			return j.recent(r)
		}
		s := j.services[r.Service]
		s.held[r.Backend]++
		if turn.has(key) && r.State&(recordConfirmed|recordLearned) == recordConfirmed && j.now-r.Used <= s.lifetime/4 {
			again = append(again, s.flow(key, r, j.now))
		}
		return true
	})
	return held, again, err
}

func (u *use) count(packets uint64, now time.Time) {
	if u.counted.IsZero() {
		u.last = now // it may have been in use until now
	} else if since := now.Sub(u.counted).Seconds(); since > 0 {
		u.rate = float64(packets-u.packets) / since
		if packets != u.packets {
			u.last = now
		}
	}
	u.packets, u.counted = packets, now
}

// sift walks all records and removes those that are not kept. It gives how many are.
func sift(m *ebpf.Map, keep func(key uint64, r bpfRecord) bool) (kept int, err error) {
	const batch = 4096
	keys, values := make([]uint64, batch), make([]bpfRecord, batch)
	var cursor ebpf.MapBatchCursor
	var over []uint64
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		ended := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !ended {
			return kept, fmt.Errorf("read records: %w", err)
		}
		over = over[:0]
		for i := range n {
			if keep(keys[i], values[i]) {
				kept++
			} else {
				over = append(over, keys[i])
			}
		}
		for _, key := range over {
			if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return kept, fmt.Errorf("remove a record: %w", err)
			}
		}
		if ended {
			return kept, nil
		}
	}
}

// Strayed is when a packet of the service last went elsewhere than new flows of its slot
// do: what was before its last change still mattered. Zero: it never did.
func (d *Dataplane) Strayed(service string) time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.services[service]
	if s == nil || d.store == nil {
		return time.Time{}
	}
	at := atomic.LoadUint64(&d.store.strayed[s.number])
	if at == 0 {
		return time.Time{}
	}
	now := time.Now()
	return now.Add(time.Duration(int64(at)-int64(tickOf(now))) * tick)
}

// inUse is how long after its last packet a backend counts as in use.
const inUse = time.Minute

// Holds gives those of a service's backends that flows are still at: with records, or with
// packets in the last minute, or not known to be without. Those asked about are watched from
// then on, be no slot in transition; others not any more.
func (d *Dataplane) Holds(service string, backends []string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.services[service]
	if s == nil {
		return backends
	}
	for _, b := range s.members {
		b.watched = false
	}
	var held []string
	for _, name := range backends {
		b := s.members[name]
		if b != nil {
			b.watched = true
		}
		if b == nil || b.use.records > 0 || b.use.counted.IsZero() || time.Since(b.use.last) < inUse {
			held = append(held, name)
		}
	}
	return held
}

// inheritRecords takes over the records of the program before, whose process numbered
// services and backends its own way. What it has in another form is left, and told of.
func (d *Dataplane) inheritRecords() {
	n, err := d.copyRecords()
	if err != nil {
		d.log.Warn("records of flows of the process before not taken over: such as are older than the last change may break", "err", err)
	} else if n > 0 {
		d.log.Info("records of flows taken over", "records", n)
	}
}

func (d *Dataplane) copyRecords() (int, error) {
	old := make(map[string]*ebpf.Map)
	for name, size := range map[string]int{
		bpfMapRecords: binary.Size(bpfRecord{}), bpfMapServices: binary.Size(bpfService{}), bpfMapBackends: binary.Size(bpfBackend{}), bpfMapBackendIds: 8,
	} {
		m := d.pins.open(name)
		if m == nil {
			return 0, nil // it knew of no records
		}
		defer m.Close()
		if int(m.ValueSize()) != size {
			return 0, fmt.Errorf("map %s has values of %d bytes, not of %d", name, m.ValueSize(), size)
		}
		old[name] = m
	}
	// whose gives the backend that they are of, and the life that it was in; nil: nobody's
	// that we know.
	whose := func(r bpfRecord) (*backend, uint8) {
		var service bpfService
		var there bpfBackend
		var id uint64
		if old[bpfMapServices].Lookup(uint32(r.Service), &service) != nil {
			return nil, 0
		}
		entry := service.Table[service.Active&1].Backends + uint32(r.Backend)
		if old[bpfMapBackends].Lookup(entry, &there) != nil || old[bpfMapBackendIds].Lookup(entry, &id) != nil {
			return nil, 0
		}
		return d.records.owners[id], uint8(there.NextHop >> hopLifeBit)
	}
	type owner struct {
		b    *backend
		life uint8
	}
	owners := make(map[[2]uint16]owner)
	copied := 0
	_, err := sift(old[bpfMapRecords], func(key uint64, r bpfRecord) bool {
		at := [2]uint16{r.Service, r.Backend}
		of, known := owners[at]
		if !known {
			of.b, of.life = whose(r)
			owners[at] = of
		}
		if of.b != nil && of.life == r.Life {
			r.Service, r.Backend, r.Life = uint16(of.b.service.number), uint16(of.b.index), of.b.life
			if d.records.m.Update(key, r, ebpf.UpdateNoExist) == nil { // else we made a newer one
				copied++
			}
		}
		return true
	})
	return copied, err
}

// RecordStats is what became of packets whose slots are in transition, and the records.
type RecordStats struct {
	Held, Room int // records when last counted, and as many as there can be
	// Recorded are packets that wrote their flow's record, and Refused those that would
	// have, but there were too many at once. The others went by their flow's record, or
	// without one to the slot's base or current backend.
	Recorded, Refused, ByRecord, ByBase, ByCurrent uint64
	Learned                                        uint64 // records of other nodes that were taken
}

// Use is what a backend is of use for, while its service has slots in transition or it gets
// no new flows: as of the last look, some seconds ago.
type Use struct {
	Records int     // that lead to it
	Rate    float64 // packets a second
}

// recordStats needs d.mu.
func (d *Dataplane) recordStats() (RecordStats, error) {
	stats := RecordStats{Held: d.records.held, Room: int(d.records.m.MaxEntries()), Learned: d.records.learned}
	for how, count := range map[bpfTracked]*uint64{
		bpfTrackedTRACKED_RECORDED: &stats.Recorded, bpfTrackedTRACKED_REFUSED: &stats.Refused,
		bpfTrackedTRACKED_BY_RECORD: &stats.ByRecord, bpfTrackedTRACKED_BY_BASE: &stats.ByBase, bpfTrackedTRACKED_BY_CURRENT: &stats.ByCurrent,
	} {
		n, err := sum(d.store.maps[bpfMapTrackedPackets], uint32(how))
		if err != nil {
			return RecordStats{}, fmt.Errorf("read the counter of tracked packets: %w", err)
		}
		*count = n
	}
	return stats, nil
}

// uses are those of the backends that are watched, or all where slots are in transition.
func (s *service) uses() map[string]Use {
	var uses map[string]Use
	for name, b := range s.members {
		if !b.inReview() {
			continue
		}
		if uses == nil {
			uses = make(map[string]Use)
		}
		uses[name] = Use{b.use.records, b.use.rate}
	}
	return uses
}
