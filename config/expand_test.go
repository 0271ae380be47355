package config

import (
	"reflect"
	"strings"
	"testing"
)

// again is what is read of cfg once it was written with all defaults.
func again(t *testing.T, cfg Config) (string, Config, error) {
	t.Helper()
	var out strings.Builder
	if err := cfg.WriteExpanded(&out); err != nil {
		t.Fatal(err)
	}
	expanded, err := Parse("halfproxy.yaml", []byte(out.String()))
	return out.String(), expanded, err
}

// Whatever the file: with all defaults written out it says the same.
func expandsToItself(t *testing.T, cfg Config) {
	t.Helper()
	text, expanded, err := again(t, cfg)
	cfg.expanded, expanded.expanded = nil, nil
	if err != nil || !reflect.DeepEqual(cfg, expanded) {
		t.Errorf("got  %+v, %v\nwant %+v\nby %s", expanded, err, cfg, text)
	}
}

func TestExpand(t *testing.T) {
	cfg, err := parse("halfproxy.yaml", []byte(`
node: {interfaces: [eth0]}
bgp:
  asn: 64512
  router_id: 192.0.2.1
  peers: [{address: 192.0.2.254, asn: 64500, bfd: {}}]
services:
  - name: web
    vips: [203.0.113.10, "2001:db8::10"]
    ports: [tcp/80]
    backends: [{name: web1, address: 10.0.1.11}]
    check: {type: http, headers: {X-Probe: "yes: really"}, timeout: 1000ms, interval: 2s}
`), host{name: func() (string, error) { return "lb7", nil }})
	if err != nil {
		t.Fatal(err)
	}
	expandsToItself(t, cfg)
	got, _, _ := again(t, cfg)
	if want := string(read(t, "testdata/expanded.yaml")); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestTheReferenceFileExpandsToItself(t *testing.T) {
	cfg, err := Parse("halfproxy.yaml", read(t, "../deploy/halfproxy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	expandsToItself(t, cfg)
}
