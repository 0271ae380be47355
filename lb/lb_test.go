package lb_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

func TestParseCommunity(t *testing.T) {
	for _, tt := range []struct {
		in, want string // want is empty where in must be refused
	}{
		{"64512:100", "64512:100"},
		{"0:0", "0:0"},
		{"4200000000:1:2", "4200000000:1:2"},
		{"no-export", "65535:65281"},
		{"graceful-shutdown", "65535:0"},
		{"65536:1", ""},
		{"4294967296:1:2", ""},
		{"64512", ""},
		{"1:2:3:4", ""},
		{"", ""},
		{"a:b", ""},
		{"-1:2", ""},
	} {
		c, err := lb.ParseCommunity(tt.in)
		if (err == nil) != (tt.want != "") || (err == nil && c.String() != tt.want) {
			t.Errorf("ParseCommunity(%q): got %v, %v, want %q", tt.in, c, err, tt.want)
		}
	}
}

func TestQuorumRoundsSharesUp(t *testing.T) {
	for _, tt := range []struct {
		q    lb.Quorum
		n    int
		want int
	}{
		{lb.Quorum{Value: 1}, 10, 1},
		{lb.Quorum{Value: 30, Percent: true}, 10, 3},
		{lb.Quorum{Value: 30, Percent: true}, 3, 1},
		{lb.Quorum{Value: 34, Percent: true}, 3, 2},
		{lb.Quorum{Value: 30, Percent: true}, 0, 0},
		{lb.Quorum{Value: 100, Percent: true}, 7, 7},
	} {
		if got := tt.q.Of(tt.n); got != tt.want {
			t.Errorf("%v of %d: got %d, want %d", tt.q, tt.n, got, tt.want)
		}
	}
}

func TestPortsAreWrittenAsTheyAreRead(t *testing.T) {
	for _, tt := range []struct {
		port lb.Port
		want string
	}{
		{lb.Port{Protocol: lb.TCP, Number: 80}, "tcp/80"},
		{lb.Port{Protocol: lb.UDP, Number: 1000, Last: 2000}, "udp/1000-2000"},
		{lb.Port{Protocol: lb.SCTP, Number: 1, Last: 65535}, "sctp/*"},
		{lb.Port{Protocol: lb.UDPLite, Number: 1}, "udplite/1"},
	} {
		if got := tt.port.String(); got != tt.want {
			t.Errorf("got %s, want %s", got, tt.want)
		}
	}
}

func TestPortsClashWhereNeitherIsMoreSpecific(t *testing.T) {
	tcp := func(first, last uint16) lb.Port { return lb.Port{Protocol: lb.TCP, Number: first, Last: last} }
	for _, tt := range []struct {
		a, b lb.Port
		want bool
	}{
		{tcp(80, 0), tcp(80, 0), true},
		{tcp(80, 0), tcp(81, 0), false},
		{tcp(80, 0), lb.Port{Protocol: lb.UDP, Number: 80}, false},
		{tcp(80, 0), tcp(1, 100), false},
		{tcp(1, 100), tcp(100, 200), true},
		{tcp(1, 100), tcp(101, 200), false},
		{tcp(1, 100), tcp(50, 60), true},
		{tcp(1, 100), lb.Port{Protocol: lb.SCTP, Number: 50, Last: 60}, false},
	} {
		if got, turned := tt.a.Clashes(tt.b), tt.b.Clashes(tt.a); got != tt.want || turned != tt.want {
			t.Errorf("%s and %s: got %v and %v, want %v", tt.a, tt.b, got, turned, tt.want)
		}
	}
}

