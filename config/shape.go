package config

// file is the shape on disk. What a field may hold and its default stand here,
// in the order of the file; check.go and service.go see to both.
type file struct {
	section
	Node    nodeSection    `yaml:"node"`
	Cluster clusterSection `yaml:"cluster"` // left out: the node stands alone, nothing is gossiped
	BGP     bgpSection     `yaml:"bgp"`     // left out: nothing is announced
	HTTP    httpSection    `yaml:"http"`
	Admin   adminSection   `yaml:"admin"`

	// Services is required, so that a file cut short is not taken for one that
	// serves nothing; [] says that nothing is what is meant.
	Services list[serviceEntry] `yaml:"services"`
}

type nodeSection struct {
	section
	Name       value       `yaml:"name"`       // unique in the cluster; default: the host name
	Interfaces list[value] `yaml:"interfaces"` // required: NICs that carry VIP traffic, the XDP program sits on each
	// Flows that a record can be kept of, 1024 to 16777216, at 80 bytes each. Default: 262144.
	FlowRecords value `yaml:"flow_records"`
	DenyFile    value `yaml:"deny_file"` // sources whose packets for VIPs are dropped, a prefix a line; default: none
	Linger      value `yaml:"linger"`    // how long a node that stops forwards on at most, 1s to 10m; default: 10s
	XDPMode     value `yaml:"xdp_mode"`  // auto (native where the driver can, else generic), native, generic; default: auto
}

type clusterSection struct {
	section
	Name    value       `yaml:"name"`     // required: nodes of a cluster with another name are refused
	Listen  value       `yaml:"listen"`   // required: the address and port that members reach this node at, TCP and UDP
	Join    list[value] `yaml:"join"`     // other members, addresses or DNS names; :7946 may be left out; this node may be among them
	KeyFile value       `yaml:"key_file"` // required: base64 keys of 16, 24 or 32 bytes, one a line; the first encrypts, all decrypt
	Size    value       `yaml:"size"`     // nodes there should be, a verdict needs a majority of these; default: those of join, and this one

	// A file like key_file, whose first key keys the flow hashes: while it stays, keys of
	// key_file come and go without a flow's moving. Default: key_file.
	HashKeyFile value `yaml:"hash_key_file"`

	// How long verdicts stay as they were while fewer than a majority is in sight; then those in sight decide. 0s to 1h; default: 15s.
	PartitionHold value `yaml:"partition_hold"`
}

type bgpSection struct {
	section
	ASN         value           `yaml:"asn"`         // required
	RouterID    value           `yaml:"router_id"`   // required: an IPv4 address
	Listen      value           `yaml:"listen"`      // where sessions that peers open are taken, address and port; default: nowhere
	Communities list[value]     `yaml:"communities"` // standard (a:b), large (a:b:c), well-known names; on every VIP; default: none
	Peers       list[peerEntry] `yaml:"peers"`       // required: the routers

	GracefulRestart  value `yaml:"graceful_restart"`  // how long routers keep our routes while the node restarts (RFC 4724), whole seconds; 0s: not at all; default: 30s
	HoldUp           value `yaml:"hold_up"`           // how long a VIP that was withdrawn for a fault has to be able to be announced before it is, up to 1m; it doubles with each time; default: 1s
	GracefulShutdown value `yaml:"graceful_shutdown"` // how long routes that are to be withdrawn say so first (RFC 8326), up to 10m; 0s: not at all; default: 2s
}

