// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The way of health checks that go to a VIP by way of one backend.
 *
 *	socket ─► vip device ─► number_probe() ═ veth ═► send_probe() ─► NIC ─► backend
 *	socket ◄─ vip device ◄──────────────────────── take_answer() ◄─ NIC ◄────┘
 *
 * The node's routes lead VIPs to a device of ours, one end of a veth pair. A socket
 * says by its priority (SO_PRIORITY) which backend its packets are for, and at the other
 * end they leave by the entry of that backend that traffic is forwarded by. Between the
 * two the kernel has done what a NIC would have been asked to do: a packet comes out
 * in segments that fit, with its checksums, so what is done here has nothing to do with
 * any NIC's idea of tunnels. Whatever has no backend's number ends here, as it would at a
 * blackhole route.
 *
 * Answers come to the NICs from the VIP. To the node's reverse path filters it belongs on
 * the device that the VIP's route names, so that is where they are handed to the kernel.
 */
#include "tc.h"
#include "encap.h"

/* The number of a backend to its entry of backends. A number is never used again. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024); /* as backends */
	__type(key, __u32);
	__type(value, __u32);
} probed SEC(".maps");

/* What answers come from and go to, without port and protocol. */
enum probe_end {
	PROBE_VIP,
	PROBE_SOURCE, /* the node's own address */
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct vip_key);
	__type(value, enum probe_end);
} probe_ends SEC(".maps");

volatile const __u64 device_mac; /* of the vip device, as in next_hop */
volatile const __u32 device_ifindex;

/*
 * A priority is the socket's own, and a mark is anybody's: rules, routes and firewalls go
 * by marks. So the number becomes one only here, behind all of them; veth clears a
 * priority and keeps a mark.
 */
SEC("tc")
int number_probe(struct __sk_buff *skb)
{
	skb->mark = skb->priority;
	return TC_ACT_OK;
}

static __always_inline bool read_header(struct __sk_buff *skb, struct packet *packet)
{
	struct cursor cur = frame_of(skb);
	struct ethhdr *eth = take(&cur, struct ethhdr);
	struct ipv6hdr *ip6;
	struct iphdr *ip4;

	if (!eth)
		return false;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		ip4 = take(&cur, struct iphdr);
		if (!ip4)
			return false;
		packet->length = bpf_ntohs(ip4->tot_len);
		packet->tos = ip4->tos;
		return true;
	}
	ip6 = take(&cur, struct ipv6hdr);
	if (eth->h_proto != bpf_htons(ETH_P_IPV6) || !ip6)
		return false;
	packet->length = sizeof(*ip6) + bpf_ntohs(ip6->payload_len);
	packet->tos = bpf_ntohs(*(__be16 *)ip6) >> 4;
	packet->ipv6 = true;
	return true;
}

__noinline __u32 sum_of_skb(struct __sk_buff *skb, __u32 from, __u32 length)
{
	return sum_bytes((struct bytes){ &skb->data, &skb->data_end }, from, length);
}

static __always_inline bool put_outer_checksum(struct __sk_buff *skb, const struct target *to)
{
	__u32 from = summed_from(to->next_hop);

	return !bpf_skb_pull_data(skb, skb->len) &&
	       put_checksum(frame_of(skb), to, sum_of_skb(skb, from, skb->len - from));
}

static __always_inline bool put_headers(struct __sk_buff *skb, const struct packet *packet,
					const struct target *to)
{
	struct cursor cur;
	struct ethhdr *eth;

	if (to->next_hop & HOP_IPV4)
		return !bpf_skb_adjust_room(skb, overhead(to->next_hop), BPF_ADJ_ROOM_MAC,
					    BPF_F_ADJ_ROOM_ENCAP_L3_IPV4) &&
		       put_ipv4(frame_of(skb), packet, to);
	if (to->next_hop & HOP_IPV6)
		return !bpf_skb_adjust_room(skb, overhead(to->next_hop), BPF_ADJ_ROOM_MAC,
					    BPF_F_ADJ_ROOM_ENCAP_L3_IPV6) &&
		       put_ipv6(frame_of(skb), packet, to);
	cur = frame_of(skb);
	eth = take(&cur, struct ethhdr);
	if (!eth)
		return false;
	address_frame(eth, to);
	return true;
}

SEC("tc")
int send_probe(struct __sk_buff *skb)
{
	__u32 number = skb->mark, ifindex, *entry;
	struct packet packet = {};
	struct target to = {};
	struct backend *backend;
	__u16 vlan;

	entry = bpf_map_lookup_elem(&probed, &number);
	backend = entry ? bpf_map_lookup_elem(&backends, entry) : NULL;
	if (!backend)
		return TC_ACT_SHOT;
	to.next_hop = READ_ONCE(backend->next_hop);
	to.path = &backend->path[to.next_hop >> HOP_PATH_BIT & 1];
	if (!(to.next_hop & HOP_RESOLVED) || !read_header(skb, &packet) ||
	    packet.length + overhead(to.next_hop) > to.path->mtu)
		return TC_ACT_SHOT;
	ifindex = to.path->ifindex;
	to.hash = bpf_get_hash_recalc(skb);
	vlan = to.path->vlan;
	skb->mark = 0;
	if (!put_headers(skb, &packet, &to) ||
	    (to.next_hop & HOP_CHECKSUM && !put_outer_checksum(skb, &to)) ||
	    (to.next_hop & HOP_VLAN &&
	     bpf_skb_vlan_push(skb, vlan & VLAN_8021AD ? bpf_htons(ETH_P_8021AD) : bpf_htons(ETH_P_8021Q),
			       vlan & VLAN_ID)))
		return TC_ACT_SHOT;
	return bpf_redirect(ifindex, 0);
}

/* The two addresses as keys; false: not IP, or cut. */
static __always_inline bool read_addresses(struct __sk_buff *skb, struct vip_key *source,
					   struct vip_key *destination)
{
	struct ipv6hdr ip6;
	struct iphdr ip4;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, sizeof(struct ethhdr), &ip4, sizeof(ip4)))
			return false;
		source->address[2] = destination->address[2] = bpf_htonl(0xffff);
		source->address[3] = ip4.saddr;
		destination->address[3] = ip4.daddr;
		source->family = destination->family = 4;
		return true;
	}
	if (skb->protocol != bpf_htons(ETH_P_IPV6) ||
	    bpf_skb_load_bytes(skb, sizeof(struct ethhdr), &ip6, sizeof(ip6)))
		return false;
	memcpy(source->address, ip6.saddr, sizeof(ip6.saddr));
	memcpy(destination->address, ip6.daddr, sizeof(ip6.daddr));
	source->family = destination->family = 6;
	return true;
}

static __always_inline bool is(const struct vip_key *address, enum probe_end end)
{
	enum probe_end *entry = bpf_map_lookup_elem(&probe_ends, address);

	return entry && *entry == end;
}

SEC("tc")
int take_answer(struct __sk_buff *skb)
{
	struct vip_key source = {}, destination = {};
	__u64 mac = device_mac;

	/* A tagged frame comes by again, at the interface of its VLAN. */
	if (skb->pkt_type != PACKET_HOST || skb->vlan_present ||
	    !read_addresses(skb, &source, &destination) || !is(&source, PROBE_VIP) ||
	    !is(&destination, PROBE_SOURCE) || bpf_skb_store_bytes(skb, 0, &mac, 6, 0))
		return TC_ACT_UNSPEC;
	return bpf_redirect(device_ifindex, BPF_F_INGRESS);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
