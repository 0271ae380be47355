package xdp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/internal/netns"
	"github.com/halfproxy/halfproxy/lb"
)

// The router's link to the far backend takes 1400 bytes, which nobody but it knows. It says
// so to the node, and the node to the client what is left of it.
func TestAPathThatNarrowsBehindTheFirstLink(t *testing.T) {
	for _, forward := range []lb.Forward{lb.IPIP, lb.GRE, lb.GUE} {
		for _, backend := range []string{"10.3.0.11", "fd00:3::11"} {
			t.Run(fmt.Sprintf("%s/%s", forward, backend), func(t *testing.T) {
				const narrow = 1400
				l := newLAN(t, 1500)
				must(t, l.router.Do(func() error {
					eth1, err := netlink.LinkByName("eth1")
					if err != nil {
						return err
					}
					// All errors of this test may come at once.
					return errors.Join(netlink.LinkSetMTU(eth1, narrow), netns.Sysctl("net/ipv4/icmp_ratelimit", "0"), netns.Sysctl("net/ipv6/icmp/ratelimit", "0"))
				}))
				d := l.start(t, Native)
				must(t, l.far.Do(func() error {
					decap, err := AttachDecap(DecapConfig{
						Interfaces: []string{"eth0"}, Tunnels: Tunnels{IPIP: true, GRE: true, GUE: true},
						Sources: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32"), netip.MustParsePrefix("fd00::2/128")},
						VIPs:    []lb.VIP{lb.MustParseVIP("10.2.0.1"), lb.MustParseVIP("fd00:2::1")},
					})
					if err == nil {
						t.Cleanup(func() { decap.Close() })
					}
					return err
				}))
				serve(t, l.far, "far")
				web := webTable(forward, backend)
				web.Service.GUEPort = lb.DefaultGUEPort
				l.apply(t, d, web)
				resolved(t, d)

				const size = 300_000
				for vip, client := range map[string]string{vipHTTP4: "10.0.0.1", vipHTTP6: "fd00::1"} {
					got, err := l.talk(vip, size)
					if want := fmt.Sprintf("far %s %d", client, size); err != nil || got != want {
						t.Errorf("%s: got %q, %v, want %q", vip, got, err, want)
					}
				}
				room := narrow - forward.Overhead(netip.MustParseAddr(backend))
				for _, vip := range []string{"10.2.0.1", "fd00:2::1"} {
					must(t, l.client.Do(func() error {
						routes, err := netlink.RouteGet(net.ParseIP(vip))
						if err == nil && routes[0].MTU != room {
							t.Errorf("the client's path to %s takes %d bytes, want %d", vip, routes[0].MTU, room)
						}
						return err
					}))
				}
			})
		}
	}
}

func TestWithoutRawSocketsItIsSaidOnceThatErrorsAreNotHeard(t *testing.T) {
	needRoot(t)
	var log bytes.Buffer
	d, err := New(Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	apply(t, d, table("four", lb.IPIP, 13, vips(4), "203.0.113.1"), table("six", lb.GUE, 13, vips(6), "2001:db8:3::1"))
	ctx, cancel := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	errs := newPathErrors(d, &readers)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends without its capabilities
		none := [2]unix.CapUserData{}
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			t.Error(err)
			return
		}
		errs.listen(ctx)
		errs.listen(ctx)
	}()
	<-done
	cancel()
	readers.Wait()
	if got := strings.Count(log.String(), "give the process CAP_NET_RAW"); got != 1 || len(errs.sockets) != 3 {
		t.Errorf("told %d times of %d kinds of packets, want once of 3:\n%s", got, len(errs.sockets), log.String())
	}
}
