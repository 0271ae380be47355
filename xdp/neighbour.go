package xdp

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/lb"
)

// keepNeighbour has the kernel resolve a neighbour, and keep it resolved where it
// can. The entry is marked as ours, which netlink.NeighSet has no way to do.
func keepNeighbour(key neighbour) error {
	request := nl.NewNetlinkRequest(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	request.AddData(&netlink.Ndmsg{Family: uint8(family(key.address)), Index: uint32(key.ifindex), Flags: netlink.NTF_USE})
	request.AddData(nl.NewRtAttr(netlink.NDA_DST, key.address.AsSlice()))
	request.AddData(nl.NewRtAttr(netlink.NDA_FLAGS_EXT, nl.Uint32Attr(netlink.NTF_EXT_MANAGED)))
	request.AddData(nl.NewRtAttr(netlink.NDA_PROTOCOL, []byte{lb.KernelProtocol}))
	if _, err := request.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("have the kernel keep neighbour %s: %w", key.address, err)
	}
	return nil
}

// keptNeighbours are those that bear our mark, whichever process set it.
func keptNeighbours() ([]neighbour, error) {
	request := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
	request.AddData(&netlink.Ndmsg{})
	entries, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	if err != nil {
		return nil, fmt.Errorf("list neighbours: %w", err)
	}
	var kept []neighbour
	for _, data := range entries {
		entry, err := netlink.NeighDeserialize(data)
		if err != nil || entry.FlagsExt&netlink.NTF_EXT_MANAGED == 0 {
			continue
		}
		attributes, err := nl.ParseRouteAttr(data[(&netlink.Ndmsg{}).Len():])
		if err != nil {
			return nil, fmt.Errorf("read a neighbour: %w", err)
		}
		address, ok := netip.AddrFromSlice(entry.IP)
		for _, a := range attributes {
			if ok && a.Attr.Type == netlink.NDA_PROTOCOL && a.Value[0] == lb.KernelProtocol {
				kept = append(kept, neighbour{entry.LinkIndex, address.Unmap()})
			}
		}
	}
	return kept, nil
}
