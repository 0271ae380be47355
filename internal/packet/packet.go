// Package packet builds Ethernet frames for tests: those that go in, and, with
// [Encapsulate], [WithMACs] and [WithTTL], those that are expected to come out.
//
// Addresses are written "192.0.2.1:80" or "[2001:db8::1]:80". What a test does
// not care about has a fixed value, so equal calls give equal frames. Nonsense
// in a call panics: it is a mistake in the test.
package packet

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Frame is what options are applied to.
type Frame struct {
	eth     layers.Ethernet
	vlan    uint16
	ip4     layers.IPv4
	ip6     layers.IPv6
	tcp     layers.TCP
	payload []byte
	padding int
	between []gopacket.SerializableLayer // IPv6 extension headers
	mangle  []func(ip []byte)            // done to the serialized IP packet
}

// Option changes a frame from what it is by default.
type Option func(*Frame)

// To sets the destination MAC address, which is all zeros else.
func To(mac string) Option { return func(f *Frame) { f.eth.DstMAC = parseMAC(mac) } }

// From sets the source MAC address, which is 02:00:00:00:00:cc else.
func From(mac string) Option { return func(f *Frame) { f.eth.SrcMAC = parseMAC(mac) } }

// TTL sets the TTL or hop limit, which is 57 else.
func TTL(n uint8) Option { return func(f *Frame) { f.ip4.TTL, f.ip6.HopLimit = n, n } }

// TOS sets DSCP and ECN, which are 0 else.
func TOS(tos uint8) Option { return func(f *Frame) { f.ip4.TOS, f.ip6.TrafficClass = tos, tos } }

// ID sets the IPv4 identification, which is 4711 else.
func ID(n uint16) Option { return func(f *Frame) { f.ip4.Id = n } }

// FlowLabel sets the IPv6 flow label, which is 0x12345 else.
func FlowLabel(n uint32) Option { return func(f *Frame) { f.ip6.FlowLabel = n } }

// Payload makes the transport's payload n bytes long in place of 4.
func Payload(n int) Option {
	return func(f *Frame) {
		f.payload = make([]byte, n)
		for i := range f.payload {
			f.payload[i] = byte(i)
		}
	}
}

// Data makes b the transport's payload.
func Data(b []byte) Option { return func(f *Frame) { f.payload = b } }

// Padding adds n bytes after the IP packet.
func Padding(n int) Option { return func(f *Frame) { f.padding = n } }

// VLAN tags the frame.
func VLAN(id uint16) Option {
	return func(f *Frame) { f.vlan = id }
}

// SYN sets the TCP flag. A frame without any flag has ACK set.
func SYN(f *Frame) { f.tcp.SYN = true }

// ACK sets the flag.
func ACK(f *Frame) { f.tcp.ACK = true }

// FIN sets the flag.
func FIN(f *Frame) { f.tcp.FIN = true }

// RST sets the flag.
func RST(f *Frame) { f.tcp.RST = true }

// IPv4Options puts n no-operation options into the IPv4 header.
func IPv4Options(n int) Option {
	return func(f *Frame) {
		for range n {
			f.ip4.Options = append(f.ip4.Options, layers.IPv4Option{OptionType: 1})
		}
	}
}

// Fragment makes it the fragment at this offset, in bytes; more: others follow.
func Fragment(offset int, more bool) Option {
	return func(f *Frame) {
		f.ip4.FragOffset = uint16(offset / 8)
		f.ip4.Flags = 0
		if more {
			f.ip4.Flags = layers.IPv4MoreFragments
		}
		word := uint16(offset) &^ 7
		if more {
			word |= 1
		}
		f.between = append(f.between, extension{layers.IPProtocolIPv6Fragment, []byte{0, 0, byte(word >> 8), byte(word), 0, 0, 0, 7}})
	}
}

// FragmentID sets the identification of a fragment of either family: it comes
// after Fragment.
func FragmentID(n uint16) Option {
	return func(f *Frame) {
		f.ip4.Id = n
		b := f.between[len(f.between)-1].(extension).bytes
		binary.BigEndian.PutUint16(b[6:], n)
	}
}

// HopByHop puts an IPv6 hop-by-hop options header into the packet.
func HopByHop(f *Frame) {
	f.between = append(f.between, extension{layers.IPProtocolIPv6HopByHop, []byte{0, 0, 1, 4, 0, 0, 0, 0}})
}

// Extension puts another IPv6 extension header into the packet, after those that
// are there: its number, and how many times 8 bytes it has.
func Extension(number uint8, size int) Option {
	return func(f *Frame) {
		b := make([]byte, 8*size)
		b[1] = byte(size - 1)
		f.between = append(f.between, extension{layers.IPProtocol(number), b})
	}
}

