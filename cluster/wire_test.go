package cluster

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

func sample(observations int) lb.Report {
	r := lb.Report{
		Config: 0x0102030405060708,
		Tables: map[string]lb.Digest{"web": 7, "dns": math.MaxUint64},
	}
	for i := range observations {
		r.Observations = append(r.Observations, lb.Observation{Target: lb.TargetID(i) << 40, State: lb.State(i % 3)})
	}
	return r
}

func mustRecord(t testing.TB, member string, v version, report lb.Report) *record {
	t.Helper()
	report = normal(report, nil)
	encoded, err := encodeReport(report, nil)
	if err != nil {
		t.Fatal(err)
	}
	return newRecord(member, v, report, encoded)
}

func TestEveryMessageSurvivesTheWire(t *testing.T) {
	rec := mustRecord(t, "lb1", version{3, 4}, sample(9))
	leaving := mustRecord(t, "lb2", version{math.MaxInt64, 1}, lb.Report{Leaving: true, Settled: true, Moving: true})
	for _, m := range []interface{ encode() []byte }{
		heartbeat{"lb1", version{1, 0}},
		news{rec},
		news{leaving},
		news{mustRecord(t, "lb1", version{1, 1}, sample(5000))},
		relay{1500 * time.Millisecond, rec},
		request{strings.Repeat("n", maxName)},
		claim{"lb1", time.Hour, netip.MustParseAddrPort("192.0.2.1:7946")},
		claim{"lb1", 0, netip.MustParseAddrPort("[2001:db8::1]:7946")},
		state(nil),
		state{{0, rec}, {5 * time.Minute, leaving}},
		versions{{"lb1", version{1, 2}}, {"lb2", version{3, 4}}},
		news{mustRecord(t, "lb1", version{1, 1}, sampleStepped(3))},
		changeOf(t, sampleStepped(2), sampleStepped(3)),
		flows{part: more, records: someFlows(1, 100)},
		flows{part: last, total: 9},
		wanted{"lb1"},
		changeOf(t, sample(9), sampleOrdered(12)),
		changeOf(t, sampleOrdered(12), sampleOrdered(3)),
	} {
		got, why := decode(m.encode())
		if why != "" {
			t.Errorf("%T: refused: %s", m, why)
		} else if !reflect.DeepEqual(got, m) {
			t.Errorf("got %+v, want %+v", got, m)
		}
	}
}

func sampleOrdered(observations int) lb.Report {
	r := sample(observations)
	r.Tables = map[string]lb.Digest{"web": 8}
	for _, name := range []string{"web1", "web2"} {
		r.Orders = append(r.Orders, lb.Order{
			Subject: lb.Subject{Kind: lb.OfBackend, Name: name}, Action: lb.Drain, By: "alice",
			At: time.UnixMilli(1000).UTC(), Until: time.UnixMilli(2000).UTC(), Member: "lb1", Version: 7,
		})
	}
	return r
}

// sampleStepped has so many steps.
func sampleStepped(steps int) lb.Report {
	r := sample(3)
	h := lb.History{Begin: time.UnixMilli(1000).UTC(), Quiet: steps%2 == 0}
	for i := range steps / 2 {
		h.Held = append(h.Held, fmt.Sprint("held", i))
	}
	for i := range steps {
		s := lb.Step{Since: time.UnixMilli(int64(1000 + i)).UTC()}
		for b := range 4 {
			if b != i%4 {
				s.Backends = append(s.Backends, lb.Backend{Name: fmt.Sprint("web", b), Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(b)}), Weight: 50 * (i % 100)})
			}
		}
		h.Steps = append(h.Steps, s)
	}
	r.Steps = map[string]lb.History{"web": h}
	return r
}

func TestStepsThatDoNotFitAreNotTold(t *testing.T) {
	many := lb.Report{Steps: make(map[string]lb.History)}
	for i := range 40 {
		many.Steps[fmt.Sprintf("service%02d", i)] = sampleStepped(1000).Steps["web"]
	}
	encoded, err := encodeReport(normal(many, nil), nil)
	if n := len(normal(many, nil).Steps); err != nil || n == 0 || n == 40 || len(encoded) > maxSteps+1000 {
		t.Errorf("got %d bytes with steps of %d services, %v, want some of them", len(encoded), n, err)
	}
}

