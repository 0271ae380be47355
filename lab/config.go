package lab

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

const (
	nodeASN   = 64512
	routerASN = 64500

	gossipPort = 7946
	httpListen = "127.0.0.1:9870"

	holdTime = 3 * time.Second

	checkInterval = 200 * time.Millisecond
	checkTimeout  = 100 * time.Millisecond
	rise          = 2
	fall          = 3
)

// nodeConfig is a node's file. Everything that matters is written out, so that
// it can be read as an example.
var nodeConfig = template.Must(template.New("halfproxy.yaml").Parse(`# Written by halfproxy lab for {{.Name}}.
node:
  name: {{.Name}}
  interfaces: [eth0]
  linger: 3s
{{- if .FlowRecords}}
  flow_records: {{.FlowRecords}}
{{- end}}
cluster:
  name: lab
  listen: {{.Gossip}}
  join: [{{.Join}}]
  key_file: {{.KeyFile}}
  size: {{.Size}}
bgp:
  asn: {{.ASN}}
  router_id: {{.RouterID}}
  graceful_restart: {{.GracefulRestart}}
  graceful_shutdown: 500ms
  hold_up: 0s
  peers:
    - {address: {{.Router}}, asn: {{.RouterASN}}, hold_time: {{.HoldTime}}{{if .BFD}}, bfd: {interval: {{.BFD}}, multiplier: 3}{{end}}}
http:
  listen: {{.HTTP}}
admin:
  socket: {{.Socket}}
services:
{{- range .Services}}
  - name: {{.Name}}
    vips: [{{range $i, $v := .VIPs}}{{if $i}}, {{end}}"{{$v}}"{{end}}]
    ports: [tcp/{{$.Port}}]
    forward: {{$.Forward}}
    backends:
    {{- range .Backends}}
      - {name: {{.Name}}, address: "{{.Address}}"}
    {{- end}}
    check:
      type: http
      port: {{$.Port}}
      path: /healthz
      via: vip
      interval: {{$.Interval}}
      timeout: {{$.Timeout}}
      rise: {{$.Rise}}
      fall: {{$.Fall}}
    announce:
      min_healthy: 1
{{- end}}
`))

type service struct {
	Name     string
	VIPs     []netip.Addr
	Backends []lb.Backend
}

// services are what every node serves. With l2 a backend is its MAC address,
// whatever the family; with ipip each family has its own outer header to show.
func (l *Lab) services() []service {
	backends := func(address func(Addrs) netip.Addr) []lb.Backend {
		var list []lb.Backend
		for _, b := range l.backends {
			list = append(list, lb.Backend{Name: b.Name, Address: address(b.Addrs)})
		}
		return list
	}
	v4 := backends(func(a Addrs) netip.Addr { return a.V4 })
	v6 := backends(func(a Addrs) netip.Addr { return a.V6 })
	if l.options.Forward == lb.L2 {
		return []service{{"web", VIPs.All(), v4}}
	}
	return []service{{"web", []netip.Addr{VIPs.V4}, v4}, {"web6", []netip.Addr{VIPs.V6}, v6}}
}

func (l *Lab) keyFile() string { return filepath.Join(l.options.Dir, "cluster.key") }

// writeKey makes the key that the members of this lab share.
func (l *Lab) writeKey() error {
	key := make([]byte, 32)
	rand.Read(key) // never fails
	return os.WriteFile(l.keyFile(), []byte(base64.StdEncoding.EncodeToString(key)+"\n"), 0o600)
}

// writeConfig writes the file of l.nodes[i]. Each node has the backends in an
// order of its own: only names may matter.
func (l *Lab) writeConfig(i int) error {
	n := l.nodes[i]
	gossip := func(n *Node) string { return netip.AddrPortFrom(n.V4, gossipPort).String() }
	var join []string
	for _, other := range l.nodes {
		if other != n {
			join = append(join, gossip(other))
		}
	}
	services := l.services()
	for _, s := range services {
		k := i % len(s.Backends)
		copy(s.Backends, slices.Concat(s.Backends[k:], s.Backends[:k]))
	}
	f, err := os.Create(n.config)
	if err != nil {
		return err
	}
	err = nodeConfig.Execute(f, map[string]any{
		"Name": n.Name, "Gossip": gossip(n), "Join": strings.Join(join, ", "),
		"KeyFile": l.keyFile(), "Size": len(l.nodes),
		"ASN": nodeASN, "RouterID": n.V4, "Router": routerAddrs.V4, "RouterASN": routerASN, "HoldTime": holdTime,
		"HTTP": httpListen, "Socket": n.Socket,
		"Services": services, "Port": servicePort, "Forward": l.options.Forward,
		"FlowRecords": l.options.FlowRecords, "BFD": l.options.bfd(), "GracefulRestart": l.options.GracefulRestart, "Interval": checkInterval, "Timeout": checkTimeout, "Rise": rise, "Fall": fall,
	})
	return errors.Join(err, f.Close())
}
