package xdp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"google.golang.org/grpc"
	grpchealth "google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/halfproxy/halfproxy/health"
	"github.com/halfproxy/halfproxy/internal/netns"
	"github.com/halfproxy/halfproxy/lb"
)

// vipChecks is a check of each type that goes over the network, each with another port.
var vipChecks = []lb.Check{
	{Type: lb.CheckTCP, Port: 21},
	{Type: lb.CheckHTTP, Port: 80, Path: "/", Method: "GET", Status: []lb.StatusRange{{First: 200, Last: 200}}, Body: "well"},
	{Type: lb.CheckHTTPS, Port: 443, TLS: true, HTTP2: true, Path: "/", Method: "GET", Status: []lb.StatusRange{{First: 200, Last: 200}}, Body: "well"},
	{Type: lb.CheckGRPC, Port: 9090},
	{Type: lb.CheckDNS, Port: 53, Query: "example.org.", RecordType: "TXT", Rcode: "NOERROR", Over: []lb.Protocol{lb.UDP, lb.TCP}, Answer: []byte("well")},
	{Type: lb.CheckUDP, Port: 514, Payload: []byte("how are you?"), Answer: []byte("well")},
}

// TestChecksOfEveryTypeGoToVIPs has one backend that has all it needs, and lacks in turn
// the service, the VIPs and the decapsulation.
func TestChecksOfEveryTypeGoToVIPs(t *testing.T) {
	for _, forward := range []lb.Forward{lb.L2, lb.IPIP, lb.GRE, lb.GUE} {
		t.Run(forward.String(), func(t *testing.T) {
			l := newLAN(t, 1500)
			d := l.start(t, Native)
			server, backend := l.near, "10.0.0.11"
			decapsulate := func() io.Closer { return io.NopCloser(nil) }
			lacking := ": is the vip on its loopback?"
			if forward != lb.L2 {
				server, backend = l.far, "10.3.0.11"
				decapsulate = func() io.Closer { return l.attachDecap(t) }
				lacking = fmt.Sprintf(": is the vip on its loopback, and %s taken off?", forward)
			}
			if forward == lb.L2 { // without a route a host does not only drop by IPv6, but says so now and then
				must(t, server.Route("::/0", "fd00::fe"))
			}
			decap := decapsulate()
			stop := serveWell(t, server)
			web := probedTable(forward, backend)
			l.apply(t, d, web)
			resolved(t, d)
			checker := l.check(t, d, web.Service)

			all(t, checker, "has all", lb.Up, "")
			stop()
			all(t, checker, "without the service", lb.Down, "connection refused by vip ")
			stop = serveWell(t, server)
			all(t, checker, "with the service", lb.Up, "")

			onLoopback(t, server, netlink.AddrDel)
			all(t, checker, "without the vips", lb.Down, lacking)
			if forward == lb.L2 { // which passes on what is for the VIP
				must(t, server.Do(func() error {
					return errors.Join(netns.Sysctl("net/ipv4/ip_forward", "1"), netns.Sysctl("net/ipv6/conf/all/forwarding", "1"),
						netns.Sysctl("net/ipv4/icmp_ratelimit", "0"), netns.Sysctl("net/ipv6/icmp/ratelimit", "0")) // else it says so once a second
				}))
				must(t, server.Route("10.2.0.0/24", "10.0.0.254"))
				must(t, server.Route("fd00:2::/64", "fd00::fe"))
				// TCP does not take it in where it comes before connect() is through.
				all(t, checker, "without the vips, and forwarding", lb.Down, "10.0.0.11 passes on what is for vip ", lb.CheckDNS, lb.CheckUDP)
			}
			onLoopback(t, server, netlink.AddrAdd)
			all(t, checker, "with the vips", lb.Up, "")

			must(t, decap.Close())
			if forward != lb.L2 {
				all(t, checker, "without decapsulation", lb.Down, lacking)
				decap = decapsulate()
				all(t, checker, "with decapsulation", lb.Up, "")
				must(t, decap.Close())
			}
			stop()
		})
	}
}

