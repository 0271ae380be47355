package xdp

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/halfproxy/halfproxy/internal/packet"
	"github.com/halfproxy/halfproxy/lb"
)

func TestMetrics(t *testing.T) {
	needRoot(t)
	registry := prometheus.NewPedanticRegistry()
	d, err := New(Config{Registerer: registry})
	must(t, err)
	setWays(d, "203.0.113.1", "203.0.113.2")
	web := table("web", lb.L2, 13, []string{vip4}, "203.0.113.1", "203.0.113.2")
	for i := range web.Slots {
		web.Slots[i] = 1
	}
	apply(t, d, web)
	for range 3 {
		process(t, d, packet.UDP(client4, vip4), Forwarded)
	}
	process(t, d, packet.UDP(client4, vip4, packet.TTL(1)), TTLExpired)
	process(t, d, packet.TCP(client4, vip4, packet.SYN), Forwarded)

	want := `
# HELP halfproxy_backend_bytes_total Bytes forwarded to a backend, in frames as they came in.
# TYPE halfproxy_backend_bytes_total counter
halfproxy_backend_bytes_total{backend="203.0.113.1",service="web"} 0
halfproxy_backend_bytes_total{backend="203.0.113.2",service="web"} 196
# HELP halfproxy_backend_flows_total New flows of TCP and SCTP forwarded to a backend.
# TYPE halfproxy_backend_flows_total counter
halfproxy_backend_flows_total{backend="203.0.113.1",service="web"} 0
halfproxy_backend_flows_total{backend="203.0.113.2",service="web"} 1
# HELP halfproxy_backend_packets_total Packets forwarded to a backend.
# TYPE halfproxy_backend_packets_total counter
halfproxy_backend_packets_total{backend="203.0.113.1",service="web"} 0
halfproxy_backend_packets_total{backend="203.0.113.2",service="web"} 4
# HELP halfproxy_packets_total Packets that the program saw, by how they ended.
# TYPE halfproxy_packets_total counter
halfproxy_packets_total{verdict="answered_echo"} 0
halfproxy_packets_total{verdict="answered_too_big"} 0
halfproxy_packets_total{verdict="denied"} 0
halfproxy_packets_total{verdict="echo_limited"} 0
halfproxy_packets_total{verdict="forwarded"} 4
halfproxy_packets_total{verdict="fragment"} 0
halfproxy_packets_total{verdict="icmp_fragment"} 0
halfproxy_packets_total{verdict="icmp_limited"} 0
halfproxy_packets_total{verdict="icmp_mismatch"} 0
halfproxy_packets_total{verdict="ipv6_extension"} 0
halfproxy_packets_total{verdict="limited"} 0
halfproxy_packets_total{verdict="malformed"} 0
halfproxy_packets_total{verdict="no_backend"} 0
halfproxy_packets_total{verdict="no_neighbour"} 0
halfproxy_packets_total{verdict="no_room"} 0
halfproxy_packets_total{verdict="not_ip"} 0
halfproxy_packets_total{verdict="not_vip"} 0
halfproxy_packets_total{verdict="other_mac"} 0
halfproxy_packets_total{verdict="other_protocol"} 0
halfproxy_packets_total{verdict="too_big"} 0
halfproxy_packets_total{verdict="ttl_expired"} 1
halfproxy_packets_total{verdict="vlan"} 0
# HELP halfproxy_service_bytes_total Bytes forwarded to backends of a service, in frames as they came in.
# TYPE halfproxy_service_bytes_total counter
halfproxy_service_bytes_total{service="web"} 196
# HELP halfproxy_service_flows_total New flows of TCP and SCTP forwarded to backends of a service.
# TYPE halfproxy_service_flows_total counter
halfproxy_service_flows_total{service="web"} 1
# HELP halfproxy_service_packets_total Packets forwarded to backends of a service.
# TYPE halfproxy_service_packets_total counter
halfproxy_service_packets_total{service="web"} 4
`
	names := []string{
		"halfproxy_backend_bytes_total", "halfproxy_backend_flows_total", "halfproxy_backend_packets_total",
		"halfproxy_packets_total",
		"halfproxy_service_bytes_total", "halfproxy_service_flows_total", "halfproxy_service_packets_total",
	}
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), names...); err != nil {
		t.Error(err)
	}
	problems, err := testutil.CollectAndLint(d.metrics)
	if err != nil {
		t.Error(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	families, err := registry.Gather()
	must(t, err)
	for _, f := range families {
		if f.GetName() == "halfproxy_table_swap_duration_seconds" && f.GetMetric()[0].GetHistogram().GetSampleCount() != 1 {
			t.Errorf("swaps timed: got %d, want 1", f.GetMetric()[0].GetHistogram().GetSampleCount())
		}
	}

	if _, err := New(Config{Registerer: registry}); err == nil || !strings.Contains(err.Error(), "register metrics") {
		t.Errorf("a second Dataplane on one registry: got %v, want an error of registering", err)
	}
	must(t, d.Close())
	again, err := New(Config{Registerer: registry})
	if err != nil {
		t.Fatalf("New after Close on one registry: %v", err)
	}
	must(t, again.Close())
}

func TestEventsOfFlowRecordsAreCounted(t *testing.T) {
	needRoot(t)
	registry := prometheus.NewPedanticRegistry()
	d, err := New(Config{Registerer: registry, FlowRecords: 1600})
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	setWays(d, tracked...)
	apply(t, d, moving(table("web", lb.L2, 13, vips(1), tracked...), hasMoved))
	chosenFor(t, d, packet.TCP(client4, vips(1)[0], packet.SYN))
	chosenFor(t, d, packet.TCP(client6, vips(1)[1], packet.SYN))
	d.store.pace.Next = uint64(monotonic()) + uint64(time.Hour)
	chosenFor(t, d, packet.TCP("198.51.100.8:1", vips(1)[0], packet.SYN))
	backend := d.store.ids[d.services["web"].members[tracked[0]].entry()]
	must(t, d.LearnFlows([]lb.FlowRecord{{Key: 1, Backend: backend}, {Key: 2, Backend: backend}, {Key: 3, Backend: backend}}))

	want := `
# HELP halfproxy_flow_records_total Records of flows that packets here made, that were refused since too many were made at once, and that were learned from other members.
# TYPE halfproxy_flow_records_total counter
halfproxy_flow_records_total{event="learned"} 3
halfproxy_flow_records_total{event="made"} 2
halfproxy_flow_records_total{event="refused"} 1
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "halfproxy_flow_records_total"); err != nil {
		t.Error(err)
	}
}
