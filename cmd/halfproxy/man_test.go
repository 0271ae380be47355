package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestEveryCommandAndFlagHasItsPlaceInTheManual(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man8")
	if _, stderr, code := call(t, "man", dir); code != exitDone {
		t.Fatalf("got code %d, %s", code, stderr)
	}
	for page, wants := range map[string][]string{
		"halfproxy.8":               {".BR halfproxy\\-drain (8)", ".BR halfproxy\\-run (8)", ".SH EXIT STATUS"},
		"halfproxy-capture.8":       {"\\fB\\-w, \\-\\-write\\fR \\fIFILE\\fR", "(default: 10000)", "halfproxy capture \\-\\-dropped | tcpdump", ".SH SEE ALSO"},
		"halfproxy-drain.8":         {"COMMAND", ".BR halfproxy\\-drain\\-backend (8)"},
		"halfproxy-drain-backend.8": {".B halfproxy drain backend\nNAME [flags]", "\\-\\-undo"},
	} {
		text, err := os.ReadFile(filepath.Join(dir, page))
		if err != nil {
			t.Error(err)
			continue
		}
		for _, want := range wants {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s: got no %q in\n%s", page, want, text)
			}
		}
	}
	pages, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(pages) < 20 {
		t.Fatalf("got %d pages, %v", len(pages), err)
	}
	for _, page := range pages {
		if name := filepath.Base(page); strings.Contains(name, "lab-router") || strings.Contains(name, "bfd") || strings.Contains(name, "help") {
			t.Errorf("got %s, which is not for people", name)
		}
		if groff, err := exec.LookPath("groff"); err == nil {
			if said, err := exec.Command(groff, "-man", "-ww", "-Tutf8", "-z", page).CombinedOutput(); err != nil || len(said) > 0 {
				t.Errorf("%s: groff says %v: %s", filepath.Base(page), err, said)
			}
		}
	}
}

func TestManualPagesAreTheSameEachTime(t *testing.T) {
	read := func() string {
		dir := t.TempDir()
		call(t, "man", dir)
		text, err := os.ReadFile(filepath.Join(dir, "halfproxy-run.8"))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if first, second := read(), read(); first != second {
		t.Errorf("got\n%s\nand then\n%s", first, second)
	}
}
