package config

// file is the shape on disk, and its only description: JSON Schema and
// docs/configuration.md are made of the comments and tags here (config/generate).
//
//	kind      what a value may be, by its name in config/generate/kinds.go
//	words     those of kind word
//	range     least and most, of kinds that have them
//	default   what it is where the file is silent, if that is always the same
//	required  true
//	unless    the key without which it is required
//	some      true: a list has an entry, if it is there
//	types     of a check: those that have a use for it; required is then with these
//
// The checker has words, ranges and defaults of its own, beside what they mean; a
// test holds the ones against the others.
type file struct {
	section
	// This machine.
	Node nodeSection `yaml:"node"`
	// The other load balancer nodes. Left out: the node stands alone, and what it finds
	// of its backends' health is the whole truth.
	Cluster clusterSection `yaml:"cluster"`
	// The routers that learn the VIPs. Left out: nothing is announced.
	BGP bgpSection `yaml:"bgp"`
	// What can be read over the network.
	HTTP httpSection `yaml:"http"`
	// What changes something arrives here alone.
	Admin adminSection `yaml:"admin"`

	// Files with more services, by path or pattern (services.d/*.yaml), one or some in a
	// list. Default: none.
	Include listOrValue `yaml:"include" kind:"path" some:"true"`
	// What clients ask for. [] is a node that serves nothing yet.
	Services list[serviceEntry] `yaml:"services" unless:"include"`
}

// includedFile is the shape of a file that another includes.
type includedFile struct {
	section
	// As in the file that includes this one.
	Services list[serviceEntry] `yaml:"services" required:"true"`
}

type nodeSection struct {
	section
	// Unique in the cluster. Default: the host name.
	Name value `yaml:"name" kind:"name"`
	// NICs that carry VIP traffic; the XDP program sits on each.
	Interfaces list[value] `yaml:"interfaces" kind:"interface" required:"true" some:"true"`
	// Where the XDP program runs. auto: in the driver where that can, else as generic,
	// and the log says which; native: in the driver, or not at all; generic: in the network
	// stack, everywhere and slower.
	XDPMode value `yaml:"xdp_mode" kind:"word" words:"auto,native,generic" default:"auto"`
	// How long a node that stops forwards on at most, after its routes are withdrawn.
	Linger value `yaml:"linger" kind:"duration" range:"1s..10m" default:"10s"`
	// Flows that a record can be kept of, at some 80 bytes each. The same on all nodes.
	FlowRecords value `yaml:"flow_records" kind:"integer" range:"1024..16777216" default:"262144"`
	// A file with sources whose packets for VIPs are dropped, a prefix or an address a
	// line. Read anew when it is replaced. Default: none.
	DenyFile value `yaml:"deny_file" kind:"path"`
}

type clusterSection struct {
	section
	// Nodes of a cluster with another name are refused.
	Name value `yaml:"name" kind:"name" required:"true"`
	// Where other members reach this node, by TCP and UDP: one of its own addresses.
	Listen value `yaml:"listen" kind:"listen" required:"true"`
	// Some or all of the other members, as addresses or DNS names; port 7946 may be left
	// out. This node may be among them. Default: none.
	Join list[value] `yaml:"join" kind:"member"`
	// A file with base64 keys of 16, 24 or 32 bytes, one a line: the first encrypts, all
	// decrypt. Not for every user's eyes.
	KeyFile value `yaml:"key_file" kind:"path" required:"true"`
	// Nodes there should be, this one included: a verdict needs a majority of these.
	// Default: those of join, and this one.
	Size value `yaml:"size" kind:"integer" range:"1..10000"`
	// A file like key_file whose first key keys the flow hashes: while it stays, keys of
	// key_file come and go without a flow's moving. Default: key_file.
	HashKeyFile value `yaml:"hash_key_file" kind:"path"`
	// How long verdicts stay as they were while fewer than a majority is in sight; then
	// those in sight decide.
	PartitionHold value `yaml:"partition_hold" kind:"duration" range:"0s..1h" default:"15s"`
}

