package bgp

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"golang.org/x/sys/unix"
)

// tap is a router that keeps every message it gets, to be looked at.
type tap struct {
	address netip.Addr
	asn     uint32
	// refuse, if set, is the answer to an OPEN instead of our own.
	refuse *bgp.BGPMessage
	// offer is sent once the session is up.
	offer []*bgp.BGPMessage
	// offeredAs is the type that all of it claims to be of; 0: what it is.
	offeredAs byte
	flood     []byte // sent after that, as it is
	ttl       int    // of our packets, SYN-ACK included
	password  string // TCP MD5, of the connection that it opens
	// helper says that it keeps routes over restarts (RFC 4724).
	helper bool

	mu       sync.Mutex
	sessions int // established, ever
	conn     net.Conn
	// refuseOnce is as refuse, of the next session.
	refuseOnce *bgp.BGPMessage
	got        []*bgp.BGPMessage
}

// listen takes sessions until the test ends.
func (p *tap) listen(t *testing.T) {
	t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		if p.ttl == 0 {
			return nil
		}
		var err error
		return errors.Join(c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, p.ttl)
		}), err)
	}}
	l, err := lc.Listen(context.Background(), "tcp", netip.AddrPortFrom(p.address, 179).String())
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
			wg.Go(func() { p.speak(conn) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.hangUp()
		wg.Wait()
	})
}

// dial opens the session itself, as a node does.
func (p *tap) dial(t *testing.T) {
	t.Helper()
	conn, err := connect(p.address, p.password)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { p.speak(conn) })
	t.Cleanup(func() {
		p.hangUp()
		wg.Wait()
	})
}

// connect opens a connection, signed with a password if there is one.
func connect(address netip.Addr, password string) (net.Conn, error) {
	d := net.Dialer{Timeout: time.Second, Control: func(_, _ string, c syscall.RawConn) error {
		if password == "" {
			return nil
		}
		sig := unix.TCPMD5Sig{Keylen: uint16(len(password))}
		sig.Addr.Family = unix.AF_INET
		copy(sig.Addr.Data[2:], address.AsSlice())
		copy(sig.Key[:], password)
		var err error
		return errors.Join(c.Control(func(fd uintptr) {
			err = unix.SetsockoptTCPMD5Sig(int(fd), unix.IPPROTO_TCP, unix.TCP_MD5SIG, &sig)
		}), err)
	}}
	return d.Dial("tcp", netip.AddrPortFrom(address, 179).String())
}

// refuseNext has the next session refused.
func (p *tap) refuseNext(how *bgp.BGPMessage) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuseOnce = how
}

// hangUp closes the connection without a word.
func (p *tap) hangUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != nil {
		p.conn.Close()
	}
}

func (p *tap) speak(conn net.Conn) {
	defer conn.Close()
	p.mu.Lock()
	p.conn = conn
	p.mu.Unlock()

	answer := p.open()
	if p.refuse != nil {
		answer = p.refuse
	}
	p.mu.Lock()
	if p.refuseOnce != nil {
		answer, p.refuseOnce = p.refuseOnce, nil
	}
	p.mu.Unlock()
	send(conn, answer)
	for {
		m, err := receive(conn)
		if err != nil {
			return
		}
		switch m.Header.Type {
		case bgp.BGP_MSG_OPEN:
			send(conn, bgp.NewBGPKeepAliveMessage())
		case bgp.BGP_MSG_KEEPALIVE:
			p.mu.Lock()
			first := len(p.got) > 0 && p.got[len(p.got)-1].Header.Type == bgp.BGP_MSG_OPEN
			if first {
				p.sessions++
			}
			p.mu.Unlock()
			send(conn, bgp.NewBGPKeepAliveMessage())
			if first {
				for _, m := range p.offer {
					sendAs(conn, m, p.offeredAs)
				}
				conn.Write(p.flood)
			}
		}
		p.mu.Lock()
		p.got = append(p.got, m)
		p.mu.Unlock()
	}
}

