package xdp

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"slices"
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

// sourceHash is the same of a service by source: its ports are zeros.
func sourceHash(key [16]byte, frame []byte) uint64 {
	ip := packet.IP(frame)
	if ip[0]>>4 == 4 {
		return siphash(1, 3, key, slices.Concat(ip[12:16], make([]byte, 4)))
	}
	return siphash(1, 3, key, slices.Concat(ip[8:24], make([]byte, 4)))
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
		for range 200 {
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
