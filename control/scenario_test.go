package control

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

var update = flag.Bool("update", false, "write what was seen into the scenario files")

// TestScenarios plays the files in testdata. Each is a page of blocks: what
// happens, a line ----, and what this node (lb1) did about it and how things
// stand then. Between blocks 100 ms pass. What can happen:
//
//	size N                          how many members there should be
//	graceful shutdown D             of routes of a drain (first block only)
//	hold up D                       of routes that were withdrawn (first block only)
//	notice D                        before routes change (first block only)
//	service NAME vips=A,B backends=X,Y:WEIGHT [min_healthy=N|N%] [panic_below=N%] [none_healthy=use_all] [interval=D] [path=P] [quic=N] [net=N] [slow_start=D] [med=N]
//	                                [tracking=none|all] [flow_lifetime=D] [observers=K]
//	                                a backend has the same address in all services, in the same net
//	aggregate PREFIX [alone]        there is, alone: with no VIP in it told to anybody who is told of it
//	no aggregates
//	remove NAME                     the service goes from the configuration
//	MEMBER sees X=up Y=down Z=unknown; NAME/X is X as service NAME asks for it;
//	                                up-4 is up with four steps of a slow start ahead
//	MEMBER is silent | is heard | is leaving | has just started | has settled
//	MEMBER changes its routes | has changed its routes
//	MEMBER has another table of NAME | has another configuration | agrees
//	data plane fails: WORDS         data plane works
//	program is gone: WORDS          program is attached
//	announcer fails: WORDS          announcer works
//	order ACTION KIND NAME [for DURATION]     alice gives it on this node; ACTION is drain, fail, undo or a weight
//	MEMBER holds ACTION KIND NAME VERSION     an order that bob gave on MEMBER
//	restart                         of this node, with the orders that it kept
//	show older flows                say of each table whom it still holds flows for, from now on
//	older flows of web are active   until they are not:
//	older flows of web are over
//	flows are at BACKEND...         still, here
//	MEMBER has flows of NAME at BACKEND
//	drain
//	wait DURATION
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("scenario files: got %d, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var got string
			synctest.Test(t, func(t *testing.T) { got = play(t, string(want)) })
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got != string(want) {
				t.Errorf("%s\ngot:\n%s\nwant:\n%s", file, got, want)
			}
		})
	}
}

// play runs a scenario and gives it back with what was seen filled in.
func play(t *testing.T, scenario string) string {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out strings.Builder
	for i, block := range strings.Split(strings.TrimSuffix(scenario, "\n"), "\n\n") {
		happens, _, _ := strings.Cut(block+"\n", "----\n")
		if out.Len() > 0 {
			out.WriteString("\n")
		}
		out.WriteString(happens)
		var doing []string
		for _, line := range strings.Split(strings.TrimSpace(happens), "\n") {
			if !strings.HasPrefix(line, "#") {
				doing = append(doing, line)
			}
		}
		if len(doing) == 0 {
			continue
		}
		for _, line := range doing {
			w.happen(line)
		}
		if i == 0 || w.control == nil {
			w.start(ctx)
		}
		w.wait(100 * time.Millisecond)
		out.WriteString("----\n" + w.seen())
	}
	cancel()
	synctest.Wait()
	return out.String()
}

const partitionHold = 15 * time.Second

// world is lb1 with everything around it faked.
type world struct {
	t *testing.T

	// What happens and what the node asks may fall on the same instant.
	mu         sync.Mutex
	size       int
	shutdown   time.Duration
	notice     time.Duration
	holdUp     time.Duration
	services   []lb.Service
	aggregates []lb.Aggregate
	addresses  map[string]netip.Addr // of backends, by net and name
	members    map[string]*lb.Record
	silent     map[string]bool
	fresh      map[string]bool   // members that have not settled
	differs    map[string]string // member to the service whose table it has otherwise, "" for the configuration

	control    *Controller
	stop       func()     // ends control
	kept       []lb.Order // by KeepOrders
	keptSteps  map[string]lb.History
	showsOlder bool
	active     bool // older flows are
	holds      []string
	cautious   bool
	attached   error
	applyFails error
	tellFails  error
	report     lb.Report
	calls      []string
	log        bytes.Buffer
}

