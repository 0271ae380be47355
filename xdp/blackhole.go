package xdp

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/lb"
)

// blackholePriority, the routes' metric, leaves room before them. It is the one
// that IPv6 routes have that are given none.
const blackholePriority = 1024

// blackholes keeps a blackhole route for each VIP, and for aggregates around them. Without it a packet for a
// VIP that the program passes on, or that comes while none is attached, takes
// the kernel's default route back to where it came from, and again, until its
// TTL ends.
type blackholes struct {
	netlink *netlink.Handle // nil: nothing to be done
	log     *slog.Logger
	there   map[netip.Prefix]bool // ours; nil: not looked yet
	around  []netip.Prefix        // aggregates
}

func newBlackholes(h *netlink.Handle, log *slog.Logger) *blackholes {
	return &blackholes{netlink: h, log: log}
}

// look finds those that an earlier process left behind.
func (b *blackholes) look() error {
	if b.there != nil {
		return nil
	}
	there := make(map[netip.Prefix]bool)
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		filter := &netlink.Route{Protocol: lb.KernelProtocol, Type: unix.RTN_BLACKHOLE}
		routes, err := b.netlink.RouteListFiltered(family, filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TYPE)
		if err != nil {
			return fmt.Errorf("list blackhole routes: %w", err)
		}
		for _, r := range routes {
			a, ok := netip.AddrFromSlice(r.Dst.IP)
			switch length, _ := r.Dst.Mask.Size(); {
			case !ok:
			case r.Priority == blackholePriority:
				there[netip.PrefixFrom(a.Unmap(), length)] = true
			default: // put there by hand; it would come before what is to come before ours
				if err := b.netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
					return fmt.Errorf("remove the blackhole route of %s with metric %d: %w", r.Dst, r.Priority, err)
				}
			}
		}
	}
	b.there = there
	return nil
}

// aggregate makes aggregates those that have a route beside the VIPs.
func (b *blackholes) aggregate(aggregates []netip.Prefix) error {
	was := b.around
	b.around = aggregates
	errs := []error{b.add(nil)}
	for _, a := range was {
		if b.there[a] && !slices.Contains(aggregates, a) {
			errs = append(errs, b.remove(a))
		}
	}
	return errors.Join(errs...)
}

// add puts in those that are missing.
func (b *blackholes) add(vips map[netip.Prefix]bool) error {
	if b.netlink == nil {
		return nil
	}
	if err := b.look(); err != nil {
		return err
	}
	for _, prefix := range slices.Concat(b.around, slices.Collect(maps.Keys(vips))) {
		if b.there[prefix] {
			continue
		}
		err := b.netlink.RouteAdd(blackhole(prefix))
		if errors.Is(err, unix.EEXIST) {
			b.log.Warn("vip has a route already: packets for it may loop while the program is away", "vip", prefix)
			continue
		}
		if err != nil {
			return fmt.Errorf("add the blackhole route of %s: %w", prefix, err)
		}
		b.there[prefix] = true
	}
	return nil
}

// keep removes all but those of vips and aggregates.
func (b *blackholes) keep(vips map[netip.Prefix]bool) error {
	var errs []error
	for prefix := range b.there {
		if !vips[prefix] && !slices.Contains(b.around, prefix) {
			errs = append(errs, b.remove(prefix))
		}
	}
	return errors.Join(errs...)
}

func (b *blackholes) remove(prefix netip.Prefix) error {
	if err := b.netlink.RouteDel(blackhole(prefix)); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove the blackhole route of %s: %w", prefix, err)
	}
	delete(b.there, prefix)
	return nil
}

func (b *blackholes) clear() error {
	b.around = nil
	return b.keep(nil)
}

func blackhole(prefix netip.Prefix) *netlink.Route {
	return &netlink.Route{
		Dst:      &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())},
		Type:     unix.RTN_BLACKHOLE,
		Protocol: lb.KernelProtocol,
		Priority: blackholePriority,
	}
}
