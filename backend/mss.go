package backend

import "github.com/halfproxy/halfproxy/xdp"

// Bytes of headers.
const (
	ipv4Header = 20
	ipv6Header = 40
	tcpHeader  = 20
	greHeader  = 4
	gueHeader  = 8 + 4 // with UDP's
)

// smallestMSS is what every host takes (RFC 9293, 3.7.1): an interface that it
// does not fit is beyond help.
const smallestMSS = 536

// mssLimit is the biggest MSS with which a client's segments fit mtu with the
// outer headers in front:
//
//	mtu − outer IP − GRE or UDP and GUE − inner IP − TCP
//
// with the biggest headers that may come: IPv6 outside where a source is of IPv6,
// and the longest of the kinds taken off. A client takes its own TCP options off
// the MSS itself (RFC 6691).
func (c Config) mssLimit(mtu int) xdp.MSSLimit {
	if c.MSS != 0 {
		return xdp.MSSLimit{IPv4: c.MSS, IPv6: c.MSS}
	}
	outer, tunnel := ipv4Header, 0
	for _, s := range c.Sources {
		if s.Addr().Is6() {
			outer = ipv6Header
		}
	}
	if c.Decap.GRE {
		tunnel = greHeader
	}
	if c.Decap.GUE {
		tunnel = gueHeader
	}
	fits := func(inner int) uint16 {
		return uint16(min(max(mtu-outer-tunnel-inner-tcpHeader, smallestMSS), 0xffff))
	}
	return xdp.MSSLimit{IPv4: fits(ipv4Header), IPv6: fits(ipv6Header)}
}
