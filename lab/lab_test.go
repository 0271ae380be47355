package lab

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/halfproxy/halfproxy/bgp"
	"github.com/halfproxy/halfproxy/lb"
)

func TestOptionsAreRefusedAllAtOnce(t *testing.T) {
	_, err := Options{Nodes: 90, Backends: 11, Router: "cisco", Forward: lb.Forward(9)}.withDefaults()
	if err == nil {
		t.Fatal("got no error")
	}
	for _, want := range []string{"90 nodes", "11 backends", `router "cisco"`, "forward-9"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
}

func TestANodeThatEndsIsReportedWithItsLastWords(t *testing.T) {
	needRoot(t)
	o := testOptions(os.Getpid())
	o.Binary = filepath.Join(t.TempDir(), "broken")
	script := "#!/bin/sh\n[ $1 = lab-router ] && exec cat\necho no luck today\nexit 3\n"
	if err := os.WriteFile(o.Binary, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		nothingLeft(t, o)
	}()
	err = l.WaitReady(t.Context())
	if err == nil || !strings.Contains(err.Error(), "no luck today") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v, want the exit status and the end of the log", err)
	}
}

func TestTheEmbeddedRouterMakesTheKernelHaveTheRoutesItHas(t *testing.T) {
	needRoot(t)
	l := &Lab{options: testOptions(os.Getpid())}
	defer l.Close()
	for _, build := range []func() error{l.buildSwitch, l.buildRouter, l.openFIB} {
		if err := build(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		l.nodes = append(l.nodes, &Node{Name: string(rune('1' + i)), Addrs: nodeAddrs(i + 1)})
	}
	kernel := kernelRoutes{}
	for _, nodes := range []string{"1", "12", "123", "123", "3", "", "23"} {
		var routes []bgp.Route
		for i, vip := range VIPs.All() {
			r := bgp.Route{Prefix: netip.PrefixFrom(vip, vip.BitLen())}
			for _, n := range nodes {
				r.NextHops = append(r.NextHops, nodeAddrs(int(n - '0')).All()[i])
			}
			if nodes != "" {
				routes = append(routes, r)
			}
		}
		if err := l.routerNS.Do(func() error { return kernel.set(routes) }); err != nil {
			t.Errorf("set next hops %q: %v", nodes, err)
		}
		for _, vip := range VIPs.All() {
			if got, err := l.NextHops(vip); err != nil || !slices.Equal(got, split(nodes)) {
				t.Errorf("%s: got next hops %q, %v, want %q", vip, got, err, nodes)
			}
		}
	}
}

func split(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, "")
}
