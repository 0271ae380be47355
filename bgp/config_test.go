package bgp

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

func good() Config {
	return Config{
		ASN:      64512,
		RouterID: netip.MustParseAddr("192.0.2.1"),
		Peers: []Peer{
			{Address: netip.MustParseAddr("192.0.2.254"), ASN: 64500, HoldTime: 9 * time.Second},
			{Address: netip.MustParseAddr("2001:db8::254"), ASN: 64512, HoldTime: 3 * time.Second, Password: "secret", TTLSecurity: true},
		},
		Communities: []lb.Community{{A: 64512, B: 100}, {Large: true, A: 4200000000, B: 1, C: 2}},
		NextHop6:    netip.MustParseAddr("2001:db8::1"),
		NextHop4:    netip.MustParseAddr("192.0.2.1"),
	}
}

func TestValidateNamesEveryErrorAndItsRemedy(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   []string // lines
	}{
		{"nothing wrong", func(*Config) {}, nil},
		{"no peers and no next hops", func(c *Config) {
			*c = Config{ASN: c.ASN, RouterID: c.RouterID}
		}, nil},
		{"no asn", func(c *Config) { c.ASN = 0 }, []string{
			"asn must not be 0 (RFC 7607): set this node's own AS number",
		}},
		{"no router id", func(c *Config) { c.RouterID = netip.Addr{} }, []string{
			`router id "" must be an IPv4 address: take one of this node's`,
		}},
		{"IPv6 router id", func(c *Config) { c.RouterID = c.NextHop6 }, []string{
			`router id "2001:db8::1" must be an IPv4 address: take one of this node's`,
		}},
		{"standard community of a four-octet AS", func(c *Config) { c.Communities[0].A = 4200000000 }, []string{
			"communities[0] 4200000000:100: a standard community has 16 bits a part: use a large one (a:b:c)",
		}},
		{"next hops the wrong way round", func(c *Config) { c.NextHop4, c.NextHop6 = c.NextHop6, c.NextHop4 }, []string{
			"next hop 192.0.2.1 for IPv6: must be an IPv6 address of this node that the routers can reach",
			"next hop 2001:db8::1 for IPv4: must be an IPv4 address of this node that the routers can reach",
		}},
		{"next hop IPv4-mapped", func(c *Config) { c.NextHop6 = netip.MustParseAddr("::ffff:192.0.2.1") }, []string{
			"next hop ::ffff:192.0.2.1 for IPv6: must be an IPv6 address of this node that the routers can reach",
		}},
		{"next hop link-local", func(c *Config) { c.NextHop6 = netip.MustParseAddr("fe80::1") }, []string{
			"next hop fe80::1 for IPv6: must be an IPv6 address of this node that the routers can reach",
		}},
		{"peer without anything", func(c *Config) { c.Peers[0] = Peer{} }, []string{
			`peers[0] "": address must be a router's IPv4 or global IPv6 address`,
			"asn must not be 0 (RFC 7607): set the peer's AS number",
			"hold time 0s must be whole seconds from 3s to 18h12m15s (RFC 4271)",
		}},
		{"peer link-local", func(c *Config) { c.Peers[0].Address = netip.MustParseAddr("fe80::1%eth0") }, []string{
			`peers[0] "fe80::1%eth0": address must be a router's IPv4 or global IPv6 address`,
		}},
		{"hold time of a second and a half", func(c *Config) { c.Peers[1].HoldTime = 4500 * time.Millisecond }, []string{
			`peers[1] "2001:db8::254": hold time 4.5s must be whole seconds from 3s to 18h12m15s (RFC 4271)`,
		}},
		{"password too long", func(c *Config) { c.Peers[0].Password = strings.Repeat("x", 81) }, []string{
			`peers[0] "192.0.2.254": password has 81 bytes, TCP MD5 takes at most 80`,
		}},
		{"peer twice", func(c *Config) { c.Peers[1].Address = c.Peers[0].Address }, []string{
			`peers[1] "192.0.2.254": listed twice: one session a peer`,
		}},
		{"all at once", func(c *Config) { c.ASN, c.RouterID, c.Peers[0].ASN = 0, netip.Addr{}, 0 }, []string{
			"asn must not be 0 (RFC 7607): set this node's own AS number",
			`router id "" must be an IPv4 address: take one of this node's`,
			`peers[0] "192.0.2.254": asn must not be 0 (RFC 7607): set the peer's AS number`,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := good()
			tt.change(&c)
			var got []string
			if err := c.Validate(); err != nil {
				got = strings.Split(err.Error(), "\n")
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
			if s, err := New(c); (err == nil) != (tt.want == nil) || (s == nil) != (err != nil) {
				t.Errorf("New: got %v, %v, want the same judgement", s, err)
			}
		})
	}
}

func TestASessionCarriesTheFamiliesThatHaveANextHopOnIt(t *testing.T) {
	c := good()
	over4, over6 := c.Peers[0], c.Peers[1]
	none := c
	none.NextHop4, none.NextHop6 = netip.Addr{}, netip.Addr{}
	for _, tt := range []struct {
		name           string
		c              Config
		p              Peer
		wantV4, wantV6 bool
	}{
		{"over IPv4", c, over4, true, true},
		{"over IPv6", c, over6, true, true},
		{"over IPv4, no next hop for IPv6", none, over4, true, false},
		{"over IPv6, no next hop for IPv4", none, over6, false, true},
	} {
		if v4, v6 := tt.c.families(tt.p); v4 != tt.wantV4 || v6 != tt.wantV6 {
			t.Errorf("%s: got IPv4 %v and IPv6 %v, want %v and %v", tt.name, v4, v6, tt.wantV4, tt.wantV6)
		}
	}
}
