package xdp

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/halfproxy/halfproxy/internal/packet"
	"github.com/halfproxy/halfproxy/lb"
)

// quic is a service whose backends have two-byte server IDs of configuration 5: the
// n-th is 0a and n+1. All slots are the first one's, so that a packet that another
// gets went there by its server ID.
func quic(t lb.Table) lb.Table {
	t.Service.QUIC = lb.QUIC{ServerIDLength: 2, ConfigRotation: 5}
	for i := range t.Service.Backends {
		t.Service.Backends[i].ServerID = lb.ServerID([]byte{0x0a, byte(i + 1)})
	}
	t.Backends = lb.SortBackends(t.Service.Backends)
	t.Alive = t.Backends
	clear(t.Slots)
	return t
}

// The connection IDs of the tests.
var (
	second  = []byte{5<<5 | 7, 0x0a, 2, 0xc5, 0xde, 0x66, 0xa9, 0x0b} // of the second backend
	unknown = []byte{5<<5 | 7, 0x0a, 99, 0xc5, 0xde, 0x66, 0xa9, 0x0b}
	chosen  = []byte{0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08} // by a client (RFC 9001, appendix A)
)

// cid is second with another beginning.
func cid(begin ...byte) []byte { return append(begin, second[len(begin):]...) }

// short is a QUIC packet with a short header, long one with a long header.
func short(id []byte, rest ...byte) []byte {
	return slices.Concat([]byte{0x41}, id, rest)
}

func long(first byte, version uint32, id []byte, rest ...byte) []byte {
	return slices.Concat([]byte{0x80 | first, byte(version >> 24), byte(version >> 16), byte(version >> 8), byte(version), byte(len(id))}, id, rest)
}

// What the first byte of version 1's long headers says (RFC 9000, 17.2).
const (
	initial   = 0x40
	zeroRTT   = 0x50
	handshake = 0x60
	retry     = 0x70
)

var encrypted = bytes.Repeat([]byte{0xee}, 30)

// quicWays are a QUIC service for each way to forward, with its first two backends.
var quicWays = []struct {
	name          string
	forward       lb.Forward
	vips          []string
	first, second string
}{
	{"l2", lb.L2, vips(0x31), "203.0.113.1", "203.0.113.2"},
	{"ipip over IPv4", lb.IPIP, vips(0x32), "203.0.113.1", "203.0.113.2"},
	{"ipip over IPv6", lb.IPIP, vips(0x33), "2001:db8:3::1", "2001:db8:3::2"},
	{"gre over IPv4", lb.GRE, vips(0x34), "203.0.113.1", "203.0.113.2"},
	{"gre over IPv6", lb.GRE, vips(0x35), "2001:db8:3::1", "2001:db8:3::2"},
	{"gue over IPv4", lb.GUE, vips(0x36), "203.0.113.1", "203.0.113.2"},
	{"gue over IPv6", lb.GUE, vips(0x37), "2001:db8:3::1", "2001:db8:3::2"},
}

// sentTo is a frame as it goes to a backend, given its flow's hash.
func sentTo(backend string, forward lb.Forward, frame []byte, hash uint64) []byte {
	label := uint32(hash) & 0xfffff
	switch forward {
	case lb.L2:
		frame = l2(frame)
	case lb.IPIP:
		frame = packet.Encapsulate(sourceFor(backend), backend, label, frame)
	case lb.GRE:
		frame = packet.EncapsulateGRE(sourceFor(backend), backend, label, frame)
	case lb.GUE:
		frame = packet.EncapsulateGUE(sourceFor(backend), backend, label, 49152+uint16(hash&0x3fff), 6080, frame)
	}
	return packet.WithMACs(macOf(backend), nodeMAC, frame)
}

