package xdp

import (
	"bytes"
	"testing"

	"github.com/halfproxy/halfproxy/internal/packet"
)

// FuzzProcess holds whatever comes against what is true of every frame: it ends
// in a verdict that has a name; what is not forwarded is not touched; what is
// forwarded is the frame with other MAC addresses, or its IP packet, byte for
// byte, in an outer header.
func FuzzProcess(f *testing.F) {
	for _, n := range []int{1, 4, 6, 9, 0x10} {
		v := vips(n)
		for _, frame := range [][]byte{
			packet.TCP(client4, v[0]), packet.UDP(client4, v[0], packet.Padding(5)), packet.TCP(client6, v[1]), packet.UDP(client6, v[1]),
			packet.UDP(client4, v[0], packet.IPv4Options(12)), packet.UDP(client4, v[0], packet.Fragment(8, true)),
			packet.UDP(client6, v[1], packet.HopByHop), packet.UDP(client6, v[1], packet.Fragment(8, true)),
		} {
			f.Add(frame)
		}
	}
	f.Add(packet.ARP("198.51.100.7", "192.0.2.1", packet.To("00:00:00:00:00:00")))
	f.Add(packet.TCP(client4, "192.0.2.1:443", packet.VLAN(1)))
	f.Add(packet.Echo("2001:db8:100::7", "2001:db8:2::1"))

	d := newDataplane(f)
	packetServices(f, d)
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < 14 || len(frame) > 3000 {
			t.Skip("not a frame that BPF_PROG_TEST_RUN takes")
		}
		verdict, out, err := d.Process(frame)
		if err != nil {
			t.Fatal(err)
		}
		if int(verdict) >= len(verdictNames) {
			t.Fatalf("verdict %s has no name", verdict)
		}
		if verdict != Forwarded {
			if !bytes.Equal(out, frame) {
				t.Fatalf("%s, and it was touched:\ngot  %x\nwant %x", verdict, out, frame)
			}
			return
		}
		for _, want := range [][]byte{l2(frame), inIPv4(frame), inIPv6(frame)} {
			if bytes.Equal(out, want) {
				return
			}
		}
		t.Fatalf("forwarded as none of the ways there are:\ngot %x\nof  %x", out, frame)
	})
}
