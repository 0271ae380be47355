package main

import (
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/halfproxy/halfproxy/backend"
	"github.com/halfproxy/halfproxy/config"
	"github.com/halfproxy/halfproxy/events"
	"github.com/halfproxy/halfproxy/xdp"
)

var update = flag.Bool("update", false, "write the tables of docs/metrics.md anew")

// metric is what a registry knows of one.
type metric struct{ labels, help string }

var described = regexp.MustCompile(`^Desc\{fqName: "([^"]+)", help: "((?:[^"\\]|\\.)*)",.* constLabels: \{([^}]*)\}, variableLabels: \{([^}]*)\}`)

// metricsOf are ours of a registry.
func metricsOf(t *testing.T, registry *prometheus.Registry) map[string]metric {
	t.Helper()
	descs := make(chan *prometheus.Desc)
	go func() {
		registry.Describe(descs)
		close(descs)
	}()
	found := map[string]metric{}
	for desc := range descs {
		m := described.FindStringSubmatch(desc.String())
		if m == nil {
			t.Errorf("cannot read %s", desc)
			continue
		}
		constant, _, _ := strings.Cut(m[3], "=")
		labels := cmp.Or(m[4], constant)
		if strings.HasPrefix(m[1], "halfproxy_") {
			found[m[1]] = metric{labels, m[2]}
		}
	}
	return found
}

// table shows metrics as docs/metrics.md does.
func table(metrics map[string]metric) string {
	var b strings.Builder
	b.WriteString("| metric | labels | |\n|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(metrics)) {
		m := metrics[name]
		labels := ""
		if m.labels != "" {
			labels = "`" + strings.ReplaceAll(m.labels, ",", "`, `") + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", name, labels, m.help)
	}
	return b.String()
}

// registered are the metrics of a node and of a backend, with all their parts.
func registered(t *testing.T) (node, back map[string]metric) {
	t.Helper()
	host, _ := newHost(t, "192.0.2.1/24")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cluster.key"), []byte("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "halfproxy.yaml")
	if err := os.WriteFile(file, []byte(`
node: {name: lb1, interfaces: [eth0]}
cluster: {name: test, listen: 192.0.2.1:7946, join: [192.0.2.2], key_file: cluster.key}
bgp:
  asn: 64512
  router_id: 192.0.2.1
  peers: [{address: 192.0.2.254, asn: 64500, bfd: {}}]
http: {listen: "127.0.0.1:9870"}
admin: {socket: `+dir+`/admin.sock}
services: [{name: web, vips: [203.0.113.10], ports: [tcp/80], backends: [{name: web1, address: 192.0.2.11}]}]
`), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	if err := host.Do(func() error {
		registry := newRegistry()
		n, err := newNode(cfg, "", events.NewRing(10), registry, log)
		if err != nil {
			return err
		}
		defer n.close()
		node = metricsOf(t, registry)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	fit, err := config.ParseBackend("backend.yaml", []byte("interfaces: [eth0]\nvips: [203.0.113.10]\ndecap: [ipip]\nsources: [192.0.2.0/24]\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Do(func() error {
		registry := newRegistry()
		b, err := backend.New(backend.Config{
			Interfaces: fit.Interfaces, VIPs: fit.VIPs, Decap: xdp.Tunnels{IPIP: true}, Sources: fit.Sources, FitMSS: true,
			Listen: fit.HTTP.Listen, StateDir: dir, Log: log, Registerer: registry,
		})
		if err != nil {
			return err
		}
		back = metricsOf(t, registry)
		return b.Close()
	}); err != nil {
		t.Fatal(err)
	}
	delete(back, "halfproxy_build_info") // both have it
	return node, back
}

// What other programs may rely on, by name and labels.
func TestMetricsThatStayPutAreThere(t *testing.T) {
	node, _ := registered(t)
	for name, labels := range map[string]string{
		"halfproxy_packets_total":               "verdict",
		"halfproxy_service_packets_total":       "service",
		"halfproxy_service_bytes_total":         "service",
		"halfproxy_backend_packets_total":       "service,backend",
		"halfproxy_backend_bytes_total":         "service,backend",
		"halfproxy_backend_up":                  "service,backend",
		"halfproxy_check_duration_seconds":      "service,backend",
		"halfproxy_bgp_peer_up":                 "peer",
		"halfproxy_bfd_peer_up":                 "peer",
		"halfproxy_vip_announced":               "vip",
		"halfproxy_cluster_members":             "state",
		"halfproxy_table_digest_mismatch":       "service",
		"halfproxy_config_mismatch":             "",
		"halfproxy_flow_records":                "",
		"halfproxy_flow_records_total":          "event",
		"halfproxy_table_swap_duration_seconds": "",
		"halfproxy_build_info":                  "version",
	} {
		if m, there := node[name]; !there || m.labels != labels {
			t.Errorf("%s: there %t, labels %q, want %q", name, there, m.labels, labels)
		}
	}
}

func TestMetricsAreDocumentedAndWhatIsAskedForExists(t *testing.T) {
	node, back := registered(t)
	const path = "../../docs/metrics.md"
	document, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(document)
	for heading, metrics := range map[string]map[string]metric{"## Of a node\n\n": node, "## Of a backend\n\n": back} {
		before, rest, found := strings.Cut(text, heading)
		if !found {
			t.Fatalf("%s has no %q", path, heading)
		}
		got, after, _ := strings.Cut(rest, "\n\n")
		want := strings.TrimSuffix(table(metrics), "\n")
		if *update {
			text = before + heading + want + "\n\n" + after
		} else if got != want {
			t.Errorf("%s: below %q is\n%s\nwant\n%s\n(go test ./cmd/halfproxy -run Documented -update)", path, heading, got, want)
		}
	}
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}

	known := maps.Clone(node)
	maps.Copy(known, back)
	documents, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`\bhalfproxy_[a-z_]+`)
	for _, path := range append(documents, "../../README.md", "../../CHANGELOG.md", "../../deploy/prometheus/rules.yaml", "../../deploy/prometheus/rules_test.yaml", "../../deploy/grafana/halfproxy.json") {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, got := range name.FindAllString(string(content), -1) {
			if _, ok := known[strings.TrimSuffix(got, "_bucket")]; !ok {
				t.Errorf("%s: no metric is named %s", path, got)
			}
		}
	}
}

func TestEveryAlertIsTestedAndInTheRunbook(t *testing.T) {
	read := func(path string) string {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	rules, tests, runbook := read("../../deploy/prometheus/rules.yaml"), read("../../deploy/prometheus/rules_test.yaml"), read("../../docs/runbook.md")
	var alerts []string
	for _, m := range regexp.MustCompile(`(?m)^ *- alert: (\w+)$`).FindAllStringSubmatch(rules, -1) {
		alerts = append(alerts, m[1])
		for _, want := range []string{"- name: " + m[1] + " fires\n", "- name: " + m[1] + " keeps quiet\n"} {
			if !strings.Contains(tests, want) {
				t.Errorf("rules_test.yaml has no %q", want)
			}
		}
	}
	var entries []string
	for _, m := range regexp.MustCompile(`(?m)^## (Halfproxy\w+)$`).FindAllStringSubmatch(runbook, -1) {
		entries = append(entries, m[1])
	}
	if len(alerts) == 0 || !slices.Equal(alerts, entries) {
		t.Errorf("docs/runbook.md is about %q, the rules about %q: each in this order", entries, alerts)
	}

	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip(err)
	}
	for _, what := range []string{"check rules rules.yaml", "test rules rules_test.yaml"} {
		cmd := exec.Command(promtool, strings.Fields(what)...)
		cmd.Dir = "../../deploy/prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", what, err, out)
		}
	}
}

