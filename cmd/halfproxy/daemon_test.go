package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestTheLogIsWrittenAsAsked(t *testing.T) {
	logged := func(args ...string) (string, error) {
		var out bytes.Buffer
		cmd := &cobra.Command{Use: "x", SilenceErrors: true, SilenceUsage: true}
		log := logFlag(cmd)
		cmd.Run = func(*cobra.Command, []string) {
			if got := strings.ToLower(strings.Join(logOptions(log().With("part", "bfd")), " ")); len(args) > 0 && !strings.Contains(got, strings.Join(args, " ")) {
				t.Errorf("another process of ours is told %q, want %q", got, args)
			}
			log().Info("session up", "peer", "10.0.1.254")
		}
		cmd.SetArgs(args)
		cmd.SetErr(&out)
		err := cmd.Execute()
		return out.String(), err
	}
	if got, err := logged(); err != nil || !strings.Contains(got, `msg="session up" peer=10.0.1.254`) {
		t.Errorf("got %q (%v), want text", got, err)
	}
	got, err := logged("--log-format", "json")
	var line struct{ Level, Msg, Peer string }
	if e := json.Unmarshal([]byte(got), &line); err != nil || e != nil || line.Level != "INFO" || line.Msg != "session up" || line.Peer != "10.0.1.254" {
		t.Errorf("got %q (%v, %v), want an object with level, msg and peer", got, err, e)
	}
	if _, err := logged("--log-format", "xml"); err == nil || !strings.Contains(err.Error(), `use text or json`) {
		t.Errorf("xml: got %v, want what there is", err)
	}
	if got, err := logged("--log-level", "warn"); err != nil || got != "" {
		t.Errorf("got %q (%v), want nothing below warn", got, err)
	}
}
