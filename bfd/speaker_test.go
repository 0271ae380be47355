package bfd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/halfproxy/halfproxy/internal/netns"
	"github.com/halfproxy/halfproxy/internal/router"
)

// Two hosts and the wire between them:
//
//	a  eth0 192.0.2.1/24 2001:db8::1/64 ─── eth0 192.0.2.2/24 2001:db8::2/64  b
var (
	a4, b4 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	a6, b6 = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
)

var spaces atomic.Int32

func hosts(t testing.TB) (a, b *netns.NS) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	n := spaces.Add(1)
	for i, ns := range []**netns.NS{&a, &b} {
		made, err := netns.New(fmt.Sprintf("hptest-bfd-%d-%d%c", os.Getpid(), n, 'a'+i))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := made.Close(); err != nil {
				t.Error(err)
			}
		})
		*ns = made
	}
	must(t, a.Veth("eth0", b, "eth0", 1500))
	must(t, a.Address("eth0", a4.String()+"/24", a6.String()+"/64"))
	must(t, b.Address("eth0", b4.String()+"/24", b6.String()+"/64"))
	return a, b
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// speak runs a speaker in ns with these peers until the test ends, or stop is called.
func speak(t *testing.T, ns *netns.NS, peers ...Peer) (s *Speaker, stop func()) {
	t.Helper()
	s = NewSpeaker(slog.New(slog.NewTextHandler(t.Output(), nil)))
	setPeers(t, ns, s, peers...)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := ns.Do(func() error { return s.Run(ctx) }); err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return s, stop
}

func setPeers(t *testing.T, ns *netns.NS, s *Speaker, peers ...Peer) {
	t.Helper()
	must(t, ns.Do(func() error { return s.SetPeers(peers) }))
}

func peerAt(address netip.Addr, interval time.Duration) Peer {
	return Peer{Address: address, Timing: Timing{interval, 3}}
}

// wait waits until every session of s is in the state.
func wait(t *testing.T, s *Speaker, state State, limit time.Duration) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
		all := true
		list := s.Statuses()
		for _, st := range list {
			all = all && st.State == state
		}
		if all && len(list) > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %v; got %+v", limit, state, list)
		}
	}
}

func setLink(t *testing.T, ns *netns.NS, up bool) {
	t.Helper()
	must(t, ns.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if up {
			return netlink.LinkSetUp(l)
		}
		return netlink.LinkSetDown(l)
	}))
}

func TestTwoSpeakersFindEachOtherAndNoticeACut(t *testing.T) {
	a, b := hosts(t)
	sa, _ := speak(t, a, peerAt(b4, 50*ms), peerAt(b6, 50*ms))
	sb, _ := speak(t, b, peerAt(a4, 50*ms), peerAt(a6, 50*ms))
	wait(t, sa, Up, 5*time.Second)
	wait(t, sb, Up, 5*time.Second)
	time.Sleep(300 * ms) // intervals are agreed on

	setLink(t, a, false)
	cut := time.Now()
	wait(t, sb, Down, 2*time.Second)
	t.Logf("b noticed after %v, the detection time is 150ms", time.Since(cut).Round(ms))
	for _, st := range sb.Statuses() {
		if st.Diag != TimeExpired {
			t.Errorf("%s: down for %v, want %v", st.Address, st.Diag, TimeExpired)
		}
	}
	setLink(t, a, true)
	must(t, a.Address("eth0", a6.String()+"/64")) // lost with the link
	wait(t, sa, Up, 10*time.Second)
	wait(t, sb, Up, 10*time.Second)
	if ups := sb.Statuses()[0].Ups; ups != 2 {
		t.Errorf("came up %d times, want 2", ups)
	}
}

