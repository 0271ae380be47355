package xdp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/halfproxy/halfproxy/lb"
)

// Records of flows on their way to other nodes and from them. A flow's key is the same on
// all nodes, as the hashes are; a backend is told by a name that is the same.

// turns is how often all records are looked through until each was told of again: the
// copies that the others have know nothing of the packets that come here.
const turns = 64

// mostAgain is how many records wait to be told of again. More come in another turn.
const mostAgain = 1 << 15

// turn is a share of all records.
type turn uint64

func (t turn) has(key uint64) bool { return key%turns == uint64(t) }

// nextTurn gives the shares one after the other.
func (r *records) nextTurn() turn {
	r.sharing.Lock()
	defer r.sharing.Unlock()
	r.round++
	return turn(r.round % turns)
}

func (r *records) tellAgain(list []lb.FlowRecord) {
	if len(list) == 0 {
		return
	}
	r.sharing.Lock()
	r.again = append(r.again, list[:min(len(list), mostAgain-len(r.again))]...)
	r.sharing.Unlock()
	_ = r.fresh.Flush() // FreshFlows need not wait for more; it fails when closed
}

// takeAgain gives up to n of what tellAgain was given.
func (r *records) takeAgain(n int) []lb.FlowRecord {
	r.sharing.Lock()
	defer r.sharing.Unlock()
	n = min(n, len(r.again))
	list := slices.Clone(r.again[:n])
	if r.again = r.again[n:]; len(r.again) == 0 {
		r.again = nil
	}
	return list
}

// name gives the backend at an address its name.
func (d *Dataplane) name(b *backend, address netip.Addr) {
	id := backendID(b.service.name, b.name, address)
	if old := d.store.ids[b.entry()]; old != id && d.records.owners[old] == b {
		delete(d.records.owners, old)
	}
	d.store.ids[b.entry()] = id
	d.records.owners[id] = b
}

// flow is a record as others are told of it.
func (s judgedService) flow(key uint64, r bpfRecord, now uint16) lb.FlowRecord {
	return lb.FlowRecord{
		Key: key, Backend: s.ids[r.Backend], Idle: time.Duration(max(int16(now-r.Used), 0)) * tick,
		Datagrams: r.State&recordDatagrams != 0, Closing: r.State&recordClosing != 0,
	}
}

// FreshFlows waits until there are records that the others are to hear of, or ctx ends, and
// gives up to n of them: of flows that have begun and go on, and, once in a while, of those
// that still do. One caller at a time.
func (d *Dataplane) FreshFlows(ctx context.Context, n int) ([]lb.FlowRecord, error) {
	r := d.records
	defer context.AfterFunc(ctx, func() { _ = r.fresh.Flush() })()
	list := r.takeAgain(n)
	told, err := r.hear(n-len(list), len(list) == 0)
	if err != nil {
		return list, fmt.Errorf("read what records were confirmed: %w", err)
	}
	if len(told) == 0 {
		return append(list, r.takeAgain(n-len(list))...), nil
	}
	// Only now: what was confirmed just after tables turned is of these.
	j := d.judgeNow(time.Now())
	for _, c := range told {
		if j.keeps(c.record) {
			list = append(list, j.services[c.record.Service].flow(c.key, c.record, j.now))
		}
	}
	return list, nil
}

// hear gives up to n records that the program tells of, and waits for the first one, if it
// is to, or for somebody to flush. The kernel wakes who waits when it tells of a record
// after all those before were read: who comes back late has cost it one such call.
func (r *records) hear(n int, wait bool) (told []confirmed, err error) {
	var sample ringbuf.Record
	for len(told) < n && (wait || r.fresh.AvailableBytes() > 0) {
		err := r.fresh.ReadInto(&sample)
		if errors.Is(err, ringbuf.ErrFlushed) {
			break
		}
		if err != nil {
			return nil, err
		}
		told, wait = append(told, readNews(sample.RawSample)), false
	}
	return told, nil
}

// judgeNow is newJudge, made anew only after Apply: news comes some hundred times a second,
// and there may be thousands of backends.
func (d *Dataplane) judgeNow(now time.Time) judge {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.records
	if d.store != nil && (r.judge.services == nil || r.judged != d.applied) {
		r.judge, r.judged = d.newJudge(now), d.applied
	}
	j := r.judge
	j.now = uint16(tickOf(now))
	return j
}

// confirmed is a record that the program tells of.
type confirmed struct {
	key    uint64
	record bpfRecord
}

