package config

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/halfproxy/halfproxy/lb"
)

// aggregates reads the prefixes that are announced while a VIP in them is. What is in
// the services has been read.
func (c *checker) aggregates(s bgpSection, cfg Config) []lb.Aggregate {
	var aggregates []lb.Aggregate
	var lines []int
	for _, entry := range s.Aggregates.items {
		var a lb.Aggregate
		prefix, ok := need(c.report, entry.Prefix, "give one around VIPs, such as 203.0.113.0/24", parseAggregate)
		a.Prefix = prefix
		a.Announcement = c.announcement(entry.Peers, entry.Communities, entry.MED, entry.LocalPreference, entry.Prepend, cfg.BGP)
		a.Alone = c.alone(entry.Specifics, a.Peers, cfg.BGP.Peers)
		if !ok {
			continue
		}
		if i := slices.IndexFunc(aggregates, func(o lb.Aggregate) bool { return o.Prefix.Overlaps(prefix) }); i >= 0 {
			c.at(entry.Prefix.place, "%q overlaps %q, in line %d: each VIP is in one aggregate at most, remove one of them", prefix, aggregates[i].Prefix, lines[i])
		}
		c.around(entry.Prefix.place, a, cfg)
		aggregates, lines = append(aggregates, a), append(lines, entry.Prefix.line)
	}
	return aggregates
}

// around checks what an aggregate has in it, and who can be told of it.
func (c *checker) around(at place, a lb.Aggregate, cfg Config) {
	hosts := slices.SortedFunc(maps.Keys(c.hosts), netip.Addr.Compare)
	if i, _ := slices.BinarySearchFunc(hosts, a.Prefix.Addr(), netip.Addr.Compare); i < len(hosts) && a.Prefix.Contains(hosts[i]) {
		c.at(at, "%q has in it %v, the address of %s: what is in an aggregate and no VIP is dropped by the nodes, give one without it", a.Prefix, hosts[i], c.hosts[hosts[i]])
	}
	empty := true
	for _, service := range cfg.Services {
		for _, vip := range service.VIPs {
			if !vip.Overlaps(a.Prefix) {
				continue
			}
			empty = false
			if vip.Bits() <= a.Prefix.Bits() {
				c.at(at, "%q lies in VIP %q of service %q, which is announced by itself: give a prefix around it, or remove it", a.Prefix, vip, service.Name)
			}
		}
	}
	if empty {
		c.at(at, "%q has no VIP in it, and would never be announced: give a prefix around VIPs, or remove it", a.Prefix)
	}
	family, takes := "IPv6", func(p Peer) bool { return p.IPv6 }
	if a.Prefix.Addr().Is4() {
		family, takes = "IPv4", func(p Peer) bool { return p.IPv4 }
	}
	if len(cfg.BGP.Peers) > 0 && !slices.ContainsFunc(cfg.BGP.Peers, func(p Peer) bool { return takes(p) && (len(a.Peers) == 0 || slices.Contains(a.Peers, p.Address)) }) {
		c.at(at, "%q can be told to nobody, as no peer that it is for has %s in families: add that, or remove it", a.Prefix, family)
	}
}

// alone reads which of the peers that are told of an aggregate are not told of the VIPs
// in it.
func (c *checker) alone(specifics listOrValue, told []netip.Addr, peers []Peer) []netip.Addr {
	if specifics.state != given {
		return nil
	}
	some(c.report, specifics.list, "write all, none, or the routers that are told of the VIPs too")
	var addresses []netip.Addr
	for _, v := range specifics.items {
		switch v.text {
		case "all", "none":
			if len(specifics.items) > 1 {
				c.at(v.place, "%s stands alone, or not at all: write it in the place of the list", v)
			}
			if v.text == "all" {
				return nil
			}
			continue
		}
		address, ok := want(c.report, v, netip.Addr{}, parseSpecifics)
		if !ok {
			continue
		}
		c.isPeer(v.place, address, peers)
		if len(told) > 0 && !slices.Contains(told, address) {
			c.at(v.place, "%q is not told of the aggregate, and of the VIPs in any case: remove it, or add it to peers", address)
		}
		addresses = append(addresses, address)
	}
	if len(told) == 0 {
		for _, p := range peers {
			told = append(told, p.Address)
		}
	}
	alone := slices.DeleteFunc(slices.Clone(told), func(t netip.Addr) bool { return slices.Contains(addresses, t) })
	slices.SortFunc(alone, netip.Addr.Compare)
	return alone
}

func parseSpecifics(v value) (netip.Addr, error) {
	address, err := parseAddress(v)
	if err != nil {
		return netip.Addr{}, errors.New("is neither all nor none nor the address of a router: write one of them")
	}
	return address, nil
}

// parseAggregate takes a prefix that may be announced though not all of it is VIPs.
func parseAggregate(v value) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(v.text)
	switch {
	case err != nil:
		return netip.Prefix{}, errors.New("is no prefix: write one such as 203.0.113.0/24 or 2001:db8:10::/48")
	case prefix != prefix.Masked():
		return netip.Prefix{}, fmt.Errorf("has bits beyond its length: write %v", prefix.Masked())
	case prefix.IsSingleIP():
		return netip.Prefix{}, errors.New("is a single address, which is announced as a VIP: give a prefix around VIPs")
	}
	vip, err := parsePrefixVIP(v)
	return vip.Prefix, err
}
