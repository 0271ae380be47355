// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * For benchmarks alone: the shipped program, called by a wrapper that makes a
 * packet before each call and puts the frame's start back after it, as
 * BPF_PROG_TEST_RUN does not between its repetitions. The floor is the same
 * wrapper, with all that it does to a packet, around a program that sends
 * every packet back at once.
 */
#include "kernel.h"

/* A call, as the floor's: inlined it would be spared what the floor pays. */
__attribute__((noinline)) int balance(struct xdp_md *ctx);

#include "lb.bpf.c"

#define HEADERS 74 /* Ethernet, IPv6, TCP */

struct bench {
	__u8 headers[HEADERS + 6]; /* what each packet begins with; the rest stays */
	__u32 frame;		   /* bytes */
	__u32 source;		   /* offset of the last 4 bytes of the source address */
	__u32 flows;		   /* a power of two, less one */
	__u32 ifindex;		   /* where generated packets go */
};
struct bench bench;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, XDP_REDIRECT + 1);
	__type(key, __u32);
	__type(value, struct counter);
} actions SEC(".maps");

volatile const bool floor_only;

__attribute__((noinline)) int nothing(struct xdp_md *ctx)
{
	return ctx->data < ctx->data_end ? XDP_TX : XDP_DROP;
}

static __always_inline bool write_packet(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 at = bench.source & 63;
	__u8 *source = data + at;

	if (data + HEADERS > end || source + 4 > end)
		return false;
	for (int i = 0; i < HEADERS / 8; i++)
		((__u64 *)data)[i] = ((__u64 *)bench.headers)[i];
	((__u16 *)data)[HEADERS / 2 - 1] = ((__u16 *)bench.headers)[HEADERS / 2 - 1];
	*(__u32 *)source += bpf_get_prandom_u32() & bench.flows;
	return true;
}

SEC("xdp")
int measure(struct xdp_md *ctx)
{
	int grown, action;

	if (!write_packet(ctx))
		return XDP_ABORTED;
	if (floor_only)
		action = nothing(ctx);
	else
		action = balance(ctx);
	/* Also by nothing: putting the frame right again is the harness's own cost. */
	grown = ctx->data_end - ctx->data - bench.frame;
	bpf_xdp_adjust_head(ctx, grown);
	count(&actions, action, bench.frame, false);
	return action;
}

/* What the kernel takes to run a program on a packet at all. */
SEC("xdp")
int empty(struct xdp_md *ctx)
{
	(void)ctx;
	return XDP_TX;
}

/* For veth: a packet for each run of the test run's live frames, whose bytes are used again. */
SEC("xdp")
int generate(struct xdp_md *ctx)
{
	return write_packet(ctx) ? bpf_redirect(bench.ifindex, 0) : XDP_ABORTED;
}

/* And the end of those that came back; what else there is on the link (ARP) passes. */
SEC("xdp")
int sink(struct xdp_md *ctx)
{
	struct cursor cur = frame_of(ctx);
	struct ethhdr *eth = take(&cur, struct ethhdr);

	if (!eth || eth->h_proto != bpf_htons(ETH_P_IP))
		return XDP_PASS;
	count(&actions, XDP_DROP, ctx->data_end - ctx->data, false);
	return XDP_DROP;
}
