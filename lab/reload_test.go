package lab

import (
	"encoding/base64"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/halfproxy/halfproxy/admin"
)

func TestAReloadKeepsSessionsAndHealth(t *testing.T) {
	t.Parallel()
	l := start(t, Options{Nodes: 1})
	node := l.Nodes()[0]
	original, err := os.ReadFile(node.config)
	if err != nil {
		t.Fatal(err)
	}
	write := func(content string) {
		if err := os.WriteFile(node.config, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	without := func(part string) string {
		content := strings.Replace(string(original), part, "", 1)
		if content == string(original) {
			t.Fatalf("%s: no %q to take out", node.config, part)
		}
		return content
	}
	status := func() admin.Status {
		s, err := node.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := status()
	until := func(what string, holds func(admin.Status) bool) admin.Status {
		for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			s := status()
			if holds(s) {
				return s
			}
			if time.Now().After(deadline) {
				t.Fatalf("not within 2s: %s; services: %v", what, s.Services)
			}
		}
	}

	t.Run("a backend leaves on SIGHUP, sessions and health stay", func(t *testing.T) {
		write(without(`      - {name: b3, address: "10.3.0.3"}` + "\n"))
		if err := node.process.signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		after := until("two backends", func(s admin.Status) bool { return len(s.Services[0].Backends) == 2 })
		for _, b := range after.Services[0].Backends {
			if b.State != "up" {
				t.Errorf("backend %s: got %s, want up: its health was known", b.Name, b.State)
			}
		}
		if got, want := after.BGP[0].Since, before.BGP[0].Since; !got.Equal(want) {
			t.Errorf("BGP session since: got %v, want %v as before", got, want)
		}
	})
	t.Run("a wrong file changes nothing and is explained", func(t *testing.T) {
		want := status().ConfigDigest
		write(without("forward: l2") + "nonsense: 1\n")
		out, err := exec.Command(built, "reload", "--socket", node.Socket).CombinedOutput()
		if says := string(out); err == nil || !strings.Contains(says, `unknown key "nonsense"`) || !strings.Contains(says, node.config) {
			t.Errorf("got %v: %s, want the key and the file named", err, out)
		}
		if got := status().ConfigDigest; got != want {
			t.Errorf("config digest: got %s, want %s as before", got, want)
		}
	})
	t.Run("what only a restart can change is refused", func(t *testing.T) {
		write(strings.Replace(string(original), "router_id: 10.3.0.11", "router_id: 10.3.0.99", 1))
		err := admin.NewClient(node.Socket).Reload(t.Context())
		if err == nil || !strings.Contains(err.Error(), "bgp.router_id: 10.3.0.11 -> 10.3.0.99") {
			t.Errorf("got %v, want the value named, old and new", err)
		}
	})
	t.Run("keys change, and no flow is moved by it", func(t *testing.T) {
		write(string(original))
		if out, err := exec.Command(built, "reload", "--socket", node.Socket).CombinedOutput(); err != nil || string(out) != "Reloaded.\n" {
			t.Fatalf("got %v: %s, want it reloaded", err, out)
		}
		before := status().Services[0].TableDigest
		old, err := os.ReadFile(l.keyFile())
		if err != nil {
			t.Fatal(err)
		}
		renewed := base64.StdEncoding.EncodeToString([]byte("a key of thirty-two bytes, as is")) + "\n" + string(old)
		for path, content := range map[string]string{l.keyFile(): renewed, l.keyFile() + ".hash": string(old)} {
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := admin.NewClient(node.Socket).Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "cluster.hash_key_file") {
			t.Errorf("got %v, want it refused and the remedy named", err)
		}
		write(strings.Replace(string(original), "key_file: "+l.keyFile(), "key_file: "+l.keyFile()+"\n  hash_key_file: "+l.keyFile()+".hash", 1))
		if err := admin.NewClient(node.Socket).Reload(t.Context()); err != nil {
			t.Errorf("with a key of its own for the hashes: %v", err)
		}
		if got := status().Services[0].TableDigest; got != before {
			t.Errorf("table digest: got %s, want %s as before", got, before)
		}
		if err := os.WriteFile(l.keyFile(), old, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("an aggregate comes and goes while the session stays", func(t *testing.T) {
		routesAre := func(when string, aggregate, vip bool) {
			t.Helper()
			for prefix, want := range map[string]bool{"10.2.0.0/24": aggregate, "10.2.0.1/32": vip} {
				routes, err := l.fib.RouteListFiltered(netlink.FAMILY_V4, kernelRoute(netip.MustParsePrefix(prefix)), netlink.RT_FILTER_DST)
				if err != nil || (len(routes) > 0) != want {
					t.Errorf("%s: the router's routes to %s: got %v, %v, want %v", when, prefix, routes, err, want)
				}
			}
		}
		reload := func(content string) {
			write(content)
			if err := admin.NewClient(node.Socket).Reload(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		reload(strings.Replace(string(original), "  peers:\n", "  aggregates: [{prefix: 10.2.0.0/24, specifics: none}]\n  peers:\n", 1))
		s := until("an aggregate is announced", func(s admin.Status) bool { return len(s.Aggregates) == 1 && s.Aggregates[0].Announced })
		if a := s.Aggregates[0]; a.Serving != 1 || a.VIPs != 1 || !s.Services[0].Announced {
			t.Errorf("got %+v of a service that is announced: %v, want it for the one VIP", a, s.Services[0].Announced)
		}
		time.Sleep(200 * time.Millisecond)
		routesAre("while it is there", true, false)
		reload(string(original))
		s = until("no aggregate", func(s admin.Status) bool { return len(s.Aggregates) == 0 })
		time.Sleep(200 * time.Millisecond)
		routesAre("when it is gone", false, true)
		if got, want := s.BGP[0].Since, before.BGP[0].Since; !got.Equal(want) {
			t.Errorf("BGP session since: got %v, want %v as before", got, want)
		}
	})
	t.Run("a deny list is taken, and anew when its file is replaced", func(t *testing.T) {
		list := node.config + ".deny"
		replace := func(content string) {
			t.Helper()
			if err := os.WriteFile(list+".new", []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(list+".new", list); err != nil {
				t.Fatal(err)
			}
		}
		answers := func(want bool) {
			t.Helper()
			client := l.Client()
			client.Timeout = 300 * time.Millisecond
			for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
				_, err := hello(t.Context(), client, URL(VIPs.V4, "/"))
				if (err == nil) == want {
					return
				}
				if time.Now().After(deadline) {
					t.Fatalf("the VIP answers: got %v, want %t", err, want)
				}
			}
		}
		replace(clientAddrs.V4.String() + "\n")
		write(strings.Replace(string(original), "node:\n", "node:\n  deny_file: "+list+"\n", 1))
		if err := admin.NewClient(node.Socket).Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		answers(false)
		replace("198.51.100.0/24\n")
		answers(true)
		replace("nonsense\n")
		time.Sleep(2500 * time.Millisecond)
		answers(true)
		replace(clientAddrs.V4.String() + "/24\n") // bits beyond its length: a fault, and nothing changes
		time.Sleep(2500 * time.Millisecond)
		answers(true)
		write(string(original))
		if err := admin.NewClient(node.Socket).Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("the backend returns", func(t *testing.T) {
		write(string(original))
		if err := admin.NewClient(node.Socket).Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		until("the configuration of the start", func(s admin.Status) bool { return s.ConfigDigest == before.ConfigDigest })
		until("b3 is up, as the others are", func(s admin.Status) bool {
			up := 0
			for _, b := range s.Services[0].Backends {
				if b.State == "up" {
					up++
				}
			}
			return up == 3
		})
	})
}
