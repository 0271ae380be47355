// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * A packet's journey
 *
 *   parse()   Ethernet, IPv4 or IPv6, TCP or UDP, into struct packet   (parse.h)
 *     |         another MAC, not IP, cut, ICMP, ... ------------------> pass
 *   choose()  (VIP, protocol, port) -> service: the one hash lookup
 *     |         none of ours -----------------------------------------> pass
 *     |         a fragment, TTL at its end ---------------------------> drop
 *     |       flow hash -> slot -> backend -> next hop   (hash.h)
 *     |         no backend, no neighbour -----------------------------> drop
 *   send()    other MACs, or an outer header besides   (encap.h)
 *     |         too big ----------------------------------------------> drop
 *     v
 *   out by the interface it came by (XDP_TX) or by another (redirect)
 *
 * Until a packet is known to be for a VIP it passes to the kernel untouched; only
 * after that may it be dropped. Every end is a verdict, and every verdict is
 * counted, in one place. Nothing is kept of a packet: which backend it goes to
 * follows from the service's table and the packet alone.
 */
#include "maps.h"
#include "parse.h"
#include "hash.h"
#include "encap.h"

static __always_inline enum verdict choose(const struct packet *packet, enum verdict parsed,
					   struct target *to)
{
	__u32 *number = bpf_map_lookup_elem(&vips, &packet->vip);
	struct service *service;
	struct backend *backend;
	struct slot_page *page;
	struct table *table;
	__u32 active, slot, index;

	if (!number)
		return VERDICT_PASS_NOT_VIP;
	if (unlikely(parsed != VERDICT_FORWARDED))
		return parsed;
	if (packet->ttl <= 1)
		return VERDICT_DROP_TTL_EXPIRED;

	index = *number;
	service = bpf_map_lookup_elem(&services, &index);
	if (!service)
		return VERDICT_DROP_NO_BACKEND;
	active = READ_ONCE(service->active) & 1;
	table = &service->table[active];

	to->hash = flow_hash(service->key[active], packet);
	if (traced) {
		last.service = index;
		last.hash = to->hash;
	}
	if (!table->size)
		return VERDICT_DROP_NO_BACKEND;

	slot = (to->hash >> 32) * table->size >> 32;
	index = table->slots + slot / SLOTS_PER_PAGE;
	page = bpf_map_lookup_elem(&slots, &index);
	if (!page)
		return VERDICT_DROP_NO_BACKEND;
	to->backend = table->backends + page->slots[slot % SLOTS_PER_PAGE].current;
	if (traced) {
		last.slot = slot;
		last.backend = to->backend;
	}

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
					 const struct target *to)
{
	if (to->next_hop & HOP_IPIP4) {
		if (packet->length + sizeof(struct iphdr) > to->path->mtu)
			return VERDICT_DROP_TOO_BIG;
		return send_ipip4(ctx, packet, to);
	}
	if (to->next_hop & HOP_IPIP6) {
		if (packet->length + sizeof(struct ipv6hdr) > to->path->mtu)
			return VERDICT_DROP_TOO_BIG;
		return send_ipip6(ctx, packet, to);
	}
	/*
	 * What came in by an interface fits when it leaves by it again, be it a
	 * generic receive offload's packet of many segments.
	 */
	if (to->path->ifindex != self.ifindex && packet->length > to->path->mtu)
		return VERDICT_DROP_TOO_BIG;
	return send_l2(ctx, to);
}

SEC("xdp")
int balance(struct xdp_md *ctx)
{
	__u64 frame = ctx->data_end - ctx->data;
	struct packet packet = {};
	struct target to = {};
	enum verdict verdict;

	/*
	 * The verdict stays in a register, a constant on every path: kept in memory,
	 * 5.10's verifier loses it, and with it that a packet forwarded has a path.
	 */
	verdict = parse(ctx, &packet);
	if (verdict == VERDICT_FORWARDED || verdict >= VERDICT_FIRST_DROP)
		verdict = choose(&packet, verdict, &to);
	if (verdict == VERDICT_FORWARDED)
		verdict = send(ctx, &packet, &to);

	count(&verdicts, verdict, frame);
	if (traced)
		last.verdict = verdict;
	if (verdict >= VERDICT_FIRST_DROP)
		return XDP_DROP;
	if (verdict != VERDICT_FORWARDED)
		return XDP_PASS;

	count(&backend_counters, to.backend, frame);
	if (to.path->ifindex == self.ifindex)
		return XDP_TX;
	return bpf_redirect(to.path->ifindex, 0);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
