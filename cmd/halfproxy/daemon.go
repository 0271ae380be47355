package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
)

// logFlag gives a command that runs on --log-level and --log-format, and a way to the
// log that was asked for once flags are parsed.
func logFlag(cmd *cobra.Command) func() *slog.Logger {
	level, format := slog.LevelInfo, logText
	cmd.Flags().TextVar(&level, "log-level", level, "what to log: debug, info, warn or error")
	wordsOf(cmd, "log-level", "debug", "info", "warn", "error")
	cmd.Flags().TextVar(&format, "log-format", format, "how to log: text, or json, an object a line")
	wordsOf(cmd, "log-format", string(logText), string(logJSON))
	return func() *slog.Logger {
		options := &slog.HandlerOptions{Level: level}
		if format == logJSON {
			return slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), options))
		}
		return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), options))
	}
}

type logFormat string

const (
	logText logFormat = "text"
	logJSON logFormat = "json"
)

func (f logFormat) MarshalText() ([]byte, error) { return []byte(f), nil }

func (f *logFormat) UnmarshalText(text []byte) error {
	switch got := logFormat(text); got {
	case logText, logJSON:
		*f = got
		return nil
	default:
		return fmt.Errorf("unknown format %q: it is text or json", got)
	}
}

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
	return []string{"--log-level", level.String(), "--log-format", string(format)}
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
