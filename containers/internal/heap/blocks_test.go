package heap

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	stdsync "sync"
	"sync/atomic"
	"testing"

	"github.com/shmkit/shmkit/shm"
)

// 5,000 random allocations and frees, at most 50 blocks alive: none overlaps another one, and in the end the whole space is one piece again.
func TestBlocksNeverOverlapAndLeaveOnePiece(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	p := newHeap(t, true, shm.Size(8<<20), shm.Limit(8<<20))
	type block struct{ off, n uint64 }
	var live []block
	drop := func(i int) {
		t.Helper()
		free(t, p, shm.Offset(live[i].off))
		live[i] = live[len(live)-1]
		live = live[:len(live)-1]
	}
	for range 5_000 {
		if len(live) == 50 || len(live) > 0 && rng.IntN(2) == 0 {
			drop(rng.IntN(len(live)))
			continue
		}
		n := 1 + rng.Uint64N(1<<(1+rng.IntN(17)))
		off := uint64(alloc(t, p, n))
		for _, b := range live {
			if off < b.off+b.n && b.off < off+n {
				t.Fatalf("seed %d: %d bytes at %d overlap %d bytes at %d", seed, n, off, b.n, b.off)
			}
		}
		if off < p.base || off+n > end(p.r) {
			t.Fatalf("seed %d: %d bytes at %d are outside the heap", seed, n, off)
		}
		live = append(live, block{off, n})
	}
	for len(live) > 0 {
		drop(0)
	}
	whole(t, p)
	u := usage(t, p)
	if u.FreePages+u.Tables != p.count.Load()*pageSize || u.Largest != u.FreePages {
		t.Errorf("seed %d: the largest run has %d of %d free bytes, and tables have %d of %d", seed, u.Largest, u.FreePages, u.Tables, p.count.Load()*pageSize)
	}
	free(t, p, alloc(t, p, u.Largest))
}

// Space runs out: the error says so, what is there is unharmed, and after one free the same request succeeds. More than the region is refused at once.
func TestFullRegionLeavesDataUnharmed(t *testing.T) {
	const limit = 256 << 10
	for _, n := range []uint64{8, 100, 3000, 20_000, 50_000} {
		p := newHeap(t, true, shm.Size(limit), shm.Limit(limit))
		live := map[shm.Offset]byte{}
		full := func() error {
			for {
				off, err := p.Alloc(n)
				if err != nil {
					return err
				}
				b, err := p.r.Bytes(off, n)
				if err != nil {
					t.Fatal(err)
				}
				if live[off] != 0 || len(bytes.Trim(b, "\x00")) != 0 {
					t.Fatalf("%d bytes at %d are somebody else's", n, off)
				}
				live[off] = byte(1 + len(live)%255)
				for i := range b {
					b[i] = live[off]
				}
			}
		}
		unharmed := func() {
			t.Helper()
			for off, v := range live {
				if b, err := p.r.Bytes(off, n); err != nil || len(bytes.Trim(b, string([]byte{v}))) != 0 {
					t.Fatalf("block of %d bytes at %d is harmed (%v)", n, off, err)
				}
			}
		}
		err := full()
		if !errors.Is(err, shm.ErrNoSpace) || !strings.Contains(err.Error(), "limit is 262144") {
			t.Errorf("%d bytes in a full region: %v", n, err)
		}
		unharmed()
		for off := range live {
			free(t, p, off)
			delete(live, off)
			break
		}
		size := len(live)
		if err := full(); !errors.Is(err, shm.ErrNoSpace) || len(live) != size+1 {
			t.Errorf("%d bytes: %d blocks after one was freed, want one (%v)", n, len(live)-size, err)
		}
		for _, huge := range []uint64{limit + 1, limit << 10, 1<<64 - 1} {
			before := usage(t, p)
			if off, err := p.Alloc(huge); !errors.Is(err, shm.ErrNoSpace) {
				t.Errorf("%d bytes in a region of %d: %d, %v, want ErrNoSpace", huge, limit, off, err)
			}
			if after := usage(t, p); after.Live != before.Live || after.Used > before.Used {
				t.Errorf("a refused allocation changes %+v to %+v", before, after)
			}
		}
		unharmed()
		for off := range live {
			free(t, p, off)
		}
		whole(t, p)
	}
}

// Blocks come aligned as asked, and a counter of 64 bits works at any place that is offered.
func TestBlocksComeAligned(t *testing.T) {
	p := newHeap(t, false, shm.Size(1<<20), shm.Limit(1<<20))
	var all []shm.Offset
	for _, align := range []uint64{8, 64, 128, 512, 4096} {
		for _, n := range []uint64{8, 24, 64, 100, 1000, 5000, 40_000} {
			off, err := p.AllocAligned(n, align)
			if err != nil || uint64(off)%align != 0 {
				t.Fatalf("%d bytes aligned to %d: %d, %v", n, align, off, err)
			}
			all = append(all, off)
			for at := uint64(0); at+8 <= n; at += max(8, n/4&^7) {
				w, err := shm.At[atomic.Uint64](p.r, off+shm.Offset(at))
				if err != nil {
					t.Fatal(err)
				}
				var wg stdsync.WaitGroup
				for range 3 {
					wg.Go(func() {
						for range 100 {
							w.Add(1<<32 + 1)
						}
					})
				}
				wg.Wait()
				if got := w.Load(); got != 300<<32+300 {
					t.Errorf("counter at %d in a block of %d bytes is %#x", at, n, got)
				}
			}
		}
	}
	for _, off := range all {
		free(t, p, off)
	}
	whole(t, p)
}
