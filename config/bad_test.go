package config

import (
	"fmt"
	"strings"
	"testing"
)

// manyBackends lists n of them.
func manyBackends(n int) string {
	var list strings.Builder
	for i := range n {
		fmt.Fprintf(&list, "      - {name: ns%d, address: 10.10.%d.%d}\n", i, i/256, i%256)
	}
	return list.String()
}

// Each row changes the served contract in one place; want is all that is said
// about it. Line numbers are those of testdata/contract.yaml.
func TestParseRefuses(t *testing.T) {
	for _, tt := range []struct {
		name     string
		old, new string
		want     string
	}{
		// Tracking
		{"a tracking that is unknown", "    forward: l2 ", "    tracking: some\n    forward: l2 ",
			`halfproxy.yaml:39: services[0] "web": tracking "some" is unknown: choose changes, none or all`},
		{"a lifetime without tracking", "    forward: l2 ", "    tracking: none\n    flow_lifetime: 1h\n    forward: l2 ",
			`halfproxy.yaml:40: services[0] "web": flow_lifetime is of no use to tracking none, by which flows move at once: remove it`},
		{"a lifetime that is too long for records", "    forward: l2 ", "    flow_lifetime: 48h\n    forward: l2 ",
			`halfproxy.yaml:39: services[0] "web": flow_lifetime "48h" is out of range: give a duration from 10s to 24h0m0s`},
		{"room for few records", "  name: lb1 ", "  flow_records: 100\n  name: lb1 ",
			`halfproxy.yaml:6: node.flow_records 100 is out of range: give a number from 1024 to 16777216`},

		// YAML
		{"a bracket that is not closed", "interfaces: [eth0]", "interfaces: [eth0",
			"halfproxy.yaml:8: not YAML: ',' or ']' must be specified: look at the indentation and the quotes here and in the line above"},
		{"a quote that is not closed", `["64512:100"]`, `["64512:100]`,
			"halfproxy.yaml:20: not YAML: ',' or ']' must be specified: look at the indentation and the quotes here and in the line above"},
		{"a tab for indentation", "  name: lb1 ", "\tname: lb1 ",
			"halfproxy.yaml:6: not YAML: found character '<tab>' that cannot start any token: look at the indentation and the quotes here and in the line above"},
		{"a second document", "http:\n", "---\nhttp:\n",
			"halfproxy.yaml:31: a second document begins: a file holds one, remove the --- or ... before it"},
		{"a key that nobody knows", "http:", "htpp:",
			`halfproxy.yaml:30: unknown key "htpp": did you mean "http"?`},
		{"bytes of another kind of file", "http:\n", "http: \x00\n",
			"halfproxy.yaml:1: not YAML: there are NUL bytes in it: is it another file, or UTF-16? Write it in UTF-8"},
		{"a key that nobody knows, close to one", "      interval: 1s", "      intervall: 1s",
			`halfproxy.yaml:50: services[0] "web": check: unknown key "intervall": did you mean "interval"?`},
		{"a key that nobody knows, far from any", "  size: 3 ", "  quorum: 3 ",
			`halfproxy.yaml:15: cluster: unknown key "quorum": known here are name, listen, join, key_file, size, hash_key_file, partition_hold`},
		{"a key of another section", "  size: 3 ", "  size: 3\n  asn: 64512 ",
			`halfproxy.yaml:16: cluster: unknown key "asn": known here are name, listen, join, key_file, size, hash_key_file, partition_hold`},
		{"a key in the other case", "  asn: 64512", "  ASN: 64512",
			"halfproxy.yaml:17: bgp.asn is missing: give the number of this node's own autonomous system" + "\n" +
				`halfproxy.yaml:18: bgp: unknown key "ASN": did you mean "asn"?`},
		{"a key given twice", "      rise: 2\n", "      rise: 2\n      rise: 4\n",
			`halfproxy.yaml:53: services[0] "web": check: key "rise" is given twice: remove this one or that in line 52`},
		{"a section given twice", "admin:\n", "http: {}\nadmin:\n",
			`halfproxy.yaml:32: key "http" is given twice: remove this one or that in line 30`},
		{"a section with nothing in it", "  socket: /run/halfproxy/admin.sock", "  #",
			"halfproxy.yaml:32: admin is empty: give it a value or remove it"},
		{"a value with nothing in it", "weight: 50", "weight: ",
			`halfproxy.yaml:43: services[0] "web": backends[1] "web2": weight is empty: give it a value or remove it`},
		{"a list for a value", "forward: l2 ", "forward: [l2] ",
			`halfproxy.yaml:39: services[0] "web": forward is a list, it has to be a single value`},
		{"a mapping for a value", "path: /healthz", "path: {prefix: /healthz}",
			`halfproxy.yaml:47: services[0] "web": check.path is a mapping, it has to be a single value`},
		{"a value for a list", "vips: [203.0.113.53]", "vips: 203.0.113.53",
			`halfproxy.yaml:59: services[1] "dns": vips is a single value, it has to be a list: begin each entry with a dash`},
		{"a mapping for a list", "vips: [203.0.113.53]", "vips: {v4: 203.0.113.53}",
			`halfproxy.yaml:59: services[1] "dns": vips is a mapping, it has to be a list: begin each entry with a dash`},
		{"a value for a section", "check: {type: tcp, via: direct}", "check: tcp",
			`halfproxy.yaml:65: services[1] "dns": check is a single value, it has to be a mapping: write key: value`},
		{"a list for a section", "check: {type: tcp, via: direct}", "check: [tcp]",
			`halfproxy.yaml:65: services[1] "dns": check is a list, it has to be a mapping: write key: value`},
		{"a value for an entry", "      - {name: ns1, address: 10.9.0.11}", "      - 10.9.0.11",
			`halfproxy.yaml:63: services[1] "dns": backends[0] is a single value, it has to be a mapping: write key: value`},
		{"an entry with nothing in it", "      - {name: ns1, address: 10.9.0.11}", "      -",
			`halfproxy.yaml:63: services[1] "dns": backends[0] is empty: give it a value or remove it`},
		{"an alias of nothing", "forward: ipip", "forward: *way",
			`halfproxy.yaml:61: services[1] "dns": forward is *way, and nothing further up is marked &way: give the value itself`},
		{"a line that only YAML's own rules refuse", "forward: ipip", "forward: &way *way",
			"halfproxy.yaml:61: not YAML: unexpected scalar value type: look at the indentation and the quotes here and in the line above"},
		{"a tag", "port: 80", "port: !!int 80",
			`halfproxy.yaml:46: services[0] "web": check.port has the tag !!int: remove it, types are known here`},
		{"a merge", "check: {type: tcp, via: direct}", "check: {<<: *web, type: tcp}",
			`halfproxy.yaml:65: services[1] "dns": check: a merge (<<) is not YAML 1.2: write the keys out`},
		{"a number for a name", "name: web1", "name: 1",
			`halfproxy.yaml:42: services[0] "web": backends[0] "10.0.1.11": name 1 is not text: put it in quotes`},

		// node
		{"no interfaces", "  interfaces: [eth0] ", "  #",
			"halfproxy.yaml:5: node.interfaces is missing: name the NICs that carry VIP traffic"},
		{"an empty list of interfaces", "[eth0]", "[]",
			"halfproxy.yaml:7: node.interfaces has no entry: name the NICs that carry VIP traffic"},
		{"an interface that cannot be one", "[eth0]", "[eth0/1, much-too-long-eth0]",
			"halfproxy.yaml:7: node.interfaces[0] \"eth0/1\" is no interface name: `ip link` lists them" + "\n" +
				"halfproxy.yaml:7: node.interfaces[1] \"much-too-long-eth0\" is no interface name: `ip link` lists them"},
		{"an interface listed twice", "[eth0]", "[eth0, eth1, eth0]",
			`halfproxy.yaml:7: node.interfaces[2] "eth0" is there already, in line 7: remove one of them`},
		{"an XDP mode that there is not", "xdp_mode: auto", "xdp_mode: offload",
			`halfproxy.yaml:8: node.xdp_mode "offload" is unknown: choose auto, native or generic`},
		{"a name with a blank", "name: lb1 ", "name: lb 1 ",
			`halfproxy.yaml:6: node.name "lb 1" is no name: use up to 64 letters, digits, dots, dashes and underscores, a letter or digit first`},
		{"a name that looks like a flag", "name: lb1 ", "name: -lb1 ",
			`halfproxy.yaml:6: node.name "-lb1" is no name: use up to 64 letters, digits, dots, dashes and underscores, a letter or digit first`},
		{"a name that is too long", "name: lb1 ", "name: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx ",
			`halfproxy.yaml:6: node.name "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx" is no name: use up to 64 letters, digits, dots, dashes and underscores, a letter or digit first`},

		// cluster
		{"a cluster without a name", "  name: edge-ams ", "  # ",
			"halfproxy.yaml:10: cluster.name is missing: give all nodes of the cluster the same one, and those of another cluster another"},
		{"a cluster that listens nowhere", "  listen: 10.0.1.1:7946", "  #",
			"halfproxy.yaml:10: cluster.listen is missing: give the address and port that other members reach this node at"},
		{"a cluster without a key", "  key_file: /etc/halfproxy/cluster.key", "  #",
			"halfproxy.yaml:10: cluster.key_file is missing: gossip is always encrypted, name a file that holds base64 keys, one a line"},
		{"gossip on all addresses", "listen: 10.0.1.1:7946", "listen: 0.0.0.0:7946",
			`halfproxy.yaml:12: cluster.listen "0.0.0.0:7946" does not tell members where to reach this node: name one of its addresses`},
		{"gossip without a port", "listen: 10.0.1.1:7946", "listen: 10.0.1.1",
			`halfproxy.yaml:12: cluster.listen "10.0.1.1" is no address and port: write 192.0.2.1:1234 or [2001:db8::1]:1234`},
		{"gossip on port 0", "listen: 10.0.1.1:7946", "listen: 10.0.1.1:0",
			`halfproxy.yaml:12: cluster.listen "10.0.1.1:0" has port 0, which nobody could find: give one from 1 to 65535`},
		{"gossip on a name", "listen: 10.0.1.1:7946", "listen: lb1:7946",
			`halfproxy.yaml:12: cluster.listen "lb1:7946" is no address and port: write 192.0.2.1:1234 or [2001:db8::1]:1234`},
		{"a member that cannot be one", "[10.0.1.2:7946,", "[10.0.1.256:7946, lb2:0, 'http://lb2', 0.0.0.0,",
			`halfproxy.yaml:13: cluster.join[0] "10.0.1.256:7946" is no member's address: write 192.0.2.1:7946, [2001:db8::1]:7946 or lb2.example.net:7946` + "\n" +
				`halfproxy.yaml:13: cluster.join[1] "lb2:0" is no member's address: write 192.0.2.1:7946, [2001:db8::1]:7946 or lb2.example.net:7946` + "\n" +
				`halfproxy.yaml:13: cluster.join[2] "http://lb2" is no member's address: write 192.0.2.1:7946, [2001:db8::1]:7946 or lb2.example.net:7946` + "\n" +
				`halfproxy.yaml:13: cluster.join[3] "0.0.0.0" is the unspecified address: give the one that others reach`},
		{"a member listed twice, once without its port", "[10.0.1.2:7946,", "[10.0.1.2, 10.0.1.2:7946,",
			`halfproxy.yaml:13: cluster.join[1] "10.0.1.2:7946" is there already, in line 13: remove one of them`},
		{"a size of 0", "size: 3", "size: 0",
			"halfproxy.yaml:15: cluster.size 0 is out of range: give a number from 1 to 10000"},
		{"a size that the members known exceed", "size: 3", "size: 2",
			"halfproxy.yaml:15: cluster.size 2 is less than the 3 nodes in cluster.listen and cluster.join: two halves could both believe to be the majority, count them all"},
		{"a partition_hold without end", "size: 3", "size: 3\n  partition_hold: 2h",
			"halfproxy.yaml:16: cluster.partition_hold \"2h\" is out of range: give a duration from 0s to 1h0m0s"},
		{"observers that there cannot be", "fall: 3", "fall: 3\n      observers: 0",
			`halfproxy.yaml:54: services[0] "web": check.observers 0 is out of range: give a number from 1 to 1000`},
		{"a limit without a number", "forward: l2", "forward: l2\n    limit: {burst: 5}",
			`halfproxy.yaml:40: services[0] "web": limit.packets is missing: give the number that each source may send in a second`},
		{"a limit of nothing", "forward: l2", "forward: l2\n    limit: {packets: 0}",
			`halfproxy.yaml:40: services[0] "web": limit.packets 0 is out of range: give a number from 1 to 100000000`},
		{"a limit of all sources together", "forward: l2", "forward: l2\n    limit: {packets: 5, ipv4_prefix: 0}",
			`halfproxy.yaml:40: services[0] "web": limit.ipv4_prefix 0 is out of range: give a number from 8 to 32`},
		{"a size in words", "size: 3", "size: three",
			`halfproxy.yaml:15: cluster.size "three" is no whole number: write it in decimal digits alone`},
		{"a size in quotes", "size: 3", `size: "3"`,
			`halfproxy.yaml:15: cluster.size "3" is text: write the number without quotes`},
		{"a size in octal, to some", "size: 3", "size: 03",
			"halfproxy.yaml:15: cluster.size 03 is no whole number: write it in decimal digits alone"},
		{"a key file without a name", "key_file: /etc/halfproxy/cluster.key", "key_file: ''",
			`halfproxy.yaml:14: cluster.key_file "" is empty: give it a value or remove it`},

		// bgp
		{"no AS number", "  asn: 64512", "  #",
			"halfproxy.yaml:17: bgp.asn is missing: give the number of this node's own autonomous system"},
		{"AS 0", "  asn: 64512", "  asn: 0",
			"halfproxy.yaml:18: bgp.asn 0 is reserved (RFC 7607): give the number of the autonomous system"},
		{"AS_TRANS", "  asn: 64512", "  asn: 23456",
			"halfproxy.yaml:18: bgp.asn 23456 is AS_TRANS, which only stands in for others (RFC 6793): give the number of the autonomous system"},
		{"an AS number that is too big", "  asn: 64512", "  asn: 4294967296",
			"halfproxy.yaml:18: bgp.asn 4294967296 is out of range: give a number from 1 to 4294967295"},
		{"an AS number with a dot", "  asn: 64512", "  asn: 1.10",
			"halfproxy.yaml:18: bgp.asn 1.10 is no whole number: write it in decimal digits alone"},
		{"no router ID", "  router_id: 10.0.1.1", "  #",
			"halfproxy.yaml:17: bgp.router_id is missing: write an IPv4 address, unique among the routers"},
		{"a router ID of IPv6", "  router_id: 10.0.1.1", "  router_id: 2001:db8::1",
			`halfproxy.yaml:19: bgp.router_id "2001:db8::1" is no router ID: write an IPv4 address other than 0.0.0.0, unique among the routers`},
		{"a community that cannot be one", `["64512:100"]`, `["65536:1", blackhole-ish]`,
			`halfproxy.yaml:20: bgp.communities[0] "65536:1" is no community: write 64512:100, 64512:1:2 or a well-known name such as no-export` + "\n" +
				`halfproxy.yaml:20: bgp.communities[1] "blackhole-ish" is no community: write 64512:100, 64512:1:2 or a well-known name such as no-export`},
		{"an AS that nobody can have", "  asn: 64512", "  asn: 65535",
			"halfproxy.yaml:18: bgp.asn 65535 is reserved (RFC 7300): give the number of the autonomous system"},
		{"a community of an AS that nobody can have", `["64512:100"]`, `["4294967295:0:1"]`,
			`halfproxy.yaml:20: bgp.communities[0] "4294967295:0:1" is of AS 4294967295, which is reserved (RFC 7300): use another`},
		{"a community listed twice", `["64512:100"]`, `["65535:65281", no-export]`,
			`halfproxy.yaml:20: bgp.communities[1] "no-export" is there already, in line 20: remove one of them`},
		{"no prefix at all allowed", "      ttl_security: true ", "      prefix_limit: 0 ",
			`halfproxy.yaml:26: bgp.peers[0] "10.0.1.254": prefix_limit 0 is out of range: give a number from 1 to 4294967295`},
		{"aggregates that cannot be", "  peers:\n    - address: 10.0.1.254\n", `  aggregates:
    - {prefix: 203.0.113.10/24}
    - {prefix: 203.0.113.0}
    - {prefix: 203.0.113.10/32}
    - {prefix: 0.0.0.0/0}
    - {prefix: 198.51.100.0/24}
    - {prefix: 10.0.0.0/8}
    - {prefix: 203.0.113.0/24, peers: [10.0.1.253, 10.0.1.254], specifics: some}
    - {prefix: 203.0.113.0/26, specifics: [none, 10.0.1.254]}
    - {prefix: 2001:db8::/64, peers: [10.0.1.254], specifics: ["2001:db8:1::254"], local_preference: 5}
    - {specifics: []}
  peers:
    - address: 10.0.1.254
      families: [ipv4]
`,
			`halfproxy.yaml:22: bgp.aggregates[0] "203.0.113.10/24": prefix "203.0.113.10/24" has bits beyond its length: write 203.0.113.0/24` + "\n" +
				`halfproxy.yaml:23: bgp.aggregates[1] "203.0.113.0": prefix "203.0.113.0" is no prefix: write one such as 203.0.113.0/24 or 2001:db8:10::/48` + "\n" +
				`halfproxy.yaml:24: bgp.aggregates[2] "203.0.113.10/32": prefix "203.0.113.10/32" is a single address, which is announced as a VIP: give a prefix around VIPs` + "\n" +
				`halfproxy.yaml:25: bgp.aggregates[3] "0.0.0.0/0": prefix "0.0.0.0/0" is every address there is, this host's too: give the prefix that clients know` + "\n" +
				`halfproxy.yaml:26: bgp.aggregates[4] "198.51.100.0/24": prefix "198.51.100.0/24" has no VIP in it, and would never be announced: give a prefix around VIPs, or remove it` + "\n" +
				`halfproxy.yaml:27: bgp.aggregates[5] "10.0.0.0/8": prefix "10.0.0.0/8" has in it 10.0.1.1, the address of cluster.listen: what is in an aggregate and no VIP is dropped by the nodes, give one without it` + "\n" +
				`halfproxy.yaml:27: bgp.aggregates[5] "10.0.0.0/8": prefix "10.0.0.0/8" has no VIP in it, and would never be announced: give a prefix around VIPs, or remove it` + "\n" +
				`halfproxy.yaml:28: bgp.aggregates[6] "203.0.113.0/24": peers[0] "10.0.1.253" is none of the addresses in bgp.peers: list it there, or remove it here` + "\n" +
				`halfproxy.yaml:28: bgp.aggregates[6] "203.0.113.0/24": specifics "some" is neither all nor none nor the address of a router: write one of them` + "\n" +
				`halfproxy.yaml:29: bgp.aggregates[7] "203.0.113.0/26": specifics[0] "none" stands alone, or not at all: write it in the place of the list` + "\n" +
				`halfproxy.yaml:29: bgp.aggregates[7] "203.0.113.0/26": prefix "203.0.113.0/26" overlaps "203.0.113.0/24", in line 28: each VIP is in one aggregate at most, remove one of them` + "\n" +
				`halfproxy.yaml:30: bgp.aggregates[8] "2001:db8::/64": local_preference 5 is of no use, no peer is of the AS 64512, and others are never told it: remove it, or use med or prepend` + "\n" +
				`halfproxy.yaml:30: bgp.aggregates[8] "2001:db8::/64": specifics[0] "2001:db8:1::254" is not told of the aggregate, and of the VIPs in any case: remove it, or add it to peers` + "\n" +
				`halfproxy.yaml:30: bgp.aggregates[8] "2001:db8::/64": prefix "2001:db8::/64" can be told to nobody, as no peer that it is for has IPv6 in families: add that, or remove it` + "\n" +
				`halfproxy.yaml:31: bgp.aggregates[9]: prefix is missing: give one around VIPs, such as 203.0.113.0/24` + "\n" +
				`halfproxy.yaml:31: bgp.aggregates[9]: specifics has no entry: write all, none, or the routers that are told of the VIPs too`},
		{"an aggregate in a VIP", "  peers:\n    - address: 10.0.1.254\n", "  aggregates: [{prefix: 203.0.113.16/28}]\n  peers:\n    - address: 10.0.1.254\n",
			`halfproxy.yaml:21: bgp.aggregates[0] "203.0.113.16/28": prefix "203.0.113.16/28" has no VIP in it, and would never be announced: give a prefix around VIPs, or remove it`},
		{"no peers", "    - address: 10.0.1.254\n      asn: 64500\n      hold_time: 9s\n      password_file: /etc/halfproxy/bgp.password     # TCP MD5\n      ttl_security: true            # GTSM, RFC 5082\n    - address: 2001:db8:1::254\n      asn: 64500", "    []",
			"halfproxy.yaml:21: bgp.peers has no entry: list the routers, or leave bgp out to announce nothing"},
		{"a peer without an address", "    - address: 2001:db8:1::254\n      asn: 64500", "    - asn: 64500",
			"halfproxy.yaml:27: bgp.peers[1]: address is missing: give that of the router"},
		{"a peer without an AS number", "address: 2001:db8:1::254\n      asn: 64500", "address: 2001:db8:1::254",
			`halfproxy.yaml:27: bgp.peers[1] "2001:db8:1::254": asn is missing: give the number of the router's autonomous system`},
		{"a peer listed twice", "address: 2001:db8:1::254", "address: 10.0.1.254",
			`halfproxy.yaml:27: bgp.peers[1] "10.0.1.254": address "10.0.1.254" is there already, in line 22: remove one of them, there is one session an address`},
		{"a link-local peer", "address: 2001:db8:1::254", "address: fe80::1%eth0",
			`halfproxy.yaml:27: bgp.peers[1] "fe80::1%eth0": address "fe80::1%eth0" is link-local and means another host on each interface: give a global or unique local address`},
		{"a hold time without a unit", "hold_time: 9s", "hold_time: 9",
			`halfproxy.yaml:24: bgp.peers[0] "10.0.1.254": hold_time 9 has no unit: write 9s if seconds are meant`},
		{"a hold time of 0", "hold_time: 9s", "hold_time: 0s",
			`halfproxy.yaml:24: bgp.peers[0] "10.0.1.254": hold_time "0s" would keep the routes of a dead node for ever: give at least 3s`},
		{"a hold time that BGP forbids", "hold_time: 9s", "hold_time: 2s",
			`halfproxy.yaml:24: bgp.peers[0] "10.0.1.254": hold_time "2s" is not allowed in BGP (RFC 4271, 4.2): give at least 3s`},
		{"a hold time that BGP cannot say", "hold_time: 9s", "hold_time: 4500ms",
			`halfproxy.yaml:24: bgp.peers[0] "10.0.1.254": hold_time "4500ms" is not in whole seconds, which is all that BGP can say: round it`},
		{"a hold time that is too long", "hold_time: 9s", "hold_time: 20h",
			`halfproxy.yaml:24: bgp.peers[0] "10.0.1.254": hold_time "20h" is longer than BGP can say: give at most 65535s`},
		{"a hold time that is none", "hold_time: 9s", "hold_time: 1 minute",
			`halfproxy.yaml:24: bgp.peers[0] "10.0.1.254": hold_time "1 minute" is no duration: write 500ms, 1s or 1m`},
		{"a switch that is neither on nor off", "ttl_security: true", "ttl_security: yes",
			`halfproxy.yaml:26: bgp.peers[0] "10.0.1.254": ttl_security "yes" is neither true nor false: write one of them, without quotes`},
		{"BFD too fast to be met", "      ttl_security: true            # GTSM, RFC 5082", "      bfd: {interval: 5ms}",
			`halfproxy.yaml:26: bgp.peers[0] "10.0.1.254": bfd.interval "5ms" is out of range: give a duration from 10ms to 1m0s`},
		{"BFD that no packet may miss", "      ttl_security: true            # GTSM, RFC 5082", "      bfd: {multiplier: 0}",
			`halfproxy.yaml:26: bgp.peers[0] "10.0.1.254": bfd.multiplier 0 is out of range: give a number from 1 to 255`},
		{"graceful ways without end", "  router_id: 10.0.1.1", "  router_id: 10.0.1.1\n  graceful_restart: 2h\n  graceful_shutdown: 1h\n  hold_up: 2m",
			`halfproxy.yaml:20: bgp.graceful_restart "2h" is out of range: give a duration from 0s to 1h8m15s` + "\n" +
				`halfproxy.yaml:21: bgp.graceful_shutdown "1h" is out of range: give a duration from 0s to 10m0s` + "\n" +
				`halfproxy.yaml:22: bgp.hold_up "2m" is out of range: give a duration from 0s to 1m0s`},
		{"a restart time that BGP cannot count", "  router_id: 10.0.1.1", "  router_id: 10.0.1.1\n  graceful_restart: 1500ms",
			`halfproxy.yaml:20: bgp.graceful_restart "1500ms" is not in whole seconds, which is all that BGP can count: round it`},
		{"a stop that waits for nothing", "xdp_mode: auto", "linger: 0s",
			`halfproxy.yaml:8: node.linger "0s" is out of range: give a duration from 1s to 10m0s`},
		{"a keepalive time that one lost packet ends the session with", "hold_time: 9s", "hold_time: 9s\n      keepalive_time: 4s",
			`halfproxy.yaml:25: bgp.peers[0] "10.0.1.254": keepalive_time "4s" is longer than a third of hold_time 9s: one lost packet could end the session, give at most 3s`},
		{"times that BGP cannot count", "hold_time: 9s", "keepalive_time: 1500ms\n      connect_retry_time: 2h",
			`halfproxy.yaml:24: bgp.peers[0] "10.0.1.254": keepalive_time "1500ms" is not in whole seconds, which is all that BGP can count: round it` + "\n" +
				`halfproxy.yaml:25: bgp.peers[0] "10.0.1.254": connect_retry_time "2h" is out of range: give a duration from 1s to 1h0m0s`},
		{"multihop to a neighbour", "hold_time: 9s", "multihop: 1",
			`halfproxy.yaml:24: bgp.peers[0] "10.0.1.254": multihop 1 is out of range: give a number from 2 to 255`},
		{"multihop with TTL security", "hold_time: 9s", "multihop: 3",
			`halfproxy.yaml:24: bgp.peers[0] "10.0.1.254": multihop 3 and ttl_security exclude each other: that takes packets of a neighbour alone, remove one of them`},
		{"BFD of a neighbour that is none", "      ttl_security: true ", "      multihop: 3\n      bfd: {multihop: false} ",
			`halfproxy.yaml:27: bgp.peers[0] "10.0.1.254": bfd.multihop false is for a neighbour, and the peer's own multihop says that the router is none: remove one of them`},
		{"BFD with options of others", "      ttl_security: true ", "      bfd: {minimum_ttl: 250, key_id: 300} ",
			`halfproxy.yaml:26: bgp.peers[0] "10.0.1.254": bfd.minimum_ttl 250 is of no use to a neighbour's session, whose packets arrive with 255: remove it, or set multihop: true` + "\n" +
				`halfproxy.yaml:26: bgp.peers[0] "10.0.1.254": bfd.key_id 300 is of no use without password_file: remove it, or add that`},
		{"multihop and prepend inside the AS", "      asn: 64500\n\nhttp", "      asn: 64512\n      multihop: 3\n      prepend: 1\n\nhttp",
			`halfproxy.yaml:29: bgp.peers[1] "2001:db8:1::254": multihop 3 is of no use to a router of the same AS, which may be any number of hops away: remove it` + "\n" +
				`halfproxy.yaml:30: bgp.peers[1] "2001:db8:1::254": prepend 1 is of no use to a router of the same AS, which would take the path for a loop: remove it, or use local_preference`},
		{"a local address of the other family", "hold_time: 9s", "local_address: '2001:db8:1::1'",
			`halfproxy.yaml:24: bgp.peers[0] "10.0.1.254": local_address "2001:db8:1::1" is of another family than the router's address: give one of the same, or none`},
		{"a session that nobody opens", "hold_time: 9s", "passive: true",
			`halfproxy.yaml:24: bgp.peers[0] "10.0.1.254": passive is of no use while nothing listens: give bgp.listen, such as "10.0.1.1:179"`},
		{"a session over the other family than what listens", "      asn: 64500\n\nhttp", "      asn: 64500\n      passive: true\n  listen: 10.0.1.1:179\n\nhttp",
			`halfproxy.yaml:29: bgp.peers[1] "2001:db8:1::254": passive is of no use to a router of the other family than bgp.listen "10.0.1.1:179": listen at "[::]:179", which is for both`},
		{"sessions that are taken nowhere", "  router_id: 10.0.1.1", "  router_id: 10.0.1.1\n  listen: 10.0.1.1",
			`halfproxy.yaml:20: bgp.listen "10.0.1.1" is no address and port: write 192.0.2.1:1234 or [2001:db8::1]:1234`},
		{"a family that there is not", "hold_time: 9s", "families: [ipv4, vpnv4]",
			`halfproxy.yaml:24: bgp.peers[0] "10.0.1.254": families[1] "vpnv4" is unknown: choose ipv4 or ipv6`},
		{"no family", "hold_time: 9s", "families: []",
			`halfproxy.yaml:24: bgp.peers[0] "10.0.1.254": families has no entry: name those of the VIPs that the router is to be told of, or leave it out`},
		{"next hops that are too many, or none", "hold_time: 9s", "next_hops: [10.0.1.1, 10.0.1.2, '::']",
			`halfproxy.yaml:24: bgp.peers[0] "10.0.1.254": next_hops[2] "::" is the unspecified address: give the one that others reach` + "\n" +
				`halfproxy.yaml:24: bgp.peers[0] "10.0.1.254": next_hops[1] "10.0.1.2" is the second one of its family: give one of each at most`},
		{"an IPv6 next hop for IPv4, and an IPv4 one", "hold_time: 9s", "next_hops: [10.0.1.1]\n      extended_next_hop: true",
			`halfproxy.yaml:25: bgp.peers[0] "10.0.1.254": extended_next_hop gives IPv4 VIPs an IPv6 next hop, so that "10.0.1.1" in next_hops is of no use: remove one of them`},
		{"an IPv6 next hop for IPv4 that is not told of", "hold_time: 9s", "families: [ipv6]\n      extended_next_hop: true",
			`halfproxy.yaml:25: bgp.peers[0] "10.0.1.254": extended_next_hop is of no use without ipv4 in families: remove one of them`},
		{"attributes of a peer that are out of range", "hold_time: 9s", "communities: ['1:2:3:4']\n      med: 4294967296\n      prepend: 11",
			`halfproxy.yaml:24: bgp.peers[0] "10.0.1.254": communities[0] "1:2:3:4" is no community: write 64512:100, 64512:1:2 or a well-known name such as no-export` + "\n" +
				`halfproxy.yaml:25: bgp.peers[0] "10.0.1.254": med 4294967296 is out of range: give a number from 0 to 4294967295` + "\n" +
				`halfproxy.yaml:26: bgp.peers[0] "10.0.1.254": prepend 11 is out of range: give a number from 0 to 10`},
		{"a local preference for another AS", "hold_time: 9s", "local_preference: 200",
			`halfproxy.yaml:24: bgp.peers[0] "10.0.1.254": local_preference 200 is of no use to a router of another AS, which is never told it: remove it, or use med or prepend`},
		{"a local preference that nobody is told", "min_healthy: 1 ", "local_preference: 200 ",
			`halfproxy.yaml:55: services[0] "web": announce.local_preference 200 is of no use, no peer is of the AS 64512, and others are never told it: remove it, or use med or prepend`},
		{"peers that there are not", "min_healthy: 1 ", "peers: [10.0.1.253, 10.0.1.254] ",
			`halfproxy.yaml:55: services[0] "web": announce.peers[0] "10.0.1.253" is none of the addresses in bgp.peers: list it there, or remove it here`},
		{"no peers for a service", "min_healthy: 1 ", "peers: [] ",
			`halfproxy.yaml:55: services[0] "web": announce.peers has no entry: list the routers that are told, or leave it out for all`},
		{"a VIP that is announced in two ways", "vips: [203.0.113.53]", "vips: [203.0.113.10]\n    announce: {med: 5}",
			`halfproxy.yaml:60: services[1] "dns": announce announces "203.0.113.10" in another way than service "web", line 54: it is one route, give both the same peers, communities, med, local_preference and prepend`},

		// http and admin
		{"http without an address", "listen: 127.0.0.1:9870", `listen: ":9870"`,
			`halfproxy.yaml:31: http.listen ":9870" has no address: write 127.0.0.1:9870, or [::]:9870 for all`},
		{"http where gossip is", "listen: 127.0.0.1:9870", "listen: 10.0.1.1:7946",
			`halfproxy.yaml:31: http.listen "10.0.1.1:7946" takes the port of cluster.listen "10.0.1.1:7946": give one of them another`},
		{"http where gossip is, among others", "listen: 127.0.0.1:9870", "listen: '[::]:7946'",
			`halfproxy.yaml:31: http.listen "[::]:7946" takes the port of cluster.listen "10.0.1.1:7946": give one of them another`},
		{"a relative socket", "socket: /run/halfproxy/admin.sock", "socket: admin.sock",
			`halfproxy.yaml:33: admin.socket "admin.sock" is no absolute path of a socket: write one such as /run/halfproxy/admin.sock`},
		{"a socket whose path is too long", "socket: /run/halfproxy/admin.sock", "socket: /xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
			`halfproxy.yaml:33: admin.socket "/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..." is 108 bytes long and a socket's path ends at 107 (unix(7)): shorten it`},

		// services
		{"no word of services", "services:\n", "service:\n",
			"halfproxy.yaml:1: services is missing: list them, or write [] for a node that serves nothing yet" + "\n" +
				`halfproxy.yaml:35: unknown key "service": did you mean "services"?`},
		{"a service without a name", "  - name: dns\n    vips: [203.0.113.53]", "  - vips: [203.0.113.53]",
			"halfproxy.yaml:58: services[1]: name is missing: commands, metrics and tables go by it"},
		{"a service whose name another has", "name: dns", "name: web",
			`halfproxy.yaml:58: services[1] "web": name "web" is there already, in line 36: names must be unique, commands and metrics go by them`},
		{"a service without VIPs", "    vips: [203.0.113.53]\n", "",
			`halfproxy.yaml:58: services[1] "dns": vips is missing: list the addresses that clients know`},
		{"a service without ports", "    ports: [udp/53, tcp/53]\n", "",
			`halfproxy.yaml:58: services[1] "dns": ports is missing: list them as tcp/443 or udp/53`},
		{"a service without backends", "    backends:\n      - {name: ns1, address: 10.9.0.11}\n      - {name: ns2, address: 10.9.0.12}\n", "",
			`halfproxy.yaml:58: services[1] "dns": backends is missing: list the servers, weight: 0 drains one that has to stay`},
		{"a service with an empty list of backends", "    backends:\n      - {name: ns1, address: 10.9.0.11}\n      - {name: ns2, address: 10.9.0.12}\n", "    backends: []\n",
			`halfproxy.yaml:62: services[1] "dns": backends has no entry: list the servers, weight: 0 drains one that has to stay`},
		{"a service with more backends than a table tells apart", "    backends:\n      - {name: ns1, address: 10.9.0.11}\n      - {name: ns2, address: 10.9.0.12}\n", "    backends:\n" + manyBackends(16_385),
			`halfproxy.yaml:62: services[1] "dns": backends has 16385 entries, a service can have 16384: make several services of it`},
		{"a VIP that is no address", "vips: [203.0.113.53]", "vips: [203.0.113.553]",
			`halfproxy.yaml:59: services[1] "dns": vips[0] "203.0.113.553" is no IP address: write one such as 192.0.2.1 or 2001:db8::1`},
		{"an unknown hash", "    forward: ipip", "    hash: maglev\n    forward: ipip",
			`halfproxy.yaml:61: services[1] "dns": hash "maglev" is unknown: choose flow, source, destination, source_port or destination_port, some of them in a list`},
		{"an unknown field to hash", "    forward: ipip", "    hash: [source, port]\n    forward: ipip",
			`halfproxy.yaml:61: services[1] "dns": hash[1] "port" is unknown: choose flow, source, destination, source_port or destination_port, some of them in a list`},
		{"no field to hash", "    forward: ipip", "    hash: []\n    forward: ipip",
			`halfproxy.yaml:61: services[1] "dns": hash has no entry: name what tells flows apart, or leave it out`},
		{"a field to hash twice", "    forward: ipip", "    hash: [source, destination, source]\n    forward: ipip",
			`halfproxy.yaml:61: services[1] "dns": hash[2] "source" is there already, in line 61: remove one of them`},
		{"a field to hash that flow has in it", "    forward: ipip", "    hash: [source, flow]\n    forward: ipip",
			`halfproxy.yaml:61: services[1] "dns": hash[1] names source once more: remove one of them`},
		{"a hash that all clients share", "    forward: ipip", "    hash: [destination, destination_port]\n    forward: ipip",
			`halfproxy.yaml:61: services[1] "dns": hash destination, destination_port is the same of all clients, one backend would get them all: add source or source_port, or hash the destination of a VIP that is a prefix`},
		{"a hash that all clients of a prefix share", "vips: [203.0.113.53]\n    ports: [udp/53, tcp/53]", "vips: [203.0.113.0/28]\n    ports: [udp/53, tcp/53]\n    hash: destination_port",
			`halfproxy.yaml:61: services[1] "dns": hash destination_port is the same of all clients, one backend would get them all: add source or source_port, or hash the destination of a VIP that is a prefix`},
		{"a VIP that is no prefix", "vips: [203.0.113.53]", "vips: [203.0.113.0/33, 'x/8', '2001:db8::/129']",
			`halfproxy.yaml:59: services[1] "dns": vips[0] "203.0.113.0/33" is no prefix: write one such as 203.0.113.0/28 or 2001:db8:10::/64` + "\n" +
				`halfproxy.yaml:59: services[1] "dns": vips[1] "x/8" is no prefix: write one such as 203.0.113.0/28 or 2001:db8:10::/64` + "\n" +
				`halfproxy.yaml:59: services[1] "dns": vips[2] "2001:db8::/129" is no prefix: write one such as 203.0.113.0/28 or 2001:db8:10::/64`},
		{"a prefix with bits beyond its length", "vips: [203.0.113.53]", "vips: [203.0.113.53/28, '2001:db8:10::53/64']",
			`halfproxy.yaml:59: services[1] "dns": vips[0] "203.0.113.53/28" has bits beyond its length: write 203.0.113.48/28 for all of them, 203.0.113.53 for the one address` + "\n" +
				`halfproxy.yaml:59: services[1] "dns": vips[1] "2001:db8:10::53/64" has bits beyond its length: write 2001:db8:10::/64 for all of them, 2001:db8:10::53 for the one address`},
		{"a prefix of everything", "vips: [203.0.113.53]", "vips: [0.0.0.0/0, '::/0']",
			`halfproxy.yaml:59: services[1] "dns": vips[0] "0.0.0.0/0" is every address there is, this host's too: give the prefix that clients know` + "\n" +
				`halfproxy.yaml:59: services[1] "dns": vips[1] "::/0" is every address there is, this host's too: give the prefix that clients know`},
		{"prefixes that routers cannot be told of", "vips: [203.0.113.53]", "vips: [96.0.0.0/3, 169.254.1.0/24, 240.0.0.0/4, 224.0.0.0/8, '::/16', '::ffff:192.0.2.0/120', 'fe80::/64', 127.0.0.1/32]",
			`halfproxy.yaml:59: services[1] "dns": vips[0] "96.0.0.0/3" reaches into 127.0.0.0/8, which is not routed: a VIP must be addresses that clients reach through routers` + "\n" +
				`halfproxy.yaml:59: services[1] "dns": vips[1] "169.254.1.0/24" reaches into 169.254.0.0/16, which is not routed: a VIP must be addresses that clients reach through routers` + "\n" +
				`halfproxy.yaml:59: services[1] "dns": vips[2] "240.0.0.0/4" reaches into 255.255.255.255/32, which is not routed: a VIP must be addresses that clients reach through routers` + "\n" +
				`halfproxy.yaml:59: services[1] "dns": vips[3] "224.0.0.0/8" reaches into 224.0.0.0/4, which is not routed: a VIP must be addresses that clients reach through routers` + "\n" +
				`halfproxy.yaml:59: services[1] "dns": vips[4] "::/16" reaches into ::/127, which is not routed: a VIP must be addresses that clients reach through routers` + "\n" +
				`halfproxy.yaml:59: services[1] "dns": vips[5] "::ffff:192.0.2.0/120" reaches into ::ffff:0.0.0.0/96, which is not routed: a VIP must be addresses that clients reach through routers` + "\n" +
				`halfproxy.yaml:59: services[1] "dns": vips[6] "fe80::/64" reaches into fe80::/10, which is not routed: a VIP must be addresses that clients reach through routers` + "\n" +
				`halfproxy.yaml:59: services[1] "dns": vips[7] "127.0.0.1/32" reaches into 127.0.0.0/8, which is not routed: a VIP must be addresses that clients reach through routers`},
		{"an address twice, once as a prefix", "vips: [203.0.113.53]", "vips: [203.0.113.53, 203.0.113.53/32]",
			`halfproxy.yaml:59: services[1] "dns": vips[1] "203.0.113.53/32" is there already, in line 59: remove one of them`},
		{"a prefix and port that another service has", "  - name: dns\n    vips: [203.0.113.53]", "  - {name: dns2, vips: [203.0.113.0/28, 203.0.113.16/28], ports: [tcp/53], backends: [{name: ns1, address: 10.9.0.11}]}\n  - name: dns\n    vips: [203.0.113.0/28, 203.0.113.0/24, 203.0.113.0/29, 203.0.113.0]",
			`halfproxy.yaml:60: services[2] "dns": vips[0] "203.0.113.0/28" with tcp/53 belongs to service "dns2" already, by line 58: give it another port or address`},
		{"prefixes with machines in them", "vips: [203.0.113.53]", "vips: [10.0.1.0/30, 10.0.1.12/30, 10.0.1.252/30, '2001:db8:1::/48', 10.9.0.8/29, 10.0.1.64/26]",
			`halfproxy.yaml:59: services[1] "dns": vips[0] "10.0.1.0/30" has in it 10.0.1.1, the address of cluster.listen: a VIP is nobody's own address, give prefixes without it` + "\n" +
				`halfproxy.yaml:59: services[1] "dns": vips[1] "10.0.1.12/30" has in it 10.0.1.12, the address of backend "web2" of service "web": a VIP is nobody's own address, give prefixes without it` + "\n" +
				`halfproxy.yaml:59: services[1] "dns": vips[2] "10.0.1.252/30" has in it 10.0.1.254, the address of a peer in bgp.peers: a VIP is nobody's own address, give prefixes without it` + "\n" +
				`halfproxy.yaml:59: services[1] "dns": vips[3] "2001:db8:1::/48" has in it 2001:db8:1::254, the address of a peer in bgp.peers: a VIP is nobody's own address, give prefixes without it` + "\n" +
				`halfproxy.yaml:59: services[1] "dns": vips[4] "10.9.0.8/29" has in it 10.9.0.11, the address of backend "ns1" of service "dns": a VIP is nobody's own address, give prefixes without it`},
		{"VIPs that routers cannot be told of", "vips: [203.0.113.53]", "vips: [0.0.0.0, 127.0.0.1, 224.0.0.1, 169.254.0.1, 'fe80::1', '::ffff:203.0.113.53', 255.255.255.255]",
			`halfproxy.yaml:59: services[1] "dns": vips[0] "0.0.0.0" is the unspecified address: give the one that others reach` + "\n" +
				`halfproxy.yaml:59: services[1] "dns": vips[1] "127.0.0.1" is not routed: a VIP must be an address that clients reach through routers` + "\n" +
				`halfproxy.yaml:59: services[1] "dns": vips[2] "224.0.0.1" is no unicast address: give that of one host` + "\n" +
				`halfproxy.yaml:59: services[1] "dns": vips[3] "169.254.0.1" is not routed: a VIP must be an address that clients reach through routers` + "\n" +
				`halfproxy.yaml:59: services[1] "dns": vips[4] "fe80::1" is link-local and means another host on each interface: give a global or unique local address` + "\n" +
				`halfproxy.yaml:59: services[1] "dns": vips[5] "::ffff:203.0.113.53" is an IPv4 address in IPv6 clothes: write 203.0.113.53` + "\n" +
				`halfproxy.yaml:59: services[1] "dns": vips[6] "255.255.255.255" is no unicast address: give that of one host`},
		{"a VIP listed twice", `vips: [203.0.113.10, "2001:db8::10"]`, `vips: [203.0.113.10, "2001:db8::10", "2001:DB8:0::10"]`,
			`halfproxy.yaml:37: services[0] "web": vips[2] "2001:DB8:0::10" is there already, in line 37: remove one of them`},
		{"a VIP and port that another service has", "vips: [203.0.113.53]\n    ports: [udp/53, tcp/53]", "vips: [203.0.113.10]\n    ports: [udp/53, tcp/80]",
			`halfproxy.yaml:59: services[1] "dns": vips[0] "203.0.113.10" with tcp/80 belongs to service "web" already, by line 37: give it another port or address`},
		{"a VIP that is a backend", "vips: [203.0.113.53]", "vips: [10.0.1.12]",
			`halfproxy.yaml:59: services[1] "dns": vips[0] "10.0.1.12" is also the address of backend "web2" of service "web": a VIP is nobody's own address, give it one that is free`},
		{"a VIP that is this node", "vips: [203.0.113.53]", "vips: [10.0.1.1]",
			`halfproxy.yaml:59: services[1] "dns": vips[0] "10.0.1.1" is also the address of cluster.listen: a VIP is nobody's own address, give it one that is free`},
		{"a VIP that is another member", "vips: [203.0.113.53]", "vips: [10.0.1.3]",
			`halfproxy.yaml:59: services[1] "dns": vips[0] "10.0.1.3" is also the address of a member in cluster.join: a VIP is nobody's own address, give it one that is free`},
		{"a VIP that is a router", "vips: [203.0.113.53]", "vips: [10.0.1.254]",
			`halfproxy.yaml:59: services[1] "dns": vips[0] "10.0.1.254" is also the address of a peer in bgp.peers: a VIP is nobody's own address, give it one that is free`},
		{"ports that are none", "ports: [udp/53, tcp/53]", "ports: [53, tcp/0, tcp/65536, TCP/53, tcp/053, udp]",
			`halfproxy.yaml:60: services[1] "dns": ports[0] 53 is no port: write tcp/80, tcp/1000-2000 or tcp/*, with tcp, udp, sctp or udplite and ports from 1 to 65535` + "\n" +
				`halfproxy.yaml:60: services[1] "dns": ports[1] "tcp/0" is no port: write tcp/80, tcp/1000-2000 or tcp/*, with tcp, udp, sctp or udplite and ports from 1 to 65535` + "\n" +
				`halfproxy.yaml:60: services[1] "dns": ports[2] "tcp/65536" is no port: write tcp/80, tcp/1000-2000 or tcp/*, with tcp, udp, sctp or udplite and ports from 1 to 65535` + "\n" +
				`halfproxy.yaml:60: services[1] "dns": ports[3] "TCP/53" is no port: write tcp/80, tcp/1000-2000 or tcp/*, with tcp, udp, sctp or udplite and ports from 1 to 65535` + "\n" +
				`halfproxy.yaml:60: services[1] "dns": ports[4] "tcp/053" is no port: write tcp/80, tcp/1000-2000 or tcp/*, with tcp, udp, sctp or udplite and ports from 1 to 65535` + "\n" +
				`halfproxy.yaml:60: services[1] "dns": ports[5] "udp" is no port: write tcp/80, tcp/1000-2000 or tcp/*, with tcp, udp, sctp or udplite and ports from 1 to 65535`},
		{"sets of ports that are none", "ports: [udp/53, tcp/53]", "ports: [all, tcp/60-53, tcp/53-53, udp/53-, udp/0-9, \"*/53\", tcp/1-65536]",
			strings.Join([]string{
				`halfproxy.yaml:60: services[1] "dns": ports[0] "all" is no port: write tcp/80, tcp/1000-2000 or tcp/*, with tcp, udp, sctp or udplite and ports from 1 to 65535`,
				`halfproxy.yaml:60: services[1] "dns": ports[1] "tcp/60-53" is no range of ports: its last one has to be above its first`,
				`halfproxy.yaml:60: services[1] "dns": ports[2] "tcp/53-53" is no range of ports: its last one has to be above its first`,
				`halfproxy.yaml:60: services[1] "dns": ports[3] "udp/53-" is no port: write tcp/80, tcp/1000-2000 or tcp/*, with tcp, udp, sctp or udplite and ports from 1 to 65535`,
				`halfproxy.yaml:60: services[1] "dns": ports[4] "udp/0-9" is no port: write tcp/80, tcp/1000-2000 or tcp/*, with tcp, udp, sctp or udplite and ports from 1 to 65535`,
				`halfproxy.yaml:60: services[1] "dns": ports[5] "*/53" is no port: write tcp/80, tcp/1000-2000 or tcp/*, with tcp, udp, sctp or udplite and ports from 1 to 65535`,
				`halfproxy.yaml:60: services[1] "dns": ports[6] "tcp/1-65536" is no port: write tcp/80, tcp/1000-2000 or tcp/*, with tcp, udp, sctp or udplite and ports from 1 to 65535`,
			}, "\n")},
		{"ranges of ports that overlap", "ports: [udp/53, tcp/53]", "ports: [tcp/53, tcp/50-60, tcp/60-70, udp/*]",
			`halfproxy.yaml:60: services[1] "dns": ports[2] "tcp/60-70" overlaps tcp/50-60: make one of them`},
		{"a port listed twice", "ports: [udp/53, tcp/53]", "ports: [udp/53, tcp/53, udp/53]",
			`halfproxy.yaml:60: services[1] "dns": ports[2] "udp/53" is there already, in line 60: remove one of them`},
		{"a way of forwarding that there is not", "forward: ipip", "forward: nat",
			`halfproxy.yaml:61: services[1] "dns": forward "nat" is unknown: choose l2, ipip, gre or gue`},
		{"a port of GUE for another way of forwarding", "forward: ipip", "forward: gre\n    gue: {port: 6081}",
			`halfproxy.yaml:62: services[1] "dns": gue is of no use to forward gre: remove it, or set forward: gue`},
		{"a port of GUE that is none", "forward: ipip", "forward: gue\n    gue: {port: 0}",
			`halfproxy.yaml:62: services[1] "dns": gue.port 0 is out of range: give a number from 1 to 65535`},
		{"a checksum of GUE that there is not", "forward: ipip", "forward: gue\n    gue: {checksum: udp}",
			`halfproxy.yaml:62: services[1] "dns": gue.checksum "udp" is unknown: choose zero or full`},
		{"outer sources without an outer header", "forward: ipip", "forward: l2\n    outer_sources: [198.51.100.0/24]",
			`halfproxy.yaml:62: services[1] "dns": outer_sources is of no use to forward l2, which has no outer header: remove it`},
		{"outer sources that are none, or too many", "forward: ipip", "forward: gre\n    outer_sources: [198.51.100.1, 198.51.100.1/24, 198.51.100.0/24, 198.18.0.0/15, 224.0.0.0/4]",
			`halfproxy.yaml:62: services[1] "dns": outer_sources[0] "198.51.100.1" is no prefix: write one such as 198.51.100.0/24 or 2001:db8:5::/64` + "\n" +
				`halfproxy.yaml:62: services[1] "dns": outer_sources[1] "198.51.100.1/24" has bits beyond its length: write 198.51.100.0/24` + "\n" +
				`halfproxy.yaml:62: services[1] "dns": outer_sources[4] "224.0.0.0/4" is no unicast address: give that of one host` + "\n" +
				`halfproxy.yaml:62: services[1] "dns": outer_sources[3] "198.18.0.0/15" is the second prefix of its family: give one of each at most`},
		{"QUIC without the length of a server ID", "forward: l2 ", "quic: {} ",
			`halfproxy.yaml:39: services[0] "web": quic.server_id_length is missing: give the number of bytes that a backend's connection IDs begin with, after their first one`},
		{"QUIC with server IDs that do not fit in a connection ID", "forward: l2 ", "quic: {server_id_length: 16} ",
			`halfproxy.yaml:39: services[0] "web": quic.server_id_length 16 is out of range: give a number from 1 to 15`},
		{"QUIC with the codepoint of those that are not to be routed", "forward: l2 ", "quic: {server_id_length: 2, config_rotation: 7} ",
			`halfproxy.yaml:39: services[0] "web": quic.config_rotation 7 is out of range: give a number from 0 to 6`},
		{"QUIC without a port of UDP", "    ports: [tcp/80, tcp/443, udp/443]\n", "    ports: [tcp/80, tcp/443]\n    quic: {server_id_length: 2}\n",
			`halfproxy.yaml:39: services[0] "web": quic is of no use without a UDP port: remove it, or list one such as udp/443`},
		{"a server ID without QUIC", "weight: 50", "weight: 50, quic_server_id: 0a01",
			`halfproxy.yaml:43: services[0] "web": backends[1] "web2": quic_server_id "0a01" is of no use without quic in the service: remove it, or add that`},
		{"a server ID that is longer than the service's", "forward: ipip\n    backends:\n      - {name: ns1, address: 10.9.0.11}\n      - {name: ns2, address: 10.9.0.12}",
			"quic: {server_id_length: 1}\n    backends:\n      - {name: ns1, address: 10.9.0.11, quic_server_id: 0a01}\n      - {name: ns2, address: 10.9.0.12}",
			`halfproxy.yaml:63: services[1] "dns": backends[0] "ns1": quic_server_id "0a01" is no server ID: write it in hexadecimal, 2 digits for a quic.server_id_length of 1`},
		{"a server ID that is not hexadecimal", "forward: ipip\n    backends:\n      - {name: ns1, address: 10.9.0.11}\n      - {name: ns2, address: 10.9.0.12}",
			"quic: {server_id_length: 2}\n    backends:\n      - {name: ns1, address: 10.9.0.11, quic_server_id: web1}\n      - {name: ns2, address: 10.9.0.12}",
			`halfproxy.yaml:63: services[1] "dns": backends[0] "ns1": quic_server_id "web1" is no server ID: write it in hexadecimal, 4 digits for a quic.server_id_length of 2`},
		{"a server ID that another backend has", "forward: ipip\n    backends:\n      - {name: ns1, address: 10.9.0.11}\n      - {name: ns2, address: 10.9.0.12}",
			"quic: {server_id_length: 2}\n    backends:\n      - {name: ns1, address: 10.9.0.11, quic_server_id: 0001}\n      - {name: ns2, address: 10.9.0.12, quic_server_id: 0001}",
			`halfproxy.yaml:64: services[1] "dns": backends[1] "ns2": quic_server_id "0001" is what the backend in line 63 has: give each its own`},
		{"a server ID that another backend has from its address", "forward: ipip\n    backends:\n      - {name: ns1, address: 10.9.0.11}\n      - {name: ns2, address: 10.9.0.12}",
			"quic: {server_id_length: 2}\n    backends:\n      - {name: ns1, address: 10.9.0.11, quic_server_id: 000c}\n      - {name: ns2, address: 10.9.0.12}",
			`halfproxy.yaml:64: services[1] "dns": backends[1] "ns2": quic_server_id "000c" is what the backend in line 63 has: give each its own`},
		{"a server ID that an address is too short for", "forward: ipip\n    backends:\n      - {name: ns1, address: 10.9.0.11}\n      - {name: ns2, address: 10.9.0.12}",
			"quic: {server_id_length: 5}\n    backends:\n      - {name: ns1, address: 10.9.0.11}\n      - {name: ns2, address: 2001:db8::12}",
			`halfproxy.yaml:63: services[1] "dns": backends[0] "ns1": quic_server_id is missing: an IPv4 address is too short to take 5 bytes from, give them in hexadecimal`},
		{"a backend without a name", "{name: ns1, address: 10.9.0.11}", "{address: 10.9.0.11}",
			`halfproxy.yaml:63: services[1] "dns": backends[0] "10.9.0.11": name is missing: the table is computed from it`},
		{"a backend without an address", "{name: ns1, address: 10.9.0.11}", "{name: ns1}",
			`halfproxy.yaml:63: services[1] "dns": backends[0] "ns1": address is missing: give that of the server`},
		{"a backend whose name another has", "name: ns2", "name: ns1",
			`halfproxy.yaml:64: services[1] "dns": backends[1] "ns1": name "ns1" is there already, in line 63: names must be unique, the table is computed from them`},
		{"a backend whose address another has", "address: 10.9.0.12", "address: 10.9.0.11",
			`halfproxy.yaml:64: services[1] "dns": backends[1] "ns2": address "10.9.0.11" is there already, in line 63: remove one of them, weight gives a server a larger share`},
		{"a backend on this machine's loopback", "address: 10.9.0.12", "address: 127.0.0.1",
			`halfproxy.yaml:64: services[1] "dns": backends[1] "ns2": address "127.0.0.1" is the loopback address: a backend is reached through the network`},
		{"a hold time below zero", "hold_time: 9s", "hold_time: -9s",
			`halfproxy.yaml:24: bgp.peers[0] "10.0.1.254": hold_time "-9s" is not allowed in BGP (RFC 4271, 4.2): give at least 3s`},
		{"a negative weight", "weight: 50", "weight: -1",
			`halfproxy.yaml:43: services[0] "web": backends[1] "web2": weight -1 is out of range: give a number from 0 to 10000`},
		{"a weight that is too big", "weight: 50", "weight: 10001",
			`halfproxy.yaml:43: services[0] "web": backends[1] "web2": weight 10001 is out of range: give a number from 0 to 10000`},
		{"a weight in percent", "weight: 50", "weight: 50%",
			`halfproxy.yaml:43: services[0] "web": backends[1] "web2": weight "50%" is no whole number: write it in decimal digits alone`},

		// check
		{"a check that there is not", "type: tcp,", "type: ping,",
			`halfproxy.yaml:65: services[1] "dns": check.type "ping" is unknown: choose tcp, http, https, grpc, dns, udp or exec`},
		{"a port out of range", "port: 80", "port: 65536",
			`halfproxy.yaml:46: services[0] "web": check.port 65536 is out of range: give a number from 1 to 65535`},
		{"no port, and no TCP port either", "ports: [udp/53, tcp/53]", "ports: [udp/53]",
			`halfproxy.yaml:65: services[1] "dns": check.port is missing and the service has no TCP port to try: name one that tells whether a backend is well`},
		{"no check at all, and no TCP port either", "ports: [udp/53, tcp/53]\n    forward: ipip\n    backends:\n      - {name: ns1, address: 10.9.0.11}\n      - {name: ns2, address: 10.9.0.12}\n    check: {type: tcp, via: direct}", "ports: [udp/53]\n    backends: [{name: ns1, address: 10.9.0.11}]",
			`halfproxy.yaml:58: services[1] "dns": check.port is missing and the service has no TCP port to try: name one that tells whether a backend is well`},
		{"a path for tcp", "type: tcp,", "type: tcp, path: /,",
			`halfproxy.yaml:65: services[1] "dns": check.path "/" is of no use to type tcp: remove it, or set type: http or https`},
		{"a path that is none", "path: /healthz", "path: http://web/healthz",
			`halfproxy.yaml:47: services[0] "web": check.path "http://web/healthz" is no path of a request: begin it with / and percent-encode what is not plain ASCII`},
		{"a path with a blank", "path: /healthz", "path: /health z",
			`halfproxy.yaml:47: services[0] "web": check.path "/health z" is no path of a request: begin it with / and percent-encode what is not plain ASCII`},
		{"a way that there is not", "{type: tcp, via: direct}", "{type: tcp, via: ipip}",
			`halfproxy.yaml:65: services[1] "dns": check.via "ipip" is unknown: choose vip or direct`},
		{"a timeout as long as the interval", "timeout: 500ms", "timeout: 1s",
			`halfproxy.yaml:51: services[0] "web": check.timeout "1s" is not shorter than interval 1s: a probe must be over before the next begins`},
		{"a timeout that is longer than the default interval", "      interval: 1s\n      timeout: 500ms", "      timeout: 2s",
			`halfproxy.yaml:50: services[0] "web": check.timeout "2s" is not shorter than interval 1s: a probe must be over before the next begins`},
		{"an interval that is too short", "interval: 1s", "interval: 1ms",
			`halfproxy.yaml:50: services[0] "web": check.interval "1ms" is out of range: give a duration from 10ms to 1h0m0s`},
		{"an interval below zero", "interval: 1s", "interval: -1s",
			`halfproxy.yaml:50: services[0] "web": check.interval "-1s" is out of range: give a duration from 10ms to 1h0m0s`},
		{"no rise and no fall", "rise: 2\n      fall: 3", "rise: 0\n      fall: 0",
			`halfproxy.yaml:52: services[0] "web": check.rise 0 is out of range: give a number from 1 to 1000` + "\n" +
				`halfproxy.yaml:53: services[0] "web": check.fall 0 is out of range: give a number from 1 to 1000`},

		// announce
		{"more healthy backends than there are", "min_healthy: 1 ", "min_healthy: 3 ",
			`halfproxy.yaml:55: services[0] "web": announce.min_healthy 3 is more than the 2 backends there are: the VIPs would never be announced, give at most 2`},
		{"no healthy backend", "min_healthy: 1 ", "min_healthy: 0 ",
			`halfproxy.yaml:55: services[0] "web": announce.min_healthy 0 is out of range: give a number from 1 to 65536`},
		{"a share over the whole", "min_healthy: 1 ", "min_healthy: 101% ",
			`halfproxy.yaml:55: services[0] "web": announce.min_healthy "101%" is neither a number nor a share of the backends: write 1, or a share from "1%" to "100%"`},
		{"a share of none", "min_healthy: 1 ", "min_healthy: 0% ",
			`halfproxy.yaml:55: services[0] "web": announce.min_healthy "0%" is neither a number nor a share of the backends: write 1, or a share from "1%" to "100%"`},
		{"another thing to do without a healthy backend", "min_healthy: 1 ", "none_healthy: keep ",
			`halfproxy.yaml:55: services[0] "web": announce.none_healthy "keep" is unknown: choose withdraw or use_all`},
		{"a share without its sign", "panic_below: 0%", "panic_below: 30",
			`halfproxy.yaml:56: services[0] "web": panic_below 30 has no percent sign: write 30%`},
		{"a share with a fraction", "panic_below: 0%", "panic_below: 33.3%",
			`halfproxy.yaml:56: services[0] "web": panic_below "33.3%" is no share: write whole percents from 0% to 100%`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := edit(t, tt.old, tt.new)
			cfg, err := Parse("halfproxy.yaml", []byte(file))
			wantErrors(t, err, tt.want)
			bySchema(t, nodeSchema, file, err)
			if len(cfg.Services) != 0 || cfg.Node.Name != "" {
				t.Errorf("a wrong file gives a configuration: %+v", cfg)
			}
		})
	}
}

