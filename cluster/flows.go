package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/halfproxy/halfproxy/lb"
)

// Flows is where records of flows come from and go to. xdp.Dataplane is one.
type Flows interface {
	// AllFlows gives all that there are, in pieces.
	AllFlows(yield func([]lb.FlowRecord) bool) error
	// LearnFlows takes those of other members.
	LearnFlows(records []lb.FlowRecord) error
}

// Records of flows are an optimisation: they may be lost, and must never keep news of
// health waiting. So they go in packets of their own, a few at a time, and what there is
// no room for is left out.
const (
	flowSize     = 8 + 8 + 2 + 1
	flowsHead    = 2 + 1 + 4 + 2
	perPacket    = (maxPacket - flowsHead) / flowSize
	packetEvery  = 625 * time.Microsecond // to each member: 99,200 records a second
	packetsEach  = 8                      // at once
	mostToSend   = 1 << 16                // that wait
	mostRecent   = 1 << 14                // that are told once more, and to who joins those of
	recently     = 5 * time.Second
	onceMore     = time.Second
	mostToLearn  = 1 << 19
	perMessage   = 20_000           // over TCP
	flowPatience = 10 * time.Second // for the others' records, at the start
	alonePeriod  = 3 * time.Second  // after which nobody is waited for who was never there
	askAgain     = 3 * time.Second
)

// What becomes of records, as it stands in the metric's label.
const (
	flowsSent     = "sent"
	flowsReceived = "received"
	flowsNotSent  = "not_sent"
	flowsNotTaken = "not_taken"
)

// flows is records on their way.
type flows struct {
	part    part
	total   uint32 // of the last: all records of the answer
	records []lb.FlowRecord
}

// part says which of an answer to wanted a message is.
type part uint8

const (
	unasked part = iota
	more         // and more follow
	last         // sent, which may come before others
)

type wanted struct{ member string }

// Flags of a record.
const (
	flowDatagrams = 1 << iota
	flowClosing
)

// An idle time travels in seconds.
const mostIdle = 1<<16 - 1

func (m flows) encode() []byte {
	b := append(make([]byte, 0, flowsHead+flowSize*len(m.records)), wireVersion, byte(kindFlows), byte(m.part))
	if m.part == last {
		b = binary.BigEndian.AppendUint32(b, m.total)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.records)))
	for _, r := range m.records {
		b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, r.Key), r.Backend)
		b = binary.BigEndian.AppendUint16(b, uint16(min(max(r.Idle/time.Second, 0), mostIdle)))
		var flags byte
		if r.Datagrams {
			flags |= flowDatagrams
		}
		if r.Closing {
			flags |= flowClosing
		}
		b = append(b, flags)
	}
	return b
}

func (m wanted) encode() []byte { return appendName(message(kindWanted), m.member) }

func (r *reader) flows() flows {
	m := flows{part: part(r.uint8())}
	if m.part == last {
		m.total = r.uint32()
	}
	count := int(r.uint16())
	if m.part > last || len(r.b) != count*flowSize {
		r.fail(refusedMalformed)
		return flows{}
	}
	if count == 0 {
		return m
	}
	m.records = make([]lb.FlowRecord, count)
	for i := range m.records {
		b := r.take(flowSize)
		m.records[i] = lb.FlowRecord{
			Key: binary.BigEndian.Uint64(b), Backend: binary.BigEndian.Uint64(b[8:]),
			Idle:      time.Duration(binary.BigEndian.Uint16(b[16:])) * time.Second,
			Datagrams: b[18]&flowDatagrams != 0, Closing: b[18]&flowClosing != 0,
		}
		if b[18]&^(flowDatagrams|flowClosing) != 0 {
			r.fail(refusedMalformed)
			return flows{}
		}
	}
	return m
}

// exchange is what is under way of them.
type exchange struct {
	metrics metrics
	arrived chan flows    // from the others
	pending atomic.Int64  // records in arrived
	fetched atomic.Bool   // the others' are here, or are not to be waited for
	more    chan struct{} // capacity 1: something in outbox, or a member is new

	mu     sync.Mutex // guards what follows
	outbox []lb.FlowRecord

	due time.Time // of the next packet, to spreadFlows alone
}

func newExchange(m metrics) *exchange {
	return &exchange{metrics: m, arrived: make(chan flows, 1024), more: make(chan struct{}, 1)}
}

func (x *exchange) count(way string, n int) { x.metrics.flows.WithLabelValues(way).Add(float64(n)) }

// ShareFlows sends records to the other members. It does not block: what there is no
// room for is left out.
func (c *Cluster) ShareFlows(records []lb.FlowRecord) {
	x := c.exchange
	x.mu.Lock()
	room := min(mostToSend-len(x.outbox), len(records))
	x.outbox = append(x.outbox, records[:room]...)
	x.mu.Unlock()
	x.count(flowsNotSent, len(records)-room)
	if room > 0 {
		notify(x.more)
	}
}

// FlowsFetched tells whether the records that the others had when this member started
// are here, or nobody has any.
func (c *Cluster) FlowsFetched() bool { return c.cfg.Flows == nil || c.exchange.fetched.Load() }

// receive takes what came. It is called by memberlist, which must not wait.
func (x *exchange) receive(m flows) {
	n := int64(len(m.records))
	if x.pending.Load()+n > mostToLearn {
		x.count(flowsNotTaken, int(n))
		return
	}
	x.pending.Add(n)
	select {
	case x.arrived <- m:
	default:
		x.pending.Add(-n)
		x.count(flowsNotTaken, int(n))
	}
}

