/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The little of the kernel's interface that programs at the hooks of tc use. */
#ifndef TC_H
#define TC_H

#include "kernel.h"

enum {
	TC_ACT_UNSPEC = -1, /* the next filter's turn */
	TC_ACT_OK = 0,
	TC_ACT_SHOT = 2,

	PACKET_HOST = 0, /* of pkt_type: to this interface's MAC address */

	BPF_F_INGRESS = 1, /* of bpf_redirect */

	BPF_ADJ_ROOM_MAC = 1, /* of bpf_skb_adjust_room: room behind the Ethernet header */
	BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 = 1 << 1,
	BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 = 1 << 2,
};

struct __sk_buff { /* as far as it is used here */
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol;
	__u32 vlan_present;
	__u32 vlan_tci;
	__u32 vlan_proto;
	__u32 priority;
	__u32 ingress_ifindex;
	__u32 ifindex;
	__u32 tc_index;
	__u32 cb[5];
	__u32 hash;
	__u32 tc_classid;
	__u32 data;
	__u32 data_end;
};

static long (*const bpf_skb_store_bytes)(void *skb, __u32 offset, const void *from, __u32 len,
					 __u64 flags) = (void *)9;
/* Whose checksum is still to be filled in by the NIC is known by this helper. */
static long (*const bpf_l4_csum_replace)(void *skb, __u32 offset, __u64 from, __u64 to,
					 __u64 flags) = (void *)11;
static long (*const bpf_skb_vlan_push)(void *skb, __be16 proto, __u16 tci) = (void *)18;
static long (*const bpf_skb_load_bytes)(const void *skb, __u32 offset, void *to,
					__u32 len) = (void *)26;
static __u32 (*const bpf_get_hash_recalc)(void *skb) = (void *)34;
static long (*const bpf_skb_pull_data)(void *skb, __u32 len) = (void *)39;
static long (*const bpf_skb_adjust_room)(void *skb, int difference, __u32 mode,
					 __u64 flags) = (void *)50;

#endif
