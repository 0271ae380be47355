package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/halfproxy/halfproxy/config"
)

const defaultConfig = "/etc/halfproxy/halfproxy.yaml"

func checkCommand() *cobra.Command {
	var path, socket string
	var expand, diff bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Validate a configuration file and print everything that is wrong with it",
		Long: `Validate a configuration file and print everything that is wrong with it. It may be a
node's or a backend's: its keys tell.

--expand prints the configuration in one file, with what it includes and with all
defaults, each marked as such. --diff asks the node that runs what a reload would
change, and says what that does to traffic. Exit code 0: the file is good, and with
--diff the node would take it; 1: it is not, or it would not.`,
		Example: "  halfproxy check --config ./halfproxy.yaml\n  halfproxy check --config /etc/halfproxy/backend.yaml\n  halfproxy check --expand | less\n  halfproxy check --diff && systemctl reload halfproxy",
		Args: func(cmd *cobra.Command, args []string) error {
			if expand && diff {
				return errors.New("--expand and --diff do not go together: ask for one after the other")
			}
			return noArguments(cmd, args)
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if config.OfBackend(path) {
				return checkBackend(cmd.OutOrStdout(), path, expand, diff)
			}
			cfg, err := config.Load(path)
			if err != nil {
				return err
			}
			switch {
			case expand:
				return cfg.WriteExpanded(cmd.OutOrStdout())
			case diff:
				return printDiff(cmd.Context(), cmd.OutOrStdout(), cmp.Or(socket, cfg.Admin.Socket), cfg)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: good, %s\n", path, count(len(cfg.Services), "service"))
			return nil
		},
	}
	configFlag(cmd, &path, defaultConfig)
	cmd.Flags().BoolVar(&expand, "expand", false, "print the whole configuration, with every default")
	cmd.Flags().BoolVar(&diff, "diff", false, "print what a reload would change in the node that runs")
	cmd.Flags().StringVar(&socket, "socket", "", "with --diff: admin socket `PATH` of the node (default: that of the configuration)")
	return cmd
}

// checkBackend is check of a backend's file.
func checkBackend(out io.Writer, path string, expand, diff bool) error {
	cfg, err := config.LoadBackend(path)
	switch {
	case err != nil:
		return err
	case diff:
		return fmt.Errorf("%s is a backend's, which is read at its start alone: --diff is for a node's; `systemctl restart halfproxy-backend` takes it", path)
	case expand:
		return cfg.WriteExpanded(out)
	}
	fmt.Fprintf(out, "%s: good, a backend of %s\n", path, count(len(cfg.VIPs), "VIP"))
	return nil
}

func configFlag(cmd *cobra.Command, path *string, usual string) {
	cmd.Flags().StringVar(path, "config", usual, "configuration `FILE`")
	filesOf(cmd, "config", "yaml", "yml")
}

// count puts a number before a noun that takes an s.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
