package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/halfproxy/halfproxy/internal/words"
)

// What is wrong with how a command was called, each with the way that is right.

// noArguments is cobra.NoArgs of a command that has no commands of its own.
func noArguments(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
	case cmd.Flags().Lookup("config") != nil:
		return fmt.Errorf("there is no place for %q: a file is named with --config", args[0])
	}
	return fmt.Errorf("there is no place for %q: %s", args[0], cmd.UseLine())
}

// exactly is cobra.ExactArgs.
func exactly(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return fmt.Errorf("%s given, %d wanted: %s", count(len(args), "argument"), n, cmd.UseLine())
		}
		return nil
	}
}

// group makes cmd one that does nothing without one of commands. Their options may stand
// before their names, too.
func group(cmd *cobra.Command, commands ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(commands...)
	for _, c := range commands {
		cmd.Flags().AddFlagSet(c.Flags())
	}
	needCommand(cmd, commands)
	return cmd
}

// needCommand has a command without one of its own be wrong usage. cobra would answer
// that and any other word with help and success.
func needCommand(cmd *cobra.Command, commands []*cobra.Command) {
	var names, uses []string
	for _, c := range commands {
		names, uses = append(names, c.Name()), append(uses, c.Use)
	}
	cmd.RunE = func(*cobra.Command, []string) error { return nil }
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		remedy := "use " + words.Or(uses)
		if len(args) == 0 {
			return fmt.Errorf("%s what? %s", cmd.Name(), remedy)
		}
		if meant, near := words.Nearest(args[0], names); near {
			remedy = fmt.Sprintf("did you mean %q?", meant)
		}
		return fmt.Errorf("unknown command %q for %q: %s", args[0], cmd.CommandPath(), remedy)
	}
}

// refuseUnknown has cobra's own commands refuse what they do not know.
func refuseUnknown(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "completion":
			needCommand(c, c.Commands())
		case "help":
			c.Args = func(_ *cobra.Command, args []string) error {
				_, _, err := root.Find(args)
				return err
			}
		}
	}
}

// wordFlag gives cmd an option that is one of some words. Where it is not given it is what
// value is already, or the first of them.
func wordFlag(cmd *cobra.Command, value *string, name, usage string, known ...string) {
	*value = cmp.Or(*value, known[0])
	cmd.Flags().Var(&word{value, known}, name, usage)
	wordsOf(cmd, name, known...)
}

// word is the value of such an option.
type word struct {
	value *string
	known []string
}

func (w *word) String() string { return *w.value }
func (w *word) Type() string   { return "string" }

func (w *word) Set(text string) error {
	i := slices.IndexFunc(w.known, func(known string) bool { return strings.EqualFold(known, text) })
	if i < 0 {
		return errors.New("use " + words.Or(w.known))
	}
	*w.value = w.known[i]
	return nil
}

// meantFlag adds to the error of an unknown flag the one that was meant.
func meantFlag(cmd *cobra.Command, err error) error {
	unknown, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok {
		return err
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	})
	if meant, near := words.Nearest(unknown.GetSpecifiedName(), names); near {
		return fmt.Errorf("%w: did you mean --%s?", err, meant)
	}
	return err
}
