// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * For benchmarks alone: the shipped program, called by a wrapper that makes a
 * packet before each call and puts the frame's start back after it, as
 * BPF_PROG_TEST_RUN does not between its repetitions. The floor is the same
 * wrapper around a program that sends every packet back at once.
 */
#include "lb.bpf.c"

#define HEADERS 74 /* Ethernet, IPv6, TCP */

struct bench {
	__u8 headers[HEADERS + 6]; /* what each packet begins with; the rest stays */
	__u32 frame;		   /* bytes */
	__u32 source;		   /* offset of the last 4 bytes of the source address */
	__u32 flows;		   /* a power of two, less one */
	__u32 wrong;		   /* packets that did not end as they should */
	__u32 want;		   /* action */
	__u32 pad;
	__u64 random;
};
struct bench bench;
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
	bench.random ^= bench.random << 13;
	bench.random ^= bench.random >> 7;
	bench.random ^= bench.random << 17;
	*(__u32 *)source += (bench.random >> 20) & bench.flows;

	if (floor_only)
		action = nothing(ctx);
	else
		action = balance(ctx);
	if (action != (int)bench.want)
		bench.wrong++;

	grown = ctx->data_end - ctx->data - bench.frame;
	if (grown > 0)
		bpf_xdp_adjust_head(ctx, grown);
	return action;
}
