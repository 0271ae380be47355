package xdp

import (
	"fmt"
	"slices"
	"strings"
)

// Verdict is how a packet ended.
type Verdict uint32

// The verdicts there are. A packet is dropped only once it is known to be for
// a VIP; what passes goes to the kernel byte for byte as it came.
const (
	Forwarded = Verdict(bpfVerdictVERDICT_FORWARDED)

	AnsweredEcho   = Verdict(bpfVerdictVERDICT_ANSWERED_ECHO)    // an echo request for a VIP: its reply is sent
	AnsweredTooBig = Verdict(bpfVerdictVERDICT_ANSWERED_TOO_BIG) // does not fit the way to the backend: its sender is told by ICMP

	OtherMAC      = Verdict(bpfVerdictVERDICT_PASS_OTHER_MAC)      // passed: flooded, broadcast or multicast
	NotIP         = Verdict(bpfVerdictVERDICT_PASS_NOT_IP)         // passed
	VLAN          = Verdict(bpfVerdictVERDICT_PASS_VLAN)           // passed: more than two tags
	Malformed     = Verdict(bpfVerdictVERDICT_PASS_MALFORMED)      // passed: headers cut short or lengths that lie
	OtherProtocol = Verdict(bpfVerdictVERDICT_PASS_OTHER_PROTOCOL) // passed: neither ports nor an ICMP echo request or error
	NotVIP        = Verdict(bpfVerdictVERDICT_PASS_NOT_VIP)        // passed: no service has this address, protocol and port

	Denied        = Verdict(bpfVerdictVERDICT_DROP_DENIED)        // dropped: its source is on the deny list
	Limited       = Verdict(bpfVerdictVERDICT_DROP_LIMITED)       // dropped: its source sends more than the service allows
	Fragment      = Verdict(bpfVerdictVERDICT_DROP_FRAGMENT)      // dropped: a fragment whose ports are not known
	IPv6Extension = Verdict(bpfVerdictVERDICT_DROP_IPV6EXTENSION) // dropped: an extension header that is not walked hides the ports
	TTLExpired    = Verdict(bpfVerdictVERDICT_DROP_TTL_EXPIRED)   // dropped: TTL or hop limit of 1 or 0
	NoBackend     = Verdict(bpfVerdictVERDICT_DROP_NO_BACKEND)    // dropped: the service's table is empty
	NoNeighbour   = Verdict(bpfVerdictVERDICT_DROP_NO_NEIGHBOUR)  // dropped: no MAC address known for the next hop
	TooBig        = Verdict(bpfVerdictVERDICT_DROP_TOO_BIG)       // dropped: does not fit the way to the backend, and its sender is not told
	NoRoom        = Verdict(bpfVerdictVERDICT_DROP_NO_ROOM)       // dropped: the driver left no room for an outer header
	ICMPMismatch  = Verdict(bpfVerdictVERDICT_DROP_ICMP_MISMATCH) // dropped: an ICMP error about a packet that the VIP did not send
	ICMPFragment  = Verdict(bpfVerdictVERDICT_DROP_ICMP_FRAGMENT) // dropped: an ICMP error about a later fragment
	ICMPLimited   = Verdict(bpfVerdictVERDICT_DROP_ICMP_LIMITED)  // dropped: more ICMP errors than a service gets
	EchoLimited   = Verdict(bpfVerdictVERDICT_DROP_ECHO_LIMITED)  // dropped: more pings than a VIP answers
)

// verdictNames are the verdicts as metrics and people know them.
var verdictNames = [...]string{
	Forwarded:      "forwarded",
	AnsweredEcho:   "answered_echo",
	AnsweredTooBig: "answered_too_big",
	OtherMAC:       "other_mac",
	NotIP:          "not_ip",
	VLAN:           "vlan",
	Malformed:      "malformed",
	OtherProtocol:  "other_protocol",
	NotVIP:         "not_vip",
	Denied:         "denied",
	Limited:        "limited",
	Fragment:       "fragment",
	IPv6Extension:  "ipv6_extension",
	TTLExpired:     "ttl_expired",
	NoBackend:      "no_backend",
	NoNeighbour:    "no_neighbour",
	TooBig:         "too_big",
	NoRoom:         "no_room",
	ICMPMismatch:   "icmp_mismatch",
	ICMPFragment:   "icmp_fragment",
	ICMPLimited:    "icmp_limited",
	EchoLimited:    "echo_limited",
}

var _ [len(verdictNames)]struct{} = [bpfVerdictVERDICT_MAX]struct{}{} // one name per verdict

// ParseVerdict is the verdict of that name.
func ParseVerdict(name string) (Verdict, error) {
	i := slices.Index(verdictNames[:], name)
	if i < 0 {
		return 0, fmt.Errorf("verdict %q is unknown: use one of %s", name, strings.Join(verdictNames[:], ", "))
	}
	return Verdict(i), nil
}

// VerdictNames lists what ParseVerdict takes.
func VerdictNames() []string { return slices.Clone(verdictNames[:]) }

// Drops are the verdicts by which packets for a VIP are dropped.
func Drops() []Verdict {
	var drops []Verdict
	for v := Verdict(bpfVerdictVERDICT_FIRST_DROP); int(v) < len(verdictNames); v++ {
		drops = append(drops, v)
	}
	return drops
}

// Verdicts are all that there are, in the order in which they are told.
func Verdicts() []Verdict {
	all := make([]Verdict, len(verdictNames))
	for v := range all {
		all[v] = Verdict(v)
	}
	return all
}

// Fate is what became of the packet, in a word.
func (v Verdict) Fate() string {
	switch {
	case v == Forwarded:
		return "forwarded"
	case v < OtherMAC:
		return "answered"
	case v < Verdict(bpfVerdictVERDICT_FIRST_DROP):
		return "passed"
	}
	return "dropped"
}

// mayChange says whether a frame may be another after the verdict than it was
// before: what passes is not touched, nor what is dropped, but where making
// room failed midway.
func (v Verdict) mayChange() bool {
	return v < OtherMAC || v == NoRoom || v == TooBig
}

func (v Verdict) String() string {
	if int(v) < len(verdictNames) {
		return verdictNames[v]
	}
	return fmt.Sprintf("verdict-%d", uint32(v))
}
