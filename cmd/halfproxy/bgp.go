package main

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/bfd"
	"github.com/halfproxy/halfproxy/bgp"
	"github.com/halfproxy/halfproxy/config"
	"github.com/halfproxy/halfproxy/lb"
)

// newSpeaker makes the speaker, and the client of the process that has BFD.
func (n *node) newSpeaker(stateDir string, registry *prometheus.Registry, log *slog.Logger) (err error) {
	cfg := n.cfg
	n.hops = nextHops(cfg.Node.Interfaces, bgp.NextHops{})
	speaks := bgp.Config{
		ASN: cfg.BGP.ASN, RouterID: cfg.BGP.RouterID, Listen: cfg.BGP.Listen, Peers: peers(cfg),
		NextHops: n.hops, Log: log, Registerer: registry,
	}
	if c, held, err := openCrashes(filepath.Join(cmp.Or(stateDir, filepath.Dir(cfg.Admin.Socket)), cfg.Node.Name+"-"), log); err != nil {
		log.Warn("a peer whose messages crash this process would not be known by the next one", "err", err)
	} else {
		speaks.Held, speaks.Up = held, c.up
	}
	if n.dataplane.Pinned() {
		speaks.RestartTime = cfg.BGP.GracefulRestart
	}
	if n.speaker, err = bgp.New(speaks); err != nil {
		return err
	}
	socket := bfd.Socket(cfg.Admin.Socket)
	n.bfd = bfd.NewClient(socket, func() error { return startBFD(socket, log) }, log)
	registry.MustRegister(n.bfd)
	return n.bfd.SetPeers(bfdPeers(cfg))
}

func peers(cfg config.Config) []bgp.Peer {
	peers := make([]bgp.Peer, len(cfg.BGP.Peers))
	for i, p := range cfg.BGP.Peers {
		peers[i] = bgp.Peer{
			Address: p.Address, ASN: p.ASN,
			HoldTime: p.HoldTime, KeepaliveTime: p.KeepaliveTime, ConnectRetryTime: p.ConnectRetryTime,
			Password: p.Password, TTLSecurity: p.TTLSecurity, Multihop: p.Multihop, LocalAddress: p.LocalAddress, Passive: p.Passive,
			No4: !p.IPv4, No6: !p.IPv6, NextHops: bgp.NextHops{V4: p.NextHop4, V6: p.NextHop6}, ExtendedNextHop: p.ExtendedNextHop,
			PrefixLimit: p.PrefixLimit, Attributes: p.Attributes,
		}
	}
	return peers
}

// setAggregates has the kernel drop what is in an aggregate and no VIP, and then has
// aggregates announced.
func (n *node) setAggregates(aggregates []lb.Aggregate) error {
	prefixes := make([]netip.Prefix, len(aggregates))
	for i, a := range aggregates {
		prefixes[i] = a.Prefix
	}
	if err := n.dataplane.Aggregate(prefixes); err != nil {
		return err
	}
	n.control.SetAggregates(aggregates)
	return nil
}

// speak opens the sessions. After a restart routers keep our routes until they hear from
// us: that has to wait until we can announce what they have.
func (n *node) speak(ctx context.Context) error {
	if n.dataplane.TakingOver() {
		await(ctx, longestTakeover+5*time.Second, func() bool { return !n.dataplane.TakingOver() })
		// Routes follow the tables that were waited for, in the same step or the next.
		await(ctx, notice+time.Second, func() bool { return len(n.control.Status().AnnouncedVIPs) > 0 })
	}
	return n.speaker.Run(ctx)
}

// nextHopsEvery is how soon routers are told of an address of this node that changed.
const nextHopsEvery = time.Second

// watchNextHops follows the node's addresses. While an interface has none, say during
// a renumbering, the old ones stay.
func (n *node) watchNextHops(ctx context.Context) error {
	ticker := time.NewTicker(nextHopsEvery)
	defer ticker.Stop()
	last := n.hops
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		now := nextHops(n.config().Node.Interfaces, last)
		if !now.V4.IsValid() {
			now.V4 = last.V4
		}
		if !now.V6.IsValid() {
			now.V6 = last.V6
		}
		if now == last {
			continue
		}
		if err := n.speaker.SetNextHops(ctx, now); err != nil {
			n.log.Error("next hops not changed, will retry", "err", err)
			continue
		}
		last = now
	}
}

// nextHops gives the addresses by which routers reach this node: of each family the best
// global one on the interfaces that carry VIP traffic.
func nextHops(interfaces []string, before bgp.NextHops) (hops bgp.NextHops) {
	worst4, worst6 := unusable, unusable
	for _, name := range interfaces {
		link, err := netlink.LinkByName(name)
		if err != nil {
			continue // xdp.New has refused it with better words, or it is away
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			continue
		}
		for _, a := range addrs {
			ip, _ := netip.AddrFromSlice(a.IP)
			ip = ip.Unmap()
			hop, worst := &hops.V4, &worst4
			if ip.Is6() {
				hop, worst = &hops.V6, &worst6
			}
			if rank := rank(a, ip == before.V4 || ip == before.V6); ip.IsGlobalUnicast() && rank < *worst {
				*hop, *worst = ip, rank
			}
		}
	}
	return hops
}

// unusable is the rank of an address that is none.
const unusable = 4

// rank says how well an address does for a next hop, the least best. Which one the kernel
// lists first says nothing: of IPv6 it is the latest, which answers nobody for its first
// second, so that one which routers know stays.
func rank(a netlink.Addr, known bool) int {
	has := func(flags int) bool { return a.Flags&flags != 0 }
	switch {
	case has(unix.IFA_F_DADFAILED):
		return unusable
	case has(unix.IFA_F_TENTATIVE):
		return 3
	case has(unix.IFA_F_DEPRECATED):
		return 2
	case known:
		return 0
	case has(unix.IFA_F_TEMPORARY): // of IPv4 it means secondary
		return 2
	}
	return 1
}
