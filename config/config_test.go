package config

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

// served is the contract's file, with a plainer check of its second service.
const served = "testdata/contract.yaml"

func TestParseTakesTheContractAsItIsWritten(t *testing.T) {
	got, err := Parse("halfproxy.yaml", read(t, "testdata/contract-whole.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	announce := lb.Announcement{Attributes: lb.Attributes{Communities: []lb.Community{{A: 64512, B: 100}}}}
	want := Config{
		Node: Node{Name: "lb1", Interfaces: []string{"eth0"}, XDPMode: XDPAuto, Linger: 10 * time.Second, FlowRecords: 1 << 18},
		Cluster: Cluster{
			Name: "edge-ams", Listen: netip.MustParseAddrPort("10.0.1.1:7946"),
			Join: []string{"10.0.1.2:7946", "10.0.1.3:7946"}, Size: 3, PartitionHold: 15 * time.Second,
		},
		BGP: BGP{
			ASN: 64512, RouterID: netip.MustParseAddr("10.0.1.1"),
			Communities:      []lb.Community{{A: 64512, B: 100}},
			GracefulRestart:  30 * time.Second,
			GracefulShutdown: 2 * time.Second,
			HoldUp:           time.Second,
			Peers: []Peer{
				{
					Address: netip.MustParseAddr("10.0.1.254"), ASN: 64500, TTLSecurity: true, IPv4: true, IPv6: true,
					BFD:      BFD{Interval: 100 * time.Millisecond, Multiplier: 3},
					HoldTime: 9 * time.Second, KeepaliveTime: 3 * time.Second, ConnectRetryTime: time.Second, PrefixLimit: 1000,
				},
				{
					Address: netip.MustParseAddr("2001:db8:1::254"), ASN: 64500, IPv4: true, IPv6: true,
					HoldTime: 9 * time.Second, KeepaliveTime: 3 * time.Second, ConnectRetryTime: time.Second, PrefixLimit: 1000,
				},
			},
		},
		HTTP:  HTTP{Listen: netip.MustParseAddrPort("127.0.0.1:9870")},
		Admin: Admin{Socket: "/run/halfproxy/admin.sock"},
		Services: []lb.Service{
			{
				Name:    "web",
				VIPs:    []lb.VIP{lb.MustParseVIP("203.0.113.10"), lb.MustParseVIP("2001:db8::10")},
				Hash:    lb.HashFlow,
				Ports:   []lb.Port{{Protocol: lb.TCP, Number: 80}, {Protocol: lb.TCP, Number: 443}, {Protocol: lb.UDP, Number: 443}},
				Forward: lb.L2,
				Backends: []lb.Backend{
					{Name: "web1", Address: netip.MustParseAddr("10.0.1.11"), Weight: 100},
					{Name: "web2", Address: netip.MustParseAddr("10.0.1.12"), Weight: 50},
				},
				Check: lb.Check{
					Type: lb.CheckHTTP, Via: lb.ViaVIP, Port: 80, Path: "/healthz", Method: "GET", Status: []lb.StatusRange{{First: 200, Last: 299}},
					Interval: time.Second, Timeout: 500 * time.Millisecond, Rise: 2, Fall: 3,
				},
				FlowLifetime: time.Hour,
				MinHealthy:   lb.Quorum{Value: 1},
				Announce:     announce,
			},
			{
				Name:    "dns",
				VIPs:    []lb.VIP{lb.MustParseVIP("203.0.113.53")},
				Hash:    lb.HashFlow,
				Ports:   []lb.Port{{Protocol: lb.UDP, Number: 53}, {Protocol: lb.TCP, Number: 53}},
				Forward: lb.IPIP,
				Backends: []lb.Backend{
					{Name: "ns1", Address: netip.MustParseAddr("10.9.0.11"), Weight: 100},
					{Name: "ns2", Address: netip.MustParseAddr("10.9.0.12"), Weight: 100},
				},
				Check: lb.Check{
					Type: lb.CheckDNS, Via: lb.ViaVIP, Port: 53, Query: "example.org.", RecordType: "A", Rcode: "NOERROR",
					Over:     []lb.Protocol{lb.UDP, lb.TCP},
					Interval: time.Second, Timeout: 500 * time.Millisecond, Rise: 2, Fall: 3,
				},
				FlowLifetime: time.Hour,
				MinHealthy:   lb.Quorum{Value: 1},
				Announce:     announce,
			},
		},
	}
	got.expanded = nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestParseFillsInTheDefaults(t *testing.T) {
	got, err := parse("halfproxy.yaml", []byte(`
node: {interfaces: [eth0]}
services:
  - name: web
    vips: [203.0.113.10]
    ports: [udp/443, tcp/443, tcp/80]
    backends: [{name: web1, address: 10.0.1.11}]
`), host{name: func() (string, error) { return "lb7.example.net", nil }})
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Node:    Node{Name: "lb7.example.net", Interfaces: []string{"eth0"}, XDPMode: XDPAuto, Linger: 10 * time.Second, FlowRecords: 1 << 18},
		Cluster: Cluster{Size: 1},
		HTTP:    HTTP{Listen: netip.MustParseAddrPort("127.0.0.1:9870")},
		Admin:   Admin{Socket: "/run/halfproxy/admin.sock"},
		Services: []lb.Service{{
			Name:     "web",
			VIPs:     []lb.VIP{lb.MustParseVIP("203.0.113.10")},
			Hash:     lb.HashFlow,
			Ports:    []lb.Port{{Protocol: lb.UDP, Number: 443}, {Protocol: lb.TCP, Number: 443}, {Protocol: lb.TCP, Number: 80}},
			Forward:  lb.L2,
			Backends: []lb.Backend{{Name: "web1", Address: netip.MustParseAddr("10.0.1.11"), Weight: 100}},
			Check: lb.Check{
				Type: lb.CheckTCP, Via: lb.ViaVIP, Port: 443,
				Interval: time.Second, Timeout: 500 * time.Millisecond, Rise: 2, Fall: 3,
			},
			FlowLifetime: time.Hour,
			MinHealthy:   lb.Quorum{Value: 1},
		}},
	}
	got.expanded = nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if !got.Cluster.Alone() {
		t.Error("a node without a cluster section is not alone")
	}
}

// Each row changes the served contract in one place.
func TestParseTakes(t *testing.T) {
	node := []lb.Community{{A: 64512, B: 100}}
	contractPeers := []netip.Addr{netip.MustParseAddr("10.0.1.254"), netip.MustParseAddr("2001:db8:1::254")}
	for _, tt := range []struct {
		name     string
		old, new string
		got      func(Config) any
		want     any
	}{
		{"a long interval, with half a second's timeout", "      interval: 1s\n      timeout: 500ms", "      interval: 5s",
			func(c Config) any { return c.Services[0].Check.Timeout }, 500 * time.Millisecond},
		{"a short interval, whose half is the timeout", "      interval: 1s\n      timeout: 500ms", "      interval: 600ms",
			func(c Config) any { return c.Services[0].Check.Timeout }, 300 * time.Millisecond},
		{"an http check without a path", "      path: /healthz\n", "",
			func(c Config) any { return c.Services[0].Check.Path }, "/"},
		{"a path with a query", "path: /healthz", "path: /healthz?deep=1",
			func(c Config) any { return c.Services[0].Check.Path }, "/healthz?deep=1"},
		{"a service of UDP alone whose check has a port", "ports: [tcp/80, tcp/443, udp/443]", "ports: [udp/443]",
			func(c Config) any { return c.Services[0].Check.Port }, uint16(80)},
		{"a drained backend", "weight: 50", "weight: 0",
			func(c Config) any { return c.Services[0].Backends[1].Weight }, 0},
		{"a backend of the other family", "address: 10.0.1.12, weight", "address: 2001:db8:1::12, weight",
			func(c Config) any { return c.Services[0].Backends[1].Address }, netip.MustParseAddr("2001:db8:1::12")},
		{"min_healthy as a share", "min_healthy: 1 ", `min_healthy: "30%"`,
			func(c Config) any { return c.Services[0].MinHealthy }, lb.Quorum{Value: 30, Percent: true}},
		{"min_healthy as a number", "min_healthy: 1 ", "min_healthy: 2 ",
			func(c Config) any { return c.Services[0].MinHealthy }, lb.Quorum{Value: 2}},
		{"all backends where none is healthy", "min_healthy: 1 ", "none_healthy: use_all ",
			func(c Config) any { return c.Services[0].UseAll }, true},
		{"no route where none is healthy", "min_healthy: 1 ", "none_healthy: withdraw ",
			func(c Config) any { return c.Services[0].UseAll }, false},
		{"panic_below without quotes", "panic_below: 0%", "panic_below: 40%",
			func(c Config) any { return c.Services[0].PanicBelow }, 40},
		{"all flows tracked", "    forward: l2 ", "    tracking: all\n    forward: l2 ",
			func(c Config) any { return c.Services[0].Tracking }, lb.TrackAll},
		{"no flows tracked", "    forward: l2 ", "    tracking: none\n    forward: l2 ",
			func(c Config) any { return [2]any{c.Services[0].Tracking, c.Services[0].FlowLifetime} }, [2]any{lb.TrackNone, time.Duration(0)}},
		{"a flow lifetime", "    forward: l2 ", "    flow_lifetime: 8h\n    forward: l2 ",
			func(c Config) any { return c.Services[0].FlowLifetime }, 8 * time.Hour},
		{"room for flow records", "  name: lb1 ", "  flow_records: 1048576\n  name: lb1 ",
			func(c Config) any { return c.Node.FlowRecords }, 1 << 20},
		{"a VIP that another service has on other ports", "vips: [203.0.113.53]", "vips: [203.0.113.10]",
			func(c Config) any { return c.Services[1].VIPs[0] }, lb.MustParseVIP("203.0.113.10")},
		{"a prefix whose addresses each go to one backend", "vips: [203.0.113.53]", "hash: destination\n    vips: [203.0.113.0/28]",
			func(c Config) any { return c.Services[1].Hash }, lb.HashDestination},
		{"VIPs that are prefixes", "vips: [203.0.113.53]", `vips: [203.0.113.0/28, "2001:db8:10::/64", 203.0.113.53/32, 203.0.112.0/23]`,
			func(c Config) any { return c.Services[1].VIPs },
			[]lb.VIP{lb.MustParseVIP("203.0.113.0/28"), lb.MustParseVIP("2001:db8:10::/64"), lb.MustParseVIP("203.0.113.53"), lb.MustParseVIP("203.0.112.0/23")}},
		{"a backend that another service has as well", "address: 10.9.0.11", "address: 10.0.1.11",
			func(c Config) any { return c.Services[1].Backends[0].Address }, netip.MustParseAddr("10.0.1.11")},
		{"a file that all nodes share: this one is among those to join", "join: [10.0.1.2:7946", "join: [10.0.1.1:7946, 10.0.1.2:7946",
			func(c Config) any { return c.Cluster.Join }, []string{"10.0.1.2:7946", "10.0.1.3:7946"}},
		{"members without a port", "join: [10.0.1.2:7946, 10.0.1.3:7946]", `join: [10.0.1.2, "2001:db8::3", LB4.example.net, "lb5:8000"]`,
			func(c Config) any { return c.Cluster.Join }, []string{"10.0.1.2:7946", "[2001:db8::3]:7946", "lb4.example.net:7946", "lb5:8000"}},
		{"no size: those to join and this one", "  size: 3 ", "  # ",
			func(c Config) any { return c.Cluster.Size }, 3},
		{"a limit", "forward: l2", "forward: l2\n    limit: {packets: 5, burst: 7, ipv6_prefix: 56}",
			func(c Config) any { return c.Services[0].Limit }, lb.Limit{Packets: 5, Burst: 7, Prefix4: 32, Prefix6: 56}},
		{"BFD by its defaults", "      ttl_security: true            # GTSM, RFC 5082", "      bfd: {}",
			func(c Config) any { return c.BGP.Peers[0].BFD }, BFD{Interval: 300 * time.Millisecond, Multiplier: 3}},
		{"BFD over some hops", "      ttl_security: true            # GTSM, RFC 5082", "      multihop: 3\n      bfd: {minimum_ttl: 253, key_id: 7, password_file: bfd.password}",
			func(c Config) any { return c.BGP.Peers[0].BFD }, BFD{Interval: 300 * time.Millisecond, Multiplier: 3, Multihop: true, MinTTL: 253, KeyID: 7}},
		{"BFD over some hops to a router of the same AS", "      ttl_security: true            # GTSM, RFC 5082", "      bfd: {multihop: true}",
			func(c Config) any { return c.BGP.Peers[0].BFD }, BFD{Interval: 300 * time.Millisecond, Multiplier: 3, Multihop: true}},
		{"neither graceful restart nor graceful shutdown nor damping", "  router_id: 10.0.1.1", "  router_id: 10.0.1.1\n  graceful_restart: 0s\n  graceful_shutdown: 0s\n  hold_up: 0s",
			func(c Config) any { return c.BGP.GracefulRestart + c.BGP.GracefulShutdown + c.BGP.HoldUp }, time.Duration(0)},
		{"a longer stop", "xdp_mode: auto", "linger: 2m",
			func(c Config) any { return c.Node.Linger }, 2 * time.Minute},
		{"a peer's attributes", "      ttl_security: true ", "      communities: [no-export]\n      med: 0\n      prepend: 2 ",
			func(c Config) any { return c.BGP.Peers[0].Attributes },
			lb.Attributes{Communities: []lb.Community{{A: 0xffff, B: 0xff01}}, MED: new(uint32), Prepend: 2}},
		{"a service's attributes, and who is told", "min_healthy: 1 ", "min_healthy: 1\n      communities: [64512:1:1, 64512:100]\n      med: 4294967295\n      prepend: 1\n      peers: ['2001:db8:1::254'] ",
			func(c Config) any { return c.Services[0].Announce },
			lb.Announcement{
				Attributes: lb.Attributes{Communities: []lb.Community{{A: 64512, B: 100}, {Large: true, A: 64512, B: 1, C: 1}}, MED: pointer(1<<32 - 1), Prepend: 1},
				Peers:      []netip.Addr{netip.MustParseAddr("2001:db8:1::254")},
			}},
		{"aggregates", "  peers:\n    - address: 10.0.1.254\n", `  aggregates:
    - {prefix: 203.0.113.0/27, med: 7}
    - {prefix: "2001:db8::/64", specifics: none}
    - {prefix: 203.0.113.32/27, peers: ["2001:db8:1::254", 10.0.1.254], specifics: "2001:db8:1::254"}
  peers:
    - address: 10.0.1.254
`,
			func(c Config) any { return c.BGP.Aggregates },
			[]lb.Aggregate{
				{Prefix: netip.MustParsePrefix("203.0.113.0/27"), Announcement: lb.Announcement{Attributes: lb.Attributes{Communities: node, MED: pointer(7)}}},
				{Prefix: netip.MustParsePrefix("2001:db8::/64"), Announcement: lb.Announcement{Attributes: lb.Attributes{Communities: node}}, Alone: contractPeers},
				{Prefix: netip.MustParsePrefix("203.0.113.32/27"), Announcement: lb.Announcement{Attributes: lb.Attributes{Communities: node}, Peers: contractPeers}, Alone: contractPeers[:1]},
			}},
		{"a peer's timers", "hold_time: 9s", "hold_time: 30s\n      keepalive_time: 5s\n      connect_retry_time: 20s",
			func(c Config) any {
				p := c.BGP.Peers[0]
				return []time.Duration{p.HoldTime, p.KeepaliveTime, p.ConnectRetryTime}
			},
			[]time.Duration{30 * time.Second, 5 * time.Second, 20 * time.Second}},
		{"a keepalive time that is what is left of the hold time", "hold_time: 9s", "hold_time: 4s",
			func(c Config) any { return c.BGP.Peers[0].KeepaliveTime }, time.Second},
		{"families and next hops", "      ttl_security: true ", "      families: [ipv4]\n      next_hops: ['2001:db8::1']\n      extended_next_hop: true ",
			func(c Config) any {
				p := c.BGP.Peers[0]
				return []any{p.IPv4, p.IPv6, p.NextHop4, p.NextHop6, p.ExtendedNextHop}
			},
			[]any{true, false, netip.Addr{}, netip.MustParseAddr("2001:db8::1"), true}},
		{"a session over some hops, from an address, that the peer opens", "  peers:\n    - address: 10.0.1.254\n      asn: 64500\n      hold_time: 9s\n      password_file: /etc/halfproxy/bgp.password     # TCP MD5\n      ttl_security: true ",
			"  listen: 10.0.1.1:179\n  peers:\n    - address: 10.0.1.254\n      asn: 64500\n      multihop: 3\n      local_address: 10.0.1.1\n      passive: true ",
			func(c Config) any {
				p := c.BGP.Peers[0]
				return []any{p.Multihop, p.LocalAddress, p.Passive, c.BGP.Listen}
			},
			[]any{3, netip.MustParseAddr("10.0.1.1"), true, netip.MustParseAddrPort("10.0.1.1:179")}},
		{"some observers", "fall: 3", "fall: 3\n      observers: 2",
			func(c Config) any { return c.Services[0].Observers }, 2},
		{"a longer partition_hold", "  size: 3 ", "  size: 3\n  partition_hold: 1m ",
			func(c Config) any { return c.Cluster.PartitionHold }, time.Minute},
		{"fewer nodes than names to join, as one may have several", "join: [10.0.1.2:7946, 10.0.1.3:7946]", "join: [lb2, lb2.example.net, lb3, lb3.example.net]",
			func(c Config) any { return c.Cluster.Size }, 3},
		{"a cluster that nobody else is in yet", "join: [10.0.1.2:7946, 10.0.1.3:7946]", "join: []",
			func(c Config) any { return len(c.Cluster.Join) }, 0},
		{"all kinds of communities", `communities: ["64512:100"]`, `communities: [64512:100, "4200000000:1:2", no-export]`,
			func(c Config) any { return c.BGP.Communities }, []lb.Community{{A: 64512, B: 100}, {Large: true, A: 4200000000, B: 1, C: 2}, {A: 0xffff, B: 0xff01}}},
		{"a 4-byte AS number", "asn: 64512", "asn: 4200000001",
			func(c Config) any { return c.BGP.ASN }, uint32(4200000001)},
		{"http on all addresses", "listen: 127.0.0.1:9870", `listen: "[::]:9870"`,
			func(c Config) any { return c.HTTP.Listen }, netip.MustParseAddrPort("[::]:9870")},
		{"http on the port of gossip, on another address", "listen: 127.0.0.1:9870", "listen: 127.0.0.1:7946",
			func(c Config) any { return c.HTTP.Listen }, netip.MustParseAddrPort("127.0.0.1:7946")},
		{"QUIC server IDs, one from its backend's address", "forward: ipip\n    backends:\n      - {name: ns1, address: 10.9.0.11}\n      - {name: ns2, address: 10.9.0.12}",
			"quic: {server_id_length: 2, config_rotation: 6}\n    backends: [{name: ns1, address: 10.9.0.11}, {name: ns2, address: 10.9.0.12, quic_server_id: 0A01}]",
			func(c Config) any {
				s := c.Services[1]
				return []any{s.QUIC, s.Backends[0].ServerID, s.Backends[1].ServerID}
			}, []any{lb.QUIC{ServerIDLength: 2, ConfigRotation: 6}, lb.ServerID("\x00\x0b"), lb.ServerID("\x0a\x01")}},
		{"QUIC server IDs that are numbers to YAML", "forward: ipip\n    backends:\n      - {name: ns1, address: 10.9.0.11}\n      - {name: ns2, address: 10.9.0.12}",
			"quic: {server_id_length: 2}\n    backends: [{name: ns1, address: 10.9.0.11, quic_server_id: 0010}, {name: ns2, address: '2001:db8::12', quic_server_id: 10e4}]",
			func(c Config) any {
				s := c.Services[1]
				return []any{s.QUIC, s.Backends[0].ServerID, s.Backends[1].ServerID}
			}, []any{lb.QUIC{ServerIDLength: 2}, lb.ServerID("\x00\x10"), lb.ServerID("\x10\xe4")}},
		{"text in a block", "path: /healthz", "path: >-\n        /healthz",
			func(c Config) any { return c.Services[0].Check.Path }, "/healthz"},
		{"backends of another service by alias", "    backends:\n      - {name: ns1, address: 10.9.0.11}\n      - {name: ns2, address: 10.9.0.12}", "    backends: *servers",
			func(c Config) any { return c.Services[1].Backends[1].Name }, "web2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := edit(t, tt.old, tt.new)
			file = strings.Replace(file, "    backends:\n", "    backends: &servers\n", 1)
			cfg, err := Parse("halfproxy.yaml", []byte(file))
			if err != nil {
				t.Fatal(err)
			}
			bySchema(t, nodeSchema, file, err)
			expandsToItself(t, cfg)
			if got := tt.got(cfg); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestParseTakesAFileThatSaysThereAreNoServices(t *testing.T) {
	cfg, err := Parse("halfproxy.yaml", []byte("node: {interfaces: [eth0]}\nservices: []\n"))
	if err != nil || len(cfg.Services) != 0 {
		t.Errorf("got %v, %v, want no services and no error", cfg.Services, err)
	}
}

func TestLoadReadsTheSecretsBesideTheFile(t *testing.T) {
	folder := t.TempDir()
	write(t, folder, "cluster.key", 0o600, "# made in March\n"+key(32, 'a')+"\n\n  "+key(16, 'b')+"\n"+key(24, 'c'))
	write(t, folder, "bgp.password", 0o640, "correct horse\n")
	path := write(t, folder, "halfproxy.yaml", 0o644, relative(t))
	cfg, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	want := [][]byte{[]byte(strings.Repeat("a", 32)), []byte(strings.Repeat("b", 16)), []byte(strings.Repeat("c", 24))}
	if got := cfg.Cluster.Keys; !reflect.DeepEqual(got, want) {
		t.Errorf("keys: got %q, want %q", got, want)
	}
	if got := cfg.Cluster.HashKey; !reflect.DeepEqual(got, want[0]) {
		t.Errorf("key of the flow hashes: got %q, want the first of the others", got)
	}
	if got, want := cfg.BGP.Peers[0].Password, "correct horse"; got != want {
		t.Errorf("password: got %q, want %q", got, want)
	}
	if got := cfg.BGP.Peers[1].Password; got != "" {
		t.Errorf("password of a peer without password_file: got %q, want none", got)
	}
}

func TestLoadTakesTheKeyOfTheFlowHashesFromAFileOfItsOwn(t *testing.T) {
	folder := t.TempDir()
	write(t, folder, "cluster.key", 0o600, key(32, 'b')+"\n"+key(32, 'a'))
	write(t, folder, "bgp.password", 0o640, "correct horse\n")
	write(t, folder, "hash.key", 0o600, key(32, 'a'))
	file := strings.Replace(relative(t), "key_file: cluster.key", "key_file: cluster.key\n  hash_key_file: hash.key", 1)
	cfg, err := Load(write(t, folder, "halfproxy.yaml", 0o644, file))
	if got, want := cfg.Cluster.HashKey, strings.Repeat("a", 32); err != nil || string(got) != want {
		t.Errorf("got %q and %v, want %q", got, err, want)
	}
}

func TestLoadReportsWhatIsWrongWithSecrets(t *testing.T) {
	good := func(t *testing.T, folder string) { write(t, folder, "cluster.key", 0o600, key(32, 'a')) }
	for _, tt := range []struct {
		name string
		make func(t *testing.T, folder string)
		want string // DIR is the folder
	}{
		{"a key file that everyone can read", func(t *testing.T, folder string) {
			write(t, folder, "cluster.key", 0o644, key(32, 'a'))
		}, `DIR/halfproxy.yaml:14: cluster.key_file "cluster.key" can be read or changed by every user (mode 0644): chmod 600 DIR/cluster.key`},
		{"a key file that is not there", func(*testing.T, string) {},
			`DIR/halfproxy.yaml:14: cluster.key_file "cluster.key" cannot be read: open DIR/cluster.key: no such file or directory: give the path of the file that holds it`},
		{"a folder", func(t *testing.T, folder string) {
			if err := os.Mkdir(filepath.Join(folder, "cluster.key"), 0o700); err != nil {
				t.Fatal(err)
			}
		}, `DIR/halfproxy.yaml:14: cluster.key_file "cluster.key" is no regular file: give the path of one`},
		{"a pipe that nobody writes to", func(t *testing.T, folder string) {
			if err := syscall.Mkfifo(filepath.Join(folder, "cluster.key"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, `DIR/halfproxy.yaml:14: cluster.key_file "cluster.key" is no regular file: give the path of one`},
		{"a file that is far too long", func(t *testing.T, folder string) {
			write(t, folder, "cluster.key", 0o600, strings.Repeat("#\n", 40_000))
		}, `DIR/halfproxy.yaml:14: cluster.key_file "cluster.key" has 80000 bytes, far more than a secret: give the path of the right file`},
		{"a key file without a key", func(t *testing.T, folder string) {
			write(t, folder, "cluster.key", 0o600, "# to do\n\n")
		}, "DIR/halfproxy.yaml:14: cluster.key_file \"cluster.key\" holds no key: make one by `head -c 32 /dev/urandom | base64` and give it to every node"},
		{"wrong keys, each by its line", func(t *testing.T, folder string) {
			write(t, folder, "cluster.key", 0o600, key(32, 'a')+"\nsecret!\n"+key(31, 'b')+"\n"+key(32, 'a'))
		}, "DIR/halfproxy.yaml:14: cluster.key_file \"cluster.key\" holds no key in base64 in its line 2: make one by `head -c 32 /dev/urandom | base64` and give it to every node\n" +
			"DIR/halfproxy.yaml:14: cluster.key_file \"cluster.key\" has a key of 31 bytes in its line 3 and AES takes 16, 24 or 32: make one by `head -c 32 /dev/urandom | base64` and give it to every node\n" +
			`DIR/halfproxy.yaml:14: cluster.key_file "cluster.key" has the same key in its lines 1 and 4: remove one of them`},
		{"an empty password", func(t *testing.T, folder string) {
			good(t, folder)
			write(t, folder, "bgp.password", 0o600, "\n")
		}, `DIR/halfproxy.yaml:25: bgp.peers[0] "10.0.1.254": password_file "bgp.password" is an empty file: write the password that the router has into it`},
		{"a password of two lines", func(t *testing.T, folder string) {
			good(t, folder)
			write(t, folder, "bgp.password", 0o600, "one\ntwo\n")
		}, `DIR/halfproxy.yaml:25: bgp.peers[0] "10.0.1.254": password_file "bgp.password" has more than one line: a password is one line of text`},
		{"a password that the kernel does not take", func(t *testing.T, folder string) {
			good(t, folder)
			write(t, folder, "bgp.password", 0o600, strings.Repeat("x", 81))
		}, `DIR/halfproxy.yaml:25: bgp.peers[0] "10.0.1.254": password_file "bgp.password" has a password of 81 bytes and TCP MD5 ends at 80: shorten it at both ends`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			folder := t.TempDir()
			tt.make(t, folder)
			if _, err := os.Stat(filepath.Join(folder, "bgp.password")); err != nil {
				write(t, folder, "bgp.password", 0o600, "correct horse")
			}
			_, err := Load(write(t, folder, "halfproxy.yaml", 0o644, relative(t)))
			wantErrors(t, err, strings.ReplaceAll(tt.want, "DIR", folder))
		})
	}
}

func TestLoadSaysThatASecretIsNotForItsUser(t *testing.T) {
	path := write(t, t.TempDir(), "cluster.key", 0o600, key(32, 'a'))
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error)
	go func() {
		// Root reads everything: this thread, which ends with the goroutine, is nobody's.
		runtime.LockOSThread()
		_ = syscall.Setfsuid(65534)
		_, err := readFile(path, true)
		failed <- err
	}()
	wantErrors(t, <-failed, "cannot be read: open "+path+": permission denied: let the user that halfproxy runs as read it, as by chgrp and chmod 640")
}

func TestLoadReportsSecretsTogetherWithTheRest(t *testing.T) {
	folder := t.TempDir()
	write(t, folder, "bgp.password", 0o600, "correct horse")
	file := strings.Replace(relative(t), "forward: ipip", "forward: ipop", 1)
	_, err := Load(write(t, folder, "halfproxy.yaml", 0o644, file))
	wantErrors(t, err, strings.ReplaceAll(`
DIR/halfproxy.yaml:14: cluster.key_file "cluster.key" cannot be read: open DIR/cluster.key: no such file or directory: give the path of the file that holds it
DIR/halfproxy.yaml:61: services[1] "dns": forward "ipop" is unknown: choose l2, ipip, gre or gue
`, "DIR", folder))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Error("the cause is lost: errors.Is finds no fs.ErrNotExist")
	}
}

func TestLoadSaysThatTheFileCannotBeRead(t *testing.T) {
	_, err := Load("testdata/missing.yaml")
	wantErrors(t, err, "read configuration: open testdata/missing.yaml: no such file or directory: name another with --config, or have `halfproxy init` write a first one")
}

func TestParseOpensNoFile(t *testing.T) {
	if cfg, err := Parse("halfproxy.yaml", read(t, served)); err != nil || cfg.Cluster.Keys != nil {
		t.Errorf("got keys %q and error %v, want neither", cfg.Cluster.Keys, err)
	}
}

func TestParseNeedsAHostNameThatIsAName(t *testing.T) {
	file := []byte("node: {interfaces: [eth0]}\nservices: []\n")
	_, err := parse("halfproxy.yaml", file, host{name: func() (string, error) { return "my host", nil }})
	wantErrors(t, err, `halfproxy.yaml:1: node.name is missing and the host name "my host" cannot stand in, it is no name: use up to 64 letters, digits, dots, dashes and underscores, a letter or digit first`)
	_, err = parse("halfproxy.yaml", file, host{name: func() (string, error) { return "", errors.New("no uname") }})
	wantErrors(t, err, `halfproxy.yaml:1: node.name is missing and the host has none either (no uname): set it`)
}

// The reference file is what operators copy: it parses, and nothing that the
// shape has is missing from it.
func TestTheReferenceFileShowsEveryOption(t *testing.T) {
	data := read(t, "../deploy/halfproxy.yaml")
	if _, err := Parse("halfproxy.yaml", data); err != nil {
		t.Error(err)
	}
	for _, key := range allKeys(reflect.TypeFor[file]()) {
		if !regexp.MustCompile(`(?m)^[ #-]*\b` + key + `:|[{,] *` + key + `:`).Match(data) {
			t.Errorf("deploy/halfproxy.yaml does not show %s", key)
		}
	}
}

// What docs/health.md shows of checks parses, and it shows every type.
func TestTheExamplesOfChecksParse(t *testing.T) {
	shown := make(map[lb.CheckType]bool)
	for _, part := range strings.Split(string(read(t, "../docs/health.md")), "```yaml\n")[1:] {
		example, _, _ := strings.Cut(part, "```")
		indented := "    " + strings.ReplaceAll(strings.TrimSpace(example), "\n", "\n    ")
		text := strings.Replace(edit(t, "    check: {type: tcp, via: direct}", indented), "[udp/53, tcp/53]", "[tcp/443, tcp/50051, tcp/5432, udp/53, tcp/53, udp/514]", 1)
		cfg, err := Parse("halfproxy.yaml", []byte(text))
		expandsToItself(t, cfg)
		if err != nil {
			t.Errorf("%s\n%v", example, err)
			continue
		}
		shown[cfg.Services[1].Check.Type] = true
	}
	for _, kind := range checkTypes {
		if !shown[kind] {
			t.Errorf("docs/health.md has no example of type %s", kind)
		}
	}
}

// allKeys lists the keys of a part of the shape and of what is in it.
func allKeys(t reflect.Type) []string {
	if items, isList := t.FieldByName("items"); isList {
		return allKeys(items.Type.Elem())
	}
	var list []string
	for i := 0; i < t.NumField(); i++ {
		if key := t.Field(i).Tag.Get("yaml"); key != "" {
			list = append(append(list, key), allKeys(t.Field(i).Type)...)
		}
	}
	return list
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func write(t *testing.T, folder, name string, mode fs.FileMode, data string) string {
	t.Helper()
	path := filepath.Join(folder, name)
	if err := os.WriteFile(path, []byte(data), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
	return path
}

// edit is the served contract with one change.
func edit(t *testing.T, from, to string) string {
	t.Helper()
	file := string(read(t, served))
	if !strings.Contains(file, from) {
		t.Fatalf("%s has no %q to change", served, from)
	}
	return strings.Replace(file, from, to, 1)
}

// relative is the served contract with secrets beside it.
func relative(t *testing.T) string {
	return strings.ReplaceAll(string(read(t, served)), "/etc/halfproxy/", "")
}

func key(length int, letter byte) string {
	return base64.StdEncoding.EncodeToString([]byte(strings.Repeat(string(letter), length)))
}

func wantErrors(t *testing.T, err error, want string) {
	t.Helper()
	got := "no error"
	if err != nil {
		got = err.Error()
	}
	if want = strings.Trim(want, "\n"); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestServicesHaveOptions(t *testing.T) {
	for _, tt := range []struct {
		options string
		want    lb.Service
	}{
		{"forward: gre", lb.Service{Forward: lb.GRE}},
		{"forward: l2\n    hash: source", lb.Service{Hash: lb.HashSource}},
		{"forward: l2\n    hash: flow", lb.Service{Hash: lb.HashFlow}},
		{"forward: l2\n    hash: [source, destination]", lb.Service{Hash: lb.HashSource | lb.HashDestination}},
		{"forward: l2\n    hash: [destination_port, source_port]", lb.Service{Hash: lb.HashDestinationPort | lb.HashSourcePort}},
		{"forward: l2\n    hash: [flow, destination]", lb.Service{Hash: lb.HashFlow | lb.HashDestination}},
		{"forward: gue", lb.Service{Forward: lb.GUE, GUEPort: 6080}},
		{"forward: gue\n    gue: {port: 443}", lb.Service{Forward: lb.GUE, GUEPort: 443}},
		{"forward: gue\n    gue: {checksum: zero}", lb.Service{Forward: lb.GUE, GUEPort: 6080}},
		{"forward: gue\n    gue: {checksum: full}", lb.Service{Forward: lb.GUE, GUEPort: 6080, GUEChecksum: true}},
		{"forward: ipip\n    outer_sources: [198.51.100.0/24, \"2001:db8:5::/64\"]",
			lb.Service{Forward: lb.IPIP, OuterSources: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:5::/64")}}},
	} {
		cfg, err := Parse("halfproxy.yaml", []byte(edit(t, "forward: ipip", tt.options)))
		if err != nil {
			t.Fatal(err)
		}
		got := cfg.Services[1]
		if tt.want.Hash == 0 {
			tt.want.Hash = lb.HashFlow // the default
		}
		if got.Hash != tt.want.Hash || got.Forward != tt.want.Forward || got.GUEPort != tt.want.GUEPort || got.GUEChecksum != tt.want.GUEChecksum || !slices.Equal(got.OuterSources, tt.want.OuterSources) {
			t.Errorf("%s: got %v, port %d, checksum %v, sources %v", tt.options, got.Forward, got.GUEPort, got.GUEChecksum, got.OuterSources)
		}
	}
}

// Each row is what stands between the braces of a check; usual has what every check
// has.
func TestChecksAreOfSevenTypes(t *testing.T) {
	usual := func(c lb.Check) lb.Check {
		c.Interval, c.Timeout, c.Rise, c.Fall = time.Second, 500*time.Millisecond, 2, 3
		if c.Type != lb.CheckExec && !c.Silent {
			c.Via = lb.ViaVIP
		}
		return c
	}
	web := func(c lb.Check) lb.Check {
		c.Path, c.Method = cmp.Or(c.Path, "/"), cmp.Or(c.Method, "GET")
		if c.Status == nil {
			c.Status = []lb.StatusRange{{First: 200, Last: 299}}
		}
		return c
	}
	const ports = "[tcp/8080, udp/514, tcp/443, udp/53, tcp/53]"
	for _, tt := range []struct {
		check string
		want  lb.Check
	}{
		{"type: tcp", lb.Check{Port: 8080}},
		{"type: tcp, flap_hold: 5m, slow_start: 1m", lb.Check{Port: 8080, FlapHold: 5 * time.Minute, SlowStart: time.Minute}},
		{"type: http", web(lb.Check{Type: lb.CheckHTTP, Port: 8080})},
		{"type: https", web(lb.Check{Type: lb.CheckHTTPS, Port: 443, TLS: true, Verify: true})},
		{`type: https, verify: false, host: www.example.org, http2: true, method: POST, path: /deep, status: "301, 200-250,240-299", body: ok, body_regexp: "^o.$", headers: {X-Probe: 1, Authorization: Bearer hush}`,
			web(lb.Check{Type: lb.CheckHTTPS, Port: 443, TLS: true, Host: "www.example.org", HTTP2: true, Method: "POST", Path: "/deep",
				Status: []lb.StatusRange{{First: 200, Last: 299}, {First: 301, Last: 301}}, Body: "ok", BodyPattern: "^o.$",
				Headers: []lb.Header{{Name: "Authorization", Value: "Bearer hush"}, {Name: "X-Probe", Value: "1"}}})},
		{"type: http, status: 204, method: HEAD", web(lb.Check{Type: lb.CheckHTTP, Port: 8080, Method: "HEAD", Status: []lb.StatusRange{{First: 204, Last: 204}}})},
		{"type: https, ca_file: ca.pem, cert_file: node.crt, key_file: node.key",
			web(lb.Check{Type: lb.CheckHTTPS, Port: 443, TLS: true, Verify: true, CA: lb.File{Path: "ca.pem"}, Certificate: lb.File{Path: "node.crt"}, Key: lb.File{Path: "node.key"}})},
		{"type: grpc", lb.Check{Type: lb.CheckGRPC, Port: 8080}},
		{"type: grpc, port: 50051, tls: true, service: shop.Cart, host: 192.0.2.1", lb.Check{Type: lb.CheckGRPC, Port: 50051, TLS: true, Verify: true, GRPCService: "shop.Cart", Host: "192.0.2.1"}},
		{"type: dns, query: example.org", lb.Check{Type: lb.CheckDNS, Port: 53, Query: "example.org.", RecordType: "A", Rcode: "NOERROR", Over: []lb.Protocol{lb.UDP, lb.TCP}}},
		{"type: dns, query: _sip._TCP.example.org., query_type: SRV, rcode: NXDOMAIN, over: tcp, port: 5353", lb.Check{Type: lb.CheckDNS, Port: 5353, Query: "_sip._tcp.example.org.", RecordType: "SRV", Rcode: "NXDOMAIN", Over: []lb.Protocol{lb.TCP}}},
		{"type: dns, query: ., query_type: NS, port: 5353, answer: a.root-servers.net", lb.Check{Type: lb.CheckDNS, Port: 5353, Query: ".", RecordType: "NS", Rcode: "NOERROR", Over: []lb.Protocol{lb.UDP}, Answer: []byte("a.root-servers.net")}},
		{"type: udp", lb.Check{Type: lb.CheckUDP, Port: 514}},
		{`type: udp, payload: "ping\n", answer: pong`, lb.Check{Type: lb.CheckUDP, Port: 514, Payload: []byte("ping\n"), Answer: []byte("pong")}},
		{"type: udp, payload_hex: 00010203, answer_hex: 00 FF", lb.Check{Type: lb.CheckUDP, Port: 514, Payload: []byte{0, 1, 2, 3}, Answer: []byte{0, 0xff}}},
		{"type: udp, silent: true, via: direct", lb.Check{Type: lb.CheckUDP, Port: 514, Silent: true}},
		{`type: exec, command: [/usr/lib/check, -p, 80, ""]`, lb.Check{Type: lb.CheckExec, Port: 8080, Command: []string{"/usr/lib/check", "-p", "80", ""}}},
	} {
		file := strings.Replace(edit(t, "check: {type: tcp, via: direct}", "check: {"+tt.check+"}"), "[udp/53, tcp/53]", ports, 1)
		cfg, err := Parse("halfproxy.yaml", []byte(file))
		if err != nil {
			t.Errorf("%s: %v", tt.check, err)
			continue
		}
		if got, want := cfg.Services[1].Check, usual(tt.want); !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %#v\nwant %#v", tt.check, got, want)
		}
	}
}

func TestAChecksPortMayLieInARange(t *testing.T) {
	for _, tt := range []struct {
		ports, check string
		want         uint16
	}{
		{"[tcp/1-1000]", "type: https", 443},
		{"[tcp/8443, tcp/9443]", "type: https", 8443},
		{"[tcp/443, tcp/80]", "type: http", 80},
		{"[tcp/853, udp/5353]", "type: dns, query: example.org", 5353},
		{"[tcp/853]", "type: dns, query: example.org", 853},
		{"[tcp/1-1000]", "type: exec, command: [/bin/check]", 0},
	} {
		file := strings.Replace(edit(t, "check: {type: tcp, via: direct}", "check: {"+tt.check+"}"), "[udp/53, tcp/53]", tt.ports, 1)
		cfg, err := Parse("halfproxy.yaml", []byte(file))
		if err != nil {
			t.Errorf("%s of %s: %v", tt.check, tt.ports, err)
		} else if got := cfg.Services[1].Check.Port; got != tt.want {
			t.Errorf("%s of %s: got port %d, want %d", tt.check, tt.ports, got, tt.want)
		}
	}
}

func TestPortsAreSingleOnesRangesOrAll(t *testing.T) {
	cfg, err := Parse("halfproxy.yaml", []byte(edit(t, "ports: [udp/53, tcp/53]", "ports: [tcp/53, udp/53, sctp/53, udplite/53, tcp/1000-2000, udp/*]")))
	if err != nil {
		t.Fatal(err)
	}
	want := []lb.Port{{Protocol: lb.TCP, Number: 53}, {Protocol: lb.UDP, Number: 53}, {Protocol: lb.SCTP, Number: 53}, {Protocol: lb.UDPLite, Number: 53},
		{Protocol: lb.TCP, Number: 1000, Last: 2000}, {Protocol: lb.UDP, Number: 1, Last: 65535}}
	if got := cfg.Services[1].Ports; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestWhatTheProgramHasRoomForIsKnown(t *testing.T) {
	ranges := func(n int) string {
		var list []string
		for i := range n {
			list = append(list, fmt.Sprintf("tcp/%d-%d", 100*i+1, 100*i+50))
		}
		return strings.Join(list, ", ")
	}
	var prefixes []string
	for n := range maxPrefixes + 1 {
		prefixes = append(prefixes, fmt.Sprintf("10.%d.%d.0/24", n>>8, n&0xff))
	}
	service := func(name, vips, ports string) string {
		return fmt.Sprintf("  - {name: %s, vips: [%s], ports: [%s], check: {port: 80}, backends: [{name: b, address: 192.0.2.1}]}\n", name, vips, ports)
	}
	for _, tt := range []struct{ name, services, want string }{
		{"as many prefixes as there may be", service("a", strings.Join(prefixes[1:], ", "), "tcp/80"), ""},
		{"one prefix more", service("a", strings.Join(prefixes, ", "), "tcp/80"),
			`f:4: services[0] "a": vips[4096] "10.16.0.0/24" is one prefix too many: 4096 VIPs can be prefixes, merge some`},
		{"ranges around a prefix", service("a", "10.0.0.0/8", ranges(8)) + service("b", "10.1.0.0/16", ranges(8)) + service("c", "10.1.1.1", ranges(16)), ""},
		{"too many ranges around a prefix", service("a", "10.0.0.0/8", ranges(9)) + service("b", "10.1.0.0/16", ranges(8)),
			`f:5: services[1] "b": vips[0] "10.1.0.0/16" has 17 ranges of tcp ports with those of other services and of prefixes around it: a VIP can have 16, merge some`},
		{"too many ranges of two services", service("a", "10.0.0.1", ranges(9)) + service("b", "10.0.0.1", "tcp/10001-10050, tcp/10101-10150, tcp/10201-10250, tcp/10301-10350, tcp/10401-10450, tcp/10501-10550, tcp/10601-10650, tcp/10701-10750"),
			`f:4: services[0] "a": vips[0] "10.0.0.1" has 17 ranges of tcp ports with those of other services and of prefixes around it: a VIP can have 16, merge some`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("f", []byte("node: {name: lb1, interfaces: [eth0]}\n\nservices:\n"+tt.services))
			if tt.want == "" {
				tt.want = "no error"
			}
			wantErrors(t, err, tt.want)
		})
	}
}

func pointer(n uint32) *uint32 { return &n }