func TestQUICPacketsGoWhereTheirConnectionIDSays(t *testing.T) {
	d := newDataplane(t)
	setWays(d, "203.0.113.1", "203.0.113.2", "2001:db8:3::1", "2001:db8:3::2")
	var tables []lb.Table
	for _, way := range quicWays {
		tables = append(tables, gue(6080, quic(table(way.name, way.forward, 13, way.vips, way.first, way.second))))
	}
	tables = append(tables, table("plain", lb.L2, 13, vips(0x38), "203.0.113.1"))
	apply(t, d, tables...)

	const table, serverID = false, true
	for _, tt := range []struct {
		name     string
		datagram []byte
		goes     bool
		header   string
	}{
		{"short header", short(second, encrypted...), serverID, "short"},
		{"short header, 20 bytes of connection ID", short(append(second, encrypted[:12]...), encrypted...), serverID, "short"},
		{"short header, free bits of the first octet are 0", short(cid(5<<5), encrypted...), serverID, "short"},
		{"short header, free bits of the first octet are 1", short(cid(5<<5|31), encrypted...), serverID, "short"},
		{"short header, all other bits of its first byte set", append([]byte{0x7f}, short(second, encrypted...)[1:]...), serverID, "short"},
		{"short header, none set", append([]byte{0}, short(second, encrypted...)[1:]...), serverID, "short"},
		{"short header, nothing behind the server ID", short(second[:3]), serverID, "short"},
		{"Handshake", long(handshake, 1, second, encrypted...), serverID, "long"},
		{"Handshake of version 2", long(initial, 0x6b3343cf, second, encrypted...), serverID, "long"},
		{"long header of a version that nobody knows", long(0x3f, 0xfaceb00c, second, encrypted...), serverID, "long"},
		{"Initial after Retry", long(initial, 1, second, encrypted...), serverID, "long"},
		{"0-RTT to a connection ID that the server chose", long(zeroRTT, 1, second, encrypted...), serverID, "long"},
		{"long header, nothing in the connection ID behind the server ID", long(handshake, 1, second[:3], encrypted...), serverID, "long"},
		{"long header, nothing behind the server ID", long(handshake, 1, second[:3]), serverID, "long"},

		{"Initial", long(initial, 1, chosen, encrypted...), table, "long"},
		{"0-RTT", long(zeroRTT, 1, chosen, encrypted...), table, "long"},
		{"Handshake to an unknown server ID", long(handshake, 1, unknown, encrypted...), table, "long"},
		{"Retry, as servers send it", long(retry, 1, nil, append([]byte{8}, second...)...), table, "long"},
		{"Version Negotiation, as servers send it", long(0, 0, nil, append([]byte{8}, second...)...), table, "long"},
		{"short header, unknown server ID", short(unknown, encrypted...), table, "short"},
		{"short header of another configuration", short(cid(4<<5|7), encrypted...), table, "short"},
		{"short header that says that it has no server ID", short(cid(7<<5|7), encrypted...), table, "short"},
		{"short header, too short for a server ID", short(second[:2]), table, "short"},
		{"short header, too short for the configuration", short(nil), table, "short"},
		{"an empty datagram", nil, table, "short"},
		{"long header, connection ID too short for a server ID", long(handshake, 1, second[:2], second[2:]...), table, "long"},
		{"long header without a connection ID", long(handshake, 1, nil, second...), table, "long"},
		{"long header, cut in its version", long(handshake, 1, second)[:4], table, "long"},
		{"long header, cut before its length", long(handshake, 1, second)[:5], table, "long"},
		{"long header, cut in its server ID", long(handshake, 1, second)[:8], table, "long"},
		{"long header, longer than the datagram", long(handshake, 1, second[:2]), table, "long"},
	} {
		for _, way := range quicWays {
			for n, vip := range way.vips {
				client := []string{client4, client6}[n]
				check := func(name string, options ...packet.Option) {
					in := packet.UDP(client, vip, append([]packet.Option{packet.Data(tt.datagram)}, options...)...)
					flow := packet.UDP(client, vip)
					backend := way.first
					if tt.goes == serverID {
						backend = way.second
					}
					r := row{
						in: in, verdict: Forwarded, counted: way.name + "/" + backend,
						out: sentTo(backend, way.forward, in, flowHash(testKey(), flow)),
					}
					if strings.Contains(name, "VLAN") {
						const tag = 0x81000005
						r.in, r.out = packet.Tagged(r.in, tag), packet.Tagged(r.out, tag)
					}
					t.Run(fmt.Sprintf("%s, %s, %s%s", tt.name, way.name, vip, name), func(t *testing.T) {
						before := *stats(t, d).Services[way.name].QUIC
						r.check(t, d)
						want := before
						count := map[string]*QUICCount{"long": &want.Long, "short": &want.Short}[tt.header]
						if tt.goes == serverID {
							count.ByServerID++
						} else {
							count.ByTable++
						}
						if got := *stats(t, d).Services[way.name].QUIC; got != want {
							t.Errorf("QUIC packets: got %+v, want %+v", got, want)
						}
					})
				}
				check("")
				if way.forward == lb.L2 || tt.name == "short header" {
					// What pads the frame belongs to no datagram: the bytes that a server ID lacks.
					check(", padded", packet.Padding(8))
					check(", in a VLAN")
					if n == 0 {
						check(", IPv4 options", packet.IPv4Options(7))
					} else {
						check(", extension headers", packet.HopByHop, packet.Extension(60, 3))
					}
				}
			}
		}
	}
}

