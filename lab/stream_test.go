package lab

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	pkt "github.com/halfproxy/halfproxy/internal/packet"
)

// stream is a steady flow of packets of many connections from the client through the
// router and the nodes, each with a number, and what of them reached the backends.
type stream struct {
	flows    int
	captures []*Capture
	macs     []net.HardwareAddr // of the backends captured: a switch floods what it has no port for
	stop     chan struct{}
	done     chan error
	sent     []time.Time // by number
}

// A packet's number is in its TCP sequence number; with ACK alone nobody opens or
// resets a connection that matters.
const sequenceAt = 14 + 20 + 4

// startStream sends packets a second of so many flows to the IPv4 VIP.
func startStream(t *testing.T, l *Lab, packets, flows int) *stream {
	t.Helper()
	s := &stream{flows: flows, stop: make(chan struct{}), done: make(chan error, 1)}
	for _, b := range l.Backends() {
		c, err := b.Capture()
		if err != nil {
			t.Fatal(err)
		}
		s.captures, s.macs = append(s.captures, c), append(s.macs, mac(t, b.ns, "eth0"))
	}
	from, to := mac(t, l.clientNS, "eth0").String(), mac(t, l.routerNS, "eth0").String()
	frames := make([][]byte, flows)
	for i := range frames {
		client := netip.AddrPortFrom(clientAddrs.V4, uint16(20000+i))
		frames[i] = pkt.TCP(client.String(), netip.AddrPortFrom(VIPs.V4, servicePort).String(), pkt.From(from), pkt.To(to))
	}
	go func() {
		s.done <- l.clientNS.Do(func() error {
			send, end, err := sender("eth0")
			if err != nil {
				return err
			}
			defer end()
			for begin := time.Now(); ; time.Sleep(time.Millisecond) {
				for due := int(time.Since(begin).Seconds() * float64(packets)); len(s.sent) < due; {
					n := len(s.sent)
					frame := frames[n%flows]
					binary.BigEndian.PutUint32(frame[sequenceAt:], uint32(n))
					s.sent = append(s.sent, time.Now())
					if err := send(frame); err != nil {
						return err
					}
				}
				select {
				case <-s.stop:
					time.Sleep(200 * time.Millisecond) // the last ones arrive
					return nil
				default:
				}
			}
		})
	}()
	return s
}

// result is what became of a stream.
type result struct {
	sent, lost int
	gap        time.Duration // the longest that a flow's packets were lost for
}

func (r result) String() string {
	return fmt.Sprintf("%d of %d packets lost, longest gap %v", r.lost, r.sent, r.gap.Round(time.Millisecond))
}

func (s *stream) end(t *testing.T) result {
	t.Helper()
	close(s.stop)
	if err := <-s.done; err != nil {
		t.Fatal(err)
	}
	came := make([]bool, len(s.sent))
	for i, c := range s.captures {
		frames, err := c.Stop()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range frames {
			if _, ok := f.clientPort(); ok && f.Out && bytes.Equal(f.Data[:6], s.macs[i]) && binary.BigEndian.Uint16(f.Data[12:]) == unix.ETH_P_IP {
				if n := int(binary.BigEndian.Uint32(f.Data[sequenceAt:])); n < len(came) {
					came[n] = true
				}
			}
		}
	}
	r := result{sent: len(came)}
	last := make([]int, s.flows) // number of each flow's last packet that came
	for i := range last {
		last[i] = i - s.flows
	}
	for n, there := range came {
		flow := n % s.flows
		if !there {
			r.lost++
			continue
		}
		if before := last[flow]; before >= 0 && n-before > s.flows {
			r.gap = max(r.gap, s.sent[n].Sub(s.sent[before]))
		}
		last[flow] = n
	}
	return r
}