type bgpSection struct {
	section
	// This node's autonomous system.
	ASN value `yaml:"asn" kind:"asn" required:"true"`
	// An IPv4 address, unique among the routers.
	RouterID value `yaml:"router_id" kind:"ipv4" required:"true"`
	// Where sessions that peers open are taken. Default: nowhere.
	Listen value `yaml:"listen" kind:"listen"`
	// On every VIP: standard (a:b), large (a:b:c) and well-known ones such as no-export.
	// Default: none.
	Communities list[value] `yaml:"communities" kind:"community"`
	// How long routers keep our routes while the node restarts (RFC 4724), in whole
	// seconds; 0s: not at all.
	GracefulRestart value `yaml:"graceful_restart" kind:"seconds" range:"0s..4095s" default:"30s"`
	// How long a VIP that was withdrawn for a fault has to be able to be announced before
	// it is. It doubles with each time.
	HoldUp value `yaml:"hold_up" kind:"duration" range:"0s..1m" default:"1s"`
	// How long routes that are to be withdrawn say so first (RFC 8326); 0s: not at all.
	GracefulShutdown value `yaml:"graceful_shutdown" kind:"duration" range:"0s..10m" default:"2s"`
	// Prefixes around VIPs that are announced while a VIP in them is. Default: none.
	Aggregates list[aggregateEntry] `yaml:"aggregates"`
	// The routers.
	Peers list[peerEntry] `yaml:"peers" required:"true" some:"true"`
}

type peerEntry struct {
	section
	// Of the router; one session an address.
	Address value `yaml:"address" kind:"address" required:"true"`
	// The router's autonomous system. That of bgp.asn makes it an iBGP session.
	ASN value `yaml:"asn" kind:"asn" required:"true"`
	// After so long without a word the router takes our routes away, in whole seconds.
	HoldTime value `yaml:"hold_time" kind:"seconds" range:"3s..65535s" default:"9s"`
	// How often it hears from us, in whole seconds. Default, and most: a third of hold_time.
	KeepaliveTime value `yaml:"keepalive_time" kind:"seconds" range:"1s..65535s"`
	// How long after a failed connection the next one is tried, in whole seconds.
	ConnectRetryTime value `yaml:"connect_retry_time" kind:"seconds" range:"1s..1h" default:"1s"`
	// A file with the password of TCP MD5 (RFC 2385) in one line. Default: none.
	PasswordFile value `yaml:"password_file" kind:"path"`
	// Packets have to come straight from the neighbour (GTSM, RFC 5082). On at both ends,
	// or at none.
	TTLSecurity value `yaml:"ttl_security" kind:"boolean" default:"false"`
	// Hops to a router of another AS that is no neighbour. Excludes ttl_security.
	// Default: it is a neighbour.
	Multihop value `yaml:"multihop" kind:"integer" range:"2..255"`
	// The session's own address. Default: the kernel's choice.
	LocalAddress value `yaml:"local_address" kind:"address"`
	// The router opens the session, and bgp.listen takes it.
	Passive value `yaml:"passive" kind:"boolean" default:"false"`
	// VIPs that it is told of. Default: both.
	Families list[value] `yaml:"families" kind:"word" words:"ipv4,ipv6" some:"true"`
	// At most one of each family. Default: the session's own address; of the other family
	// the first one of node.interfaces.
	NextHops list[value] `yaml:"next_hops" kind:"address"`
	// IPv4 VIPs have an IPv6 next hop (RFC 8950).
	ExtendedNextHop value `yaml:"extended_next_hop" kind:"boolean" default:"false"`
	// Prefixes of a family that it may send: none is used, all cost memory. Who sends more
	// has its session closed, and is tried again a minute later.
	PrefixLimit value `yaml:"prefix_limit" kind:"integer" range:"1..4294967295" default:"1000"`
	// RFC 5880: a dead node is noticed after multiplier times interval. Left out: none.
	BFD bfdSection `yaml:"bfd"`
	// Beside bgp.communities, on all that it is told. Default: none.
	Communities list[value] `yaml:"communities" kind:"community"`
	// The lowest wins; in the place of the services'. Default: theirs.
	MED value `yaml:"med" kind:"integer" range:"0..4294967295"`
	// Of a router of the same AS: the highest wins; in the place of the services'.
	// Default: theirs.
	LocalPreference value `yaml:"local_preference" kind:"integer" range:"1..4294967295"`
	// Of a router of another AS: times that our AS is in the path once more, beside the
	// services'. Default: none.
	Prepend value `yaml:"prepend" kind:"integer" range:"0..10"`
}

