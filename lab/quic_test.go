package lab

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/halfproxy/halfproxy/lb"
)

const (
	quicPort = 443
	// quicIdle is how long an end waits for the other: none of what follows does.
	quicIdle = 3 * time.Second
)

// A client gets another port again and again, as behind a NAT that forgets, and in
// the end another address; most of these are other flows to the table, and some come
// in by another node. Its connection goes on all the same, by its connection IDs.
func TestAQUICClientStaysWithItsBackendWhereverItMoves(t *testing.T) {
	for _, forward := range []lb.Forward{lb.L2, lb.GUE} {
		t.Run(forward.String(), func(t *testing.T) {
			t.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true")
			l := start(t, Options{Forward: forward})
			serveQUIC(t, l)
			if err := l.clientNS.Address("eth0", secondClient.on(24, 64)...); err != nil {
				t.Fatal(err)
			}
			options := "ports: [tcp/80, udp/443]\n    quic: {server_id_length: 2}"
			if forward == lb.GUE {
				options += "\n    gue: {checksum: full}" // which the backends look at
			}
			reconfigure(t, l, options)
			for i, vip := range VIPs.All() {
				t.Run(vip.String(), func(t *testing.T) {
					moveWithQUIC(t, l, clientAddrs.All()[i], secondClient.All()[i], vip)
				})
			}
			if forward != lb.L2 {
				return
			}
			t.Run("traces of connection IDs", func(t *testing.T) { traceServerIDs(t, l) })
			// The test can fail: by the table alone connections break.
			reconfigure(t, l, "ports: [tcp/80, udp/443]")
			t.Run("without server IDs", func(t *testing.T) {
				c := dialQUIC(t, l, clientAddrs.V4, VIPs.V4)
				for range 20 {
					port := c.rebind(t)
					stays := l.backendByTable(t, netip.AddrPortFrom(clientAddrs.V4, port), VIPs.V4) == c.backend
					if moved := c.progresses(); moved != stays {
						t.Fatalf("from a port whose flow is its own backend's (%v) it goes on (%v), want the same", stays, moved)
					}
					if !stays {
						return
					}
				}
				t.Error("no port of 20 was another backend's")
			})
		})
	}
}

// secondClient is where the client moves to.
var secondClient = addrs("192.168.1.2", "2001:db8:1::2")

func moveWithQUIC(t *testing.T, l *Lab, client, second, vip netip.Addr) {
	c := dialQUIC(t, l, client, vip)
	nodes := map[string]bool{}
	strays := 0 // ports that the table alone would lead to another backend
	use := func(address netip.Addr, move func() uint16) {
		var port uint16
		seen, err := l.clientPorts(func() error {
			port = move()
			if !c.progresses() {
				return errors.New("the connection has broken")
			}
			return nil
		})
		if err != nil {
			t.Fatalf("from %s, port %d: %v", address, port, err)
		}
		for node, ports := range seen {
			if ports[port] {
				nodes[node] = true
			}
		}
		if l.backendByTable(t, netip.AddrPortFrom(address, port), vip) != c.backend {
			strays++
		}
	}
	moves := 0
	for ; moves < 3 || moves < 20 && (len(nodes) < 2 || strays < 2); moves++ {
		use(client, func() uint16 { return c.rebind(t) })
	}
	use(second, func() uint16 { return c.migrate(t, second) })
	if len(nodes) < 2 || strays < 2 {
		t.Errorf("in %d moves it used nodes %v, and %d times was a flow of another backend: the test tests nothing", moves+1, nodes, strays)
	}
	if err := c.finish(); err != nil {
		t.Error(err)
	}
	t.Logf("%d bytes came back from %s over %d moves by way of %d nodes; the table alone would have broken it %d times",
		c.echoed.Load(), c.backend, moves+1, len(nodes), strays)
}

