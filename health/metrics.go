package health

import "github.com/prometheus/client_golang/prometheus"

// metrics has one series a backend of a service for as long as it is checked.
type metrics struct {
	delay    prometheus.Histogram
	duration *prometheus.HistogramVec
	failures *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	labels := []string{"service", "backend"}
	m := &metrics{
		delay: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "halfproxy_check_start_delay_seconds",
			Help:    "How long after their time probes started, of all backends together.",
			Buckets: []float64{.001, .005, .01, .05, .1, .5, 1, 5},
		}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "halfproxy_check_duration_seconds",
			Help: "How long the probes of a backend took, failed ones included.",
			// Few: each costs a series a backend.
			Buckets: []float64{.0005, .001, .005, .01, .05, .1, .5, 1, 5},
		}, labels),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "halfproxy_check_failures_total",
			Help: "Probes of a backend that failed, also when too few in a row to make it down.",
		}, labels),
	}
	if r != nil {
		r.MustRegister(m.delay, m.duration, m.failures)
	}
	return m
}

func (m *metrics) remove(service, backend string) {
	m.duration.DeleteLabelValues(service, backend)
	m.failures.DeleteLabelValues(service, backend)
}