type peerEntry struct {
	section
	Address          value       `yaml:"address"`            // required
	ASN              value       `yaml:"asn"`                // required
	HoldTime         value       `yaml:"hold_time"`          // whole seconds, at least 3; default: 9s
	KeepaliveTime    value       `yaml:"keepalive_time"`     // whole seconds, at most a third of hold_time; default: that
	ConnectRetryTime value       `yaml:"connect_retry_time"` // whole seconds, 1s to 1h; default: 1s
	PasswordFile     value       `yaml:"password_file"`      // TCP MD5 (RFC 2385); default: none
	TTLSecurity      value       `yaml:"ttl_security"`       // GTSM (RFC 5082), must be on at both ends; default: false
	Multihop         value       `yaml:"multihop"`           // hops to a router of another AS, 2 to 255; default: it is a neighbour
	LocalAddress     value       `yaml:"local_address"`      // of the session; default: the kernel's choice
	Passive          value       `yaml:"passive"`            // the router opens the session, bgp.listen takes it; default: false
	Families         list[value] `yaml:"families"`           // ipv4, ipv6: VIPs that it is told of; default: both
	NextHops         list[value] `yaml:"next_hops"`          // at most one of each family; default: the session's own address, of the other family that of the first interface
	ExtendedNextHop  value       `yaml:"extended_next_hop"`  // IPv4 VIPs have an IPv6 next hop (RFC 8950); default: false
	BFD              bfdSection  `yaml:"bfd"`                // left out: none
	Communities      list[value] `yaml:"communities"`        // beside bgp.communities, on all that it is told; default: none
	MED              value       `yaml:"med"`                // 0 to 4294967295, in the place of the services'; default: theirs
	LocalPreference  value       `yaml:"local_preference"`   // of a router of the same AS, 1 to 4294967295, in the place of the services'; default: theirs
	Prepend          value       `yaml:"prepend"`            // of a router of another AS: times that our AS is in the path once more, 0 to 10, beside the services'; default: 0
}

type bfdSection struct {
	section
	Interval   value `yaml:"interval"`   // between packets, 10ms to 1m; default: 300ms
	Multiplier value `yaml:"multiplier"` // packets lost in a row that mean that the peer is gone, 1 to 255; default: 3
}

type httpSection struct {
	section
	Listen value `yaml:"listen"` // health endpoint, metrics, console, API; default: 127.0.0.1:9870
}

type adminSection struct {
	section
	Socket value `yaml:"socket"` // what changes something goes through here alone; default: /run/halfproxy/admin.sock
}

type serviceEntry struct {
	section
	Name         value              `yaml:"name"`          // required, unique
	VIPs         list[value]        `yaml:"vips"`          // required: addresses and prefixes, both families may be mixed
	Ports        list[value]        `yaml:"ports"`         // required: tcp/N, tcp/N-M or tcp/*, also udp, sctp, udplite
	Hash         listOrValue        `yaml:"hash"`          // source, destination, source_port, destination_port, some of them in a list; or flow, all but destination; default: flow
	Limit        limitSection       `yaml:"limit"`         // left out: there is none
	Forward      value              `yaml:"forward"`       // l2, ipip, gre or gue; default: l2
	GUE          gueSection         `yaml:"gue"`           // of forward gue
	OuterSources list[value]        `yaml:"outer_sources"` // prefixes, at most one of each family, of all but l2; default: the node's own address
	QUIC         quicSection        `yaml:"quic"`          // left out: connection IDs are not looked at
	Backends     list[backendEntry] `yaml:"backends"`      // required
	Tracking     value              `yaml:"tracking"`      // flows with records: changes (where the table has changed lately), none, all; default: changes
	FlowLifetime value              `yaml:"flow_lifetime"` // how long after a change flows stay at their backend, 10s to 24h; default: 1h
	Check        checkSection       `yaml:"check"`         // left out: a tcp check with the defaults
	Announce     announceSection    `yaml:"announce"`
	PanicBelow   value              `yaml:"panic_below"` // under this healthy share, health is ignored and all are used; default: 0%, never
}

type limitSection struct {
	section
	Packets    value `yaml:"packets"`     // required: a second, of each source prefix, on each node; 1 to 100000000
	Burst      value `yaml:"burst"`       // at once; default: as packets
	IPv4Prefix value `yaml:"ipv4_prefix"` // length of what counts as one source, 8 to 32; default: 32
	IPv6Prefix value `yaml:"ipv6_prefix"` // likewise, 16 to 128; default: 64
}

type gueSection struct {
	section
	Port     value `yaml:"port"`     // UDP, at the backends; default: 6080
	Checksum value `yaml:"checksum"` // of UDP: zero or full; default: zero
}

type quicSection struct {
	section
	ServerIDLength value `yaml:"server_id_length"` // required: bytes, 1 to 15
	ConfigRotation value `yaml:"config_rotation"`  // the three high bits of connection IDs, 0 to 6; default: 0
}

type backendEntry struct {
	section
	Name         value `yaml:"name"`           // required, unique in the service
	Address      value `yaml:"address"`        // required, unique in the service
	Weight       value `yaml:"weight"`         // share of the new flows relative to its fellows, 0 to 10000; 0 is drained; default: 100
	QUICServerID value `yaml:"quic_server_id"` // of a service with quic: hexadecimal, unique in the service; default: the last bytes of the address
}

