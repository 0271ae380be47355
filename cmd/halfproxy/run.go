package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/halfproxy/halfproxy/config"
	"github.com/halfproxy/halfproxy/events"
)

// defaultPins is where the programs of this host's nodes are pinned.
const defaultPins = "/sys/fs/bpf/halfproxy"

func runCommand() *cobra.Command {
	var path, pin string
	var log func() *slog.Logger
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run a load balancer node in the foreground; SIGHUP reloads, SIGTERM withdraws and stops",
		Long: `Run a load balancer node in the foreground; SIGHUP reloads, SIGTERM withdraws and stops.

SIGTERM  stop: routes say that they go away, then they are withdrawn, packets are
         forwarded until none comes any more, and all is taken off this host.
SIGUSR2  restart: the process ends, and everything else stays: the program forwards
         on, routers keep the routes (bgp.graceful_restart). Start the next one, of
         another version if you like, at once.
SIGHUP   reload: a file with errors changes nothing, and they are in the log.

When the process ends in any other way, by a crash or by SIGKILL, its program
stays on the interfaces and forwards by the tables it has. The next run of a node
of the same name takes it over without losing a packet. For this the program is
pinned in a BPF file system; without one it ends with the process.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runNode(cmd.Context(), path, pin, log())
		},
	}
	configFlag(cmd, &path, defaultConfig)
	log = logFlag(cmd)
	cmd.Flags().StringVar(&pin, "pin", defaultPins,
		"`DIR` for the pins of this host's nodes, in a BPF file system; empty: the program ends with the process")
	foldersOf(cmd, "pin")
	return cmd
}

// runNode runs a node until ctx ends.
func runNode(ctx context.Context, path, pin string, log *slog.Logger) error {
	cfg, err := config.Load(path)
	if err != nil {
		return err
	}
	if pin != "" {
		pin = filepath.Join(pin, cfg.Node.Name)
	}
	happened := events.NewRing(events.Kept)
	log = slog.New(happened.Handler(log.Handler()))
	n, err := newNode(cfg, pin, happened, newRegistry(), log)
	if err != nil {
		return err
	}
	n.load = func() (config.Config, error) { return config.Load(path) }

	manager, err := newSystemd()
	if err != nil {
		n.log.Warn("the service manager hears nothing", "err", err)
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGUSR2)
	defer signal.Stop(signals)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case s := <-signals:
				if s == syscall.SIGUSR2 {
					end(n.restart())
					return
				}
				manager.reloading()
				_ = n.reload(ctx) // which logs its errors: who sends signals sees none
				manager.ready()
			}
		}
	}()

	n.log.Info("node starts", "node", cfg.Node.Name, "version", version, "services", len(cfg.Services))
	err = n.run(ctx, manager)
	if err != nil && ctx.Err() == nil || errors.Is(context.Cause(ctx), errRestart) {
		n.leave() // nobody asked for an end, or the next process goes on from here
	} else {
		n.close()
	}
	if err != nil {
		return fmt.Errorf("node %s: %w", cfg.Node.Name, err)
	}
	n.log.Info("node stopped", "node", cfg.Node.Name)
	return nil
}