func readNews(b []byte) confirmed {
	_ = b[15]
	return confirmed{binary.LittleEndian.Uint64(b), bpfRecord{
		Service: binary.LittleEndian.Uint16(b[8:]), Backend: binary.LittleEndian.Uint16(b[10:]), Used: binary.LittleEndian.Uint16(b[12:]),
		Life: b[14], State: b[15],
	}}
}

// AllFlows gives all records that are worth something, in pieces.
func (d *Dataplane) AllFlows(yield func([]lb.FlowRecord) bool) error {
	d.mu.Lock()
	if d.store == nil {
		d.mu.Unlock()
		return nil
	}
	j := d.newJudge(time.Now())
	d.mu.Unlock()
	const piece = 20_000
	list, wanted := make([]lb.FlowRecord, 0, piece), true
	_, err := sift(d.records.m, func(key uint64, r bpfRecord) bool {
		if !wanted || r.State&(recordConfirmed|recordLearned) == 0 || !j.keeps(r) {
			return true
		}
		if list = append(list, j.services[r.Service].flow(key, r, j.now)); len(list) == piece {
			wanted = yield(list)
			list = list[:0]
		}
		return true
	})
	if err == nil && wanted && len(list) > 0 {
		yield(list)
	}
	return err
}

// foretold is a record of another node for a backend that does not live here yet: the other
// has heard earlier that it does, or this node has just started and knows of nobody.
type foretold struct {
	lb.FlowRecord
	at time.Time
}

// mostForetold is how long such records wait for their backends. At a start these have to
// be checked, a few times maybe.
const mostForetold = time.Minute

// LearnFlows takes records of flows that other nodes have packets of. Of a flow that has a
// record here already the one counts that was of use later.
func (d *Dataplane) LearnFlows(list []lb.FlowRecord) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.store == nil {
		return nil
	}
	now, r := time.Now(), d.records
	at := tickOf(now)
	for _, f := range list {
		if b := r.owners[f.Backend]; b != nil && b.lives {
			if err := d.learn(b, f, at); err != nil {
				return err
			}
		} else if len(r.foretold) < int(r.m.MaxEntries()) {
			r.foretold = append(r.foretold, foretold{f, now})
		}
	}
	return nil
}

// learnForetold takes the records whose backends live now. It needs d.mu.
func (d *Dataplane) learnForetold(now time.Time) {
	r := d.records
	var errs []error
	r.foretold = slices.DeleteFunc(r.foretold, func(f foretold) bool {
		b := r.owners[f.Backend]
		if b == nil || !b.lives {
			return now.Sub(f.at) > mostForetold
		}
		errs = append(errs, d.learn(b, f.FlowRecord, tickOf(f.at)))
		return true
	})
	if len(r.foretold) == 0 {
		r.foretold = nil
	}
	if err := errors.Join(errs...); err != nil {
		d.log.Warn("records of flows that came early not taken", "err", err)
	}
}

// learn takes a record that came at a tick.
func (d *Dataplane) learn(b *backend, f lb.FlowRecord, at uint32) error {
	r := bpfRecord{
		Service: uint16(b.service.number), Backend: uint16(b.index), Life: b.life,
		Used: uint16(at) - ticks(f.Idle), State: recordConfirmed | recordLearned,
	}
	if f.Datagrams {
		r.State |= recordDatagrams
	}
	if f.Closing {
		r.State |= recordClosing
	}
	if err := d.write(f.Key, r); err != nil {
		return fmt.Errorf("write a record: %w", err)
	}
	d.records.learned++
	return nil
}

// write writes it, unless there is one that was of use later.
func (d *Dataplane) write(key uint64, r bpfRecord) error {
	m := d.records.m
	err := m.Update(key, r, ebpf.UpdateNoExist)
	if !errors.Is(err, ebpf.ErrKeyExist) {
		return err
	}
	var there bpfRecord
	if err := m.Lookup(key, &there); err != nil {
		return nil // it went meanwhile
	}
	newer := int16(r.Used-there.Used) > 0
	same := there.Service == r.Service && there.Backend == r.Backend && there.Life == r.Life
	switch {
	case !same && !newer:
		return nil
	case same && (!newer || there.State&recordLearned == 0):
		if r.State&^there.State&recordClosing == 0 {
			return nil
		}
		r.Used, r.State = there.Used, there.State|recordClosing
	}
	return m.Update(key, r, ebpf.UpdateExist)
}
