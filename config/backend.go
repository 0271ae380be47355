package config

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strconv"

	"github.com/goccy/go-yaml"

	"github.com/halfproxy/halfproxy/lb"
)

// Backend is a backend's file, /etc/halfproxy/backend.yaml, that passed every
// check, defaults filled in.
type Backend struct {
	Interfaces []string // at least one
	VIPs       []lb.VIP // at least one
	Decap      []string // DecapIPIP, DecapGRE and DecapGUE; none: packets come as they are
	GUEPort    uint16
	Sources    []netip.Prefix // at least one where there is a Decap
	MSS        MSS
	HTTP       HTTP

	expanded []expanded
}

// What a backend can take off.
const (
	DecapIPIP = "ipip"
	DecapGRE  = "gre"
	DecapGUE  = "gue"
)

// MSS is what the MSS of SYN-ACKs is lowered to.
type MSS struct {
	Off   bool
	Value uint16 // 0: what fits under the encapsulation
}

func (m MSS) String() string {
	switch {
	case m.Off:
		return "off"
	case m.Value == 0:
		return "auto"
	}
	return strconv.Itoa(int(m.Value))
}

// backendFile is the shape on disk, as file is a node's.
type backendFile struct {
	section
	// NICs that packets for the VIPs come in by and answers leave by.
	Interfaces list[value] `yaml:"interfaces" kind:"interface" required:"true" some:"true"`
	// The services' VIPs, addresses and prefixes; they are put on lo.
	VIPs list[value] `yaml:"vips" kind:"network" required:"true" some:"true"`
	// What is taken off, one or some in a list, as the services' forward says. none: of l2.
	Decap listOrValue `yaml:"decap" kind:"word" words:"ipip,gre,gue,none" default:"none"`
	// Of decap gue.
	GUE ownGUE `yaml:"gue"`
	// The load balancers' addresses and prefixes: nobody else may send encapsulated
	// packets. Required with decap.
	Sources list[value] `yaml:"sources" kind:"network"`
	// What the MSS of the VIPs' SYN-ACKs is lowered to. auto: what fits under the
	// encapsulation; a number; off: it stays.
	MSS value `yaml:"mss" kind:"mss" default:"auto"`
	// What can be read over the network.
	HTTP ownHTTP `yaml:"http"`
}

type ownGUE struct {
	section
	// UDP port that it comes to.
	Port value `yaml:"port" kind:"integer" range:"1..65535" default:"6080"`
}

type ownHTTP struct {
	section
	// Health endpoint and metrics.
	Listen value `yaml:"listen" kind:"listen" default:"127.0.0.1:9871"`
}

// LoadBackend reads a backend's file at path. When something is wrong with what
// it holds, the error is of type Errors and has all of it.
func LoadBackend(path string) (Backend, error) {
	data, err := readConfiguration(path, "name another with --config")
	if err != nil {
		return Backend{}, err
	}
	return ParseBackend(path, data)
}

// ParseBackend is LoadBackend for a file that is in memory, called name in errors.
func ParseBackend(name string, data []byte) (Backend, error) {
	report := &report{file: name}
	shape := new(backendFile)
	if !decodeInto(report, data, shape) {
		return Backend{}, report.errors()
	}
	backend := checkBackend(report, shape)
	if err := report.errors(); err != nil {
		return Backend{}, err
	}
	backend.expanded = report.expand(reflect.ValueOf(shape).Elem())
	return backend, nil
}

// WriteExpanded writes what holds as YAML, with a comment on what is there by default.
func (b Backend) WriteExpanded(out io.Writer) error { return writeAll(out, b.expanded) }

// OfBackend tells by its keys whether the file at path is meant as a backend's. What
// cannot be read is a node's.
func OfBackend(path string) bool {
	data, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	var keys map[string]any
	if yaml.Unmarshal(data, &keys) != nil {
		return false
	}
	among := func(names ...string) bool {
		return slices.ContainsFunc(names, func(name string) bool { _, there := keys[name]; return there })
	}
	return among("interfaces", "vips", "decap", "sources", "mss") && !among("node", "services", "cluster", "bgp")
}

func checkBackend(r *report, f *backendFile) Backend {
	var b Backend
	some(r, f.Interfaces, "name the NICs that packets for the VIPs come in by")
	b.Interfaces, _ = entries(r, f.Interfaces, parseInterface)
	some(r, f.VIPs, "list the addresses that clients know")
	var places []place
	b.VIPs, places = entries(r, f.VIPs, parseVIP)

	b.Decap = decap(r, f.Decap)
	if f.GUE.state == given && !slices.Contains(b.Decap, DecapGUE) {
		r.at(f.GUE.place, "is of no effect without gue in decap: add that, or remove this")
	}
	port, _ := want(r, f.GUE.Port, lb.DefaultGUEPort, between(1, 65535))
	b.GUEPort = uint16(port)

	if len(b.Decap) > 0 {
		some(r, f.Sources, "list the load balancers' addresses or networks, nobody else may send encapsulated packets")
	}
	b.Sources, _ = entries(r, f.Sources, parseSource)
	for i, vip := range b.VIPs {
		within := func(source netip.Prefix) bool { return vip.Bits() <= source.Bits() && vip.Contains(source.Addr()) }
		if n := slices.IndexFunc(b.Sources, within); n >= 0 {
			r.at(places[i], "%q has in it the load balancers' %v, which this host would take for itself: give prefixes without it", vip, lb.VIP{Prefix: b.Sources[n]})
		}
	}

	b.MSS, _ = want(r, f.MSS, MSS{}, parseMSS)
	b.HTTP.Listen, _ = want(r, f.HTTP.Listen, netip.MustParseAddrPort("127.0.0.1:9871"), parseListen)
	return b
}

// decap reads a list of kinds, or the word none.
func decap(r *report, l listOrValue) []string {
	const none = "none"
	kinds, places := entries(r, l.list, oneOf(DecapIPIP, DecapGRE, DecapGUE, none))
	for i, kind := range kinds {
		if kind == none && len(kinds) > 1 {
			r.at(places[i], "%q is not alone: remove it, or all others", none)
		} else if kind == none {
			return nil
		}
	}
	return kinds
}

// parseSource takes a prefix, or an address, which is one of its full length.
func parseSource(v value) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(v.text); err == nil {
		return netip.PrefixFrom(addr, addr.BitLen()), unicast(addr)
	}
	prefix, err := netip.ParsePrefix(v.text)
	switch {
	case err != nil:
		return netip.Prefix{}, errors.New("is no prefix: write one such as 192.0.2.0/24 or 2001:db8::/64")
	case prefix.Addr().Is4In6():
		return netip.Prefix{}, errors.New("is an IPv4 prefix in IPv6 clothes: write it as 192.0.2.0/24")
	case prefix != prefix.Masked():
		return netip.Prefix{}, fmt.Errorf("has bits set behind its length: write %v, or the address alone", prefix.Masked())
	}
	return prefix, nil
}

// parseMSS takes auto, off, or what every host can do (RFC 9293, 3.7.1) to what
// an IP packet can hold.
func parseMSS(v value) (MSS, error) {
	switch v.text {
	case "auto":
		return MSS{}, nil
	case "off":
		return MSS{Off: true}, nil
	}
	if v.kind != number {
		return MSS{}, errors.New("is unknown: choose auto, off or a number without quotes")
	}
	n, err := between(536, 65495)(v)
	return MSS{Value: uint16(n)}, err
}
