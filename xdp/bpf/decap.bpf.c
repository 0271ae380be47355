// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * A backend's half of ipip, gre and gue: takes the outer headers off a packet
 * and hands what was inside to the kernel as if it had come so.
 *
 *	outer IP ─► GRE, UDP and GUE ─► ends here? ─► source allowed? ─► whole, plain?
 *	    ─► inner IP ─► for a VIP? ─► ECN ─► headers off ─► kernel
 *
 * Up to the question of the VIP whatever is not as it should be passes to the
 * kernel as it came: it may be somebody else's tunnel. After it, it is known
 * that a load balancer of ours sent the packet, and it is dropped.
 *
 *	ipip  RFC 2003 (4in4), RFC 4213 (6in4), RFC 2473 (4in6, 6in6)
 *	gre   RFC 2784; RFC 7676 over IPv6. Without checksum, key, sequence number
 *	gue   draft-ietf-intarea-gue-09, variant 0 without flags; private data is
 *	      skipped. The outer UDP checksum may be zero, over IPv6 as well
 *	      (RFC 6935): what is inside has its own
 *	ECN   RFC 6040, 4.2
 */
#include "checksum.h"

enum decap_verdict {
	DECAP_IPIP, /* taken off */
	DECAP_GRE,
	DECAP_GUE,
	DECAP_NO_TUNNEL,
	DECAP_MALFORMED,	 /* headers cut or lying, outer or inner */
	DECAP_OTHER_DESTINATION, /* a tunnel, but it does not end here */
	DECAP_OTHER_SOURCE,	 /* a tunnel of a source that is not allowed */
	DECAP_FRAGMENT,		 /* of a tunnel's packet; a later one of GUE is no tunnel */
	DECAP_UNSUPPORTED,	 /* flags, options or a protocol that we do not speak */
	DECAP_BAD_CHECKSUM,	 /* dropped (RFC 1122, 4.1.3.4) */
	DECAP_NOT_VIP,		 /* dropped: a tunnel is no way into the host */
	DECAP_NOT_ECT,		 /* dropped: congestion, and the ends know no ECN */
	DECAP_MAX,
};

/* What of it is on, and where; the verifier removes what is not. */
volatile const bool take_ipip, take_gre, take_gue;
volatile const __u16 gue_port; /* host byte order */

struct address {
	__be32 word[4]; /* IPv4 mapped: ::ffff:a.b.c.d */
};

struct prefix {
	__u32 bits;
	struct address address;
};

struct tunnel_end {
	__u32 ifindex;
	struct address address;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct tunnel_end);
	__type(value, __u8);
} tunnel_ends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); /* user space knows how many */
	__type(key, struct prefix);
	__type(value, __u8);
} sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); /* user space knows how many */
	__type(key, struct prefix);
	__type(value, __u8);
} own_vips SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DECAP_MAX);
	__type(key, enum decap_verdict);
	__type(value, __u64);
} decap_verdicts SEC(".maps");

enum { NOT_ECT, ECT_1, ECT_0, CE, ECN_MASK = 3 };

struct tunnel {
	struct tunnel_end end;
	struct prefix source;
	enum decap_verdict kind; /* that it is when all is well */
	__u32 outer;		 /* bytes of the headers read so far, after Ethernet's */
	__u32 length;		 /* bytes that follow them */
	__u8 protocol;		 /* that follows them: IPPROTO_IPIP or IPPROTO_IPV6 in the end */
	__u8 tos;
	__u8 ecn; /* of the inner packet when it is handed on */
	bool fragment;
	bool later; /* fragment, without the ports */
};

/* Version, traffic class and flow label, in host byte order. */
static __always_inline __u32 first_word(const struct ipv6hdr *ip)
{
	return __builtin_bswap32(ip->flow);
}

/* A packet pointer stays one through any sum that the verifier sees the limit of. */
static __always_inline void *at(struct ethhdr *eth, __u32 outer)
{
	return (void *)(eth + 1) + (outer & 0xff);
}

/* room: bytes of the frame from there on. */
static __always_inline bool read_outer4(struct ethhdr *eth, void *end, __u32 room,
					struct tunnel *tunnel)
{
	struct iphdr *ip = (void *)(eth + 1);
	__u32 header, total;

	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
		return false;
	header = ip->ihl * 4;
	total = bpf_ntohs(ip->tot_len);
	if (total < header || total > room)
		return false;
	tunnel->source.address.word[2] = tunnel->end.address.word[2] = bpf_htonl(0xffff);
	tunnel->source.address.word[3] = ip->saddr;
	tunnel->end.address.word[3] = ip->daddr;
	tunnel->fragment = ip->frag_off & bpf_htons(IP_MF | IP_OFFSET);
	tunnel->later = ip->frag_off & bpf_htons(IP_OFFSET);
	tunnel->protocol = ip->protocol;
	tunnel->tos = ip->tos;
	tunnel->outer = header;
	tunnel->length = total - header;
	return true;
}

