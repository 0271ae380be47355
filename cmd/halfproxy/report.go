package main

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/halfproxy/halfproxy/admin"
	"github.com/halfproxy/halfproxy/bgp"
	"github.com/halfproxy/halfproxy/lb"
)

// status gathers what each part knows.
func (n *node) status() admin.Status {
	cfg := n.config()
	st := n.control.Status()
	stats, err := n.dataplane.Stats()
	if err != nil {
		n.log.Error("packet counters not read", "err", err)
	}
	lastErrors := make(map[[2]string]string) // by service and backend
	for _, r := range n.checker.Results() {
		lastErrors[[2]string{r.Target.Service, r.Target.Backend}] = cmp.Or(r.LastError, r.Held)
	}

	s := admin.Status{
		Time:          time.Now(),
		Node:          admin.Node{Name: cfg.Node.Name, Draining: st.Draining, Version: version, Started: n.started},
		Cluster:       admin.Cluster{InSight: st.InSight, Size: st.Size, Frozen: st.Frozen, Blind: st.Blind},
		ConfigDigest:  st.Config.String(),
		ConfigDiffers: st.ConfigDiffers,
		Members:       n.memberList(cfg.Node.Name, st.Config),
	}
	for _, o := range st.Orders {
		s.Orders = append(s.Orders, admin.NewOrder(o))
	}
	modes := n.dataplane.Modes()
	for _, name := range cfg.Node.Interfaces {
		mode, attached := modes[name]
		i := admin.Interface{Name: name, Attached: attached}
		if attached {
			i.XDPMode = mode.String()
		}
		s.Node.Interfaces = append(s.Node.Interfaces, i)
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
			aside := b.State == lb.Draining || b.State == lb.Drained
			order := ""
			if b.Order != (lb.Order{}) {
				order = b.Order.String()
			}
			out.Backends = append(out.Backends, admin.Backend{
				Order: order,
				Name:  b.Name, Address: b.Address, Weight: b.Weight, WeightNow: b.WeightNow(), State: b.State.String(),
				HealthyObservers: b.Up, Observers: b.Observers,
				Packets: traffic.Packets, Bytes: traffic.Bytes, Flows: traffic.Flows,
				FlowRecords: use.Records, PacketsPerSecond: use.Rate, HeldBy: held, SafeToStop: aside && len(held) == 0,
				LastError: lastErrors[[2]string{service.Name, b.Name}],
			})
		}
		s.Services = append(s.Services, out)
	}
	for _, a := range st.Aggregates {
		s.Aggregates = append(s.Aggregates, admin.Aggregate{
			Prefix: a.Prefix, Announced: a.Announced, VIPs: a.VIPs, Serving: a.Serving, Cause: a.Cause, Reason: a.Reason,
		})
	}
	if n.speaker != nil {
		sessions := n.bfdStates(cfg)
		for _, p := range n.speaker.Peers() {
			s.BGP = append(s.BGP, admin.Peer{
				Address: p.Peer, ASN: p.ASN, State: p.State, Since: p.Since, BFD: cmp.Or(sessions[p.Peer], "off"),
				Announced: p.Announced, LastError: p.LastError,
			})
		}
	}
	return s
}

// memberList is the cluster as this node sees it; a node that stands alone is
// its own only member.
func (n *node) memberList(name string, config lb.Digest) []admin.Member {
	if n.members == nil {
		return []admin.Member{{Name: name, State: "alive", ConfigDigest: config.String()}}
	}
	digests := map[string]string{name: config.String()}
	for _, r := range n.members.Records() {
		if r.Member != name {
			digests[r.Member] = r.Report.Config.String()
		}
	}
	var members []admin.Member
	for _, m := range n.members.Members() {
		members = append(members, admin.Member{
			Name: m.Name, Address: m.Address, State: m.State, ConfigDigest: digests[m.Name],
		})
	}
	return members
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
