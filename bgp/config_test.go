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
		NextHops: NextHops{V4: netip.MustParseAddr("192.0.2.1"), V6: netip.MustParseAddr("2001:db8::1")},
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
		{"IPv6 router id", func(c *Config) { c.RouterID = c.NextHops.V6 }, []string{
			`router id "2001:db8::1" must be an IPv4 address: take one of this node's`,
		}},
		{"standard community of a four-octet AS", func(c *Config) {
			c.Peers[0].Attributes.Communities = []lb.Community{{A: 4200000000, B: 100}}
		}, []string{
			`peers[0] "192.0.2.254": communities[0] 4200000000:100: a standard community has 16 bits a part: use a large one (a:b:c)`,
		}},
		{"next hops the wrong way round", func(c *Config) { c.NextHops.V4, c.NextHops.V6 = c.NextHops.V6, c.NextHops.V4 }, []string{
			"next hop 192.0.2.1 for IPv6: must be an IPv6 address of this node that the routers can reach",
			"next hop 2001:db8::1 for IPv4: must be an IPv4 address of this node that the routers can reach",
		}},
		{"next hop IPv4-mapped", func(c *Config) { c.NextHops.V6 = netip.MustParseAddr("::ffff:192.0.2.1") }, []string{
			"next hop ::ffff:192.0.2.1 for IPv6: must be an IPv6 address of this node that the routers can reach",
		}},
		{"next hop link-local", func(c *Config) { c.NextHops.V6 = netip.MustParseAddr("fe80::1") }, []string{
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
		{"a community of ours for the policy", func(c *Config) {
			c.Peers[0].Attributes.Communities = []lb.Community{{Large: true, A: 4294967295, B: 1, C: 2}}
		}, []string{
			`peers[0] "192.0.2.254": communities[0] 4294967295:1:2: AS 4294967295 is reserved (RFC 7300): use another`,
		}},
		{"prepend without end", func(c *Config) { c.Peers[0].Attributes.Prepend = 11 }, []string{
			`peers[0] "192.0.2.254": prepend 11: must be from 0 to 10`,
		}},
		{"a keepalive time beyond the hold time", func(c *Config) { c.Peers[0].KeepaliveTime = 10 * time.Second }, []string{
			`peers[0] "192.0.2.254": keepalive time 10s must be whole seconds, at most the hold time`,
		}},
		{"a connect retry time of no whole seconds", func(c *Config) { c.Peers[0].ConnectRetryTime = time.Millisecond }, []string{
			`peers[0] "192.0.2.254": connect retry time 1ms must be whole seconds`,
		}},
		{"multihop and TTL security, inside the AS", func(c *Config) { c.Peers[1].Multihop = 3 }, []string{
			`peers[1] "2001:db8::254": TTL security and multihop exclude each other: the one asks for a neighbour, the other for none`,
			`peers[1] "2001:db8::254": multihop is for peers of other ASes: others may be any number of hops away`,
		}},
		{"a prefix limit that is none", func(c *Config) { c.Peers[0].PrefixLimit = -1 }, []string{
			`peers[0] "192.0.2.254": prefix limit -1 must be a number of prefixes, or 0 for none`,
		}},
		{"multihop that is no TTL", func(c *Config) { c.Peers[0].Multihop = 256 }, []string{
			`peers[0] "192.0.2.254": multihop 256 must be a TTL, from 2 to 255`,
		}},
		{"a local address of the other family", func(c *Config) { c.Peers[0].LocalAddress = c.NextHops.V6 }, []string{
			`peers[0] "192.0.2.254": local address 2001:db8::1 must be a node's address of the peer's family`,
		}},
		{"passive, and nothing listens", func(c *Config) { c.Peers[0].Passive = true }, []string{
			`peers[0] "192.0.2.254": passive, and nothing listens: give an address to listen at`,
		}},
		{"passive, and what listens is of the other family", func(c *Config) {
			c.Peers[0].Passive, c.Listen = true, netip.MustParseAddrPort("[2001:db8::1]:179")
		}, []string{
			`peers[0] "192.0.2.254": passive, and nothing listens over its family at [2001:db8::1]:179: listen at [::] for both`,
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
	none.NextHops = NextHops{}
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
		if _, v4, v6 := tt.c.nextHops(tt.p); v4 != tt.wantV4 || v6 != tt.wantV6 {
			t.Errorf("%s: got IPv4 %v and IPv6 %v, want %v and %v", tt.name, v4, v6, tt.wantV4, tt.wantV6)
		}
	}
}