// Each row is what stands between the braces of a check; want is all that is said
// about it, behind its path.
func TestParseRefusesChecks(t *testing.T) {
	for _, tt := range []struct{ name, check, want string }{
		// What a type has no use for.
		{"options of the web for grpc", "type: grpc, path: /, method: GET, headers: {A: hush}, status: 200, body: ok, body_regexp: ok, http2: true",
			`path "/" is of no use to type grpc: remove it, or set type: http or https
method "GET" is of no use to type grpc: remove it, or set type: http or https
headers is of no use to type grpc: remove it, or set type: http or https
status 200 is of no use to type grpc: remove it, or set type: http or https
body "ok" is of no use to type grpc: remove it, or set type: http or https
body_regexp "ok" is of no use to type grpc: remove it, or set type: http or https
http2 true is of no use to type grpc: remove it, or set type: http or https`},
		{"options of tls for http", "type: http, tls: true, verify: false, ca_file: ca.pem, cert_file: node.crt, key_file: node.key, service: shop.Cart",
			`tls true is of no use to type http: remove it, or set type: grpc
verify false is of no use to type http: remove it, or set type: https or grpc
ca_file "ca.pem" is of no use to type http: remove it, or set type: https or grpc
cert_file "node.crt" is of no use to type http: remove it, or set type: https or grpc
key_file "node.key" is of no use to type http: remove it, or set type: https or grpc
service "shop.Cart" is of no use to type http: remove it, or set type: grpc`},
		{"options of dns for tcp", "type: tcp, host: www, query: example.org, query_type: A, rcode: NOERROR, over: tcp, answer: 192.0.2.1",
			`host "www" is of no use to type tcp: remove it, or set type: http, https or grpc
query "example.org" is of no use to type tcp: remove it, or set type: dns
query_type "A" is of no use to type tcp: remove it, or set type: dns
rcode "NOERROR" is of no use to type tcp: remove it, or set type: dns
over is of no use to type tcp: remove it, or set type: dns
answer "192.0.2.1" is of no use to type tcp: remove it, or set type: dns or udp`},
		{"options of udp and exec for dns", "type: dns, query: example.org, payload: ping, payload_hex: 00, answer_hex: 00, silent: true, command: [/bin/check]",
			`payload "ping" is of no use to type dns: remove it, or set type: udp
payload_hex 00 is of no use to type dns: remove it, or set type: udp
answer_hex 00 is of no use to type dns: remove it, or set type: udp
silent true is of no use to type dns: remove it, or set type: udp
command is of no use to type dns: remove it, or set type: exec`},

		{"a hold that is too long", "type: tcp, flap_hold: 25h",
			`flap_hold "25h" is out of range: give a duration from 0s to 24h0m0s`},

		{"a start that is too slow", "type: tcp, slow_start: 61m",
			`slow_start "61m" is out of range: give a duration from 0s to 1h0m0s`},

		// http, https
		{"a host with a port", "type: http, host: 'www.example.org:80'",
			`host "www.example.org:80" is no host name: write one such as www.example.org, without a port`},
		{"a method that is none", "type: http, method: get",
			`method "get" is unknown: choose GET, HEAD, OPTIONS or POST`},
		{"headers that are none", `type: http, headers: {"X Probe": a, Host: www, content-length: 0, A: "one\nhush", B: "", C: [hush]}`,
			`headers.C is a list, it has to be a single value
headers has "X Probe", which is no name of a header: use letters, digits and dashes
headers.Host is set by the probe: give the name as the check's host
headers.content-length is set by the probe: remove it
headers.A has a value that is no header's: use plain ASCII, in one line
headers.B has a value that is no header's: use plain ASCII, in one line`},
		{"a header given twice", `type: http, headers: {A: hush, A: hush}`,
			`headers: key "A" is given twice: remove this one or that in line 65`},
		{"headers in a list", `type: http, headers: ["A: hush"]`,
			`headers is a list, it has to be a mapping: write key: value`},
		{"a status that is none", "type: http, status: ok",
			`status "ok" is no set of statuses: write 200, or "200-299,301", with statuses from 200 to 599`},
		{"statuses in the wrong order", `type: http, status: "299-200"`,
			`status "299-200" is no set of statuses: write 200, or "200-299,301", with statuses from 200 to 599`},
		{"a status that ends no request", `type: http, status: 101`,
			`status 101 is no set of statuses: write 200, or "200-299,301", with statuses from 200 to 599`},
		{"a body that is a number", `type: http, body: 42`,
			`body 42 is not text: put it in quotes`},
		{"a regular expression that is none", `type: http, body_regexp: "(ok"`,
			`body_regexp "(ok" is no regular expression (missing closing )): see the syntax of RE2`},
		{"a body of HEAD", `type: http, method: HEAD, body: ok`,
			`body "ok" is of no use to method HEAD, whose answer has no body: remove it, or set method: GET`},
		{"a switch that is neither on nor off", `type: http, http2: on`,
			`http2 "on" is neither true nor false: write one of them, without quotes`},

		// TLS
		{"authorities for nothing", "type: https, verify: false, ca_file: ca.pem",
			`ca_file "ca.pem" is of no use with verify: false: remove one of them`},
		{"a certificate without a key", "type: https, cert_file: node.crt",
			`cert_file "node.crt" has no key_file: name the file with its key`},
		{"a key without a certificate", "type: https, key_file: node.key",
			`key_file "node.key" has no cert_file: name the file with its certificate`},
		{"options of tls without tls", "type: grpc, verify: false, ca_file: ca.pem, cert_file: node.crt, key_file: node.key",
			`verify false is of no use without tls: remove it, or set tls: true
ca_file "ca.pem" is of no use without tls: remove it, or set tls: true
cert_file "node.crt" is of no use without tls: remove it, or set tls: true
key_file "node.key" is of no use without tls: remove it, or set tls: true`},

		// dns
		{"no query", "type: dns",
			`query is missing: name something that the servers know, such as example.org`},
		{"a query that is no name", "type: dns, query: example..org",
			`query "example..org" is no name in DNS: write one such as example.org, in ASCII`},
		{"a type of record that there is not", "type: dns, query: example.org, query_type: a",
			`query_type "a" is unknown: choose A, AAAA, CAA, CNAME, DNSKEY, DS, HTTPS, MX, NAPTR, NS, PTR, SOA, SRV, SVCB or TXT`},
		{"a code that there is not", "type: dns, query: example.org, rcode: OK",
			`rcode "OK" is unknown: choose NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED or NOTAUTH`},
		{"a transport that there is not", "type: dns, query: example.org, over: [udp, tls]",
			`over[1] "tls" is unknown: choose udp or tcp`},
		{"no transport", "type: dns, query: example.org, over: []",
			`over has no entry: choose udp, tcp or both`},

		// udp
		{"text and digits", "type: udp, payload: ping, payload_hex: 00, answer: pong, answer_hex: 00",
			`payload_hex 00 says the same as the text in line 65: remove one of them
answer_hex 00 says the same as the text in line 65: remove one of them`},
		{"digits that are none", "type: udp, payload_hex: 0g, answer_hex: 000",
			`payload_hex "0g" is no text of hexadecimal digits: write two a byte, such as "00 ff 1a"
answer_hex 000 is no text of hexadecimal digits: write two a byte, such as "00 ff 1a"`},
		{"a packet that is too long", "type: udp, payload: " + strings.Repeat("x", 1201),
			`payload "` + strings.Repeat("x", 80) + `..." has 1201 bytes, more than fit every packet: give at most 1200`},
		{"silence of whoever has the vip", "type: udp, silent: true",
			`silent true would take a backend without the vip for well: set via: direct as well, or have the backends answer`},
		{"silence and an answer", "type: udp, via: direct, silent: true, answer: pong",
			`answer "pong" is an answer, and silent: true wants none: remove one of them`},

		// exec
		{"a way for a program", "type: exec, command: [/bin/check], via: vip",
			`via "vip" is of no use to type exec, whose program chooses its own way: remove it`},
		{"no command", "type: exec",
			`command is missing: give a program's path and its arguments`},
		{"an empty command", "type: exec, command: []",
			`command has no entry: give a program's path and its arguments`},
		{"a command for a shell", "type: exec, command: check --all",
			`command is a single value, it has to be a list: begin each entry with a dash`},
		{"a program that would have to be searched", "type: exec, command: [check, --all]",
			`command[0] "check" is no absolute path of a program: there is no shell and no search, begin it with /`},
		{"an argument that no program can be given", `type: exec, command: [/bin/check, "\0"]`,
			`command[1] "\x00" has a NUL byte, which no argument can have: remove it`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := edit(t, "{type: tcp, via: direct}", "{"+tt.check+"}")
			_, err := Parse("halfproxy.yaml", []byte(file))
			bySchema(t, nodeSchema, file, err)
			got := strings.ReplaceAll(fmt.Sprint(err), `halfproxy.yaml:65: services[1] "dns": check.`, "")
			if got = strings.ReplaceAll(got, `halfproxy.yaml:65: services[1] "dns": check: `, ""); got != tt.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, tt.want)
			}
			if strings.Contains(got, "hush") {
				t.Error("the error repeats a secret")
			}
		})
	}
}

