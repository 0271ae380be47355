package backend

import (
	"net/netip"
	"testing"

	"github.com/halfproxy/halfproxy/xdp"
)

func TestTheMSSLeavesRoomForTheBiggestHeadersThatMayCome(t *testing.T) {
	v4, v6 := netip.MustParsePrefix("10.0.1.0/24"), netip.MustParsePrefix("2001:db8::/64")
	for _, tt := range []struct {
		name    string
		decap   xdp.Tunnels
		sources []netip.Prefix
		mss     uint16
		mtu     int
		want    xdp.MSSLimit
	}{
		{"ipip over IPv4", xdp.Tunnels{IPIP: true}, []netip.Prefix{v4}, 0, 1500, xdp.MSSLimit{IPv4: 1440, IPv6: 1420}},
		{"ipip over IPv6", xdp.Tunnels{IPIP: true}, []netip.Prefix{v6}, 0, 1500, xdp.MSSLimit{IPv4: 1420, IPv6: 1400}},
		{"ipip over both", xdp.Tunnels{IPIP: true}, []netip.Prefix{v6, v4}, 0, 1500, xdp.MSSLimit{IPv4: 1420, IPv6: 1400}},
		{"gre over IPv4", xdp.Tunnels{GRE: true}, []netip.Prefix{v4}, 0, 1500, xdp.MSSLimit{IPv4: 1436, IPv6: 1416}},
		{"gue over IPv4", xdp.Tunnels{GUE: true}, []netip.Prefix{v4}, 0, 1500, xdp.MSSLimit{IPv4: 1428, IPv6: 1408}},
		{"all over both", xdp.Tunnels{IPIP: true, GRE: true, GUE: true}, []netip.Prefix{v4, v6}, 0, 1500, xdp.MSSLimit{IPv4: 1408, IPv6: 1388}},
		{"a link with room", xdp.Tunnels{IPIP: true}, []netip.Prefix{v4}, 0, 1600, xdp.MSSLimit{IPv4: 1540, IPv6: 1520}},
		{"the biggest link there is", xdp.Tunnels{IPIP: true}, []netip.Prefix{v4}, 0, 65595, xdp.MSSLimit{IPv4: 65535, IPv6: 65515}},
		{"a link beyond help", xdp.Tunnels{IPIP: true}, []netip.Prefix{v4}, 0, 68, xdp.MSSLimit{IPv4: 536, IPv6: 536}},
		{"a number", xdp.Tunnels{IPIP: true}, []netip.Prefix{v4}, 1380, 1500, xdp.MSSLimit{IPv4: 1380, IPv6: 1380}},
	} {
		cfg := Config{Decap: tt.decap, Sources: tt.sources, MSS: tt.mss}
		if got := cfg.mssLimit(tt.mtu); got != tt.want {
			t.Errorf("%s: got %+v, want %+v", tt.name, got, tt.want)
		}
	}
}
