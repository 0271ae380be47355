// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The program while packets are captured: the shipped one in a wrapper that
 * hands frames and what became of them to user space.
 *
 *   before()      an address, a port, one in so many   -> not this one
 *     keep()        the frame as it came, where the journey may change it
 *   the packet's journey (lb.bpf.c), whose trace tells the rest
 *   after()       verdict, service, backend            -> not asked for
 *     hand_over()   the frame as it came, and as it leaves
 *
 * It is on an interface only while somebody captures. The program that is there
 * otherwise has none of this.
 */
#include "lb.bpf.c"

#define MOST_KEPT 16384 /* bytes of a frame */
#define MOST_BACKENDS 16

/* What was asked for, once for all: the verifier removes what was not. */
struct filter {
	__u64 verdicts; /* a bit each */
	__be32 host[4]; /* IPv4 mapped, as in vip_key */
	__be32 mask[4];
	__u32 snaplen;
	__u32 sample; /* one in so many */
	__u32 place;  /* of the interface among the counts */
	__be16 port;  /* 0: any */
	__u8 family;  /* of host; 0: any address */
	bool incoming; /* frames as they come in */
	bool outgoing; /* frames as they leave */
	bool changed;  /* a verdict is asked for whose frames the journey may change */
	bool by_service, by_backend;
};
volatile const struct filter asked;
_Static_assert(VERDICT_MAX <= 64, "a bit for every verdict");

/* What user space may change meanwhile. */
struct targets {
	__u32 service;
	__u32 backends[MOST_BACKENDS];
	__u32 backends_used;
};
struct targets aim;

/*
 * How many packets may still be handed over. User space adds to it ten times a second,
 * and that is the limit of what a flood makes a capture cost: while there is nothing
 * left no frame is kept. Nor is one after user space has died.
 */
long long grant;

struct captured {
	__u64 at; /* ns, of the monotonic clock */
	__u32 ifindex;
	__u32 length; /* of the frame */
	__u32 kept;   /* bytes of it that follow */
	enum verdict verdict;
	__u32 action;
	__u32 service;
	__u32 backend;
	__u32 outgoing;
	__u8 bytes[MOST_KEPT];
};
_Static_assert(sizeof(struct captured) == 40 + MOST_KEPT, "captured is shared with Go");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct captured);
} frames SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 23);
} ring SEC(".maps");

struct capture_count {
	__u64 seen;    /* packets that came */
	__u64 matched; /* frames that were asked for */
	__u64 lost;    /* of those, what was not handed over */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1); /* user space knows how many interfaces */
	__type(key, __u32);
	__type(value, struct capture_count);
} capture_counts SEC(".maps");

static __always_inline bool is_host4(__be32 address)
{
	return !((address ^ asked.host[3]) & asked.mask[3]);
}

static __always_inline bool is_host6(const __be32 *address)
{
	for (int i = 0; i < 4; i++) {
		if ((address[i] ^ asked.host[i]) & asked.mask[i])
			return false;
	}
	return true;
}

/*
 * Looks at source and destination as they stand in the packet: of an ICMP error not at
 * what it quotes, and at no ports behind IPv6 extension headers.
 */
static __always_inline bool matches(struct xdp_md *ctx)
{
	struct cursor cur = frame_of(ctx);
	struct ethhdr *eth = take(&cur, struct ethhdr);
	struct vlanhdr *tag;
	struct ipv6hdr *ip6;
	struct iphdr *ip4;
	__be16 h_proto;
	__u8 protocol;
	struct {
		__be16 source, dest;
	} *ports;

	if (!asked.family && !asked.port)
		return true;
	if (!eth)
		return false;
	h_proto = eth->h_proto;
	for (int i = 0; i < 2; i++) {
		if (h_proto != bpf_htons(ETH_P_8021Q) && h_proto != bpf_htons(ETH_P_8021AD))
			break;
		tag = take(&cur, struct vlanhdr);
		if (!tag)
			return false;
		h_proto = tag->h_proto;
	}
	if (h_proto == bpf_htons(ETH_P_IP)) {
		ip4 = take(&cur, struct iphdr);
		if (!ip4 || ip4->ihl < 5 || asked.family == 6 ||
		    (asked.family && !is_host4(ip4->saddr) && !is_host4(ip4->daddr)))
			return false;
		protocol = ip4->frag_off & bpf_htons(IP_OFFSET) ? 0 : ip4->protocol;
		cur.pos += ip4->ihl * 4 - sizeof(*ip4);
	} else if (h_proto == bpf_htons(ETH_P_IPV6)) {
		ip6 = take(&cur, struct ipv6hdr);
		if (!ip6 || asked.family == 4 ||
		    (asked.family && !is_host6(ip6->saddr) && !is_host6(ip6->daddr)))
			return false;
		protocol = ip6->nexthdr;
	} else {
		return false;
	}
	if (!asked.port)
		return true;
	if (!shortest_header(protocol))
		return false;
	ports = take(&cur, typeof(*ports));
	return ports && (ports->source == asked.port || ports->dest == asked.port);
}

