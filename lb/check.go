package lb

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
)

// CheckType says what a health check's probe speaks.
type CheckType uint8

// The probes there are.
const (
	CheckTCP CheckType = iota
	CheckHTTP
	CheckHTTPS
	CheckGRPC // grpc.health.v1
	CheckDNS
	CheckUDP
	CheckExec // a command
)

func (t CheckType) String() string {
	switch t {
	case CheckTCP:
		return "tcp"
	case CheckHTTP:
		return "http"
	case CheckHTTPS:
		return "https"
	case CheckGRPC:
		return "grpc"
	case CheckDNS:
		return "dns"
	case CheckUDP:
		return "udp"
	case CheckExec:
		return "exec"
	}
	return fmt.Sprintf("check-%d", uint8(t))
}

// Via is the way that a probe takes to its backend.
type Via uint8

const (
	// ViaDirect is to the backend's own address, as any other connection.
	ViaDirect Via = iota
	// ViaVIP is to a VIP of the service, by way of the one backend: rewritten or
	// encapsulated as the service's packets are.
	ViaVIP
)

func (v Via) String() string {
	switch v {
	case ViaDirect:
		return "direct"
	case ViaVIP:
		return "vip"
	}
	return fmt.Sprintf("via-%d", uint8(v))
}

// Check tells how the health of a service's backends is probed. What its Type has
// no use for is zero: fields that are zero are not part of a TargetID, so that one
// that a later version adds changes none.
type Check struct {
	Type CheckType `json:",omitzero"`
	Via  Via       `json:",omitzero"` // direct for exec, whose program goes its own way
	Port uint16    `json:",omitzero"` // 0: there is none, which only exec can do with

	Interval time.Duration `json:",omitzero"` // from the start of a probe to the start of the next
	Timeout  time.Duration `json:",omitzero"` // of one probe, shorter than Interval
	Rise     int           `json:",omitzero"` // successes in a row that make a backend up
	Fall     int           `json:",omitzero"` // failures in a row that make it down
	// FlapHold is how long a backend that keeps going up and down is held down at
	// most. 0: it is not.
	FlapHold time.Duration `json:",omitzero"`
	// SlowStart is how long the weight of a backend that was down takes to grow.
	SlowStart time.Duration `json:",omitzero"`

	// Host is the name that the server is asked for: of http, https and grpc.
	// Empty: its address.
	Host string `json:",omitzero"`

	// Of http and https.
	Path        string        `json:",omitzero"`
	Method      string        `json:",omitzero"`
	Headers     []Header      `json:",omitzero"` // of the request, by name
	HTTP2       bool          `json:",omitzero"` // else HTTP/1.1
	Status      []StatusRange `json:",omitzero"` // of which the answer has to be one, ascending
	Body        string        `json:",omitzero"` // that the answer has to contain; empty: any will do
	BodyPattern string        `json:",omitzero"` // a regular expression that it has to match; empty: any will do

	// Of https, and of grpc.
	TLS         bool `json:",omitzero"`
	Verify      bool `json:",omitzero"` // the server's certificate
	CA          File `json:",omitzero"` // who may have signed it; zero: whom this host trusts
	Certificate File `json:",omitzero"` // of this node, for servers that ask for one
	Key         File `json:",omitzero"` // of Certificate

	// GRPCService is what grpc asks about. Empty: the server as a whole.
	GRPCService string `json:",omitzero"`

	// Of dns.
	Query      string     `json:",omitzero"` // a name, lower case, with its last dot
	RecordType string     `json:",omitzero"` // one of RecordTypes
	Rcode      string     `json:",omitzero"` // one of Rcodes: what the answer has to have
	Over       []Protocol `json:",omitzero"` // UDP, TCP or both: each is asked

	Payload []byte `json:",omitzero"` // of the udp probe's packet
	// Answer is what a record of the answer has to be (dns), or what the answer has
	// to contain (udp). Empty: any answer will do.
	Answer []byte `json:",omitzero"`
	Silent bool   `json:",omitzero"` // of udp: no answer is as good as one

	Command []string `json:",omitzero"` // of exec: the path of a program, and its arguments
}

// RecordTypes are the types of records that a dns check can ask for.
var RecordTypes = []string{"A", "AAAA", "CAA", "CNAME", "DNSKEY", "DS", "HTTPS", "MX", "NAPTR", "NS", "PTR", "SOA", "SRV", "SVCB", "TXT"}

// Rcodes are the answers' codes that a dns check can want.
var Rcodes = []string{"NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "NOTAUTH"}

// StatusRange is the HTTP statuses from First to Last.
type StatusRange struct{ First, Last int }

func (r StatusRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// Header is a field of an HTTP request.
type Header struct {
	Name  string
	Value Secret
}

// Secret is text that is not for logs: it prints as its length.
type Secret string

func (s Secret) String() string { return fmt.Sprintf("(%d bytes)", len(s)) }

// GoString is String, for %#v.
func (s Secret) GoString() string { return s.String() }

// File is a file that the configuration names, with what it held. Another node's
// may hold something else, such as its own certificate: members compare paths.
type File struct {
	Path string
	Data Secret `json:"-"` // empty where files were not read
}

// canonical is what members compare v by. Types that have something to hide, or
// that differ from node to node, see to it by their tags.
func canonical(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("lb: %T has no canonical form: %v", v, err))
	}
	return text
}

// fingerprint is a hash of v's canonical form.
func fingerprint(v any) uint64 {
	sum := sha256.Sum256(canonical(v))
	return binary.BigEndian.Uint64(sum[:8])
}
