package doctor

import (
	"context"
	"net/netip"
	"runtime"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/halfproxy/halfproxy/lb"
)

// Config is what the node is to do, as its configuration has it. The zero value
// looks at the host alone.
type Config struct {
	File       string   // the configuration's path, where changes to it are the remedy
	Interfaces []string // none: those that the default routes leave by
	XDPMode    string   // auto, native or generic; empty is auto
	Services   []lb.Service

	ClusterListen netip.AddrPort // invalid: the node stands alone
	Join          []string       // host:port
	HTTPListen    netip.AddrPort // invalid: not looked at
	Peers         []Peer

	// Running says that a node runs here: its ports and sessions are no fault,
	// nor is its program on the interfaces of Attached.
	Running  bool
	Attached []string

	// Pins is the directory that nodes pin their programs below, in a directory
	// each. Empty: not looked at.
	Pins string
}

// Peer is a BGP router.
type Peer struct {
	Address  netip.Addr
	Password string // of TCP MD5: without it the router would not answer
}

// The values of Config.XDPMode.
const (
	auto    = "auto"
	native  = "native"
	generic = "generic"
)

// Severity tells how bad a finding is.
type Severity uint8

const (
	// Problem keeps packets from flowing, or the node from starting.
	Problem Severity = iota
	// Warning makes them flow slower, or will bite some of them.
	Warning
)

func (s Severity) String() string {
	if s == Problem {
		return "problem"
	}
	return "warning"
}

// Finding is one thing that is wrong.
type Finding struct {
	Check    string // what was looked at, one word
	Severity Severity
	What     string // what is wrong, and with what
	Remedy   string // a command to paste, or a change to a file
	Where    string // of the remedy: a file or another machine; empty is a shell on this host
}

// Report is what was looked at and what came of it.
type Report struct {
	Findings  []Finding // problems first
	LookedAt  []string
	Unchecked []string // what could not be looked at, and why
}

// Examine looks at the host, in the calling thread's network namespace. Next hops
// that do not answer take a second and a half of its time, as does each router;
// names that do not resolve take up to three. It ends early with ctx.
func Examine(ctx context.Context, cfg Config) Report {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if cfg.XDPMode == "" {
		cfg.XDPMode = auto
	}
	if len(cfg.Interfaces) == 0 {
		links := outgoing(netlink.FAMILY_ALL)
		cfg.Interfaces = namesOf(slices.DeleteFunc(links, func(l *netlink.LinkAttrs) bool { return !isEthernet(l) }))
	}
	h := gather(ctx, cfg)
	return Report{Findings: judge(cfg, h), LookedAt: lookedAt(h), Unchecked: append(h.unknown, unchecked(cfg, h)...)}
}

// judge says what is wrong, problems first.
func judge(cfg Config, h host) []Finding {
	findings := slices.Concat(
		system(h),
		interfaces(cfg, h),
		reversePaths(h),
		pinning(cfg, h),
		backends(cfg, h),
		vips(cfg, h),
		listening(cfg, h),
		names(cfg, h),
		peers(cfg, h),
	)
	slices.SortStableFunc(findings, func(a, b Finding) int { return int(a.Severity) - int(b.Severity) })
	return findings
}
