package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/halfproxy/halfproxy/config"
)

const defaultConfig = "/etc/halfproxy/halfproxy.yaml"

func checkCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Validate a configuration file and print everything that is wrong with it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: good, %s\n", path, count(len(cfg.Services), "service"))
			return nil
		},
	}
	configFlag(cmd, &path, defaultConfig)
	return cmd
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
