package setup_test

import (
	"os"
	"strings"
	"testing"

	"github.com/halfproxy/halfproxy/config"
	"github.com/halfproxy/halfproxy/setup"
)

// whole is a node's file with the services.
func whole(services string) string { return "node: {interfaces: [eth0]}\n" + services }

func TestFromKeepalivedTakesWhatItCanAndSaysTheRest(t *testing.T) {
	input, err := os.ReadFile("testdata/keepalived.conf")
	if err != nil {
		t.Fatal(err)
	}
	converted, err := setup.FromKeepalived("keepalived.conf", string(input))
	if err != nil {
		t.Fatal(err)
	}
	got := converted.Services + "\n" + strings.Join(converted.Notes, "\n") + "\n"
	want, err := os.ReadFile("testdata/keepalived.txt")
	if err != nil || got != string(want) {
		t.Errorf("got:\n%s\nwant (%v):\n%s", got, err, want)
	}
	if _, err := config.Parse("result", []byte(whole(converted.Services))); err != nil {
		t.Error(err)
	}
}

// A directive behind which nothing is said is in the result.
func TestFromKeepalivedIsSilentAboutNothing(t *testing.T) {
	const server = "real_server 10.0.1.11 80 {\nTCP_CHECK {\n}\n}\n"
	for _, tt := range []struct{ name, body, says string }{
		{"an unknown directive", "lvs_method DR\nalpha\n" + server, "alpha: left out"},
		{"one of a real server", "lvs_method DR\nreal_server 10.0.1.11 80 {\ninhibit_on_failure\nTCP_CHECK {\n}\n}\n", "inhibit_on_failure: left out"},
		{"one of a check", "lvs_method DR\nreal_server 10.0.1.11 80 {\nTCP_CHECK {\nbindto 10.0.1.1\n}\n}\n", "bindto 10.0.1.1: left out"},
		{"one of a url", "lvs_method DR\nreal_server 10.0.1.11 80 {\nHTTP_GET {\nurl {\npath /\nregex ok\n}\n}\n}\n", "regex ok: left out"},
		{"a second url", "lvs_method DR\nreal_server 10.0.1.11 80 {\nHTTP_GET {\nurl {\npath /\n}\nurl {\npath /2\n}\n}\n}\n", "url: left out: a check asks for one path"},
		{"another port of a server", "lvs_method DR\nreal_server 10.0.1.11 8080 {\nTCP_CHECK {\n}\n}\n", "real_server 10.0.1.11 8080: its port is left out: packets keep that of the VIP, 80"},
		{"another way to one server", "lvs_method DR\nreal_server 10.0.1.11 80 {\nlvs_method TUN\nTCP_CHECK {\n}\n}\n", "lvs_method TUN: left out: a service has one way"},
		{"a quorum of weights", "lvs_method DR\nquorum 3\nreal_server 10.0.1.11 80 {\nweight 3\nTCP_CHECK {\n}\n}\n", "quorum 3 is left out"},
		{"weights beyond ours", "lvs_method DR\nreal_server 10.0.1.11 80 {\nweight 20000\nTCP_CHECK {\n}\n}\n" + strings.Replace(server, "11", "12", 1), "weights are scaled down"},
		{"a time that is none", "lvs_method DR\ndelay_loop soon\n" + server, "delay_loop soon: is no time: 60s stands in"},
		{"no server", "lvs_method DR\n", "left out whole: it has no real_server"},
		{"no way", server, "left out whole: lvs_method NAT"},
		{"an unknown protocol", "lvs_method DR\nprotocol DCCP\n" + server, "left out whole: protocol dccp"},
		{"a check without a port, of UDP", "lvs_method DR\nprotocol UDP\n" + server, "left out whole: its check names no port"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := setup.FromKeepalived("k.conf", "virtual_server 203.0.113.10 80 {\n"+tt.body+"}\n")
			if err != nil || !strings.Contains(strings.Join(c.Notes, "\n"), tt.says) {
				t.Errorf("got %q, %v, want it to say %q", c.Notes, err, tt.says)
			}
			if _, err := config.Parse("result", []byte(whole(c.Services))); err != nil {
				t.Errorf("%v, in\n%s", err, c.Services)
			}
		})
	}
}

func TestFromKeepalivedKeepsTheRatiosOfWeights(t *testing.T) {
	for _, tt := range []struct{ a, b, want string }{
		{"1", "1", "11\"}\n"},
		{"1", "3", "weight: 100}\n      - {name: rs-10.0.1.12, address: \"10.0.1.12\", weight: 300}"},
		{"150", "300", "weight: 150}\n      - {name: rs-10.0.1.12, address: \"10.0.1.12\", weight: 300}"},
		{"10000", "40000", "weight: 2500}\n      - {name: rs-10.0.1.12, address: \"10.0.1.12\", weight: 10000}"},
		{"0", "0", "weight: 0}\n"},
	} {
		c, err := setup.FromKeepalived("k.conf", "virtual_server 203.0.113.10 80 {\nlvs_method DR\n"+
			"real_server 10.0.1.11 80 {\nweight "+tt.a+"\n}\nreal_server 10.0.1.12 80 {\nweight "+tt.b+"\n}\n}\n")
		if err != nil || !strings.Contains(c.Services, tt.want) {
			t.Errorf("%s and %s: got %s, %v, want %s", tt.a, tt.b, c.Services, err, tt.want)
		}
	}
}

func TestFromKeepalivedRefusesWhatItCannotRead(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"virtual_server 203.0.113.10 80 {\n", "k.conf:1: virtual_server is not closed: a } is missing"},
		{"}\n", "k.conf:1: a } closes nothing: look at the braces above"},
		{"{\n}\n", "k.conf:1: a block without a name: is it a configuration of keepalived?"},
		{"a \"b\n", "k.conf:1: a quote is not closed"},
	} {
		if _, err := setup.FromKeepalived("k.conf", tt.text); err == nil || err.Error() != tt.want {
			t.Errorf("%q: got %v, want %s", tt.text, err, tt.want)
		}
	}
	if c, err := setup.FromKeepalived("k.conf", ""); err != nil || c.Services != "services: []\n" {
		t.Errorf("nothing: got %q, %v", c.Services, err)
	}
}

// Whatever the bytes: no panic, and no services that config would not even read.
func FuzzFromKeepalived(f *testing.F) {
	input, err := os.ReadFile("testdata/keepalived.conf")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(input))
	f.Add("virtual_server group g {\n}\nvirtual_server_group g {\n203.0.113.1-9 80\n}\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := setup.FromKeepalived("k.conf", text)
		if err == nil && !strings.HasPrefix(c.Services, "services:") {
			t.Errorf("got %q", c.Services)
		}
	})
}