type checkSection struct {
	section
	Type     value `yaml:"type"`     // tcp, http, https, grpc, dns, udp or exec; default: tcp
	Port     value `yaml:"port"`     // default: the type's own where the service has it (http 80, https 443, dns 53), else the service's first of TCP, of UDP for dns and udp
	Via      value `yaml:"via"`      // vip: to each of the service's VIPs in turn, by way of the one backend; direct: to the backend's own address; default: vip. Not of exec
	Interval value `yaml:"interval"` // from one probe to the next, 10ms to 1h; default: 1s
	Timeout  value `yaml:"timeout"`  // shorter than interval; default: 500ms, or half of interval where that is less
	Rise     value `yaml:"rise"`     // successes in a row that make a backend up; default: 2
	Fall     value `yaml:"fall"`     // failures in a row that make it down; default: 3
	// How long a backend that goes up and down is held down at most, up to 24h. Default: 0s.
	FlapHold value `yaml:"flap_hold"`
	// How long the weight of a backend that was down takes to grow, up to 1h. Default: 0s.
	SlowStart value `yaml:"slow_start"`
	// How many members check each backend, 1 to 1000, chosen by rendezvous hashing. Default: all of them.
	Observers value `yaml:"observers"`

	Host       value `yaml:"host"`        // of http, https, grpc: a name; default: the address that is asked
	Path       value `yaml:"path"`        // of http, https; default: /
	Method     value `yaml:"method"`      // of http, https: GET, HEAD, OPTIONS or POST; default: GET
	Headers    pairs `yaml:"headers"`     // of http, https: name to value
	Status     value `yaml:"status"`      // of http, https: 200, or "200-299,301"; default: 200-299
	Body       value `yaml:"body"`        // of http, https: text that the answer contains; default: any
	BodyRegexp value `yaml:"body_regexp"` // of http, https: a regular expression (RE2) that it matches; default: any
	HTTP2      value `yaml:"http2"`       // of http, https: else HTTP/1.1; default: false

	TLS      value `yaml:"tls"`       // of grpc; default: false
	Verify   value `yaml:"verify"`    // of https, grpc: the server's certificate; default: true
	CAFile   value `yaml:"ca_file"`   // of https, grpc: PEM, who may have signed it; default: whom the host trusts
	CertFile value `yaml:"cert_file"` // of https, grpc: PEM, this node's certificate; default: none
	KeyFile  value `yaml:"key_file"`  // of https, grpc: PEM, its key

	Service value `yaml:"service"` // of grpc: what to ask about; default: the server as a whole

	Query     value       `yaml:"query"`      // of dns, required: a name
	QueryType value       `yaml:"query_type"` // of dns: type of record; default: A
	Rcode     value       `yaml:"rcode"`      // of dns: that the answer has; default: NOERROR
	Over      listOrValue `yaml:"over"`       // of dns: udp, tcp or both; default: what the service has at the port, else udp

	Payload    value `yaml:"payload"`     // of udp: text to send; default: an empty packet
	PayloadHex value `yaml:"payload_hex"` // of udp: the same in hexadecimal digits
	Answer     value `yaml:"answer"`      // of dns: the data of a record; of udp: text that the answer contains; default: any
	AnswerHex  value `yaml:"answer_hex"`  // of udp: the same in hexadecimal digits
	Silent     value `yaml:"silent"`      // of udp: no answer is taken for one; default: false

	Command list[value] `yaml:"command"` // of exec, required: a program's path and its arguments
}

type announceSection struct {
	section
	MinHealthy value `yaml:"min_healthy"` // a number or a share of the backends ("30%"), below it the VIPs are withdrawn; default: 1
	// withdraw: without a healthy backend too; use_all: then all are used, and the VIPs stay. Default: withdraw.
	NoneHealthy value       `yaml:"none_healthy"`
	Peers       list[value] `yaml:"peers"` // addresses of those in bgp.peers that are told of the VIPs; default: all

	Communities     list[value] `yaml:"communities"`      // beside bgp.communities; default: none
	MED             value       `yaml:"med"`              // 0 to 4294967295; default: none
	LocalPreference value       `yaml:"local_preference"` // for routers of the same AS, 0 to 4294967295; default: BGP's own, 100
	Prepend         value       `yaml:"prepend"`          // for routers of other ASes: times that our AS is in the path once more, 0 to 10; default: 0
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
