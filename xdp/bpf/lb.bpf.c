// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * A packet's journey
 *
 *   parse()   Ethernet, IPv4 or IPv6, TCP or UDP, into struct packet   (parse.h)
 *     |         another MAC, not IP, cut -----------------------------> pass
 *     |         VLAN tags, fragments, IPv6 extension headers, SCTP, UDP-Lite,
 *     |         ICMP, several buffers: parse_closer() instead   (closer.h)
 *     |           none of these --------------------------------------> pass
 *     |           a fragment's ports are remembered for the others
 *     |           an ICMP error is taken for a packet of the flow
 *     |           that it quotes a packet of
 *   choose()  (VIP, protocol, port) -> service   (vip.h)
 *     |         none, but there are ranges of ports or prefixes: they are looked at
 *     |         none of ours -----------------------------------------> pass
 *     |         denied, or more than its source may send   (guard.h) -> drop
 *     |         a ping, within limits   (icmp.h) ---------------------> back, answered
 *     |         TTL at its end, a fragment of unknown ports, ICMP
 *     |         errors that are false or too many --------------------> drop
 *     |       flow hash -> slot -> backend -> next hop   (hash.h)
 *     |       or a QUIC connection ID's server ID -> backend   (quic.h)
 *     |       or a slot in transition: its flow's record, if there is
 *     |       one, or the slot's base or current backend   (track.h)
 *     |         no backend, no neighbour -----------------------------> drop
 *   send()    other MACs, or outer headers besides   (encap.h)
 *     |         too big: the sender is told, within limits   (icmp.h) -> back, or drop
 *     v
 *   out by the interface it came by (XDP_TX) or by another (redirect);
 *   tagged as its backend's VLAN asks; of one in none, as it came, and then
 *   always by the interface that it came by   (vlan.h)
 *
 * Until a packet is known to be for a VIP it passes to the kernel untouched; only
 * after that may it be dropped. Every end is a verdict, and every verdict is
 * counted, in one place. Nothing is kept of a packet but a first fragment's ports, and
 * in slots in transition what backend its flow has: else that follows from the service's
 * table and the packet alone.
 */
#include "maps.h"
#include "parse.h"
#include "vip.h"
#include "hash.h"
#include "encap.h"
#include "closer.h"
#include "icmp.h"
#include "quic.h"
#include "track.h"
#include "vlan.h"

/* What becomes of a packet for a VIP before a backend is chosen. finding: NULL without one. */
static __always_inline enum verdict judge(const struct packet *packet, enum verdict parsed,
					  const struct finding *finding, __u32 service)
{
	struct limit *limit;

	if (unlikely(parsed != VERDICT_FORWARDED))
		return parsed;
	if (finding) {
		/* There is no service that would say whether to look. */
		if (service == NO_SERVICE &&
		    is_denied(finding->source[0], finding->source[1], packet->ipv6))
			return VERDICT_DROP_DENIED;
		if (finding->echo)
			return answers_echo(&packet->vip) ? VERDICT_ANSWERED_ECHO :
							    VERDICT_DROP_ECHO_LIMITED;
		if (service == NO_SERVICE) /* found by the VIP alone */
			return VERDICT_DROP_FRAGMENT;
		if (finding->first)
			remember(packet, finding);
	}
	if (packet->ttl <= 1)
		return VERDICT_DROP_TTL_EXPIRED;
	if (finding && finding->error) {
		limit = bpf_map_lookup_elem(&limits, &service);
		if (limit && !within_limit(&limit->passed, ICMP_INTERVAL, ICMP_BURST))
			return VERDICT_DROP_ICMP_LIMITED;
	}
	return VERDICT_FORWARDED;
}

static __always_inline void note_slot(__u32 slot)
{
	struct trace *trace = kept_trace();

	if (trace)
		trace->slot = slot;
}

static __always_inline enum verdict choose(struct xdp_md *ctx, const struct packet *packet,
					   enum verdict parsed, const struct finding *finding,
					   struct target *to)
{
	struct service *service;
	struct backend *backend;
	struct slot_page *page;
	struct table *table;
	__u32 active, fields, slot, index;
	const __u32 *number;
	const __u64 *source, *key;
	enum verdict verdict;

