package admin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/halfproxy/halfproxy/admin"
	"github.com/halfproxy/halfproxy/events"
)

// config is of a healthy node that listens on a free port and a socket.
func config(t *testing.T) admin.Config {
	t.Helper()
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "halfproxy_test", Help: "A metric."}, func() float64 { return 42 }))
	return admin.Config{
		Listen:   netip.MustParseAddrPort("127.0.0.1:0"),
		Socket:   socketPath(t),
		Status:   troubled,
		Health:   func() []string { return nil },
		Ready:    func() []string { return nil },
		Gatherer: metrics,
		Traffic:  func() (admin.Traffic, error) { return admin.Traffic{}, nil },
		Events:   events.NewRing(10).After,
		Reload:   func(context.Context) error { return nil },
		Log:      slog.New(slog.DiscardHandler),
	}
}

// socketPath is short: t.TempDir has the test's name in it, and a socket's
// path at most 107 bytes.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hptest-admin-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "admin.sock")
}

// node is a Server that runs until the test ends.
type node struct {
	url    string // of the TCP listener
	socket *http.Client
	path   string
	stop   func() error // ends Run and gives its error
}

func start(t *testing.T, cfg admin.Config) node {
	t.Helper()
	s, err := admin.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop := sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Run: got %v, want nil", err)
		}
	})
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", cfg.Socket)
		},
	}
	return node{url: "http://" + s.Addr(0).String(), socket: &http.Client{Transport: transport}, path: cfg.Socket, stop: stop}
}

func ask(t *testing.T, c *http.Client, method, url string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func TestReadsAreServedOverTCPAndTheSocketAlike(t *testing.T) {
	cfg := config(t)
	cfg.Ready = func() []string { return []string{"no VIP is announced", "no BGP peer is established"} }
	cfg.Status = func() admin.Status { // the health is the server's to fill in
		st := troubled()
		st.Node.Health, st.Node.Ready = admin.Health{}, admin.Health{}
		return st
	}
	n := start(t, cfg)
	var status strings.Builder
	if err := troubled().WriteJSON(&status); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path, contentType, body string
		code                    int
	}{
		{"/healthz", "application/json", "{\n  \"status\": \"ok\",\n  \"reasons\": []\n}\n", 200},
		{"/readyz", "application/json", `{
  "status": "not ready",
  "reasons": [
    "no VIP is announced",
    "no BGP peer is established"
  ]
}
`, 503},
		{"/api/v1/status", "application/json", status.String(), 200},
		{"/metrics", "text/plain", "# HELP halfproxy_test A metric.\n# TYPE halfproxy_test gauge\nhalfproxy_test 42\n", 200},
	} {
		for _, listener := range []struct {
			name, url string
			client    *http.Client
		}{
			{"TCP", n.url, http.DefaultClient},
			{"the socket", "http://halfproxy", n.socket},
		} {
			resp, body := ask(t, listener.client, "GET", listener.url+tt.path)
			if resp.StatusCode != tt.code || body != tt.body {
				t.Errorf("GET %s over %s: got %d\n%s\nwant %d\n%s", tt.path, listener.name, resp.StatusCode, body, tt.code, tt.body)
			}
			if got := resp.Header.Get("Content-Type"); !strings.HasPrefix(got, tt.contentType) {
				t.Errorf("GET %s over %s: got content type %q, want %q", tt.path, listener.name, got, tt.contentType)
			}
			resp, body = ask(t, listener.client, "HEAD", listener.url+tt.path)
			if resp.StatusCode != tt.code || body != "" {
				t.Errorf("HEAD %s over %s: got %d %q, want %d and no body", tt.path, listener.name, resp.StatusCode, body, tt.code)
			}
		}
	}
}

