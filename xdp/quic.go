package xdp

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/halfproxy/halfproxy/lb"
)

// Bits of a service's active, as in bpf/types.h.
const (
	quicFlag        = 0x80
	quicLengthBit   = 8
	quicRotationBit = 12
)

// Bits of how a QUIC packet's backend was chosen, as in bpf/quic.h.
const (
	byServerID = 1
	longHeader = 2
)

// quicFlags are the bits of active that tell the program of s's connection IDs.
func quicFlags(q lb.QUIC) uint32 {
	if q == (lb.QUIC{}) {
		return 0
	}
	return quicFlag | uint32(q.ServerIDLength)<<quicLengthBit | uint32(q.ConfigRotation)<<quicRotationBit
}

// checkServerIDs finds what the program could not tell backends apart by.
func checkServerIDs(t lb.Table) error {
	if t.Service.QUIC == (lb.QUIC{}) {
		return nil
	}
	var errs []error
	owners := make(map[lb.ServerID]string)
	for _, b := range t.Alive {
		if len(b.ServerID) != t.Service.QUIC.ServerIDLength || len(b.ServerID) > lb.MaxServerIDLength {
			errs = append(errs, fmt.Errorf("service %q: backend %q has server ID %s, not one of %d bytes", t.Service.Name, b.Name, b.ServerID, t.Service.QUIC.ServerIDLength))
		}
		if other, taken := owners[b.ServerID]; taken {
			errs = append(errs, fmt.Errorf("service %q: backends %q and %q have server ID %s", t.Service.Name, other, b.Name, b.ServerID))
		}
		owners[b.ServerID] = b.Name
	}
	return errors.Join(errs...)
}

// applyServerIDs makes the server IDs of the table's backends lead to their
// entries, and no others of the service anywhere. It comes after the table has
// turned and before anything begins to rest: an entry is one backend's alone in
// both generations, so a packet finds the backend that it asks for, or none and
// goes by the table.
func (d *Dataplane) applyServerIDs(s *service, t lb.Table) error {
	wanted := make(map[bpfServerId]uint32)
	if t.Service.QUIC != (lb.QUIC{}) {
		if err := d.startCountingQUIC(s); err != nil {
			return err
		}
		for _, b := range t.Alive {
			wanted[serverIDKey(s.number, b.ServerID)] = s.members[b.Name].entry()
		}
	}
	m := d.store.maps[bpfMapServerIds]
	for key := range s.serverIDs {
		if _, stays := wanted[key]; stays {
			continue
		}
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("take out a server ID: %w", err)
		}
		delete(s.serverIDs, key)
	}
	for key, entry := range wanted {
		if old, there := s.serverIDs[key]; there && old == entry {
			continue
		}
		if err := m.Put(key, entry); err != nil {
			return fmt.Errorf("enter a server ID (there is room for %d): %w", m.MaxEntries(), err)
		}
		s.serverIDs[key] = entry
	}
	return nil
}

func serverIDKey(service uint32, id lb.ServerID) bpfServerId {
	key := bpfServerId{Service: service, Length: uint8(len(id))}
	copy(key.Bytes[:], id)
	return key
}

// startCountingQUIC has the program count the service's QUIC packets.
func (d *Dataplane) startCountingQUIC(s *service) error {
	if s.countsQUIC {
		return nil
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count the CPUs: %w", err)
	}
	if err := d.store.maps[bpfMapQuicCounters].Put(s.number, make([]bpfQuicCounter, cpus)); err != nil {
		return fmt.Errorf("enter a counter of QUIC packets: %w", err)
	}
	s.countsQUIC = true
	return nil
}

func (d *Dataplane) stopCountingQUIC(s *service) error {
	if !s.countsQUIC {
		return nil
	}
	if err := d.store.maps[bpfMapQuicCounters].Delete(s.number); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("take out a counter of QUIC packets: %w", err)
	}
	s.countsQUIC = false
	return nil
}

// QUICStats counts a service's QUIC packets by how their backend was chosen: by
// the server ID in the connection ID, or by the table. Clients choose the first
// connection IDs of a connection themselves, in packets with a long header.
type QUICStats struct{ Long, Short QUICCount }

// QUICCount is packets.
type QUICCount struct{ ByServerID, ByTable uint64 }

// readQUIC gives what the program counted of s.
func (d *Dataplane) readQUIC(s *service) (*QUICStats, error) {
	var perCPU []bpfQuicCounter
	var sum QUICStats
	if err := d.store.maps[bpfMapQuicCounters].Lookup(s.number, &perCPU); err != nil {
		return nil, fmt.Errorf("read the counter of QUIC packets of service %s: %w", s.name, err)
	}
	for _, cpu := range perCPU {
		sum.Short.ByTable += cpu.Packets[0]
		sum.Short.ByServerID += cpu.Packets[byServerID]
		sum.Long.ByTable += cpu.Packets[longHeader]
		sum.Long.ByServerID += cpu.Packets[longHeader|byServerID]
	}
	return &sum, nil
}

// quicPacket is a QUIC packet with a short header to this connection ID, as a
// client would send one; none without.
func quicPacket(connectionID []byte) []byte {
	if len(connectionID) == 0 {
		return nil
	}
	packet := append([]byte{0x40}, connectionID...)
	// A packet number and what is encrypted: RFC 9001, 5.4.2 needs 20 bytes of them.
	return append(packet, make([]byte, 20+len(packet)%2)...)
}

// aboutConnectionID says why a packet with this connection ID goes where t says
// that it is forwarded to.
func (s *service) aboutConnectionID(t Trace, connectionID []byte) string {
	if t.Slots == 0 {
		id := lb.ServerID(connectionID[1 : 1+s.quic.ServerIDLength])
		return fmt.Sprintf("by server ID: the connection ID holds %s, which is that of backend %q", id, t.Backend)
	}
	var reason string
	switch rotation := connectionID[0] >> 5; {
	case s.quic == (lb.QUIC{}):
		reason = "the service has no quic, connection IDs are not looked at"
	case rotation == 7:
		reason = "the connection ID says that it holds no server ID (its first three bits are 7)"
	case rotation != s.quic.ConfigRotation:
		reason = fmt.Sprintf("the connection ID is of configuration %d (its first three bits), the service's config_rotation is %d", rotation, s.quic.ConfigRotation)
	case len(connectionID) <= s.quic.ServerIDLength:
		reason = fmt.Sprintf("the connection ID is too short to hold a server ID of %d bytes", s.quic.ServerIDLength)
	default:
		reason = fmt.Sprintf("the connection ID holds server ID %s, which is that of no backend that is alive", lb.ServerID(connectionID[1:1+s.quic.ServerIDLength]))
	}
	return fmt.Sprintf("by the table: %s; %s", reason, t.Why)
}
