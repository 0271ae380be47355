package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

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
node. With a backend's file it looks at a backend's host. Exit code 0: nothing was found; 1: something was.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var report doctor.Report
			if config.OfBackend(path) {
				report = examineBackend(cmd.Context(), path)
			} else {
				report = examineNode(cmd.Context(), path, socket, pin)
			}
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

// examineNode is doctor of a node's host. socket is that of the configuration where it is
// empty.
func examineNode(ctx context.Context, path, socket, pin string) doctor.Report {
	cfg, report := prescription(path)
	examined := doctorConfig(path, cfg)
	examined.Pins = pin
	askNode(ctx, cmp.Or(socket, cfg.Admin.Socket), &examined, &report)
	found := doctor.Examine(ctx, examined)
	report.Findings = append(report.Findings, found.Findings...)
	report.Unchecked = append(report.Unchecked, found.Unchecked...)
	report.LookedAt = append(report.LookedAt, found.LookedAt...)
	return report
}

// examineBackend is doctor of a backend's host.
func examineBackend(ctx context.Context, path string) doctor.Report {
	cfg, err := config.LoadBackend(path)
	if err != nil {
		return doctor.Report{
			Findings: []doctor.Finding{{
				Check: "configuration", Severity: doctor.Problem,
				What:   fmt.Sprintf("%s: the backend does not start with it: %s", path, firstLine(err)),
				Remedy: "halfproxy check --config " + path,
			}},
			Unchecked: []string{"anything else: the configuration is wrong"},
		}
	}
	examined := doctor.BackendConfig{File: path, Interfaces: cfg.Interfaces, VIPs: cfg.VIPs, Decap: len(cfg.Decap) > 0}
	examined.Running, examined.Faults = askBackend(ctx, cfg.HTTP.Listen)
	report := doctor.ExamineBackend(ctx, examined)
	report.LookedAt = append([]string{"configuration: " + path}, report.LookedAt...)
	return report
}

// askBackend finds out whether `halfproxy backend` runs here, and what it lacks.
func askBackend(ctx context.Context, at netip.AddrPort) (running bool, faults []string) {
	const patience = 2 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%v/healthz", at), nil)
	if err != nil {
		return false, nil
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return false, nil
	}
	defer answer.Body.Close()
	var health admin.Health
	if err := json.NewDecoder(answer.Body).Decode(&health); err != nil || health.Status == "" {
		return false, nil // somebody else listens there
	}
	return true, health.Reasons
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
		return none, doctor.Report{Unchecked: []string{fmt.Sprintf("anything but this host alone: %v", err)}}
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
	if len(report.LookedAt) > 0 {
		fmt.Fprintln(out, "looked at:")
	}
	for _, l := range report.LookedAt {
		fmt.Fprintf(out, "  %s\n", l)
	}
}
