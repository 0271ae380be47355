package bfd

import (
	"crypto/sha1" //nolint:gosec // the RFC's choice; it covers 28 bytes and a sequence number
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
)

// State is that of a session (RFC 5880, 4.1).
type State uint8

// The states, as they stand in a packet.
const (
	AdminDown State = iota
	Down
	Init
	Up
)

func (s State) String() string {
	switch s {
	case AdminDown:
		return "admin-down"
	case Down:
		return "down"
	case Init:
		return "init"
	case Up:
		return "up"
	}
	return fmt.Sprintf("state-%d", uint8(s))
}

// Diag says why a session last left Up (RFC 5880, 4.1).
type Diag uint8

// Those that occur here.
const (
	NoDiag             Diag = 0
	TimeExpired        Diag = 1 // nothing was heard for the detection time
	NeighborDown       Diag = 3 // the other side said that it is down
	AdministrativeDown Diag = 7
)

func (d Diag) String() string {
	names := [...]string{
		"none", "control detection time expired", "echo function failed", "neighbor signaled session down", "forwarding plane reset",
		"path down", "concatenated path down", "administratively down", "reverse concatenated path down",
	}
	if int(d) < len(names) {
		return names[d]
	}
	return fmt.Sprintf("diagnostic %d", uint8(d))
}

// Packet is a BFD control packet (RFC 5880, 4.1). Intervals go on the wire in
// microseconds.
type Packet struct {
	Diag         Diag
	State        State
	Poll, Final  bool
	Independent  bool // C: forwarding goes on when the control plane does not
	Demand       bool
	DetectMult   uint8
	My, Your     uint32 // discriminators; Your is 0 until the other's is known
	DesiredMinTx time.Duration
	RequiredMin  time.Duration // receive interval; 0: send no periodic packets
	RequiredEcho time.Duration
	Auth         *Auth // nil: none
}

// Auth is the authentication section of meticulous keyed SHA1 (RFC 5880, 4.4).
type Auth struct {
	KeyID    uint8
	Sequence uint32
}

const (
	version         = 1
	mandatory       = 24 // bytes
	meticulousSHA1  = 5  // authentication type
	sha1Section     = 28
	maxMicroseconds = 1<<32 - 1
)

// The flags beside the state.
const (
	flagMultipoint = 1 << iota
	flagDemand
	flagAuth
	flagIndependent
	flagFinal
	flagPoll
)

// Append puts the packet behind b. The key, of 1 to 20 bytes, is that of p.Auth.
func (p Packet) Append(b []byte, key []byte) []byte {
	flags := uint8(p.State)<<6 | bit(p.Poll, flagPoll) | bit(p.Final, flagFinal) |
		bit(p.Independent, flagIndependent) | bit(p.Auth != nil, flagAuth) | bit(p.Demand, flagDemand)
	length := mandatory
	if p.Auth != nil {
		length += sha1Section
	}
	start := len(b)
	b = append(b, version<<5|uint8(p.Diag), flags, p.DetectMult, uint8(length))
	b = binary.BigEndian.AppendUint32(b, p.My)
	b = binary.BigEndian.AppendUint32(b, p.Your)
	for _, interval := range []time.Duration{p.DesiredMinTx, p.RequiredMin, p.RequiredEcho} {
		b = binary.BigEndian.AppendUint32(b, uint32(min(max(interval.Microseconds(), 0), maxMicroseconds)))
	}
	if p.Auth == nil {
		return b
	}
	b = append(b, meticulousSHA1, sha1Section, p.Auth.KeyID, 0)
	b = binary.BigEndian.AppendUint32(b, p.Auth.Sequence)
	digest := len(b)
	b = append(b, padded(key)...)
	sum := sha1.Sum(b[start:]) //nolint:gosec // see the import
	copy(b[digest:], sum[:])
	return b
}

func bit(set bool, flag uint8) uint8 {
	if set {
		return flag
	}
	return 0
}

// padded is a key as it stands in the place of the digest that it makes.
func padded(key []byte) []byte {
	return append(key[:len(key):len(key)], make([]byte, sha1.Size-len(key))...)
}

// Why a packet is not taken (RFC 5880, 6.8.6).
var (
	ErrMalformed = errors.New("malformed")
	ErrAuth      = errors.New("not authenticated as it has to be")
)

// Parse takes a packet apart. With a key it has to be authenticated by it, without
// one it must not be.
func Parse(b []byte, key []byte) (Packet, error) {
	if len(b) < mandatory {
		return Packet{}, fmt.Errorf("%w: %d bytes, 24 at least", ErrMalformed, len(b))
	}
	length := int(b[3])
	p := Packet{
		Diag: Diag(b[0] & 0x1f), State: State(b[1] >> 6),
		Poll: b[1]&flagPoll != 0, Final: b[1]&flagFinal != 0, Independent: b[1]&flagIndependent != 0, Demand: b[1]&flagDemand != 0,
		DetectMult: b[2], My: binary.BigEndian.Uint32(b[4:]), Your: binary.BigEndian.Uint32(b[8:]),
		DesiredMinTx: microseconds(b[12:]), RequiredMin: microseconds(b[16:]), RequiredEcho: microseconds(b[20:]),
	}
	authenticated := b[1]&flagAuth != 0
	switch {
	case b[0]>>5 != version:
		return Packet{}, fmt.Errorf("%w: version %d", ErrMalformed, b[0]>>5)
	case length < mandatory || authenticated && length < mandatory+2 || length > len(b):
		return Packet{}, fmt.Errorf("%w: length %d of %d bytes", ErrMalformed, length, len(b))
	case p.DetectMult == 0:
		return Packet{}, fmt.Errorf("%w: detection multiplier 0", ErrMalformed)
	case b[1]&flagMultipoint != 0:
		return Packet{}, fmt.Errorf("%w: the multipoint bit is set", ErrMalformed)
	case p.My == 0:
		return Packet{}, fmt.Errorf("%w: discriminator 0", ErrMalformed)
	case p.Your == 0 && p.State > Down:
		return Packet{}, fmt.Errorf("%w: no discriminator of ours in state %v", ErrMalformed, p.State)
	case authenticated != (key != nil):
		return Packet{}, ErrAuth
	}
	if authenticated {
		var err error
		if p.Auth, err = parseAuth(b[:length], key); err != nil {
			return Packet{}, err
		}
	}
	return p, nil
}

func microseconds(b []byte) time.Duration {
	return time.Duration(binary.BigEndian.Uint32(b)) * time.Microsecond
}

func parseAuth(b []byte, key []byte) (*Auth, error) {
	section := b[mandatory:]
	if len(section) != sha1Section || section[0] != meticulousSHA1 || section[1] != sha1Section {
		return nil, fmt.Errorf("%w: authentication type %d of %d bytes", ErrAuth, section[0], len(section))
	}
	digest := section[8:]
	keyed := slices.Concat(b[:len(b)-len(digest)], padded(key))
	sum := sha1.Sum(keyed) //nolint:gosec // see the import
	if subtle.ConstantTimeCompare(sum[:], digest) == 0 {
		return nil, ErrAuth
	}
	return &Auth{KeyID: section[2], Sequence: binary.BigEndian.Uint32(section[4:])}, nil
}
