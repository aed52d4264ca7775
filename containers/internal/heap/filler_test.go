package heap

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

// openLanes returns n lanes of p, all of them in use; a test gives them back when it ends.
func openLanes(t *testing.T, p *Heap, n int) (all []*txn.Lane) {
	t.Helper()
	for range n {
		l, err := p.Enter()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
	}
	t.Cleanup(func() {
		for _, l := range all {
			if err := l.Leave(); err != nil {
				t.Error(err)
			}
		}
	})
	return all
}

// allocOn allocates n blocks of a size in a lane.
func allocOn(t *testing.T, p *Heap, l *txn.Lane, n int, size uint64) (all []shm.Offset) {
	t.Helper()
	for range n {
		off, err := p.AllocIn(l, size, granule)
		if err != nil {
			t.Fatal(err)
		}
		l.Commit()
		all = append(all, off)
	}
	return all
}

// freeOn frees blocks in a lane.
func freeOn(t *testing.T, p *Heap, l *txn.Lane, all ...shm.Offset) {
	t.Helper()
	for _, off := range all {
		at, err := p.block(off)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.give(l, uint64(off), at, l.Freeing(off)); err != nil {
			t.Fatal(err)
		}
	}
}

func pagesOf(p *Heap, all []shm.Offset) map[uint64]bool {
	pages := map[uint64]bool{}
	for _, off := range all {
		pages[(uint64(off)-p.base)/pageSize] = true
	}
	return pages
}

// common returns how many pages two lots of blocks have in common.
func common(p *Heap, a, b []shm.Offset) (n int) {
	pages := pagesOf(p, a)
	for page := range pagesOf(p, b) {
		if pages[page] {
			n++
		}
	}
	return n
}

// Two lanes that allocate at once have no page in common: the states of the blocks of a page are one cache line. One lane alone fills one page
// after the other.
func TestLanesFillFromPagesOfTheirOwn(t *testing.T) {
	for _, size := range []uint64{64, 128, 500, 1000} {
		p := newHeap(t, false, shm.Size(1<<20), shm.Limit(1<<20))
		l := openLanes(t, p, 2)
		var a, b []shm.Offset
		for range 40 {
			a, b = append(a, allocOn(t, p, l[0], 3, size)...), append(b, allocOn(t, p, l[1], 3, size)...)
		}
		if n := common(p, a, b); n != 0 {
			t.Errorf("%d bytes: two lanes have blocks on %d pages in common", size, n)
		}
		c, _ := classFor(size, granule)
		k := &classes[c]
		most := (120 + k.capacity + k.blocks - 1) / k.blocks * k.pages
		if n := uint64(len(pagesOf(p, a))); n > most {
			t.Errorf("%d bytes: 120 blocks of one lane lie on %d pages, want at most %d", size, n, most)
		}
		freeOn(t, p, l[0], b...)
		freeOn(t, p, l[1], a...)
		for _, l := range l {
			if err := p.Empty(l, l); err != nil {
				t.Fatal(err)
			}
		}
		if u := usage(t, p); u.Used != u.Tables {
			t.Errorf("%d bytes: all was freed, and yet: %+v", size, u)
		}
	}
}

// Many lanes do not take a page each: from some on they share those that others fill from.
func TestManyLanesShareSpans(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(txn.MaxLanes / 4)) // as many lanes as there can be
	p := newHeap(t, false, shm.Size(2<<20), shm.Limit(2<<20))
	var all []shm.Offset
	lanes := openLanes(t, p, 40)
	for _, l := range lanes {
		all = append(all, allocOn(t, p, l, 1, 64)...)
	}
	c, _ := classFor(64, granule)
	u := usage(t, p)
	if got := u.Classes[c].Spans; got < passMost || got > passMost+40*classes[c].capacity/2/classes[c].blocks {
		t.Errorf("%d lanes took %d spans for a block each; up to %d are passed by", len(lanes), got, passMost)
	}
	freeOn(t, p, lanes[0], all...)
}