// MayFragment clears the IPv4 header's DF flag.
func MayFragment(f *Frame) { f.ip4.Flags = 0 }

// Length makes the IP header lie about the length: the IPv4 total length or the
// IPv6 payload length is what it is plus delta.
func Length(delta int) Option {
	return func(f *Frame) {
		f.mangle = append(f.mangle, func(ip []byte) {
			at := 2
			if ip[0]>>4 == 6 {
				at = 4
			}
			binary.BigEndian.PutUint16(ip[at:], uint16(int(binary.BigEndian.Uint16(ip[at:]))+delta))
		})
	}
}

// IPByte sets one byte of the IP packet, counted from its start.
func IPByte(at int, value byte) Option {
	return func(f *Frame) { f.mangle = append(f.mangle, func(ip []byte) { ip[at] = value }) }
}

// extension is an IPv6 extension header; its first byte is filled in.
type extension struct {
	number layers.IPProtocol
	bytes  []byte
}

func (e extension) LayerType() gopacket.LayerType { return gopacket.LayerTypePayload }

func (e extension) SerializeTo(b gopacket.SerializeBuffer, _ gopacket.SerializeOptions) error {
	room, err := b.PrependBytes(len(e.bytes))
	copy(room, e.bytes)
	return err
}

// TCP is a TCP segment from source to destination.
func TCP(source, destination string, options ...Option) []byte {
	from, to := netip.MustParseAddrPort(source), netip.MustParseAddrPort(destination)
	f := newFrame(from.Addr(), to.Addr(), layers.IPProtocolTCP)
	f.tcp = layers.TCP{SrcPort: layers.TCPPort(from.Port()), DstPort: layers.TCPPort(to.Port()), Seq: 1000, Window: 64240}
	f.apply(options)
	if t := &f.tcp; !t.SYN && !t.FIN && !t.RST {
		t.ACK = true
	}
	must(f.tcp.SetNetworkLayerForChecksum(f.network()))
	return f.bytes(&f.tcp, gopacket.Payload(f.payload))
}

// UDP is a UDP datagram from source to destination.
func UDP(source, destination string, options ...Option) []byte {
	from, to := netip.MustParseAddrPort(source), netip.MustParseAddrPort(destination)
	f := newFrame(from.Addr(), to.Addr(), layers.IPProtocolUDP)
	f.apply(options)
	udp := layers.UDP{SrcPort: layers.UDPPort(from.Port()), DstPort: layers.UDPPort(to.Port())}
	must(udp.SetNetworkLayerForChecksum(f.network()))
	return f.bytes(&udp, gopacket.Payload(f.payload))
}

// Raw is a packet of a protocol with b behind its IP header.
func Raw(protocol uint8, source, destination netip.Addr, b []byte, options ...Option) []byte {
	f := newFrame(source, destination, layers.IPProtocol(protocol))
	f.apply(options)
	return f.bytes(gopacket.Payload(b))
}

// SCTP and UDPLite have the ports where TCP has them.
const (
	SCTP    = 132
	UDPLite = 136
)

// Transport is a packet of another protocol: the ports, n bytes of header with
// them, the payload.
func Transport(protocol uint8, n int, source, destination string, options ...Option) []byte {
	from, to := netip.MustParseAddrPort(source), netip.MustParseAddrPort(destination)
	f := newFrame(from.Addr(), to.Addr(), layers.IPProtocol(protocol))
	f.apply(options)
	header := binary.BigEndian.AppendUint16(nil, from.Port())
	header = binary.BigEndian.AppendUint16(header, to.Port())
	header = append(header, make([]byte, n-len(header))...)
	return f.bytes(gopacket.Payload(append(header, f.payload...)))
}

// ICMP is an ICMP or ICMPv6 message of any kind: type, code, the word after the
// checksum, and what follows.
func ICMP(source, destination string, kind, code uint8, word uint32, body []byte, options ...Option) []byte {
	from, to := netip.MustParseAddr(source), netip.MustParseAddr(destination)
	if from.Is4() {
		f := newFrame(from, to, layers.IPProtocolICMPv4)
		f.apply(options)
		return f.bytes(&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, code), Id: uint16(word >> 16), Seq: uint16(word)}, gopacket.Payload(body))
	}
	f := newFrame(from, to, layers.IPProtocolICMPv6)
	f.apply(options)
	icmp := layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, code)}
	must(icmp.SetNetworkLayerForChecksum(f.network()))
	return f.bytes(&icmp, gopacket.Payload(append(binary.BigEndian.AppendUint32(nil, word), body...)))
}