func TestTheDashboardLoads(t *testing.T) {
	content, err := os.ReadFile("../../deploy/grafana/halfproxy.json")
	if err != nil {
		t.Fatal(err)
	}
	exprs := dashboardQueries(t, content)
	if len(exprs) < 40 {
		t.Errorf("%d queries, want those of some forty panels", len(exprs))
	}
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip(err)
	}
	// As recording rules, promtool parses them; what Grafana puts in comes first.
	var rules strings.Builder
	rules.WriteString("groups:\n  - name: dashboard\n    rules:\n")
	for i, expr := range exprs {
		expr = strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*", "$service", ".*").Replace(expr)
		if strings.Contains(expr, "$") {
			t.Errorf("%s has a variable that the dashboard does not have", expr)
		}
		fmt.Fprintf(&rules, "      - {record: 'dashboard:query:%d', expr: '%s'}\n", i, strings.ReplaceAll(expr, "'", "''"))
	}
	file := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(file, []byte(rules.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(promtool, "check", "rules", "--lint=none", file).CombinedOutput(); err != nil {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

// dashboardQueries checks what Grafana needs to show a dashboard: each panel has a
// place of its own and a data source.
func dashboardQueries(t *testing.T, content []byte) []string {
	t.Helper()
	var dashboard struct {
		UID, Title    string
		SchemaVersion int
		Panels        []struct {
			ID          int
			Type, Title string
			GridPos     struct{ H, W, X, Y int }
			Targets     []struct {
				Expr       string
				DataSource struct{ UID string }
			}
		}
	}
	if err := json.Unmarshal(content, &dashboard); err != nil {
		t.Fatal(err)
	}
	if dashboard.UID == "" || dashboard.Title == "" || dashboard.SchemaVersion == 0 {
		t.Error("uid, title and schemaVersion have to be there")
	}
	var exprs []string
	ids := map[int]bool{}
	taken := map[[2]int]string{}
	for _, p := range dashboard.Panels {
		if ids[p.ID] {
			t.Errorf("panel %q: id %d is another's, too", p.Title, p.ID)
		}
		ids[p.ID] = true
		if !slices.Contains([]string{"row", "stat", "timeseries", "state-timeline"}, p.Type) || p.Title == "" {
			t.Errorf("panel %q: type %q", p.Title, p.Type)
		}
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("panel %q does not fit: %q is at %d, %d", p.Title, other, x, y)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q asks nothing", p.Title)
		}
		for _, target := range p.Targets {
			if target.DataSource.UID != "${datasource}" {
				t.Errorf("panel %q: data source %q, want the dashboard's variable", p.Title, target.DataSource.UID)
			}
			exprs = append(exprs, target.Expr)
		}
	}
	return exprs
}
