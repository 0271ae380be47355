package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/halfproxy/halfproxy/backend"
	"github.com/halfproxy/halfproxy/config"
	"github.com/halfproxy/halfproxy/xdp"
)

func backendCommand() *cobra.Command {
	var path string
	var log func() *slog.Logger
	cmd := &cobra.Command{
		Use:   "backend",
		Short: "Make this host a backend: VIPs, ARP, decapsulation, MSS; SIGTERM takes it all back",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runBackend(cmd.Context(), path, log())
		},
	}
	log = logFlag(cmd)
	configFlag(cmd, &path, "/etc/halfproxy/backend.yaml")
	return cmd
}

// runBackend makes this host a backend until ctx ends.
func runBackend(ctx context.Context, path string, log *slog.Logger) error {
	cfg, err := config.LoadBackend(path)
	if err != nil {
		return err
	}
	registry := newRegistry()

	settings := backend.Config{
		Interfaces: cfg.Interfaces,
		VIPs:       cfg.VIPs,
		Decap: xdp.Tunnels{
			IPIP: slices.Contains(cfg.Decap, config.DecapIPIP),
			GRE:  slices.Contains(cfg.Decap, config.DecapGRE),
			GUE:  slices.Contains(cfg.Decap, config.DecapGUE),
		},
		GUEPort:    cfg.GUEPort,
		Sources:    cfg.Sources,
		FitMSS:     !cfg.MSS.Off,
		MSS:        cfg.MSS.Value,
		Listen:     cfg.HTTP.Listen,
		StateDir:   cmp.Or(os.Getenv("RUNTIME_DIRECTORY"), "/run/halfproxy"), // systemd's
		Log:        log,
		Registerer: registry,
		Gatherer:   registry,
	}
	for {
		b, err := backend.New(settings)
		if err != nil {
			return err
		}
		if err = b.Run(ctx); !errors.Is(err, backend.ErrMadeAnew) {
			return err
		}
		log.Warn("set up once more", "err", err)
	}
}
