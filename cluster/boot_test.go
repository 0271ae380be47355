package cluster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestTheBootNumberOnlyGrows(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "as", "needed")
	clock := time.Unix(1_000, 0)
	for _, step := range []struct {
		now  time.Time
		want uint64
	}{
		{clock, 1_000_000_000_000},
		{clock.Add(time.Second), 1_001_000_000_000},
		{clock.Add(-time.Hour), 1_001_000_000_001},
		{time.Time{}, 1_001_000_000_002},
	} {
		if got, err := nextBoot(dir, step.now); got != step.want || err != nil {
			t.Errorf("at %v: got %d, %v, want %d", step.now, got, err, step.want)
		}
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("got %v, %v, want the file boot alone", files, err)
	}
}

func TestWithoutADirectoryTheClockDecides(t *testing.T) {
	if got, err := nextBoot("", time.Unix(0, 77)); got != 77 || err != nil {
		t.Errorf("got %d, %v, want 77", got, err)
	}
	if got, err := nextBoot("", time.Time{}); got != 1 || err != nil {
		t.Errorf("before 1970: got %d, %v, want 1", got, err)
	}
}

func TestABootNumberThatCannotBeKeptIsAnError(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(bootFile(dir), []byte("not a number"), 0o644); err != nil {
		t.Fatal(err)
	}
	for at, want := range map[string]string{
		dir:           "remove the file, the clock takes over",
		bootFile(dir): "boot number", // a file where the directory should be
	} {
		if _, err := nextBoot(at, time.Now()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want an error with %q", at, err, want)
		}
	}
}
