package doctor

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/halfproxy/halfproxy/lb"
)

// flawless is a node before its first start, and a host that has no fault.
func flawless() (Config, host) {
	vip4, vip6 := lb.MustParseVIP("203.0.113.10"), lb.MustParseVIP("2001:db8::10")
	near, far := netip.MustParseAddr("10.0.1.11"), netip.MustParseAddr("10.9.0.11")
	router := netip.MustParseAddr("10.0.1.254")
	cfg := Config{
		File: "halfproxy.yaml", Interfaces: []string{"eth0"}, XDPMode: auto,
		Services: []lb.Service{
			{Name: "web", VIPs: []lb.VIP{vip4, vip6}, Backends: []lb.Backend{{Name: "web1", Address: near}}},
			{Name: "dns", VIPs: []lb.VIP{vip4}, Forward: lb.IPIP, Backends: []lb.Backend{{Name: "ns1", Address: far}}},
		},
		Peers: []Peer{{Address: router}},
	}
	return cfg, host{
		release: "6.1.0-1-amd64", major: 6, minor: 1, root: true, capabilities: 1<<41 - 1, memlock: 8 << 20, cpus: 8, pageSize: 4096,
		links: []link{{
			name: "eth0", exists: true, up: true, carrier: true, ethernet: true, mtu: 1600, driver: "ixgbe", native: yes,
			gro: true, channel: "combined", queues: 8, maxQueues: 63,
		}},
		ways: []way{
			{
				service: "web", backend: "web1", address: near, ipv4: true, ipv6: true,
				hop: hop{address: near, link: "eth0"}, onLink: true, mtu: 1600, linkMTU: 1600, ethernet: true,
			},
			{
				service: "dns", backend: "ns1", forward: lb.IPIP, address: far, ipv4: true,
				hop: hop{address: router, link: "eth0"}, mtu: 1600, linkMTU: 1600, ethernet: true,
			},
		},
		vips: []vip{{VIP: vip4}, {VIP: vip6}},
		listeners: []listener{
			{option: "http.listen", network: "tcp", at: netip.MustParseAddrPort("127.0.0.1:9870"), here: true},
			{option: "cluster.listen", network: "tcp", at: netip.MustParseAddrPort("10.0.1.1:7946"), here: true},
			{option: "cluster.listen", network: "udp", at: netip.MustParseAddrPort("10.0.1.1:7946"), here: true},
		},
		names:     []name{{name: "lb2.example.net"}},
		peers:     []peer{{address: router, source: netip.MustParseAddr("10.0.1.1")}},
		addresses: []address{{netip.MustParsePrefix("10.0.1.1/24"), "eth0"}},
		exits4:    []string{"eth0"},
		others:    []string{"eth0", "eth1"},
	}
}

