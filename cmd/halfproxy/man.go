package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manCommand is for those who make packages.
func manCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write the manual pages of all commands into a folder",
		Hidden: true,
		Args:   exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			return writePages(args[0], cmd.Root())
		},
	}
}

// manSection is that of system administration.
const manSection = 8

// writePages writes the page of a command and those of its own ones.
func writePages(dir string, cmd *cobra.Command) error {
	if !documented(cmd) {
		return nil
	}
	var page bytes.Buffer
	writePage(&page, cmd)
	if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s.%d", pageName(cmd), manSection)), page.Bytes(), 0o644); err != nil {
		return err
	}
	for _, c := range cmd.Commands() {
		if err := writePages(dir, c); err != nil {
			return err
		}
	}
	return nil
}

// documented says whether a command has a page. What help does, --help does as well.
func documented(cmd *cobra.Command) bool { return !cmd.Hidden && cmd.Name() != "help" }

func pageName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// writePage writes what --help says in the language of man(7). It has no date, so
// that the same source makes the same package.
func writePage(out io.Writer, cmd *cobra.Command) {
	fmt.Fprintf(out, ".TH %s %d \"\" \"halfproxy %s\" \"System administration\"\n", strings.ToUpper(roff(pageName(cmd))), manSection, roff(version))
	fmt.Fprintf(out, ".SH NAME\n%s \\- %s\n", roff(pageName(cmd)), roff(cmd.Short))

	command, arguments := cmd.CommandPath(), strings.TrimPrefix(cmd.UseLine(), cmd.CommandPath())
	if cmd.HasAvailableSubCommands() {
		arguments = " COMMAND" + arguments
	}
	fmt.Fprintf(out, ".SH SYNOPSIS\n.B %s\n%s\n", roff(command), roff(strings.TrimSpace(arguments)))

	if cmd.Long != "" {
		fmt.Fprintf(out, ".SH DESCRIPTION\n")
		verbatim(out, cmd.Long)
	}
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintln(out, ".SH COMMANDS")
		for _, c := range cmd.Commands() {
			if documented(c) {
				fmt.Fprintf(out, ".TP\n.BR %s (%d)\n%s\n", roff(pageName(c)), manSection, roff(c.Short))
			}
		}
	}
	fmt.Fprintln(out, ".SH OPTIONS")
	cmd.InitDefaultHelpFlag()
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			writeOption(out, f)
		}
	})
	if cmd.Example != "" {
		fmt.Fprintln(out, ".SH EXAMPLES")
		verbatim(out, cmd.Example)
	}
	fmt.Fprintln(out, ".SH EXIT STATUS\n0: done. 1: the answer is no, or it failed, and standard error says why. 2: wrong usage.")
	if parent := cmd.Parent(); parent != nil {
		fmt.Fprintf(out, ".SH SEE ALSO\n.BR %s (%d)\n", roff(pageName(parent)), manSection)
	}
}

func writeOption(out io.Writer, f *pflag.Flag) {
	argument, usage := pflag.UnquoteUsage(f)
	name := "--" + f.Name
	if f.Shorthand != "" {
		name = "-" + f.Shorthand + ", " + name
	}
	fmt.Fprintf(out, ".TP\n\\fB%s\\fR", roff(name))
	if argument != "" {
		fmt.Fprintf(out, " \\fI%s\\fR", roff(argument))
	}
	fmt.Fprintf(out, "\n%s", roff(usage))
	switch f.DefValue {
	case "", "0", "0s", "false", "[]":
	default:
		fmt.Fprintf(out, " (default: %s)", roff(f.DefValue))
	}
	fmt.Fprintln(out)
}

// verbatim writes text as it stands: it is in lines, and has tables.
func verbatim(out io.Writer, text string) {
	fmt.Fprintf(out, ".nf\n%s\n.fi\n", roff(text))
}

// roff is text that means itself.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}