// What others fill from is taken before memory runs out, and before the region grows.
func TestSpansOfOthersAreTakenBeforeMemoryRunsOut(t *testing.T) {
	p := newHeap(t, true, shm.Size(128<<10), shm.Limit(256<<10))
	l := openLanes(t, p, 2)
	mine := allocOn(t, p, l[0], 1, 64)
	var runs []shm.Offset
	for size := p.r.Size(); ; {
		off, err := p.AllocIn(l[0], 40_000, granule)
		if errors.Is(err, shm.ErrNoSpace) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		l[0].Commit()
		if p.r.Size() != size { // too far
			freeOn(t, p, l[0], off)
			break
		}
		runs = append(runs, off)
	}
	for { // and what is left between them
		if ok, err := p.spare(1); err != nil {
			t.Fatal(err)
		} else if !ok {
			break
		}
		off, err := p.AllocIn(l[0], 4096, granule)
		if err != nil {
			t.Fatal(err)
		}
		l[0].Commit()
		runs = append(runs, off)
	}
	mine = append(mine, allocOn(t, p, l[0], 1, 64)...)
	before := usage(t, p)
	theirs := allocOn(t, p, l[1], 8, 64)
	if after := usage(t, p); after.Used != before.Used || after.Size != before.Size {
		t.Errorf("pages of %d bytes are in use in a region of %d, before %d of %d, though others had free blocks", after.Used, after.Size, before.Used, before.Size)
	}
	if n := common(p, mine, theirs); n == 0 {
		t.Error("blocks of the second lane are nowhere where there was room")
	}
	freeOn(t, p, l[0], append(append(mine, theirs...), runs...)...)
}

// A hint may be any word.
func TestAnyFillerIsHarmless(t *testing.T) {
	p := newHeap(t, false, shm.Size(512<<10), shm.Limit(512<<10))
	l := openLanes(t, p, 2)
	all := allocOn(t, p, l[0], 200, 64)
	for i := range all {
		if i%3 != 0 {
			freeOn(t, p, l[0], all[i])
		}
	}
	if err := p.Empty(l[0], l[0]); err != nil {
		t.Fatal(err)
	}
	before := usage(t, p)
	var live []shm.Offset
	for _, v := range []uint64{1, txn.MaxLanes, txn.MaxLanes + 1, shm.Slots * txn.MaxLanes, shm.Slots*txn.MaxLanes + 1, 1 << 31, 1 << 32, 1 << 63, 1<<64 - 1, rand.Uint64()} {
		count := p.count.Load()
		for page := range count {
			d, err := p.page(page)
			if err != nil {
				t.Fatal(err)
			}
			d.filler.Store(v)
		}
		live = append(live, allocOn(t, p, l[1], 20, 64)...)
		if err := p.Check(); err != nil {
			t.Errorf("filler %#x: %v", v, err)
		}
		freeOn(t, p, l[1], live...)
		live = live[:0]
		if err := p.Empty(l[1], l[1]); err != nil {
			t.Fatal(err)
		}
	}
	if after := usage(t, p); after.Live != before.Live || after.Used > before.Used+passMost*pageSize {
		t.Errorf("%+v, was %+v", after, before)
	}
	for i := range all {
		if i%3 == 0 {
			freeOn(t, p, l[0], all[i])
		}
	}
}

// A span that is listed and has no free block would be looked at for ever.
func TestListedSpanWithoutFreeBlocksIsRefused(t *testing.T) {
	p := newHeap(t, false, shm.Size(64<<10), shm.Limit(64<<10))
	l := openLanes(t, p, 2)
	off := allocOn(t, p, l[0], 1, 64)[0]
	at, _ := p.find(uint64(off))
	mask := at.page.mask.Swap(0)
	if _, err := p.AllocIn(l[1], 64, granule); !errors.Is(err, shm.ErrCorrupt) {
		t.Errorf("alloc from a span without free blocks: %v, want ErrCorrupt", err)
	}
	at.page.mask.Store(mask)
	freeOn(t, p, l[0], off)
}

// A yard is where a process puts the offsets of its blocks, and waits.
type yard struct {
	ready  atomic.Uint64
	blocks [fillBlocks]atomic.Uint64
}

const fillBlocks = 100

type yardArgs struct{ Region, Yard *shm.Region }

var filling = proc.Define("heap filler", func(ctx context.Context, a yardArgs) error {
	y, err := shm.At[yard](a.Yard, a.Yard.Data())
	if err != nil {
		return err
	}
	p, err := Open(a.Region, a.Region.Data()+thingsSize)
	if err != nil {
		return err
	}
	for i := range y.blocks {
		off, err := p.Alloc(64)
		if err != nil {
			return err
		}
		y.blocks[i].Store(uint64(off))
	}
	y.ready.Store(1)
	<-ctx.Done()
	return nil
})

