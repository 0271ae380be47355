package lb_test

import (
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

func TestTableDigestCoversWhatDecidesWhereAFlowGoes(t *testing.T) {
	base := func() lb.Table {
		return lb.Table{Backends: []lb.Backend{{Name: "x", Address: netip.MustParseAddr("192.0.2.1")}}, Slots: []uint16{0, 0, 0}}
	}
	want := base().Digest()
	for name, change := range map[string]func(*lb.Table){
		"hash key": func(t *lb.Table) { t.HashKey[0] = 1 },
		"slots":    func(t *lb.Table) { t.Slots[1] = 1 },
		"hash":     func(t *lb.Table) { t.Service.BySource = true },
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

func vips(list ...string) []lb.VIP {
	var out []lb.VIP
	for _, s := range list {
		out = append(out, lb.MustParseVIP(s))
	}
	return slices.Clip(out)
}