func TestWhatIsNoQUICGoesByTheTable(t *testing.T) {
	d := newDataplane(t)
	setWays(d, "203.0.113.1", "203.0.113.2", "2001:db8:3::1", "2001:db8:3::2")
	way := quicWays[0]
	padding := quic(table("padding", lb.L2, 13, vips(0x39), "203.0.113.1", "203.0.113.2"))
	padding.Service.Backends[1].ServerID = "\x0a\xa5" // as packet.Padding has it
	padding.Backends = lb.SortBackends(padding.Service.Backends)
	padding.Alive = padding.Backends
	other := quic(table("other", lb.L2, 13, vips(0x40), "203.0.113.2"))
	other.Alive[0].ServerID = "\x0b\x01"
	apply(t, d,
		quic(table(way.name, way.forward, 13, way.vips, way.first, way.second)), padding, other,
		table("plain", lb.L2, 13, vips(0x38), "203.0.113.1"))

	to := packet.Data(short(second, encrypted...))
	for n, client := range []string{client4, client6} {
		vip := way.vips[n]
		udpLength := 20 + 5 // the low byte of the length in the UDP header
		if n == 1 {
			udpLength = 40 + 5
		}
		flow := packet.UDP(client, vip)
		first := packet.UDP(client, vip, to, packet.Fragment(0, true), packet.FragmentID(5))
		web := way.name + "/" + way.first
		for _, r := range []row{
			sameFlow("TCP with a connection ID in it", packet.TCP(client, vip, to), flow, viaFirst, web),
			sameFlow("a first fragment", first, flow, viaFirst, web),
			sameFlow("and the next", packet.UDP(client, vip, to, packet.Fragment(1480, false), packet.FragmentID(5)), flow, viaFirst, web),
			sameFlow("an ICMP error about a QUIC packet", about(packet.UDP(vip, client, to), 3-byte(n)*2, 4-byte(n)*4), flow, viaFirst, web),
			sameFlow("a datagram that ends before its server ID", packet.UDP(client, vip, to, packet.IPByte(udpLength, 8+3)), flow, viaFirst, web),
			sameFlow("a datagram that is empty by its own length", packet.UDP(client, vip, to, packet.IPByte(udpLength, 8)), flow, viaFirst, web),
			sameFlow("a datagram that is shorter than its own header", packet.UDP(client, vip, to, packet.IPByte(udpLength, 7)), flow, viaFirst, web),
			sameFlow("a server ID that ends in the padding", packet.UDP(client, vips(0x39)[n], packet.Data(short(second[:2])), packet.Padding(5)), packet.UDP(client, vips(0x39)[n]), viaFirst, "padding/203.0.113.1"),
			sameFlow("a service without QUIC", packet.UDP(client, vips(0x38)[n], to), packet.UDP(client, vips(0x38)[n]), viaFirst, "plain/203.0.113.1"),
			sameFlow("the server ID of another service's backend", packet.UDP(client, vip, packet.Data(short(cid(5<<5, 0x0b, 1)))), flow, viaFirst, web),
			{name: "TTL 1", in: packet.UDP(client, vip, to, packet.TTL(1)), verdict: TTLExpired},
		} {
			t.Run(r.name+", "+vip, func(t *testing.T) { r.check(t, d) })
		}
	}
	if got, want := *stats(t, d).Services[way.name].QUIC, (QUICStats{Short: QUICCount{ByTable: 2 * 4}}); got != want {
		t.Errorf("QUIC packets: got %+v, want %+v: only whole datagrams count", got, want)
	}
	if got := stats(t, d).Services["plain"].QUIC; got != nil {
		t.Errorf("a service without QUIC counts %+v", got)
	}
}