func changeOf(t testing.TB, from, to lb.Report) change {
	t.Helper()
	c, ok := diff(normal(from, nil), normal(to, nil))
	if !ok {
		t.Fatal("no change tells the difference")
	}
	c.member, c.base, c.sequence = "lb1", version{3, 4}, 5
	return c
}

// Whatever two reports are, the change between them makes the one of the other.
func TestAChangeMakesTheLaterReportOfTheEarlierOne(t *testing.T) {
	const seed = 1
	random := rand.New(rand.NewPCG(seed, 0))
	draw := func() lb.Report {
		r := lb.Report{Config: lb.Digest(random.IntN(2)), Settled: random.IntN(2) == 0, Leaving: random.IntN(2) == 0, Moving: random.IntN(2) == 0}
		for i := range random.IntN(20) {
			if random.IntN(3) > 0 {
				r.Observations = append(r.Observations, drawObservation(random, i))
			}
		}
		for i := range random.IntN(4) {
			r.Tables = with(r.Tables, fmt.Sprint("service", i), lb.Digest(random.IntN(2)))
		}
		return normal(r, nil)
	}
	for n := range 1000 {
		from, to := draw(), draw()
		from.Steps, to.Steps = drawSteps(random), drawSteps(random)
		to.Orders = sampleOrdered(0).Orders[:random.IntN(3)]
		from.Orders = to.Orders[:random.IntN(len(to.Orders)+1)]
		from, to = normal(from, nil), normal(to, nil)
		decoded, why := decode(changeOf(t, from, to).encode())
		if why != "" {
			t.Fatalf("change %d: refused: %s", n, why)
		}
		want, err := encodeReport(to, nil)
		if err != nil {
			t.Fatal(err)
		}
		applied, ok := decoded.(change).apply(from)
		if got, err := encodeReport(applied, nil); !ok || err != nil || !bytes.Equal(got, want) {
			t.Fatalf("change %d from %+v\ngot  %x, %v\nwant %x (seed %d)", n, from, got, err, want, seed)
		}
	}
}

// drawObservation gives one in any state, and starting slowly.
func drawObservation(random *rand.Rand, target int) lb.Observation {
	o := lb.Observation{Target: lb.TargetID(target), State: lb.State(random.IntN(3))}
	if o.State == lb.Up {
		o.Ahead = uint8(random.IntN(lb.SlowSteps))
	}
	return o
}

func TestOrdersThatAreForgottenAreToldOfWithTheWholeRecord(t *testing.T) {
	if _, ok := diff(normal(sampleOrdered(3), nil), normal(sample(3), nil)); ok {
		t.Error("got a change, want none: it cannot say that an order is gone")
	}
}

