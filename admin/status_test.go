package admin_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/halfproxy/halfproxy/admin"
	"github.com/halfproxy/halfproxy/lb"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got\n%s\nwant\n%s\n(if got is right: go test ./admin -update)", path, got, want)
	}
}

// troubled is a node with a bit of everything going on.
func troubled() admin.Status {
	now := time.Date(2026, 3, 14, 3, 7, 0, 0, time.UTC)
	ip, ipPort := netip.MustParseAddr, netip.MustParseAddrPort
	return admin.Status{
		Time: now,
		Node: admin.Node{
			Name: "lb1", Version: "0.1.0", Started: now.Add(-76*time.Hour - 10*time.Minute),
			Health: admin.Health{Status: "ok"},
			Ready:  admin.Health{Status: "not ready", Reasons: []string{"no VIP is announced", "no BGP peer is established"}},
			Interfaces: []admin.Interface{
				{Name: "eth0", XDPMode: "native", Attached: true},
				{Name: "eth1"},
			},
			Records: admin.FlowRecords{Held: 12, Room: 1 << 20},
		},
		Verdicts: []admin.Verdict{
			{Name: "forwarded", Fate: "forwarded", Packets: 1_235_566, Bytes: 987_654_321},
			{Name: "not_vip", Fate: "passed", Packets: 4321, Bytes: 432_100},
			{Name: "no_backend", Fate: "dropped", Packets: 17, Bytes: 1020},
			{Name: "echo_limited", Fate: "dropped"},
		},
		Cluster: admin.Cluster{InSight: 1, Size: 3, Frozen: true, Blind: []string{"lb3"}},
		Orders: []admin.Order{
			{Kind: "service", Name: "dns", Action: "drain", By: "alice", Member: "lb1", At: now.Add(-90 * time.Second)},
			{Kind: "backend", Name: "web/web2", Action: "weigh", Weight: 50, By: "bob", Member: "lb2", At: now.Add(-26 * time.Hour), Until: now.Add(time.Hour)},
		},
		Members: []admin.Member{
			{Name: "lb1", Address: ipPort("10.0.1.1:7946"), State: "alive", ConfigDigest: "8c1d3f0a52b7e946", Tables: map[string]string{"web": "60303ae22b998861"}},
			{Name: "lb2", Address: ipPort("[2001:db8:1::2]:7946"), State: "dead"},
			{Name: "lb3", Address: ipPort("10.0.1.3:7946"), State: "suspect", ConfigDigest: "0b7e9468c1d3f0a5", Tables: map[string]string{"web": "ae22b99886160303"}},
		},
		Services: []admin.Service{
			{
				Name: "web", VIPs: []lb.VIP{lb.MustParseVIP("203.0.113.10"), lb.MustParseVIP("2001:db8::10")},
				Ports: []string{"tcp/80", "tcp/443", "udp/443"}, Forward: "l2",
				Announced: true, Reason: "1 of 3 backends up, 1 needed", Panic: "1 of 2 backends up, less than panic_below of 60%",
				TableDigest: "60303ae22b998861", TableDiffers: []string{"lb3"}, Tracking: "changes",
				Transition: &admin.Transition{Since: now.Add(-5 * time.Minute), Until: now.Add(57 * time.Minute), Changes: 3, Slots: 1911},
				Backends: []admin.Backend{
					{Name: "web1", Address: ip("10.0.1.11"), Weight: 100, WeightNow: 20, State: "up", HealthyObservers: 3, Observers: 3, Packets: 1_234_567, Bytes: 18_446_744_073_709_551_615, Flows: 45_678},
					{Name: "web2", Address: ip("10.0.1.12"), Weight: 50, WeightNow: 50, State: "down", HealthyObservers: 1, Observers: 3, Seen: map[string]string{"lb1": "down", "lb2": "down", "lb3": "up"}, Packets: 999, Bytes: 999_950, Flows: 12,
						LastError: `http: status 503 "Service Unavailable", want 2xx`},
					{Name: "web3", Address: ip("10.0.1.13"), Weight: 0, State: "drained", HealthyObservers: 3, Observers: 3, SafeToStop: true},
					{Name: "web4", Address: ip("10.0.1.14"), Weight: 0, State: "drained", HealthyObservers: 3, Observers: 3, FlowRecords: 12, PacketsPerSecond: 339.7, HeldBy: []string{"lb1", "lb2"}},
				},
			},
			{
				Name: "dns", VIPs: []lb.VIP{lb.MustParseVIP("203.0.113.53"), lb.MustParseVIP("203.0.113.64/28")}, Ports: []string{"udp/53"}, Forward: "ipip",
				Reason:   "0 of 1 backends up, 1 needed",
				HeldBack: []admin.HeldBack{{VIP: lb.MustParseVIP("203.0.113.53"), Cause: "no_backend", Reason: `service "mail": no backend is up`}},
				Backends: []admin.Backend{
					{Name: "ns1", Address: ip("10.9.0.11"), Weight: 100, WeightNow: 100, State: "unknown", LastError: "dial tcp 10.9.0.11:53: connect: connection refused"},
				},
			},
		},
		Aggregates: []admin.Aggregate{
			{Prefix: lb.MustParseVIP("203.0.113.0/24"), VIPs: 3, Cause: "no_backend", Reason: `203.0.113.53: service "mail": no backend is up; 203.0.113.64/28: no backend is up`},
			{Prefix: lb.MustParseVIP("2001:db8::/48"), Announced: true, VIPs: 1, Serving: 1},
		},
		BGP: []admin.Peer{
			{Address: ip("10.0.1.254"), ASN: 64500, State: "established", Since: now.Add(-3*time.Hour - 12*time.Minute), BFD: "off", Announced: 2, LastError: "long past",
				Routes: []admin.Route{{Prefix: netip.MustParsePrefix("203.0.113.10/32")}, {Prefix: netip.MustParsePrefix("2001:db8::10/128"), GoingAway: true}}},
			{Address: ip("2001:db8:1::254"), ASN: 4200000001, State: "active", Since: now.Add(-42 * time.Second), BFD: "down",
				LastError: "the peer refuses the session: NOTIFICATION 2/2 (bad peer AS): compare bgp.peers[1].asn with the router's own AS"},
			{Address: ip("10.0.1.253"), ASN: 64500, State: "idle", BFD: "off"},
		},
		ConfigDigest: "8c1d3f0a52b7e946", ConfigDiffers: []string{"lb3"},
	}
}

