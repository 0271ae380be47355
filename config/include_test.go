package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// including is a folder with a file that includes what include says, and some files
// in services.d.
func including(t *testing.T, include, own string, files map[string]string) (path string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "services.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		write(t, filepath.Join(dir, "services.d"), name, 0o644, content)
	}
	return write(t, dir, "halfproxy.yaml", 0o644, "node: {interfaces: [eth0]}\ninclude: "+include+"\n"+own)
}

func aService(name, vip string) string {
	return fmt.Sprintf("services:\n  - name: %s\n    vips: [%s]\n    ports: [tcp/80]\n    backends: [{name: b1, address: 10.0.1.11}]\n", name, vip)
}

func TestIncludedServicesFollowTheFilesOwn(t *testing.T) {
	files := map[string]string{
		"20-dns.yaml": aService("dns", "203.0.113.53"), "10-web.yaml": aService("web", "203.0.113.10"),
		".10-web.yaml": "an editor's", "10-web.yaml~": "another's", "empty.yaml": "services: []\n",
	}
	for name, tt := range map[string]struct{ include, own, want string }{
		"by a pattern":             {"services.d/*.yaml", aService("own", "203.0.113.1"), "own web dns"},
		"by a pattern alone":       {"services.d/*.yaml", "", "web dns"},
		"by names, in their order": {"[services.d/20-dns.yaml, services.d/10-web.yaml]", "", "dns web"},
		"once, by both":            {"[services.d/20-dns.yaml, services.d/*.yaml]", "", "dns web"},
		"none":                     {"services.d/*.yml", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			path := including(t, tt.include, tt.own, files)
			cfg, err := Load(path)
			var got []string
			for _, s := range cfg.Services {
				got = append(got, s.Name)
			}
			if err != nil || strings.Join(got, " ") != tt.want {
				t.Errorf("got %v, %v, want %s", got, err, tt.want)
			}
			bySchema(t, nodeSchema, string(read(t, path)), err)
		})
	}
	bySchema(t, includeSchema, files["20-dns.yaml"], nil)
}

func TestAnIncludedFileMayBeAnywhere(t *testing.T) {
	elsewhere := write(t, t.TempDir(), "web.yaml", 0o644, aService("web", "203.0.113.10"))
	cfg, err := Load(including(t, elsewhere, "", nil))
	if err != nil || len(cfg.Services) != 1 {
		t.Errorf("got %v, %v", cfg.Services, err)
	}
}

func TestPathsInAnIncludedFileStartAtItsFolder(t *testing.T) {
	path := including(t, "services.d/*.yaml", "", map[string]string{
		"web.yaml": aService("web", "203.0.113.10") + "    check: {type: https, port: 80, ca_file: ca.pem}\n", "ca.pem": "none",
	})
	_, err := Load(path)
	wantErrors(t, err, filepath.Dir(path)+`/services.d/web.yaml:6: services[0] "web": check.ca_file "ca.pem" holds no certificate: give it those of the authorities, in PEM`)
}

func TestErrorsOfIncludedFilesNameThem(t *testing.T) {
	path := including(t, "services.d/*.yaml", aService("web", "203.0.113.10"), map[string]string{
		"a.yaml": aService("api", "203.0.113.10"),
		"b.yaml": aService("api", "203.0.113.999") + "    wieght: 1\n",
		"c.yaml": "node: {name: lb1}\nservices: []\n",
		"d.yaml": "services: [\n",
		"e.yaml": "# nothing yet\n",
		"f.yaml": strings.Replace(aService("f", "203.0.113.11"), "tcp/80", "tcp/0", 1),
	})
	_, err := Load(path)
	wantErrors(t, err, strings.ReplaceAll(`
DIR/a.yaml:3: services[0] "api": vips[0] "203.0.113.10" with tcp/80 belongs to service "web" already, by line 5 of the file that includes this one: give it another port or address
DIR/b.yaml:2: services[0] "api": name "api" is there already, in line 2 of DIR/a.yaml: names must be unique, commands and metrics go by them
DIR/b.yaml:3: services[0] "api": vips[0] "203.0.113.999" is no IP address: write one such as 192.0.2.1 or 2001:db8::1
DIR/b.yaml:6: services[0] "api": unknown key "wieght": known here are name, vips, ports, hash, limit, forward, gue, outer_sources, quic, backends, tracking, flow_lifetime, check, announce, panic_below
DIR/c.yaml:1: unknown key "node": only "services" is known here
DIR/d.yaml:1: not YAML: sequence end token ']' not found: look at the indentation and the quotes here and in the line above
DIR/e.yaml:1: services is missing: list them, or write [] for none
DIR/f.yaml:4: services[0] "f": ports[0] "tcp/0" is no port: write tcp/80, tcp/1000-2000 or tcp/*, with tcp, udp, sctp or udplite and ports from 1 to 65535
`, "DIR", filepath.Join(filepath.Dir(path), "services.d")))
}

func TestIncludesThatLeadNowhereAreRefused(t *testing.T) {
	for _, tt := range []struct{ include, want string }{
		{"services.d/web.yaml", `include "services.d/web.yaml" is no file that there is: make it, or correct the path`},
		{"service.d/*.yaml", `include "service.d/*.yaml" is no file that there is: make it, or correct the path`},
		{"'services.d/[a'", `include "services.d/[a" is no pattern: * and ? stand for what is in names, [ ] for a choice of letters, with a backslash all are themselves`},
		{"[]", `include has no entry: name a file, or a pattern such as services.d/*.yaml`},
		{"[services.d/*.yml, services.d/*.yml]", `include[1] "services.d/*.yml" is there already, in line 2: remove one of them`},
	} {
		path := including(t, tt.include, "", nil)
		_, err := Load(path)
		wantErrors(t, err, path+":2: "+tt.want)
	}
}

func TestLoadWithoutSecretsReadsWhatIsIncluded(t *testing.T) {
	path := including(t, "services.d/*.yaml", "cluster: {name: edge, listen: 10.0.1.1:7946, key_file: missing}\n", map[string]string{"web.yaml": aService("web", "203.0.113.10")})
	if cfg, err := LoadWithoutSecrets(path); err != nil || len(cfg.Services) != 1 {
		t.Errorf("got %v, %v", cfg.Services, err)
	}
	if _, err := Load(path); err == nil {
		t.Error("Load takes a key file that is not there")
	}
}
