package admin_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/halfproxy/halfproxy/admin"
	"github.com/halfproxy/halfproxy/lb"
)

func flow(protocol lb.Protocol, source, destination string) admin.Flow {
	return admin.Flow{Protocol: protocol, Source: netip.MustParseAddrPort(source), Destination: netip.MustParseAddrPort(destination)}
}

func TestFlowsAreReadAsPeopleWriteThem(t *testing.T) {
	quicFlow := flow(lb.UDP, "198.51.100.7:5000", "203.0.113.10:443")
	quicFlow.ConnectionID = "\x07\x0a\x01\xc5\xde\x66"
	for _, tt := range []struct {
		args [4]string // protocol, source, destination, connection ID
		want admin.Flow
		err  string
	}{
		{args: [4]string{"tcp", "198.51.100.7:31337", "203.0.113.10:80"}, want: flow(lb.TCP, "198.51.100.7:31337", "203.0.113.10:80")},
		{args: [4]string{"udp", "[2001:db8::7]:53", "[2001:db8::10]:443"}, want: flow(lb.UDP, "[2001:db8::7]:53", "[2001:db8::10]:443")},
		{args: [4]string{"tcp", "[::ffff:198.51.100.7]:1", "203.0.113.10:80"}, want: flow(lb.TCP, "198.51.100.7:1", "203.0.113.10:80")},
		{args: [4]string{"udp", "198.51.100.7:5000", "203.0.113.10:443", "070A01c5de66"}, want: quicFlow},
		{args: [4]string{"tcp", "198.51.100.7:1", "203.0.113.10:443", "070a01"}, err: "a flow of tcp has no QUIC connection ID: use udp"},
		{args: [4]string{"udp", "198.51.100.7:1", "203.0.113.10:443", "070a0"}, err: `QUIC connection ID "070a0" is none: write up to 20 bytes in hexadecimal`},
		{args: [4]string{"udp", "198.51.100.7:1", "203.0.113.10:443", "0000000000111111111122222222223333333333aa"}, err: `QUIC connection ID "0000000000111111111122222222223333333333aa" is none: write up to 20 bytes in hexadecimal`},
		{args: [4]string{"icmp", "198.51.100.7:1", "203.0.113.10:80"}, err: `protocol "icmp" is unknown: use tcp, udp, sctp or udplite`},
		{args: [4]string{"SCTP", "198.51.100.7:1", "203.0.113.10:80"}, want: flow(lb.SCTP, "198.51.100.7:1", "203.0.113.10:80")},
		{args: [4]string{"udplite", "198.51.100.7:1", "203.0.113.10:80"}, want: flow(lb.UDPLite, "198.51.100.7:1", "203.0.113.10:80")},
		{args: [4]string{"sctp", "198.51.100.7:1", "203.0.113.10:443", "070a01"}, err: "a flow of sctp has no QUIC connection ID: use udp"},
		{args: [4]string{"tcp", "198.51.100.7", "203.0.113.10:80"}, err: `source "198.51.100.7" is no address with a port: write 192.0.2.1:80 or [2001:db8::1]:80`},
		{args: [4]string{"tcp", "198.51.100.7:1", "web:80"}, err: `destination "web:80" is no address with a port: write 192.0.2.1:80 or [2001:db8::1]:80`},
		{args: [4]string{"tcp", "[fe80::1%eth0]:1", "[2001:db8::10]:80"}, err: `source "[fe80::1%eth0]:1" is no address with a port: write 192.0.2.1:80 or [2001:db8::1]:80`},
		{args: [4]string{"tcp", "198.51.100.7:1", "[2001:db8::10]:80"},
			err: "source 198.51.100.7:1 and destination [2001:db8::10]:80 are of different families: a flow is either IPv4 or IPv6"},
	} {
		got, err := admin.ParseFlow(tt.args[0], tt.args[1], tt.args[2], tt.args[3])
		if message := fmt.Sprint(err); got != tt.want || tt.err != "" && message != tt.err || tt.err == "" && err != nil {
			t.Errorf("%v: got %v, %v, want %v, %s", tt.args, got, err, tt.want, tt.err)
		}
	}
}

// tunnelled is a flow that goes the longest way.
func tunnelled(f admin.Flow) admin.Trace {
	return admin.Trace{
		Protocol: f.Protocol.String(), Source: f.Source, Destination: f.Destination,
		Forwarded: true, Verdict: "forwarded", Why: `slot 4711 of service "dns" holds backend "ns1"`,
		Service: "dns", Hash: "0x1234567890abcdef", Hashed: []string{"source", "destination"},
		Table:   &admin.TraceTable{Size: 16381, Slot: 4711, Current: "ns1"},
		Backend: &admin.TraceBackend{Name: "ns1", Address: netip.MustParseAddr("192.0.2.11"), Weight: 100, State: "up"},
		Egress: &admin.Egress{Encapsulation: "ipip", OuterSource: "192.0.2.1", OuterDestination: "192.0.2.11",
			NextHop: "02:00:00:00:00:b1", Interface: "eth0"},
	}
}

