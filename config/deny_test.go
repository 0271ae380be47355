package config

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestADenyListIsReadWithItsComments(t *testing.T) {
	list, err := parseDenied("deny.txt", []byte(`# those who attacked us
198.51.100.0/24   # all of them
  203.0.113.7
2001:db8:bad::/48

2001:db8::1
198.51.100.0/24   # again
::ffff:192.0.2.1
`))
	want := []string{"198.51.100.0/24", "203.0.113.7/32", "2001:db8:bad::/48", "2001:db8::1/128", "192.0.2.1/32"}
	var got []string
	for _, p := range list {
		got = append(got, p.String())
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

func TestEveryWrongLineOfADenyListIsNamed(t *testing.T) {
	_, err := parseDenied("deny.txt", []byte("198.51.100.0/24\nexample.org\n198.51.100.7/24\n::/0\n::ffff:198.51.100.0/120\nfe80::1%eth0\n"))
	want := `deny.txt:2: "example.org" is neither a prefix nor an address: write 198.51.100.0/24, 2001:db8::/32 or 198.51.100.7, one a line
deny.txt:3: "198.51.100.7/24" has bits beyond its length: write 198.51.100.0/24
deny.txt:4: "::/0" denies everybody: drain the services in its place
deny.txt:5: "::ffff:198.51.100.0/120" is an IPv4 prefix written as IPv6: write it as IPv4
deny.txt:6: "fe80::1%eth0" is neither a prefix nor an address: write 198.51.100.0/24, 2001:db8::/32 or 198.51.100.7, one a line`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	_, err = parseDenied("deny.txt", []byte(strings.Repeat("no\n", 1000)))
	if err == nil || strings.Count(err.Error(), "\n") != mostFaults-1 {
		t.Errorf("a file that is something else: got %v, want %d lines", err, mostFaults)
	}
}

func TestADenyListHasAnEnd(t *testing.T) {
	var b strings.Builder
	for i := range mostDenied + 1 {
		fmt.Fprintf(&b, "10.%d.%d.%d/32\n", i>>16, i>>8&255, i&255)
	}
	if _, err := parseDenied("deny.txt", []byte(b.String())); err == nil || !strings.Contains(err.Error(), "one too many") {
		t.Errorf("got %v, want the limit named", err)
	}
}

func TestADenyListIsPartOfTheConfiguration(t *testing.T) {
	dir := t.TempDir()
	list, file := filepath.Join(dir, "deny.txt"), filepath.Join(dir, "halfproxy.yaml")
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(file, "node:\n  name: lb1\n  interfaces: [eth0]\n  deny_file: deny.txt\nservices: []\n")
	if _, err := Load(file); err == nil || !strings.Contains(err.Error(), `node.deny_file "deny.txt" cannot be taken`) {
		t.Errorf("without the list: got %v", err)
	}
	write(list, "nonsense\n")
	if _, err := Load(file); err == nil || !strings.Contains(err.Error(), list+`:1: "nonsense" is neither`) {
		t.Errorf("with a wrong list: got %v", err)
	}
	write(list, "198.51.100.0/24\n")
	cfg, err := Load(file)
	if err != nil || len(cfg.Denied) != 1 || cfg.Node.DenyFile != list {
		t.Errorf("got %v from %q, %v", cfg.Denied, cfg.Node.DenyFile, err)
	}
}

func FuzzParseDenied(f *testing.F) {
	f.Add("198.51.100.0/24\n# x\n2001:db8::1")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := parseDenied("deny.txt", []byte(text))
		for _, p := range list {
			if p != p.Masked() || p.Bits() == 0 {
				t.Errorf("took %v, %v", p, err)
			}
		}
	})
}
