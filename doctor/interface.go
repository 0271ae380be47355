package doctor

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
)

// interfaces judges what carries the VIPs' traffic.
func interfaces(cfg Config, h host) []Finding {
	var found []Finding
	for _, l := range h.links {
		if f := missing(l, h, cfg.File, "node.interfaces"); len(f) > 0 {
			found = append(found, f...)
			continue
		}
		found = append(found, cable(l)...)
		found = append(found, hook(cfg, l)...)
		found = append(found, offloads(cfg, h, l)...)
		found = append(found, veth(cfg, h, l)...)
	}
	return append(found, redirects(cfg, h)...)
}

// missing judges whether l is an interface that a program can sit on. option names it in file.
func missing(l link, h host, file, option string) []Finding {
	switch {
	case !l.exists:
		return []Finding{{
			Check: "interface", Severity: Problem,
			What:   fmt.Sprintf("%s: there is no such interface, there is %s", l.name, strings.Join(h.others, ", ")),
			Where:  file,
			Remedy: option + ": the names of those that carry VIP traffic",
		}}
	case !l.ethernet:
		return []Finding{{
			Check: "interface", Severity: Problem,
			What:   l.name + ": is no Ethernet interface",
			Where:  file,
			Remedy: fmt.Sprintf("%s: one of %s in place of %s", option, strings.Join(h.others, ", "), l.name),
		}}
	}
	return nil
}

// cable judges whether frames come in at all.
func cable(l link) []Finding {
	switch {
	case !l.up:
		return []Finding{{
			Check: "interface", Severity: Problem,
			What:   l.name + ": is down",
			Remedy: fmt.Sprintf("ip link set dev %s up", l.name),
		}}
	case !l.carrier && l.far != nil && !l.far.up:
		return []Finding{{
			Check: "interface", Severity: Problem,
			What:   fmt.Sprintf("%s: has no carrier, its other end %s is down", l.name, l.far.name),
			Remedy: fmt.Sprintf("%sip link set dev %s up", l.far.enter, l.far.name),
		}}
	case !l.carrier:
		return []Finding{{
			Check: "interface", Severity: Problem,
			What:   l.name + ": has no carrier: no cable, or the other end is off",
			Where:  "the switch",
			Remedy: fmt.Sprintf("plug in the cable and enable the port; `ethtool %s` on this host then says `Link detected: yes`", l.name),
		}}
	}
	return nil
}

// hook judges whether our program gets, or has, the XDP hook, and in the mode
// that is wanted.
func hook(cfg Config, l link) []Finding {
	ours := cfg.ours(l)
	switch {
	case cfg.Running && !ours && l.program == nil:
		return []Finding{{
			Check: "xdp", Severity: Problem,
			What:   l.name + ": the node that runs does not have its program there",
			Remedy: "systemctl restart halfproxy",
		}}
	case l.program != nil && !ours:
		return []Finding{another(l)}
	case ours && l.program != nil && l.program.mode == generic && cfg.XDPMode == auto:
		return []Finding{slower(cfg, l, "the program runs in generic mode, slower: native mode was refused")}
	case ours || cfg.XDPMode == generic || l.native != no:
		return nil
	case l.driver == "veth" && l.far == nil:
		return nil // unchecked says so
	case l.driver == "veth": // takes one, but for this
		f := Finding{
			Check: "xdp", Severity: cfg.wish(),
			What: fmt.Sprintf("%s: takes no native program while its other end %s has more queues to send by than it has to receive by (%d)",
				l.name, l.far.name, l.queues),
			Remedy: fmt.Sprintf("ethtool -L %s rx %d", l.name, l.maxQueues),
		}
		if l.maxQueues <= l.queues {
			f.Remedy = fmt.Sprintf("%sethtool -L %s tx %d", l.far.enter, l.far.name, l.queues)
		}
		return []Finding{f}
	case cfg.XDPMode == native:
		return []Finding{{
			Check: "xdp", Severity: Problem,
			What:   fmt.Sprintf("%s: driver %s has no native XDP, which node.xdp_mode asks for", l.name, l.driver),
			Where:  cfg.File,
			Remedy: "node.xdp_mode: auto",
		}}
	}
	return []Finding{slower(cfg, l, fmt.Sprintf("driver %s has no native XDP: the program will run in generic mode, slower", l.driver))}
}

func slower(cfg Config, l link, why string) Finding {
	return Finding{
		Check: "xdp", Severity: Warning,
		What:   l.name + ": " + why,
		Where:  cfg.File,
		Remedy: "node.xdp_mode: generic, to have it so knowingly; a NIC with native XDP is faster",
	}
}

