package bgp

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

// A peer that speaks no BGP, or stops to, has its own session alone to lose.
func TestAPeerThatSendsGarbageHarmsNobodyElse(t *testing.T) {
	header := func(length uint16, kind byte) string {
		return strings.Repeat("\xff", 16) + string([]byte{byte(length >> 8), byte(length), kind})
	}
	for _, tt := range []struct {
		name    string
		opened  bool // the session is up when it comes
		garbage string
		want    string // of the status; empty: the session stays
	}{
		{"another protocol", false, "HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n\r\n",
			"the peer closed the connection while the session was being set up: does it know this node's address?"},
		{"a header that is too short", false, header(18, 1), "the peer was refused: unknown message type"},
		{"a message of 65535 bytes", true, header(65535, 2) + strings.Repeat("x", 65516),
			"the session was closed by this node: error in an UPDATE message, subcode 1"},
		{"an UPDATE with lengths that lie", true, header(19+4, 2) + "\xff\xff\xff\xff",
			"the session was closed by this node: error in an UPDATE message, subcode 1"},
		{"an UPDATE cut inside an attribute (RFC 7606)", true, header(19+2+2+3, 2) + "\x00\x00\x00\x03\x40\x01\x09", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			needNamespace(t, "198.51.100.254", "198.51.100.253")
			good := &tap{address: netip.MustParseAddr("198.51.100.254"), asn: 64500}
			good.listen(t)
			bad := &tap{address: netip.MustParseAddr("198.51.100.253"), asn: 64500}
			if tt.opened {
				bad.listen(t)
			} else {
				babble(t, bad.address, tt.garbage)
			}
			s := start(t, config(peer("198.51.100.254", 64500), peer("198.51.100.253", 64500)))
			announce(t, s, "203.0.113.10/32")
			until(t, soon, func() string {
				if p := s.Peers(); p[0].State != established || tt.opened && p[1].State != established {
					return fmt.Sprintf("got %+v, want sessions", p)
				}
				return ""
			})
			since := s.Peers()[0].Since
			if tt.opened {
				bad.mu.Lock()
				bad.conn.Write([]byte(tt.garbage))
				bad.mu.Unlock()
			}
			until(t, 2*soon, func() string {
				if p := s.Peers()[1]; p.LastError != tt.want || (p.State == established) != (tt.want == "") {
					return fmt.Sprintf("got %+v, want %q", p, tt.want)
				}
				return ""
			})
			announce(t, s, "203.0.113.10/32", "203.0.113.11/32")
			good.knows(t,
				"203.0.113.10/32 via 198.51.100.254 as [64512] communities [] large [] local-pref 0",
				"203.0.113.11/32 via 198.51.100.254 as [64512] communities [] large [] local-pref 0")
			if p := s.Peers()[0]; p.Since != since || good.up() != 1 {
				t.Errorf("the other session: got %+v, want it up since %v", p, since)
			}
		})
	}
}

// babble answers every connection with the same words.
func babble(t *testing.T, address netip.Addr, words string) {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(address, 179).String())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Write([]byte(words))
			time.Sleep(100 * time.Millisecond)
			conn.Close()
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
}
