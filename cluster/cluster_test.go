package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/halfproxy/halfproxy/lb"
)

// The members of these tests are real: sockets on addresses of 127/8 that no
// other test process is likely to use.
var lastAddress atomic.Uint32

func loopback() netip.AddrPort {
	n := lastAddress.Add(1)
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, byte(50 + os.Getpid()/250%200), byte(os.Getpid() % 250), byte(n)}), 7946)
}

var (
	key      = bytes.Repeat([]byte{1}, 32)
	otherKey = bytes.Repeat([]byte{2}, 32)
)

// member is a Cluster that runs.
type member struct {
	*Cluster
	t      testing.TB
	log    *logBuffer
	reg    *prometheus.Registry
	faults *faults
	cancel context.CancelFunc
	done   chan error
}

// stop ends Run and gives what it returned.
func (m *member) stop() error {
	m.cancel()
	select {
	case err := <-m.done:
		m.done <- err
		return err
	case <-time.After(10 * time.Second):
		m.t.Fatalf("%s: Run does not return", m.cfg.Name)
		return nil
	}
}

// kill makes the member stop without a word.
func (m *member) kill() {
	m.faults.set(func(string) bool { return true })
	if err := m.stop(); err != nil {
		m.t.Errorf("%s: Run: %v", m.cfg.Name, err)
	}
}

func configOf(name string, at netip.AddrPort, join ...netip.AddrPort) Config {
	cfg := Config{Name: name, Cluster: "test", Listen: at, Keys: [][]byte{key}}
	for _, j := range join {
		cfg.Join = append(cfg.Join, j.String())
	}
	return cfg
}

