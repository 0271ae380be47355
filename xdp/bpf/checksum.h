/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The Internet checksum (RFC 1071). */
#ifndef CHECKSUM_H
#define CHECKSUM_H

#include "frags.h"

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Takes one 16-bit word out of what a checksum covers and another in (RFC 1624, 3). */
static __always_inline __u16 patch(__u16 check, __u16 from, __u16 to)
{
	return fold((__u32)(__u16)~check + (__u16)~from + to);
}

/*
 * The most that a UDP checksum is computed over, in an outer packet: beyond the biggest
 * frames that there are on Ethernet. Packets that are longer do not fit (nexthop.go).
 */
#define MOST_SUMMED 9728
#define SUM_STEP 64

/* The frame's bytes, as a program has them: the two fields of its context. */
struct bytes {
	volatile const __u32 *data, *end;
};

/*
 * Where the rest of the bytes lies. What it is computed from, and that the start of the
 * frame is read anew, leaves the verifier nothing of the loop before it: all the ways out
 * of that are one.
 */
static __always_inline void *rest_of(const struct bytes *frame, __u32 from, __u32 length, __u32 step)
{
	return (void *)(long)*frame->data + ((from + (length & ~(step - 1))) & 0x3fff);
}

/*
 * The sum of length bytes from an even place of the frame on, as far as it has them. Plain
 * additions: bpf_csum_diff takes 512 bytes at most, and copies them first.
 */
static __always_inline __u32 sum_bytes(const struct bytes frame, __u32 from, __u32 length)
{
	void *pos = rest_of(&frame, from, 0, 1), *end = (void *)(long)*frame.end;
	__u64 sum = 0;

	for (__u32 done = SUM_STEP; done <= MOST_SUMMED; done += SUM_STEP) {
		const __u32 *words = pos;

		if (length < done || pos + SUM_STEP > end)
			break;
		_Pragma("unroll") for (int j = 0; j < SUM_STEP / 4; j++)
			sum += words[j];
		pos += SUM_STEP;
	}
	pos = rest_of(&frame, from, length, SUM_STEP);
	end = (void *)(long)*frame.end;
	for (__u32 done = 4; done < SUM_STEP; done += 4) {
		if ((length & (SUM_STEP - 1)) < done || pos + 4 > end)
			break;
		sum += *(const __u32 *)pos;
		pos += 4;
	}
	pos = rest_of(&frame, from, length, 4);
	end = (void *)(long)*frame.end;
	if (length & 2 && pos + 2 <= end) {
		sum += *(const __u16 *)pos;
		pos += 2;
	}
	if (length & 1 && pos + 1 <= end)
		sum += *(const __u8 *)pos;

	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (sum & 0xffff) + (sum >> 16);
}

/*
 * As sum_bytes(), of a frame in several buffers. The last part has 1 to SUM_STEP bytes:
 * before 6.8 the verifier does not learn from a comparison that a size is not 0.
 */
static __always_inline __u32 sum_buffers(struct xdp_md *ctx, __u32 from, __u32 length)
{
	__u32 part[SUM_STEP / 4], rest = ((length - 1) & (SUM_STEP - 1)) + 1, done = 0;
	__u64 sum = 0;

	for (; done < MOST_SUMMED; done += SUM_STEP) {
		if (length - done <= SUM_STEP || bpf_xdp_load_bytes(ctx, from + done, part, SUM_STEP))
			break;
		_Pragma("unroll") for (int j = 0; j < SUM_STEP / 4; j++)
			sum += part[j];
	}
	__builtin_memset(part, 0, sizeof(part));
	if (!bpf_xdp_load_bytes(ctx, from + done, part, rest)) {
		_Pragma("unroll") for (int j = 0; j < SUM_STEP / 4; j++)
			sum += part[j];
	}
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (sum & 0xffff) + (sum >> 16);
}

/* A program of its own to the verifier, which looks at it once, wherever it is called from. */
__noinline __u32 sum_of_frame(struct xdp_md *ctx, __u32 from, __u32 length)
{
	if (frags && from + length > ctx->data_end - ctx->data)
		return sum_buffers(ctx, from, length);
	return sum_bytes((struct bytes){ &ctx->data, &ctx->data_end }, from, length);
}

#endif
