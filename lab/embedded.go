package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/bgp"
)

// The embedded router is a process of its own: GoBGP opens its sockets on
// threads that it picks itself, so the whole process has to be in the router's
// namespace. Its standard input carries its configuration, and stays open for
// as long as it is wanted: it never outlives the lab.

// routerConfig is what the lab tells the embedded router.
type routerConfig struct {
	ASN, NodeASN uint32
	Address      netip.Addr // to listen on, and its router ID
	Nodes        []netip.Addr
}

func (l *Lab) startEmbedded(log string) error {
	cfg := routerConfig{ASN: routerASN, NodeASN: nodeASN, Address: routerAddrs.V4}
	for _, n := range l.nodes {
		cfg.Nodes = append(cfg.Nodes, n.V4)
	}
	text, err := json.Marshal(cfg)
	if err != nil {
		return err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	l.onClose(write.Close)
	defer read.Close() // the child has its own copy
	p, err := startProcess(l.routerNS, log, read, l.options.Binary, "lab-router")
	if err != nil {
		return err
	}
	l.stopRouter = p.stop
	_, err = write.Write(text)
	return err
}

// RunRouter is the body of `halfproxy lab-router`: it takes its configuration
// from in, and routes from the nodes, which it puts into the kernel's table in
// the network namespace it is in. It returns when ctx or in ends.
func RunRouter(ctx context.Context, in io.Reader, log *slog.Logger) error {
	var cfg routerConfig
	if err := json.NewDecoder(in).Decode(&cfg); err != nil {
		return fmt.Errorf("read the router's configuration from standard input: %w: this is for `halfproxy lab` to call", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, in) // its end is all that is of interest
		cancel()
	}()

	rc := bgp.RouterConfig{ASN: cfg.ASN, RouterID: cfg.Address, Listen: []netip.Addr{cfg.Address}, Log: log}
	for _, n := range cfg.Nodes {
		rc.Neighbors = append(rc.Neighbors, bgp.Peer{Address: n, ASN: cfg.NodeASN, HoldTime: holdTime})
	}
	router, err := bgp.NewRouter(rc)
	if err != nil {
		return err
	}
	kernel := kernelRoutes{}
	return router.Run(ctx, func(routes []bgp.Route) {
		if err := kernel.set(routes); err != nil {
			log.Error("routes not in the kernel", "err", err)
		}
	})
}

// kernelRoutes are those that the embedded router has put into the kernel.
type kernelRoutes map[netip.Prefix][]netip.Addr

// set makes routes all that there are. What fails is tried again by the next
// call.
func (k kernelRoutes) set(routes []bgp.Route) error {
	var errs []error
	wanted := map[netip.Prefix]bool{}
	for _, r := range routes {
		wanted[r.Prefix] = true
		if slices.Equal(k[r.Prefix], r.NextHops) {
			continue
		}
		route := kernelRoute(r.Prefix)
		for _, hop := range r.NextHops {
			route.MultiPath = append(route.MultiPath, &netlink.NexthopInfo{Gw: hop.AsSlice()})
		}
		if err := netlink.RouteReplace(route); err != nil {
			errs = append(errs, fmt.Errorf("route %s via %v: %w", r.Prefix, r.NextHops, err))
			continue
		}
		k[r.Prefix] = r.NextHops
	}
	for prefix := range k {
		if wanted[prefix] {
			continue
		}
		if err := netlink.RouteDel(kernelRoute(prefix)); err != nil {
			errs = append(errs, fmt.Errorf("remove route %s: %w", prefix, err))
			continue
		}
		delete(k, prefix)
	}
	return errors.Join(errs...)
}

func kernelRoute(p netip.Prefix) *netlink.Route {
	dst := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
	return &netlink.Route{Dst: dst, Protocol: unix.RTPROT_BGP}
}
