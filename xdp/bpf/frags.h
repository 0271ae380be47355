/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Jumbo frames. What is too big for one buffer comes in several, from kernel 5.18 on and
 * to programs that say that they know. Between data and data_end is the first one, in
 * which all headers are; a frame with headers elsewhere is taken for one that ends there.
 */
#ifndef FRAGS_H
#define FRAGS_H

#include "kernel.h"

volatile const bool frags; /* the program was loaded as one that knows */

/* Of all of its buffers. */
static __always_inline __u32 frame_size(struct xdp_md *ctx)
{
	return frags ? bpf_xdp_get_buff_len(ctx) : ctx->data_end - ctx->data;
}

#endif
