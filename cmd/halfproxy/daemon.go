package main

import (
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
)

// logFlag gives a command that runs on --log-level, and a way to the log that
// was asked for once flags are parsed.
func logFlag(cmd *cobra.Command) func() *slog.Logger {
	level := slog.LevelInfo
	cmd.Flags().TextVar(&level, "log-level", level, "what to log: debug, info, warn or error")
	wordsOf(cmd, "log-level", "debug", "info", "warn", "error")
	return func() *slog.Logger {
		return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level}))
	}
}

// newRegistry gives a registry with the metrics of the process itself.
func newRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	prometheus.WrapRegistererWith(prometheus.Labels{"version": version}, registry).MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "halfproxy_build_info", Help: "Always 1; the labels tell what runs."},
			func() float64 { return 1 }))
	return registry
}
