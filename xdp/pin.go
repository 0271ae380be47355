package xdp

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// pins is a node's directory in a BPF file system. What stands there outlives
// the process:
//
//	links/eth0        by which a program sits on eth0
//	3/programs/eth0   the one that is there
//	3/maps/vips ...   what it works by
//
// The links alone keep packets going: a link holds its program, the program its
// maps. Programs and maps have names so that they can be looked at, whichever
// process made them; each time they are made they get a new number.
type pins struct {
	dir     string
	log     *slog.Logger
	lock    *os.File // the directory, locked while a process goes by it
	current int      // number of what is ours; 0: none yet
}

// errHeld is that another process goes by a directory.
var errHeld = errors.New("another halfproxy holds it")

// lockPatience is for another node's process that looks whether the directory
// is somebody's.
const lockPatience = time.Second

// openPins makes the directory this process's.
func openPins(dir string, log *slog.Logger) (*pins, error) {
	p := &pins{dir: filepath.Join(filepath.Dir(dir), pinName(filepath.Base(dir))), log: log}
	if err := inBPFFS(filepath.Dir(dir)); err != nil {
		return nil, err
	}
	for end := time.Now().Add(lockPatience); ; time.Sleep(lockPatience / 100) {
		if err := os.MkdirAll(filepath.Join(p.dir, linksDir), 0o700); err != nil {
			return nil, fmt.Errorf("make a directory for pins: %w", err)
		}
		lock, err := tryLock(p.dir)
		if err == nil {
			p.lock = lock
			return p, nil
		}
		if !errors.Is(err, errHeld) {
			return nil, err
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("%s: %w: stop that one, or give this node a name of its own", p.dir, err)
		}
	}
}

// openPins opens the directory, or says in the log why there can be none.
func (d *Dataplane) openPins(dir string) (err error) {
	if dir == "" {
		return nil
	}
	if d.pins, err = openPins(dir, d.log); err != nil && !errors.Is(err, errHeld) {
		d.log.Warn("program not pinned: packets are not forwarded while no process runs", "err", err)
		return nil
	}
	return err
}

// tryLock locks a directory. One that was removed meanwhile counts as held.
func tryLock(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errHeld
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errHeld
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	locked, err := f.Stat()
	if err == nil {
		var there fs.FileInfo
		if there, err = os.Stat(dir); err == nil && os.SameFile(locked, there) {
			return f, nil
		}
	}
	f.Close()
	return nil, errHeld
}

// inBPFFS says whether dir, or what of it there is, lies in a BPF file system.
func inBPFFS(dir string) error {
	for {
		var s unix.Statfs_t
		err := unix.Statfs(dir, &s)
		switch {
		case errors.Is(err, unix.ENOENT) && dir != filepath.Dir(dir):
			dir = filepath.Dir(dir)
			continue
		case err != nil:
			return fmt.Errorf("look at %s: %w", dir, err)
		case s.Type != unix.BPF_FS_MAGIC:
			return fmt.Errorf("%s is in no BPF file system: `mount -t bpf bpf /sys/fs/bpf` makes one", dir)
		}
		return nil
	}
}

const (
	linksDir    = "links"
	programsDir = "programs"
	mapsDir     = "maps"
)

// pinName is a name as a BPF file system takes it: without dots, which it keeps
// to itself, as are in lb1.example.net or eth0.100.
func pinName(name string) string {
	return strings.NewReplacer("%", "%25", ".", "%2e").Replace(name)
}

func (p *pins) linkPath(name string) string { return filepath.Join(p.dir, linksDir, pinName(name)) }

// find gives the link by which a program that nobody looks after sits on an
// interface: this node's, or that of one whose process is gone for good. nil:
// there is none.
func (p *pins) find(ifindex int, program uint32) link.Link {
	l := findLink(p.dir, ifindex, program)
	if l != nil {
		return l
	}
	for _, dir := range p.others() {
		lock, err := tryLock(dir)
		if err != nil {
			continue // it has a process
		}
		l := findLink(dir, ifindex, program)
		lock.Close()
		if l != nil {
			p.log.Info("what another node left behind is taken over", "pin", dir)
			return l
		}
	}
	return nil
}

// findLink finds a link among those of a directory. Numbers of interfaces are
// the network namespace's own, those of programs are not.
func findLink(dir string, ifindex int, program uint32) link.Link {
	for _, path := range entries(filepath.Join(dir, linksDir)) {
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			continue
		}
		if info, err := l.Info(); err == nil && uint32(info.Program) == program && sitsOn(info) == ifindex {
			return l
		}
		l.Close()
	}
	return nil
}

// sitsOn is the interface that a link is on; 0: it is gone.
func sitsOn(info *link.Info) int {
	if x := info.XDP(); x != nil {
		return int(x.Ifindex)
	}
	return 0
}

