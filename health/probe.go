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
	dial func(ctx context.Context, network, address string) (net.Conn, error)
}

func newProber() prober {
	// Keepalives would cost three system calls for nothing.
	dialer := &net.Dialer{KeepAlive: -1}
	return prober{dial: dialer.DialContext}
}

// probe asks t's backend once and gives nil if it is fit to serve. It returns
// at t's timeout at the latest, and earlier when ctx ends.
func (p prober) probe(ctx context.Context, t lb.Target) error {
	ctx, cancel := context.WithTimeout(ctx, t.Check.Timeout)
	defer cancel()
	addr := netip.AddrPortFrom(t.Address, t.Check.Port)

	conn, err := p.connect(ctx, addr, t.Check.Timeout)
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
		return getHTTP(conn, addr, t.Check)
	}
	return fmt.Errorf("no probe speaks %s", t.Check.Type)
}

func (p prober) connect(ctx context.Context, addr netip.AddrPort, timeout time.Duration) (net.Conn, error) {
	start := time.Now()
	conn, err := p.dial(ctx, "tcp", addr.String())
	if err == nil {
		return conn, nil
	}
	after := time.Since(start).Round(time.Microsecond)
	switch {
	case isTimeout(err):
		return nil, fmt.Errorf("no connection to %s within %v", addr, timeout)
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("connection refused by %s after %v", addr, after)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return nil, fmt.Errorf("%s unreachable after %v: look at the routes to it", addr.Addr(), after)
	case errors.Is(err, syscall.EMFILE):
		return nil, fmt.Errorf("connect to %s: %w: raise the limit of open files of this node's process", addr, cause(err))
	}
	return nil, fmt.Errorf("connect to %s: %w", addr, cause(err))
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
