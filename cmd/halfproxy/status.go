package main

import (
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/admin"
)

const defaultSocket = "/run/halfproxy/admin.sock"

func statusCommand() *cobra.Command {
	var socket string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show this node and the cluster: services, backends, routes, peers, members",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			status, err := admin.NewClient(socket).Status(cmd.Context())
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				return status.WriteJSON(out)
			}
			return status.WriteText(out, out == os.Stdout && isTerminal(os.Stdout))
		},
	}
	cmd.Flags().StringVar(&socket, "socket", defaultSocket, "admin socket `PATH` of the node")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, as /api/v1/status does")
	return cmd
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil && os.Getenv("NO_COLOR") == ""
}
