/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Just enough tracking (after JET, CoNEXT 2021): records of flows are kept only where the
 * table cannot say where a flow goes. That is in the slots whose backend has changed
 * lately: their current backend is that of new flows, and their base the one that flows
 * without a record have, which are older than the change.
 */
#ifndef TRACK_H
#define TRACK_H

#include "guard.h"
#include "hash.h"
#include "quic.h"

/* What a packet says of its flow. */
enum kind {
	KIND_OPENS,	/* it begins here: TCP's SYN, SCTP's INIT */
	KIND_MAY_OPEN,	/* it is new or has just begun: QUIC's Initial */
	KIND_CONTINUES, /* it began earlier */
	KIND_DATAGRAM,	/* nothing */
};

struct way {
	__u16 backend;
	bool record; /* is to be written down */
};

#define NO_RECORD 0xffffffff

/*
 * The rules, as in track.Slot.Decide and track.Kind.Older: a test holds the two against each
 * other. recorded is the backend that the flow has by its record.
 */
static __always_inline struct way decide(__u32 slot, enum kind kind, __u32 recorded)
{
	__u16 current = slot, base = slot >> 16 & BASE_BACKEND;

	if (!(slot & IN_TRANSITION << 16))
		return (struct way){ current, false };
	if (kind == KIND_OPENS && recorded != NO_RECORD)
		return (struct way){ current, true };
	if (recorded != NO_RECORD)
		return (struct way){ recorded, false };
	if (kind == KIND_CONTINUES)
		return (struct way){ base, false };
	return (struct way){ kind == KIND_DATAGRAM && slot & SETTLING << 16 ? base : current, true };
}

/* A flow's first packet counts as those that follow it. */
static __always_inline enum kind older(enum kind kind, __u32 active)
{
	if (kind == KIND_MAY_OPEN && !(active & QUIC))
		return KIND_DATAGRAM;
	return kind == KIND_DATAGRAM ? kind : KIND_CONTINUES;
}

/*
 * Of TCP and QUIC every connection is a flow, whatever the service hashes: a client's older
 * ones stay where they are. Other datagrams may come in fragments without ports: they go by
 * what is hashed.
 * The VIP and the protocol are in no hash. Nobody can aim at another flow's record by them:
 * that would take knowing both hashes.
 */
static __always_inline __u64 record_key(const struct packet *packet, const struct target *to,
					__u32 active)
{
	const __u64 *vip = (const __u64 *)packet->vip.address;
	__u32 protocol = packet->vip.protocol, index = to->service;
	struct service *service;
	__u64 hash = to->hash;

	if ((active & HASH_FIELDS) != HASH_FLOW &&
	    (protocol == IPPROTO_TCP || protocol == IPPROTO_SCTP ||
	     (protocol == IPPROTO_UDP && active & QUIC))) {
		service = bpf_map_lookup_elem(&services, &index);
		if (service)
			hash = flow_hash(service->key[active & 1], packet->ipv6, packet->source[0],
					 packet->source[1], packet->ports);
	}
	return hash ^ (vip[0] ^ rol64(vip[1], 32) ^ protocol) * 0x9e3779b97f4a7c15ULL;
}

#define QUIC_V1 1	   /* RFC 9000 */
#define QUIC_V2 0x6b3343cf /* RFC 9369: another number means Initial */

/*
 * A client's datagrams with an Initial have at least 1200 bytes (RFC 9000, 14.1), and it
 * chooses a connection ID of 8 at least (7.2): what else is UDP is hardly taken for one.
 */
static __always_inline bool is_initial(struct xdp_md *ctx, const struct packet *packet,
				       const struct finding *finding)
{
	struct cursor cur = frame_of(ctx);
	struct initial {
		__u8 first;
		__u8 version[4]; /* it may lie anywhere */
		__u8 length;	 /* of the connection ID */
	} *initial;
	struct udphdr *udp;
	__u32 place, version;

	if (finding && (finding->error || finding->first || finding->later))
		return false;
	place = finding ? sizeof(struct ethhdr) + finding->tags_size + finding->headers :
			  place_of_udp(&cur, packet);
	cur.pos += place & 0x7fff;
	udp = take(&cur, struct udphdr);
	initial = udp ? take(&cur, struct initial) : NULL;
	if (!initial || bpf_ntohs(udp->len) < sizeof(*udp) + 1200 || initial->length < 8 ||
	    initial->length > 20)
		return false;
	version = initial->version[0] << 24 | initial->version[1] << 16 |
		  initial->version[2] << 8 | initial->version[3];
	return (version == QUIC_V1 && (initial->first & 0xf0) == 0xc0) ||
	       (version == QUIC_V2 && (initial->first & 0xf0) == 0xd0);
}