	number = find_service(&packet->vip, &index);
	if (!number)
		return VERDICT_PASS_NOT_VIP;
	service = bpf_map_lookup_elem(&services, number);
	to->service = *number;
	active = service ? READ_ONCE(service->active) : 0; /* NO_SERVICE is none */
	source = finding ? finding->source : packet->source;
	if (unlikely(active & DENYING) && is_denied(source[0], source[1], packet->ipv6))
		return VERDICT_DROP_DENIED;
	if (unlikely(active & LIMITED) && !(finding && finding->again) &&
	    is_limited(source[0], source[1], packet->ipv6, to->service))
		return VERDICT_DROP_LIMITED;
	verdict = judge(packet, parsed, finding, to->service);
	if (verdict != VERDICT_FORWARDED)
		return verdict;

	if (!service)
		return VERDICT_DROP_NO_BACKEND;
	fields = active & HASH_FIELDS;
	key = service->key[active & 1];
	table = &service->table[active & 1];

	if (likely(fields == HASH_FLOW))
		to->hash = flow_hash(key, packet->ipv6, packet->source[0], packet->source[1],
				     packet->ports);
	else
		to->hash = field_hash(key, packet, fields);
	if (unlikely(active & QUIC) && choose_by_server_id(ctx, packet, finding, active, to))
		goto chosen;
	if (!table->size)
		return VERDICT_DROP_NO_BACKEND;

	slot = (to->hash >> 32) * table->size >> 32;
	index = table->slots + slot / SLOTS_PER_PAGE;
	page = bpf_map_lookup_elem(&slots, &index);
	if (!page)
		return VERDICT_DROP_NO_BACKEND;
	if (traced)
		note_slot(slot);
	slot = READ_ONCE(*(__u32 *)&page->slots[slot % SLOTS_PER_PAGE]);
	to->backend = table->backends;
	if (unlikely(slot & IN_TRANSITION << 16))
		to->backend += choose_in_transition(ctx, packet, finding, to,
						    slot | (__u64)active << 32);
	else
		to->backend += slot;
chosen:
	backend = bpf_map_lookup_elem(&backends, &to->backend);
	if (!backend)
		return VERDICT_DROP_NO_BACKEND;
	to->next_hop = READ_ONCE(backend->next_hop);
	if (!(to->next_hop & HOP_RESOLVED))
		return VERDICT_DROP_NO_NEIGHBOUR;
	to->path = &backend->path[to->next_hop >> HOP_PATH_BIT & 1];
	return VERDICT_FORWARDED;
}

static __always_inline enum verdict send(struct xdp_md *ctx, const struct packet *packet,
					 __u32 frame, const struct target *to)
{
	if (to->next_hop & (HOP_IPV4 | HOP_IPV6)) {
		if (packet->length + overhead(to->next_hop) > to->path->mtu)
			return VERDICT_DROP_TOO_BIG;
		if (to->next_hop & HOP_IPV4)
			return send_over_ipv4(ctx, packet, frame, to);
		return send_over_ipv6(ctx, packet, frame, to);
	}
	/*
	 * What came in by an interface fits when it leaves by it again, be it a
	 * generic receive offload's packet of many segments.
	 */
	if (to->path->ifindex != self.ifindex && packet->length > to->path->mtu)
		return VERDICT_DROP_TOO_BIG;
	return send_l2(ctx, packet, to);
}

static __always_inline void note_end(enum verdict verdict, const struct target *to)
{
	struct trace *trace = kept_trace();

	if (!trace)
		return;
	trace->verdict = verdict;
	trace->service = to->service;
	trace->backend = to->backend;
	trace->hash = to->hash;
	if (verdict == VERDICT_FORWARDED)
		trace->egress = to->path->ifindex;
}

/* The one end of all packets. kept: the frame leaves with the tags that it came with. */
static __always_inline int conclude(enum verdict verdict, __u64 frame, const struct packet *packet,
				    const struct target *to, bool kept)
{
	count(&verdicts, verdict, frame, packet->syn);
	if (traced)
		note_end(verdict, to);
	if (verdict >= VERDICT_FIRST_DROP)
		return XDP_DROP;
	if (verdict == VERDICT_ANSWERED_ECHO || verdict == VERDICT_ANSWERED_TOO_BIG)
		return XDP_TX;
	if (verdict != VERDICT_FORWARDED)
		return XDP_PASS;

	count(&backend_counters, to->backend, frame, packet->syn);
	if (kept || to->path->ifindex == self.ifindex)
		return XDP_TX;
	return bpf_redirect(to->path->ifindex, 0);
}

