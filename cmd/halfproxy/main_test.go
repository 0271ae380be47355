package main

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// call runs the command and gives what it printed and its exit code.
func call(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(t.Context(), args, &out, &err)
	return out.String(), err.String(), code
}

func TestExitCodesTellUsageFromFailure(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	for _, tt := range []struct {
		args string
		code int
		says string // on stdout for code 0, else on stderr
	}{
		{"", exitDone, "Usage:"},
		{"--help", exitDone, "Usage:"},
		{"--version", exitDone, version},
		{"nonsense", exitUsage, `unknown command "nonsense"`},
		{"chekc", exitUsage, "Did you mean this?\n\tcheck"},
		{"check --confg x", exitUsage, "unknown flag: --confg: did you mean --config?"},
		{"drain backends web1", exitUsage, `unknown command "backends" for "halfproxy drain": did you mean "backend"?`},
		{"check --nonsense", exitUsage, "unknown flag: --nonsense"},
		{"check surplus", exitUsage, `there is no place for "surplus": a file is named with --config`},
		{"check --expand --diff", exitUsage, "--expand and --diff do not go together"},
		{"run --log-level loud", exitUsage, `"loud" for "--log-level" flag: use debug, info, warn or error`},
		{"check --config " + missing, exitNo, missing},
		{"run --config " + missing, exitNo, missing},
		{"status --socket " + missing, exitNo, missing},
		{"events --last -1", exitUsage, "--last -1 makes no sense"},
		{"events --since yesterday", exitUsage, `--since "yesterday" is neither an age nor a time`},
		{"events surplus", exitUsage, `there is no place for "surplus": halfproxy events [flags]`},
		{"events --socket " + missing, exitNo, missing},
		{"trace tcp 198.51.100.7:1", exitUsage, "2 arguments given, 3 wanted: halfproxy trace PROTO SRC:PORT DST:PORT"},
		{"trace icmp 198.51.100.7:1 203.0.113.10:80", exitUsage, `protocol "icmp" is unknown`},
		{"trace tcp 198.51.100.7 203.0.113.10:80", exitUsage, "no address with a port"},
		{"trace tcp 198.51.100.7:1 [2001:db8::10]:80", exitUsage, "different families"},
		{"trace tcp 198.51.100.7:1 203.0.113.10:80 --socket " + missing, exitNo, missing},
		{"drain", exitUsage, "drain what? use node [NAME], backend NAME or service NAME"},
		{"drain cluster x", exitUsage, `unknown command "cluster"`},
		{"drain backend", exitUsage, "0 arguments given, 1 wanted: halfproxy drain backend NAME [flags]\nTry `halfproxy drain backend --help`."},
		{"drain --undo backend web1 --wait", exitUsage, "--wait is for a drain that begins"},
		{"drain --udno backend web1", exitUsage, "unknown flag: --udno: did you mean --undo?"},
		{"fail --for -5m backend web1", exitUsage, "makes no sense here"},
		{"fail", exitUsage, "fail what? use backend NAME"},
		{"help drian", exitUsage, `unknown command "drian"`},
		{"completion tcsh", exitUsage, `unknown command "tcsh" for "halfproxy completion"`},
		{"drain backend /web1", exitUsage, "no service before the /"},
		{"drain backend web1 --for -5m", exitUsage, "makes no sense here"},
		{"drain backend web1 --undo --for 5m", exitUsage, "makes no sense here"},
		{"weight backend web1", exitUsage, "1 argument given, 2 wanted: halfproxy weight backend NAME N"},
		{"weight backend web1 heavy", exitUsage, `weight "heavy" is no whole number`},
		{"weight backend web1 --undo --socket " + missing, exitNo, missing},
		{"status --watch=1ms", exitUsage, "--watch=1ms is too often"},
		{"drain backend web1 --undo --wait", exitUsage, "--wait is for a drain that begins"},
		{"fail backend web1 --wait", exitUsage, "unknown flag: --wait"},
		{"fail service web", exitUsage, `unknown command "service"`},
		{"drain node lb1 --socket " + missing, exitNo, missing},
		{"drain node --socket " + missing, exitNo, missing},
		{"drain node lb1 lb2", exitUsage, "2 arguments given, 1 wanted: halfproxy drain node [NAME]"},
		{"capture surplus", exitUsage, `there is no place for "surplus"`},
		{"capture --verdict lost", exitUsage, `--verdict: verdict "lost" is unknown: use one of forwarded, answered_echo`},
		{"capture --dropped --verdict not_vip", exitUsage, "--dropped and --verdict do not go together"},
		{"capture --host web", exitUsage, `--host "web" is no address and no prefix`},
		{"capture --host ::ffff:192.0.2.1", exitUsage, "no address and no prefix"},
		{"capture --host fe80::1%eth0", exitUsage, "no address and no prefix"},
		{"capture --host 192.0.2.0/33", exitUsage, "no address and no prefix"},
		{"capture --direction up", exitUsage, `"up" for "--direction" flag: use in, out or both`},
		{"capture --sample 0", exitUsage, "--sample 0 would be none"},
		{"capture --snaplen 0", exitUsage, "--snaplen 0 is out of range: use 1 to 16384"},
		{"capture --snaplen 16385", exitUsage, "out of range"},
		{"capture --rate 9", exitUsage, "--rate 9 is too low: use 10 or more"},
		{"capture --duration -1s", exitUsage, "--duration -1s makes no sense"},
		{"capture --socket " + missing, exitNo, missing},
		{"lab --forward pigeon", exitUsage, `"pigeon" for "--forward" flag: use l2, ipip, gre or gue`},
		{"lab --router carp", exitUsage, `use embedded, frr or bird`},
		{"lab --story novel", exitUsage, `use failover, drain, upgrade, flood or partition`},
		{"lab --nodes 0", exitUsage, "--nodes and --backends are 1 at least"},
	} {
		stdout, stderr, code := call(t, strings.Fields(tt.args)...)
		says := stderr
		if tt.code == exitDone {
			says = stdout
		}
		if code != tt.code || !strings.Contains(says, tt.says) {
			t.Errorf("halfproxy %s: got code %d, %q, want %d and %q", tt.args, code, says, tt.code, tt.says)
		}
	}
}

