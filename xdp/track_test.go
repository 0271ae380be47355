package xdp

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/internal/clock"
	"github.com/halfproxy/halfproxy/internal/packet"
	"github.com/halfproxy/halfproxy/lb"
	"github.com/halfproxy/halfproxy/track"
)

// The backends of the tests, in their order.
var tracked = []string{"203.0.113.1", "203.0.113.2", "203.0.113.3"}

const (
	currentBackend = iota
	baseBackendOf
	otherBackend
)

// moving makes all slots of a table such: the current backend is the first, the base
// another.
func moving(t lb.Table, slot track.Slot) lb.Table {
	t.Alive = t.Backends
	t.Slots = make([]uint16, len(t.Slots))
	t.Bases = nil
	for i := range t.Slots {
		t.Slots[i] = slot.Current
		t.Bases = append(t.Bases, lb.Base{Backend: slot.Base, InTransition: slot.InTransition, Settling: slot.Settling})
	}
	return t
}

var (
	atRest   = track.Slot{Current: currentBackend}
	hasMoved = track.Slot{Current: currentBackend, Base: baseBackendOf, InTransition: true}
	settles  = track.Slot{Current: currentBackend, Base: baseBackendOf, InTransition: true, Settling: true}
	returned = track.Slot{Current: currentBackend, Base: currentBackend, InTransition: true}
)

// firstInitial is a QUIC client's first datagram.
func firstInitial(version uint32) []byte {
	first := byte(initial)
	if version != 1 {
		first = zeroRTT // what it means in version 2
	}
	return long(first, version, chosen, make([]byte, 1200)...)
}

// flowPackets are packets of a flow by what they say of it.
func flowPackets(client, vip string) map[track.Kind][][]byte {
	return map[track.Kind][][]byte{
		track.Opens: {packet.TCP(client, vip, packet.SYN), packet.Tagged(packet.TCP(client, vip, packet.SYN), 0x81000007)},
		track.MayOpen: {
			packet.UDP(client, vip, packet.Data(firstInitial(1))),
			packet.UDP(client, vip, packet.Data(firstInitial(0x6b3343cf))),
			packet.Tagged(packet.UDP(client, vip, packet.Data(firstInitial(1))), 0x81000007),
		},
		track.Continues: {
			packet.TCP(client, vip, packet.ACK), packet.TCP(client, vip, packet.SYN, packet.ACK), packet.TCP(client, vip, packet.FIN, packet.ACK),
			packet.TCP(client, vip, packet.RST),
		},
		track.Datagram: {
			packet.UDP(client, vip), packet.UDP(client, vip, packet.Payload(1300)),
			packet.UDP(client, vip, packet.Data(long(handshake, 1, chosen, make([]byte, 1200)...))),
			packet.UDP(client, vip, packet.Data(long(initial, 1, chosen, make([]byte, 100)...))),
			packet.UDP(client, vip, packet.Data(long(initial, 2, chosen, make([]byte, 1200)...))),
		},
	}
}

// recordOf gives the one record that there is.
func recordOf(t *testing.T, d *Dataplane) (key uint64, r bpfRecord, there bool) {
	t.Helper()
	n, err := sift(d.records.m, func(k uint64, value bpfRecord) bool {
		key, r, there = k, value, true
		return true
	})
	must(t, err)
	if n > 1 {
		t.Fatalf("%d records, want one at most", n)
	}
	return key, r, there
}

func forgetRecords(t testing.TB, d *Dataplane) {
	t.Helper()
	_, err := sift(d.records.m, func(uint64, bpfRecord) bool { return false })
	must(t, err)
}

// makeRoom lets there be new records, or none.
func makeRoom(d *Dataplane, room bool) {
	d.store.pace.Next = 0
	if !room {
		d.store.pace.Next = ^uint64(0)
	}
}

// goesTo is the backend that the program sends a frame to, as a number.
func chosenFor(t *testing.T, d *Dataplane, frame []byte) int {
	t.Helper()
	a, err := d.ask(frame)
	must(t, err)
	if v := Verdict(a.trace.Verdict); v != Forwarded {
		t.Fatalf("verdict: got %v, want it forwarded", v)
	}
	return slices.IndexFunc(tracked, func(name string) bool {
		return d.services["web"].members[name].entry() == a.trace.Backend
	})
}