func TestHealthAndReadinessAreSeparate(t *testing.T) {
	none, some := []string(nil), []string{"the program is not attached to eth0"}
	for _, tt := range []struct {
		unhealthy, notReady []string
		healthz, readyz     admin.Health
	}{
		{none, none, admin.Health{Status: "ok"}, admin.Health{Status: "ok"}},
		{some, none, admin.Health{Status: "unhealthy", Reasons: some}, admin.Health{Status: "ok"}},
		{none, some, admin.Health{Status: "ok"}, admin.Health{Status: "not ready", Reasons: some}},
		{some, some, admin.Health{Status: "unhealthy", Reasons: some}, admin.Health{Status: "not ready", Reasons: some}},
	} {
		cfg := config(t)
		cfg.Health = func() []string { return tt.unhealthy }
		cfg.Ready = func() []string { return tt.notReady }
		n := start(t, cfg)
		for path, want := range map[string]admin.Health{"/healthz": tt.healthz, "/readyz": tt.readyz} {
			code := 503
			if want.Status == "ok" {
				code = 200
			}
			resp, body := ask(t, http.DefaultClient, "GET", n.url+path)
			var got admin.Health
			if err := json.Unmarshal([]byte(body), &got); err != nil {
				t.Fatalf("%s: %v in %s", path, err, body)
			}
			if resp.StatusCode != code || got.Status != want.Status || strings.Join(got.Reasons, "|") != strings.Join(want.Reasons, "|") {
				t.Errorf("%s with %q and %q: got %d %v, want %d %v", path, tt.unhealthy, tt.notReady, resp.StatusCode, got, code, want)
			}
		}
	}
}

func TestOneBrokenMetricDoesNotHideTheOthers(t *testing.T) {
	cfg := config(t)
	cfg.Gatherer.(*prometheus.Registry).MustRegister(broken{})
	resp, body := ask(t, http.DefaultClient, "GET", start(t, cfg).url+"/metrics")
	if resp.StatusCode != 200 || !strings.Contains(body, "halfproxy_test 42") {
		t.Errorf("got %d\n%s\nwant 200 with halfproxy_test 42", resp.StatusCode, body)
	}
}

type broken struct{}

var brokenDesc = prometheus.NewDesc("halfproxy_broken", "A metric that cannot be read.", nil, nil)

func (broken) Describe(ch chan<- *prometheus.Desc) { ch <- brokenDesc }
func (broken) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.NewInvalidMetric(brokenDesc, errors.New("map is gone"))
}

func TestEverythingElseIsNotFound(t *testing.T) {
	n := start(t, config(t))
	for _, path := range []string{"/console", "/console/", "/console/index.html", "/index.html", "/healthz/", "/api/v1/", "/api/v1/reload", "/api/v2/status", "/debug/pprof/", "/favicon.ico"} {
		if resp, _ := ask(t, http.DefaultClient, "GET", n.url+path); resp.StatusCode != 404 {
			t.Errorf("GET %s: got %d, want 404", path, resp.StatusCode)
		}
	}
}

func TestNothingChangesOverTCP(t *testing.T) {
	cfg := config(t)
	cfg.Reload = func(context.Context) error { t.Error("reloaded over TCP"); return nil }
	n := start(t, cfg)
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"} {
		for _, path := range []string{"/healthz", "/readyz", "/metrics", "/api/v1/status", "/api/v1/reload", "/nothing"} {
			resp, _ := ask(t, http.DefaultClient, method, n.url+path)
			if resp.StatusCode != 405 || resp.Header.Get("Allow") != "GET, HEAD" {
				t.Errorf("%s %s: got %d, Allow %q, want 405, GET, HEAD", method, path, resp.StatusCode, resp.Header.Get("Allow"))
			}
		}
	}
	if got := raw(t, n.url, "OPTIONS * HTTP/1.0\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.0 405 ") {
		t.Errorf("OPTIONS *: got %q, want 405", got)
	}
}

