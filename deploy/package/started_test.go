package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const started = "docs/getting-started.md"

// network is that of the document. The router's other link is where the client is.
//
//	┌────────────┐     ┌────────────┐     ┌──────────────────┐
//	│ client     │     │ router     │     │ switch           │
//	│       eth0 ├─────┤ eth0  eth1 ├─────┤ router           │
//	│            │     │ FRR        │     │ lb1 …    web1 …  │
//	└────────────┘     └────────────┘     └──┬────────┬──────┘
//	198.51.100.7       198.51.100.254     ┌──┴────┐┌──┴────┐
//	2001:db8:2::7      10.0.1.254         │ eth0  ││ eth0  │
//	                   2001:db8:1::254    │ lb1 … ││ web1 …│
//	                                      └───────┘└───────┘
//	                                10.0.1.1 …     10.0.1.11 …
//	                           2001:db8:1::1 …     2001:db8:1::11 …
type network struct {
	client, router  *machine
	nodes, backends []*machine
}

// build starts the machines, with the package where `make packages` puts it.
func build(t *testing.T, deb string) network {
	t.Helper()
	// Roots first: machines see what is mounted when they start.
	roots := map[string]string{"switch": "/", "client": "/"}
	for _, name := range []string{"router", "lb1", "lb2", "lb3", "web1", "web2"} {
		roots[name] = root(t)
		built := filepath.Join(roots[name], "root/bin/packages", filepath.Base(deb))
		write(t, built, "", 0o644)
		if err := unix.Mount(deb, built, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	machines := map[string]*machine{}
	for name, root := range roots {
		machines[name] = boot(t, name, root)
	}
	n := network{
		client: machines["client"], router: machines["router"],
		nodes:    []*machine{machines["lb1"], machines["lb2"], machines["lb3"]},
		backends: []*machine{machines["web1"], machines["web2"]},
	}

	const address, gateway = "ip address add %s dev %s; ip address add %s dev %[2]s\n", "ip route add default via %s; ip route add default via %s"
	plug(t, n.client, "eth0", n.router, "eth0")
	n.client.run(t, fmt.Sprintf(address, "198.51.100.7/24", "eth0", "2001:db8:2::7/64")+fmt.Sprintf(gateway, "198.51.100.254", "2001:db8:2::254"))
	n.router.run(t, fmt.Sprintf(address, "198.51.100.254/24", "eth0", "2001:db8:2::254/64"))

	bridge := machines["switch"]
	bridge.run(t, "ip link add bridge type bridge mcast_snooping 0; ip link set bridge up")
	plug(t, n.router, "eth1", bridge, "router")
	bridge.run(t, "ip link set router master bridge")
	n.router.run(t, fmt.Sprintf(address, "10.0.1.254/24", "eth1", "2001:db8:1::254/64"))
	pass, err := filepath.Abs("../../xdp/pass_bpfel.o")
	if err != nil {
		t.Fatal(err)
	}
	for name, host := range map[string]string{"lb1": "1", "lb2": "2", "lb3": "3", "web1": "11", "web2": "12"} {
		plug(t, machines[name], "eth0", bridge, name)
		// A veth takes what a program at its other end sends only with one of its own.
		bridge.run(t, fmt.Sprintf("ip link set %s master bridge; ip link set %[1]s xdpdrv object %s section xdp", name, pass))
		machines[name].run(t, fmt.Sprintf(address, "10.0.1."+host+"/24", "eth0", "2001:db8:1::"+host+"/64")+fmt.Sprintf(gateway, "10.0.1.254", "2001:db8:1::254"))
	}
	return n
}

// Who follows the documents gets an answer through the VIP, and sees what they promise.
func TestWhatTheDocumentsSayIsSo(t *testing.T) {
	need(t, "/usr/lib/frr/bgpd", "bird", "dpkg", "chroot", "useradd", "nsenter", "setpriv", "ip", "ethtool", "sysctl", "curl")
	t.Parallel() // it waits most of the time
	doc := read(t)
	n := build(t, product(t, packages(t), ".deb"))
	n.getStarted(t, doc)
	if t.Failed() {
		return
	}
	n.lookAtIt(t, doc)
	n.operate(t, doc)
	n.breakIt(t, doc)
	n.followTheReadme(t, doc)
	n.changeTheRouter(t, doc)
	doc.close(t)
}

// getStarted sets all up as docs/getting-started.md says.
func (n network) getStarted(t *testing.T, doc *book) {
	t.Helper()
	// The router first: FRR takes no session in its first seconds, and others' time passes.
	write(t, filepath.Join(n.router.root, "etc/frr/frr.conf"), doc.file(t, started, "frr defaults"), 0o644)
	n.router.follow(t, doc.commands(t, started, "sed -i")...)

	install := doc.commands(t, started, "dpkg -i")
	var all sync.WaitGroup
	for _, m := range slices.Concat(n.nodes, n.backends) {
		all.Go(func() { // at once, as it takes longest of all
			for _, line := range install {
				if out, err := m.shell(line).CombinedOutput(); err != nil {
					t.Errorf("%s: %s: %v\n%s", m.name, line, err, out)
				}
			}
		})
	}
	all.Wait()
	if t.Failed() {
		return
	}

	for _, m := range n.backends {
		m.serve(t)
		write(t, filepath.Join(m.root, "etc/halfproxy/backend.yaml"), doc.file(t, started, "interfaces:"), 0o644)
		m.follow(t, doc.commands(t, started, "chgrp halfproxy /etc/halfproxy/backend.yaml")...)
	}

	keys := doc.commands(t, started, "head -c 32")
	n.nodes[0].follow(t, keys...)
	for _, m := range n.nodes[1:] {
		for _, name := range []string{"etc/halfproxy/cluster.key", "etc/halfproxy/hash.key"} {
			n.nodes[0].give(t, name, m)
		}
		m.follow(t, keys[len(keys)-1])
	}

	n.begin(t, doc)
	for i, m := range n.nodes {
		own := fmt.Sprint(i + 1)
		file := strings.NewReplacer("name: lb1\n", "name: lb"+own+"\n", "listen: 10.0.1.1:", "listen: 10.0.1."+own+":", "router_id: 10.0.1.1\n", "router_id: 10.0.1."+own+"\n").
			Replace(doc.file(t, started, "node:"))
		write(t, filepath.Join(m.root, nodeFile), file, 0o644)
		m.follow(t, doc.commands(t, started, "chgrp halfproxy /etc/halfproxy/halfproxy.yaml")...)
	}

	for _, m := range n.nodes {
		m.follow(t, doc.commands(t, started, "halfproxy doctor")...)
	}
	n.answers(t, doc, len(n.nodes))

	// A trace on any node foretells who answers the flow.
	line := doc.commands(t, started, "curl http://203")[0]
	out := n.client.run(t, line+" --silent --show-error --max-time 5 --local-port 40000")
	who := answer.FindStringSubmatch(out)
	if who == nil {
		t.Fatalf("from port 40000: got %q", out)
	}
	for _, m := range n.nodes {
		if out := m.follow(t, doc.commands(t, started, "halfproxy trace")...); !strings.Contains(out, who[1]) {
			t.Errorf("%s: got\n%swant %s, who answered", m.name, out, who[1])
		}
	}
}

// begin has a node write its first file, of its own and of keepalived's.
func (n network) begin(t *testing.T, doc *book) {
	t.Helper()
	m := n.nodes[len(n.nodes)-1]
	keepalived, err := os.ReadFile(tree + "/setup/testdata/keepalived.conf")
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(m.root, "etc/keepalived/keepalived.conf"), string(keepalived), 0o644)
	for path, says := range map[string]string{started: "interfaces: [eth0]", "docs/migration.md": "backends:"} {
		m.follow(t, doc.commands(t, path, "halfproxy init")...)
		if file := m.run(t, "cat /"+nodeFile+" && halfproxy check && rm /"+nodeFile); !strings.Contains(file, says) {
			t.Errorf("%s: halfproxy init writes\n%swant %s", path, file, says)
		}
	}
}

const nodeFile = "etc/halfproxy/halfproxy.yaml"

var answer = regexp.MustCompile(`^hello from (web[12])\n$`)

// answers wants the router to send VIPs to so many nodes, and answers through them.
func (n network) answers(t *testing.T, doc *book, nodes int) {
	t.Helper()
	for _, family := range []string{"ip route show 203.0.113.10", "ip -6 route show 2001:db8::10"} {
		n.router.await(t, family, func(out string) bool { return strings.Count(out, "via ") == nodes })
	}
	for _, line := range []string{doc.commands(t, started, "curl http://203")[0], "curl http://[2001:db8::10]/"} {
		if out := n.client.run(t, line+" --silent --show-error --max-time 5"); !answer.MatchString(out) {
			t.Errorf("%s: got %q", line, out)
		}
	}
}

// give has a machine have a file that another one has.
func (m *machine) give(t *testing.T, name string, to *machine) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(m.root, name))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(to.root, name), string(content), 0o600)
}

