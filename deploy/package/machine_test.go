package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// machine has a root, a network and processes of its own, all of which end with its
// first process, and that with the test.
type machine struct {
	name, root string
	pid        string // of its first process, as this process knows it
	log        string // of its units
	patient    bool   // a unit was started, and may take a moment
	server     *http.Server
}

// searchPath is where commands are found, by root and by units.
const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func boot(t *testing.T, name, root string) *machine {
	t.Helper()
	first := exec.Command("/bin/sh", "-ec", `
		mount -t proc proc /proc
		mount -t sysfs sysfs /sys
		mount -t bpf bpf /sys/fs/bpf
		mount -t tmpfs tmpfs /run
		mkdir -p /run/systemd/system
		sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
			net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.accept_dad=0
		ip link set lo up
		echo up
		sleep infinity & wait # and reap the processes that daemons leave behind`)
	first.Env, first.Dir = []string{searchPath}, "/root"
	first.SysProcAttr = &syscall.SysProcAttr{
		Chroot:     root,
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL, // by this thread, which is locked and ends with the test
	}
	var complaints bytes.Buffer
	first.Stderr = &complaints
	out, err := first.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = first.Process.Kill() // one that has ended already is what we want
		_ = first.Wait()
	})
	if _, err := io.ReadFull(out, make([]byte, len("up\n"))); err != nil {
		_ = first.Wait()
		t.Fatalf("%s does not start: %s", name, &complaints)
	}
	return &machine{name: name, root: root, pid: fmt.Sprint(first.Process.Pid), log: filepath.Join(t.TempDir(), name+".log")}
}

// network is a path that ip takes for a network namespace's name.
func (m *machine) network() string { return "/proc/" + m.pid + "/ns/net" }

// plug joins two machines by a cable.
func plug(t *testing.T, a *machine, link string, b *machine, far string) {
	t.Helper()
	command(t, "ip", "link", "add", link, "netns", a.network(), "type", "veth", "peer", "name", far, "netns", b.network())
	// Hardware that computes checksums is not there: a native program would send packets
	// on without one.
	a.run(t, fmt.Sprintf("ip link set %s up; ethtool -K %[1]s tx off", link))
	b.run(t, fmt.Sprintf("ip link set %s up; ethtool -K %[1]s tx off", far))
}

// shell is a command line to be run by root on the machine.
func (m *machine) shell(line string) *exec.Cmd {
	cmd := exec.Command("nsenter", "--target", m.pid, "--net", "--mount", "--pid", "--root", "--wd", "sh", "-ec", line)
	cmd.Env = []string{searchPath}
	return cmd
}

func (m *machine) run(t *testing.T, line string) string {
	t.Helper()
	out, err := m.shell(line).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %s: %v\n%s", m.name, line, err, out)
	}
	return string(out)
}

// await runs the line again and again until what it prints is as it has to be.
func (m *machine) await(t *testing.T, line string, good func(out string) bool) string {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		out, err := m.shell(line).CombinedOutput()
		if err == nil && good(string(out)) {
			return string(out)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %s: not as it has to be, 20 s long (%v):\n%s", m.name, line, err, out)
		}
	}
}

// endless are the commands that go on until somebody has seen enough: for ever, or for the
// minute that a backend's older flows are waited for.
var endless = regexp.MustCompile(`^(halfproxy (status --watch|events --follow|drain backend \S+ --wait)|tcpdump)\b`)

// follow types lines one after the other, and does what they ask systemd for. It gives what
// the last one printed. What stays in the foreground is left there: see interrupt.
func (m *machine) follow(t *testing.T, lines ...string) (out string) {
	t.Helper()
	for _, line := range lines {
		switch {
		case strings.HasPrefix(line, "make "): // is done
			continue
		case foreground.MatchString(line):
			m.launch(t, "terminal", "exec "+line)
			continue
		case endless.MatchString(line):
			line = "set +e\ntimeout --preserve-status --signal INT 1 " + line + "\n[ $? -le 1 ]" // 1: not safe to stop yet
		}
		if m.patient {
			out = m.await(t, line, func(string) bool { return true })
		} else {
			out = m.run(t, line)
		}
		for _, request := range asked(t, m.root) {
			words := strings.Fields(request)
			if len(words) == 0 {
				continue
			}
			unit := words[len(words)-1]
			switch {
			case words[0] == "restart":
				m.stop(t, unit, "RestartKillSignal")
				m.start(t, unit)
			case words[0] == "start" || slices.Contains(words, "--now"):
				m.start(t, unit)
			case words[0] == "stop":
				m.stop(t, unit, "KillSignal")
			case words[0] == "reload":
				m.run(t, m.unit(t, unit).last("ExecReload"))
			}
		}
	}
	return out
}

