package xdp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/lb"
)

// Config says where the program is to sit.
type Config struct {
	// Interfaces carry VIP traffic. Without any, nothing is put into the
	// kernel but the program and its maps: it can be asked by Process alone.
	Interfaces []string
	Mode       Mode
	// Pin is a directory in a BPF file system, for this node alone, in which the
	// program and its tables outlive the process. Empty: they end with it. Where
	// there can be no such directory the log says so, and they do too. The
	// directory that it is in is halfproxy's: what dead nodes left there is
	// cleared away.
	Pin string
	// FlowRecords is how many flows there is room for to note down the backend of.
	// 0: 262144.
	FlowRecords int
	Log         *slog.Logger          // nil: no log
	Registerer  prometheus.Registerer // nil: no metrics
}

// Room for tables to begin with: it grows with what is applied.
const (
	firstPages    = 256
	firstBackends = 1024
)

// rest is how long what a packet may still be using is left alone after it went
// out of use. A packet is through in a microsecond; the rest is for a virtual
// CPU that is not let run.
const rest = 20 * time.Millisecond

// Dataplane is the loaded program with its tables.
type Dataplane struct {
	log     *slog.Logger
	mode    Mode
	metrics *metrics
	// netlink is nil without interfaces: nothing outside the maps is touched.
	netlink *netlink.Handle

	mu         sync.Mutex // guards what follows
	spec       *ebpf.CollectionSpec
	store      *store           // nil: closed
	numbers    space            // of services
	lives      map[uint32]uint8 // that backends have had, of services that are no more, by their numbers
	pages      space
	entries    space // of backends
	services   map[string]*service
	vips       map[endpoint]uint32 // as the program has them
	directed   time.Time           // when a packet may last have seen the other half of vips
	ranges     map[endpoint]bpfRanges
	prefixes   map[lb.VIP]number
	lastPrefix uint32 // number that was given
	resting    []resting
	tails      map[uint32]bpfCounter // where the counters of entries given back stood
	hops       *nextHops
	blackhole  *blackholes
	probes     *probes
	warned     bool // of encapsulation in generic mode
	denied     map[netip.Prefix]bool
	capturing  *capture // nil: nobody captures
	records    *records
	applied    uint64 // calls of Apply

	denying sync.Mutex // one Deny at a time; taken before mu

	// attached guards the ports; taken after mu where both are.
	attached sync.Mutex
	ports    []*port
	pins     *pins // nil: nothing outlives the process

	// asking guards asked; taken after mu where both are.
	asking sync.Mutex
	asked  *instance // nil: nobody has asked yet
}

// resting is something that must not happen before a time.
type resting struct {
	until time.Time
	then  func()
}

var errClosed = errors.New("the data plane is closed")

// New loads the program and makes its maps. It attaches nothing.
func New(cfg Config) (*Dataplane, error) {
	if err := checkKernel(); err != nil {
		return nil, err
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	d := &Dataplane{
		log:      log.With("part", "xdp"),
		mode:     cfg.Mode,
		services: make(map[string]*service), lives: make(map[uint32]uint8),
		vips:     make(map[endpoint]uint32),
		ranges:   make(map[endpoint]bpfRanges),
		prefixes: make(map[lb.VIP]number),
		tails:    make(map[uint32]bpfCounter),
		denied:   make(map[netip.Prefix]bool),
	}
	if err := d.load(cfg); err != nil {
		return nil, errors.Join(err, d.Leave())
	}
	m, err := newMetrics(d, cfg.Registerer)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("register metrics: %w", err), d.Leave())
	}
	d.metrics = m
	return d, nil
}

func (d *Dataplane) load(cfg Config) error {
	links, err := findInterfaces(cfg.Interfaces)
	if err != nil {
		return err
	}
	if len(links) > 0 {
		if d.netlink, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		if err := d.openPins(cfg.Pin); err != nil {
			return err
		}
	}
	d.hops = newNextHops(d.netlink, d.log)
	d.blackhole = newBlackholes(d.netlink, d.log)
	d.probes = newProbes(d.netlink, d.log)

	if err := rlimit.RemoveMemlock(); err != nil { // before 5.11 maps count as locked memory
		return explainLoad(fmt.Errorf("lift the limit of locked memory: %w", err))
	}
	if d.spec, err = readProgram(loadBpf, "program"); err != nil {
		return err
	}
	d.spec.Maps[bpfMapRecords].MaxEntries = uint32(cmp.Or(cfg.FlowRecords, lb.DefaultFlowRecords))
	if d.store, err = newStore(d.spec, nil, firstPages, firstBackends); err != nil {
		return explainLoad(fmt.Errorf("make the program's maps: %w", err))
	}
	if d.records, err = newRecords(d.store); err != nil {
		return err
	}
	if m := d.pins.inherit(bpfMapFragments, d.spec.Maps[bpfMapFragments]); m != nil {
		d.store.maps[bpfMapFragments].Close()
		d.store.maps[bpfMapFragments] = m
	}
	d.numbers.grow(uint32(len(d.store.services)))
	d.pages.grow(firstPages)
	d.entries.grow(firstBackends)

	for _, link := range links {
		p := &port{name: link.Name, ifindex: link.Index}
		copy(p.mac[:], link.HardwareAddr)
		d.ports = append(d.ports, p)
		if p.instance, err = newInstance(d.spec, d.store, false); err != nil {
			return explainLoad(fmt.Errorf("load the program for %s: %w", p.name, err))
		}
	}
	return d.place()
}

