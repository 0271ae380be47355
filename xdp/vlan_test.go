package xdp

import (
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/halfproxy/halfproxy/internal/packet"
	"github.com/halfproxy/halfproxy/lb"
)

// Backends in VLANs: of the interface that packets come by, of another one, and in a
// service VLAN. Frames to them leave with that one tag, whatever they came with.
func TestFramesLeaveInTheBackendsVLAN(t *testing.T) {
	const q, ad = 0x8100 << 16, 0x88a8 << 16
	d := newDataplane(t)
	d.setWay("203.0.113.1", way{mac: backendMAC, source: node4, ifindex: 1, mtu: 1500, vlan: 20})
	d.setWay("2001:db8:3::1", way{mac: backendMAC, source: node6, ifindex: 1, mtu: 1500, vlan: 20 | vlan8021AD})
	d.setWay("203.0.113.11", way{mac: backendMAC, ifindex: 7, mtu: 1500, vlan: 4094})
	apply(t, d,
		table("web", lb.L2, 13, vips(1), "203.0.113.1"),
		table("four", lb.IPIP, 13, vips(4), "203.0.113.1"),
		table("six", lb.IPIP, 13, vips(6), "2001:db8:3::1"),
		gue(6080, table("gue4", lb.GUE, 13, vips(0x23), "203.0.113.1")),
		table("far", lb.L2, 13, []string{"192.0.2.11:443"}, "203.0.113.11"))

	for _, service := range []struct {
		name    string
		vips    []string
		send    sending
		counted string
		vlan    uint32
	}{
		{"l2", vips(1), viaL2, "web/203.0.113.1", q | 20},
		{"ipip4", vips(4), viaIPIP4, "four/203.0.113.1", q | 20},
		{"ipip6", vips(6), viaIPIP6, "six/2001:db8:3::1", ad | 20},
		{"gue4", vips(0x23), viaGUE4, "gue4/203.0.113.1", q | 20},
		{"by another interface", []string{"192.0.2.11:443"}, viaL2, "far/203.0.113.11", q | 4094},
	} {
		for _, vip := range service.vips {
			client := client4
			if vip[0] == '[' {
				client = client6
			}
			plain := packet.TCP(client, vip)
			out := service.send(plain, flowHash(testKey(), plain))
			for _, tt := range []struct {
				name     string
				tags     []uint32
				priority uint32
			}{
				{"untagged", nil, 0},
				{"from another VLAN", []uint32{q | 10}, 0},
				{"from the same VLAN", []uint32{q | 20}, 0},
				{"with a priority that stays", []uint32{q | 0xb000 | 10}, 0xb000},
				{"with two tags", []uint32{ad | 0x6000 | 5, q | 10}, 0x6000},
			} {
				r := row{name: service.name + " to " + vip + ", " + tt.name, in: packet.Tagged(plain, tt.tags...), verdict: Forwarded,
					out: packet.Tagged(out, service.vlan|tt.priority), counted: service.counted}
				t.Run(r.name, func(t *testing.T) { r.check(t, d) })
			}
		}
	}

	// What the node answers itself goes back by the way it came.
	ping := packet.Echo("198.51.100.7", "192.0.2.1")
	if got := process(t, d, packet.Tagged(ping, q|10), AnsweredEcho); got[12] != 0x81 || got[15] != 10 {
		t.Errorf("the answer to a ping from VLAN 10: got %x", got[:18])
	}
	large := packet.TCP(client4, vips(4)[0], packet.Payload(1460))
	if got := process(t, d, packet.Tagged(large, q|10), AnsweredTooBig); got[12] != 0x81 || got[15] != 10 {
		t.Errorf("the answer to a packet from VLAN 10 that is too big: got %x", got[:18])
	}
}

func TestTheInterfaceBelowAVLANIsFound(t *testing.T) {
	device := func(index int, name string) netlink.LinkAttrs { return netlink.LinkAttrs{Index: index, Name: name} }
	vlan := func(index, parent int, name string, id int, protocol netlink.VlanProtocol) *netlink.Vlan {
		attrs := device(index, name)
		attrs.ParentIndex = parent
		return &netlink.Vlan{LinkAttrs: attrs, VlanId: id, VlanProtocol: protocol}
	}
	n := &nextHops{links: map[int]netlink.Link{
		2: &netlink.Device{LinkAttrs: device(2, "eth0")},
		3: vlan(3, 2, "eth0.20", 20, netlink.VLAN_PROTOCOL_8021Q),
		4: vlan(4, 2, "eth0.30", 30, netlink.VLAN_PROTOCOL_8021AD),
		5: vlan(5, 4, "eth0.30.40", 40, netlink.VLAN_PROTOCOL_8021Q),
		6: vlan(6, 99, "eth9.50", 50, netlink.VLAN_PROTOCOL_8021Q),
	}}
	for _, tt := range []struct {
		index, out int
		vlan       uint16
		fault      string
	}{
		{2, 2, 0, ""},
		{3, 2, 20, ""},
		{4, 2, 30 | vlan8021AD, ""},
		{5, 0, 0, "a VLAN within the VLAN eth0.30"},
		{6, 0, 0, "another network namespace"},
	} {
		out, vlan, err := n.below(n.links[tt.index])
		if out != tt.out || vlan != tt.vlan || (err == nil) != (tt.fault == "") || err != nil && !strings.Contains(err.Error(), tt.fault) {
			t.Errorf("%s: got %d, %#x, %v, want %d, %#x, %q", n.links[tt.index].Attrs().Name, out, vlan, err, tt.out, tt.vlan, tt.fault)
		}
	}
}