/*
 * A function of its own, not static: the verifier goes through its loop once, and not
 * once for each length that it may end with.
 */
__noinline int keep(struct xdp_md *ctx)
{
	__u8 *from = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct captured *frame;
	__u32 zero = 0, size, i = 0;

	frame = bpf_map_lookup_elem(&frames, &zero);
	if (!frame)
		return 0;
	frame->at = bpf_ktime_get_ns();
	frame->length = frame_size(ctx);
	if (frags) {
		frame->kept = frame->length < asked.snaplen ? frame->length : asked.snaplen;
		/* Both are 1 at least; that the size is, the verifier sees by this alone. */
		size = ((READ_ONCE(frame->kept) - 1) & (MOST_KEPT - 1)) + 1;
		if (bpf_xdp_load_bytes(ctx, 0, frame->bytes, size))
			frame->kept = 0;
		return 0;
	}
	for (; i + 8 <= MOST_KEPT && i + 8 <= asked.snaplen && from + i + 8 <= end; i += 8)
		*(__u64 *)(frame->bytes + i) = *(__u64 *)(from + i);
	for (; i < MOST_KEPT && i < asked.snaplen && from + i + 1 <= end; i++)
		frame->bytes[i] = from[i];
	frame->kept = i;
	return 0;
}

static __always_inline bool is_wanted(const struct trace *trace)
{
	if (!(asked.verdicts >> (trace->verdict & 63) & 1))
		return false;
	if (asked.by_service && trace->service != aim.service)
		return false;
	if (!asked.by_backend)
		return true;
	for (__u32 i = 0; i < MOST_BACKENDS && i < aim.backends_used; i++) {
		if (trace->backend == aim.backends[i])
			return true;
	}
	return false;
}

static __always_inline void hand_over(struct captured *frame, const struct trace *trace,
				      struct capture_count *count, int action, bool outgoing)
{
	__u32 size = READ_ONCE(frame->kept);

	frame->ifindex = outgoing && action == XDP_REDIRECT ? trace->egress : self.ifindex;
	frame->verdict = trace->verdict;
	frame->action = action;
	frame->service = trace->service;
	frame->backend = trace->backend;
	frame->outgoing = outgoing;
	if (size > MOST_KEPT)
		return;
	if (bpf_ringbuf_output(&ring, frame, sizeof(*frame) - MOST_KEPT + size, 0))
		count->lost++;
	__sync_fetch_and_add(&grant, -1);
}

/* What is to be done once it is known what became of the packet. */
enum heed {
	IGNORED,
	COUNTED, /* nothing is granted */
	CAPTURED,
};

/*
 * Before the journey and after it, in functions of their own: what they have on the
 * stack is not there while the journey needs nearly all that there is (512 bytes).
 */
static __noinline enum heed before(struct xdp_md *ctx)
{
	__u32 zero = 0, place = asked.place;
	struct capture_count *count = bpf_map_lookup_elem(&capture_counts, &place);
	struct trace *trace = bpf_map_lookup_elem(&traces, &zero);

	if (!count || !trace)
		return IGNORED;
	count->seen++;
	if (!matches(ctx) || (asked.sample > 1 && bpf_get_prandom_u32() % asked.sample))
		return IGNORED;
	trace->service = trace->slot = trace->backend = NOT_REACHED;
	if (READ_ONCE(grant) <= 0)
		return COUNTED;
	if (asked.incoming && asked.changed)
		keep(ctx);
	return CAPTURED;
}

static __noinline int after(struct xdp_md *ctx, enum heed heed, int action)
{
	__u32 zero = 0, place = asked.place, wanted;
	struct capture_count *count = bpf_map_lookup_elem(&capture_counts, &place);
	struct captured *frame = bpf_map_lookup_elem(&frames, &zero);
	struct trace *trace = bpf_map_lookup_elem(&traces, &zero);
	bool leaves = action == XDP_TX || action == XDP_REDIRECT;

	if (!count || !frame || !trace || !is_wanted(trace))
		return action;
	wanted = asked.incoming + (asked.outgoing && leaves);
	count->matched += wanted;
	if (heed == COUNTED) {
		count->lost += wanted;
		return action;
	}
	if (asked.incoming) {
		if (!asked.changed)
			keep(ctx);
		hand_over(frame, trace, count, action, false);
	}
	if (asked.outgoing && leaves) {
		keep(ctx);
		hand_over(frame, trace, count, action, true);
	}
	return action;
}

/* The journey but for the closer look: on top of each other the two fill the stack. */
static __noinline int go_straight(struct xdp_md *ctx)
{
	return go(ctx, true);
}

SEC("xdp")
int capture(struct xdp_md *ctx)
{
	enum heed heed = before(ctx);
	int action = go_straight(ctx);

	if (action >= TO_LOOK_CLOSER)
		action = look_closer(ctx, action == TO_LOOK_AGAIN);
	return heed == IGNORED ? action : after(ctx, heed, action);
}
