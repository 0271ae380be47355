/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The ways a packet leaves: with other MAC addresses, and in an outer header or without. */
#ifndef ENCAP_H
#define ENCAP_H

#include "parse.h"

/* Where a packet is to go: what choose() found. */
struct target {
	__u64 next_hop;
	const struct path *path;
	__u64 hash;
	__u32 backend; /* entry of the backends array */
};

static __always_inline void address_frame(struct ethhdr *eth, const struct target *to)
{
	*(__u32 *)eth->h_dest = to->next_hop;
	*(__u16 *)(eth->h_dest + 4) = to->next_hop >> 32;
	*(__u32 *)eth->h_source = *(__u32 *)to->path->source;
	*(__u16 *)(eth->h_source + 4) = *(__u16 *)(to->path->source + 4);
}

static __always_inline enum verdict send_l2(struct xdp_md *ctx, const struct target *to)
{
	struct cursor cur = { (void *)(long)ctx->data, (void *)(long)ctx->data_end };
	struct ethhdr *eth = take(&cur, struct ethhdr);

	if (!eth)
		return VERDICT_DROP_NO_ROOM;
	address_frame(eth, to);
	return VERDICT_FORWARDED;
}

/* Moves the frame's start so that size bytes lie between an Ethernet header and the IP packet. */
static __always_inline bool make_room(struct xdp_md *ctx, const struct packet *packet, int size)
{
	__u32 frame = ctx->data_end - ctx->data;
	int padding = frame - sizeof(struct ethhdr) - packet->length;

	/* Padding stood for nothing but the shortest frame; in an outer packet it is garbage. */
	if (padding > 0 && bpf_xdp_adjust_tail(ctx, -padding))
		return false;
	return !bpf_xdp_adjust_head(ctx, -size);
}

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/*
 * DSCP and ECN are copied to the outer header, which is RFC 2983's uniform model and
 * RFC 6040's normal mode.
 */
static __always_inline enum verdict send_ipip4(struct xdp_md *ctx, const struct packet *packet,
					       const struct target *to)
{
	struct cursor cur;
	struct ethhdr *eth;
	struct iphdr *ip;

	if (!make_room(ctx, packet, sizeof(*ip)))
		return VERDICT_DROP_NO_ROOM;
	cur.pos = (void *)(long)ctx->data;
	cur.end = (void *)(long)ctx->data_end;
	eth = take(&cur, struct ethhdr);
	ip = eth ? take(&cur, struct iphdr) : NULL;
	if (!ip)
		return VERDICT_DROP_NO_ROOM;

	address_frame(eth, to);
	eth->h_proto = bpf_htons(ETH_P_IP);
	memcpy(ip, to->path->outer, sizeof(*ip));
	ip->tos = packet->tos;
	ip->tot_len = bpf_htons(packet->length + sizeof(*ip));
	ip->protocol = packet->ipv6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
	ip->check = fold((__u32)ip->check + bpf_htons(ip->tos) + ip->tot_len +
			 bpf_htons(ip->protocol));
	return VERDICT_FORWARDED;
}

static __always_inline enum verdict send_ipip6(struct xdp_md *ctx, const struct packet *packet,
					       const struct target *to)
{
	struct cursor cur;
	struct ethhdr *eth;
	struct ipv6hdr *ip;

	if (!make_room(ctx, packet, sizeof(*ip)))
		return VERDICT_DROP_NO_ROOM;
	cur.pos = (void *)(long)ctx->data;
	cur.end = (void *)(long)ctx->data_end;
	eth = take(&cur, struct ethhdr);
	ip = eth ? take(&cur, struct ipv6hdr) : NULL;
	if (!ip)
		return VERDICT_DROP_NO_ROOM;

	address_frame(eth, to);
	eth->h_proto = bpf_htons(ETH_P_IPV6);
	memcpy(ip, to->path->outer, sizeof(*ip));
	/* The hash's high bits chose the slot; routers may spread by the low ones (RFC 6438). */
	ip->flow = bpf_htonl(6U << 28 | (__u32)packet->tos << 20 | (to->hash & 0xfffff));
	ip->payload_len = bpf_htons(packet->length);
	ip->nexthdr = packet->ipv6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
	return VERDICT_FORWARDED;
}

#endif
