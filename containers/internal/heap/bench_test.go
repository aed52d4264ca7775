package heap

import (
	"math/rand/v2"
	stdsync "sync"
	"testing"

	"github.com/shmkit/shmkit/shm"
)

func benchHeap(b *testing.B) *Heap {
	b.Helper()
	r, err := shm.Anonymous(shm.Size(64<<10), shm.Limit(1<<30)) // it grows as much as it needs
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { r.Close() })
	if err := Format(r, r.Data()); err != nil {
		b.Fatal(err)
	}
	p, err := open(r, r.Data(), r.LaneSlot())
	if err != nil {
		b.Fatal(err)
	}
	return p
}

// What does a block cost that is allocated and freed at once, and one of a mixture that lives on for a while?
func BenchmarkAllocFree(b *testing.B) {
	b.Run("size=64", func(b *testing.B) {
		p := benchHeap(b)
		for b.Loop() {
			off, err := p.Alloc(64)
			if err != nil {
				b.Fatal(err)
			}
			if err := p.Free(off); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("size=mixed", func(b *testing.B) {
		p := benchHeap(b)
		live := make([]shm.Offset, 10_000)
		sizes := make([]uint64, 1<<16)
		at := make([]int, 1<<16)
		rng := rand.New(rand.NewPCG(1, 2))
		for i := range sizes {
			sizes[i], at[i] = 16+rng.Uint64N(1009), rng.IntN(len(live))
		}
		sum := 0
		for i := range live {
			off, err := p.Alloc(sizes[i])
			if err != nil {
				b.Fatal(err)
			}
			live[i] = off
			sum += int(sizes[i])
		}
		n := 0
		for b.Loop() {
			n++
			i := n & (1<<16 - 1)
			if err := p.Free(live[at[i]]); err != nil {
				b.Fatal(err)
			}
			off, err := p.Alloc(sizes[i])
			if err != nil {
				b.Fatal(err)
			}
			live[at[i]] = off
		}
		b.StopTimer()
		u, err := p.Usage()
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(100*float64(u.Used)/float64(10_000*520)-100, "%overhead")
	})
}

func BenchmarkYardstick(b *testing.B) {
	var mu stdsync.Mutex
	for b.Loop() {
		mu.Lock()
		mu.Unlock()
	}
}
