package lb

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
)

// Table says for every slot of a service's hash space which backend serves it.
// It is all that the data plane needs to forward a service's packets.
type Table struct {
	Service Service
	// Backends are those that Slots points into: sorted by name, whatever
	// the order of the file.
	Backends []Backend
	// Slots holds, for each slot, an index into Backends. It is empty while
	// no backend can be used: packets are then dropped and counted.
	Slots []uint16
	// Alive are the backends that live, sorted by name: those in Backends, and
	// those that get no new flows. A QUIC connection ID leads to any of them.
	Alive []Backend
	// Bases holds, for each slot, where older flows go. Nil: where new ones do.
	Bases []Base
	// HashKey keys the flow hash of this service (SipHash-1-3).
	HashKey [16]byte
}

// Digest is a fingerprint by which members see that they hold the same thing.
type Digest uint64

func (d Digest) String() string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(d))
	return hex.EncodeToString(b[:])
}

// Digest covers everything that decides where a flow goes but for the bases: the hash
// key and what is hashed, the slots, the backends' names and addresses, and their server
// IDs.
func (t Table) Digest() Digest {
	h := sha256.New()
	h.Write(t.HashKey[:])
	if fields := t.Service.HashFields(); fields != HashFlow {
		fmt.Fprintln(h, "by", fields)
	}
	for _, b := range t.Backends {
		fmt.Fprintf(h, "%q %s\n", b.Name, b.Address)
	}
	slots := make([]byte, 0, 2*len(t.Slots))
	for _, s := range t.Slots {
		slots = binary.BigEndian.AppendUint16(slots, s)
	}
	h.Write(slots)
	if t.Service.QUIC != (QUIC{}) {
		fmt.Fprintln(h, "quic", t.Service.QUIC.ConfigRotation)
		for _, b := range t.Alive {
			fmt.Fprintf(h, "%s %q %s\n", b.ServerID, b.Name, b.Address)
		}
	}
	return Digest(binary.BigEndian.Uint64(h.Sum(nil)))
}

// DigestServices fingerprints a configuration's services. Their order in the
// file does not matter.
func DigestServices(services []Service) Digest {
	h := sha256.New()
	for _, s := range slices.SortedFunc(slices.Values(services), func(a, b Service) int { return cmp.Compare(a.Name, b.Name) }) {
		fmt.Fprintln(h, s.Digest())
	}
	return Digest(binary.BigEndian.Uint64(h.Sum(nil)))
}

// Digest fingerprints all that the configuration says of s but how routers are told,
// which is each node's own matter. The order of VIPs, ports and backends in the file
// does not matter.
func (s Service) Digest() Digest {
	s.Announce = Announcement{}
	s.VIPs = slices.SortedFunc(slices.Values(s.VIPs), VIP.Compare)
	s.Ports = slices.SortedFunc(slices.Values(s.Ports), func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Number, b.Number), cmp.Compare(a.Last, b.Last))
	})
	s.Backends = SortBackends(s.Backends)
	return Digest(fingerprint(s))
}

// SortBackends gives backends by name, leaving its argument as it is.
func SortBackends(backends []Backend) []Backend {
	return slices.SortedFunc(slices.Values(backends), func(a, b Backend) int { return cmp.Compare(a.Name, b.Name) })
}
