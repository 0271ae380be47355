package bfd

import (
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/internal/netns"
)

var alarmFor = flag.Duration("for", 10*time.Minute, "how long BenchmarkFalseAlarms looks on")

// BenchmarkFalseAlarms counts sessions that go down though nothing is wrong: 16 of
// them, kept by processes as nodes have them, at both ends.
//
//	go test ./bfd -run '^$' -bench FalseAlarms -benchtime 1x -timeout 1h
//
// docs/failover.md has what came out.
func BenchmarkFalseAlarms(b *testing.B) {
	program := filepath.Join(b.TempDir(), "halfproxy")
	build := exec.Command("go", "build", "-o", program, "../cmd/halfproxy")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	for _, bb := range []struct {
		name     string
		interval time.Duration
		busy     bool // a loop for each CPU, with the priority of any process
	}{
		{"100ms_busy", 100 * ms, true},
		{"50ms", 50 * ms, false},
	} {
		b.Run(bb.name, func(b *testing.B) {
			for b.Loop() {
				falseAlarms(b, program, bb.interval, bb.busy)
			}
		})
	}
}

func falseAlarms(b *testing.B, program string, interval time.Duration, busy bool) {
	const peers = 16
	near, far := hosts(b)
	var ofNear, ofFar []Peer
	for i := range peers {
		address := netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i)})
		must(b, far.Address("eth0", address.String()+"/24"))
		ofNear = append(ofNear, Peer{Address: address, Local: a4, Timing: Timing{interval, 3}})
		ofFar = append(ofFar, Peer{Address: a4, Local: address, Timing: Timing{interval, 3}})
	}
	ends := []*Client{keep(b, near, program, ofNear), keep(b, far, program, ofFar)}
	for deadline := time.Now().Add(20 * time.Second); up(ends) < 2*peers; time.Sleep(10 * ms) {
		if time.Now().After(deadline) {
			b.Fatalf("%d of %d ends of sessions are up", up(ends), 2*peers)
		}
	}
	if busy {
		for range runtime.NumCPU() {
			loop := exec.Command("/bin/sh", "-c", "while :; do :; done")
			must(b, loop.Start())
			b.Cleanup(func() { _ = loop.Process.Kill(); _ = loop.Wait() })
		}
	}
	idle, all := ticks(b)
	time.Sleep(*alarmFor)
	idleNow, allNow := ticks(b)

	alarms, packets := uint64(0), uint64(0)
	for _, end := range ends {
		list, err := end.Statuses()
		must(b, err)
		for _, s := range list {
			alarms += s.Ups - 1
			packets += s.Received
			if s.State != Up || s.Detection != 3*interval {
				b.Errorf("at the end: got %+v, want it up with a detection time of %v", s, 3*interval)
			}
		}
	}
	b.ReportMetric(float64(alarms), "alarms")
	b.ReportMetric(float64(packets), "packets")
	b.ReportMetric(float64(100*(idleNow-idle))/float64(allNow-all), "%idle")
	if alarms > 0 {
		b.Errorf("%d false alarms", alarms)
	}
}

// keep has a process in ns keep sessions with peers.
func keep(b *testing.B, ns *netns.NS, program string, peers []Peer) *Client {
	socket := filepath.Join(b.TempDir(), "bfd.sock")
	spawn := func() error {
		cmd := exec.Command(program, "bfd", "--socket", socket, "--log-level", "warn")
		cmd.Stderr = b.Output()
		if err := ns.Start(cmd); err != nil {
			return err
		}
		go func() { _ = cmd.Wait() }()
		return nil
	}
	c := NewClient(socket, spawn, slog.New(slog.DiscardHandler))
	must(b, c.SetPeers(peers))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := c.Run(b.Context()); err != nil {
			b.Error(err)
		}
	}()
	b.Cleanup(func() {
		<-done
		if err := Bye(socket); err != nil {
			b.Error(err)
		}
	})
	return c
}

// up counts the ends of sessions that are.
func up(ends []*Client) (n int) {
	for _, end := range ends {
		list, _ := end.Statuses()
		for _, s := range list {
			if s.State == Up && s.Ups == 1 {
				n++
			}
		}
	}
	return n
}

// ticks are the CPUs' idle and all others.
func ticks(b *testing.B) (idle, all int) {
	stat, err := os.ReadFile("/proc/stat")
	must(b, err)
	line, _, _ := strings.Cut(string(stat), "\n")
	var user, nice, system, waiting int
	if _, err := fmt.Sscanf(line, "cpu %d %d %d %d %d", &user, &nice, &system, &idle, &waiting); err != nil {
		b.Fatal(err)
	}
	return idle + waiting, user + nice + system + idle + waiting
}