func TestHeadersHaveALimit(t *testing.T) {
	n := start(t, config(t))
	got := raw(t, n.url, "GET /healthz HTTP/1.0\r\nX: "+strings.Repeat("x", 21<<10)+"\r\n\r\n")
	if !strings.HasPrefix(got, "HTTP/1.1 431 ") {
		t.Errorf("21 KiB of headers: got %q, want 431", got)
	}
}

// raw sends request as it is and gives the whole answer.
func raw(t *testing.T, url, request string) string {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return string(answer)
}

func TestRunEndsCleanlyAndLeavesNoFile(t *testing.T) {
	n := start(t, config(t))
	ask(t, n.socket, "GET", "http://halfproxy/healthz")
	if err := n.stop(); err != nil {
		t.Errorf("Run: got %v, want nil", err)
	}
	if _, err := os.Lstat(n.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket's file after Run: got %v, want none", err)
	}
	if conn, err := net.Dial("tcp", strings.TrimPrefix(n.url, "http://")); err == nil {
		conn.Close()
		t.Error("the port is still bound after Run")
	}
}

func TestRunOfACancelledContextReleasesTheListeners(t *testing.T) {
	cfg := config(t)
	s, err := admin.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Errorf("got %v, want nil", err)
	}
	if _, err := os.Lstat(cfg.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket's file after Run: got %v, want none", err)
	}
}

func TestRunLetsAnAnswerUnderWayFinish(t *testing.T) {
	cfg := config(t)
	begun := make(chan struct{})
	cfg.Reload = func(ctx context.Context) error {
		close(begun)
		<-ctx.Done()
		time.Sleep(50 * time.Millisecond) // an end without grace would cut the answer off
		return errors.New("the daemon stops")
	}
	n := start(t, cfg)
	answer := make(chan error, 1)
	go func() { answer <- admin.NewClient(cfg.Socket).Reload(context.Background()) }()
	<-begun
	if err := n.stop(); err != nil {
		t.Errorf("Run: got %v, want nil", err)
	}
	if err := <-answer; err == nil || err.Error() != "the daemon stops" {
		t.Errorf("Reload: got %v, want the daemon stops", err)
	}
}

func TestRunReportsAListenerThatFails(t *testing.T) {
	cfg := config(t)
	s, err := admin.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := s.Run(context.Background()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Run after Close: got %v, want %v", err, net.ErrClosed)
	}
}

func TestListenersAreOptional(t *testing.T) {
	cfg := config(t)
	cfg.Listen, cfg.Socket = netip.AddrPort{}, ""
	s, err := admin.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Errorf("got %v, want nil", err)
	}
}

func TestATakenPortIsAnErrorThatSaysWhatToDo(t *testing.T) {
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, tt := range []struct{ address, want string }{
		{taken.Addr().String(), "http.listen: listen tcp4 " + taken.Addr().String() +
			": bind: address already in use: another program has the port: stop it (`ss -ltnp` names it) or change http.listen"},
		{"192.0.2.1:9870", "http.listen: listen tcp4 192.0.2.1:9870: bind: cannot assign requested address: " +
			"this host does not have the address: change http.listen"},
		{"[2001:db8::1]:9870", "http.listen: listen tcp [2001:db8::1]:9870: bind: cannot assign requested address: " +
			"this host does not have the address: change http.listen"},
	} {
		cfg := config(t)
		cfg.Listen = netip.MustParseAddrPort(tt.address)
		_, err := admin.New(cfg)
		if err == nil || err.Error() != tt.want {
			t.Errorf("got  %v\nwant %s", err, tt.want)
		}
		if _, err := os.Lstat(cfg.Socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket's file after a failed New: got %v, want none", err)
		}
	}
}

func TestIPv6IsServed(t *testing.T) {
	cfg := config(t)
	cfg.Listen = netip.MustParseAddrPort("[::1]:0")
	if resp, _ := ask(t, http.DefaultClient, "GET", start(t, cfg).url+"/healthz"); resp.StatusCode != 200 {
		t.Errorf("got %d, want 200", resp.StatusCode)
	}
}

