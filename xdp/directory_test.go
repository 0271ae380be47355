package xdp

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/halfproxy/halfproxy/internal/packet"
	"github.com/halfproxy/halfproxy/lb"
)

func vipEntries(n int, random *rand.Rand) []bpfVipEntry {
	seen := make(map[bpfVipKey]bool)
	var entries []bpfVipEntry
	for len(entries) < n {
		k := bpfVipKey{Address: [4]uint32{0, 0, 0xffff0000, random.Uint32N(1 << 20)}, Port: uint16(random.IntN(8)), Protocol: 6, Family: 4}
		if random.IntN(2) == 0 {
			k.Address, k.Family = [4]uint32{0xb80d0120, 0, 0, random.Uint32N(1 << 20)}, 6
		}
		if !seen[k] {
			seen[k] = true
			entries = append(entries, bpfVipEntry{Key: k, Service: uint32(len(entries))})
		}
	}
	return entries
}

func TestEveryEntryLiesInOneOfItsTwoBuckets(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 0))
	buckets := make([]bpfVipBucket, 1<<16)
	for _, n := range []int{0, 1, 2, 7, 8, 9, 100, 4096, 65536} {
		entries := vipEntries(n, random)
		used, ok := place(buckets, entries)
		if !ok || used > max(2*n, 2*leastBuckets) {
			t.Fatalf("%d entries: placed %t in %d buckets", n, ok, used)
		}
		mask := uint64(used - 1)
		for _, e := range entries {
			hash, found := vipHash(e.Key), 0
			for _, at := range []uint64{hash & mask, hash >> 32 & mask} {
				for _, there := range buckets[at].Entry {
					if there == e {
						found++
					}
				}
				if hash&mask == hash>>32&mask {
					break
				}
			}
			if found != 1 {
				t.Fatalf("%d entries in %d buckets: %+v is there %d times", n, used, e, found)
			}
		}
	}
}

func TestMoreEntriesThanThereIsRoomForAreRefused(t *testing.T) {
	if _, ok := place(make([]bpfVipBucket, 16), vipEntries(33, rand.New(rand.NewPCG(1, 0)))); ok {
		t.Error("33 entries were placed in 16 buckets of two")
	}
}

// The program finds by its hash what was placed by ours.
func TestTheProgramFindsEveryVIP(t *testing.T) {
	d := newDataplane(t)
	d.setWay("203.0.113.1", way{mac: backendMAC, source: node4, ifindex: 1, mtu: 1500})
	var all []string
	for n := range 200 {
		all = append(all, fmt.Sprintf("192.0.2.%d:443", n+1), fmt.Sprintf("[2001:db8:2::%d]:443", n+1))
	}
	apply(t, d, table("web", lb.L2, 13, all, "203.0.113.1"))
	for _, vip := range all {
		client := client4
		if vip[0] == '[' {
			client = client6
		}
		process(t, d, packet.TCP(client, vip), Forwarded)
	}
	apply(t, d, table("web", lb.L2, 13, all[:2], "203.0.113.1"))
	process(t, d, packet.TCP(client4, all[0]), Forwarded)
	process(t, d, packet.TCP(client4, all[2]), NotVIP)
}

func BenchmarkDirectory(b *testing.B) {
	entries := vipEntries(65536, rand.New(rand.NewPCG(1, 0)))
	buckets := make([]bpfVipBucket, 1<<16)
	for b.Loop() {
		place(buckets, entries)
	}
}
