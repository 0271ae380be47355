package cluster

import (
	"errors"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

func TestAStreamComesFromTheMembersAddressAndEnds(t *testing.T) {
	t.Parallel()
	peer, err := net.Listen("tcp", netip.AddrPortFrom(loopback().Addr(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	at := loopback()
	tr, err := listen(at, log.New(io.Discard, "", 0))
	if err != nil {
		t.Fatal(err)
	}
	to := memberlist.Address{Addr: peer.Addr().String()}
	conn, err := tr.DialAddressTimeout(to, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := netip.MustParseAddrPort(conn.LocalAddr().String()).Addr(); got != at.Addr() {
		t.Errorf("the stream comes from %v, want %v", got, at.Addr())
	}

	// The peer reads nothing, as one that is cut off.
	start := time.Now()
	chunk := make([]byte, 1<<20)
	for err == nil && time.Since(start) < 2*streamTimeout {
		_, err = conn.Write(chunk)
	}
	if took := time.Since(start); !errors.Is(err, os.ErrDeadlineExceeded) || took > streamTimeout+4*time.Second {
		t.Errorf("got %v after %v, want a deadline after %v", err, took, streamTimeout)
	}

	if err := tr.Shutdown(); err != nil {
		t.Error(err)
	}
	if _, err := tr.DialAddressTimeout(to, time.Second); err == nil {
		t.Error("a transport that is shut down still dials")
	}
}