func viaFirst(frame []byte, _ uint64) []byte {
	return packet.WithMACs(macOf("203.0.113.1"), nodeMAC, l2(frame))
}

func TestAQUICPacketTooBigIsCountedOnce(t *testing.T) {
	d := newDataplane(t)
	setWays(d, "203.0.113.1", "203.0.113.2")
	apply(t, d, quic(table("web", lb.IPIP, 13, vips(1), "203.0.113.1", "203.0.113.2")))
	in := packet.UDP(client4, vips(1)[0], packet.Data(short(second, make([]byte, 1460)...)))
	row{in: in, verdict: AnsweredTooBig, out: tooBig(in, 1480)}.check(t, d)
	if got, want := *stats(t, d).Services["web"].QUIC, (QUICStats{Short: QUICCount{ByServerID: 1}}); got != want {
		t.Errorf("QUIC packets: got %+v, want %+v", got, want)
	}
}

// routeOf is the slow twin of bpf/quic.h: the server ID that a datagram of a service
// holds, if its configuration is the service's.
func routeOf(q lb.QUIC, datagram []byte) (lb.ServerID, bool) {
	if len(datagram) == 0 {
		return "", false
	}
	id := datagram[1:]
	if datagram[0]&0x80 != 0 {
		if len(datagram) < 6 {
			return "", false
		}
		id = datagram[6:]
		id = id[:min(len(id), int(datagram[5]))]
	}
	if len(id) < 1+q.ServerIDLength || id[0]>>5 != q.ConfigRotation {
		return "", false
	}
	return lb.ServerID(id[1 : 1+q.ServerIDLength]), true
}

func TestServerIDsOfEveryLengthAreRead(t *testing.T) {
	d := newDataplane(t)
	backends := []string{"203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.4"}
	setWays(d, backends...)
	random := rand.New(rand.NewPCG(11, 12))
	for length := 1; length <= lb.MaxServerIDLength; length++ {
		web := quic(table("web", lb.L2, 13, vips(1), backends...))
		web.Service.QUIC = lb.QUIC{ServerIDLength: length, ConfigRotation: uint8(length % 7)}
		owners := make(map[lb.ServerID]string)
		for i := range web.Alive {
			// The first ones differ in the last byte alone.
			id := bytes.Repeat([]byte{1}, length)
			id[length-1] = byte(i)
			web.Alive[i].ServerID = lb.ServerID(id)
			owners[web.Alive[i].ServerID] = web.Alive[i].Name
		}
		apply(t, d, web)
		byID, datagrams := 0, inShort(400, 40)
		for n := range datagrams {
			id := slices.Concat([]byte{byte(length%7)<<5 | byte(n&31)}, []byte(web.Alive[n%4].ServerID), encrypted[:4])
			datagram := short(id, encrypted...)
			if n%3 == 0 {
				datagram = long(byte(random.IntN(128)), random.Uint32(), id, encrypted...)
			}
			switch n % 4 {
			case 1: // cut somewhere
				datagram = datagram[:random.IntN(len(datagram))]
			case 2: // one byte changed
				datagram[random.IntN(len(datagram))] ^= byte(1 + random.IntN(255))
			}
			want := backends[0]
			if id, ok := routeOf(web.Service.QUIC, datagram); ok && owners[id] != "" {
				want = owners[id]
				byID++
			}
			vip, client := vips(1)[n%2], []string{client4, client6}[n%2]
			out := process(t, d, packet.UDP(client, vip, packet.Data(datagram)), Forwarded)
			if !bytes.Equal(out[:6], macBytes(want)) {
				t.Fatalf("server IDs of %d bytes, datagram %x: went to %x, want %s", length, datagram, out[:6], want)
			}
		}
		if byID < datagrams/2 {
			t.Errorf("server IDs of %d bytes: %d datagrams of %d held one, want about three in four", length, byID, datagrams)
		}
	}
}