// onLoopback takes the VIPs from lo, or puts them there again.
func onLoopback(t *testing.T, ns *netns.NS, do func(netlink.Link, *netlink.Addr) error) {
	t.Helper()
	must(t, ns.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		var errs []error
		for _, vip := range []string{"10.2.0.1/32", "fd00:2::1/128"} {
			addr, _ := netlink.ParseAddr(vip)
			errs = append(errs, do(lo, addr))
		}
		return errors.Join(errs...)
	}))
}

// check has a service's backends checked in all ways of vipChecks, as a node does.
func (l *lan) check(t *testing.T, d *Dataplane, service lb.Service) *health.Checker {
	t.Helper()
	checker := health.New(health.Config{DialVIP: func(ctx context.Context, network, service, backend string, vip netip.AddrPort) (conn net.Conn, err error) {
		err = l.lb.Do(func() (err error) {
			conn, err = d.DialVIP(ctx, network, service, backend, vip)
			return err
		})
		return conn, err
	}})
	var targets []lb.Target
	for _, check := range vipChecks {
		check.Via, check.Interval, check.Timeout, check.Rise, check.Fall = lb.ViaVIP, 200*time.Millisecond, 190*time.Millisecond, 4, 2
		service.Check = check
		targets = append(targets, service.Targets()...)
	}
	checker.SetTargets(targets)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- checker.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-done)
	})
	return checker
}

// all waits until every check finds the state, and those of some types, or of all, the
// words in what is wrong.
func all(t *testing.T, checker *health.Checker, when string, state lb.State, words string, types ...lb.CheckType) {
	t.Helper()
	within(t, 30*time.Second, when, func() error {
		var errs []error
		for _, r := range checker.Results() {
			said := strings.Contains(r.LastError, words) && (words == "") == (r.LastError == "")
			if r.State != state || !said && (len(types) == 0 || slices.Contains(types, r.Target.Check.Type)) {
				errs = append(errs, fmt.Errorf("%s is %s: %q", r.Target.Check.Type, r.State, r.LastError))
			}
		}
		return errors.Join(errs...)
	})
}

// serveWell answers all of vipChecks at the VIPs, until stop.
func serveWell(t *testing.T, ns *netns.NS) (stop func()) {
	t.Helper()
	var ends []func()
	stop = func() {
		for _, end := range slices.Backward(ends) {
			end()
		}
	}
	example := httptest.NewTLSServer(nil)
	example.Close()
	certificates := example.TLS.Certificates
	quiet := log.New(io.Discard, "", 0)
	well := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "well") })
	answer := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.Answer = append(m.Answer, &dns.TXT{
			Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{"well"},
		})
		w.WriteMsg(m)
	})
	for _, vip := range []string{"10.2.0.1", "fd00:2::1"} {
		listen := func(port string) net.Listener {
			listener, err := ns.Listen("tcp", net.JoinHostPort(vip, port))
			must(t, err)
			ends = append(ends, func() { listener.Close() })
			return listener
		}
		listenPacket := func(port string) net.PacketConn {
			conn, err := ns.ListenPacket("udp", net.JoinHostPort(vip, port))
			must(t, err)
			ends = append(ends, func() { conn.Close() })
			return conn
		}
		listen("21")

		web := &http.Server{Handler: well, ErrorLog: quiet}
		go web.Serve(listen("80"))
		secure := &http.Server{Handler: well, ErrorLog: quiet, TLSConfig: &tls.Config{Certificates: certificates}}
		go secure.ServeTLS(listen("443"), "", "")
		calls := grpc.NewServer(grpc.ConnectionTimeout(time.Second)) // which Stop waits for
		grpc_health_v1.RegisterHealthServer(calls, grpchealth.NewServer())
		go calls.Serve(listen("9090"))
		names := []*dns.Server{{Listener: listen("53"), Handler: answer}, {PacketConn: listenPacket("53"), Handler: answer}}
		for _, s := range names {
			go s.ActivateAndServe()
		}
		ends = append(ends, func() { web.Close() }, func() { secure.Close() }, calls.Stop)

		packets := listenPacket("514")
		go func() {
			buffer := make([]byte, 100)
			for {
				_, from, err := packets.ReadFrom(buffer)
				if err != nil {
					return
				}
				packets.WriteTo([]byte("well, thank you"), from)
			}
		}()
	}
	return stop
}