// traceServerIDs asks every node about connection IDs of every backend.
func traceServerIDs(t *testing.T, l *Lab) {
	for i, b := range l.Backends() {
		id, err := serverIDs(b).GenerateConnectionID()
		if err != nil {
			t.Fatal(err)
		}
		n := l.Nodes()[i%len(l.Nodes())]
		for _, vip := range VIPs.All() {
			from := netip.MustParseAddrPort("198.51.100.7:5000")
			if vip.Is6() {
				from = netip.MustParseAddrPort("[2001:db8:ff::7]:5000")
			}
			trace, stderr, code := traceCommand(t, n, "udp", from.String(), netip.AddrPortFrom(vip, quicPort).String(), "--quic-cid", id.String())
			want := fmt.Sprintf("by server ID: the connection ID holds 000%d, which is that of backend %q", i+1, b.Name)
			if code != 0 || trace.Why != want || trace.Backend == nil || trace.Backend.Name != b.Name || trace.ConnectionID != id.String() {
				t.Errorf("%s about connection ID %s: got code %d, %+v, %s, want %q", n.Name, id, code, trace, stderr, want)
			}
		}
	}
}

// backendByTable says which backend a flow to the VIP is, for want of a connection ID.
func (l *Lab) backendByTable(t *testing.T, client netip.AddrPort, vip netip.Addr) string {
	t.Helper()
	trace, stderr, code := traceCommand(t, l.Nodes()[0], "udp", client.String(), netip.AddrPortFrom(vip, quicPort).String())
	if code != 0 || trace.Backend == nil {
		t.Fatalf("trace of %s > %s: got code %d, %+v, %s", client, vip, code, trace, stderr)
	}
	return trace.Backend.Name
}

// serverIDs makes connection IDs with a backend's server ID, the last two bytes of
// its address.
func serverIDs(b *Backend) quic.ConnectionIDGenerator {
	a := b.V4.As4()
	return idGenerator(a[2:])
}

type idGenerator []byte

func (g idGenerator) ConnectionIDLen() int { return 1 + len(g) + 5 }

func (g idGenerator) GenerateConnectionID() (quic.ConnectionID, error) {
	id := make([]byte, g.ConnectionIDLen())
	rand.Read(id) // never fails
	id[0] &= 0x1f // config_rotation 0
	copy(id[1:], g)
	return quic.ConnectionIDFromBytes(id), nil
}

// serveQUIC has every backend echo what comes on QUIC streams to the VIPs, after a
// Retry. Its certificate names it.
func serveQUIC(t *testing.T, l *Lab) {
	t.Helper()
	for _, b := range l.Backends() {
		cert, err := certificate(b.Name)
		if err != nil {
			t.Fatal(err)
		}
		for _, vip := range VIPs.All() {
			conn, err := b.ns.ListenPacket("udp", netip.AddrPortFrom(vip, quicPort).String())
			if err != nil {
				t.Fatal(err)
			}
			tr := &quic.Transport{Conn: conn, ConnectionIDGenerator: serverIDs(b), VerifySourceAddress: func(net.Addr) bool { return true }}
			listener, err := tr.Listen(&tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"echo"}}, &quic.Config{MaxIdleTimeout: quicIdle})
			if err != nil {
				t.Fatal(err)
			}
			var serving sync.WaitGroup
			serving.Go(func() {
				for {
					c, err := listener.Accept(context.Background())
					if err != nil {
						return
					}
					serving.Go(func() {
						if s, err := c.AcceptStream(context.Background()); err == nil {
							_, _ = io.Copy(s, s) // the client knows how it ends
							s.Close()
						}
					})
				}
			})
			t.Cleanup(func() {
				tr.Close()
				serving.Wait()
				conn.Close()
			})
		}
	}
}

