/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What every packet looks up lies in flat arrays, the VIPs too: the kernel's hash of
 * a 20-byte key costs more than all else that a packet needs. Those that user space
 * rewrites while packets flow are mapped into its memory (BPF_F_MMAPABLE): a table
 * is swapped in microseconds, where map-in-map waits for an RCU grace period. The sizes of slots, backends, backend_counters and backend_ids are the first ones:
 * user space loads the program anew with bigger ones when they are full.
 */
#ifndef MAPS_H
#define MAPS_H

#include "types.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 2 * MOST_VIP_BUCKETS);
	__type(key, __u32);
	__type(value, struct vip_bucket);
} vips SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct vip_key); /* with port 0 */
	__type(value, struct ranges);
} port_ranges SEC(".maps");

/* The VIPs that are prefixes, by numbers that stand for them in vips and port_ranges. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192); /* new ones come before old ones go */
	__type(key, struct prefix);
	__type(value, __u32);
} vip_prefixes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct directory);
} directory SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct service);
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct slot_page);
} slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct backend);
} backends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1024); /* as backends */
	__type(key, __u32);
	__type(value, struct counter);
} backend_counters SEC(".maps");

/* Whose the entries of backends are: for the process after, which numbers them anew. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1024); /* as backends */
	__type(key, __u32);
	__type(value, __u64);
} backend_ids SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct server_id);
	__type(value, __u32); /* index into backends */
} server_ids SEC(".maps");

/* Of the services with QUIC alone. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384); /* as services */
	__type(key, __u32);
	__type(value, struct quic_counter);
} quic_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, VERDICT_MAX);
	__type(key, enum verdict); /* puts the enum in BTF, so bpf2go finds it */
	__type(value, struct counter);
} verdicts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16384); /* as services */
	__type(key, __u32);
	__type(value, struct limit);
} limits SEC(".maps");

/*
 * When a VIP may answer the next ping: ns since boot. It has one of these by its hash, and
 * may share it: a VIP of a prefix has no entry of its own elsewhere.
 */
#define ECHO_LIMITS 4096
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ECHO_LIMITS);
	__type(key, __u32);
	__type(value, __u64);
} echo_limits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 21); /* new ones come before old ones go */
	__type(key, struct prefix);
	__type(value, __u32);
} denied SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16384); /* as services */
	__type(key, __u32);
	__type(value, struct allowance);
} allowances SEC(".maps");

/* When each source may send the next packet: ns since boot. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 131072);
	__type(key, struct source_key);
	__type(value, __u64);
} sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
} fragments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 262144); /* as configured */
	__type(key, __u64);
	__type(value, struct record);
} records SEC(".maps");

/* Records that a second packet has confirmed: what a flood leaves behind is not told of. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20); /* bytes: 43,690 of them */
} confirmed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pace);
} pace SEC(".maps");

/* When a packet of a service last went elsewhere than its slot's current backend: in ticks. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 16384); /* as services */
	__type(key, __u32);
	__type(value, __u64);
} strayed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TRACKED_MAX);
	__type(key, __u32);
	__type(value, __u64);
} tracked_packets SEC(".maps");

/* Each interface has an instance of the program, and each instance its own of these. */
volatile const bool traced; /* an instance that keeps a trace */
volatile const bool looking; /* and one that leaves no other: of flows neither */
struct port self;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct trace);
} traces SEC(".maps");

static __always_inline struct trace *kept_trace(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&traces, &zero);
}

static __always_inline void count(void *map, __u32 index, __u64 bytes, bool syn)
{
	struct counter *counter = bpf_map_lookup_elem(map, &index);

	if (counter) {
		counter->packets++;
		counter->bytes += bytes;
		counter->flows += syn;
	}
}

#endif