// Tagged is a copy of frame with VLAN tags, the outermost first: the EtherType
// that announces it in the high half, the tag in the low one.
func Tagged(frame []byte, tags ...uint32) []byte {
	out := append([]byte(nil), frame[:12]...)
	for _, t := range tags {
		out = binary.BigEndian.AppendUint32(out, t)
	}
	return append(out, frame[12:]...)
}

// Echo is an ICMP or ICMPv6 echo request between two addresses without ports.
func Echo(source, destination string, options ...Option) []byte {
	from, to := netip.MustParseAddr(source), netip.MustParseAddr(destination)
	if from.Is4() {
		f := newFrame(from, to, layers.IPProtocolICMPv4)
		f.apply(options)
		return f.bytes(&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0), Id: 1, Seq: 1}, gopacket.Payload(f.payload))
	}
	f := newFrame(from, to, layers.IPProtocolICMPv6)
	f.apply(options)
	icmp := layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeEchoRequest, 0)}
	must(icmp.SetNetworkLayerForChecksum(f.network()))
	return f.bytes(&icmp, &layers.ICMPv6Echo{Identifier: 1, SeqNumber: 1}, gopacket.Payload(f.payload))
}

// ARP is a broadcast request for target's MAC address.
func ARP(source, target string, options ...Option) []byte {
	from, to := netip.MustParseAddr(source), netip.MustParseAddr(target)
	f := newFrame(from, to, 0)
	f.eth.DstMAC = parseMAC("ff:ff:ff:ff:ff:ff")
	f.eth.EthernetType = layers.EthernetTypeARP
	f.apply(options)
	return append(f.header(), serialize(&layers.ARP{
		AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: layers.ARPRequest,
		SourceHwAddress: f.eth.SrcMAC, SourceProtAddress: from.AsSlice(), DstHwAddress: make([]byte, 6), DstProtAddress: to.AsSlice(),
	})...)
}

// Encapsulate puts frame's IP packet, without padding, into an outer IP header
// as the data plane is to make it: TTL 64, DSCP and ECN copied, IPv4 with DF and
// ID 0. The flow label of an outer IPv6 header is flowLabel.
func Encapsulate(source, destination string, flowLabel uint32, frame []byte) []byte {
	return encapsulate(source, destination, flowLabel, frame, ipProtocol(frame), nil)
}

// EncapsulateGRE does so with a GRE header without options in between.
func EncapsulateGRE(source, destination string, flowLabel uint32, frame []byte) []byte {
	etherType := layers.EthernetTypeIPv4
	if ipProtocol(frame) == layers.IPProtocolIPv6 {
		etherType = layers.EthernetTypeIPv6
	}
	return encapsulate(source, destination, flowLabel, frame, layers.IPProtocolGRE, []byte{0, 0, byte(etherType >> 8), byte(etherType)})
}

// EncapsulateGUE does so with UDP, whose checksum is zero, and a GUE header
// without options in between.
func EncapsulateGUE(source, destination string, flowLabel uint32, from, to uint16, frame []byte) []byte {
	var b []byte
	for _, word := range []uint16{from, to, uint16(len(IP(frame)) + 12), 0} {
		b = binary.BigEndian.AppendUint16(b, word)
	}
	return encapsulate(source, destination, flowLabel, frame, layers.IPProtocolUDP, append(b, 0, byte(ipProtocol(frame)), 0, 0))
}

// WithUDPChecksum is a copy of frame, a packet without options or extension headers,
// with the UDP checksum that gopacket computes.
func WithUDPChecksum(frame []byte) []byte {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	udp := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	must(udp.SetNetworkLayerForChecksum(p.NetworkLayer()))
	out := append([]byte(nil), frame...)
	copy(out[14+len(IP(frame))-len(udp.Contents)-len(udp.Payload):], serialize(udp, gopacket.Payload(udp.Payload))[:8])
	return out
}

// ipProtocol is the number of the frame's IP packet within another.
func ipProtocol(frame []byte) layers.IPProtocol {
	if IP(frame)[0]>>4 == 6 {
		return layers.IPProtocolIPv6
	}
	return layers.IPProtocolIPv4
}

func encapsulate(source, destination string, flowLabel uint32, frame []byte, protocol layers.IPProtocol, between []byte) []byte {
	from, to := netip.MustParseAddr(source), netip.MustParseAddr(destination)
	inner := IP(frame)
	tos := inner[1]
	if inner[0]>>4 == 6 {
		tos = inner[0]<<4 | inner[1]>>4
	}
	f := newFrame(from, to, protocol)
	f.eth.DstMAC, f.eth.SrcMAC = net.HardwareAddr(frame[:6]), net.HardwareAddr(frame[6:12])
	f.ip4.TTL, f.ip4.TOS, f.ip4.Id = 64, tos, 0
	f.ip6.HopLimit, f.ip6.TrafficClass, f.ip6.FlowLabel = 64, tos, flowLabel
	return f.bytes(gopacket.Payload(append(between, inner...)))
}

