package config

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

// claim is a VIP that a service lists.
type claim struct {
	vip     lb.VIP
	at      place
	service lb.Service
}

func (c *checker) services(s list[serviceEntry]) []lb.Service {
	var services []lb.Service
	var claims []claim
	first := map[string]place{}
	for _, entry := range s.items {
		service, places := c.service(entry)
		if service.Name != "" {
			once(c.report, first, service.Name, entry.Name, "names must be unique, commands and metrics go by them")
		}
		for i, vip := range service.VIPs {
			claims = append(claims, claim{vip, places[i], service})
		}
		services = append(services, service)
	}
	c.claims(claims)
	return services
}

// What the program has room for: ranges that a VIP has of a protocol, and VIPs
// that are prefixes.
const (
	maxRanges   = 16
	maxPrefixes = 4096
)

// holding is a port of a VIP that a service has.
type holding struct {
	claim
	port lb.Port
}

// claims checks what no service sees alone: a VIP and port lead to one service,
// and a VIP is no machine's own address.
func (c *checker) claims(claims []claim) {
	hosts := slices.SortedFunc(maps.Keys(c.hosts), netip.Addr.Compare)
	owners := map[lb.VIP][]holding{}
	prefixes := 0
	for _, claim := range claims {
		vip := claim.vip
		if i, _ := slices.BinarySearchFunc(hosts, vip.Addr(), netip.Addr.Compare); i < len(hosts) && vip.Contains(hosts[i]) {
			if owner := c.hosts[hosts[i]]; vip.IsSingleIP() {
				c.at(claim.at, "%q is also the address of %s: a VIP is nobody's own address, give it one that is free", vip, owner)
			} else {
				c.at(claim.at, "%q has in it %v, the address of %s: a VIP is nobody's own address, give prefixes without it", vip, hosts[i], owner)
			}
		}
		held, shared := owners[vip]
		if !vip.IsSingleIP() && !shared {
			if prefixes++; prefixes == maxPrefixes+1 {
				c.at(claim.at, "%q is one prefix too many: %d VIPs can be prefixes, merge some", vip, maxPrefixes)
			}
		}
		for _, port := range claim.service.Ports {
			i := slices.IndexFunc(held, func(h holding) bool { return h.port.Clashes(port) })
			if i >= 0 {
				owner := held[i]
				c.at(claim.at, "%q with %v belongs to service %q already, by %s: give it another port or address",
					vip, port, owner.service.Name, owner.at.seen(claim.at))
				continue
			}
			owners[vip] = append(owners[vip], holding{claim, port})
		}
	}
	c.ranges(owners)
}

// ranges checks that the ranges of services that share a VIP are few, and so are
// those of a prefix and the prefixes that it lies in, which count for it too.
func (c *checker) ranges(owners map[lb.VIP][]holding) {
	around := lb.Around(slices.Collect(maps.Keys(owners)))
	counts := map[lb.VIP]map[lb.Protocol]int{}
	for _, vip := range slices.SortedFunc(maps.Keys(owners), lb.VIP.Compare) { // what is around a VIP before it
		counts[vip] = map[lb.Protocol]int{}
		if !vip.IsSingleIP() {
			maps.Copy(counts[vip], counts[around[vip]])
		}
		first := owners[vip][0]
		others := len(counts[vip]) > 0
		for _, h := range owners[vip] {
			others = others || h.service.Name != first.service.Name
			if h.port.Last != 0 {
				counts[vip][h.port.Protocol]++
			}
		}
		for _, protocol := range slices.Sorted(maps.Keys(counts[vip])) {
			if n := counts[vip][protocol]; others && n > maxRanges {
				c.at(first.at, "%q has %d ranges of %s ports with those of other services and of prefixes around it: a VIP can have %d, merge some", vip, n, protocol, maxRanges)
			}
		}
	}
}

// service gives the places of the service's VIPs beside it.
func (c *checker) service(s serviceEntry) (lb.Service, []place) {
	var service lb.Service
	service.Name, _ = need(c.report, s.Name, "commands, metrics and tables go by it", parseName)

	some(c.report, s.VIPs, "list the addresses that clients know")
	var places []place
	service.VIPs, places = entries(c.report, s.VIPs, parseVIP)

	some(c.report, s.Ports, "list them as tcp/443 or udp/53")
	service.Ports = c.ports(s.Ports)

	service.Hash = c.hash(s.Hash, service.VIPs)
	service.Limit = c.limit(s.Limit)
	c.forward(s, &service)
	service.QUIC = c.quic(s, service.Ports)
	service.Backends = c.backends(s, service.QUIC)
	c.tracking(s, &service)
	service.Check = c.check(s, service.Ports)
	service.Observers, _ = want(c.report, s.Check.Observers, 0, between(1, 1000))
	service.MinHealthy = c.minHealthy(s)
	none, _ := want(c.report, s.Announce.NoneHealthy, "withdraw", oneOf("withdraw", "use_all"))
	service.UseAll = none == "use_all"
	below, _ := want(c.report, s.PanicBelow, 0, parseShare(0))
	service.PanicBelow = int(below)
	return service, places
}