// Without an address of its own a session has that which the kernel sends from, also when
// it becomes another one.
func TestASessionFollowsTheAddressOfItsHost(t *testing.T) {
	a, b := hosts(t)
	sa, _ := speak(t, a, peerAt(b4, 100*ms), peerAt(b6, 100*ms))
	sb, _ := speak(t, b, peerAt(a4, 100*ms), peerAt(a6, 100*ms))
	wait(t, sa, Up, 5*time.Second)
	wait(t, sb, Up, 5*time.Second)

	c4, c6 := netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("2001:db8::3")
	must(t, a.Do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, cidr := range []string{a4.String() + "/24", a6.String() + "/64"} {
			addr, err := netlink.ParseAddr(cidr)
			if err != nil {
				return err
			}
			if err := netlink.AddrDel(eth0, addr); err != nil {
				return err
			}
		}
		return nil
	}))
	must(t, a.Address("eth0", c4.String()+"/24", c6.String()+"/64"))
	setPeers(t, b, sb, peerAt(c4, 100*ms), peerAt(c6, 100*ms))
	wait(t, sb, Up, 10*time.Second)
	wait(t, sa, Up, 5*time.Second)
}

func TestAPlannedEndIsToldOverTheWire(t *testing.T) {
	a, b := hosts(t)
	_, stop := speak(t, a, peerAt(b4, 100*ms))
	sb, _ := speak(t, b, peerAt(a4, 100*ms))
	wait(t, sb, Up, 5*time.Second)
	stop()
	wait(t, sb, Down, 5*time.Second)
	if st := sb.Statuses()[0]; st.Diag != NeighborDown || st.Remote != AdminDown {
		t.Errorf("got %+v, want down because a said that it is administratively down", st)
	}
}

func TestSessionsThatStayAreNotTouched(t *testing.T) {
	a, b := hosts(t)
	sa, _ := speak(t, a, peerAt(b4, 100*ms))
	sb, _ := speak(t, b, peerAt(a4, 100*ms), peerAt(a6, 100*ms))
	wait(t, sa, Up, 5*time.Second)
	setPeers(t, a, sa, peerAt(b4, 50*ms), peerAt(b6, 100*ms))
	wait(t, sa, Up, 5*time.Second)
	setPeers(t, a, sa, peerAt(b4, 50*ms))
	time.Sleep(500 * ms)
	for _, st := range append(sa.Statuses(), sb.Statuses()[0]) {
		if st.Ups != 1 || st.State != Up {
			t.Errorf("got %+v, want up and never down", st)
		}
	}
	if got := sa.Statuses()[0].Interval; got != 100*ms {
		t.Errorf("sends every %v, want 100ms: b takes no more", got)
	}
}

func TestOnlyWhoHasTheKeyComesUp(t *testing.T) {
	a, b := hosts(t)
	with := func(p Peer, key string, id uint8) Peer {
		p.Key, p.KeyID = []byte(key), id
		return p
	}
	sa, _ := speak(t, a, with(peerAt(b4, 50*ms), "secret", 1))
	sb, _ := speak(t, b, with(peerAt(a4, 50*ms), "secret", 1))
	wait(t, sa, Up, 5*time.Second)
	wait(t, sb, Up, 5*time.Second)
	for _, other := range []Peer{with(peerAt(a4, 50*ms), "guess", 1), with(peerAt(a4, 50*ms), "secret", 2), peerAt(a4, 50*ms)} {
		setPeers(t, b, sb, other)
		wait(t, sa, Down, time.Second)
		time.Sleep(1500 * ms) // it would be up again by now
		if st := sa.Statuses()[0]; st.State == Up {
			t.Errorf("up with key %q, number %d at the other side", other.Key, other.KeyID)
		}
	}
}

// A packet from further away than one hop cannot have TTL 255 (RFC 5881, 5).
func TestAPacketFromAnotherNetworkIsNotTakenForANeighbours(t *testing.T) {
	a, b := hosts(t)
	sa, _ := speak(t, a, peerAt(b4, 50*ms))
	sb, _ := speak(t, b, peerAt(a4, 50*ms))
	wait(t, sa, Up, 5*time.Second)
	sa.receive(datagram{from: b4, to: a4, ttl: 254, at: time.Now(), payload: Packet{
		State: AdminDown, DetectMult: 3, My: 99, Your: sa.sessions[peerAt(b4, 0).identity()].my,
	}.Append(nil, nil)})
	time.Sleep(100 * ms)
	if sa.Statuses()[0].State != Up || sb.Statuses()[0].Ups != 1 {
		t.Error("a packet with TTL 254 took the session down")
	}
}

