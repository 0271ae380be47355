package main

import (
	"log/slog"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/halfproxy/halfproxy/admin"
)

// answering is the socket of a node that has a status and nothing else.
func answering(t *testing.T, status admin.Status) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "admin.sock")
	server, err := admin.New(admin.Config{
		Socket: socket, Status: func() admin.Status { return status },
		Health: func() []string { return nil }, Ready: func() []string { return nil },
		Log: slog.New(slog.DiscardHandler),
	})
	must(t, err)
	go func() { _ = server.Run(t.Context()) }()
	return socket
}

func TestAShellIsOfferedWhatThereIs(t *testing.T) {
	socket := answering(t, admin.Status{
		Node: admin.Node{Name: "lb1"},
		Services: []admin.Service{
			{Name: "web", Backends: []admin.Backend{{Name: "web2"}, {Name: "web1"}}},
			{Name: "api", Backends: []admin.Backend{{Name: "web1"}}},
		},
	})
	for _, tt := range []struct{ line, want string }{
		{"drain backend --socket " + socket + " ", "api/web1 web/web1 web/web2 web1 web2"},
		{"drain backend --socket " + socket + " web/", "web/web1 web/web2"},
		{"drain backend --socket " + socket + " web1 ", ""},
		{"drain service --socket " + socket + " ", "api web"},
		{"drain node --socket " + socket + " ", "lb1"},
		{"weight backend --socket " + socket + " web2 ", ""},
		{"capture --socket " + socket + " --service ", "api web"},
		{"capture --socket " + socket + " --backend ", "web1 web2"},
		{"capture --verdict forw", "forwarded"},
		{"capture --direction ", "in out both"},
		{"lab --router ", "embedded frr bird"},
		{"lab --forward g", "gre gue"},
		{"run --log-level ", "debug info warn error"},
		{"drain backend --socket " + socket + "-nobody ", ""},
		{"drain ", "backend node service"},
	} {
		words := append([]string{"__complete"}, strings.Split(tt.line, " ")...)
		stdout, stderr, _ := call(t, words...)
		var offered []string
		for line := range strings.Lines(stdout) {
			word, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
			if !strings.HasPrefix(word, ":") && strings.HasPrefix(word, words[len(words)-1]) {
				offered = append(offered, word)
			}
		}
		if got := strings.Join(offered, " "); got != tt.want {
			t.Errorf("halfproxy %s: got %q, want %q (%s)", tt.line, got, tt.want, stderr)
		}
	}
}

func TestAShellIsToldWhichFlagsAreFiles(t *testing.T) {
	for _, line := range []string{"check --config ", "run --config ", "backend --config ", "doctor --config "} {
		stdout, _, _ := call(t, append([]string{"__complete"}, strings.Split(line, " ")...)...)
		if want := "yaml\nyml\n:8\n"; stdout != want {
			t.Errorf("%s: got %q, want %q", line, stdout, want)
		}
	}
	for _, line := range []string{"run --pin ", "doctor --pin "} {
		stdout, _, _ := call(t, append([]string{"__complete"}, strings.Split(line, " ")...)...)
		if want := ":16\n"; stdout != want {
			t.Errorf("%s: got %q, want %q", line, stdout, want)
		}
	}
}

func TestShellsTakeTheirCompletionScripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		script, stderr, code := call(t, "completion", shell)
		if code != exitDone || !strings.Contains(script, "halfproxy") {
			t.Errorf("%s: got code %d, %q", shell, code, stderr)
			continue
		}
		path, err := exec.LookPath(shell)
		if err != nil {
			t.Logf("%s is not here: its script is not read by it", shell)
			continue
		}
		cmd := exec.Command(path, "-n")
		cmd.Stdin = strings.NewReader(script)
		if said, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", shell, err, said)
		}
	}
}
