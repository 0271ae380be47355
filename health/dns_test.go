package health

import (
	"bytes"
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/miekg/dns"

	"github.com/halfproxy/halfproxy/lb"
)

func TestDNSProbe(t *testing.T) {
	udp, tcp, both := []lb.Protocol{lb.UDP}, []lb.Protocol{lb.TCP}, []lb.Protocol{lb.UDP, lb.TCP}
	for _, tt := range []struct {
		name, query, recordType, rcode string
		over                           []lb.Protocol
		answer                         string
		want                           string // %s is the address; empty for a success
	}{
		{"over both", "www.example.org.", "A", "NOERROR", both, "192.0.2.80", ""},
		{"any answer", "www.example.org.", "A", "NOERROR", udp, "", ""},
		{"the second record", "www.example.org.", "A", "NOERROR", tcp, "192.0.2.81", ""},
		{"a name, in another case", "www.example.org.", "NS", "NOERROR", udp, "NS1.example.org", ""},
		{"text", "www.example.org.", "TXT", "NOERROR", udp, "ready and well", ""},
		{"a code that is wanted", "no.example.org.", "A", "NXDOMAIN", both, "", ""},
		{"a code that is not", "no.example.org.", "A", "NOERROR", udp, "", "dns rcode NXDOMAIN from %s over udp, the check wants NOERROR"},
		{"a code over TCP", "no.example.org.", "A", "NOERROR", tcp, "", "dns rcode NXDOMAIN from %s over tcp, the check wants NOERROR"},
		{"another record", "www.example.org.", "A", "NOERROR", udp, "192.0.2.1", `answer from %s over udp has no A record "192.0.2.1" but "192.0.2.80, 192.0.2.81"`},
		{"no record", "www.example.org.", "MX", "NOERROR", tcp, "10 mx.example.org.", `answer from %s over tcp has no MX record "10 mx.example.org."`},
		{"records that do not fit", "long.example.org.", "A", "NOERROR", udp, "192.0.2.80", `answer from %s over udp has no A record "192.0.2.80" in what fits a packet: let the check ask over tcp`},
		{"records that fit TCP", "long.example.org.", "A", "NOERROR", tcp, "192.0.2.80", ""},
		{"silence", "silent.example.org.", "A", "NOERROR", udp, "", "no answer from %s over udp within 300ms"},
		{"a connection that is closed", "silent.example.org.", "A", "NOERROR", tcp, "", "connection closed by %s before it answered"},
		{"a late answer before the right one", "late.example.org.", "A", "NOERROR", udp, "192.0.2.80", ""},
	} {
		for _, ip := range loopbacks {
			t.Run(tt.name+" at "+ip, func(t *testing.T) {
				addr := serveDNS(t, ip)
				check := lb.Check{Type: lb.CheckDNS, Query: tt.query, RecordType: tt.recordType, Rcode: tt.rcode, Over: tt.over, Answer: []byte(tt.answer)}
				expectAt(t, ask(t, addr, check), addr, tt.want)
			})
		}
	}
	query := lb.Check{Type: lb.CheckDNS, Query: "www.example.org.", RecordType: "A", Rcode: "NOERROR", Over: udp}
	t.Run("a closed port", func(t *testing.T) {
		addr := closedPacketPort(t)
		expectAt(t, ask(t, addr, query), addr, "connection refused by %s after *")
	})
	t.Run("another protocol", func(t *testing.T) {
		addr := servePackets(t, "127.0.0.1", func([]byte) []byte { return []byte("pong") })
		expectAt(t, ask(t, addr, query), addr, "answer from %s over udp is not dns")
	})
}

func TestUDPProbe(t *testing.T) {
	echo := func(b []byte) []byte { return append([]byte("got "), b...) }
	silence := func([]byte) []byte { return nil }
	for _, tt := range []struct {
		name   string
		answer func([]byte) []byte
		check  lb.Check
		want   string
	}{
		{"the answer is there", echo, lb.Check{Payload: []byte("ping\x00"), Answer: []byte("ping\x00")}, ""},
		{"any answer to an empty packet", echo, lb.Check{}, ""},
		{"another answer", echo, lb.Check{Payload: []byte("ping"), Answer: []byte("pong")}, `answer of 8 bytes from %s does not contain "pong"`},
		{"silence", silence, lb.Check{}, "no answer from %s within 300ms"},
		{"silence that is as good", silence, lb.Check{Silent: true}, ""},
		{"an answer instead of silence", echo, lb.Check{Silent: true}, ""},
	} {
		for _, ip := range loopbacks {
			t.Run(tt.name+" at "+ip, func(t *testing.T) {
				addr := servePackets(t, ip, tt.answer)
				tt.check.Type = lb.CheckUDP
				expectAt(t, ask(t, addr, tt.check), addr, tt.want)
			})
		}
	}
	for _, silent := range []bool{false, true} {
		addr := closedPacketPort(t)
		expectAt(t, ask(t, addr, lb.Check{Type: lb.CheckUDP, Silent: silent}), addr, "connection refused by %s after *")
	}
}

// serveDNS is a name server, over UDP and TCP, until the test ends.
func serveDNS(t *testing.T, ip string) netip.AddrPort {
	t.Helper()
	packets, err := net.ListenPacket("udp", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", packets.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range []*dns.Server{{PacketConn: packets}, {Listener: l}} {
		server.Handler = dns.HandlerFunc(answerDNS)
		var started sync.WaitGroup
		started.Add(1)
		server.NotifyStartedFunc = started.Done
		done := make(chan struct{})
		go func() {
			defer close(done)
			server.ActivateAndServe()
		}()
		started.Wait()
		t.Cleanup(func() {
			server.Shutdown()
			<-done
		})
	}
	return addrOf(l)
}

func answerDNS(w dns.ResponseWriter, question *dns.Msg) {
	answer := new(dns.Msg).SetReply(question)
	name, kind := question.Question[0].Name, dns.TypeToString[question.Question[0].Qtype]
	records := map[string][]string{
		"A": {"192.0.2.80", "192.0.2.81"}, "NS": {"ns1.example.org."}, "TXT": {`"ready and" " well"`},
	}[kind]
	switch name {
	case "silent.example.org.":
		w.Close()
		return
	case "no.example.org.":
		answer.Rcode, records = dns.RcodeNameError, nil
	case "long.example.org.":
		if _, over := w.RemoteAddr().(*net.UDPAddr); over {
			answer.Truncated, records = true, nil
		}
	case "late.example.org.":
		earlier := answer.Copy()
		earlier.Id++
		w.WriteMsg(earlier)
	}
	for _, data := range records {
		record, err := dns.NewRR(name + " 60 IN " + kind + " " + data)
		if err != nil {
			panic(err)
		}
		answer.Answer = append(answer.Answer, record)
	}
	w.WriteMsg(answer)
}

// servePackets answers each packet, but with nil, until the test ends.
func servePackets(t *testing.T, ip string, answer func([]byte) []byte) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenPacket("udp", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<10)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if b := answer(bytes.Clone(buf[:n])); b != nil {
				conn.WriteTo(b, from)
			}
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// closedPacketPort is an address that was free a moment ago.
func closedPacketPort(t *testing.T) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}