func (p *tap) open() *bgp.BGPMessage {
	capabilities := []bgp.ParameterCapabilityInterface{
		bgp.NewCapMultiProtocol(bgp.RF_IPv4_UC),
		bgp.NewCapMultiProtocol(bgp.RF_IPv6_UC),
		bgp.NewCapFourOctetASNumber(p.asn),
	}
	if p.helper {
		capabilities = append(capabilities, bgp.NewCapGracefulRestart(false, false, 0, nil))
	}
	return bgp.NewBGPOpenMessage(bgp.AS_TRANS, 90, "192.0.2.254", []bgp.OptionParameterInterface{bgp.NewOptionParameterCapability(capabilities)})
}

// A message that the other side no longer wants is no matter for a tap.
func send(conn net.Conn, m *bgp.BGPMessage) { sendAs(conn, m, 0) }

func sendAs(conn net.Conn, m *bgp.BGPMessage, kind byte) {
	b, err := m.Serialize()
	if err != nil {
		panic(err)
	}
	b[18] = cmp.Or(kind, b[18])
	conn.Write(b)
}

func receive(conn net.Conn) (*bgp.BGPMessage, error) {
	b := make([]byte, bgp.BGP_HEADER_LENGTH)
	if _, err := io.ReadFull(conn, b); err != nil {
		return nil, err
	}
	body := make([]byte, int(binary.BigEndian.Uint16(b[16:]))-len(b))
	if _, err := io.ReadFull(conn, body); err != nil {
		return nil, err
	}
	return bgp.ParseBGPMessage(append(b, body...))
}

// up counts the sessions that there have been.
func (p *tap) up() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sessions
}

// messages gives what has come of one type.
func (p *tap) messages(kind uint8) []*bgp.BGPMessage {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []*bgp.BGPMessage
	for _, m := range p.got {
		if m.Header.Type == kind {
			out = append(out, m)
		}
	}
	return out
}

// heard gives all announcements and withdrawals in their order, one a line:
//
//	203.0.113.10/32 via 192.0.2.1 as [64512] communities [64512:100] large [] local-pref 0
//	-203.0.113.10/32
func (p *tap) heard() []string {
	var out []string
	for _, m := range p.messages(bgp.BGP_MSG_UPDATE) {
		u := m.Body.(*bgp.BGPUpdate)
		for _, w := range u.WithdrawnRoutes {
			out = append(out, "-"+w.String())
		}
		var nlri []string
		for _, n := range u.NLRI {
			nlri = append(nlri, n.String())
		}
		var via string
		as, communities, large := []uint32{}, []string{}, []string{}
		var localPref uint32
		med := ""
		for _, a := range u.PathAttributes {
			switch a := a.(type) {
			case *bgp.PathAttributeNextHop:
				via = a.Value.String()
			case *bgp.PathAttributeMpReachNLRI:
				// String would print a mapped address as the IPv4 one it maps.
				nextHop, _ := netip.AddrFromSlice(a.Nexthop.To16())
				if nextHop.Is4In6() && a.AFI != bgp.AFI_IP6 {
					nextHop = nextHop.Unmap()
				}
				via = nextHop.String()
				for _, n := range a.Value {
					nlri = append(nlri, n.String())
				}
			case *bgp.PathAttributeMpUnreachNLRI:
				for _, n := range a.Value {
					out = append(out, "-"+n.String())
				}
			case *bgp.PathAttributeAsPath:
				for _, segment := range a.Value {
					as = append(as, segment.GetAS()...)
				}
			case *bgp.PathAttributeCommunities:
				for _, c := range a.Value {
					communities = append(communities, fmt.Sprintf("%d:%d", c>>16, c&0xffff))
				}
			case *bgp.PathAttributeLargeCommunities:
				for _, c := range a.Values {
					large = append(large, c.String())
				}
			case *bgp.PathAttributeLocalPref:
				localPref = a.Value
			case *bgp.PathAttributeMultiExitDisc:
				med = fmt.Sprint(" med ", a.Value)
			}
		}
		for _, n := range nlri {
			out = append(out, fmt.Sprintf("%s via %s as %v communities %v large %v local-pref %d%s", n, via, as, communities, large, localPref, med))
		}
	}
	return out
}
