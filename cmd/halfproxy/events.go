package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/halfproxy/halfproxy/admin"
	"github.com/halfproxy/halfproxy/events"
)

func eventsCommand() *cobra.Command {
	var socket, since string
	var follow, asJSON bool
	var last int
	var query admin.EventQuery
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what has happened on this node, and why",
		Long: `Show what has happened on this node, and why: what its log has of level info and
worse, the last few thousand events, since the node was started. The log's own
files or journal go further back.`,
		Args: func(cmd *cobra.Command, args []string) (err error) {
			if last < 0 {
				return fmt.Errorf("--last %d makes no sense: give a number of events, or 0 for all", last)
			}
			if since != "" {
				if query.Since, err = parseSince(since, time.Now()); err != nil {
					return err
				}
				if !cmd.Flags().Changed("last") {
					last = 0
				}
			}
			return noArguments(cmd, args)
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			colour := inColour(out)
			write := func(e events.Event) error { return admin.WriteEvent(out, e, colour) }
			if asJSON {
				write = func(e events.Event) error { return json.NewEncoder(out).Encode(e) }
			}
			client := admin.NewClient(socket)
			list, err := client.Events(cmd.Context(), query)
			if err != nil {
				return err
			}
			if last > 0 && len(list) > last {
				list = list[len(list)-last:]
			}
			for {
				for _, e := range list {
					if err := write(e); err != nil {
						return err
					}
					query.After = e.Number
				}
				if !follow {
					return nil
				}
				query.Wait = time.Minute // or as long as the node lets us
				if list, err = client.Events(cmd.Context(), query); err == nil {
					continue
				}
				if cmd.Context().Err() != nil {
					return nil
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "halfproxy: %v; waiting for it\n", err)
				awaitNode(cmd.Context(), client)
			}
		},
	}
	socketFlag(cmd, &socket)
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what happens from now on, over restarts of the node too")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, an object a line")
	cmd.Flags().StringVar(&since, "since", "", "only events since `TIME`: an age such as 10m, or 2026-01-02T15:04:05Z")
	cmd.Flags().IntVarP(&last, "last", "n", 100, "the last `N` events only, 0: all; with --since all, unless this is given")
	return cmd
}

// awaitNode waits until the node answers.
func awaitNode(ctx context.Context, client *admin.Client) {
	for ctx.Err() == nil {
		if _, err := client.Events(ctx, admin.EventQuery{Since: time.Now().AddDate(100, 0, 0)}); err == nil {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// parseSince reads an age or a time.
func parseSince(text string, now time.Time) (time.Time, error) {
	if age, err := time.ParseDuration(text); err == nil && age >= 0 {
		return now.Add(-age), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("--since %q is neither an age nor a time: write 10m, or 2026-01-02T15:04:05Z", text)
	}
	return at, nil
}
