package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// book is what the documents have in blocks, and which of it was run.
type book struct{ blocks []*block }

// block is one of them.
type block struct {
	path     string // of the document, from the tree's root
	line     int
	language string // empty: commands, which are indented and not fenced
	lines    []string
	excuse   string // why no test runs it, by a comment above it
	run      bool
}

func (b *block) String() string { return fmt.Sprintf("%s:%d: %s", b.path, b.line, b.lines[0]) }

const tree = "../.."

// read takes all documents that have commands.
func read(t *testing.T) *book {
	t.Helper()
	paths, err := filepath.Glob(tree + "/docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	book := new(book)
	for _, path := range append(paths, tree+"/README.md", tree+"/deploy/containerlab/README.md") {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name, err := filepath.Rel(tree, path)
		if err != nil {
			t.Fatal(err)
		}
		book.add(name, string(text))
	}
	return book
}

var excuse = regexp.MustCompile(`^<!-- not run: (.+) -->$`)

func (b *book) add(path, text string) {
	var open *block
	var fenced bool
	var because string
	above := ""
	for i, line := range strings.Split(text, "\n") {
		indented := strings.HasPrefix(line, "    ")
		switch {
		case fenced && line == "```":
			fenced, open = false, nil
		case fenced:
			open.lines = append(open.lines, line)
		case strings.HasPrefix(line, "```"):
			open, fenced, because = &block{path: path, line: i + 2, language: line[3:]}, true, ""
			b.blocks = append(b.blocks, open)
		case open != nil && indented:
			last := len(open.lines) - 1
			if begun, goesOn := strings.CutSuffix(open.lines[last], "\\"); goesOn {
				open.lines[last] = begun + strings.TrimSpace(line)
			} else {
				open.lines = append(open.lines, typed(line))
			}
		case indented && above == "":
			open = &block{path: path, line: i + 1, excuse: because, lines: []string{typed(line)}}
			b.blocks = append(b.blocks, open)
			because = ""
		case line == "":
			open = nil
		default:
			open, because = nil, ""
			if m := excuse.FindStringSubmatch(line); m != nil {
				because = m[1]
			}
		}
		above = line
	}
}

// typed is a line as root types it here.
func typed(line string) string {
	line = strings.ReplaceAll(strings.TrimSpace(line), "sudo ", "")
	return strings.ReplaceAll(line, "_amd64.", "_"+runtime.GOARCH+".")
}

// find is the block of a document that begins so.
func (b *book) find(t *testing.T, path, begins string) *block {
	t.Helper()
	for _, block := range b.blocks {
		if block.path == path && strings.HasPrefix(block.lines[0], begins) {
			return block
		}
	}
	t.Fatalf("%s has no block that begins with %q", path, begins)
	return nil
}

// commands are those of the block that begins so, which the caller runs.
func (b *book) commands(t *testing.T, path, begins string) []string {
	t.Helper()
	found := b.find(t, path, begins)
	for _, block := range b.blocks { // a document may say the same twice
		block.run = block.run || block.path == path && slices.Equal(block.lines, found.lines)
	}
	return found.lines
}

// file is what the fenced block that begins so has.
func (b *book) file(t *testing.T, path, begins string) string {
	t.Helper()
	return strings.Join(b.find(t, path, begins).lines, "\n") + "\n"
}

// most excuses that there may be: look for a way to run a block before you raise it.
const most = 7

// close fails the test for each block of commands that was not run and does not say why.
func (b *book) close(t *testing.T) {
	t.Helper()
	excused := 0
	for _, block := range b.blocks {
		switch {
		case block.language != "":
		case block.excuse != "" && block.run:
			t.Errorf("%s\nis run, so take the comment above it away", block)
		case block.excuse != "":
			excused++
			t.Logf("not run: %s\n    %s", block, block.excuse)
		case block.run:
			t.Logf("run:     %s", block)
		default:
			for _, line := range block.lines {
				if err := ofTheTree(line); err != nil {
					t.Errorf("%s\nno test runs it: %v; run it in this test, or say above it why not: <!-- not run: … -->", block, err)
				}
			}
			t.Logf("is there: %s", block)
		}
	}
	if excused > most {
		t.Errorf("%d blocks are not run, want %d at most", excused, most)
	}
}

var (
	makes = regexp.MustCompile(`^make ([a-z-]+)`)
	tests = regexp.MustCompile(`^(?:[A-Z_]+=\S+ )*go test (\S+) (.*)$`)
	flags = regexp.MustCompile(`-([a-z]+)(?: +'?([^-\s'][^\s']*)'?)?`)
)

// ofTheTree says what is wrong with a line that builds or tests, which is done elsewhere:
// whether there is such a target, and such a test.
func ofTheTree(line string) error {
	if m := makes.FindStringSubmatch(line); m != nil {
		text, err := os.ReadFile(tree + "/Makefile")
		if err == nil && !strings.Contains(string(text), "\n"+m[1]+": ") && !strings.Contains(string(text), "\n"+m[1]+":\n") {
			err = fmt.Errorf("make has no target %s", m[1])
		}
		return err
	}
	m := tests.FindStringSubmatch(line)
	if m == nil {
		return fmt.Errorf("%q neither makes nor tests", line)
	}
	paths, err := filepath.Glob(filepath.Join(tree, m[1], "*_test.go"))
	if err != nil {
		return err
	}
	var sources strings.Builder
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		sources.Write(text)
	}
	for _, f := range flags.FindAllStringSubmatch(m[2], -1) {
		pattern := `flag\.[A-Z]\w*\("` + f[1] + `"`
		switch f[1] {
		case "run":
			pattern = `func Test\w*` + strings.TrimPrefix(f[2], "Test")
			if f[2] == "^$" {
				continue
			}
		case "bench":
			pattern = `func Benchmark\w*` + f[2]
		case "v", "benchtime", "timeout":
			continue
		}
		if !regexp.MustCompile(pattern).MatchString(sources.String()) {
			return fmt.Errorf("%s has no %s", m[1], pattern)
		}
	}
	return nil
}
