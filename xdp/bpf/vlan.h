/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A tagged frame that is to leave again is dealt with as an untagged one, and tagged at the end. */
#ifndef VLAN_H
#define VLAN_H

#include "closer.h"

static __always_inline bool untag(struct xdp_md *ctx, const struct finding *finding)
{
	struct cursor cur = frame_of(ctx);
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

/*
 * The tag that frames to a backend in a VLAN leave with. Of the tag that one came with,
 * if it did, the priority stays (IEEE 802.1Q, 6.9.3): tags has it in its first word.
 */
static __always_inline __u32 tag_of(const struct path *path, __u64 tags)
{
	__be16 h_proto = path->vlan & VLAN_8021AD ? bpf_htons(ETH_P_8021AD) : bpf_htons(ETH_P_8021Q);
	__be16 priority = tags >> 16 & bpf_htons(0xf000);

	return h_proto | (__u32)(bpf_htons(path->vlan & VLAN_ID) | priority) << 16;
}

/* size: 4 bytes a tag, of one or two, the outer one in the first word. */
static __noinline bool tag(struct xdp_md *ctx, __u64 with, __u32 size)
{
	struct cursor cur = frame_of(ctx);
	struct ethhdr *eth = take(&cur, struct ethhdr);
	struct {
		__u8 bytes[12];
	} macs, *to;
	__u32 *tags;

	if (!eth)
		return false;
	macs = *(typeof(macs) *)eth;
	if (bpf_xdp_adjust_head(ctx, -(int)size))
		return false;
	to = (void *)(long)ctx->data;
	tags = (void *)(to + 1);
	if ((void *)(tags + 2) > (void *)(long)ctx->data_end)
		return false;
	*to = macs;
	tags[0] = with;
	if (size > 4)
		tags[1] = with >> 32;
	return true;
}

#endif
