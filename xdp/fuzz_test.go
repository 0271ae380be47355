package xdp

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/halfproxy/halfproxy/internal/packet"
)

// FuzzProcess holds whatever comes against what is true of every frame: it ends
// in a verdict that has a name; what is neither forwarded nor answered is not
// touched; what is forwarded is the frame with other MAC addresses, or its IP
// packet, byte for byte, in an outer header.
func FuzzProcess(f *testing.F) {
	for _, n := range []int{1, 4, 6, 9, 0x10, 0x21, 0x22, 0x23, 0x24, 0x41, 0x42} {
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
	f.Add(packet.Tagged(packet.UDP(client6, "[2001:db8:2::6]:443", packet.HopByHop), 0x88a80001, 0x81000002))
	f.Add(about(sentAs("192.0.2.4:443", client4), 3, 4))
	f.Add(about(sentAs("[2001:db8:2::23]:443", client6, packet.Extension(60, 2)), 2, 0))
	f.Add(packet.Transport(packet.SCTP, 12, client4, "192.0.2.1:443"))
	f.Add(packet.UDP(client4, "192.0.2.25:443", packet.Data(short(cid(5<<5, 0x0a, 1), encrypted...))))
	f.Add(packet.UDP(client6, "[2001:db8:2::25]:443", packet.HopByHop, packet.Data(long(handshake, 1, cid(5<<5, 0x0a, 1), encrypted...))))
	f.Add(packet.Echo("2001:db8:100::7", "2001:db8:2::1"))
	f.Add(packet.TCP(client4, "192.0.2.70:443"))
	f.Add(packet.TCP(client6, "[2001:db8:2:64::7]:1000"))

	d := newDataplane(f)
	packetServices(f, d)
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < 14 || len(frame) > 3000 {
			t.Skip("not a frame that BPF_PROG_TEST_RUN takes")
		}
		a, err := d.ask(frame)
		if err != nil {
			t.Fatal(err)
		}
		verdict, out := Verdict(a.trace.Verdict), a.frame
		if int(verdict) >= len(verdictNames) {
			t.Fatalf("verdict %s has no name", verdict)
		}
		switch verdict {
		case AnsweredEcho, AnsweredTooBig:
			return
		case Forwarded:
		default:
			if !bytes.Equal(out, frame) {
				t.Fatalf("%s, and it was touched:\ngot  %x\nwant %x", verdict, out, frame)
			}
			return
		}
		var tags []uint32
		plain := frame
		for plain[12] == 0x81 && plain[13] == 0 || plain[12] == 0x88 && plain[13] == 0xa8 {
			tags = append(tags, binary.BigEndian.Uint32(plain[12:]))
			plain = slices.Concat(plain[:12], plain[16:])
		}
		for _, way := range slices.Concat(ways, summedWays) {
			if bytes.Equal(out, packet.Tagged(way.send(plain, a.trace.Hash), tags...)) {
				return
			}
		}
		t.Fatalf("forwarded as none of the ways there are:\ngot %x\nof  %x", out, frame)
	})
}
