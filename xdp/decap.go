package xdp

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"

	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
)

// Decap is the program of bpf/decap.bpf.c on an interface.
type Decap struct {
	objects decapObjects
	link    link.Link
	mode    Mode
}

// DecapStats counts packets by what became of them. All but those in TakenOff
// passed to the kernel as they came.
type DecapStats struct {
	TakenOff         uint64
	NoTunnel         uint64 // not IP in IP
	OtherDestination uint64 // the tunnel does not end here
	Refused          uint64 // by the source
	Malformed        uint64
}

var _ [5]struct{} = [decapDecapVerdictDECAP_MAX]struct{}{} // one field per verdict

// AttachDecap puts a program on the interface that takes off the outer header
// of ipip, whatever the families inside and outside, when the packet comes from
// one of sources and goes to an address that the interface has now. In native
// mode if the driver can do it, else in generic mode.
func AttachDecap(iface string, sources []netip.Prefix) (*Decap, error) {
	if err := checkKernel(); err != nil {
		return nil, err
	}
	found, err := findInterfaces([]string{iface})
	if err != nil {
		return nil, err
	}
	destinations, err := addressesOn(found[0])
	if err != nil {
		return nil, err
	}
	d, err := loadDecapsulation(destinations, sources)
	if err != nil {
		return nil, err
	}
	d.link, d.mode, err = attach(iface, Auto, func(mode Mode) (link.Link, error) {
		return link.AttachXDP(link.XDPOptions{Program: d.objects.Decapsulate, Interface: found[0].Index, Flags: xdpFlags(mode)})
	}, func(error) {})
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// loadDecapsulation loads the program for these ends of tunnels.
func loadDecapsulation(destinations []netip.Addr, sources []netip.Prefix) (*Decap, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, explainLoad(fmt.Errorf("lift the limit of locked memory: %w", err))
	}
	d := new(Decap)
	if err := loadDecapObjects(&d.objects, nil); err != nil {
		return nil, explainLoad(fmt.Errorf("load the decapsulation program: %w", err))
	}
	for _, a := range destinations {
		if err := d.objects.Destinations.Put(decapAddress{Word: words(a)}, uint8(1)); err != nil {
			return nil, errors.Join(fmt.Errorf("enter destination %s: %w", a, err), d.Close())
		}
	}
	for _, p := range sources {
		if err := d.objects.Sources.Put(mappedPrefix(p), uint8(1)); err != nil {
			return nil, errors.Join(fmt.Errorf("enter source %s: %w", p, err), d.Close())
		}
	}
	return d, nil
}

func addressesOn(iface net.Interface) ([]netip.Addr, error) {
	list, err := iface.Addrs()
	if err != nil {
		return nil, fmt.Errorf("list the addresses of %s: %w", iface.Name, err)
	}
	var addresses []netip.Addr
	for _, a := range list {
		prefix, err := netip.ParsePrefix(a.String())
		if err != nil {
			return nil, fmt.Errorf("address %s of %s: %w", a, iface.Name, err)
		}
		addresses = append(addresses, prefix.Addr())
	}
	return addresses, nil
}

// mappedPrefix is a prefix as the program looks it up: an IPv4 one mapped.
func mappedPrefix(p netip.Prefix) decapPrefix {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	key := decapPrefix{Bits: uint32(bits)}
	key.Address.Word = words(p.Addr())
	return key
}

// Mode is how the program sits on the interface.
func (d *Decap) Mode() Mode { return d.mode }

// Stats reads the program's counters.
func (d *Decap) Stats() (DecapStats, error) {
	var sums [decapDecapVerdictDECAP_MAX]uint64
	for v := range sums {
		var perCPU []uint64
		if err := d.objects.DecapVerdicts.Lookup(uint32(v), &perCPU); err != nil {
			return DecapStats{}, fmt.Errorf("read the counters of decapsulation: %w", err)
		}
		for _, n := range perCPU {
			sums[v] += n
		}
	}
	return DecapStats{
		TakenOff:         sums[decapDecapVerdictDECAP_TAKEN_OFF],
		NoTunnel:         sums[decapDecapVerdictDECAP_NO_TUNNEL],
		OtherDestination: sums[decapDecapVerdictDECAP_OTHER_DESTINATION],
		Refused:          sums[decapDecapVerdictDECAP_REFUSED],
		Malformed:        sums[decapDecapVerdictDECAP_MALFORMED],
	}, nil
}

// Close takes the program off the interface.
func (d *Decap) Close() error {
	var err error
	if d.link != nil {
		err = d.link.Close()
	}
	return errors.Join(err, d.objects.Close())
}

// AttachPass puts a program on the interface, in native mode, that lets
// everything through. A veth takes what its peer's program sends back the way
// it came (XDP_TX) only while it has a program of its own. Close takes it off.
func AttachPass(iface string) (io.Closer, error) {
	found, err := findInterfaces([]string{iface})
	if err != nil {
		return nil, err
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, explainLoad(fmt.Errorf("lift the limit of locked memory: %w", err))
	}
	var objects passObjects
	if err := loadPassObjects(&objects, nil); err != nil {
		return nil, explainLoad(fmt.Errorf("load the passing program: %w", err))
	}
	defer objects.Close() // the link holds the program
	l, _, err := attach(iface, Native, func(mode Mode) (link.Link, error) {
		return link.AttachXDP(link.XDPOptions{Program: objects.Pass, Interface: found[0].Index, Flags: xdpFlags(mode)})
	}, func(error) {})
	return l, err
}