// wide has names and addresses as long as they get.
func wide() admin.Status {
	st := troubled()
	web := &st.Services[0]
	for range 6 {
		web.VIPs = append(web.VIPs, lb.MustParseVIP("2001:db8:1234:5678:9abc:def0:1234:5678"))
	}
	web.Backends[0].Name = "storefront-frontend-production-eu-west-1a-000017"
	web.Backends[1].Address = netip.MustParseAddr("2001:db8:1234:5678:9abc:def0:1234:5678")
	web.Backends[1].LastError = strings.Repeat("x", 120) + " and more"
	st.Services[1].Backends[0].Name = "storefront-frontend-production-eu-west-1a-000018"
	st.Members[1].Name = "edge-load-balancer-production-eu-west-1a-000017"
	st.Members[1].Address = netip.MustParseAddrPort("[2001:db8:1234:5678:9abc:def0:1234:5678]:7946")
	return st
}

func writeText(t *testing.T, st admin.Status, colour bool) string {
	t.Helper()
	var out strings.Builder
	if err := st.WriteText(&out, colour); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestStatusAsJSONKeepsItsShape(t *testing.T) {
	for name, st := range map[string]admin.Status{"troubled.json": troubled(), "empty.json": {}} {
		var out bytes.Buffer
		if err := st.WriteJSON(&out); err != nil {
			t.Fatal(err)
		}
		golden(t, name, out.Bytes())
		if bytes.Contains(out.Bytes(), []byte("null")) {
			t.Errorf("%s: an empty list is null, want []", name)
		}
	}
}

func TestStatusAsJSONHoldsWhatOtherProgramsRelyOn(t *testing.T) {
	var out bytes.Buffer
	if err := troubled().WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	var st map[string]any
	if err := json.Unmarshal(out.Bytes(), &st); err != nil {
		t.Fatal(err)
	}
	first := func(of map[string]any, list string) map[string]any { return of[list].([]any)[0].(map[string]any) }
	service := first(st, "services")
	for _, part := range []struct {
		name string
		of   map[string]any
		keys string
	}{
		{"status", st, "node members services bgp config_digest"},
		{"node", st["node"].(map[string]any), "name draining"},
		{"member", first(st, "members"), "name address state"},
		{"service", service, "name vips ports announced reason table_digest backends"},
		{"backend", first(service, "backends"), "name address weight state healthy_observers observers packets bytes"},
		{"peer", first(st, "bgp"), "peer state bfd announced"},
	} {
		for key := range strings.FieldsSeq(part.keys) {
			if _, ok := part.of[key]; !ok {
				t.Errorf("%s has no %q, got %v", part.name, key, part.of)
			}
		}
	}
}

func TestStatusSurvivesTheWayThroughJSON(t *testing.T) {
	var out bytes.Buffer
	if err := troubled().WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	first := out.String()
	var got admin.Status
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	if err := got.WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	if out.String() != first {
		t.Errorf("written again: got\n%s\nwant\n%s", out.String(), first)
	}
	if want := troubled().Services[0].VIPs; !reflect.DeepEqual(got.Services[0].VIPs, want) {
		t.Errorf("vips: got %v, want %v", got.Services[0].VIPs, want)
	}
}

func TestStatusAsTextReadsWell(t *testing.T) {
	golden(t, "troubled.txt", []byte(writeText(t, troubled(), false)))
	golden(t, "wide.txt", []byte(writeText(t, wide(), false)))
	golden(t, "empty.txt", []byte(writeText(t, admin.Status{}, false)))
}

func TestStatusAsTextFitsTheTerminal(t *testing.T) {
	for name, tt := range map[string]struct {
		st    admin.Status
		width int
	}{
		"troubled": {troubled(), 80},
		"wide":     {wide(), 100},
	} {
		for line := range strings.Lines(writeText(t, tt.st, false)) {
			line = strings.TrimSuffix(line, "\n")
			if n := utf8.RuneCountInString(line); n > tt.width && !strings.Contains(line, "xxx") {
				t.Errorf("%s: a line of %d columns, want at most %d: %s", name, n, tt.width, line)
			}
			if strings.HasSuffix(line, " ") {
				t.Errorf("%s: spaces at the end of %q", name, line)
			}
		}
	}
}

func TestLongNamesAreWrittenWhole(t *testing.T) {
	text := writeText(t, wide(), false)
	for _, name := range []string{
		wide().Services[0].Backends[0].Name, wide().Services[1].Backends[0].Name, wide().Members[1].Name,
	} {
		if !strings.Contains(text, name) {
			t.Errorf("%q is not in the text:\n%s", name, text)
		}
	}
}

func TestColourChangesNothingButTheColour(t *testing.T) {
	escape := regexp.MustCompile("\x1b\\[[0-9]*m")
	colourful := writeText(t, wide(), true)
	if got, want := escape.ReplaceAllString(colourful, ""), writeText(t, wide(), false); got != want {
		t.Errorf("without its colours: got\n%s\nwant\n%s", got, want)
	}
	for _, want := range []string{"\x1b[32mup\x1b[0m", "\x1b[31mdown\x1b[0m", "\x1b[33mdrained\x1b[0m"} {
		if !strings.Contains(colourful, want) {
			t.Errorf("%q is not in %q", want, colourful)
		}
	}
}

func TestTextsFromOtherMachinesCannotSteerTheTerminal(t *testing.T) {
	st := troubled()
	st.Services[0].Backends[1].LastError = "status \x1b[2J\x07\r\nroot# "
	st.Members[1].Name = "lb2\x1b]0;owned\x07"
	st.Services[0].Reason = "first\nsecond"
	for _, r := range writeText(t, st, false) {
		if r != '\n' && (r < ' ' || r == 0x7f) {
			t.Fatalf("the text has the control character %q", r)
		}
	}
}

func TestWriteTextGivesBackTheWritersError(t *testing.T) {
	broken := errors.New("broken pipe")
	if err := troubled().WriteText(failing{broken}, false); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
	if err := troubled().WriteJSON(failing{broken}); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }
