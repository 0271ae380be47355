// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Lowers the MSS that a backend tells its clients, at the egress hook of tc: in
 * the SYN-ACKs that a VIP sends, to what fits the path from the load balancers
 * with the outer headers in front. It is never raised, and a packet is never
 * held up: whatever is not such a SYN-ACK, or has no MSS option, goes on as it is.
 */
#include "tc.h"

enum {
	OPTION_END = 0,
	OPTION_NOP = 1,
	OPTION_MSS = 2,
	OPTION_MSS_LENGTH = 4,
	MAX_OPTIONS = 40, /* bytes; a NOP is one */
};

struct prefix {
	__u32 bits;
	__be32 address[4]; /* IPv4 mapped: ::ffff:a.b.c.d */
};

/* The biggest MSS that fits, by the family of the VIP. */
struct mss_limit {
	__u16 ipv4;
	__u16 ipv6;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, __u32); /* interface that the packet leaves by */
	__type(value, struct mss_limit);
} mss_limits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); /* user space knows how many */
	__type(key, struct prefix);
	__type(value, __u8);
} own_vips SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} mss_lowered SEC(".maps");

/* Gives the offset of the TCP header, 0 if there is none. */
static __always_inline __u32 find_tcp(struct __sk_buff *skb, struct prefix *source, bool *ipv6)
{
	struct ipv6hdr ip6;
	struct iphdr ip4;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, sizeof(struct ethhdr), &ip4, sizeof(ip4)) ||
		    ip4.version != 4 || ip4.ihl < 5 || ip4.protocol != IPPROTO_TCP ||
		    ip4.frag_off & bpf_htons(IP_MF | IP_OFFSET))
			return 0;
		source->address[2] = bpf_htonl(0xffff);
		source->address[3] = ip4.saddr;
		return sizeof(struct ethhdr) + ip4.ihl * 4;
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, sizeof(struct ethhdr), &ip6, sizeof(ip6)) ||
		    *(__u8 *)&ip6 >> 4 != 6 || ip6.nexthdr != IPPROTO_TCP)
			return 0;
		memcpy(source->address, ip6.saddr, sizeof(ip6.saddr));
		*ipv6 = true;
		return sizeof(struct ethhdr) + sizeof(ip6);
	}
	return 0;
}

/*
 * Gives kind and length of the TCP option at pos, in two bytes, 0 where there is
 * none. A function of its own, not static: the verifier looks at it once (kernel
 * 5.6). Inlined into the loop, every branch here doubled the states it had to go
 * through, 40 times, and it gave up after a million instructions.
 */
__noinline __u32 read_option(struct __sk_buff *skb, __u32 pos, __u32 end)
{
	__u8 kind, length;

	if (pos >= end || bpf_skb_load_bytes(skb, pos, &kind, 1) || kind == OPTION_END)
		return 0;
	if (kind == OPTION_NOP)
		return OPTION_NOP << 8 | 1;
	if (pos + 2 > end || bpf_skb_load_bytes(skb, pos + 1, &length, 1) || length < 2 ||
	    pos + length > end)
		return 0;
	return kind << 8 | length;
}

/* Gives the offset of the MSS in the options from pos to end, 0 if there is none. */
static __always_inline __u32 find_mss(struct __sk_buff *skb, __u32 pos, __u32 end)
{
	__u32 option;
	int i;

	for (i = 0; i < MAX_OPTIONS; i++) {
		option = read_option(skb, pos, end);
		if (!option)
			return 0;
		if (option == (OPTION_MSS << 8 | OPTION_MSS_LENGTH))
			return pos + 2;
		pos += option & 0xff;
	}
	return 0;
}

static __always_inline void lower(struct __sk_buff *skb, __u32 tcp, __u32 at, __u16 limit)
{
	__u32 zero = 0, from, to;
	__u64 *counter;
	__be16 mss;

	if (bpf_skb_load_bytes(skb, at, &mss, sizeof(mss)) || bpf_ntohs(mss) <= limit)
		return;
	from = mss;
	mss = bpf_htons(limit);
	to = mss;
	/* The sum is one of words: at an odd offset each byte counts as the other half. */
	if ((at - tcp) & 1) {
		from = bpf_htons(from);
		to = bpf_htons(to);
	}
	if (bpf_l4_csum_replace(skb, tcp + __builtin_offsetof(struct tcphdr, check), from, to,
				sizeof(mss)) ||
	    bpf_skb_store_bytes(skb, at, &mss, sizeof(mss), 0))
		return;
	counter = bpf_map_lookup_elem(&mss_lowered, &zero);
	if (counter)
		++*counter;
}

SEC("tc")
int fit_mss(struct __sk_buff *skb)
{
	struct prefix source = { .bits = 128 };
	struct mss_limit *limit;
	struct tcphdr tcp;
	bool ipv6 = false;
	__u32 start, header, mss, ifindex = skb->ifindex;

	start = find_tcp(skb, &source, &ipv6);
	if (!start || bpf_skb_load_bytes(skb, start, &tcp, sizeof(tcp)))
		return TC_ACT_UNSPEC;
	if ((tcp.flags & (TCP_SYN | TCP_ACK)) != (TCP_SYN | TCP_ACK))
		return TC_ACT_UNSPEC;
	if (!bpf_map_lookup_elem(&own_vips, &source))
		return TC_ACT_UNSPEC;
	limit = bpf_map_lookup_elem(&mss_limits, &ifindex);
	if (!limit)
		return TC_ACT_UNSPEC;
	header = (tcp.offset >> 4) * 4;
	mss = find_mss(skb, start + sizeof(tcp), start + header);
	if (mss)
		lower(skb, start, mss, ipv6 ? limit->ipv6 : limit->ipv4);
	return TC_ACT_UNSPEC;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
