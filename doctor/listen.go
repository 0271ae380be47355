package doctor

import (
	"fmt"
	"net/netip"
	"strings"
)

// listening judges the ports that the node listens at.
func listening(cfg Config, h host) []Finding {
	var found []Finding
	for _, l := range h.listeners {
		what := fmt.Sprintf("%s %s: ", l.option, l.at)
		switch {
		case !l.here:
			if l.network == "udp" {
				continue // said of tcp
			}
			f := Finding{
				Check: "listen", Severity: Problem,
				What: what + fmt.Sprintf("%s is no address of this host", l.at.Addr()),
			}
			if a, ok := h.ownAddress(cfg, l.at.Addr()); ok {
				f.Where = cfg.File
				f.Remedy = fmt.Sprintf("%s: %s", l.option, netip.AddrPortFrom(a, l.at.Port()))
			} else {
				f.Remedy = fmt.Sprintf("ip address add %s dev %s", netip.PrefixFrom(l.at.Addr(), l.at.Addr().BitLen()), cfg.Interfaces[0])
			}
			found = append(found, f)
		case l.taken:
			f := Finding{
				Check: "listen", Severity: Problem,
				What:   what + fmt.Sprintf("another program has the %s port", strings.ToUpper(l.network)),
				Remedy: fmt.Sprintf("ss -ln%sp 'sport = :%d'   # says which; or another port for %s", l.network[:1], l.at.Port(), l.option),
			}
			if o := l.owner; o.pid != 0 {
				f.What = what + fmt.Sprintf("%s (pid %d) has the %s port", o.name, o.pid, strings.ToUpper(l.network))
				f.Remedy = fmt.Sprintf("kill %d", o.pid)
				if o.unit != "" {
					f.Remedy = "systemctl stop " + o.unit
				}
				f.Remedy += fmt.Sprintf("   # or another port for %s", l.option)
			}
			found = append(found, f)
		case l.err != nil:
			found = append(found, Finding{
				Check: "listen", Severity: Problem,
				What:   what + l.err.Error(),
				Where:  cfg.File,
				Remedy: l.option + ": an address and port that this host lets a program have",
			})
		}
	}
	return found
}

// ownAddress is one that this host has where VIP traffic comes in, of the
// family of like.
func (h host) ownAddress(cfg Config, like netip.Addr) (netip.Addr, bool) {
	for _, link := range cfg.Interfaces {
		for _, a := range h.addresses {
			if a.link == link && a.Addr().Is4() == like.Is4() && a.Addr().IsGlobalUnicast() {
				return a.Addr(), true
			}
		}
	}
	return netip.Addr{}, false
}

// names judges how other members are found.
func names(cfg Config, h host) []Finding {
	var found []Finding
	for _, n := range h.names {
		if n.err == nil {
			continue
		}
		found = append(found, Finding{
			Check: "join", Severity: Warning,
			What:   fmt.Sprintf("cluster.join %s: does not resolve: %v", n.name, n.err),
			Where:  cfg.File,
			Remedy: fmt.Sprintf("cluster.join: the member's address in place of %s; or mend DNS: getent hosts %s", n.name, n.name),
		})
	}
	return found
}