func TestEachFaultIsOneFindingWithItsRemedy(t *testing.T) {
	const file = "halfproxy.yaml"
	for _, tt := range []struct {
		fault string
		plant func(cfg *Config, h *host)
		want  Finding
	}{
		{"an old kernel", func(_ *Config, h *host) { h.release, h.major, h.minor = "5.4.0", 5, 4 }, Finding{
			"kernel", Problem, "Linux 5.4.0 is too old: halfproxy needs 5.10 or later",
			"install a kernel of 5.10 or later and boot it: Debian 11, RHEL 9 and Ubuntu 22.04 have one", "",
		}},
		{"a container's root", func(_ *Config, h *host) { h.capabilities = 1 << 12 }, Finding{ // CAP_NET_ADMIN alone
			"capabilities", Problem, "root lacks CAP_BPF, CAP_PERFMON here: the program can be neither loaded nor attached",
			"docker run --cap-add BPF --cap-add PERFMON …", "the container's start",
		}},
		{"no CAP_NET_ADMIN", func(_ *Config, h *host) { h.capabilities = 1 << 21 }, Finding{ // CAP_SYS_ADMIN has the others
			"capabilities", Problem, "root lacks CAP_NET_ADMIN here: the program can be neither loaded nor attached",
			"docker run --cap-add NET_ADMIN …", "the container's start",
		}},
		{"little locked memory", func(_ *Config, h *host) {
			h.major, h.minor, h.capabilities, h.memlock = 5, 10, h.capabilities&^(1<<24), 64<<10
		}, Finding{
			"memlock", Problem, "64 KiB of locked memory are allowed and cannot be raised (no CAP_SYS_RESOURCE): before Linux 5.11 the program's tables are locked memory",
			"docker run --ulimit memlock=-1:-1 …", "the container's start",
		}},

		{"no such interface", func(_ *Config, h *host) { h.links[0] = link{name: "eth9"} }, Finding{
			"interface", Problem, "eth9: there is no such interface, there is eth0, eth1",
			"node.interfaces: the names of those that carry VIP traffic", file,
		}},
		{"a tunnel device", func(_ *Config, h *host) { h.links[0].name, h.links[0].ethernet = "tun0", false }, Finding{
			"interface", Problem, "tun0: is no Ethernet interface",
			"node.interfaces: one of eth0, eth1 in place of tun0", file,
		}},
		{"down, and what comes of that", func(_ *Config, h *host) {
			h.links[0].up, h.links[0].carrier = false, false
			h.ways[0].noRoute, h.peers[0].outcome = "none", unreachable
		}, Finding{
			"interface", Problem, "eth0: is down", "ip link set dev eth0 up", "",
		}},
		{"no carrier", func(_ *Config, h *host) { h.links[0].carrier = false }, Finding{
			"interface", Problem, "eth0: has no carrier: no cable, or the other end is off",
			"plug in the cable and enable the port; `ethtool eth0` on this host then says `Link detected: yes`", "the switch",
		}},
		{"no native XDP", func(_ *Config, h *host) {
			h.links[0].native, h.links[0].driver, h.links[0].gro = no, "e1000", false
		}, Finding{
			"xdp", Warning, "eth0: driver e1000 has no native XDP: the program will run in generic mode, slower",
			"node.xdp_mode: generic, to have it so knowingly; a NIC with native XDP is faster", file,
		}},
		{"no native XDP though it is asked for", func(cfg *Config, h *host) {
			cfg.XDPMode, h.links[0].native, h.links[0].driver = native, no, "e1000"
		}, Finding{
			"xdp", Problem, "eth0: driver e1000 has no native XDP, which node.xdp_mode asks for", "node.xdp_mode: auto", file,
		}},
		{"native XDP refused", func(cfg *Config, h *host) {
			cfg.Running, cfg.Attached = true, []string{"eth0"}
			h.links[0].program, h.links[0].gro = &program{id: 3, mode: generic}, false
		}, Finding{
			"xdp", Warning, "eth0: the program runs in generic mode, slower: native mode was refused",
			"node.xdp_mode: generic, to have it so knowingly; a NIC with native XDP is faster", file,
		}},
		{"the running node's program is gone", func(cfg *Config, _ *host) { cfg.Running = true }, Finding{
			"xdp", Problem, "eth0: the node that runs does not have its program there", "systemctl restart halfproxy", "",
		}},
		{"another program", func(_ *Config, h *host) { h.links[0].program = &program{id: 42, mode: native} }, Finding{
			"xdp", Problem, "eth0: another XDP program (id 42, native) has the hook", "ip link set dev eth0 xdpdrv off", "",
		}},
		{"another program in the NIC", func(_ *Config, h *host) {
			h.links[0].program = &program{id: 42, name: "acl", mode: offload}
		}, Finding{
			"xdp", Problem, `eth0: another XDP program "acl" (id 42, offload) has the hook`, "ip link set dev eth0 xdpoffload off", "",
		}},
		{"another program with a link", func(_ *Config, h *host) {
			h.links[0].program = &program{id: 42, name: "acl", mode: generic, link: 7}
		}, Finding{
			"xdp", Problem, `eth0: another XDP program "acl" (id 42, generic) has the hook, held by bpf_link 7`, "bpftool link detach id 7", "",
		}},
		{"a program that outlived its process", func(_ *Config, h *host) {
			h.links[0].program = &program{id: 42, name: "balance", mode: native, link: 7, node: "/sys/fs/bpf/halfproxy/lb1"}
		}, Finding{
			"xdp", Warning, "eth0: the program of a node that ended without an orderly stop goes on by its old tables, pinned in /sys/fs/bpf/halfproxy/lb1",
			"systemctl start halfproxy", "",
		}},
		{"another node", func(_ *Config, h *host) {
			h.links[0].program = &program{id: 42, name: "balance", mode: native, link: 7, node: "/sys/fs/bpf/halfproxy/lb9", runs: true}
		}, Finding{
			"xdp", Problem, "eth0: another halfproxy that runs has its program there, pinned in /sys/fs/bpf/halfproxy/lb9",
			"fuser -v /sys/fs/bpf/halfproxy/lb9   # shows its process: stop that one, or say with --socket that it is this node", "",
		}},
		{"nowhere to pin", func(cfg *Config, h *host) { cfg.Pins, h.noBPFFS = "/sys/fs/bpf/halfproxy", true }, Finding{
			"pin", Warning, "/sys/fs/bpf/halfproxy: lies in no BPF file system: when the node crashes or is upgraded, its program ends with it",
			"mount -t bpf bpf /sys/fs/bpf", "",
		}},
		{"LRO", func(_ *Config, h *host) { h.links[0].lro = true }, Finding{
			"lro", Warning, "eth0: large receive offload is on: most drivers refuse a native program then", "ethtool -K eth0 lro off", "",
		}},
		{"LRO where native mode is asked for", func(cfg *Config, h *host) { cfg.XDPMode, h.links[0].lro = native, true }, Finding{
			"lro", Problem, "eth0: large receive offload is on: most drivers refuse a native program then", "ethtool -K eth0 lro off", "",
		}},
		{"a jumbo MTU", func(_ *Config, h *host) { h.links[0].mtu = 9000 }, Finding{
			"mtu", Warning, "eth0: MTU 9000 is too big for native mode: a packet has to fit a page, which 3506 does, unless driver ixgbe gives it several",
			"ip link set dev eth0 mtu 3506", "",
		}},
		{"a jumbo MTU of a driver without", func(_ *Config, h *host) { h.links[0].mtu, h.links[0].scatters = 9000, no }, Finding{
			"mtu", Warning, "eth0: MTU 9000 is too big for native mode: driver ixgbe gives it packets in one page alone, which 3506 fits",
			"ip link set dev eth0 mtu 3506", "",
		}},
		{"a jumbo MTU of a kernel without", func(cfg *Config, h *host) {
			cfg.XDPMode, h.minor, h.major, h.links[0].mtu, h.links[0].scatters = native, 10, 5, 9000, yes
		}, Finding{
			"mtu", Problem, "eth0: MTU 9000 is too big for native mode: before Linux 5.18 a packet has to fit a page, which 3506 does",
			"ip link set dev eth0 mtu 3506", "",
		}},
		{"a jumbo MTU and an interface that sends none on", func(_ *Config, h *host) {
			h.major, h.minor = 6, 3
			h.links[0].mtu, h.links[0].scatters, h.links[0].gathers = 9000, yes, yes
			h.links = append(h.links, h.links[0])
			h.links[1].name, h.links[1].mtu, h.links[1].gathers = "eth1", 1500, no
		}, Finding{
			"mtu", Warning, "eth0: what its MTU 9000 lets in is lost when it is to leave by eth1 and does not fit a page: driver ixgbe sends on none that fill several",
			"ip link set dev eth0 mtu 3506", "",
		}},
		{"a jumbo MTU and a kernel that sends none on", func(_ *Config, h *host) {
			h.links[0].mtu, h.links[0].scatters = 9000, yes
			h.links = append(h.links, h.links[0])
			h.links[1].name, h.links[1].mtu = "eth1", 1500
		}, Finding{
			"mtu", Warning, "eth0: what its MTU 9000 lets in is lost when it is to leave by eth1 and does not fit a page: before Linux 6.3 none that fill several are sent on",
			"ip link set dev eth0 mtu 3506", "",
		}},
		{"a jumbo MTU of an older virtio_net", func(cfg *Config, h *host) {
			cfg.XDPMode, h.links[0].driver, h.links[0].mtu = native, "virtio_net", 4065
		}, Finding{
			"mtu", Problem, "eth0: MTU 4065 is too big for native mode: before Linux 6.3 virtio_net takes 4064", "ip link set dev eth0 mtu 4064", "",
		}},
		{"hardware GRO before an outer header", func(cfg *Config, h *host) { cfg.XDPMode, h.links[0].groHW = generic, true }, Finding{
			"gro", Problem, `eth0: generic receive offload is on: in generic mode the program sees merged segments, which do not fit their outer header (service "dns"): they are dropped as too_big`,
			"ethtool -K eth0 gro off rx-gro-hw off", "",
		}},
		{"half the queues", func(_ *Config, h *host) { h.links[0].queues = 4 }, Finding{
			"queues", Warning, "eth0: receives by 4 of 63 queues, so the program runs on as many of 8 CPUs", "ethtool -L eth0 combined 8", "",
		}},
		{"separate queues", func(_ *Config, h *host) {
			h.links[0].channel, h.links[0].queues, h.links[0].maxQueues = "rx", 1, 4
		}, Finding{
			"queues", Warning, "eth0: receives by 1 of 4 queues, so the program runs on as many of 8 CPUs", "ethtool -L eth0 rx 4", "",
		}},
		{"a veth that could have more queues", func(_ *Config, h *host) {
			h.links[0].driver, h.links[0].native, h.links[0].gro = "veth", no, false
			h.links[0].queues, h.links[0].maxQueues = 1, 2
			h.links[0].far = &farEnd{name: "port1", enter: "ip netns exec sw ", up: true, mtu: 1600, program: true}
		}, Finding{
			"xdp", Warning, "eth0: takes no native program while its other end port1 has more queues to send by than it has to receive by (1)",
			"ethtool -L eth0 rx 2", "",
		}},

		{"no IPv6 route", func(_ *Config, h *host) {
			h.ways[0].address, h.ways[0].noRoute = netip.MustParseAddr("2001:db8:1::11"), "network is unreachable"
		}, Finding{
			"route", Problem, `service "web", backend "web1": no route to 2001:db8:1::11 (network is unreachable)`,
			"ip route replace 2001:db8:1::11/128 dev eth0", "",
		}},
		{"no route to a distant backend", func(_ *Config, h *host) { h.ways[1].noRoute = "none" }, Finding{
			"route", Problem, `service "dns", backend "ns1": no route to 10.9.0.11 (none)`,
			"ip route replace 10.9.0.11/32 via 10.0.1.254", "",
		}},
		{"the node as its own backend", func(_ *Config, h *host) { h.ways[0].local = true }, Finding{
			"route", Problem, `service "web", backend "web1": 10.0.1.11 is an address of this host: a backend is another one`,
			`services "web", backend "web1", address: the backend's own`, file,
		}},
		{"a way by a tunnel", func(_ *Config, h *host) { h.ways[1].ethernet, h.ways[1].hop.link = false, "wg0" }, Finding{
			"route", Problem, `service "dns", backend "ns1": the way to 10.9.0.11 leaves by wg0, which is no Ethernet interface`,
			"ip route replace 10.9.0.11/32 via 10.0.1.254", "",
		}},
		{"l2 by a gateway", func(_ *Config, h *host) {
			h.ways[0].onLink, h.ways[0].hop.address = false, netip.MustParseAddr("10.0.1.254")
		}, Finding{
			"route", Problem, `service "web", backend "web1": 10.0.1.11 is behind gateway 10.0.1.254: forward l2 needs it on the node's own link`,
			`services "web", forward: ipip`, file,
		}},
		{"a silent backend", func(_ *Config, h *host) { h.ways[0].hop.silent = true }, Finding{
			"neighbour", Problem, `service "web", backend "web1": 10.0.1.11 does not answer ARP on eth0`,
			"ip address replace 10.0.1.11/24 dev eth0 && ip link set dev eth0 up   # with its own interface, in one VLAN with eth0 of this host", `backend "web1"`,
		}},
		{"a silent IPv6 gateway of two", func(_ *Config, h *host) {
			h.ways[1].hop = hop{netip.MustParseAddr("2001:db8:1::254"), "eth0", true}
			h.ways = append(h.ways, h.ways[1])
		}, Finding{
			"neighbour", Problem, `service "dns", backend "ns1" and 1 more: gateway 2001:db8:1::254 does not answer neighbour discovery on eth0`,
			"ip address replace 2001:db8:1::254/128 dev eth0 && ip link set dev eth0 up   # with its own interface, in one VLAN with eth0 of this host",
			"gateway 2001:db8:1::254",
		}},
		{"a narrow link", func(_ *Config, h *host) {
			h.ways[1].mtu, h.ways[1].linkMTU = 1500, 1500
			h.ways = append(h.ways, h.ways[1]) // said once
		}, Finding{
			"mtu", Warning, `service "dns", backend "ns1": a packet of 1500 bytes has 1520 with its outer header, and the way by eth0 takes 1500: large packets do not get through`,
			"ip link set dev eth0 mtu 1520   # and all on the way; else see that backends offer a smaller MSS: ip route change $(ip route show default) advmss 1440", "",
		}},
		{"a narrow way to an IPv6 backend", func(_ *Config, h *host) {
			h.ways[1].address, h.ways[1].ipv6, h.ways[1].mtu = netip.MustParseAddr("2001:db8:9::11"), true, 1400
		}, Finding{
			"mtu", Warning, `service "dns", backend "ns1": a packet of 1500 bytes has 1540 with its outer header, and the way by eth0 takes 1400: large packets do not get through`,
			"ip route change $(ip route show default) advmss 1320 && ip -6 route change $(ip -6 route show default) advmss 1300   # or raise the MTU of all on the way",
			`backend "ns1"`,
		}},

		{"a route with a small MTU", func(_ *Config, h *host) { h.ways[1].mtu, h.ways[1].routeMTU = 1400, true }, Finding{
			"mtu", Warning, `service "dns", backend "ns1": a packet of 1500 bytes has 1520 with its outer header, and the way by eth0 takes 1400: large packets do not get through`,
			"ip route replace 10.9.0.11/32 via 10.0.1.254 dev eth0", "",
		}},
		{"a narrow way for GUE", func(_ *Config, h *host) {
			h.ways[1].forward, h.ways[1].mtu, h.ways[1].linkMTU = lb.GUE, 1531, 1531
		}, Finding{
			"mtu", Warning, `service "dns", backend "ns1": a packet of 1500 bytes has 1532 with its outer header, and the way by eth0 takes 1531: large packets do not get through`,
			"ip link set dev eth0 mtu 1532   # and all on the way; else see that backends offer a smaller MSS: ip route change $(ip route show default) advmss 1459", "",
		}},
		{"a narrow way for GRE over IPv6", func(_ *Config, h *host) {
			h.ways[1].forward, h.ways[1].address, h.ways[1].mtu, h.ways[1].linkMTU = lb.GRE, netip.MustParseAddr("2001:db8:9::11"), 1543, 1543
		}, Finding{
			"mtu", Warning, `service "dns", backend "ns1": a packet of 1500 bytes has 1544 with its outer header, and the way by eth0 takes 1543: large packets do not get through`,
			"ip link set dev eth0 mtu 1544   # and all on the way; else see that backends offer a smaller MSS: ip route change $(ip route show default) advmss 1459", "",
		}},

		{"a strict filter aside of the default route", func(_ *Config, h *host) { h.links[0].rpFilter, h.exits4 = 1, []string{"eth1", "wg0"} }, Finding{
			"rp_filter", Warning,
			"eth0: rp_filter is strict, and the default route leaves by eth1, wg0: what is for this host itself and comes in here from afar is dropped, ICMP errors about outer packets, BGP and answers to checks among it",
			"sysctl -w net.ipv4.conf.eth0.rp_filter=2", "",
		}},
		{"a VIP on lo", func(_ *Config, h *host) {
			h.vips[0].on = []address{{netip.MustParsePrefix("203.0.113.10/32"), "lo"}}
			h.vips[0].local = "local 203.0.113.10/32 dev lo"
		}, Finding{
			"vip", Problem, "VIP 203.0.113.10: is an address of this host, on lo: it answers itself what the program does not take",
			"ip address del 203.0.113.10/32 dev lo", "",
		}},
		{"an own address in a VIP that is a prefix", func(_ *Config, h *host) {
			h.vips[0].VIP = lb.MustParseVIP("203.0.113.0/28")
			h.vips[0].on = []address{{netip.MustParsePrefix("203.0.113.7/24"), "eth0"}}
			h.vips[0].local = "local 203.0.113.0 dev eth0"
		}, Finding{
			"vip", Problem, "VIP 203.0.113.0/28: 203.0.113.7 on eth0 is an address of this host: the program takes what comes for it",
			"vips: prefixes that 203.0.113.7 is not in", file,
		}},
		{"two VIPs in a local route", func(_ *Config, h *host) {
			h.vips[0].local, h.vips[1].local = "local 0.0.0.0/0 dev lo table 7", "local 0.0.0.0/0 dev lo table 7"
		}, Finding{
			"vip", Problem, "VIP 203.0.113.10: a local route makes it this host's own (local 0.0.0.0/0 dev lo table 7): it answers itself what the program does not take",
			"ip route del local 0.0.0.0/0 dev lo table 7", "",
		}},
		{"a VIP with a route", func(_ *Config, h *host) { h.vips[1].route = "2001:db8::10/128 dev eth0 metric 1024" }, Finding{
			"vip", Warning, "VIP 2001:db8::10: has a route of its own (2001:db8::10/128 dev eth0 metric 1024): packets loop over it whenever the program is away",
			"ip route del 2001:db8::10/128 dev eth0 metric 1024 && ip route replace blackhole 2001:db8::10/128 proto 176", "",
		}},

		{"a taken port", func(_ *Config, h *host) {
			h.listeners[0].taken, h.listeners[0].owner = true, owner{812, "nginx", "nginx.service"}
		}, Finding{
			"listen", Problem, "http.listen 127.0.0.1:9870: nginx (pid 812) has the TCP port", "systemctl stop nginx.service   # or another port for http.listen", "",
		}},
		{"a port taken by who knows", func(_ *Config, h *host) { h.listeners[2].taken = true }, Finding{
			"listen", Problem, "cluster.listen 10.0.1.1:7946: another program has the UDP port",
			"ss -lnup 'sport = :7946'   # says which; or another port for cluster.listen", "",
		}},
		{"a port that needs more", func(_ *Config, h *host) { h.listeners[0].err = errors.New("permission denied") }, Finding{
			"listen", Problem, "http.listen 127.0.0.1:9870: permission denied", "http.listen: an address and port that this host lets a program have", file,
		}},
		{"another node's file", func(_ *Config, h *host) {
			for i := 1; i <= 2; i++ {
				h.listeners[i].at, h.listeners[i].here = netip.MustParseAddrPort("10.0.1.2:7946"), false
			}
		}, Finding{
			"listen", Problem, "cluster.listen 10.0.1.2:7946: 10.0.1.2 is no address of this host", "cluster.listen: 10.0.1.1:7946", file,
		}},
		{"a lost address", func(_ *Config, h *host) { h.listeners[1].here, h.addresses = false, nil }, Finding{
			"listen", Problem, "cluster.listen 10.0.1.1:7946: 10.0.1.1 is no address of this host", "ip address add 10.0.1.1/32 dev eth0", "",
		}},
		{"an unknown member", func(_ *Config, h *host) { h.names[0].err = errors.New("no such host") }, Finding{
			"join", Warning, "cluster.join lb2.example.net: does not resolve: no such host",
			"cluster.join: the member's address in place of lb2.example.net; or mend DNS: getent hosts lb2.example.net", file,
		}},
		{"no BGP daemon", func(_ *Config, h *host) { h.peers[0].outcome = refused }, Finding{
			"peer", Problem, "BGP peer 10.0.1.254: refuses connections to TCP port 179: it is there, and no BGP daemon listens",
			"start its BGP daemon, with neighbour 10.0.1.1; `ss -lnt 'sport = :179'` shows that it listens", "router 10.0.1.254",
		}},
		{"a silent router", func(_ *Config, h *host) { h.peers[0].outcome = silent }, Finding{
			"peer", Problem, "BGP peer 10.0.1.254: does not answer on TCP port 179: it is off, a firewall drops it, or its password differs",
			"ping -c 3 10.0.1.254   # no answer: cable, VLAN, address; an answer: on the router, allow TCP port 179 from 10.0.1.1 and compare the password", "",
		}},
		{"a router out of reach", func(_ *Config, h *host) { h.peers[0] = peer{address: h.peers[0].address, outcome: unreachable} }, Finding{
			"peer", Problem, "BGP peer 10.0.1.254: this host has no route to it", "ip route replace 10.0.1.254/32 dev eth0", "",
		}},
	} {
		cfg, h := flawless()
		tt.plant(&cfg, &h)
		if got := judge(cfg, h); !reflect.DeepEqual(got, []Finding{tt.want}) {
			t.Errorf("%s: got\n%+v\nwant\n%+v", tt.fault, got, tt.want)
		}
	}
}

