package doctor

import (
	"net/netip"

	"github.com/halfproxy/halfproxy/lb"
)

// host is all that is known of this host.
type host struct {
	release      string // of the kernel, as uname has it
	major, minor int
	root         bool
	capabilities uint64 // effective, a bit each
	memlock      uint64 // the soft limit in bytes
	cpus         int
	pageSize     int

	links     []link
	ways      []way // to every backend, in the order of the configuration
	vips      []vip
	listeners []listener
	names     []name
	peers     []peer

	noBPFFS bool // that Pins could be in

	addresses []address // that this host has
	others    []string  // the names of all its Ethernet interfaces

	exits4, exits6 []string // interfaces that the default routes leave by

	unknown []string // what could not be found out, and why
}

// atLeast compares the kernel's version.
func (h host) atLeast(major, minor int) bool {
	return h.major > major || h.major == major && h.minor >= minor
}

// cut names the interfaces that carry nothing. While there are some, a missing
// route, a silent router or neighbour is most likely their doing.
func (h host) cut() []string {
	var names []string
	for _, l := range h.links {
		if l.ethernet && !l.carrier {
			names = append(names, l.name)
		}
	}
	return names
}

// address is one of this host's.
type address struct {
	netip.Prefix
	link string
}

// link is an interface of the configuration.
type link struct {
	name     string
	exists   bool
	up       bool // as the administrator wants it
	carrier  bool
	ethernet bool
	mtu      int
	driver   string
	native   answer // that the driver takes a native program
	scatters answer // that it gives native programs frames of several buffers
	gathers  answer // that it sends such frames of other interfaces' programs
	program  *program

	lro, gro, groHW bool

	channel           string // the kind of queue that receives: combined or rx
	queues, maxQueues int    // of channel; 0: the driver does not say

	rpFilter int // IPv4's reverse path filter, that counts: 0 none, 1 strict, 2 loose

	far *farEnd // of a veth; nil: none, or not found
}

// answer is one that the kernel may owe us.
type answer uint8

const (
	unknown answer = iota
	yes
	no
)

// program is one at an interface's XDP hook.
type program struct {
	id   uint32
	name string // empty: not known
	mode string // native, generic or offload
	link uint32 // the bpf_link that holds it; 0: none, or not known
	node string // the directory of the node that has pinned that; empty: it is no node's
	runs bool   // that node has a process
}

// farEnd is the other end of a veth.
type farEnd struct {
	name     string
	enter    string // what a command is to be preceded by to run where the far end is
	up       bool
	mtu      int
	program  bool
	checksum bool // it leaves checksums to be filled in by the hardware that it has not
	segments bool // it leaves segments to be cut by it
}

// way is how packets reach a backend.
type way struct {
	service string
	backend string
	forward lb.Forward
	address netip.Addr
	ipv4    bool // a VIP of the service is
	ipv6    bool

	noRoute string // why there is none; empty: there is one
	local   bool   // the address is this host's own
	hop     hop    // the backend itself or a gateway
	onLink  bool   // it is the backend itself

	mtu      int  // of the way
	linkMTU  int  // of the interface that it leaves by
	routeMTU bool // the route has one of its own; else a router on the way has said so

	ethernet bool // that interface is
}

// hop is a neighbour on a link.
type hop struct {
	address netip.Addr
	link    string
	silent  bool // it does not tell its link-layer address
}

// vip is what this host's own routes say of a VIP.
type vip struct {
	lb.VIP
	local string // a local route that takes it in, as `ip route` shows it
	on    []address
	route string // a route for it alone that is no blackhole, as `ip route` shows it
}

// listener is a port that the node is to listen at.
type listener struct {
	option  string // http.listen or cluster.listen
	network string // tcp or udp
	at      netip.AddrPort
	here    bool // the address is this host's
	taken   bool
	owner   owner // by whom
	err     error // why else it cannot be had
}

// owner is who has a port. Nothing is known where pid is 0.
type owner struct {
	pid  int
	name string
	unit string // of systemd
}

// name is a DNS name of cluster.join.
type name struct {
	name string
	err  error // that it does not resolve
}

// peer is a router.
type peer struct {
	address netip.Addr
	outcome outcome
	source  netip.Addr // that we speak to it from, where known
}

// outcome is what came of a connection to a router's BGP port.
type outcome uint8

const (
	answered outcome = iota
	refused
	silent
	unreachable // by our own routes
)
