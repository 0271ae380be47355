package doctor

import (
	"reflect"
	"strings"
	"testing"

	"github.com/halfproxy/halfproxy/lb"
)

// flawlessBackend is a backend that runs, and a host that has no fault.
func flawlessBackend() (BackendConfig, host) {
	_, h := flawless()
	h.ways, h.vips, h.listeners, h.names, h.peers = nil, nil, nil, nil, nil
	h.exits4, h.exits6 = []string{"eth0"}, []string{"eth0"}
	h.links[0].program = &program{id: 7, name: "decapsulate", mode: native, link: 3}
	return BackendConfig{
		File: "backend.yaml", Interfaces: []string{"eth0"}, Decap: true, Running: true,
		VIPs: []lb.VIP{lb.MustParseVIP("203.0.113.10"), lb.MustParseVIP("2001:db8::10")},
	}, h
}

func TestEachFaultOfABackendIsOneFindingWithItsRemedy(t *testing.T) {
	const file = "backend.yaml"
	for _, tt := range []struct {
		fault string
		plant func(cfg *BackendConfig, h *host)
		want  Finding
	}{
		{"what the backend says itself", func(cfg *BackendConfig, _ *host) { cfg.Faults = []string{"vip 203.0.113.10 is not on lo"} }, Finding{
			"backend", Problem, "halfproxy backend says: vip 203.0.113.10 is not on lo", "systemctl restart halfproxy-backend", "",
		}},
		{"no such interface", func(_ *BackendConfig, h *host) { h.links[0] = link{name: "eth9"} }, Finding{
			"interface", Problem, "eth9: there is no such interface, there is eth0, eth1",
			"interfaces: the names of those that carry VIP traffic", file,
		}},
		{"down", func(_ *BackendConfig, h *host) { h.links[0].up, h.links[0].carrier = false, false }, Finding{
			"interface", Problem, "eth0: is down", "ip link set dev eth0 up", "",
		}},
		{"another program", func(cfg *BackendConfig, h *host) {
			cfg.Running, h.links[0].program = false, &program{id: 42, mode: native}
		}, Finding{
			"xdp", Problem, "eth0: another XDP program (id 42, native) has the hook", "ip link set dev eth0 xdpdrv off", "",
		}},
		{"LRO", func(cfg *BackendConfig, h *host) { cfg.Running, h.links[0].program, h.links[0].lro = false, nil, true }, Finding{
			"lro", Warning, "eth0: large receive offload is on: most drivers refuse a native program then", "ethtool -K eth0 lro off", "",
		}},
		{"a strict filter aside of the default route", func(_ *BackendConfig, h *host) { h.links[0].rpFilter, h.exits4 = 1, []string{"eth1"} }, Finding{
			"rp_filter", Problem, "eth0: rp_filter is strict, and the default route leaves by eth1: what clients send to IPv4 VIPs comes in here and is dropped",
			"sysctl -w net.ipv4.conf.eth0.rp_filter=2", "",
		}},
		{"a strict filter of a VLAN", func(cfg *BackendConfig, h *host) {
			cfg.Decap, h.links[0].name, h.links[0].rpFilter, h.exits4 = false, "eth0.100", 1, []string{"eth1"}
		}, Finding{
			"rp_filter", Problem, "eth0.100: rp_filter is strict, and the default route leaves by eth1: what clients send to IPv4 VIPs comes in here and is dropped",
			"sysctl -w net.ipv4.conf.eth0/100.rp_filter=2", "",
		}},
	} {
		cfg, h := flawlessBackend()
		tt.plant(&cfg, &h)
		if got := judgeBackend(cfg, h); !reflect.DeepEqual(got, []Finding{tt.want}) {
			t.Errorf("%s: got\n%+v\nwant\n%+v", tt.fault, got, tt.want)
		}
	}
	for name, plant := range map[string]func(cfg *BackendConfig, h *host){
		"flawless":               func(*BackendConfig, *host) {},
		"before its first start": func(cfg *BackendConfig, h *host) { cfg.Running, h.links[0].program = false, nil },
		"with LRO by l2":         func(cfg *BackendConfig, h *host) { cfg.Decap, cfg.Running, h.links[0].lro = false, false, true },
		"without default routes": func(_ *BackendConfig, h *host) { h.exits4, h.exits6 = nil, nil },
	} {
		cfg, h := flawlessBackend()
		plant(&cfg, &h)
		if got := judgeBackend(cfg, h); len(got) > 0 {
			t.Errorf("a backend %s: got %+v, want nothing", name, got)
		}
	}
}

func TestWhatIsNotKnownOfABackendIsSaid(t *testing.T) {
	cfg, h := flawlessBackend()
	if got := uncheckedBackend(cfg, h); len(got) > 0 {
		t.Errorf("got %q, want nothing", got)
	}
	cfg.Running, h.exits4, h.exits6 = false, nil, nil
	want := []string{
		"VIPs on lo, ARP, decapsulation and MSS: `halfproxy backend` does not run",
		"whether answers from VIP 203.0.113.10 reach all clients: there is no IPv4 default route",
		"whether answers from VIP 2001:db8::10 reach all clients: there is no IPv6 default route",
	}
	if got := uncheckedBackend(cfg, h); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	cfg.VIPs = cfg.VIPs[:1]
	if got := uncheckedBackend(cfg, h); !reflect.DeepEqual(got, want[:2]) {
		t.Errorf("of IPv4 alone: got %q, want %q", got, want[:2])
	}
}

func TestAFilterThatDropsWhatClientsSendIsFound(t *testing.T) {
	w := newWorld(t)
	shell(t, w.lb, "ip link add eth1 type veth peer name far1 && ip link set dev eth1 up && ip link set dev far1 up && ip route replace default dev eth1 && sysctl -qw net.ipv4.conf.all.rp_filter=1")
	cfg := BackendConfig{Interfaces: []string{"eth0"}, VIPs: []lb.VIP{lb.MustParseVIP("203.0.113.10")}}
	examine := func() (report Report) {
		must(t, w.lb.Do(func() error {
			report = ExamineBackend(t.Context(), cfg)
			return nil
		}))
		return report
	}
	report := examine()
	if len(report.Findings) != 1 || report.Findings[0].Check != "rp_filter" || !strings.Contains(report.Findings[0].What, "eth1") {
		t.Fatalf("got %+v, want the filter alone", report.Findings)
	}
	if want := []string{"VIPs on lo, ARP, decapsulation and MSS: `halfproxy backend` does not run"}; !reflect.DeepEqual(report.Unchecked, want) {
		t.Errorf("not checked: got %q, want %q", report.Unchecked, want)
	}
	shell(t, w.lb, report.Findings[0].Remedy)
	if report = examine(); len(report.Findings) > 0 {
		t.Errorf("after the remedy: got %+v, want nothing", report.Findings)
	}
}