func TestParseReportsEverythingAtOnceByLine(t *testing.T) {
	_, err := Parse("halfproxy.yaml", []byte(`services:
  - name: web
    vips: [203.0.113.10, 203.0.113.10]
    ports: [tcp/80]
    backends:
      - {name: web1, address: 10.0.1.11, wieght: 50}
      - {name: web1, address: 10.0.1.300}
    check: {type: http, interval: 1s, timeout: 1s, rise: 0}
  - name: dns
    vips: [203.0.113.10]
    ports: [tcp/80, udp/53]
    forward: gree
    backends: []
node: {name: lb1, interfaces: [eth0], xdp_mode: skb}
bgp: {asn: 0, router_id: 10.0.1.1, peers: [{address: 10.0.1.254, asn: 64500, hold_time: 1s}]}
`))
	wantErrors(t, err, `
halfproxy.yaml:3: services[0] "web": vips[1] "203.0.113.10" is there already, in line 3: remove one of them
halfproxy.yaml:6: services[0] "web": backends[0] "web1": unknown key "wieght": did you mean "weight"?
halfproxy.yaml:7: services[0] "web": backends[1] "web1": name "web1" is there already, in line 6: names must be unique, the table is computed from them
halfproxy.yaml:7: services[0] "web": backends[1] "web1": address "10.0.1.300" is no IP address: write one such as 192.0.2.1 or 2001:db8::1
halfproxy.yaml:8: services[0] "web": check.timeout "1s" is not shorter than interval 1s: a probe must be over before the next begins
halfproxy.yaml:8: services[0] "web": check.rise 0 is out of range: give a number from 1 to 1000
halfproxy.yaml:10: services[1] "dns": vips[0] "203.0.113.10" with tcp/80 belongs to service "web" already, by line 3: give it another port or address
halfproxy.yaml:12: services[1] "dns": forward "gree" is unknown: choose l2, ipip, gre or gue
halfproxy.yaml:13: services[1] "dns": backends has no entry: list the servers, weight: 0 drains one that has to stay
halfproxy.yaml:14: node.xdp_mode "skb" is unknown: choose auto, native or generic
halfproxy.yaml:15: bgp.asn 0 is reserved (RFC 7607): give the number of the autonomous system
halfproxy.yaml:15: bgp.peers[0] "10.0.1.254": hold_time "1s" is not allowed in BGP (RFC 4271, 4.2): give at least 3s
`)
}

