package main

import (
	"os"
	"strings"
	"testing"

	"github.com/halfproxy/halfproxy/config"
)

func TestTheReadmesConfigurationIsTaken(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(readme), "```yaml\n")
	yaml, _, found := strings.Cut(rest, "```")
	if !found {
		t.Fatal("README.md: no yaml block")
	}
	if _, err := config.Parse("README.md", []byte(yaml)); err != nil {
		t.Error(err)
	}
}
