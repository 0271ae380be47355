package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket/pcapgo"

	pkt "github.com/halfproxy/halfproxy/internal/packet"
)

// A captureCommand is `halfproxy capture` as an operator runs it.
type captureCommand struct {
	*exec.Cmd
	file   string
	stderr strings.Builder
}

// startCapture returns when the capture has begun.
func startCapture(t *testing.T, n *Node, args ...string) *captureCommand {
	t.Helper()
	c := &captureCommand{file: filepath.Join(t.TempDir(), "capture.pcapng")}
	c.Cmd = exec.Command(built, append([]string{"capture", "--socket", n.Socket, "-w", c.file}, args...)...)
	c.Stderr = &c.stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if about, err := os.Stat(c.file); err == nil && about.Size() > 0 {
			break
		}
		if time.Now().After(end) {
			c.Process.Kill()
			c.Wait()
			t.Fatalf("the capture has not begun: %s", c.stderr.String())
		}
	}
	time.Sleep(200 * time.Millisecond) // the first frames are granted
	return c
}

// end interrupts the capture, and wants it to end well and say so.
func (c *captureCommand) end(t *testing.T) {
	t.Helper()
	if err := errors.Join(c.Process.Signal(os.Interrupt), c.Wait()); err != nil {
		t.Errorf("capture: %v: %s", err, c.stderr.String())
	}
	if !strings.HasSuffix(c.stderr.String(), " frames captured, 0 lost\n") {
		t.Errorf("capture said %q, want how many frames there are, and none lost", c.stderr.String())
	}
}

// captured is a frame of the file.
type captured struct {
	out     bool
	by      string // interface
	comment string
	action  byte
	data    []byte
}

func (c *captureCommand) frames(t *testing.T) (frames []captured) {
	t.Helper()
	f, err := os.Open(c.file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	for {
		data, about, options, err := r.ReadPacketDataWithOptions()
		if errors.Is(err, io.EOF) {
			return frames
		}
		if err != nil {
			t.Fatal(err)
		}
		by, err := r.Interface(about.InterfaceIndex)
		if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, captured{
			options.Flags.Direction == pcapgo.NgEpbFlagDirectionOutbound, by.Name, strings.Join(options.Comments, "|"), options.Verdicts[0].Data[0], bytes.Clone(data),
		})
	}
}

// ended waits until the node says that so many captures have.
func ended(t *testing.T, n *Node, captures int) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		log, err := os.ReadFile(n.log)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Count(string(log), "capture ends") == captures {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the node's log does not tell of %d captures that ended", captures)
		}
	}
}

// What a capture has is held against what the switch has, byte for byte: the
// frames that went to the node, and those that came from it.
func TestACaptureHasWhatGoesThroughTheNode(t *testing.T) {
	t.Parallel()
	for _, forward := range Forwards {
		t.Run(forward.String(), func(t *testing.T) {
			l := start(t, Options{Nodes: 1, Forward: forward})
			n := l.Nodes()[0]
			wire, err := n.Capture()
			if err != nil {
				t.Fatal(err)
			}
			c := startCapture(t, n, "--direction", "both", "--verdict", "forwarded", "--port", "80")
			client := l.Client()
			client.Timeout = requestTimeout
			answered := make(map[string]bool) // backends
			for i := range 6 {
				r := get(t.Context(), client, URL(VIPs.All()[i%2], "/"))
				if r.err != nil {
					t.Fatal(r.err)
				}
				answered[r.backend] = true
			}
			time.Sleep(100 * time.Millisecond)
			c.end(t)
			seen, err := wire.Stop()
			if err != nil {
				t.Fatal(err)
			}

			got, want := make(map[bool][][]byte), make(map[bool][][]byte) // by whether they leave the node
			named := make(map[string]bool)
			for _, f := range c.frames(t) {
				got[f.out] = append(got[f.out], f.data)
				words := strings.Fields(f.comment)
				if len(words) != 3 || words[0] != "verdict=forwarded" || !strings.HasPrefix(words[1], "service=web") || f.by != "eth0" || f.action != 3 {
					t.Fatalf("got a frame by %s, action %d: %q, want it forwarded for web by eth0", f.by, f.action, f.comment)
				}
				named[strings.TrimPrefix(words[2], "backend=")] = true
				if f.out {
					backend := l.Backends()[0]
					for _, b := range l.Backends() {
						if "backend="+b.Name == words[2] {
							backend = b
						}
					}
					if to := mac(t, backend.ns, "eth0"); !bytes.Equal(f.data[:6], to) {
						t.Errorf("a frame for %s went to %x, want %s", words[2], f.data[:6], to)
					}
				}
			}
			for _, f := range seen {
				p := decode(f)
				if p.inner == nil || p.inner.to != VIPs.V4 && p.inner.to != VIPs.V6 || len(p.transport) < 20 || p.transport[2] != 0 || p.transport[3] != servicePort ||
					slices.Contains(n.All(), p.inner.from) {
					continue // but for its own probes
				}
				want[!f.Out] = append(want[!f.Out], f.Data)
			}
			for _, out := range []bool{false, true} {
				if len(got[out]) == 0 || fmt.Sprintf("%x", got[out]) != fmt.Sprintf("%x", want[out]) {
					t.Errorf("frames that leave: %t: got %d, want the %d that the switch had", out, len(got[out]), len(want[out]))
				}
			}
			if fmt.Sprint(named) != fmt.Sprint(answered) {
				t.Errorf("frames for %v, but %v answered", named, answered)
			}
		})
	}
}

