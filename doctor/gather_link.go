package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func isEthernet(l *netlink.LinkAttrs) bool { return l.EncapType == "ether" }

func (h *host) gatherLinks(cfg Config, byIndex map[int]*netlink.LinkAttrs) {
	byName := make(map[string]*netlink.LinkAttrs)
	for _, l := range byIndex {
		byName[l.Name] = l
	}
	for _, name := range cfg.Interfaces {
		attrs := byName[name]
		if attrs == nil {
			h.links = append(h.links, link{name: name})
			continue
		}
		l := link{
			name: name, exists: true, mtu: attrs.MTU, ethernet: isEthernet(attrs),
			up: attrs.RawFlags&unix.IFF_UP != 0, carrier: attrs.RawFlags&unix.IFF_LOWER_UP != 0,
			program: programOf(attrs, cfg.Pins), rpFilter: rpFilter(name),
		}
		l.native, l.scatters, l.gathers = xdpFeatures(attrs.Index)
		if err := l.askDriver(); err != nil {
			h.unknown = append(h.unknown, fmt.Sprintf("what %s offloads and how many queues it has: %v", name, err))
		}
		if l.driver == "veth" {
			l.far = farEndOf(attrs)
		}
		h.links = append(h.links, l)
	}
}

// askDriver fills in what ethtool shows. Drivers need not have all of it.
func (l *link) askDriver() error {
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return err
	}
	defer tool.Close()
	if l.driver, err = tool.DriverName(l.name); err != nil {
		l.driver = "unknown"
	}
	features, err := tool.Features(l.name)
	if err != nil {
		return err
	}
	l.lro, l.gro, l.groHW = features["rx-lro"], features["rx-gro"], features["rx-gro-hw"]
	if c, err := tool.GetChannels(l.name); err == nil {
		l.channel, l.queues, l.maxQueues = "combined", int(c.CombinedCount+c.RxCount), int(c.MaxCombined)
		if c.MaxCombined == 0 {
			l.channel, l.maxQueues = "rx", int(c.MaxRx)
		}
	}
	return nil
}

func programOf(l *netlink.LinkAttrs, pins string) *program {
	if l.Xdp == nil || !l.Xdp.Attached {
		return nil
	}
	p := &program{id: l.Xdp.ProgId, mode: native}
	switch l.Xdp.AttachMode {
	case nl.XDP_ATTACHED_SKB:
		p.mode = generic
	case nl.XDP_ATTACHED_HW:
		p.mode = offload
	}
	p.name = programName(p.id)
	p.link = linkOf(p.id, l.Index)
	p.node, p.runs = nodeOf(p.link, pins)
	return p
}

// xdpFeatures asks the kernel, which tells from 6.3 on what a driver can do
// (Documentation/netlink/specs/netdev.yaml).
func xdpFeatures(ifindex int) (native, scatters, gathers answer) {
	const (
		devGet   = 1 // NETDEV_CMD_DEV_GET
		index    = 1 // NETDEV_A_DEV_IFINDEX
		features = 3 // NETDEV_A_DEV_XDP_FEATURES

		basic   = 1 << 0 // NETDEV_XDP_ACT_BASIC: drop, pass, send back
		receive = 1 << 5 // NETDEV_XDP_ACT_RX_SG
		send    = 1 << 6 // NETDEV_XDP_ACT_NDO_XMIT_SG
	)
	family, err := netlink.GenlFamilyGet("netdev")
	if err != nil {
		return unknown, unknown, unknown
	}
	req := nl.NewNetlinkRequest(int(family.ID), 0)
	// Not nl.Genlmsg: it leaves the reserved bytes to chance, which netdev refuses.
	req.AddRawData(append([]byte{devGet, 1, 0, 0}, nl.NewRtAttr(index, nl.Uint32Attr(uint32(ifindex))).Serialize()...))
	messages, err := req.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil || len(messages) == 0 || len(messages[0]) < nl.SizeofGenlmsg {
		return unknown, unknown, unknown
	}
	attrs, err := nl.ParseRouteAttr(messages[0][nl.SizeofGenlmsg:])
	if err != nil {
		return unknown, unknown, unknown
	}
	for _, a := range attrs {
		if a.Attr.Type == features && len(a.Value) >= 8 {
			has := nl.NativeEndian().Uint64(a.Value)
			return yesOrNo(has&basic != 0), yesOrNo(has&receive != 0), yesOrNo(has&send != 0)
		}
	}
	return unknown, unknown, unknown
}

func yesOrNo(is bool) answer {
	if is {
		return yes
	}
	return no
}

// farEndOf finds the other end of a veth, in this namespace or one that has a
// name or a process. It is nil where there is none to be found.
func farEndOf(l *netlink.LinkAttrs) *farEnd {
	if l.NetNsID < 0 {
		return lookFrom("", l.ParentIndex)
	}
	var far *farEnd
	for _, pattern := range []string{"/run/netns/*", "/run/docker/netns/*", "/proc/[0-9]*/ns/net"} {
		paths, _ := filepath.Glob(pattern) // the patterns are good
		for _, path := range paths {
			ns, err := os.Open(path)
			if err != nil {
				continue
			}
			if id, err := netlink.GetNetNsIdByFd(int(ns.Fd())); err == nil && id == l.NetNsID {
				enter := "nsenter --net=" + path + " "
				if name, ok := strings.CutPrefix(path, "/run/netns/"); ok {
					enter = "ip netns exec " + name + " "
				}
				within(ns, func() { far = lookFrom(enter, l.ParentIndex) })
			}
			ns.Close()
			if far != nil {
				return far
			}
		}
	}
	return nil
}

// within runs fn in a network namespace, on a thread that ends with it.
func within(ns *os.File, fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread is of no use to others
		if unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET) == nil {
			fn()
		}
	}()
	<-done
}

func lookFrom(enter string, ifindex int) *farEnd {
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return nil
	}
	far := &farEnd{
		name: l.Attrs().Name, enter: enter, mtu: l.Attrs().MTU,
		up: l.Attrs().RawFlags&unix.IFF_UP != 0, program: l.Attrs().Xdp != nil && l.Attrs().Xdp.Attached,
	}
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return far
	}
	defer tool.Close()
	if features, err := tool.Features(far.name); err == nil {
		far.checksum = features["tx-checksum-ip-generic"] || features["tx-checksum-ipv4"] || features["tx-checksum-ipv6"]
		far.segments = features["tx-tcp-segmentation"] || features["tx-tcp6-segmentation"]
	}
	return far
}
