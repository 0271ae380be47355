package admin

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"strings"

	"github.com/halfproxy/halfproxy/lb"
)

const tracePath = "/api/v1/trace"

// Flow is a transport protocol and a pair of addresses of one family.
type Flow struct {
	Protocol            lb.Protocol
	Source, Destination netip.AddrPort
	// ConnectionID is the bytes of that of a QUIC packet. Empty: it is none.
	ConnectionID string
}

// maxConnectionID is what QUIC's versions 1 and 2 have room for (RFC 9000, 17.2).
const maxConnectionID = 20

// ParseFlow reads a flow as people write it: tcp 198.51.100.7:31337
// 203.0.113.10:80. A QUIC connection ID is in hexadecimal, empty for none.
func ParseFlow(protocol, source, destination, connectionID string) (f Flow, err error) {
	for _, p := range []lb.Protocol{lb.TCP, lb.UDP, lb.SCTP, lb.UDPLite} {
		if strings.EqualFold(protocol, p.String()) {
			f.Protocol = p
		}
	}
	if f.Protocol == 0 {
		return Flow{}, fmt.Errorf("protocol %q is unknown: use tcp, udp, sctp or udplite", protocol)
	}
	if f.Source, err = parseEnd("source", source); err != nil {
		return Flow{}, err
	}
	if f.Destination, err = parseEnd("destination", destination); err != nil {
		return Flow{}, err
	}
	if f.Source.Addr().Is4() != f.Destination.Addr().Is4() {
		return Flow{}, fmt.Errorf("source %s and destination %s are of different families: a flow is either IPv4 or IPv6", f.Source, f.Destination)
	}
	id, err := hex.DecodeString(connectionID)
	if err != nil || len(id) > maxConnectionID {
		return Flow{}, fmt.Errorf("QUIC connection ID %q is none: write up to %d bytes in hexadecimal", connectionID, maxConnectionID)
	}
	if len(id) > 0 && f.Protocol != lb.UDP {
		return Flow{}, fmt.Errorf("a flow of %s has no QUIC connection ID: use udp", f.Protocol)
	}
	f.ConnectionID = string(id)
	return f, nil
}

func parseEnd(what, text string) (netip.AddrPort, error) {
	end, err := netip.ParseAddrPort(text)
	if err != nil || end.Addr().Zone() != "" {
		return netip.AddrPort{}, fmt.Errorf("%s %q is no address with a port: write 192.0.2.1:80 or [2001:db8::1]:80", what, text)
	}
	return netip.AddrPortFrom(end.Addr().Unmap(), end.Port()), nil
}

func (f Flow) query() url.Values {
	return url.Values{
		"protocol":    {f.Protocol.String()},
		"source":      {f.Source.String()},
		"destination": {f.Destination.String()},
		"quic_cid":    {hex.EncodeToString([]byte(f.ConnectionID))},
	}
}

// Trace is where a flow goes, and why: what `halfproxy trace --json` prints.
// What a flow that goes nowhere has not come to is left out.
type Trace struct {
	Protocol     string         `json:"protocol"`
	Source       netip.AddrPort `json:"source"`
	Destination  netip.AddrPort `json:"destination"`
	ConnectionID string         `json:"quic_cid,omitempty"` // connection ID of a QUIC packet, in hexadecimal

	Forwarded bool   `json:"forwarded"`
	Verdict   string `json:"verdict"` // as halfproxy_packets_total has it
	Why       string `json:"why"`

	Service string        `json:"service,omitempty"`
	Hash    string        `json:"hash,omitempty"`   // of the flow, in hexadecimal
	Hashed  List[string]  `json:"hashed,omitempty"` // the fields that it is of, as the service's hash names them
	Table   *TraceTable   `json:"table,omitempty"`  // there is none without a backend
	Backend *TraceBackend `json:"backend,omitempty"`
	Egress  *Egress       `json:"egress,omitempty"`
}

// TraceTable says where in the service's table the flow falls.
type TraceTable struct {
	Size    uint32 `json:"size"`
	Slot    uint32 `json:"slot"`
	Current string `json:"current"` // the backend that the slot holds
	// Base is where older flows go, of a slot whose backend has changed lately.
	Base string `json:"base,omitempty"`
	By   string `json:"by,omitempty"` // current, base, or record: what this flow goes by
}

// TraceBackend is the backend that the flow goes to.
type TraceBackend struct {
	Name    string     `json:"name"`
	Address netip.Addr `json:"address"`
	Weight  int        `json:"weight"`
	State   string     `json:"state"` // the cluster's verdict
}

// Egress is how the flow's packets leave the node.
type Egress struct {
	Encapsulation    string `json:"encapsulation"`               // l2, ipip, gre or gue
	OuterSource      string `json:"outer_source,omitempty"`      // address, of GUE with the port
	OuterDestination string `json:"outer_destination,omitempty"` // likewise
	NextHop          string `json:"next_hop"`                    // MAC address
	Interface        string `json:"interface"`
}

// WriteJSON writes t as /api/v1/trace answers it.
func (t Trace) WriteJSON(w io.Writer) error { return writeJSON(w, t) }

// WriteText writes t for people.
func (t Trace) WriteText(w io.Writer, colour bool) error {
	p := &printer{Writer: bufio.NewWriter(w), colour: colour}
	field := func(label, colour, text string) {
		if text != "" {
			p.fold(fmt.Sprintf("%-*s", len("encapsulation")+2, label), colour, text)
		}
	}
	field("flow", plain, fmt.Sprintf("%s %s > %s", t.Protocol, t.Source, t.Destination))
	field("connection ID", plain, t.ConnectionID)
	tone := red
	if t.Forwarded {
		tone = green
	}
	field("verdict", tone, t.Verdict)
	field("why", plain, t.Why)
	field("service", plain, t.Service)
	hash := t.Hash
	if len(t.Hashed) > 0 {
		hash += " of " + strings.Join(t.Hashed, ", ")
	}
	field("hash", plain, hash)
	if t.Table != nil {
		field("slot", plain, fmt.Sprintf("%d of %d", t.Table.Slot, t.Table.Size))
		field("current", plain, t.Table.Current)
		field("base", plain, t.Table.Base)
		field("by", plain, t.Table.By)
	}
	if b := t.Backend; b != nil {
		field("backend", plain, fmt.Sprintf("%s, %s, weight %d, %s", b.Name, b.Address, b.Weight, b.State))
	}
	if e := t.Egress; e != nil {
		field("encapsulation", plain, e.Encapsulation)
		if e.OuterSource != "" {
			field("outer", plain, fmt.Sprintf("%s > %s", e.OuterSource, e.OuterDestination))
		}
		field("next hop", plain, e.NextHop)
		field("interface", plain, e.Interface)
	}
	if err := p.Flush(); err != nil { // holds the first error of all writes
		return fmt.Errorf("write trace: %w", err)
	}
	return nil
}
