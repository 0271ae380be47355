package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/lb"
)

// backendsVariable has this test's binary be the backends of BenchmarkChecks.
const backendsVariable = "HALFPROXY_TEST_BACKENDS"

func TestMain(m *testing.M) {
	if os.Getenv(backendsVariable) != "" {
		backends()
		return
	}
	os.Exit(m.Run())
}

// BenchmarkChecks checks backends on this machine once a second each, over real
// sockets. cpu-% is the share of one core that it takes, what the kernel does for
// the backends' half of the loopback included, but not their process; late-ms is how
// long after its time a probe started, the 99th of a hundred and the last of all;
// wrong-% is the share of backends whose last probe came out otherwise than they are.
func BenchmarkChecks(b *testing.B) {
	for _, tt := range []struct {
		name   string
		check  lb.Check
		rate   int
		silent int // backends in ten that never answer
	}{
		{"1,000 tcp a second", lb.Check{Type: lb.CheckTCP}, 1000, 0},
		{"1,000 http a second", get(lb.Check{}), 1000, 0},
		{"10,000 tcp a second", lb.Check{Type: lb.CheckTCP}, 10_000, 0},
		{"10,000 http a second", get(lb.Check{}), 10_000, 0},
		{"10,000 http a second, 1 of 10 silent", get(lb.Check{}), 10_000, 1},
	} {
		b.Run(tt.name, func(b *testing.B) {
			answering, mute := startBackends(b)
			for b.Loop() {
				measureChecks(b, tt.check, tt.rate, tt.silent, answering, mute)
			}
		})
	}
}

func measureChecks(b *testing.B, check lb.Check, rate, silent int, answering, mute uint16) {
	check.Interval, check.Timeout, check.Rise, check.Fall = time.Second, 500*time.Millisecond, 2, 3
	c := New(Config{})
	late := &lateness{Histogram: c.metrics.delay}
	c.metrics.delay = late
	var targets []lb.Target
	for i := range rate {
		check.Port = answering
		if i%10 < silent {
			check.Port = mute
		}
		address := netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)})
		targets = append(targets, lb.Target{Service: "web", Backend: fmt.Sprint("web", i), Address: address, Check: check})
	}
	c.SetTargets(targets)
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()

	// The first probes are within a second, by intent.
	time.Sleep(3 * time.Second)
	const quiet = 10 * time.Second
	late.take()
	cpu, began := cpuTime(), time.Now()
	time.Sleep(quiet)
	used, took := cpuTime()-cpu, time.Since(began)
	started := late.take()

	wrong := 0
	for _, r := range c.Results() {
		if (r.LastError == "") != (r.Target.Check.Port == answering) {
			wrong++
		}
	}
	cancel()
	if err := <-done; err != nil {
		b.Error(err)
	}
	if len(started) == 0 {
		b.Fatal("no probe started")
	}
	slices.Sort(started)
	b.ReportMetric(float64(len(started))/took.Seconds(), "probes/s")
	b.ReportMetric(100*float64(used)/float64(took), "cpu-%")
	b.ReportMetric(1000*started[len(started)*99/100], "late-p99-ms")
	b.ReportMetric(1000*started[len(started)-1], "late-max-ms")
	b.ReportMetric(100*float64(wrong)/float64(rate), "wrong-%")
	b.ReportMetric(0, "ns/op")
}

// lateness keeps what the histogram is told.
type lateness struct {
	prometheus.Histogram
	mu   sync.Mutex
	seen []float64
}

func (l *lateness) Observe(seconds float64) {
	l.Histogram.Observe(seconds)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen = append(l.seen, seconds)
}

func (l *lateness) take() []float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	seen := l.seen
	l.seen = nil
	return seen
}

// startBackends gives the ports of a process that serves every address of this host:
// one that answers and one that says nothing.
func startBackends(b *testing.B) (answering, mute uint16) {
	b.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), backendsVariable+"=1")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe() // whose end is theirs
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		stdin.Close()
		cmd.Wait()
	})
	if _, err := fmt.Fscan(stdout, &answering, &mute); err != nil {
		b.Fatalf("ports of the backends: %v", err)
	}
	return answering, mute
}

// backends serve until standard input ends.
func backends() {
	const page = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
	// A connection that asks nothing stays in the kernel, and costs this process nothing.
	listen := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var refused error
		err := c.Control(func(fd uintptr) {
			refused = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 1)
		})
		return errors.Join(err, refused)
	}}
	var ports []int
	for _, says := range []string{page, ""} {
		l, err := listen.Listen(context.Background(), "tcp4", ":0")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					continue
				}
				go func() {
					defer conn.Close()
					buffer := make([]byte, 1<<10)
					for {
						if _, err := conn.Read(buffer); err != nil {
							return
						}
						if says != "" {
							io.WriteString(conn, says)
							return
						}
					}
				}()
			}
		}()
	}
	fmt.Println(ports[0], ports[1])
	io.Copy(io.Discard, os.Stdin)
}

func cpuTime() time.Duration {
	var usage unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