// lookAtIt runs what documents have for looking.
func (n network) lookAtIt(t *testing.T, doc *book) {
	t.Helper()
	for _, b := range []struct{ path, begins, says string }{
		{"docs/watching.md", "halfproxy status ", `"name": "lb1"`},
		{"docs/watching.md", "halfproxy events ", ""}, // nothing but info, on a good day
		{"docs/metrics.md", "curl", `halfproxy_bgp_peer_up{peer="10.0.1.254"} 1`},
		{"docs/runbook.md", "halfproxy status", "nothing found"},
		{"docs/troubleshooting.md", "halfproxy doctor", "announced"},
	} {
		if out := n.nodes[0].follow(t, doc.commands(t, b.path, b.begins)...); !strings.Contains(out, b.says) {
			t.Errorf("%s, %s: got\n%swant %s", b.path, b.begins, out, b.says)
		}
	}
	if watch := doc.commands(t, "docs/troubleshooting.md", "tcpdump"); has("tcpdump") {
		n.nodes[0].follow(t, watch...)
	}
}

func has(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}

// operate runs what docs/operations.md has for a day's work.
func (n network) operate(t *testing.T, doc *book) {
	t.Helper()
	const path = "docs/operations.md"
	lb1 := n.nodes[0]
	file, err := os.ReadFile(filepath.Join(lb1.root, nodeFile))
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(file), "address: 10.0.1.12}", "address: 10.0.1.12, weight: 50}", 1)
	write(t, filepath.Join(lb1.root, nodeFile), changed, 0o644)
	change := doc.commands(t, path, "halfproxy check")
	if out := lb1.follow(t, change[:2]...); !strings.Contains(out, "weight") {
		t.Errorf("%s: got %q, want the weight", change[1], out)
	}
	lb1.follow(t, change[2:]...)
	lb1.await(t, "halfproxy check --diff", func(out string) bool { return out == "a reload would change nothing\n" })
	write(t, filepath.Join(lb1.root, nodeFile), string(file), 0o644)
	lb1.follow(t, change[2:]...)

	for _, drain := range []struct{ path, begins, says string }{
		{"docs/backends.md", "halfproxy drain backend web1", "backend web1 drains"},
		{"docs/tracking.md", "halfproxy drain backend web1", "backend web1 drains"},
		{"docs/watching.md", "halfproxy drain backend web1 --wait", "backend web1 drains on"},
		{path, "halfproxy drain backend web1 --wait", "backend web1 drains on"},
		{path, "halfproxy drain backend web1 --undo", "goes by the configuration"},
		{path, "halfproxy drain node lb1 --wait", "no routes left"},
		{path, "halfproxy drain node lb1 --undo", "goes by the configuration"},
		{path, "halfproxy drain service web --wait", "service web goes by the configuration"},
	} {
		begun := time.Now()
		if out := lb1.follow(t, doc.commands(t, drain.path, drain.begins)...); !strings.Contains(out, drain.says) {
			t.Errorf("%s, %s: got %q, want %q", drain.path, drain.begins, out, drain.says)
		}
		t.Logf("%s: %v", drain.begins, time.Since(begun))
	}
	n.answers(t, doc, len(n.nodes))

	lb1.follow(t, doc.commands(t, path, "head -c 32")...)
	for _, m := range n.nodes[1:] {
		lb1.give(t, "etc/halfproxy/new.key", m)
	}
	for _, round := range []string{"sh -c", "sed -i '1", "sed -i 2d"} {
		for _, m := range n.nodes {
			m.follow(t, doc.commands(t, path, round)...)
		}
	}
	for _, m := range n.nodes {
		m.await(t, "halfproxy status", func(out string) bool { return strings.Contains(out, "3 of 3 in sight") })
		if out := m.run(t, "curl --silent http://127.0.0.1:9870/metrics"); !regexp.MustCompile(`(?m)^halfproxy_cluster_messages_refused_total.* 0$`).MatchString(out) {
			t.Errorf("%s refuses messages while the key changes:\n%s", m.name, out)
		}
	}

	upgrade := doc.commands(t, path, "dpkg -i")
	lb1.run(t, "ln -s bin/packages/*.deb .")
	if out := lb1.follow(t, upgrade[0]); !strings.Contains(out, "systemctl restart halfproxy") {
		t.Errorf("an upgrade says %q, want how the node takes it", out)
	}
	lb1.follow(t, upgrade[1:]...)
	lb1.await(t, "halfproxy status", func(out string) bool { return strings.Contains(out, "1 of 1 announced") })
	n.answers(t, doc, len(n.nodes))
}

