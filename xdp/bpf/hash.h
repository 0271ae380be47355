/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The flow hash: SipHash-1-3 (Aumasson, Bernstein) keyed with the service's secret, so that
 * nobody outside can aim flows at one backend. Every node must get the same: the message is
 * source address, source port, destination port, as they lie in the packet; of a service
 * that hashes it, the destination address comes after the source address. What else a
 * service does not hash is taken for zero.
 */
#ifndef HASH_H
#define HASH_H

#include "parse.h"

struct siphash {
	__u64 v0, v1, v2, v3;
};

static __always_inline __u64 rol64(__u64 x, int bits)
{
	return x << bits | x >> (64 - bits);
}

static __always_inline void siphash_round(struct siphash *h)
{
	h->v0 += h->v1;
	h->v1 = rol64(h->v1, 13) ^ h->v0;
	h->v0 = rol64(h->v0, 32);
	h->v2 += h->v3;
	h->v3 = rol64(h->v3, 16) ^ h->v2;
	h->v0 += h->v3;
	h->v3 = rol64(h->v3, 21) ^ h->v0;
	h->v2 += h->v1;
	h->v1 = rol64(h->v1, 17) ^ h->v2;
	h->v2 = rol64(h->v2, 32);
}

static __always_inline void siphash_word(struct siphash *h, __u64 word)
{
	h->v3 ^= word;
	siphash_round(h);
	h->v0 ^= word;
}

static __always_inline struct siphash siphash_begin(const __u64 key[2])
{
	__u64 k0 = key[0], k1 = key[1];

	return (struct siphash){
		k0 ^ 0x736f6d6570736575ULL,
		k1 ^ 0x646f72616e646f6dULL,
		k0 ^ 0x6c7967656e657261ULL,
		k1 ^ 0x7465646279746573ULL,
	};
}

/* The last word ends with the message's length. */
static __always_inline __u64 siphash_end(struct siphash *h, __u32 last, __u64 length)
{
	siphash_word(h, last | length << 56);
	h->v2 ^= 0xff;
	siphash_round(h);
	siphash_round(h);
	siphash_round(h);
	return h->v0 ^ h->v1 ^ h->v2 ^ h->v3;
}

static __always_inline __u64 flow_hash(const __u64 key[2], bool ipv6, __u64 source0,
				       __u64 source1, __u32 ports)
{
	struct siphash h = siphash_begin(key);

	if (ipv6) {
		siphash_word(&h, source0);
		siphash_word(&h, source1);
		return siphash_end(&h, ports, 20);
	}
	siphash_word(&h, source0 | (__u64)ports << 32);
	return siphash_end(&h, 0, 8);
}

/* Of a service that names other fields. */
static __noinline __u64 field_hash(const __u64 key[2], const struct packet *packet, __u32 fields)
{
	__u64 source0 = 0, source1 = 0, to;
	__u32 ports = packet->ports;
	struct siphash h;

	if (fields & HASH_SOURCE) {
		source0 = packet->source[0];
		source1 = packet->source[1];
	}
	if (!(fields & HASH_SOURCE_PORT))
		ports &= bpf_htonl(0x0000ffff);
	if (!(fields & HASH_DESTINATION_PORT))
		ports &= bpf_htonl(0xffff0000);
	if (!(fields & HASH_DESTINATION))
		return flow_hash(key, packet->ipv6, source0, source1, ports);

	h = siphash_begin(key);
	to = (__u64)packet->vip.address[3] << 32;
	if (!packet->ipv6) {
		siphash_word(&h, source0 | to);
		return siphash_end(&h, ports, 12);
	}
	siphash_word(&h, source0);
	siphash_word(&h, source1);
	siphash_word(&h, packet->vip.address[0] | (__u64)packet->vip.address[1] << 32);
	siphash_word(&h, packet->vip.address[2] | to);
	return siphash_end(&h, ports, 36);
}

#endif
