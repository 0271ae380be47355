package lb

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Tracking says of which flows a service keeps records, beside its table.
type Tracking uint8

const (
	// TrackChanges keeps them where the table has changed lately.
	TrackChanges Tracking = iota
	// TrackNone keeps none: flows break when their slot gets another backend.
	TrackNone
	// TrackAll keeps one of every flow, as a classic connection table does.
	TrackAll
)

func (t Tracking) String() string {
	switch t {
	case TrackChanges:
		return "changes"
	case TrackNone:
		return "none"
	case TrackAll:
		return "all"
	}
	return fmt.Sprintf("tracking-%d", uint8(t))
}

// DefaultFlowLifetime is how long flows are kept from breaking where nothing is said.
const DefaultFlowLifetime = time.Hour

// DefaultFlowRecords is the room for records where nothing is said: some 20 MB.
const DefaultFlowRecords = 1 << 18

// Lifetime is how long after a change flows stay at their backend: then older ones go
// where new ones do.
func (s Service) Lifetime() time.Duration { return cmp.Or(s.FlowLifetime, DefaultFlowLifetime) }

// Quiet is how long nothing may have been heard of flows until they count as over.
func (s Service) Quiet() time.Duration { return s.Lifetime() / 4 }

// Settle is how long after a change all datagrams go where they went before: none of
// them says that it is a flow's first, and what sends in that time is known after it.
func (s Service) Settle() time.Duration { return min(30*time.Second, s.Quiet()) }

// Base says where those flows of a slot go that have no record.
type Base struct {
	Backend      uint16 // index into the table's Alive
	InTransition bool   // records are looked at, and new flows get one
	Settling     bool   // datagrams still go to Backend, and get a record
}

// Step is a set of backends that a service's table was built of, and since when.
type Step struct {
	Since time.Time // in milliseconds
	// Backends are those that were alive, sorted by name. Those of weight 0 were in no
	// slot, but their flows were let live.
	Backends []Backend
}

// Equal tells whether s and o are the same. Steps that share their set are compared in no
// time.
func (s Step) Equal(o Step) bool {
	if !s.Since.Equal(o.Since) || len(s.Backends) != len(o.Backends) {
		return false
	}
	return len(s.Backends) == 0 || &s.Backends[0] == &o.Backends[0] || slices.Equal(s.Backends, o.Backends)
}

// History is a service's steps, the oldest first: where its flows may be.
type History struct {
	// Begin is the time of a step from which on flows count: nobody has older ones.
	// Zero: that was not found.
	Begin time.Time
	Steps []Step
	// Quiet is what the member tells of itself: it has seen no packet for a while that
	// an earlier step than the last one mattered to.
	Quiet bool
	// Held are the backends in no slot that flows are still at on this member, sorted by
	// name.
	Held []string
}

// FlowRecord is the backend of one flow, as members tell each other of it.
type FlowRecord struct {
	Key       uint64        // of the flow, the same on all members
	Backend   uint64        // likewise
	Idle      time.Duration // since its last packet
	Datagrams bool          // nothing says when it ends
	Closing   bool          // it has begun to end
}
