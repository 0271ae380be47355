package xdp

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// readProgram reads an embedded program, which takes frames of several buffers where
// the kernel has such.
func readProgram(load func() (*ebpf.CollectionSpec, error), what string) (*ebpf.CollectionSpec, error) {
	spec, err := load()
	if err != nil {
		return nil, fmt.Errorf("read the embedded %s: %w", what, err)
	}
	return spec, takeFrags(spec)
}

// takeFrags makes the programs of spec take frames of several buffers, as jumbo
// frames come, where the kernel has such: from 5.18 on.
func takeFrags(spec *ebpf.CollectionSpec) error {
	err := features.HaveProgramHelper(ebpf.XDP, asm.FnXdpLoadBytes)
	if errors.Is(err, ebpf.ErrNotSupported) {
		return nil
	}
	if err != nil {
		return explainLoad(fmt.Errorf("ask the kernel whether it gives programs frames of several buffers: %w", err))
	}
	for _, p := range spec.Programs {
		p.Flags |= unix.BPF_F_XDP_HAS_FRAGS
	}
	if v := spec.Variables[bpfVarFrags]; v != nil {
		if err := v.Set(true); err != nil {
			return fmt.Errorf("set variable frags: %w", err)
		}
	}
	return nil
}
