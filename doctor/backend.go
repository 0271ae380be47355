package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/halfproxy/halfproxy/lb"
)

// packetSize is the size of packets that the Internet is full of, and that
// should get through.
const packetSize = 1500

// backends judges the ways to them.
func backends(cfg Config, h host) []Finding {
	var found []Finding
	silent := make(map[hop][]way)
	var hops []hop
	narrow := make(map[string]bool) // by interface and size: said once
	for _, w := range h.ways {
		who := fmt.Sprintf("service %q, backend %q", w.service, w.backend)
		entry := fmt.Sprintf("services %q, backend %q, address", w.service, w.backend)
		switch {
		case w.noRoute != "" && len(h.cut()) > 0:
			continue // unchecked says so
		case w.noRoute != "":
			found = append(found, Finding{
				Check: "route", Severity: Problem,
				What:   fmt.Sprintf("%s: no route to %s (%s)", who, w.address, w.noRoute),
				Remedy: addRoute(cfg, w),
			})
			continue
		case w.local:
			found = append(found, Finding{
				Check: "route", Severity: Problem,
				What:   fmt.Sprintf("%s: %s is an address of this host: a backend is another one", who, w.address),
				Where:  cfg.File,
				Remedy: entry + ": the backend's own",
			})
			continue
		case !w.ethernet:
			found = append(found, Finding{
				Check: "route", Severity: Problem,
				What:   fmt.Sprintf("%s: the way to %s leaves by %s, which is no Ethernet interface", who, w.address, w.hop.link),
				Remedy: addRoute(cfg, w),
			})
			continue
		case w.forward == lb.L2 && !w.onLink:
			found = append(found, Finding{
				Check: "route", Severity: Problem,
				What:   fmt.Sprintf("%s: %s is behind gateway %s: forward l2 needs it on the node's own link", who, w.address, w.hop.address),
				Where:  cfg.File,
				Remedy: fmt.Sprintf("services %q, forward: ipip", w.service),
			})
			continue
		}
		if w.hop.silent && !slices.Contains(h.cut(), w.hop.link) { // unchecked says so
			if silent[w.hop] == nil {
				hops = append(hops, w.hop)
			}
			silent[w.hop] = append(silent[w.hop], w)
		}
		if f, size := narrowWay(w, who); size > 0 {
			if key := fmt.Sprint(w.hop.link, size, w.mtu); !narrow[key] {
				narrow[key] = true
				found = append(found, f)
			}
		}
	}
	for _, hop := range hops {
		found = append(found, noNeighbour(h, hop, silent[hop]))
	}
	return found
}

// addRoute makes a way to where there is none. By way of the first router that
// we know of, unless the backend has to be on the link.
func addRoute(cfg Config, w way) string {
	command := "ip route replace " + netip.PrefixFrom(w.address.WithZone(""), w.address.BitLen()).String()
	if w.forward != lb.L2 {
		for _, p := range cfg.Peers {
			if p.Address.Is4() == w.address.Is4() {
				return command + " via " + p.Address.WithZone("").String()
			}
		}
	}
	return command + " dev " + cfg.Interfaces[0]
}

// narrowWay finds a way that has no room for an outer header around packets of
// the usual size. The size is that of the biggest, 0 if they all fit.
func narrowWay(w way, who string) (Finding, int) {
	outer := w.forward.Overhead(w.address)
	size := packetSize + outer
	if outer == 0 || w.mtu >= size {
		return Finding{}, 0
	}
	f := Finding{
		Check: "mtu", Severity: Warning,
		What: fmt.Sprintf("%s: a packet of %d bytes has %d with its outer header, and the way by %s takes %d: large packets do not get through",
			who, packetSize, size, w.hop.link, w.mtu),
		Remedy: fmt.Sprintf("ip link set dev %s mtu %d   # and all on the way; else see that backends offer a smaller MSS: %s", w.hop.link, size, advmss(w)),
	}
	switch {
	case w.linkMTU < size:
	case w.routeMTU:
		f.Remedy = fmt.Sprintf("ip route replace %s", netip.PrefixFrom(w.address.WithZone(""), w.address.BitLen()))
		if !w.onLink {
			f.Remedy += " via " + w.hop.address.String()
		}
		f.Remedy += " dev " + w.hop.link
	default:
		f.Where = fmt.Sprintf("backend %q", w.backend)
		f.Remedy = advmss(w) + "   # or raise the MTU of all on the way"
	}
	return f, size
}

// advmss makes a backend offer an MSS that leaves room for the outer header.
func advmss(w way) string {
	const ipv4, ipv6 = 40, 60 // headers of IP and TCP
	room := w.mtu - w.forward.Overhead(w.address)
	var commands []string
	if w.ipv4 {
		commands = append(commands, fmt.Sprintf("ip route change $(ip route show default) advmss %d", room-ipv4))
	}
	if w.ipv6 {
		commands = append(commands, fmt.Sprintf("ip -6 route change $(ip -6 route show default) advmss %d", room-ipv6))
	}
	return strings.Join(commands, " && ")
}

// noNeighbour is the finding that hop, the way to all of ways, does not answer.
func noNeighbour(h host, hop hop, ways []way) Finding {
	first := ways[0]
	who := fmt.Sprintf("service %q, backend %q", first.service, first.backend)
	if len(ways) > 1 {
		who += fmt.Sprintf(" and %d more", len(ways)-1)
	}
	next, where := hop.address.String(), fmt.Sprintf("backend %q", first.backend)
	if !first.onLink {
		next = "gateway " + next
		where = next
	}
	protocol := "ARP"
	if hop.address.Is6() {
		protocol = "neighbour discovery"
	}
	return Finding{
		Check: "neighbour", Severity: Problem,
		What:  fmt.Sprintf("%s: %s does not answer %s on %s", who, next, protocol, hop.link),
		Where: where,
		Remedy: fmt.Sprintf("ip address replace %s dev eth0 && ip link set dev eth0 up   # with its own interface, in one VLAN with %s of this host",
			netip.PrefixFrom(hop.address, h.prefixLength(hop)), hop.link),
	}
}

// prefixLength is that of the network that hop is in.
func (h host) prefixLength(hop hop) int {
	for _, a := range h.addresses {
		if a.link == hop.link && a.Contains(hop.address) {
			return a.Bits()
		}
	}
	return hop.address.BitLen()
}
