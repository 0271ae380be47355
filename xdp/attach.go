package xdp

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Mode is how the program sits on an interface.
type Mode uint8

const (
	// Auto is Native where the driver can do it, else Generic.
	Auto Mode = iota
	// Native runs the program in the driver.
	Native
	// Generic runs it in the kernel's receive path: slower, and any driver will do.
	Generic
)

func (m Mode) String() string {
	switch m {
	case Auto:
		return "auto"
	case Native:
		return "native"
	case Generic:
		return "generic"
	}
	return fmt.Sprintf("mode-%d", uint8(m))
}

// port is an interface that the program is to sit on.
type port struct {
	name     string
	ifindex  int
	mac      [6]byte
	instance *instance
	link     link.Link // nil: not attached
	mode     Mode      // that it is attached in
	wanted   bool      // that it is attached: Attach was called
	lost     error     // why it is not, when it was
	held     bool      // the link is there with the program of a process before
}

// Attach puts the program on every interface, or on none when it fails. Where a
// process before left its own, that one stays until TakeOver.
func (d *Dataplane) Attach() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.attached.Lock()
	defer d.attached.Unlock()
	for i, p := range d.ports {
		if p.link != nil {
			continue
		}
		if err := d.attachPort(p); err != nil {
			for _, p := range d.ports[:i] {
				err = errors.Join(err, p.detach(p.held)) // what forwards goes on
			}
			return err
		}
	}
	d.tidyPins()
	return nil
}

func (d *Dataplane) attachPort(p *port) error {
	if adopted, err := d.adopt(p); adopted || err != nil {
		return err
	}
	l, mode, err := attach(p.name, d.mode, func(mode Mode) (link.Link, error) {
		return link.AttachXDP(link.XDPOptions{Program: p.instance.program, Interface: p.ifindex, Flags: xdpFlags(mode)})
	}, func(err error) {
		d.log.Warn("native mode refused, generic mode used: slower", "interface", p.name, "err", err)
	})
	if err != nil {
		return err
	}
	p.link, p.mode, p.wanted, p.lost, p.held = l, mode, true, nil, false
	if d.pins != nil {
		if err := d.pins.pinLink(p.name, l); err != nil {
			d.log.Warn("program does not outlive this process", "interface", p.name, "err", err)
		}
	}
	d.log.Info("program attached", "interface", p.name, "mode", mode)
	return nil
}

// attach tries the ways that mode leaves open; fallback is told why the native
// one was not to be had.
func attach(name string, mode Mode, try func(Mode) (link.Link, error), fallback func(error)) (link.Link, Mode, error) {
	tried := mode
	if mode == Auto {
		tried = Native
	}
	l, err := try(tried)
	if err != nil && tried == Native && !isTaken(err) {
		err = explainRefusal(name, err)
	}
	if err != nil && mode == Auto && !isTaken(err) {
		fallback(err)
		tried = Generic
		l, err = try(tried)
	}
	if isTaken(err) {
		return nil, tried, fmt.Errorf("another XDP program sits on %s: `ip link set dev %[1]s xdp off` takes one off that was put there by ip, "+
			"`bpftool net` shows whose it is: %w", name, err)
	}
	if err != nil {
		return nil, tried, fmt.Errorf("attach the program to %s in %s mode: %w", name, tried, err)
	}
	return l, tried, nil
}

// explainRefusal adds what a driver is most likely to have against a native
// program on the interface.
func explainRefusal(name string, err error) error {
	iface, lookErr := net.InterfaceByName(name)
	if lookErr != nil || iface.MTU <= onePageMTU() {
		return err
	}
	return fmt.Errorf("%w: its MTU is %d, and more than %d is too big where driver and kernel (5.18) know no frames of several buffers: "+
		"`ip link set dev %s mtu %d`, on a veth at its other end too", err, iface.MTU, onePageMTU(), name, onePageMTU())
}

// onePageMTU is the greatest at which frames fit in a page, which is the buffer
// that a native program sees them in: with room before them, and behind them
// that of struct skb_shared_info.
func onePageMTU() int {
	const headroom, tailroom, ethernet = 256, 320, 14
	return os.Getpagesize() - headroom - tailroom - ethernet
}

// isTaken says whether the hook is another's: EBUSY by one in the same mode,
// EEXIST by one in the other mode.
func isTaken(err error) bool { return errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) }

func xdpFlags(mode Mode) link.XDPAttachFlags {
	if mode == Generic {
		return link.XDPGenericMode
	}
	return link.XDPDriverMode
}

// Attached is nil while the program sits on every interface, else it says which
// one it is missing from and why.
func (d *Dataplane) Attached() error {
	d.attached.Lock()
	defer d.attached.Unlock()
	var errs []error
	for _, p := range d.ports {
		if err := p.check(); err != nil {
			errs = append(errs, fmt.Errorf("the program is not on %s: %w", p.name, err))
		}
	}
	return errors.Join(errs...)
}

// Modes tells how the program sits on each interface that it sits on.
func (d *Dataplane) Modes() map[string]Mode {
	d.attached.Lock()
	defer d.attached.Unlock()
	modes := make(map[string]Mode)
	for _, p := range d.ports {
		if p.check() == nil {
			modes[p.name] = p.mode
		}
	}
	return modes
}

// check asks the kernel, not our memory: a link outlives its interface.
func (p *port) check() error {
	if p.lost != nil {
		return p.lost
	}
	if p.link == nil {
		return errors.New("it has not been attached yet")
	}
	info, err := p.link.Info()
	if err != nil {
		return fmt.Errorf("ask for its link: %w", err)
	}
	if sitsOn(info) == 0 {
		return errors.New("the interface it was on is gone")
	}
	return nil
}

// update puts the port's instance in the place of the one that runs, unless
// that one is not ours yet.
func (p *port) update() error {
	if p.link == nil || p.held || p.check() != nil {
		return nil
	}
	return p.link.Update(p.instance.program)
}

// detach takes the program off, unless it is pinned and to be kept.
func (p *port) detach(keep bool) error {
	p.wanted, p.held = false, false
	if p.link == nil {
		return nil
	}
	var err error
	if keep {
		err = p.link.Close() // detaches it if it is not pinned
	} else {
		err = remove(p.link)
	}
	p.link = nil
	if err != nil {
		return fmt.Errorf("take the program off %s: %w", p.name, err)
	}
	return nil
}

// detach takes the program off all interfaces and out of the kernel, but for
// what is pinned and to be kept.
func (d *Dataplane) detach(keep bool) error {
	d.attached.Lock()
	defer d.attached.Unlock()
	var errs []error
	for _, p := range d.ports {
		errs = append(errs, p.detach(keep))
		if p.instance != nil {
			errs = append(errs, p.instance.Close())
		}
	}
	d.ports = nil
	if keep {
		d.pins.leave()
	} else {
		errs = append(errs, d.pins.close())
	}
	d.pins = nil
	return errors.Join(errs...)
}

// follow brings the ports up to date with the links there are: an interface
// that was made anew gets the program again, a new MAC address is told to it.
func (d *Dataplane) follow(links []netlink.Link) error {
	byName := make(map[string]*netlink.LinkAttrs)
	for _, l := range links {
		byName[l.Attrs().Name] = l.Attrs()
	}
	d.attached.Lock()
	defer d.attached.Unlock()
	for _, p := range d.ports {
		attrs := byName[p.name]
		if attrs == nil {
			if p.lost == nil {
				p.lost = errors.New("the interface does not exist")
				d.log.Warn("interface is gone, the program waits for it", "interface", p.name)
			}
			continue
		}
		p.ifindex = attrs.Index
		copy(p.mac[:], attrs.HardwareAddr)
	}
	if err := d.place(); err != nil {
		return err
	}
	for _, p := range d.ports {
		if !p.wanted || byName[p.name] == nil {
			continue
		}
		if p.lost == nil && p.check() == nil {
			continue
		}
		if p.link != nil {
			if err := remove(p.link); err != nil { // of the interface that is gone
				d.log.Warn("old link not removed", "interface", p.name, "err", err)
			}
			p.link = nil
		}
		was := p.lost
		if err := d.attachPort(p); err != nil {
			p.lost = err
			if was == nil || was.Error() != err.Error() {
				d.log.Error("program not attached again, will retry", "interface", p.name, "err", err)
			}
		}
	}
	return nil
}