// WithMACs is a copy of frame with other MAC addresses.
func WithMACs(destination, source string, frame []byte) []byte {
	out := append([]byte(nil), frame...)
	copy(out, parseMAC(destination))
	copy(out[6:], parseMAC(source))
	return out
}

// WithTTL is a copy of an untagged frame with another TTL or hop limit. An IPv4
// checksum that was right is so again, and one that was wrong is as wrong.
func WithTTL(ttl uint8, frame []byte) []byte {
	out := append([]byte(nil), frame...)
	ip := out[14:]
	if ip[0]>>4 == 6 {
		ip[7] = ttl
		return out
	}
	sum := uint32(^binary.BigEndian.Uint16(ip[10:])) + uint32(^binary.BigEndian.Uint16(ip[8:]))
	ip[8] = ttl
	sum += uint32(binary.BigEndian.Uint16(ip[8:]))
	for sum > 1<<16-1 {
		sum = sum>>16 + sum&(1<<16-1)
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	return out
}

// IP is the IP packet in an untagged frame, without padding.
func IP(frame []byte) []byte {
	ip := frame[14:]
	if ip[0]>>4 == 6 {
		return ip[:40+int(binary.BigEndian.Uint16(ip[4:]))]
	}
	return ip[:binary.BigEndian.Uint16(ip[2:])]
}

func newFrame(from, to netip.Addr, protocol layers.IPProtocol) *Frame {
	if from.Is4() != to.Is4() {
		panic(fmt.Sprintf("packet: %s and %s are of different families", from, to))
	}
	f := &Frame{
		eth: layers.Ethernet{DstMAC: make(net.HardwareAddr, 6), SrcMAC: parseMAC("02:00:00:00:00:cc"), EthernetType: layers.EthernetTypeIPv4},
		ip4: layers.IPv4{Version: 4, TTL: 57, Id: 4711, Flags: layers.IPv4DontFragment, Protocol: protocol, SrcIP: from.AsSlice(), DstIP: to.AsSlice()},
		ip6: layers.IPv6{Version: 6, HopLimit: 57, FlowLabel: 0x12345, NextHeader: protocol, SrcIP: from.AsSlice(), DstIP: to.AsSlice()},
	}
	if from.Is6() {
		f.eth.EthernetType = layers.EthernetTypeIPv6
	}
	Payload(4)(f)
	return f
}

func (f *Frame) apply(options []Option) {
	for _, o := range options {
		o(f)
	}
}

func (f *Frame) network() gopacket.NetworkLayer {
	if f.eth.EthernetType == layers.EthernetTypeIPv6 {
		return &f.ip6
	}
	return &f.ip4
}

func (f *Frame) bytes(transport ...gopacket.SerializableLayer) []byte {
	var ip []byte
	if f.eth.EthernetType == layers.EthernetTypeIPv6 {
		all := []gopacket.SerializableLayer{&f.ip6}
		next := f.ip6.NextHeader
		for i := len(f.between) - 1; i >= 0; i-- {
			e := f.between[i].(extension)
			e.bytes[0] = byte(next)
			next = e.number
		}
		f.ip6.NextHeader = next
		all = append(all, f.between...)
		ip = serialize(append(all, transport...)...)
	} else {
		ip = serialize(append([]gopacket.SerializableLayer{&f.ip4}, transport...)...)
	}
	for _, m := range f.mangle {
		m(ip)
	}
	frame := f.header()
	frame = append(frame, ip...)
	for range f.padding {
		frame = append(frame, 0xa5)
	}
	return frame
}

// header is the Ethernet header, with a tag if there is one. gopacket's own
// pads every frame to 60 bytes.
func (f *Frame) header() []byte {
	header := append(append([]byte(nil), f.eth.DstMAC...), f.eth.SrcMAC...)
	if f.vlan != 0 {
		header = binary.BigEndian.AppendUint16(header, uint16(layers.EthernetTypeDot1Q))
		header = binary.BigEndian.AppendUint16(header, f.vlan)
	}
	return binary.BigEndian.AppendUint16(header, uint16(f.eth.EthernetType))
}

func serialize(all ...gopacket.SerializableLayer) []byte {
	buffer := gopacket.NewSerializeBuffer()
	must(gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, all...))
	return buffer.Bytes()
}

func parseMAC(s string) net.HardwareAddr {
	mac, err := net.ParseMAC(s)
	must(err)
	return mac
}

func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("packet: %v", err))
	}
}
