package xdp

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/halfproxy/halfproxy/internal/packet"
	"github.com/halfproxy/halfproxy/lb"
)

// siphash is SipHash with c rounds a word and d at the end, written after the
// paper and not after the program.
func siphash(c, d int, key [16]byte, message []byte) uint64 {
	k0, k1 := binary.LittleEndian.Uint64(key[:]), binary.LittleEndian.Uint64(key[8:])
	v := [4]uint64{k0 ^ 0x736f6d6570736575, k1 ^ 0x646f72616e646f6d, k0 ^ 0x6c7967656e657261, k1 ^ 0x7465646279746573}
	rounds := func(n int) {
		for range n {
			v[0] += v[1]
			v[2] += v[3]
			v[1] = bits.RotateLeft64(v[1], 13)
			v[3] = bits.RotateLeft64(v[3], 16)
			v[1] ^= v[0]
			v[3] ^= v[2]
			v[0] = bits.RotateLeft64(v[0], 32)
			v[2] += v[1]
			v[0] += v[3]
			v[1] = bits.RotateLeft64(v[1], 17)
			v[3] = bits.RotateLeft64(v[3], 21)
			v[1] ^= v[2]
			v[3] ^= v[0]
			v[2] = bits.RotateLeft64(v[2], 32)
		}
	}
	padded := append([]byte(nil), message...)
	for len(padded)%8 != 7 {
		padded = append(padded, 0)
	}
	padded = append(padded, byte(len(message)))
	for i := 0; i < len(padded); i += 8 {
		word := binary.LittleEndian.Uint64(padded[i:])
		v[3] ^= word
		rounds(c)
		v[0] ^= word
	}
	v[2] ^= 0xff
	rounds(d)
	return v[0] ^ v[1] ^ v[2] ^ v[3]
}

// flowHash is what the program must compute of a frame: SipHash-1-3 of source
// address, source port and destination port as they lie in the packet.
func flowHash(key [16]byte, frame []byte) uint64 {
	ip := packet.IP(frame)
	var message []byte
	if ip[0]>>4 == 4 {
		message = append(message, ip[12:16]...)
		message = append(message, ip[ip[0]&15*4:][:4]...)
	} else {
		message = append(message, ip[8:24]...)
		message = append(message, ip[40:44]...)
	}
	return siphash(1, 3, key, message)
}

// fieldHash is the same of a service that hashes these fields: others are zeros,
// and the destination address is there only if it is one of them.
func fieldHash(key [16]byte, fields lb.HashFields, frame []byte) uint64 {
	ip := packet.IP(frame)
	source, destination, transport := ip[12:16], ip[16:20], ip[ip[0]&15*4:]
	if ip[0]>>4 == 6 {
		source, destination, transport = ip[8:24], ip[24:40], ip[40:]
	}
	var message []byte
	add := func(field lb.HashFields, value []byte) {
		if fields&field == 0 {
			value = make([]byte, len(value))
		}
		message = append(message, value...)
	}
	add(lb.HashSource, source)
	if fields&lb.HashDestination != 0 {
		add(lb.HashDestination, destination)
	}
	add(lb.HashSourcePort, transport[:2])
	add(lb.HashDestinationPort, transport[2:4])
	return siphash(1, 3, key, message)
}

func TestSipHashIsTheOneOfThePaper(t *testing.T) {
	var key [16]byte
	message := make([]byte, 64)
	for i := range key {
		key[i] = byte(i)
	}
	for i := range message {
		message[i] = byte(i)
	}
	for _, tt := range []struct {
		c, d, length int
		want         uint64
	}{
		{2, 4, 0, 0x726fdb47dd0e0e31}, // of the reference implementation
		{2, 4, 8, 0x93f5f5799a932462},
		{2, 4, 15, 0xa129ca6149be45e5}, // the paper's appendix A
		{2, 4, 63, 0x958a324ceb064572},
		{1, 3, 0, 0xabac0158050fc4dc}, // as in Rust's core::hash
	} {
		if got := siphash(tt.c, tt.d, key, message[:tt.length]); got != tt.want {
			t.Errorf("SipHash-%d-%d of %d bytes: got %#x, want %#x", tt.c, tt.d, tt.length, got, tt.want)
		}
	}
}

func TestTheProgramHashesAndPicksSlotsAsItShould(t *testing.T) {
	d := newDataplane(t)
	random := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{1, 2, 1021, 16381, 65537, 131071} {
		web := table("web", lb.L2, size, []string{vip4, vip6, "192.0.2.1:80"}, "203.0.113.1")
		for i := range web.HashKey {
			web.HashKey[i] = byte(random.Uint32())
		}
		apply(t, d, web)
		for range inShort(200, 10) {
			var a [16]byte
			binary.NativeEndian.PutUint64(a[:], random.Uint64())
			binary.NativeEndian.PutUint64(a[8:], random.Uint64())
			port := uint16(random.Uint32())
			for _, frame := range [][]byte{
				packet.TCP(netip.AddrPortFrom(netip.AddrFrom4([4]byte(a[:4])), port).String(), vip4),
				packet.UDP(netip.AddrPortFrom(netip.AddrFrom4([4]byte(a[:4])), port).String(), "192.0.2.1:80", packet.IPv4Options(8)),
				packet.UDP(fmt.Sprintf("[%s]:%d", netip.AddrFrom16(a), port), vip6),
			} {
				a, err := d.ask(frame)
				must(t, err)
				last, hash := a.trace, flowHash(web.HashKey, frame)
				if last.Hash != hash {
					t.Fatalf("hash of %x: got %#x, want %#x", frame, last.Hash, hash)
				}
				if want := uint32(hash >> 32 * uint64(size) >> 32); last.Slot != want {
					t.Fatalf("slot of %x among %d: got %d, want %d", frame, size, last.Slot, want)
				}
			}
		}
	}
}

