package xdp

import (
	"encoding/binary"
	"math/bits"
)

// leastBuckets is what a directory of few VIPs has.
const leastBuckets = 8

// place puts entries into as many of the first of buckets as it takes, a power of
// two, so that each lies in one of the two buckets that its key's hash names (cuckoo
// hashing; Pagh, Rodler, 2004). False: there are too many of them.
func place(buckets []bpfVipBucket, entries []bpfVipEntry) (n int, ok bool) {
	n = max(leastBuckets, 1<<bits.Len(uint(max(len(entries), 1)-1)))
	for ; n <= len(buckets); n *= 2 {
		if placeIn(buckets[:n], entries) {
			return n, true
		}
	}
	return 0, false
}

// mostMoves is after how many entries that had to make room for another the buckets
// are taken for too few.
const mostMoves = 500

func placeIn(buckets []bpfVipBucket, entries []bpfVipEntry) bool {
	clear(buckets)
	mask := uint64(len(buckets) - 1)
	for _, entry := range entries {
		hash := vipHash(entry.Key)
		at := hash & mask
		for move := 0; !put(buckets, &entry, hash, mask); move++ {
			if move == mostMoves {
				return false
			}
			// The one that has to go is put in its other bucket, or makes another go.
			evicted := &buckets[at].Entry[move&1]
			entry, *evicted = *evicted, entry
			hash = vipHash(entry.Key)
			if other := hash & mask; other != at {
				at = other
			} else {
				at = hash >> 32 & mask
			}
		}
	}
	return true
}

// put enters the entry where one of its buckets has room.
func put(buckets []bpfVipBucket, entry *bpfVipEntry, hash, mask uint64) bool {
	for _, at := range []uint64{hash & mask, hash >> 32 & mask} {
		for i := range buckets[at].Entry {
			if slot := &buckets[at].Entry[i]; slot.Key.Family == 0 {
				*slot = *entry
				return true
			}
		}
	}
	return false
}

// vipHash is vip_hash of bpf/vip.h.
func vipHash(k bpfVipKey) uint64 {
	low := uint64(k.Address[0]) | uint64(k.Address[1])<<32
	high := uint64(k.Address[3]) | uint64(k.Address[2])<<32
	rest := binary.NativeEndian.AppendUint16(nil, k.Port)
	rest = append(rest, k.Protocol, k.Family)
	h := (low + uint64(binary.NativeEndian.Uint32(rest))) * 0x9e3779b97f4a7c15
	h = (h ^ h>>32 ^ high) * 0xbf58476d1ce4e5b9
	return h ^ h>>32
}
