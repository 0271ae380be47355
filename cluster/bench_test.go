package cluster

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

// BenchmarkMembers runs clusters in this process, each member with 1,000 backends
// under observation. bytes/s is what a member sends while nothing happens, cpu-% the
// share of one core that it takes, news-ms how long it takes until a change of one
// backend has reached every member (median and greatest of 50).
func BenchmarkMembers(b *testing.B) {
	for _, n := range []int{3, 10, 50} {
		b.Run(fmt.Sprintf("%d members", n), func(b *testing.B) {
			for b.Loop() {
				measureMembers(b, n)
			}
		})
	}
}

func measureMembers(b *testing.B, n int) {
	members := launchAll(b, n)
	defer func() {
		for _, m := range members {
			m.kill()
		}
	}()
	report := sample(1000)
	for _, m := range members {
		m.Publish(report)
	}
	for _, m := range members {
		for i := range members {
			m.waitConfig(10*time.Second, fmt.Sprintf("lb%d", i+1), report.Config)
		}
	}
	const quiet = 10 * time.Second
	before, cpu := sentBy(members), cpuTime()
	time.Sleep(quiet)
	b.ReportMetric(float64(sentBy(members)-before)/quiet.Seconds()/float64(n), "bytes/s")
	b.ReportMetric(100*float64(cpuTime()-cpu)/float64(quiet)/float64(n), "cpu-%")

	var took []time.Duration
	for round := range 50 {
		from := members[round%n]
		changed := report
		changed.Config = lb.Digest(round + 1)
		changed.Observations = slices.Clone(report.Observations)
		changed.Observations[round].State = lb.Up
		begin := time.Now()
		from.Publish(changed)
		for _, m := range members {
			for m.config(from.cfg.Name) != changed.Config {
				<-m.Changes()
			}
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[25].Microseconds())/1000, "news-ms")
	b.ReportMetric(float64(took[49].Microseconds())/1000, "news-max-ms")
	b.ReportMetric(0, "ns/op")
}

func sentBy(members []*member) int64 {
	var sum int64
	for _, m := range members {
		sum += m.faults.sent.Load()
	}
	return sum
}

func cpuTime() time.Duration {
	var use syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &use) != nil {
		return 0
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}
