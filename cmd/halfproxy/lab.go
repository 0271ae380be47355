package main

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/halfproxy/halfproxy/lab"
)

func labCommand() *cobra.Command {
	var options lab.Options
	var forward, name string
	var keep, clean bool
	stories := lab.Stories()
	var names, forwards []string
	for _, f := range lab.Forwards {
		forwards = append(forwards, f.String())
	}
	var about strings.Builder
	for _, s := range stories {
		names = append(names, s.Name)
		fmt.Fprintf(&about, "  %-11s %s\n", s.Name, s.About)
	}
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Run the whole system on this machine in network namespaces, and tell a story of failures",
		Long: `Run the whole system on this machine in network namespaces: a client, a router,
load balancer nodes, each a real halfproxy process, and backends. Traffic flows, a
story of failures is told, and everything is taken down at the end, also on Ctrl-C.
Needs root.

Stories:
` + strings.TrimSuffix(about.String(), "\n"),
		Args: func(cmd *cobra.Command, args []string) error {
			if options.Nodes < 1 || options.Backends < 1 {
				return errors.New("--nodes and --backends are 1 at least: it takes both to forward anything")
			}
			return noArguments(cmd, args)
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			options.Forward = lab.Forwards[slices.Index(forwards, forward)]
			switch {
			case clean:
				return lab.Clean(options)
			case keep:
				return lab.Run(cmd.Context(), options, nil, cmd.OutOrStdout())
			}
			return lab.Run(cmd.Context(), options, &stories[slices.Index(names, name)], cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&options.Nodes, "nodes", 3, "`N` load balancer nodes")
	flags.IntVar(&options.Backends, "backends", 3, "`N` backends")
	wordFlag(cmd, &options.Router, "router", "the router by `NAME`: embedded, frr or bird", lab.Embedded, lab.FRR, lab.BIRD)
	wordFlag(cmd, &forward, "forward", "the `WAY` from nodes to backends: l2, ipip, gre or gue", forwards...)
	wordFlag(cmd, &name, "story", "the story by `NAME`", names...)
	flags.BoolVar(&keep, "keep", false, "tell no story: let the lab stand until Ctrl-C, and say how to play with it")
	flags.BoolVar(&clean, "clean", false, "remove what an earlier lab that was killed left behind")
	cmd.MarkFlagsMutuallyExclusive("story", "keep", "clean")
	return cmd
}

// labRouterCommand is the lab's embedded router: the lab starts it in the
// router's namespace.
func labRouterCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "lab-router",
		Short:  "The lab's router, which the lab starts by itself",
		Hidden: true,
		Args:   noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			return lab.RunRouter(cmd.Context(), cmd.InOrStdin(), log)
		},
	}
}
