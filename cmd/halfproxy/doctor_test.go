package main

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/halfproxy/halfproxy/admin"
	"github.com/halfproxy/halfproxy/doctor"
	"github.com/halfproxy/halfproxy/internal/netns"
)

// healthy is a configuration that the host of these tests has no fault for.
const healthy = `
node: {name: lb1, interfaces: [eth0], xdp_mode: generic}
http: {listen: "127.0.0.1:9870"}
admin: {socket: SOCKET}
services: []
`

func TestDoctorAnswersByItsExitCode(t *testing.T) {
	host := cabled(t)
	for _, tt := range []struct {
		config string
		code   int
		says   []string
	}{
		{healthy, exitDone, []string{"nothing found that would keep packets from flowing\nlooked at:\n", "interface eth0: veth"}},
		{strings.ReplaceAll(healthy, "eth0", "eth7"), exitNo, []string{"problem  eth7: there is no such interface", "remedy, CONFIG: node.interfaces"}},
		{"node: {}", exitNo, []string{"the node does not start with it: CONFIG:", "remedy: halfproxy check --config CONFIG", "not checked: anything but this host alone"}},
		{healthy + `
bgp: {asn: 64512, router_id: 192.0.2.1, peers: [{address: 198.51.100.1, asn: 64500, password_file: nowhere}]}
`, exitNo, []string{"password_file", "BGP peer 198.51.100.1: this host has no route to it"}},
	} {
		file := write(t, tt.config)
		var stdout, stderr string
		var code int
		must(t, host.Do(func() error {
			stdout, stderr, code = call(t, "doctor", "--pin", "", "--config", file)
			return nil
		}))
		if code != tt.code {
			t.Errorf("%s: got code %d, want %d: %s%s", tt.config, code, tt.code, stdout, stderr)
		}
		for _, want := range tt.says {
			if want := strings.ReplaceAll(want, "CONFIG", file); !strings.Contains(stdout, want) {
				t.Errorf("%s: got %q, want it to say %q", tt.config, stdout, want)
			}
		}
	}
}

func TestDoctorWithoutAConfigurationLooksAtTheHostAlone(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	stdout, _, _ := call(t, "doctor", "--pin", "", "--config", missing) // what this host has, it has
	if want := "not checked: anything but this host alone: read configuration: open " + missing; !strings.Contains(stdout, want) {
		t.Errorf("got %q, want it to say %q", stdout, want)
	}
	if _, _, code := call(t, "doctor", "surplus"); code != exitUsage {
		t.Errorf("a surplus argument: got code %d, want %d", code, exitUsage)
	}
}

func TestDoctorBesideARunningNodeTakesItsPortsForNoFault(t *testing.T) {
	host := cabled(t)
	taken, err := host.Listen("tcp", "127.0.0.1:9870")
	must(t, err)
	defer taken.Close()
	file := write(t, healthy)
	examine := func() (stdout string, code int) {
		must(t, host.Do(func() error {
			stdout, _, code = call(t, "doctor", "--pin", "", "--config", file)
			return nil
		}))
		return stdout, code
	}
	if stdout, code := examine(); code != exitNo || !strings.Contains(stdout, "http.listen 127.0.0.1:9870: ") {
		t.Errorf("before the node runs: got code %d, %q, want the taken port", code, stdout)
	}

	socket, err := net.Listen("unix", filepath.Join(filepath.Dir(file), "admin.sock"))
	must(t, err)
	node := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(admin.Status{Node: admin.Node{
			Name: "lb1", Interfaces: []admin.Interface{{Name: "eth0", XDPMode: "generic", Attached: true}},
		}})
	})}
	go node.Serve(socket)
	defer node.Close()
	if stdout, code := examine(); code != exitDone || !strings.Contains(stdout, "node lb1: it runs") {
		t.Errorf("beside the node: got code %d, %q, want nothing found", code, stdout)
	}
}

func TestTheReportCanBeReadAtNight(t *testing.T) {
	var out strings.Builder
	printReport(&out, doctor.Report{
		Findings: []doctor.Finding{
			{Severity: doctor.Problem, What: "eth0: is down", Remedy: "ip link set dev eth0 up"},
			{Severity: doctor.Warning, What: "eth1: slow", Remedy: "node.xdp_mode: generic", Where: "/etc/halfproxy/halfproxy.yaml"},
		},
		Unchecked: []string{"the rest"},
		LookedAt:  []string{"kernel: Linux 6.1", "interface eth0: ixgbe, MTU 1500"},
	})
	const want = `problem  eth0: is down
         remedy: ip link set dev eth0 up
warning  eth1: slow
         remedy, /etc/halfproxy/halfproxy.yaml: node.xdp_mode: generic
not checked: the rest
looked at:
  kernel: Linux 6.1
  interface eth0: ixgbe, MTU 1500
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

// cabled is a host with one interface, eth0, which has a carrier.
func cabled(t *testing.T) *netns.NS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	var ends [2]*netns.NS
	for i, name := range []string{"hptest-doc-cmd", "hptest-doc-far"} {
		ns, err := netns.New(name)
		must(t, err)
		t.Cleanup(func() {
			if err := ns.Close(); err != nil {
				t.Error(err)
			}
		})
		ends[i] = ns
	}
	must(t, ends[0].Veth("eth0", ends[1], "eth0", 1500))
	return ends[0]
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
