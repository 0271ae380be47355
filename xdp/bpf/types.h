/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the program shares with Go. Go gets these through BTF (bpf2go -type). */
#ifndef TYPES_H
#define TYPES_H

#include "kernel.h"

/*
 * How a packet ended. The name says what became of it: forwarded, passed to the
 * kernel byte for byte as it came, or dropped. Only a packet for a VIP may be
 * dropped.
 */
enum verdict {
	VERDICT_FORWARDED,
	VERDICT_ANSWERED_ECHO,	  /* a ping of a VIP */
	VERDICT_ANSWERED_TOO_BIG, /* in place of the packet, an ICMP error to its sender */

	VERDICT_PASS_OTHER_MAC, /* not for this interface: flooded, broadcast, multicast */
	VERDICT_PASS_NOT_IP,
	VERDICT_PASS_VLAN, /* more than two tags */
	VERDICT_PASS_MALFORMED,
	VERDICT_PASS_OTHER_PROTOCOL, /* no ports, no ICMP echo request or error */
	VERDICT_PASS_NOT_VIP,	     /* no service has this address, protocol and port */

	VERDICT_FIRST_DROP,
	VERDICT_DROP_DENIED = VERDICT_FIRST_DROP, /* its source is on the deny list */
	VERDICT_DROP_LIMITED,			  /* its source sends more than the service allows */
	VERDICT_DROP_FRAGMENT, /* the one with its ports was not seen */
	VERDICT_DROP_IPV6_EXTENSION,		    /* a header that is not walked, or too many */
	VERDICT_DROP_TTL_EXPIRED,
	VERDICT_DROP_NO_BACKEND,
	VERDICT_DROP_NO_NEIGHBOUR, /* the backend's next hop has no known MAC address */
	VERDICT_DROP_TOO_BIG,	   /* for the way to the backend; its sender is not told */
	VERDICT_DROP_NO_ROOM,	   /* the driver left no room for an outer header */
	VERDICT_DROP_ICMP_MISMATCH, /* an error about a packet that the VIP did not send */
	VERDICT_DROP_ICMP_FRAGMENT, /* an error about a fragment that has no ports */
	VERDICT_DROP_ICMP_LIMITED,  /* more errors than the service is to get */
	VERDICT_DROP_ECHO_LIMITED,  /* more pings than a VIP answers */

	VERDICT_MAX,
};

/*
 * What a service is found by. IPv4 addresses are mapped (::ffff:a.b.c.d); a VIP
 * that is a prefix has its number in the place of an address. Port and protocol
 * 0 stand for the VIP itself: packets whose ports are not to be had are found by it.
 */
struct vip_key {
	__be32 address[4];
	__be16 port;
	__u8 protocol;
	__u8 family; /* 4 or 6: a mapped address in an IPv6 packet is not an IPv4 VIP's */
};
/* Beside the family: stands for all ports of the protocol, if one service has them and hashes none. */
#define ANY_PORT 0x10
#define OF_PREFIX 0x20 /* also beside the family */
_Static_assert(sizeof(struct vip_key) == 20, "vip_key is shared with Go");

#define NO_SERVICE 0xffffffff /* the value of a VIP's own entry */

/* IPv4 addresses are mapped, and their length is one of 128 bits. */
struct prefix {
	__u32 bits;
	__be32 address[4];
};

/*
 * Keys lie in one of two buckets, which their hash names. Of the array of buckets one
 * half is in use while user space fills the other.
 */
struct vip_entry {
	struct vip_key key; /* family 0: none */
	__u32 service;	    /* index into services, or NO_SERVICE */
};
struct vip_bucket {
	struct vip_entry entry[2];
	__u64 pad[2];
};
_Static_assert(sizeof(struct vip_bucket) == 64, "vip_bucket fills a cache line");
#define MOST_VIP_BUCKETS 65536 /* of a half */

/* What there is to find a service by. */
struct directory {
	__u64 buckets;	/* read in one load: the first in use, and below it the mask of their numbers */
	__u32 ranges;	/* entries of port_ranges */
	__u32 prefixes; /* entries of vip_prefixes */
};

