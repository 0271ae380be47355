package cluster

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/halfproxy/halfproxy/lb"
)

// What members send each other. All numbers are big-endian, a name is its
// length in one byte and its bytes:
//
//	message   = version kind(1) ...
//	heartbeat = member boot(8) sequence(8)
//	news      = record                           from the member itself
//	relay     = age(4) record                    from any member
//	request   = member                           "send me your record"
//	claim     = member uptime(8) port(2) address "I run under this name"
//	state     = count(2) { age(4) length(4) record }, sorted by member
//	change    = member boot(8) base(8) sequence(8) report steps    what differs from the record base
//	            count(2) { service }, count(4) { target }          and is gone, sorted
//	flows     = part(1) [total(4) in the last] count(2) { key(8) backend(8) idle(2) flags(1) }
//	wanted    = member                           "send me all records of flows"
//	versions  = count(2) { member boot(8) sequence(8) }, sorted by member
//	record    = member boot(8) sequence(8) report steps
//	report    = flags(1) config(8)
//	            count(2) { service digest(8) }, sorted by service
//	            count(2) { order }, sorted by subject
//	            count(4) { target(8) }, sorted; then 2 bits of state for each, 3 of one
//	            that is up and starts slowly; then ahead(1) for each of these
//	steps     = count(2) { service history }, sorted by service
//	history   = begin(8) quiet(1) count(2) { held }, sorted; then what makes its steps of those
//	            of the record base, in a record of none: count(2) { index(2) of one that is gone },
//	            count(2) { index(2) step } of those that are new, both sorted
//	step      = since(8), then what is other than in the step before, sorted by name:
//	            count(2) { name length(1) [address weight(2)] }; of length 0: it is not in the step
//	order     = kind(1) service name action(1) weight(2) by at(8) until(8) member version(8)
//
// An age is the milliseconds since the member gave its last sign of life; at, until,
// begin and since are milliseconds since 1970, and 0 stands for none. A service in an order may be empty, and by is
// text.
// Every value has one encoding and a decoder takes no other: equal reports are
// equal bytes.
const wireVersion = 4

type kind uint8

const (
	kindHeartbeat kind = iota + 1
	kindNews
	kindRelay
	kindRequest
	kindClaim
	kindState
	kindChange
	kindVersions
	kindFlows
	kindWanted
)

const (
	maxName    = 255
	maxReport  = 512 << 10 // some 60,000 observations
	maxMessage = maxReport + 1<<10
	maxMembers = 1024
	// maxState keeps push/pull below the 20 MiB that memberlist takes. What
	// does not fit is fetched after the first heartbeat.
	maxState = 16 << 20
	// maxPacket is what surely fits a packet of memberlist's 1400 bytes with
	// its headers, the label and the encryption. A bigger broadcast would
	// stay in memberlist's queue for ever, without an error.
	maxPacket = 1200
)

// refusal is why a message was not taken, as it stands in the metric's label.
// Empty is none.
type refusal string

// decode gives the first five.
const (
	refusedVersion   refusal = "version"   // of the format
	refusedMalformed refusal = "malformed" // cut short, too long, out of range
	refusedOversize  refusal = "oversize"
	refusedOrder     refusal = "order" // unsorted or listed twice
	refusedState     refusal = "state" // no health state an observer can find
	refusedCapacity  refusal = "capacity"
	refusedConflict  refusal = "conflict" // two processes under one name
	refusedKey       refusal = "key"
	refusedLabel     refusal = "label"
	refusedOverload  refusal = "overload"
)

var refusals = []refusal{
	refusedVersion, refusedMalformed, refusedOversize, refusedOrder, refusedState,
	refusedCapacity, refusedConflict, refusedKey, refusedLabel, refusedOverload,
}

// The flags of a report.
const (
	flagLeaving = 1 << iota
	flagSettled
	flagMoving
)

// version orders the records of one member.
type version struct{ boot, sequence uint64 }

func (v version) compare(o version) int {
	return cmp.Or(cmp.Compare(v.boot, o.boot), cmp.Compare(v.sequence, o.sequence))
}

// record is one member's report at one version. It never changes.
type record struct {
	member string
	version
	report lb.Report

	raw  []byte     // as it travels
	once *sync.Once // makes raw when it is needed, of a record that came as a change; else nil
}

