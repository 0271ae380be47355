// Package xdp is the data plane: a BPF program at the XDP hook of the node's
// interfaces that finds the backend of every packet for a VIP and sends it on
// unchanged, and the tables it works by.
//
// The packet's journey is told at the head of bpf/lb.bpf.c. This side loads the
// program, writes its tables, and keeps the next hops of the backends fresh, so
// that the program looks nothing up in the kernel. The program, the tables and
// the counters are one [Dataplane]:
//
//	Apply ──► services, slots ┐                  ┌ verdicts ──► Stats, metrics
//	Run   ──► next hops       ├─► bpf/lb.bpf.c ──┤
//	Attach ─► interfaces      ┘                  └ backend_counters
//
// What user space rewrites while packets flow has two places and one word that
// says which of them counts: a service's table, a backend's path. The idle
// place is filled, the word is turned, and what went out of use rests for a
// while before it is used again, as a packet may be on its way through it.
//
// While packets are captured the program is one that calls this one and hands
// over what it sees (bpf/capture.bpf.c); otherwise there is nothing of that in it.
//
// Package xdp decides nothing about services, backends or their health: it is
// handed whole tables. All calls of one Dataplane belong in one network
// namespace, that of the interfaces.
//
// A backend's half is [AttachDecap] (bpf/decap.bpf.c), which takes outer headers
// off, and [AttachMSS] (bpf/mss.bpf.c).
package xdp
