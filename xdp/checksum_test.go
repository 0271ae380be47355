package xdp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/halfproxy/halfproxy/internal/packet"
	"github.com/halfproxy/halfproxy/lb"
)

// summedWays are ways with UDP checksums.
var summedWays = []struct {
	name     string
	vips     []string
	send     sending
	counted  string
	overhead int
}{
	{"gue over IPv4 with checksums", vips(0x41), withSum(viaGUE4), "sum4/203.0.113.1", 20 + 8 + 4},
	{"gue over IPv6 with checksums", vips(0x42), withSum(viaGUE6), "sum6/2001:db8:3::1", 40 + 8 + 4},
}

func withSum(send sending) sending {
	return func(frame []byte, hash uint64) []byte { return packet.WithUDPChecksum(send(frame, hash)) }
}

func summing(t lb.Table) lb.Table {
	t.Service.GUEChecksum = true
	return t
}

func TestGUEChecksumsAreThoseOfTheWholeDatagram(t *testing.T) {
	d := newDataplane(t)
	packetServices(t, d)
	for _, way := range summedWays {
		for n, vip := range way.vips {
			client, header := client4, 28
			if n == 1 {
				client, header = client6, 48
			}
			most := 1500 - way.overhead - header
			flow := packet.UDP(client, vip)
			check := func(name string, in []byte) {
				t.Helper()
				t.Run(fmt.Sprintf("%s, %s: %s", way.name, vip, name), func(t *testing.T) { sameFlow("", in, flow, way.send, way.counted).check(t, d) })
			}
			for _, size := range slices.Concat([]int{most - 3, most - 2, most - 1, most}, upTo(200)) {
				check(fmt.Sprintf("%d bytes", size), packet.UDP(client, vip, packet.Payload(size)))
			}
			check("TCP", packet.TCP(client, vip, packet.TOS(0xb9)))
			check("padding is left out", packet.UDP(client, vip, packet.Padding(7)))
			check("nothing but ones", packet.UDP(client, vip, packet.Data(bytes.Repeat([]byte{0xff}, 1001))))
			check("UDP without a checksum inside", withChecksum(packet.UDP(client, vip), 0))
			if n == 0 {
				check("options inside", packet.UDP(client, vip, packet.IPv4Options(7)))
			} else {
				check("extension headers inside", packet.UDP(client, vip, packet.HopByHop, packet.Extension(60, 3)))
			}
			// A checksum that comes to 0 is sent as all ones: 0 says that there is none.
			in := withChecksum(packet.UDP(client, vip, packet.Payload(2)), 0)
			in = withChecksum(in, outerChecksum(way.send(in, flowHash(testKey(), flow))))
			out := way.send(in, flowHash(testKey(), flow))
			if got := outerChecksum(out); got != 0xffff {
				t.Fatalf("the expected checksum is %#x, want it to come to 0", got)
			}
			check("a sum of ones", in)

			tagged := packet.Tagged(flow, 0x81000005)
			row{in: tagged, verdict: Forwarded, out: packet.Tagged(way.send(flow, flowHash(testKey(), flow)), 0x81000005), counted: way.counted}.check(t, d)
			big := packet.UDP(client, vip, packet.Payload(most+1))
			row{in: big, verdict: AnsweredTooBig, out: tooBig(big, uint32(1500-way.overhead))}.check(t, d)
		}
	}
}

func upTo(n int) (numbers []int) {
	for i := range n {
		numbers = append(numbers, i)
	}
	return numbers
}

// withChecksum sets the checksum of a UDP frame's datagram.
func withChecksum(frame []byte, checksum uint16) []byte {
	out := slices.Clone(frame)
	at := 14 + 20 + 6
	if frame[14]>>4 == 6 {
		at = 14 + 40 + 6
	}
	binary.BigEndian.PutUint16(out[at:], checksum)
	return out
}

func outerChecksum(frame []byte) uint16 {
	if frame[14]>>4 == 6 {
		return binary.BigEndian.Uint16(frame[14+40+6:])
	}
	return binary.BigEndian.Uint16(frame[14+20+6:])
}

// Beyond what is summed nothing fits, whatever the interface takes.
func TestPacketsTooBigForAChecksumDoNotFit(t *testing.T) {
	d := newDataplane(t)
	packetServices(t, d)
	d.setWay("203.0.113.1", way{mac: backendMAC, source: node4, ifindex: 1, mtu: 65000})
	entry := d.store.backends[d.services["sum4"].members["203.0.113.1"].entry()]
	if got := entry.Path[entry.NextHop>>hopPathBit&1].Mtu; got != mostSummed {
		t.Errorf("MTU of the path: got %d, want %d", got, mostSummed)
	}
	for _, size := range []int{3000, 3001} { // what BPF_PROG_TEST_RUN takes
		in := packet.UDP(client4, vips(0x41)[0], packet.Payload(size))
		row{in: in, verdict: Forwarded, out: packet.WithUDPChecksum(inGUE4(in)), counted: "sum4/203.0.113.1"}.check(t, d)
	}
}

func inGUE4(frame []byte) []byte { return viaGUE4(frame, flowHash(testKey(), frame)) }

func TestGUEChecksumsComeAndGoWithTheOption(t *testing.T) {
	d := newDataplane(t)
	packetServices(t, d)
	in := packet.UDP(client4, vips(0x41)[0])
	plain, sum := inGUE4(in), packet.WithUDPChecksum(inGUE4(in))
	for _, on := range []bool{false, true, false} {
		web := gue(6080, table("sum4", lb.GUE, 13, vips(0x41), "203.0.113.1"))
		if on {
			web = summing(web)
		}
		apply(t, d, web)
		want := plain
		if on {
			want = sum
		}
		if got := process(t, d, in, Forwarded); !bytes.Equal(got, want) {
			t.Errorf("checksum %v:\ngot  %x\nwant %x", on, got, want)
		}
	}
}
