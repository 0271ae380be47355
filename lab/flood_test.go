package lab

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// inAFlood has two things happen while SYNs come that nobody answers.
func (c *churn) inAFlood() {
	t, begin, before := c.t, time.Now(), c.numbers()
	var memory, refused []int
	for _, n := range c.Nodes() {
		memory, refused = append(memory, resident(t, n)), append(refused, metric(t, n, `halfproxy_tracked_packets_total{by="refused"}`))
	}
	const rate = 1 << 30 // more than any machine makes
	end, err := c.startFlood(rate)
	must(t, err)
	stop := sync.OnceValues(end)
	defer stop() // where what follows fails
	c.breaksNone("in a flood a backend is drained", func() { c.order("drain", "backend", "b1"); c.see(c.Backends()[0], "draining") })
	c.breaksNone("in a flood it comes back", func() { c.order("drain", "backend", "b1", "--undo"); c.see(c.Backends()[0], "up") })
	for i, n := range c.Nodes() {
		held, room := metric(t, n, "halfproxy_flow_records"), metric(t, n, "halfproxy_flow_records_max")
		refused[i], memory[i] = metric(t, n, `halfproxy_tracked_packets_total{by="refused"}`)-refused[i], resident(t, n)-memory[i]
		t.Logf("%s: %d records, of %d that there is room for; %d SYNs got none; %d KiB of memory more", n.Name, held, room, refused[i], memory[i])
		if held > room*3/4 {
			t.Errorf("%s holds %d records of %d, want some half of them at most", n.Name, held, room)
		}
		if refused[i] == 0 {
			t.Errorf("%s made a record for every SYN: that was no flood", n.Name)
		}
		if memory[i] > 32<<10 {
			t.Errorf("%s takes %d KiB more than before, want it as it was", n.Name, memory[i])
		}
	}
	sent, err := stop()
	must(t, err)
	took := time.Since(begin)
	opened, failed := c.numbers().opened-before.opened, c.failed(begin)
	t.Logf("%.0f SYNs a second for %v; meanwhile %d connections were opened, and %d could not be", float64(sent)/took.Seconds(), took.Round(time.Second), opened, len(failed))
	if opened < 50 || len(failed) > 0 {
		t.Errorf("%d connections were opened, want many; %d could not be, want none: %v", opened, len(failed), failed)
	}
}

// metric is one of a node's, with its labels as they are printed.
func metric(t *testing.T, n *Node, name string) int {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DialContext: n.ns.DialContext, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Get("http://" + httpListen + "/metrics")
	must(t, err)
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		var value float64
		if text, is := strings.CutPrefix(lines.Text(), name+" "); is {
			if _, err := fmt.Sscan(text, &value); err != nil {
				t.Fatalf("%s: %q: %v", name, text, err)
			}
			return int(value)
		}
	}
	t.Fatalf("%s has no metric %s", n.Name, name)
	return 0
}

// resident is a node's memory in KiB.
func resident(t *testing.T, n *Node) (kib int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.process.cmd.Process.Pid))
	must(t, err)
	for line := range strings.Lines(string(status)) {
		if _, err := fmt.Sscanf(line, "VmRSS: %d", &kib); err == nil {
			return kib
		}
	}
	t.Fatalf("%s: no VmRSS in %s", n.Name, status)
	return 0
}
