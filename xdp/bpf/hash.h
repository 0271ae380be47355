/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The flow hash: SipHash-1-3 (Aumasson, Bernstein) keyed with the service's secret, so that
 * nobody outside can aim flows at one backend. Every node must get the same: the message is
 * source address, source port, destination port, as they lie in the packet. Of a
 * service whose flows go by their source alone, the ports are taken for zero.
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

static __always_inline __u64 flow_hash(const __u64 key[2], const struct packet *packet,
					__u32 ports)
{
	__u64 k0 = key[0], k1 = key[1];
	struct siphash h = {
		k0 ^ 0x736f6d6570736575ULL,
		k1 ^ 0x646f72616e646f6dULL,
		k0 ^ 0x6c7967656e657261ULL,
		k1 ^ 0x7465646279746573ULL,
	};

	/* The last word ends with the message's length. */
	if (packet->ipv6) {
		siphash_word(&h, packet->source[0]);
		siphash_word(&h, packet->source[1]);
		siphash_word(&h, ports | 20ULL << 56);
	} else {
		siphash_word(&h, packet->source[0] | (__u64)ports << 32);
		siphash_word(&h, 8ULL << 56);
	}
	h.v2 ^= 0xff;
	siphash_round(&h);
	siphash_round(&h);
	siphash_round(&h);
	return h.v0 ^ h.v1 ^ h.v2 ^ h.v3;
}

#endif
