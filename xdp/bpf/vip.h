/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Which service a packet is for: the most specific VIP that has its port. That is
 *
 *	its address and port        a look at one or two buckets, all that most packets cost
 *	its address, ranges of ports
 *	the longest prefix that its address is in: port, then ranges
 *
 * One prefix is enough: under its number user space has entered what holds there
 * of wider prefixes too.
 */
#ifndef VIP_H
#define VIP_H

#include "maps.h"

/*
 * User space places the keys by the same hash (xdp/directory.go). Nobody outside chooses
 * them. An address' last byte is its word's highest: the halves change places, or a
 * product's low bits would know nothing of it.
 */
static __always_inline __u64 vip_hash(const struct vip_key *key)
{
	const __u64 *address = (const __u64 *)key->address;
	__u64 h = (address[0] + *(const __u32 *)&key->port) * 0x9e3779b97f4a7c15ULL;

	h = (h ^ h >> 32 ^ (address[1] << 32 | address[1] >> 32)) * 0xbf58476d1ce4e5b9ULL;
	return h ^ h >> 32;
}

static __always_inline bool is_key(const struct vip_key *a, const struct vip_key *b)
{
	const __u64 *x = (const __u64 *)a->address, *y = (const __u64 *)b->address;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) |
		 (*(const __u32 *)&a->port ^ *(const __u32 *)&b->port));
}

/* key has to lie at a multiple of 8 bytes. */
static __always_inline __u32 *find_exact(const struct directory *there, const struct vip_key *key)
{
	__u64 buckets = READ_ONCE(there->buckets), hash = vip_hash(key);
	struct vip_bucket *bucket;
	__u32 number;

	for (int choice = 0; choice < 2; choice++) {
		number = (buckets >> 32) + ((__u32)hash & (__u32)buckets);
		bucket = bpf_map_lookup_elem(&vips, &number);
		if (!bucket)
			return NULL;
		if (is_key(&bucket->entry[0].key, key))
			return &bucket->entry[0].service;
		if (is_key(&bucket->entry[1].key, key))
			return &bucket->entry[1].service;
		hash >>= 32;
	}
	return NULL;
}

static __always_inline bool find_in_ranges(struct vip_key key, __u32 *service)
{
	__u16 port = bpf_ntohs(key.port);
	const struct ranges *ranges;

	key.port = 0;
	ranges = bpf_map_lookup_elem(&port_ranges, &key);
	if (!ranges)
		return false;
	for (int i = 0; i < MOST_RANGES && ranges->range[i].service; i++) {
		if (port >= ranges->range[i].first && port <= ranges->range[i].last) {
			*service = ranges->range[i].service - 1;
			return true;
		}
	}
	return false;
}

/* A later fragment's service, if one has all ports of its protocol; else the VIP's own entry. */
static __always_inline __u32 *find_without_ports(const struct directory *there, struct vip_key *key)
{
	__u32 *number = find_exact(there, key);

	if (number)
		return number;
	key->family &= ~ANY_PORT;
	key->protocol = 0;
	return find_exact(there, key);
}

/* Beyond the packet's own address and port. */
static __noinline bool find_wider(const struct vip_key *vip, const struct directory *there,
				  __u32 *service)
{
	struct vip_key key __attribute__((aligned(8))) = *vip;
	struct prefix prefix = { .bits = 128 };
	__u32 *number;

	if (key.family & ANY_PORT) {
		number = find_without_ports(there, &key);
		if (number) {
			*service = *number;
			return true;
		}
		key = *vip;
	}
	if (there->ranges && find_in_ranges(key, service))
		return true;
	if (!there->prefixes)
		return false;
	memcpy(prefix.address, key.address, sizeof(prefix.address));
	number = bpf_map_lookup_elem(&vip_prefixes, &prefix);
	if (!number)
		return false;
	key = (struct vip_key){ { *number }, key.port, key.protocol, key.family | OF_PREFIX };
	number = key.family & ANY_PORT ? find_without_ports(there, &key) : find_exact(there, &key);
	if (!number)
		return there->ranges && find_in_ranges(key, service);
	*service = *number;
	return true;
}

/*
 * The number where it lies, for most packets in their bucket: the service is looked up by
 * it there, and waits for no copy. wider is room for one that lies nowhere.
 */
static __always_inline const __u32 *find_service(const struct vip_key *vip, __u32 *wider)
{
	const struct directory *there;
	__u32 *number, zero = 0;

	there = bpf_map_lookup_elem(&directory, &zero);
	if (!there)
		return NULL;
	number = find_exact(there, vip);
	if (likely(number))
		return number;
	if (likely(!(there->ranges | there->prefixes | (vip->family & ANY_PORT))))
		return NULL;
	return find_wider(vip, there, wider) ? wider : NULL;
}

#endif
