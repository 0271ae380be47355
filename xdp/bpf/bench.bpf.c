// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * For benchmarks alone: the shipped program, called by a wrapper that makes a
 * packet before each call and puts the frame's start back after it, as
 * BPF_PROG_TEST_RUN does not between its repetitions. The floor is the same
 * wrapper, with all that it does to a packet, around a program that sends
 * every packet back at once.
 */
#include "lb.bpf.c"

#define HEADERS 74 /* Ethernet, IPv6, TCP */

struct bench {
	__u8 headers[HEADERS + 6]; /* what each packet begins with; the rest stays */
	__u32 frame;		   /* bytes */
	__u32 source;		   /* offset of the last 4 bytes of the source address */
	__u32 flows;		   /* a power of two, less one */
};
struct bench bench;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, XDP_REDIRECT + 1);
	__type(key, __u32);
	__type(value, struct counter);
} actions SEC(".maps");

static __u32 (*const bpf_get_prandom_u32)(void) = (void *)7;
volatile const bool floor_only;

/* Not inlined, so that the floor pays for the call as well. */
__attribute__((noinline)) int nothing(struct xdp_md *ctx)
{
	return ctx->data < ctx->data_end ? XDP_TX : XDP_DROP;
}

SEC("xdp")
int measure(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 at = bench.source & 63;
	__u8 *source = data + at;
	int grown, action;

	if (data + HEADERS > end || source + 4 > end)
		return XDP_ABORTED;
	for (int i = 0; i < HEADERS / 8; i++)
		((__u64 *)data)[i] = ((__u64 *)bench.headers)[i];
	((__u16 *)data)[HEADERS / 2 - 1] = ((__u16 *)bench.headers)[HEADERS / 2 - 1];
	*(__u32 *)source += bpf_get_prandom_u32() & bench.flows;

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