// The bytes on the wire must not change silently: members of two versions
// talk to each other during an upgrade.
func TestTheFormatOfARecordStaysAsItIs(t *testing.T) {
	got := hex.EncodeToString(relay{258 * time.Millisecond, mustRecord(t, "lb1", version{5, 6}, lb.Report{
		Config: 0xc0, Tables: map[string]lb.Digest{"web": 0xd0, "dns": 0xd1}, Leaving: true, Settled: true,
		Orders: []lb.Order{{
			Subject: lb.Subject{Kind: lb.OfBackend, Service: "web", Name: "web1"}, Action: lb.Weigh, Weight: 50,
			By: "alice", At: time.UnixMilli(1000).UTC(), Member: "lb1", Version: 7,
		}},
		Steps: map[string]lb.History{"web": {Begin: time.UnixMilli(1001).UTC(), Quiet: true, Held: []string{"c", "d"}, Steps: []lb.Step{
			{Since: time.UnixMilli(1002).UTC(), Backends: []lb.Backend{{Name: "a", Address: netip.MustParseAddr("192.0.2.1"), Weight: 100}, {Name: "b", Address: netip.MustParseAddr("2001:db8::1")}}},
			{Since: time.UnixMilli(1003).UTC(), Backends: []lb.Backend{{Name: "a", Address: netip.MustParseAddr("192.0.2.1"), Weight: 50}}},
		}}},
		Observations: []lb.Observation{{Target: 9, State: lb.Down}, {Target: 8, State: lb.Up}, {Target: 10}, {Target: 11, State: lb.Up, Ahead: 4}, {Target: 12, State: lb.Down}},
	})}.encode())
	want := strings.Join([]string{
		"04" + "03", "00000102", // version, kind, age
		"036c6231", "0000000000000005", "0000000000000006", // member, boot, sequence
		"03", "00000000000000c0", // flags, configuration
		"0002", "03646e73", "00000000000000d1", "03776562", "00000000000000d0", // tables
		"0001", "03", "03776562", "0477656231", "03", "0032", "05616c696365", "00000000000003e8", "0000000000000000", "036c6231", "0000000000000007", // orders
		"00000005", "0000000000000008", "0000000000000009", "000000000000000a", "000000000000000b", "000000000000000c",
		"c9" + "02", "04", // up, down, unknown, up and starting · down; ahead
		"0001", "03776562", "00000000000003e9", "01", "0002", "0163", "0164", // steps: begin, quiet, held
		"0000", "0002", // none gone, two new
		"0000", "00000000000003ea", "0002", "0161", "04c0000201", "0064", "0162", "1020010db8000000000000000000000001", "0000",
		"0001", "00000000000003eb", "0002", "0161", "04c0000201", "0032", "0162", "00",
	}, "")
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestTheOrderOfAReportDoesNotMatter(t *testing.T) {
	turned := sample(9)
	slices.Reverse(turned.Observations)
	a, b := mustRecord(t, "lb1", version{1, 1}, sample(9)), mustRecord(t, "lb1", version{1, 1}, turned)
	if !bytes.Equal(a.raw, b.raw) {
		t.Errorf("got %x and %x, want the same", a.raw, b.raw)
	}
	if turned.Observations[0].Target < turned.Observations[1].Target {
		t.Error("the argument was sorted")
	}
}

func TestWhatIsNoMessageIsRefused(t *testing.T) {
	const (
		member  = "\x03lb1"
		version = "\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x02"
		config  = "\x00\x00\x00\x00\x00\x00\x00\x03"
		none    = "\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00" // no orders, no observations, no steps
		one     = "\x00\x00" + "\x00\x00\x00\x01"
		two     = "\x00\x00" + "\x00\x00\x00\x02"
		number8 = "\x00\x00\x00\x00\x00\x00\x00\x08"
		zero    = "\x00\x00\x00\x00\x00\x00\x00\x00"
		number9 = "\x00\x00\x00\x00\x00\x00\x00\x09"
		age     = "\x00\x00\x00\x01"

		head   = member + version + "\x00" + config
		record = head + "\x00\x00" + none
		order  = "\x03\x00\x01w\x01\x00\x00\x00" + number8 + number9 + member + number8
		b      = "\x01b\x04\xc0\x00\x02\x01\x00\x64"
		steps  = "\x00\x01" + "\x01w" + number9 + "\x01" + "\x00\x00" + "\x00\x00" + "\x00\x01" + "\x00\x00" + number8 + "\x00\x01" + b
		report = "\x00" + config + "\x00\x00" + none
		change = member + version + number8
		length = "\x00\x00\x00\x27"
	)
	for _, tt := range []struct {
		name, message string
		want          refusal // empty: the row that shows the others' base to be right
	}{
		{"nothing", "", refusedMalformed},
		{"no kind", "\x04", refusedMalformed},
		{"another version", "\x01\x01" + member + version, refusedVersion},
		{"kind 0", "\x04\x00", refusedMalformed},
		{"an unknown kind", "\x04\x0b", refusedMalformed},

		{"a heartbeat", "\x04\x01" + member + version, ""},
		{"a heartbeat with trailing bytes", "\x04\x01" + member + version + "\x00", refusedMalformed},
		{"a heartbeat cut short", "\x04\x01" + member + version[1:], refusedMalformed},
		{"an empty name", "\x04\x01\x00" + version, refusedMalformed},
		{"a name longer than the message", "\x04\x04\x04lb1", refusedMalformed},
		{"a name that is no UTF-8", "\x04\x04\x01\xff", refusedMalformed},
		{"a boot number that could overflow", "\x04\x01" + member + "\xff" + version[1:], refusedMalformed},
		{"a sequence that could overflow", "\x04\x01" + member + version[:8] + "\xff" + version[9:], refusedMalformed},

		{"a record", "\x04\x02" + record, ""},
		{"a record with sequence 0", "\x04\x02" + member + version[:15] + "\x00" + record[20:], refusedMalformed},
		{"a record with trailing bytes", "\x04\x02" + record + "\x00", refusedMalformed},
		{"unknown flags", "\x04\x02" + member + version + "\x08" + config + "\x00\x00" + none, refusedMalformed},
		{"two tables", "\x04\x02" + head + "\x00\x02\x01a" + number8 + "\x01b" + number8 + none, ""},
		{"tables in the wrong order", "\x04\x02" + head + "\x00\x02\x01b" + number8 + "\x01a" + number8 + none, refusedOrder},
		{"a table twice", "\x04\x02" + head + "\x00\x02\x01a" + number8 + "\x01a" + number8 + none, refusedOrder},
		{"a table without a name", "\x04\x02" + head + "\x00\x01\x00" + number8 + none, refusedMalformed},
		{"more tables than there are", "\x04\x02" + head + "\xff\xff" + none, refusedMalformed},
		{"two observations", "\x04\x02" + head + "\x00\x00" + two + number8 + number9 + "\x09" + "\x00\x00", ""},
		{"targets in the wrong order", "\x04\x02" + head + "\x00\x00" + two + number9 + number8 + "\x09" + "\x00\x00", refusedOrder},
		{"a target twice", "\x04\x02" + head + "\x00\x00" + two + number8 + number8 + "\x09" + "\x00\x00", refusedOrder},
		{"a slow start", "\x04\x02" + head + "\x00\x00" + one + number8 + "\x03\x04" + "\x00\x00", ""},
		{"a slow start that is over", "\x04\x02" + head + "\x00\x00" + one + number8 + "\x03\x00" + "\x00\x00", refusedState},
		{"a slow start of too many steps", "\x04\x02" + head + "\x00\x00" + one + number8 + "\x03\x05" + "\x00\x00", refusedState},
		{"a slow start without steps", "\x04\x02" + head + "\x00\x00" + one + number8 + "\x03", refusedMalformed},
		{"a state without a target", "\x04\x02" + head + "\x00\x00" + one + number8 + "\x05" + "\x00\x00", refusedMalformed},
		{"observations that are not there", "\x04\x02" + head + "\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff", refusedMalformed},
		{"an observation without states", "\x04\x02" + head + "\x00\x00" + one + number8 + "\x00\x00", refusedMalformed},
		{"a report that is too big", "\x04\x02" + head + strings.Repeat("x", maxReport), refusedOversize},
		{"a message that is too big", "\x04\x02" + head + strings.Repeat("x", maxMessage), refusedOversize},

		{"an order", "\x04\x02" + head + "\x00\x00" + "\x00\x01" + order + none[2:], ""},
		{"an order twice", "\x04\x02" + head + "\x00\x00" + "\x00\x02" + order + order + none[2:], refusedOrder},
		{"an order about nothing", "\x04\x02" + head + "\x00\x00" + "\x00\x01" + "\x00" + order[1:] + none[2:], refusedMalformed},
		{"an order to do what is unknown", "\x04\x02" + head + "\x00\x00" + "\x00\x01" + order[:4] + "\x04" + order[5:] + none[2:], refusedMalformed},
		{"an order of too great a weight", "\x04\x02" + head + "\x00\x00" + "\x00\x01" + order[:5] + "\xff" + order[6:] + none[2:], refusedMalformed},
		{"more orders than there are", "\x04\x02" + head + "\x00\x00" + "\xff\xff" + order + none[2:], refusedMalformed},

		{"steps", "\x04\x02" + head + "\x00\x00" + none[:6] + steps, ""},
		{"steps of no service", "\x04\x02" + head + "\x00\x00" + none[:6] + steps[:2] + "\x00" + steps[4:], refusedMalformed},
		{"steps of a service twice", "\x04\x02" + head + "\x00\x00" + none[:6] + "\x00\x02" + steps[2:] + steps[2:], refusedOrder},
		{"steps that may be quiet", "\x04\x02" + head + "\x00\x00" + none[:6] + steps[:12] + "\x02" + steps[13:], refusedMalformed},
		{"steps of nothing", "\x04\x02" + head + "\x00\x00" + none[:6] + steps[:4] + zero + "\x00" + "\x00\x00" + "\x00\x00" + "\x00\x00", refusedMalformed},
		{"backends that are held in the wrong order", "\x04\x02" + head + "\x00\x00" + none[:6] + steps[:13] + "\x00\x02\x01b\x01a" + steps[15:], refusedOrder},
		{"a step gone that there is not", "\x04\x02" + head + "\x00\x00" + none[:6] + steps[:15] + "\x00\x01\x00\x00" + steps[17:], refusedMalformed},
		{"a step that others have to come before", "\x04\x02" + head + "\x00\x00" + none[:6] + steps[:20] + "\x01" + steps[21:], refusedMalformed},
		{"two steps", "\x04\x02" + head + "\x00\x00" + none[:6] + steps[:17] + "\x00\x02" + steps[19:] + "\x00\x01" + number8 + "\x00\x01" + "\x01b\x00", ""},
		{"a step twice in one place", "\x04\x02" + head + "\x00\x00" + none[:6] + steps[:17] + "\x00\x02" + steps[19:] + steps[19:], refusedOrder},
		{"a step that was before the one before it", "\x04\x02" + head + "\x00\x00" + none[:6] + steps[:17] + "\x00\x02" + "\x00\x00" + number9 + steps[29:] + "\x00\x01" + number8 + "\x00\x01" + "\x01b\x00", refusedMalformed},
		{"a backend that is as it was", "\x04\x02" + head + "\x00\x00" + none[:6] + steps[:17] + "\x00\x02" + steps[19:] + "\x00\x01" + number8 + "\x00\x01" + b, refusedMalformed},
		{"a backend gone that was not there", "\x04\x02" + head + "\x00\x00" + none[:6] + steps[:29] + "\x00\x01" + "\x01b\x00", refusedMalformed},
		{"a backend twice in a step", "\x04\x02" + head + "\x00\x00" + none[:6] + steps[:29] + "\x00\x02" + b + b, refusedOrder},
		{"a backend of too great a weight", "\x04\x02" + head + "\x00\x00" + none[:6] + steps[:len(steps)-2] + "\x27\x11", refusedMalformed},
		{"a backend at no address", "\x04\x02" + head + "\x00\x00" + none[:6] + steps[:31] + "\x01b\x03\xc0\x00\x02\x00\x64", refusedMalformed},
		{"more steps than there are", "\x04\x02" + head + "\x00\x00" + none[:6] + steps[:17] + "\xff\xff" + steps[19:], refusedMalformed},
		{"more backends than there are", "\x04\x02" + head + "\x00\x00" + none[:6] + steps[:29] + "\xff\xff" + b, refusedMalformed},

		{"a change", "\x04\x07" + change + report + "\x00\x00" + none[4:], ""},
		{"a change of nothing", "\x04\x07" + member + version[:15] + "\x00" + number8 + report + "\x00\x00" + none[4:], refusedMalformed},
		{"a change into the past", "\x04\x07" + member + version + version[8:] + report + "\x00\x00" + none[4:], refusedMalformed},
		{"a change without what is gone", "\x04\x07" + change + report, refusedMalformed},
		{"services that are gone in the wrong order", "\x04\x07" + change + report + "\x00\x02\x01b\x01a" + none[4:], refusedOrder},
		{"more targets that are gone than there are", "\x04\x07" + change + report + "\x00\x00\xff\xff\xff\xff", refusedMalformed},
		{"targets that are gone in the wrong order", "\x04\x07" + change + report + "\x00\x00" + two[2:] + number9 + number8, refusedOrder},

		{"versions", "\x04\x08\x00\x01" + member + version, ""},
		{"a version twice", "\x04\x08\x00\x02" + member + version + member + version, refusedOrder},
		{"fewer versions than said", "\x04\x08\x00\x02" + member + version, refusedMalformed},

		{"a relay", "\x04\x03" + age + record, ""},
		{"a relay without a record", "\x04\x03" + age, refusedMalformed},

		{"a claim", "\x04\x05" + member + number8 + "\x00\x01\xc0\x00\x02\x01", ""},
		{"a claim without an address", "\x04\x05" + member + number8 + "\x00\x01", refusedMalformed},
		{"a claim from five bytes", "\x04\x05" + member + number8 + "\x00\x01\xc0\x00\x02\x01\x05", refusedMalformed},
		{"a claim from IPv4 in IPv6", "\x04\x05" + member + number8 + "\x00\x01" + strings.Repeat("\x00", 10) + "\xff\xff\xc0\x00\x02\x01", refusedMalformed},
		{"a claim older than time", "\x04\x05" + member + "\xff" + number8[1:] + "\x00\x01\xc0\x00\x02\x01", refusedMalformed},

		{"a state", "\x04\x06\x00\x01" + age + length + record, ""},
		{"a member twice", "\x04\x06\x00\x02" + age + length + record + age + length + record, refusedOrder},
		{"fewer records than said", "\x04\x06\x00\x02" + age + length + record, refusedMalformed},
		{"a record longer than the state", "\x04\x06\x00\x01" + age + "\xff\xff\xff\xff" + record, refusedMalformed},
		{"a record with room to spare", "\x04\x06\x00\x01" + age + "\x00\x00\x00\x28" + record + "\x00", refusedMalformed},
		{"a record in a state that is too big", "\x04\x06\x00\x01" + age + "\x00\x10\x00\x00" + strings.Repeat("x", 1<<20), refusedOversize},
		{"a state that is too big", "\x04\x06\x00\x00" + strings.Repeat("x", maxState), refusedOversize},
	} {
		if _, got := decode([]byte(tt.message)); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestAReportThatCannotBeToldIsAnError(t *testing.T) {
	for _, tt := range []struct {
		name   string
		report lb.Report
		want   string
	}{
		{"a target twice", lb.Report{Observations: []lb.Observation{{Target: 26}, {Target: 26}}}, "target 1a is observed twice"},
		{"a state no observer finds", lb.Report{Observations: []lb.Observation{{Target: 26, State: lb.Draining}}},
			"target 1a is draining: an observer finds up, down or unknown only"},
		{"a slow start of what is down", lb.Report{Observations: []lb.Observation{{Target: 26, State: lb.Down, Ahead: 1}}},
			"target 1a is down with 1 steps of a slow start ahead: there are at most 4, of backends that are up"},
		{"a service without a name", lb.Report{Tables: map[string]lb.Digest{"": 1}}, `service "": names must be 1 to 255 bytes of UTF-8`},
		{"too much", sample(70_000), "2 tables and 70000 observations take 577543 bytes, at most 524288 can be told: spread the services over several clusters"},
	} {
		_, err := encodeReport(normal(tt.report, nil), nil)
		if err == nil || err.Error() != tt.want {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.want)
		}
	}
}

func TestAStateLeavesOutWhatDoesNotFit(t *testing.T) {
	big := normal(sample(60_000), nil)
	encoded, err := encodeReport(big, nil)
	if err != nil {
		t.Fatal(err)
	}
	var s state
	for i := range 40 {
		s = append(s, relay{0, newRecord(fmt.Sprintf("lb%02d", i), version{1, 1}, big, encoded)})
	}
	b := s.encode()
	m, why := decode(b)
	if got := len(m.(state)); why != "" || got == 0 || got == len(s) || len(b) > maxState {
		t.Errorf("%d bytes with %d of %d records, refused %q: want as many as fit %d bytes", len(b), got, len(s), why, maxState)
	}
}

// FuzzDecode: whatever comes in, nothing panics, and what is taken is the one
// encoding of what it says.
func FuzzDecode(f *testing.F) {
	rec := mustRecord(f, "lb1", version{3, 4}, sample(9))
	for _, m := range []interface{ encode() []byte }{
		heartbeat{"lb1", version{1, 2}}, news{rec}, relay{time.Second, rec}, request{"lb1"},
		claim{"lb1", time.Hour, netip.MustParseAddrPort("192.0.2.1:7946")}, state{{time.Second, rec}},
		versions{{"lb1", version{1, 2}}}, flows{last, 7, someFlows(1, 3)}, wanted{"lb1"}, changeOf(f, sample(9), sampleOrdered(12)), news{mustRecord(f, "lb1", version{1, 1}, sampleOrdered(2))},
		news{mustRecord(f, "lb1", version{1, 1}, sampleStepped(3))}, changeOf(f, sampleStepped(1), sampleStepped(2)),
	} {
		f.Add(m.encode())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, why := decode(b)
		if why != "" {
			return
		}
		if got := m.(interface{ encode() []byte }).encode(); !bytes.Equal(got, b) {
			t.Errorf("%+v: encoded again %x, was %x", m, got, b)
		}
		var records []*record
		switch m := m.(type) {
		case news:
			records = append(records, m.record)
		case relay:
			records = append(records, m.record)
		case state:
			for _, r := range m {
				records = append(records, r.record)
			}
		}
		for _, r := range records {
			encoded, err := encodeReport(normal(r.report, nil), nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := newRecord(r.member, r.version, r.report, encoded); !bytes.Equal(got.raw, r.raw) {
				t.Errorf("report %+v: encoded again %x, was %x", r.report, got.raw, r.raw)
			}
		}
	})
}