func newWorld(t *testing.T) *world {
	return &world{
		t: t, size: 1,
		members:   map[string]*lb.Record{"lb1": {Member: "lb1"}},
		silent:    make(map[string]bool),
		addresses: make(map[string]netip.Addr),
		fresh:     make(map[string]bool),
		differs:   make(map[string]string),
	}
}

func (w *world) start(ctx context.Context) {
	ctx, w.stop = context.WithCancel(ctx)
	handler := slog.NewTextHandler(&w.log, &slog.HandlerOptions{Level: slog.LevelInfo, ReplaceAttr: withoutTime})
	w.control = New(Config{
		Node: "lb1", Size: w.size, PartitionHold: partitionHold, GracefulShutdown: w.shutdown, Notice: w.notice, HoldUp: w.holdUp, Secret: []byte("secret"),
		Dataplane: w, Announcer: w, Cluster: w, Checker: w, Log: slog.New(handler),
		Orders: w.kept, KeepOrders: func(all []lb.Order) error { w.kept = all; return nil },
		Histories: w.keptSteps, KeepHistories: func(all map[string]lb.History) error { w.keptSteps = all; return nil },
	})
	w.control.SetAggregates(w.aggregates)
	w.control.SetServices(w.services)
	go w.control.Run(ctx)
	time.Sleep(time.Millisecond) // so that nothing here falls on one of its ticks
	synctest.Wait()
}

func withoutTime(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey || a.Key == "part" {
		return slog.Attr{}
	}
	return a
}

// wait lets time pass, with news every 100 ms.
func (w *world) wait(d time.Duration) {
	for ; d > 0; d -= 100 * time.Millisecond {
		w.mu.Lock()
		for name, r := range w.members {
			if !w.silent[name] {
				r.Heard = time.Now()
			}
		}
		w.mu.Unlock()
		w.control.Wake()
		time.Sleep(min(d, 100*time.Millisecond))
		synctest.Wait()
	}
}

func (w *world) happen(line string) {
	words := strings.Fields(line)
	rest := func(prefix string) error {
		if after, ok := strings.CutPrefix(line, prefix+": "); ok {
			return errors.New(after)
		}
		return nil
	}
	switch {
	case words[0] == "size":
		w.size = w.number(words[1])
		if w.control != nil {
			w.control.SetQuorum(w.size, partitionHold)
		}
	case words[0] == "graceful":
		w.shutdown = w.duration(words[2])
	case words[0] == "notice":
		w.notice = w.duration(words[1])
	case words[0] == "hold":
		w.holdUp = w.duration(words[2])
	case words[0] == "service":
		w.setService(words[1], words[2:])
	case words[0] == "aggregate":
		a := lb.Aggregate{Prefix: netip.MustParsePrefix(words[1])}
		if len(words) > 2 {
			a.Alone = []netip.Addr{netip.MustParseAddr("192.0.2.254")}
		}
		w.setAggregates(append(slices.Clone(w.aggregates), a))
	case line == "no aggregates":
		w.setAggregates(nil)
	case words[0] == "remove":
		w.services = slices.DeleteFunc(slices.Clone(w.services), func(s lb.Service) bool { return s.Name == words[1] })
		w.control.SetServices(w.services)
	case words[0] == "order":
		order := w.order(words[1:4])
		order.By = "alice"
		if len(words) > 4 {
			d, err := time.ParseDuration(words[5])
			if err != nil {
				w.t.Fatal(err)
			}
			order.Until = time.Now().Add(d)
		}
		if err := w.control.Order(w.t.Context(), order); err != nil {
			w.calls = append(w.calls, "refused: "+err.Error())
		}
	case strings.HasPrefix(line, "flows are at "):
		w.holds = words[3:]
	case line == "show older flows":
		w.showsOlder = true
	case strings.HasPrefix(line, "older flows"):
		w.mu.Lock()
		w.active = strings.HasSuffix(line, "active")
		w.mu.Unlock()
	case words[0] == "restart":
		w.stop()
		synctest.Wait() // until it has ended
		w.start(w.t.Context())
	case words[0] == "drain":
		if err := w.control.Drain(w.t.Context()); err != nil {
			w.calls = append(w.calls, "drain: "+err.Error())
		}
	case words[0] == "wait":
		d, err := time.ParseDuration(words[1])
		if err != nil {
			w.t.Fatal(err)
		}
		w.wait(d)
	case strings.HasPrefix(line, "data plane"):
		w.set(&w.applyFails, rest("data plane fails"))
	case strings.HasPrefix(line, "program is"):
		w.set(&w.attached, rest("program is gone"))
	case strings.HasPrefix(line, "announcer"):
		w.set(&w.tellFails, rest("announcer fails"))
	case len(words) > 1:
		w.member(words[0], strings.Join(words[1:], " "), words[2:])
	default:
		w.t.Fatalf("scenario: what is %q?", line)
	}
}

