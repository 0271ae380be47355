package lb_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
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

func TestTargetIDChangesWithEveryPartOfTheQuestion(t *testing.T) {
	base := lb.Target{
		Service: "web", Backend: "web1", Address: netip.MustParseAddr("192.0.2.1"),
		Check: lb.Check{Type: lb.CheckHTTP, Port: 80, Path: "/", Interval: time.Second, Timeout: time.Second / 2, Rise: 2, Fall: 3},
	}
	if same := base; same.ID() != base.ID() {
		t.Fatal("the same target twice gives two IDs")
	}
	other := base
	other.Address = netip.MustParseAddr("192.0.2.2")
	if other.ID() == base.ID() {
		t.Error("another address gives the same ID")
	}
	check := reflect.TypeFor[lb.Check]()
	for i := range check.NumField() {
		other := base
		change(t, reflect.ValueOf(&other.Check).Elem().Field(i))
		if other.ID() == base.ID() {
			t.Errorf("another %s gives the same ID", check.Field(i).Name)
		}
	}
	for _, name := range []string{"VIPs", "Forward", "GUEPort", "GUEChecksum", "OuterSources"} {
		other := base
		change(t, reflect.ValueOf(&other).Elem().FieldByName(name))
		if other.ID() == base.ID() {
			t.Errorf("another %s gives the same ID", name)
		}
	}
}

func TestTargetsOfVIPsKnowTheWay(t *testing.T) {
	service := lb.Service{
		Name: "web", VIPs: []lb.VIP{lb.MustParseVIP("203.0.113.10"), lb.MustParseVIP("2001:db8::10")},
		Forward: lb.GUE, GUEPort: 6080, GUEChecksum: true, OuterSources: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/24")},
		Backends: []lb.Backend{{Name: "web1", Address: netip.MustParseAddr("192.0.2.1")}},
		Check:    lb.Check{Via: lb.ViaVIP, Port: 80, Interval: time.Second},
	}
	vip := service.Targets()[0]
	want := lb.Target{
		Service: "web", Backend: "web1", Address: service.Backends[0].Address, Check: service.Check,
		VIPs: service.VIPs, Forward: lb.GUE, GUEPort: 6080, GUEChecksum: true, OuterSources: service.OuterSources,
	}
	if !reflect.DeepEqual(vip, want) {
		t.Errorf("got %+v, want %+v", vip, want)
	}
	turned := service
	turned.VIPs = []lb.VIP{service.VIPs[1], service.VIPs[0]}
	if turned.Targets()[0].ID() != vip.ID() {
		t.Error("another order of the VIPs in the file gives another ID")
	}
	service.Check.Via = lb.ViaDirect
	direct := service.Targets()[0]
	service.VIPs, service.Forward, service.GUEPort, service.GUEChecksum, service.OuterSources = nil, lb.L2, 0, false, nil
	if got := service.Targets()[0]; !reflect.DeepEqual(got, direct) {
		t.Errorf("the way of packets is part of a question that is asked directly: %+v", direct)
	}
}

// change gives v another value than it has.
func change(t *testing.T, v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(v.String() + "x")
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Int, reflect.Int64:
		v.SetInt(v.Int() + 1)
	case reflect.Uint8, reflect.Uint16:
		v.SetUint(v.Uint() + 1)
	case reflect.Slice:
		v.Set(reflect.Append(v, reflect.New(v.Type().Elem()).Elem()))
	case reflect.Struct:
		change(t, v.Field(0))
	default:
		t.Fatalf("cannot change a %v", v.Type())
	}
}

func TestServicesThatAskTheSameShareTheTarget(t *testing.T) {
	web := lb.Target{
		Service: "web", Backend: "web1", Address: netip.MustParseAddr("192.0.2.1"),
		Check: lb.Check{Type: lb.CheckHTTPS, Port: 443, Path: "/", Interval: time.Second, Key: lb.File{Path: "node.key", Data: "ours"}},
	}
	api := web
	api.Service, api.Backend = "api", "server1"
	api.Check.Key.Data = "renewed"
	if api.ID() != web.ID() {
		t.Error("another service, another name of the server and another node's key give another ID")
	}
	web.Check.Type, api.Check.Type = lb.CheckExec, lb.CheckExec
	if api.ID() == web.ID() {
		t.Error("a command is told names, and still other names give the same ID")
	}
}

// Members of two versions have to agree on these.
func TestTargetIDsStayAsTheyAre(t *testing.T) {
	const every, within = time.Second, time.Second / 2
	for _, tt := range []struct {
		check lb.Check
		want  lb.TargetID
	}{
		{lb.Check{Type: lb.CheckTCP, Port: 80, Interval: every, Timeout: within, Rise: 2, Fall: 3}, 0x4377d07b9a9dfcf5},
		{lb.Check{Type: lb.CheckHTTPS, Port: 443, Interval: every, Timeout: within, Rise: 2, Fall: 3,
			Host: "www.example.org", Path: "/healthz", Method: "GET", Headers: []lb.Header{{Name: "X-Probe", Value: "1"}}, HTTP2: true,
			Status: []lb.StatusRange{{First: 200, Last: 299}, {First: 301, Last: 301}}, Body: "ok", BodyPattern: "^ok",
			TLS: true, Verify: true, CA: lb.File{Path: "ca.pem"}, Certificate: lb.File{Path: "node.crt"}, Key: lb.File{Path: "node.key"}}, 0xd8c75b4819f9d8d0},
		{lb.Check{Type: lb.CheckGRPC, Port: 50051, Interval: every, Timeout: within, Rise: 2, Fall: 3, GRPCService: "shop.Cart"}, 0x4873497a87c1f442},
		{lb.Check{Type: lb.CheckDNS, Port: 53, Interval: every, Timeout: within, Rise: 2, Fall: 3,
			Query: "example.org.", RecordType: "A", Rcode: "NOERROR", Over: []lb.Protocol{lb.UDP, lb.TCP}, Answer: []byte("192.0.2.80")}, 0x3fce9506fc856b80},
		{lb.Check{Type: lb.CheckUDP, Port: 514, Interval: every, Timeout: within, Rise: 2, Fall: 3, Payload: []byte{0, 0xff}, Silent: true}, 0xc0f48f9b14634807},
		{lb.Check{Type: lb.CheckExec, Interval: every, Timeout: within, Rise: 2, Fall: 3, Command: []string{"/bin/check", "-v"}}, 0x287e11b3da6fa74e},
		{lb.Check{Via: lb.ViaVIP, Port: 80, Interval: every, Timeout: within, Rise: 2, Fall: 3}, 0xda627a744c1f3bd6},
	} {
		service := lb.Service{
			Name: "web", VIPs: []lb.VIP{lb.MustParseVIP("203.0.113.10"), lb.MustParseVIP("2001:db8::/64")},
			Forward: lb.GUE, GUEPort: 6080, GUEChecksum: true, OuterSources: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/24")},
			Backends: []lb.Backend{{Name: "web1", Address: netip.MustParseAddr("2001:db8::1")}}, Check: tt.check,
		}
		if got := service.Targets()[0].ID(); got != tt.want {
			t.Errorf("%s via %s: got %#x, want %#x", tt.check.Type, tt.check.Via, got, tt.want)
		}
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	check := lb.Check{
		Headers: []lb.Header{{Name: "Authorization", Value: "Bearer hush"}},
		Key:     lb.File{Path: "node.key", Data: "hush"},
	}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(format, check); strings.Contains(text, "hush") {
			t.Errorf("%s prints %s", format, text)
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
