package heap

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"testing"

	"github.com/shmkit/shmkit/shm"
)

// newHeap makes a heap in a region of Go memory, where the race detector looks, or in a shared one, and checks it when the test ends.
func newHeap(tb testing.TB, shared bool, opts ...shm.Option) *Heap {
	tb.Helper()
	make := shm.Heap
	if shared {
		make = shm.Anonymous
	}
	r, err := make(opts...)
	if err != nil {
		tb.Fatal(err)
	}
	if err := Format(r, r.Data()); err != nil {
		tb.Fatal(err)
	}
	p, err := Open(r, r.Data())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := p.Check(); err != nil && !errors.Is(err, shm.ErrClosed) {
			tb.Error(err)
		}
		r.Close()
	})
	return p
}

func usage(tb testing.TB, p *Heap) Usage {
	tb.Helper()
	u, err := p.Usage()
	if err != nil {
		tb.Fatal(err)
	}
	return u
}

func alloc(tb testing.TB, p *Heap, n uint64) shm.Offset {
	tb.Helper()
	off, err := p.Alloc(n)
	if err != nil {
		tb.Fatal(err)
	}
	return off
}

func free(tb testing.TB, p *Heap, off shm.Offset) {
	tb.Helper()
	if err := p.Free(off); err != nil {
		tb.Fatal(err)
	}
}

// whole sees to it that nothing is live or cached any more, and that all pages but the tables are one run again.
func whole(t *testing.T, p *Heap) {
	t.Helper()
	if err := p.Flush(); err != nil {
		t.Fatal(err)
	}
	u := usage(t, p)
	if u.LiveBlocks != 0 || u.CachedBlocks != 0 || u.FreeBlocks != 0 || u.Used != u.Tables {
		t.Errorf("all was freed, and yet: %+v", u)
	}
}

// Whatever is allocated is zeroed, aligned, and nobody else's until it is freed; and when all is freed, all is one again.
func TestRandomOperationsAgreeWithModel(t *testing.T) {
	for range 8 {
		seed := rand.Uint64()
		rng := rand.New(rand.NewPCG(seed, 0))
		p := newHeap(t, rng.IntN(2) == 0, shm.Size(16<<10), shm.Limit(512<<10))
		live := map[shm.Offset][]byte{} // what the block must hold
		var order []shm.Offset
		refused := 0
		for i := range 4000 {
			if len(order) > 0 && rng.IntN(100) < 48 {
				k := rng.IntN(len(order))
				off := order[k]
				order[k] = order[len(order)-1]
				order = order[:len(order)-1]
				got, err := p.r.Bytes(off, uint64(len(live[off])))
				if err != nil || !bytes.Equal(got, live[off]) {
					t.Fatalf("seed %d, step %d: block at %d was written by others (%v)", seed, i, off, err)
				}
				delete(live, off)
				if err := p.Free(off); err != nil {
					t.Fatalf("seed %d, step %d: %v", seed, i, err)
				}
				if err := p.Free(off); !errors.Is(err, shm.ErrCorrupt) {
					t.Fatalf("seed %d, step %d: second Free: %v, want ErrCorrupt", seed, i, err)
				}
				continue
			}
			n := rng.Uint64N(1 << (1 + rng.IntN(17)))
			align := uint64(1) << max(0, rng.IntN(36)-23) // often 1
			off, err := p.AllocAligned(n, align)
			if errors.Is(err, shm.ErrNoSpace) {
				refused++
				continue
			}
			if err != nil || off%64 != 0 || uint64(off)%align != 0 || live[off] != nil {
				t.Fatalf("seed %d, step %d: %d bytes aligned to %d: %d, %v", seed, i, n, align, off, err)
			}
			b, err := p.r.Bytes(off, n)
			if err != nil || len(bytes.Trim(b, "\x00")) != 0 {
				t.Fatalf("seed %d, step %d: block at %d is not zero (%v)", seed, i, off, err)
			}
			for k := range b {
				b[k] = byte(rng.Uint32())
			}
			live[off] = bytes.Clone(b)
			order = append(order, off)
			if i%100 == 0 {
				if err := p.Check(); err != nil {
					t.Fatalf("seed %d, step %d: %v", seed, i, err)
				}
			}
		}
		if u := usage(t, p); u.LiveBlocks != uint64(len(order)) || !u.Exact {
			t.Errorf("seed %d: %+v with %d blocks live", seed, u, len(order))
		}
		for _, off := range order {
			free(t, p, off)
		}
		whole(t, p)
		t.Logf("seed %d: %d refused", seed, refused)
	}
}

func TestAlignmentsAreChecked(t *testing.T) {
	p := newHeap(t, true)
	alloc(t, p, 8) // makes the lane
	before := usage(t, p)
	for _, align := range []uint64{0, 3, 65, 8192, 1 << 63, 1<<64 - 1} {
		if off, err := p.AllocAligned(8, align); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("aligned to %d: %d, %v, want ErrInvalid", align, off, err)
		}
	}
	if after := usage(t, p); after.Live != before.Live || after.Used != before.Used {
		t.Errorf("refused allocations changed %+v to %+v", before, after)
	}
}