// TestTheProgramDecidesAsTheRulesSay puts every case that there is through the program.
func TestTheProgramDecidesAsTheRulesSay(t *testing.T) {
	d := newDataplane(t)
	setWays(d, tracked...)
	cases := 0
	for _, slot := range []track.Slot{atRest, hasMoved, settles, returned} {
		for i, vip := range vips(1) {
			client := []string{client4, client6}[i]
			web := table("web", lb.L2, 13, vips(1), tracked...)
			apply(t, d, moving(web, settles))
			keys := make(map[track.Kind]uint64)
			for kind, frames := range flowPackets(client, vip) {
				if kind == track.Continues {
					continue
				}
				forgetRecords(t, d)
				makeRoom(d, true)
				d.Caution(0)
				chosenFor(t, d, frames[0])
				key, _, there := recordOf(t, d)
				if !there {
					t.Fatalf("%v in a slot that settles made no record", kind)
				}
				keys[kind] = key
			}
			keys[track.Continues] = keys[track.Opens]
			if keys[track.MayOpen] != keys[track.Datagram] || keys[track.Opens] == keys[track.Datagram] {
				t.Errorf("keys: got %v, want those of UDP the same and TCP's another", keys)
			}
			apply(t, d, moving(web, slot))
			for kind, frames := range flowPackets(client, vip) {
				for n, frame := range frames {
					for _, recorded := range []string{"none", "other", "of a life before"} {
						for _, how := range []struct{ room, cautious bool }{{room: true}, {}, {room: true, cautious: true}, {cautious: true}} {
							cases++
							forgetRecords(t, d)
							s := d.services["web"]
							value := bpfRecord{Service: uint16(s.number), Backend: uint16(s.members[tracked[otherBackend]].index), Life: s.members[tracked[otherBackend]].life}
							rules := track.Recorded{Backend: otherBackend, Known: recorded == "other"}
							if recorded == "of a life before" {
								value.Life--
							}
							if recorded != "none" {
								must(t, d.records.m.Put(keys[kind], value))
							}
							makeRoom(d, how.room)
							d.Caution(0)
							wantBackend, wantRecord := slot.Decide(kind, rules)
							if how.cautious {
								d.Caution(time.Hour)
								wantBackend, _ = slot.Decide(kind.Older(false), rules)
							}
							// A record that is there can be written over, worth something or not.
							if wantRecord && !how.room && recorded == "none" {
								wantBackend, _ = slot.Decide(kind.Older(false), rules)
								wantRecord = false
							}
							got := chosenFor(t, d, frame)
							key, r, there := recordOf(t, d)
							name := fmt.Sprintf("%s, slot %+v, %v (frame %d), record %s, %+v", vip, slot, kind, n, recorded, how)
							if got != int(wantBackend) {
								t.Errorf("%s: went to backend %d, want %d", name, got, wantBackend)
							}
							fresh := there && r.Backend == uint16(s.members[tracked[got]].index) && r.Life == s.members[tracked[got]].life && r.State&recordConfirmed == 0
							switch {
							case wantRecord && (!fresh || key != keys[kind] || r.State&recordDatagrams != 0 != (kind == track.Datagram)):
								t.Errorf("%s: record %x %+v (there: %t), want a new one of backend %d", name, key, r, there, wantBackend)
							case !wantRecord && recorded == "none" && there:
								t.Errorf("%s: record %+v, want none", name, r)
							case !wantRecord && recorded == "other" && slot.InTransition && r.State&recordConfirmed == 0:
								t.Errorf("%s: record %+v, want it confirmed", name, r)
							}
						}
					}
				}
			}
		}
	}
	if cases < 600 {
		t.Errorf("%d cases: where are the others?", cases)
	}
}

func TestQUICServicesTakeAllButInitialsForOlder(t *testing.T) {
	d := newDataplane(t)
	setWays(d, tracked...)
	web := quic(table("web", lb.L2, 13, vips(1), tracked...))
	web = moving(web, hasMoved)
	web.Bases[0].Settling = true
	apply(t, d, web)
	const for10s = 10 * time.Second
	for _, tt := range []struct {
		name    string
		payload []byte
		caution time.Duration
		want    int
	}{
		{"an Initial is new", firstInitial(1), 0, currentBackend},
		{"a short header is not", short(unknown, encrypted...), 0, baseBackendOf},
		{"nor is a Handshake", long(handshake, 1, chosen, make([]byte, 1200)...), 0, baseBackendOf},
		{"nor, for a moment of caution, is an Initial", firstInitial(1), for10s, baseBackendOf},
		{"what names its backend goes there", short([]byte{5<<5 | 7, 0x0a, 3, 0xc5, 0xde, 0x66, 0xa9, 0x0b}, encrypted...), for10s, otherBackend},
	} {
		forgetRecords(t, d)
		d.Caution(tt.caution)
		if got := chosenFor(t, d, packet.UDP(client4, vips(1)[0], packet.Data(tt.payload))); got != tt.want {
			t.Errorf("%s: went to backend %d, want %d", tt.name, got, tt.want)
		}
	}
}

// TestAClientsOlderConnectionsStayWhereItsAddressIsHashed: all of its connections have one
// slot, and each a record of its own. Datagrams that are not QUIC's have one for all.
func TestAClientsOlderConnectionsStayWhereItsAddressIsHashed(t *testing.T) {
	d := newDataplane(t)
	setWays(d, tracked...)
	web := table("web", lb.L2, 13, vips(1), tracked...)
	web.Service.Hash = lb.HashSource
	apply(t, d, moving(web, hasMoved))
	vip := vips(1)[0]
	if got := chosenFor(t, d, packet.TCP("198.51.100.7:1111", vip, packet.SYN)); got != currentBackend {
		t.Errorf("a new connection went to backend %d, want %d", got, currentBackend)
	}
	if got := chosenFor(t, d, packet.TCP("198.51.100.7:1111", vip, packet.ACK)); got != currentBackend {
		t.Errorf("its second packet went to backend %d, want %d", got, currentBackend)
	}
	if got := chosenFor(t, d, packet.TCP("198.51.100.7:2222", vip, packet.ACK)); got != baseBackendOf {
		t.Errorf("an older connection of the client went to backend %d, want %d", got, baseBackendOf)
	}

	first := packet.UDP("198.51.100.7:3333", vip, packet.Data(firstInitial(1)))
	apply(t, d, moving(web, settles))
	if got := chosenFor(t, d, first); got != baseBackendOf {
		t.Errorf("a client's first datagram went to backend %d, want %d: it has one record with all older ones", got, baseBackendOf)
	}
	apply(t, d, moving(web, hasMoved))
	if got := chosenFor(t, d, packet.UDP("198.51.100.7:2222", vip)); got != baseBackendOf {
		t.Errorf("another datagram of the client went to backend %d, want %d", got, baseBackendOf)
	}

	forgetRecords(t, d)
	apply(t, d, moving(quic(web), hasMoved))
	next := packet.UDP("198.51.100.7:3333", vip, packet.Data(short(unknown, encrypted...)))
	for i, frame := range [][]byte{first, next} {
		if got := chosenFor(t, d, frame); got != currentBackend {
			t.Errorf("QUIC: packet %d of a new connection went to backend %d, want %d", i, got, currentBackend)
		}
	}
	if got := chosenFor(t, d, packet.UDP("198.51.100.7:2222", vip, packet.Data(short(unknown, encrypted...)))); got != baseBackendOf {
		t.Errorf("QUIC: an older connection of the client went to backend %d, want %d", got, baseBackendOf)
	}
}

