package cluster

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"
)

// transport is memberlist's, but for streams, which
//   - come from the address that packets come from, on a node with several,
//   - never last longer than streamTimeout: memberlist sets no deadline where
//     it sends a message, so a peer that is cut off would hold it for minutes,
//   - are given up as soon as ctx ends.
type transport struct {
	*memberlist.NetTransport
	ctx  context.Context
	stop context.CancelFunc
	from netip.Addr
}

const streamTimeout = 5 * time.Second

// listen binds the sockets of the address, TCP and UDP.
func listen(at netip.AddrPort, l *log.Logger) (*transport, error) {
	t, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{
		BindAddrs: []string{at.Addr().String()},
		BindPort:  int(at.Port()),
		Logger:    l,
	})
	if err != nil {
		// memberlist's error does not wrap its cause.
		remedy := ""
		switch text := err.Error(); {
		case strings.Contains(text, syscall.EADDRINUSE.Error()):
			remedy = ": another process has the port: stop it, or give cluster.listen another one"
		case strings.Contains(text, syscall.EADDRNOTAVAIL.Error()):
			remedy = ": cluster.listen must be an address of this host"
		case strings.Contains(text, syscall.EACCES.Error()):
			remedy = ": cluster.listen needs a port from 1024 up, or the capability for lower ones"
		}
		return nil, fmt.Errorf("listen for members on %s: %w%s", at, err, remedy)
	}
	ctx, stop := context.WithCancel(context.Background())
	return &transport{NetTransport: t, ctx: ctx, stop: stop, from: at.Addr()}, nil
}

// DialAddressTimeout is memberlist.NodeAwareTransport's.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout, LocalAddr: &net.TCPAddr{IP: t.from.AsSlice()}}
	conn, err := d.DialContext(t.ctx, "tcp", a.Addr)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(streamTimeout)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// Shutdown is memberlist.Transport's.
func (t *transport) Shutdown() error {
	t.stop()
	return t.NetTransport.Shutdown()
}
