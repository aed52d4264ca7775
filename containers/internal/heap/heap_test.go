package heap

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

func TestMain(m *testing.M) {
	proc.Main()
	os.Exit(m.Run())
}

// newHeap makes a heap in a region of Go memory, where the race detector looks, or in a shared one, and
// checks it when the test ends.
func newHeap(tb testing.TB, shared bool, opts ...shm.Option) *Heap {
	tb.Helper()
	open := shm.Heap
	if shared {
		open = shm.Anonymous
	}
	r, err := open(opts...)
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

// Whatever is allocated is zeroed, aligned, and nobody else's until it is freed.
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
			n := rng.Uint64N(1 << (1 + rng.IntN(15)))
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
		if u := usage(t, p); u.LiveBlocks != uint64(len(order)) || u.Unlisted != 0 {
			t.Errorf("seed %d: %+v with %d blocks live", seed, u, len(order))
		}
		for _, off := range order {
			free(t, p, off)
		}
		t.Logf("seed %d: %d refused; %+v", seed, refused, usage(t, p))
	}
}

func TestAllocReusesWhatWasFreed(t *testing.T) {
	p := newHeap(t, true)
	for _, n := range []uint64{1, 48, 49, 1000, 5000, 100_000} {
		first := alloc(t, p, n)
		free(t, p, first)
		used := usage(t, p).Used
		for range 100 {
			off := alloc(t, p, n)
			free(t, p, off)
		}
		if now := usage(t, p).Used; now != used {
			t.Errorf("%d bytes: 100 times allocated and freed, the heap grew from %d to %d", n, used, now)
		}
	}
}

// Blocks come aligned as asked, the memory before them is handed out too, and all of it comes back.
func TestBlocksAreAlignedAsAsked(t *testing.T) {
	p := newHeap(t, true, shm.Size(512<<10), shm.Limit(512<<10))
	var offs []shm.Offset
	take := func(n, align uint64) bool {
		off, err := p.AllocAligned(n, align)
		if errors.Is(err, shm.ErrNoSpace) {
			return false
		}
		if err != nil || uint64(off)%align != 0 {
			t.Fatalf("%d bytes aligned to %d: offset %d, %v", n, align, off, err)
		}
		b, err := p.r.Bytes(off, n)
		if err != nil || len(bytes.Trim(b, "\x00")) != 0 {
			t.Fatalf("%d bytes aligned to %d are not zero (%v)", n, align, err)
		}
		for i := range b {
			b[i] = 0xaa
		}
		offs = append(offs, off)
		return true
	}
	release := func() {
		for _, off := range offs {
			free(t, p, off)
		}
		offs = nil
	}
	for round := range 3 {
		for align := uint64(1); align <= MaxAlign; align *= 2 {
			for _, n := range []uint64{0, 1, 8, 64, 1000, 4096, 10_000} {
				if !take(n, align) {
					t.Fatalf("round %d: %d bytes aligned to %d do not fit", round, n, align)
				}
			}
		}
		if err := p.Check(); err != nil {
			t.Error(err)
		}
		release()
		for take(64, 4096) {
		}
		if len(offs) < 120 {
			t.Errorf("round %d: only %d blocks aligned to 4096 in 512 KiB", round, len(offs))
		}
		pages := len(offs)
		for take(40, 8) {
		}
		if small := len(offs) - pages; small < 50*pages {
			t.Errorf("round %d: only %d small blocks beside %d aligned ones", round, small, pages)
		}
		release()
		for range 100 { // the same one again and again
			take(5000, 4096)
			release()
		}
		if !take(500<<10, 64) {
			t.Errorf("round %d: what was freed has not become one block again: %+v", round, usage(t, p))
		}
		release()
	}
}

func TestAlignmentsAreChecked(t *testing.T) {
	p := newHeap(t, true)
	before := usage(t, p)
	for _, align := range []uint64{0, 3, 65, 8192, 1 << 63, 1<<64 - 1} {
		if off, err := p.AllocAligned(8, align); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("aligned to %d: %d, %v, want ErrInvalid", align, off, err)
		}
	}
	if after := usage(t, p); after != before {
		t.Errorf("refused allocations changed %+v to %+v", before, after)
	}
}

func TestFreedPiecesBecomeOneAgain(t *testing.T) {
	p := newHeap(t, true, shm.Size(64<<10), shm.Limit(64<<10))
	var pieces []shm.Offset
	for {
		off, err := p.Alloc(40)
		if errors.Is(err, shm.ErrNoSpace) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		pieces = append(pieces, off)
	}
	if len(pieces) < 900 {
		t.Errorf("only %d pieces of 40 bytes in 64 KiB", len(pieces))
	}
	for _, off := range pieces {
		free(t, p, off)
	}
	free(t, p, alloc(t, p, 60<<10))
	free(t, p, alloc(t, p, 40))
}

