package lab

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/internal/router"
)

// Both take a VIP from whoever announces it, over one IPv4 session a node for
// both families, and are quick to see that a node has gone.
var (
	frrConf = template.Must(template.New("frr.conf").Parse(`frr defaults datacenter
hostname router
log stdout
{{if .BFD}}
bfd
 profile lb
  transmit-interval 100
  receive-interval 100
 exit
exit
{{end -}}
! FRR 8.4 loses members of kernel nexthop groups after a link flap (FRR issue 12239).
no zebra nexthop kernel enable
!
ip prefix-list VIPS seq 10 permit {{.VIPs.V4}}/32
ipv6 prefix-list VIPS6 seq 10 permit {{.VIPs.V6}}/128
bgp community-list standard GSHUT seq 5 permit graceful-shutdown
!
route-map LB-IN permit 5
 match community GSHUT
 set local-preference 0
 on-match next
route-map LB-IN permit 10
 match ip address prefix-list VIPS
route-map LB-IN permit 20
 match ipv6 address prefix-list VIPS6
route-map LB-OUT deny 10
!
router bgp {{.ASN}}
 bgp router-id {{.Addrs.V4}}
 no bgp default ipv4-unicast
 neighbor LB peer-group
 neighbor LB remote-as {{.NodeASN}}
 neighbor LB timers 1 3
 neighbor LB timers connect 1
 neighbor LB advertisement-interval 0
{{- if .BFD}}
 neighbor LB bfd profile lb
{{- end}}
{{- range .Nodes}}
 neighbor {{.V4}} peer-group LB
{{- end}}
{{- range .Families}}
 address-family {{.}} unicast
  maximum-paths {{len $.Nodes}}
  neighbor LB activate
  neighbor LB route-map LB-IN in
  neighbor LB route-map LB-OUT out
  neighbor LB soft-reconfiguration inbound
 exit-address-family
{{- end}}
exit
`))
	birdConf = template.Must(template.New("bird.conf").Parse(`log stderr all;
router id {{.Addrs.V4}};
protocol device {}
{{- if .BFD}}
protocol bfd { interface "eth1" { min rx interval 100 ms; min tx interval 100 ms; idle tx interval 1 s; multiplier 3; }; }
{{- end}}
protocol kernel k4 { merge paths yes limit {{len .Nodes}}; ipv4 { import none; export all; }; }
protocol kernel k6 { merge paths yes limit {{len .Nodes}}; ipv6 { import none; export all; }; }

define GSHUT = (65535, 0);
filter vips4 {
	if GSHUT ~ bgp_community then bgp_local_pref = 0;
	if net = {{.VIPs.V4}}/32 then accept;
	reject;
}
filter vips6 {
	if GSHUT ~ bgp_community then bgp_local_pref = 0;
	if net = {{.VIPs.V6}}/128 then accept;
	reject;
}
template bgp lb {
	local as {{.ASN}};
{{- if .BFD}}
	bfd on;
{{- end}}
	hold time 3; keepalive time 1; startup hold time 3;
	connect delay time 1; connect retry time 1; error wait time 1, 5;
	ipv4 { import filter vips4; export none; };
	ipv6 { import filter vips6; export none; };
}
{{- range .Nodes}}
protocol bgp {{.Name}} from lb { neighbor {{.V4}} as {{$.NodeASN}}; }
{{- end}}
`))
)

// startRouter starts what brings the nodes' announcements into the kernel of
// the router's namespace.
func (l *Lab) startRouter() error {
	if err := l.openFIB(); err != nil {
		return err
	}
	if err := os.Mkdir(l.routerDir(), 0o755); err != nil {
		return err
	}
	l.stopRouter = func() error { return nil }
	l.onClose(func() error { return l.stopRouter() })
	return l.runRouter()
}

func (l *Lab) routerDir() string { return filepath.Join(l.options.Dir, "router") }

func (l *Lab) runRouter() error {
	dir := l.routerDir()
	switch l.options.Router {
	case FRR:
		return l.startFRR(dir)
	case BIRD:
		return l.startBIRD(dir)
	}
	return l.startEmbedded(filepath.Join(dir, "embedded.log"))
}

// RestartRouter ends what runs as the router and starts it again: with FRR and BIRD its
// kernel has no routes to VIPs until it has heard of them again.
func (l *Lab) RestartRouter() error {
	if err := l.stopRouter(); err != nil {
		return err
	}
	return l.runRouter()
}

// openFIB opens what NextHops asks.
func (l *Lab) openFIB() error {
	return l.routerNS.Do(func() error {
		fib, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		l.fib = fib
		l.onClose(func() error { fib.Close(); return nil })
		return nil
	})
}

func (l *Lab) startFRR(dir string) error {
	conf, err := l.routerConf(frrConf)
	if err != nil {
		return err
	}
	frr, err := router.StartFRR(l.routerNS, dir, conf)
	if err != nil {
		return err
	}
	l.stopRouter = frr.Close
	return awaitNeighbors(frr)
}

func (l *Lab) startBIRD(dir string) error {
	conf, err := l.routerConf(birdConf)
	if err != nil {
		return err
	}
	bird, err := router.StartBIRD(l.routerNS, dir, conf)
	if err != nil {
		return err
	}
	l.stopRouter = bird.Close
	return nil
}

// awaitNeighbors waits until FRR takes sessions. For its first seconds a new
// neighbour is Idle, and a connection from it is closed at once; GoBGP comes
// back five seconds later only.
func awaitNeighbors(frr *router.FRR) error {
	for range 500 {
		summary, err := frr.Command("show bgp summary json")
		if err != nil {
			return err
		}
		if strings.Contains(summary, `"state"`) && !strings.Contains(summary, `"state":"Idle"`) {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return errors.New("FRR takes no sessions: its neighbours stay Idle")
}

func (l *Lab) routerConf(t *template.Template) (string, error) {
	var conf strings.Builder
	err := t.Execute(&conf, map[string]any{
		"Addrs": routerAddrs, "VIPs": VIPs, "Nodes": l.nodes,
		"ASN": routerASN, "NodeASN": nodeASN, "Families": []string{"ipv4", "ipv6"}, "BFD": l.options.bfd(),
	})
	return conf.String(), err
}