func TestTargetIDChangesWithEveryPartOfTheTarget(t *testing.T) {
	base := lb.Target{
		Service: "web", Backend: "web1", Address: netip.MustParseAddr("192.0.2.1"),
		Check: lb.Check{Type: lb.CheckHTTP, Port: 80, Path: "/", Interval: time.Second, Timeout: time.Second / 2, Rise: 2, Fall: 3},
	}
	if same := base; same.ID() != base.ID() {
		t.Fatal("the same target twice gives two IDs")
	}
	for name, change := range map[string]func(*lb.Target){
		"service":  func(t *lb.Target) { t.Service = "dns" },
		"backend":  func(t *lb.Target) { t.Backend = "web2" },
		"address":  func(t *lb.Target) { t.Address = netip.MustParseAddr("192.0.2.2") },
		"type":     func(t *lb.Target) { t.Check.Type = lb.CheckTCP },
		"port":     func(t *lb.Target) { t.Check.Port++ },
		"path":     func(t *lb.Target) { t.Check.Path = "/x" },
		"interval": func(t *lb.Target) { t.Check.Interval++ },
		"timeout":  func(t *lb.Target) { t.Check.Timeout++ },
		"rise":     func(t *lb.Target) { t.Check.Rise++ },
		"fall":     func(t *lb.Target) { t.Check.Fall++ },
	} {
		other := base
		change(&other)
		if other.ID() == base.ID() {
			t.Errorf("another %s gives the same ID", name)
		}
	}
}

func TestDigestServicesIgnoresTheOrderOfTheFile(t *testing.T) {
	a := lb.Service{Name: "a", VIPs: vips("192.0.2.1", "2001:db8::/64"), Backends: []lb.Backend{{Name: "x"}, {Name: "y"}}}
	b := lb.Service{Name: "b", Ports: []lb.Port{{Protocol: lb.TCP, Number: 80}, {Protocol: lb.UDP, Number: 53}}}
	want := lb.DigestServices([]lb.Service{a, b})

	turned := a
	turned.VIPs = vips("2001:db8::/64", "192.0.2.1")
	turned.Backends = []lb.Backend{{Name: "y"}, {Name: "x"}}
	other := b
	other.Ports = []lb.Port{{Protocol: lb.UDP, Number: 53}, {Protocol: lb.TCP, Number: 80}}
	if got := lb.DigestServices([]lb.Service{other, turned}); got != want {
		t.Errorf("same services in another order: got %v, want %v", got, want)
	}

	changed := a
	changed.Backends = []lb.Backend{{Name: "x", Weight: 1}, {Name: "y"}}
	if got := lb.DigestServices([]lb.Service{changed, b}); got == want {
		t.Error("another weight gives the same digest")
	}
	if got := a.Backends[0].Name; got != "x" {
		t.Errorf("DigestServices sorted its argument: first backend is %q", got)
	}
}

func TestHashFieldsAreReadAsTheyAreWritten(t *testing.T) {
	for fields := lb.HashFields(1); fields < 16; fields++ {
		var read lb.HashFields
		for _, name := range fields.Names() {
			field, ok := lb.ParseHashFields(name)
			if !ok || read&field != 0 {
				t.Errorf("%q: got %s, %v, want another field", name, field, ok)
			}
			read |= field
		}
		if read != fields {
			t.Errorf("%s: got %s", fields, read)
		}
	}
	if flow, ok := lb.ParseHashFields("flow"); !ok || flow.String() != "source, source_port, destination_port" {
		t.Errorf("flow: got %s, %v", flow, ok)
	}
	for _, name := range []string{"", "port", "source, destination"} {
		if _, ok := lb.ParseHashFields(name); ok {
			t.Errorf("%q is taken for a field", name)
		}
	}
}

func TestVIPsAreWrittenAsTheyAreRead(t *testing.T) {
	for _, s := range []string{"203.0.113.10", "203.0.113.0/28", "0.0.0.0/1", "2001:db8::10", "2001:db8::/64", "2001:db8::/127"} {
		v, err := lb.ParseVIP(s)
		if err != nil || v.String() != s {
			t.Errorf("%q: got %s, %v", s, v, err)
		}
		text, err := json.Marshal([]lb.VIP{v})
		var back []lb.VIP
		if err != nil || string(text) != fmt.Sprintf("[%q]", s) || json.Unmarshal(text, &back) != nil || !slices.Equal(back, []lb.VIP{v}) {
			t.Errorf("%q: got %s and %v in JSON, %v", s, text, back, err)
		}
	}
	for _, s := range []string{"203.0.113.10/32", "2001:db8::10/128"} {
		if v := lb.MustParseVIP(s); v != lb.AddrVIP(v.Addr()) {
			t.Errorf("%s is not the VIP of its address", s)
		}
	}
	for _, s := range []string{"", "web", "203.0.113.0/33", "203.0.113.300"} {
		if v, err := lb.ParseVIP(s); err == nil {
			t.Errorf("%q: got %s, want an error", s, v)
		}
	}
}