// goesTo says which backend a QUIC packet of the second one's ID goes to.
func goesTo(t *testing.T, d *Dataplane, id []byte) string {
	t.Helper()
	out := process(t, d, packet.UDP(client4, vips(1)[0], packet.Data(short(id, encrypted...))), Forwarded)
	for n := range 250 {
		backend := fmt.Sprintf("203.0.113.%d", n+1)
		if bytes.Equal(out[:6], macBytes(backend)) {
			return backend
		}
	}
	t.Fatalf("a packet went to %x, which is no backend's", out[:6])
	return ""
}

func TestAServerIDLeadsToItsBackendWhileThatIsAlive(t *testing.T) {
	d := newDataplane(t)
	backends := []string{"203.0.113.1", "203.0.113.2", "203.0.113.3"}
	web := func() lb.Table { return quic(table("web", lb.L2, 13, vips(1), backends...)) }
	third := cid(second[0], 0x0a, 3)
	steps := []struct {
		name   string
		table  func() lb.Table
		second string // where its connection ID leads
		third  string
	}{
		{"all are alive", web, "203.0.113.2", "203.0.113.3"},
		{"it gets no new flows", func() lb.Table {
			w := web()
			w.Backends = w.Backends[:1]
			return w
		}, "203.0.113.2", "203.0.113.3"},
		{"nobody gets any", func() lb.Table {
			w := web()
			w.Backends, w.Slots = nil, nil
			return w
		}, "203.0.113.2", "203.0.113.3"},
		{"it is down", func() lb.Table {
			w := web()
			w.Alive = slices.Delete(slices.Clone(w.Alive), 1, 2)
			return w
		}, "203.0.113.1", "203.0.113.3"},
		{"it is up again", web, "203.0.113.2", "203.0.113.3"},
		{"it is gone", func() lb.Table { return quic(table("web", lb.L2, 13, vips(1), "203.0.113.1", "203.0.113.4")) },
			"203.0.113.4", "203.0.113.1"}, // which has its server ID now
		{"it is back", web, "203.0.113.2", "203.0.113.3"},
		{"two change theirs", func() lb.Table {
			w := web()
			w.Alive = slices.Clone(w.Alive)
			w.Alive[1].ServerID, w.Alive[2].ServerID = w.Alive[2].ServerID, w.Alive[1].ServerID
			return w
		}, "203.0.113.3", "203.0.113.2"},
		{"another configuration", func() lb.Table {
			w := web()
			w.Service.QUIC.ConfigRotation = 6
			return w
		}, "203.0.113.1", "203.0.113.1"},
		{"the service moves", func() lb.Table { return quic(table("web", lb.L2, 13, vips(1), append(backends, many(30)...)...)) }, "203.0.113.2", "203.0.113.3"},
		{"longer server IDs", func() lb.Table {
			w := web()
			w.Service.QUIC.ServerIDLength = 3
			w.Alive = slices.Clone(w.Alive)
			for i := range w.Alive {
				w.Alive[i].ServerID += "\xc5"
			}
			return w
		}, "203.0.113.2", "203.0.113.3"},
		{"without QUIC", func() lb.Table {
			w := web()
			w.Service.QUIC = lb.QUIC{}
			return w
		}, "203.0.113.1", "203.0.113.1"},
		{"with it again", web, "203.0.113.2", "203.0.113.3"},
		{"another service of the same number", func() lb.Table {
			apply(t, d)
			time.Sleep(rest)
			w := web()
			w.Service.Name = "other"
			w.Alive = w.Alive[:1]
			return w
		}, "203.0.113.1", "203.0.113.1"},
	}
	number := uint32(0)
	for _, step := range steps {
		w := step.table()
		setWays(d, append(many(30), "203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.4")...) // those that left are forgotten
		apply(t, d, w)
		if got := goesTo(t, d, second); got != step.second {
			t.Errorf("%s: the second backend's connections go to %s, want %s", step.name, got, step.second)
		}
		if got := goesTo(t, d, third); got != step.third {
			t.Errorf("%s: the third backend's connections go to %s, want %s", step.name, got, step.third)
		}
		number = d.services[w.Service.Name].number
	}
	if number != 0 {
		t.Errorf("the other service got number %d: the test tests nothing", number)
	}
	apply(t, d)
	var key bpfServerId
	var entry uint32
	if all := d.store.maps[bpfMapServerIds].Iterate(); all.Next(&key, &entry) {
		t.Errorf("no service is left, and a server ID is: %+v", key)
	}
	if all := d.store.maps[bpfMapQuicCounters].Iterate(); all.Next(&number, &[]bpfQuicCounter{}) {
		t.Errorf("no service is left, and a counter of QUIC packets is: %d", number)
	}
}