func TestParseRefusesHowToAnnounceWhereNothingIs(t *testing.T) {
	_, err := Parse("halfproxy.yaml", []byte(`node: {interfaces: [eth0]}
services:
  - name: web
    vips: [203.0.113.10]
    ports: [tcp/80]
    backends: [{name: web1, address: 10.0.1.11}]
    announce:
      min_healthy: 1
      peers: [10.0.1.254]
      communities: [no-export]
      med: 1
      local_preference: 1
      prepend: 1
`))
	wantErrors(t, err, `
halfproxy.yaml:9: services[0] "web": announce.peers is of no use without a bgp section: remove it, or add that
halfproxy.yaml:10: services[0] "web": announce.communities is of no use without a bgp section: remove it, or add that
halfproxy.yaml:11: services[0] "web": announce.med is of no use without a bgp section: remove it, or add that
halfproxy.yaml:12: services[0] "web": announce.local_preference is of no use without a bgp section: remove it, or add that
halfproxy.yaml:13: services[0] "web": announce.prepend is of no use without a bgp section: remove it, or add that
`)
}

func TestParseRefusesAPrependThatAllTakeForALoop(t *testing.T) {
	_, err := Parse("halfproxy.yaml", []byte(`node: {interfaces: [eth0]}
bgp: {asn: 64512, router_id: 10.0.1.1, peers: [{address: 10.0.1.254, asn: 64512}]}
services:
  - name: web
    vips: [203.0.113.10]
    ports: [tcp/80]
    backends: [{name: web1, address: 10.0.1.11}]
    announce: {prepend: 1}
`))
	wantErrors(t, err, `halfproxy.yaml:8: services[0] "web": announce.prepend 1 is of no use, all peers are of the AS 64512 and would take the path for a loop: remove it, or use local_preference`)
}