func certificate(name string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// quicClient sends content to the VIP, and checks it as it is echoed.
type quicClient struct {
	lab      *Lab
	conn     *quic.Conn
	socket   *rebinding
	address  netip.Addr
	backend  string
	echoed   atomic.Int64
	stopping chan struct{}
	sent     chan error
	received chan error
}

const quicRate = 200_000 // bytes a second

func dialQUIC(t *testing.T, l *Lab, client, vip netip.Addr) *quicClient {
	t.Helper()
	c := &quicClient{lab: l, address: client, socket: newRebinding(), stopping: make(chan struct{}), sent: make(chan error, 1), received: make(chan error, 1)}
	t.Cleanup(func() { c.socket.Close() })
	c.rebind(t)
	tr := &quic.Transport{Conn: c.socket}
	t.Cleanup(func() { tr.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	var err error
	c.conn, err = tr.Dial(ctx, net.UDPAddrFromAddrPort(netip.AddrPortFrom(vip, quicPort)),
		&tls.Config{InsecureSkipVerify: true, NextProtos: []string{"echo"}}, //nolint:gosec // a lab's own server
		&quic.Config{MaxIdleTimeout: quicIdle, DisablePathMTUDiscovery: true})
	if err != nil {
		t.Fatalf("dial %s: %v", vip, err)
	}
	c.backend = c.conn.ConnectionState().TLS.PeerCertificates[0].Subject.CommonName
	stream, err := c.conn.OpenStreamSync(ctx)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, err := io.Copy(stream, &paced{reader: until{c.stopping, new(content)}, rate: quicRate})
		c.sent <- errors.Join(err, stream.Close())
	}()
	go func() {
		_, err := io.Copy(io.MultiWriter(new(content), counter{&c.echoed}), stream)
		c.received <- err
	}()
	if !c.progresses() {
		t.Fatalf("nothing comes back from %s at %s", c.backend, vip)
	}
	return c
}

// progresses tells whether as much comes back as is sent in a quarter of a second,
// before an end gives up waiting.
func (c *quicClient) progresses() bool {
	want := c.echoed.Load() + quicRate/4
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if c.echoed.Load() >= want {
			return true
		}
	}
	return false
}

// rebind gives the client another port, as a NAT on the way does: neither end is told.
func (c *quicClient) rebind(t *testing.T) uint16 {
	t.Helper()
	conn, err := c.lab.clientNS.ListenPacket("udp", netip.AddrPortFrom(c.address, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	c.socket.use(conn)
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

// migrate moves the connection to another address, as a client does that finds another
// network: it probes the new path and takes another connection ID (RFC 9000, 9).
func (c *quicClient) migrate(t *testing.T, to netip.Addr) uint16 {
	t.Helper()
	conn, err := c.lab.clientNS.ListenPacket("udp", netip.AddrPortFrom(to, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	tr := &quic.Transport{Conn: conn}
	t.Cleanup(func() {
		tr.Close()
		conn.Close()
	})
	path, err := c.conn.AddPath(tr)
	if err == nil {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		err = path.Probe(ctx)
	}
	if err == nil {
		err = path.Switch()
	}
	if err != nil {
		t.Fatalf("migrate to %s: %v", to, err)
	}
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

// finish ends the transfer, all of which has to have come back.
func (c *quicClient) finish() error {
	close(c.stopping)
	return errors.Join(<-c.sent, <-c.received)
}

// until reads until it is told to stop.
type until struct {
	stop   chan struct{}
	reader io.Reader
}

func (u until) Read(p []byte) (int, error) {
	select {
	case <-u.stop:
		return 0, io.EOF
	default:
		return u.reader.Read(p)
	}
}

type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

// rebinding is a socket whose address changes in the middle of its life: what is
// sent goes out by the latest one it was given, what comes to an earlier one is lost,
// as at a NAT.
type rebinding struct {
	datagrams chan datagram
	ended     chan struct{} // closed: nothing is read any more
	end       func()

	mu      sync.Mutex
	current net.PacketConn
}

type datagram struct {
	bytes []byte
	from  net.Addr
}

func newRebinding() *rebinding {
	r := &rebinding{datagrams: make(chan datagram), ended: make(chan struct{})}
	r.end = sync.OnceFunc(func() { close(r.ended) })
	return r
}

func (r *rebinding) use(conn net.PacketConn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current != nil {
		r.current.Close()
	}
	r.current = conn
	go func() {
		for {
			b := make([]byte, 2048)
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			select {
			case r.datagrams <- datagram{b[:n], from}:
			case <-r.ended:
				return
			}
		}
	}()
}

func (r *rebinding) ReadFrom(p []byte) (int, net.Addr, error) {
	select {
	case d := <-r.datagrams:
		return copy(p, d.bytes), d.from, nil
	case <-r.ended:
		return 0, nil, os.ErrDeadlineExceeded
	}
}

func (r *rebinding) WriteTo(p []byte, to net.Addr) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current.WriteTo(p, to)
}

func (r *rebinding) Close() error {
	r.end()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current.Close()
}

func (r *rebinding) LocalAddr() net.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current.LocalAddr()
}

// SetReadDeadline ends reading: for nothing else does quic-go set one.
func (r *rebinding) SetReadDeadline(at time.Time) error {
	if !at.IsZero() {
		r.end()
	}
	return nil
}

func (r *rebinding) SetWriteDeadline(time.Time) error { return nil }

func (r *rebinding) SetDeadline(at time.Time) error { return r.SetReadDeadline(at) }
