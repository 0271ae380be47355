package lab

import (
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// IPv6 VIPs go over the node's IPv4 session, whose own address says nothing of their
// next hop: that is an address of the interface, which may get another one.
func TestNextHopsFollowTheAddressesOfTheNode(t *testing.T) {
	t.Parallel()
	l := start(t, Options{Router: FRR, Nodes: 1})
	n := l.Nodes()[0]
	before, err := n.Status(t.Context())
	must(t, err)
	renumber := func(from, to string) {
		must(t, n.ns.Address("eth0", to))
		must(t, n.ns.Do(func() error {
			eth0, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			old, err := netlink.ParseAddr(from)
			if err != nil {
				return err
			}
			return netlink.AddrDel(eth0, old)
		}))
	}
	own, other := n.V6.String()+"/64", "2001:db8:3::999/64"
	renumber(own, other)
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		hops, err := l.NextHops(VIPs.V6)
		if err != nil && strings.Contains(err.Error(), `"2001:db8:3::999"`) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("next hops: got %v, %v, want the node's other address", hops, err)
		}
	}
	renumber(other, own)
	waitNextHops(t, l, n.Name)
	after, err := n.Status(t.Context())
	must(t, err)
	if was, is := before.BGP[0].Since, after.BGP[0].Since; !is.Equal(was) {
		t.Errorf("session up since %v, want %v as before", is, was)
	}
	if vips := after.BGP[0].Announced; vips != 2 {
		t.Errorf("announced: got %d, want 2", vips)
	}
}
