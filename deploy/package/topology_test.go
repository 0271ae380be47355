package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"
)

// topology is what deploy/containerlab uses of containerlab's format.
type topology struct {
	Name     string
	Topology struct {
		Nodes map[string]container
		Links []struct{ Endpoints [2]string }
	}
}

type container struct {
	Kind, Image, User, Entrypoint, Cmd string
	Binds, Exec                        []string
	Sysctls                            map[string]string
	CapAdd                             []string `yaml:"cap-add"`
}

const lab = "deploy/containerlab"

// There is no container engine here: each container is a machine that has what its image
// would bring. All that the topology says of it is done as it says.
func TestTheContainerlabsTopologyServes(t *testing.T) {
	need(t, "/usr/lib/frr/bgpd", "chroot", "nsenter", "ip", "ethtool", "sysctl", "curl")
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(tree, lab, "halfproxy.clab.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var topology topology
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(&topology); err != nil {
		t.Fatal(err)
	}
	containers := topology.Topology.Nodes
	binary := release{bin: packages(t)}.binary(runtime.GOARCH)
	roots := map[string]string{}
	for name, c := range containers {
		if c.Kind == "bridge" {
			roots[name] = "/"
			continue
		}
		roots[name] = root(t)
		for _, bind := range c.Binds {
			from, to, _ := strings.Cut(strings.TrimSuffix(bind, ":ro"), ":")
			from = filepath.Join(tree, lab, from)
			if filepath.Base(from) == "halfproxy" {
				from = binary // where make packages has it
			}
			content, err := os.ReadFile(from)
			if err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(roots[name], to), string(content), 0o755)
		}
	}
	machines := map[string]*machine{}
	for name, root := range roots {
		machines[name] = boot(t, name, root)
		if containers[name].Kind == "bridge" {
			machines[name].run(t, "ip link add "+name+" type bridge mcast_snooping 0; ip link set "+name+" up")
		}
	}
	for _, link := range topology.Topology.Links {
		var ends [2]*machine
		var ports [2]string
		for i, end := range link.Endpoints {
			name, port, _ := strings.Cut(end, ":")
			ends[i], ports[i] = machines[name], port
		}
		command(t, "ip", "link", "add", ports[0], "netns", ends[0].network(), "type", "veth", "peer", "name", ports[1], "netns", ends[1].network())
		for i, m := range ends {
			m.run(t, "ip link set "+ports[i]+" up")
			if containers[m.name].Kind == "bridge" {
				m.run(t, fmt.Sprintf("ip link set %s master %s", ports[i], m.name))
			}
		}
	}
	// What the images start by themselves.
	for name, c := range containers {
		switch image, _, _ := strings.Cut(c.Image, ":"); image {
		case "quay.io/frrouting/frr":
			for key, value := range c.Sysctls {
				machines[name].run(t, "sysctl -qw "+key+"="+value)
			}
			machines[name].run(t, "/usr/lib/frr/frrinit.sh start")
		case "nginx":
			machines[name].serve(t)
		case "", "alpine", "curlimages/curl":
		default:
			t.Errorf("%s has image %s, of which nothing is known here", name, c.Image)
		}
	}
	for name, c := range containers {
		for _, line := range c.Exec {
			machines[name].run(t, line)
		}
	}

	// What the README says, by the names that containers have.
	doc := read(t)
	typed := func(line string) (*machine, string) {
		m := regexp.MustCompile(`^docker (?:exec|kill) clab-` + topology.Name + `-(\w+) ?(.*)`).FindStringSubmatch(line)
		if m == nil || machines[m[1]] == nil {
			t.Fatalf("%q is about no container", line)
		}
		return machines[m[1]], m[2]
	}
	lines := doc.find(t, lab+"/README.md", "docker exec").lines
	route := slices.IndexFunc(lines, func(line string) bool { return strings.Contains(line, "show ip route") })
	for _, i := range []int{route, 0, 1} { // until the routes are there the others would fail
		m, line := typed(lines[i])
		out := m.await(t, line, func(out string) bool { return i != route || strings.Count(out, " via 10.0.1.") == 3 })
		if i == 1 && !answer.MatchString(out) {
			t.Errorf("%s: got %q", line, out)
		}
	}
	killed, _ := typed(doc.find(t, lab+"/README.md", "docker kill").lines[0])
	killed.run(t, "kill -9 $(pidof halfproxy)")
	router, line := typed(lines[route])
	begun := time.Now()
	router.await(t, line, func(out string) bool { return strings.Count(out, " via 10.0.1.") == 2 })
	t.Logf("%s is dead to the router after %v", killed.name, time.Since(begun))
	client, line := typed(lines[1])
	if out := client.run(t, line); !answer.MatchString(out) {
		t.Errorf("after %s was killed %s: got %q", killed.name, line, out)
	}
}