func another(l link) Finding {
	p := l.program
	called := ""
	if p.name != "" {
		called = fmt.Sprintf(" %q", p.name)
	}
	switch {
	case p.node != "" && p.runs:
		return Finding{
			Check: "xdp", Severity: Problem,
			What:   fmt.Sprintf("%s: another halfproxy that runs has its program there, pinned in %s", l.name, p.node),
			Remedy: fmt.Sprintf("fuser -v %s   # shows its process: stop that one, or say with --socket that it is this node", p.node),
		}
	case p.node != "":
		return Finding{
			Check: "xdp", Severity: Warning,
			What:   fmt.Sprintf("%s: the program of a node that ended without an orderly stop goes on by its old tables, pinned in %s", l.name, p.node),
			Remedy: "systemctl start halfproxy",
		}
	}
	f := Finding{
		Check: "xdp", Severity: Problem,
		What:   fmt.Sprintf("%s: another XDP program%s (id %d, %s) has the hook", l.name, called, p.id, p.mode),
		Remedy: fmt.Sprintf("ip link set dev %s %s off", l.name, map[string]string{native: "xdpdrv", generic: "xdpgeneric", offload: "xdpoffload"}[p.mode]),
	}
	if p.link != 0 {
		// ip cannot take it off; its own program would have to.
		f.What += fmt.Sprintf(", held by bpf_link %d", p.link)
		f.Remedy = fmt.Sprintf("bpftool link detach id %d", p.link)
	}
	return f
}

const offload = "offload"

// pinning judges whether a program can outlive its process.
func pinning(cfg Config, h host) []Finding {
	if !h.noBPFFS {
		return nil
	}
	return []Finding{{
		Check: "pin", Severity: Warning,
		What:   fmt.Sprintf("%s: lies in no BPF file system: when the node crashes or is upgraded, its program ends with it", cfg.Pins),
		Remedy: "mount -t bpf bpf " + filepath.Dir(cfg.Pins),
	}}
}

// ours says whether the program on l, if any, is that of the node that runs.
func (cfg Config) ours(l link) bool { return cfg.Running && slices.Contains(cfg.Attached, l.name) }

// wish is how bad it is when native mode is refused: auto then falls back.
func (cfg Config) wish() Severity {
	if cfg.XDPMode == native {
		return Problem
	}
	return Warning
}

// mode is how our program runs on l, or will; empty where that is not known.
func (cfg Config) mode(l link) string {
	switch {
	case cfg.ours(l) && l.program != nil:
		return l.program.mode
	case cfg.XDPMode != auto:
		return cfg.XDPMode
	case l.native == yes:
		return native
	case l.native == no:
		return generic
	}
	return ""
}

// offloads judges what the NIC does to packets before the program sees them.
func offloads(cfg Config, h host, l link) []Finding {
	var found []Finding
	mode := cfg.mode(l)
	running := cfg.ours(l)

	if l.lro && mode != generic && !running { // generic mode turns it off by itself
		found = append(found, Finding{
			Check: "lro", Severity: cfg.wish(),
			What:   l.name + ": large receive offload is on: most drivers refuse a native program then",
			Remedy: fmt.Sprintf("ethtool -K %s lro off", l.name),
		})
	}
	if largest, why := nativeMTU(h, l); l.driver != "veth" && mode != generic && !running && l.mtu > largest {
		found = append(found, Finding{
			Check: "mtu", Severity: cfg.wish(),
			What:   fmt.Sprintf("%s: MTU %d is too big for native mode: %s", l.name, l.mtu, why),
			Remedy: fmt.Sprintf("ip link set dev %s mtu %d", l.name, largest),
		})
	}
	if service := tunnelled(cfg); mode == generic && service != "" && (l.gro || l.groHW) {
		features := "gro"
		if l.groHW {
			features = "gro off rx-gro-hw"
		}
		found = append(found, Finding{
			Check: "gro", Severity: Problem,
			What: fmt.Sprintf("%s: generic receive offload is on: in generic mode the program sees merged segments, which do not fit their outer header (service %q): they are dropped as too_big",
				l.name, service),
			Remedy: fmt.Sprintf("ethtool -K %s %s off", l.name, features),
		})
	}
	// A veth receives by as many as its other end sends by.
	if most := min(h.cpus, l.maxQueues); l.driver != "veth" && l.queues > 0 && l.queues < most {
		found = append(found, Finding{
			Check: "queues", Severity: Warning,
			What:   fmt.Sprintf("%s: receives by %d of %d queues, so the program runs on as many of %d CPUs", l.name, l.queues, l.maxQueues, h.cpus),
			Remedy: fmt.Sprintf("ethtool -L %s %s %d", l.name, l.channel, most),
		})
	}
	return found
}

