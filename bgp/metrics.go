package bgp

import "github.com/prometheus/client_golang/prometheus"

var peerUpDesc = prometheus.NewDesc("halfproxy_bgp_peer_up",
	"Whether the BGP session with the peer is established.", []string{"peer"}, nil)

// collector reads the sessions when it is asked.
type collector struct{ s *Speaker }

func (c collector) Describe(ch chan<- *prometheus.Desc) { ch <- peerUpDesc }

func (c collector) Collect(ch chan<- prometheus.Metric) {
	for _, p := range c.s.configured() {
		up := 0.0
		if c.s.sessions.get(p.Address).state == established {
			up = 1
		}
		ch <- prometheus.MustNewConstMetric(peerUpDesc, prometheus.GaugeValue, up, p.Address.String())
	}
}
