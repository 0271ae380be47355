package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWhatIsPublishedIsCurrent(t *testing.T) {
	files, err := made("..")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join("../..", name))
		if err != nil || string(got) != string(want) {
			t.Errorf("%s is not what the shape makes of it (%v): run make generate", name, err)
		}
	}
}

func TestAShapeThatDoesNotDescribeItselfIsRefused(t *testing.T) {
	for _, tt := range []struct{ field, want string }{
		{"Name value", "file.Name: has no tag: say what it holds, as config/shape.go tells"},
		{"Name value `yaml:\"name\" kind:\"name\"`", "file.Name: has no comment: say what it means"},
		{"// A name.\nName value `yaml:\"name\" kind:\"nome\"`", `file.Name: kind "nome" is unknown`},
		{"// A name.\nName value `yaml:\"name\" kind:\"word\"`", "file.Name: kind word has words, and no other kind has"},
		{"// A node.\nNode nodeSection `yaml:\"node\"`", "file.Node: config has no type nodeSection"},
	} {
		dir := t.TempDir()
		source := "package config\ntype file struct {\nsection\n" + tt.field + "\n}\n"
		if err := os.WriteFile(filepath.Join(dir, "shape.go"), []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := read(dir, "file"); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %s", tt.field, err, tt.want)
		}
	}
}