func (w *world) set(fault *error, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*fault = err
}

func (w *world) member(name, does string, words []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r, ok := w.members[name]
	if !ok {
		r = &lb.Record{Member: name}
		w.members[name] = r
	}
	switch {
	case strings.HasPrefix(does, "sees "):
		for _, word := range words {
			backend, state, _ := strings.Cut(word, "=")
			w.observe(&r.Report, backend, state)
		}
	case does == "is silent":
		w.silent[name] = true
	case does == "is heard":
		delete(w.silent, name)
	case does == "has just started":
		w.fresh[name] = true
	case does == "has settled":
		delete(w.fresh, name)
	case does == "is leaving":
		r.Report.Leaving = true
	case does == "changes its routes", does == "has changed its routes":
		r.Report.Moving = does == "changes its routes"
	case strings.HasPrefix(does, "has another table of "):
		w.differs[name] = words[len(words)-1]
	case does == "has another configuration":
		w.differs[name] = ""
	case strings.HasPrefix(does, "holds "):
		order := w.order(words[:3])
		order.By, order.Member, order.Version, order.At = "bob", name, uint64(w.number(words[3])), time.Now().UTC()
		r.Report.Orders = append(slices.Clone(r.Report.Orders), order)
	case strings.HasPrefix(does, "has flows of "):
		r.Report.Steps = map[string]lb.History{words[2]: {Held: words[4:]}}
	case does == "agrees":
		delete(w.differs, name)
	default:
		w.t.Fatalf("scenario: %s %q?", name, does)
	}
}

func (w *world) order(words []string) lb.Order {
	subject, err := lb.ParseSubject(words[1], words[2])
	if err != nil {
		w.t.Fatal(err)
	}
	order := lb.Order{Subject: subject}
	switch words[0] {
	case "drain":
		order.Action = lb.Drain
	case "fail":
		order.Action = lb.Fail
	case "undo":
	default:
		order.Action, order.Weight = lb.Weigh, w.number(words[0])
	}
	return order
}

func (w *world) observe(r *lb.Report, backend, state string) {
	states := map[string]lb.State{"up": lb.Up, "down": lb.Down, "unknown": lb.Unknown}
	state, ahead, slow := strings.Cut(state, "-")
	seen := lb.Observation{State: states[state]}
	if slow {
		seen.Ahead = uint8(w.number(ahead))
	}
	service, backend, one := strings.Cut(backend, "/")
	if !one {
		service, backend = "", service
	}
	observations := slices.Clone(r.Observations)
	for _, s := range w.services {
		for _, target := range s.Targets() {
			if target.Backend != backend || one && service != s.Name {
				continue
			}
			observations = slices.DeleteFunc(observations, func(o lb.Observation) bool { return o.Target == target.ID() })
			seen.Target = target.ID()
			observations = append(observations, seen)
		}
	}
	slices.SortFunc(observations, func(a, b lb.Observation) int { return cmp.Compare(a.Target, b.Target) })
	r.Observations = observations
}