func newRecord(member string, v version, report lb.Report, encoded []byte) *record {
	raw := appendName(make([]byte, 0, 1+len(member)+16+len(encoded)), member)
	raw = appendVersion(raw, v)
	return &record{member: member, version: v, report: report, raw: append(raw, encoded...)}
}

// encoded is the record as it travels, nil when there is no room for it.
func (r *record) encoded() []byte {
	if r.once != nil {
		r.once.Do(func() {
			if encoded, err := encodeReport(r.report, nil); err == nil {
				r.raw = newRecord(r.member, r.version, r.report, encoded).raw
			}
		})
	}
	return r.raw
}

type (
	heartbeat struct {
		member string
		version
	}
	news  struct{ record *record }
	relay struct {
		age    time.Duration
		record *record
	}
	request struct{ member string }
	claim   struct {
		member  string
		uptime  time.Duration
		address netip.AddrPort
	}
	state    []relay
	versions []heartbeat
)

func (m heartbeat) encode() []byte {
	return appendVersion(appendName(message(kindHeartbeat), m.member), m.version)
}

func (m news) encode() []byte { return append(message(kindNews), m.record.encoded()...) }

func (m versions) encode() []byte {
	b := binary.BigEndian.AppendUint16(message(kindVersions), uint16(len(m)))
	for _, v := range m {
		b = appendVersion(appendName(b, v.member), v.version)
	}
	return b
}

func (m relay) encode() []byte {
	return append(appendAge(message(kindRelay), m.age), m.record.encoded()...)
}

func (m request) encode() []byte { return appendName(message(kindRequest), m.member) }

func (m claim) encode() []byte {
	b := appendName(message(kindClaim), m.member)
	b = binary.BigEndian.AppendUint64(b, uint64(m.uptime.Milliseconds()))
	b = binary.BigEndian.AppendUint16(b, m.address.Port())
	return append(b, m.address.Addr().AsSlice()...)
}

// encode leaves out what does not fit.
func (m state) encode() []byte {
	size := 4
	for _, r := range m {
		size += 8 + len(r.record.encoded())
	}
	b := append(make([]byte, 0, min(size, maxState)), message(kindState)...)
	b = append(b, 0, 0)
	count := uint16(0)
	for _, r := range m {
		raw := r.record.encoded()
		if raw == nil || len(b)+8+len(raw) > maxState || count == maxMembers {
			continue
		}
		b = appendAge(b, r.age)
		b = binary.BigEndian.AppendUint32(b, uint32(len(raw)))
		b = append(b, raw...)
		count++
	}
	binary.BigEndian.PutUint16(b[2:], count)
	return b
}

func message(k kind) []byte { return []byte{wireVersion, byte(k)} }

func appendName(b []byte, name string) []byte {
	return append(append(b, byte(len(name))), name...)
}

func appendVersion(b []byte, v version) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, v.boot), v.sequence)
}

func appendAge(b []byte, age time.Duration) []byte {
	return binary.BigEndian.AppendUint32(b, uint32(min(max(age.Milliseconds(), 0), math.MaxUint32)))
}

// normal gives a copy of report in the form in which it is encoded, by s.
func normal(report lb.Report, s scribe) lb.Report {
	report.Tables = maps.Clone(report.Tables)
	if len(report.Tables) == 0 {
		report.Tables = nil
	}
	report.Observations = slices.SortedFunc(slices.Values(report.Observations), byTarget)
	report.Orders = slices.SortedFunc(slices.Values(report.Orders), bySubject)
	report.Steps = s.fitting(report.Steps)
	return report
}

// encodeReport takes a report as normal gives it, and its steps.
func encodeReport(report lb.Report, s scribe) ([]byte, error) {
	b, err := appendReport(nil, report)
	if err != nil {
		return nil, err
	}
	if b, err = s.appendSteps(b, report.Steps); err != nil {
		return nil, err
	}
	if len(b) > maxReport {
		return nil, fmt.Errorf("%d tables and %d observations take %d bytes, at most %d can be told: spread the services over several clusters",
			len(report.Tables), len(report.Observations), len(b), maxReport)
	}
	return b, nil
}