func TestTheSocketIsForItsOwnerAndGroupWhateverTheUmask(t *testing.T) {
	for _, umask := range []int{0, 0o022, 0o077} {
		cfg := config(t)
		cfg.Socket = filepath.Join(filepath.Dir(cfg.Socket), "new", "admin.sock")
		before := syscall.Umask(umask)
		s, err := admin.New(cfg)
		syscall.Umask(before)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		info, err := os.Stat(cfg.Socket)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != 0o660 {
			t.Errorf("umask %03o: got mode %03o, want 660", umask, got)
		}
		info, err = os.Stat(filepath.Dir(cfg.Socket))
		if err != nil {
			t.Fatal(err)
		}
		if got, want := info.Mode().Perm(), os.FileMode(0o755&^umask); got != want {
			t.Errorf("umask %03o: got mode %03o for its directory, want %03o", umask, got, want)
		}
	}
}

// leaveStale leaves a socket at path as a killed process does.
func leaveStale(t *testing.T, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
}

func TestASocketThatADeadProcessLeftIsReplaced(t *testing.T) {
	cfg := config(t)
	leaveStale(t, cfg.Socket)
	n := start(t, cfg)
	if resp, _ := ask(t, n.socket, "GET", "http://halfproxy/healthz"); resp.StatusCode != 200 {
		t.Errorf("got %d, want 200", resp.StatusCode)
	}
}

func TestASocketInUseIsLeftAlone(t *testing.T) {
	cfg := config(t)
	n := start(t, cfg)
	_, err := admin.New(cfg)
	want := "another halfproxy runs: it listens on " + cfg.Socket + ": stop it or give this one another admin.socket"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if resp, _ := ask(t, n.socket, "GET", "http://halfproxy/healthz"); resp.StatusCode != 200 {
		t.Errorf("the first one afterwards: got %d, want 200", resp.StatusCode)
	}
}

func TestAFailedSocketReleasesThePort(t *testing.T) {
	free, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	cfg := config(t)
	cfg.Listen = netip.MustParseAddrPort(free.Addr().String())
	good := cfg.Socket
	cfg.Socket = "/dev/null/admin.sock"
	if _, err := admin.New(cfg); err == nil {
		t.Fatal("got no error for a socket below /dev/null")
	}
	cfg.Socket = good
	s, err := admin.New(cfg)
	if err != nil {
		t.Fatalf("the second New: %v", err)
	}
	s.Close()
}

func TestAPathThatCannotBeASocketIsAnError(t *testing.T) {
	file := socketPath(t)
	if err := os.WriteFile(file, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	long := filepath.Join(filepath.Dir(file), strings.Repeat("x", 120-len(filepath.Dir(file))-1))
	for _, tt := range []struct{ path, want string }{
		{file, "admin socket: " + file + " is there and is not a socket: change admin.socket or move it away"},
		{long, "admin socket: listen unix " + long + ": bind: invalid argument: a path has at most 107 bytes, this one has 120"},
		{file + "/admin.sock", "admin socket: make its directory: mkdir " + file + ": not a directory: change admin.socket or make it by hand"},
	} {
		cfg := config(t)
		cfg.Socket = tt.path
		if _, err := admin.New(cfg); err == nil || err.Error() != tt.want {
			t.Errorf("got  %v\nwant %s", err, tt.want)
		}
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "precious" {
		t.Errorf("the file afterwards: got %q, %v, want precious", got, err)
	}
}

func TestTheLogSaysWhereItListens(t *testing.T) {
	var out syncBuffer
	cfg := config(t)
	cfg.Log = slog.New(slog.NewTextHandler(&out, nil))
	n := start(t, cfg)
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{strings.TrimPrefix(n.url, "http://"), cfg.Socket} {
		if want := "msg=listening part=admin address=" + address; !strings.Contains(out.String(), want) {
			t.Errorf("got\n%s\nwant %s", out.String(), want)
		}
	}
}

type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
