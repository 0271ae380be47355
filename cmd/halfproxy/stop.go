package main

import (
	"context"
	"errors"
	"time"
)

// errRestart is why a run ends whose next process goes on where it left off.
var errRestart = errors.New("restart")

// quiet is how long no packet for a VIP has come once traffic has gone elsewhere.
const quiet = time.Second

// stop takes the node out of service in an order that loses no packet: routers are
// told to prefer other routes, then there is none of ours, and packets are forwarded
// until none comes any more.
func (n *node) stop(ctx context.Context) {
	cfg := n.config()
	n.finishRestart(ctx)
	n.log.Info("node stops: routes are withdrawn first, packets forwarded until none comes any more",
		"graceful_shutdown", cfg.BGP.GracefulShutdown, "linger", cfg.Node.Linger)
	if err := n.control.Drain(ctx); err != nil {
		n.log.Error("routes not withdrawn in order", "err", err)
	}
	await(ctx, notice+cfg.BGP.GracefulShutdown+notice+2*time.Second, func() bool { return len(n.control.Status().AnnouncedVIPs) == 0 })
	last, since := uint64(0), time.Now()
	gone := await(ctx, cfg.Node.Linger, func() bool {
		if now, err := n.forwarded(); err != nil || now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) >= quiet
	})
	if !gone {
		n.log.Warn("packets for VIPs still come, from routers that have not heard or have no other way: they are lost now")
	}
	if n.bfd != nil {
		n.bfd.End()
	}
}

// finishRestart waits for a session with routers that keep the routes of the process before:
// who has none cannot withdraw them.
func (n *node) finishRestart(ctx context.Context) {
	if n.speaker == nil || n.speaker.Spoken() {
		return
	}
	kept := min(n.config().BGP.GracefulRestart-time.Since(n.started), longestTakeover+15*time.Second)
	if kept <= 0 {
		return
	}
	n.log.Info("routers keep the routes of the process before: the node stops once they have heard from this one", "most", kept.Round(time.Second))
	await(ctx, kept, n.speaker.Spoken)
}

// restart gives the cause of an end that is asked for by who wants the node to go on.
// Where nothing would forward packets meanwhile it is a stop.
func (n *node) restart() error {
	if n.dataplane.Pinned() {
		return errRestart
	}
	n.log.Warn("the program is not pinned and cannot forward on: the node stops instead, for others to take its packets")
	return nil
}

// depart leaves everything as it is for the next process.
func (n *node) depart() {
	n.log.Info("node ends for its next process: its program forwards on, and routers keep its routes for a while",
		"graceful_restart", n.config().BGP.GracefulRestart)
	if n.speaker != nil {
		n.speaker.Leave()
	}
}

// await waits until something is so, for a while at most, and tells whether it is.
func await(ctx context.Context, most time.Duration, so func() bool) bool {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	timeout := time.After(most)
	for !so() {
		select {
		case <-ctx.Done():
			return false
		case <-timeout:
			return false
		case <-ticker.C:
		}
	}
	return true
}

// forwarded counts the packets that went to backends.
func (n *node) forwarded() (packets uint64, err error) {
	stats, err := n.dataplane.Stats()
	for _, s := range stats.Services {
		packets += s.Packets
	}
	return packets, err
}
