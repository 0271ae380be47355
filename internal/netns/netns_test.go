package netns_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"testing"

	"github.com/halfproxy/halfproxy/internal/netns"
)

func TestTwoNamespacesTalkOverAVeth(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	a, b := newNS(t, "hptest-ns-a"), newNS(t, "hptest-ns-b")
	if err := a.Veth("eth0", b, "eth0", 1500); err != nil {
		t.Fatal(err)
	}
	if err := a.Address("eth0", "192.0.2.1/24", "2001:db8::1/64"); err != nil {
		t.Fatal(err)
	}
	if err := b.Address("eth0", "192.0.2.2/24", "2001:db8::2/64"); err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{"192.0.2.2:80", "[2001:db8::2]:80"} {
		l, err := b.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, "hello")
			conn.Close()
		}()
		conn, err := a.DialContext(context.Background(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(conn)
		if err != nil || !bytes.Equal(got, []byte("hello")) {
			t.Errorf("from %s: got %q, %v, want hello", address, got, err)
		}
	}
}

func newNS(t *testing.T, name string) *netns.NS {
	t.Helper()
	ns, err := netns.New(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	return ns
}
