/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A tagged frame that is to leave again is dealt with as an untagged one, and tagged at the end. */
#ifndef VLAN_H
#define VLAN_H

#include "closer.h"

static __always_inline bool untag(struct xdp_md *ctx, const struct finding *finding)
{
	struct cursor cur = { (void *)(long)ctx->data, (void *)(long)ctx->data_end };
	struct ethhdr *eth = take(&cur, struct ethhdr);
	struct {
		__u8 bytes[12];
	} macs, *to;

	if (!eth)
		return false;
	macs = *(typeof(macs) *)eth;
	if (bpf_xdp_adjust_head(ctx, finding->tags_size))
		return false;
	to = (void *)(long)ctx->data;
	if ((void *)(to + 1) > (void *)(long)ctx->data_end)
		return false;
	*to = macs;
	return true;
}

static __always_inline bool tag(struct xdp_md *ctx, const struct finding *finding)
{
	struct cursor cur = { (void *)(long)ctx->data, (void *)(long)ctx->data_end };
	struct ethhdr *eth = take(&cur, struct ethhdr);
	struct {
		__u8 bytes[12];
	} macs, *to;
	__u32 *tags;

	if (!eth)
		return false;
	macs = *(typeof(macs) *)eth;
	if (bpf_xdp_adjust_head(ctx, -(int)finding->tags_size))
		return false;
	to = (void *)(long)ctx->data;
	tags = (void *)(to + 1);
	if ((void *)(tags + 2) > (void *)(long)ctx->data_end)
		return false;
	*to = macs;
	tags[0] = finding->tags;
	if (finding->tags_size > 4)
		tags[1] = finding->tags >> 32;
	return true;
}

#endif