func TestServicesHashTheFieldsThatTheyName(t *testing.T) {
	d := newDataplane(t)
	random := rand.New(rand.NewPCG(3, 4))
	const size = 16381
	for fields := lb.HashFields(1); fields < 16; fields++ {
		t.Run(fields.String(), func(t *testing.T) {
			web := serving(table("web", lb.L2, size, nil, "203.0.113.1"), []string{"10.0.0.0/8", "2001:db8::/32"}, tcpPort(1, 65535), udpPort(1, 65535))
			web.Service.Hash = fields
			apply(t, d, web)
			for range inShort(100, 10) {
				var a [16]byte
				binary.NativeEndian.PutUint64(a[:], random.Uint64())
				binary.NativeEndian.PutUint64(a[8:], random.Uint64())
				client4, client6 := fmt.Sprintf("%s:%d", netip.AddrFrom4([4]byte(a[:4])), 1+a[5]), fmt.Sprintf("[%s]:%d", netip.AddrFrom16(a), 1+a[5])
				vip4, vip6 := fmt.Sprintf("10.%d.%d.%d:%d", a[6], a[7], a[8], 1+uint16(a[9])<<8), fmt.Sprintf("[2001:db8:%x%02x:%x::%x]:%d", a[6], a[7], a[8], a[9], 1+uint16(a[10])<<8)
				for _, frame := range [][]byte{
					packet.TCP(client4, vip4), packet.UDP(client4, vip4, packet.IPv4Options(8)),
					packet.TCP(client6, vip6), packet.UDP(client6, vip6),
				} {
					a, err := d.ask(frame)
					must(t, err)
					hash := fieldHash(web.HashKey, fields, frame)
					if a.trace.Hash != hash {
						t.Fatalf("hash of %x: got %#x, want %#x", frame, a.trace.Hash, hash)
					}
					if want := uint32(hash >> 32 * size >> 32); a.trace.Slot != want {
						t.Fatalf("slot of %x: got %d, want %d", frame, a.trace.Slot, want)
					}
				}
			}
		})
	}
}

// Members of two releases send the same flows to the same backends: these values
// may never change.
func TestTheHashesOfFlowAndSourceStayAsTheyAre(t *testing.T) {
	d := newDataplane(t)
	for fields, want := range map[lb.HashFields][2]uint64{
		lb.HashFlow:   {0x6aff0a43a9f5adb7, 0x892733583f709eaa},
		lb.HashSource: {0x5c4dd407175396ab, 0x1aecbebd148c4beb},
	} {
		web := table("web", lb.L2, 13, vips(1), "203.0.113.1")
		web.Service.Hash = fields
		apply(t, d, web)
		for i, frame := range [][]byte{packet.TCP(client4, vips(1)[0]), packet.TCP(client6, vips(1)[1])} {
			a, err := d.ask(frame)
			must(t, err)
			if a.trace.Hash != want[i] {
				t.Errorf("%s: got %#x, want %#x", fields, a.trace.Hash, want[i])
			}
		}
	}
}

// Whole frames of services that hash addresses alone: what outer headers vary by
// is the hash of these, and fragments and ICMP errors need no ports.
func TestPacketsGoByTheFieldsThatAreHashed(t *testing.T) {
	d := newDataplane(t)
	packetServices(t, d) // the next hops
	const fields = lb.HashSource | lb.HashDestination
	tables := tablesOfWays(func(i int) []string {
		return []string{fmt.Sprintf("10.9.%d.16/28", i), fmt.Sprintf("2001:db8:9:%d::/64", i)}
	}, tcpPort(443, 0), udpPort(443, 0))
	for i := range tables {
		tables[i].Service.Hash = fields
	}
	apply(t, d, tables...)
	for i, way := range ways {
		for family, vip := range []string{fmt.Sprintf("10.9.%d.31:443", i), fmt.Sprintf("[2001:db8:9:%d::31]:443", i)} {
			client, other := client4, "198.51.100.7:7"
			if family == 1 {
				client, other = client6, "[2001:db8:100::7]:7"
			}
			name := way.name + ", " + vip + ": "
			hash := fieldHash(testKey(), fields, packet.TCP(client, vip))
			same := func(what string, in []byte) row {
				return row{name: name + what, in: in, verdict: Forwarded, out: way.send(in, hash), counted: way.counted}
			}
			for _, r := range []row{
				same("TCP", packet.TCP(client, vip)),
				same("another source port", packet.TCP(other, vip)),
				same("UDP", packet.UDP(client, vip)),
				same("a later fragment that comes first", packet.UDP(client, vip, packet.Fragment(1480, true), packet.FragmentID(7))),
				same("a later fragment of TCP", packet.TCP(client, vip, packet.Fragment(1480, false), packet.FragmentID(8))),
				same("an ICMP error", about(sentAs(vip, client), []uint8{3, 1}[family], []uint8{3, 4}[family])),
			} {
				t.Run(r.name, func(t *testing.T) { r.check(t, d) })
			}
		}
	}
}
