package doctor

import (
	"fmt"

	"github.com/halfproxy/halfproxy/lb"
)

// vips judges what this host's own kernel does with packets for them. Those that
// the program does not see, or passes on, come to it.
func vips(cfg Config, h host) []Finding {
	var found []Finding
	said := make(map[string]bool) // of a local route, which may have many
	for _, v := range h.vips {
		for _, a := range v.on {
			f := Finding{
				Check: "vip", Severity: Problem,
				What:   fmt.Sprintf("VIP %s: is an address of this host, on %s: it answers itself what the program does not take", v, a.link),
				Remedy: fmt.Sprintf("ip address del %s dev %s", a.Prefix, a.link),
			}
			if !v.IsSingleIP() {
				f.What = fmt.Sprintf("VIP %s: %s on %s is an address of this host: the program takes what comes for it", v, a.Addr(), a.link)
				f.Where = cfg.File
				f.Remedy = fmt.Sprintf("vips: prefixes that %s is not in", a.Addr())
			}
			found = append(found, f)
		}
		if len(v.on) == 0 && v.local != "" && !said[v.local] {
			said[v.local] = true
			found = append(found, Finding{
				Check: "vip", Severity: Problem,
				What:   fmt.Sprintf("VIP %s: a local route makes it this host's own (%s): it answers itself what the program does not take", v, v.local),
				Remedy: "ip route del " + v.local,
			})
		}
		if v.route != "" {
			found = append(found, Finding{
				Check: "vip", Severity: Warning,
				What:   fmt.Sprintf("VIP %s: has a route of its own (%s): packets loop over it whenever the program is away", v, v.route),
				Remedy: fmt.Sprintf("ip route del %s && ip route replace blackhole %s proto %d", v.route, v.Prefix, lb.KernelProtocol),
			})
		}
	}
	return found
}