// breakIt takes away a backend's server, and a node.
func (n network) breakIt(t *testing.T, doc *book) {
	t.Helper()
	last := n.nodes[len(n.nodes)-1]
	n.nodes[0].follow(t, doc.commands(t, started, "halfproxy events --follow")...)

	n.backends[1].server.Close()
	backend := func(state string) func(string) bool {
		return regexp.MustCompile(`(?m)^ +web2 +10\.0\.1\.12 +` + state + ` `).MatchString
	}
	last.await(t, "halfproxy status", backend("down"))
	n.backends[1].serve(t)
	last.await(t, "halfproxy status", backend("up"))

	last.follow(t, doc.commands(t, started, "systemctl stop halfproxy")...)
	n.answers(t, doc, len(n.nodes)-1)
	last.follow(t, doc.commands(t, started, "systemctl start halfproxy")...)
	n.answers(t, doc, len(n.nodes))
}

// followTheReadme has it run lb1, from the tree, and the backends.
func (n network) followTheReadme(t *testing.T, doc *book) {
	t.Helper()
	const path = "README.md"
	lb1 := n.nodes[0]
	lb1.follow(t, doc.commands(t, started, "systemctl stop halfproxy")...)
	lb1.run(t, "mkdir -p bin && cp /usr/bin/halfproxy bin/") // as make build has it
	lb1.follow(t, doc.commands(t, path, "make build")...)
	n.nodes[1].give(t, "etc/halfproxy/cluster.key", lb1)
	write(t, filepath.Join(lb1.root, nodeFile), doc.file(t, path, "node:"), 0o644)
	lb1.follow(t, doc.commands(t, path, "halfproxy check")...)
	if out := lb1.follow(t, doc.commands(t, path, "halfproxy status")...); out != "a reload would change nothing\n" {
		t.Errorf("check --diff of the file that the node has says %q", out)
	}
	n.answers(t, doc, len(n.nodes))

	for i, says := range []string{path, "docs/backends.md"} {
		m := n.backends[i]
		m.follow(t, "systemctl stop halfproxy-backend")
		write(t, filepath.Join(m.root, "etc/halfproxy/backend.yaml"), doc.file(t, says, "interfaces:"), 0o644)
		m.follow(t, doc.commands(t, says, "halfproxy "+[]string{"backend", "check"}[i])...)
	}
	n.answers(t, doc, len(n.nodes))
	for i, says := range []string{path, "docs/backends.md"} {
		m := n.backends[i]
		m.interrupt(t)
		m.follow(t, doc.commands(t, says, "ip address add")...)
		m.follow(t, doc.commands(t, says, "ip route change")...)
	}
	lb1.await(t, "halfproxy status", func(out string) bool { return strings.Count(out, " up ") >= len(n.backends) })
	n.answers(t, doc, len(n.nodes))
	lb1.interrupt(t)
}

// changeTheRouter puts BIRD into FRR's place.
func (n network) changeTheRouter(t *testing.T, doc *book) {
	t.Helper()
	write(t, filepath.Join(n.router.root, "etc/bird/bird.conf"), doc.file(t, started, "router id"), 0o644)
	n.router.follow(t, "systemctl stop frr")
	n.router.follow(t, doc.commands(t, started, "systemctl restart bird")...)
	n.answers(t, doc, len(n.nodes)-1) // lb1 was stopped
}
