package health

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/lb"
)

func TestExecProbe(t *testing.T) {
	for _, tt := range []struct {
		name    string
		command []string
		want    string
	}{
		{"success", []string{"/bin/true"}, ""},
		{"its exit code", []string{"/bin/sh", "-c", "exit 3"}, "/bin/sh exits with 3"},
		{"what it says", []string{"/bin/sh", "-c", "echo no such table >&2; echo more; exit 1"}, "/bin/sh exits with 1: no such table"},
		{"an end by a signal", []string{"/bin/sh", "-c", "kill -TERM $$"}, "/bin/sh: signal: terminated"},
		{"no program", []string{"/nowhere/check"}, "start /nowhere/check: no such file or directory"},
		{"no end", []string{"/bin/sh", "-c", "echo waiting; sleep 60"}, "/bin/sh not done within 2s, killed: waiting"},
		{"arguments as they are", []string{"/bin/sh", "-c", `[ "$1" = "a b" ] && [ "$2" = '$HOME' ]`, "sh", "a b", "$HOME"}, ""},
		{"what it is told, and nothing of ours", []string{"/bin/sh", "-c", `env | grep -v ^PWD= | grep -v ^SHLVL= | grep -v ^_= | grep -v ^PATH= | sed s/HALFPROXY_// | sort | tr '\n' ' '; exit 1`},
			"/bin/sh exits with 1: ADDRESS=2001:db8::11 BACKEND=web1 PORT=80 SERVICE=web TIMEOUT=2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("SECRET_OF_OURS", "hush")
			expect(t, runCommand(t, tt.command...), "%s", tt.want)
		})
	}
}

func TestExecProbeLeavesNothingBehind(t *testing.T) {
	for _, end := range []string{"exit 0", "sleep 60"} {
		t.Run(end, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "pid")
			runCommand(t, "/bin/sh", "-c", "sleep 60 & echo $! > "+file+"; "+end)
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
			if err != nil {
				t.Fatal(err)
			}
			for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				if gone(pid) {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("process %d, which the program started, lives on", pid)
				}
			}
		})
	}
}

// gone tells whether a process has ended, be it that nobody has reaped it yet.
func gone(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH)
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(after, "Z")
}

func runCommand(t *testing.T, command ...string) error {
	t.Helper()
	target := lb.Target{
		Service: "web", Backend: "web1", Address: netip.MustParseAddr("2001:db8::11"),
		Check: lb.Check{Type: lb.CheckExec, Port: 80, Timeout: 2 * time.Second, Command: command},
	}
	probes, err := newProbes(target, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return probes[0](t.Context())
}
