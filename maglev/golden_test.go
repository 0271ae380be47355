package maglev_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/halfproxy/halfproxy/maglev"
)

var update = flag.Bool("update", false, "write testdata/golden.txt anew: clusters of mixed versions will then break connections")

func TestTablesNeverChange(t *testing.T) {
	const file = "testdata/golden.txt"
	got := golden()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	gotLines, wantLines := strings.Split(string(got), "\n"), strings.Split(string(want), "\n")
	if len(gotLines) != len(wantLines) {
		t.Errorf("%s: got %d lines, want %d", file, len(gotLines), len(wantLines))
	}
	for i := range min(len(gotLines), len(wantLines)) {
		if gotLines[i] != wantLines[i] {
			t.Errorf("%s:%d:\n got %s\nwant %s", file, i+1, gotLines[i], wantLines[i])
		}
	}
}

func golden() []byte {
	weighted := func(weights ...int) []maglev.Backend {
		backends := fleet(len(weights))
		for i, w := range weights {
			backends[i].Weight = w
		}
		return backends
	}
	ramp := fleet(1000)
	for i := range ramp {
		ramp[i].Weight = i
	}

	var out bytes.Buffer
	fmt.Fprintln(&out, "# service, backends, size, first 20 slots, SHA-256 of all slots in network byte order")
	for _, tt := range []struct {
		service, title string
		backends       []maglev.Backend
	}{
		{"web", "1 equal", fleet(1)},
		{"web", "3 equal", fleet(3)},
		{"dns", "3 equal", fleet(3)},
		{"", "3 equal", fleet(3)},
		{strings.Repeat("long", 64), "3 equal", fleet(3)},
		{"web", "weights 1,2,3", weighted(1, 2, 3)},
		{"web", "weights 100,0,50,-1,100", weighted(100, 0, 50, -1, 100)},
		{"web", "weights 1,1<<30", weighted(1, 1<<30)},
		{"web", "100 equal", fleet(100)},
		{"web", "1000 equal", fleet(1000)},
		{"web", "weights 0 to 999", ramp},
		{"web", "10000 equal", fleet(10000)},
		{"web", "65535 equal", fleet(maglev.MaxBackends)},
	} {
		for _, size := range maglev.Sizes {
			table := maglev.Table(tt.service, tt.backends, size)
			slots := make([]byte, 0, 2*size)
			for _, index := range table {
				slots = binary.BigEndian.AppendUint16(slots, index)
			}
			fmt.Fprintf(&out, "%q, %s, %d, %d, %x\n", tt.service, tt.title, size, table[:20], sha256.Sum256(slots))
		}
	}
	return out.Bytes()
}
