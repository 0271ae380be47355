package main

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/halfproxy/halfproxy/lab"
	"github.com/halfproxy/halfproxy/lb"
)

func labCommand() *cobra.Command {
	var options lab.Options
	var forward, name string
	var keep, clean bool
	stories := lab.Stories()
	var names []string
	var about strings.Builder
	for _, s := range stories {
		names = append(names, s.Name)
		fmt.Fprintf(&about, "  %-11s %s\n", s.Name, s.About)
	}
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Run the whole system on this machine in network namespaces, and tell a story of failures",
		Long: `Builds a client, a router, load balancer nodes and backends as network
namespaces on this machine, each node a real halfproxy process, has traffic
flow, and tells a story. Takes everything down at the end, also on Ctrl-C.
Needs root.

Stories:
` + strings.TrimSuffix(about.String(), "\n"),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if clean {
				return lab.Clean(options)
			}
			i := slices.IndexFunc(lab.Forwards, func(f lb.Forward) bool { return f.String() == forward })
			if i < 0 {
				return fmt.Errorf("--forward %q is unknown: use one of %v", forward, lab.Forwards)
			}
			options.Forward = lab.Forwards[i]
			if keep {
				return lab.Run(cmd.Context(), options, nil, cmd.OutOrStdout())
			}
			i = slices.Index(names, name)
			if i < 0 {
				return fmt.Errorf("--story %q is unknown: use one of %v", name, names)
			}
			return lab.Run(cmd.Context(), options, &stories[i], cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&options.Nodes, "nodes", 3, "`number` of load balancer nodes")
	flags.IntVar(&options.Backends, "backends", 3, "`number` of backends")
	flags.StringVar(&options.Router, "router", lab.Embedded, "the router: embedded, frr or bird")
	flags.StringVar(&forward, "forward", lb.L2.String(), "the way from nodes to backends: l2, ipip, gre or gue")
	wordsOf(cmd, "router", lab.Embedded, "frr", "bird")
	wordsOf(cmd, "forward", "l2", "ipip", "gre", "gue")
	flags.StringVar(&name, "story", names[0], "the story, by `NAME`")
	wordsOf(cmd, "story", names...)
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
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			return lab.RunRouter(cmd.Context(), cmd.InOrStdin(), log)
		},
	}
}
