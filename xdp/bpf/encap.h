/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The ways a packet leaves: with other MAC addresses, and in an outer header or without. */
#ifndef ENCAP_H
#define ENCAP_H

#include "checksum.h"
#include "parse.h"

/* Where a packet is to go: what choose() found. */
struct target {
	__u64 next_hop;
	const struct path *path;
	__u64 hash;
	__u32 service; /* entry of the services array */
	__u32 backend; /* entry of the backends array */
};

static __always_inline void address_frame(struct ethhdr *eth, const struct target *to)
{
	*(__u32 *)eth->h_dest = to->next_hop;
	*(__u16 *)(eth->h_dest + 4) = to->next_hop >> 32;
	*(__u32 *)eth->h_source = *(__u32 *)to->path->source;
	*(__u16 *)(eth->h_source + 4) = *(__u16 *)(to->path->source + 4);
}

/*
 * The hops that a packet has left when it leaves by l2; the backend is the first. One
 * that does not have the VIP sends the packet back to the nodes: it soon comes to an end.
 * In an outer header, which ends at the backend, packets do not go round.
 */
#define L2_TTL 8

static __always_inline enum verdict send_l2(struct xdp_md *ctx, const struct packet *packet,
					    const struct target *to)
{
	struct cursor cur = frame_of(ctx);
	struct ethhdr *eth = take(&cur, struct ethhdr);
	__u8 ttl = packet->ttl - 1;
	struct ipv6hdr *ip6;
	struct iphdr *ip4;

	if (!eth)
		return VERDICT_DROP_NO_ROOM;
	address_frame(eth, to);
	if (ttl > L2_TTL)
		ttl = L2_TTL;
	if (packet->ipv6) {
		ip6 = take(&cur, struct ipv6hdr);
		if (!ip6)
			return VERDICT_DROP_NO_ROOM;
		ip6->hop_limit = ttl;
	} else {
		ip4 = take(&cur, struct iphdr);
		if (!ip4)
			return VERDICT_DROP_NO_ROOM;
		ip4->ttl = ttl;
		/* The other half of the word, the protocol, is in both and cancels out. */
		ip4->check = patch(ip4->check, packet->ttl, ttl);
	}
	return VERDICT_FORWARDED;
}

/*
 * Moves the frame's start so that size bytes lie between an Ethernet header and the IP
 * packet. frame: the frame's size, or that of the buffer which has all of the packet; then
 * padding in others stays.
 */
static __always_inline bool make_room(struct xdp_md *ctx, const struct packet *packet, __u32 frame,
				      int size)
{
	int padding = frame - sizeof(struct ethhdr) - packet->length;

	/* Padding stood for nothing but the shortest frame; in an outer packet it is garbage. */
	if (padding > 0 && bpf_xdp_adjust_tail(ctx, -padding))
		return false;
	return !bpf_xdp_adjust_head(ctx, -size);
}

static __always_inline __u16 overhead(__u64 next_hop)
{
	__u16 ip = next_hop & HOP_IPV6 ? sizeof(struct ipv6hdr) :
		   next_hop & HOP_IPV4 ? sizeof(struct iphdr) :
					 0;

	if (next_hop & HOP_GRE)
		return ip + sizeof(struct grehdr);
	if (next_hop & HOP_GUE)
		return ip + sizeof(struct udphdr) + sizeof(struct guehdr);
	return ip;
}

/* The protocol that the outer IP header is to name. */
static __always_inline __u8 carrier(const struct packet *packet, const struct target *to)
{
	if (to->next_hop & HOP_GRE)
		return IPPROTO_GRE;
	if (to->next_hop & HOP_GUE)
		return IPPROTO_UDP;
	return packet->ipv6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
}

/*
 * What stands between the outer IP header and the packet: of gre a header without
 * options (RFC 2784, over IPv6 RFC 7676), of gue one of variant 0 without flags
 * (draft-ietf-intarea-gue-09) in UDP. The UDP checksum is zero, over IPv6 as
 * RFC 6935 allows tunnels: what is inside has its own. put_checksum() is for those who
 * have asked for one.
 */
static __always_inline bool put_carrier(struct cursor *cur, const struct packet *packet,
					const struct target *to)
{
	struct grehdr *gre;
	struct guehdr *gue;
	struct udphdr *udp;

	if (to->next_hop & HOP_GRE) {
		gre = take(cur, struct grehdr);
		if (!gre)
			return false;
		gre->flags = 0;
		gre->protocol = packet->ipv6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
		return true;
	}
	udp = take(cur, struct udphdr);
	gue = udp ? take(cur, struct guehdr) : NULL;
	if (!gue)
		return false;
	/* RFC 6335: the ports that are nobody's. Routers and NICs spread by it. */
	udp->source = bpf_htons(0xc000 | (to->hash & 0x3fff));
	udp->dest = to->path->port;
	udp->len = bpf_htons(packet->length + sizeof(*udp) + sizeof(*gue));
	udp->check = 0;
	*(__u8 *)gue = 0;
	gue->protocol = packet->ipv6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
	gue->flags = 0;
	return true;
}

