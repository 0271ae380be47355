package doctor

import (
	"context"
	"fmt"
	"runtime"
	"slices"

	"github.com/halfproxy/halfproxy/lb"
)

// BackendConfig is what a backend is to do, as its configuration has it.
type BackendConfig struct {
	File       string // the configuration's path
	Interfaces []string
	VIPs       []lb.VIP
	Decap      bool // a program is to take outer headers off

	// Running says that `halfproxy backend` runs here, and Faults what it says is not as
	// it has to be.
	Running bool
	Faults  []string
}

// ExamineBackend is Examine for a backend's host.
func ExamineBackend(ctx context.Context, cfg BackendConfig) Report {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	h := gather(ctx, cfg.asNode())
	return Report{Findings: judgeBackend(cfg, h), LookedAt: lookedAt(h), Unchecked: uncheckedBackend(cfg, h)}
}

// asNode is what of a node's configuration is about this host's interfaces.
func (cfg BackendConfig) asNode() Config {
	node := Config{File: cfg.File, Interfaces: cfg.Interfaces, XDPMode: auto, Running: cfg.Running}
	if cfg.Running {
		node.Attached = cfg.Interfaces
	}
	return node
}

func judgeBackend(cfg BackendConfig, h host) []Finding {
	found := system(h)
	for _, fault := range cfg.Faults {
		found = append(found, Finding{
			Check: "backend", Severity: Problem,
			What:   "halfproxy backend says: " + fault,
			Remedy: "systemctl restart halfproxy-backend",
		})
	}
	for _, l := range h.links {
		if f := missing(l, h, cfg.File, "interfaces"); len(f) > 0 {
			found = append(found, f...)
			continue
		}
		found = append(found, cable(l)...)
		if cfg.Decap {
			if l.program != nil && !cfg.Running {
				found = append(found, another(l))
			}
			found = append(found, offloads(cfg.asNode(), h, l)...)
		}
		found = append(found, h.reversePath(l, Problem, "what clients send to IPv4 VIPs comes in here and is dropped")...)
	}
	slices.SortStableFunc(found, func(a, b Finding) int { return int(a.Severity) - int(b.Severity) })
	return found
}

// uncheckedBackend is what the report does not cover though it should.
func uncheckedBackend(cfg BackendConfig, h host) []string {
	lines := h.unknown
	if !cfg.Running {
		lines = append(lines, "VIPs on lo, ARP, decapsulation and MSS: `halfproxy backend` does not run")
	}
	for _, family := range []struct {
		name  string
		ipv4  bool
		exits []string
	}{{"IPv4", true, h.exits4}, {"IPv6", false, h.exits6}} {
		at := slices.IndexFunc(cfg.VIPs, func(v lb.VIP) bool { return v.Addr().Is4() == family.ipv4 })
		if at >= 0 && len(family.exits) == 0 {
			lines = append(lines, fmt.Sprintf("whether answers from VIP %s reach all clients: there is no %s default route", cfg.VIPs[at], family.name))
		}
	}
	return lines
}
