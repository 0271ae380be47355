/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * From the frame to the struct that everything after decides by: of TCP and UDP in
 * IPv4 or IPv6 without more ado. What is anything else is left to closer.h, so that
 * it costs these nothing.
 */
#ifndef PARSE_H
#define PARSE_H

#include "maps.h"

/* Not an end: the packet is one for closer.h. */
#define LOOK_CLOSER VERDICT_MAX

struct packet {
	struct vip_key vip; /* where it goes; without port and protocol: the VIP itself */
	__u64 source[2];    /* address, an IPv4 one in the first four bytes */
	__u32 ports;	    /* source and destination as they lie in the header */
	__u32 length;	    /* of the IP packet: the frame may be padded */
	bool ipv6;
	bool syn; /* opens a flow */
	bool ends; /* may be a flow's last: FIN or RST */
	__u8 tos; /* or traffic class */
	__u8 ttl; /* or hop limit */
};

struct cursor {
	void *pos;
	void *end;
};

/* All of a frame that lies in one piece, as a cursor at its start. */
#define frame_of(ctx) ((struct cursor){ (void *)(long)(ctx)->data, (void *)(long)(ctx)->data_end })

/* The next bytes as a header, or NULL when the frame ends before it does. */
#define take(cur, type)                                             \
	({                                                          \
		type *header = (cur)->pos;                          \
		if ((void *)(header + 1) > (cur)->end)              \
			header = NULL;                              \
		else                                                \
			(cur)->pos = header + 1;                    \
		header;                                             \
	})

static __always_inline __u64 mac_of(const __u8 *bytes)
{
	return *(const __u32 *)bytes | (__u64)*(const __u16 *)(bytes + 4) << 32;
}

/*
 * Whether a packet opens a flow. TCP tells (SYN without ACK), and SCTP (closer.h); a
 * datagram of UDP does not, of it no flows are counted.
 */
static __always_inline bool is_syn(__u8 tcp_flags)
{
	return (tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* room is what the IP packet holds from the transport header on. */
static __always_inline enum verdict parse_transport(struct cursor *cur, struct packet *packet,
						    __u32 family, __u32 protocol, __u32 room)
{
	if (likely(protocol == IPPROTO_TCP)) {
		struct tcphdr *tcp = take(cur, struct tcphdr);

		if (!tcp || room < sizeof(*tcp))
			return VERDICT_PASS_MALFORMED;
		packet->ports = *(__u32 *)tcp;
		packet->syn = is_syn(tcp->flags);
		packet->ends = tcp->flags & (TCP_FIN | TCP_RST);
	} else if (protocol == IPPROTO_UDP) {
		struct udphdr *udp = take(cur, struct udphdr);

		if (!udp || room < sizeof(*udp))
			return VERDICT_PASS_MALFORMED;
		packet->ports = *(__u32 *)udp;
	} else {
		return LOOK_CLOSER;
	}
	/* Port, protocol and family in one store: the lookup reads them in one load. */
	*(__u32 *)&packet->vip.port = packet->ports >> 16 | protocol << 16 | family << 24;
	return VERDICT_FORWARDED;
}

static __always_inline enum verdict parse_ipv4(struct cursor *cur, struct packet *packet)
{
	__u32 room = cur->end - cur->pos;
	struct iphdr *ip = take(cur, struct iphdr);
	__u32 header;

	if (!ip || ip->version != 4 || ip->ihl < 5)
		return VERDICT_PASS_MALFORMED;
	header = ip->ihl * 4;
	packet->length = bpf_ntohs(ip->tot_len);
	if (packet->length < header)
		return VERDICT_PASS_MALFORMED;
	if (unlikely(packet->length > room)) /* it lies, or the rest is in other buffers */
		return LOOK_CLOSER;

	/* Mapped, and in one store: a load of what two stores wrote has to wait for both. */
	*(__u64 *)&packet->vip.address[2] = bpf_htonl(0xffff) | (__u64)ip->daddr << 32;
	packet->source[0] = ip->saddr;
	packet->tos = ip->tos;
	packet->ttl = ip->ttl;

	if (unlikely(ip->frag_off & bpf_htons(IP_MF | IP_OFFSET)))
		return LOOK_CLOSER;
	cur->pos += header - sizeof(*ip); /* options: take() bounds what follows */
	return parse_transport(cur, packet, 4, ip->protocol, packet->length - header);
}

static __always_inline enum verdict parse_ipv6(struct cursor *cur, struct packet *packet)
{
	__u32 room = cur->end - cur->pos;
	struct ipv6hdr *ip = take(cur, struct ipv6hdr);

	if (!ip || (*(__u8 *)ip >> 4) != 6)
		return VERDICT_PASS_MALFORMED;
	/* A jumbogram (RFC 2675) says 0 here: malformed, for want of a transport header. */
	packet->length = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	if (unlikely(packet->length > room))
		return LOOK_CLOSER;

	memcpy(packet->vip.address, ip->daddr, sizeof(ip->daddr));
	packet->source[0] = *(__u64 *)&ip->saddr[0];
	packet->source[1] = *(__u64 *)&ip->saddr[2];
	packet->ipv6 = true;
	packet->tos = bpf_ntohs(*(__be16 *)ip) >> 4;
	packet->ttl = ip->hop_limit;

	return parse_transport(cur, packet, 6, ip->nexthdr, packet->length - sizeof(*ip));
}

/* VERDICT_FORWARDED: nothing speaks against it so far. */
static __always_inline enum verdict parse(struct xdp_md *ctx, struct packet *packet)
{
	struct cursor cur = frame_of(ctx);
	struct ethhdr *eth = take(&cur, struct ethhdr);

	if (!eth)
		return VERDICT_PASS_MALFORMED;
	/* A switch that floods would otherwise make every node forward the same frame. */
	if (mac_of(eth->h_dest) != self.mac)
		return VERDICT_PASS_OTHER_MAC;

	switch (eth->h_proto) {
	case bpf_htons(ETH_P_IP):
		return parse_ipv4(&cur, packet);
	case bpf_htons(ETH_P_IPV6):
		return parse_ipv6(&cur, packet);
	case bpf_htons(ETH_P_8021Q):
	case bpf_htons(ETH_P_8021AD):
		return LOOK_CLOSER;
	}
	return VERDICT_PASS_NOT_IP;
}

#endif