// foreground are the commands that are the node and the backend themselves.
var foreground = regexp.MustCompile(`^halfproxy (run|backend)\b`)

// interrupt is Ctrl-C for what runs in the foreground.
func (m *machine) interrupt(t *testing.T) {
	t.Helper()
	m.end(t, "terminal", "INT")
}

// unit is what a unit's file sets.
type unit map[string][]string

func (m *machine) unit(t *testing.T, name string) unit {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(m.root, "lib/systemd/system", name+".service"))
	if err != nil {
		t.Fatal(err)
	}
	settings := unit{}
	for line := range strings.Lines(string(content)) {
		if name, value, found := strings.Cut(strings.TrimSpace(line), "="); found && !strings.HasPrefix(name, "#") {
			settings[name] = append(settings[name], value)
		}
	}
	return settings
}

func (u unit) last(name string) string {
	values := append([]string{""}, u[name]...)
	return values[len(values)-1]
}

// start is what systemd does for a unit that does not run, but for the sandbox: its
// directories, its user, its capabilities, its commands.
func (m *machine) start(t *testing.T, name string) {
	t.Helper()
	settings := m.unit(t, name)
	last := settings.last
	var script strings.Builder
	for _, file := range settings["EnvironmentFile"] {
		fmt.Fprintf(&script, "set -a; . %s; set +a\n", strings.TrimPrefix(file, "-"))
	}
	user, group, become := last("User"), last("Group"), ""
	if user != "" {
		capabilities := "-all"
		for _, c := range strings.Fields(last("AmbientCapabilities")) {
			capabilities += ",+" + strings.ToLower(strings.TrimPrefix(c, "CAP_"))
		}
		become = fmt.Sprintf("setpriv --reuid %s --regid %s --init-groups --no-new-privs --inh-caps=%s --ambient-caps=%[3]s --bounding-set=%[3]s ",
			user, group, capabilities)
	}
	for _, d := range []struct{ kind, below string }{{"Runtime", "/run/"}, {"State", "/var/lib/"}} {
		if name := last(d.kind + "Directory"); name != "" {
			fmt.Fprintf(&script, "install -d -o %s -g %s -m %s %s\n", user, group, last(d.kind+"DirectoryMode"), d.below+name)
			fmt.Fprintf(&script, "export %s_DIRECTORY=%s\n", strings.ToUpper(d.kind), d.below+name)
		}
	}
	for _, line := range settings["ExecStartPre"] {
		if asRoot, found := strings.CutPrefix(line, "+"); found {
			fmt.Fprintln(&script, asRoot)
		} else {
			fmt.Fprintln(&script, become+line)
		}
	}
	fmt.Fprintln(&script, "exec "+become+last("ExecStart"))
	m.launch(t, name, script.String())
	m.patient = true
}

// stop is what systemd does for a unit that runs, if it does.
func (m *machine) stop(t *testing.T, name, signal string) {
	t.Helper()
	settings := m.unit(t, name)
	if command := settings.last("ExecStop"); command != "" {
		m.run(t, command)
		return
	}
	m.end(t, name, cmp.Or(settings.last(signal), "TERM"))
}

// launch has the machine run a script beside the test.
func (m *machine) launch(t *testing.T, name, script string) {
	t.Helper()
	log, err := os.OpenFile(m.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close() // the script has its own copy
	cmd := m.shell("echo $$ >/run/" + name + ".pid\n" + script)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }() // it ends with the machine, or says why in the log
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		if said, err := os.ReadFile(m.log); err == nil {
			t.Logf("%s, %s:\n%s", m.name, name, said)
		}
	})
}

// end gives what was launched a signal, and waits until it is gone.
func (m *machine) end(t *testing.T, name, signal string) {
	t.Helper()
	m.run(t, fmt.Sprintf(`
		read pid </run/%s.pid || exit 0
		kill -s %s "$pid" || exit 0
		n=0
		while kill -0 "$pid" 2>/dev/null; do
			n=$((n + 1)); [ $n -lt 600 ] || { echo "it does not end"; exit 1; }
			sleep 0.1
		done`, name, strings.TrimPrefix(signal, "SIG")))
}

// serve is a web server on all addresses of the machine, which says whose answer it is.
func (m *machine) serve(t *testing.T) {
	t.Helper()
	var listener net.Listener
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with this goroutine
		network, err := os.Open(m.network())
		if err == nil {
			err = unix.Setns(int(network.Fd()), unix.CLONE_NEWNET)
			network.Close()
		}
		if err == nil {
			listener, err = net.Listen("tcp", ":80")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("%s: %v", m.name, err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "hello from %s\n", m.name)
	})}
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("%s serves no more: %v", m.name, err)
		}
	}()
	m.server = server
	t.Cleanup(func() { server.Close() })
}
