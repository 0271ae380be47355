package cluster

import (
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

// BenchmarkMembers runs clusters in this process, each member with 1,000 backends
// under observation. bytes/s is what a member sends while nothing happens, cpu-% the
// share of one core that it takes, news-ms how long it takes until a change of one
// backend has reached every member (median and greatest of 50), silent-ms and dead-ms
// how long until every other knows of one that died without a word.
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
			m.waitConfig(time.Minute, fmt.Sprintf("lb%d", i+1), report.Config)
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

	last := len(members) - 1
	died := time.Now()
	members[last].kill()
	for _, end := range []struct {
		metric string
		states []string
	}{{"silent-ms", []string{Silent, Dead}}, {"dead-ms", []string{Dead}}} {
		for _, m := range members[:last] {
			m.wait(30*time.Second, end.metric, func() bool { return slices.Contains(end.states, m.state(members[last].cfg.Name)) })
		}
		b.ReportMetric(float64(time.Since(died).Milliseconds()), end.metric)
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkFalseAlarms runs five members on a machine whose every core is kept busy by
// two other threads, one second an operation: -benchtime 600x is ten minutes. alarms
// is how often one was taken for silent or dead that was neither.
func BenchmarkFalseAlarms(b *testing.B) {
	members := launchAll(b, 5)
	for _, m := range members {
		m.Publish(sample(1000))
	}
	ctx, cancel := context.WithCancel(b.Context())
	var burning sync.WaitGroup
	for range 2 * runtime.NumCPU() {
		burner := exec.CommandContext(ctx, "sh", "-c", "while :; do :; done")
		if err := burner.Start(); err != nil {
			b.Fatal(err)
		}
		burning.Go(func() { _ = burner.Wait() })
	}
	for b.Loop() {
		time.Sleep(time.Second)
	}
	cancel()
	burning.Wait()
	alarms := 0
	for _, m := range members {
		log := m.log.String()
		alarms += strings.Count(log, "state=silent") + strings.Count(log, "state=dead")
	}
	b.ReportMetric(float64(alarms), "alarms")
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

// BenchmarkFlows has a member of three tell the others of 50,000 records of flows a second.
// cpu-% is the share of one core that all three take, taken-% how many of them arrived.
func BenchmarkFlows(b *testing.B) {
	const rate, seconds, every = 50_000, 5, 10 * time.Millisecond
	for b.Loop() {
		members, stores := launchWithFlows(b, 0, 0, 0)
		before, begin := cpuTime(), time.Now()
		told := 0
		for ; told < rate*seconds; time.Sleep(every) {
			due := min(int(time.Since(begin).Seconds()*rate), rate*seconds)
			members[0].ShareFlows(someFlows(told, due-told))
			told = due
		}
		for end := time.Now().Add(5 * time.Second); stores[1].count()+stores[2].count() < 2*told && time.Now().Before(end); {
			time.Sleep(every)
		}
		took := time.Since(begin)
		b.ReportMetric(float64(told)/took.Seconds(), "records/s")
		b.ReportMetric(100*float64(cpuTime()-before)/float64(took), "cpu-%")
		b.ReportMetric(100*float64(stores[1].count()+stores[2].count())/float64(2*told), "taken-%")
		for _, m := range members {
			m.kill()
		}
	}
}

// BenchmarkFlow is how long a record takes to be with the two other members.
func BenchmarkFlow(b *testing.B) {
	members, stores := launchWithFlows(b, 0, 0, 0)
	var took []time.Duration
	for b.Loop() {
		n := len(took)
		begin := time.Now()
		members[0].ShareFlows(someFlows(n, 1))
		for stores[1].count() <= n || stores[2].count() <= n {
			time.Sleep(10 * time.Microsecond)
		}
		took = append(took, time.Since(begin))
		time.Sleep(5 * time.Millisecond)
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-median")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs-99%")
	b.ReportMetric(0, "ns/op")
	for _, m := range members {
		m.kill()
	}
}

// BenchmarkStep is what a change of one backend costs where ten services of 100 backends
// have come by 100 steps each: to publish it and say what it differs in, and to make it
// part of what is held. bytes is what is told.
func BenchmarkStep(b *testing.B) {
	report := func(steps int) lb.Report {
		r := sample(1000)
		r.Steps = make(map[string]lb.History)
		for i := range 10 {
			r.Steps[fmt.Sprint("s", i)] = eventful(100, 100).Steps["web"]
		}
		r.Steps["s0"] = eventful(100, steps).Steps["web"]
		r.Config = lb.Digest(steps)
		return r
	}
	from, to := report(100), report(101)
	for service, h := range from.Steps {
		copy(to.Steps[service].Steps, h.Steps) // control tells the sets that it told before
	}
	b.Run("tell", func(b *testing.B) {
		members := [2]lb.Report{from, to}
		m := launch(b, configOf("lb1", loopback()))
		for n := 0; b.Loop(); n++ {
			m.Publish(members[n%2])
			if _, ok := diff(members[n%2], members[(n+1)%2]); !ok {
				b.Fatal("no change tells the difference")
			}
		}
		b.ReportAllocs()
	})
	b.Run("take", func(b *testing.B) {
		r := testRoster()
		r.join(node("lb2"), after(0))
		r.take(mustRecord(b, "lb2", version{3, 4}, from), true, after(0), after(0))
		c := changeOf(b, from, to)
		c.member = "lb2"
		message := c.encode()
		for b.Loop() {
			m, why := decode(message)
			if why != "" {
				b.Fatal(why)
			}
			if rec, why := r.amend(m.(change)); rec == nil {
				b.Fatal("not taken: ", why)
			}
		}
		b.ReportAllocs()
		b.ReportMetric(float64(len(message)), "bytes")
	})
}
