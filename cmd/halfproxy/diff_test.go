package main

import (
	"encoding/base64"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/halfproxy/halfproxy/admin"
	"github.com/halfproxy/halfproxy/config"
)

// running is a configuration with most of what can change.
const running = `node: {name: lb1, interfaces: [eth0]}
cluster: {name: edge, listen: 10.0.1.1:7946, join: [10.0.1.2], key_file: cluster.key}
bgp:
  asn: 64512
  router_id: 10.0.1.1
  peers:
    - {address: 10.0.1.254, asn: 64500, password_file: bgp.password}
    - {address: 10.0.1.253, asn: 64500}
http: {listen: 127.0.0.1:9870}
admin: {socket: SOCKET}
services:
  - name: web
    vips: [203.0.113.10]
    ports: [tcp/80]
    backends: [{name: web1, address: 10.0.1.11}, {name: web2, address: 10.0.1.12}]
    check: {type: http, headers: {Authorization: hush}}
  - name: dns
    vips: [203.0.113.53]
    ports: [udp/53]
    backends: [{name: ns1, address: 10.0.1.13}]
    check: {type: dns, query: example.org}
`

// files writes a configuration with its secrets beside it.
func files(t *testing.T, content, key, password string) string {
	t.Helper()
	path := write(t, content)
	must(t, os.WriteFile(filepath.Join(filepath.Dir(path), "cluster.key"), []byte(key), 0o600))
	must(t, os.WriteFile(filepath.Join(filepath.Dir(path), "bgp.password"), []byte(password), 0o600))
	return path
}

var (
	keyA = base64.StdEncoding.EncodeToString([]byte(strings.Repeat("a", 32)))
	keyB = base64.StdEncoding.EncodeToString([]byte(strings.Repeat("b", 32)))
)

