package bgp

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// A message of a type that there is not, in a session that is up, makes GoBGP v3.37
// follow a nil pointer. What a node knows of such a peer afterwards rests on two things:
// that Up was called with it before, and that the library is in the last words.
func TestACrashByAPeersMessageTellsOfThePeer(t *testing.T) {
	needNamespace(t, "198.51.100.254")
	router := &tap{
		address: netip.MustParseAddr("198.51.100.254"), asn: 64500,
		offer: []*bgp.BGPMessage{bgp.NewBGPKeepAliveMessage()}, offeredAs: 77,
	}
	router.listen(t)
	words := filepath.Join(t.TempDir(), "words")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), victim+"="+words)
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Skipf("the library has learnt to live with it:\n%s", out)
	}
	if up, err := os.ReadFile(words + ".up"); err != nil || string(up) != "198.51.100.254" {
		t.Errorf("up: got %q, %v, want the peer", up, err)
	}
	if said, err := os.ReadFile(words); err != nil || !strings.Contains(string(said), "github.com/osrg/gobgp/") {
		t.Errorf("last words: got %q, %v, want the library in them", said, err)
	}
}

// dieOf runs a node until something is its end.
func dieOf(words string) {
	out, err := os.Create(words)
	if err == nil {
		err = debug.SetCrashOutput(out, debug.CrashOptions{})
	}
	if err != nil {
		panic(err)
	}
	cfg := config(peer("198.51.100.254", 64500))
	cfg.Up = func(peer netip.Addr) {
		if err := os.WriteFile(words+".up", []byte(peer.String()), 0o600); err != nil {
			panic(err)
		}
	}
	s, err := New(cfg)
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*soon)
	err = s.Run(ctx)
	cancel()
	if err != nil {
		panic(err)
	}
	fmt.Println("alive")
	os.Exit(0)
}
