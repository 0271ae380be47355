package router_test

import (
	"os"
	"strings"
	"testing"

	"github.com/halfproxy/halfproxy/internal/netns"
	"github.com/halfproxy/halfproxy/internal/router"
)

const frrConf = `
router bgp 64500
 bgp router-id 192.0.2.1
 neighbor 192.0.2.11 remote-as 64512
exit
`

const birdConf = `
router id 192.0.2.1;
protocol device {}
protocol bgp lb1 {
	local as 64500;
	neighbor 192.0.2.11 as 64512;
	ipv4 { import all; export none; };
}
`

// daemon is what FRR and BIRD have in common.
type daemon interface {
	Command(string) (string, error)
	Close() error
}

func routers() map[string]struct {
	start               func(ns *netns.NS, dir, conf string) (daemon, error)
	program             string
	conf, command, want string
} {
	return map[string]struct {
		start               func(ns *netns.NS, dir, conf string) (daemon, error)
		program             string
		conf, command, want string
	}{
		"frr": {
			func(ns *netns.NS, dir, conf string) (daemon, error) { return router.StartFRR(ns, dir, conf) },
			"/usr/lib/frr/bgpd", frrConf, "show bgp summary", "192.0.2.11",
		},
		"bird": {
			func(ns *netns.NS, dir, conf string) (daemon, error) { return router.StartBIRD(ns, dir, conf) },
			"/usr/sbin/bird", birdConf, "show protocols", "lb1",
		},
	}
}

func TestARouterStartsAnswersAndEnds(t *testing.T) {
	for name, r := range routers() {
		t.Run(name, func(t *testing.T) {
			ns, dir := setup(t, r.program)
			d, err := r.start(ns, dir, r.conf)
			if err != nil {
				t.Fatal(err)
			}
			out, err := d.Command(r.command)
			if err != nil || !strings.Contains(out, r.want) {
				t.Errorf("%s: got %q, %v, want %q in it", r.command, out, err, r.want)
			}
			if out, err := d.Command("show nonsense"); err == nil {
				t.Errorf("show nonsense: got no error and %q", out)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			if out, err := d.Command(r.command); err == nil {
				t.Errorf("%s after Close: got no error and %q", r.command, out)
			}
		})
	}
}

func TestARouterRefusesAConfigurationItDoesNotKnow(t *testing.T) {
	for name, r := range routers() {
		t.Run(name, func(t *testing.T) {
			ns, dir := setup(t, r.program)
			d, err := r.start(ns, dir, r.conf+"garbage here\n")
			if err == nil {
				d.Close()
				t.Fatal("got no error for garbage")
			}
			if !strings.Contains(err.Error(), "garbage") && !strings.Contains(err.Error(), "syntax error") {
				t.Errorf("got %v, want an error that shows the line", err)
			}
		})
	}
}

func TestFRRSaysThatItsUserCannotReachTheDirectory(t *testing.T) {
	ns, dir := setup(t, "/usr/lib/frr/bgpd")
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	inner := dir + "/frr"
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := router.StartFRR(ns, inner, frrConf)
	if err == nil {
		f.Close()
		t.Fatal("got no error for a directory in one that is closed")
	}
	if !strings.Contains(err.Error(), dir+" is closed to user frr") {
		t.Errorf("got %v, want the directory that is closed", err)
	}
}

func setup(t *testing.T, program string) (*netns.NS, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	if _, err := os.Stat(program); err != nil {
		t.Skipf("%s is not installed: apt-get install frr bird2", program)
	}
	ns, err := netns.New("hptest-router")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	dir, err := os.MkdirTemp("", "hptest-router-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return ns, dir
}