// many are n more backends.
func many(n int) (backends []string) {
	for i := range n {
		backends = append(backends, fmt.Sprintf("203.0.113.%d", i+10))
	}
	return backends
}

// One backend stays while others come and go, the service moves to other entries
// and the maps grow: its connections never go to another.
func TestNoQUICPacketGoesAstrayWhileBackendsComeAndGo(t *testing.T) {
	d := newDataplane(t)
	setWays(d, append(many(240), "203.0.113.1", "203.0.113.2")...)
	with := func(others int) []lb.Table {
		web := quic(table("web", lb.L2, 1021, vips(1), append([]string{"203.0.113.1", "203.0.113.2"}, many(others)...)...))
		return []lb.Table{web, table("neighbour", lb.L2, 1021, vips(4), many(1+others)...)}
	}
	apply(t, d, with(1)...)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var changing sync.WaitGroup
	changes := 0
	changing.Go(func() {
		defer cancel()
		random := rand.New(rand.NewPCG(1, 2))
		for begin := time.Now(); ctx.Err() == nil && (changes < 10 || time.Since(begin) < 2*time.Second); changes++ {
			if err := d.Apply(context.Background(), with(random.IntN(200))); err != nil {
				t.Error(err)
				return
			}
		}
	})
	defer changing.Wait()
	packets := 0
	for ; ctx.Err() == nil; packets++ {
		if got := goesTo(t, d, second); got != "203.0.113.2" {
			cancel()
			t.Fatalf("packet %d went to %s", packets, got)
		}
	}
	changing.Wait()
	t.Logf("%d packets, %d changes", packets, changes)
	if changes < 10 {
		t.Errorf("%d changes in a minute: the test tests little", changes)
	}
}

func TestNodesAgreeOnServerIDs(t *testing.T) {
	backends := []string{"203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.4", "203.0.113.5"}
	var nodes []*Dataplane
	for n := range 3 {
		d := newDataplane(t)
		setWays(d, backends...)
		for range n { // services that come before take other entries on each node
			apply(t, d, table(fmt.Sprintf("before%d", n), lb.L2, 13, []string{"192.0.2.200:1"}, backends[:n]...))
		}
		web := quic(table("web", lb.L2, 13, vips(1), backends...))
		slices.Reverse(web.Service.Backends)
		apply(t, d, web)
		nodes = append(nodes, d)
	}
	for i, backend := range backends {
		for n, d := range nodes {
			if got := goesTo(t, d, cid(5<<5, 0x0a, byte(i+1))); got != backend {
				t.Errorf("node %d sends %s's connections to %s", n, backend, got)
			}
		}
	}
}

func TestApplyRefusesServerIDsThatTellNothingApart(t *testing.T) {
	d := newDataplane(t)
	web := quic(table("web", lb.L2, 13, vips(1), "203.0.113.1", "203.0.113.2", "203.0.113.3"))
	web.Alive[1].ServerID = "\x0a\x01"
	web.Alive[2].ServerID = "\x0a"
	err := d.Apply(t.Context(), []lb.Table{web})
	for _, want := range []string{
		`service "web": backends "203.0.113.1" and "203.0.113.2" have server ID 0a01`,
		`service "web": backend "203.0.113.3" has server ID 0a, not one of 2 bytes`,
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it to hold %q", err, want)
		}
	}
}

