package bgp

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"reflect"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/halfproxy/halfproxy/lb"
)

// Config is what a Speaker needs to know.
//
// The next hop of a VIP is this node's address on the session, which is right
// on every network that the session is on. It cannot be that where the
// families differ: GoBGP would send an IPv4-mapped IPv6 address (::ffff:a.b.c.d)
// for an IPv6 VIP on a session over IPv4, with which FRR keeps the whole ECMP
// route out of the kernel, the healthy nodes' paths included. NextHops say what to
// send there; without them such VIPs are not announced on such sessions.
type Config struct {
	ASN      uint32
	RouterID netip.Addr // IPv4
	// Listen is where the sessions that peers open are taken; unset: nowhere. [::] is all
	// addresses of both families, any other one is of its own.
	Listen   netip.AddrPort
	Peers    []Peer
	NextHops NextHops // on sessions over the other family

	// RestartTime is how long routers keep our routes when the sessions end without a
	// word, as they do in a crash or when Leave was called (graceful restart, RFC
	// 4724); 0: not at all. It is for those whose packets are forwarded on meanwhile.
	// What we end with a NOTIFICATION ends there and then: of RFC 8538, by which that
	// would be no end either, we want nothing, as a node that stops must not be asked
	// for packets any more, nor one that is dead for longer than the hold time.
	RestartTime time.Duration

	// Held are peers with whom there is to be no session for a while after Run began.
	Held map[netip.Addr]Hold
	// Up, if there is one, is called with a peer whose session has come up, before
	// anything is read in it: what a peer sends may be the end of the process, which
	// nobody could tell afterwards. It must not call the Speaker.
	Up func(peer netip.Addr)

	Log        *slog.Logger          // nil logs nothing
	Registerer prometheus.Registerer // nil registers nothing
}

// Hold is for how long there is to be no session, and why, for the status.
type Hold struct {
	For    time.Duration
	Reason string
}

// NextHops are one address of each family, or none.
type NextHops struct{ V4, V6 netip.Addr }

// Peer is a router that announcements go to.
type Peer struct {
	Address netip.Addr
	ASN     uint32 // equal to our own for iBGP

	// HoldTime is proposed; the lower of the two sides' counts.
	HoldTime         time.Duration
	KeepaliveTime    time.Duration // 0, or more than a third of the hold time that is agreed on: that
	ConnectRetryTime time.Duration // 0: a second

	Password string // TCP MD5 (RFC 2385); empty for none
	// TTLSecurity takes and sends packets of TTL 255 only (RFC 5082). The
	// router needs the same setting: with one side alone the session does not
	// come up, or flaps with the hold time.
	TTLSecurity bool
	// Multihop is the TTL of what is sent to a peer of another AS; 0: it is a
	// neighbour, the TTL is 1.
	Multihop     int
	LocalAddress netip.Addr // of the session; unset: the kernel's choice
	Passive      bool       // the peer opens the session, Config.Listen takes it

	No4, No6 bool // VIPs of the family do not go to it
	// NextHops go before the session's own address, and before Config's.
	NextHops NextHops
	// ExtendedNextHop gives IPv4 VIPs the next hop of IPv6 VIPs (RFC 8950).
	ExtendedNextHop bool

	// PrefixLimit is how many prefixes of a family it may send; 0: any number. None of
	// them is used, but GoBGP keeps them all, at some 400 bytes each. A peer that sends
	// more has its session closed, and is tried again after a minute.
	PrefixLimit int

	// Attributes are put on all that it is sent: its communities and prepends go
	// with those of the routes, its MED and LocalPref in the place of theirs.
	Attributes lb.Attributes
}

// sameSession tells whether what differs between p and q takes no new session.
func (p Peer) sameSession(q Peer) bool {
	p.Attributes, q.Attributes = lb.Attributes{}, lb.Attributes{}
	p.NextHops, q.NextHops = NextHops{}, NextHops{}
	p.PrefixLimit, q.PrefixLimit = 0, 0
	return reflect.DeepEqual(p, q)
}

