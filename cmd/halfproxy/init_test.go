package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/halfproxy/halfproxy/internal/netns"
)

// initIn runs init in a namespace.
func initIn(t *testing.T, host *netns.NS, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	must(t, host.Do(func() error {
		stdout, stderr, code = call(t, append([]string{"init"}, args...)...)
		return nil
	}))
	return stdout, stderr, code
}

func in(t *testing.T, host *netns.NS, command string) {
	t.Helper()
	words := strings.Fields(command)
	cmd := exec.Command(words[0], words[1:]...)
	var said strings.Builder
	cmd.Stderr = &said
	must(t, host.Start(cmd))
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s: %v: %s", command, err, said.String())
	}
}

func TestInitWritesWhatTheHostShows(t *testing.T) {
	host := cabled(t)

	if _, stderr, code := initIn(t, host, "--config", "-"); code != exitNo || !strings.Contains(stderr, "name one with --interface") {
		t.Errorf("no addresses: got code %d, %q", code, stderr)
	}
	if _, stderr, code := initIn(t, host, "--config", "-", "--interface", "eth7"); code != exitNo || !strings.Contains(stderr, `there is no interface "eth7"`) {
		t.Errorf("an interface that there is not: got code %d, %q", code, stderr)
	}

	in(t, host, "ip addr add 192.0.2.5/24 dev eth0")
	in(t, host, "ip -6 addr add 2001:db8:2::5/64 dev eth0 nodad")
	stdout, stderr, code := initIn(t, host, "--config", "-")
	if want := "interfaces: [eth0]"; code != exitDone || !strings.Contains(stdout, want) || !strings.Contains(stdout, "\n# bgp:\n") ||
		!strings.Contains(stderr, "guessed: node.interfaces: eth0, it is the first that is up and has a global address; there is no default route") {
		t.Errorf("no default route: got code %d, %s%s", code, stdout, stderr)
	}

	in(t, host, "ip route add default via 192.0.2.1")
	in(t, host, "ip -6 route add default via 2001:db8:2::1")
	file := filepath.Join(t.TempDir(), "etc", "halfproxy.yaml")
	_, stderr, code = initIn(t, host, "--config", file, "--asn", "64512")
	text, err := os.ReadFile(file)
	if err != nil || code != exitDone {
		t.Fatalf("got code %d, %v: %s", code, err, stderr)
	}
	for _, want := range []string{
		"GUESS: it has the default route.\n  interfaces: [eth0]", "#   listen: \"192.0.2.5:7946\"", "\nbgp:\n  asn: 64512\n",
		"router_id: 192.0.2.5", "- address: \"192.0.2.1\"\n      asn: 64501   # PLACEHOLDER", "- address: \"2001:db8:2::1\"",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("got\n%s\nwant it to have %q", text, want)
		}
	}
	for _, want := range []string{"guessed: bgp.peers: 192.0.2.1, where the default route goes", "PLACEHOLDER", file + " is written"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("got %q, want it to say %q", stderr, want)
		}
	}
	if stdout, stderr, code := call(t, "check", "--config", file); code != exitDone {
		t.Errorf("check of it: got code %d, %s%s", code, stdout, stderr)
	}

	if _, stderr, code := initIn(t, host, "--config", file); code != exitNo || !strings.Contains(stderr, "is there already and stays") {
		t.Errorf("once more: got code %d, %q", code, stderr)
	}
	if again, _ := os.ReadFile(file); string(again) != string(text) {
		t.Error("the file that was there is another now")
	}
}

// Without comment signs the file says what it says they would.
func TestWhatInitCommentsOutWouldBeTaken(t *testing.T) {
	host := cabled(t)
	in(t, host, "ip addr add 192.0.2.5/24 dev eth0")
	stdout, _, _ := initIn(t, host, "--config", "-")
	var all []string
	for line := range strings.Lines(stdout) {
		switch bare := strings.TrimPrefix(strings.TrimPrefix(line, "# "), "#"); {
		case line == "services: []\n":
		case strings.HasPrefix(line, "# ") && (strings.HasPrefix(bare, " ") || strings.HasSuffix(strings.TrimSpace(bare), ":") && !strings.Contains(strings.TrimSpace(bare), " ")):
			all = append(all, bare)
		default:
			all = append(all, line)
		}
	}
	file := write(t, strings.Join(all, ""))
	must(t, os.WriteFile(filepath.Join(filepath.Dir(file), "cluster.key"), []byte(keyA), 0o600))
	if _, stderr, code := call(t, "check", "--config", file); code != exitDone {
		t.Errorf("got %s, of\n%s", stderr, strings.Join(all, ""))
	}
}

func TestInitTakesServicesOfKeepalived(t *testing.T) {
	host := cabled(t)
	in(t, host, "ip addr add 192.0.2.5/24 dev eth0")
	file := filepath.Join(t.TempDir(), "halfproxy.yaml")
	_, stderr, code := initIn(t, host, "--config", file, "--from-keepalived", "../../setup/testdata/keepalived.conf")
	if code != exitDone || !strings.Contains(stderr, "keepalived.conf:6: vrrp_instance VI_1: left out") {
		t.Errorf("got code %d, %q", code, stderr)
	}
	if stdout, stderr, code := call(t, "check", "--config", file); code != exitDone || !strings.Contains(stdout, "good, 3 services") {
		t.Errorf("check of it: got code %d, %s%s", code, stdout, stderr)
	}
	wrong := write(t, "virtual_server 127.0.0.1 80 {\nlvs_method DR\nreal_server 10.0.1.11 80 {\n}\n}\n")
	other := filepath.Join(t.TempDir(), "halfproxy.yaml")
	if _, stderr, code := initIn(t, host, "--config", other, "--from-keepalived", wrong); code != exitNo || !strings.Contains(stderr, "nothing is written") || !strings.Contains(stderr, `vips[0] "127.0.0.1" is not routed`) {
		t.Errorf("a VIP that cannot be: got code %d, %q", code, stderr)
	}
	if _, err := os.Stat(other); err == nil {
		t.Error("a file that would not be taken is written")
	}
}
