package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/halfproxy/halfproxy/config"
)

// documents are what operators read, by path.
func documents(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, path := range append(paths, "../../README.md", "../../deploy/containerlab/README.md") {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		found[path] = string(b)
	}
	return found
}

// commandLine is a command in a document: in backticks, or in a line of an indented or
// fenced block, perhaps behind sudo or another command.
var commandLine = regexp.MustCompile("(?m)`((?:sudo )?(?:bin/)?halfproxy [^`]+)`|^(?: {4,}|\\$ |)(?:.*(?:\\| |exec -t \\S+ ))?((?:sudo )?(?:bin/)?halfproxy(?: [a-z].*| --.*))$")

// commandsIn are the arguments of halfproxy wherever a document has it run.
func commandsIn(text string) [][]string {
	var all [][]string
	for _, m := range commandLine.FindAllStringSubmatch(strings.ReplaceAll(text, "\\\n", " "), -1) {
		line := strings.TrimPrefix(m[1]+m[2], "sudo ")
		line, _, _ = strings.Cut(line, " #")
		line, _, _ = strings.Cut(line, " | ")
		line, _, _ = strings.Cut(line, " >")
		args := strings.Fields(strings.NewReplacer("SRC:PORT", "198.51.100.7:40000", "VIP:PORT", "203.0.113.10:443", "HEX", "0a01").Replace(line))[1:]
		if len(args) > 0 && regexp.MustCompile(`^[a-z-]+$`).MatchString(args[0]) {
			all = append(all, args)
		}
	}
	return all
}

func TestCommandsInDocumentsAreThere(t *testing.T) {
	n := 0
	for path, text := range documents(t) {
		for _, args := range commandsIn(text) {
			n++
			root := &cobra.Command{Use: "halfproxy"}
			root.AddCommand(commands()...)
			cmd, rest, err := root.Find(args)
			if err != nil || cmd == root {
				t.Errorf("%s: halfproxy %s: no such command (%v)", path, strings.Join(args, " "), err)
				continue
			}
			if slices.ContainsFunc(rest, func(arg string) bool { return strings.ContainsAny(arg, "[]|…") }) {
				continue // what may follow, not a line to type in
			}
			if err := cmd.ParseFlags(rest); err != nil {
				t.Errorf("%s: halfproxy %s: %v", path, strings.Join(args, " "), err)
			} else if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil && len(cmd.Flags().Args()) > 0 {
				t.Errorf("%s: halfproxy %s: %v", path, strings.Join(args, " "), err)
			}
		}
	}
	if n < 60 {
		t.Errorf("%d commands found, want all that documents have", n)
	}
}

// fenced are the blocks of a language, with the line of text before each.
func fenced(text, language string) (blocks [][2]string) {
	for _, m := range regexp.MustCompile("(?ms)^([^\n]*)\n+^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(text, -1) {
		blocks = append(blocks, [2]string{m[1], m[2]})
	}
	return blocks
}

func TestConfigurationsInDocumentsAreTaken(t *testing.T) {
	n := 0
	for path, text := range documents(t) {
		for _, b := range fenced(text, "yaml") {
			const node = "node: {name: lb1, interfaces: [eth0]}\n"
			const web = "services:\n  - name: web\n    vips: [203.0.113.10]\n    ports: [tcp/80, tcp/443]\n    backends: [{name: web1, address: 192.0.2.11}]\n"
			const bgp = "bgp:\n  asn: 64512\n  router_id: 192.0.2.1\n"
			var err error
			switch block := b[1]; {
			case strings.HasPrefix(block, "node:"):
				_, err = config.Parse(path, []byte(block))
			case strings.HasPrefix(block, "interfaces:"):
				_, err = config.ParseBackend(path, []byte(block))
			case strings.HasPrefix(block, "check:"):
				_, err = config.Parse(path, []byte(node+web+indented(block, 4)))
			case strings.HasPrefix(block, "services:"):
				_, err = config.Parse(path, []byte(node+block))
			case strings.HasPrefix(block, "bgp:\n  aggregates:"):
				_, err = config.Parse(path, []byte(node+web+bgp+"  peers: [{address: 10.0.1.253, asn: 64500}]\n"+strings.TrimPrefix(block, "bgp:\n")))
			case strings.HasPrefix(block, "peers:"):
				_, err = config.Parse(path, []byte(node+web+bgp+indented(block, 2)))
			case strings.HasPrefix(block, "# yaml-language-server:"):
				_, err = config.Parse(path, []byte(block+node+web))
			default:
				err = errors.New("no test reads it")
			}
			n++
			if err != nil {
				t.Errorf("%s, after %q: %v", path, b[0], err)
			}
		}
	}
	if n < 15 {
		t.Errorf("%d configurations found, want all that documents have", n)
	}
}