func TestACaptureIsNotWrittenToATerminal(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	defer terminal.Close()
	t.Setenv("NO_COLOR", "1") // has nothing to do with it
	var stderr bytes.Buffer
	code := run(t.Context(), []string{"capture", "--socket", filepath.Join(t.TempDir(), "missing")}, terminal, &stderr)
	if want := "a capture is no text for a terminal: name a file with -w FILE, or pipe it"; code != exitUsage || !strings.Contains(stderr.String(), want) {
		t.Errorf("got code %d, %q, want %d and %q", code, stderr.String(), exitUsage, want)
	}
}

func TestCheckPrintsEveryErrorAtOnce(t *testing.T) {
	file := write(t, "node: {interfaces: []}\nhttp: {listen: nowhere}\nservices:\n  - {name: web, vips: [203.0.113.300]}\n")
	_, stderr, code := call(t, "check", "--config", file)
	for _, want := range []string{"node.interfaces", "http.listen", "203.0.113.300"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("got %q, want it to speak of %s", stderr, want)
		}
	}
	if code != exitNo {
		t.Errorf("exit code: got %d, want %d", code, exitNo)
	}
}

func TestCheckTakesAGoodFile(t *testing.T) {
	stdout, stderr, code := call(t, "check", "--config", write(t, alone("127.0.0.1:9870", "eth0")))
	if code != exitDone || !strings.Contains(stdout, "good, 1 service") {
		t.Errorf("got code %d, %q, %q, want it taken", code, stdout, stderr)
	}
}

func TestCheckExpandsAFileToOneThatSaysAllOfIt(t *testing.T) {
	stdout, stderr, code := call(t, "check", "--expand", "--config", write(t, alone("127.0.0.1:9870", "eth0")))
	for _, want := range []string{"  name: lb1\n", "  linger: 10s  # default\n", "      interval: 1s  # default\n", "      # not set: observers\n"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("got %q, want it to have %q", stdout, want)
		}
	}
	if code != exitDone {
		t.Fatalf("got code %d, %q", code, stderr)
	}
	if again, stderr, code := call(t, "check", "--expand", "--config", write(t, stdout)); code != exitDone || strings.ReplaceAll(again, "  # default", "") != strings.ReplaceAll(stdout, "  # default", "") {
		t.Errorf("once more: got code %d, %s%s", code, again, stderr)
	}
}