// launch runs a member as production does, except for what change changes.
func launch(t testing.TB, cfg Config, change ...func(*timing)) *member {
	t.Helper()
	m := &member{t: t, log: &logBuffer{}, reg: prometheus.NewPedanticRegistry(), faults: &faults{}, done: make(chan error, 2)}
	cfg.Registerer = m.reg
	cfg.Log = slog.New(slog.NewTextHandler(m.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	timing := production()
	for _, c := range change {
		c(&timing)
	}
	var err error
	m.Cluster, err = newCluster(cfg, timing, func(t memberlist.NodeAwareTransport) memberlist.NodeAwareTransport {
		m.faults.NodeAwareTransport = t
		return m.faults
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	go func() { m.done <- m.Run(ctx) }()
	t.Cleanup(func() {
		_ = m.stop()
		if t.Failed() && testing.Verbose() {
			t.Logf("log of %s:\n%s", cfg.Name, m.log)
		}
	})
	return m
}

// launchAll runs n members lb1, lb2… that all know each other's address, own
// included, as a configuration that is the same everywhere has it.
func launchAll(t testing.TB, n int, change ...func(*timing)) []*member {
	t.Helper()
	addresses := make([]netip.AddrPort, n)
	for i := range addresses {
		addresses[i] = loopback()
	}
	members := make([]*member, n)
	for i := range members {
		members[i] = launch(t, configOf(fmt.Sprintf("lb%d", i+1), addresses[i], addresses...), change...)
	}
	for _, m := range members {
		m.waitStates(time.Minute, slices.Repeat([]string{Alive}, n)...) // fifty of them on two cores take their time
	}
	return members
}

func inAHurry(t *timing) {
	t.seek = 300 * time.Millisecond
	t.gossipToTheDead = 300 * time.Millisecond
}

// wait waits until cond is true, woken by Changes and, for what that does not
// tell, by a clock.
func (m *member) wait(limit time.Duration, what string, cond func() bool) {
	m.t.Helper()
	start := time.Now()
	for !cond() {
		if time.Since(start) > limit {
			m.t.Fatalf("%s: not within %v: %s; members %v", m.cfg.Name, limit, what, m.Members())
		}
		select {
		case <-m.Changes():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (m *member) states() []string {
	var list []string
	for _, member := range m.Members() {
		list = append(list, member.State)
	}
	return list
}

// state is what m takes the member of this name for.
func (m *member) state(name string) string {
	for _, member := range m.Members() {
		if member.Name == name {
			return member.State
		}
	}
	return ""
}

func (m *member) waitStates(limit time.Duration, want ...string) {
	m.t.Helper()
	m.wait(limit, fmt.Sprintf("states %v", want), func() bool { return slices.Equal(m.states(), want) })
}

// config gives the Config digest that m holds of name: the tests' way to tell
// records apart. 0 is none.
func (m *member) config(name string) lb.Digest {
	for _, r := range m.Records() {
		if r.Member == name {
			return r.Report.Config
		}
	}
	return 0
}

func (m *member) waitConfig(limit time.Duration, name string, want lb.Digest) {
	m.t.Helper()
	m.wait(limit, fmt.Sprintf("config %v of %s", want, name), func() bool { return m.config(name) == want })
}

func (m *member) version() version {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.roster.version()
}

func (m *member) refused(why refusal) float64 {
	return testutil.ToFloat64(m.metrics.refused.WithLabelValues(string(why)))
}

func TestAllMembersSeeAllRecords(t *testing.T) {
	t.Parallel()
	members := launchAll(t, 5)
	for i, m := range members {
		m.Publish(lb.Report{Config: lb.Digest(i + 1), Observations: []lb.Observation{{Target: 2, State: lb.Down}, {Target: 1, State: lb.Up}}})
	}
	for _, m := range members {
		for i := range members {
			m.waitConfig(5*time.Second, fmt.Sprintf("lb%d", i+1), lb.Digest(i+1))
		}
		if got := len(m.Records()); got != len(members) {
			t.Errorf("%s: got %d records, want %d", m.cfg.Name, got, len(members))
		}
		for _, r := range m.Records() {
			if age := time.Since(r.Heard); age < 0 || age > 2*time.Second {
				t.Errorf("%s: %s was heard %v ago", m.cfg.Name, r.Member, age)
			}
			if !strings.Contains(r.Heard.String(), "m=") {
				t.Errorf("%s: Heard of %s is not monotonic: %v", m.cfg.Name, r.Member, r.Heard)
			}
			if got := r.Report.Observations; len(got) != 2 || got[0].Target != 1 || got[0].State != lb.Up {
				t.Errorf("%s: observations of %s: got %v", m.cfg.Name, r.Member, got)
			}
		}
	}

	// A change is everywhere within a moment, and not told twice.
	for round := range lb.Digest(5) {
		members[0].Publish(lb.Report{Config: 100 + round})
		for _, m := range members {
			m.waitConfig(5*time.Second, "lb1", 100+round)
		}
	}
	before := members[0].version()
	members[0].Publish(lb.Report{Config: 104})
	if got := members[0].version(); got != before {
		t.Errorf("the same report again: got version %v, want %v", got, before)
	}

	// Its own address is among those to join.
	for _, m := range members {
		if got := m.log.count("Stream connection from=" + m.cfg.Listen.Addr().String() + ":"); got != 0 {
			t.Errorf("%s connected to itself %d times", m.cfg.Name, got)
		}
	}

	want := `
# HELP halfproxy_cluster_members Members of the cluster by state, this one included.
# TYPE halfproxy_cluster_members gauge
halfproxy_cluster_members{state="alive"} 5
halfproxy_cluster_members{state="dead"} 0
halfproxy_cluster_members{state="left"} 0
halfproxy_cluster_members{state="silent"} 0
`
	if err := testutil.GatherAndCompare(members[2].reg, strings.NewReader(want), "halfproxy_cluster_members"); err != nil {
		t.Error(err)
	}
	if problems, err := testutil.GatherAndLint(members[2].reg); err != nil || len(problems) > 0 {
		t.Error(err, problems)
	}
}

func TestChangesArriveThoughAThirdOfAllPacketsIsLost(t *testing.T) {
	t.Parallel()
	members := launchAll(t, 3)
	for i, m := range members {
		dice := rand.New(rand.NewPCG(1, uint64(i)))
		var mu sync.Mutex
		m.faults.setPackets(func(string) bool {
			mu.Lock()
			defer mu.Unlock()
			return dice.IntN(10) < 3
		})
	}
	for round := lb.Digest(1); round <= 20; round++ {
		for i, m := range members {
			m.Publish(lb.Report{Config: round<<8 | lb.Digest(i)})
		}
		for _, m := range members {
			for i := range members {
				m.waitConfig(5*time.Second, fmt.Sprintf("lb%d", i+1), round<<8|lb.Digest(i))
			}
		}
	}
}

// Neither the packets nor the broadcasts of a change arrive: the heartbeat
// tells, and TCP brings it.
func TestARecordOfWhichEveryPacketIsLostIsRepaired(t *testing.T) {
	t.Parallel()
	members := launchAll(t, 2)
	members[0].faults.setPackets(func(string) bool { return true })
	members[0].Publish(lb.Report{Config: 1})
	time.Sleep(300 * time.Millisecond) // the broadcast has been sent as often as it ever is
	if got := members[1].config("lb1"); got != 0 {
		t.Fatalf("got config %v, want the packets to be lost", got)
	}
	members[0].faults.setPackets(nil)
	members[1].waitConfig(5*time.Second, "lb1", 1)
}

func TestALargeReportArrives(t *testing.T) {
	t.Parallel()
	members := launchAll(t, 3)
	for round := range 3 {
		want := sample(5000)
		want.Config = lb.Digest(round + 1)
		members[0].Publish(want)
		for _, m := range members[1:] {
			m.waitConfig(5*time.Second, "lb1", want.Config)
			for _, r := range m.Records() {
				if r.Member == "lb1" && !slices.Equal(r.Report.Observations, want.Observations) {
					t.Errorf("%s: the observations differ", m.cfg.Name)
				}
			}
		}
	}
	if got := members[0].queue.NumQueued(); got != 0 {
		t.Errorf("%d broadcasts queued, want none: they do not fit a packet", got)
	}
	// A new member gets it as it joins.
	late := launch(t, configOf("lb9", loopback(), members[1].cfg.Listen))
	late.waitConfig(5*time.Second, "lb1", 3)
}

// One backend's change of many fits a packet, so it needs no stream.
func TestOnlyWhatChangedOfALargeReportIsSent(t *testing.T) {
	t.Parallel()
	members := launchAll(t, 2)
	large := sample(5000)
	members[0].Publish(large)
	members[1].waitConfig(5*time.Second, "lb1", large.Config)
	members[0].faults.refuseDials()
	for round := range 10 {
		changed := large
		changed.Config = lb.Digest(round + 1)
		changed.Observations = slices.Clone(large.Observations)
		changed.Observations[500*round].State = lb.Up
		changed.Observations = slices.Delete(changed.Observations, round, round+1)
		members[0].Publish(changed)
		members[1].waitConfig(5*time.Second, "lb1", changed.Config)
		for _, r := range members[1].Records() {
			if r.Member == "lb1" && !slices.Equal(r.Report.Observations, changed.Observations) {
				t.Fatalf("round %d: the observations differ", round)
			}
		}
	}
}

// A change makes no sense to one who missed the record before it.
func TestOneWhoMissedAChangeAsksForTheWhole(t *testing.T) {
	t.Parallel()
	members := launchAll(t, 2)
	large := sample(5000)
	members[0].Publish(large)
	members[1].waitConfig(5*time.Second, "lb1", large.Config)
	for config := lb.Digest(1); config <= 2; config++ {
		large.Config = config
		members[0].faults.setPackets(func(string) bool { return config == 1 })
		members[0].Publish(large)
		time.Sleep(100 * time.Millisecond)
	}
	members[1].waitConfig(5*time.Second, "lb1", 2)
}

func TestAReportThatIsTooLargeLeavesTheLastOneStanding(t *testing.T) {
	t.Parallel()
	m := launch(t, configOf("lb1", loopback()))
	m.Publish(lb.Report{Config: 1})
	m.Publish(sample(70_000))
	if got := m.config("lb1"); got != 1 || !strings.Contains(m.log.String(), "spread the services over several clusters") {
		t.Errorf("got config %v, log:\n%s", got, m.log)
	}
}

func TestARestartedMembersRecordReplacesTheOldOne(t *testing.T) {
	t.Parallel()
	members := launchAll(t, 3)
	stateDir := t.TempDir()
	cfg := configOf("lb9", loopback(), members[0].cfg.Listen)
	cfg.StateDir = stateDir
	first := launch(t, cfg)
	for config := range lb.Digest(5) {
		first.Publish(lb.Report{Config: 10 + config})
		members[2].waitConfig(5*time.Second, "lb9", 10+config)
	}
	first.kill()

	second := launch(t, cfg)
	second.Publish(lb.Report{Config: 20})
	for _, m := range members {
		m.waitConfig(5*time.Second, "lb9", 20)
		m.waitStates(5*time.Second, Alive, Alive, Alive, Alive)
	}
	old, now := first.version(), second.version()
	if now.boot <= old.boot || now.sequence != 1 {
		t.Errorf("got version %v after %v, want a higher boot and sequence 1", now, old)
	}
}

// Without a state directory, on a clock that went back.
func TestAMemberWhoseBootNumberShrankIsHeardAllTheSame(t *testing.T) {
	for _, tt := range []struct {
		name  string
		first lb.Digest
	}{{"after a record", 1}, {"after heartbeats alone", 0}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			members := launchAll(t, 2)
			cfg := configOf("lb9", loopback(), members[0].cfg.Listen)
			first := launch(t, cfg)
			if tt.first != 0 {
				first.Publish(lb.Report{Config: tt.first})
			}
			for _, m := range members {
				m.waitStates(5*time.Second, Alive, Alive, Alive)
				m.waitConfig(5*time.Second, "lb9", tt.first)
			}
			time.Sleep(600 * time.Millisecond) // a heartbeat
			first.kill()

			second := launch(t, cfg)
			second.mu.Lock()
			second.roster.own().boot = 1
			second.mu.Unlock()
			second.Publish(lb.Report{Config: 2})
			for _, m := range members {
				m.waitConfig(5*time.Second, "lb9", 2)
				m.waitStates(3*time.Second, Alive, Alive, Alive)
			}
		})
	}
}

func TestStrangersAreRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   refusal
		log    string
	}{
		{"another key", func(c *Config) { c.Keys = [][]byte{otherKey} }, refusedKey, wrongKey},
		{"another cluster", func(c *Config) { c.Cluster = "other" }, refusedLabel, "message of another cluster refused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			home := launch(t, configOf("lb1", loopback()), inAHurry)
			cfg := configOf("lb2", loopback(), home.cfg.Listen)
			tt.change(&cfg)
			stranger := launch(t, cfg, inAHurry)
			stranger.Publish(lb.Report{Config: 1})
			home.wait(5*time.Second, "a refusal", func() bool { return home.refused(tt.want) >= 2 })
			for _, m := range []*member{home, stranger} {
				if got := m.states(); len(got) != 1 {
					t.Errorf("%s: got members %v, want itself alone", m.cfg.Name, m.Members())
				}
			}
			if len(home.Records()) != 0 {
				t.Errorf("got records %v, want none", home.Records())
			}
			if got := home.log.count("level=WARN", tt.log, "remedy="); got != 1 {
				t.Errorf("got %d warnings %q, want 1, log:\n%s", got, tt.log, home.log)
			}
			if got := stranger.log.count("level=WARN", "member to join not reached", "address="+home.cfg.Listen.String()); got != 1 {
				t.Errorf("the stranger: got %d warnings, want 1, log:\n%s", got, stranger.log)
			}
		})
	}
}

func TestKeysCanBeChangedOneMemberAfterTheOther(t *testing.T) {
	t.Parallel()
	old := configOf("lb1", loopback())
	old.Keys = [][]byte{key, otherKey}
	renewed := configOf("lb2", loopback(), old.Listen)
	renewed.Keys = [][]byte{otherKey, key}
	a, b := launch(t, old), launch(t, renewed)
	a.Publish(lb.Report{Config: 1})
	b.Publish(lb.Report{Config: 2})
	b.waitConfig(5*time.Second, "lb1", 1)
	a.waitConfig(5*time.Second, "lb2", 2)
}

func TestKeysAreChangedWithoutAStop(t *testing.T) {
	t.Parallel()
	members := launchAll(t, 3)
	told := lb.Digest(0)
	steps := [][][]byte{{key, otherKey}, {otherKey, key}, {otherKey}}
	for _, keys := range steps {
		for _, m := range members {
			if err := m.SetKeys(keys); err != nil {
				t.Fatal(err)
			}
			told++
			m.Publish(lb.Report{Config: told})
			for _, other := range members {
				other.waitConfig(5*time.Second, m.cfg.Name, told)
			}
		}
	}
	for _, m := range members {
		if got := m.refused(refusedKey); got != 0 {
			t.Errorf("%s: refused %v messages for their key, want none", m.cfg.Name, got)
		}
	}

	stranger := configOf("lb9", loopback(), members[0].cfg.Listen)
	stranger.Keys = [][]byte{key}
	launch(t, stranger)
	members[0].wait(10*time.Second, "a refusal of the key that was taken away", func() bool { return members[0].refused(refusedKey) > 0 })
	if err := members[0].SetKeys([][]byte{{1}}); err == nil || !strings.Contains(err.Error(), "key 1 is 1 bytes long") {
		t.Errorf("key too short: got %v, want it named", err)
	}
}

func TestOneIsFoundWhoIsToJoinFromNowOn(t *testing.T) {
	t.Parallel()
	a := launch(t, configOf("lb1", loopback()), inAHurry)
	b := launch(t, configOf("lb2", loopback()), inAHurry)
	if err := a.SetJoin([]string{b.cfg.Listen.String()}); err != nil {
		t.Fatal(err)
	}
	a.waitStates(5*time.Second, Alive, Alive)
	if err := a.SetJoin([]string{"nowhere"}); err == nil || !strings.Contains(err.Error(), `join[0] "nowhere"`) {
		t.Errorf("no port: got %v, want the entry named", err)
	}
}

// Each side has taken the other for dead and memberlist has forgotten it, so
// nobody speaks to the other side any more, however long it takes.
func TestAHealedPartitionMerges(t *testing.T) {
	t.Parallel()
	members := launchAll(t, 5, inAHurry)
	left, right := members[:3], members[3:]
	cut(left, right)
	for _, m := range left {
		m.waitStates(20*time.Second, Alive, Alive, Alive, Dead, Dead)
	}
	for _, m := range right {
		m.waitStates(20*time.Second, Dead, Dead, Dead, Alive, Alive)
	}
	for i, m := range members {
		m.Publish(lb.Report{Config: lb.Digest(i + 1)})
	}
	time.Sleep(2 * time.Second) // memberlist forgets the dead as its probes go round
	if got := left[0].config("lb4"); got != 0 {
		t.Fatalf("got config %v over the cut", got)
	}

	for _, m := range members {
		m.faults.set(nil)
	}
	start := time.Now()
	for _, m := range members {
		m.waitStates(6*time.Second, Alive, Alive, Alive, Alive, Alive)
		for i := range members {
			m.waitConfig(5*time.Second, fmt.Sprintf("lb%d", i+1), lb.Digest(i+1))
		}
	}
	t.Logf("merged %v after the cut was healed", time.Since(start))
}

func TestACutOffMemberFallsSilentBeforeItIsDead(t *testing.T) {
	t.Parallel()
	members := launchAll(t, 3)
	members[2].Publish(lb.Report{Config: 1})
	members[0].waitConfig(5*time.Second, "lb3", 1)
	cut(members[:2], members[2:])
	start := time.Now()
	// What is cut off knows it as fast as the others, however memberlist
	// stretches its probes there.
	members[2].wait(4*time.Second, "silence", func() bool {
		got := members[2].states()
		return got[0] != Alive && got[1] != Alive
	})
	members[0].wait(4*time.Second, "silence", func() bool { return members[0].states()[2] != Alive })
	for _, r := range members[0].Records() {
		if silence := time.Since(r.Heard); r.Member == "lb3" && (silence < time.Second || silence > time.Since(start)+3*time.Second) {
			t.Errorf("lb3 was heard %v ago, want about %v", silence, time.Since(start))
		}
	}
	if got := members[0].config("lb3"); got != 1 {
		t.Errorf("the silent member's record: got config %v, want it kept", got)
	}
}

func TestALeavingMemberSaysSoBeforeItIsGone(t *testing.T) {
	t.Parallel()
	members := launchAll(t, 3)
	leaver := members[2]
	leaver.Publish(lb.Report{Config: 7})
	members[0].waitConfig(5*time.Second, "lb3", 7)
	leaver.faults.setPackets(func(string) bool { return true }) // so that only what is sure can arrive
	start := time.Now()
	leaver.cancel()
	for _, m := range members[:2] {
		m.wait(2*time.Second, "the record that says Leaving", func() bool {
			for _, r := range m.Records() {
				if r.Member == "lb3" && r.Report.Leaving && r.Report.Config == 7 {
					return true
				}
			}
			return false
		})
		if got := m.states()[2]; got != Alive {
			t.Errorf("%s: lb3 is %s when its last record comes, want %s", m.cfg.Name, got, Alive)
		}
	}
	leaver.faults.setPackets(nil)
	for _, m := range members[:2] {
		m.waitStates(2*time.Second, Alive, Alive, Left)
	}
	if err := leaver.stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	t.Logf("left within %v", time.Since(start))
	if got := leaver.states(); !slices.Contains(got, Left) {
		t.Errorf("the leaver of itself: got %v", got)
	}
	leaver.Publish(lb.Report{Config: 8})
	for _, r := range leaver.Records() {
		if r.Member == "lb3" && !r.Report.Leaving {
			t.Error("a report published late takes the leaving back")
		}
	}
}

func TestTheYoungerOfTwoMembersWithOneNameStops(t *testing.T) {
	t.Parallel()
	members := launchAll(t, 2)
	members[0].Publish(lb.Report{Config: 1})
	time.Sleep(time.Second) // age is told apart by seconds
	for _, join := range []netip.AddrPort{members[0].cfg.Listen, members[1].cfg.Listen} {
		newcomer := launch(t, configOf("lb1", loopback(), join))
		newcomer.Publish(lb.Report{Config: 2})
		select {
		case err := <-newcomer.done:
			newcomer.done <- err
			want := fmt.Sprintf("member name \"lb1\": already in use by the member at %s: give each node a name of its own", members[0].cfg.Listen)
			if !errors.Is(err, ErrNameTaken) || err.Error() != want {
				t.Errorf("got %v, want %s", err, want)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("the newcomer runs on")
		}
	}
	if got := members[0].log.count("level=ERROR", "another member runs under this one's name", "remedy="); got != 1 {
		t.Errorf("got %d errors in the log of the first bearer, want 1", got)
	}
	if members[0].refused(refusedConflict) == 0 {
		t.Error("no conflict counted")
	}
	for _, m := range members {
		m.waitStates(5*time.Second, Alive, Alive)
	}
	members[1].waitConfig(5*time.Second, "lb1", 1)
	select {
	case err := <-members[0].done:
		t.Errorf("the first bearer of the name stopped: %v", err)
	default:
	}
}

func TestAMemberThatLeftMayReturnAtAnotherAddress(t *testing.T) {
	t.Parallel()
	members := launchAll(t, 2, inAHurry)
	first := launch(t, configOf("lb9", loopback(), members[0].cfg.Listen), inAHurry)
	members[1].waitStates(5*time.Second, Alive, Alive, Alive)
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	members[1].waitStates(5*time.Second, Alive, Alive, Left)
	moved := launch(t, configOf("lb9", loopback(), members[0].cfg.Listen), inAHurry)
	for _, m := range members {
		m.wait(5*time.Second, "the new address", func() bool {
			return slices.Contains(m.Members(), Member{"lb9", moved.cfg.Listen, Alive})
		})
	}
}

func TestAMemberIsFoundByName(t *testing.T) {
	t.Parallel()
	if _, err := net.LookupHost("localhost"); err != nil {
		t.Skip("localhost does not resolve")
	}
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 20_000+uint16(os.Getpid()%10_000))
	a := launch(t, configOf("lb1", at))
	cfg := configOf("lb2", loopback())
	cfg.Join = []string{fmt.Sprintf("localhost:%d", at.Port())}
	b := launch(t, cfg)
	b.waitStates(5*time.Second, Alive, Alive)
	a.waitStates(5*time.Second, Alive, Alive)
}

func TestNewNamesEveryMistakeAndItsRemedy(t *testing.T) {
	t.Parallel()
	taken := launch(t, configOf("lb1", loopback()))
	at := loopback()
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   []string // the error's lines
	}{
		{"a port that is taken", func(c *Config) { c.Listen = taken.cfg.Listen }, []string{
			fmt.Sprintf("listen for members on %s: failed to start TCP listener on %q port 7946: listen tcp %s: bind: address already in use: another process has the port: stop it, or give cluster.listen another one",
				taken.cfg.Listen, taken.cfg.Listen.Addr(), taken.cfg.Listen)}},
		{"an address of another host", func(c *Config) { c.Listen = netip.MustParseAddrPort("192.0.2.1:7946") }, []string{
			`listen for members on 192.0.2.1:7946: failed to start TCP listener on "192.0.2.1" port 7946: listen tcp 192.0.2.1:7946: bind: cannot assign requested address: cluster.listen must be an address of this host`}},
		{"no address", func(c *Config) { c.Listen = netip.AddrPort{} }, []string{
			"listen address invalid AddrPort must be an address of this host and a port: the other members reach this one there"}},
		{"any address", func(c *Config) { c.Listen = netip.MustParseAddrPort("0.0.0.0:7946") }, []string{
			"listen address 0.0.0.0:7946 must be an address of this host and a port: the other members reach this one there"}},
		{"no port", func(c *Config) { c.Listen = netip.AddrPortFrom(at.Addr(), 0) }, []string{
			fmt.Sprintf("listen address %s:0 must be an address of this host and a port: the other members reach this one there", at.Addr())}},
		{"everything else at once", func(c *Config) {
			c.Name, c.Cluster = "", strings.Repeat("x", 65)
			c.Join = []string{"lb2", "lb3:0", "[2001:db8::1]:7946"}
			c.Keys = [][]byte{key, []byte("secret")}
		}, []string{
			`member name "": names must be 1 to 255 bytes of UTF-8`,
			fmt.Sprintf(`cluster name %q must be 1 to 64 bytes long: all nodes need the same`, strings.Repeat("x", 65)),
			`join[0] "lb2": address lb2: missing port in address`,
			`join[1] "lb3:0": address lb3:0: host and port expected`,
			fmt.Sprintf(`join[2] "[2001:db8::1]:7946" is of another address family than the listen address %s: members must share one`, at),
			`key 2 is 6 bytes long: it must be 16, 24 or 32`,
		}},
		{"no key", func(c *Config) { c.Keys = nil }, []string{
			"no key: whoever reaches the port could join; make one with `head -c 32 /dev/urandom | base64`"}},
	} {
		cfg := configOf("lb2", at)
		tt.change(&cfg)
		reg := prometheus.NewRegistry()
		cfg.Registerer = reg
		_, err := New(cfg)
		if err == nil || err.Error() != strings.Join(tt.want, "\n") {
			t.Errorf("%s: got\n%v\nwant\n%s", tt.name, err, strings.Join(tt.want, "\n"))
		}
		if families, err := reg.Gather(); err != nil || len(families) != 0 {
			t.Errorf("%s: metrics stay registered: %v, %v", tt.name, families, err)
		}
	}
}

func TestNoKeyIsEverLogged(t *testing.T) {
	t.Parallel()
	secret := []byte("sixteen letters!")
	cfg := configOf("lb1", loopback())
	cfg.Keys = [][]byte{secret}
	a := launch(t, cfg)
	cfg = configOf("lb2", loopback(), a.cfg.Listen)
	cfg.Keys = [][]byte{[]byte("sixteen numbers!")}
	b := launch(t, cfg)
	a.wait(5*time.Second, "a refusal", func() bool { return a.refused(refusedKey) > 0 })
	if err := errors.Join(a.stop(), b.stop()); err != nil {
		t.Fatal(err)
	}
	for _, log := range []string{a.log.String(), b.log.String()} {
		for _, form := range []string{"sixteen letters!", fmt.Sprintf("%x", secret), fmt.Sprintf("%v", secret)} {
			if strings.Contains(log, form) {
				t.Errorf("the key is in the log as %q", form)
			}
		}
	}
}

func TestWhatIsNotUnderstoodIsCountedAndToldOnce(t *testing.T) {
	t.Parallel()
	m := launch(t, configOf("lb1", loopback()))
	for range 3 {
		m.receive([]byte{9, 9})
	}
	m.receive(nil)
	if got := m.refused(refusedVersion); got != 3 {
		t.Errorf("got %v refused, want 3", got)
	}
	if got := m.log.count("level=WARN", "message not understood", "reason=version"); got != 1 {
		t.Errorf("got %d warnings, want 1, log:\n%s", got, m.log)
	}
}

// Two that cannot reach each other at all learn of each other by way of the
// third. The record is the biggest that travels in packets, the cluster's name
// the longest.
func TestARecordThatJustFitsAPacketIsRelayed(t *testing.T) {
	t.Parallel()
	var addresses []netip.AddrPort
	var members []*member
	for i := range 3 {
		addresses = append(addresses, loopback())
		cfg := configOf(fmt.Sprintf("lb%d", i+1), addresses[i], addresses...)
		cfg.Cluster = strings.Repeat("x", maxCluster)
		members = append(members, launch(t, cfg))
	}
	for _, m := range members {
		m.waitStates(10*time.Second, Alive, Alive, Alive)
	}
	cut(members[:1], members[2:])

	report := sample(130)
	padding := maxPacket - len(relay{0, mustRecord(t, "lb1", version{1, 1}, report)}.encode())
	report.Tables[strings.Repeat("p", padding-9)] = 1
	if got := len(relay{0, mustRecord(t, "lb1", version{1, 1}, report)}.encode()); got != maxPacket {
		t.Fatalf("got a relay of %d bytes, want %d", got, maxPacket)
	}
	members[0].Publish(report)
	members[2].waitConfig(5*time.Second, "lb1", report.Config)
	members[1].waitConfig(5*time.Second, "lb1", report.Config)
}

func TestMembersThatDiedAreLookedForWhereTheyWere(t *testing.T) {
	c := &Cluster{joins: []string{"192.0.2.2:7946", "lb7.example:7946"}, roster: testRoster()}
	for _, name := range []string{"lb3", "lb4", "lb5"} {
		c.roster.join(node(name), epoch)
	}
	c.roster.take(mustRecord(t, "lb5", version{1, 1}, lb.Report{Leaving: true}), true, epoch, epoch)
	for _, name := range []string{"lb2", "lb3", "lb5"} {
		c.roster.gone(name, epoch)
	}
	configured, lost := c.sought()
	if want := []string{"192.0.2.3:7946"}; !slices.Equal(configured, c.joins) || !slices.Equal(lost, want) {
		t.Errorf("got %v and %v, want %v and %v", configured, lost, c.joins, want)
	}
}

// Not parallel: other tests' goroutines would be taken for its own.
func TestNothingIsLeftAfterRun(t *testing.T) {
	members := launchAll(t, 3)
	lonely := launch(t, configOf("lb9", loopback(), loopback()))
	members[0].Publish(sample(5000))
	members[1].waitConfig(5*time.Second, "lb1", sample(0).Config)
	for _, m := range append(members, lonely) {
		start := time.Now()
		if err := m.stop(); err != nil {
			t.Errorf("%s: Run: %v", m.cfg.Name, err)
		}
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("%s: took %v to stop", m.cfg.Name, took)
		}
		if err := m.Run(context.Background()); err == nil {
			t.Errorf("%s: Run can be called twice", m.cfg.Name)
		}
	}
	if got := goroutines("cluster.("); len(got) > 0 {
		t.Errorf("goroutines of ours are left:\n%s", strings.Join(got, "\n\n"))
	}
	// memberlist does not wait for its own.
	start := time.Now()
	for len(goroutines("memberlist.")) > 0 && time.Since(start) < 5*time.Second {
		time.Sleep(50 * time.Millisecond)
	}
	if got := goroutines("memberlist."); len(got) > 0 {
		t.Errorf("goroutines of memberlist are left:\n%s", strings.Join(got, "\n\n"))
	}
}