const (
	minHoldTime = 3 * time.Second // RFC 4271, section 4.2
	maxHoldTime = math.MaxUint16 * time.Second
	maxPassword = 80 // TCP_MD5SIG_MAXKEYLEN, linux/tcp.h
	maxPrepend  = 10

	maxRestartTime = 4095 * time.Second // 12 bits
)

// Validate gives every error of c, joined.
func (c Config) Validate() error {
	errs := []error{checkRouter(c.ASN, c.RouterID)}
	if t := c.RestartTime; t < 0 || t > maxRestartTime || t%time.Second != 0 {
		errs = append(errs, fmt.Errorf("restart time %v must be whole seconds, at most %v (RFC 4724)", t, maxRestartTime))
	}
	errs = append(errs, c.NextHops.validate(), c.checkPeers(c.Peers))
	return errors.Join(errs...)
}

func (n NextHops) validate() error {
	var errs []error
	if n.V6.IsValid() && (!n.V6.Is6() || n.V6.Is4In6() || !isUnicast(n.V6)) {
		errs = append(errs, fmt.Errorf("next hop %v for IPv6: must be an IPv6 address of this node that the routers can reach", n.V6))
	}
	if n.V4.IsValid() && (!n.V4.Is4() || !isUnicast(n.V4)) {
		errs = append(errs, fmt.Errorf("next hop %v for IPv4: must be an IPv4 address of this node that the routers can reach", n.V4))
	}
	return errors.Join(errs...)
}

func checkAttributes(a lb.Attributes) error {
	var errs []error
	for i, c := range a.Communities {
		if !c.Large && (c.A > math.MaxUint16 || c.B > math.MaxUint16) {
			errs = append(errs, fmt.Errorf("communities[%d] %v: a standard community has 16 bits a part: use a large one (a:b:c)", i, c))
		}
		if c.Large && c.A == markASN {
			errs = append(errs, fmt.Errorf("communities[%d] %v: AS %d is reserved (RFC 7300): use another", i, c, uint32(markASN)))
		}
	}
	if a.Prepend < 0 || a.Prepend > maxPrepend {
		errs = append(errs, fmt.Errorf("prepend %d: must be from 0 to %d", a.Prepend, maxPrepend))
	}
	return errors.Join(errs...)
}

func checkRouter(asn uint32, id netip.Addr) error {
	var errs []error
	if asn == 0 {
		errs = append(errs, errors.New("asn must not be 0 (RFC 7607): set this node's own AS number"))
	}
	if !id.Is4() || id.IsUnspecified() {
		errs = append(errs, fmt.Errorf("router id %q must be an IPv4 address: take one of this node's", text(id)))
	}
	return errors.Join(errs...)
}

func (c Config) checkPeers(peers []Peer) error {
	errs := []error{checkPeers(peers)}
	for i, p := range peers {
		if err := c.fits(p); err != nil {
			errs = append(errs, fmt.Errorf("peers[%d] %q: %w", i, text(p.Address), err))
		}
	}
	return errors.Join(errs...)
}

func checkPeers(peers []Peer) error {
	var errs []error
	seen := make(map[netip.Addr]bool)
	for i, p := range peers {
		if err := errors.Join(p.validate(), p.NextHops.validate(), checkAttributes(p.Attributes)); err != nil {
			errs = append(errs, fmt.Errorf("peers[%d] %q: %w", i, text(p.Address), err))
		}
		if seen[p.Address] {
			errs = append(errs, fmt.Errorf("peers[%d] %q: listed twice: one session a peer", i, text(p.Address)))
		}
		seen[p.Address] = true
	}
	return errors.Join(errs...)
}

