package track

import "fmt"

// Slot is a slot of a service's table. Backends are numbers.
type Slot struct {
	Current, Base uint16
	InTransition  bool // the two differ, or did lately: some flow may be at yet another backend
	Settling      bool // not long enough ago for datagrams to be told apart by their records
}

// Kind is what a packet says of its flow.
type Kind uint8

const (
	// Opens is a flow's first packet: TCP's SYN, SCTP's INIT.
	Opens Kind = iota
	// MayOpen is of a flow that is new or has just begun: QUIC's Initial, of which a
	// client sends several.
	MayOpen
	// Continues is of a flow that began earlier.
	Continues
	// Datagram says nothing.
	Datagram
)

// Kinds are all there are.
var Kinds = [...]Kind{Opens, MayOpen, Continues, Datagram}

func (k Kind) String() string {
	switch k {
	case Opens:
		return "opens"
	case MayOpen:
		return "may open"
	case Continues:
		return "continues"
	case Datagram:
		return "datagram"
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// Recorded is the backend that a flow has by its record.
type Recorded struct {
	Backend uint16
	Known   bool // there is a record, and its backend lives
}

// Older is what a packet counts as where its flow is not to be taken for new: a first one
// as those that follow it, so that any node sends all of them one way without a record.
// quic tells whether those that follow QUIC's Initial say that they do.
//
// In a flood, when there is no room for a record, all is decided so. And while routers are
// about to move flows from node to node, which may be quicker than a new record is, the
// backend is; there is a record as ever, or one of an earlier flow of the same ports, which
// some nodes have and some have not, would count later.
func (k Kind) Older(quic bool) Kind {
	if k == Datagram || k == MayOpen && !quic {
		return Datagram
	}
	return Continues
}

// Decide gives the backend that a packet goes to, and whether its flow's record is to be
// written.
func (s Slot) Decide(k Kind, r Recorded) (backend uint16, record bool) {
	switch {
	case !s.InTransition:
		return s.Current, false
	case k == Opens && r.Known: // what had the same ports before is over
		return s.Current, true
	case r.Known:
		return r.Backend, false
	case k == Continues: // it is older than the change, or it would have a record
		return s.Base, false
	case k == Datagram && s.Settling: // who sends in this time is taken for older
		return s.Base, true
	}
	return s.Current, true // a datagram of an older flow has a record by now
}