/* Where a service's table lies. */
struct table {
	__u32 slots;	/* page of slots it begins with */
	__u32 size;	/* slots; none: no backend */
	__u32 backends; /* entry of the backends array that a slot's 0 means */
};

/* The ranges of ports that a VIP has of a protocol. Those of a single port are in vips. */
#define MOST_RANGES 16
struct range {
	__u16 first, last; /* host byte order */
	__u32 service;	   /* 0: there are no more; else one more than its number */
};
struct ranges {
	struct range range[MOST_RANGES];
};

/*
 * A service has two generations of everything that says where its flows go.
 * User space fills the one not in use, then turns active: a packet reads active
 * once and sees either the one or the other whole.
 */
struct service {
	__u64 key[2][2]; /* of the flow hash */
	struct table table[2];
	__u32 active; /* 0 or 1, and beside it what follows */
	__u32 pad;
};
/* What the flow hash covers. */
#define HASH_SOURCE 2
#define HASH_DESTINATION 4
#define HASH_SOURCE_PORT 8
#define HASH_DESTINATION_PORT 16
#define HASH_FIELDS 30
#define LIMITED 32 /* its sources have an allowance */
#define DENYING 64 /* the deny list is not empty */
#define QUIC 128   /* connection IDs may hold a server ID, and these bits say how */
#define QUIC_LENGTH_BIT 8    /* bytes of a server ID: 4 bits */
#define QUIC_ROTATION_BIT 12 /* the configuration that it is of: 3 bits */
#define HASH_FLOW (HASH_SOURCE | HASH_SOURCE_PORT | HASH_DESTINATION_PORT)
_Static_assert(sizeof(struct service) == 64, "service fills a cache line");

/*
 * Backends are counted from the table's first. A slot whose backend has not changed lately
 * has base 0, and costs no more than current: see track.h for the others.
 */
struct slot {
	__u16 current;
	__u16 base; /* and above it what follows */
};
#define IN_TRANSITION 0x8000
#define SETTLING 0x4000
#define BASE_BACKEND 0x3fff
_Static_assert(sizeof(struct slot) == 4, "a slot is read in one load");

/* Slots lie in pages: arrays pad their elements to 8 bytes, a table is a run of pages. */
#define SLOTS_PER_PAGE 2048
struct slot_page {
	struct slot slots[SLOTS_PER_PAGE];
};
_Static_assert(sizeof(struct slot_page) % 8 == 0, "pages lie back to back");

/* A way to a backend, as user space found it in the kernel's tables. */
struct path {
	__u8 source[6]; /* MAC of the interface it leaves by */
	__u16 mtu;	/* of that interface */
	__u32 ifindex;
	/*
	 * The outer IP header, ready but for what each packet brings: of IPv4 all
	 * but tos, length, protocol and checksum, whose place holds the sum of
	 * the rest; of IPv6 all but class, flow label, length and next header.
	 */
	__u32 outer[10];
	__be32 vary; /* bits of the source address, zero above, that follow the flow */
	__be16 port; /* UDP destination of gue */
	__u16 vlan;  /* that frames leave in: ID, and VLAN_8021AD beside it; 0: none */
};
#define VLAN_ID 0xfff
#define VLAN_8021AD 0x1000
_Static_assert(sizeof(struct path) == 60, "path is shared with Go");

/*
 * next_hop holds the MAC address in its low 6 bytes, as they lie on the wire, and
 * these bits above. It is written in one store and read in one load, so a
 * packet sees a next hop and a path that belong together.
 */
#define HOP_RESOLVED (1ULL << 48)
#define HOP_PATH_BIT 49 /* which of the two paths */
#define HOP_IPV4 (1ULL << 50) /* outer header to put on; neither: l2 */
#define HOP_IPV6 (1ULL << 51)
#define HOP_GRE (1ULL << 52) /* what follows the outer IP header; neither: ipip */
#define HOP_GUE (1ULL << 53)
#define HOP_CHECKSUM (1ULL << 54) /* of gue: a UDP checksum */
#define HOP_VLAN (1ULL << 55) /* the path has a VLAN: its line is not read to see that it has none */
#define HOP_LIFE_BIT 56 /* and those above: a number that is another after the backend failed */

