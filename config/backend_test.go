package config

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/halfproxy/halfproxy/lb"
)

// servedBackend is the contract's file.
const servedBackend = "testdata/backend.yaml"

func TestParseBackendTakesTheContractAsItIsWritten(t *testing.T) {
	got, err := ParseBackend("backend.yaml", read(t, servedBackend))
	if err != nil {
		t.Fatal(err)
	}
	got.expanded = nil
	want := Backend{
		Interfaces: []string{"eth0"},
		VIPs:       []lb.VIP{lb.MustParseVIP("203.0.113.10"), lb.MustParseVIP("2001:db8::10")},
		Decap:      []string{DecapIPIP, DecapGUE},
		GUEPort:    6080,
		Sources:    []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")},
		HTTP:       HTTP{Listen: netip.MustParseAddrPort("127.0.0.1:9871")},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestParseBackendFillsInTheDefaults(t *testing.T) {
	got, err := ParseBackend("backend.yaml", []byte("interfaces: [eth0]\nvips: [203.0.113.10]\n"))
	if err != nil {
		t.Fatal(err)
	}
	got.expanded = nil
	want := Backend{
		Interfaces: []string{"eth0"}, VIPs: []lb.VIP{lb.MustParseVIP("203.0.113.10")},
		GUEPort: 6080, HTTP: HTTP{Listen: netip.MustParseAddrPort("127.0.0.1:9871")},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// editBackend is the contract's file with one change.
func editBackend(t *testing.T, from, to string) []byte {
	t.Helper()
	file := string(read(t, servedBackend))
	if !strings.Contains(file, from) {
		t.Fatalf("%s has no %q to change", servedBackend, from)
	}
	return []byte(strings.Replace(file, from, to, 1))
}

func TestParseBackendTakes(t *testing.T) {
	for _, tt := range []struct {
		name     string
		old, new string
		got      func(Backend) any
		want     any
	}{
		{"no decapsulation, by a word", "decap: [ipip, gue]", "decap: none", func(b Backend) any { return len(b.Decap) }, 0},
		{"no decapsulation, by a list", "decap: [ipip, gue]", "decap: [none]", func(b Backend) any { return len(b.Decap) }, 0},
		{"no decapsulation, by an empty list", "decap: [ipip, gue]", "decap: []", func(b Backend) any { return len(b.Decap) }, 0},
		{"no decapsulation and no sources", "decap: [ipip, gue]                  # none for l2; an XDP program of ours, no tunnel device needed\nsources: [10.0.1.0/24]", "#",
			func(b Backend) any { return len(b.Sources) }, 0},
		{"one kind without brackets", "decap: [ipip, gue]", "decap: gre", func(b Backend) any { return b.Decap }, []string{DecapGRE}},
		{"all kinds", "decap: [ipip, gue]", "decap: [gue, gre, ipip]", func(b Backend) any { return b.Decap }, []string{DecapGUE, DecapGRE, DecapIPIP}},
		{"another port of gue", "mss: auto", "gue: {port: 5555}\nmss: auto", func(b Backend) any { return b.GUEPort }, uint16(5555)},
		{"an address as a source", "10.0.1.0/24", "10.0.1.7", func(b Backend) any { return b.Sources[0] }, netip.MustParsePrefix("10.0.1.7/32")},
		{"sources of IPv6", "10.0.1.0/24", `"2001:db8::/32", "2001:db8::1"`, func(b Backend) any { return b.Sources },
			[]netip.Prefix{netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("2001:db8::1/128")}},
		{"any source of IPv4", "10.0.1.0/24", "0.0.0.0/0", func(b Backend) any { return b.Sources[0] }, netip.MustParsePrefix("0.0.0.0/0")},
		{"an MSS", "mss: auto", "mss: 1380", func(b Backend) any { return b.MSS }, MSS{Value: 1380}},
		{"no MSS", "mss: auto", "mss: off", func(b Backend) any { return b.MSS }, MSS{Off: true}},
		{"http on all addresses", "127.0.0.1:9871", `"[::]:9871"`, func(b Backend) any { return b.HTTP.Listen }, netip.MustParseAddrPort("[::]:9871")},
		{"several interfaces", "[eth0]", "[eth0, eth1.100]", func(b Backend) any { return b.Interfaces }, []string{"eth0", "eth1.100"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := editBackend(t, tt.old, tt.new)
			b, err := ParseBackend("backend.yaml", file)
			if err != nil {
				t.Fatal(err)
			}
			bySchema(t, backendSchema, string(file), err)
			if got := tt.got(b); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// Each row changes the contract's file in one place; want is all that is said
// about it.
func TestParseBackendRefuses(t *testing.T) {
	for _, tt := range []struct {
		name     string
		old, new string
		want     string
	}{
		{"no YAML", "interfaces: [eth0]", "interfaces: [eth0",
			"backend.yaml:4: not YAML: ',' or ']' must be specified: look at the indentation and the quotes here and in the line above"},
		{"a key that nobody knows", "sources:", "source:",
			`backend.yaml:1: sources is missing: list the load balancers' addresses or networks, nobody else may send encapsulated packets` + "\n" +
				`backend.yaml:6: unknown key "source": did you mean "sources"?`},
		{"a key of a node's file", "mss: auto", "node: {name: b1}\nmss: auto",
			`backend.yaml:7: unknown key "node": known here are interfaces, vips, decap, gue, sources, mss, http`},
		{"no interfaces", "interfaces: [eth0]", "#",
			"backend.yaml:1: interfaces is missing: name the NICs that packets for the VIPs come in by"},
		{"an interface that cannot be one", "[eth0]", "[eth0/1]",
			"backend.yaml:3: interfaces[0] \"eth0/1\" is no interface name: `ip link` lists them"},
		{"an interface listed twice", "[eth0]", "[eth0, eth0]",
			`backend.yaml:3: interfaces[1] "eth0" is there already, in line 3: remove one of them`},
		{"no VIPs", `vips: [203.0.113.10, "2001:db8::10"]`, "vips: []",
			"backend.yaml:4: vips has no entry: list the addresses that clients know"},
		{"a VIP that is none", "203.0.113.10", "203.0.113.300",
			`backend.yaml:4: vips[0] "203.0.113.300" is no IP address: write one such as 192.0.2.1 or 2001:db8::1`},
		{"a prefix with bits beyond its length", "203.0.113.10", "203.0.113.7/28",
			`backend.yaml:4: vips[0] "203.0.113.7/28" has bits beyond its length: write 203.0.113.0/28 for all of them, 203.0.113.7 for the one address`},
		{"a prefix of everything", "203.0.113.10", "0.0.0.0/0",
			`backend.yaml:4: vips[0] "0.0.0.0/0" is every address there is, this host's too: give the prefix that clients know`},
		{"a prefix with a load balancer in it", "203.0.113.10", "10.0.0.0/16",
			`backend.yaml:4: vips[0] "10.0.0.0/16" has in it the load balancers' 10.0.1.0/24, which this host would take for itself: give prefixes without it`},
		{"a VIP on loopback", "203.0.113.10", "127.0.0.1",
			`backend.yaml:4: vips[0] "127.0.0.1" is not routed: a VIP must be an address that clients reach through routers`},
		{"a VIP that is link-local", "203.0.113.10", "169.254.0.1",
			`backend.yaml:4: vips[0] "169.254.0.1" is not routed: a VIP must be an address that clients reach through routers`},
		{"a VIP listed twice", "203.0.113.10", `"2001:db8:0::10"`,
			`backend.yaml:4: vips[1] "2001:db8::10" is there already, in line 4: remove one of them`},
		{"a kind that nobody knows", "[ipip, gue]", "[ipip, vxlan]",
			`backend.yaml:5: decap[1] "vxlan" is unknown: choose ipip, gre, gue or none`},
		{"one kind that nobody knows", "decap: [ipip, gue]", "decap: l2",
			`backend.yaml:5: decap "l2" is unknown: choose ipip, gre, gue or none`},
		{"none beside others", "[ipip, gue]", "[ipip, none]",
			`backend.yaml:5: decap[1] "none" is not alone: remove it, or all others`},
		{"a kind listed twice", "[ipip, gue]", "[ipip, ipip]",
			`backend.yaml:5: decap[1] "ipip" is there already, in line 5: remove one of them`},
		{"a mapping of kinds", "[ipip, gue]", "{ipip: yes}",
			"backend.yaml:5: decap is a mapping, it has to be a list: begin each entry with a dash"},
		{"a port of gue without it", "decap: [ipip, gue]", "gue: {port: 6081}\ndecap: [ipip]",
			"backend.yaml:5: gue is of no effect without gue in decap: add that, or remove this"},
		{"a port of gue that is none", "mss: auto", "gue: {port: 65536}\nmss: auto",
			"backend.yaml:7: gue.port 65536 is out of range: give a number from 1 to 65535"},
		{"no sources", "sources: [10.0.1.0/24]", "#",
			"backend.yaml:1: sources is missing: list the load balancers' addresses or networks, nobody else may send encapsulated packets"},
		{"an empty list of sources", "[10.0.1.0/24]", "[]",
			"backend.yaml:6: sources has no entry: list the load balancers' addresses or networks, nobody else may send encapsulated packets"},
		{"a source that is none", "10.0.1.0/24", "lb1",
			`backend.yaml:6: sources[0] "lb1" is no prefix: write one such as 192.0.2.0/24 or 2001:db8::/64`},
		{"a source with a host's bits", "10.0.1.0/24", "10.0.1.5/24",
			`backend.yaml:6: sources[0] "10.0.1.5/24" has bits set behind its length: write 10.0.1.0/24, or the address alone`},
		{"a source of a wrong length", "10.0.1.0/24", "10.0.1.0/33",
			`backend.yaml:6: sources[0] "10.0.1.0/33" is no prefix: write one such as 192.0.2.0/24 or 2001:db8::/64`},
		{"a source in disguise", "10.0.1.0/24", `"::ffff:10.0.1.0/120"`,
			`backend.yaml:6: sources[0] "::ffff:10.0.1.0/120" is an IPv4 prefix in IPv6 clothes: write it as 192.0.2.0/24`},
		{"a source listed twice", "10.0.1.0/24", "10.0.1.7, 10.0.1.7/32",
			`backend.yaml:6: sources[1] "10.0.1.7/32" is there already, in line 6: remove one of them`},
		{"an MSS in words", "mss: auto", "mss: small",
			`backend.yaml:7: mss "small" is unknown: choose auto, off or a number without quotes`},
		{"an MSS in quotes", "mss: auto", `mss: "1400"`,
			`backend.yaml:7: mss "1400" is unknown: choose auto, off or a number without quotes`},
		{"an MSS that is too small", "mss: auto", "mss: 500",
			"backend.yaml:7: mss 500 is out of range: give a number from 536 to 65495"},
		{"an MSS that is a list", "mss: auto", "mss: [1400]",
			"backend.yaml:7: mss is a list, it has to be a single value"},
		{"http without an address", "127.0.0.1:9871", ":9871",
			`backend.yaml:9: http.listen ":9871" has no address: write 127.0.0.1:9871, or [::]:9871 for all`},
		{"several things at once", `vips: [203.0.113.10, "2001:db8::10"]`, "vips: [x]\nmss: y",
			`backend.yaml:4: vips[0] "x" is no IP address: write one such as 192.0.2.1 or 2001:db8::1` + "\n" +
				`backend.yaml:5: mss "y" is unknown: choose auto, off or a number without quotes` + "\n" +
				`backend.yaml:8: key "mss" is given twice: remove this one or that in line 5`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := editBackend(t, tt.old, tt.new)
			_, err := ParseBackend("backend.yaml", file)
			wantErrors(t, err, tt.want)
			bySchema(t, backendSchema, string(file), err)
		})
	}
}

func TestLoadBackendSaysThatTheFileCannotBeRead(t *testing.T) {
	_, err := LoadBackend(filepath.Join(t.TempDir(), "missing.yaml"))
	if !errors.Is(err, fs.ErrNotExist) || !strings.HasPrefix(err.Error(), "read configuration: ") {
		t.Errorf("got %v, want it to say that there is no such file", err)
	}
}

// The reference file is what operators copy: it parses, and nothing that the
// shape has is missing from it.
func TestTheBackendsReferenceFileShowsEveryOption(t *testing.T) {
	data := read(t, "../deploy/backend.yaml")
	if _, err := LoadBackend("../deploy/backend.yaml"); err != nil {
		t.Error(err)
	}
	for _, key := range allKeys(reflect.TypeFor[backendFile]()) {
		if !regexp.MustCompile(`(?m)^[ #-]*\b` + key + `:`).Match(data) {
			t.Errorf("deploy/backend.yaml does not show %s", key)
		}
	}
}

// Whatever the bytes: no panic, and either a configuration that is whole or
// errors that each name a line and take one.
func FuzzParseBackend(f *testing.F) {
	for _, path := range []string{servedBackend, "../deploy/backend.yaml"} {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("interfaces: [eth0]\nvips: &a [192.0.2.1]\ndecap: none\nsources: *a\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := ParseBackend("fuzz.yaml", data)
		if err == nil {
			if len(b.Interfaces) == 0 || len(b.VIPs) == 0 || len(b.Decap) > 0 && len(b.Sources) == 0 || b.GUEPort == 0 || !b.HTTP.Listen.IsValid() {
				t.Errorf("taken though incomplete: %+v", b)
			}
			return
		}
		all, ok := errors.AsType[Errors](err)
		if !ok || len(all) == 0 {
			t.Fatalf("error is %T, want Errors: %v", err, err)
		}
		for _, e := range all {
			if e.Line < 1 || strings.ContainsAny(e.Error(), "\n\r\t") {
				t.Errorf("line %d: %q", e.Line, e.Error())
			}
		}
	})
}