func indented(block string, by int) string {
	space := strings.Repeat(" ", by)
	return space + strings.ReplaceAll(strings.TrimRight(block, "\n"), "\n", "\n"+space) + "\n"
}

// Commands are indented, and run where packages are tested. All else is fenced and says what it is.
func TestBlocksInDocumentsSayWhatTheyAre(t *testing.T) {
	known := []string{"yaml", "frr", "bird", "text", "eos", "junos", "ios"} // the last three were not tried, as it says there
	for path, text := range documents(t) {
		fences := regexp.MustCompile("(?m)^```(.*)$").FindAllStringSubmatch(text, -1)
		for i := 0; i < len(fences); i += 2 {
			if !slices.Contains(known, fences[i][1]) {
				t.Errorf("%s: a block of %q: want one of %q", path, fences[i][1], known)
			}
		}
	}
}

func TestRoutersTakeTheirConfigurations(t *testing.T) {
	for _, router := range []struct {
		language, binary string
		args             []string
	}{
		{"frr", "vtysh", []string{"-C", "-f"}},
		{"bird", "bird", []string{"-p", "-c"}},
	} {
		binary, err := exec.LookPath(router.binary)
		if err != nil {
			if binary, err = exec.LookPath("/usr/sbin/" + router.binary); err != nil {
				t.Skip(err)
			}
		}
		n := 0
		for path, text := range documents(t) {
			for _, b := range fenced(text, router.language) {
				n++
				file := filepath.Join(t.TempDir(), "router.conf")
				if err := os.WriteFile(file, []byte(whole(b[1])), 0o644); err != nil {
					t.Fatal(err)
				}
				if out, err := exec.CommandContext(context.Background(), binary, append(router.args, file)...).CombinedOutput(); err != nil || strings.Contains(string(out), "% ") {
					t.Errorf("%s, after %q: %s: %v\n%s", path, b[0], router.binary, err, out)
				}
			}
		}
		if n == 0 {
			t.Errorf("no configuration of %s in any document", router.language)
		}
	}
}

// whole is a configuration around what is only a piece of one.
func whole(piece string) string {
	switch {
	case strings.HasPrefix(piece, "if net"):
		return "router id 192.0.2.254;\nprotocol device {}\nfilter vips {\n" + piece + "reject;\n}\n"
	case strings.HasPrefix(piece, "authentication"):
		return "router id 192.0.2.254;\nprotocol device {}\nprotocol bfd { multihop {\n" + piece + "}; }\n"
	}
	return piece
}

func TestTheContainerlabsConfigurationsAreTaken(t *testing.T) {
	const lab = "../../deploy/containerlab/"
	topology, err := os.ReadFile(lab + "halfproxy.clab.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`"([a-z0-9.]+):/`).FindAllStringSubmatch(string(topology), -1) {
		if _, err := os.Stat(lab + m[1]); err != nil {
			t.Errorf("the topology mounts it: %v", err)
		}
	}
	dir := t.TempDir()
	for _, name := range []string{"cluster.key", "lb1.yaml", "lb2.yaml", "lb3.yaml"} {
		b, err := os.ReadFile(lab + name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"lb1", "lb2", "lb3"} {
		cfg, err := config.Load(filepath.Join(dir, name+".yaml"))
		if err != nil {
			t.Error(err)
		} else if cfg.Node.Name != name {
			t.Errorf("%s.yaml is of %s", name, cfg.Node.Name)
		}
	}
	vtysh, err := exec.LookPath("vtysh")
	if err != nil {
		t.Skip(err)
	}
	if out, err := exec.Command(vtysh, "-C", "-f", lab+"frr.conf").CombinedOutput(); err != nil {
		t.Errorf("vtysh: %v\n%s", err, out)
	}
}

func TestLinksInDocumentsLeadSomewhere(t *testing.T) {
	all := documents(t)
	heading := regexp.MustCompile(`(?m)^#+ (.*)$`)
	for path, text := range all {
		for _, m := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(text, -1) {
			if strings.HasPrefix(m[1], "http") {
				continue
			}
			file, anchor, _ := strings.Cut(m[1], "#")
			target := path
			if file != "" {
				target = filepath.Join(filepath.Dir(path), file)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %v", path, err)
				continue
			}
			if anchor == "" {
				continue
			}
			var anchors []string
			for _, h := range heading.FindAllStringSubmatch(all[target], -1) {
				slug := regexp.MustCompile("[^a-z0-9 _-]").ReplaceAllString(strings.ToLower(h[1]), "")
				anchors = append(anchors, strings.ReplaceAll(slug, " ", "-"))
			}
			if !slices.Contains(anchors, anchor) {
				t.Errorf("%s: %s has no heading #%s", path, target, anchor)
			}
		}
	}
}
