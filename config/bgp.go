package config

import (
	"net/netip"
	"slices"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

func (c *checker) bgp(s bgpSection) BGP {
	if s.state != given {
		return BGP{}
	}
	var bgp BGP
	bgp.ASN, _ = need(c.report, s.ASN, "give the number of this node's own autonomous system", parseASN)
	bgp.RouterID, _ = need(c.report, s.RouterID, "write an IPv4 address, unique among the routers", parseRouterID)
	bgp.Listen, _ = want(c.report, s.Listen, netip.AddrPort{}, parseListen)
	if bgp.Listen.IsValid() && !bgp.Listen.Addr().IsUnspecified() {
		c.belongs(bgp.Listen.Addr(), "bgp.listen")
	}
	bgp.Communities, _ = entries(c.report, s.Communities, parseCommunity)

	bgp.GracefulRestart, _ = want(c.report, s.GracefulRestart, 30*time.Second, wholeSeconds(0, 4095*time.Second)) // 12 bits
	bgp.HoldUp, _ = want(c.report, s.HoldUp, time.Second, lasting(0, time.Minute))
	bgp.GracefulShutdown, _ = want(c.report, s.GracefulShutdown, 2*time.Second, lasting(0, 10*time.Minute))

	some(c.report, s.Peers, "list the routers, or leave bgp out to announce nothing")
	first := map[netip.Addr]place{}
	for _, entry := range s.Peers.items {
		peer := c.peer(entry, bgp.ASN)
		if peer.Address.IsValid() {
			once(c.report, first, peer.Address, entry.Address, "remove one of them, there is one session an address")
			c.belongs(peer.Address, "a peer in bgp.peers")
		}
		if peer.Passive && s.Listen.state == absent {
			c.at(entry.Passive.place, "is of no use while nothing listens: give bgp.listen, such as %q", "10.0.1.1:179")
		}
		all := netip.IPv6Unspecified() // of both families
		if l := bgp.Listen.Addr(); peer.Passive && l.IsValid() && l != all && peer.Address.IsValid() && l.Is4() != peer.Address.Is4() {
			c.at(entry.Passive.place, "is of no use to a router of the other family than bgp.listen %q: listen at %q, which is for both", bgp.Listen, netip.AddrPortFrom(all, bgp.Listen.Port()))
		}
		bgp.Peers = append(bgp.Peers, peer)
	}
	return bgp
}

func (c *checker) peer(s peerEntry, own uint32) Peer {
	var peer Peer
	peer.Address, _ = need(c.report, s.Address, "give that of the router", parseAddress)
	peer.ASN, _ = need(c.report, s.ASN, "give the number of the router's autonomous system", parseASN)
	inside := peer.ASN == own && own != 0
	c.timers(s, &peer)
	if path, ok := want(c.report, s.PasswordFile, "", parseText); ok && path != "" {
		peer.Password = c.password(s.PasswordFile, path, 80, "TCP MD5") // TCP_MD5SIG_MAXKEYLEN in linux/tcp.h
	}
	peer.TTLSecurity, _ = want(c.report, s.TTLSecurity, false, parseBool)
	peer.Multihop, _ = want(c.report, s.Multihop, 0, between(2, 255))
	switch {
	case peer.Multihop == 0:
	case peer.TTLSecurity:
		c.at(s.Multihop.place, "%s and ttl_security exclude each other: that takes packets of a neighbour alone, remove one of them", s.Multihop)
	case inside:
		c.at(s.Multihop.place, "%s is of no use to a router of the same AS, which may be any number of hops away: remove it", s.Multihop)
	}
	peer.LocalAddress, _ = want(c.report, s.LocalAddress, netip.Addr{}, parseAddress)
	if l := peer.LocalAddress; l.IsValid() && peer.Address.IsValid() && l.Is4() != peer.Address.Is4() {
		c.at(s.LocalAddress.place, "%s is of another family than the router's address: give one of the same, or none", s.LocalAddress)
	}
	c.belongs(peer.LocalAddress, "this node in bgp.peers")
	peer.Passive, _ = want(c.report, s.Passive, false, parseBool)
	c.families(s, &peer)
	peer.PrefixLimit, _ = want(c.report, s.PrefixLimit, 1000, between(1, 1<<32-1))
	if s.BFD.state == given {
		peer.BFD = c.bfd(s.BFD, peer.Multihop != 0)
	}

	peer.Attributes = c.attributes(s.Communities, s.MED, s.LocalPreference, s.Prepend, 1)
	if peer.ASN != 0 && own != 0 && !inside && s.LocalPreference.state == given {
		c.at(s.LocalPreference.place, "%s is of no use to a router of another AS, which is never told it: remove it, or use med or prepend", s.LocalPreference)
	}
	if inside && s.Prepend.state == given {
		c.at(s.Prepend.place, "%s is of no use to a router of the same AS, which would take the path for a loop: remove it, or use local_preference", s.Prepend)
	}
	return peer
}

func (c *checker) bfd(s bfdSection, far bool) BFD {
	var bfd BFD
	bfd.Interval, _ = want(c.report, s.Interval, 300*time.Millisecond, lasting(10*time.Millisecond, time.Minute))
	bfd.Multiplier, _ = want(c.report, s.Multiplier, 3, between(1, 255))
	multihop, ok := want(c.report, s.Multihop, far, parseBool)
	if bfd.Multihop = multihop; ok && far && !multihop {
		c.at(s.Multihop.place, "false is for a neighbour, and the peer's own multihop says that the router is none: remove one of them")
	}
	bfd.MinTTL, _ = want(c.report, s.MinimumTTL, 0, between(1, 255))
	if ok && !multihop && s.MinimumTTL.state == given {
		c.at(s.MinimumTTL.place, "%s is of no use to a neighbour's session, whose packets arrive with 255: remove it, or set multihop: true", s.MinimumTTL)
	}
	if s.PasswordFile.state == absent {
		if s.KeyID.state == given {
			c.at(s.KeyID.place, "%s is of no use without password_file: remove it, or add that", s.KeyID)
		}
		return bfd
	}
	bfd.KeyID, _ = want(c.report, s.KeyID, 1, between(0, 255))
	if path, ok := want(c.report, s.PasswordFile, "", parseText); ok && path != "" {
		bfd.Password = c.password(s.PasswordFile, path, 20, "SHA1 in BFD") // RFC 5880, 4.4
	}
	return bfd
}

func (c *checker) timers(s peerEntry, peer *Peer) {
	hold, ok := want(c.report, s.HoldTime, 9*time.Second, parseHoldTime)
	peer.HoldTime = hold
	keepalive, timed := want(c.report, s.KeepaliveTime, max(hold/3, time.Second).Truncate(time.Second), wholeSeconds(time.Second, maxHoldTime))
	if ok && timed && keepalive > max(hold/3, time.Second) {
		c.at(s.KeepaliveTime.place, "%s is longer than a third of hold_time %v: one lost packet could end the session, give at most %v", s.KeepaliveTime, hold, (hold / 3).Truncate(time.Second))
	}
	peer.KeepaliveTime = keepalive
	peer.ConnectRetryTime, _ = want(c.report, s.ConnectRetryTime, time.Second, wholeSeconds(time.Second, time.Hour))
}

// families reads which VIPs go to the peer, and with which next hops.
func (c *checker) families(s peerEntry, peer *Peer) {
	families, _ := entries(c.report, s.Families, oneOf("ipv4", "ipv6"))
	if s.Families.state == given {
		some(c.report, s.Families, "name those of the VIPs that the router is to be told of, or leave it out")
	}
	all := s.Families.state == absent
	if all {
		c.note(s.Families.place, note{value: "[ipv4, ipv6]", silent: true})
	}
	peer.IPv4, peer.IPv6 = all || slices.Contains(families, "ipv4"), all || slices.Contains(families, "ipv6")

	hops, places := entries(c.report, s.NextHops, parseAddress)
	for i, hop := range hops {
		target := &peer.NextHop6
		if hop.Is4() {
			target = &peer.NextHop4
		}
		if target.IsValid() {
			c.at(places[i], "%q is the second one of its family: give one of each at most", hop)
			continue
		}
		*target = hop
		c.belongs(hop, "this node in next_hops")
	}
	peer.ExtendedNextHop, _ = want(c.report, s.ExtendedNextHop, false, parseBool)
	if peer.ExtendedNextHop && !peer.IPv4 {
		c.at(s.ExtendedNextHop.place, "is of no use without ipv4 in families: remove one of them")
	}
	if peer.ExtendedNextHop && peer.NextHop4.IsValid() {
		c.at(s.ExtendedNextHop.place, "gives IPv4 VIPs an IPv6 next hop, so that %q in next_hops is of no use: remove one of them", peer.NextHop4)
	}
}

// attributes reads those of a peer or a service.
func (c *checker) attributes(communities list[value], med, localPreference, prepend value, leastPreference int64) lb.Attributes {
	var a lb.Attributes
	number := func(v value, least int64) *uint32 {
		if v.state == absent {
			return nil
		}
		n, ok := want(c.report, v, 0, between(least, 1<<32-1))
		if !ok {
			return nil
		}
		n32 := uint32(n)
		return &n32
	}
	a.Communities, _ = entries(c.report, communities, parseCommunity)
	a.MED = number(med, 0)
	a.LocalPref = number(localPreference, leastPreference)
	if prepend.state != absent { // an iBGP peer, and a node without BGP, cannot have the default either
		a.Prepend, _ = want(c.report, prepend, 0, between(0, 10))
	}
	return a
}

// announcements reads how routers are told of the services' VIPs, and checks what
// no service sees alone: a VIP is announced in one way.
func (c *checker) announcements(f *file, cfg *Config) {
	type teller struct {
		announcement lb.Announcement
		service      string
		at           place
	}
	first := map[lb.VIP]teller{}
	for i, entry := range f.Services.items {
		s, service := entry.Announce, &cfg.Services[i]
		if f.BGP.state == absent {
			c.attributes(s.Communities, s.MED, s.LocalPreference, s.Prepend, 0)
			c.unannounced(s)
			continue
		}
		service.Announce = c.announcement(s.Peers, s.Communities, s.MED, s.LocalPreference, s.Prepend, cfg.BGP)
		for _, vip := range service.VIPs {
			teller := teller{service.Announce, service.Name, entry.Announce.place}
			other, shared := first[vip]
			if !shared {
				first[vip] = teller
			} else if !other.announcement.Equal(service.Announce) {
				c.at(s.place, "announces %q in another way than service %q, %s: it is one route, give both the same peers, communities, med, local_preference and prepend", vip, other.service, other.at.seen(s.place))
				break
			}
		}
	}
}

// unannounced refuses what has no sense on a node that announces nothing.
func (c *checker) unannounced(s announceSection) {
	for _, p := range []place{s.Peers.place, s.Communities.place, s.MED.place, s.LocalPreference.place, s.Prepend.place} {
		if p.state == given {
			c.at(p, "is of no use without a bgp section: remove it, or add that")
		}
	}
}

// announcement reads how routers are told of a service's VIPs or an aggregate.
func (c *checker) announcement(peers, communities list[value], med, localPreference, prepend value, bgp BGP) lb.Announcement {
	own := c.attributes(communities, med, localPreference, prepend, 0)
	inside := func(p Peer) bool { return p.ASN == bgp.ASN }
	outside := func(p Peer) bool { return p.ASN != bgp.ASN }
	if localPreference.state == given && !slices.ContainsFunc(bgp.Peers, inside) {
		c.at(localPreference.place, "%s is of no use, no peer is of the AS %d, and others are never told it: remove it, or use med or prepend", localPreference, bgp.ASN)
	}
	if prepend.state == given && !slices.ContainsFunc(bgp.Peers, outside) {
		c.at(prepend.place, "%s is of no use, all peers are of the AS %d and would take the path for a loop: remove it, or use local_preference", prepend, bgp.ASN)
	}
	own.Communities = slices.Concat(bgp.Communities, slices.DeleteFunc(own.Communities, func(o lb.Community) bool { return slices.Contains(bgp.Communities, o) }))
	return lb.Announcement{Attributes: own, Peers: c.told(peers, bgp.Peers)}
}

// told reads which peers are told of something.
func (c *checker) told(l list[value], peers []Peer) []netip.Addr {
	if l.state == given {
		some(c.report, l, "list the routers that are told, or leave it out for all")
	}
	told, places := entries(c.report, l, parseAddress)
	for i, t := range told {
		c.isPeer(places[i], t, peers)
	}
	slices.SortFunc(told, netip.Addr.Compare)
	return told
}

func (c *checker) isPeer(at place, address netip.Addr, peers []Peer) {
	if !slices.ContainsFunc(peers, func(p Peer) bool { return p.Address == address }) {
		c.at(at, "%q is none of the addresses in bgp.peers: list it there, or remove it here", address)
	}
}