/* With extension headers it is no tunnel: no load balancer of ours sends any. */
static __always_inline bool read_outer6(struct ethhdr *eth, void *end, __u32 room,
					struct tunnel *tunnel)
{
	struct ipv6hdr *ip = (void *)(eth + 1);

	if ((void *)(ip + 1) > end || first_word(ip) >> 28 != 6 ||
	    bpf_ntohs(ip->payload_len) + sizeof(*ip) > room)
		return false;
	memcpy(&tunnel->source.address, ip->saddr, sizeof(ip->saddr));
	memcpy(&tunnel->end.address, ip->daddr, sizeof(ip->daddr));
	tunnel->protocol = ip->nexthdr;
	tunnel->tos = first_word(ip) >> 20;
	tunnel->outer = sizeof(*ip);
	tunnel->length = bpf_ntohs(ip->payload_len);
	return true;
}

/* Tells a tunnel that we take off from all other packets. */
static __always_inline enum decap_verdict recognise(struct ethhdr *eth, void *end,
						    struct tunnel *tunnel)
{
	struct udphdr *udp;

	if (take_ipip &&
	    (tunnel->protocol == IPPROTO_IPIP || tunnel->protocol == IPPROTO_IPV6))
		return DECAP_IPIP;
	if (take_gre && tunnel->protocol == IPPROTO_GRE)
		return DECAP_GRE;
	if (!take_gue || tunnel->protocol != IPPROTO_UDP || tunnel->later)
		return DECAP_NO_TUNNEL;
	udp = at(eth, tunnel->outer);
	if ((void *)(udp + 1) > end || tunnel->length < sizeof(*udp))
		return DECAP_MALFORMED;
	return udp->dest == bpf_htons(gue_port) ? DECAP_GUE : DECAP_NO_TUNNEL;
}

static __always_inline enum decap_verdict read_gre(struct ethhdr *eth, void *end,
						   struct tunnel *tunnel)
{
	struct grehdr *gre = at(eth, tunnel->outer);

	if ((void *)(gre + 1) > end || tunnel->length < sizeof(*gre))
		return DECAP_MALFORMED;
	if (gre->flags)
		return DECAP_UNSUPPORTED;
	if (gre->protocol == bpf_htons(ETH_P_IP))
		tunnel->protocol = IPPROTO_IPIP;
	else if (gre->protocol == bpf_htons(ETH_P_IPV6))
		tunnel->protocol = IPPROTO_IPV6;
	else
		return DECAP_UNSUPPORTED;
	tunnel->outer += sizeof(*gre);
	tunnel->length -= sizeof(*gre);
	return DECAP_GRE;
}

/* Whether the outer UDP checksum is right, or zero, or over more than we can look at. */
static __always_inline bool is_intact(struct xdp_md *ctx, const struct tunnel *tunnel,
				      const struct udphdr *udp)
{
	__u32 length = bpf_ntohs(udp->len), sum = bpf_htons(IPPROTO_UDP) + udp->len;

	if (!udp->check || length > MOST_SUMMED)
		return true;
	for (int i = 0; i < 4; i++) { /* what maps an IPv4 address adds nothing */
		sum += (tunnel->source.address.word[i] & 0xffff) + (tunnel->source.address.word[i] >> 16);
		sum += (tunnel->end.address.word[i] & 0xffff) + (tunnel->end.address.word[i] >> 16);
	}
	return !fold(sum + sum_of_frame(ctx, sizeof(struct ethhdr) + tunnel->outer, length));
}

static __always_inline enum decap_verdict read_gue(struct xdp_md *ctx, struct ethhdr *eth,
						   void *end, struct tunnel *tunnel)
{
	struct udphdr *udp = at(eth, tunnel->outer);
	struct guehdr *gue = (void *)(udp + 1);
	__u32 length, header;

	if ((void *)(gue + 1) > end)
		return DECAP_MALFORMED;
	length = bpf_ntohs(udp->len);
	header = sizeof(*udp) + sizeof(*gue) + gue->hlen * 4;
	if (length > tunnel->length || length < sizeof(*udp) + sizeof(*gue))
		return DECAP_MALFORMED;
	if (!is_intact(ctx, tunnel, udp))
		return DECAP_BAD_CHECKSUM;
	/* A flag may say that what follows was altered: checksum offload, encryption. */
	if (gue->variant || gue->control || gue->flags ||
	    (gue->protocol != IPPROTO_IPIP && gue->protocol != IPPROTO_IPV6))
		return DECAP_UNSUPPORTED;
	if (header > length)
		return DECAP_MALFORMED;
	tunnel->protocol = gue->protocol;
	tunnel->outer += header;
	tunnel->length = length - header;
	return DECAP_GUE;
}

/* RFC 6040, figure 4, but for the packet that it drops. */
static __always_inline __u8 combine_ecn(__u8 outer, __u8 inner)
{
	if (inner == NOT_ECT || inner == CE)
		return inner;
	return outer == CE || outer == ECT_1 ? outer : inner;
}

