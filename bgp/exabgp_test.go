package bgp

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/halfproxy/halfproxy/internal/router"
	"github.com/halfproxy/halfproxy/lb"
)

// ExaBGP is a third opinion on what is on the wire: it decodes every attribute that
// we can send. It opens the sessions, in which it is one router in another AS and
// one in ours, so that this node has to listen and to wait.
const exabgpConf = `
neighbor 192.0.2.1 {
	router-id 192.0.2.126; local-address 192.0.2.126; local-as 64500; peer-as 64512;
	md5-password "secret"; outgoing-ttl 255;
	capability { nexthop enable; }
	family { ipv4 unicast; ipv6 unicast; }
	nexthop { ipv4 unicast ipv6; }
	api { processes [ watch ]; receive { parsed; update; } }
}
neighbor 192.0.2.129 {
	router-id 192.0.2.254; local-address 192.0.2.254; local-as 64512; peer-as 64512;
	family { ipv4 unicast; ipv6 unicast; }
	api { processes [ watch ]; receive { parsed; update; } }
}
`

func TestExaBGPDecodesEveryAttributeThatWeSend(t *testing.T) {
	ns := network(t)
	outside, inside := peer("192.0.2.126", 64500), peer("192.0.2.254", 64512)
	outside.Passive, outside.Password, outside.TTLSecurity = true, "secret", true
	outside.ExtendedNextHop = true
	outside.Attributes = lb.Attributes{Communities: []lb.Community{community(t, "64500:7"), community(t, "64500:7:7")}, Prepend: 1}
	inside.Passive = true
	inside.Attributes = lb.Attributes{LocalPref: number(300), MED: number(7)}
	cfg := config(outside, inside)
	cfg.Listen = netip.MustParseAddrPort("0.0.0.0:179")
	cfg.NextHops.V6 = netip.MustParseAddr("2001:db8:a::1")
	s := start(t, cfg)
	announceRoutes(t, s,
		lb.Route{Prefix: netip.MustParsePrefix("203.0.113.10/32"), Announcement: lb.Announcement{Attributes: lb.Attributes{
			Communities: []lb.Community{community(t, "64512:100"), community(t, "no-export"), community(t, "64512:1:1")}, MED: number(50), Prepend: 2,
		}}},
		lb.Route{Prefix: netip.MustParsePrefix("2001:db8:51::/64"), Shutdown: true})

	e, err := router.StartExaBGP(ns, scratch(t, "/usr/sbin/exabgp", "exabgp"), exabgpConf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(e.Log())
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	want := []string{
		`192.0.2.1 2001:db8:51::/64 via 2001:db8:a::1 as-path=[64512,64512] community=[[64500,7],[65535,0]] large-community=[[64500,7,7]] origin="igp"`,
		`192.0.2.1 203.0.113.10/32 via 2001:db8:a::1 as-path=[64512,64512,64512,64512] community=[[64500,7],[64512,100],[65535,65281]] large-community=[[64500,7,7],[64512,1,1]] med=50 origin="igp"`,
		`192.0.2.129 2001:db8:51::/64 via 2001:db8:a::1 community=[[65535,0]] local-preference=0 med=7 origin="igp"`,
		`192.0.2.129 203.0.113.10/32 via 192.0.2.129 community=[[64512,100],[65535,65281]] large-community=[[64512,1,1]] local-preference=300 med=7 origin="igp"`,
	}
	until(t, 4*soon, func() string {
		updates, err := e.Updates()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, u := range updates {
			got = append(got, lines(t, u)...)
		}
		slices.Sort(got)
		return differ(got, want)
	})
}

// lines tells of the routes of an UPDATE, with what each bears.
func lines(t *testing.T, u router.Update) (out []string) {
	t.Helper()
	attributes := ""
	for _, name := range []string{"as-path", "community", "large-community", "local-preference", "med", "origin"} {
		value, has := u.Attribute[name]
		if !has {
			continue
		}
		if path, ok := value.(map[string]any); ok && name == "as-path" { // of segments
			value = path["0"].(map[string]any)["value"]
		}
		if list, ok := value.([]any); ok && name != "as-path" {
			slices.SortFunc(list, func(a, b any) int { return slices.Compare(numbers(a), numbers(b)) })
		}
		text, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		attributes += fmt.Sprintf(" %s=%s", name, text)
	}
	for _, hops := range u.Announce {
		for hop, prefixes := range hops {
			for _, p := range prefixes {
				if p.NLRI != "" { // not the end of RIB
					out = append(out, fmt.Sprintf("%s %s via %s%s", u.Neighbor, p.NLRI, hop, attributes))
				}
			}
		}
	}
	return out
}

func numbers(list any) (out []float64) {
	for _, n := range list.([]any) {
		out = append(out, n.(float64))
	}
	return out
}
