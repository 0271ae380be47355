package admin

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket/pcapgo"
)

// The bytes that the draft asks for.
func TestPcapngByteForByte(t *testing.T) {
	var out bytes.Buffer
	p, err := newPcapng(&out, "halfproxy 1", "why", 128)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.packet(CapturedFrame{
		Time: time.Unix(0, 0x0102030405060708), Interface: "eth0", Outgoing: true, Verdict: "forwarded", Action: 3,
		Service: "web", Backend: "b1", Length: 60, Data: []byte{0xaa, 0xbb, 0xcc, 0xdd, 0xee},
	}); err != nil {
		t.Fatal(err)
	}
	want := strings.Join([]string{
		// A section: byte order, version 1.0, no length; application, comment.
		"0a0d0d0a", "38000000", "4d3c2b1a", "01000000", "ffffffffffffffff",
		"04000b00", "68616c6670726f7879203100", "01000300", "77687900", "00000000", "38000000",
		// An interface: Ethernet, snaplen; name, nanoseconds.
		"01000000", "28000000", "01000000", "80000000",
		"02000400", "65746830", "09000100", "09000000", "00000000", "28000000",
		// A packet: interface, time, bytes kept, bytes there were; comment, outbound, XDP_TX.
		"06000000", "70000000", "00000000", "04030201", "08070605", "05000000", "3c000000", "aabbccddee000000",
		"01002800", hex.EncodeToString([]byte("verdict=forwarded service=web backend=b1")),
		"02000400", "02000000", "07000900", "020300000000000000000000", "00000000", "70000000",
	}, "")
	if got := hex.EncodeToString(out.Bytes()); got != want {
		t.Errorf("\ngot  %s\nwant %s", got, want)
	}
}

// What others make of it.
func TestPcapngAsGopacketReadsIt(t *testing.T) {
	var out bytes.Buffer
	begin := time.Now()
	p, err := newPcapng(&out, "halfproxy 1", "why", 0)
	if err != nil {
		t.Fatal(err)
	}
	frames := []CapturedFrame{
		{Interface: "eth1", Verdict: "not_vip", Action: 2, Length: 60, Data: make([]byte, 60)},
		{Interface: "eth0", Verdict: "forwarded", Action: 4, Service: "web", Backend: "web1", Length: 1500, Data: make([]byte, 61)},
		{Interface: "eth1", Outgoing: true, Verdict: "answered_echo", Action: 3, Service: "", Length: 62, Data: make([]byte, 62)},
		{Interface: "eth0", Verdict: "no_backend", Action: 1, Service: "dns", Length: 63, Data: make([]byte, 63)},
	}
	comments := []string{"verdict=not_vip", "verdict=forwarded service=web backend=web1", "verdict=answered_echo", "verdict=no_backend service=dns"}
	for i := range frames {
		frames[i].Time = time.Unix(1_700_000_000, int64(i))
		frames[i].Data[0] = byte(i)
		if err := p.packet(frames[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.statistics(map[string]CaptureCount{"eth0": {Seen: 100, Matched: 20, Lost: 18}, "eth2": {}}); err != nil {
		t.Fatal(err)
	}

	r, err := pcapgo.NewNgReader(bytes.NewReader(out.Bytes()), pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	if s := r.SectionInfo(); s.Application != "halfproxy 1" || s.Comment != "why" {
		t.Errorf("section: got %+v", s)
	}
	for i, f := range frames {
		data, about, options, err := r.ReadPacketDataWithOptions()
		if err != nil {
			t.Fatal(err)
		}
		by, err := r.Interface(about.InterfaceIndex)
		if err != nil {
			t.Fatal(err)
		}
		if by.Name != f.Interface || !about.Timestamp.Equal(f.Time) || about.Length != f.Length || !bytes.Equal(data, f.Data) {
			t.Errorf("frame %d: got %s, %+v, %x, want %+v", i, by.Name, about, data, f)
		}
		direction := pcapgo.NgEpbFlagDirectionInbound
		if f.Outgoing {
			direction = pcapgo.NgEpbFlagDirectionOutbound
		}
		if len(options.Comments) != 1 || options.Comments[0] != comments[i] || options.Flags == nil || options.Flags.Direction != direction {
			t.Errorf("frame %d: got %+v, %+v, want %q, direction %d", i, options, options.Flags, comments[i], direction)
		}
		if v := options.Verdicts; len(v) != 1 || v[0].Type != pcapgo.NgEpbVerdictTypeLinuxeBPFXDP || !bytes.Equal(v[0].Data, []byte{byte(f.Action), 0, 0, 0, 0, 0, 0, 0}) {
			t.Errorf("frame %d: got verdicts %+v, want XDP's action %d", i, v, f.Action)
		}
	}
	if _, _, err := r.ReadPacketData(); !errors.Is(err, io.EOF) {
		t.Fatalf("after the last frame: got %v, want EOF", err)
	}
	if n := r.NInterfaces(); n != 3 {
		t.Fatalf("%d interfaces, want 3", n)
	}
	eth0, err := r.Interface(1)
	if err != nil {
		t.Fatal(err)
	}
	s := eth0.Statistics
	if s.PacketsReceived != 100 || s.PacketsDropped != 18 || s.StartTime.Before(begin) || s.EndTime.Before(s.StartTime) || s.LastUpdate.Before(begin) {
		t.Errorf("statistics: got %+v, want 100 received, 18 dropped", s)
	}
}

func TestWhatIsNoBlockIsRefused(t *testing.T) {
	for _, tt := range []struct{ bytes, want string }{
		{"", "EOF"},
		{"060000", "unexpected EOF"},
		{"0600000000000000", "a block of 0 bytes is none of pcapng's"},
		{"06000000ffffffff", "a block of 4294967295 bytes is none of pcapng's"},
		{"0600000010000000aabbccdd", "read a block of 16 bytes: unexpected EOF"},
	} {
		b, err := hex.DecodeString(tt.bytes)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := nextBlock(bytes.NewReader(b), nil); err == nil || err.Error() != tt.want {
			t.Errorf("%q: got %v, want %q", tt.bytes, err, tt.want)
		}
	}
}
