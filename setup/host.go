package setup

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host is what was guessed of this host.
type Host struct {
	Interface string
	Why       string // in words: by what the interface was chosen; empty: it was named

	IPv4, IPv6       netip.Addr // the interface's first global ones; not valid: none
	Router4, Router6 netip.Addr // next hops of its default routes; likewise
}

// Look asks the kernel. The interface is the named one, else that of the default
// route, else the first that is up and has a global address.
func Look(name string) (Host, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return Host{}, fmt.Errorf("list interfaces: %w", err)
	}
	routes, err := defaultRoutes()
	if err != nil {
		return Host{}, err
	}
	h := Host{Interface: name}
	if name == "" {
		h.Interface, h.Why = choose(links, routes)
	}
	i := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Attrs().Name == h.Interface })
	switch {
	case i < 0 && name == "":
		return Host{}, errors.New("no interface is up and has a global address: name one with --interface, `ip link` lists them")
	case i < 0:
		return Host{}, fmt.Errorf("there is no interface %q: `ip link` lists them", name)
	}
	link := links[i]
	h.IPv4, h.IPv6 = addresses(link)
	for _, r := range routes {
		gateway, ok := netip.AddrFromSlice(r.Gw)
		if gateway = gateway.Unmap(); !ok || r.LinkIndex != link.Attrs().Index || gateway.IsLinkLocalUnicast() {
			continue
		}
		switch {
		case gateway.Is4() && !h.Router4.IsValid():
			h.Router4 = gateway
		case gateway.Is6() && !h.Router6.IsValid():
			h.Router6 = gateway
		}
	}
	return h, nil
}

// defaultRoutes gives those of the main table, the preferred ones first.
func defaultRoutes() ([]netlink.Route, error) {
	var defaults []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if r.Dst == nil || r.Dst.IP.IsUnspecified() && isZero(r.Dst.Mask) {
				defaults = append(defaults, r)
			}
		}
	}
	slices.SortStableFunc(defaults, func(a, b netlink.Route) int { return cmp.Compare(a.Priority, b.Priority) })
	return defaults, nil
}

func isZero(mask net.IPMask) bool {
	ones, _ := mask.Size()
	return ones == 0
}

func choose(links []netlink.Link, routes []netlink.Route) (name, why string) {
	for _, r := range routes {
		for _, l := range links {
			if l.Attrs().Index == r.LinkIndex {
				return l.Attrs().Name, "it has the default route"
			}
		}
	}
	for _, l := range links {
		v4, v6 := addresses(l)
		if a := l.Attrs(); a.Flags&net.FlagUp != 0 && a.Flags&net.FlagLoopback == 0 && (v4.IsValid() || v6.IsValid()) {
			return a.Name, "it is the first that is up and has a global address; there is no default route"
		}
	}
	return "", ""
}

// addresses gives the first global one of each family. An interface that cannot be
// asked has none.
func addresses(link netlink.Link) (v4, v6 netip.Addr) {
	list, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return v4, v6
	}
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.IP)
		if ip = ip.Unmap(); !ok || !ip.IsGlobalUnicast() {
			continue
		}
		switch {
		case ip.Is4() && !v4.IsValid():
			v4 = ip
		case ip.Is6() && !v6.IsValid() && a.Flags&unix.IFA_F_TEMPORARY == 0:
			v6 = ip
		}
	}
	return v4, v6
}
