package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/halfproxy/halfproxy/admin"
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
			thisNode := kind == lb.OfNode && len(args) == 0
			if err := exactly(want)(cmd, args); err != nil && !thisNode {
				return err
			}
			if !thisNode {
				order.Name = args[0]
				if _, err := lb.ParseSubject(order.Kind, order.Name); err != nil {
					return err
				}
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
			client := admin.NewClient(socket)
			if order.Name == "" {
				status, err := client.Status(cmd.Context())
				if err != nil {
					return err
				}
				order.Name = status.Node.Name
			}
			if err := client.Order(cmd.Context(), order); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), inForce(action, kind, order, cmd.CommandPath()))
			if wait {
				return drained(cmd.Context(), cmd.OutOrStdout(), client, order, time.Second)
			}
			return nil
		},
	}
	if action == lb.Weigh {
		cmd.Use += " N"
	}
	if kind == lb.OfNode {
		cmd.Use = "node [NAME]"
	}
	if action == lb.Drain {
		cmd.Flags().BoolVar(&wait, "wait", false, "tell what is left, flows of a backend or else routes and packets on this node, and end when nothing is; an interrupt leaves the order in force")
	}
	cmd.ValidArgsFunction = firstOf(&socket, subjects[kind])
	socketFlag(cmd, &socket)
	cmd.Flags().BoolVar(&undo, "undo", false, "take the order about it back")
	cmd.Flags().DurationVar(&lasts, "for", 0, "`TIME` after which the order ends by itself, such as 90m")
	return cmd
}

// remains says what is left of something that drains, empty where nothing is, and whether
// it drains at all.
type remains func(admin.Status) (left string, drains bool)

// drained tells what the order's subject still has, each time that it is something else,
// until nothing is left.
func drained(ctx context.Context, out io.Writer, client *admin.Client, order admin.Order, every time.Duration) error {
	what := order.Kind + " " + order.Name
	// What other members tell takes a moment to come.
	quiet, done := 3, "no flows left: safe to stop"
	still := remains(func(st admin.Status) (string, bool) { return flowsLeft(st, order.Name) })
	if order.Kind != lb.OfBackend.String() {
		quiet, done = 6, fmt.Sprintf("no routes left, and no packets for %v on this node", 5*every)
		still = trafficLeft(order)
	}
	var said string
	for safe := 0; safe < quiet; {
		status, err := client.Status(ctx)
		if ctx.Err() != nil {
			return fmt.Errorf("interrupted: %s drains on, `halfproxy status` tells how far it is", what)
		}
		if err != nil {
			return err
		}
		left, drains := still(status)
		if left == "" && !drains {
			return fmt.Errorf("%s no longer drains: it is not in the configuration any more, or the order was undone", what)
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
	fmt.Fprintf(out, "%s: %s\n", what, done)
	return nil
}

// trafficLeft says how many routes lead to a node, or to a service by way of this node, and
// what still comes since the look before.
func trafficLeft(order admin.Order) remains {
	var last uint64
	var at time.Time
	return func(st admin.Status) (string, bool) {
		drains := slices.ContainsFunc(st.Orders, func(o admin.Order) bool {
			return o.Kind == order.Kind && o.Name == order.Name && o.Action == lb.Drain.String()
		})
		var packets uint64
		var vips []netip.Prefix
		for _, s := range st.Services {
			if order.Kind == lb.OfService.String() && s.Name != order.Name {
				continue
			}
			for _, b := range s.Backends {
				packets += b.Packets
			}
			for _, v := range s.VIPs {
				vips = append(vips, v.Prefix)
			}
		}
		routes := 0
		for _, peer := range st.BGP {
			for _, r := range peer.Routes {
				if order.Kind == lb.OfNode.String() || slices.Contains(vips, r.Prefix) {
					routes++
				}
			}
		}
		var rate float64
		if passed := st.Time.Sub(at).Seconds(); !at.IsZero() && packets > last && passed > 0 {
			rate = float64(packets-last) / passed
		}
		last, at = packets, st.Time
		if routes == 0 && rate == 0 || !drains {
			return "", drains
		}
		return fmt.Sprintf("%s %s: %s left, %.0f packets/s", order.Kind, order.Name, count(routes, "route"), math.Ceil(rate)), true
	}
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
	switch {
	case kind != lb.OfNode:
	case o.Until.IsZero():
		everywhere = "until it is undone, over restarts too"
	default:
		everywhere = "over restarts too"
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
