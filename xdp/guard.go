package xdp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"

	"github.com/halfproxy/halfproxy/lb"
)

// Flags in bpf/types.h: of a service's active.
const (
	limited = 32
	denying = 64
)

// denyChunk is how many entries of the deny list change at once: tables that
// change meanwhile wait for no more than these.
const denyChunk = 4096

// Deny makes prefixes, IPv4 and IPv6, the whole of the sources whose packets for
// VIPs are dropped. Only what differs is written: what is new comes first, what is
// missing goes last. After an error, calling it again does what was left undone.
func (d *Dataplane) Deny(prefixes []netip.Prefix) error {
	d.denying.Lock()
	defer d.denying.Unlock()
	wanted := make(map[netip.Prefix]bool, len(prefixes))
	var come, leave []netip.Prefix
	for _, p := range prefixes {
		if !wanted[p] && !d.denied[p] {
			come = append(come, p)
		}
		wanted[p] = true
	}
	for p := range d.denied {
		if !wanted[p] {
			leave = append(leave, p)
		}
	}
	for chunk := range slices.Chunk(come, denyChunk) {
		if err := d.changeDenied(chunk, d.deny); err != nil {
			return fmt.Errorf("enter %d prefixes in the deny list: %w", len(come), err)
		}
	}
	for chunk := range slices.Chunk(leave, denyChunk) {
		if err := d.changeDenied(chunk, d.pardon); err != nil {
			return fmt.Errorf("take %d prefixes out of the deny list: %w", len(leave), err)
		}
	}
	return nil
}

// changeDenied has the program look at the deny list while there is anything on it.
func (d *Dataplane) changeDenied(chunk []netip.Prefix, change func(*ebpf.Map, netip.Prefix) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.store == nil {
		return errClosed
	}
	for _, p := range chunk {
		if err := change(d.store.maps[bpfMapDenied], p); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	for _, s := range d.services {
		active := &d.store.services[s.number].Active
		atomic.StoreUint32(active, *active&^denying|d.denyingFlag())
	}
	return nil
}

func (d *Dataplane) deny(m *ebpf.Map, p netip.Prefix) error {
	if err := m.Put(mappedPrefix(p), uint32(0)); err != nil {
		return err
	}
	d.denied[p] = true
	return nil
}

func (d *Dataplane) pardon(m *ebpf.Map, p netip.Prefix) error {
	if err := m.Delete(mappedPrefix(p)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	delete(d.denied, p)
	return nil
}

// denyingFlag stands in every service's active while the deny list is not empty.
func (d *Dataplane) denyingFlag() uint32 {
	if len(d.denied) > 0 {
		return denying
	}
	return 0
}

func (d *Dataplane) deniedPrefixes() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.denied)
}

// allow enters what each source may send to the service.
func (d *Dataplane) allow(s *service, l lb.Limit) error {
	if l == (lb.Limit{}) || l == s.limit {
		return nil
	}
	interval := uint64(time.Second) / uint64(l.Packets)
	a := bpfAllowance{Interval: interval, Burst: interval * uint64(l.Burst-1)}
	mask := net.CIDRMask(l.Prefix6, 128)
	a.Mask = [2]uint64{binary.NativeEndian.Uint64(mask), binary.NativeEndian.Uint64(mask[8:])}
	a.Mask4 = binary.NativeEndian.Uint32(net.CIDRMask(l.Prefix4, 32))
	if err := d.store.maps[bpfMapAllowances].Put(s.number, a); err != nil {
		return fmt.Errorf("enter the limit: %w", err)
	}
	s.limit = l
	return nil
}
