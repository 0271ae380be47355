package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/halfproxy/halfproxy/admin"
)

func reloadCommand() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Have the node take its configuration file anew",
		Long: `Have the node take its configuration file anew, as SIGHUP does, and wait for what
becomes of it. A file with errors, or one that asks for what only a restart can
change, is refused with every reason, and the node goes on with what it had.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := admin.NewClient(socket).Reload(cmd.Context()); err != nil {
				return fmt.Errorf("not reloaded, the node goes on with the configuration that it had: %w", err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), "Reloaded.")
			return nil
		},
	}
	socketFlag(cmd, &socket)
	return cmd
}
