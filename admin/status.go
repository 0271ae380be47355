package admin

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

// Status is how a node and its cluster stand: what `halfproxy status --json`
// prints and /api/v1/status answers. Lists are shown in the order given.
type Status struct {
	Time          time.Time       `json:"time"` // when all this was so
	Node          Node            `json:"node"`
	Cluster       Cluster         `json:"cluster"`
	Members       List[Member]    `json:"members"`
	Services      List[Service]   `json:"services"`
	BGP           List[Peer]      `json:"bgp"`
	Aggregates    List[Aggregate] `json:"aggregates"`
	Orders        List[Order]     `json:"orders"`   // in force, beside the configuration
	Verdicts      List[Verdict]   `json:"verdicts"` // what became of packets on this node
	ConfigDigest  string          `json:"config_digest"`
	ConfigDiffers List[string]    `json:"config_differs"` // members with another configuration for a while
}

// Node is the node that answers.
type Node struct {
	Name       string          `json:"name"`
	Draining   bool            `json:"draining"`
	Version    string          `json:"version"`
	Started    time.Time       `json:"started"`
	Health     Health          `json:"health"` // as /healthz has it; filled in by Server
	Ready      Health          `json:"ready"`  // as /readyz has it; filled in by Server
	Interfaces List[Interface] `json:"interfaces"`
	Records    FlowRecords     `json:"flow_records"`
}

// FlowRecords says how many there are, and how many there can be.
type FlowRecords struct {
	Held int `json:"held"`
	Room int `json:"room"`
}

