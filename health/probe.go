package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/halfproxy/halfproxy/lb"
)

// DialVIP connects to a VIP by way of one backend of a service, over the networks tcp
// and udp.
type DialVIP func(ctx context.Context, network, service, backend string, vip netip.AddrPort) (net.Conn, error)

// dialFunc connects to an address, over the networks tcp and udp. A udp connection is
// a connected socket: it takes packets of that address alone, and its reads fail with
// ECONNREFUSED after an ICMP "port unreachable".
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// direct connects to backends as any program does. Keepalives would cost three
// system calls for nothing.
func direct(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := net.Dialer{KeepAlive: -1}
	return dialer.DialContext(ctx, network, address)
}

// endpoint is who a probe asks.
type endpoint struct {
	netip.AddrPort            // of a VIP where by is valid
	by             netip.Addr // the backend
	forward        lb.Forward
}

func (e endpoint) String() string {
	if !e.by.IsValid() {
		return e.AddrPort.String()
	}
	return fmt.Sprintf("vip %s by way of %s", e.AddrPort, e.by)
}

// silence is what may be the reason why nothing comes from e.
func (e endpoint) silence() string {
	switch {
	case !e.by.IsValid():
		return ""
	case e.forward == lb.L2:
		return ": is the vip on its loopback?"
	}
	return fmt.Sprintf(": is the vip on its loopback, and %s taken off?", e.forward)
}

// probe asks a backend once and gives nil if it is fit to serve. It returns at the
// check's timeout at the latest, and earlier when ctx ends.
type probe func(ctx context.Context) error

// newProbes gives the probes of t, with all that can be prepared for them: one, or one
// for each of the VIPs that are to be asked for.
func newProbes(t lb.Target, dial dialFunc, dialVIP DialVIP) ([]probe, error) {
	if t.Check.Via != lb.ViaVIP {
		p, err := newProbe(t, endpoint{AddrPort: netip.AddrPortFrom(t.Address, t.Check.Port)}, dial)
		return []probe{p}, err
	}
	var probes []probe
	for _, vip := range t.VIPs {
		at := endpoint{netip.AddrPortFrom(vip.Sample(), t.Check.Port), t.Address, t.Forward}
		p, err := newProbe(t, at, func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dialVIP(ctx, network, t.Service, t.Backend, at.AddrPort)
		})
		if err != nil {
			return nil, err
		}
		probes = append(probes, p)
	}
	return probes, nil
}

func newProbe(t lb.Target, at endpoint, dial dialFunc) (probe, error) {
	a := &asker{at: at, check: t.Check, dial: dial}
	ask, err := a.speaks(t)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, t.Check.Timeout)
		defer cancel()
		return ask(ctx)
	}, nil
}

// asker is what a probe needs to know. The errors of all probes are for operators:
// they name the address that was asked and say what the backend did or did not do.
type asker struct {
	at    endpoint
	check lb.Check
	dial  dialFunc
}

// speaks gives what asks as the check's type does.
func (a *asker) speaks(t lb.Target) (probe, error) {
	switch a.check.Type {
	case lb.CheckTCP:
		return a.askTCP, nil
	case lb.CheckHTTP, lb.CheckHTTPS:
		return a.http()
	case lb.CheckGRPC:
		return a.grpc()
	case lb.CheckDNS:
		return a.dns()
	case lb.CheckUDP:
		return a.askUDP, nil
	case lb.CheckExec:
		return (&command{target: t}).run, nil
	}
	return nil, fmt.Errorf("no probe speaks %s", a.check.Type)
}

func (a *asker) askTCP(ctx context.Context) error {
	conn, err := a.connect(ctx, "tcp")
	if err != nil {
		return err
	}
	return conn.Close()
}

// connect gives a connection whose reads and writes end with ctx.
func (a *asker) connect(ctx context.Context, network string) (*conn, error) {
	start := time.Now()
	c, err := a.dial(ctx, network, a.at.AddrPort.String())
	if err != nil {
		return nil, a.notConnected(err, time.Since(start))
	}
	// A reset at the end: a FIN would leave each connection in TIME_WAIT on this
	// node for a minute, 600,000 of them at 10,000 checks a second.
	if tcp, ok := c.(interface{ SetLinger(sec int) error }); ok {
		_ = tcp.SetLinger(0)
	}
	// Reads and writes know no context: its end becomes their deadline.
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	return &conn{c, stop}, nil
}

// conn is a connection for one probe.
type conn struct {
	net.Conn
	stop func() bool
}

func (c *conn) Close() error {
	c.stop()
	return c.Conn.Close()
}

func (a *asker) notConnected(err error, after time.Duration) error {
	if isTimeout(err) {
		return fmt.Errorf("no connection to %s within %v%s", a.at, a.check.Timeout, a.at.silence())
	}
	if known := a.refusal(err, after); known != nil {
		return known
	}
	return fmt.Errorf("connect to %s: %w", a.at, cause(err))
}

// refusal is what the network said in words; nil where err is something else.
func (a *asker) refusal(err error, after time.Duration) error {
	after = after.Round(time.Microsecond)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("connection refused by %s after %v", a.at, after)
	case a.at.by.IsValid() && (errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)):
		// The packet was to go no further than to the backend.
		return fmt.Errorf("%s passes on what is for vip %s, after %v: put it on its loopback", a.at.by, a.at.Addr(), after)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return fmt.Errorf("%s unreachable after %v: look at the routes to it", a.at.Addr(), after)
	case errors.Is(err, syscall.EMFILE):
		return fmt.Errorf("connect to %s: %w: raise the limit of open files of this node's process", a.at, cause(err))
	}
	return nil
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// cause is err without the addresses that package net puts before it.
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// quote makes a short line of what a backend said, which may be of any length.
func quote(text string) string {
	const most = 100
	text = strings.ToValidUTF8(text, "?")
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text)
	if runes := []rune(strings.TrimSpace(text)); len(runes) > most {
		return string(runes[:most]) + "..."
	}
	return strings.TrimSpace(text)
}
