package lab

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/admin"
)

// built is the path of halfproxy as users run it, built once for all tests.
var built string

// standEnv asks the test program to be a lab that stands until it is killed.
const standEnv = "HPTEST_LAB_STAND"

func TestMain(m *testing.M) {
	if built = os.Getenv(standEnv); built != "" {
		stand()
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	if os.Geteuid() == 0 { // else all that need it skip
		dir, err := os.MkdirTemp("", "hptest-lab-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		built = filepath.Join(dir, "halfproxy")
		build := exec.Command("go", "build", "-o", built, "../cmd/halfproxy")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build halfproxy: %v\n%s", err, out)
			return 1
		}
		if err := readSources(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// readSources looks at all that the binary is built from. The go command takes
// a cached result for as long as what the test has looked at stays the same.
func readSources() error {
	return filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && path != ".." && strings.HasPrefix(d.Name(), ".") {
			return fs.SkipDir
		}
		return err
	})
}

// testOptions keep labs apart of whoever else runs tests on this machine.
func testOptions(pid int) Options {
	return Options{Prefix: fmt.Sprintf("hptest-lab-%d-", pid), Binary: built}
}

// start builds a lab that serves, and takes it down when the test ends. It may stand
// beside those of other tests: two at a time do on two cores, where nothing is measured.
func start(t *testing.T, o Options) *Lab {
	t.Helper()
	needRoot(t)
	needs := map[string]string{FRR: "/usr/lib/frr/bgpd", BIRD: "/usr/sbin/bird"}
	if program := needs[o.Router]; program != "" {
		if _, err := os.Stat(program); err != nil {
			t.Skipf("%s is not installed: apt-get install frr bird2", program)
		}
	}
	test := testOptions(os.Getpid())
	own := crc32.ChecksumIEEE([]byte(t.Name()))
	o.Prefix, o.Binary, o.Log = fmt.Sprintf("%s%08x-", test.Prefix, own), test.Binary, slog.New(slog.NewTextHandler(t.Output(), nil))
	l, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			var logs bytes.Buffer
			l.WriteLogs(&logs, 40)
			t.Logf("logs:\n%s", &logs)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	settle(t, l)
	return l
}

// settle waits until the lab serves with all that runs in it.
func settle(t *testing.T, l *Lab) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := l.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
}

// rewrite has a node take its file as change makes it.
func rewrite(t *testing.T, n *Node, change func(file string) string) {
	t.Helper()
	content, err := os.ReadFile(n.config)
	must(t, err)
	changed := change(string(content))
	if changed == string(content) {
		t.Fatalf("%s: nothing to change", n.config)
	}
	must(t, os.WriteFile(n.config, []byte(changed), 0o600))
	must(t, admin.NewClient(n.Socket).Reload(t.Context()))
}

// reconfigure has every node take the lab's file with other options in the place of the
// services' ports, and waits until all go by it. more are texts of the file, and what to
// put in their place.
func reconfigure(t *testing.T, l *Lab, options string, more ...string) {
	t.Helper()
	ports := fmt.Sprintf("ports: [tcp/%d]", servicePort)
	configOf := func(n *Node) string {
		status, err := n.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return status.ConfigDigest
	}
	for i, n := range l.Nodes() {
		before := configOf(n)
		if err := l.writeConfig(i); err != nil {
			t.Fatal(err)
		}
		rewrite(t, n, strings.NewReplacer(append(more, ports, options)...).Replace)
		for end := time.Now().Add(10 * time.Second); configOf(n) == before; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s does not go by its new configuration", n.Name)
			}
		}
	}
	settle(t, l)
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
}