func TestCheckKnowsABackendsFile(t *testing.T) {
	const good = "interfaces: [eth0]\nvips: [203.0.113.10]\n"
	for _, tt := range []struct {
		name, file string
		flag       string
		code       int
		says       string
	}{
		{"a good one", good, "", exitDone, "FILE: good, a backend of 1 VIP\n"},
		{"with its defaults", good, "--expand", exitDone, "  listen: 127.0.0.1:9871  # default\n"},
		{"a wrong one", good + "decap: [ipip]\n", "", exitNo, "sources"},
		{"one that a node that runs knows nothing of", good, "--diff", exitNo, "systemctl restart halfproxy-backend"},
		{"a node's with a key in the wrong place", good + "services: []\n", "", exitNo, "node"},
	} {
		file := write(t, tt.file)
		args := []string{"check", "--config", file}
		if tt.flag != "" {
			args = append(args, tt.flag)
		}
		stdout, stderr, code := call(t, args...)
		if want := strings.ReplaceAll(tt.says, "FILE", file); code != tt.code || !strings.Contains(stdout+stderr, want) {
			t.Errorf("%s: got code %d, %s%swant %d and %q", tt.name, code, stdout, stderr, tt.code, want)
		}
	}
}

func TestDoctorLooksAtABackend(t *testing.T) {
	const lacks = "vip 203.0.113.10 is not on lo"
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintf(w, `{"status":"unhealthy","reasons":[%q]}`, lacks)
	}))
	listen := backend.Listener.Addr().String()
	file := write(t, "interfaces: [eth9]\nvips: [203.0.113.10]\nhttp: {listen: \""+listen+"\"}\n")
	stdout, _, code := call(t, "doctor", "--config", file)
	for _, want := range []string{"problem  halfproxy backend says: " + lacks + "\n", "eth9: there is no such interface", file + ": interfaces: the names of"} {
		if code != exitNo || !strings.Contains(stdout, want) {
			t.Errorf("got code %d, %s, want %d and %q", code, stdout, exitNo, want)
		}
	}
	backend.Close()
	if stdout, _, _ = call(t, "doctor", "--config", file); strings.Contains(stdout, lacks) || !strings.Contains(stdout, "`halfproxy backend` does not run") {
		t.Errorf("without a backend that runs: got %s", stdout)
	}
	if stdout, _, code = call(t, "doctor", "--config", write(t, "interfaces: [eth0]\nvips: [203.0.113.10]\ndecap: [ipip]\n")); code != exitNo || !strings.Contains(stdout, "the backend does not start with it: ") {
		t.Errorf("a wrong file: got code %d, %s", code, stdout)
	}
}

func TestANodeThatCannotStartSaysWhy(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, stderr, code := call(t, "run", "--config", write(t, alone(taken.Addr().String(), "eth0")))
	if code != exitNo || !strings.Contains(stderr, "another program has the port") {
		t.Errorf("taken port: got code %d, %q, want %d and the remedy", code, stderr, exitNo)
	}

	if os.Geteuid() != 0 {
		t.Skip("loading the program needs root")
	}
	file := write(t, alone("127.0.0.1:39870", "nonesuch0"))
	_, stderr, code = call(t, "run", "--config", file)
	if code != exitNo || !strings.Contains(stderr, "nonesuch0") {
		t.Errorf("no such interface: got code %d, %q, want %d and its name", code, stderr, exitNo)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(file), "*.sock")); len(left) > 0 {
		t.Errorf("left behind: got %v, want nothing", left)
	}
}

// alone is the configuration of a node without a cluster.
func alone(listen, iface string) string {
	return fmt.Sprintf(`
node: {name: lb1, interfaces: [%s]}
http: {listen: "%s"}
admin: {socket: SOCKET}
services:
  - name: web
    vips: [203.0.113.10]
    ports: [tcp/80]
    backends: [{name: web1, address: 192.0.2.1}]
`, iface, listen)
}

func write(t *testing.T, content string) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "halfproxy.yaml")
	content = strings.ReplaceAll(content, "SOCKET", filepath.Join(dir, "admin.sock"))
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