// Verdict is how packets ended, and how many of them did so since the process started.
type Verdict struct {
	Name    string `json:"verdict"`
	Fate    string `json:"fate"` // forwarded, answered, passed or dropped
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Health is the answer of /healthz and /readyz.
type Health struct {
	Status  string       `json:"status"`  // "ok", else "unhealthy" or "not ready"
	Reasons List[string] `json:"reasons"` // why it is not ok
}

// Interface is a NIC that carries VIP traffic.
type Interface struct {
	Name     string `json:"name"`
	XDPMode  string `json:"xdp_mode"` // native, generic, or empty while not attached
	Attached bool   `json:"attached"`
}

// Cluster says how far this node's verdicts are the cluster's.
type Cluster struct {
	InSight int  `json:"in_sight"` // members whose observations count now
	Size    int  `json:"size"`     // members there should be
	Frozen  bool `json:"frozen"`   // too few in sight: verdicts stay as they were
	// Members whose observations are no votes: they see most backends down that the others see up.
	Blind List[string] `json:"blind"`
}

// Member is a load balancer node of the cluster, this one included.
type Member struct {
	Name         string         `json:"name"`
	Address      netip.AddrPort `json:"address"`
	State        string         `json:"state"`         // alive, or what is wrong with it
	ConfigDigest string         `json:"config_digest"` // empty while it has told none
	// Tables are the digests of its services' tables, as it has told them.
	Tables Map[string] `json:"tables"`
}

// Service is a service as this node serves it.
type Service struct {
	Name         string         `json:"name"`
	VIPs         List[lb.VIP]   `json:"vips"`
	Ports        List[string]   `json:"ports"` // tcp/80
	Forward      string         `json:"forward"`
	Announced    bool           `json:"announced"` // all of its VIPs are
	Reason       string         `json:"reason"`    // why, or why not
	HeldBack     List[HeldBack] `json:"held_back"` // VIPs that are not, or are about to be withdrawn
	Panic        string         `json:"panic"`     // why health is ignored and all backends are used; empty: it is not
	TableDigest  string         `json:"table_digest"`
	TableDiffers List[string]   `json:"table_differs"` // members with another table for a while
	Tracking     string         `json:"tracking"`
	Transition   *Transition    `json:"transition,omitempty"` // while flows may be elsewhere than their slots say
	Backends     List[Backend]  `json:"backends"`
}

// HeldBack is why a VIP is not announced.
type HeldBack struct {
	VIP    lb.VIP `json:"vip"`
	Cause  string `json:"cause"` // in a word
	Reason string `json:"reason"`
}

// Transition is that of a table which has changed lately.
type Transition struct {
	Since   time.Time `json:"since"`   // of its first change
	Until   time.Time `json:"until"`   // at the latest: its last change is as old as flows become then
	Changes int       `json:"changes"` // that flows may be older than
	Slots   int       `json:"slots"`   // whose backend changed
}

// Backend is a backend of one service. State is the cluster's verdict, the
// counters and LastError are what this node alone has seen.
type Backend struct {
	Name             string     `json:"name"`
	Address          netip.Addr `json:"address"`
	Weight           int        `json:"weight"`
	WeightNow        int        `json:"weight_now"` // in the table: less than weight while it starts slowly
	State            string     `json:"state"`      // up, down, draining, drained or unknown
	Order            string     `json:"order"`      // in force about it, in words; empty: none
	HealthyObservers int        `json:"healthy_observers"`
	Observers        int        `json:"observers"`
	// Seen is what each member in sight that has an opinion sees: up or down.
	Seen             Map[string] `json:"seen"`
	Packets          uint64      `json:"packets"`
	Bytes            uint64      `json:"bytes"`
	Flows            uint64      `json:"flows"`              // opened: of TCP and SCTP
	FlowRecords      int         `json:"flow_records"`       // that lead to it
	PacketsPerSecond float64     `json:"packets_per_second"` // while its service's table is in transition, or it gets no new flows
	// HeldBy are the members that have flows at it, or may have, of one that gets no new
	// ones; where there are none it is safe to stop.
	HeldBy     List[string] `json:"held_by"`
	SafeToStop bool         `json:"safe_to_stop"`
	LastError  string       `json:"last_error"` // of the last check from here, or why it is held down; else empty
}

// Peer is a router that this node speaks BGP with.
type Peer struct {
	Address   netip.Addr  `json:"peer"`
	ASN       uint32      `json:"asn"`
	State     string      `json:"state"` // established, or how far it has come
	Since     time.Time   `json:"since,omitzero"`
	BFD       string      `json:"bfd"`        // up, down, or off where none is configured
	Announced int         `json:"announced"`  // prefixes announced to it
	Routes    List[Route] `json:"routes"`     // that are for it, while the session is up
	LastError string      `json:"last_error"` // what ended the session, or kept it from starting
}

// Route is a prefix that a router is told of.
type Route struct {
	Prefix    netip.Prefix `json:"prefix"`
	GoingAway bool         `json:"going_away"` // it says that it will be withdrawn (RFC 8326)
}

// Map is by name, and {} in JSON when it is empty, never null.
type Map[T any] map[string]T

// MarshalJSON implements json.Marshaler.
func (m Map[T]) MarshalJSON() ([]byte, error) {
	if len(m) == 0 {
		return []byte("{}"), nil
	}
	return json.Marshal(map[string]T(m))
}

// Aggregate is a prefix that is announced while a VIP in it is.
type Aggregate struct {
	Prefix    lb.VIP `json:"prefix"`
	Announced bool   `json:"announced"`
	VIPs      int    `json:"vips"`    // in it
	Serving   int    `json:"serving"` // those of them that it is announced for
	Cause     string `json:"cause"`   // why it is not announced, or is about to be withdrawn, in a word
	Reason    string `json:"reason"`
}

// List is a slice that is [] in JSON when it is empty, never null.
type List[T any] []T

// MarshalJSON implements json.Marshaler.
func (l List[T]) MarshalJSON() ([]byte, error) {
	if len(l) == 0 {
		return []byte("[]"), nil
	}
	return json.Marshal([]T(l))
}

// WriteJSON writes s as /api/v1/status answers it.
func (s Status) WriteJSON(w io.Writer) error { return writeJSON(w, s) }

func writeJSON(w io.Writer, v any) error {
	body, err := json.MarshalIndent(v, "", "  ")
	if err == nil {
		_, err = w.Write(append(body, '\n'))
	}
	if err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	return nil
}
