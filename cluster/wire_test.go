package cluster

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math"
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
	report = normal(report)
	encoded, err := encodeReport(report)
	if err != nil {
		t.Fatal(err)
	}
	return newRecord(member, v, report, encoded)
}

func TestEveryMessageSurvivesTheWire(t *testing.T) {
	rec := mustRecord(t, "lb1", version{3, 4}, sample(9))
	leaving := mustRecord(t, "lb2", version{math.MaxInt64, 1}, lb.Report{Leaving: true, Settled: true})
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
	} {
		got, why := decode(m.encode())
		if why != "" {
			t.Errorf("%T: refused: %s", m, why)
		} else if !reflect.DeepEqual(got, m) {
			t.Errorf("got %+v, want %+v", got, m)
		}
	}
}

// The bytes on the wire must not change silently: members of two versions
// talk to each other during an upgrade.
func TestTheFormatOfARecordStaysAsItIs(t *testing.T) {
	got := hex.EncodeToString(relay{258 * time.Millisecond, mustRecord(t, "lb1", version{5, 6}, lb.Report{
		Config: 0xc0, Tables: map[string]lb.Digest{"web": 0xd0, "dns": 0xd1}, Leaving: true, Settled: true,
		Observations: []lb.Observation{{Target: 9, State: lb.Down}, {Target: 8, State: lb.Up}, {Target: 10}, {Target: 11, State: lb.Up}, {Target: 12, State: lb.Down}},
	})}.encode())
	want := strings.Join([]string{
		"01" + "03", "00000102", // version, kind, age
		"036c6231", "0000000000000005", "0000000000000006", // member, boot, sequence
		"03", "00000000000000c0", // flags, configuration
		"0002", "03646e73", "00000000000000d1", "03776562", "00000000000000d0", // tables
		"00000005", "0000000000000008", "0000000000000009", "000000000000000a", "000000000000000b", "000000000000000c",
		"49" + "02", // up, down, unknown, up · down
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
		none    = "\x00\x00\x00\x00" // no observations
		one     = "\x00\x00\x00\x01"
		two     = "\x00\x00\x00\x02"
		number8 = "\x00\x00\x00\x00\x00\x00\x00\x08"
		number9 = "\x00\x00\x00\x00\x00\x00\x00\x09"
		age     = "\x00\x00\x00\x01"

		head   = member + version + "\x00" + config
		record = head + "\x00\x00" + none
		length = "\x00\x00\x00\x23"
	)
	for _, tt := range []struct {
		name, message string
		want          refusal // empty: the row that shows the others' base to be right
	}{
		{"nothing", "", refusedMalformed},
		{"no kind", "\x01", refusedMalformed},
		{"another version", "\x02\x01" + member + version, refusedVersion},
		{"kind 0", "\x01\x00", refusedMalformed},
		{"an unknown kind", "\x01\x07", refusedMalformed},

		{"a heartbeat", "\x01\x01" + member + version, ""},
		{"a heartbeat with trailing bytes", "\x01\x01" + member + version + "\x00", refusedMalformed},
		{"a heartbeat cut short", "\x01\x01" + member + version[1:], refusedMalformed},
		{"an empty name", "\x01\x01\x00" + version, refusedMalformed},
		{"a name longer than the message", "\x01\x04\x04lb1", refusedMalformed},
		{"a name that is no UTF-8", "\x01\x04\x01\xff", refusedMalformed},
		{"a boot number that could overflow", "\x01\x01" + member + "\xff" + version[1:], refusedMalformed},
		{"a sequence that could overflow", "\x01\x01" + member + version[:8] + "\xff" + version[9:], refusedMalformed},

		{"a record", "\x01\x02" + record, ""},
		{"a record with sequence 0", "\x01\x02" + member + version[:15] + "\x00" + record[20:], refusedMalformed},
		{"a record with trailing bytes", "\x01\x02" + record + "\x00", refusedMalformed},
		{"unknown flags", "\x01\x02" + member + version + "\x04" + config + "\x00\x00" + none, refusedMalformed},
		{"two tables", "\x01\x02" + head + "\x00\x02\x01a" + number8 + "\x01b" + number8 + none, ""},
		{"tables in the wrong order", "\x01\x02" + head + "\x00\x02\x01b" + number8 + "\x01a" + number8 + none, refusedOrder},
		{"a table twice", "\x01\x02" + head + "\x00\x02\x01a" + number8 + "\x01a" + number8 + none, refusedOrder},
		{"a table without a name", "\x01\x02" + head + "\x00\x01\x00" + number8 + none, refusedMalformed},
		{"more tables than there are", "\x01\x02" + head + "\xff\xff" + none, refusedMalformed},
		{"two observations", "\x01\x02" + head + "\x00\x00" + two + number8 + number9 + "\x09", ""},
		{"targets in the wrong order", "\x01\x02" + head + "\x00\x00" + two + number9 + number8 + "\x09", refusedOrder},
		{"a target twice", "\x01\x02" + head + "\x00\x00" + two + number8 + number8 + "\x09", refusedOrder},
		{"a fourth state", "\x01\x02" + head + "\x00\x00" + one + number8 + "\x03", refusedState},
		{"a state without a target", "\x01\x02" + head + "\x00\x00" + one + number8 + "\x05", refusedMalformed},
		{"observations that are not there", "\x01\x02" + head + "\x00\x00\xff\xff\xff\xff", refusedMalformed},
		{"an observation without states", "\x01\x02" + head + "\x00\x00" + one + number8, refusedMalformed},
		{"a report that is too big", "\x01\x02" + head + strings.Repeat("x", maxReport), refusedOversize},
		{"a message that is too big", "\x01\x02" + head + strings.Repeat("x", maxMessage), refusedOversize},

		{"a relay", "\x01\x03" + age + record, ""},
		{"a relay without a record", "\x01\x03" + age, refusedMalformed},

		{"a claim", "\x01\x05" + member + number8 + "\x00\x01\xc0\x00\x02\x01", ""},
		{"a claim without an address", "\x01\x05" + member + number8 + "\x00\x01", refusedMalformed},
		{"a claim from five bytes", "\x01\x05" + member + number8 + "\x00\x01\xc0\x00\x02\x01\x05", refusedMalformed},
		{"a claim from IPv4 in IPv6", "\x01\x05" + member + number8 + "\x00\x01" + strings.Repeat("\x00", 10) + "\xff\xff\xc0\x00\x02\x01", refusedMalformed},
		{"a claim older than time", "\x01\x05" + member + "\xff" + number8[1:] + "\x00\x01\xc0\x00\x02\x01", refusedMalformed},

		{"a state", "\x01\x06\x00\x01" + age + length + record, ""},
		{"a member twice", "\x01\x06\x00\x02" + age + length + record + age + length + record, refusedOrder},
		{"fewer records than said", "\x01\x06\x00\x02" + age + length + record, refusedMalformed},
		{"a record longer than the state", "\x01\x06\x00\x01" + age + "\xff\xff\xff\xff" + record, refusedMalformed},
		{"a record with room to spare", "\x01\x06\x00\x01" + age + "\x00\x00\x00\x24" + record + "\x00", refusedMalformed},
		{"a record in a state that is too big", "\x01\x06\x00\x01" + age + "\x00\x10\x00\x00" + strings.Repeat("x", 1<<20), refusedOversize},
		{"a state that is too big", "\x01\x06\x00\x00" + strings.Repeat("x", maxState), refusedOversize},
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
		{"a service without a name", lb.Report{Tables: map[string]lb.Digest{"": 1}}, `service "": names must be 1 to 255 bytes of UTF-8`},
		{"too much", sample(70_000), "2 tables and 70000 observations take 577539 bytes, at most 524288 can be told: spread the services over several clusters"},
	} {
		_, err := encodeReport(normal(tt.report))
		if err == nil || err.Error() != tt.want {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.want)
		}
	}
}

func TestAStateLeavesOutWhatDoesNotFit(t *testing.T) {
	big := normal(sample(60_000))
	encoded, err := encodeReport(big)
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
			encoded, err := encodeReport(normal(r.report))
			if err != nil {
				t.Fatal(err)
			}
			if got := newRecord(r.member, r.version, r.report, encoded); !bytes.Equal(got.raw, r.raw) {
				t.Errorf("report %+v: encoded again %x, was %x", r.report, got.raw, r.raw)
			}
		}
	})
}