func TestFlowsOfOneHashHaveRecordsOfTheirOwn(t *testing.T) {
	d := newDataplane(t)
	setWays(d, tracked...)
	apply(t, d, moving(table("web", lb.L2, 13, slices.Concat(vips(1), vips(2)), tracked...), hasMoved))
	if got := chosenFor(t, d, packet.TCP(client4, vips(1)[0], packet.SYN)); got != currentBackend {
		t.Errorf("went to backend %d, want %d", got, currentBackend)
	}
	if got := chosenFor(t, d, packet.TCP(client4, vips(2)[0], packet.ACK)); got != baseBackendOf {
		t.Errorf("a flow to the other VIP went to backend %d, want %d", got, baseBackendOf)
	}
}

func TestICMPErrorsFollowTheirFlow(t *testing.T) {
	d := newDataplane(t)
	setWays(d, tracked...)
	apply(t, d, moving(table("web", lb.L2, 13, vips(1), tracked...), settles))
	vip := vips(1)[0]
	about := func(quoted []byte) []byte {
		return packet.ICMP("192.0.2.99", strings.Split(vip, ":")[0], 3, 4, 1400, packet.IP(quoted)[:28])
	}
	if got := chosenFor(t, d, about(packet.TCP(vip, client4))); got != baseBackendOf {
		t.Errorf("about a flow without a record: went to backend %d, want %d", got, baseBackendOf)
	}
	if got := chosenFor(t, d, about(packet.UDP(vip, client4))); got != baseBackendOf {
		t.Errorf("about a datagram: went to backend %d, want %d", got, baseBackendOf)
	}
	if _, r, there := recordOf(t, d); there {
		t.Errorf("an error made record %+v", r)
	}
	chosenFor(t, d, packet.TCP(client4, vip, packet.SYN))
	if got := chosenFor(t, d, about(packet.TCP(vip, client4))); got != currentBackend {
		t.Errorf("about a flow with a record: went to backend %d, want %d", got, currentBackend)
	}
	if _, r, _ := recordOf(t, d); r.State&recordConfirmed != 0 {
		t.Errorf("an error confirmed record %+v", r)
	}
}

func TestRecordsOfABackendThatFailedAreWorthNothing(t *testing.T) {
	d := newDataplane(t)
	setWays(d, tracked...)
	web := moving(table("web", lb.L2, 13, vips(1), tracked...), hasMoved)
	apply(t, d, web)
	vip := vips(1)[0]
	chosenFor(t, d, packet.TCP(client4, vip, packet.SYN))
	ack := packet.TCP(client4, vip, packet.ACK)
	if got := chosenFor(t, d, ack); got != currentBackend {
		t.Fatalf("before: went to backend %d, want %d", got, currentBackend)
	}

	without := moving(web, track.Slot{Current: 1, Base: 0, InTransition: true})
	without.Backends, without.Alive = web.Backends[1:], web.Backends[1:]
	apply(t, d, without)
	if got := chosenFor(t, d, ack); got != baseBackendOf {
		t.Errorf("after it failed: went to backend %d, want the base %d", got, baseBackendOf)
	}
	apply(t, d, web)
	if got := chosenFor(t, d, ack); got != baseBackendOf {
		t.Errorf("after it came back: went to backend %d, want the base %d", got, baseBackendOf)
	}
	// Another server under the name is another backend.
	chosenFor(t, d, packet.TCP(client4, vip, packet.SYN))
	d.setWay("203.0.113.99", way{mac: backendMAC, ifindex: 1, mtu: 1500})
	other := moving(web, hasMoved)
	other.Backends = slices.Clone(web.Backends)
	other.Backends[0].Address = netip.MustParseAddr("203.0.113.99")
	other.Alive, other.Service.Backends = other.Backends, other.Backends
	apply(t, d, other)
	if got := chosenFor(t, d, ack); got != baseBackendOf {
		t.Errorf("after its server was replaced: went to backend %d, want the base %d", got, baseBackendOf)
	}
}

