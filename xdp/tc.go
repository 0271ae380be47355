package xdp

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// filterPriority is where our filters stand among others: before those that `tc`
// is given no priority for.
const filterPriority = 176

// tcHook is a hook of tc on one interface, for a program of ours. It is that of the
// clsact qdisc, as the more modern way in is of kernel 6.6.
type tcHook struct {
	link    string // name of the interface
	ifindex int
	parent  uint32 // netlink.HANDLE_MIN_INGRESS or HANDLE_MIN_EGRESS
	name    string // that our filter is known by, also one that a process left behind when it died

	program int  // id of the one that is there; 0: none
	qdisc   bool // clsact is there by our doing
}

// attach puts the program there, in one step in the place of the one before.
func (t *tcHook) attach(h *netlink.Handle, p *ebpf.Program) error {
	switch err := h.QdiscAdd(clsact(t.ifindex)); {
	case err == nil:
		t.qdisc = true
	case errors.Is(err, unix.EEXIST):
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("add a clsact qdisc to %s: %w: the kernel has none, load its module sch_ingress", t.link, err)
	default:
		return fmt.Errorf("add a clsact qdisc to %s: %w", t.link, err)
	}
	info, err := p.Info()
	if err != nil {
		return fmt.Errorf("ask for the program %s: %w", t.name, err)
	}
	replace, err := t.attached(h)
	if err != nil {
		return err
	}
	put := h.FilterAdd
	if replace {
		put = h.FilterReplace
	}
	filter := t.filter()
	filter.Fd, filter.DirectAction = p.FD(), true
	if err := put(filter); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("another filter has priority %d at the %s of %s: `tc filter show dev %[3]s %[2]s` shows it, give it another: %[4]w",
				filterPriority, t.direction(), t.link, err)
		}
		return fmt.Errorf("put a filter at the %s of %s: %w", t.direction(), t.link, err)
	}
	id, _ := info.ID()
	t.program = int(id)
	return nil
}

func (t *tcHook) direction() string {
	if t.parent == netlink.HANDLE_MIN_INGRESS {
		return "ingress"
	}
	return "egress"
}

func (t *tcHook) filter() *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: t.ifindex, Parent: t.parent, Handle: netlink.MakeHandle(0, 1),
			Protocol: unix.ETH_P_ALL, Priority: filterPriority,
		},
		Name: t.name,
	}
}

// filters gives those of our name, also of a process that died.
func (t *tcHook) filters(h *netlink.Handle) ([]*netlink.BpfFilter, error) {
	list, err := filtersAt(h, t.ifindex, t.parent)
	if err != nil {
		return nil, err
	}
	var ours []*netlink.BpfFilter
	for _, f := range list {
		if f, ok := f.(*netlink.BpfFilter); ok && f.Name == t.name {
			ours = append(ours, f)
		}
	}
	return ours, nil
}

// attached says whether the program is still there.
func (t *tcHook) attached(h *netlink.Handle) (bool, error) {
	ours, err := t.filters(h)
	return slices.ContainsFunc(ours, func(f *netlink.BpfFilter) bool { return f.Id == t.program }), err
}

// detach takes the program away, and the qdisc that it needed if it was put there
// for it and nobody else uses it.
func (t *tcHook) detach(h *netlink.Handle) error {
	if t.program != 0 {
		there, err := t.attached(h)
		if errors.Is(err, unix.ENODEV) {
			return nil // the interface has gone and taken everything along
		}
		if err != nil {
			return err
		}
		if there {
			if err := h.FilterDel(t.filter()); err != nil {
				return fmt.Errorf("remove the filter at the %s of %s: %w", t.direction(), t.link, err)
			}
		}
		t.program = 0
	}
	if !t.qdisc {
		return nil
	}
	t.qdisc = false
	return removeClsact(h, t.ifindex)
}

// clear removes what a process that died left there, and the qdisc if nobody
// else uses it.
func (t *tcHook) clear(h *netlink.Handle) error {
	left, err := t.filters(h)
	if err != nil || len(left) == 0 {
		return err
	}
	for _, f := range left {
		if err := h.FilterDel(f); err != nil {
			return fmt.Errorf("remove the filter that an earlier process left on %s: %w", t.link, err)
		}
	}
	return removeClsact(h, t.ifindex)
}

func clsact(ifindex int) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
}

func filtersAt(h *netlink.Handle, ifindex int, parent uint32) ([]netlink.Filter, error) {
	list, err := h.FilterList(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}, parent)
	if err != nil {
		return nil, fmt.Errorf("list the filters of interface %d: %w", ifindex, err)
	}
	return list, nil
}

// removeClsact removes the qdisc if nobody uses it.
func removeClsact(h *netlink.Handle, ifindex int) error {
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		others, err := filtersAt(h, ifindex, parent)
		if err != nil {
			return err
		}
		if len(others) > 0 {
			return nil
		}
	}
	err := h.QdiscDel(clsact(ifindex))
	// Somebody removed it, or the interface.
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove the clsact qdisc of interface %d: %w", ifindex, err)
	}
	return nil
}
