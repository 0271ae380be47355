package doctor

import (
	"fmt"
	"slices"
	"strings"
)

// strict is the reverse path filter (RFC 3704) that drops what came in by another
// interface than answers would leave by.
const strict = 1

// reversePath judges whether the kernel drops what comes to it by l from beyond the
// networks that l is in, which does harm. Where no default route is to be seen that is not
// known.
func (h host) reversePath(l link, severity Severity, harm string) []Finding {
	if l.rpFilter != strict || len(h.exits4) == 0 || slices.Contains(h.exits4, l.name) {
		return nil
	}
	return []Finding{{
		Check: "rp_filter", Severity: severity,
		What:   fmt.Sprintf("%s: rp_filter is strict, and the default route leaves by %s: %s", l.name, strings.Join(h.exits4, ", "), harm),
		Remedy: loosen(l),
	}}
}

// reversePaths judges the filter on a node. Packets for VIPs do not meet it.
func reversePaths(h host) (found []Finding) {
	for _, l := range h.links {
		found = append(found, h.reversePath(l, Warning, "what is for this host itself and comes in here from afar is dropped, ICMP errors about outer packets, BGP and answers to checks among it")...)
	}
	return found
}

// loosen has the filter ask no more than that there be a way back at all. The greater
// value counts, of all interfaces and of this one.
func loosen(l link) string {
	return fmt.Sprintf("sysctl -w net.ipv4.conf.%s.rp_filter=2", dotted(l.name))
}

// dotted is an interface's name as sysctl takes it: a dot in it is written as a slash.
func dotted(name string) string { return strings.ReplaceAll(name, ".", "/") }