// appendReport appends all of a report but its steps.
func appendReport(b []byte, report lb.Report) ([]byte, error) {
	if len(report.Tables) > math.MaxUint16 {
		return nil, fmt.Errorf("%d tables: at most %d can be told", len(report.Tables), math.MaxUint16)
	}
	var flags uint8
	if report.Leaving {
		flags |= flagLeaving
	}
	if report.Settled {
		flags |= flagSettled
	}
	if report.Moving {
		flags |= flagMoving
	}
	b = append(b, flags)
	b = binary.BigEndian.AppendUint64(b, uint64(report.Config))
	b = binary.BigEndian.AppendUint16(b, uint16(len(report.Tables)))
	for _, service := range slices.Sorted(maps.Keys(report.Tables)) {
		if err := checkName(service); err != nil {
			return nil, fmt.Errorf("service %q: %w", service, err)
		}
		b = appendName(b, service)
		b = binary.BigEndian.AppendUint64(b, uint64(report.Tables[service]))
	}
	b, err := appendOrders(b, report.Orders)
	if err != nil {
		return nil, err
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(report.Observations)))
	for i, o := range report.Observations {
		if i > 0 && o.Target == report.Observations[i-1].Target {
			return nil, fmt.Errorf("target %x is observed twice", uint64(o.Target))
		}
		b = binary.BigEndian.AppendUint64(b, uint64(o.Target))
	}
	states := make([]byte, packed(len(report.Observations)))
	var starting []byte
	for i, o := range report.Observations {
		state := byte(o.State)
		switch {
		case o.State > lb.Down:
			return nil, fmt.Errorf("target %x is %v: an observer finds up, down or unknown only", uint64(o.Target), o.State)
		case o.Ahead >= lb.SlowSteps, o.Ahead > 0 && o.State != lb.Up:
			return nil, fmt.Errorf("target %x is %v with %d steps of a slow start ahead: there are at most %d, of backends that are up", uint64(o.Target), o.State, o.Ahead, lb.SlowSteps-1)
		case o.Ahead > 0:
			state = stateStarting
			starting = append(starting, o.Ahead)
		}
		states[i/4] |= state << (i % 4 * 2)
	}
	return append(append(b, states...), starting...), nil
}

// stateStarting is that of a backend that is up and starts slowly.
const stateStarting = 3

// packed is the room that n states take.
func packed(n int) int { return (n + 3) / 4 }

func checkName(name string) error {
	if name == "" || len(name) > maxName || !utf8.ValidString(name) {
		return fmt.Errorf("names must be 1 to %d bytes of UTF-8", maxName)
	}
	return nil
}

// decode gives a heartbeat, news, relay, request, claim, state, change, versions, flows or
// wanted, or a refusal.
// Nothing of b is kept.
func decode(b []byte) (any, refusal) {
	r := reader{b: b}
	if v := r.uint8(); r.refused == "" && v != wireVersion {
		return nil, refusedVersion
	}
	k := kind(r.uint8())
	if k != kindState && len(b) > maxMessage || len(b) > maxState {
		return nil, refusedOversize
	}
	var m any
	switch k {
	case kindHeartbeat:
		m = heartbeat{r.name(), r.version()}
	case kindNews:
		m = news{r.record(len(r.b))}
	case kindRelay:
		m = relay{r.age(), r.record(len(r.b))}
	case kindRequest:
		m = request{r.name()}
	case kindClaim:
		m = r.claim()
	case kindState:
		m = r.state()
	case kindChange:
		m = r.change()
	case kindVersions:
		m = r.versions()
	case kindFlows:
		m = r.flows()
	case kindWanted:
		m = wanted{r.name()}
	default:
		r.fail(refusedMalformed)
	}
	if len(r.b) > 0 {
		r.fail(refusedMalformed)
	}
	if r.refused != "" {
		return nil, r.refused
	}
	return m, ""
}

// reader takes a message apart. After the first refusal it gives zeros, so that
// need only be looked at before a value steers anything.
type reader struct {
	b       []byte
	refused refusal
}

func (r *reader) fail(why refusal) {
	if r.refused == "" {
		r.refused = why
	}
	r.b = nil
}

func (r *reader) take(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.fail(refusedMalformed)
		return nil
	}
	taken := r.b[:n]
	r.b = r.b[n:]
	return taken
}

func (r *reader) uint8() uint8 {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) name() string {
	name := string(r.take(int(r.uint8())))
	if r.refused == "" && checkName(name) != nil {
		r.fail(refusedMalformed)
	}
	return name
}