func TestDiffSaysWhatAReloadWouldDo(t *testing.T) {
	path := files(t, running, keyA, "sesame")
	cfg, err := config.Load(path)
	must(t, err)
	n := &node{cfg: cfg}
	server, err := admin.New(admin.Config{Socket: cfg.Admin.Socket, Settings: n.settings, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	go func() { _ = server.Run(t.Context()) }()

	for _, tt := range []struct {
		name     string
		old, new string // alternately, what of the file is another
		key      string
		password string
		code     int
		says     []string
	}{
		{"nothing", "", "", keyA, "sesame", exitDone, []string{"a reload would change nothing"}},
		{"other words for the same", "listen: 127.0.0.1:9870", "listen: '127.0.0.1:9870'", keyA, "sesame", exitDone, []string{"a reload would change nothing"}},
		{"a default written out", "type: http,", "type: http, interval: 1000ms, rise: 2,", keyA, "sesame", exitDone, []string{"a reload would change nothing"}},
		{"a check", "type: http,", "type: http, interval: 2s,", keyA, "sesame", exitDone,
			[]string{"services \"web\": check.interval: 1s -> 2s\n    backends are judged anew"}},
		{"a check of another type", "{type: dns, query: example.org}", "{type: udp}", keyA, "sesame", exitDone,
			[]string{`services "dns": check.type: dns -> udp`, `services "dns": check.query: example.org. -> not set`}},
		{"a secret of a check", "hush", "hush hush", keyA, "sesame", exitDone,
			[]string{"services \"web\": check.headers.Authorization is another\n    backends are judged anew"}},
		{"a backend more, and one less", "{name: web2, address: 10.0.1.12}", "{name: web3, address: 10.0.1.14}", keyA, "sesame", exitDone,
			[]string{"services \"web\": backends \"web3\" is new: 10.0.1.14\n    it gets its share", "services \"web\": backends \"web2\" is gone: 10.0.1.12\n    its flows go to others at once"}},
		{"a weight", "address: 10.0.1.12}", "address: 10.0.1.12, weight: 50}", keyA, "sesame", exitDone,
			[]string{"services \"web\": backends \"web2\": weight: 100 -> 50\n    the table is made anew"}},
		{"another service", "name: dns", "name: dns2", keyA, "sesame", exitDone,
			[]string{"services \"dns2\" is new: 203.0.113.53, udp/53\n    its VIPs are announced", "services \"dns\" is gone: 203.0.113.53, udp/53\n    its VIPs are withdrawn"}},
		{"one peer less", "    - {address: 10.0.1.253, asn: 64500}\n", "", keyA, "sesame", exitDone,
			[]string{"bgp.peers \"10.0.1.253\" is gone: 10.0.1.253\n    the session is closed"}},
		{"an aggregate", "  peers:\n", "  aggregates: [{prefix: 203.0.113.0/24}]\n  peers:\n", keyA, "sesame", exitDone,
			[]string{"bgp.aggregates \"203.0.113.0/24\" is new: 203.0.113.0/24\n    it is announced while a VIP in it is"}},
		{"a password", "", "", keyA, "open", exitDone, []string{"bgp.peers \"10.0.1.254\": password_file: bgp.password holds something else\n    where the session"}},
		{"a key more", "", "", keyA + "\n" + keyB, "sesame", exitDone, []string{"cluster.key_file: cluster.key holds something else\n    holds for messages from now on"}},
		{"another first key", "", "", keyB + "\n" + keyA, "sesame", exitNo,
			[]string{"cluster.hash_key_file is another\n    every flow would go to another backend"}},
		{"a linger", "interfaces: [eth0]", "interfaces: [eth0], linger: 20s", keyA, "sesame", exitNo,
			[]string{"node.linger: 10s -> 20s\n    a reload cannot follow: restart the node"}},
		{"what is refused beside what is not", "interfaces: [eth0]}\ncluster: {name: edge,", "interfaces: [eth0, eth1]}\ncluster: {name: core, size: 5,", keyA, "sesame", exitNo,
			[]string{"node.interfaces: eth0 -> eth0, eth1\n    a reload cannot", "cluster.name: edge -> core\n    a reload cannot", "cluster.size: 2 -> 5\n    holds at once"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			changed := strings.ReplaceAll(strings.Replace(running, tt.old, tt.new, 1), "SOCKET", cfg.Admin.Socket)
			stdout, stderr, code := call(t, "check", "--diff", "--config", files(t, changed, tt.key, tt.password))
			if code != tt.code {
				t.Errorf("got code %d, want %d: %s", code, tt.code, stderr)
			}
			for _, want := range tt.says {
				if !strings.Contains(stdout, want) {
					t.Errorf("got %q, want it to say %q", stdout, want)
				}
			}
			if code == exitNo && !strings.Contains(stderr, "can be taken by a restart alone") {
				t.Errorf("got %q, want it to say that a restart can", stderr)
			}
			if strings.Contains(stdout, "hush") || strings.Contains(stdout, "sesame") {
				t.Errorf("a secret is shown: %s", stdout)
			}
		})
	}
	if _, stderr, code := call(t, "check", "--diff", "--config", path, "--socket", cfg.Admin.Socket+"-nobody"); code != exitNo || !strings.Contains(stderr, "is halfproxy running?") {
		t.Errorf("without a node: got code %d, %q", code, stderr)
	}
}

func TestAReloadThatNeedsARestartNamesEveryChange(t *testing.T) {
	load := func(key string, changes ...string) config.Config {
		changes = append(changes, "SOCKET", "/run/halfproxy/admin.sock")
		cfg, err := config.Load(files(t, strings.NewReplacer(changes...).Replace(running), key, "sesame"))
		must(t, err)
		return cfg
	}
	base := load(keyA)
	good := load(keyA+"\n"+keyB, "[10.0.1.2],", "[10.0.1.3], size: 3, partition_hold: 20s,", "asn: 64500}\n", "asn: 64501, hold_time: 30s}\n",
		"router_id: 10.0.1.1", "router_id: 10.0.1.1\n  communities: [no-export]", "name: dns", "name: resolver", "[eth0]", "[eth0], deny_file: /dev/null")
	if err := restartNeeded(base, good); err != nil {
		t.Errorf("other services, peers, communities, keys, members and deny list: got %v, want it taken", err)
	}

	bad := load(keyB, "[eth0]", "[eth1]", "name: edge", "name: core", "asn: 64512", "asn: 64513", "SOCKET", "/elsewhere")
	err := restartNeeded(base, bad)
	for _, want := range []string{"node.interfaces: eth0 -> eth1: a reload cannot follow", "cluster.name", "cluster.hash_key_file is another: every flow would", "bgp.asn", "admin.socket"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it to name %s", err, want)
		}
	}
	alone := load(keyA, running[strings.Index(running, "cluster:"):strings.Index(running, "http:")], "")
	for _, change := range [][2]config.Config{{base, alone}, {alone, base}} {
		err := restartNeeded(change[0], change[1])
		for _, want := range []string{"cluster.name", "bgp.asn"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("a section that comes or goes: got %v, want it to name %s", err, want)
			}
		}
	}
}

func TestAKeyOfTheFlowHashesThatStaysNeedsNoRestart(t *testing.T) {
	load := func(key, more string) config.Config {
		content := strings.NewReplacer("SOCKET", "/run/halfproxy/admin.sock", "key_file: cluster.key", "key_file: cluster.key"+more).Replace(running)
		path := files(t, content, key, "sesame")
		must(t, os.WriteFile(filepath.Join(filepath.Dir(path), "hash.key"), []byte(keyA), 0o600))
		cfg, err := config.Load(path)
		must(t, err)
		return cfg
	}
	if err := restartNeeded(load(keyA, ""), load(keyB, ", hash_key_file: hash.key")); err != nil {
		t.Errorf("got %v, want it taken", err)
	}
}
