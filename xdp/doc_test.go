package xdp

import (
	"os"
	"strings"
	"testing"
)

func TestTheDocumentsTellOfEveryVerdict(t *testing.T) {
	text, err := os.ReadFile("../docs/datapath.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range verdictNames {
		if !strings.Contains(string(text), "| `"+name+"` |") {
			t.Errorf("docs/datapath.md has no row for %s", name)
		}
	}
}
