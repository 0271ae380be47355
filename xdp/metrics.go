package xdp

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	packetsDesc        = prometheus.NewDesc("halfproxy_packets_total", "Packets that the program saw, by how they ended.", []string{"verdict"}, nil)
	servicePacketsDesc = prometheus.NewDesc("halfproxy_service_packets_total", "Packets forwarded to backends of a service.", []string{"service"}, nil)
	serviceBytesDesc   = prometheus.NewDesc("halfproxy_service_bytes_total", "Bytes forwarded to backends of a service, in frames as they came in.", []string{"service"}, nil)
	serviceFlowsDesc   = prometheus.NewDesc("halfproxy_service_flows_total", "New flows of TCP and SCTP forwarded to backends of a service.", []string{"service"}, nil)
	quicPacketsDesc    = prometheus.NewDesc("halfproxy_quic_packets_total", "QUIC packets of a service, by their header (long, short) and by what chose their backend: the connection ID's server ID or the table.", []string{"service", "header", "route"}, nil)
	backendPacketsDesc = prometheus.NewDesc("halfproxy_backend_packets_total", "Packets forwarded to a backend.", []string{"service", "backend"}, nil)
	backendBytesDesc   = prometheus.NewDesc("halfproxy_backend_bytes_total", "Bytes forwarded to a backend, in frames as they came in.", []string{"service", "backend"}, nil)
	deniedDesc         = prometheus.NewDesc("halfproxy_denied_prefixes", "Prefixes on the deny list.", nil, nil)
	recordsDesc        = prometheus.NewDesc("halfproxy_flow_records", "Records of flows that are held.", nil, nil)
	recordsRoomDesc    = prometheus.NewDesc("halfproxy_flow_records_max", "Records of flows that there is room for.", nil, nil)
	recordEventsDesc   = prometheus.NewDesc("halfproxy_flow_records_total", "Records of flows that packets here made, that were refused since too many were made at once, and that were learned from other members.", []string{"event"}, nil)
	trackedDesc        = prometheus.NewDesc("halfproxy_tracked_packets_total", "Packets of slots in transition, by what their backend was chosen by: a new record (recorded), their flow's record, or the slot's base or current backend; refused are those that got no record because too many were made.", []string{"by"}, nil)
	backendRecordsDesc = prometheus.NewDesc("halfproxy_backend_flow_records", "Records of flows that lead to a backend, of services with slots in transition.", []string{"service", "backend"}, nil)
	backendFlowsDesc   = prometheus.NewDesc("halfproxy_backend_flows_total", "New flows of TCP and SCTP forwarded to a backend.", []string{"service", "backend"}, nil)
)

// metrics reads the program's counters when it is scraped.
type metrics struct {
	d          *Dataplane
	registerer prometheus.Registerer
	swap       prometheus.Histogram
}

// newMetrics registers on r; without r there is nothing to do but to time.
func newMetrics(d *Dataplane, r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		d:          d,
		registerer: r,
		swap: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "halfproxy_table_swap_duration_seconds",
			Help:    "Time to fill a service's table and turn to it.",
			Buckets: prometheus.ExponentialBuckets(5e-6, 4, 8), // 5 µs to 82 ms
		}),
	}
	if r == nil {
		return m, nil
	}
	return m, r.Register(m)
}

func (m *metrics) close() {
	if m != nil && m.registerer != nil {
		m.registerer.Unregister(m)
	}
}

func (m *metrics) swapped(took time.Duration) { m.swap.Observe(took.Seconds()) }

func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{
		packetsDesc,
		servicePacketsDesc, serviceBytesDesc, serviceFlowsDesc, quicPacketsDesc,
		backendPacketsDesc, backendBytesDesc, backendFlowsDesc,
		deniedDesc, recordsDesc, recordsRoomDesc, recordEventsDesc, trackedDesc, backendRecordsDesc,
	} {
		ch <- desc
	}
	m.swap.Describe(ch)
}

func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	m.swap.Collect(ch)
	gauge := func(desc *prometheus.Desc, value int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(value), labels...)
	}
	gauge(deniedDesc, m.d.deniedPrefixes())
	stats, err := m.d.Stats()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(packetsDesc, fmt.Errorf("read the program's counters: %w", err))
		return
	}
	counter := func(desc *prometheus.Desc, value uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(value), labels...)
	}
	for verdict, count := range stats.Verdicts {
		counter(packetsDesc, count.Packets, verdict.String())
	}
	r := stats.Records
	gauge(recordsDesc, r.Held)
	gauge(recordsRoomDesc, r.Room)
	for event, n := range map[string]uint64{"made": r.Recorded, "refused": r.Refused, "learned": r.Learned} {
		counter(recordEventsDesc, n, event)
	}
	for by, n := range map[string]uint64{"recorded": r.Recorded, "refused": r.Refused, "record": r.ByRecord, "base": r.ByBase, "current": r.ByCurrent} {
		counter(trackedDesc, n, by)
	}
	for name, service := range stats.Services {
		for backend, use := range service.Uses {
			gauge(backendRecordsDesc, use.Records, name, backend)
		}
		counter(servicePacketsDesc, service.Packets, name)
		counter(serviceBytesDesc, service.Bytes, name)
		counter(serviceFlowsDesc, service.Flows, name)
		if quic := service.QUIC; quic != nil {
			counter(quicPacketsDesc, quic.Long.ByServerID, name, "long", "server_id")
			counter(quicPacketsDesc, quic.Long.ByTable, name, "long", "table")
			counter(quicPacketsDesc, quic.Short.ByServerID, name, "short", "server_id")
			counter(quicPacketsDesc, quic.Short.ByTable, name, "short", "table")
		}
		for backend, count := range service.Backends {
			counter(backendPacketsDesc, count.Packets, name, backend)
			counter(backendBytesDesc, count.Bytes, name, backend)
			counter(backendFlowsDesc, count.Flows, name, backend)
		}
	}
}