// TestRecordsEnd looks at what is kept of records, each at an age.
func TestRecordsEnd(t *testing.T) {
	d := newDataplane(t)
	setWays(d, tracked...)
	web := moving(table("web", lb.L2, 13, vips(1), tracked...), hasMoved)
	web.Service.FlowLifetime = time.Hour
	apply(t, d, web)
	s := d.services["web"]
	b := s.members[tracked[0]]
	now := time.Now()
	for _, tt := range []struct {
		name  string
		state uint8
		age   time.Duration
		keep  bool
	}{
		{"one that nobody has confirmed", 0, 4 * time.Second, true},
		{"one that nobody confirms", 0, 10 * time.Second, false},
		{"one from another node", recordLearned, time.Minute, true},
		{"an idle connection's", recordConfirmed, 59 * time.Minute, true},
		{"one that is idle for too long", recordConfirmed, 61 * time.Minute, false},
		{"one that is closing", recordConfirmed | recordClosing, 50 * time.Second, true},
		{"one that has closed", recordConfirmed | recordClosing, 70 * time.Second, false},
		{"one of datagrams", recordConfirmed | recordDatagrams, 4 * time.Minute, true},
		{"one of datagrams that come no more", recordConfirmed | recordDatagrams, 6 * time.Minute, false},
		{"one of a clock that was ahead", recordConfirmed, -time.Minute, true},
	} {
		forgetRecords(t, d)
		r := bpfRecord{Service: uint16(s.number), Backend: uint16(b.index), Life: b.life, State: tt.state, Used: uint16(tickOf(now.Add(-tt.age)))}
		must(t, d.records.m.Put(uint64(1), r))
		must(t, d.reviewRecords(now))
		if _, _, there := recordOf(t, d); there != tt.keep {
			t.Errorf("%s: kept %t, want %t", tt.name, there, tt.keep)
		}
	}

	// No flow is older than before because somebody set the clock.
	for _, by := range []time.Duration{6 * time.Hour, -6 * time.Hour, 20 * time.Hour, -20 * time.Hour} {
		forgetRecords(t, d)
		must(t, d.records.m.Put(uint64(1), bpfRecord{
			Service: uint16(s.number), Backend: uint16(b.index), Life: b.life, State: recordConfirmed, Used: uint16(tickOf(now)),
		}))
		must(t, d.reviewRecords(clock.Set(t, now, by)))
		if _, _, there := recordOf(t, d); !there {
			t.Errorf("the clock is set by %v: the record is gone", by)
		}
		must(t, d.reviewRecords(clock.Set(t, now.Add(61*time.Minute), by)))
		if _, _, there := recordOf(t, d); there {
			t.Errorf("the clock is set by %v: the record stays for ever", by)
		}
	}

	forgetRecords(t, d)
	chosenFor(t, d, packet.TCP(client4, vips(1)[0], packet.SYN))
	chosenFor(t, d, packet.TCP(client4, vips(1)[0], packet.FIN, packet.ACK))
	if _, r, _ := recordOf(t, d); r.State != recordConfirmed|recordClosing {
		t.Errorf("after a FIN: state %d, want %d", r.State, recordConfirmed|recordClosing)
	}
	apply(t, d, moving(web, atRest))
	must(t, d.reviewRecords(now.Add(2*tick)))
	if _, r, there := recordOf(t, d); there {
		t.Errorf("record %+v of a service all of whose slots are at rest", r)
	}
}

// TestARecordMadeWhileRecordsAreReviewedStays: the review began before the table turned.
func TestARecordMadeWhileRecordsAreReviewedStays(t *testing.T) {
	d := newDataplane(t)
	setWays(d, tracked...)
	web := table("web", lb.L2, 13, vips(1), tracked...)
	apply(t, d, moving(web, atRest))
	before := d.newJudge(time.Now())
	apply(t, d, moving(web, hasMoved))
	d.tellTime(time.Now())
	chosenFor(t, d, packet.TCP(client4, vips(1)[0], packet.SYN))
	if held, _, err := d.records.review(before); err != nil || held != 1 {
		t.Errorf("got %d records held, %v, want the one of a flow that has just begun", held, err)
	}
	if got := chosenFor(t, d, packet.TCP(client4, vips(1)[0], packet.ACK)); got != currentBackend {
		t.Errorf("its second packet went to backend %d, want %d, where it began", got, currentBackend)
	}
}

// TestABackendIsHeldWhilePacketsCome: also by what is no record's, as by connection IDs, and
// where no slot is in transition.
func TestABackendIsHeldWhilePacketsCome(t *testing.T) {
	d := newDataplane(t)
	setWays(d, tracked...)
	web := moving(table("web", lb.L2, 13, vips(1), tracked...), atRest)
	held := func(when string, want bool) {
		t.Helper()
		if got := len(d.Holds("web", tracked[:1])) > 0; got != want {
			t.Errorf("%s: held %t, want %t", when, got, want)
		}
	}
	held("before there is a table", true)
	apply(t, d, web)
	held("before anybody has looked", true)
	must(t, d.reviewRecords(time.Now().Add(-2*inUse)))
	held("without a packet", false)
	chosenFor(t, d, packet.TCP(client4, vips(1)[0], packet.ACK))
	must(t, d.reviewRecords(time.Now()))
	held("after a packet", true)
	must(t, d.reviewRecords(time.Now()))
	if uses := d.services["web"].uses(); len(uses) != 1 {
		t.Errorf("uses: got %v, want that of the backend that is watched", uses)
	}
	d.Holds("web", nil)
	must(t, d.reviewRecords(time.Now()))
	if uses := d.services["web"].uses(); uses != nil {
		t.Errorf("uses: got %v, want none: nobody is watched", uses)
	}
}

// TestARecordIsWorthNothingToAServiceThatComesLater: by the same name and with the same keys,
// but other backends.
func TestARecordIsWorthNothingToAServiceThatComesLater(t *testing.T) {
	d := newDataplane(t)
	setWays(d, tracked...)
	vip := vips(1)[0]
	apply(t, d, moving(table("web", lb.L2, 13, vips(1), tracked...), hasMoved))
	chosenFor(t, d, packet.TCP(client4, vip, packet.SYN))
	number := d.services["web"].number
	apply(t, d)
	time.Sleep(2 * rest) // the next one gets its number
	setWays(d, tracked...)
	apply(t, d, moving(table("web", lb.L2, 13, vips(1), tracked...), hasMoved))
	if got := d.services["web"].number; got != number {
		t.Fatalf("the service has number %d, want %d again", got, number)
	}
	key, r, there := recordOf(t, d)
	if !there {
		t.Fatal("the record is gone: the test tests nothing")
	}
	for index := range uint16(len(tracked)) { // whoever has that place now
		r.Backend = index
		must(t, d.records.m.Put(key, r))
		if got := chosenFor(t, d, packet.TCP(client4, vip, packet.ACK)); got != baseBackendOf {
			t.Errorf("by a record of a service that is gone, of place %d: went to backend %d, want the base, %d", index, got, baseBackendOf)
		}
	}
}

