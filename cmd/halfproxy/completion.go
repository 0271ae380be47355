package main

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/halfproxy/halfproxy/admin"
	"github.com/halfproxy/halfproxy/lb"
)

// What a shell offers for a flag. An error of these would be a flag that there is
// not, which the test of all commands finds.

func filesOf(cmd *cobra.Command, flag string, endings ...string) {
	_ = cmd.MarkFlagFilename(flag, endings...)
}

func foldersOf(cmd *cobra.Command, flag string) { _ = cmd.MarkFlagDirname(flag) }

func wordsOf(cmd *cobra.Command, flag string, words ...string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}

func namesOf(cmd *cobra.Command, flag string, socket *string, names func(admin.Status) []string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, known(socket, names))
}

// firstOf offers names for the first argument, and nothing for the others.
func firstOf(socket *string, names func(admin.Status) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return known(socket, names)(cmd, args, begun)
	}
}

// known asks the node for names. One that does not answer has none: a shell has
// no room for why.
func known(socket *string, names func(admin.Status) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		const patience = 2 * time.Second // somebody waits for a key to do something
		ctx, cancel := context.WithTimeout(cmd.Context(), patience)
		defer cancel()
		status, err := admin.NewClient(*socket).Status(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		list := names(status)
		slices.Sort(list)
		return slices.Compact(list), cobra.ShellCompDirectiveNoFileComp
	}
}

// subjects gives the names of what orders are about.
var subjects = map[lb.SubjectKind]func(admin.Status) []string{
	lb.OfNode:    func(s admin.Status) []string { return []string{s.Node.Name} },
	lb.OfService: services,
	lb.OfBackend: func(s admin.Status) []string {
		list := backends(s)
		for _, service := range s.Services {
			for _, b := range service.Backends {
				list = append(list, service.Name+"/"+b.Name)
			}
		}
		return list
	},
}

func services(s admin.Status) (names []string) {
	for _, service := range s.Services {
		names = append(names, service.Name)
	}
	return names
}

func backends(s admin.Status) (names []string) {
	for _, service := range s.Services {
		for _, b := range service.Backends {
			names = append(names, b.Name)
		}
	}
	return names
}