func TestAllocGrowsTheRegion(t *testing.T) {
	p := newHeap(t, true, shm.Size(16<<10), shm.Limit(100<<10))
	alloc(t, p, 15<<10)
	alloc(t, p, 15<<10)
	if got := p.r.Size(); got != 32<<10 {
		t.Errorf("size is %d after the first growth, want twice 16 KiB", got)
	}
	alloc(t, p, 60<<10)
	if got := p.r.Size(); got < 90<<10 || got > 100<<10 {
		t.Errorf("size is %d, want at least 90 KiB, within the limit of 100 KiB", got)
	}
}

// Near the limit the region cannot double; it still gets what is needed.
func TestAllocGrowsByWhatIsNeeded(t *testing.T) {
	p := newHeap(t, true, shm.Size(40<<10), shm.Limit(50<<10))
	alloc(t, p, 36<<10)
	alloc(t, p, 8<<10)
	if got := p.r.Size(); got != 50<<10 {
		t.Errorf("size is %d, want the limit of 50 KiB", got)
	}
}

func TestAllocThatDoesNotFitChangesNothing(t *testing.T) {
	p := newHeap(t, true, shm.Size(16<<10), shm.Limit(32<<10))
	alloc(t, p, 10<<10)
	before := usage(t, p)
	for _, n := range []uint64{32 << 10, 1 << 40, 1 << 63, 1<<64 - 1} {
		if off, err := p.Alloc(n); !errors.Is(err, shm.ErrNoSpace) {
			t.Errorf("Alloc(%d) = %d, %v, want ErrNoSpace", n, off, err)
		}
	}
	if after := usage(t, p); after != before {
		t.Errorf("refused allocations changed %+v to %+v", before, after)
	}
	alloc(t, p, 12<<10)
}

func TestFreeRefusesForeignOffsets(t *testing.T) {
	p := newHeap(t, true)
	off := alloc(t, p, 1000)
	object, err := p.AllocObject()
	if err != nil {
		t.Fatal(err)
	}
	before := usage(t, p)
	for _, bad := range []shm.Offset{0, 1, 64, off + 64, off + 16, off - 64, off + 1<<20, 1<<63 + off, ^shm.Offset(0), p.r.Data(), object} {
		if err := p.Free(bad); !errors.Is(err, shm.ErrCorrupt) {
			t.Errorf("Free(%d): %v, want ErrCorrupt", bad, err)
		}
	}
	for _, bad := range []shm.Offset{0, off, object + 64, object + 1<<20, ^shm.Offset(0)} {
		if err := p.FreeObject(bad); !errors.Is(err, shm.ErrCorrupt) {
			t.Errorf("FreeObject(%d): %v, want ErrCorrupt", bad, err)
		}
	}
	if after := usage(t, p); after != before {
		t.Errorf("refused frees changed %+v to %+v", before, after)
	}
}

func TestObjectHeadersStayHeaders(t *testing.T) {
	p := newHeap(t, true, shm.Size(64<<10), shm.Limit(1<<20))
	seen := map[shm.Offset]uint64{} // generation
	for round := range 5 {
		var objects, blocks []shm.Offset
		for range 100 {
			off, err := p.AllocObject()
			if err != nil {
				t.Fatal(err)
			}
			o, err := p.object(uint64(off))
			if err != nil {
				t.Fatal(err)
			}
			if off%128 != 0 || o.creator.Load() != uint64(shm.Self()) || o.gen.Load() != seen[off] {
				t.Fatalf("round %d: object at %d has creator %x and generation %d, want %d", round, off, o.creator.Load(), o.gen.Load(), seen[off])
			}
			o.gen.Add(2)
			seen[off] = o.gen.Load()
			objects = append(objects, off)
			block := alloc(t, p, 100)
			for at := range seen {
				if block < at+128 && at < block+100 {
					t.Fatalf("block at %d lies over the object at %d", block, at)
				}
			}
			blocks = append(blocks, block)
		}
		for i := range objects {
			free(t, p, blocks[i])
			if err := p.FreeObject(objects[i]); err != nil {
				t.Fatal(err)
			}
			if err := p.FreeObject(objects[i]); !errors.Is(err, shm.ErrCorrupt) {
				t.Fatalf("second FreeObject: %v, want ErrCorrupt", err)
			}
		}
	}
	if len(seen) > 128 {
		t.Errorf("%d headers were made for 100 objects at a time", len(seen))
	}
}