func TestAFloodMakesNoMoreRecordsThanThereIsRoomFor(t *testing.T) {
	needRoot(t)
	d, err := New(Config{Log: testLog(t), FlowRecords: 1600})
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	setWays(d, tracked...)
	apply(t, d, moving(table("web", lb.L2, 13, vips(1), tracked...), hasMoved))
	refused := 0
	begin := time.Now()
	const flood = 2000
	for i := range inShort(flood, 300) {
		source := fmt.Sprintf("198.51.%d.%d:4711", i>>8, i&255)
		if got := chosenFor(t, d, packet.TCP(source, vips(1)[0], packet.SYN)); got == baseBackendOf {
			refused++
		}
	}
	took := time.Since(begin)
	n, err := sift(d.records.m, func(uint64, bpfRecord) bool { return true })
	must(t, err)
	if most := 100*(took.Seconds()+0.25) + 10; float64(n) > most || n == 0 {
		t.Errorf("%d records in %v, want some and not more than %.0f", n, took, most)
	}
	if want := uint64(refused); trackedPackets(t, d)[bpfTrackedTRACKED_REFUSED] != want || refused == 0 {
		t.Errorf("refused: counted %d, want %d", trackedPackets(t, d)[bpfTrackedTRACKED_REFUSED], want)
	}
}

// TestCautionSparesFlowsThatMoveAtOnce: of two nodes neither hears of the other's records.
func TestCautionSparesFlowsThatMoveAtOnce(t *testing.T) {
	a, b := newDataplane(t), newDataplane(t)
	web := moving(table("web", lb.L2, 13, vips(1), tracked...), hasMoved)
	for _, d := range []*Dataplane{a, b} {
		setWays(d, tracked...)
		apply(t, d, web)
	}
	vip := vips(1)[0]
	initial, later := packet.UDP(client4, vip, packet.Data(firstInitial(1))), packet.UDP(client4, vip, packet.Data(short(unknown, encrypted...)))
	for _, tt := range []struct {
		name        string
		lasts       time.Duration
		first, next []byte
		breaks      bool
	}{
		{"TCP", 0, packet.TCP(client4, vip, packet.SYN), packet.TCP(client4, vip, packet.ACK), true},
		{"TCP, with caution", 10 * time.Second, packet.TCP(client4, vip, packet.SYN), packet.TCP(client4, vip, packet.ACK), false},
		{"TCP, after caution that nobody ended", time.Nanosecond, packet.TCP(client4, vip, packet.SYN), packet.TCP(client4, vip, packet.ACK), true},
		{"QUIC of which no node knows connection IDs, with caution", 10 * time.Second, initial, later, false},
	} {
		forgetRecords(t, a)
		a.Caution(tt.lasts)
		b.Caution(0)
		if began, went := chosenFor(t, a, tt.first), chosenFor(t, b, tt.next); (began != went) != tt.breaks {
			t.Errorf("%s: a flow that began at backend %d goes on to backend %d", tt.name, began, went)
		}
	}
}

// TestCautionLeavesNobodyToAnOldRecord: one that another node has, of the same ports.
func TestCautionLeavesNobodyToAnOldRecord(t *testing.T) {
	a, b := newDataplane(t), newDataplane(t)
	web := moving(table("web", lb.L2, 13, vips(1), tracked...), hasMoved)
	for _, d := range []*Dataplane{a, b} {
		setWays(d, tracked...)
		apply(t, d, web)
		d.Caution(time.Minute)
	}
	vip := vips(1)[0]
	began := chosenFor(t, a, packet.TCP(client4, vip, packet.SYN))
	key, _, there := recordOf(t, a)
	if began != baseBackendOf || !there {
		t.Fatalf("with caution a flow begins at backend %d (record: %t), want %d, and a record", began, there, baseBackendOf)
	}
	old := lb.FlowRecord{Key: key, Backend: backendID("web", tracked[otherBackend], web.Backends[otherBackend].Address), Idle: 3 * tick}
	must(t, b.LearnFlows([]lb.FlowRecord{old}))
	chosenFor(t, a, packet.TCP(client4, vip, packet.ACK))
	must(t, b.LearnFlows(freshFlows(t, a)))
	if got := chosenFor(t, b, packet.TCP(client4, vip, packet.ACK)); got != began {
		t.Errorf("moved to a node with an old record it goes to backend %d, want %d", got, began)
	}
}

func trackedPackets(t *testing.T, d *Dataplane) map[bpfTracked]uint64 {
	t.Helper()
	counts := make(map[bpfTracked]uint64)
	for how := range bpfTrackedTRACKED_MAX {
		n, err := sum(d.store.maps[bpfMapTrackedPackets], uint32(how))
		must(t, err)
		counts[how] = n
	}
	return counts
}

