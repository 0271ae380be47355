package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"

	"github.com/spf13/cobra"

	"github.com/halfproxy/halfproxy/admin"
	"github.com/halfproxy/halfproxy/internal/terminal"
	"github.com/halfproxy/halfproxy/xdp"
)

// defaultRate is how many frames a second a capture takes if nothing else is
// said: some 15 MB of full-sized ones.
const defaultRate = 10_000

func captureCommand() *cobra.Command {
	var socket, file, host, direction string
	var dropped bool
	var asked admin.CaptureRequest
	cmd := &cobra.Command{
		Use:   "capture",
		Short: "Show packets as the program sees them, each with its verdict and backend, as pcapng",
		Long: `Show packets as the program sees them, each with its verdict and backend, as pcapng.

tcpdump on the node sees nothing of what the program sends on or drops. Here each
frame is as it came in (or, with --direction, as it left), and has a comment such as
"verdict=forwarded service=web backend=web1". The program on the interfaces is
another while a capture runs and the usual one again when it ends, by --count,
--duration, an interrupt, or when what it is piped into ends.

All that is asked for has to be true of a packet. Service, backend, verdict, address
and port are looked at in the program, and so is the rate: what is more is lost, and
how much that was is said at the end and stands in the file. --port looks at the
header after IPv4 or IPv6, not behind extension headers; --host and --port do not
look into what an ICMP error quotes.`,
		Example: `  halfproxy capture --dropped | tcpdump -n -r -
  halfproxy capture --host 198.51.100.7 --direction both --count 100 -w client.pcapng
  halfproxy capture --service web --sample 1000 --snaplen 128 --duration 1m -w web.pcapng`,
		Args: func(cmd *cobra.Command, args []string) (err error) {
			if err := noArguments(cmd, args); err != nil {
				return err
			}
			asked, err = completed(asked, host, direction, dropped)
			if err == nil && file == "" && terminal.Is(cmd.OutOrStdout()) {
				err = errors.New("a capture is no text for a terminal: name a file with -w FILE, or pipe it, as into `tcpdump -n -r -`")
			}
			return err
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			stream, err := admin.NewClient(socket).Capture(cmd.Context(), asked)
			if err != nil {
				return err
			}
			frames, lost, err := copyTo(cmd.OutOrStdout(), file, stream)
			fmt.Fprintf(cmd.ErrOrStderr(), "%d frames captured, %d lost\n", frames, lost)
			if lost > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "Frames are lost when there are more than --rate %d a second on an interface, or when they are not written as fast: ask for fewer, or for less of each with --snaplen.\n", asked.Rate)
			}
			return err
		},
	}
	flags := cmd.Flags()
	socketFlag(cmd, &socket)
	flags.StringVarP(&file, "write", "w", "", "write to `FILE` in the place of standard output")
	flags.StringSliceVar(&asked.Verdicts, "verdict", nil, "only packets with one of these verdicts, as halfproxy_packets_total `NAME`s them")
	flags.BoolVar(&dropped, "dropped", false, "only packets that are dropped, whichever the verdict")
	flags.StringVar(&asked.Service, "service", "", "only packets for the service `NAME`")
	flags.StringVar(&asked.Backend, "backend", "", "only packets that go to the backend `NAME`")
	flags.StringVar(&host, "host", "", "only packets from or to this `ADDRESS` or prefix")
	flags.Uint16Var(&asked.Port, "port", 0, "only packets from or to this port `N`")
	wordFlag(cmd, &direction, "direction", "frames as they come in, as they go out, or both: `WHICH`", "in", "out", "both")
	wordsOf(cmd, "verdict", xdp.VerdictNames()...)
	namesOf(cmd, "service", &socket, services)
	namesOf(cmd, "backend", &socket, backends)
	flags.Uint32Var(&asked.Sample, "sample", 1, "of the packets with this address and port one in `N`, by chance")
	flags.Uint32Var(&asked.Snaplen, "snaplen", xdp.MostSnaplen, "keep at most `N` bytes of a frame")
	flags.Uint32Var(&asked.Rate, "rate", defaultRate, "take at most `N` frames a second of each interface")
	flags.Uint64VarP(&asked.Count, "count", "c", 0, "end after `N` frames")
	flags.DurationVar(&asked.Duration, "duration", 0, "end after this `TIME`, 30s or 5m")
	return cmd
}

