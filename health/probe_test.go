package health

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/lb"
)

func TestTCPProbe(t *testing.T) {
	t.Run("an open port is fit", func(t *testing.T) {
		addr := serve(t, func(net.Conn) {})
		expect(t, ask(t, addr, lb.Check{Type: lb.CheckTCP}), "")
	})
	t.Run("a closed port is refused", func(t *testing.T) {
		addr := closedPort(t)
		expect(t, ask(t, addr, lb.Check{Type: lb.CheckTCP}), "connection refused by %s after *", addr)
	})
	t.Run("a full backlog is silence", func(t *testing.T) {
		addr := fullBacklog(t)
		expect(t, ask(t, addr, lb.Check{Type: lb.CheckTCP}), "no connection to %s within 300ms", addr)
	})
	t.Run("the server sees a reset, and nothing is left in TIME_WAIT", func(t *testing.T) {
		read := make(chan error, 1)
		addr := serve(t, func(conn net.Conn) {
			_, err := conn.Read(make([]byte, 1))
			read <- err
		})
		expect(t, ask(t, addr, lb.Check{Type: lb.CheckTCP}), "")
		if err := <-read; !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("read of the server: got %v, want %v", err, unix.ECONNRESET)
		}
	})
}

func TestHTTPProbe(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer string
		want   string // %s is the address; empty for a success
	}{
		{"200", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", ""},
		{"204, which has no body", "HTTP/1.1 204 No Content\r\n\r\n", ""},
		{"299", "HTTP/1.1 299 Odd\r\nContent-Length: 0\r\n\r\n", ""},
		{"HTTP/1.0", "HTTP/1.0 200 OK\r\n\r\nok", ""},
		{"a chunked body", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", ""},
		{"an interim answer", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""},
		{"an interim answer alone", "HTTP/1.1 103 Early Hints\r\n\r\n", "connection closed by %s before it answered"},
		{"101", "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", "http status 101 from %s"},
		{"302", "HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n",
			"http status 302 from %s: a redirect is not followed, give the check the path that it leads to"},
		{"404", "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "http status 404 from %s"},
		{"503", "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "http status 503 from %s"},
		{"no answer but the end", "", "connection closed by %s before it answered"},
		{"half the headers", "HTTP/1.1 200 OK\r\nServer: x\r\n", "connection closed by %s before it answered"},
		{"half a body", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok", "answer from %s breaks off: unexpected EOF"},
		{"another protocol", "SSH-2.0-OpenSSH_9.2\r\n", "answer from %s is not http"},
		{"headers without end", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20), "headers from %s are longer than 65536 bytes"},
		{"interim answers without end", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 1<<15), "headers from %s are longer than 65536 bytes"},
		{"a body of a gigabyte", "HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n" + strings.Repeat("x", 1<<20), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			addr := serve(t, func(conn net.Conn) {
				if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
					t.Error(err)
				}
				io.WriteString(conn, tt.answer) // fails where the probe has read enough
			})
			want := tt.want
			if want != "" {
				want = fmt.Sprintf(want, addr)
			}
			expect(t, ask(t, addr, get(lb.Check{})), "%s", want)
		})
	}
}

func TestHTTPProbeHasOneTimeoutForAll(t *testing.T) {
	for _, tt := range []struct {
		name   string
		atOnce string
		slowly string
		want   string
	}{
		{"silence", "", "", "no answer from %s within 300ms"},
		{"slow headers", "HTTP/1.1 200 OK\r\n", "X-Slow: " + strings.Repeat("y", 100), "no answer from %s within 300ms"},
		{"a slow body", "HTTP/1.1 200 OK\r\n\r\n", strings.Repeat("y", 100), "answer from %s not complete within 300ms"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			addr := serve(t, func(conn net.Conn) {
				io.WriteString(conn, tt.atOnce)
				for _, b := range []byte(tt.slowly) {
					time.Sleep(20 * time.Millisecond)
					if _, err := conn.Write([]byte{b}); err != nil {
						return
					}
				}
				io.Copy(io.Discard, conn) // until the probe hangs up
			})
			start := time.Now()
			expect(t, ask(t, addr, get(lb.Check{})), tt.want, addr)
			if took := time.Since(start); took < 300*time.Millisecond || took > time.Second {
				t.Errorf("took %v, want about 300ms", took)
			}
		})
	}
	t.Run("no connection", func(t *testing.T) {
		addr := fullBacklog(t)
		expect(t, ask(t, addr, get(lb.Check{})), "no connection to %s within 300ms", addr)
	})
}