// version refuses numbers that nobody reaches by counting, so that counting on
// from one never overflows.
func (r *reader) version() version {
	v := version{boot: r.uint64(), sequence: r.uint64()}
	if v.boot > math.MaxInt64 || v.sequence > math.MaxInt64 {
		r.fail(refusedMalformed)
	}
	return v
}

func (r *reader) age() time.Duration { return time.Duration(r.uint32()) * time.Millisecond }

func (r *reader) claim() claim {
	c := claim{member: r.name()}
	uptime := r.uint64()
	port := r.uint16()
	address, ok := netip.AddrFromSlice(r.take(len(r.b)))
	if !ok || address.Is4In6() || uptime > math.MaxInt64/uint64(time.Millisecond) {
		r.fail(refusedMalformed)
	}
	c.uptime, c.address = time.Duration(uptime)*time.Millisecond, netip.AddrPortFrom(address, port)
	return c
}

func (r *reader) state() state {
	var s state
	for range r.uint16() {
		age := r.age()
		record := r.record(int(r.uint32()))
		if r.refused != "" {
			return nil
		}
		if len(s) > 0 && record.member <= s[len(s)-1].record.member {
			r.fail(refusedOrder)
			return nil
		}
		s = append(s, relay{age, record})
	}
	return s
}

func (r *reader) versions() versions {
	var list versions
	for range r.uint16() {
		v := heartbeat{r.name(), r.version()}
		if r.refused == "" && len(list) > 0 && v.member <= list[len(list)-1].member {
			r.fail(refusedOrder)
		}
		if r.refused != "" {
			return nil
		}
		list = append(list, v)
	}
	return list
}

// record reads one that is length bytes long.
func (r *reader) record(length int) *record {
	raw := r.take(length)
	if r.refused != "" {
		return nil
	}
	if len(raw) > maxMessage {
		r.fail(refusedOversize)
		return nil
	}
	inner := reader{b: raw}
	rec := &record{member: inner.name(), version: inner.version(), raw: slices.Clone(raw)}
	rec.report = inner.report()
	rec.report.Steps = inner.steps()
	if len(inner.b) > 0 {
		inner.fail(refusedMalformed)
	}
	if inner.refused == "" && rec.sequence == 0 {
		inner.fail(refusedMalformed) // 0 is the heartbeat of a member without a record
	}
	if inner.refused != "" {
		r.fail(inner.refused)
		return nil
	}
	return rec
}

func (r *reader) report() lb.Report {
	if len(r.b) > maxReport {
		r.fail(refusedOversize)
		return lb.Report{}
	}
	flags := r.uint8()
	if flags&^(flagLeaving|flagSettled|flagMoving) != 0 {
		r.fail(refusedMalformed)
	}
	report := lb.Report{
		Leaving: flags&flagLeaving != 0, Settled: flags&flagSettled != 0, Moving: flags&flagMoving != 0, Config: lb.Digest(r.uint64()),
	}

	previous := ""
	for range r.uint16() {
		service := r.name()
		digest := lb.Digest(r.uint64())
		if r.refused == "" && service <= previous {
			r.fail(refusedOrder)
		}
		if r.refused != "" {
			return lb.Report{}
		}
		if report.Tables == nil {
			report.Tables = make(map[string]lb.Digest)
		}
		report.Tables[service] = digest
		previous = service
	}

	report.Orders = r.orders()

	count := int(r.uint32())
	if count > maxReport || len(r.b) < 8*count+packed(count) {
		r.fail(refusedMalformed) // before room is made for count observations
	}
	if r.refused != "" || count == 0 {
		return report
	}
	targets := reader{b: r.take(8 * count)}
	states := r.take(packed(count))
	report.Observations = make([]lb.Observation, count)
	for i := range report.Observations {
		o := lb.Observation{Target: lb.TargetID(targets.uint64()), State: lb.State(states[i/4] >> (i % 4 * 2) & 3)}
		if i > 0 && o.Target <= report.Observations[i-1].Target {
			r.fail(refusedOrder)
		}
		if o.State == stateStarting {
			o.State, o.Ahead = lb.Up, r.uint8()
			if o.Ahead == 0 || o.Ahead >= lb.SlowSteps {
				r.fail(refusedState)
			}
		}
		report.Observations[i] = o
	}
	if count%4 != 0 && states[len(states)-1]>>(count%4*2) != 0 {
		r.fail(refusedMalformed)
	}
	return report
}
