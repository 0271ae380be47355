package admin_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/admin"
)

func TestClientGetsTheStatusThatTheServerHas(t *testing.T) {
	cfg := config(t)
	cfg.Ready = func() []string { return troubled().Node.Ready.Reasons }
	start(t, cfg)
	got, err := admin.NewClient(cfg.Socket).Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := writeText(t, got, false), writeText(t, troubled(), false); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestReloadGivesBackEveryFaultOfTheFile(t *testing.T) {
	faults := errors.New("services[0] \"web\": no backends\nservices[1] \"dns\": vip 192.0.2.53 is taken")
	for _, want := range []error{nil, faults} {
		cfg := config(t)
		reloads := 0
		cfg.Reload = func(context.Context) error { reloads++; return want }
		n := start(t, cfg)
		got := admin.NewClient(cfg.Socket).Reload(context.Background())
		if (got == nil) != (want == nil) || got != nil && got.Error() != want.Error() {
			t.Errorf("got %v, want %v", got, want)
		}
		resp, _ := ask(t, n.socket, "POST", "http://halfproxy/api/v1/reload")
		if code := map[bool]int{true: 204, false: 422}[want == nil]; resp.StatusCode != code {
			t.Errorf("POST /api/v1/reload: got %d, want %d", resp.StatusCode, code)
		}
		if resp, _ := ask(t, n.socket, "GET", "http://halfproxy/api/v1/reload"); resp.StatusCode != 405 {
			t.Errorf("GET /api/v1/reload: got %d, want 405", resp.StatusCode)
		}
		n.stop()
		if reloads != 2 {
			t.Errorf("got %d reloads, want 2", reloads)
		}
	}
}

func TestClientErrorsSayWhatToDo(t *testing.T) {
	path := socketPath(t)
	check := func(about, want string) {
		t.Helper()
		_, err := admin.NewClient(path).Status(context.Background())
		if err == nil || err.Error() != want {
			t.Errorf("%s:\ngot  %v\nwant %s", about, err, want)
		}
	}
	dial := "dial unix " + path + ": connect: "
	check("no socket", dial+"no such file or directory: is halfproxy running? Another socket is chosen with --socket PATH")

	leaveStale(t, path)
	check("nobody listening", dial+"connection refused: nobody listens there any more: is halfproxy running? Another socket is chosen with --socket PATH")
	os.Remove(path)

	l := serveRaw(t, path, "HTTP/1.0 404 Not Found\r\n\r\n404 page not found\n")
	check("another version", "GET /api/v1/status on "+path+": 404 Not Found: 404 page not found: is the daemon of the same version as this program?")
	l.Close()

	l = serveRaw(t, path, "HTTP/1.0 200 OK\r\n\r\n{\"node\": 7}")
	_, err := admin.NewClient(path).Status(context.Background())
	if err == nil || !strings.HasPrefix(err.Error(), "read the status from "+path+": json: ") ||
		!strings.HasSuffix(err.Error(), ": is the daemon of the same version as this program?") {
		t.Errorf("unreadable status: got %v", err)
	}
	l.Close()
}

func TestClientSaysWhoMayUseTheSocket(t *testing.T) {
	path := socketPath(t)
	if err := os.Chmod(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	cfg := config(t)
	cfg.Socket = path
	start(t, cfg)
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 { // whom no mode keeps out
		if err := syscall.Seteuid(65534); err != nil {
			t.Fatal(err)
		}
		defer syscall.Seteuid(0)
	}
	_, err := admin.NewClient(path).Status(context.Background())
	want := "dial unix " + path + ": connect: permission denied: use sudo, or join the group that owns the socket (`ls -l " + path + "`)"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestClientDoesNotWaitForEver(t *testing.T) {
	path := socketPath(t)
	l, err := net.Listen("unix", path) // and nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	_, err = admin.NewClient(path).Status(ctx)
	if want := "context deadline exceeded: halfproxy runs but does not answer on " + path + ": see its log"; err == nil || err.Error() != want {
		t.Errorf("late:\ngot  %v\nwant %s", err, want)
	}

	ctx, cancel = context.WithCancel(context.Background())
	cancel()
	if _, err = admin.NewClient(path).Status(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v, want %v", err, context.Canceled)
	}
}

// serveRaw answers whatever is asked on path with answer.
func serveRaw(t *testing.T, path, answer string) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Read(make([]byte, 4096))
			io.WriteString(conn, answer)
			conn.Close()
		}
	}()
	return l
}
