package lb

import (
	"fmt"
	"net/netip"
	"slices"
)

// VIP is what clients ask for: an address, which is a prefix of full length, or
// a prefix, all of whose addresses the backends serve.
type VIP struct{ netip.Prefix }

// ParseVIP takes 203.0.113.10, 203.0.113.0/28 and the like of IPv6.
func ParseVIP(s string) (VIP, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return AddrVIP(a), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return VIP{}, fmt.Errorf("%q is neither an address nor a prefix", s)
	}
	return VIP{p}, nil
}

// MustParseVIP is ParseVIP for constants.
func MustParseVIP(s string) VIP {
	v, err := ParseVIP(s)
	if err != nil {
		panic(err)
	}
	return v
}

// AddrVIP is the VIP of a single address.
func AddrVIP(a netip.Addr) VIP { return VIP{netip.PrefixFrom(a, a.BitLen())} }

// Sample is an address of v to ask for: of a prefix the second, as the first
// may stand for the network itself (RFC 4291, 2.6.1).
func (v VIP) Sample() netip.Addr {
	if next := v.Addr().Next(); v.Contains(next) {
		return next
	}
	return v.Addr()
}

// String writes an address without its length.
func (v VIP) String() string {
	if v.IsSingleIP() {
		return v.Addr().String()
	}
	return v.Prefix.String()
}

// MarshalText is String.
func (v VIP) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText is ParseVIP.
func (v *VIP) UnmarshalText(text []byte) (err error) {
	*v, err = ParseVIP(string(text))
	return err
}

// Compare orders VIPs by family, address and length: a prefix comes right before
// what lies within it.
func (v VIP) Compare(o VIP) int { return v.Prefix.Compare(o.Prefix) }

// Around gives, for each of vips that lies within others of them, the longest
// prefix among those.
func Around(vips []VIP) map[VIP]VIP {
	around := make(map[VIP]VIP)
	var open []VIP // each within the one before
	for _, v := range slices.Compact(slices.SortedFunc(slices.Values(vips), VIP.Compare)) {
		for len(open) > 0 && !open[len(open)-1].Contains(v.Addr()) {
			open = open[:len(open)-1]
		}
		if len(open) > 0 {
			around[v] = open[len(open)-1]
		}
		if !v.IsSingleIP() {
			open = append(open, v)
		}
	}
	return around
}
