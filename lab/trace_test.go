package lab

import (
	"encoding/binary"
	"encoding/json"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/admin"
	pkt "github.com/halfproxy/halfproxy/internal/packet"
)

// traceCommand runs `halfproxy trace` as an operator does.
func traceCommand(t *testing.T, n *Node, args ...string) (admin.Trace, string, int) {
	t.Helper()
	cmd := exec.Command(built, append([]string{"trace", "--json", "--socket", n.Socket}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	var trace admin.Trace
	if len(out) > 0 {
		if err := json.Unmarshal(out, &trace); err != nil {
			t.Fatalf("trace %v printed %q: %v", args, out, err)
		}
	}
	return trace, stderr.String(), cmd.ProcessState.ExitCode()
}

// A trace is believed when the flow's packets, sent through the node, arrive at
// the backend that it named, sent on as it said.
func TestTheBackendThatATraceNamesIsTheOneThatGetsThePackets(t *testing.T) {
	t.Parallel()
	for _, forward := range Forwards {
		t.Run(forward.String(), func(t *testing.T) {
			const flows = 16
			l := start(t, Options{Nodes: 1, Forward: forward})
			n := l.Nodes()[0]
			gateway := mac(t, l.routerNS, "eth1")
			named := make(map[netip.AddrPort]admin.Trace) // by the client's end
			var frames [][]byte
			for i := range flows {
				client, vip := netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), VIPs.V4
				if i%2 == 1 {
					client, vip = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0xff, 15: byte(i)}), VIPs.V6
				}
				from, to := netip.AddrPortFrom(client, uint16(1024+i)), netip.AddrPortFrom(vip, servicePort)
				trace, stderr, code := traceCommand(t, n, "tcp", from.String(), to.String())
				if code != 0 || !trace.Forwarded || trace.Backend == nil || trace.Egress == nil || trace.Table == nil {
					t.Fatalf("trace of %s > %s: got code %d, %+v, %s, want it forwarded", from, to, code, trace, stderr)
				}
				if trace.Backend.State != "up" || trace.Backend.Weight != 100 || trace.Table.Current != trace.Backend.Name || trace.Egress.Interface != "eth0" {
					t.Errorf("trace of %s > %s: got %+v, %+v, %+v, want a backend that is up, by eth0", from, to, trace.Backend, trace.Table, trace.Egress)
				}
				named[from] = trace
				frames = append(frames, pkt.TCP(from.String(), to.String(),
					pkt.From(gateway.String()), pkt.To(mac(t, n.ns, "eth0").String())))
			}

			capture, err := n.Capture()
			if err != nil {
				t.Fatal(err)
			}
			inject(t, l, frames)
			captured, err := capture.Stop()
			if err != nil {
				t.Fatal(err)
			}
			arrived := 0
			for _, f := range captured {
				p := decode(f)
				if p.out != in || p.inner == nil || p.inner.to != VIPs.V4 && p.inner.to != VIPs.V6 {
					continue
				}
				trace, traced := named[netip.AddrPortFrom(p.inner.from, binary.BigEndian.Uint16(p.transport))]
				if !traced {
					continue
				}
				arrived++
				b := slices.IndexFunc(l.Backends(), func(b *Backend) bool { return b.Name == trace.Backend.Name })
				wantMAC(t, "destination", p.eth.DstMAC, mac(t, l.Backends()[b].ns, "eth0"))
				if got := p.eth.DstMAC.String(); got != trace.Egress.NextHop {
					t.Errorf("%s: got next hop %s, the trace said %s", trace.Source, got, trace.Egress.NextHop)
				}
				outer := ""
				if p.outer != nil {
					outer = p.outer.to.String()
				}
				said := trace.Egress.OuterDestination
				if end, err := netip.ParseAddrPort(said); err == nil { // of gue
					said = end.Addr().String()
				}
				if outer != said {
					t.Errorf("%s: got outer destination %q, the trace said %q", trace.Source, outer, said)
				}
			}
			if arrived != flows {
				t.Errorf("%d of %d traced flows were seen to leave the node", arrived, flows)
			}
		})
	}
}

func TestATraceOfAFlowThatIsNotForwardedSaysNoAndWhy(t *testing.T) {
	t.Parallel()
	l := start(t, Options{Nodes: 1, Backends: 1})
	n := l.Nodes()[0]
	vip := VIPs.V4.String()
	trace, stderr, code := traceCommand(t, n, "tcp", "198.51.100.7:1", vip+":81")
	const want = "no service has 10.2.0.1 tcp/81: the packet passes to the kernel; it has tcp/80 (web)"
	if code != 1 || trace.Verdict != "not_vip" || !strings.Contains(stderr, want) {
		t.Errorf("wrong port: got code %d, %s, %q, want 1, not_vip and %q", code, trace.Verdict, stderr, want)
	}

	l.Backends()[0].Kill()
	for end := time.Now().Add(5 * l.DetectTime()); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if trace, stderr, code = traceCommand(t, n, "tcp", "198.51.100.7:1", vip+":80"); code != 0 {
			break
		}
	}
	const none = `service "web" has no backend that can be used: the packet is dropped`
	if code != 1 || trace.Verdict != "no_backend" || !strings.Contains(stderr, none) {
		t.Errorf("no backend: got code %d, %s, %q, want 1, no_backend and %q", code, trace.Verdict, stderr, none)
	}
}