func TestThatOlderFlowsAreThereIsTold(t *testing.T) {
	d := newDataplane(t)
	setWays(d, tracked...)
	web := table("web", lb.L2, 13, vips(1), tracked...)
	apply(t, d, moving(web, hasMoved))
	chosenFor(t, d, packet.TCP(client4, vips(1)[0], packet.SYN))
	d.tellTime(time.Now())
	if at := d.Strayed("web"); !at.IsZero() {
		t.Errorf("after a packet to the current backend: strayed at %v, want never", at)
	}
	chosenFor(t, d, packet.TCP("198.51.100.7:1", vips(1)[0], packet.ACK))
	if at := d.Strayed("web"); time.Since(at) > 2*tick {
		t.Errorf("after a packet to the base: strayed at %v, want now", at)
	}
}

// Such a packet is looked at twice, the second time to tell its sender.
func TestAPacketThatIsTooBigIsOneOfItsFlow(t *testing.T) {
	d := newDataplane(t)
	for _, backend := range tracked {
		d.setWay(backend, way{mac: backendMAC, source: node4, ifindex: 1, mtu: 1500})
	}
	apply(t, d, moving(table("web", lb.IPIP, 13, vips(1), tracked...), hasMoved))
	process(t, d, packet.UDP(client4, vips(1)[0], packet.Payload(1470)), AnsweredTooBig)
	if _, r, there := recordOf(t, d); !there || r.State&recordConfirmed != 0 {
		t.Errorf("record: there %t, state %d, want it there and confirmed by no second packet", there, r.State)
	}
	counts := trackedPackets(t, d)
	if counts[bpfTrackedTRACKED_RECORDED]--; slices.Max(slices.Collect(maps.Values(counts))) != 0 {
		t.Errorf("tracked packets besides one that was recorded: %v, want none", counts)
	}
}

// TestRecordsOutliveTheProcess: the next one has other numbers for services and backends.
func TestRecordsOutliveTheProcess(t *testing.T) {
	r := newRange(t, 1)
	serve := func(d *Dataplane, tables ...lb.Table) {
		must(t, r.nodes[0].Do(func() error { return d.Apply(context.Background(), tables) }))
	}
	d := r.process(t, 0, Native)
	one, two, three := "10.0.0.11", "10.0.0.12", "10.0.0.13"
	serve(d, moving(table("web", lb.L2, 1021, []string{vip4}, one, two, three), hasMoved))
	s := d.services["web"]
	for key, name := range map[uint64]string{1: one, 2: two, 3: three} {
		b := s.members[name]
		must(t, d.records.m.Put(key, bpfRecord{Service: uint16(s.number), Backend: uint16(b.index), Life: b.life, State: recordConfirmed, Used: uint16(40 + key)}))
	}
	b := s.members[one]
	must(t, d.records.m.Put(uint64(4), bpfRecord{Service: uint16(s.number), Backend: uint16(b.index), Life: b.life - 1}))
	must(t, d.Leave())

	d = r.process(t, 0, Native)
	serve(d, table("another", lb.L2, 13, []string{"192.0.2.99:80"}, "10.0.0.14"))
	serve(d, table("another", lb.L2, 13, []string{"192.0.2.99:80"}, "10.0.0.14"), moving(table("web", lb.L2, 1021, []string{vip4}, "10.0.0.10", two, three), hasMoved))
	newer := bpfRecord{Service: uint16(d.services["web"].number), Life: 99, Used: 77}
	must(t, d.records.m.Put(uint64(3), newer))
	r.takeOver(t, 0, d)

	got := make(map[uint64]bpfRecord)
	_, err := sift(d.records.m, func(key uint64, r bpfRecord) bool {
		got[key] = r
		return true
	})
	must(t, err)
	s = d.services["web"]
	want := map[uint64]bpfRecord{
		2: {Service: uint16(s.number), Backend: uint16(s.members[two].index), Life: s.members[two].life, State: recordConfirmed, Used: 42},
		3: newer,
	}
	if !maps.Equal(got, want) {
		t.Errorf("got  %+v\nwant %+v: what is of a backend that is no more is left, what is newer stays", got, want)
	}
	must(t, d.Close())
}

func TestATraceSaysWhatAFlowGoesByAndChangesNothing(t *testing.T) {
	d := newDataplane(t)
	setWays(d, tracked...)
	apply(t, d, moving(table("web", lb.L2, 13, vips(1), tracked...), hasMoved))
	vip := netip.MustParseAddrPort(vips(1)[0])
	ask := func(protocol lb.Protocol, port uint16, want Transition, why string) {
		t.Helper()
		tr, err := d.Trace(protocol, netip.AddrPortFrom(netip.MustParseAddr("198.51.100.7"), port), vip)
		must(t, err)
		if tr.Transition == nil || *tr.Transition != want || !strings.Contains(tr.Why, why) {
			t.Errorf("got %+v, %q, want %+v, %q", tr.Transition, tr.Why, want, why)
		}
	}
	moved := Transition{Current: tracked[0], Base: tracked[1]}
	ask(lb.TCP, 1, moved, `before that "203.0.113.2": the flow has no record, it is taken for older and goes to "203.0.113.2"`)
	ask(lb.UDP, 1, moved, "the flow has no record and is taken for new")
	if _, r, there := recordOf(t, d); there {
		t.Errorf("a trace made record %+v", r)
	}
	chosenFor(t, d, packet.TCP("198.51.100.7:1", vip.String(), packet.SYN))
	moved.ByRecord = true
	ask(lb.TCP, 1, moved, `the flow's record says "203.0.113.1"`)
	if _, r, _ := recordOf(t, d); r.State&recordConfirmed != 0 {
		t.Errorf("a trace confirmed record %+v", r)
	}
	if n := trackedPackets(t, d)[bpfTrackedTRACKED_BY_RECORD]; n != 0 {
		t.Errorf("a trace counted %d packets", n)
	}
	apply(t, d, moving(table("web", lb.L2, 13, vips(1), tracked...), atRest))
	tr, err := d.Trace(lb.TCP, netip.MustParseAddrPort(client4), vip)
	must(t, err)
	if tr.Transition != nil || tr.Backend != tracked[0] {
		t.Errorf("at rest: got %+v, backend %s", tr.Transition, tr.Backend)
	}
}

