package main

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/halfproxy/halfproxy/admin"
	"github.com/halfproxy/halfproxy/bgp"
	"github.com/halfproxy/halfproxy/config"
	"github.com/halfproxy/halfproxy/control"
	"github.com/halfproxy/halfproxy/lb"
	"github.com/halfproxy/halfproxy/xdp"
)

// status gathers what each part knows.
func (n *node) status() admin.Status {
	cfg := n.config()
	st := n.control.Status()
	stats, err := n.dataplane.Stats()
	if err != nil {
		n.log.Error("packet counters not read", "err", err)
	}
	now := time.Now()
	s := admin.Status{
		Time: now,
		Node: admin.Node{
			Name: cfg.Node.Name, Draining: st.Draining, Version: version, Started: byClock(n.started, now),
			Interfaces: n.interfaceList(cfg.Node.Interfaces),
			Records:    admin.FlowRecords{Held: stats.Records.Held, Room: stats.Records.Room},
		},
		Cluster:       admin.Cluster{InSight: st.InSight, Size: st.Size, Frozen: st.Frozen, Blind: st.Blind},
		Members:       n.memberList(cfg.Node.Name, st),
		Services:      n.serviceList(st, stats),
		BGP:           n.peerList(cfg, now),
		ConfigDigest:  st.Config.String(),
		ConfigDiffers: st.ConfigDiffers,
	}
	for _, v := range xdp.Verdicts() {
		count := stats.Verdicts[v]
		s.Verdicts = append(s.Verdicts, admin.Verdict{Name: v.String(), Fate: v.Fate(), Packets: count.Packets, Bytes: count.Bytes})
	}
	for _, o := range st.Orders {
		s.Orders = append(s.Orders, admin.NewOrder(o))
	}
	for _, a := range st.Aggregates {
		s.Aggregates = append(s.Aggregates, admin.Aggregate{
			Prefix: a.Prefix, Announced: a.Announced, VIPs: a.VIPs, Serving: a.Serving, Cause: a.Cause, Reason: a.Reason,
		})
	}
	return s
}

func (n *node) interfaceList(names []string) (list []admin.Interface) {
	modes := n.dataplane.Modes()
	for _, name := range names {
		mode, attached := modes[name]
		i := admin.Interface{Name: name, Attached: attached}
		if attached {
			i.XDPMode = mode.String()
		}
		list = append(list, i)
	}
	return list
}

func (n *node) serviceList(st control.Status, stats xdp.Stats) (list []admin.Service) {
	seen := n.control.Seen()
	lastErrors := make(map[[2]string]string) // by service and backend
	for _, r := range n.checker.Results() {
		lastErrors[[2]string{r.Target.Service, r.Target.Backend}] = cmp.Or(r.LastError, r.Held)
	}
	for _, service := range st.Services {
		out := admin.Service{
			Name: service.Name, VIPs: service.VIPs, Forward: service.Forward.String(),
			Announced: service.Announced, Reason: service.Reason, Panic: service.Panic,
			TableDigest: service.Table.String(), TableDiffers: service.TableDiffers, Tracking: service.Tracking.String(),
		}
		if t := service.Transition; t != nil {
			out.Transition = &admin.Transition{Since: t.Since, Until: t.Until, Changes: t.Steps, Slots: t.Slots}
		}
		if service.Announced {
			out.Reason = "all gates are open"
		}
		for _, vip := range service.VIPs {
			if h, held := st.HeldBack[vip]; held {
				out.HeldBack = append(out.HeldBack, admin.HeldBack{VIP: vip, Cause: h.Cause, Reason: h.Reason})
			}
		}
		for _, p := range service.Ports {
			out.Ports = append(out.Ports, p.String())
		}
		for _, b := range service.Backends {
			traffic := stats.Services[service.Name].Backends[b.Name]
			use, held := stats.Services[service.Name].Uses[b.Name], service.HeldBy[b.Name]
			order := ""
			if b.Order != (lb.Order{}) {
				order = b.Order.String()
			}
			out.Backends = append(out.Backends, admin.Backend{
				Order: order,
				Name:  b.Name, Address: b.Address, Weight: b.Weight, WeightNow: b.WeightNow(), State: b.State.String(),
				HealthyObservers: b.Up, Observers: b.Observers, Seen: seen[service.Name][b.Name],
				Packets: traffic.Packets, Bytes: traffic.Bytes, Flows: traffic.Flows,
				FlowRecords: use.Records, PacketsPerSecond: use.Rate, HeldBy: held, SafeToStop: b.State.Aside() && len(held) == 0,
				LastError: lastErrors[[2]string{service.Name, b.Name}],
			})
		}
		list = append(list, out)
	}
	return list
}