func TestATraceSaysWhetherAConnectionIDCounts(t *testing.T) {
	d := newDataplane(t)
	setWays(d, "203.0.113.1", "203.0.113.2")
	apply(t, d,
		quic(table("web", lb.GRE, 13, vips(1), "203.0.113.1", "203.0.113.2")),
		table("plain", lb.L2, 13, vips(4), "203.0.113.1"))
	slot := `slot \d+ of service "web" holds backend "203.0.113.1"`
	for _, tt := range []struct {
		n       int
		id      []byte
		backend string
		why     string
	}{
		{1, second, "203.0.113.2", `by server ID: the connection ID holds 0a02, which is that of backend "203.0.113.2"`},
		{1, second[:3], "203.0.113.2", `by server ID: the connection ID holds 0a02, which is that of backend "203.0.113.2"`},
		{1, unknown, "203.0.113.1", "by the table: the connection ID holds server ID 0a63, which is that of no backend that is alive; " + slot},
		{1, cid(7 << 5), "203.0.113.1", "by the table: the connection ID says that it holds no server ID (its first three bits are 7); " + slot},
		{1, cid(2 << 5), "203.0.113.1", "by the table: the connection ID is of configuration 2 (its first three bits), the service's config_rotation is 5; " + slot},
		{1, second[:2], "203.0.113.1", "by the table: the connection ID is too short to hold a server ID of 2 bytes; " + slot},
		{4, second, "203.0.113.1", "by the table: the service has no quic, connection IDs are not looked at; " + strings.Replace(slot, "web", "plain", 1)},
	} {
		for n, client := range []string{client4, client6} {
			got := trace(t, d, lb.UDP, client, vips(tt.n)[n], tt.id...)
			if pattern := "^" + strings.NewReplacer("(", `\(`, ")", `\)`).Replace(tt.why) + "$"; got.Backend != tt.backend || !regexp.MustCompile(pattern).MatchString(got.Why) {
				t.Errorf("connection ID %x:\ngot  %s, %s\nwant %s, %s", tt.id, got.Backend, got.Why, tt.backend, tt.why)
			}
			if !bytes.Equal(got.NextHop, macBytes(tt.backend)) || got.Outer.Destination != (netip.Addr{}) && got.Outer.Destination.String() != tt.backend {
				t.Errorf("connection ID %x: got next hop %s, outer %v, want those of %s", tt.id, got.NextHop, got.Outer, tt.backend)
			}
		}
	}
	if got := *stats(t, d).Services["web"].QUIC; got != (QUICStats{}) {
		t.Errorf("traces were counted: %+v", got)
	}
	if _, err := d.Trace(lb.TCP, netip.MustParseAddrPort(client4), netip.MustParseAddrPort(vip4), second...); err == nil || !strings.Contains(err.Error(), "QUIC is spoken over udp") {
		t.Errorf("of TCP: got %v, want an error", err)
	}
}

func TestMetricsOfQUIC(t *testing.T) {
	needRoot(t)
	registry := prometheus.NewPedanticRegistry()
	d, err := New(Config{Registerer: registry})
	must(t, err)
	defer d.Close()
	setWays(d, "203.0.113.1", "203.0.113.2")
	apply(t, d, quic(table("web", lb.L2, 13, vips(1), "203.0.113.1", "203.0.113.2")), table("plain", lb.L2, 13, vips(4), "203.0.113.1"))
	for count, datagram := range map[int][]byte{1: short(second), 2: short(unknown), 3: long(handshake, 1, second), 4: long(initial, 1, chosen)} {
		for range count {
			process(t, d, packet.UDP(client4, vips(1)[0], packet.Data(datagram)), Forwarded)
			process(t, d, packet.UDP(client4, vips(4)[0], packet.Data(datagram)), Forwarded)
		}
	}
	want := `
# HELP halfproxy_quic_packets_total QUIC packets of a service, by their header (long, short) and by what chose their backend: the connection ID's server ID or the table.
# TYPE halfproxy_quic_packets_total counter
halfproxy_quic_packets_total{header="long",route="server_id",service="web"} 3
halfproxy_quic_packets_total{header="long",route="table",service="web"} 4
halfproxy_quic_packets_total{header="short",route="server_id",service="web"} 1
halfproxy_quic_packets_total{header="short",route="table",service="web"} 2
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "halfproxy_quic_packets_total"); err != nil {
		t.Error(err)
	}
}