// others are the directories beside ours.
func (p *pins) others() []string {
	return slices.DeleteFunc(entries(filepath.Dir(p.dir)), func(dir string) bool {
		_, err := os.Stat(filepath.Join(dir, linksDir))
		return dir == p.dir || err != nil
	})
}

// entries gives the paths of what is in a directory; none where there is none.
func entries(dir string) []string {
	list, _ := os.ReadDir(dir) // what cannot be read holds nothing for us
	paths := make([]string, len(list))
	for i, e := range list {
		paths[i] = filepath.Join(dir, e.Name())
	}
	return paths
}

// pinLink makes the link outlive the process, in place of what has its name.
func (p *pins) pinLink(name string, l link.Link) error {
	path := p.linkPath(name)
	if old, err := link.LoadPinnedLink(path, nil); err == nil {
		same := sameLink(old, l)
		if same {
			old.Close()
			return nil
		}
		if err := remove(old); err != nil {
			return err
		}
	}
	if err := l.Pin(path); err != nil {
		return fmt.Errorf("pin the link of %s: %w", name, err)
	}
	return nil
}

func sameLink(a, b link.Link) bool {
	x, errX := a.Info()
	y, errY := b.Info()
	return errX == nil && errY == nil && x.ID == y.ID
}

// remove takes a link off its interface at once: the kernel takes its time over
// a pin that goes.
func remove(l link.Link) error {
	defer l.Close()
	return errors.Join(l.Unpin(), l.Detach())
}

// inherit gives the map of that name that the program of a process before works
// by, if it has this layout: what a program noted down itself, user space could
// not fill in. nil: there is none.
func (p *pins) inherit(name string, spec *ebpf.MapSpec) *ebpf.Map {
	m := p.open(name)
	if m == nil {
		return nil
	}
	if err := spec.Compatible(m); err != nil {
		p.log.Info("map of the process before is not taken over", "map", name, "err", err)
		m.Close()
		return nil
	}
	return m
}

// open gives the map of that name that was pinned last. nil: there is none.
func (p *pins) open(name string) *ebpf.Map {
	if p == nil {
		return nil
	}
	for _, n := range slices.Backward(p.numbers()) {
		m, err := ebpf.LoadPinnedMap(filepath.Join(p.dir, strconv.Itoa(n), mapsDir, name), nil)
		if err == nil { // else left by a start that failed
			return m
		}
	}
	return nil
}

// numbers are those that are pinned, in order.
func (p *pins) numbers() []int {
	var numbers []int
	for _, path := range entries(p.dir) {
		if n, err := strconv.Atoi(filepath.Base(path)); err == nil {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers
}

// pinObjects gives names to the maps and to the program of each port.
func (p *pins) pinObjects(s *store, ports []*port) error {
	for _, n := range p.numbers() {
		p.current = max(p.current, n)
	}
	p.current++
	dir := filepath.Join(p.dir, strconv.Itoa(p.current))
	for _, sub := range []string{programsDir, mapsDir} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return fmt.Errorf("make a directory for pins: %w", err)
		}
	}
	for name, m := range s.maps {
		if err := m.Pin(filepath.Join(dir, mapsDir, name)); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	for _, port := range ports {
		if err := port.instance.program.Pin(filepath.Join(dir, programsDir, pinName(port.name))); err != nil {
			return fmt.Errorf("pin the program of %s: %w", port.name, err)
		}
	}
	return nil
}

// sweep removes what no program that runs needs: all numbers but ours, links on
// interfaces that are none of ports, and the directories of other nodes that
// have neither a process nor a link on an interface any more.
func (p *pins) sweep(ports []*port) error {
	var errs []error
	for _, n := range p.numbers() {
		if n != p.current {
			errs = append(errs, os.RemoveAll(filepath.Join(p.dir, strconv.Itoa(n))))
		}
	}
	for _, path := range entries(filepath.Join(p.dir, linksDir)) {
		if slices.ContainsFunc(ports, func(port *port) bool { return p.linkPath(port.name) == path }) {
			continue
		}
		if l, err := link.LoadPinnedLink(path, nil); err == nil {
			p.log.Info("program taken off an interface that is no longer configured", "pin", path)
			errs = append(errs, remove(l))
		}
	}
	for _, dir := range p.others() {
		if lock, err := tryLock(dir); err == nil {
			if !anyLink(dir) {
				p.log.Info("what another node left behind is removed", "pin", dir)
				errs = append(errs, os.RemoveAll(dir))
			}
			lock.Close()
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove what is left of an earlier process: %w", err)
	}
	return nil
}

// anyLink says whether a directory has a link that is on an interface.
func anyLink(dir string) bool {
	for _, path := range entries(filepath.Join(dir, linksDir)) {
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			continue
		}
		info, err := l.Info()
		l.Close()
		if err == nil && sitsOn(info) != 0 {
			return true
		}
	}
	return false
}

// leave leaves everything for the next process; where there is nothing, no
// directories.
func (p *pins) leave() {
	if p == nil {
		return
	}
	defer p.lock.Close()
	if os.Remove(filepath.Join(p.dir, linksDir)) == nil { // it was empty
		_ = os.Remove(p.dir) // as this one is then, but for numbers that failed
	}
}

// close leaves nothing.
func (p *pins) close() error {
	if p == nil {
		return nil
	}
	defer p.lock.Close()
	if err := os.RemoveAll(p.dir); err != nil {
		return fmt.Errorf("remove the pins: %w", err)
	}
	return nil
}

// adopt takes over the link by which a process before left its program on the
// port's interface, in a mode that will do. That program goes on until TakeOver.
func (d *Dataplane) adopt(p *port) (bool, error) {
	if d.pins == nil {
		return false, nil
	}
	device, err := d.netlink.LinkByIndex(p.ifindex)
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", p.name, err)
	}
	x := device.Attrs().Xdp
	if x == nil || !x.Attached {
		return false, nil
	}
	l := d.pins.find(p.ifindex, x.ProgId)
	if l == nil {
		return false, nil
	}
	mode := Native
	if x.AttachMode == nl.XDP_ATTACHED_SKB {
		mode = Generic
	}
	if d.mode != Auto && d.mode != mode {
		d.log.Warn("program of the process before taken off: it is in another mode", "interface", p.name, "mode", mode)
		return false, remove(l)
	}
	if err := d.pins.pinLink(p.name, l); err != nil {
		l.Close()
		return false, err
	}
	p.link, p.mode, p.wanted, p.lost, p.held = l, mode, true, nil, true
	if err := errors.Join(d.blackhole.look(), d.hops.inherit()); err != nil { // ours to remove, too
		return true, err
	}
	d.log.Info("program of the process before goes on until the tables are in", "interface", p.name, "mode", mode)
	return true, nil
}

