package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/halfproxy/halfproxy/admin"
	"github.com/halfproxy/halfproxy/internal/terminal"
)

const defaultSocket = "/run/halfproxy/admin.sock"

func statusCommand() *cobra.Command {
	var socket string
	var asJSON bool
	var every time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show this node and the cluster: services, backends, routes, peers, members",
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("watch") && every < minWatch {
				return fmt.Errorf("--watch=%v is too often: use %v or more", every, minWatch)
			}
			return noArguments(cmd, args)
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			client := admin.NewClient(socket)
			show := func(to io.Writer) error {
				status, err := client.Status(cmd.Context())
				if err != nil {
					return err
				}
				if asJSON {
					return status.WriteJSON(to)
				}
				return status.WriteText(to, inColour(out))
			}
			if every == 0 {
				return show(out)
			}
			return watch(cmd.Context(), out, every, show)
		},
	}
	cmd.Flags().DurationVar(&every, "watch", 0, "show it again and again, every `TIME` (2s; --watch=10s), until interrupted")
	cmd.Flags().Lookup("watch").NoOptDefVal = "2s"
	socketFlag(cmd, &socket)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, as /api/v1/status does")
	return cmd
}

func socketFlag(cmd *cobra.Command, socket *string) {
	cmd.Flags().StringVar(socket, "socket", defaultSocket, "admin socket `PATH` of the node")
}

// minWatch keeps a node from being asked all the time.
const minWatch = 200 * time.Millisecond

// watch shows something again and again until ctx ends, on a terminal each time in the
// place of the time before. What fails is shown, too: a node that restarts is back soon.
func watch(ctx context.Context, out io.Writer, every time.Duration, show func(io.Writer) error) error {
	for {
		var shown bytes.Buffer
		if err := show(&shown); err != nil && ctx.Err() == nil {
			shown.Reset()
			fmt.Fprintf(&shown, "%s  %v\n", time.Now().Format(time.TimeOnly), err)
		}
		if ctx.Err() != nil {
			return nil
		}
		page := shown.Bytes()
		if _, rows, is := terminal.Size(out); is {
			page = onScreen(page, rows)
		}
		if _, err := out.Write(page); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(every):
		}
	}
}

// onScreen makes a page overwrite the one before, on a terminal with so many rows: from the
// top, each line cleared to its end, and the rest of the screen as well.
func onScreen(page []byte, rows int) []byte {
	lines := bytes.SplitAfter(bytes.TrimSuffix(page, []byte("\n")), []byte("\n"))
	if most := max(rows-1, 1); rows > 0 && len(lines) > most {
		left := len(lines) - most + 1
		lines = append(lines[:most-1:most-1], fmt.Appendf(nil, "... and %d more lines", left))
	}
	screen := []byte("\x1b[H")
	for _, line := range lines {
		screen = append(screen, bytes.TrimSuffix(line, []byte("\n"))...)
		screen = append(screen, "\x1b[K\n"...)
	}
	return append(screen, "\x1b[J"...)
}

func inColour(out io.Writer) bool { return terminal.Is(out) && os.Getenv("NO_COLOR") == "" }
