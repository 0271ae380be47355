package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/halfproxy/halfproxy/config"
	"github.com/halfproxy/halfproxy/internal/netns"
)

func TestABackendThatCannotStartSaysWhy(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	if _, stderr, code := call(t, "backend", "--config", missing); code != exitNo || !strings.Contains(stderr, missing) {
		t.Errorf("no file: got code %d, %q, want %d and its name", code, stderr, exitNo)
	}
	file := write(t, "interfaces: []\nvips: [203.0.113.300]\ndecap: pigeon\n")
	_, stderr, code := call(t, "backend", "--config", file)
	for _, want := range []string{"interfaces", "203.0.113.300", "pigeon"} {
		if code != exitNo || !strings.Contains(stderr, want) {
			t.Errorf("wrong file: got code %d, %q, want %d and %s", code, stderr, exitNo, want)
		}
	}
	if _, _, code := call(t, "backend", "surplus"); code != exitUsage {
		t.Errorf("surplus argument: got code %d, want %d", code, exitUsage)
	}
}

func TestTheReadmesConfigurationOfABackendIsTaken(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(readme), "`/etc/halfproxy/backend.yaml`:\n\n```yaml\n")
	yaml, _, found := strings.Cut(rest, "```")
	if !found {
		t.Fatal("README.md: no yaml block behind /etc/halfproxy/backend.yaml")
	}
	if _, err := config.ParseBackend("README.md", []byte(yaml)); err != nil {
		t.Error(err)
	}
}

// newHost gives a namespace whose eth0 has the address, and the one that it leads to.
func newHost(t *testing.T, address string) (host, peer *netns.NS) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces and BPF programs need root")
	}
	host, err := netns.New("hptest-cmd-host")
	if err != nil {
		t.Fatal(err)
	}
	peer, err = netns.New("hptest-cmd-peer")
	if err != nil {
		host.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(host.Close(), peer.Close()); err != nil {
			t.Errorf("remove namespaces: %v", err)
		}
	})
	if err := errors.Join(peer.Veth("eth0", host, "eth0", 1500), host.Address("eth0", address)); err != nil {
		t.Fatal(err)
	}
	return host, peer
}

func TestABackendRunsByItsFileUntilItIsStopped(t *testing.T) {
	host, peer := newHost(t, "192.0.2.11/24")
	t.Setenv("RUNTIME_DIRECTORY", t.TempDir())
	file := write(t, "interfaces: [eth0]\nvips: [203.0.113.10]\ndecap: [ipip, gre, gue]\nsources: [192.0.2.1]\n")

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	code := make(chan int, 1)
	go func() {
		if err := host.Do(func() error {
			code <- run(ctx, []string{"backend", "--config", file}, t.Output(), t.Output())
			return nil
		}); err != nil {
			t.Error(err)
		}
	}()
	healthy := func() {
		t.Helper()
		client := http.Client{Transport: &http.Transport{DialContext: host.DialContext, DisableKeepAlives: true}}
		var answer string
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			r, err := client.Get("http://127.0.0.1:9871/healthz")
			if err != nil {
				answer = err.Error()
				continue
			}
			body, _ := io.ReadAll(r.Body)
			r.Body.Close()
			answer = fmt.Sprint(r.StatusCode, " ", strings.TrimSpace(string(body)))
			if answer == `200 {"status":"ok","reasons":[]}` {
				return
			}
		}
		t.Fatalf("/healthz: got %s, want 200 and ok", answer)
	}
	healthy()
	if err := host.Do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(eth0)
	}); err != nil {
		t.Fatal(err)
	}
	if err := peer.Veth("eth0", host, "eth0", 1500); err != nil {
		t.Fatal(err)
	}
	healthy() // on the eth0 that was made anew
	if !has(t, host, "203.0.113.10") {
		t.Error("the VIP is not on lo")
	}
	stop()
	if got := <-code; got != exitDone {
		t.Errorf("exit code: got %d, want %d", got, exitDone)
	}
	if has(t, host, "203.0.113.10") {
		t.Error("the VIP is still on lo")
	}
}

// has tells whether lo in ns has the address.
func has(t *testing.T, ns *netns.NS, address string) (found bool) {
	t.Helper()
	if err := ns.Do(func() error {
		lo, err := net.InterfaceByName("lo")
		if err != nil {
			return err
		}
		list, err := lo.Addrs()
		for _, a := range list {
			prefix, err := netip.ParsePrefix(a.String())
			found = found || err == nil && prefix.Addr().String() == address
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return found
}