func TestAroundGivesTheLongestPrefix(t *testing.T) {
	got := lb.Around(vips("10.9.8.70", "10.0.0.0/8", "10.9.8.0/24", "10.9.0.0/16", "10.9.8.0/24", "10.9.8.0", "10.10.0.0/16", "192.0.2.1", "::/1", "2001:db8::1", "10.9.9.0/24"))
	want := map[string]string{
		"10.9.0.0/16": "10.0.0.0/8", "10.10.0.0/16": "10.0.0.0/8", "10.9.8.0/24": "10.9.0.0/16", "10.9.9.0/24": "10.9.0.0/16",
		"10.9.8.0": "10.9.8.0/24", "10.9.8.70": "10.9.8.0/24", "2001:db8::1": "::/1",
	}
	if len(got) != len(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for v, around := range want {
		if got[lb.MustParseVIP(v)] != lb.MustParseVIP(around) {
			t.Errorf("%s: got %s, want %s", v, got[lb.MustParseVIP(v)], around)
		}
	}
}

func TestTableDigestCoversWhatDecidesWhereAFlowGoes(t *testing.T) {
	base := func() lb.Table {
		return lb.Table{Backends: []lb.Backend{{Name: "x", Address: netip.MustParseAddr("192.0.2.1")}}, Slots: []uint16{0, 0, 0}}
	}
	want := base().Digest()
	for name, change := range map[string]func(*lb.Table){
		"hash key": func(t *lb.Table) { t.HashKey[0] = 1 },
		"slots":    func(t *lb.Table) { t.Slots[1] = 1 },
		"hash":     func(t *lb.Table) { t.Service.Hash = lb.HashSource },
		"quic":     func(t *lb.Table) { t.Service.QUIC.ServerIDLength = 1 },
		"backend":  func(t *lb.Table) { t.Backends[0].Name = "z" },
		"address":  func(t *lb.Table) { t.Backends[0].Address = netip.MustParseAddr("192.0.2.2") },
	} {
		changed := base()
		change(&changed)
		if changed.Digest() == want {
			t.Errorf("another %s gives the same digest", name)
		}
	}
}

func TestTableDigestCoversWhereServerIDsLead(t *testing.T) {
	base := func() lb.Table {
		return lb.Table{
			Service: lb.Service{QUIC: lb.QUIC{ServerIDLength: 1}},
			Alive:   []lb.Backend{{Name: "x", Address: netip.MustParseAddr("192.0.2.1"), ServerID: "\x01"}},
		}
	}
	want := base().Digest()
	for name, change := range map[string]func(*lb.Table){
		"rotation":  func(t *lb.Table) { t.Service.QUIC.ConfigRotation = 1 },
		"server ID": func(t *lb.Table) { t.Alive[0].ServerID = "\x02" },
		"backend":   func(t *lb.Table) { t.Alive[0].Name = "z" },
		"address":   func(t *lb.Table) { t.Alive[0].Address = netip.MustParseAddr("192.0.2.2") },
		"state":     func(t *lb.Table) { t.Alive = nil },
	} {
		changed := base()
		change(&changed)
		if changed.Digest() == want {
			t.Errorf("another %s gives the same digest", name)
		}
	}
}

func vips(list ...string) []lb.VIP {
	var out []lb.VIP
	for _, s := range list {
		out = append(out, lb.MustParseVIP(s))
	}
	return slices.Clip(out)
}
