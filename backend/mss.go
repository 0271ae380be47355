package backend

import (
	"github.com/halfproxy/halfproxy/lb"
	"github.com/halfproxy/halfproxy/xdp"
)

// smallestMSS is what every host takes (RFC 9293, 3.7.1): an interface that it
// does not fit is beyond help.
const smallestMSS = 536

// mssLimit is the biggest MSS with which a client's segments fit mtu, behind the
// biggest outer headers that may come and those of IP and TCP. A client takes its
// own TCP options off the MSS itself (RFC 6691).
func (c Config) mssLimit(mtu int) xdp.MSSLimit {
	if c.MSS != 0 {
		return xdp.MSSLimit{IPv4: c.MSS, IPv6: c.MSS}
	}
	overhead := 0
	for forward, taken := range map[lb.Forward]bool{lb.IPIP: c.Decap.IPIP, lb.GRE: c.Decap.GRE, lb.GUE: c.Decap.GUE} {
		for _, s := range c.Sources {
			if taken {
				overhead = max(overhead, forward.Overhead(s.Addr()))
			}
		}
	}
	const ipv4, ipv6, tcp = 20, 40, 20
	fits := func(ip int) uint16 {
		return uint16(min(max(mtu-overhead-ip-tcp, smallestMSS), 0xffff))
	}
	return xdp.MSSLimit{IPv4: fits(ipv4), IPv6: fits(ipv6)}
}