func (w *world) setService(name string, words []string) {
	s := lb.Service{
		Name:       name,
		Ports:      []lb.Port{{Protocol: lb.TCP, Number: 80}},
		MinHealthy: lb.Quorum{Value: 1},
	}
	net := "0"
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "net":
			net = value
		case "vips":
			for _, vip := range strings.Split(value, ",") {
				s.VIPs = append(s.VIPs, lb.MustParseVIP(vip))
			}
		case "backends":
			for _, b := range strings.Split(value, ",") {
				name, weight, ok := strings.Cut(b, ":")
				backend := lb.Backend{Name: name, Weight: 100}
				if ok {
					backend.Weight = w.number(weight)
				}
				s.Backends = append(s.Backends, backend)
			}
		case "min_healthy":
			s.MinHealthy = lb.Quorum{Value: w.number(strings.TrimSuffix(value, "%")), Percent: strings.HasSuffix(value, "%")}
		case "interval":
			interval, err := time.ParseDuration(value)
			if err != nil {
				w.t.Fatal(err)
			}
			s.Check = lb.Check{Interval: interval, Timeout: interval / 2, Rise: 2, Fall: 3, Path: s.Check.Path}
		case "tracking":
			s.Tracking = map[string]lb.Tracking{"none": lb.TrackNone, "all": lb.TrackAll}[value]
		case "flow_lifetime":
			lifetime, err := time.ParseDuration(value)
			if err != nil {
				w.t.Fatal(err)
			}
			s.FlowLifetime = lifetime
		case "path":
			s.Check.Path = value
		case "slow_start":
			slow, err := time.ParseDuration(value)
			if err != nil {
				w.t.Fatal(err)
			}
			s.Check.SlowStart = slow
		case "med":
			med := uint32(w.number(value))
			s.Announce.MED = &med
		case "quic":
			s.QUIC = lb.QUIC{ServerIDLength: w.number(value)}
		case "observers":
			s.Observers = w.number(value)
		case "none_healthy":
			s.UseAll = value == "use_all"
		case "panic_below":
			s.PanicBelow = w.number(strings.TrimSuffix(value, "%"))
		}
	}
	for i := range s.Backends {
		s.Backends[i].Address = w.address(s.Backends[i].Name, net)
	}
	w.services = append(slices.DeleteFunc(slices.Clone(w.services), func(o lb.Service) bool { return o.Name == name }), s)
	if w.control != nil {
		w.control.SetServices(w.services)
	}
}

func (w *world) setAggregates(aggregates []lb.Aggregate) {
	w.aggregates = aggregates
	if w.control != nil {
		w.control.SetAggregates(aggregates)
	}
}

// address is that of a backend in a net, in the order in which they are named.
func (w *world) address(backend, net string) netip.Addr {
	where := net + " " + backend
	if _, known := w.addresses[where]; !known {
		n := len(w.addresses) + 1
		w.addresses[where] = netip.AddrFrom4([4]byte{198, 18, byte(n >> 8), byte(n)}) // RFC 2544's, as there may be many
	}
	return w.addresses[where]
}

func (w *world) duration(s string) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

func (w *world) number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// seen tells what was done since it was last asked, and how things stand.
func (w *world) seen() string {
	var out strings.Builder
	w.mu.Lock()
	for _, call := range w.calls {
		fmt.Fprintln(&out, call)
	}
	w.calls = nil
	w.mu.Unlock()
	out.Write(w.log.Bytes())
	w.log.Reset()

	st := w.control.Status()
	for _, s := range st.Services {
		fmt.Fprintf(&out, "%s:", s.Name)
		for _, b := range s.Backends {
			fmt.Fprintf(&out, " %s %s %d/%d", b.Name, b.State, b.Up, b.Observers)
			if b.Ahead > 0 {
				fmt.Fprintf(&out, " weight %d/%d", b.WeightNow(), b.Weight)
			}
			if by := s.HeldBy[b.Name]; len(by) > 0 {
				fmt.Fprintf(&out, " held by %v", by)
			}
			out.WriteString(",")
		}
		if s.Announced {
			out.WriteString(" announced")
		} else {
			fmt.Fprintf(&out, " not announced: %s", s.Reason)
		}
		if s.Panic != "" {
			fmt.Fprintf(&out, ", health ignored: %s", s.Panic)
		}
		if len(s.TableDiffers) > 0 {
			fmt.Fprintf(&out, ", another table on %v", s.TableDiffers)
		}
		out.WriteString("\n")
	}
	for _, a := range st.Aggregates {
		fmt.Fprintf(&out, "%s: for %d of %d VIPs", a.Prefix, a.Serving, a.VIPs)
		if !a.Announced {
			fmt.Fprintf(&out, ", not announced: %s: %s", a.Cause, a.Reason)
		}
		out.WriteString("\n")
	}
	if st.Frozen {
		fmt.Fprintf(&out, "frozen: %d of %d members in sight\n", st.InSight, st.Size)
	}
	for _, order := range st.Orders {
		fmt.Fprintf(&out, "in force: %v\n", order)
	}
	if len(st.Blind) > 0 {
		fmt.Fprintf(&out, "blind: %v\n", st.Blind)
	}
	if len(st.ConfigDiffers) > 0 {
		fmt.Fprintf(&out, "another configuration on %v\n", st.ConfigDiffers)
	}
	return out.String()
}

