package lb

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Target is one backend of one service with the check that judges it.
type Target struct {
	Service string
	Backend string
	Address netip.Addr
	Check   Check
	// VIPs and Forward are the service's, where the probe goes to a VIP.
	VIPs    []VIP
	Forward Forward
	// Observers is how many members are to ask; 0: everyone. It is no part of the
	// question.
	Observers int
}

// Targets lists what has to be checked for s, one target a backend.
func (s Service) Targets() []Target {
	targets := make([]Target, len(s.Backends))
	for i, b := range s.Backends {
		targets[i] = Target{Service: s.Name, Backend: b.Name, Address: b.Address, Check: s.Check, Observers: s.Observers}
		if s.Check.Via == ViaVIP {
			targets[i].VIPs, targets[i].Forward = s.VIPs, s.Forward
		}
	}
	return targets
}

// ID is the same on every member whose configuration holds the same target,
// and differs as soon as anything about the target does: nobody's observation
// is taken for an answer to a question that was not asked.
func (t Target) ID() TargetID {
	vips := slices.SortedFunc(slices.Values(t.VIPs), VIP.Compare)
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %s %s %s %d %q %d %d %d %d %s %s", t.Service, t.Backend, t.Address,
		t.Check.Type, t.Check.Via, t.Check.Port, t.Check.Path, t.Check.Interval, t.Check.Timeout, t.Check.Rise, t.Check.Fall,
		vips, t.Forward))
	return TargetID(binary.BigEndian.Uint64(sum[:8]))
}

// TargetID names a Target among the members of a cluster.
type TargetID uint64

// Observation is what one observer found of one target: Up, Down, or Unknown
// while rise and fall are not reached.
type Observation struct {
	Target TargetID
	State  State
}

// Report is all that a member tells the others, whole each time.
type Report struct {
	Config       Digest            // of the services, as Digest of DigestServices
	Tables       map[string]Digest // service name to the digest of its table in the data plane
	Observations []Observation     // sorted by target
	Orders       []Order           // all that it knows of, by subject, those undone included
	Settled      bool              // it has seen enough since its start: its observations are votes
	Leaving      bool              // a planned stop: no votes from here any more
}

// Record is the newest report of one member as some other member holds it.
type Record struct {
	Member string
	Heard  time.Time // when the member last gave a sign of life, by our clock
	Report Report
}
