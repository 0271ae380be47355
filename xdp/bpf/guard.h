/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who is kept out: sources on the deny list, and those that send more than a service allows. */
#ifndef GUARD_H
#define GUARD_H

#include "maps.h"

/*
 * A packet per interval on average, burst's worth at once (ITU-T I.371's GCRA): next is
 * when the one after this is due. Two CPUs may both take the same turn: that costs a
 * packet too many now and then, a lock would cost every one.
 */
static __always_inline bool within_limit(__u64 *next, __u64 interval, __u64 burst)
{
	__u64 now = bpf_ktime_get_ns(), at = READ_ONCE(*next);

	if (at < now)
		at = now;
	if (at - now > burst)
		return false;
	*next = at + interval;
	return true;
}

/*
 * What each service may be sent of ICMP errors, and may cause, and what each VIP answers of
 * pings: 1,000 a second, 100 at once.
 */
#define ICMP_INTERVAL 1000000ULL
#define ICMP_BURST 100000000ULL

static __noinline bool is_denied(__u64 source0, __u64 source1, bool ipv6)
{
	struct prefix key = { .bits = 128 };

	if (ipv6) {
		key.address[0] = source0;
		key.address[1] = source0 >> 32;
		key.address[2] = source1;
		key.address[3] = source1 >> 32;
	} else {
		key.address[2] = bpf_htonl(0xffff);
		key.address[3] = source0;
	}
	return bpf_map_lookup_elem(&denied, &key);
}

/* A source that is not known, or no longer, has its whole burst to itself. */
static __noinline bool is_limited(__u64 source0, __u64 source1, bool ipv6, __u32 service)
{
	struct allowance *allowance = bpf_map_lookup_elem(&allowances, &service);
	struct source_key key = { .service = service };
	__u64 *next, first;

	if (!allowance)
		return false;
	if (ipv6) {
		key.source[0] = source0 & allowance->mask[0];
		key.source[1] = source1 & allowance->mask[1];
		key.family = 6;
	} else {
		key.source[0] = source0 & allowance->mask4;
		key.family = 4;
	}
	next = bpf_map_lookup_elem(&sources, &key);
	if (next)
		return !within_limit(next, allowance->interval, allowance->burst);
	first = bpf_ktime_get_ns() + allowance->interval;
	bpf_map_update_elem(&sources, &key, &first, 0);
	return false;
}

#endif