// next gives up to n records to be sent.
func (x *exchange) next(n int) []lb.FlowRecord {
	x.mu.Lock()
	defer x.mu.Unlock()
	n = min(n, len(x.outbox))
	records := x.outbox[:n:n]
	if x.outbox = x.outbox[n:]; len(x.outbox) == 0 {
		x.outbox = nil
	}
	return records
}

// spreadFlows sends what ShareFlows was given, and once more half a second to one and a half
// later, as packets get lost, unless there is too much. Who joins is told of the latest: the
// one that he fetched all records from may not have had them, and the others did not know of
// him.
func (c *Cluster) spreadFlows(ctx context.Context, s *sender) {
	x := c.exchange
	var told latest
	var before []memberlist.Node
	twice := time.Now() // what was told before this has been told once more
	ticker := time.NewTicker(onceMore)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			to := now.Add(-onceMore / 2)
			s.flows(ctx, s.others(), told.between(twice, to))
			twice = to
		case <-x.more:
		}
		others := s.others()
		var joined []memberlist.Node
		for _, node := range others {
			if !slices.ContainsFunc(before, func(b memberlist.Node) bool { return b.Name == node.Name }) {
				joined = append(joined, node)
			}
		}
		before = others
		if len(joined) > 0 {
			now := time.Now()
			s.flows(ctx, joined, told.between(now.Add(-recently), now))
		}
		for records := x.next(perPacket * packetsEach); len(records) > 0 && ctx.Err() == nil; records = x.next(perPacket * packetsEach) {
			told.add(records, time.Now())
			s.flows(ctx, s.others(), records)
		}
	}
}

// flows sends records to members, at the rate that there may be.
func (s *sender) flows(ctx context.Context, to []memberlist.Node, records []lb.FlowRecord) {
	for together := range slices.Chunk(records, perPacket*packetsEach) {
		rest := time.Duration(0)
		for part := range slices.Chunk(together, perPacket) {
			b := flows{records: part}.encode()
			for _, node := range to {
				s.packet(node, b)
			}
			rest += packetEvery
		}
		x := s.c.exchange
		x.count(flowsSent, len(together)*len(to))
		// Who slept for too long makes up for it.
		if earliest := time.Now().Add(-packetsEach * packetEvery); x.due.Before(earliest) {
			x.due = earliest
		}
		x.due = x.due.Add(rest)
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(x.due)):
		}
	}
}

// latest is the records that were told last.
type latest struct {
	batches []batch
	count   int // of records
}

type batch struct {
	at      time.Time
	records []lb.FlowRecord
}

func (l *latest) add(records []lb.FlowRecord, now time.Time) {
	l.batches = append(l.batches, batch{now, records})
	for l.count += len(records); l.count > mostRecent; l.batches = l.batches[1:] {
		l.count -= len(l.batches[0].records)
	}
}

// between gives those of a time and later, but before another one.
func (l *latest) between(from, to time.Time) (list []lb.FlowRecord) {
	for _, b := range l.batches {
		if !b.at.Before(from) && b.at.Before(to) {
			list = append(list, b.records...)
		}
	}
	return list
}

// learnFlows hands over what receive took.
func (c *Cluster) learnFlows(ctx context.Context) {
	x := c.exchange
	answered, total := 0, -1 // records of an answer; total: of all of it
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-x.arrived:
			x.pending.Add(-int64(len(m.records)))
			if err := c.cfg.Flows.LearnFlows(m.records); err != nil && c.notices.allow("flows", time.Now()) {
				c.log.Warn("records of flows from the others not taken", "err", err)
			}
			x.count(flowsReceived, len(m.records))
			if m.part == more {
				answered += len(m.records)
			}
			if m.part == last {
				total = int(m.total)
			}
			if total >= 0 && answered >= total {
				x.fetch(c)
			}
		}
	}
}

// fetch notes that there is nothing more to wait for.
func (x *exchange) fetch(c *Cluster) {
	if !x.fetched.Swap(true) {
		notify(c.changes)
	}
}

// fetchFlows asks the others for all that they have, until one has answered.
func (c *Cluster) fetchFlows(ctx context.Context, s *sender) {
	x := c.exchange
	ticker := time.NewTicker(c.timing.heartbeat / 5)
	defer ticker.Stop()
	asked := make(map[string]time.Time)
	for !x.fetched.Load() {
		others := s.others()
		up := time.Since(c.started)
		if up > flowPatience || len(others) == 0 && (up > alonePeriod || len(c.cfg.Join) == 0) {
			x.fetch(c)
			return
		}
		// One after the other: an answer is long.
		waiting := false
		for _, at := range asked {
			waiting = waiting || time.Since(at) < askAgain
		}
		for _, node := range others {
			if _, again := asked[node.Name]; !again && !waiting {
				asked[node.Name], waiting = time.Now(), true
				s.packet(node, wanted{c.cfg.Name}.encode())
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// streamFlows answers a member that wants all records.
func (s *sender) streamFlows(to memberlist.Node) {
	if s.c.cfg.Flows == nil {
		return
	}
	s.streams.Go(func() {
		s.flowSlots <- struct{}{} // not those of news
		defer func() { <-s.flowSlots }()
		send := func(m flows) error { return s.ml.SendReliable(&to, m.encode()) }
		total := 0
		var failed error
		err := s.c.cfg.Flows.AllFlows(func(records []lb.FlowRecord) bool {
			for len(records) > 0 && failed == nil {
				n := min(perMessage, len(records))
				failed = send(flows{part: more, records: records[:n]})
				total += n
				s.c.exchange.count(flowsSent, n)
				records = records[n:]
			}
			return failed == nil
		})
		if err == nil && failed == nil {
			failed = send(flows{part: last, total: uint32(total)})
		}
		if err != nil || failed != nil {
			s.c.log.Debug("records of flows not sent", "member", to.Name, "err", errors.Join(err, failed))
		}
	})
}