// ports checks what no entry sees alone: ranges do not overlap, and are few.
func (c *checker) ports(l list[value]) []lb.Port {
	ports, places := entries(c.report, l, parsePort)
	ranges := map[lb.Protocol]int{}
	for i, port := range ports {
		if port.Last == 0 {
			continue
		}
		if first := slices.IndexFunc(ports[:i], port.Clashes); first >= 0 {
			c.at(places[i], "%q overlaps %v: make one of them", port, ports[first])
		}
		if ranges[port.Protocol]++; ranges[port.Protocol] == maxRanges+1 {
			c.at(places[i], "%q is one range too many: a VIP can have %d of %s", port, maxRanges, port.Protocol)
		}
	}
	return ports
}

// hash reads what chooses the backend.
func (c *checker) hash(l listOrValue, vips []lb.VIP) lb.HashFields {
	if l.state != given {
		c.note(l.place, note{value: lb.HashFlow, silent: true})
		return lb.HashFlow
	}
	some(c.report, l.list, "name what tells flows apart, or leave it out")
	var fields lb.HashFields
	read, places := entries(c.report, l.list, parseHashField)
	for i, field := range read {
		if fields&field != 0 {
			c.at(places[i], "names %s once more: remove one of them", fields&field)
		}
		fields |= field
	}
	const clients = lb.HashSource | lb.HashSourcePort
	prefix := func(vip lb.VIP) bool { return !vip.IsSingleIP() }
	if len(read) > 0 && len(read) == len(l.items) && fields&clients == 0 && (fields&lb.HashDestination == 0 || !slices.ContainsFunc(vips, prefix)) {
		c.at(l.place, "%s is the same of all clients, one backend would get them all: add source or source_port, or hash the destination of a VIP that is a prefix", fields)
	}
	return fields
}

func (c *checker) limit(s limitSection) lb.Limit {
	if s.state != given {
		return lb.Limit{}
	}
	var limit lb.Limit
	limit.Packets, _ = need(c.report, s.Packets, "give the number that each source may send in a second", between(1, 100_000_000))
	limit.Burst, _ = want(c.report, s.Burst, limit.Packets, between(1, 100_000_000))
	limit.Prefix4, _ = want(c.report, s.IPv4Prefix, 32, between(8, 32))
	limit.Prefix6, _ = want(c.report, s.IPv6Prefix, 64, between(16, 128))
	return limit
}

// forward reads the way to the backends.
func (c *checker) forward(s serviceEntry, service *lb.Service) {
	forward, ok := want(c.report, s.Forward, lb.L2, named(lb.L2, lb.IPIP, lb.GRE, lb.GUE))
	service.Forward = forward

	if ok && forward != lb.GUE && s.GUE.state == given {
		c.at(s.GUE.place, "is of no use to forward %s: remove it, or set forward: gue", forward)
	} else if forward == lb.GUE || s.GUE.state == given {
		port, _ := want(c.report, s.GUE.Port, lb.DefaultGUEPort, between(1, 65535))
		checksum, _ := want(c.report, s.GUE.Checksum, "zero", oneOf("zero", "full"))
		service.GUEPort, service.GUEChecksum = uint16(port), checksum == "full"
	}

	sources, places := entries(c.report, s.OuterSources, parsePrefix)
	for i, source := range sources {
		twin := func(p netip.Prefix) bool { return p.Addr().Is4() == source.Addr().Is4() }
		if slices.ContainsFunc(sources[:i], twin) {
			c.at(places[i], "%q is the second prefix of its family: give one of each at most", source)
		}
	}
	if ok && service.Forward == lb.L2 && len(sources) > 0 {
		c.at(s.OuterSources.place, "is of no use to forward l2, which has no outer header: remove it")
		return
	}
	service.OuterSources = sources
}

