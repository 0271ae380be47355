package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// guide is docs/getting-started.md: what is run here is what it says.
type guide string

func gettingStarted(t *testing.T) guide {
	t.Helper()
	text, err := os.ReadFile("../../docs/getting-started.md")
	if err != nil {
		t.Fatal(err)
	}
	return guide(text)
}

// section is the one with that number.
func (g guide) section(t *testing.T, number int) guide {
	t.Helper()
	_, rest, found := strings.Cut(string(g), fmt.Sprintf("\n## %d. ", number))
	if !found {
		t.Fatalf("getting-started.md has no section %d", number)
	}
	text, _, _ := strings.Cut(rest, "\n## ")
	return guide(text)
}

var fence = regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```$")

// block is the first one in that language.
func (g guide) block(t *testing.T, language string) string {
	t.Helper()
	for _, m := range fence.FindAllStringSubmatch(string(g), -1) {
		if m[1] == language {
			return m[2]
		}
	}
	t.Fatalf("getting-started.md has no block of %s in:\n%s", language, g)
	return ""
}

// commands are the indented lines, which root types here.
func (g guide) commands() (lines []string) {
	for line := range strings.Lines(fence.ReplaceAllString(string(g), "")) {
		if line, indented := strings.CutPrefix(line, "    "); indented {
			lines = append(lines, strings.ReplaceAll(strings.TrimSpace(line), "sudo ", ""))
		}
	}
	return lines
}

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

func TestGettingStartedLeadsToAnAnswer(t *testing.T) {
	need(t, "/usr/lib/frr/bgpd", "dpkg", "chroot", "useradd", "nsenter", "setpriv", "ip", "ethtool", "sysctl", "curl")
	doc := gettingStarted(t)
	n := build(t, product(t, packages(t), ".deb"))

	// The router first: FRR takes no session in its first seconds, and others' time passes.
	write(t, filepath.Join(n.router.root, "etc/frr/frr.conf"), doc.section(t, 5).block(t, "frr"), 0o644)
	n.router.follow(t, doc.section(t, 5).commands()...)

	install := doc.section(t, 1).commands()
	if len(install) != 2 || install[0] != "make packages" { // which is done
		t.Fatalf("getting-started.md installs by %q", install)
	}
	var all sync.WaitGroup
	for _, m := range slices.Concat(n.nodes, n.backends) {
		all.Go(func() { // at once, as it takes longest of all
			line := strings.ReplaceAll(install[1], "_amd64.", "_"+runtime.GOARCH+".")
			if out, err := m.shell(line).CombinedOutput(); err != nil {
				t.Errorf("%s: %s: %v\n%s", m.name, line, err, out)
			}
		})
	}
	all.Wait()
	if t.Failed() {
		return
	}

	for _, m := range n.backends {
		m.serve(t)
		write(t, filepath.Join(m.root, "etc/halfproxy/backend.yaml"), doc.section(t, 2).block(t, "yaml"), 0o644)
		m.follow(t, doc.section(t, 2).commands()...)
	}

	keys := doc.section(t, 3).commands()
	n.nodes[0].follow(t, keys...)
	for _, m := range n.nodes[1:] {
		for _, name := range []string{"etc/halfproxy/cluster.key", "etc/halfproxy/hash.key"} {
			key, err := os.ReadFile(filepath.Join(n.nodes[0].root, name))
			if err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(m.root, name), string(key), 0o600)
		}
		m.follow(t, keys[len(keys)-1])
	}

	for i, m := range n.nodes {
		own := fmt.Sprint(i + 1)
		file := strings.NewReplacer("name: lb1\n", "name: lb"+own+"\n", "listen: 10.0.1.1:", "listen: 10.0.1."+own+":", "router_id: 10.0.1.1\n", "router_id: 10.0.1."+own+"\n").
			Replace(doc.section(t, 4).block(t, "yaml"))
		write(t, filepath.Join(m.root, "etc/halfproxy/halfproxy.yaml"), file, 0o644)
		m.follow(t, doc.section(t, 4).commands()...)
	}

	start := doc.section(t, 6).commands()
	asks := slices.IndexFunc(start, func(line string) bool { return strings.HasPrefix(line, "curl ") })
	if asks < 0 {
		t.Fatalf("getting-started.md asks for no answer: %q", start)
	}
	for _, m := range n.nodes {
		m.follow(t, start[:asks]...)
	}
	for _, family := range []string{"ip route show 203.0.113.10", "ip -6 route show 2001:db8::10"} {
		n.router.await(t, family, func(out string) bool { return strings.Count(out, "via ") == len(n.nodes) })
	}
	answer := regexp.MustCompile(`^hello from (web[12])\n$`)
	for _, line := range []string{start[asks], "curl http://[2001:db8::10]/"} {
		if out := n.client.run(t, line+" --silent --show-error --max-time 5"); !answer.MatchString(out) {
			t.Errorf("%s: got %q", line, out)
		}
	}

	// A trace on any node foretells who answers the flow.
	out := n.client.run(t, start[asks]+" --silent --show-error --max-time 5 --local-port 40000")
	who := answer.FindStringSubmatch(out)
	if who == nil {
		t.Fatalf("from port 40000: got %q", out)
	}
	for _, m := range n.nodes {
		if out := m.follow(t, start[asks+1:]...); !strings.Contains(out, who[1]) {
			t.Errorf("%s: got\n%swant %s, who answered", m.name, out, who[1])
		}
	}
}
