// Command halfproxy is the load balancer node and the tools around it. Each
// subcommand has a file of its own; here are flags and wiring, nothing else.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/halfproxy/halfproxy/config"
)

// version is set when a release is built.
var version = "devel"

// Exit codes that scripts rely on.
const (
	exitDone  = 0
	exitNo    = 1 // the answer is no, or it failed
	exitUsage = 2 // the command was called in a way that makes no sense
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal asks for an orderly end, a second one ends at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// commands are all that there are.
func commands() []*cobra.Command {
	return []*cobra.Command{
		initCommand(),
		runCommand(),
		backendCommand(),
		checkCommand(),
		reloadCommand(),
		statusCommand(),
		eventsCommand(),
		traceCommand(),
		captureCommand(),
		drainCommand(),
		failCommand(),
		weightCommand(),
		doctorCommand(),
		labCommand(),
		labRouterCommand(),
		bfdCommand(),
		manCommand(),
	}
}

// run is main with its surroundings handed in.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	understood := false
	root := &cobra.Command{
		Use:           "halfproxy",
		Short:         "A clustered, BGP-announcing anycast layer-4 load balancer",
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		// From here on an error is no longer one of usage.
		PersistentPreRun: func(*cobra.Command, []string) { understood = true },
	}
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(meantFlag)
	root.AddCommand(commands()...)
	refuseUnknown(root)

	cmd, err := root.ExecuteContextC(ctx)
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, new(config.Errors)): // each on a line, with its place in the file
		fmt.Fprintln(stderr, err)
		return exitNo
	case understood:
		fmt.Fprintf(stderr, "halfproxy: %v\n", err)
		return exitNo
	default:
		fmt.Fprintf(stderr, "halfproxy: %v\nTry `%s --help`.\n", err, cmd.CommandPath())
		return exitUsage
	}
}