static __always_inline enum kind kind_of(struct xdp_md *ctx, const struct packet *packet,
					 const struct finding *finding, __u32 active)
{
	__u32 protocol = packet->vip.protocol;

	if (protocol == IPPROTO_TCP || protocol == IPPROTO_SCTP)
		return packet->syn ? KIND_OPENS : KIND_CONTINUES;
	if (protocol == IPPROTO_UDP) {
		/* Where flows share a record it says nothing of the others. */
		if ((active & QUIC || (active & HASH_FIELDS) == HASH_FLOW) &&
		    is_initial(ctx, packet, finding))
			return KIND_MAY_OPEN;
		if (active & QUIC)
			return KIND_CONTINUES;
	}
	return KIND_DATAGRAM;
}

static __always_inline void count_tracked(enum tracked what)
{
	__u32 index = what;
	__u64 *counter = bpf_map_lookup_elem(&tracked_packets, &index);

	if (counter)
		(*counter)++;
}

static __always_inline void note_tracked(enum tracked how)
{
	struct trace *trace = kept_trace();

	if (trace)
		trace->tracked = how;
}

/* Which life of its own the backend is in. */
static __always_inline __u8 life_of(__u32 index)
{
	struct backend *backend = bpf_map_lookup_elem(&backends, &index);

	return backend ? READ_ONCE(backend->next_hop) >> HOP_LIFE_BIT : 0;
}

/*
 * What a packet tells of a flow that has a record. It is written only where it changes. The
 * other nodes are to hear that the flow is there, and that it is over: else some would know
 * of it, and some not, when another one of the same ports begins. User space is woken for
 * what it is to tell them when it has read all before.
 */
static __always_inline void touch(struct news *news, struct record *record,
				  const struct packet *packet, __u16 now)
{
	__u8 state = record->state, after = (state | RECORD_CONFIRMED) & ~RECORD_LEARNED;

	if (packet->ends)
		after |= RECORD_CLOSING;
	if (record->used != now)
		record->used = now;
	if (state == after)
		return;
	record->state = after;
	if (!(state & (RECORD_CONFIRMED | RECORD_LEARNED)) || (state ^ after) & RECORD_CLOSING) {
		news->record = *record;
		bpf_ringbuf_output(&confirmed, news, sizeof(*news), 0);
	}
}

/*
 * The backend of a packet whose slot is in transition, counted from the table's first, which
 * to->backend is. packed: the slot, and above it what the service's active was. finding: NULL
 * without one.
 */
static __noinline __u32 choose_in_transition(struct xdp_md *ctx, const struct packet *packet,
					     const struct finding *finding,
					     const struct target *to, __u64 packed)
{
	__u32 slot = packed, active = packed >> 32, index = to->service, recorded = NO_RECORD;
	/* not of the flow itself, or looked at before */
	bool aside = looking || (finding && (finding->error || finding->again));
	enum kind kind = kind_of(ctx, packet, finding, active);
	struct news flow = { .key = record_key(packet, to, active) }; /* one for all: 5.10's stack */
	struct record *record;
	__u64 *strayed_at;
	__u32 zero = 0;
	enum tracked how;
	struct pace *now;
	struct way way;

	now = bpf_map_lookup_elem(&pace, &zero);
	if (!now)
		return slot & 0xffff;
	record = bpf_map_lookup_elem(&records, &flow.key);
	if (record && record->service == index &&
	    record->life == life_of(to->backend + record->backend))
		recorded = record->backend;

	way = decide(slot, kind, recorded);
	if (now->cautious && bpf_ktime_get_ns() < now->cautious)
		way.backend = decide(slot, older(kind, active), recorded).backend;
	if (aside)
		way.record = false;
	if (way.record && !record && !within_limit(&now->next, now->interval, now->burst)) {
		kind = older(kind, active);
		way = decide(slot, kind, recorded);
		way.record = false;
		count_tracked(TRACKED_REFUSED);
	}
	if (way.record) {
		flow.record = (struct record){
			.service = index,
			.backend = way.backend,
			.used = now->now,
			.life = life_of(to->backend + way.backend),
			.state = kind == KIND_DATAGRAM ? RECORD_DATAGRAMS : 0,
		};
		if (record)
			*record = flow.record;
		else
			bpf_map_update_elem(&records, &flow.key, &flow.record, 0);
		how = TRACKED_RECORDED;
	} else if (recorded != NO_RECORD) {
		if (!aside)
			touch(&flow, record, packet, now->now);
		how = TRACKED_BY_RECORD;
	} else {
		how = kind == KIND_DATAGRAM && !(slot & SETTLING << 16) ? TRACKED_BY_CURRENT :
									  TRACKED_BY_BASE;
	}
	if (!aside)
		count_tracked(how);
	if (traced)
		note_tracked(how);
	if (way.backend != (slot & 0xffff) && !aside) {
		strayed_at = bpf_map_lookup_elem(&strayed, &index);
		if (strayed_at && *strayed_at != now->now)
			*strayed_at = now->now;
	}
	return way.backend;
}

#endif
