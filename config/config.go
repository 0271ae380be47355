package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

// Config is a file that passed every check, defaults filled in.
type Config struct {
	Node     Node
	Cluster  Cluster
	BGP      BGP
	HTTP     HTTP
	Admin    Admin
	Services []lb.Service // in the order of the file; none is a node that serves nothing yet

	expanded []expanded // of which Settings and WriteExpanded are made

	// Denied are the sources on the list that Node.DenyFile names.
	Denied []netip.Prefix
}

// Node is this machine's part.
type Node struct {
	Name       string
	Interfaces []string // at least one
	XDPMode    string   // XDPAuto, XDPNative or XDPGeneric
	DenyFile   string   // path of the deny list; empty: none
	// Linger is how long a node that stops forwards on at most, after its routes are gone.
	Linger time.Duration
	// FlowRecords is how many flows a record can be kept of.
	FlowRecords int
}

// The ways to attach the XDP program.
const (
	XDPAuto    = "auto"
	XDPNative  = "native"
	XDPGeneric = "generic"
)

// Cluster is who the other members are. A node without a cluster section stands
// alone: it has no Name, no valid Listen, no Join and no keys, and Size is 1.
type Cluster struct {
	Name   string
	Listen netip.AddrPort
	Join   []string // host:port, each with its port
	Keys   [][]byte // 16, 24 or 32 bytes each: the first encrypts, all decrypt
	// HashKey keys the flow hashes; the first of Keys where the file names none.
	HashKey []byte
	Size    int
	// PartitionHold is how long verdicts stay as they were without a majority in sight.
	PartitionHold time.Duration
}

// Alone tells whether the file has no cluster section.
func (c Cluster) Alone() bool { return !c.Listen.IsValid() }

// BGP is how routers learn the VIPs. A node without a bgp section has no Peers
// and announces nothing.
type BGP struct {
	ASN         uint32
	RouterID    netip.Addr
	Listen      netip.AddrPort // where sessions that peers open are taken; not valid: nowhere
	Communities []lb.Community // are among those of each service, too
	Peers       []Peer
	Aggregates  []lb.Aggregate

	GracefulRestart  time.Duration // how long routers keep our routes while we restart, whole seconds; 0: not at all
	HoldUp           time.Duration // how long a VIP that was withdrawn has to be able to be announced before it is
	GracefulShutdown time.Duration // how long routes say that they will be withdrawn; 0: not at all
}

// Peer is a router.
type Peer struct {
	Address          netip.Addr
	ASN              uint32
	HoldTime         time.Duration // these three in whole seconds
	KeepaliveTime    time.Duration
	ConnectRetryTime time.Duration
	Password         string // of TCP MD5; empty is none
	TTLSecurity      bool
	Multihop         int        // 0: it is a neighbour
	LocalAddress     netip.Addr // not valid: the kernel's choice
	Passive          bool
	IPv4, IPv6       bool       // VIPs that it is told of
	NextHop4         netip.Addr // not valid: as the session has it, likewise NextHop6
	NextHop6         netip.Addr
	ExtendedNextHop  bool
	PrefixLimit      int // of each family that it may send
	BFD              BFD
	Attributes       lb.Attributes
}

// BFD is how a peer is watched. The zero value: it is not.
type BFD struct {
	Interval   time.Duration
	Multiplier int
	Multihop   bool
	MinTTL     int    // of multihop; 0: any
	Password   string // of meticulous keyed SHA1; empty is none
	KeyID      int
}

// HTTP is where health endpoint, metrics, console and API are served.
type HTTP struct {
	Listen netip.AddrPort
}

// Admin is where commands that change something arrive.
type Admin struct {
	Socket string
}

// Load reads the file at path, those that it includes and those that it names. Relative
// paths start at the folder of the file that has them. When something is wrong with
// what they hold, the error is of type Errors and has all of it.
func Load(path string) (Config, error) {
	data, err := readConfiguration(path, initRemedy)
	if err != nil {
		return Config{}, err
	}
	h := around(path)
	h.file, h.denied = readFile, ReadDenied
	return parse(path, data, h)
}

// LoadWithoutSecrets is Load for somebody who may not read keys, passwords and
// certificates: they stay empty, and so does the deny list.
func LoadWithoutSecrets(path string) (Config, error) {
	data, err := readConfiguration(path, initRemedy)
	if err != nil {
		return Config{}, err
	}
	return parse(path, data, around(path))
}

// initRemedy is for who has no file of a node yet.
const initRemedy = "name another with --config, or have `halfproxy init` write a first one"

func readConfiguration(path, remedy string) ([]byte, error) {
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read configuration: %w: %s", err, remedy)
	case err != nil:
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return data, nil
}

// around is the host as it is seen from the file at path.
func around(path string) host {
	return host{
		name: os.Hostname,
		beside: func(from, file string) string {
			if filepath.IsAbs(file) {
				return file
			}
			return filepath.Join(filepath.Dir(cmp.Or(from, path)), file)
		},
	}
}

// Parse is Load for a file that is in memory, called name in errors. It opens
// no file: keys, passwords and certificates stay empty, and what it includes is not
// there.
func Parse(name string, data []byte) (Config, error) {
	return parse(name, data, host{name: os.Hostname})
}

// host is what the machine adds to the file.
type host struct {
	name   func() (string, error)
	beside func(from, path string) string                 // a path as the file from has it (empty: the file itself); nil: no file is opened
	file   func(path string, secret bool) ([]byte, error) // nil: files are not read
	denied func(path string) ([]netip.Prefix, error)      // nil: the deny list is not read
}

func parse(name string, data []byte, h host) (Config, error) {
	report := &report{file: name}
	shape, ok := decode(report, data)
	if !ok {
		return Config{}, report.errors()
	}
	c := checker{report: report, host: h, hosts: map[netip.Addr]string{}}
	c.include(shape)
	cfg := c.config(shape)
	if err := report.errors(); err != nil {
		return Config{}, err
	}
	cfg.expanded = report.expand(reflect.ValueOf(shape).Elem())
	return cfg, nil
}

// Settings lists what holds, in the order of the file: what it says, and what is so
// where it is silent.
func (c Config) Settings() []Setting { return settings(c.expanded) }

// WriteExpanded writes what holds as YAML, in one file, with a comment on what is
// there by default. Headers of checks are written as the file has them.
func (c Config) WriteExpanded(out io.Writer) error { return writeAll(out, c.expanded) }
