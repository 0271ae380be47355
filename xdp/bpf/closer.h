/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The look at packets that parse.h has no eye for: VLAN tags, fragments, IPv6
 * extension headers, SCTP and UDP-Lite, ICMP, frames in several buffers. An ICMP error about a packet that a
 * backend sent as the VIP comes to whichever node the routers like; it belongs to
 * the flow of the packet that it quotes, the other way round.
 */
#ifndef CLOSER_H
#define CLOSER_H

#include "parse.h"

/* What closer.h finds beside struct packet. */
struct finding {
	__u64 tags;	/* what stands between the MAC addresses and the EtherType */
	__u32 tags_size;
	__u64 source[2]; /* of this very packet: that of an ICMP error is no flow's */
	__u32 headers;	/* bytes from the IP header to the transport header */
	bool echo;	/* a ping */
	bool error;	/* an ICMP error, which makes no other */
	bool first;	/* fragment, which has the ports for the others */
	bool later;	/* fragment, without ports */
	bool may_cut;	/* IPv4 without DF: its sender expects routers to cut it */
	bool again;	/* looked at before, and found too big */
	struct fragment_key fragment;
};

/* An IP packet: the frame's, or the one that an ICMP error quotes. */
struct datagram {
	__u64 source[2], destination[2];
	__u32 start;  /* where it begins in the frame */
	__u32 offset; /* how far it has been read, from the frame's start */
	__u32 length; /* as its header has it */
	__u32 id;
	__u8 family, protocol, tos, ttl;
	bool first, later, may_cut;
};

/* Each instance of the program has its own of these: one packet at a time on a CPU. */
struct look {
	struct packet packet;
	struct finding finding;
	struct datagram outer, quoted;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct look);
} looks SEC(".maps");

/*
 * As take(), for headers that are anywhere: the next one's place is read from memory each
 * time, and the many ways that lead there are the same to the verifier.
 */
#define take_next(frame, d, type)                                               \
	({                                                                      \
		__u32 place = READ_ONCE((d)->offset) & 0x7fff;                  \
		type *header = (frame)->pos + place;                            \
		if ((void *)(header + 1) > (frame)->end)                        \
			header = NULL;                                          \
		else                                                            \
			(d)->offset = place + sizeof(type);                     \
		header;                                                         \
	})

#define MOST_EXTENSIONS 6 /* of up to 2048 bytes, in two packets: 0x7fff is beyond */

static __always_inline __u32 headers_of(const struct datagram *d)
{
	return READ_ONCE(d->offset) - READ_ONCE(d->start);
}

static __always_inline enum verdict read_ipv4(const struct cursor *frame, struct datagram *d)
{
	struct iphdr *ip = take_next(frame, d, struct iphdr);

	if (!ip || ip->version != 4 || ip->ihl < 5)
		return VERDICT_PASS_MALFORMED;
	d->family = 4;
	d->length = bpf_ntohs(ip->tot_len);
	d->source[0] = ip->saddr;
	d->destination[0] = ip->daddr;
	d->protocol = ip->protocol;
	d->tos = ip->tos;
	d->ttl = ip->ttl;
	d->id = ip->id;
	d->later = ip->frag_off & bpf_htons(IP_OFFSET);
	d->first = !d->later && ip->frag_off & bpf_htons(IP_MF);
	d->may_cut = !(ip->frag_off & bpf_htons(IP_DF));
	d->offset += ip->ihl * 4 - sizeof(*ip);
	return headers_of(d) > d->length ? VERDICT_PASS_MALFORMED : VERDICT_FORWARDED;
}

static __always_inline enum verdict read_ipv6(const struct cursor *frame, struct datagram *d)
{
	struct ipv6hdr *ip = take_next(frame, d, struct ipv6hdr);
	struct extension *extension;
	struct fraghdr *fragment;

	if (!ip || (*(__u8 *)ip >> 4) != 6)
		return VERDICT_PASS_MALFORMED;
	d->family = 6;
	d->length = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	d->source[0] = *(__u64 *)&ip->saddr[0];
	d->source[1] = *(__u64 *)&ip->saddr[2];
	d->destination[0] = *(__u64 *)&ip->daddr[0];
	d->destination[1] = *(__u64 *)&ip->daddr[2];
	d->protocol = ip->nexthdr;
	d->tos = bpf_ntohs(*(__be16 *)ip) >> 4;
	d->ttl = ip->hop_limit;

	for (int i = 0; i <= MOST_EXTENSIONS; i++) {
		switch (READ_ONCE(d->protocol)) {
		case 0:	 /* hop-by-hop options */
		case 43: /* routing */
		case 60: /* destination options */
			extension = take_next(frame, d, struct extension);
			if (!extension)
				return VERDICT_PASS_MALFORMED;
			d->protocol = extension->nexthdr;
			d->offset += extension->words * 8;
			continue;
		case IPPROTO_FRAGMENT:
			fragment = take_next(frame, d, struct fraghdr);
			if (!fragment)
				return VERDICT_PASS_MALFORMED;
			d->protocol = fragment->nexthdr;
			d->id = fragment->id;
			d->later = fragment->offset & bpf_htons(0xfff8);
			d->first = !d->later && fragment->offset & bpf_htons(1);
			if (READ_ONCE(d->later))
				goto out;
			continue;
		case 51:  /* authentication */
		case 135: /* mobility */
		case 139: /* HIP */
		case 140: /* shim6 */
			return VERDICT_DROP_IPV6_EXTENSION;
		}
		goto out;
	}
	return VERDICT_DROP_IPV6_EXTENSION;
out:
	return headers_of(d) > d->length ? VERDICT_PASS_MALFORMED : VERDICT_FORWARDED;
}

