package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/halfproxy/halfproxy/admin"
	"github.com/halfproxy/halfproxy/internal/nearest"
	"github.com/halfproxy/halfproxy/lb"
)

func drainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "drain",
		Short: "Give a node, a backend or a service no new flows; old ones live on",
		Long: `Give a node, a backend or a service no new flows; old ones live on.

A backend or a service is drained on every member of the cluster, a node on that
node alone. The order holds until it is undone or its time is over, over restarts
too; ` + "`halfproxy status`" + ` shows it. The last order about one thing replaces the
one before.`,
	}
	backend := orderCommand(lb.Drain, lb.OfBackend, "Send no new flows to a backend: web1 of every service, or web/web1")
	service := orderCommand(lb.Drain, lb.OfService, "Withdraw a service's VIPs everywhere; packets that come are forwarded")
	node := orderCommand(lb.Drain, lb.OfNode, "Withdraw this node's routes; packets that come are forwarded")
	return group(cmd, node, backend, service)
}

func failCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fail",
		Short: "Take a backend for dead, whatever its checks say: its flows move at once",
	}
	return group(cmd, orderCommand(lb.Fail, lb.OfBackend, "Take web1 of every service, or web/web1, for dead"))
}

func weightCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "weight",
		Short: "Give a backend another weight than the configuration does",
	}
	return group(cmd, orderCommand(lb.Weigh, lb.OfBackend, "Give web1 of every service, or web/web1, the weight N"))
}

// group is a command that does nothing without one of its own. cobra would answer
// any other word with help and success.
func group(cmd *cobra.Command, commands ...*cobra.Command) *cobra.Command {
	var names []string
	for _, c := range commands {
		names = append(names, c.Name())
	}
	cmd.AddCommand(commands...)
	cmd.RunE = func(*cobra.Command, []string) error { return nil }
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return fmt.Errorf("%s what? Name one of %s", cmd.Name(), strings.Join(names, ", "))
		}
		remedy := "use one of " + strings.Join(names, ", ")
		if meant, near := nearest.Word(args[0], names); near {
			remedy = fmt.Sprintf("did you mean %q?", meant)
		}
		return fmt.Errorf("unknown command %q for %q: %s", args[0], cmd.CommandPath(), remedy)
	}
	return cmd
}

// orderCommand is the command for one action on one kind of things.
func orderCommand(action lb.Action, kind lb.SubjectKind, short string) *cobra.Command {
	var socket string
	var undo, wait bool
	var lasts time.Duration
	order := admin.Order{Kind: kind.String(), Action: action.String()}
	cmd := &cobra.Command{
		Use:   kind.String() + " NAME",
		Short: short,
		Args: func(cmd *cobra.Command, args []string) error {
			want := 1
			if action == lb.Weigh && !undo {
				want = 2
			}
			if err := cobra.ExactArgs(want)(cmd, args); err != nil {
				return err
			}
			order.Name = args[0]
			if _, err := lb.ParseSubject(order.Kind, order.Name); err != nil {
				return err
			}
			if want == 2 {
				weight, err := strconv.Atoi(args[1])
				if err != nil {
					return fmt.Errorf("weight %q is no whole number: write one from 0 to %d", args[1], lb.MaxWeight)
				}
				order.Weight = weight
			}
			if lasts < 0 || undo && lasts > 0 {
				return fmt.Errorf("--for %v makes no sense here: give it to the order itself, as a time to come", lasts)
			}
			if undo && wait {
				return errors.New("--wait is for a drain that begins, not for one that is undone")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if undo {
				order.Action = lb.Undo.String()
			}
			if lasts > 0 {
				order.Until = time.Now().Add(lasts)
			}
			order.By = whoever()
			if err := admin.NewClient(socket).Order(cmd.Context(), order); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), inForce(action, kind, order, cmd.CommandPath()))
			if wait {
				return drained(cmd.Context(), cmd.OutOrStdout(), admin.NewClient(socket), order.Name, time.Second)
			}
			return nil
		},
	}
	if action == lb.Weigh {
		cmd.Use += " N"
	}
	if action == lb.Drain && kind == lb.OfBackend {
		cmd.Flags().BoolVar(&wait, "wait", false, "tell how many flows are left, and end when it is safe to stop the backend; an interrupt leaves the order in force")
	}
	cmd.ValidArgsFunction = firstOf(&socket, subjects[kind])
	socketFlag(cmd, &socket)
	cmd.Flags().BoolVar(&undo, "undo", false, "take the order about it back")
	cmd.Flags().DurationVar(&lasts, "for", 0, "`TIME` after which the order ends by itself, such as 90m")
	return cmd
}

// drained tells how many flows a backend still has, each time that it is another number,
// until it is safe to stop it. name is as for the order.
func drained(ctx context.Context, out io.Writer, client *admin.Client, name string, every time.Duration) error {
	// What other members tell takes a moment to come.
	const sure = 3
	var said string
	for safe := 0; safe < sure; {
		status, err := client.Status(ctx)
		if ctx.Err() != nil {
			return fmt.Errorf("interrupted: backend %s drains on, `halfproxy status` tells when it is safe to stop", name)
		}
		if err != nil {
			return err
		}
		left, all := flowsLeft(status, name)
		if left == "" && !all {
			return fmt.Errorf("backend %s no longer drains: it is not in the configuration any more, or the order was undone", name)
		}
		if left == "" {
			safe++
		} else if safe = 0; left != said {
			fmt.Fprintln(out, left)
			said = left
		}
		select {
		case <-ctx.Done():
		case <-time.After(every):
		}
	}
	fmt.Fprintf(out, "backend %s: no flows left: safe to stop\n", name)
	return nil
}

// flowsLeft says of each backend of that name which is not safe to stop what keeps it from
// being; empty: nothing does. drains: there is one that drains.
func flowsLeft(status admin.Status, name string) (left string, drains bool) {
	for _, s := range status.Services {
		for _, b := range s.Backends {
			if b.Name != name && s.Name+"/"+b.Name != name {
				continue
			}
			aside := b.State == lb.Draining.String() || b.State == lb.Drained.String()
			drains = drains || aside
			if !aside || b.SafeToStop {
				continue
			}
			if left != "" {
				left += "; "
			}
			left += fmt.Sprintf("backend %s/%s: %s left, held by %s", s.Name, b.Name, count(b.FlowRecords, "flow"), strings.Join(b.HeldBy, ", "))
		}
	}
	return left, drains
}

// inForce says what holds after an order was taken.
func inForce(action lb.Action, kind lb.SubjectKind, o admin.Order, command string) string {
	everywhere := "on every member that this node reaches"
	if kind == lb.OfNode {
		everywhere = "until it is undone, over restarts too"
	}
	what := o.Kind + " " + o.Name
	if o.Action == lb.Undo.String() {
		return fmt.Sprintf("%s goes by the configuration and its checks again", what)
	}
	switch action {
	case lb.Drain:
		what = fmt.Sprintf("%s drains %s", what, everywhere)
	case lb.Fail:
		what = fmt.Sprintf("%s is taken for dead %s", what, everywhere)
	case lb.Weigh:
		what = fmt.Sprintf("%s has weight %d %s", what, o.Weight, everywhere)
	}
	if !o.Until.IsZero() {
		what += ", until " + o.Until.Format(time.DateTime)
	}
	return fmt.Sprintf("%s; back with `%s %s --undo`", what, command, o.Name)
}

// whoever is the name of who gives an order: of the person behind sudo, if there
// is one.
func whoever() string {
	if name := os.Getenv("SUDO_USER"); name != "" {
		return name
	}
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "uid " + strconv.Itoa(os.Getuid())
}