func TestMultihopSessionsAreKeptApart(t *testing.T) {
	a, b := hosts(t)
	far := func(p Peer) Peer {
		p.Multihop = true
		return p
	}
	sa, _ := speak(t, a, peerAt(b4, 50*ms), far(peerAt(b6, 50*ms)))
	sb, _ := speak(t, b, peerAt(a4, 50*ms), far(peerAt(a6, 50*ms)))
	wait(t, sa, Up, 5*time.Second)
	wait(t, sb, Up, 5*time.Second)
	setPeers(t, b, sb, far(peerAt(a6, 50*ms)))
	time.Sleep(500 * ms)
	if list := sa.Statuses(); list[0].State == Up || list[1].State != Up {
		t.Errorf("got %+v, want the first down and the second up", list)
	}
}

func TestPeersThatMakeNoSenseAreRefusedAllAtOnce(t *testing.T) {
	err := NewSpeaker(slog.New(slog.DiscardHandler)).SetPeers([]Peer{
		{Address: netip.MustParseAddr("0.0.0.0"), Timing: Timing{50 * ms, 3}},
		{Address: a4, Local: b6, Timing: Timing{ms, 0}, Key: make([]byte, 21)},
	})
	for _, want := range []string{"not an address", "other family", "interval 1ms", "multiplier 0", "20 at most"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
}

func TestATakenPortIsNamed(t *testing.T) {
	a, _ := hosts(t)
	speak(t, a)
	time.Sleep(50 * ms)
	err := a.Do(func() error { return NewSpeaker(slog.New(slog.DiscardHandler)).Run(t.Context()) })
	if err == nil || !strings.Contains(err.Error(), "another BFD daemon") {
		t.Errorf("got %v, want an error that says who has the port", err)
	}
}

// scratch is a directory that FRR's user reaches.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "hptest-bfd-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	return dir
}

// interop has a speaker in a come up with the router in b over both families, holds it
// there, and cuts the wire.
func interop(t *testing.T, a *netns.NS, peers func(state string) bool) {
	t.Helper()
	sa, stop := speak(t, a, Peer{Address: b4, Local: a4, Timing: Timing{100 * ms, 3}}, Peer{Address: b6, Local: a6, Timing: Timing{100 * ms, 3}})
	wait(t, sa, Up, 10*time.Second)
	time.Sleep(3 * time.Second)
	for _, st := range sa.Statuses() {
		if st.State != Up || st.Ups != 1 || st.Interval != 100*ms {
			t.Errorf("got %+v, want up all the time, and 100 ms", st)
		}
	}
	if !peers("up") {
		t.Error("the router does not hold both sessions up")
	}
	stop()
	time.Sleep(200 * ms)
	if !peers("down") {
		t.Error("the router does not hold both sessions down after we ended them")
	}
}

func TestFRRAgrees(t *testing.T) {
	if _, err := os.Stat("/usr/lib/frr/bfdd"); err != nil {
		t.Skip("FRR is not installed: apt-get install frr")
	}
	a, b := hosts(t)
	frr, err := router.StartFRR(b, scratch(t), `
bfd
 profile lb
  transmit-interval 100
  receive-interval 100
  detect-multiplier 3
 exit
 peer 192.0.2.1 local-address 192.0.2.2 interface eth0
  profile lb
 exit
 peer 2001:db8::1 local-address 2001:db8::2 interface eth0
  profile lb
 exit
exit
`)
	must(t, err)
	t.Cleanup(func() { must(t, frr.Close()) })
	interop(t, a, func(state string) bool {
		out, err := frr.Command("show bfd peers json")
		must(t, err)
		up := strings.Count(out, `"status":"up"`)
		return state == "up" && up == 2 || state == "down" && up == 0
	})
}

