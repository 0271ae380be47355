package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

// prober makes probes. Its errors are for operators: they name the backend's
// address and say what the backend did or did not do.
type prober struct {
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	dialVIP DialVIP
}

// DialVIP connects to a VIP by way of one backend of a service.
type DialVIP func(ctx context.Context, network, service, backend string, vip netip.AddrPort) (net.Conn, error)

func newProber(dialVIP DialVIP) prober {
	// Keepalives would cost three system calls for nothing.
	dialer := &net.Dialer{KeepAlive: -1}
	return prober{dial: dialer.DialContext, dialVIP: dialVIP}
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

// endpointOf is the endpoint that t is asked at: the first of its VIPs, if it is
// to be asked there.
func endpointOf(t lb.Target) endpoint {
	if t.Check.Via == lb.ViaVIP {
		return endpoint{netip.AddrPortFrom(t.VIPs[0].Sample(), t.Check.Port), t.Address, t.Forward}
	}
	return endpoint{AddrPort: netip.AddrPortFrom(t.Address, t.Check.Port)}
}

// probe asks t's backend once and gives nil if it is fit to serve. It returns
// at t's timeout at the latest, and earlier when ctx ends.
func (p prober) probe(ctx context.Context, t lb.Target) error {
	ctx, cancel := context.WithTimeout(ctx, t.Check.Timeout)
	defer cancel()
	at := endpointOf(t)

	conn, err := p.connect(ctx, t, at)
	if err != nil {
		return err
	}
	defer conn.Close()
	switch t.Check.Type {
	case lb.CheckTCP:
		return nil
	case lb.CheckHTTP:
		// Reads and writes know no context: its end becomes their deadline.
		stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
		defer stop()
		return getHTTP(conn, at, t.Check)
	}
	return fmt.Errorf("no probe speaks %s", t.Check.Type)
}

func (p prober) connect(ctx context.Context, t lb.Target, at endpoint) (net.Conn, error) {
	start := time.Now()
	var conn net.Conn
	var err error
	if at.by.IsValid() {
		conn, err = p.dialVIP(ctx, "tcp", t.Service, t.Backend, at.AddrPort)
	} else {
		conn, err = p.dial(ctx, "tcp", at.AddrPort.String())
	}
	if err == nil {
		return conn, nil
	}
	after := time.Since(start).Round(time.Microsecond)
	switch {
	case isTimeout(err):
		return nil, fmt.Errorf("no connection to %s within %v%s", at, t.Check.Timeout, at.silence())
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("connection refused by %s after %v", at, after)
	case at.by.IsValid() && (errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)):
		// The packet was to go no further than to the backend.
		return nil, fmt.Errorf("%s passes on what is for vip %s, after %v: put it on its loopback", at.by, at.Addr(), after)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return nil, fmt.Errorf("%s unreachable after %v: look at the routes to it", at.Addr(), after)
	case errors.Is(err, syscall.EMFILE):
		return nil, fmt.Errorf("connect to %s: %w: raise the limit of open files of this node's process", at, cause(err))
	}
	return nil, fmt.Errorf("connect to %s: %w", at, cause(err))
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
