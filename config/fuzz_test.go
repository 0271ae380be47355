package config

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
)

// Whatever the bytes: no panic, and either a configuration that is whole or
// errors that each name a line and take one.
func FuzzParse(f *testing.F) {
	for _, path := range []string{served, "testdata/contract-whole.yaml", "../deploy/halfproxy.yaml"} {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("node: {interfaces: [eth0]}\nservices: []\n"))
	f.Add([]byte("services: &a\n- backends: *a\n  check: !!map {<<: *b}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := Parse("fuzz.yaml", data)
		if err == nil {
			if cfg.Node.Name == "" || len(cfg.Node.Interfaces) == 0 || cfg.Cluster.Size < 1 {
				t.Errorf("taken though incomplete: %+v", cfg)
			}
			for _, s := range cfg.Services {
				if s.Name == "" || len(s.VIPs) == 0 || len(s.Ports) == 0 || len(s.Backends) == 0 ||
					s.Check.Port == 0 || s.Check.Timeout >= s.Check.Interval || s.MinHealthy.Of(len(s.Backends)) > len(s.Backends) {
					t.Errorf("service taken though incomplete: %+v", s)
				}
			}
			return
		}
		all, ok := errors.AsType[Errors](err)
		if !ok || len(all) == 0 {
			t.Fatalf("error is %T, want Errors: %v", err, err)
		}
		lines := strings.Count(string(data), "\n") + strings.Count(string(data), "\r") + 1
		for _, e := range all {
			if e.Line < 1 || e.Line > lines || strings.ContainsAny(e.Error(), "\n\r\t") {
				t.Errorf("line %d of %d: %q", e.Line, lines, e.Error())
			}
		}
		if !slices.IsSortedFunc(all, func(a, b *Error) int { return a.Line - b.Line }) {
			t.Errorf("not sorted by line: %v", err)
		}
	})
}
