package main

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
)

// logFlag gives a command that runs on --log-level and --log-format, and a way to the
// log that was asked for once flags are parsed.
func logFlag(cmd *cobra.Command) func() *slog.Logger {
	level, format := "info", logText
	wordFlag(cmd, &level, "log-level", "what to log, from `LEVEL` on: debug, info, warn or error", "debug", "info", "warn", "error")
	wordFlag(cmd, &format, "log-format", "`FORMAT` of the log: text, or json, an object a line", logText, logJSON)
	return func() *slog.Logger {
		var options slog.HandlerOptions
		var least slog.Level
		_ = least.UnmarshalText([]byte(level)) // which is one of the words
		options.Level = least
		if format == logJSON {
			return slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), &options))
		}
		return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &options))
	}
}

const (
	logText = "text"
	logJSON = "json"
)

// logOptions are the flags by which another process of ours logs as this one does.
func logOptions(log *slog.Logger) []string {
	format := logText
	if _, asked := log.Handler().(*slog.JSONHandler); asked {
		format = logJSON
	}
	level := slog.LevelError
	for _, l := range []slog.Level{slog.LevelWarn, slog.LevelInfo, slog.LevelDebug} {
		if log.Enabled(context.Background(), l) {
			level = l
		}
	}
	return []string{"--log-level", level.String(), "--log-format", format}
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