// place tells every instance which interface it stands for, and those that capture
// what they are to capture. The one that is asked stands for the first interface;
// without any for the loopback device, whose MAC address is all zeros.
func (d *Dataplane) place() error {
	if err := d.aim(); err != nil {
		return err
	}
	asked := port{ifindex: 1}
	d.hops.interfaces = nil
	for i, p := range d.ports {
		d.hops.interfaces = append(d.hops.interfaces, p.ifindex)
		if err := p.instance.sit(p.mac, p.ifindex); err != nil {
			return fmt.Errorf("tell the program of %s: %w", p.name, err)
		}
		if i == 0 {
			asked = *p
		}
	}
	d.asking.Lock()
	defer d.asking.Unlock()
	if d.asked == nil {
		return nil
	}
	return d.asked.sit(asked.mac, asked.ifindex)
}

// findInterfaces gives the links of these names, or an error that lists the
// links there are.
func findInterfaces(names []string) ([]net.Interface, error) {
	if len(names) == 0 {
		return nil, nil
	}
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var found []net.Interface
	var errs []error
	for _, name := range names {
		i := slices.IndexFunc(all, func(l net.Interface) bool { return l.Name == name })
		switch {
		case i < 0:
			var there []string
			for _, l := range all {
				there = append(there, l.Name)
			}
			errs = append(errs, fmt.Errorf("interface %s does not exist: there are %s", name, strings.Join(there, ", ")))
		case len(all[i].HardwareAddr) != 6:
			errs = append(errs, fmt.Errorf("interface %s has no Ethernet address: only Ethernet interfaces can carry VIP traffic", name))
		case slices.ContainsFunc(found, func(l net.Interface) bool { return l.Name == name }):
			errs = append(errs, fmt.Errorf("interface %s is listed twice", name))
		default:
			found = append(found, all[i])
		}
	}
	return found, errors.Join(errs...)
}

// oldestKernel is the oldest that all of the program's features work on.
const oldestKernel = "5.10"

func checkKernel() error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("ask for the kernel's version: %w", err)
	}
	return checkRelease(unix.ByteSliceToString(name.Release[:]))
}

func checkRelease(release string) error {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return nil // no version to judge by: loading will tell
	}
	if major < 5 || major == 5 && minor < 10 {
		return fmt.Errorf("kernel %s is too old: %s or later is needed", release, oldestKernel)
	}
	return nil
}

// explainLoad adds the remedy to errors of loading that have one.
func explainLoad(err error) error {
	var refused *ebpf.VerifierError
	if errors.As(err, &refused) { // also EACCES
		return fmt.Errorf("%w: this kernel's verifier refuses the program, which is a bug: please report it with the kernel's version", err)
	}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w: CAP_BPF and CAP_NET_ADMIN are needed, and before kernel 5.11 CAP_SYS_RESOURCE: run as root or grant them", err)
	}
	if errors.Is(err, ebpf.ErrNotSupported) {
		return fmt.Errorf("%w: kernel %s or later with BPF and XDP is needed", err, oldestKernel)
	}
	return err
}

// Run keeps the backends' next hops as the kernel's routes and neighbours are, the
// records of flows that go on, and the program on its interfaces when one is made anew. It returns nil when
// ctx ends.
func (d *Dataplane) Run(ctx context.Context) error {
	var keeper sync.WaitGroup
	defer keeper.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	keeper.Go(func() { d.keepRecords(ctx) })
	if d.netlink == nil {
		<-ctx.Done()
		return nil
	}
	return d.watch(ctx, newPathErrors(d, &keeper))
}

// Process puts one frame through the loaded program and gives its verdict and
// the frame as it would leave. It is counted as any other. A frame has at least
// 14 bytes, and its destination is the MAC address of the first interface, or
// all zeros without interfaces.
func (d *Dataplane) Process(frame []byte) (Verdict, []byte, error) {
	a, err := d.ask(frame)
	return Verdict(a.trace.Verdict), a.frame, err
}

func (d *Dataplane) ask(frame []byte) (answer, error) {
	if err := d.loadAsked(); err != nil {
		return answer{}, err
	}
	d.asking.Lock()
	defer d.asking.Unlock()
	return d.asked.ask(frame)
}