func TestClientGetsTheTraceThatTheServerHas(t *testing.T) {
	cfg := config(t)
	var asked []admin.Flow
	cfg.Trace = func(f admin.Flow) (admin.Trace, error) {
		asked = append(asked, f)
		return tunnelled(f), nil
	}
	start(t, cfg)
	quic := flow(lb.UDP, "[2001:db8::7]:53", "[2001:db8::10]:443")
	quic.ConnectionID = "\x00\xff"
	for _, f := range []admin.Flow{
		flow(lb.TCP, "198.51.100.7:31337", "203.0.113.10:80"),
		flow(lb.UDP, "[2001:db8::7]:53", "[2001:db8::10]:443"),
		quic,
	} {
		got, err := admin.NewClient(cfg.Socket).Trace(context.Background(), f)
		if err != nil {
			t.Fatal(err)
		}
		gotJSON, _ := json.Marshal(got)
		wantJSON, _ := json.Marshal(tunnelled(f))
		if string(gotJSON) != string(wantJSON) {
			t.Errorf("got\n%s\nwant\n%s", gotJSON, wantJSON)
		}
		if last := asked[len(asked)-1]; last != f {
			t.Errorf("the node was asked for %v, want %v", last, f)
		}
	}
}

// Each trace loads the program: only those who may use the socket may ask.
func TestTracesAreServedOnTheSocketAlone(t *testing.T) {
	cfg := config(t)
	cfg.Trace = func(f admin.Flow) (admin.Trace, error) { return tunnelled(f), nil }
	n := start(t, cfg)
	query := "/api/v1/trace?" + url.Values{"protocol": {"tcp"}, "source": {"192.0.2.7:1"}, "destination": {"203.0.113.10:80"}}.Encode()
	if resp, _ := ask(t, n.socket, "GET", "http://halfproxy"+query); resp.StatusCode != 200 {
		t.Errorf("socket: got %d, want 200", resp.StatusCode)
	}
	if resp, _ := ask(t, http.DefaultClient, "GET", n.url+query); resp.StatusCode != 404 {
		t.Errorf("TCP: got %d, want 404", resp.StatusCode)
	}
	if resp, body := ask(t, n.socket, "GET", "http://halfproxy/api/v1/trace?protocol=tcp"); resp.StatusCode != 400 || !strings.Contains(body, "no address with a port") {
		t.Errorf("without addresses: got %d, %q, want 400 and why", resp.StatusCode, body)
	}
}

func TestATraceThatFailsSaysWhy(t *testing.T) {
	cfg := config(t)
	cfg.Trace = func(admin.Flow) (admin.Trace, error) {
		return admin.Trace{}, errors.New("interface eth0 does not exist")
	}
	start(t, cfg)
	_, err := admin.NewClient(cfg.Socket).Trace(context.Background(), flow(lb.TCP, "192.0.2.7:1", "203.0.113.10:80"))
	if err == nil || err.Error() != "interface eth0 does not exist" {
		t.Errorf("got %v, want the node's words", err)
	}
}

func TestATraceIsReadableAsText(t *testing.T) {
	f := flow(lb.UDP, "198.51.100.7:5353", "203.0.113.53:53")
	nowhere := admin.Trace{
		Protocol: "udp", Source: f.Source, Destination: f.Destination, Verdict: "not_vip",
		Why: "no service has 203.0.113.53 udp/53: the packet passes to the kernel",
	}
	for _, tt := range []struct {
		trace admin.Trace
		want  string
	}{
		{tunnelled(f), `flow           udp 198.51.100.7:5353 > 203.0.113.53:53
verdict        forwarded
why            slot 4711 of service "dns" holds backend "ns1"
service        dns
hash           0x1234567890abcdef of source, destination
slot           4711 of 16381
current        ns1
backend        ns1, 192.0.2.11, weight 100, up
encapsulation  ipip
outer          192.0.2.1 > 192.0.2.11
next hop       02:00:00:00:00:b1
interface      eth0
`},
		{nowhere, `flow           udp 198.51.100.7:5353 > 203.0.113.53:53
verdict        not_vip
why            no service has 203.0.113.53 udp/53: the packet passes to the
               kernel
`},
	} {
		var got strings.Builder
		if err := tt.trace.WriteText(&got, false); err != nil || got.String() != tt.want {
			t.Errorf("got %v\n%s\nwant\n%s", err, got.String(), tt.want)
		}
	}
}
