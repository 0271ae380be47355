package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/bfd"
	"github.com/halfproxy/halfproxy/config"
)

// bfdLinger is how long BFD sessions outlive a node that did not say that it stops:
// long enough for a restart, even one that somebody has to be woken for.
const bfdLinger = 2 * time.Minute

// bfdCommand is the process that keeps BFD sessions. The node starts it: it must be
// neither starved by a busy node nor silent while that restarts.
func bfdCommand() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:    "bfd",
		Short:  "Keep BFD sessions for a node, which starts this by itself",
		Hidden: true,
		Args:   noArguments,
	}
	cmd.Flags().StringVar(&socket, "socket", "", "`PATH` that the node asks by")
	log := logFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		log := log()
		if err := raisePriority(); err != nil {
			log.Warn("BFD runs with the priority of any process: a busy machine may make it late", "err", err,
				"remedy", "allow real-time or nice priorities: LimitRTPRIO= and LimitNICE= in the unit, or CAP_SYS_NICE")
		}
		s, err := bfd.NewServer(socket, bfdLinger, log)
		if err != nil {
			return err
		}
		return s.Run(cmd.Context())
	}
	return cmd
}

// raisePriority puts all threads that there are, and those that they start, before
// the other processes' threads.
func raisePriority() error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range threads {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 10}
		if err := unix.SchedSetAttr(id, &attr, 0); err == nil {
			continue
		}
		if err := unix.Setpriority(unix.PRIO_PROCESS, id, -19); err != nil {
			return fmt.Errorf("raise the priority of a thread: %w", err)
		}
	}
	return nil
}

// startBFD starts the process, which is to outlive this one.
func startBFD(socket string, log *slog.Logger) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, append([]string{"bfd", "--socket", socket}, logOptions(log)...)...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no terminal's Ctrl-C is for it
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }() // its log says why it ended
	return nil
}

func bfdPeers(cfg config.Config) []bfd.Peer {
	var peers []bfd.Peer
	for _, p := range cfg.BGP.Peers {
		if p.BFD != (config.BFD{}) {
			peers = append(peers, bfd.Peer{
				Address: p.Address, Local: p.LocalAddress, Timing: bfd.Timing{Interval: p.BFD.Interval, Multiplier: uint8(p.BFD.Multiplier)},
				Multihop: p.BFD.Multihop, MinTTL: uint8(p.BFD.MinTTL), Key: []byte(p.BFD.Password), KeyID: uint8(p.BFD.KeyID),
			})
		}
	}
	return peers
}

// watchBFD takes BGP sessions down with the BFD sessions of the same peers (RFC 5882,
// 4.2): BGP by itself would wait for the hold time.
func (n *node) watchBFD(ctx context.Context) error {
	var up map[netip.Addr]bool
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.bfd.Changes():
		}
		sessions, err := n.bfd.Statuses()
		if err != nil {
			continue // the process is away: that says nothing of peers
		}
		was := up
		up = make(map[netip.Addr]bool)
		for _, s := range sessions {
			is := s.State == bfd.Up
			up[s.Address] = is
			switch {
			case is && !was[s.Address]:
				n.log.Info("BFD session up", "peer", s.Address)
			case bfdFailed(was, s):
				n.log.Warn("BFD session down", "peer", s.Address, "reason", s.Diag.String())
				if s.Remote == bfd.AdminDown {
					continue
				}
				if err := n.speaker.Reset(ctx, s.Address, "BFD: "+s.Diag.String()); err != nil {
					n.log.Warn("BGP session not reset", "peer", s.Address, "err", err)
				}
			}
		}
	}
}

// bfdFailed tells whether a session is down that was up before. One that a reload, or
// another process, has put in the place of that one has not been up yet.
func bfdFailed(was map[netip.Addr]bool, s bfd.Status) bool {
	return was[s.Address] && s.State != bfd.Up && s.Ups > 0
}

// bfdStates tells how the sessions stand, by peer.
func (n *node) bfdStates(cfg config.Config) map[netip.Addr]string {
	states := make(map[netip.Addr]string)
	for _, p := range bfdPeers(cfg) {
		states[p.Address] = "down"
	}
	sessions, _ := n.bfd.Statuses() // of a process that is away none is up
	for _, s := range sessions {
		if s.State == bfd.Up {
			states[s.Address] = "up"
		}
	}
	return states
}