static __always_inline enum verdict read_datagram(const struct cursor *frame, __be16 h_proto,
						  struct datagram *d)
{
	if (h_proto == bpf_htons(ETH_P_IP))
		return read_ipv4(frame, d);
	return read_ipv6(frame, d);
}

/* The shortest header of a protocol that has ports; none: it has none. */
static __always_inline __u32 shortest_header(__u8 protocol)
{
	switch (protocol) {
	case IPPROTO_TCP:
		return 20;
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
		return 8;
	case IPPROTO_SCTP:
		return 12;
	}
	return 0;
}

/* What follows the ports and tells the packet that opens a flow from the others. */
struct opening {
	__u8 skipped[8];
	__u8 chunk; /* the type of SCTP's first */
	__u8 tcp_flags;
};

#define SCTP_INIT 1

static __always_inline bool opens(const struct opening *opening, __u8 protocol)
{
	if (protocol == IPPROTO_TCP)
		return is_syn(opening->tcp_flags);
	return protocol == IPPROTO_SCTP && opening->chunk == SCTP_INIT;
}

static __always_inline void set_vip(struct packet *packet, const __u64 address[2], __u8 family)
{
	__u32 *to = packet->vip.address;

	if (family == 4) {
		to[0] = to[1] = 0;
		to[2] = bpf_htonl(0xffff);
		to[3] = address[0];
	} else {
		to[0] = address[0];
		to[1] = address[0] >> 32;
		to[2] = address[1];
		to[3] = address[1] >> 32;
	}
	packet->vip.port = 0;
	packet->vip.protocol = 0;
	packet->vip.family = family;
}

static __always_inline void set_ports(struct packet *packet, __u32 ports, __u8 protocol)
{
	packet->ports = ports;
	packet->vip.port = ports >> 16;
	packet->vip.protocol = protocol;
}

static __always_inline bool is_error(__u8 family, __u8 type)
{
	if (family == 4) /* unreachable, time exceeded, parameter problem */
		return type == 3 || type == 11 || type == 12;
	return type >= 1 && type <= 4; /* and packet too big */
}

/*
 * Whether an address is that of one host: others must not be sent anything (RFC 1122,
 * 3.2.1.3 and 3.2.2; RFC 4443, 2.4).
 */
static __always_inline bool is_host(const __u64 address[2], __u8 family)
{
	__u8 first = address[0];

	if (family == 4)
		return first != 0 && first != 127 && first < 224;
	/* Neither multicast nor :: nor ::1. */
	return first != 0xff && (address[0] || (address[1] & ~(1ULL << 56)));
}

static __always_inline enum verdict parse_icmp(const struct cursor *frame, __be16 h_proto,
					       struct look *look)
{
	struct datagram *outer = &look->outer, *quoted = &look->quoted;
	__u32 room = outer->length - headers_of(outer);
	enum verdict verdict;
	struct icmphdr *icmp;
	__u64 *ports;

	if (outer->first || outer->later)
		return VERDICT_DROP_FRAGMENT;
	icmp = take_next(frame, outer, struct icmphdr);
	if (!icmp || room < sizeof(*icmp))
		return VERDICT_PASS_MALFORMED;
	if (icmp->type == (outer->family == 4 ? 8 : 128) && !icmp->code) {
		if (!is_host(outer->source, outer->family))
			return VERDICT_PASS_OTHER_PROTOCOL;
		look->finding.echo = true;
		return VERDICT_FORWARDED;
	}
	if (!is_error(outer->family, icmp->type))
		return VERDICT_PASS_OTHER_PROTOCOL;

	look->finding.error = true;
	quoted->start = quoted->offset = outer->offset;
	verdict = read_datagram(frame, h_proto, quoted);
	if (verdict != VERDICT_FORWARDED)
		return verdict;
	if (quoted->source[0] != outer->destination[0] || quoted->source[1] != outer->destination[1])
		return VERDICT_DROP_ICMP_MISMATCH;
	if (quoted->later)
		return VERDICT_DROP_ICMP_FRAGMENT;
	if (!shortest_header(READ_ONCE(quoted->protocol)))
		return VERDICT_PASS_OTHER_PROTOCOL;
	ports = take_next(frame, quoted, __u64); /* no more is sure to be quoted (RFC 792) */
	if (!ports || READ_ONCE(quoted->offset) - outer->start > outer->length)
		return VERDICT_PASS_MALFORMED;
	look->packet.source[0] = quoted->destination[0];
	look->packet.source[1] = quoted->destination[1];
	set_ports(&look->packet, (__u32)*ports >> 16 | (__u32)*ports << 16, quoted->protocol);
	return VERDICT_FORWARDED;
}