/*
 * The journey with the closer look, for what cannot do without. What it finds lies in
 * a map and not on the stack: of a map's value the verifier keeps no track, so the many
 * ways through parse_closer() are one from there on, and the program loads in an instant.
 */
static __noinline int look_closer(struct xdp_md *ctx, bool again)
{
	__u64 frame = frame_size(ctx);
	struct target to = {};
	enum verdict verdict;
	struct look *look;
	__u32 zero = 0, size;
	bool kept;
	__u64 tags;

	look = bpf_map_lookup_elem(&looks, &zero);
	if (!look)
		return XDP_ABORTED;
	to.service = to.backend = NOT_REACHED;
	*look = (struct look){ .finding.again = again };
	verdict = parse_closer(ctx, look);
	if (verdict == VERDICT_FORWARDED || verdict >= VERDICT_FIRST_DROP)
		verdict = choose(ctx, &look->packet, verdict, &look->finding, &to);
	if (verdict != VERDICT_FORWARDED && verdict != VERDICT_ANSWERED_ECHO)
		return conclude(verdict, frame, &look->packet, &to, false);

	if (look->finding.tags_size && !untag(ctx, &look->finding))
		return conclude(VERDICT_DROP_NO_ROOM, frame, &look->packet, &to, false);
	if (verdict == VERDICT_ANSWERED_ECHO)
		verdict = answer_echo(ctx, &look->packet, &look->finding);
	else
		verdict = send(ctx, &look->packet, frame_size(ctx), &to);
	if (verdict == VERDICT_DROP_TOO_BIG)
		verdict = answer_too_big(ctx, &look->packet, &look->finding, &to);
	tags = look->finding.tags;
	size = look->finding.tags_size;
	kept = size;
	if (verdict == VERDICT_FORWARDED && to.next_hop & HOP_VLAN) { /* answers go back as they came */
		tags = tag_of(to.path, tags);
		size = sizeof(struct vlanhdr);
		kept = false;
	}
	if (size && !tag(ctx, tags, size))
		verdict = VERDICT_DROP_NO_ROOM;
	return conclude(verdict, frame, &look->packet, &to, kept);
}

/* No actions: the packet is still for look_closer(), the second time as one found too big. */
#define TO_LOOK_CLOSER 16
#define TO_LOOK_AGAIN 17

/* alone: the closer look is the caller's to take, where the stack has no room for both. */
static __always_inline int go(struct xdp_md *ctx, bool alone)
{
	__u64 frame = ctx->data_end - ctx->data;
	struct packet packet = {};
	struct target to = {};
	enum verdict verdict;

	to.service = to.backend = NOT_REACHED;
	/*
	 * The verdict stays in a register, a constant on every path: kept in memory,
	 * 5.10's verifier loses it, and with it that a packet forwarded has a path.
	 */
	verdict = parse(ctx, &packet);
	if (verdict == VERDICT_FORWARDED)
		verdict = choose(ctx, &packet, verdict, NULL, &to);
	if (verdict == VERDICT_FORWARDED)
		verdict = send(ctx, &packet, frame, &to);
	/* What is too big is still as it came. */
	if (unlikely(verdict == LOOK_CLOSER || verdict == VERDICT_DROP_TOO_BIG)) {
		if (alone)
			return verdict == LOOK_CLOSER ? TO_LOOK_CLOSER : TO_LOOK_AGAIN;
		return look_closer(ctx, verdict == VERDICT_DROP_TOO_BIG);
	}
	if (verdict == VERDICT_FORWARDED && unlikely(to.next_hop & HOP_VLAN) &&
	    !tag(ctx, tag_of(to.path, 0), sizeof(struct vlanhdr)))
		return conclude(VERDICT_DROP_NO_ROOM, frame, &packet, &to, false);
	return conclude(verdict, frame, &packet, &to, false);
}

SEC("xdp")
int balance(struct xdp_md *ctx)
{
	return go(ctx, false);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