func TestHTTPProbeAsksAsABrowserWould(t *testing.T) {
	requests := make(chan *http.Request, 1)
	addr := serve(t, func(conn net.Conn) {
		req, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil {
			t.Error(err)
		}
		requests <- req
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	})
	expect(t, ask(t, addr, get(lb.Check{Path: "/healthz?full=1"})), "")
	req := <-requests
	for _, tt := range []struct{ what, got, want string }{
		{"method", req.Method, "GET"},
		{"uri", req.RequestURI, "/healthz?full=1"},
		{"protocol", req.Proto, "HTTP/1.1"},
		{"host", req.Host, addr.String()},
		{"user agent", req.UserAgent(), "halfproxy"},
		{"close", fmt.Sprint(req.Close), "true"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.what, tt.got, tt.want)
		}
	}

	for _, tt := range []struct{ addr, want string }{
		{"192.0.2.11:80", "192.0.2.11"},
		{"192.0.2.11:8080", "192.0.2.11:8080"},
		{"[2001:db8::80]:80", "[2001:db8::80]"},
		{"[2001:db8::80]:443", "[2001:db8::80]:443"},
		{"[fe80::1%eth0]:80", "[fe80::1]"},
	} {
		h := httpAsker{asker: &asker{at: endpoint{AddrPort: netip.MustParseAddrPort(tt.addr)}}}
		if got := h.hostHeader(); got != tt.want {
			t.Errorf("host of %s: got %q, want %q", tt.addr, got, tt.want)
		}
	}
}

func TestProbeSaysWhatTheNetworkDid(t *testing.T) {
	addr := netip.MustParseAddrPort("192.0.2.11:80")
	for _, tt := range []struct {
		err  error
		want string
	}{
		{unix.ECONNREFUSED, "connection refused by 192.0.2.11:80 after *"},
		{unix.EHOSTUNREACH, "192.0.2.11 unreachable after *: look at the routes to it"},
		{unix.ENETUNREACH, "192.0.2.11 unreachable after *: look at the routes to it"},
		{unix.EMFILE, "connect to 192.0.2.11:80: too many open files: raise the limit of open files of this node's process"},
		{unix.EADDRNOTAVAIL, "connect to 192.0.2.11:80: cannot assign requested address"},
		{errors.New("strange"), "connect to 192.0.2.11:80: strange"},
	} {
		dial := func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(addr), Err: tt.err}
		}
		expect(t, askBy(t, dial, addr, lb.Check{Type: lb.CheckTCP}), "%s", tt.want)
	}
}

func TestProbeOfAVIPSaysWhatTheBackendLacks(t *testing.T) {
	timeout := &net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded}
	for _, tt := range []struct {
		forward lb.Forward
		err     error
		want    string
	}{
		{lb.L2, timeout, "no connection to vip 203.0.113.10:80 by way of 10.0.1.11 within 300ms: is the vip on its loopback?"},
		{lb.IPIP, timeout, "no connection to vip 203.0.113.10:80 by way of 10.0.1.11 within 300ms: is the vip on its loopback, and ipip taken off?"},
		{lb.GUE, timeout, "no connection to vip 203.0.113.10:80 by way of 10.0.1.11 within 300ms: is the vip on its loopback, and gue taken off?"},
		{lb.L2, unix.ECONNREFUSED, "connection refused by vip 203.0.113.10:80 by way of 10.0.1.11 after *"},
		{lb.L2, unix.EHOSTUNREACH, "10.0.1.11 passes on what is for vip 203.0.113.10, after *: put it on its loopback"},
		{lb.L2, errors.New("no way"), "connect to vip 203.0.113.10:80 by way of 10.0.1.11: no way"},
	} {
		var asked []string
		dial := func(_ context.Context, network, service, backend string, vip netip.AddrPort) (net.Conn, error) {
			asked = append(asked, network, service, backend, vip.String())
			return nil, tt.err
		}
		probes, err := newProbes(lb.Target{
			Service: "web", Backend: "web1", Address: netip.MustParseAddr("10.0.1.11"), Forward: tt.forward, VIPs: []lb.VIP{lb.MustParseVIP("203.0.113.10")},
			Check: lb.Check{Via: lb.ViaVIP, Port: 80, Timeout: 300 * time.Millisecond},
		}, nil, dial)
		if err != nil {
			t.Fatal(err)
		}
		expect(t, probes[0](t.Context()), "%s", tt.want)
		if want := []string{"tcp", "web", "web1", "203.0.113.10:80"}; !slices.Equal(asked, want) {
			t.Errorf("dialled %q, want %q", asked, want)
		}
	}
}