func TestBIRDAgrees(t *testing.T) {
	if _, err := os.Stat("/usr/sbin/bird"); err != nil {
		t.Skip("BIRD is not installed: apt-get install bird2")
	}
	a, b := hosts(t)
	bird, err := router.StartBIRD(b, filepath.Clean(scratch(t)), `
router id 192.0.2.2;
protocol device {}
protocol bfd {
	interface "eth0" { min rx interval 100 ms; min tx interval 100 ms; idle tx interval 1 s; multiplier 3; };
	neighbor 192.0.2.1 dev "eth0" local 192.0.2.2;
	neighbor 2001:db8::1 dev "eth0" local 2001:db8::2;
}
`)
	must(t, err)
	t.Cleanup(func() { must(t, bird.Close()) })
	interop(t, a, func(state string) bool {
		out, err := bird.Command("show bfd sessions")
		must(t, err)
		up := strings.Count(out, " Up ")
		return state == "up" && up == 2 || state == "down" && up == 0
	})
}

// Two hosts with a router between them, so that packets arrive with TTL 254:
//
//	a  eth0 192.0.2.1 2001:db8::1 ─── 192.0.2.254 2001:db8::fe  router  198.51.100.254 2001:db8:b::fe ─── eth0 198.51.100.1 2001:db8:b::1  b
func farHosts(t *testing.T) (a, b *netns.NS) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	n := spaces.Add(1)
	var all [3]*netns.NS
	for i := range all {
		ns, err := netns.New(fmt.Sprintf("hptest-bfd-%d-%d%c", os.Getpid(), n, 'a'+i))
		must(t, err)
		t.Cleanup(func() { must(t, ns.Close()) })
		all[i] = ns
	}
	a, router, b := all[0], all[1], all[2]
	must(t, a.Veth("eth0", router, "eth0", 1500))
	must(t, b.Veth("eth0", router, "eth1", 1500))
	must(t, a.Address("eth0", "192.0.2.1/24", "2001:db8::1/64"))
	must(t, router.Address("eth0", "192.0.2.254/24", "2001:db8::fe/64"))
	must(t, router.Address("eth1", "198.51.100.254/24", "2001:db8:b::fe/64"))
	must(t, b.Address("eth0", "198.51.100.1/24", "2001:db8:b::1/64"))
	must(t, router.Do(func() error {
		return errors.Join(netns.Sysctl("net/ipv4/ip_forward", "1"), netns.Sysctl("net/ipv6/conf/all/forwarding", "1"))
	}))
	must(t, errors.Join(a.Route("0.0.0.0/0", "192.0.2.254"), a.Route("::/0", "2001:db8::fe")))
	must(t, errors.Join(b.Route("0.0.0.0/0", "198.51.100.254"), b.Route("::/0", "2001:db8:b::fe")))
	return a, b
}

// farther has a speaker in a come up with the router in b, whose packets arrive with this
// TTL: when it takes those, and not when it takes those with more alone.
func farther(t *testing.T, a *netns.NS, ttl uint8, holds func(state string) bool) {
	t.Helper()
	from := func(least uint8) []Peer {
		return []Peer{
			{Address: netip.MustParseAddr("198.51.100.1"), Local: a4, Multihop: true, MinTTL: least, Timing: Timing{100 * ms, 3}},
			{Address: netip.MustParseAddr("2001:db8:b::1"), Local: a6, Multihop: true, MinTTL: least, Timing: Timing{100 * ms, 3}},
		}
	}
	s, stop := speak(t, a, from(ttl)...)
	wait(t, s, Up, 10*time.Second)
	time.Sleep(time.Second)
	for _, st := range s.Statuses() {
		if st.State != Up || st.Ups != 1 || st.Interval != 100*ms {
			t.Errorf("got %+v, want up all the time, and 100 ms", st)
		}
	}
	if !holds("up") {
		t.Error("the router does not hold both sessions up")
	}
	setPeers(t, a, s, from(ttl+1)...)
	wait(t, s, Down, time.Second)
	setPeers(t, a, s, from(ttl)...)
	wait(t, s, Up, 10*time.Second)
	stop()
	time.Sleep(200 * ms)
	if !holds("down") {
		t.Error("the router does not hold both sessions down after we ended them")
	}
}

