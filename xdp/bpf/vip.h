/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Which service a packet is for: the most specific VIP that has its port. That is
 *
 *	its address and port        one lookup in vips, all that most packets cost
 *	its address, ranges of ports
 *	the longest prefix that its address is in: port, then ranges
 *
 * One prefix is enough: under its number user space has entered what holds there
 * of wider prefixes too.
 */
#ifndef VIP_H
#define VIP_H

#include "maps.h"

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
static __always_inline __u32 *find_without_ports(struct vip_key key)
{
	__u32 *number = bpf_map_lookup_elem(&vips, &key);

	if (number)
		return number;
	key.family &= ~ANY_PORT;
	key.protocol = 0;
	return bpf_map_lookup_elem(&vips, &key);
}

/* Beyond the packet's own address and port. */
static __noinline bool find_wider(const struct vip_key *vip, const struct wider *there,
				  __u32 *service)
{
	struct prefix prefix = { .bits = 128 };
	struct vip_key key = *vip;
	__u32 *number;

	if (there->ranges && find_in_ranges(key, service))
		return true;
	if (!there->prefixes)
		return false;
	memcpy(prefix.address, key.address, sizeof(prefix.address));
	number = bpf_map_lookup_elem(&vip_prefixes, &prefix);
	if (!number)
		return false;
	key = (struct vip_key){ { *number }, key.port, key.protocol, key.family | OF_PREFIX };
	number = key.family & ANY_PORT ? find_without_ports(key) :
					 bpf_map_lookup_elem(&vips, &key);
	if (!number)
		return there->ranges && find_in_ranges(key, service);
	*service = *number;
	return true;
}

static __always_inline bool find_service(const struct vip_key *vip, __u32 *service)
{
	__u32 *number = bpf_map_lookup_elem(&vips, vip), zero = 0;
	const struct wider *there;

	if (likely(number)) {
		*service = *number;
		return true;
	}
	if (vip->family & ANY_PORT) {
		number = find_without_ports(*vip);
		if (number) {
			*service = *number;
			return true;
		}
	}
	there = bpf_map_lookup_elem(&wider, &zero);
	return there && (there->ranges | there->prefixes) && find_wider(vip, there, service);
}

#endif