type aggregateEntry struct {
	section
	// Around VIPs; none overlaps another one.
	Prefix value `yaml:"prefix" kind:"prefix" required:"true"`
	// Addresses of those in bgp.peers that are told of it. Default: all.
	Peers list[value] `yaml:"peers" kind:"address" some:"true"`
	// Which of those are told of the VIPs in it, too: all, none or a list. Default: all.
	Specifics listOrValue `yaml:"specifics" kind:"specifics" some:"true"`

	// Beside bgp.communities. Default: none.
	Communities list[value] `yaml:"communities" kind:"community"`
	// The lowest wins. Default: none.
	MED value `yaml:"med" kind:"integer" range:"0..4294967295"`
	// For routers of the same AS: the highest wins. Default: BGP's own, 100.
	LocalPreference value `yaml:"local_preference" kind:"integer" range:"0..4294967295"`
	// For routers of other ASes: times that our AS is in the path once more.
	// Default: none.
	Prepend value `yaml:"prepend" kind:"integer" range:"0..10"`
}

type bfdSection struct {
	section
	// Between packets.
	Interval value `yaml:"interval" kind:"duration" range:"10ms..1m" default:"300ms"`
	// Packets lost in a row that mean that the peer is gone.
	Multiplier value `yaml:"multiplier" kind:"integer" range:"1..255" default:"3"`
	// The router may be some hops away (RFC 5883). Default: whether the peer has multihop.
	Multihop value `yaml:"multihop" kind:"boolean"`
	// Of multihop: the least TTL that its packets arrive with. FRR sends them with 255, BIRD
	// with 64; each router in between takes one off. Default: any.
	MinimumTTL value `yaml:"minimum_ttl" kind:"integer" range:"1..255"`
	// A file with the password of meticulous keyed SHA1 (RFC 5880, 6.7.4) in one line, 20
	// bytes at most. Default: none.
	PasswordFile value `yaml:"password_file" kind:"path"`
	// The number that both ends know the password by. Default: 1.
	KeyID value `yaml:"key_id" kind:"integer" range:"0..255"`
}

type httpSection struct {
	section
	// Health endpoint, metrics, console and API. It has no password: mind who can reach it.
	Listen value `yaml:"listen" kind:"listen" default:"127.0.0.1:9870"`
}

type adminSection struct {
	section
	// Who may write to the socket may change what this node does.
	Socket value `yaml:"socket" kind:"socket" default:"/run/halfproxy/admin.sock"`
}

type serviceEntry struct {
	section
	// Unique. Commands, metrics and tables go by it.
	Name value `yaml:"name" kind:"name" required:"true"`
	// Addresses and prefixes that clients know, of either family.
	VIPs list[value] `yaml:"vips" kind:"network" required:"true" some:"true"`
	// tcp/443, a range such as tcp/8000-8099, or tcp/* for all; also of udp, sctp, udplite.
	Ports list[value] `yaml:"ports" kind:"port" required:"true" some:"true"`
	// What chooses the backend, one or some in a list: packets that are equal in these go
	// to one. flow is the source address and both ports.
	Hash listOrValue `yaml:"hash" kind:"word" words:"flow,source,destination,source_port,destination_port" default:"flow" some:"true"`
	// What each source may send, on each node. Left out: there is no limit.
	Limit limitSection `yaml:"limit"`
	// The way to the backends. l2: only MAC addresses change, backends share a link with the
	// node; ipip, gre, gue: outer headers take the packet anywhere.
	Forward value `yaml:"forward" kind:"word" words:"l2,ipip,gre,gue" default:"l2"`
	// Of forward gue.
	GUE gueSection `yaml:"gue"`
	// Prefixes that the outer source address is taken from, as the flow's hash says; at most
	// one of each family, not of l2. Default: the node's own address.
	OuterSources list[value] `yaml:"outer_sources" kind:"prefix"`
	// Of backends that put a server ID into QUIC's connection IDs. Left out: these are not
	// looked at.
	QUIC quicSection `yaml:"quic"`
	// The servers.
	Backends list[backendEntry] `yaml:"backends" required:"true" some:"true"`
	// Flows with records, that stay where they are when backends come and go. changes: those
	// whose part of the table has changed lately; all: every one; none: they may break.
	Tracking value `yaml:"tracking" kind:"word" words:"changes,none,all" default:"changes"`
	// How long after a change flows stay at their backend. Not of tracking none.
	FlowLifetime value `yaml:"flow_lifetime" kind:"duration" range:"10s..24h" default:"1h"`
	// How a backend is found to be well. Left out: a tcp check with the defaults.
	Check checkSection `yaml:"check"`
	// When and how routers are told of the VIPs.
	Announce announceSection `yaml:"announce"`
	// With a smaller healthy share than this the checks are not believed, and all backends
	// are used; 0%: never.
	PanicBelow value `yaml:"panic_below" kind:"share" range:"0%..100%" default:"0%"`
}

