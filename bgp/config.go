package bgp

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
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
// route out of the kernel, the healthy nodes' paths included. NextHop6 and
// NextHop4 say what to send there; without them such VIPs are not announced on
// such sessions.
type Config struct {
	ASN         uint32
	RouterID    netip.Addr     // IPv4
	Communities []lb.Community // on every announcement
	Peers       []Peer
	NextHop6    netip.Addr // next hop of IPv6 VIPs on sessions over IPv4; may be unset
	NextHop4    netip.Addr // next hop of IPv4 VIPs on sessions over IPv6; may be unset

	Log        *slog.Logger          // nil logs nothing
	Registerer prometheus.Registerer // nil registers nothing
}

// Peer is a router that announcements go to. It is comparable: equal peers are
// the same session.
type Peer struct {
	Address  netip.Addr
	ASN      uint32        // equal to our own for iBGP
	HoldTime time.Duration // proposed; the lower of the two sides' counts
	Password string        // TCP MD5 (RFC 2385); empty for none
	// TTLSecurity takes and sends packets of TTL 255 only (RFC 5082). The
	// router needs the same setting: with one side alone the session does not
	// come up, or flaps with the hold time.
	TTLSecurity bool
}

const (
	minHoldTime = 3 * time.Second // RFC 4271, section 4.2
	maxHoldTime = math.MaxUint16 * time.Second
	maxPassword = 80 // TCP_MD5SIG_MAXKEYLEN, linux/tcp.h
)

// Validate gives every error of c, joined.
func (c Config) Validate() error {
	errs := []error{checkRouter(c.ASN, c.RouterID)}
	for i, community := range c.Communities {
		if !community.Large && (community.A > math.MaxUint16 || community.B > math.MaxUint16) {
			errs = append(errs, fmt.Errorf("communities[%d] %v: a standard community has 16 bits a part: use a large one (a:b:c)", i, community))
		}
	}
	if c.NextHop6.IsValid() && (!c.NextHop6.Is6() || c.NextHop6.Is4In6() || !isUnicast(c.NextHop6)) {
		errs = append(errs, fmt.Errorf("next hop %v for IPv6: must be an IPv6 address of this node that the routers can reach", c.NextHop6))
	}
	if c.NextHop4.IsValid() && (!c.NextHop4.Is4() || !isUnicast(c.NextHop4)) {
		errs = append(errs, fmt.Errorf("next hop %v for IPv4: must be an IPv4 address of this node that the routers can reach", c.NextHop4))
	}
	errs = append(errs, checkPeers(c.Peers))
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

func checkPeers(peers []Peer) error {
	var errs []error
	seen := make(map[netip.Addr]bool)
	for i, p := range peers {
		if err := p.validate(); err != nil {
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

// families says which VIPs can be announced on a session with p: those with a
// next hop that is right there.
func (c Config) families(p Peer) (v4, v6 bool) {
	if p.Address.Is4() {
		return true, c.NextHop6.IsValid()
	}
	return c.NextHop4.IsValid(), true
}
