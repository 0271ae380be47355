package doctor

import (
	"fmt"
	"net/netip"
)

// peers judges whether the routers can be spoken to.
func peers(cfg Config, h host) []Finding {
	var found []Finding
	for _, p := range h.peers {
		f := Finding{Check: "peer", Severity: Problem, Where: fmt.Sprintf("router %s", p.address)}
		from := "this node"
		if p.source.IsValid() {
			from = p.source.String()
		}
		switch {
		case p.outcome == answered:
			continue
		case p.outcome != refused && len(h.cut()) > 0:
			continue // unchecked says so
		}
		switch p.outcome {
		case refused:
			f.What = fmt.Sprintf("BGP peer %s: refuses connections to TCP port 179: it is there, and no BGP daemon listens", p.address)
			f.Remedy = fmt.Sprintf("start its BGP daemon, with neighbour %s; `ss -lnt 'sport = :179'` shows that it listens", from)
		case silent:
			f.What = fmt.Sprintf("BGP peer %s: does not answer on TCP port 179: it is off, a firewall drops it, or its password differs", p.address)
			f.Where = ""
			f.Remedy = fmt.Sprintf("ping -c 3 %s   # no answer: cable, VLAN, address; an answer: on the router, allow TCP port 179 from %s and compare the password",
				p.address, from)
		case unreachable:
			f.What = fmt.Sprintf("BGP peer %s: this host has no route to it", p.address)
			f.Where = ""
			f.Remedy = fmt.Sprintf("ip route replace %s dev %s", netip.PrefixFrom(p.address.WithZone(""), p.address.BitLen()), cfg.Interfaces[0])
		}
		found = append(found, f)
	}
	return found
}