// loadAsked loads the instance that is asked, the first time that one is: to
// forward packets it is not needed.
func (d *Dataplane) loadAsked() error {
	d.asking.Lock()
	there := d.asked != nil
	d.asking.Unlock()
	if there {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	at, err := d.firstPort()
	if err != nil {
		return err
	}
	d.asking.Lock()
	defer d.asking.Unlock()
	if d.asked != nil {
		return nil
	}
	if d.asked, err = newInstance(d.spec, d.store, true); err != nil {
		return explainLoad(fmt.Errorf("load the program: %w", err))
	}
	return d.asked.sit(at.mac, at.ifindex)
}

// Close takes the program off its interfaces, and what the Dataplane put into
// the kernel's routes and neighbours out of them. Nothing stays pinned.
func (d *Dataplane) Close() error { return d.end(false) }

// end lets go of everything, of what outlives the process too unless it is kept.
func (d *Dataplane) end(keep bool) error {
	d.metrics.close()
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	if d.probes != nil { // nobody probes any more, whatever is kept
		errs = append(errs, d.probes.clear())
	}
	errs = append(errs, d.detach(keep))
	if d.blackhole != nil && !keep {
		errs = append(errs, d.blackhole.clear())
	}
	if d.hops != nil && !keep {
		errs = append(errs, d.hops.clear())
	}
	d.asking.Lock()
	defer d.asking.Unlock()
	if d.asked != nil {
		errs = append(errs, d.asked.Close())
	}
	if d.records != nil {
		errs = append(errs, d.records.close())
	}
	if d.store != nil {
		errs = append(errs, d.store.close())
		d.store = nil
	}
	if d.netlink != nil {
		d.netlink.Close()
	}
	return errors.Join(errs...)
}

// grow makes room for more pages of slots and backends: new maps with the old
// ones' contents, and the program loaded anew over them in the place of the
// running one. No packet is lost.
func (d *Dataplane) grow(pages, entries uint32) (err error) {
	begin := time.Now()
	s, err := newStore(d.spec, d.store, pages, entries)
	if err != nil {
		return explainLoad(fmt.Errorf("make bigger maps: %w", err))
	}
	replaced, err := d.replace(s)
	if err != nil {
		return errors.Join(err, s.close())
	}

	// The old program's last packets are counted in the old counters.
	time.Sleep(rest)
	old := d.store
	if err := d.foldCounters(old.maps[bpfMapBackendCounters]); err != nil {
		return err
	}
	d.store = s
	d.pages.grow(pages)
	d.entries.grow(entries)
	err = errors.Join(d.retire(replaced), old.close())
	d.log.Info("tables grew", "slots", pages*slotsPerPage, "backends", entries, "took", time.Since(begin))
	return err
}

// retire ends instances in whose place others have come, and their pins.
func (d *Dataplane) retire(replaced []*instance) error {
	var errs []error
	for _, i := range replaced {
		errs = append(errs, i.Close())
	}
	d.attached.Lock()
	defer d.attached.Unlock()
	d.tidyPins()
	return errors.Join(errs...)
}

// replace puts the program, loaded over s, in the place of every instance, and
// gives the old instances. On failure all is as it was.
func (d *Dataplane) replace(s *store) (replaced []*instance, err error) {
	d.attached.Lock()
	defer d.attached.Unlock()
	var fresh []*instance
	defer func() {
		if err != nil {
			for _, i := range fresh {
				err = errors.Join(err, i.Close())
			}
		}
	}()
	instances := make([]**instance, len(d.ports)) // where they are kept
	for n, p := range d.ports {
		instances[n] = &p.instance
	}
	d.asking.Lock()
	if d.asked != nil {
		instances = append(instances, &d.asked)
	}
	d.asking.Unlock() // it goes from none to one under mu alone
	for n := range instances {
		var i *instance
		if asked := n == len(d.ports); d.capturing != nil && !asked {
			i, err = d.capturing.newInstance(s, n)
		} else {
			i, err = newInstance(d.spec, s, asked)
		}
		if err != nil {
			return nil, explainLoad(fmt.Errorf("load the program anew: %w", err))
		}
		fresh = append(fresh, i)
	}
	swap := func() {
		d.asking.Lock()
		defer d.asking.Unlock()
		for n, kept := range instances {
			*kept, fresh[n] = fresh[n], *kept
		}
	}
	swap()
	if err := d.place(); err != nil {
		swap()
		return nil, err
	}
	for n, p := range d.ports {
		if err := p.update(); err != nil {
			swap()
			for _, p := range d.ports[:n] {
				err = errors.Join(err, p.update())
			}
			return nil, fmt.Errorf("put the new program on %s: %w", p.name, err)
		}
	}
	return fresh, nil
}