// TestThatAFlowIsOverIsTold: to a node with a copy of its record, and to one that the flow has
// been at.
func TestThatAFlowIsOverIsTold(t *testing.T) {
	a, b := newDataplane(t), newDataplane(t)
	web := moving(table("web", lb.L2, 13, vips(1), tracked...), hasMoved)
	for _, d := range []*Dataplane{a, b} {
		setWays(d, tracked...)
		apply(t, d, web)
	}
	for _, moves := range []bool{false, true} {
		for _, d := range []*Dataplane{a, b} {
			forgetRecords(t, d)
		}
		for _, option := range []packet.Option{packet.SYN, packet.ACK} {
			chosenFor(t, a, packet.TCP(client4, vips(1)[0], option))
		}
		must(t, b.LearnFlows(freshFlows(t, a)))
		if moves {
			chosenFor(t, b, packet.TCP(client4, vips(1)[0], packet.ACK))
		}
		for range 2 {
			chosenFor(t, a, packet.TCP(client4, vips(1)[0], packet.FIN, packet.ACK))
		}
		told := freshFlows(t, a)
		if len(told) != 1 || !told[0].Closing {
			t.Errorf("moves %t: told of %+v, want that one flow closes", moves, told)
		}
		must(t, b.LearnFlows(told))
		if _, r, there := recordOf(t, b); !there || r.State&recordClosing == 0 || moves == (r.State&recordLearned != 0) {
			t.Errorf("moves %t: the other node has record %+v (there: %t), want it closing", moves, r, there)
		}
	}
}

// freshFlows gives what there is to tell the others.
func freshFlows(t *testing.T, d *Dataplane) []lb.FlowRecord {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	for {
		over := ctx.Err() != nil
		list, err := d.FreshFlows(ctx, 10)
		must(t, err)
		if over || len(list) > 0 {
			return list
		}
	}
}

// TestRecordsAreToldOfAtOnce: whoever waits for them is woken, and not before.
func TestRecordsAreToldOfAtOnce(t *testing.T) {
	d := newDataplane(t)
	setWays(d, tracked...)
	apply(t, d, moving(table("web", lb.L2, 13, vips(1), tracked...), hasMoved))
	heard := make(chan int)
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		defer close(heard)
		for ctx.Err() == nil {
			if list, err := d.FreshFlows(ctx, 10); err != nil || len(list) > 0 {
				heard <- len(list)
			}
		}
	}()
	defer func() {
		stop()
		for range heard { // until nobody reads any more
		}
	}()
	for i := range 3 {
		client := fmt.Sprintf("198.51.100.7:%d", 1000+i)
		chosenFor(t, d, packet.TCP(client, vips(1)[0], packet.SYN))
		select {
		case n := <-heard:
			t.Fatalf("flow %d: %d records are told of after its SYN, which may be one of a flood", i, n)
		case <-time.After(20 * time.Millisecond):
		}
		chosenFor(t, d, packet.TCP(client, vips(1)[0], packet.ACK))
		select {
		case n := <-heard:
			if n != 1 {
				t.Errorf("flow %d: %d records are told of, want its own", i, n)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("flow %d: nobody was woken for its record", i)
		}
	}
}

// TestRecordsAreWorthTheSameOnAnotherNode: with other numbers for everything, in another
// order of services and backends.
func TestRecordsAreWorthTheSameOnAnotherNode(t *testing.T) {
	a, b := newDataplane(t), newDataplane(t)
	setWays(a, tracked...)
	setWays(b, tracked...)
	web := table("web", lb.L2, 13, vips(1), tracked...)
	apply(t, a, moving(web, hasMoved))
	apply(t, b, table("another", lb.L2, 13, vips(2), tracked[0]))
	apply(t, b, table("another", lb.L2, 13, vips(2), tracked[0]), moving(web, hasMoved))
	vip := vips(1)[0]
	syn, ack := packet.TCP(client4, vip, packet.SYN), packet.TCP(client4, vip, packet.ACK)

	chosenFor(t, a, syn)
	if list := freshFlows(t, a); len(list) != 0 {
		t.Errorf("after a SYN: got %v, want nothing: it may be one of a flood", list)
	}
	if got := chosenFor(t, b, ack); got != baseBackendOf {
		t.Fatalf("the other node, told of nothing: went to backend %d, want %d", got, baseBackendOf)
	}
	chosenFor(t, a, ack)
	chosenFor(t, a, ack)
	list := freshFlows(t, a)
	if len(list) != 1 {
		t.Fatalf("after an ACK: got %v, want the one record", list)
	}
	must(t, b.LearnFlows(append(list, lb.FlowRecord{Key: 1, Backend: 2}))) // one of a backend that it does not have
	_, r, there := recordOf(t, b)
	if !there || r.State != recordConfirmed|recordLearned {
		t.Errorf("the other node has record %+v (there: %t), want a learned one", r, there)
	}
	if got := chosenFor(t, b, ack); got != currentBackend {
		t.Errorf("the other node, told of it: went to backend %d, want %d", got, currentBackend)
	}
	if _, r, _ := recordOf(t, b); r.State != recordConfirmed {
		t.Errorf("after the flow has moved there: record %+v, want it its own", r)
	}
	if list := freshFlows(t, b); len(list) != 0 {
		t.Errorf("a flow that has moved: got %v, want it told of in its turn only", list)
	}

	// A backend that failed meanwhile is told of to nobody.
	chosenFor(t, a, packet.TCP("198.51.100.7:9", vip, packet.SYN))
	chosenFor(t, a, packet.TCP("198.51.100.7:9", vip, packet.ACK))
	without := moving(web, track.Slot{Current: 1, Base: 0, InTransition: true})
	without.Backends, without.Alive = web.Backends[1:], web.Backends[1:]
	apply(t, a, without)
	if list := freshFlows(t, a); len(list) != 0 {
		t.Errorf("after its backend failed: got %v, want nothing", list)
	}

	var all []lb.FlowRecord
	must(t, b.AllFlows(func(list []lb.FlowRecord) bool {
		all = append(all, list...)
		return true
	}))
	if len(all) != 1 || all[0].Key != list[0].Key || all[0].Backend != list[0].Backend {
		t.Errorf("all records: got %v, want %v, of whatever age", all, list)
	}
	// Once in every 64 reviews each that is in use is told of again.
	told := 0
	for range turns {
		must(t, b.reviewRecords(time.Now()))
		told += len(freshFlows(t, b))
	}
	if told != 1 {
		t.Errorf("told of again %d times in %d reviews, want once", told, turns)
	}
}

