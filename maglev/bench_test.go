package maglev_test

import (
	"fmt"
	"testing"

	"github.com/halfproxy/halfproxy/maglev"
)

func BenchmarkTable(b *testing.B) {
	for _, size := range []int{16381, 65537, 655373} {
		for _, n := range []int{10, 100, 1000, 10000} {
			for _, weights := range []int{1, 3, n} {
				backends := fleet(n)
				for i := range backends {
					backends[i].Weight += i % weights
				}
				b.Run(fmt.Sprintf("size=%d/backends=%d/weights=%d", size, n, weights), func(b *testing.B) {
					b.ReportAllocs()
					for b.Loop() {
						maglev.Table("web", backends, size)
					}
				})
			}
		}
	}
}

// fleet is n backends of equal weight.
func fleet(n int) []maglev.Backend {
	backends := make([]maglev.Backend, n)
	for i := range backends {
		backends[i] = maglev.Backend{Name: fmt.Sprintf("web%d", i), Weight: 100}
	}
	return backends
}