/* The ports that the first fragment had. */
static __always_inline bool recall(struct packet *packet, const struct finding *finding)
{
	struct fragment *fragment = bpf_map_lookup_elem(&fragments, &finding->fragment);

	if (!fragment || fragment->until < bpf_ktime_get_ns())
		return false;
	set_ports(packet, fragment->ports, fragment->protocol);
	return true;
}

/*
 * Fragments follow each other at once. A longer life would give the ports of one
 * datagram to another: a fast sender's 65,536 identifications are soon used up.
 */
#define FRAGMENT_LIFE 2000000000ULL

static __always_inline void remember(const struct packet *packet, const struct finding *finding)
{
	struct fragment fragment = {
		.until = bpf_ktime_get_ns() + FRAGMENT_LIFE,
		.ports = packet->ports,
		.protocol = packet->vip.protocol,
	};

	bpf_map_update_elem(&fragments, &finding->fragment, &fragment, 0);
}

/*
 * VERDICT_FORWARDED: nothing speaks against it so far. A drop is to be taken for
 * one only if the packet is for a VIP.
 */
static __always_inline enum verdict parse_closer(struct xdp_md *ctx, struct look *look)
{
	struct cursor frame = frame_of(ctx), cur = frame;
	struct finding *finding = &look->finding;
	struct ethhdr *eth = take(&cur, struct ethhdr);
	struct packet *packet = &look->packet;
	struct datagram *d = &look->outer;
	struct vlanhdr *tag;
	struct opening *opening;
	enum verdict verdict;
	__be16 h_proto;
	__u32 size, room;
	__u32 *ports;

	if (!eth)
		return VERDICT_PASS_MALFORMED;
	h_proto = eth->h_proto;
	for (int i = 0; i < 2; i++) {
		if (h_proto != bpf_htons(ETH_P_8021Q) && h_proto != bpf_htons(ETH_P_8021AD))
			break;
		tag = take(&cur, struct vlanhdr);
		if (!tag)
			return VERDICT_PASS_MALFORMED;
		finding->tags |= ((__u64)h_proto | (__u64)tag->tag << 16) << (32 * i);
		finding->tags_size += sizeof(*tag);
		h_proto = tag->h_proto;
	}
	if (h_proto == bpf_htons(ETH_P_8021Q) || h_proto == bpf_htons(ETH_P_8021AD))
		return VERDICT_PASS_VLAN;
	if (h_proto != bpf_htons(ETH_P_IP) && h_proto != bpf_htons(ETH_P_IPV6))
		return VERDICT_PASS_NOT_IP;

	d->start = d->offset = sizeof(*eth) + READ_ONCE(finding->tags_size);
	verdict = read_datagram(&frame, h_proto, d);
	if (verdict == VERDICT_PASS_MALFORMED ||
	    d->length > frame_size(ctx) - READ_ONCE(d->start))
		return VERDICT_PASS_MALFORMED;
	packet->length = d->length;
	packet->ipv6 = d->family == 6;
	packet->tos = d->tos;
	packet->ttl = d->ttl;
	packet->source[0] = d->source[0];
	packet->source[1] = d->source[1];
	set_vip(packet, d->destination, d->family);
	if (verdict != VERDICT_FORWARDED)
		return verdict;
	finding->source[0] = d->source[0];
	finding->source[1] = d->source[1];
	finding->headers = headers_of(d);
	finding->first = d->first;
	finding->later = d->later;
	finding->may_cut = d->may_cut;

	if (READ_ONCE(d->protocol) == (d->family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6))
		return parse_icmp(&frame, h_proto, look);

	if (unlikely(d->first || d->later)) {
		memcpy(finding->fragment.source, d->source, sizeof(d->source));
		memcpy(finding->fragment.destination, d->destination, sizeof(d->destination));
		finding->fragment.id = d->id;
		finding->fragment.protocol = d->family == 4 ? d->protocol : 0;
		finding->fragment.family = d->family;
	}
	if (d->later) {
		if (recall(packet, finding))
			return VERDICT_FORWARDED;
		/* Nor are the ports needed where all of the protocol's are one service's. */
		packet->vip.protocol = d->protocol;
		packet->vip.family |= ANY_PORT;
		return VERDICT_FORWARDED;
	}

	size = shortest_header(READ_ONCE(d->protocol));
	if (!size)
		return VERDICT_PASS_OTHER_PROTOCOL;
	room = d->length - headers_of(d);
	ports = take_next(&frame, d, __u32);
	if (!ports || room < size)
		return VERDICT_PASS_MALFORMED;
	set_ports(packet, *ports, d->protocol);
	opening = take_next(&frame, d, struct opening);
	if (opening && room >= sizeof(*ports) + sizeof(*opening)) {
		packet->syn = opens(opening, d->protocol);
		packet->ends = d->protocol == IPPROTO_TCP && opening->tcp_flags & (TCP_FIN | TCP_RST);
	}
	return VERDICT_FORWARDED;
}

#endif
