package xdp

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/halfproxy/halfproxy/lb"
)

// Trace is what the program does with a flow's packets, and why.
type Trace struct {
	Verdict Verdict
	Why     string // the verdict in words

	Service     string // empty: none was found
	Hash        uint64 // of the flow
	Hashed      lb.HashFields
	Slot, Slots uint32     // where the hash falls in the table; no Slots: it is empty, or was not asked
	Backend     string     // that the slot holds, or the connection ID names; empty: none
	Address     netip.Addr // of the backend
	Forward     lb.Forward
	Transition  *Transition // of the slot; nil: it is at rest

	// What leaves the node, of a packet that is forwarded.
	Outer     Outer
	NextHop   net.HardwareAddr
	Interface string
}

// Transition is that of a slot whose backend has changed lately.
type Transition struct {
	Current, Base string // backends: of new flows, and of older ones
	Settling      bool   // datagrams go to the base for now
	ByRecord      bool   // the flow has a record, which says where it goes
}

// Outer is the outer header that a packet gets. Its zero value is none.
type Outer struct {
	Source, Destination netip.Addr
	Ports               [2]uint16 // of an outer UDP header, source first
}

// Trace asks the program which backend a flow goes to: a packet of the flow, in
// the middle of its life and as it would come in by the first interface, is put
// through the program, loaded once more over the same tables. Neither the packet
// nor its verdict is counted. With a connection ID it is a QUIC packet with a
// short header and that ID.
func (d *Dataplane) Trace(protocol lb.Protocol, source, destination netip.AddrPort, connectionID ...byte) (Trace, error) {
	source, destination = unmap(source), unmap(destination)
	if !source.IsValid() || !destination.IsValid() || source.Addr().Is4() != destination.Addr().Is4() {
		return Trace{}, fmt.Errorf("trace from %s to %s: two addresses of one family are needed", source, destination)
	}
	if portHeader(protocol) == 0 {
		return Trace{}, fmt.Errorf("trace %s: only tcp, udp, sctp and udplite have flows", protocol)
	}
	if len(connectionID) > 0 && protocol != lb.UDP {
		return Trace{}, fmt.Errorf("trace %s with a connection ID: QUIC is spoken over udp", protocol)
	}
	if d.TakingOver() {
		return Trace{}, fmt.Errorf("trace: %w", errTakingOver)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.store == nil {
		return Trace{}, fmt.Errorf("trace: %w", errClosed)
	}
	at, err := d.firstPort()
	if err != nil {
		return Trace{}, err
	}
	program, err := newTracer(d.spec, d.store)
	if err != nil {
		return Trace{}, explainLoad(fmt.Errorf("load the program to be traced: %w", err))
	}
	defer program.Close()
	if err := program.sit(at.mac, at.ifindex); err != nil {
		return Trace{}, fmt.Errorf("tell the program to be traced its interface: %w", err)
	}
	frame := flowFrame(at.mac, protocol, source, destination, quicPacket(connectionID))
	a, err := program.ask(frame)
	if err != nil {
		return Trace{}, err
	}
	t := d.explain(a, at, protocol, destination)
	if s := d.services[t.Service]; s != nil && len(connectionID) > 0 && t.Verdict == Forwarded {
		t.Why = s.aboutConnectionID(t, connectionID)
	}
	t.departure(a, frame)
	return t, nil
}

// none stands in a trace for what the packet has not come to.
const none = ^uint32(0)

// newTracer loads the program over the store's tables, but with counters of its
// own, those of each source's packets too. They are as small as can be: what is not there is not counted.
func newTracer(spec *ebpf.CollectionSpec, s *store) (*instance, error) {
	spec = spec.Copy()
	tables := maps.Clone(s.maps)
	for name, m := range spec.Maps {
		if m.Type == ebpf.PerCPUArray || m.Type == ebpf.PerCPUHash || name == bpfMapSources {
			delete(tables, name)
			m.MaxEntries = 1
		}
	}
	if err := spec.Variables[bpfVarLooking].Set(true); err != nil {
		return nil, fmt.Errorf("set variable looking: %w", err)
	}
	return newInstance(spec, &store{maps: tables}, true)
}

// firstPort is where packets that are asked about come in.
func (d *Dataplane) firstPort() (port, error) {
	d.attached.Lock()
	defer d.attached.Unlock()
	if len(d.ports) == 0 {
		return port{name: "lo", ifindex: 1}, nil
	}
	p := d.ports[0]
	if p.lost != nil {
		return port{}, fmt.Errorf("trace by way of %s: %w", p.name, p.lost)
	}
	return port{name: p.name, ifindex: p.ifindex, mac: p.mac}, nil
}

// explain puts names to what the program noted down.
func (d *Dataplane) explain(a answer, at port, protocol lb.Protocol, destination netip.AddrPort) Trace {
	t := Trace{Verdict: Verdict(a.trace.Verdict), Hash: a.trace.Hash}
	s := d.serviceAt(a.trace.Service)
	if s == nil {
		t.Why = t.inWords(lb.Port{Protocol: protocol, Number: destination.Port()}, destination.Addr(), "")
		return t
	}
	t.Service = s.name
	entry := d.store.services[s.number]
	t.Hashed = fieldsOf(entry.Active)
	if a.trace.Slot != none {
		table := entry.Table[entry.Active&1]
		t.Slot, t.Slots = a.trace.Slot, table.Size
		t.Transition = s.transition(d.store.slots[table.Slots*slotsPerPage+a.trace.Slot], a.trace.Tracked)
	}
	problem, inVLAN := "", false
	for b, entry := range s.all() {
		if entry != a.trace.Backend {
			continue
		}
		t.Backend, t.Address, t.Forward, problem = b.name, b.address, b.forward, b.problem
		if r := d.hops.routes[b.address]; r != nil && r.looked && r.err == nil {
			t.Interface, inVLAN = d.nameOf(r.via.ifindex), r.vlan != 0
			if problem == "" {
				problem = fmt.Sprintf("the MAC address of its next hop %s on %s is not known", r.via.address, t.Interface)
			}
		}
	}
	if a.action == xdpTX && !inVLAN {
		t.Interface = at.name
	}
	t.Why = t.inWords(lb.Port{Protocol: protocol, Number: destination.Port()}, destination.Addr(), problem)
	return t
}

func (d *Dataplane) serviceAt(number uint32) *service {
	for _, s := range d.services {
		if s.number == number {
			return s
		}
	}
	return nil
}

// nameOf gives the name of an interface.
func (d *Dataplane) nameOf(ifindex int) string {
	if l := d.hops.links[ifindex]; l != nil {
		return l.Attrs().Name
	}
	return fmt.Sprintf("interface %d", ifindex)
}

// inWords says what the verdict means for the packet; problem is what keeps
// packets from the backend.
func (t Trace) inWords(p lb.Port, vip netip.Addr, problem string) string {
	switch t.Verdict {
	case Forwarded:
		return fmt.Sprintf("slot %d of service %q holds backend %q%s", t.Slot, t.Service, t.held(), t.moved())
	case NotVIP:
		return fmt.Sprintf("no service has %s %s: the packet passes to the kernel", vip, p)
	case NoBackend:
		return fmt.Sprintf("service %q has no backend that can be used: the packet is dropped", t.Service)
	case NoNeighbour:
		return fmt.Sprintf("there is no way to backend %q: %s: the packet is dropped", t.Backend, problem)
	case Denied:
		return "its source is on the deny list: the packet is dropped"
	case Limited:
		return fmt.Sprintf("its source sends more packets than service %q allows: the packet is dropped", t.Service)
	case TooBig:
		return fmt.Sprintf("even a small packet does not fit the way to backend %q: it is dropped", t.Backend)
	}
	return fmt.Sprintf("the program's verdict on the packet is %s", t.Verdict)
}

// transition puts names to a slot's; nil: it is at rest.
func (s *service) transition(slot bpfSlot, how bpfTracked) *Transition {
	if how == bpfTrackedTRACKED_MAX {
		return nil
	}
	t := &Transition{Settling: slot.Base&settling != 0, ByRecord: how == bpfTrackedTRACKED_BY_RECORD}
	for name, b := range s.members {
		if uint32(slot.Current) == b.index {
			t.Current = name
		}
		if uint32(slot.Base&baseBackend) == b.index {
			t.Base = name
		}
	}
	return t
}

// held is the backend that the slot holds.
func (t Trace) held() string {
	if t.Transition != nil {
		return t.Transition.Current
	}
	return t.Backend
}

// moved says where a flow goes whose slot is in transition.
func (t Trace) moved() string {
	if t.Transition == nil {
		return ""
	}
	text := fmt.Sprintf(" since lately, and before that %q", t.Transition.Base)
	if t.Transition.Current == t.Transition.Base {
		text = " again since lately"
	}
	switch {
	case t.Transition.ByRecord:
		return fmt.Sprintf("%s: the flow's record says %q", text, t.Backend)
	case t.Backend == t.Transition.Base:
		return fmt.Sprintf("%s: the flow has no record, it is taken for older and goes to %q", text, t.Backend)
	}
	return fmt.Sprintf("%s: the flow has no record and is taken for new", text)
}

// departure reads what leaves the node off the packet itself.
func (t *Trace) departure(a answer, in []byte) {
	if t.Verdict != Forwarded {
		t.Interface = ""
		return
	}
	t.NextHop = net.HardwareAddr(slices.Clone(a.frame[:6]))
	ip, outer := afterEthernet(a.frame), len(a.frame)-len(in)
	switch {
	case outer < ipv4Header:
	case ip[0]>>4 == 4:
		t.Outer.Source, t.Outer.Destination = netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
		t.Outer.udp(ip[9], ip[ipv4Header:])
	default:
		t.Outer.Source, t.Outer.Destination = netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
		t.Outer.udp(ip[6], ip[ipv6Header:])
	}
}

// Ends gives source and destination as they are written, with ports where there
// are any.
func (o Outer) Ends() (source, destination string) {
	if o.Ports == [2]uint16{} {
		return o.Source.String(), o.Destination.String()
	}
	return netip.AddrPortFrom(o.Source, o.Ports[0]).String(), netip.AddrPortFrom(o.Destination, o.Ports[1]).String()
}

func (o *Outer) udp(protocol byte, header []byte) {
	if protocol == byte(lb.UDP) {
		o.Ports = [2]uint16{binary.BigEndian.Uint16(header), binary.BigEndian.Uint16(header[2:])}
	}
}

// Lengths of headers without options.
const (
	ethernetHeader = 14
	ipv4Header     = 20
	ipv6Header     = 40
	tcpHeader      = 20
	udpHeader      = 8
	sctpHeader     = 12
)

// portHeader is the length of a header with ports; 0: the protocol has none.
func portHeader(protocol lb.Protocol) int {
	switch protocol {
	case lb.TCP:
		return tcpHeader
	case lb.UDP, lb.UDPLite:
		return udpHeader
	case lb.SCTP:
		return sctpHeader
	}
	return 0
}

// xdpTX is the action that sends a packet out by the interface it came by.
const xdpTX = 3

// afterEthernet is the IP packet in a frame, tagged or not.
func afterEthernet(frame []byte) []byte {
	at := ethernetHeader
	for etherType := binary.BigEndian.Uint16(frame[at-2:]); etherType == 0x8100 || etherType == 0x88a8; {
		at += 4
		etherType = binary.BigEndian.Uint16(frame[at-2:])
	}
	return frame[at:]
}

// flowFrame is a packet of the flow, as a router would hand it on: a TCP
// acknowledgement, a UDP datagram with an even number of bytes, an empty one of
// UDP-Lite, or SCTP's header alone.
func flowFrame(to [6]byte, protocol lb.Protocol, source, destination netip.AddrPort, datagram []byte) []byte {
	transport := append(make([]byte, portHeader(protocol)), datagram...)
	binary.BigEndian.PutUint16(transport, source.Port())
	binary.BigEndian.PutUint16(transport[2:], destination.Port())
	addresses := append(source.Addr().AsSlice(), destination.Addr().AsSlice()...)
	pseudo := append(slices.Clone(addresses), 0, byte(protocol), 0, byte(len(transport)))
	sum := 6
	switch protocol {
	case lb.TCP:
		transport[12] = tcpHeader / 4 << 4
		transport[13] = 0x10 // ACK
		binary.BigEndian.PutUint16(transport[14:], 1<<15)
		sum = 16
	case lb.UDP, lb.UDPLite: // there it is what the checksum covers
		binary.BigEndian.PutUint16(transport[4:], uint16(len(transport)))
	}
	if protocol == lb.SCTP {
		binary.LittleEndian.PutUint32(transport[8:], crc32.Checksum(transport, crc32.MakeTable(crc32.Castagnoli)))
	} else {
		binary.BigEndian.PutUint16(transport[sum:], checksum(append(pseudo, transport...)))
	}

	const ttl = 64
	frame := append(slices.Clone(to[:]), 0x02, 0, 0, 0, 0, 0x01) // from a locally administered MAC address
	if source.Addr().Is4() {
		ip := make([]byte, ipv4Header)
		ip[0] = 0x45
		binary.BigEndian.PutUint16(ip[2:], uint16(ipv4Header+len(transport)))
		ip[6] = 0x40 // don't fragment
		ip[8], ip[9] = ttl, byte(protocol)
		copy(ip[12:], addresses)
		binary.BigEndian.PutUint16(ip[10:], checksum(ip))
		frame = append(append(frame, 0x08, 0x00), ip...)
	} else {
		ip := make([]byte, ipv6Header)
		ip[0] = 0x60
		binary.BigEndian.PutUint16(ip[4:], uint16(len(transport)))
		ip[6], ip[7] = byte(protocol), ttl
		copy(ip[8:], addresses)
		frame = append(append(frame, 0x86, 0xdd), ip...)
	}
	return append(frame, transport...)
}

// checksum is the Internet checksum (RFC 1071) of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 1<<16-1 {
		sum = sum>>16 + sum&(1<<16-1)
	}
	return ^uint16(sum)
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}
