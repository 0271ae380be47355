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
)

// loopback is the device lo with VIPs on it.
type loopback struct {
	netlink *netlink.Handle
	lo      netlink.Link
	vips    []netip.Addr
}

func openLoopback(vips []netip.Addr) (*loopback, error) {
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

// put makes the VIPs addresses of lo. One that is there already, and not by an
// earlier run of ours, is left there at the end.
func (l *loopback) put(j *journal, log *slog.Logger) error {
	if l.lo.Attrs().Flags&net.FlagUp == 0 {
		return errors.New("lo is down, so no address on it can be reached: `ip link set lo up`")
	}
	there, err := l.addresses(nil)
	if err != nil {
		return err
	}
	for _, vip := range l.vips {
		if index, on := there[vip]; on && index != l.lo.Attrs().Index {
			name := fmt.Sprint("link ", index)
			if link, err := l.netlink.LinkByIndex(index); err == nil {
				name = link.Attrs().Name
			}
			return fmt.Errorf("vip %s is an address of %s, which answers ARP for it: remove it there (`ip address del`), it belongs on lo alone", vip, name)
		}
	}
	for _, vip := range slices.Clone(j.Done.Addresses) {
		if !slices.Contains(l.vips, vip) { // of an earlier run
			if err := l.remove(j, vip); err != nil {
				return err
			}
		}
	}
	for _, vip := range l.vips {
		ours := slices.Contains(j.Done.Addresses, vip)
		if _, on := there[vip]; on {
			if !ours {
				log.Info("vip was on lo already and will be left there", "vip", vip)
			}
			continue
		}
		if !ours {
			if err := j.addAddress(vip); err != nil {
				return err
			}
		}
		if err := l.netlink.AddrAdd(l.lo, address(vip)); err != nil {
			return fmt.Errorf("put vip %s on lo: %w", vip, err)
		}
	}
	return j.save()
}

// takeBack removes the VIPs that were put there.
func (l *loopback) takeBack(j *journal) error {
	var errs []error
	for _, vip := range slices.Clone(j.Done.Addresses) {
		errs = append(errs, l.remove(j, vip))
	}
	return errors.Join(errs...)
}

func (l *loopback) remove(j *journal, vip netip.Addr) error {
	if err := l.netlink.AddrDel(l.lo, address(vip)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("take vip %s off lo: %w", vip, err)
	}
	j.removeAddress(vip)
	return nil
}

// check tells which VIPs are not on lo.
func (l *loopback) check() error {
	there, err := l.addresses(l.lo)
	if err != nil {
		return err
	}
	var errs []error
	for _, vip := range l.vips {
		if _, on := there[vip]; !on {
			errs = append(errs, fmt.Errorf("vip %s is not on lo: restart, or `ip address add %s dev lo`", vip, netip.PrefixFrom(vip, vip.BitLen())))
		}
	}
	return errors.Join(errs...)
}

// addresses gives the links of all addresses, or those of one link.
func (l *loopback) addresses(link netlink.Link) (map[netip.Addr]int, error) {
	list, err := l.netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	there := make(map[netip.Addr]int)
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			there[ip.Unmap()] = a.LinkIndex
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

// address is a VIP as lo has it: alone, and usable at once. Duplicate address
// detection would find nobody on lo, and take its time.
func address(vip netip.Addr) *netlink.Addr {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: vip.AsSlice(), Mask: net.CIDRMask(vip.BitLen(), vip.BitLen())}}
	if vip.Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}