func TestProbeEndsWithItsContext(t *testing.T) {
	for _, typ := range []lb.CheckType{lb.CheckTCP, lb.CheckHTTP} {
		t.Run(typ.String(), func(t *testing.T) {
			addr := fullBacklog(t)
			if typ == lb.CheckHTTP {
				addr = serve(t, func(conn net.Conn) { io.Copy(io.Discard, conn) })
			}
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(50*time.Millisecond, cancel)
			start := time.Now()
			target := lb.Target{Address: addr.Addr(), Check: lb.Check{Type: typ, Port: addr.Port(), Path: "/", Timeout: time.Minute}}
			probes, err := newProbes(target, direct, nil)
			if err != nil {
				t.Fatal(err)
			}
			err = probes[0](ctx)
			if took := time.Since(start); err == nil || took > 10*time.Second {
				t.Errorf("got %v after %v, want an error after about 50ms", err, took)
			}
		})
	}
}

func FuzzHTTPAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
	f.Add([]byte("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 503 No\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"))
	f.Add([]byte("SSH-2.0-OpenSSH_9.2\r\n"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		ours, theirs := net.Pipe()
		defer ours.Close()
		go func() {
			defer theirs.Close()
			if _, err := http.ReadRequest(bufio.NewReader(theirs)); err == nil {
				theirs.Write(answer)
			}
		}()
		dial := func(context.Context, string, string) (net.Conn, error) { return ours, nil }
		err := askBy(t, dial, netip.MustParseAddrPort("192.0.2.11:80"), get(lb.Check{}))
		if err != nil && len(err.Error()) > 200 {
			t.Errorf("an error of %d bytes quotes the answer: %.200q", len(err.Error()), err.Error())
		}
	})
}

// ask makes one probe with a timeout of 300 ms.
func ask(t *testing.T, addr netip.AddrPort, check lb.Check) error {
	t.Helper()
	return askBy(t, direct, addr, check)
}

func askBy(t *testing.T, dial dialFunc, addr netip.AddrPort, check lb.Check) error {
	t.Helper()
	check.Port, check.Timeout = addr.Port(), 300*time.Millisecond
	probe, err := newProbe(lb.Target{Check: check}, endpoint{AddrPort: addr}, dial)
	if err != nil {
		t.Fatal(err)
	}
	return probe(t.Context())
}

// get completes a check of type http or https as config does.
func get(check lb.Check) lb.Check {
	if check.Type == lb.CheckTCP {
		check.Type = lb.CheckHTTP
	}
	check.TLS = check.Type == lb.CheckHTTPS
	check.Path, check.Method = cmp.Or(check.Path, "/"), cmp.Or(check.Method, "GET")
	if check.Status == nil {
		check.Status = []lb.StatusRange{{First: 200, Last: 299}}
	}
	return check
}

// expect compares err with a text in which * stands for any one word; the
// empty text stands for no error.
func expect(t *testing.T, err error, format string, args ...any) {
	t.Helper()
	got, want := "", fmt.Sprintf(format, args...)
	if err != nil {
		got = err.Error()
	}
	before, after, wild := strings.Cut(want, "*")
	if wild && strings.HasPrefix(got, before) && strings.HasSuffix(got, after) {
		return
	}
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// serve answers one connection on loopback with handle, then closes it.
func serve(t *testing.T, handle func(net.Conn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		handle(conn)
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// closedPort is an address that was free a moment ago.
func closedPort(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// fullBacklog is an address at which SYNs are dropped: the listener's queue
// has one place, which a connection of ours fills.
func fullBacklog(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(name.(*unix.SockaddrInet4).Port))
	conn, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return addr
}
