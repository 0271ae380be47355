package lb

import (
	"net/netip"
	"slices"
	"time"
)

// Target is one backend of one service with the check that judges it.
type Target struct {
	Service string `json:",omitzero"`
	Backend string `json:",omitzero"`
	Address netip.Addr
	Check   Check
	// What follows is the service's, where the probe goes to a VIP: all that the way
	// of its packets depends on.
	VIPs         []VIP          `json:",omitzero"`
	Forward      Forward        `json:",omitzero"`
	GUEPort      uint16         `json:",omitzero"`
	GUEChecksum  bool           `json:",omitzero"`
	OuterSources []netip.Prefix `json:",omitzero"`
	// Observers is how many members are to ask; 0: everyone. It is no part of the
	// question.
	Observers int `json:"-"`
}

// Targets lists what has to be checked for s, one target a backend.
func (s Service) Targets() []Target {
	targets := make([]Target, len(s.Backends))
	for i, b := range s.Backends {
		targets[i] = Target{Service: s.Name, Backend: b.Name, Address: b.Address, Check: s.Check, Observers: s.Observers}
		if s.Check.Via == ViaVIP {
			t := &targets[i]
			t.VIPs, t.Forward = s.VIPs, s.Forward
			t.GUEPort, t.GUEChecksum, t.OuterSources = s.GUEPort, s.GUEChecksum, s.OuterSources
		}
	}
	return targets
}

// ID names the question that is asked of t's backend: it is the same on every
// member, and of every service, that asks the same of the same address, and
// differs as soon as anything about the question does. Thus services share a
// check, and nobody's observation is taken for an answer to what was not asked.
func (t Target) ID() TargetID {
	if t.Check.Type != CheckExec { // whose command is told both
		t.Service, t.Backend = "", ""
	}
	t.VIPs = slices.SortedFunc(slices.Values(t.VIPs), VIP.Compare)
	t.OuterSources = slices.SortedFunc(slices.Values(t.OuterSources), netip.Prefix.Compare)
	return TargetID(fingerprint(t))
}

// TargetID names what is asked of a backend among the members of a cluster.
type TargetID uint64

// Observation is what one observer found of one target: Up, Down, or Unknown
// while rise and fall are not reached.
type Observation struct {
	Target TargetID
	State  State
	Ahead  uint8 // of an Up backend: the steps of its slow start that it has yet to take
}

// Report is all that a member tells the others, whole each time.
type Report struct {
	Config       Digest             // of the services, as Digest of DigestServices
	Tables       map[string]Digest  // service name to the digest of its table in the data plane
	Observations []Observation      // sorted by target
	Orders       []Order            // all that it knows of, by subject, those undone included
	Steps        map[string]History // by service, of those whose flows may be elsewhere than their tables say
	Settled      bool               // it has seen enough since its start: its observations are votes
	Leaving      bool               // a planned stop: no votes from here any more
	Moving       bool               // its routes change, in a moment or lately: routers move flows
}

// Record is the newest report of one member as some other member holds it.
type Record struct {
	Member string
	Heard  time.Time // when the member last gave a sign of life, by our clock
	Report Report
}
