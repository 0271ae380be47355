package bgp

import (
	"encoding/binary"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"testing"
	"time"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

var fullTable = flag.Int("routes", 10_000, "how many routes TestAFullTableIsTakenForWhatItIs has a router send")

// bird with as many routes as are asked for, that it sends to whoever comes.
func birdWith(routes int) string {
	var conf strings.Builder
	conf.WriteString(`
router id 192.0.2.254;
protocol device {}
protocol bgp a { local as 64500; neighbor 192.0.2.1 as 64512; passive yes; hold time 3; error wait time 1, 1; ipv4 { import all; export all; }; }
protocol static much {
	ipv4;
`)
	for i := range routes {
		fmt.Fprintf(&conf, "\troute %s/24 blackhole;\n", slash24(i))
	}
	conf.WriteString("}\n")
	return conf.String()
}

// slash24 are the prefixes of this length one after the other.
func slash24(i int) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(1<<24+i<<8))
	return netip.AddrFrom4(b)
}

func TestARouterThatSendsTooMuchIsLeftAloneForAWhile(t *testing.T) {
	ns := network(t)
	bird := startBIRD(t, ns, birdWith(3000))
	p := peer("192.0.2.126", 64500)
	p.PrefixLimit = 2000
	cfg := config(p)
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.fullRetry = 2 * time.Second
	n := &node{Speaker: s}
	n.run(t)
	announce(t, n, "203.0.113.10/32")
	const why = `the session was closed by this node: administrative shutdown "more than 2000 prefixes received (prefix_limit), none are wanted: have the router send none; next try in 2s"`
	closed := func() string {
		if p := s.Peers()[0]; p.LastError != why || p.State == established {
			return fmt.Sprintf("got %+v, want %q", p, why)
		}
		return ""
	}
	until(t, 4*soon, closed)
	for _, limit := range []int{3000, 2000} { // by a reload
		p.PrefixLimit = limit
		if err := s.SetPeers(t.Context(), []Peer{p}); err != nil {
			t.Fatal(err)
		}
		if limit == 3000 {
			until(t, 4*soon, func() string { return states(n, established) })
		}
	}
	until(t, 4*soon, closed)
	if out, err := bird.Command("show protocols all a"); err != nil || !strings.Contains(out, "Administrative shutdown") {
		t.Errorf("bird: got %s, %v, want it to know why", out, err)
	}
	if out, err := bird.Command("disable much"); err != nil {
		t.Fatal(out, err)
	}
	until(t, 4*soon, func() string { return states(n, established) })
	until(t, soon, func() string {
		if out, _ := bird.Command("show route 203.0.113.10/32"); !strings.Contains(out, "AS64512") {
			return "bird has no route: " + out
		}
		return ""
	})
}

func TestPrefixesOfBothFamiliesCount(t *testing.T) {
	update := bgp.NewBGPUpdateMessage(nil, []bgp.PathAttributeInterface{
		bgp.NewPathAttributeOrigin(0),
		bgp.NewPathAttributeMpReachNLRI("2001:db8::1", []bgp.AddrPrefixInterface{
			bgp.NewIPv6AddrPrefix(48, "2001:db8:1::"), bgp.NewIPv6AddrPrefix(48, "2001:db8:2::"),
		}),
	}, []*bgp.IPAddrPrefix{bgp.NewIPAddrPrefix(24, "203.0.113.0")}).Body.(*bgp.BGPUpdate)
	if got := announcedIn(map[string]any{"nlri": update.NLRI, "attributes": update.PathAttributes}); got != 3 {
		t.Errorf("got %d, want 3", got)
	}
}