func (p Peer) validate() error {
	var errs []error
	if p.Address.Is4In6() || p.Address.Zone() != "" || !isUnicast(p.Address) {
		errs = append(errs, errors.New("address must be a router's IPv4 or global IPv6 address"))
	}
	if p.ASN == 0 {
		errs = append(errs, errors.New("asn must not be 0 (RFC 7607): set the peer's AS number"))
	}
	if p.HoldTime < minHoldTime || p.HoldTime > maxHoldTime || p.HoldTime%time.Second != 0 {
		errs = append(errs, fmt.Errorf("hold time %v must be whole seconds from %v to %v (RFC 4271)", p.HoldTime, minHoldTime, maxHoldTime))
	}
	if p.KeepaliveTime < 0 || p.KeepaliveTime > p.HoldTime || p.KeepaliveTime%time.Second != 0 {
		errs = append(errs, fmt.Errorf("keepalive time %v must be whole seconds, at most the hold time", p.KeepaliveTime))
	}
	if p.ConnectRetryTime < 0 || p.ConnectRetryTime > maxHoldTime || p.ConnectRetryTime%time.Second != 0 {
		errs = append(errs, fmt.Errorf("connect retry time %v must be whole seconds", p.ConnectRetryTime))
	}
	if p.PrefixLimit < 0 {
		errs = append(errs, fmt.Errorf("prefix limit %d must be a number of prefixes, or 0 for none", p.PrefixLimit))
	}
	if p.TTLSecurity && p.Multihop != 0 {
		errs = append(errs, errors.New("TTL security and multihop exclude each other: the one asks for a neighbour, the other for none"))
	}
	if p.Multihop < 0 || p.Multihop > 255 {
		errs = append(errs, fmt.Errorf("multihop %d must be a TTL, from 2 to 255", p.Multihop))
	}
	if p.LocalAddress.IsValid() && (p.LocalAddress.Is4() != p.Address.Is4() || !isUnicast(p.LocalAddress)) {
		errs = append(errs, fmt.Errorf("local address %v must be a node's address of the peer's family", p.LocalAddress))
	}
	if len(p.Password) > maxPassword {
		errs = append(errs, fmt.Errorf("password has %d bytes, TCP MD5 takes at most %d", len(p.Password), maxPassword))
	}
	return errors.Join(errs...)
}

// isUnicast excludes link-local addresses: a session, or a next hop, with one
// needs an interface to go with it.
func isUnicast(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLinkLocalUnicast()
}

func text(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// fits tells what of p makes no sense to this node.
func (c Config) fits(p Peer) error {
	var errs []error
	if p.Passive && !c.Listen.IsValid() {
		errs = append(errs, errors.New("passive, and nothing listens: give an address to listen at"))
	} else if p.Passive && !reaches(p.Address, c.Listen) {
		errs = append(errs, fmt.Errorf("passive, and nothing listens over its family at %v: listen at [::] for both", c.Listen))
	}
	if p.ASN == c.ASN && p.Multihop != 0 {
		errs = append(errs, errors.New("multihop is for peers of other ASes: others may be any number of hops away"))
	}
	return errors.Join(errs...)
}

// reaches tells whether sessions that a peer opens are taken where listen says.
func reaches(peer netip.Addr, listen netip.AddrPort) bool {
	return listen.Addr() == netip.IPv6Unspecified() || listen.Addr().Is4() == peer.Is4()
}

// nextHops gives the next hops of VIPs on a session with p, and which VIPs can be
// announced on it: those with a next hop that is right there. Unset: the session's
// own address.
func (c Config) nextHops(p Peer) (hops NextHops, v4, v6 bool) {
	choose := func(own, fallback netip.Addr, overSame bool) (netip.Addr, bool) {
		switch {
		case own.IsValid():
			return own, true
		case overSame:
			return netip.Addr{}, true
		}
		return fallback, fallback.IsValid()
	}
	hops.V6, v6 = choose(p.NextHops.V6, c.NextHops.V6, p.Address.Is6())
	hops.V4, v4 = choose(p.NextHops.V4, c.NextHops.V4, p.Address.Is4())
	if p.ExtendedNextHop {
		hops.V4, v4 = hops.V6, v6
	}
	return hops, v4 && !p.No4, v6 && !p.No6
}