func TestACaptureOfDropsAndOfWhatPasses(t *testing.T) {
	t.Parallel()
	l := start(t, Options{Nodes: 1, Backends: 1})
	n := l.Nodes()[0]
	client := l.Client()
	client.Timeout = time.Second
	get := func(port int) {
		get(context.Background(), client, fmt.Sprintf("http://%s:%d/", VIPs.V4, port))
	}

	c := startCapture(t, n, "--verdict", "not_vip", "--port", "81", "--count", "1")
	get(81)
	if err := c.Wait(); err != nil || c.stderr.String() != "1 frames captured, 0 lost\n" {
		t.Errorf("got %v, %q, want one frame", err, c.stderr.String())
	}
	if f := c.frames(t); len(f) != 1 || f[0].comment != "verdict=not_vip" || f[0].action != 2 || f[0].out {
		t.Errorf("got %+v, want the packet for port 81, passed", f)
	}

	// Without a backend the routes are withdrawn: the packet comes past the router.
	l.Backends()[0].Kill()
	vip := netip.AddrPortFrom(VIPs.V4, servicePort).String()
	for end := time.Now().Add(5 * l.DetectTime()); ; time.Sleep(50 * time.Millisecond) {
		if trace, _, _ := traceCommand(t, n, "tcp", "198.51.100.7:1", vip); trace.Verdict == "no_backend" {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the backend is not held down")
		}
	}
	c = startCapture(t, n, "--dropped", "--count", "1", "--duration", "10s")
	inject(t, l, [][]byte{pkt.TCP("198.51.100.7:1", vip, pkt.From(mac(t, l.routerNS, "eth1").String()), pkt.To(mac(t, n.ns, "eth0").String()))})
	if err := c.Wait(); err != nil {
		t.Errorf("capture: %v: %s", err, c.stderr.String())
	}
	if f := c.frames(t); len(f) != 1 || f[0].comment != "verdict=no_backend service=web" || f[0].action != 1 {
		t.Errorf("got %+v, want a packet that was dropped for want of a backend", f)
	}
}

func TestACaptureEndsWithItsCommandAndThereIsOneAtATime(t *testing.T) {
	t.Parallel()
	l := start(t, Options{Nodes: 1})
	n := l.Nodes()[0]
	c := startCapture(t, n)
	second := exec.Command(built, "capture", "--socket", n.Socket, "-w", filepath.Join(t.TempDir(), "second"))
	out, err := second.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another one runs since") {
		t.Errorf("a second capture: got %v, %q, want it refused", err, out)
	}
	if _, err := os.Stat(second.Args[len(second.Args)-1]); err == nil {
		t.Error("a capture that was refused has made its file")
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	c.Wait()
	ended(t, n, 1)

	c = startCapture(t, n, "--duration", "300ms")
	if err := c.Wait(); err != nil {
		t.Errorf("capture: %v: %s", err, c.stderr.String())
	}
	ended(t, n, 2)

	// A node that stops does not wait for it.
	c = startCapture(t, n)
	if err := n.Terminate(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := n.Wait(ctx); err != nil {
		t.Error(err)
	}
	if err := c.Wait(); err != nil {
		t.Errorf("a capture on a node that stops: %v: %s", err, c.stderr.String())
	}
}