type limitSection struct {
	section
	// A second, on average.
	Packets value `yaml:"packets" kind:"integer" range:"1..100000000" required:"true"`
	// At once, after a pause. Default: as packets.
	Burst value `yaml:"burst" kind:"integer" range:"1..100000000"`
	// Length of the prefix that counts as one source.
	IPv4Prefix value `yaml:"ipv4_prefix" kind:"integer" range:"8..32" default:"32"`
	// Likewise.
	IPv6Prefix value `yaml:"ipv6_prefix" kind:"integer" range:"16..128" default:"64"`
}

type gueSection struct {
	section
	// UDP port that the backends take GUE at.
	Port value `yaml:"port" kind:"integer" range:"1..65535" default:"6080"`
	// UDP checksum of the outer header. zero: none (RFC 6935); full: over all of the packet.
	Checksum value `yaml:"checksum" kind:"word" words:"zero,full" default:"zero"`
}

type quicSection struct {
	section
	// In bytes.
	ServerIDLength value `yaml:"server_id_length" kind:"integer" range:"1..15" required:"true"`
	// The three high bits of connection IDs.
	ConfigRotation value `yaml:"config_rotation" kind:"integer" range:"0..6" default:"0"`
}

type backendEntry struct {
	section
	// Unique in the service.
	Name value `yaml:"name" kind:"name" required:"true"`
	// Unique in the service; of either family, whatever that of the VIPs.
	Address value `yaml:"address" kind:"address" required:"true"`
	// Share of the new flows relative to its fellows; 0 is drained.
	Weight value `yaml:"weight" kind:"integer" range:"0..10000" default:"100"`
	// Of a service with quic: in hexadecimal, unique in the service. Default: the last bytes
	// of the address.
	QUICServerID value `yaml:"quic_server_id" kind:"server_id"`
}

type checkSection struct {
	section
	// tcp: a connection is taken; http, https: an answer has an expected status, and body;
	// grpc: grpc.health.v1 says SERVING; dns: a name server gives an expected answer; udp: a
	// packet is answered; exec: a program on this node exits with 0.
	Type value `yaml:"type" kind:"word" words:"tcp,http,https,grpc,dns,udp,exec" default:"tcp"`
	// Default: the type's own where the service has it, else the service's first of the
	// protocol.
	Port value `yaml:"port" kind:"integer" range:"1..65535"`
	// vip: to a VIP, through the forwarding path, on the one backend; direct: to the
	// backend's own address. A program goes its own way.
	Via value `yaml:"via" kind:"word" words:"vip,direct" default:"vip" types:"tcp,http,https,grpc,dns,udp"`
	// From one probe to the next.
	Interval value `yaml:"interval" kind:"duration" range:"10ms..1h" default:"1s"`
	// Of one probe, shorter than interval. Default: 500ms, or half of interval where that
	// is less.
	Timeout value `yaml:"timeout" kind:"duration" range:"1ms..1h"`
	// Successes in a row that make a backend up.
	Rise value `yaml:"rise" kind:"integer" range:"1..1000" default:"2"`
	// Failures in a row that make it down.
	Fall value `yaml:"fall" kind:"integer" range:"1..1000" default:"3"`
	// How long a backend that goes up and down is held down at most.
	FlapHold value `yaml:"flap_hold" kind:"duration" range:"0s..24h" default:"0s"`
	// How long the weight of a backend that was down takes to grow.
	SlowStart value `yaml:"slow_start" kind:"duration" range:"0s..1h" default:"0s"`
	// How many members check each backend, chosen by rendezvous hashing. Default: all.
	Observers value `yaml:"observers" kind:"integer" range:"1..1000"`

	// The name that the server is asked for. Default: the address that is asked.
	Host value `yaml:"host" kind:"host" types:"http,https,grpc"`
	// Of the request.
	Path value `yaml:"path" kind:"target" default:"/" types:"http,https"`
	// Of the request.
	Method value `yaml:"method" kind:"word" words:"GET,HEAD,OPTIONS,POST" default:"GET" types:"http,https"`
	// Of the request, name to value; those of the same name are replaced. Default: none.
	Headers pairs `yaml:"headers" types:"http,https"`
	// One, or ranges of them as in "200-299,301".
	Status value `yaml:"status" kind:"status" default:"200-299" types:"http,https"`
	// Text that the answer contains. Default: any.
	Body value `yaml:"body" kind:"text" types:"http,https"`
	// A regular expression (RE2) that the answer matches. Default: any.
	BodyRegexp value `yaml:"body_regexp" kind:"text" types:"http,https"`
	// Else HTTP/1.1.
	HTTP2 value `yaml:"http2" kind:"boolean" default:"false" types:"http,https"`

	// https always has it.
	TLS value `yaml:"tls" kind:"boolean" default:"false" types:"grpc"`
	// The server's certificate has to be good.
	Verify value `yaml:"verify" kind:"boolean" default:"true" types:"https,grpc"`
	// PEM: who may have signed it. Default: whom the host trusts.
	CAFile value `yaml:"ca_file" kind:"path" types:"https,grpc"`
	// PEM: this node's certificate, for servers that want to know who asks. Default: none.
	CertFile value `yaml:"cert_file" kind:"path" types:"https,grpc"`
	// PEM: its key.
	KeyFile value `yaml:"key_file" kind:"path" types:"https,grpc"`

	// What to ask about. Default: the server as a whole.
	Service value `yaml:"service" kind:"text" types:"grpc"`

	// A name that the servers know.
	Query value `yaml:"query" kind:"text" types:"dns" required:"true"`
	// Type of record.
	QueryType value `yaml:"query_type" kind:"word" words:"A,AAAA,CAA,CNAME,DNSKEY,DS,HTTPS,MX,NAPTR,NS,PTR,SOA,SRV,SVCB,TXT" default:"A" types:"dns"`
	// That the answer has.
	Rcode value `yaml:"rcode" kind:"word" words:"NOERROR,FORMERR,SERVFAIL,NXDOMAIN,NOTIMP,REFUSED,NOTAUTH" default:"NOERROR" types:"dns"`
	// One, or both in a list. Default: what the service has at the port, else udp.
	Over listOrValue `yaml:"over" kind:"word" words:"udp,tcp" types:"dns" some:"true"`

	// Text to send. Default: an empty packet.
	Payload value `yaml:"payload" kind:"any" types:"udp"`
	// The same in hexadecimal digits.
	PayloadHex value `yaml:"payload_hex" kind:"hex" types:"udp"`
	// Of dns: the data of a record, as dig +short shows it; of udp: text that the answer
	// contains. Default: any.
	Answer value `yaml:"answer" kind:"any" types:"dns,udp"`
	// The same in hexadecimal digits.
	AnswerHex value `yaml:"answer_hex" kind:"hex" types:"udp"`
	// No answer is taken for one; only with via direct.
	Silent value `yaml:"silent" kind:"boolean" default:"false" types:"udp"`

	// A program's path and its arguments; there is no shell.
	Command list[value] `yaml:"command" kind:"any" types:"exec" required:"true" some:"true"`
}

