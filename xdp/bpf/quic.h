/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * QUIC connection IDs that say which backend chose them: the plaintext algorithm of
 * draft-ietf-quic-load-balancers. The first octet of such a one begins with the three
 * bits of the configuration, and the server ID follows it.
 *
 * Of a packet nothing is read but what every version of QUIC has (RFC 8999): whether its
 * header is long, and where the destination connection ID stands. What a client chose
 * itself, for its first packets, holds a server ID by chance alone; then all of them
 * go to that backend, as all others with the same connection ID do.
 */
#ifndef QUIC_H
#define QUIC_H

#include "encap.h"
#include "closer.h"

/* How a QUIC packet's backend was chosen, in the order of quic_counter. */
#define BY_SERVER_ID 1
#define LONG_HEADER 2

/* Where the UDP header begins, of a packet of which parse() alone saw all. */
static __always_inline __u32 place_of_udp(struct cursor *frame, const struct packet *packet)
{
	struct ethhdr *eth = frame->pos;
	struct iphdr *ip = (void *)(eth + 1);

	if (packet->ipv6)
		return sizeof(*eth) + sizeof(struct ipv6hdr);
	if ((void *)(ip + 1) > frame->end)
		return sizeof(*eth);
	return sizeof(*eth) + ip->ihl * 4;
}

/*
 * The backend that the connection ID names, into to->backend, and how that went. The UDP
 * header begins at place; 0: where place_of_udp() says. Bounded by the datagram's length:
 * what follows it pads the frame.
 */
static __noinline __u32 find_by_server_id(struct xdp_md *ctx, const struct packet *packet,
					  __u32 place, __u32 active, struct target *to)
{
	struct cursor cur = { (void *)(long)ctx->data, (void *)(long)ctx->data_end };
	struct server_id id = {
		.service = to->service,
		.length = active >> QUIC_LENGTH_BIT & MOST_SERVER_ID,
	};
	__u32 route = 0, room, *backend;
	struct udphdr *udp;
	__u8 *byte;

	if (!place)
		place = place_of_udp(&cur, packet);
	cur.pos += place & 0x7fff;
	udp = take(&cur, struct udphdr);
	byte = udp ? take(&cur, __u8) : NULL;
	if (!byte)
		return route;
	room = bpf_ntohs(udp->len);
	if (room <= sizeof(*udp))
		return route;
	room -= sizeof(*udp) + 1;
	if (*byte & 0x80) {
		struct long_header {
			__u8 version[4], length;
		} *header = take(&cur, struct long_header);

		route = LONG_HEADER;
		if (!header || room < sizeof(*header))
			return route;
		room -= sizeof(*header);
		if (room > header->length)
			room = header->length;
	}

	byte = take(&cur, __u8);
	if (!byte || room <= id.length || *byte >> 5 != (active >> QUIC_ROTATION_BIT & 7))
		return route;
	for (int i = 0; i < MOST_SERVER_ID; i++) {
		if (i >= id.length)
			break;
		byte = take(&cur, __u8);
		if (!byte)
			return route;
		id.bytes[i] = *byte;
	}
	backend = bpf_map_lookup_elem(&server_ids, &id);
	if (!backend)
		return route;
	to->backend = *backend;
	return route | BY_SERVER_ID;
}

/* Whether the packet's connection ID names a backend. finding: NULL without one. */
static __always_inline bool choose_by_server_id(struct xdp_md *ctx, const struct packet *packet,
						const struct finding *finding, __u32 active,
						struct target *to)
{
	struct quic_counter *counter;
	__u32 place = 0, route;

	if (packet->vip.protocol != IPPROTO_UDP)
		return false;
	if (finding) {
		/* A datagram in pieces is not QUIC's, and they have to go to one backend. */
		if (finding->error || finding->first || finding->later)
			return false;
		place = sizeof(struct ethhdr) + finding->tags_size + finding->headers;
	}
	route = find_by_server_id(ctx, packet, place, active, to) & 3;
	counter = bpf_map_lookup_elem(&quic_counters, &to->service);
	if (counter && !(finding && finding->again))
		counter->packets[route]++;
	return route & BY_SERVER_ID;
}

#endif