// What follows makes world all that the controller acts on.

func (w *world) Apply(_ context.Context, tables []lb.Table) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	words := []string{"tables"}
	for _, t := range tables {
		var used []string
		for i, b := range t.Backends {
			if slices.Contains(t.Slots, uint16(i)) {
				name := b.Name
				if b.Weight != 100 {
					name = fmt.Sprintf("%s:%d", b.Name, b.Weight)
				}
				used = append(used, name)
			}
		}
		words = append(words, fmt.Sprintf("%s=%v", t.Service.Name, used))
		if w.showsOlder {
			words[len(words)-1] += older(t)
		}
		if t.Service.QUIC != (lb.QUIC{}) {
			var alive []string
			for _, b := range t.Alive {
				alive = append(alive, b.Name)
			}
			words = append(words, fmt.Sprintf("alive=%v", alive))
		}
	}
	if w.applyFails != nil {
		words = append(words, "(failed)")
	}
	w.calls = append(w.calls, strings.Join(words, " "))
	return w.applyFails
}

func (w *world) Attached() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.attached
}

func (w *world) Strayed(string) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.active {
		return time.Now()
	}
	return time.Time{}
}

func (w *world) Holds(_ string, of []string) []string {
	return slices.DeleteFunc(slices.Clone(of), func(name string) bool { return !slices.Contains(w.holds, name) })
}

func (w *world) Caution(lasts time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if cautious := lasts > 0; cautious != w.cautious {
		w.cautious = cautious
		w.calls = append(w.calls, map[bool]string{true: "cautious", false: "cautious no more"}[cautious])
	}
}

// older names whom the table's slots in transition hold flows for.
func older(t lb.Table) string {
	if t.Bases == nil {
		return ""
	}
	names, settling := make(map[string]bool), ""
	for i, b := range t.Bases {
		if !b.InTransition {
			continue
		}
		if name := t.Alive[b.Backend].Name; name != t.Backends[t.Slots[i]].Name {
			names[name] = true
		}
		if b.Settling {
			settling = ", settling"
		}
	}
	return fmt.Sprintf(" (older flows: %v%s)", slices.Sorted(maps.Keys(names)), settling)
}

func (w *world) Announce(_ context.Context, routes []lb.Route) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	words := []string{"routes"}
	for _, r := range routes {
		word := r.Prefix.String()
		if r.MED != nil {
			word += fmt.Sprintf("(med %d)", *r.MED)
		}
		if r.Shutdown {
			word += "(shutdown)"
		}
		if len(r.Suppressed) > 0 {
			word += "(suppressed)"
		}
		words = append(words, word)
	}
	if len(routes) == 0 {
		words = append(words, "none")
	}
	if w.tellFails != nil {
		words = append(words, "(failed)")
	}
	w.calls = append(w.calls, strings.Join(words, " "))
	return w.tellFails
}

func (w *world) Publish(r lb.Report) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r.Moving != w.report.Moving {
		w.calls = append(w.calls, map[bool]string{true: "tells that routes change", false: "tells that routes stay"}[r.Moving])
	}
	w.report = r
}

func (w *world) Records() []lb.Record {
	w.mu.Lock()
	defer w.mu.Unlock()
	var records []lb.Record
	for _, name := range slices.Sorted(maps.Keys(w.members)) {
		r := *w.members[name]
		r.Report.Settled = !w.fresh[name]
		r.Report.Config, r.Report.Tables = w.report.Config, maps.Clone(w.report.Tables)
		if service, ok := w.differs[name]; ok && service == "" {
			r.Report.Config++
		} else if ok {
			r.Report.Tables[service]++
		}
		records = append(records, r)
	}
	return records
}

// SetTargets tells of what is checked where not everybody checks everything.
func (w *world) SetTargets(targets []lb.Target) {
	if !slices.ContainsFunc(w.services, func(s lb.Service) bool { return s.Observers > 0 }) {
		return
	}
	names := []string{}
	for _, t := range targets {
		names = append(names, t.Backend)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, fmt.Sprintf("checks %v", names))
}

func (w *world) Observations() []lb.Observation {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.members["lb1"].Report.Observations
}
