package admin

import (
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// pcapng writes a capture as draft-ietf-opsawg-pcapng has it: one section, an
// interface for each that something is told of, a packet for each frame with
// its verdict, and statistics, of which the last ones count.
type pcapng struct {
	w          io.Writer
	snaplen    uint32
	begun      time.Time
	interfaces map[string]uint32 // as they are numbered
	block      []byte            // that is being written
}

// Types of blocks, and the codes of their options.
const (
	sectionBlock    = 0x0a0d0d0a
	interfaceBlock  = 1
	statisticsBlock = 5
	packetBlock     = 6

	optEnd     = 0
	optComment = 1

	sectionApplication = 4

	interfaceName       = 2
	interfaceResolution = 9

	packetFlags   = 2
	packetVerdict = 7

	statisticsBegin     = 2
	statisticsEnd       = 3
	statisticsReceived  = 4
	statisticsDropped   = 5
	statisticsAccepted  = 6
	statisticsDelivered = 8
)

// newPcapng begins a section.
func newPcapng(w io.Writer, application, comment string, snaplen uint32) (*pcapng, error) {
	p := &pcapng{w: w, snaplen: snaplen, begun: time.Now(), interfaces: make(map[string]uint32)}
	p.begin(sectionBlock)
	p.put32(0x1a2b3c4d) // tells the byte order
	p.put32(1)          // version 1.0
	p.put64(^uint64(0)) // nobody knows how long it will be
	p.option(sectionApplication, []byte(application))
	p.option(optComment, []byte(comment))
	return p, p.end()
}

// packet writes a frame.
func (p *pcapng) packet(f CapturedFrame) error {
	number, err := p.interfaceNumber(f.Interface)
	if err != nil {
		return err
	}
	p.begin(packetBlock)
	p.put32(number)
	p.time(f.Time)
	p.put32(uint32(len(f.Data)))
	p.put32(uint32(f.Length))
	p.padded(f.Data)
	p.option(optComment, []byte(f.comment()))
	direction := uint32(1) // inbound
	if f.Outgoing {
		direction = 2
	}
	p.option(packetFlags, binary.LittleEndian.AppendUint32(nil, direction))
	const linuxXDP = 2
	p.option(packetVerdict, binary.LittleEndian.AppendUint64([]byte{linuxXDP}, uint64(f.Action)))
	return p.end()
}

// comment is what a person reads beside the frame, and a display filter of
// Wireshark's finds: frame.comment contains "verdict=no_backend".
func (f CapturedFrame) comment() string {
	words := []string{"verdict=" + f.Verdict}
	if f.Service != "" {
		words = append(words, "service="+f.Service)
	}
	if f.Backend != "" {
		words = append(words, "backend="+f.Backend)
	}
	return strings.Join(words, " ")
}

// statistics writes how things stand on the interfaces.
func (p *pcapng) statistics(counts map[string]CaptureCount) error {
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		number, err := p.interfaceNumber(name)
		if err != nil {
			return err
		}
		count, now := counts[name], time.Now()
		p.begin(statisticsBlock)
		p.put32(number)
		p.time(now)
		p.option(statisticsBegin, timestamp(nil, p.begun))
		p.option(statisticsEnd, timestamp(nil, now))
		for _, o := range []struct {
			code uint16
			n    uint64
		}{
			{statisticsReceived, count.Seen},
			{statisticsDropped, count.Lost}, // what Wireshark shows as dropped
			{statisticsAccepted, count.Matched},
			{statisticsDelivered, count.Matched - count.Lost},
		} {
			p.option(o.code, binary.LittleEndian.AppendUint64(nil, o.n))
		}
		if err := p.end(); err != nil {
			return err
		}
	}
	return nil
}

// interfaceNumber is that of the interface of this name, which is written if it
// is new.
func (p *pcapng) interfaceNumber(name string) (uint32, error) {
	if number, there := p.interfaces[name]; there {
		return number, nil
	}
	const ethernet, nanoseconds = 1, 9
	number := uint32(len(p.interfaces))
	p.interfaces[name] = number
	p.begin(interfaceBlock)
	p.put32(ethernet)
	p.put32(p.snaplen)
	p.option(interfaceName, []byte(name))
	p.option(interfaceResolution, []byte{nanoseconds})
	return number, p.end()
}

func (p *pcapng) begin(kind uint32) {
	p.block = p.block[:0]
	p.put32(kind)
	p.put32(0) // the length, once it is known
}

func (p *pcapng) end() error {
	p.option(optEnd, nil)
	length := uint32(len(p.block)) + 4
	binary.LittleEndian.PutUint32(p.block[4:], length)
	p.put32(length)
	_, err := p.w.Write(p.block)
	return err
}

func (p *pcapng) option(code uint16, value []byte) {
	p.block = binary.LittleEndian.AppendUint16(p.block, code)
	p.block = binary.LittleEndian.AppendUint16(p.block, uint16(len(value)))
	p.padded(value)
}

// padded fills what it puts to a multiple of 4 bytes.
func (p *pcapng) padded(b []byte) {
	p.block = append(p.block, b...)
	p.block = append(p.block, make([]byte, -len(b)&3)...)
}

func (p *pcapng) put32(n uint32)   { p.block = binary.LittleEndian.AppendUint32(p.block, n) }
func (p *pcapng) put64(n uint64)   { p.block = binary.LittleEndian.AppendUint64(p.block, n) }
func (p *pcapng) time(t time.Time) { p.block = timestamp(p.block, t) }

// timestamp appends nanoseconds since 1970, the high half first.
func timestamp(b []byte, t time.Time) []byte {
	ns := uint64(t.UnixNano())
	b = binary.LittleEndian.AppendUint32(b, uint32(ns>>32))
	return binary.LittleEndian.AppendUint32(b, uint32(ns))
}

// nextBlock reads a whole block of the writer above.
func nextBlock(r io.Reader, block []byte) (kind uint32, _ []byte, err error) {
	const head, most = 8, 1 << 20
	block = append(block[:0], make([]byte, head)...)
	if _, err := io.ReadFull(r, block); err != nil {
		return 0, nil, err
	}
	kind, length := binary.LittleEndian.Uint32(block), binary.LittleEndian.Uint32(block[4:])
	if length < head+4 || length > most {
		return 0, nil, fmt.Errorf("a block of %d bytes is none of pcapng's", length)
	}
	block = slices.Grow(block, int(length)-head)[:length]
	if _, err := io.ReadFull(r, block[head:]); err != nil {
		return 0, nil, fmt.Errorf("read a block of %d bytes: %w", length, err)
	}
	return kind, block, nil
}
