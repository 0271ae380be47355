package lb

import (
	"cmp"
	"fmt"
	"net/netip"
	"time"
)

// Protocol is an IANA protocol number as it stands in the IP header.
type Protocol uint8

// The protocols a service can be reached by.
const (
	TCP     Protocol = 6
	UDP     Protocol = 17
	SCTP    Protocol = 132
	UDPLite Protocol = 136
)

func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	case UDPLite:
		return "udplite"
	}
	return fmt.Sprintf("protocol-%d", uint8(p))
}

// Port is a transport protocol and a destination port of it, written tcp/80, or
// a range of ports, written tcp/1000-2000; tcp/* is all of them.
type Port struct {
	Protocol Protocol
	Number   uint16
	Last     uint16 // of a range that begins with Number; 0: a single port
}

func (p Port) String() string {
	switch {
	case p.Last == 0:
		return fmt.Sprintf("%s/%d", p.Protocol, p.Number)
	case p.Number == 1 && p.Last == 1<<16-1:
		return fmt.Sprintf("%s/*", p.Protocol)
	}
	return fmt.Sprintf("%s/%d-%d", p.Protocol, p.Number, p.Last)
}

// Clashes tells whether some packet could be for either of p and o: a single
// port within a range does not clash, it takes precedence.
func (p Port) Clashes(o Port) bool {
	if p.Protocol != o.Protocol || (p.Last == 0) != (o.Last == 0) {
		return false
	}
	return p.Number <= max(o.Number, o.Last) && o.Number <= max(p.Number, p.Last)
}

// Forward is the way a packet reaches its backend. The packet's own source and
// destination addresses stay as the client sent them in every one.
type Forward uint8

const (
	// L2 rewrites the MAC addresses and lowers the TTL: the backend shares a link
	// with the node.
	L2 Forward = iota
	// IPIP puts an outer IPv4 or IPv6 header before the packet (RFC 2003,
	// RFC 4213, RFC 2473): the backend may be any number of hops away.
	IPIP
	// GRE puts a GRE header without options between the outer header and the
	// packet (RFC 2784).
	GRE
	// GUE puts UDP and a GUE header there (draft-ietf-intarea-gue), for networks
	// that spread load by UDP ports.
	GUE
)

func (f Forward) String() string {
	switch f {
	case L2:
		return "l2"
	case IPIP:
		return "ipip"
	case GRE:
		return "gre"
	case GUE:
		return "gue"
	}
	return fmt.Sprintf("forward-%d", uint8(f))
}

// Overhead is how many bytes it makes a packet longer on its way to a backend at
// address: the outer headers of xdp/bpf/encap.h.
func (f Forward) Overhead(address netip.Addr) int {
	const gre, udp, gue = 4, 8, 4
	outer := 20
	if address.Is6() {
		outer = 40
	}
	switch f {
	case IPIP:
		return outer
	case GRE:
		return outer + gre
	case GUE:
		return outer + udp + gue
	}
	return 0
}

// DefaultGUEPort is the UDP port that IANA gave to GUE.
const DefaultGUEPort = 6080

// Service is a name for a set of VIPs and ports whose traffic is spread over a
// set of backends. Service names are unique in a configuration.
type Service struct {
	Name    string
	VIPs    []VIP
	Ports   []Port
	Hash    HashFields // none: HashFlow
	Limit   Limit
	Forward Forward
	// GUEPort is the UDP port that backends take GUE at. Of Forward GUE alone.
	GUEPort uint16
	// GUEChecksum has the UDP checksum computed, which is zero else.
	GUEChecksum bool
	// OuterSources are where the source address of the outer header is from, at
	// most one prefix of each family: it varies with the flow, so that NICs and
	// routers spread load. Without one of its family it is the node's address.
	OuterSources []netip.Prefix
	QUIC         QUIC      // of the UDP ports
	Backends     []Backend // names are unique, the order does not matter
	Tracking     Tracking
	FlowLifetime time.Duration // none: DefaultFlowLifetime
	Check        Check
	// Observers is how many members check each backend; 0: all of them.
	Observers int

	// MinHealthy is how many backends must be up for the VIPs to be announced, and
	// Announce how they are.
	MinHealthy Quorum
	Announce   Announcement
	// PanicBelow is the share of healthy backends, in percent, under which
	// health is ignored and all backends are used. 0 never does.
	PanicBelow int
	// UseAll has all backends used, and the VIPs announced, when none is healthy. Else
	// the VIPs are withdrawn.
	UseAll bool
}

// HashFields are those that choose the backend.
func (s Service) HashFields() HashFields { return cmp.Or(s.Hash, HashFlow) }

// Limit is how many packets each source may send on each node. The zero value is no
// limit.
type Limit struct {
	Packets          int // a second on average
	Burst            int // at once
	Prefix4, Prefix6 int // lengths of the prefixes that count as one source
}

// Backend is a server that owns the service's VIPs on its loopback.
type Backend struct {
	Name    string
	Address netip.Addr
	Weight  int // share of new flows relative to its fellows; 0 gets none
	// ServerID is in the connection IDs that the backend chooses. Of a service
	// with QUIC alone, and unique in it.
	ServerID ServerID
}

// MaxWeight is a hundred times the usual weight of 100: in a table of 16,381 slots the
// lightest backend still has one beside the heaviest.
const MaxWeight = 10_000

// MaxBackends is how many a service can have: the data plane numbers them in 14 bits.
const MaxBackends = 1 << 14

// Quorum is a number of backends, or a share of all of a service's in percent.
type Quorum struct {
	Value   int
	Percent bool
}

// Of gives the number of backends out of n that q asks for, a share rounded up.
func (q Quorum) Of(n int) int {
	if !q.Percent {
		return q.Value
	}
	return (n*q.Value + 99) / 100
}

func (q Quorum) String() string {
	if q.Percent {
		return fmt.Sprintf("%d%%", q.Value)
	}
	return fmt.Sprint(q.Value)
}

// State is what the cluster holds of a backend.
type State uint8

const (
	// Unknown is a backend that not enough observers have judged yet.
	Unknown State = iota
	// Up is a backend that most observers find up.
	Up
	// Down is a backend that most observers find down.
	Down
	// Draining gets no new flows; its old ones live on.
	Draining
	// Drained gets no flows and holds none.
	Drained
)

// Aside tells whether a backend in this state is kept from new flows on purpose.
func (s State) Aside() bool { return s == Draining || s == Drained }

func (s State) String() string {
	switch s {
	case Unknown:
		return "unknown"
	case Up:
		return "up"
	case Down:
		return "down"
	case Draining:
		return "draining"
	case Drained:
		return "drained"
	}
	return fmt.Sprintf("state-%d", uint8(s))
}
