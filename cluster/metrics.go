package cluster

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

var membersDesc = prometheus.NewDesc("halfproxy_cluster_members",
	"Members of the cluster by state, this one included.", []string{"state"}, nil)

type metrics struct {
	refused  *prometheus.CounterVec
	received prometheus.Counter
	flows    *prometheus.CounterVec
}

// newMetrics registers with r, unless that is nil. The members are counted when
// scraped.
func newMetrics(r prometheus.Registerer, members func() []Member) (metrics, func(), error) {
	m := metrics{
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "halfproxy_cluster_messages_refused_total",
			Help: "Messages of the cluster that were not taken, by reason.",
		}, []string{"reason"}),
		received: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "halfproxy_cluster_records_received_total",
			Help: "Records of other members that were newer than the one held.",
		}),
	}
	m.flows = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "halfproxy_cluster_flow_records_total",
		Help: "Records of flows that were sent to the other members, received from them, or left out because there were too many at once.",
	}, []string{"way"})
	for _, way := range []string{flowsSent, flowsReceived, flowsNotSent, flowsNotTaken} {
		m.flows.WithLabelValues(way)
	}
	for _, why := range refusals {
		m.refused.WithLabelValues(string(why))
	}
	if r == nil {
		return m, func() {}, nil
	}
	var registered []prometheus.Collector
	unregister := func() {
		for _, c := range registered {
			r.Unregister(c)
		}
	}
	for _, c := range []prometheus.Collector{m.refused, m.received, m.flows, memberCollector(members)} {
		if err := r.Register(c); err != nil {
			unregister()
			return metrics{}, nil, fmt.Errorf("register metrics of the cluster: %w", err)
		}
		registered = append(registered, c)
	}
	return m, unregister, nil
}

type memberCollector func() []Member

func (c memberCollector) Describe(ch chan<- *prometheus.Desc) { ch <- membersDesc }

func (c memberCollector) Collect(ch chan<- prometheus.Metric) {
	count := make(map[string]int)
	for _, m := range c() {
		count[m.State]++
	}
	for _, s := range states {
		ch <- prometheus.MustNewConstMetric(membersDesc, prometheus.GaugeValue, float64(count[s]), s)
	}
}