// quic reads how connection IDs tell backends apart.
func (c *checker) quic(s serviceEntry, ports []lb.Port) lb.QUIC {
	if s.QUIC.state != given {
		return lb.QUIC{}
	}
	ofUDP := func(p lb.Port) bool { return p.Protocol == lb.UDP }
	if complete := len(ports) == len(s.Ports.items); complete && !slices.ContainsFunc(ports, ofUDP) {
		c.at(s.QUIC.place, "is of no use without a UDP port: remove it, or list one such as udp/443")
	}
	length, _ := need(c.report, s.QUIC.ServerIDLength, "give the number of bytes that a backend's connection IDs begin with, after their first one", between(1, lb.MaxServerIDLength))
	rotation, _ := want(c.report, s.QUIC.ConfigRotation, 0, between(0, 6))
	return lb.QUIC{ServerIDLength: length, ConfigRotation: uint8(rotation)}
}

// tracking reads of which flows there are records, and for how long.
func (c *checker) tracking(s serviceEntry, service *lb.Service) {
	service.Tracking, _ = want(c.report, s.Tracking, lb.TrackChanges, named(lb.TrackChanges, lb.TrackNone, lb.TrackAll))
	if service.Tracking == lb.TrackNone {
		if s.FlowLifetime.state == given {
			c.at(s.FlowLifetime.place, "is of no use to tracking none, by which flows move at once: remove it")
		}
		return
	}
	service.FlowLifetime, _ = want(c.report, s.FlowLifetime, lb.DefaultFlowLifetime, lasting(10*time.Second, 24*time.Hour))
}

// serverID reads what the backend puts into its connection IDs; where the file is
// silent it is the end of its address.
func (c *checker) serverID(s backendEntry, quic lb.QUIC, address netip.Addr) (lb.ServerID, bool) {
	length, end := quic.ServerIDLength, address.AsSlice()
	switch {
	case length == 0 || s.QUICServerID.state == absent && !address.IsValid():
		return "", false
	case s.QUICServerID.state != absent:
		return want(c.report, s.QUICServerID, "", serverIDOf(length))
	case len(end) < length:
		c.at(s.QUICServerID.place, "is missing: an IPv4 address is too short to take %d bytes from, give them in hexadecimal", length)
		return "", false
	}
	return lb.ServerID(end[len(end)-length:]), true
}

func (c *checker) backends(s serviceEntry, quic lb.QUIC) []lb.Backend {
	some(c.report, s.Backends, "list the servers, weight: 0 drains one that has to stay")
	if n := len(s.Backends.items); n > lb.MaxBackends {
		c.at(s.Backends.place, "has %d entries, a service can have %d: make several services of it", n, lb.MaxBackends)
	}
	var backends []lb.Backend
	names, addresses, serverIDs := map[string]place{}, map[netip.Addr]place{}, map[lb.ServerID]int{}
	for _, entry := range s.Backends.items {
		var backend lb.Backend
		var ok bool
		if backend.Name, ok = need(c.report, entry.Name, "the table is computed from it", parseName); ok {
			once(c.report, names, backend.Name, entry.Name, "names must be unique, the table is computed from them")
		}
		if backend.Address, ok = need(c.report, entry.Address, "give that of the server", parseBackendAddress); ok {
			once(c.report, addresses, backend.Address, entry.Address, "remove one of them, weight gives a server a larger share")
			c.belongs(backend.Address, fmt.Sprintf("backend %s of service %s", entry.Name, s.Name))
		}
		backend.Weight, _ = want(c.report, entry.Weight, 100, between(0, lb.MaxWeight))
		if id := entry.QUICServerID; s.QUIC.state == absent && id.state == given {
			c.at(id.place, "%s is of no use without quic in the service: remove it, or add that", id)
		}
		if backend.ServerID, ok = c.serverID(entry, quic, backend.Address); ok {
			if line, twice := serverIDs[backend.ServerID]; twice {
				c.at(entry.QUICServerID.place, "%q is what the backend in line %d has: give each its own", backend.ServerID, line)
			}
			serverIDs[backend.ServerID] = entry.QUICServerID.line
		}
		backends = append(backends, backend)
	}
	return backends
}

// minHealthy takes a number of backends or a share of them.
func (c *checker) minHealthy(s serviceEntry) lb.Quorum {
	v := s.Announce.MinHealthy
	quorum, ok := want(c.report, v, lb.Quorum{Value: 1}, func(v value) (lb.Quorum, error) {
		if v.kind == number {
			n, err := between(1, 1<<16)(v)
			return lb.Quorum{Value: n}, err
		}
		share, err := parseShare(1)(v)
		if err != nil {
			return lb.Quorum{}, errors.New(`is neither a number nor a share of the backends: write 1, or a share from "1%" to "100%"`)
		}
		return lb.Quorum{Value: int(share), Percent: true}, nil
	})
	if n := len(s.Backends.items); ok && v.state == given && n > 0 && quorum.Of(n) > n {
		c.at(v.place, "%s is more than the %d backends there are: the VIPs would never be announced, give at most %d", v, n, n)
	}
	return quorum
}
