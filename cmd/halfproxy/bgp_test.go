package main

import (
	"errors"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/bgp"
	"github.com/halfproxy/halfproxy/internal/netns"
)

// The kernel lists the IPv6 address first that came last, while it asks whether somebody
// has it already and answers nobody who asks for it.
func TestANextHopStaysWhileTheNodeHasItsAddress(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	var ends [2]*netns.NS
	for i, name := range []string{"hptest-hop-node", "hptest-hop-far"} {
		ns, err := netns.New(name)
		must(t, err)
		t.Cleanup(func() { must(t, ns.Close()) })
		ends[i] = ns
	}
	must(t, ends[0].Veth("eth0", ends[1], "eth0", 1500))
	must(t, ends[0].Do(func() error { // a namespace of tests has it off; here it is to last
		return errors.Join(netns.Sysctl("net/ipv6/conf/eth0/accept_dad", "1"), netns.Sysctl("net/ipv6/conf/eth0/dad_transmits", "60"))
	}))
	change := func(do func(netlink.Link, *netlink.Addr) error, cidr string, with func(*netlink.Addr)) {
		t.Helper()
		a, err := netlink.ParseAddr(cidr)
		must(t, err)
		if with != nil {
			with(a)
		}
		must(t, ends[0].Do(func() error {
			eth0, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return do(eth0, a)
		}))
	}
	noDAD := func(a *netlink.Addr) { a.Flags = unix.IFA_F_NODAD }
	var hops bgp.NextHops
	follow := func(what, want4, want6 string) {
		t.Helper()
		must(t, ends[0].Do(func() error {
			hops = nextHops([]string{"lost", "eth0"}, hops)
			return nil
		}))
		if want := (bgp.NextHops{V4: netip.MustParseAddr(want4), V6: netip.MustParseAddr(want6)}); hops != want {
			t.Errorf("%s: got %v, want %v", what, hops, want)
		}
	}

	change(netlink.AddrAdd, "10.0.1.1/24", nil)
	change(netlink.AddrAdd, "2001:db8:1::1/64", noDAD)
	follow("one of each", "10.0.1.1", "2001:db8:1::1")
	change(netlink.AddrAdd, "10.0.1.2/24", nil)
	change(netlink.AddrAdd, "2001:db8:1::2/64", noDAD)
	follow("and another", "10.0.1.1", "2001:db8:1::1")
	change(netlink.AddrDel, "2001:db8:1::1/64", nil)
	follow("the first is gone", "10.0.1.1", "2001:db8:1::2")

	// A renumbering by router advertisements: the old prefix is deprecated.
	change(netlink.AddrReplace, "2001:db8:1::2/64", func(a *netlink.Addr) { a.ValidLft = 3600; noDAD(a) })
	follow("a deprecated one and no other", "10.0.1.1", "2001:db8:1::2")
	change(netlink.AddrAdd, "2001:db8:2::1/64", nil)
	follow("while the new one is tentative", "10.0.1.1", "2001:db8:1::2")
	change(netlink.AddrDel, "2001:db8:2::1/64", nil)
	change(netlink.AddrAdd, "2001:db8:2::1/64", noDAD)
	follow("when that is over", "10.0.1.1", "2001:db8:2::1")
}