func TestWhatIsNoFaultIsNotFound(t *testing.T) {
	for _, tt := range []struct {
		host  string
		plant func(cfg *Config, h *host)
	}{
		{"flawless", func(*Config, *host) {}},
		{"a jumbo MTU of a driver with frames of several buffers", func(_ *Config, h *host) { h.links[0].mtu, h.links[0].scatters = 9000, yes }},
		{"a jumbo MTU in generic mode", func(cfg *Config, h *host) { cfg.XDPMode, h.links[0].gro, h.links[0].mtu = generic, false, 9000 }},
		{"jumbo MTUs of interfaces that send such frames on", func(_ *Config, h *host) {
			h.major, h.minor = 6, 3
			h.links[0].mtu, h.links[0].scatters, h.links[0].gathers = 9000, yes, yes
			h.links = append(h.links, h.links[0])
			h.links[1].name = "eth1"
		}},
		{"of an ordinary user, who has no capabilities", func(_ *Config, h *host) { h.root, h.capabilities, h.memlock, h.major, h.minor = false, 0, 0, 5, 10 }},
		{"of systemd on 5.10, with much locked memory", func(_ *Config, h *host) {
			h.capabilities, h.memlock, h.major, h.minor = h.capabilities&^(1<<24), 1<<64-1, 5, 10
		}},
		{"that does not tell of native XDP", func(_ *Config, h *host) { h.links[0].native = unknown }},
		{"with jumbo frames and LRO in generic mode, of l2 services", func(cfg *Config, h *host) {
			cfg.XDPMode, cfg.Services = generic, cfg.Services[:1]
			h.links[0].mtu, h.links[0].lro = 9000, true
		}},
		{"with as many queues as the NIC has", func(_ *Config, h *host) { h.links[0].queues, h.links[0].maxQueues = 4, 4 }},
		{"with a driver that does not tell its queues", func(_ *Config, h *host) { h.links[0].queues, h.links[0].maxQueues = 0, 0 }},
		{"with a node that runs", func(cfg *Config, h *host) {
			cfg.Running, cfg.Attached = true, []string{"eth0"}
			h.links[0].program = &program{id: 7, name: "balance", mode: native, link: 3}
		}},
		{"with a strict filter, where the default route leaves", func(_ *Config, h *host) { h.links[0].rpFilter = 1 }},
		{"with a loose filter", func(_ *Config, h *host) { h.links[0].rpFilter, h.exits4 = 2, []string{"eth1"} }},
		{"with a strict filter and no default route", func(_ *Config, h *host) { h.links[0].rpFilter, h.exits4 = 1, nil }},
		{"with an l2 way of 1500 bytes", func(_ *Config, h *host) { h.ways[0].mtu = 1500 }},
		{"with an ipip way of 1520 bytes", func(_ *Config, h *host) { h.ways[1].mtu = 1520 }},
	} {
		cfg, h := flawless()
		tt.plant(&cfg, &h)
		if got := judge(cfg, h); len(got) > 0 {
			t.Errorf("a host %s: got %+v, want nothing", tt.host, got)
		}
	}
}