func (n *node) peerList(cfg config.Config, now time.Time) (list []admin.Peer) {
	if n.speaker == nil {
		return nil
	}
	sessions := n.bfdStates(cfg)
	for _, p := range n.speaker.Peers() {
		var routes []admin.Route
		for _, r := range p.Routes {
			routes = append(routes, admin.Route{Prefix: r.Prefix, GoingAway: r.Shutdown})
		}
		list = append(list, admin.Peer{
			Address: p.Peer, ASN: p.ASN, State: p.State, Since: byClock(p.Since, now), BFD: cmp.Or(sessions[p.Peer], "off"),
			Announced: p.Announced, Routes: routes, LastError: p.LastError,
		})
	}
	return list
}

// byClock is a moment of this process by the clock as it goes now: it may have been set since.
// Where it was not a moment stays the same, to the nanosecond.
func byClock(t, now time.Time) time.Time {
	at := now.Add(t.Sub(now))
	if at.Sub(t.Round(0)).Abs() < time.Second {
		return t
	}
	return at.Round(time.Second)
}

// memberList is the cluster as this node sees it; a node that stands alone is
// its own only member.
func (n *node) memberList(name string, st control.Status) []admin.Member {
	ours := make(map[string]lb.Digest, len(st.Services))
	for _, s := range st.Services {
		ours[s.Name] = s.Table
	}
	if n.members == nil {
		return []admin.Member{{Name: name, State: "alive", ConfigDigest: st.Config.String(), Tables: digests(ours)}}
	}
	reports := make(map[string]lb.Report)
	for _, r := range n.members.Records() {
		reports[r.Member] = r.Report
	}
	var members []admin.Member
	for _, m := range n.members.Members() {
		out := admin.Member{Name: m.Name, Address: m.Address, State: m.State}
		if r, told := reports[m.Name]; m.Name == name {
			out.ConfigDigest, out.Tables = st.Config.String(), digests(ours)
		} else if told {
			out.ConfigDigest, out.Tables = r.Config.String(), digests(r.Tables)
		}
		members = append(members, out)
	}
	return members
}

func digests(of map[string]lb.Digest) map[string]string {
	texts := make(map[string]string, len(of))
	for name, d := range of {
		texts[name] = d.String()
	}
	return texts
}

// traffic is read all the time, for the console's picture of the last minutes.
func (n *node) traffic() (t admin.Traffic, err error) {
	verdicts, err := n.dataplane.Verdicts()
	for v, count := range verdicts {
		switch v.Fate() {
		case "forwarded":
			t.Forwarded, t.Bytes = count.Packets, count.Bytes
		case "dropped":
			t.Dropped += count.Packets
		}
	}
	return t, err
}

// unhealthy tells why this node cannot forward.
func (n *node) unhealthy() []string {
	if err := n.dataplane.Attached(); err != nil {
		return []string{err.Error()}
	}
	return nil
}

// unready tells why this node should get no traffic.
func (n *node) unready() []string {
	reasons := n.unhealthy()
	st := n.control.Status()
	if st.Draining {
		reasons = append(reasons, "this node is draining")
	}
	if n.speaker == nil {
		return append(reasons, "no BGP peer is configured: nothing is announced")
	}
	established := func(p bgp.PeerStatus) bool { return p.State == "established" }
	if !slices.ContainsFunc(n.speaker.Peers(), established) {
		reasons = append(reasons, "no BGP peer is established")
	}
	if len(st.AnnouncedVIPs) > 0 {
		return reasons
	}
	reasons = append(reasons, "no VIP is announced")
	for _, s := range st.Services {
		reasons = append(reasons, fmt.Sprintf("service %q: %s", s.Name, s.Reason))
	}
	return reasons
}