// A router that sends all that it has as fast as it can is read faster than its routes can
// be counted, so what a limit is worth is how much memory it takes at most.
// By hand: go test ./bgp -run AFullTable -v -routes 1000000
func TestAFullTableIsTakenForWhatItIs(t *testing.T) {
	for _, tt := range []struct {
		name   string
		limit  int
		routes int
	}{
		{"refused", 0, *fullTable},
		{"over the limit", 1000, max(*fullTable, 500_000)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			needNamespace(t, "198.51.100.254")
			router := &tap{address: netip.MustParseAddr("198.51.100.254"), asn: 64500, flood: table(t, tt.routes)}
			router.listen(t)
			p := peer("198.51.100.254", 64500)
			p.HoldTime, p.PrefixLimit = 90*time.Second, tt.limit
			debug.FreeOSMemory()
			before, heapBefore := rss(t), heap()
			most, heapMost := before, heapBefore
			s := start(t, config(p))
			announce(t, s, "203.0.113.10/32")
			began := time.Now()
			var asked time.Time
			until(t, 5*time.Minute, func() string {
				most, heapMost = max(most, rss(t)), max(heapMost, heap())
				switch {
				case tt.limit > 0:
					if st := s.sessions.get(p.Address); !strings.Contains(st.reason, "prefix_limit") {
						return fmt.Sprintf("got %q, want it over the limit", st.reason)
					}
				case time.Since(asked) < 100*time.Millisecond:
					return "waiting" // the library does nothing else while it counts
				default:
					asked = time.Now()
					if n := received(s); n != uint64(tt.routes) {
						return fmt.Sprintf("got %d routes, want %d", n, tt.routes)
					}
				}
				return ""
			})
			took := time.Since(began)
			if d := differ(rib(t, s), []string{"203.0.113.10/32"}); d != "" {
				t.Errorf("routes: %s", d)
			}
			if tt.limit == 0 {
				router.knows(t, "203.0.113.10/32 via 198.51.100.254 as [64512] communities [] large [] local-pref 0")
			}
			debug.FreeOSMemory()
			t.Logf("%d routes in %v: RSS %d MB before, %d MB at most, %d MB after", tt.routes, took.Round(time.Millisecond), before, most, rss(t))
			if tt.limit == 0 {
				return
			}
			if grown := (heapMost - heapBefore) >> 20; grown > 200 {
				t.Errorf("the heap grew by %d MB, want the session closed before all of it was read", grown)
			}
			until(t, soon, func() string { // what was read before is dropped with the session
				runtime.GC()
				if kept := (max(heap(), heapBefore) - heapBefore) >> 20; kept > 10 {
					return fmt.Sprintf("%d MB stay, want none of it kept", kept)
				}
				return ""
			})
			if told := strings.Count(s.journal.String(), "peer sends too much"); told != 1 {
				t.Errorf("told %d times, want once", told)
			}
		})
	}
}

// table is so many routes in UPDATEs, as they are on the wire.
func table(t *testing.T, routes int) []byte {
	t.Helper()
	var wire []byte
	const each = 800
	for from := 0; from < routes; from += each {
		m, err := bgp.NewBGPUpdateMessage(nil, []bgp.PathAttributeInterface{
			bgp.NewPathAttributeOrigin(0),
			bgp.NewPathAttributeAsPath([]bgp.AsPathParamInterface{bgp.NewAs4PathParam(bgp.BGP_ASPATH_ATTR_TYPE_SEQ, []uint32{64500, uint32(65536 + from)})}),
			bgp.NewPathAttributeNextHop("198.51.100.1"),
		}, nil).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		for i := from; i < min(from+each, routes); i++ {
			a := slash24(i).As4()
			m = append(m, 24, a[0], a[1], a[2])
		}
		binary.BigEndian.PutUint16(m[16:], uint16(len(m)))
		wire = append(wire, m...)
	}
	return wire
}

// heap is what this process's objects take, in bytes.
func heap() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// rss is this process's resident memory, in MB.
func rss(t *testing.T) int {
	t.Helper()
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	var size, resident int
	if _, err := fmt.Sscan(string(statm), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * os.Getpagesize() >> 20
}