func TestProblemsComeBeforeWarnings(t *testing.T) {
	cfg, h := flawless()
	h.links[0].lro = true
	h.ways[0].hop.silent = true
	h.vips[0].route = "203.0.113.10/32 dev eth1"
	h.peers[0].outcome = refused
	var got []string
	for _, f := range judge(cfg, h) {
		got = append(got, f.Check)
	}
	if want := []string{"neighbour", "peer", "lro", "vip"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestWhatIsNotKnownIsSaid(t *testing.T) {
	cfg, h := flawless()
	h.links[0].native, h.root = unknown, false
	h.links[0].carrier = false
	cfg.Running = true
	want := []string{
		"whether programs may be loaded, who holds the XDP hook or a port, far ends of veths in other namespaces: run doctor as root",
		"whether eth0 (ixgbe) can do native XDP: Linux 6.1.0-1-amd64 does not tell, 6.3 and later do; `halfproxy run` logs how it attached",
		"missing routes to backends, silent neighbours and BGP peers: once eth0 carries packets again, run doctor anew",
		"BGP peers: the node that runs speaks to them, `halfproxy status` shows how it stands",
	}
	if got := unchecked(cfg, h); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAVethWhoseOtherEndIsNotFoundIsSaid(t *testing.T) {
	cfg, h := flawless()
	h.links[0].driver = "veth"
	want := []string{"the other end of eth0: it is in no network namespace that is named or has a process here"}
	if got := unchecked(cfg, h); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestThePortsOwnerIsReadFromProc(t *testing.T) {
	table := filepath.Join(t.TempDir(), "tcp")
	// The words of an address are in the host's byte order: these are of a little-endian one.
	err := os.WriteFile(table, []byte(`  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:268E 0100007F:1234 01 00000000:00000000 00:00000000 00000000     0        0 11 1 0 100 0 0 10 0
   1: 0B00030A:268E 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12 1 0 100 0 0 10 0
   2: 0100007F:268E 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 13 1 0 100 0 0 10 0
   3: 00000000000000000000000000000000:1F0A 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 14 2
   4: B80D0120000000000000000001000000:1F0B 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 15 2
`), 0o600)
	must(t, err)
	for _, tt := range []struct{ at, want string }{
		{"127.0.0.1:9870", "13"},
		{"10.3.0.11:9870", "12"},
		{"0.0.0.0:9870", "12"}, // any of them is in the way
		{"10.3.0.11:7946", "14"},
		{"[2001:db8::1]:7947", "15"},
		{"[2001:db8::2]:7947", ""},
		{"127.0.0.1:80", ""},
	} {
		if got := inodeOf(table, netip.MustParseAddrPort(tt.at)); got != tt.want {
			t.Errorf("%s: got socket %q, want %q", tt.at, got, tt.want)
		}
	}
}

func TestOnlyASystemServiceIsStoppedByItsName(t *testing.T) {
	for _, tt := range []struct{ cgroup, want string }{
		{"0::/system.slice/nginx.service\n", "nginx.service"},
		{"12:pids:/system.slice/nginx.service\n0::/\n", "nginx.service"},
		{"0::/system.slice/docker.service/abc\n", "docker.service"},
		{"0::/system.slice/docker-0123.scope\n", ""},
		{"0::/user.slice/user-0.slice/session-1.scope\n", ""},
		{"0::/\n", ""},
	} {
		if got := unitOf(tt.cgroup); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.cgroup, got, tt.want)
		}
	}
}

func TestNamesAreLookedUpAndAddressesAreNot(t *testing.T) {
	var h host
	h.gatherNames(t.Context(), Config{Join: []string{"localhost:7946", "192.0.2.1:7946", "no name:7946", "[2001:db8::1]:7946"}})
	if len(h.names) != 2 || h.names[0].name != "localhost" || h.names[0].err != nil || h.names[1].name != "no name" || h.names[1].err == nil {
		t.Errorf("got %+v, want localhost resolved and the other not", h.names)
	}
}
