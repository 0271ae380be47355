package packet_test

import (
	"bytes"
	"encoding/hex"
	"testing"

	"github.com/halfproxy/halfproxy/internal/packet"
)

func TestFramesAreTheBytesTheyStandFor(t *testing.T) {
	for _, tt := range []struct {
		name  string
		frame []byte
		want  string
	}{
		{"a TCP ACK", packet.TCP("192.0.2.1:1", "192.0.2.2:2"),
			"000000000000 0200000000cc 0800" +
				"4500002c126740003906ab61c0000201c0000202" +
				"00010002000003e8000000005010faf0" + "2aed0000" + "00010203"},
		{"a UDP fragment over IPv6", packet.UDP("[2001:db8::1]:1", "[2001:db8::2]:2", packet.Fragment(0, true), packet.TTL(9), packet.TOS(3)),
			"000000000000 0200000000cc 86dd" +
				"60312345 0014 2c 09 20010db8000000000000000000000001 20010db8000000000000000000000002" +
				"1100000100000007" + "00010002000c a25a 00010203"},
		{"a padded, tagged frame that lies", packet.UDP("192.0.2.1:1", "192.0.2.2:2", packet.VLAN(5), packet.Padding(2), packet.Length(1)),
			"000000000000 0200000000cc 8100 0005 0800" +
				"45000021126740003911ab62c0000201c0000202" + "00010002000c 79cb 00010203 a5a5"},
	} {
		want, err := hex.DecodeString(stripSpaces(tt.want))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(tt.frame, want) {
			t.Errorf("%s:\ngot  %x\nwant %x", tt.name, tt.frame, want)
		}
	}
}

func TestEncapsulateLeavesPaddingOut(t *testing.T) {
	plain := packet.UDP("192.0.2.1:1", "192.0.2.2:2", packet.TOS(0xb8|1))
	padded := packet.UDP("192.0.2.1:1", "192.0.2.2:2", packet.TOS(0xb8|1), packet.Padding(14))
	a, b := packet.Encapsulate("198.51.100.1", "198.51.100.2", 0, plain), packet.Encapsulate("198.51.100.1", "198.51.100.2", 0, padded)
	if !bytes.Equal(a, b) {
		t.Errorf("padding shows:\ngot  %x\nwant %x", b, a)
	}
	if !bytes.Equal(a[34:], packet.IP(plain)) {
		t.Errorf("inner packet:\ngot  %x\nwant %x", a[34:], packet.IP(plain))
	}
	if a[15] != 0xb9 {
		t.Errorf("outer tos: got %#x, want 0xb9", a[15])
	}
}

func TestWithTTLIsTheFrameAsMadeWithIt(t *testing.T) {
	for _, ends := range [][2]string{{"192.0.2.1:1", "192.0.2.2:2"}, {"[2001:db8::1]:1", "[2001:db8::2]:2"}} {
		for ttl := range 256 {
			got := packet.WithTTL(uint8(ttl), packet.UDP(ends[0], ends[1]))
			if want := packet.UDP(ends[0], ends[1], packet.TTL(uint8(ttl))); !bytes.Equal(got, want) {
				t.Fatalf("TTL %d:\ngot  %x\nwant %x", ttl, got, want)
			}
		}
	}
}

func stripSpaces(s string) string { return string(bytes.ReplaceAll([]byte(s), []byte(" "), nil)) }