func TestFRRAgreesOverSomeHops(t *testing.T) {
	if _, err := os.Stat("/usr/lib/frr/bfdd"); err != nil {
		t.Skip("FRR is not installed: apt-get install frr")
	}
	a, b := farHosts(t)
	frr, err := router.StartFRR(b, scratch(t), `
bfd
 profile lb
  transmit-interval 100
  receive-interval 100
  minimum-ttl 254
 exit
 peer 192.0.2.1 multihop local-address 198.51.100.1
  profile lb
 exit
 peer 2001:db8::1 multihop local-address 2001:db8:b::1
  profile lb
 exit
exit
`)
	must(t, err)
	t.Cleanup(func() { must(t, frr.Close()) })
	farther(t, a, 254, func(state string) bool {
		out, err := frr.Command("show bfd peers json")
		must(t, err)
		up := strings.Count(out, `"status":"up"`)
		return state == "up" && up == 2 || state == "down" && up == 0
	})
}

func TestBIRDAgreesOverSomeHops(t *testing.T) {
	if _, err := os.Stat("/usr/sbin/bird"); err != nil {
		t.Skip("BIRD is not installed: apt-get install bird2")
	}
	a, b := farHosts(t)
	bird, err := router.StartBIRD(b, scratch(t), `
router id 198.51.100.1;
protocol device {}
protocol bfd {
	multihop { min rx interval 100 ms; min tx interval 100 ms; idle tx interval 1 s; multiplier 3; };
	neighbor 192.0.2.1 local 198.51.100.1 multihop on;
	neighbor 2001:db8::1 local 2001:db8:b::1 multihop on;
}
`)
	must(t, err)
	t.Cleanup(func() { must(t, bird.Close()) })
	// Its packets have the kernel's TTL of 64.
	farther(t, a, 63, func(state string) bool {
		out, err := bird.Command("show bfd sessions")
		must(t, err)
		up := strings.Count(out, " Up ")
		return state == "up" && up == 2 || state == "down" && up == 0
	})
}

func TestBIRDHasTheSamePassword(t *testing.T) {
	if _, err := os.Stat("/usr/sbin/bird"); err != nil {
		t.Skip("BIRD is not installed: apt-get install bird2")
	}
	a, b := hosts(t)
	bird, err := router.StartBIRD(b, scratch(t), `
router id 192.0.2.2;
protocol device {}
protocol bfd {
	interface "eth0" { min rx interval 100 ms; min tx interval 100 ms; idle tx interval 1 s; multiplier 3;
		authentication meticulous keyed sha1; password "correct horse" { id 7; };
	};
	neighbor 192.0.2.1 dev "eth0" local 192.0.2.2;
}
`)
	must(t, err)
	t.Cleanup(func() { must(t, bird.Close()) })
	with := func(key string) Peer {
		return Peer{Address: b4, Local: a4, Timing: Timing{100 * ms, 3}, Key: []byte(key), KeyID: 7}
	}
	s, _ := speak(t, a, with("correct horse"))
	wait(t, s, Up, 10*time.Second)
	time.Sleep(time.Second)
	if st := s.Statuses()[0]; st.State != Up || st.Ups != 1 {
		t.Errorf("got %+v, want up all the time", st)
	}
	setPeers(t, a, s, with("wrong"))
	time.Sleep(3 * time.Second)
	if st := s.Statuses()[0]; st.State == Up {
		t.Errorf("up with another password: %+v", st)
	}
}
