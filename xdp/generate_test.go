package xdp

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel bench bpf/bench.bpf.c -- -O2 -Wall -Wextra -Werror
