package cluster

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/halfproxy/halfproxy/lb"
)

// flowStore is a node's records of flows.
type flowStore struct {
	mu    sync.Mutex
	held  map[uint64]lb.FlowRecord
	twice map[uint64]bool // those that came again
}

func (s *flowStore) AllFlows(yield func([]lb.FlowRecord) bool) error {
	s.mu.Lock()
	var list []lb.FlowRecord
	for _, r := range s.held {
		list = append(list, r)
	}
	s.mu.Unlock()
	for piece := range slices.Chunk(list, 30_000) {
		if !yield(piece) {
			return nil
		}
	}
	return nil
}

func (s *flowStore) LearnFlows(records []lb.FlowRecord) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range records {
		if _, there := s.held[r.Key]; there {
			s.twice[r.Key] = true
		}
		s.held[r.Key] = r
	}
	return nil
}

func (s *flowStore) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held)
}

func (s *flowStore) countTwice() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.twice)
}

func newFlowStore(n int) *flowStore {
	s := &flowStore{held: make(map[uint64]lb.FlowRecord), twice: make(map[uint64]bool)}
	for _, r := range someFlows(0, n) {
		s.held[r.Key] = r
	}
	return s
}

func someFlows(first, n int) []lb.FlowRecord {
	list := make([]lb.FlowRecord, n)
	for i := range list {
		key := uint64(first + i)
		list[i] = lb.FlowRecord{Key: key, Backend: key * 7, Idle: time.Duration(key%100) * time.Second, Datagrams: key%2 == 0, Closing: key%3 == 0}
	}
	return list
}

// launchWithFlows runs members that hold so many records of flows each.
func launchWithFlows(t testing.TB, held ...int) ([]*member, []*flowStore) {
	join := loopback()
	var members []*member
	var stores []*flowStore
	for i, n := range held {
		at := join
		if i > 0 {
			at = loopback()
		}
		cfg := configOf(fmt.Sprintf("lb%d", i+1), at, join)
		store := newFlowStore(n)
		cfg.Flows = store
		members, stores = append(members, launch(t, cfg)), append(stores, store)
	}
	for _, m := range members {
		m.waitStates(10*time.Second, slices.Repeat([]string{Alive}, len(held))...)
	}
	return members, stores
}

func TestRecordsOfFlowsReachAllMembersAndNewsIsNotKeptWaiting(t *testing.T) {
	members, stores := launchWithFlows(t, 0, 0, 0)
	const seconds, rate = 2, 10_000 // the race detector watches every byte of them
	var slowest time.Duration
	news := lb.Digest(1)
	for i := range seconds * 10 {
		members[0].ShareFlows(someFlows(i*rate/10, rate/10))
		begin := time.Now()
		news++
		members[1].Publish(lb.Report{Config: news})
		members[2].waitConfig(5*time.Second, "lb2", news)
		slowest = max(slowest, time.Since(begin))
		time.Sleep(time.Until(begin.Add(100 * time.Millisecond)))
	}
	for i, s := range stores[1:] {
		// They may be lost: on loopback hardly any is.
		members[i+1].wait(5*time.Second, "records of flows", func() bool { return s.count() > seconds*rate*98/100 })
		s.mu.Lock()
		for key, r := range s.held {
			if want := someFlows(int(key), 1)[0]; r != want {
				t.Errorf("got %+v, want %+v", r, want)
				break
			}
		}
		s.mu.Unlock()
		t.Logf("%s holds %d of %d", members[i+1].cfg.Name, s.count(), seconds*rate)
	}
	t.Logf("news took %v at most", slowest)
	if slowest > time.Second {
		t.Errorf("news took %v while records of flows were sent", slowest)
	}
}

// TestWhoJoinsHearsOfWhatWasToldJustBefore: in no store is any of it, as if it had come to each
// after it had answered.
func TestWhoJoinsHearsOfWhatWasToldJustBefore(t *testing.T) {
	members, _ := launchWithFlows(t, 0, 0)
	const told = 1000
	members[0].ShareFlows(someFlows(0, told))
	store := newFlowStore(0)
	cfg := configOf("lb3", loopback(), members[0].cfg.Listen)
	cfg.Flows = store
	launch(t, cfg).wait(5*time.Second, "what was told", func() bool { return store.count() == told })
}

