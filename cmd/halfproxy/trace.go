package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/halfproxy/halfproxy/admin"
	"github.com/halfproxy/halfproxy/control"
	"github.com/halfproxy/halfproxy/lb"
	"github.com/halfproxy/halfproxy/xdp"
)

func traceCommand() *cobra.Command {
	var socket, connectionID string
	var asJSON bool
	var flow admin.Flow
	cmd := &cobra.Command{
		Use:   "trace PROTO SRC:PORT DST:PORT",
		Short: "Say which backend a flow goes to, and why",
		Long: `Say which backend a flow goes to, and why.

The node's program itself is asked: a packet of the flow goes through the same
code and the same tables as traffic does. Nothing is sent, and nothing counted.
Exit code 0: the flow is forwarded; 1: it is not.

With --quic-cid it is a QUIC packet with that connection ID: of a service with quic
it goes to the backend whose server ID the connection ID holds, wherever it is from.`,
		Example: "  halfproxy trace tcp 198.51.100.7:31337 203.0.113.10:80\n  halfproxy trace udp [2001:db8::7]:5000 [2001:db8::10]:443 --json\n  halfproxy trace udp 198.51.100.7:31337 203.0.113.10:443 --quic-cid 070a01c5de66a99ba6",
		Args: func(cmd *cobra.Command, args []string) (err error) {
			if err := exactly(3)(cmd, args); err != nil {
				return err
			}
			flow, err = admin.ParseFlow(args[0], args[1], args[2], connectionID)
			return err
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			trace, err := admin.NewClient(socket).Trace(cmd.Context(), flow)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				err = trace.WriteJSON(out)
			} else {
				err = trace.WriteText(out, inColour(out))
			}
			if err == nil && !trace.Forwarded {
				err = errors.New(trace.Why)
			}
			return err
		},
	}
	socketFlag(cmd, &socket)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&connectionID, "quic-cid", "", "trace a QUIC packet with the connection ID `HEX`")
	return cmd
}

// trace asks the program about a flow, and adds what else is known of what it
// answers.
func (n *node) trace(f admin.Flow) (admin.Trace, error) {
	t, err := n.dataplane.Trace(f.Protocol, f.Source, f.Destination, []byte(f.ConnectionID)...)
	if err != nil {
		return admin.Trace{}, err
	}
	out := admin.Trace{
		Protocol: f.Protocol.String(), Source: f.Source, Destination: f.Destination, ConnectionID: hex.EncodeToString([]byte(f.ConnectionID)),
		Forwarded: t.Verdict == xdp.Forwarded, Verdict: t.Verdict.String(), Why: t.Why, Service: t.Service,
	}
	services := n.control.Status().Services
	if t.Service == "" {
		out.Why += portsOf(services, f)
		return out, nil
	}
	if t.Hash != 0 { // else it came to its end before
		out.Hash, out.Hashed = fmt.Sprintf("0x%016x", t.Hash), t.Hashed.Names()
	}
	if t.Slots > 0 {
		out.Table = traceTable(t)
	}
	if t.Backend != "" {
		out.Backend = &admin.TraceBackend{Name: t.Backend, Address: t.Address, State: "unknown"}
		if i := slices.IndexFunc(services, func(s control.ServiceStatus) bool { return s.Name == t.Service }); i >= 0 {
			for _, b := range services[i].Backends {
				if b.Name == t.Backend {
					out.Backend.Weight, out.Backend.State = b.Weight, b.State.String()
				}
			}
		}
	}
	if out.Forwarded {
		out.Egress = &admin.Egress{Encapsulation: t.Forward.String(), NextHop: t.NextHop.String(), Interface: t.Interface}
		if t.Outer != (xdp.Outer{}) {
			out.Egress.OuterSource, out.Egress.OuterDestination = t.Outer.Ends()
		}
	}
	return out, nil
}

func traceTable(t xdp.Trace) *admin.TraceTable {
	out := &admin.TraceTable{Size: t.Slots, Slot: t.Slot, Current: t.Backend}
	if t.Transition == nil {
		return out
	}
	out.Current, out.Base, out.By = t.Transition.Current, t.Transition.Base, "current"
	if t.Transition.ByRecord {
		out.By = "record"
	} else if t.Backend == t.Transition.Base {
		out.By = "base"
	}
	return out
}

// portsOf says which ports a VIP does have, when it is one.
func portsOf(services []control.ServiceStatus, f admin.Flow) string {
	var ports []string
	for _, s := range services {
		if slices.ContainsFunc(s.VIPs, func(v lb.VIP) bool { return v.Contains(f.Destination.Addr().Unmap()) }) {
			for _, p := range s.Ports {
				ports = append(ports, fmt.Sprintf("%s (%s)", p, s.Name))
			}
		}
	}
	if len(ports) == 0 {
		return ""
	}
	return "; it has " + strings.Join(ports, ", ")
}