// A node hears of flows before it knows the backends, when it starts; and before it has
// heard that one lives, when another was quicker.
func TestRecordsWaitForTheirBackends(t *testing.T) {
	d := newDataplane(t)
	setWays(d, tracked...)
	web := moving(table("web", lb.L2, 13, vips(1), tracked...), hasMoved)
	without := web
	without.Backends, without.Alive = web.Backends[1:], web.Backends[1:]
	without = moving(without, track.Slot{Current: 1, Base: 1, InTransition: true})
	service, address := web.Service.Name, web.Backends[currentBackend].Address
	record := lb.FlowRecord{Key: 7, Backend: backendID(service, tracked[currentBackend], address), Idle: 3 * tick}

	must(t, d.LearnFlows([]lb.FlowRecord{record}))
	apply(t, d, without)
	must(t, d.LearnFlows([]lb.FlowRecord{{Key: 8, Backend: record.Backend}, {Key: 9, Backend: 2}}))
	if key, r, there := recordOf(t, d); there {
		t.Errorf("while its backend is dead: record %d is there: %+v", key, r)
	}
	apply(t, d, web)
	b := d.services[service].members[tracked[currentBackend]]
	for key, idle := range map[uint64]uint16{7: 3, 8: 0} {
		var r bpfRecord
		if err := d.records.m.Lookup(key, &r); err != nil {
			t.Errorf("once their backend lives: record %d: %v", key, err)
			continue
		}
		age := uint16(tickOf(time.Now())) - r.Used
		if r.Backend != uint16(b.index) || r.Life != b.life || r.State != recordConfirmed|recordLearned || age < idle || age > idle+5 {
			t.Errorf("record %d: got %+v, want one of backend %d in its life %d, idle for %d ticks or some more", key, r, b.index, b.life, idle)
		}
	}
	must(t, d.reviewRecords(time.Now().Add(mostForetold+time.Second)))
	if n := len(d.records.foretold); n != 0 {
		t.Errorf("%d records wait after %v, want none", n, mostForetold)
	}
}

func TestOfTwoRecordsOfAFlowTheLaterCounts(t *testing.T) {
	d := newDataplane(t)
	setWays(d, tracked...)
	apply(t, d, moving(table("web", lb.L2, 13, vips(1), tracked...), hasMoved))
	s := d.services["web"]
	now := uint16(tickOf(time.Now()))
	of := func(backend int, age uint16, state uint8) bpfRecord {
		b := s.members[tracked[backend]]
		return bpfRecord{Service: uint16(s.number), Backend: uint16(b.index), Life: b.life, Used: now - age, State: state}
	}
	for _, tt := range []struct {
		name  string
		there bpfRecord
		told  int // backend
		age   uint16
		want  bpfRecord
	}{
		{"the same, used here", of(0, 5, recordConfirmed), 0, 1, of(0, 5, recordConfirmed)},
		{"the same, used there again", of(0, 5, recordConfirmed|recordLearned), 0, 1, of(0, 1, recordConfirmed|recordLearned)},
		{"another, used there later", of(0, 5, recordConfirmed), 1, 1, of(1, 1, recordConfirmed|recordLearned)},
		{"another, used here later", of(0, 1, recordConfirmed), 1, 5, of(0, 1, recordConfirmed)},
	} {
		forgetRecords(t, d)
		must(t, d.records.m.Put(uint64(7), tt.there))
		b := s.members[tracked[tt.told]]
		must(t, d.LearnFlows([]lb.FlowRecord{{Key: 7, Backend: d.store.ids[b.entry()], Idle: time.Duration(tt.age) * tick}}))
		_, got, _ := recordOf(t, d)
		if slack := got.Used - tt.want.Used; slack > 1 { // a tick may have passed
			t.Errorf("%s: used at %d, want %d", tt.name, got.Used, tt.want.Used)
		}
		got.Used = tt.want.Used
		if got != tt.want {
			t.Errorf("%s: got %+v, want %+v", tt.name, got, tt.want)
		}
	}
}
