package control

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/halfproxy/halfproxy/lb"
)

var (
	backendUpDesc = prometheus.NewDesc("halfproxy_backend_up",
		"Whether the cluster holds the backend to be up.", []string{"service", "backend"}, nil)
	backendWeightDesc = prometheus.NewDesc("halfproxy_backend_weight",
		"Weight of the backend in its service's table, where it is in it: less than configured while it starts slowly.", []string{"service", "backend"}, nil)
	panicDesc = prometheus.NewDesc("halfproxy_service_panic",
		"Whether too few backends are healthy, so that health is ignored and all are used.", []string{"service"}, nil)
	vipAnnouncedDesc = prometheus.NewDesc("halfproxy_vip_announced",
		"Whether this node announces the VIP.", []string{"vip"}, nil)
	vipHeldBackDesc = prometheus.NewDesc("halfproxy_vip_held_back",
		"1 for each VIP that this node does not announce, or is about to withdraw, by why.", []string{"vip", "cause"}, nil)
	aggregateAnnouncedDesc = prometheus.NewDesc("halfproxy_aggregate_announced",
		"Whether this node announces the aggregate.", []string{"aggregate"}, nil)
	aggregateHeldBackDesc = prometheus.NewDesc("halfproxy_aggregate_held_back",
		"1 for each aggregate that this node does not announce, or is about to withdraw, by what holds back the first VIP in it.", []string{"aggregate", "cause"}, nil)
	tableMismatchDesc = prometheus.NewDesc("halfproxy_table_digest_mismatch",
		"Members whose table of the service has differed from this node's for a while.", []string{"service"}, nil)
	transitionDesc = prometheus.NewDesc("halfproxy_slots_in_transition",
		"Slots of a service's table whose backend changed lately: flows in them are looked up.", []string{"service"}, nil)
	stepsDesc = prometheus.NewDesc("halfproxy_table_steps",
		"Changes of a service's table that flows may be older than.", []string{"service"}, nil)
	configMismatchDesc = prometheus.NewDesc("halfproxy_config_mismatch",
		"Members whose services have differed from this node's for a while.", nil, nil)
	blindDesc = prometheus.NewDesc("halfproxy_blind_members",
		"Members that see most backends down that the others see up: their observations are no votes.", nil, nil)
	frozenDesc = prometheus.NewDesc("halfproxy_verdicts_frozen",
		"Whether too few members are in sight and verdicts stay as they were for now.", nil, nil)
)

// collector reads the status of the last step when it is scraped.
type collector struct{ c *Controller }

func (collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{backendUpDesc, backendWeightDesc, panicDesc, vipAnnouncedDesc, vipHeldBackDesc, aggregateAnnouncedDesc, aggregateHeldBackDesc, tableMismatchDesc, transitionDesc, stepsDesc, configMismatchDesc, blindDesc, frozenDesc} {
		ch <- d
	}
}

func (m collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	st := m.c.Status()
	for _, s := range st.Services {
		gauge(panicDesc, number(s.Panic != ""), s.Name)
		gauge(tableMismatchDesc, float64(len(s.TableDiffers)), s.Name)
		var transition Transition
		if s.Transition != nil {
			transition = *s.Transition
		}
		gauge(transitionDesc, float64(transition.Slots), s.Name)
		gauge(stepsDesc, float64(transition.Steps), s.Name)
		for _, b := range s.Backends {
			gauge(backendUpDesc, number(b.State == lb.Up), s.Name, b.Name)
			gauge(backendWeightDesc, float64(b.WeightNow()), s.Name, b.Name)
		}
	}
	for _, vip := range st.AnnouncedVIPs {
		gauge(vipAnnouncedDesc, 1, vip.String())
	}
	for _, vip := range st.SuppressedVIPs {
		gauge(vipAnnouncedDesc, 0, vip.String())
	}
	for vip, h := range st.HeldBack {
		gauge(vipHeldBackDesc, 1, vip.String(), h.Cause)
	}
	for _, a := range st.Aggregates {
		gauge(aggregateAnnouncedDesc, number(a.Announced), a.Prefix.String())
		if a.Cause != "" {
			gauge(aggregateHeldBackDesc, 1, a.Prefix.String(), a.Cause)
		}
	}
	gauge(configMismatchDesc, float64(len(st.ConfigDiffers)))
	gauge(blindDesc, float64(len(st.Blind)))
	gauge(frozenDesc, number(st.Frozen))
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