// Pinned says whether packets are forwarded on while no process runs.
func (d *Dataplane) Pinned() bool { return d.pins != nil }

// TakingOver says whether the program of a process before still runs: TakeOver
// ends that.
func (d *Dataplane) TakingOver() bool {
	d.attached.Lock()
	defer d.attached.Unlock()
	return slices.ContainsFunc(d.ports, func(p *port) bool { return p.held })
}

// hopPatience is how long TakeOver waits for next hops to be resolved: those of
// backends that are down never are.
const hopPatience = time.Second

// TakeOver puts the program in the place of the one that a process before left
// on its interfaces, which no packet notices. It is to be called when the tables
// are in and as whole as those that they replace; without it the program before
// goes on by its own tables. Where there is none it does nothing.
func (d *Dataplane) TakeOver() error {
	if !d.TakingOver() {
		return nil
	}
	begin := time.Now()
	for end := begin.Add(hopPatience); !d.waysKnown() && time.Now().Before(end); time.Sleep(hopPatience / 50) {
		if err := d.refresh(); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.attached.Lock()
	defer d.attached.Unlock()
	// Twice: the program before goes on making records while they are read.
	d.inheritRecords()
	var errs []error
	for _, p := range d.ports {
		if !p.held {
			continue
		}
		p.held = false
		if err := p.update(); err != nil {
			p.held = true
			errs = append(errs, fmt.Errorf("put the program in the place of the one on %s: %w", p.name, err))
			continue
		}
		d.log.Info("program taken over", "interface", p.name, "mode", p.mode, "took", time.Since(begin))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	d.inheritRecords()
	d.tidyPins()
	return nil
}

// waysKnown says whether no backend waits for its next hop's MAC address.
func (d *Dataplane) waysKnown() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.hops.routes {
		if _, known := d.hops.neighbours[r.via]; !r.looked || r.err == nil && !known {
			return false
		}
	}
	return true
}

// tidyPins names what runs now and removes what does not. To forward packets it
// is not needed: what fails is told, no more.
func (d *Dataplane) tidyPins() {
	if d.pins == nil || slices.ContainsFunc(d.ports, func(p *port) bool { return p.held }) {
		return
	}
	if err := d.pins.pinObjects(d.store, d.ports); err != nil {
		d.log.Warn("program and maps not pinned", "err", err)
	}
	if err := d.pins.sweep(d.ports); err != nil {
		d.log.Warn("old pins are left", "err", err)
	}
}

// Leave gives the Dataplane up as the end of its process would. What is pinned
// goes on by the tables it has, and the next Dataplane with the same pins takes
// it over. Where nothing is pinned this is Close.
func (d *Dataplane) Leave() error {
	if d.pins == nil {
		return d.Close()
	}
	return d.end(true)
}