/*
 * Write the headers that go before the packet from the frame's start on, where room
 * was made for them. DSCP and ECN are copied to the outer one, which is RFC 2983's
 * uniform model and RFC 6040's normal mode.
 */
static __always_inline bool put_ipv4(struct cursor cur, const struct packet *packet,
				     const struct target *to)
{
	struct ethhdr *eth = take(&cur, struct ethhdr);
	struct iphdr *ip = eth ? take(&cur, struct iphdr) : NULL;
	__be32 vary;

	if (!ip)
		return false;
	address_frame(eth, to);
	eth->h_proto = bpf_htons(ETH_P_IP);
	memcpy(ip, to->path->outer, sizeof(*ip));
	vary = to->path->vary & to->hash;
	ip->saddr |= vary;
	ip->tos = packet->tos;
	ip->tot_len = bpf_htons(packet->length + overhead(to->next_hop));
	ip->protocol = carrier(packet, to);
	/* The bits of vary were zero: what they add to the address they add to the sum. */
	ip->check = fold((__u32)ip->check + bpf_htons(ip->tos) + ip->tot_len +
			 bpf_htons(ip->protocol) + (vary & 0xffff) + (vary >> 16));
	return !(to->next_hop & (HOP_GRE | HOP_GUE)) || put_carrier(&cur, packet, to);
}

static __always_inline bool put_ipv6(struct cursor cur, const struct packet *packet,
				     const struct target *to)
{
	struct ethhdr *eth = take(&cur, struct ethhdr);
	struct ipv6hdr *ip = eth ? take(&cur, struct ipv6hdr) : NULL;

	if (!ip)
		return false;
	address_frame(eth, to);
	eth->h_proto = bpf_htons(ETH_P_IPV6);
	memcpy(ip, to->path->outer, sizeof(*ip));
	/* The hash's high bits chose the slot; routers may spread by the low ones (RFC 6438). */
	ip->flow = bpf_htonl(6U << 28 | (__u32)packet->tos << 20 | (to->hash & 0xfffff));
	ip->payload_len = bpf_htons(packet->length + overhead(to->next_hop) - sizeof(*ip));
	ip->nexthdr = carrier(packet, to);
	ip->saddr[3] |= to->path->vary & to->hash;
	return !(to->next_hop & (HOP_GRE | HOP_GUE)) || put_carrier(&cur, packet, to);
}

/*
 * Where what a UDP checksum covers begins, in a frame without tags: source and destination
 * address, and right behind them the datagram.
 */
static __always_inline __u32 summed_from(__u64 next_hop)
{
	struct ipv6hdr *ip6;
	struct iphdr *ip4;

	return sizeof(struct ethhdr) +
	       (next_hop & HOP_IPV6 ? sizeof(*ip6) - sizeof(ip6->saddr) - sizeof(ip6->daddr) :
				      sizeof(*ip4) - sizeof(ip4->saddr) - sizeof(ip4->daddr));
}

/*
 * sum is that of the frame from there on. The pseudo-header (RFC 768; RFC 8200, 8.1) has
 * besides the datagram's length and protocol.
 */
static __always_inline bool put_checksum(struct cursor cur, const struct target *to, __u32 sum)
{
	struct udphdr *udp;

	cur.pos += sizeof(struct ethhdr) +
		   (to->next_hop & HOP_IPV6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
	udp = take(&cur, struct udphdr);
	if (!udp)
		return false;
	udp->check = fold(sum + udp->len + bpf_htons(IPPROTO_UDP));
	if (!udp->check) /* which would say that there is none */
		udp->check = 0xffff;
	return true;
}

static __always_inline bool put_checksum_if_asked(struct xdp_md *ctx, const struct packet *packet,
						  const struct target *to)
{
	__u32 from = summed_from(to->next_hop);

	if (likely(!(to->next_hop & HOP_CHECKSUM)))
		return true;
	return put_checksum(frame_of(ctx), to,
			    sum_of_frame(ctx, from,
					 sizeof(struct ethhdr) + overhead(to->next_hop) +
						 packet->length - from));
}

static __always_inline enum verdict send_over_ipv4(struct xdp_md *ctx, const struct packet *packet,
						   __u32 frame, const struct target *to)
{
	if (!make_room(ctx, packet, frame, overhead(to->next_hop)) || !put_ipv4(frame_of(ctx), packet, to) ||
	    !put_checksum_if_asked(ctx, packet, to))
		return VERDICT_DROP_NO_ROOM;
	return VERDICT_FORWARDED;
}

static __always_inline enum verdict send_over_ipv6(struct xdp_md *ctx, const struct packet *packet,
						   __u32 frame, const struct target *to)
{
	if (!make_room(ctx, packet, frame, overhead(to->next_hop)) || !put_ipv6(frame_of(ctx), packet, to) ||
	    !put_checksum_if_asked(ctx, packet, to))
		return VERDICT_DROP_NO_ROOM;
	return VERDICT_FORWARDED;
}

#endif
