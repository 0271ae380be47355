package lab

import (
	"strings"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/admin"
)

// A new file reaches one node after the other: another check of the service that all
// have, and a service more. Meanwhile nodes differ, and say so, and serve what both
// files have by the same table.
func TestNodesWithAnOldAndANewFileServeWhatBothHave(t *testing.T) {
	t.Parallel()
	l := start(t, Options{})
	digests(t, l)
	status, err := l.Nodes()[0].Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	table := status.Services[0].TableDigest
	load := l.startLoad(t.Context(), 8, 5*time.Millisecond)
	for i, n := range l.Nodes() {
		rewrite(t, n, func(file string) string {
			return strings.Replace(file, "path: /healthz", "path: /healthz?new", 1) +
				"  - {name: web2, vips: [203.0.113.99], ports: [tcp/81], backends: [{name: b9, address: 10.3.0.1}], check: {type: tcp, port: 80}}\n"
		})
		rolling := i < len(l.Nodes())-1
		eventually(t, l, 10*time.Second, "web's table is as before, and that files differ is told while they do", func(_ *Node, s admin.Status) bool {
			return rolling == (len(s.ConfigDiffers) > 0) && s.Services[0].TableDigest == table
		})
	}
	load.stop()
	if failed := len(failures(load.requests)); failed > 0 || len(load.requests) < 500 {
		t.Errorf("%d of %d requests failed, want none of many", failed, len(load.requests))
	}
}
