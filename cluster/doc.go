// Package cluster is the members of a cluster of LB nodes and the records they
// spread: each member's lb.Report reaches every other one.
//
// # How a record travels
//
// A member is the only writer of its record. Records are ordered by (boot,
// sequence): the boot number grows with every start of the member, the sequence
// with every change. What is sent is a record, or what makes it of the one before it:
// that is of use to who holds exactly this one, and nothing to anybody else. So what
// comes twice, late or out of order does no harm.
//
//	Publish ─ 10 ms ─► what is new, best effort to ──► a whole record that fits a packet
//	                   every member (TCP to each,      is relayed once by each that it
//	                   when too big)                   is news to
//	every 500 ms ────► heartbeat (boot, sequence) ───► asks for what it lacks,
//	                                                   gets it over TCP
//	join, every 10 s ► push/pull: all records, both ways
//
// What is sent does not grow with what is known: of the steps of tables, a report's
// greatest part, those are told that are new, each by the backends in which it differs from
// the one before it. Members that tell the same steps are held with one copy of the sets.
//
// The heartbeat is also the proof of life: memberlist's own failure detector
// stretches its probes on a node that is cut off, so Record.Heard and the state
// Silent come from heartbeats alone, and only from those of the member itself.
//
// memberlist never merges the halves of a partition that outlasted its memory
// of the dead, so missing members are looked for every few seconds, for ever.
//
// The package judges nothing: what a silent member's vote is worth, and what
// the records say of a backend, is its caller's affair. It never touches routes
// or tables. It is the only package that imports memberlist; control and the
// program that wires everything may call it.
package cluster
