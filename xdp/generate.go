package xdp

// The objects are committed: building halfproxy needs no clang. They are the
// same byte for byte wherever this very clang builds them.
//
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -type allowance -type path -type range -type slot -type table -type tracked -type vip_entry bpf bpf/lb.bpf.c -- -O2 -Wall -Wextra -Werror
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types -type filter -type targets -type captured -type capture_count capture bpf/capture.bpf.c -- -O2 -Wall -Wextra -Werror
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel decap bpf/decap.bpf.c -- -O2 -Wall -Wextra -Werror
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel mss bpf/mss.bpf.c -- -O2 -Wall -Wextra -Werror
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types -type probe_end probe bpf/probe.bpf.c -- -O2 -Wall -Wextra -Werror
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel pass bpf/pass.bpf.c -- -O2 -Wall -Wextra -Werror