static __always_inline enum decap_verdict read_inner(struct ethhdr *eth, void *end,
						     struct tunnel *tunnel)
{
	struct prefix destination = { .bits = 128 };
	struct ipv6hdr *ip6 = at(eth, tunnel->outer);
	struct iphdr *ip4 = (void *)ip6;
	__u8 outer_ecn = tunnel->tos & ECN_MASK, inner_ecn;

	if (tunnel->protocol == IPPROTO_IPIP) {
		if ((void *)(ip4 + 1) > end || ip4->version != 4 || ip4->ihl < 5 ||
		    bpf_ntohs(ip4->tot_len) < ip4->ihl * 4 ||
		    bpf_ntohs(ip4->tot_len) > tunnel->length)
			return DECAP_MALFORMED;
		destination.address.word[2] = bpf_htonl(0xffff);
		destination.address.word[3] = ip4->daddr;
		inner_ecn = ip4->tos & ECN_MASK;
	} else {
		if ((void *)(ip6 + 1) > end || first_word(ip6) >> 28 != 6 ||
		    bpf_ntohs(ip6->payload_len) + sizeof(*ip6) > tunnel->length)
			return DECAP_MALFORMED;
		memcpy(&destination.address, ip6->daddr, sizeof(ip6->daddr));
		inner_ecn = first_word(ip6) >> 20 & ECN_MASK;
	}
	if (!bpf_map_lookup_elem(&own_vips, &destination))
		return DECAP_NOT_VIP;
	if (inner_ecn == NOT_ECT && outer_ecn == CE)
		return DECAP_NOT_ECT;
	tunnel->ecn = combine_ecn(outer_ecn, inner_ecn);
	return tunnel->kind;
}

static __always_inline enum decap_verdict judge(struct xdp_md *ctx, struct tunnel *tunnel)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	__u32 room = frame_size(ctx) - sizeof(*eth);
	enum decap_verdict verdict;

	if ((void *)(eth + 1) > end)
		return DECAP_MALFORMED;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		if (!read_outer4(eth, end, room, tunnel))
			return DECAP_MALFORMED;
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		if (!read_outer6(eth, end, room, tunnel))
			return DECAP_MALFORMED;
	} else {
		return DECAP_NO_TUNNEL;
	}

	verdict = recognise(eth, end, tunnel);
	if (verdict == DECAP_NO_TUNNEL || verdict == DECAP_MALFORMED)
		return verdict;
	tunnel->kind = verdict;

	if (!bpf_map_lookup_elem(&tunnel_ends, &tunnel->end))
		return DECAP_OTHER_DESTINATION;
	tunnel->source.bits = 128;
	if (!bpf_map_lookup_elem(&sources, &tunnel->source))
		return DECAP_OTHER_SOURCE;
	if (tunnel->fragment)
		return DECAP_FRAGMENT;

	if (tunnel->kind == DECAP_GRE)
		verdict = read_gre(eth, end, tunnel);
	else if (tunnel->kind == DECAP_GUE)
		verdict = read_gue(ctx, eth, end, tunnel);
	if (verdict != tunnel->kind)
		return verdict;
	return read_inner(eth, end, tunnel);
}

static __always_inline void set_ecn4(struct iphdr *ip, __u8 ecn)
{
	__u8 tos = (ip->tos & ~ECN_MASK) | ecn;

	/* The TOS is the low byte of its word. */
	ip->check = bpf_htons(patch(bpf_ntohs(ip->check), ip->tos, tos));
	ip->tos = tos;
}

/* Moves the Ethernet header up to the inner packet, and settles its ECN. */
static __always_inline bool take_off(struct xdp_md *ctx, const struct tunnel *tunnel)
{
	struct ethhdr *eth = (void *)(long)ctx->data, copy;
	struct ipv6hdr *ip6;
	struct iphdr *ip4;
	void *end;

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return false;
	copy = *eth;
	copy.h_proto = bpf_htons(tunnel->protocol == IPPROTO_IPIP ? ETH_P_IP : ETH_P_IPV6);
	if (bpf_xdp_adjust_head(ctx, tunnel->outer))
		return false;
	eth = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	ip4 = (void *)(eth + 1);
	ip6 = (void *)(eth + 1);
	if ((void *)(ip4 + 1) > end)
		return false;
	*eth = copy;
	if (tunnel->protocol == IPPROTO_IPV6)
		ip6->flow = bpf_htonl((first_word(ip6) & ~(ECN_MASK << 20)) | tunnel->ecn << 20);
	else if ((ip4->tos & ECN_MASK) != tunnel->ecn)
		set_ecn4(ip4, tunnel->ecn);
	return true;
}

SEC("xdp")
int decapsulate(struct xdp_md *ctx)
{
	struct tunnel tunnel = { .end.ifindex = ctx->ingress_ifindex };
	enum decap_verdict verdict;
	__u64 *counter;

	verdict = judge(ctx, &tunnel);
	if (verdict <= DECAP_GUE && !take_off(ctx, &tunnel))
		verdict = DECAP_MALFORMED;

	counter = bpf_map_lookup_elem(&decap_verdicts, &verdict);
	if (counter)
		++*counter;
	return verdict >= DECAP_BAD_CHECKSUM ? XDP_DROP : XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
