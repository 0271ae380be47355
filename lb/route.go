package lb

import (
	"net/netip"
	"slices"
)

// Attributes are what routes bear besides their next hop (RFC 4271, section 5).
type Attributes struct {
	Communities []Community
	MED         *uint32 // nil: none
	LocalPref   *uint32 // told to peers of the same AS alone; nil: BGP's own 100
	Prepend     int     // times that the AS path has our AS once more; for peers of other ASes alone
}

// Equal tells whether a and b are the same on the wire.
func (a Attributes) Equal(b Attributes) bool {
	same := func(a, b *uint32) bool { return (a == nil) == (b == nil) && (a == nil || *a == *b) }
	return slices.Equal(a.Communities, b.Communities) && same(a.MED, b.MED) && same(a.LocalPref, b.LocalPref) && a.Prepend == b.Prepend
}

// Announcement is how routers are told of a service's VIPs.
type Announcement struct {
	Attributes
	// Peers are those that are told; none: all.
	Peers []netip.Addr
}

// Equal tells whether a and b come to the same.
func (a Announcement) Equal(b Announcement) bool {
	return a.Attributes.Equal(b.Attributes) && slices.Equal(a.Peers, b.Peers)
}

// Aggregate is a prefix that is announced while a VIP in it is.
type Aggregate struct {
	Prefix netip.Prefix
	Announcement
	// Alone are those of the peers that are told of it and not of the VIPs in it.
	Alone []netip.Addr
}

// Route is a VIP, or an aggregate, with how routers are told of it.
type Route struct {
	Prefix netip.Prefix
	Announcement
	Aggregate bool
	// Suppressed are the peers that an aggregate around it is told in its place.
	Suppressed []netip.Addr
	// Shutdown asks them to use other routes first, as this one will be withdrawn
	// (GRACEFUL_SHUTDOWN, RFC 8326).
	Shutdown bool
}

// Equal tells whether r and o come to the same.
func (r Route) Equal(o Route) bool {
	return r.Prefix == o.Prefix && r.Shutdown == o.Shutdown && r.Aggregate == o.Aggregate &&
		slices.Equal(r.Suppressed, o.Suppressed) && r.Announcement.Equal(o.Announcement)
}

// IsAround tells whether r is an aggregate that a prefix lies in.
func (r Route) IsAround(prefix netip.Prefix) bool { return r.Aggregate && r.Prefix.Overlaps(prefix) }

// IsFor tells whether a peer is to be told of r.
func (r Route) IsFor(peer netip.Addr) bool {
	return (len(r.Peers) == 0 || slices.Contains(r.Peers, peer)) && !slices.Contains(r.Suppressed, peer)
}

// KernelProtocol marks the routes (RTA_PROTOCOL) and neighbours (NDA_PROTOCOL) that nodes
// put into the kernel: those of a process that crashed are known again. 176 is nobody's in
// iproute2's rt_protos or FRR.
const KernelProtocol = 176
