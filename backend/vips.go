package backend

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/lb"
)

// loopback is the device lo with VIPs on it: an address is put there, a prefix
// is made the host's own by a local route.
type loopback struct {
	netlink *netlink.Handle
	lo      netlink.Link
	vips    []lb.VIP
}

func openLoopback(vips []lb.VIP) (*loopback, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("find the loopback device: %w", err)
	}
	return &loopback{h, lo, vips}, nil
}

// put makes the VIPs lo's. One that is there already, and not by an earlier run
// of ours, is left there at the end.
func (l *loopback) put(j *journal, log *slog.Logger) error {
	if l.lo.Attrs().Flags&net.FlagUp == 0 {
		return errors.New("lo is down, so no address on it can be reached: `ip link set lo up`")
	}
	if err := l.disjoint(); err != nil {
		return err
	}
	for _, vip := range j.vips() {
		if !slices.Contains(l.vips, vip) { // of an earlier run
			if err := l.remove(j, vip); err != nil {
				return err
			}
		}
	}
	there, err := l.there()
	if err != nil {
		return err
	}
	for _, vip := range l.vips {
		ours := slices.Contains(j.vips(), vip)
		if there[vip] {
			if !ours {
				log.Info("vip was on lo already and will be left there", "vip", vip)
			}
			continue
		}
		if !ours {
			if err := j.addVIP(vip); err != nil {
				return err
			}
		}
		if err := l.add(vip); err != nil {
			return fmt.Errorf("put vip %s on lo: %w", vip, err)
		}
	}
	return j.save()
}

// disjoint refuses VIPs that would cut the host off, or that it answers ARP for.
func (l *loopback) disjoint() error {
	list, err := l.netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list the host's addresses: %w", err)
	}
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok || a.LinkIndex == l.lo.Attrs().Index {
			continue
		}
		for _, vip := range l.vips {
			if !vip.Contains(ip.Unmap()) {
				continue
			}
			if vip.IsSingleIP() {
				return fmt.Errorf("vip %s is an address of %s, which answers ARP for it: remove it there (`ip address del`), it belongs on lo alone", vip, l.nameOf(a.LinkIndex))
			}
			return fmt.Errorf("vip %s has in it %s, an address of %s: give prefixes without it", vip, ip.Unmap(), l.nameOf(a.LinkIndex))
		}
	}
	routes, err := l.netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list the host's routes: %w", err)
	}
	for _, r := range routes {
		for _, hop := range append(r.MultiPath, &netlink.NexthopInfo{Gw: r.Gw}) {
			gateway, _ := netip.AddrFromSlice(hop.Gw)
			for _, vip := range l.vips {
				if vip.Contains(gateway.Unmap()) {
					return fmt.Errorf("vip %s has in it %s, a gateway of this host, which could not be reached any more: give VIPs without it", vip, gateway.Unmap())
				}
			}
		}
	}
	return nil
}

func (l *loopback) nameOf(index int) string {
	if link, err := l.netlink.LinkByIndex(index); err == nil {
		return link.Attrs().Name
	}
	return fmt.Sprint("link ", index)
}

// takeBack removes the VIPs that were put there.
func (l *loopback) takeBack(j *journal) error {
	var errs []error
	for _, vip := range j.vips() {
		errs = append(errs, l.remove(j, vip))
	}
	return errors.Join(errs...)
}

func (l *loopback) add(vip lb.VIP) error {
	if vip.IsSingleIP() {
		return l.netlink.AddrAdd(l.lo, address(vip.Addr()))
	}
	return l.netlink.RouteAdd(l.route(vip))
}

func (l *loopback) remove(j *journal, vip lb.VIP) error {
	var err error
	if vip.IsSingleIP() {
		err = l.netlink.AddrDel(l.lo, address(vip.Addr()))
	} else {
		err = l.netlink.RouteDel(l.route(vip))
	}
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("take vip %s off lo: %w", vip, err)
	}
	j.removeVIP(vip)
	return nil
}

// check tells which VIPs are not on lo.
func (l *loopback) check() error {
	there, err := l.there()
	if err != nil {
		return err
	}
	var errs []error
	for _, vip := range l.vips {
		switch {
		case there[vip]:
		case vip.IsSingleIP():
			errs = append(errs, fmt.Errorf("vip %s is not on lo: restart, or `ip address add %s dev lo`", vip, vip.Prefix))
		default:
			errs = append(errs, fmt.Errorf("vip %s is not on lo: restart, or `ip route add local %s dev lo`", vip, vip))
		}
	}
	return errors.Join(errs...)
}

// there gives the addresses of lo, and the prefixes that local routes lead there.
func (l *loopback) there() (map[lb.VIP]bool, error) {
	list, err := l.netlink.AddrList(l.lo, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the addresses of lo: %w", err)
	}
	there := make(map[lb.VIP]bool)
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			there[lb.AddrVIP(ip.Unmap())] = true
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		filter := &netlink.Route{Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, LinkIndex: l.lo.Attrs().Index}
		routes, err := l.netlink.RouteListFiltered(family, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE|netlink.RT_FILTER_OIF)
		if err != nil {
			return nil, fmt.Errorf("list the local routes of lo: %w", err)
		}
		for _, r := range routes {
			if ip, ok := netip.AddrFromSlice(r.Dst.IP); ok {
				length, _ := r.Dst.Mask.Size()
				if vip := (lb.VIP{Prefix: netip.PrefixFrom(ip.Unmap(), length)}); !vip.IsSingleIP() {
					there[vip] = true
				}
			}
		}
	}
	return there, nil
}

// indices gives those of interfaces by their names.
func (l *loopback) indices(names []string) (map[string]int, error) {
	indices := make(map[string]int)
	for _, name := range names {
		link, err := l.netlink.LinkByName(name)
		if err != nil {
			return nil, fmt.Errorf("find interface %s: %w", name, err)
		}
		indices[name] = link.Attrs().Index
	}
	return indices, nil
}

// route makes the host the owner of all of a prefix.
func (l *loopback) route(vip lb.VIP) *netlink.Route {
	return &netlink.Route{
		LinkIndex: l.lo.Attrs().Index, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Protocol: unix.RTPROT_STATIC,
		Dst: &net.IPNet{IP: vip.Addr().AsSlice(), Mask: net.CIDRMask(vip.Bits(), vip.Addr().BitLen())},
	}
}

// address is a VIP as lo has it: alone, and usable at once. Duplicate address
// detection would find nobody on lo, and take its time.
func address(vip netip.Addr) *netlink.Addr {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: vip.AsSlice(), Mask: net.CIDRMask(vip.BitLen(), vip.BitLen())}}
	if vip.Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}