// A fillerProcess lives, and has some blocks, and others in reserve.
type fillerProcess struct {
	*proc.Process
	blocks []shm.Offset
}

// Kill kills it, and waits until it is gone.
func (p fillerProcess) Kill() {
	p.Process.Kill()
	p.Process.Wait()
}

func startFiller(t *testing.T, r *shm.Region) (p fillerProcess) {
	t.Helper()
	yr, err := shm.Anonymous(shm.Size(4096), shm.Limit(4096))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { yr.Close() })
	y, err := shm.At[yard](yr, yr.Data())
	if err != nil {
		t.Fatal(err)
	}
	if p.Process, err = filling.Start(t.Context(), yardArgs{r, yr}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		p.Process.Close()
	})
	for end := time.Now().Add(30 * time.Second); y.ready.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the process does not come to the point")
		}
	}
	for i := range y.blocks {
		p.blocks = append(p.blocks, shm.Offset(y.blocks[i].Load()))
	}
	return p
}

// Two processes have no page in common while both live. When one is dead, the other one goes on with its spans, and takes no new ones.
func TestProcessesFillFromPagesOfTheirOwn(t *testing.T) {
	r, err := shm.Anonymous(shm.Size(1<<20), shm.Limit(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := Format(r, r.Data()+thingsSize); err != nil {
		t.Fatal(err)
	}
	p, err := Open(r, r.Data()+thingsSize)
	if err != nil {
		t.Fatal(err)
	}
	mine := []shm.Offset{alloc(t, p, 64)}
	child := startFiller(t, r)
	theirs := child.blocks
	for range fillBlocks {
		mine = append(mine, alloc(t, p, 64))
	}
	if n := common(p, mine, theirs); n != 0 {
		t.Errorf("two processes have blocks on %d pages in common", n)
	}
	// Those of the dead one: it has a span that is not used up, and the others have free blocks again.
	child.Kill()
	settle(t, r, p)
	for i, off := range theirs {
		if i%2 == 0 {
			free(t, p, off)
		}
	}
	if err := p.Flush(); err != nil {
		t.Fatal(err)
	}
	before := usage(t, p)
	for range before.FreeBlocks {
		mine = append(mine, alloc(t, p, 64))
	}
	if after := usage(t, p); after.Used != before.Used {
		t.Errorf("%d bytes are in use, %d were before, and there was room in the spans of a dead process", after.Used, before.Used)
	}
	if err := p.Check(); err != nil {
		t.Error(err)
	}
}

// Lanes that fill from spans of their own waste little: with 10,000 blocks of 16 to 1024 bytes in all, they need hardly more pages than one lane that has
// them all, but for what is in magazines.
func TestLanesOfTheirOwnWasteLittle(t *testing.T) {
	if raceEnabled {
		t.Skip("one goroutine, and long")
	}
	alone := 0.0
	for _, lanes := range []int{1, 2, 8} {
		p := newHeap(t, false, shm.Size(16<<20), shm.Limit(16<<20))
		l := openLanes(t, p, lanes)
		rng := rand.New(rand.NewPCG(1, 2))
		type block struct {
			off  shm.Offset
			size uint64
		}
		live := make([]block, 10_000)
		asked := uint64(0)
		for i := range 60_000 {
			// As by goroutines that have a part of the blocks each.
			k := i % len(live)
			if i >= len(live) {
				k = rng.IntN(len(live))
				freeOn(t, p, l[k%lanes], live[k].off)
				asked -= live[k].size
			}
			n := 16 + rng.Uint64N(1009)
			live[k] = block{allocOn(t, p, l[k%lanes], 1, n)[0], n}
			asked += n
		}
		u := usage(t, p)
		more := 100*float64(u.Used-u.Cached)/float64(asked) - 100
		t.Logf("%d lanes: pages have %.1f %% more than was asked for, without what magazines keep", lanes, more)
		if lanes == 1 {
			alone = more
		} else if more > alone+5 {
			t.Errorf("%d lanes: pages have %.1f %% more than was asked for, with one lane %.1f", lanes, more, alone)
		}
		for _, b := range live {
			freeOn(t, p, l[0], b.off)
		}
	}
}
