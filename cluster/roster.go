package cluster

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/halfproxy/halfproxy/lb"
)

// The states of a member.
const (
	Alive  = "alive"  // a member, heard of within the last two seconds
	Silent = "silent" // a member, but its heartbeats do not arrive
	Left   = "left"   // gone after it said so
	Dead   = "dead"   // gone without a word; looked for until it returns
)

var states = []string{Alive, Silent, Left, Dead}

// Member is an LB node of the cluster.
type Member struct {
	Name    string
	Address netip.AddrPort
	State   string // Alive, Silent, Left or Dead
}

// peer is what is known of one member.
type peer struct {
	node   memberlist.Node // a copy; no name while memberlist has not listed it
	listed bool            // by memberlist, now
	since  time.Time       // when listed last changed
	left   bool            // not listed, and its last record said that it leaves

	boot   uint64    // the newest seen: what older starts of it said is over
	record *record   // nil: none of this boot
	heard  time.Time // the last sign of life
	told   string    // the state that transitions last gave
}

// roster is all that this member knows of the cluster. It is pure: time comes
// in, nothing goes out, and its owner locks.
type roster struct {
	self   string
	peers  map[string]*peer // self included
	limits limits
}

// limits are the times after which a roster sees a member differently.
type limits struct {
	silent       time.Duration // without a heartbeat, a member is silent
	forgetRecord time.Duration // without a heartbeat, its record goes, and who left is forgotten
	forgetDead   time.Duration // the dead are forgotten
}

func newRoster(self memberlist.Node, boot uint64, l limits, now time.Time) roster {
	own := &peer{node: self, listed: true, since: now, boot: boot}
	return roster{self: self.Name, peers: map[string]*peer{self.Name: own}, limits: l}
}

func (r *roster) own() *peer { return r.peers[r.self] }

// publish makes report, in its normal form, the own record.
func (r *roster) publish(report lb.Report, encoded []byte) {
	own := r.own()
	v := version{boot: own.boot, sequence: 1}
	if own.record != nil {
		v.sequence = own.record.sequence + 1
	}
	own.record = newRecord(r.self, v, report, encoded)
}

// outlive makes the own boot number bigger than boot, which someone has seen of
// us: the clock went back between two starts, or there was another by our name.
func (r *roster) outlive(boot uint64) {
	own := r.own()
	own.boot = max(own.boot, boot) + 1
	if own.record != nil {
		raw := reader{b: own.record.raw}
		raw.name()
		raw.version()
		own.record = newRecord(r.self, version{boot: own.boot, sequence: 1}, own.record.report, raw.b)
	}
}

// version is what a heartbeat of this member says.
func (r *roster) version() version { return r.own().version() }

func (p *peer) version() version {
	if p.record != nil {
		return p.record.version
	}
	return version{boot: p.boot}
}

// join takes a member that memberlist lists from now on.
func (r *roster) join(node memberlist.Node, now time.Time) refusal {
	p, why := r.peer(node.Name)
	if p != nil {
		p.node, p.listed, p.since, p.left = node, true, now, false
	}
	return why
}

// gone takes a member that memberlist no longer lists.
func (r *roster) gone(name string, now time.Time) {
	if p := r.peers[name]; p != nil {
		p.listed, p.since = false, now
		p.left = p.record != nil && p.record.report.Leaving
	}
}

func (r *roster) peer(name string) (*peer, refusal) {
	p := r.peers[name]
	if p == nil {
		if len(r.peers) >= maxMembers {
			return nil, refusedCapacity
		}
		p = &peer{}
		r.peers[name] = p
	}
	return p, ""
}

// pulse is what a heartbeat tells.
type pulse struct {
	changed bool // a record or a state is another now
	behind  bool // the sender has a newer record than we hold
	past    bool // we hold more of the sender than it knows itself
	beyond  bool // it is about us, and newer than we are
}

func (r *roster) beat(h heartbeat, now time.Time) pulse {
	if h.member == r.self {
		return pulse{beyond: h.version.compare(r.version()) > 0}
	}
	p := r.peers[h.member]
	if p == nil {
		return pulse{}
	}
	if h.boot < p.boot {
		return pulse{past: p.listed}
	}
	var out pulse
	if h.boot > p.boot {
		// Started anew: what it found before is no vote any more, or the
		// heartbeats of the new life would keep the old one's alive.
		out.changed = p.record != nil
		p.boot, p.record = h.boot, nil
	}
	p.heard = now
	out.changed = out.changed || p.told != r.state(p, now)
	out.behind = p.listed && h.sequence > 0 && (p.record == nil || p.record.sequence < h.sequence)
	return out
}

// compare tells whether a member has a newer record than we hold, as others know.
func (r *roster) compare(v heartbeat) pulse {
	p := r.peers[v.member]
	switch {
	case v.member == r.self:
		return pulse{beyond: v.version.compare(r.version()) > 0}
	case p == nil || !p.listed || v.sequence == 0:
		return pulse{}
	}
	return pulse{behind: v.version.compare(p.version()) > 0}
}

// amend gives the record that m makes of the one that is held; nil: it is another
// than m begins with.
func (r *roster) amend(m change) (*record, refusal) {
	p := r.peers[m.member]
	if m.member == r.self || p == nil || p.record == nil || p.record.version != m.base {
		return nil, ""
	}
	report, ok := m.apply(p.record.report)
	if !ok {
		return nil, refusedMalformed
	}
	rec := &record{member: m.member, version: version{m.base.boot, m.sequence}, report: report, once: new(sync.Once)}
	for service := range m.steps {
		r.share(rec, service)
	}
	return rec, ""
}

