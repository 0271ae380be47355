package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/halfproxy/halfproxy/config"
)

func runCommand() *cobra.Command {
	var path string
	level := slog.LevelInfo
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run a load balancer node in the foreground; SIGHUP reloads, SIGTERM withdraws and stops",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level}))
			return runNode(cmd.Context(), path, log)
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().TextVar(&level, "log-level", level, "what to log: debug, info, warn or error")
	return cmd
}

// runNode runs a node until ctx ends.
func runNode(ctx context.Context, path string, log *slog.Logger) error {
	cfg, err := config.Load(path)
	if err != nil {
		return err
	}
	n, err := newNode(cfg, log)
	if err != nil {
		return err
	}
	defer n.close()
	n.load = func() (config.Config, error) { return config.Load(path) }

	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangup:
				if err := n.reload(ctx); err != nil {
					log.Error("configuration not taken, the old one stays", "err", err)
				}
			}
		}
	}()

	log.Info("node starts", "node", cfg.Node.Name, "version", version, "services", len(cfg.Services))
	if err := n.run(ctx); err != nil {
		return fmt.Errorf("node %s: %w", cfg.Node.Name, err)
	}
	log.Info("node stopped", "node", cfg.Node.Name)
	return nil
}
