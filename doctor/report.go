package doctor

import (
	"fmt"
	"strings"
)

// lookedAt is what the report covers, a line each.
func lookedAt(h host) []string {
	lines := []string{fmt.Sprintf("kernel: Linux %s", h.release)}
	for _, l := range h.links {
		if !l.exists {
			continue
		}
		line := fmt.Sprintf("interface %s: %s, MTU %d", l.name, l.driver, l.mtu)
		switch {
		case l.program != nil:
			line += fmt.Sprintf(", an XDP program in %s mode", l.program.mode)
		case l.native == yes:
			line += ", native XDP"
		}
		lines = append(lines, line)
	}
	if len(h.ways) > 0 {
		hops := make(map[hop]bool)
		for _, w := range h.ways {
			if w.noRoute == "" {
				hops[w.hop] = true
			}
		}
		lines = append(lines, fmt.Sprintf("backends: routes to %d, %d next hops", len(h.ways), len(hops)))
	}
	if len(h.vips) > 0 {
		lines = append(lines, fmt.Sprintf("VIPs: addresses and routes of %d", len(h.vips)))
	}
	for _, l := range h.listeners {
		lines = append(lines, fmt.Sprintf("%s: %s %s", l.option, l.network, l.at))
	}
	for _, n := range h.names {
		lines = append(lines, "cluster.join: "+n.name)
	}
	for _, p := range h.peers {
		lines = append(lines, fmt.Sprintf("BGP peer: %s, TCP port 179", p.address))
	}
	return lines
}

// unchecked is what the report does not cover though it should.
func unchecked(cfg Config, h host) []string {
	var lines []string
	if !h.root {
		lines = append(lines, "whether programs may be loaded, who holds the XDP hook or a port, far ends of veths in other namespaces: run doctor as root")
	}
	var asked []string
	for _, l := range h.links {
		if l.exists && l.ethernet && l.native == unknown && l.program == nil && cfg.XDPMode != generic {
			asked = append(asked, fmt.Sprintf("%s (%s)", l.name, l.driver))
		}
	}
	if len(asked) > 0 {
		lines = append(lines, fmt.Sprintf("whether %s can do native XDP: Linux %s does not tell, 6.3 and later do; `halfproxy run` logs how it attached",
			strings.Join(asked, ", "), h.release))
	}
	for _, l := range h.links {
		if l.driver == "veth" && l.far == nil && h.root {
			lines = append(lines, fmt.Sprintf("the other end of %s: it is in no network namespace that is named or has a process here", l.name))
		}
	}
	if cut := h.cut(); len(cut) > 0 {
		lines = append(lines, fmt.Sprintf("missing routes to backends, silent neighbours and BGP peers: once %s carries packets again, run doctor anew", strings.Join(cut, ", ")))
	}
	if cfg.Running && len(cfg.Peers) > 0 {
		lines = append(lines, "BGP peers: the node that runs speaks to them, `halfproxy status` shows how it stands")
	}
	return lines
}