// What is no block, or one no more, is refused, and nothing changes.
func TestFreeOfWhatIsNoBlockIsRefused(t *testing.T) {
	p := newHeap(t, true)
	small, large := alloc(t, p, 300), alloc(t, p, 100_000)
	object, err := p.AllocObject()
	if err != nil {
		t.Fatal(err)
	}
	freed := alloc(t, p, 300)
	free(t, p, freed)
	gone := alloc(t, p, 50_000)
	free(t, p, gone)
	before := usage(t, p)
	for _, off := range []shm.Offset{0, 1, 64, p.r.Data(), shm.Offset(p.base), shm.Offset(p.base) + 64, small + 64, small + 1, small - 8, large + 64, large + 4096,
		large + 1, object, object + 64, freed, gone, shm.Offset(end(p.r)), shm.Offset(end(p.r)) - 64, 1 << 40, 1<<64 - 64, 1<<64 - 1} {
		if err := p.Free(off); !errors.Is(err, shm.ErrCorrupt) {
			t.Errorf("Free(%d): %v, want ErrCorrupt", off, err)
		}
	}
	for _, off := range []shm.Offset{0, small, large, freed, object + 64, object + 128, object + 8, 1 << 40} {
		if err := p.FreeObject(off); !errors.Is(err, shm.ErrCorrupt) {
			t.Errorf("FreeObject(%d): %v, want ErrCorrupt", off, err)
		}
	}
	if after := usage(t, p); after.Live != before.Live || after.Cached != before.Cached || after.Free != before.Free || after.Used != before.Used {
		t.Errorf("refused frees changed %+v to %+v", before, after)
	}
	if err := errors.Join(p.Free(small), p.Free(large), p.FreeObject(object)); err != nil {
		t.Error(err)
	}
	if err := p.FreeObject(object); !errors.Is(err, shm.ErrCorrupt) {
		t.Errorf("second FreeObject: %v, want ErrCorrupt", err)
	}
}

// A freed header keeps what it says of its generations, and never becomes anything else.
func TestObjectsStayObjects(t *testing.T) {
	p := newHeap(t, true, shm.Size(256<<10), shm.Limit(256<<10))
	seen := map[shm.Offset]uint64{}
	var all []shm.Offset
	for round := range 3 {
		for {
			off, err := p.AllocObject()
			if errors.Is(err, shm.ErrNoSpace) {
				break
			}
			if err != nil || off%objectSize != 0 {
				t.Fatal(off, err)
			}
			o, err := shm.At[objectHead](p.r, off)
			if err != nil {
				t.Fatal(err)
			}
			if round > 0 && seen[off] == 0 || o.gen.Load() != seen[off] || o.creator.Load() != uint64(shm.Self()) {
				t.Fatalf("round %d: header at %d has generation %d, it had %d; creator %#x", round, off, o.gen.Load(), seen[off], o.creator.Load())
			}
			o.gen.Add(2)
			seen[off] += 2
			all = append(all, off)
		}
		if len(all) < 500 {
			t.Fatalf("only %d headers in 256 KiB", len(all))
		}
		for _, off := range all {
			if err := p.FreeObject(off); err != nil {
				t.Fatal(err)
			}
		}
		all = all[:0]
		if off, err := p.Alloc(64); err == nil {
			t.Errorf("round %d: memory of headers was handed out at %d", round, off)
		}
	}
}

func TestHeapIsClosedWithItsRegion(t *testing.T) {
	for _, shared := range []bool{false, true} {
		p := newHeap(t, shared)
		off := alloc(t, p, 100)
		p.r.Close()
		if _, err := p.Alloc(100); !errors.Is(err, shm.ErrClosed) {
			t.Errorf("Alloc after Close: %v", err)
		}
		if err := p.Free(off); !errors.Is(err, shm.ErrClosed) {
			t.Errorf("Free after Close: %v", err)
		}
		if _, err := p.Alloc(100_000); !errors.Is(err, shm.ErrClosed) {
			t.Errorf("Alloc of a run after Close: %v", err)
		}
		if err := p.Check(); !errors.Is(err, shm.ErrClosed) {
			t.Errorf("Check after Close: %v", err)
		}
	}
}

// Goroutines of one process use lanes of their own; where the race detector looks, it finds nothing.
func TestGoroutinesAtOnce(t *testing.T) {
	p := newHeap(t, false, shm.Size(8<<20), shm.Limit(8<<20))
	done := make(chan error)
	const n = 8
	for g := range n {
		go func() {
			rng := rand.New(rand.NewPCG(uint64(g), 1))
			var mine []shm.Offset
			for range 3000 {
				if len(mine) > 20 || len(mine) > 0 && rng.IntN(2) == 0 {
					k := rng.IntN(len(mine))
					if err := p.Free(mine[k]); err != nil {
						done <- err
						return
					}
					mine[k] = mine[len(mine)-1]
					mine = mine[:len(mine)-1]
					continue
				}
				size := rng.Uint64N(1 << (1 + rng.IntN(16)))
				off, err := p.Alloc(size)
				if err != nil {
					done <- err
					return
				}
				b, err := p.r.Bytes(off, size)
				if err != nil {
					done <- err
					return
				}
				for i := range b {
					b[i] = byte(g)
				}
				mine = append(mine, off)
			}
			for _, off := range mine {
				if err := p.Free(off); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range 30 {
		if err := p.Check(); err != nil { // of a live heap
			t.Error(err)
		}
	}
	for range n {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	whole(t, p)
}