// TestRecordsOfFlowsAreToldTwice: the other member may lose what it hears first.
func TestRecordsOfFlowsAreToldTwice(t *testing.T) {
	members, stores := launchWithFlows(t, 0, 0)
	const told = 100
	members[0].ShareFlows(someFlows(0, told))
	members[1].wait(10*time.Second, "what was told, twice", func() bool { return stores[1].countTwice() == told })
}

func TestAMemberFetchesTheOthersRecordsOfFlowsBeforeItIsReady(t *testing.T) {
	join := loopback()
	cfg := configOf("lb1", join)
	cfg.Flows = newFlowStore(70_000)
	first := launch(t, cfg)
	first.wait(time.Second, "fetched, without anybody to fetch from", first.FlowsFetched)

	store := newFlowStore(0)
	cfg = configOf("lb2", loopback(), join)
	cfg.Flows = store
	second := launch(t, cfg)
	if second.FlowsFetched() {
		t.Error("fetched before it has met anybody")
	}
	second.wait(8*time.Second, "fetched", second.FlowsFetched)
	if n := store.count(); n != 70_000 {
		t.Errorf("fetched, with %d records of 70000", n)
	}
}

func TestAMemberThatIsAloneDoesNotWaitForRecordsOfFlows(t *testing.T) {
	cfg := configOf("lb1", loopback(), loopback())
	cfg.Flows = newFlowStore(0)
	m := launch(t, cfg)
	begin := time.Now()
	m.wait(2*alonePeriod, "fetched", m.FlowsFetched)
	if took := time.Since(begin); took < alonePeriod/2 {
		t.Errorf("fetched after %v, want it to look for others first", took)
	}
}

func TestRecordsOfFlowsThatThereIsNoRoomForAreLeftOut(t *testing.T) {
	cfg := configOf("lb1", loopback())
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.transport.Shutdown() }()
	m.ShareFlows(someFlows(0, 2*mostToSend))
	for range 2 * mostToLearn / perMessage {
		m.receive(flows{records: someFlows(0, perMessage)}.encode())
	}
	if n := len(m.exchange.outbox); n != mostToSend {
		t.Errorf("%d wait to be sent, want %d", n, mostToSend)
	}
	if n := m.exchange.pending.Load(); n > mostToLearn {
		t.Errorf("%d wait to be taken, want %d at most", n, mostToLearn)
	}
	for way, least := range map[string]float64{flowsNotSent: mostToSend, flowsNotTaken: mostToLearn / 2} {
		if got := testutil.ToFloat64(m.metrics.flows.WithLabelValues(way)); got < least {
			t.Errorf("%s: counted %v, want at least %v", way, got, least)
		}
	}
}

func TestRecordsOfFlowsOnTheWire(t *testing.T) {
	if n := len(flows{records: someFlows(0, perPacket)}.encode()); n > maxPacket {
		t.Errorf("a packet of %d bytes, want %d at most", n, maxPacket)
	}
	if n := len(flows{records: someFlows(0, perMessage)}.encode()); n > maxMessage {
		t.Errorf("a message of %d bytes, want %d at most", n, maxMessage)
	}
	one := strings.Repeat("k", 16) + "\x00\x01\x03"
	for _, tt := range []struct {
		name, message string
		want          refusal
	}{
		{"none", "\x04\x09\x00\x00\x00", ""},
		{"one", "\x04\x09\x00\x00\x01" + one, ""},
		{"an unknown part", "\x04\x09\x03\x00\x00", refusedMalformed},
		{"fewer than said", "\x04\x09\x00\x00\x02" + one, refusedMalformed},
		{"more than said", "\x04\x09\x00\x00\x01" + one + one, refusedMalformed},
		{"unknown flags", "\x04\x09\x00\x00\x01" + one[:18] + "\x04", refusedMalformed},
		{"a member that wants them", "\x04\x0a\x03lb1", ""},
		{"nobody wants them", "\x04\x0a\x00", refusedMalformed},
	} {
		if _, got := decode([]byte(tt.message)); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}