// nativeMTU is the largest MTU at which a driver takes a native program, and
// why. It may take less than that, and says so in the kernel's log.
func nativeMTU(h host, l link) (int, string) {
	if l.driver == "virtio_net" && !h.atLeast(6, 3) {
		const header = 32 // struct padded_vnet_hdr
		return h.pageSize - header, fmt.Sprintf("before Linux 6.3 virtio_net takes %d", h.pageSize-header)
	}
	largest := onePageMTU(h)
	switch {
	case !h.atLeast(5, 18):
		return largest, fmt.Sprintf("before Linux 5.18 a packet has to fit a page, which %d does", largest)
	case l.scatters == yes || l.driver == "veth":
		return math.MaxInt, ""
	case l.scatters == no:
		return largest, fmt.Sprintf("driver %s gives it packets in one page alone, which %d fits", l.driver, largest)
	}
	return largest, fmt.Sprintf("a packet has to fit a page, which %d does, unless driver %s gives it several", largest, l.driver)
}

// onePageMTU is the largest MTU at which frames fit in a page of a driver's.
func onePageMTU(h host) int {
	const (
		headroom = 256 // XDP_PACKET_HEADROOM
		tail     = 320 // struct skb_shared_info
		ethernet = 14
	)
	return h.pageSize - headroom - tail - ethernet
}

// redirects judges whether what comes in by one interface in several pages can
// leave by another.
func redirects(cfg Config, h host) (found []Finding) {
	for _, in := range h.links {
		if cfg.mode(in) == generic || in.mtu <= onePageMTU(h) {
			continue
		}
		for _, out := range h.links {
			if in.name == out.name || h.atLeast(6, 3) && out.gathers != no {
				continue
			}
			why := "before Linux 6.3 none that fill several are sent on"
			if h.atLeast(6, 3) {
				why = fmt.Sprintf("driver %s sends on none that fill several", out.driver)
			}
			found = append(found, Finding{
				Check: "mtu", Severity: Warning,
				What:   fmt.Sprintf("%s: what its MTU %d lets in is lost when it is to leave by %s and does not fit a page: %s", in.name, in.mtu, out.name, why),
				Remedy: fmt.Sprintf("ip link set dev %s mtu %d", in.name, onePageMTU(h)),
			})
		}
	}
	return found
}

// tunnelled is the name of a service whose packets get an outer header.
func tunnelled(cfg Config) string {
	for _, s := range cfg.Services {
		if s.Forward.Overhead(s.VIPs[0].Addr()) > 0 {
			return s.Name
		}
	}
	return ""
}

// veth judges the far end of a virtual Ethernet pair: what it does to packets
// before the program sees them, and whether what a native program sends back
// arrives there.
func veth(cfg Config, h host, l link) []Finding {
	if l.far == nil {
		return nil
	}
	mode := cfg.mode(l)
	var found []Finding
	if service := tunnelled(cfg); mode == generic && service != "" && l.far.segments {
		found = append(found, Finding{
			Check: "veth", Severity: Problem,
			What: fmt.Sprintf("%s: its other end %s leaves segments uncut: in generic mode the program sees them so, and they do not fit their outer header (service %q): they are dropped as too_big",
				l.name, l.far.name, service),
			Remedy: fmt.Sprintf("%sethtool -K %s tso off gso off", l.far.enter, l.far.name),
		})
	}
	if mode == generic {
		return found
	}
	// Frames of what size come in is the other end's to say.
	if largest, why := nativeMTU(h, l); !cfg.ours(l) && l.far.mtu > largest {
		found = append(found, Finding{
			Check: "mtu", Severity: cfg.wish(),
			What:   fmt.Sprintf("%s: MTU %d of its other end %s is too big for native mode: %s", l.name, l.far.mtu, l.far.name, why),
			Remedy: fmt.Sprintf("%sip link set dev %s mtu %d", l.far.enter, l.far.name, largest),
		})
	}
	if !l.far.program {
		found = append(found, Finding{
			Check: "veth", Severity: Warning,
			What: fmt.Sprintf("%s: its other end %s has no XDP program: what a native program sends back stays in the queue there",
				l.name, l.far.name),
			Where:  cfg.File,
			Remedy: "node.xdp_mode: generic; or put a program that passes everything on the other end",
		})
	}
	if l.far.checksum {
		found = append(found, Finding{
			Check: "veth", Severity: Warning,
			What: fmt.Sprintf("%s: its other end %s leaves checksums to the hardware: a native program sends such packets on without, and backends drop them",
				l.name, l.far.name),
			Remedy: fmt.Sprintf("%sethtool -K %s tx off", l.far.enter, l.far.name),
		})
	}
	return found
}
