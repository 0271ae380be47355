package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/halfproxy/halfproxy/admin"
	"github.com/halfproxy/halfproxy/config"
	"github.com/halfproxy/halfproxy/doctor"
)

func doctorCommand() *cobra.Command {
	var path, socket, pin string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what on this host would keep packets from flowing, and what mends it",
		Long: `Say what on this host would keep packets from flowing, and what mends it.

It changes nothing, and works before the first start as well as beside a running
node. Exit code 0: nothing was found; 1: something was.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if config.OfBackend(path) {
				return notABackend(path)
			}
			cfg, report := prescription(path)
			if socket == "" {
				socket = cfg.Admin.Socket
			}
			examined := doctorConfig(path, cfg)
			examined.Pins = pin
			askNode(cmd.Context(), socket, &examined, &report)
			found := doctor.Examine(cmd.Context(), examined)
			report.Findings = append(report.Findings, found.Findings...)
			report.Unchecked = append(report.Unchecked, found.Unchecked...)
			report.LookedAt = append(report.LookedAt, found.LookedAt...)
			printReport(cmd.OutOrStdout(), report)
			if n := len(report.Findings); n > 0 {
				return fmt.Errorf("doctor: %s", count(n, "finding"))
			}
			return nil
		},
	}
	configFlag(cmd, &path, defaultConfig)
	cmd.Flags().StringVar(&socket, "socket", "", "admin socket `PATH` of a node that may run (default: that of the configuration)")
	cmd.Flags().StringVar(&pin, "pin", defaultPins, "`DIR` for the pins of this host's nodes, as of run; empty: they are not looked at")
	foldersOf(cmd, "pin")
	return cmd
}

// notABackend says what looks at a backend.
func notABackend(path string) error {
	cfg, err := config.LoadBackend(path)
	if err != nil {
		return err
	}
	return fmt.Errorf("%s is a backend's, and doctor is for nodes: `curl http://%v/healthz` tells what is not in place on a backend", path, cfg.HTTP.Listen)
}

// prescription reads the configuration as far as it can be read. What keeps a
// node from taking it is a finding; that there is none yet is not.
func prescription(path string) (config.Config, doctor.Report) {
	none := config.Config{Admin: config.Admin{Socket: defaultSocket}}
	cfg, err := config.Load(path)
	if err == nil {
		return cfg, doctor.Report{LookedAt: []string{"configuration: " + path}}
	}
	if _, unreadable := os.ReadFile(path); unreadable != nil {
		return none, doctor.Report{Unchecked: []string{fmt.Sprintf("anything but this host alone: no configuration: %v", unreadable)}}
	}
	var report doctor.Report
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		report.Unchecked = []string{"keys and passwords: run doctor as root"}
	} else {
		report.Findings = []doctor.Finding{{
			Check: "configuration", Severity: doctor.Problem,
			What:   fmt.Sprintf("%s: the node does not start with it: %s", path, firstLine(err)),
			Remedy: "halfproxy check --config " + path,
		}}
	}
	// It may be a secret alone that is missing: the rest is then worth a look.
	if cfg, err = config.LoadWithoutSecrets(path); err != nil {
		report.Unchecked = append(report.Unchecked, "anything but this host alone: the configuration is wrong")
		return none, report
	}
	return cfg, report
}

func firstLine(err error) string {
	first, rest, more := strings.Cut(err.Error(), "\n")
	if more {
		first += fmt.Sprintf(" (and %d more)", strings.Count(rest, "\n")+1)
	}
	return first
}

func doctorConfig(path string, cfg config.Config) doctor.Config {
	examined := doctor.Config{
		File: path, Interfaces: cfg.Node.Interfaces, XDPMode: cfg.Node.XDPMode, Services: cfg.Services,
		ClusterListen: cfg.Cluster.Listen, Join: cfg.Cluster.Join, HTTPListen: cfg.HTTP.Listen,
	}
	for _, p := range cfg.BGP.Peers {
		examined.Peers = append(examined.Peers, doctor.Peer{Address: p.Address, Password: p.Password})
	}
	return examined
}

// askNode finds out whether a node runs here, and where its program sits.
func askNode(ctx context.Context, socket string, cfg *doctor.Config, report *doctor.Report) {
	status, err := admin.NewClient(socket).Status(ctx)
	switch {
	case err == nil:
		cfg.Running = true
		for _, i := range status.Node.Interfaces {
			if i.Attached {
				cfg.Attached = append(cfg.Attached, i.Name)
			}
		}
		report.LookedAt = append(report.LookedAt, fmt.Sprintf("node %s: it runs, its own ports and program are no fault", status.Node.Name))
	case errors.Is(err, fs.ErrPermission):
		// Somebody listens, most likely: its ports and program would look like faults.
		cfg.Running, cfg.Attached = true, cfg.Interfaces
		report.Unchecked = append(report.Unchecked, fmt.Sprintf("the node on %s, taken for running well: %v", socket, err))
	}
}

func printReport(out io.Writer, report doctor.Report) {
	for _, f := range report.Findings {
		remedy := "remedy"
		if f.Where != "" {
			remedy += ", " + f.Where
		}
		fmt.Fprintf(out, "%-8s %s\n         %s: %s\n", f.Severity, f.What, remedy, f.Remedy)
	}
	if len(report.Findings) == 0 {
		fmt.Fprintln(out, "nothing found that would keep packets from flowing")
	}
	for _, u := range report.Unchecked {
		fmt.Fprintf(out, "not checked: %s\n", u)
	}
	fmt.Fprintln(out, "looked at:")
	for _, l := range report.LookedAt {
		fmt.Fprintf(out, "  %s\n", l)
	}
}
