package lb

import "encoding/hex"

// QUIC says how a service's backends mark the QUIC connection IDs that they
// choose as theirs: the plaintext algorithm of draft-ietf-quic-load-balancers.
// Its zero value is a service whose connection IDs are not looked at.
type QUIC struct {
	ServerIDLength int   // in bytes, 1 to MaxServerIDLength
	ConfigRotation uint8 // the three high bits of a connection ID, 0 to 6
}

// MaxServerIDLength is what fits in a connection ID of 20 bytes, beside its
// first one and the four that differ from one to the next.
const MaxServerIDLength = 15

// ServerID is what a backend puts into its connection IDs: these very bytes.
type ServerID string

func (id ServerID) String() string { return hex.EncodeToString([]byte(id)) }

// MarshalText is String: JSON would take the bytes for text and lose some.
func (id ServerID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }
