/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The packets that the program makes itself: echo replies, and errors about what is too big. */
#ifndef ICMP_H
#define ICMP_H

#include "closer.h"
#include "encap.h"
#include "guard.h"
#include "vip.h"

static __always_inline void swap_macs(struct ethhdr *eth)
{
	__u8 mac[6];

	memcpy(mac, eth->h_dest, sizeof(mac));
	memcpy(eth->h_dest, eth->h_source, sizeof(mac));
	memcpy(eth->h_source, mac, sizeof(mac));
}

static __always_inline bool answers_echo(const struct vip_key *vip)
{
	__u32 index = vip_hash(vip) & (ECHO_LIMITS - 1);
	__u64 *next = bpf_map_lookup_elem(&echo_limits, &index);

	return next && within_limit(next, ICMP_INTERVAL, ICMP_BURST);
}

/* Turns a ping round. The sums do not mind that the addresses change places. */
static __always_inline enum verdict answer_echo(struct xdp_md *ctx, const struct packet *packet,
						const struct finding *finding)
{
	struct cursor cur = frame_of(ctx);
	struct ethhdr *eth = take(&cur, struct ethhdr);
	struct icmphdr *icmp;
	struct ipv6hdr *ip6;
	struct iphdr *ip4;
	__be32 address;
	__u16 before;

	if (!eth)
		return VERDICT_DROP_NO_ROOM;
	icmp = cur.pos + (finding->headers & 0xfff);
	if ((void *)(icmp + 1) > cur.end)
		return VERDICT_DROP_NO_ROOM;
	before = *(__u16 *)icmp;
	icmp->type = packet->ipv6 ? 129 : 0;
	icmp->check = patch(icmp->check, before, *(__u16 *)icmp);
	/* An empty reply is all zeros, which 0 would not cover. Else the two mean the same. */
	if (!icmp->check)
		icmp->check = 0xffff;

	swap_macs(eth);
	if (packet->ipv6) {
		ip6 = take(&cur, struct ipv6hdr);
		if (!ip6)
			return VERDICT_DROP_NO_ROOM;
		for (int i = 0; i < 4; i++) {
			address = ip6->saddr[i];
			ip6->saddr[i] = ip6->daddr[i];
			ip6->daddr[i] = address;
		}
		ip6->hop_limit = 64;
	} else {
		ip4 = take(&cur, struct iphdr);
		if (!ip4)
			return VERDICT_DROP_NO_ROOM;
		address = ip4->saddr;
		ip4->saddr = ip4->daddr;
		ip4->daddr = address;
		before = *(__u16 *)&ip4->ttl;
		ip4->ttl = 64;
		ip4->check = patch(ip4->check, before, *(__u16 *)&ip4->ttl);
	}
	return VERDICT_ANSWERED_ECHO;
}

/*
 * An error quotes as much of the packet as a host has to take in one piece: 576 bytes
 * of IPv4 (RFC 1812, 4.3.2.3), 1280 of IPv6 (RFC 4443, 3.2). What is shorter than
 * that gets none: it is not for too big a packet that a path is to narrow.
 * The source is the VIP. The node's own address is often one that routers on the way
 * to the client drop as private or spoofed, and then the client's upload hangs.
 */
#define QUOTE4 (576 - sizeof(struct iphdr) - sizeof(struct icmphdr))
#define QUOTE6 (1280 - sizeof(struct ipv6hdr) - sizeof(struct icmphdr))

/* The sum of size bytes, which have to be a multiple of 4: the helper takes 512 at once. */
#define sum_of(bytes, size, seed)                                                          \
	({                                                                                 \
		__u32 sum = seed;                                                          \
		_Pragma("unroll") for (int done = 0; done < (int)(size); done += 512)      \
			sum = bpf_csum_diff(NULL, 0, (void *)(bytes) + done,               \
					    (size) - done < 512 ? (size) - done : 512, sum); \
		sum;                                                                       \
	})

static __always_inline enum verdict answer_too_big4(struct xdp_md *ctx, __u16 mtu)
{
	struct cursor cur = frame_of(ctx);
	struct ethhdr *eth = take(&cur, struct ethhdr), copy;
	struct iphdr *ip = eth ? take(&cur, struct iphdr) : NULL;
	struct icmphdr *icmp;
	__be32 client, vip;

	if (!ip)
		return VERDICT_DROP_TOO_BIG;
	copy = *eth;
	client = ip->saddr;
	vip = ip->daddr;
	if (bpf_xdp_adjust_tail(ctx, (int)(sizeof(*eth) + QUOTE4) -
					     (int)frame_size(ctx)) ||
	    bpf_xdp_adjust_head(ctx, -(int)(sizeof(*ip) + sizeof(*icmp))))
		return VERDICT_DROP_TOO_BIG;

	cur = frame_of(ctx);
	eth = take(&cur, struct ethhdr);
	ip = eth ? take(&cur, struct iphdr) : NULL;
	icmp = ip ? take(&cur, struct icmphdr) : NULL;
	if (!icmp || (void *)icmp + sizeof(*icmp) + QUOTE4 > cur.end)
		return VERDICT_DROP_TOO_BIG;
	*eth = copy;
	swap_macs(eth);
	*ip = (struct iphdr){
		.version = 4,
		.ihl = 5,
		.tos = 0xc0, /* internetwork control (RFC 1812, 4.3.2.5) */
		.tot_len = bpf_htons(sizeof(*ip) + sizeof(*icmp) + QUOTE4),
		.frag_off = bpf_htons(IP_DF),
		.ttl = 64,
		.protocol = IPPROTO_ICMP,
		.saddr = vip,
		.daddr = client,
	};
	ip->check = fold(sum_of(ip, sizeof(*ip), 0));
	icmp->type = 3;
	icmp->code = 4; /* fragmentation needed */
	icmp->check = 0;
	icmp->rest = bpf_htonl(mtu); /* RFC 1191 */
	icmp->check = fold(sum_of(icmp, sizeof(*icmp) + QUOTE4, 0));
	return VERDICT_ANSWERED_TOO_BIG;
}

static __always_inline enum verdict answer_too_big6(struct xdp_md *ctx, __u16 mtu)
{
	struct cursor cur = frame_of(ctx);
	struct ethhdr *eth = take(&cur, struct ethhdr), copy;
	struct ipv6hdr *ip = eth ? take(&cur, struct ipv6hdr) : NULL;
	struct icmphdr *icmp;
	__be32 client[4], vip[4];
	__u32 pseudo;

	if (!ip)
		return VERDICT_DROP_TOO_BIG;
	copy = *eth;
	memcpy(client, ip->saddr, sizeof(client));
	memcpy(vip, ip->daddr, sizeof(vip));
	if (bpf_xdp_adjust_tail(ctx, (int)(sizeof(*eth) + QUOTE6) -
					     (int)frame_size(ctx)) ||
	    bpf_xdp_adjust_head(ctx, -(int)(sizeof(*ip) + sizeof(*icmp))))
		return VERDICT_DROP_TOO_BIG;

	cur = frame_of(ctx);
	eth = take(&cur, struct ethhdr);
	ip = eth ? take(&cur, struct ipv6hdr) : NULL;
	icmp = ip ? take(&cur, struct icmphdr) : NULL;
	if (!icmp || (void *)icmp + sizeof(*icmp) + QUOTE6 > cur.end)
		return VERDICT_DROP_TOO_BIG;
	*eth = copy;
	swap_macs(eth);
	ip->flow = bpf_htonl(6U << 28);
	ip->payload_len = bpf_htons(sizeof(*icmp) + QUOTE6);
	ip->nexthdr = IPPROTO_ICMPV6;
	ip->hop_limit = 64;
	memcpy(ip->saddr, vip, sizeof(vip));
	memcpy(ip->daddr, client, sizeof(client));
	icmp->type = 2; /* packet too big */
	icmp->code = 0;
	icmp->check = 0;
	icmp->rest = bpf_htonl(mtu);
	pseudo = bpf_htons(sizeof(*icmp) + QUOTE6) + bpf_htons(IPPROTO_ICMPV6);
	pseudo = sum_of(ip->saddr, sizeof(ip->saddr) + sizeof(ip->daddr), pseudo);
	icmp->check = fold(sum_of(icmp, sizeof(*icmp) + QUOTE6, pseudo));
	return VERDICT_ANSWERED_TOO_BIG;
}

/* VERDICT_DROP_TOO_BIG where the sender is not to be told, or cannot be. */
static __always_inline enum verdict answer_too_big(struct xdp_md *ctx, const struct packet *packet,
						   const struct finding *finding,
						   const struct target *to)
{
	__u16 mtu = to->path->mtu - overhead(to->next_hop);
	struct limit *limit;

	/* Never about an error or a later fragment, nor to many (RFC 1812, 4.3.2.7; RFC 4443, 2.4). */
	if (finding->error || finding->later || finding->may_cut ||
	    !is_host(finding->source, packet->ipv6 ? 6 : 4))
		return VERDICT_DROP_TOO_BIG;
	/* Nobody goes below the smallest MTU there may be. */
	if (packet->length < (packet->ipv6 ? QUOTE6 : QUOTE4) || mtu > to->path->mtu ||
	    mtu < (packet->ipv6 ? 1280 : 68))
		return VERDICT_DROP_TOO_BIG;
	limit = bpf_map_lookup_elem(&limits, &to->service);
	if (!limit || !within_limit(&limit->made, ICMP_INTERVAL, ICMP_BURST))
		return VERDICT_DROP_TOO_BIG;
	return packet->ipv6 ? answer_too_big6(ctx, mtu) : answer_too_big4(ctx, mtu);
}

#endif