type announceSection struct {
	section
	// With fewer healthy backends than this the VIPs are withdrawn: a number, or a share
	// such as 30%.
	MinHealthy value `yaml:"min_healthy" kind:"quorum" default:"1"`
	// What becomes of the VIPs when no backend is healthy. withdraw: they are; use_all: they
	// stay, and all backends are used.
	NoneHealthy value `yaml:"none_healthy" kind:"word" words:"withdraw,use_all" default:"withdraw"`
	// Addresses of those in bgp.peers that are told of the VIPs. Default: all.
	Peers list[value] `yaml:"peers" kind:"address" some:"true"`

	// Beside bgp.communities. Default: none.
	Communities list[value] `yaml:"communities" kind:"community"`
	// The lowest wins. Default: none.
	MED value `yaml:"med" kind:"integer" range:"0..4294967295"`
	// For routers of the same AS: the highest wins. Default: BGP's own, 100.
	LocalPreference value `yaml:"local_preference" kind:"integer" range:"0..4294967295"`
	// For routers of other ASes: times that our AS is in the path once more.
	// Default: none.
	Prepend value `yaml:"prepend" kind:"integer" range:"0..10"`
}

// section is embedded in what is a mapping in the file.
type section struct{ place }

// value is a scalar as it was written. It is empty where the file has none.
type value struct {
	place
	text string
	kind kind
}

// kind is the type that YAML gives to a scalar.
type kind uint8

const (
	text kind = iota
	number
	boolean
)

// list is a sequence of values or of sections.
type list[T any] struct {
	place
	items []T
}

// grow adds an entry and gives a pointer to it.
func (l *list[T]) grow() part {
	l.items = append(l.items, *new(T))
	return any(&l.items[len(l.items)-1]).(part)
}

// listOrValue is a list that may be written without brackets where it has one
// entry.
type listOrValue struct{ list[value] }

// pairs is a mapping with any keys, which are those of the values' places.
type pairs struct {
	place
	names  []string
	values []value
}
