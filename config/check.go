package config

import (
	"errors"
	"net/netip"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

// checker turns the shape into a Config and reports what is wrong with it.
type checker struct {
	*report
	host host
	// hosts are the addresses that belong to a machine, by who it is in the
	// file's words: none of them can be a VIP.
	hosts map[netip.Addr]string
}

func (c *checker) config(f *file) Config {
	cfg := Config{
		Node:    c.node(f.Node),
		Cluster: c.cluster(f.Cluster),
		BGP:     c.bgp(f.BGP),
		HTTP:    c.http(f.HTTP),
		Admin:   c.admin(f.Admin),
	}
	if cluster, http := cfg.Cluster.Listen, cfg.HTTP.Listen; overlap(cluster, http) {
		c.at(f.HTTP.Listen.place, "%q takes the port of cluster.listen %q: give one of them another", http, cluster)
	}
	if f.Services.state == absent && f.Include.state == absent {
		c.at(f.Services.place, "is missing: list them, or write [] for a node that serves nothing yet")
	}
	cfg.Services = c.services(f.Services)
	c.announcements(f, &cfg)
	cfg.BGP.Aggregates = c.aggregates(f.BGP, cfg)
	cfg.Denied = c.denied(f.Node, cfg.Node.DenyFile)
	return cfg
}

// overlap tells whether the kernel would refuse the second of two TCP listeners.
func overlap(a, b netip.AddrPort) bool {
	if !a.IsValid() || !b.IsValid() || a.Port() != b.Port() {
		return false
	}
	covers := func(any, one netip.Addr) bool {
		return any.IsUnspecified() && (any.Is6() || one.Is4()) // [::] takes IPv4 too
	}
	return a.Addr() == b.Addr() || covers(a.Addr(), b.Addr()) || covers(b.Addr(), a.Addr())
}

func (c *checker) node(s nodeSection) Node {
	var node Node
	node.Name, _ = want(c.report, s.Name, "", parseName)
	if s.Name.state == absent {
		node.Name = c.hostName(s.Name.place)
		c.note(s.Name.place, note{value: node.Name, silent: true})
	}
	some(c.report, s.Interfaces, "name the NICs that carry VIP traffic")
	node.Interfaces, _ = entries(c.report, s.Interfaces, parseInterface)
	node.XDPMode, _ = want(c.report, s.XDPMode, XDPAuto, oneOf(XDPAuto, XDPNative, XDPGeneric))
	node.Linger, _ = want(c.report, s.Linger, 10*time.Second, lasting(time.Second, 10*time.Minute))
	node.FlowRecords, _ = want(c.report, s.FlowRecords, lb.DefaultFlowRecords, between(1<<10, 1<<24))
	node.DenyFile, _ = want(c.report, s.DenyFile, "", parseText)
	if node.DenyFile != "" && c.host.beside != nil {
		node.DenyFile = c.host.beside("", node.DenyFile)
	}
	return node
}

// denied reads the deny list; what is wrong with it is reported with its own name.
func (c *checker) denied(s nodeSection, path string) []netip.Prefix {
	if path == "" || c.host.denied == nil {
		return nil
	}
	list, err := c.host.denied(path)
	if faults, ok := errors.AsType[Errors](err); ok {
		c.list = append(c.list, faults...)
	} else if err != nil {
		c.at(s.DenyFile.place, "%s cannot be taken: %w", s.DenyFile, err)
	}
	return list
}

// hostName stands in for node.name.
func (c *checker) hostName(at place) string {
	name, err := c.host.name()
	if err != nil {
		c.at(at, "is missing and the host has none either (%w): set it", err)
		return ""
	}
	if _, err := parseName(value{text: name}); err != nil {
		c.at(at, "is missing and the host name %q cannot stand in, it %w", name, err)
	}
	return name
}

func (c *checker) cluster(s clusterSection) Cluster {
	if s.state != given {
		return Cluster{Size: 1}
	}
	var cluster Cluster
	cluster.Name, _ = need(c.report, s.Name, "give all nodes of the cluster the same one, and those of another cluster another", parseName)
	cluster.Listen, _ = need(c.report, s.Listen, "give the address and port that other members reach this node at", parseMemberListen)
	c.belongs(cluster.Listen.Addr(), "cluster.listen")

	addresses := 1 // members that are surely different ones: each has one address, but several names
	members, _ := entries(c.report, s.Join, parseMember)
	for _, member := range members {
		address, err := netip.ParseAddrPort(member)
		if err == nil && address == cluster.Listen {
			continue
		}
		if err == nil {
			addresses++
			c.belongs(address.Addr(), "a member in cluster.join")
		}
		cluster.Join = append(cluster.Join, member)
	}

	size, ok := want(c.report, s.Size, 1+len(cluster.Join), between(1, 10_000))
	if ok && size < addresses {
		c.at(s.Size.place, "%d is less than the %d nodes in cluster.listen and cluster.join: two halves could both believe to be the majority, count them all", size, addresses)
	}
	cluster.Size = size
	cluster.PartitionHold, _ = want(c.report, s.PartitionHold, 15*time.Second, lasting(0, time.Hour))

	if path, ok := need(c.report, s.KeyFile, "gossip is always encrypted, name a file that holds base64 keys, one a line", parseText); ok {
		cluster.Keys = c.keys(s.KeyFile, path)
	}
	hashKeys := cluster.Keys
	if path, ok := want(c.report, s.HashKeyFile, "", parseText); ok && path != "" {
		hashKeys = c.keys(s.HashKeyFile, path)
	}
	if len(hashKeys) > 0 {
		cluster.HashKey = hashKeys[0]
		c.keepSecret(s.HashKeyFile.place, cluster.HashKey) // wherever it is from
	}
	return cluster
}

func (c *checker) http(s httpSection) HTTP {
	listen, ok := want(c.report, s.Listen, netip.MustParseAddrPort("127.0.0.1:9870"), parseListen)
	if ok && !listen.Addr().IsUnspecified() {
		c.belongs(listen.Addr(), "http.listen")
	}
	return HTTP{Listen: listen}
}

func (c *checker) admin(s adminSection) Admin {
	socket, _ := want(c.report, s.Socket, "/run/halfproxy/admin.sock", parseSocket)
	return Admin{Socket: socket}
}

// belongs notes that addr is some machine's, the first that says so.
func (c *checker) belongs(addr netip.Addr, owner string) {
	if _, known := c.hosts[addr]; !known && addr.IsValid() {
		c.hosts[addr] = owner
	}
}