// completed is the request with what flags cannot say by themselves, checked.
func completed(r admin.CaptureRequest, host, direction string, dropped bool) (admin.CaptureRequest, error) {
	for _, name := range r.Verdicts {
		if _, err := xdp.ParseVerdict(name); err != nil {
			return r, fmt.Errorf("--verdict: %w", err)
		}
	}
	if dropped {
		if len(r.Verdicts) > 0 {
			return r, errors.New("--dropped and --verdict do not go together: --dropped is all verdicts that drop")
		}
		for _, v := range xdp.Drops() {
			r.Verdicts = append(r.Verdicts, v.String())
		}
	}
	if host != "" {
		text := host
		if address, err := netip.ParseAddr(host); err == nil {
			text = fmt.Sprintf("%s/%d", host, address.BitLen())
		}
		prefix, err := netip.ParsePrefix(text)
		if err != nil || prefix.Addr().Is4In6() {
			return r, fmt.Errorf("--host %q is no address and no prefix: write 198.51.100.7, 198.51.100.0/24 or 2001:db8::/32", host)
		}
		r.Host = prefix.Masked()
	}
	r.Incoming, r.Outgoing = direction != "out", direction != "in"
	switch {
	case r.Sample == 0:
		return r, errors.New("--sample 0 would be none: use 1 for all, 1000 for one in 1000")
	case r.Snaplen == 0 || r.Snaplen > xdp.MostSnaplen:
		return r, fmt.Errorf("--snaplen %d is out of range: use 1 to %d", r.Snaplen, xdp.MostSnaplen)
	case r.Rate < xdp.LeastRate:
		return r, fmt.Errorf("--rate %d is too low: use %d or more, and --count to have few", r.Rate, xdp.LeastRate)
	case r.Duration < 0:
		return r, fmt.Errorf("--duration %s makes no sense: use a time to come", r.Duration)
	}
	return r, nil
}

// copyTo writes the stream into the file, which holds what only some may see,
// or to out without one.
func copyTo(out io.Writer, file string, stream *admin.CaptureStream) (frames, lost uint64, err error) {
	if file == "" {
		return stream.Copy(out)
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		stream.Close()
		return 0, 0, err
	}
	frames, lost, err = stream.Copy(f)
	return frames, lost, errors.Join(err, f.Close())
}

// capture hands the frames that are asked for to the sink.
func (n *node) capture(ctx context.Context, r admin.CaptureRequest, to admin.CaptureSink) error {
	f := xdp.CaptureFilter{
		Service: r.Service, Backend: r.Backend, Host: r.Host, Port: r.Port, Incoming: r.Incoming, Outgoing: r.Outgoing,
		Sample: r.Sample, Snaplen: r.Snaplen, Rate: max(r.Rate, xdp.LeastRate), Count: r.Count,
	}
	for _, name := range r.Verdicts {
		v, err := xdp.ParseVerdict(name)
		if err != nil {
			return err
		}
		f.Verdicts = append(f.Verdicts, v)
	}
	return n.dataplane.Capture(ctx, f, captureSink{to})
}

// captureSink is a sink of admin's as the data plane knows it.
type captureSink struct{ admin.CaptureSink }

func (s captureSink) Packet(c xdp.Captured) error {
	return s.CaptureSink.Packet(admin.CapturedFrame{
		Time: c.Time, Interface: c.Interface, Outgoing: c.Outgoing, Verdict: c.Verdict.String(), Action: c.Action,
		Service: c.Service, Backend: c.Backend, Length: c.Length, Data: c.Frame,
	})
}

func (s captureSink) Count(counts map[string]xdp.CaptureCount) error {
	told := make(map[string]admin.CaptureCount, len(counts))
	for name, c := range counts {
		told[name] = admin.CaptureCount(c)
	}
	return s.CaptureSink.Count(told)
}