func TestParseReadsWhatEditorsLeaveInFiles(t *testing.T) {
	for name, file := range map[string]string{
		"a byte order mark":      "\ufeffnode: {interfaces: [eth0]}\nservices: []\n",
		"carriage returns":       "node:\r\n  interfaces:\r\n  - eth0\r\nservices: []\r\n",
		"a document's begin":     "---\nnode: {interfaces: [eth0]}\nservices: []\n",
		"a YAML directive":       "%YAML 1.2\n---\nnode: {interfaces: [eth0]}\nservices: []\n",
		"no newline at the end":  "node: {interfaces: [eth0]}\nservices: []",
		"JSON, which YAML takes": `{"node": {"interfaces": ["eth0"]}, "services": []}`,
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Parse("halfproxy.yaml", []byte(file)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestParseRefusesAFileWithoutContent(t *testing.T) {
	for _, tt := range []struct{ file, want string }{
		{"", "halfproxy.yaml:1: node.interfaces is missing: name the NICs that carry VIP traffic\n" +
			"halfproxy.yaml:1: services is missing: list them, or write [] for a node that serves nothing yet"},
		{"# to do\n", "halfproxy.yaml:1: node.interfaces is missing: name the NICs that carry VIP traffic\n" +
			"halfproxy.yaml:1: services is missing: list them, or write [] for a node that serves nothing yet"},
		{"null\n", "halfproxy.yaml:1: the file is empty: give it a value or remove it"},
		{"halfproxy\n", "halfproxy.yaml:1: the file is a single value, it has to be a mapping: write key: value"},
		{"- node\n", "halfproxy.yaml:1: the file is a list, it has to be a mapping: write key: value"},
	} {
		_, err := Parse("halfproxy.yaml", []byte(tt.file))
		wantErrors(t, err, tt.want)
	}
}
