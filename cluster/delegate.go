package cluster

import (
	"slices"
	"time"

	"github.com/hashicorp/memberlist"
)

// delegate is what memberlist calls. Events and conflicts come under its node
// lock: nothing here may call it back, so what there is to send is noted and
// left to Run. After Run they may still come, from timers.
type delegate struct{ c *Cluster }

var (
	_ memberlist.Delegate         = delegate{}
	_ memberlist.EventDelegate    = delegate{}
	_ memberlist.ConflictDelegate = delegate{}
)

// NodeMeta is empty: memberlist panics at more than 512 bytes, and all there
// is to tell is in the record.
func (d delegate) NodeMeta(int) []byte { return nil }

// NotifyMsg keeps nothing of b, which memberlist uses again: decode copies.
func (d delegate) NotifyMsg(b []byte) { d.c.receive(b) }

func (d delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.c.queue.GetBroadcasts(overhead, limit)
}

// LocalState gives one who joins all records. To members it tells versions alone:
// who lacks one asks for it.
func (d delegate) LocalState(join bool) []byte {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	if join {
		return d.c.roster.all(time.Now()).encode()
	}
	return d.c.roster.versions().encode()
}

func (d delegate) MergeRemoteState(b []byte, _ bool) { d.c.receive(b) }

func (d delegate) NotifyJoin(n *memberlist.Node) {
	d.c.note(func(now time.Time) refusal { return d.c.roster.join(copyNode(n), now) })
	notify(d.c.exchange.more)
}

func (d delegate) NotifyLeave(n *memberlist.Node) {
	d.c.note(func(now time.Time) refusal {
		d.c.roster.gone(n.Name, now)
		return ""
	})
}

func (d delegate) NotifyUpdate(*memberlist.Node) {}

func (d delegate) NotifyConflict(existing, other *memberlist.Node) {
	rival := addrPort(*other)
	if existing.Name == d.c.cfg.Name {
		d.c.note(func(time.Time) refusal {
			d.c.todo.rival(rival)
			return refusedConflict
		})
		return
	}
	d.c.metrics.refused.WithLabelValues(string(refusedConflict)).Inc()
	if d.c.notices.allow("two addresses", time.Now()) {
		d.c.log.Warn("two addresses claim one member's name", "member", existing.Name,
			"address", addrPort(*existing), "other", rival,
			"remedy", "give each node a name of its own; if the member has moved, this heals within half a minute")
	}
}

// copyNode gives a copy that memberlist does not write to.
func copyNode(n *memberlist.Node) memberlist.Node {
	node := *n
	node.Addr, node.Meta = slices.Clone(n.Addr), nil
	return node
}

// broadcast is a record on its way through memberlist's gossip.
type broadcast struct {
	member  string
	message func() []byte // of the same length each time
}

var _ memberlist.NamedBroadcast = broadcast{}

// Name makes a newer record of a member replace the older one in the queue.
func (b broadcast) Name() string { return b.member }

func (b broadcast) Invalidates(other memberlist.Broadcast) bool {
	o, ok := other.(memberlist.NamedBroadcast)
	return ok && o.Name() == b.member
}

// Message is made when it is sent: on a node that is alone it may wait in the
// queue for hours, and its age must not stand still.
func (b broadcast) Message() []byte { return b.message() }

func (b broadcast) Finished() {}
