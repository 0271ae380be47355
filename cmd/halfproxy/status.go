package main

import (
	"io"
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
			return status.WriteText(out, inColour(out))
		},
	}
	socketFlag(cmd, &socket)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, as /api/v1/status does")
	return cmd
}

func socketFlag(cmd *cobra.Command, socket *string) {
	cmd.Flags().StringVar(socket, "socket", defaultSocket, "admin socket `PATH` of the node")
}

func inColour(out io.Writer) bool { return isTerminal(out) && os.Getenv("NO_COLOR") == "" }

func isTerminal(out io.Writer) bool {
	f, file := out.(*os.File)
	if !file {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
