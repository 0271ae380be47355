// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * A backend's half of ipip: takes the outer IPv4 or IPv6 header off a packet
 * that an allowed source sent to an address of this host, and hands what was
 * inside to the kernel as if it had come so. Everything else passes untouched.
 */
#include "kernel.h"

enum decap_verdict {
	DECAP_TAKEN_OFF,
	DECAP_NO_TUNNEL,	 /* not IP in IP, or a fragment of it */
	DECAP_OTHER_DESTINATION, /* a tunnel, but it does not end here */
	DECAP_REFUSED,		 /* a tunnel of a source that is not allowed */
	DECAP_MALFORMED,	 /* headers cut or lying, outer or inner */
	DECAP_MAX,
};

struct address {
	__be32 word[4]; /* IPv4 mapped: ::ffff:a.b.c.d */
};

struct prefix {
	__u32 bits;
	struct address address;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, struct address);
	__type(value, __u8);
} destinations SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct prefix);
	__type(value, __u8);
} sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DECAP_MAX);
	__type(key, enum decap_verdict);
	__type(value, __u64);
} decap_verdicts SEC(".maps");

struct tunnel {
	struct address destination;
	struct prefix source;
	__u32 outer;  /* bytes of the outer header */
	__be16 inner; /* EtherType of what is inside */
};

static __always_inline enum decap_verdict parse_outer4(void *pos, void *end, struct tunnel *tunnel,
						       __u8 *protocol)
{
	struct iphdr *ip = pos;

	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5 ||
	    bpf_ntohs(ip->tot_len) < ip->ihl * 4 || bpf_ntohs(ip->tot_len) > end - pos)
		return DECAP_MALFORMED;
	if (ip->frag_off & bpf_htons(IP_MF | IP_OFFSET))
		return DECAP_NO_TUNNEL;
	tunnel->source.address.word[2] = tunnel->destination.word[2] = bpf_htonl(0xffff);
	tunnel->source.address.word[3] = ip->saddr;
	tunnel->destination.word[3] = ip->daddr;
	tunnel->outer = ip->ihl * 4;
	*protocol = ip->protocol;
	return DECAP_TAKEN_OFF;
}

static __always_inline enum decap_verdict parse_outer6(void *pos, void *end, struct tunnel *tunnel,
						       __u8 *protocol)
{
	struct ipv6hdr *ip = pos;

	if ((void *)(ip + 1) > end || (*(__u8 *)ip >> 4) != 6 ||
	    bpf_ntohs(ip->payload_len) > end - (void *)(ip + 1))
		return DECAP_MALFORMED;
	memcpy(&tunnel->source.address, ip->saddr, sizeof(ip->saddr));
	memcpy(&tunnel->destination, ip->daddr, sizeof(ip->daddr));
	tunnel->outer = sizeof(*ip);
	*protocol = ip->nexthdr;
	return DECAP_TAKEN_OFF;
}

static __always_inline enum decap_verdict parse(struct xdp_md *ctx, struct tunnel *tunnel)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	enum decap_verdict verdict;
	__u8 protocol, *inner;

	if ((void *)(eth + 1) > end)
		return DECAP_MALFORMED;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		verdict = parse_outer4(eth + 1, end, tunnel, &protocol);
	else if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		verdict = parse_outer6(eth + 1, end, tunnel, &protocol);
	else
		return DECAP_NO_TUNNEL;
	if (verdict != DECAP_TAKEN_OFF)
		return verdict;

	if (protocol == IPPROTO_IPIP)
		tunnel->inner = bpf_htons(ETH_P_IP);
	else if (protocol == IPPROTO_IPV6)
		tunnel->inner = bpf_htons(ETH_P_IPV6);
	else
		return DECAP_NO_TUNNEL;

	inner = (void *)(eth + 1) + tunnel->outer;
	if (inner + sizeof(struct iphdr) > (__u8 *)end ||
	    *inner >> 4 != (protocol == IPPROTO_IPIP ? 4 : 6))
		return DECAP_MALFORMED;
	return DECAP_TAKEN_OFF;
}

static __always_inline enum decap_verdict admit(struct tunnel *tunnel)
{
	if (!bpf_map_lookup_elem(&destinations, &tunnel->destination))
		return DECAP_OTHER_DESTINATION;
	tunnel->source.bits = 128;
	if (!bpf_map_lookup_elem(&sources, &tunnel->source))
		return DECAP_REFUSED;
	return DECAP_TAKEN_OFF;
}

/* Moves the Ethernet header up to the inner packet. */
static __always_inline bool take_off(struct xdp_md *ctx, const struct tunnel *tunnel)
{
	struct ethhdr *old = (void *)(long)ctx->data, *eth, copy;

	if ((void *)(old + 1) > (void *)(long)ctx->data_end)
		return false;
	copy = *old;
	copy.h_proto = tunnel->inner;
	if (bpf_xdp_adjust_head(ctx, tunnel->outer))
		return false;
	eth = (void *)(long)ctx->data;
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return false;
	*eth = copy;
	return true;
}

SEC("xdp")
int decapsulate(struct xdp_md *ctx)
{
	struct tunnel tunnel = {};
	enum decap_verdict verdict;
	__u64 *counter;

	verdict = parse(ctx, &tunnel);
	if (verdict == DECAP_TAKEN_OFF)
		verdict = admit(&tunnel);
	if (verdict == DECAP_TAKEN_OFF && !take_off(ctx, &tunnel))
		verdict = DECAP_MALFORMED;

	counter = bpf_map_lookup_elem(&decap_verdicts, &verdict);
	if (counter)
		++*counter;
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