struct backend {
	__u64 next_hop;
	struct path path[2];
};
_Static_assert(sizeof(struct backend) == 128, "backend fills two cache lines");

/* What first fragments are known by, and what the others need of them. */
struct fragment_key {
	__u64 source[2], destination[2];
	__u32 id;
	__u8 protocol; /* of IPv4 alone: IPv6's identification counts for all (RFC 8200, 4.5) */
	__u8 family;
	__u16 pad;
};
_Static_assert(sizeof(struct fragment_key) == 40, "fragment_key has no gaps");

struct fragment {
	__u64 until; /* ns since boot */
	__u32 ports;
	__u32 protocol;
};

/* When a service may be sent the next ICMP error, and may cause one: ns since boot. */
struct limit {
	__u64 passed, made;
};

/* What QUIC connection IDs hold of their backend. */
#define MOST_SERVER_ID 15
struct server_id {
	__u32 service;
	__u8 length;
	__u8 bytes[MOST_SERVER_ID]; /* zero above length */
};
_Static_assert(sizeof(struct server_id) == 20, "server_id has no gaps");

/* A service's QUIC packets, by how their backend was chosen. */
struct quic_counter {
	__u64 packets[4]; /* BY_SERVER_ID | LONG_HEADER */
};

/*
 * Where a flow of a slot in transition goes, if the slot does not say. The key is the
 * flow's hash, of all fields and with the VIP: see record_key().
 */
struct record {
	__u16 service; /* index into services */
	__u16 backend; /* counted from the first of the service's tables */
	__u16 used;    /* at the last packet, in ticks */
	__u8 life;     /* of the backend: when it has another the record is worth nothing */
	__u8 state;
};
_Static_assert(sizeof(struct record) == 8, "record is read in one load");
#define RECORD_CONFIRMED 1 /* a second packet came */
#define RECORD_CLOSING 2   /* FIN or RST was seen */
#define RECORD_DATAGRAMS 4 /* nothing will say when the flow ends */
#define RECORD_LEARNED 8   /* from another node, and no packet came here yet */

/* What the other nodes are told of. */
struct news {
	__u64 key;
	struct record record;
};

/* What user space tells of time, and how many records there may be of it. */
struct pace {
	__u64 next;	       /* when there is room for the next new record: ns since boot */
	__u64 interval, burst; /* ns */
	__u64 cautious;	       /* until then new flows go as older ones: ns since boot, 0: no more */
	__u32 now;	       /* in ticks, of which a record holds the low 16 bits */
	__u32 pad;
};

/* What became of packets of slots in transition. */
enum tracked {
	TRACKED_RECORDED, /* their flow has a record from now on */
	TRACKED_REFUSED,  /* it would have got one, but there were too many at once */
	TRACKED_BY_RECORD,
	TRACKED_BY_BASE, /* without a record */
	TRACKED_BY_CURRENT,
	TRACKED_MAX,
};

struct counter {
	__u64 packets;
	__u64 bytes; /* of frames as they came in */
	__u64 flows; /* packets that opened one */
};

/* What a service allows each source: a packet per interval on average, burst's worth at once. */
struct allowance {
	__u64 interval, burst; /* ns */
	__u64 mask[2];	       /* of IPv6 sources, as they lie in the packet */
	__be32 mask4;
	__u32 pad;
};

/* Who sends to a service that has an allowance. */
struct source_key {
	__u64 source[2]; /* masked */
	__u32 service;
	__u32 family;
};
_Static_assert(sizeof(struct source_key) == 24, "source_key has no gaps");

/* The interface that a loaded instance of the program sits on. */
struct port {
	__u64 mac; /* as in next_hop */
	__u32 ifindex;
	__u32 pad;
};

/* What a traced instance did with the last packet of a CPU. */
#define NOT_REACHED 0xffffffff /* what the packet did not come to */
struct trace {
	enum verdict verdict;
	__u32 service;
	__u32 slot;
	__u32 backend;
	__u64 hash;
	__u32 egress; /* interface that it was redirected to */
	enum tracked tracked; /* how the backend was chosen; TRACKED_MAX: by a slot at rest */
};

#endif