func TestLiveObjectIsNotFreed(t *testing.T) {
	p := newHeap(t, true)
	off, err := p.AllocObject()
	if err != nil {
		t.Fatal(err)
	}
	o, err := p.object(uint64(off))
	if err != nil {
		t.Fatal(err)
	}
	o.gen.Add(1)
	if err := p.FreeObject(off); !errors.Is(err, shm.ErrCorrupt) {
		t.Errorf("FreeObject of a live object: %v, want ErrCorrupt", err)
	}
	o.gen.Add(1)
	if err := p.FreeObject(off); err != nil {
		t.Error(err)
	}
}

func TestSmallRegionHoldsAnObject(t *testing.T) {
	p := newHeap(t, true, shm.Size(2048), shm.Limit(2048))
	if _, err := p.AllocObject(); err != nil {
		t.Error(err)
	}
	for range 10 {
		if _, err := p.AllocObject(); errors.Is(err, shm.ErrNoSpace) {
			return
		}
	}
	t.Error("2048 bytes hold more than ten objects")
}

func TestClosedRegionAnswersErrClosed(t *testing.T) {
	for _, shared := range []bool{false, true} {
		open := map[bool]func(...shm.Option) (*shm.Region, error){false: shm.Heap, true: shm.Anonymous}[shared]
		r, err := open()
		if err != nil {
			t.Fatal(err)
		}
		if err := Format(r, r.Data()); err != nil {
			t.Fatal(err)
		}
		p, err := Open(r, r.Data())
		if err != nil {
			t.Fatal(err)
		}
		off := alloc(t, p, 10)
		r.Close()
		if _, err := p.Alloc(10); !errors.Is(err, shm.ErrClosed) {
			t.Errorf("shared %v: Alloc: %v, want ErrClosed", shared, err)
		}
		if err := p.Free(off); !errors.Is(err, shm.ErrClosed) {
			t.Errorf("shared %v: Free: %v, want ErrClosed", shared, err)
		}
	}
}

// Any word of the heap may hold anything: calls answer, with an error or without, and touch nothing outside.
func TestDamagedHeapIsAnErrorNotAFault(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	for range 200 {
		r, err := shm.Heap(shm.Size(64<<10), shm.Limit(64<<10))
		if err != nil {
			t.Fatal(err)
		}
		if err := Format(r, r.Data()); err != nil {
			t.Fatal(err)
		}
		p, err := Open(r, r.Data())
		if err != nil {
			t.Fatal(err)
		}
		var offs []shm.Offset
		for range 20 {
			offs = append(offs, alloc(t, p, rng.Uint64N(200)))
		}
		object, err := p.AllocObject()
		if err != nil {
			t.Fatal(err)
		}
		for _, off := range offs[:10] {
			free(t, p, off)
		}
		for range 1 + rng.IntN(3) {
			at := 24 + 8*rng.Uint64N((HeaderSize+4096)/8) // not the lock: a held one is waited for
			w, err := shm.At[uint64](r, r.Data()+shm.Offset(at))
			if err != nil {
				t.Fatal(err)
			}
			switch rng.IntN(4) {
			case 0:
				*w = rng.Uint64()
			case 1:
				*w ^= 1 << rng.IntN(64)
			case 2:
				*w = uint64(r.Data()) + rng.Uint64N(64<<10)
			case 3:
				*w += 64
			}
		}
		for range 10 {
			p.Alloc(rng.Uint64N(300))
			p.AllocObject()
		}
		for _, off := range offs[10:] {
			p.Free(off)
		}
		p.FreeObject(object)
		p.Alloc(60 << 10)
		p.Check()
		r.Close()
	}
}

func BenchmarkAllocFree(b *testing.B) {
	p := newHeap(b, true)
	b.ReportAllocs()
	for b.Loop() {
		off, err := p.Alloc(64)
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Free(off); err != nil {
			b.Fatal(err)
		}
	}
}

// A slab too small for an object is damage; nothing is made a header from what lies behind it.
func TestASlabTooSmallIsCorrupt(t *testing.T) {
	p := newHeap(t, false)
	if _, err := p.AllocObject(); err != nil {
		t.Fatal(err)
	}
	at := p.h.slabs.Load()
	b, size, _, err := p.block(at)
	if err != nil {
		t.Fatal(err)
	}
	rest, err := shm.At[block](p.r, shm.Offset(at+granule))
	if err != nil {
		t.Fatal(err)
	}
	before := rest.size.Swap(size - granule | blockFree)
	b.size.Store(granule | blockSlab)
	defer func() {
		b.size.Store(size | blockSlab)
		rest.size.Store(before)
	}()
	for name, do := range map[string]func() error{
		"Check":      p.Check,
		"FreeObject": func() error { return p.FreeObject(p.r.Data() + shm.Offset(p.r.Size()) - objectSize) },
	} {
		if err := do(); !errors.Is(err, shm.ErrCorrupt) || !strings.Contains(err.Error(), "slab") {
			t.Errorf("%s: %v, want ErrCorrupt for the slab", name, err)
		}
	}
}