// goroutines gives the stacks that have part in them.
func goroutines(part string) []string {
	buf := make([]byte, 1<<20)
	var list []string
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, part) {
			list = append(list, stack)
		}
	}
	return list
}

// faults stands between a member and the network, at the sending side.
type faults struct {
	memberlist.NodeAwareTransport
	mu      sync.Mutex
	all     func(to string) bool // true: lost, TCP included
	packets func(to string) bool
	dials   bool // are refused

	sent atomic.Int64 // bytes in packets and streams
}

func (f *faults) set(lost func(string) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = lost
}

func (f *faults) setPackets(lost func(string) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.packets = lost
}

func (f *faults) refuseDials() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dials = true
}

func (f *faults) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	f.mu.Lock()
	all, packets := f.all, f.packets
	f.mu.Unlock()
	if all != nil && all(a.Addr) || packets != nil && packets(a.Addr) {
		return time.Now(), nil
	}
	f.sent.Add(int64(len(b)))
	return f.NodeAwareTransport.WriteToAddress(b, a)
}

func (f *faults) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	f.mu.Lock()
	all, dials := f.all, f.dials
	f.mu.Unlock()
	if all != nil && all(a.Addr) || dials {
		return nil, errors.New("cut")
	}
	conn, err := f.NodeAwareTransport.DialAddressTimeout(a, timeout)
	return countedConn{conn, &f.sent}, err
}

type countedConn struct {
	net.Conn
	sent *atomic.Int64
}

func (c countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.sent.Add(int64(n))
	return n, err
}

// cut takes away all that runs between two sides.
func cut(left, right []*member) {
	between := func(from, to []*member) {
		var addresses []string
		for _, m := range to {
			addresses = append(addresses, m.cfg.Listen.String())
		}
		for _, m := range from {
			m.faults.set(func(to string) bool { return slices.Contains(addresses, to) })
		}
	}
	between(left, right)
	between(right, left)
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// count gives the number of lines that hold all parts.
func (l *logBuffer) count(parts ...string) int {
	n := 0
	for line := range strings.Lines(l.String()) {
		if !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(line, part) }) {
			n++
		}
	}
	return n
}