// share lets rec have its sets of backends in common with the other members' records: most
// tell the same steps.
func (r *roster) share(rec *record, service string) {
	steps := rec.report.Steps[service].Steps
	for i, s := range steps {
		for _, p := range r.peers {
			if p.record == nil {
				continue
			}
			theirs := p.record.report.Steps[service].Steps
			j, _ := slices.BinarySearchFunc(theirs, s, func(x, y lb.Step) int { return x.Since.Compare(y.Since) })
			if j < len(theirs) && theirs[j].Equal(s) {
				steps[i] = theirs[j]
				break
			}
		}
	}
}

// outcome is what became of a record that came in.
type outcome int

const (
	known  outcome = iota
	newer          // taken
	beyond         // it is ours, and newer than we are
)

// take takes rec. Direct is from the member itself, a sign of life now; else
// heard is when the one who passed it on last had one. That counts only while
// we know no better: a member whose heartbeats reach others and not us must not
// seem alive with every record that is passed on.
func (r *roster) take(rec *record, direct bool, heard, now time.Time) (outcome, refusal) {
	if rec.member == r.self {
		if rec.version.compare(r.version()) > 0 {
			return beyond, ""
		}
		return known, ""
	}
	p := r.peers[rec.member]
	switch {
	case direct:
		heard = now
	case p != nil && !p.heard.IsZero():
		heard = p.heard
	}
	if now.Sub(heard) > r.limits.forgetRecord {
		return known, "" // or members would hand forgotten records round for ever
	}
	p, why := r.peer(rec.member)
	if why != "" || rec.boot < p.boot {
		return known, why
	}
	p.heard = heard
	if p.record != nil && rec.version.compare(p.record.version) <= 0 {
		return known, ""
	}
	if rec.once == nil { // else amend has done so
		for service := range rec.report.Steps {
			r.share(rec, service)
		}
	}
	p.boot, p.record = rec.boot, rec
	p.left = !p.listed && rec.report.Leaving
	return newer, ""
}

// state is what r takes the member for.
func (r *roster) state(p *peer, now time.Time) string {
	switch {
	case p == r.own() && p.listed:
		return Alive
	case p.listed && (now.Sub(p.heard) <= r.limits.silent || now.Sub(p.since) <= r.limits.silent):
		return Alive
	case p.listed:
		return Silent
	case p.left:
		return Left
	}
	return Dead
}

// transition is a member's change of state.
type transition struct {
	Member
	from string // empty: not known before
}

// transitions gives the changes of state since it was last called, by name.
func (r *roster) transitions(now time.Time) []transition {
	var list []transition
	for _, m := range r.members(now) {
		p := r.peers[m.Name]
		if p.told != m.State {
			list = append(list, transition{m, p.told})
			p.told = m.State
		}
	}
	return list
}

// forget drops what has had its time. It tells whether anything changed.
func (r *roster) forget(now time.Time) bool {
	changed := false
	for name, p := range r.peers {
		if name == r.self {
			continue
		}
		if p.record != nil && now.Sub(p.heard) > r.limits.forgetRecord {
			p.record = nil
			changed = true
		}
		keep := r.limits.forgetDead
		if p.left || p.node.Name == "" {
			keep = r.limits.forgetRecord
		}
		if !p.listed && p.record == nil && now.Sub(p.since) > keep {
			delete(r.peers, name)
			changed = true
		}
	}
	return changed
}

// members are all that memberlist has ever listed and that are not forgotten.
func (r *roster) members(now time.Time) []Member {
	var list []Member
	for name, p := range r.sorted() {
		if p.node.Name != "" {
			list = append(list, Member{Name: name, Address: addrPort(p.node), State: r.state(p, now)})
		}
	}
	return list
}

func (r *roster) records(now time.Time) []lb.Record {
	var list []lb.Record
	for name, p := range r.sorted() {
		if p.record != nil {
			list = append(list, lb.Record{Member: name, Heard: r.heard(p, now), Report: p.record.report})
		}
	}
	return list
}

// all are the records as one who joins gets them.
func (r *roster) all(now time.Time) state {
	var s state
	for _, p := range r.sorted() {
		if p.record != nil {
			s = append(s, relay{now.Sub(r.heard(p, now)), p.record})
		}
	}
	return s
}

// versions are those of all records, as push/pull carries them.
func (r *roster) versions() versions {
	var list versions
	for name, p := range r.sorted() {
		if p.record != nil {
			list = append(list, heartbeat{name, p.record.version})
		}
	}
	return list
}

func (r *roster) heard(p *peer, now time.Time) time.Time {
	if p == r.own() {
		return now
	}
	return p.heard
}

// others are the members that memberlist lists, without this one.
func (r *roster) others() []memberlist.Node {
	var list []memberlist.Node
	for name, p := range r.sorted() {
		if p.listed && name != r.self {
			list = append(list, p.node)
		}
	}
	return list
}

// lost are the addresses of members that are gone and did not say so.
func (r *roster) lost() []netip.AddrPort {
	var list []netip.AddrPort
	for _, p := range r.sorted() {
		if p.node.Name != "" && !p.listed && !p.left {
			list = append(list, addrPort(p.node))
		}
	}
	return list
}

// listed tells whether a listed member, or this one, has the address.
func (r *roster) listed(address netip.AddrPort) bool {
	for _, p := range r.peers {
		if p.listed && addrPort(p.node) == address {
			return true
		}
	}
	return false
}

func (r *roster) sorted() iter.Seq2[string, *peer] {
	return func(yield func(string, *peer) bool) {
		for _, name := range slices.Sorted(maps.Keys(r.peers)) {
			if !yield(name, r.peers[name]) {
				return
			}
		}
	}
}

func addrPort(n memberlist.Node) netip.AddrPort {
	address, _ := netip.AddrFromSlice(n.Addr)
	return netip.AddrPortFrom(address.Unmap(), n.Port)
}
