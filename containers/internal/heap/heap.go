package heap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"
	"unsafe"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
	shmsync "github.com/shmkit/shmkit/sync"
)

// reserving, if set, is asked before memory is reserved; tests let it fail.
var reserving func() error

// reserve makes sure that n pages have memory.
func (p *Heap) reserve(first, n uint64) error {
	if reserving != nil {
		if err := reserving(); err != nil {
			return err
		}
	}
	return p.r.Reserve(shm.Offset(p.offsetOf(first)), n*pageSize)
}

// extend lets the region have n pages.
func (p *Heap) extend(n uint64) error {
	if reserving != nil {
		if err := reserving(); err != nil {
			return err
		}
	}
	return p.r.Grow(p.offsetOf(n) - uint64(p.r.Data()))
}

// releaseMin is the size of a free run, in bytes, from which on its memory goes back to the system when it is freed; tests
// change it.
var releaseMin uint64 = 1 << 20

// A Heap is the heap of a region as this process has it. Any number of goroutines and processes may use it at once.
type Heap struct {
	r     *shm.Region
	h     *header
	start unsafe.Pointer // of the region
	base  uint64         // offset of the first page
	most  uint64         // pages that the region has room for at its largest
	lanes *txn.Lanes

	slot     int                         // of this process
	pressed  atomic.Uint64               // value of the region's pressure that this process has answered
	respite  atomic.Int64                // until when others are not waited for, in ns since 1970
	count    atomic.Uint64               // pages that the page table was seen to have, and the region too
	segments [32]atomic.Pointer[segment] // the first segmentCount
}

// Format makes an empty heap with its header at at, which is a multiple of 64, and the data area behind it for blocks. It needs
// HeaderSize bytes there.
func Format(r *shm.Region, at shm.Offset) error {
	b, err := r.Bytes(at, HeaderSize)
	if err != nil {
		return err
	}
	clear(b)
	h, err := shm.At[header](r, at)
	if err != nil {
		return err
	}
	h.clean = end(r) // what is in the data area now is not known
	h.magic = heapMagic
	return nil
}

// open returns the heap as a process in that slot has it.
func open(r *shm.Region, at shm.Offset, slot int) (*Heap, error) {
	h, err := shm.At[header](r, at)
	if err != nil {
		return nil, err
	}
	base := (uint64(at) + HeaderSize + pageSize - 1) &^ (pageSize - 1)
	most := uint64(0)
	if limit := uint64(r.Data()) + r.Limit(); limit > base {
		most = min((limit-base)/pageSize, 1<<32-1)
	}
	if at%granule != 0 || h.magic != heapMagic {
		return nil, fmt.Errorf("heap: no heap at offset %d: %w", at, shm.ErrCorrupt)
	}
	p := &Heap{r: r, h: h, start: unsafe.Add(unsafe.Pointer(h), -int(at)), base: base, most: most, slot: slot}
	for k := range p.segments {
		p.segments[k].Store(&noSegment)
	}
	p.lanes = txn.NewLanes(r, slot, p)
	p.pressed.Store(r.Pressure().Load())
	_, err = p.recount()
	return p, err
}

// end returns the offset of the data area's end.
func end(r *shm.Region) uint64 { return uint64(r.Data()) + r.Size() }

// Enter begins an operation. It is rolled back by [txn.Lane.Leave], which the caller defers, unless it is committed before.
func (p *Heap) Enter() (*txn.Lane, error) { return p.lanes.Enter() }

// Alloc reserves n zeroed bytes on a cache line of their own and returns their offset; 0 counts as 1. It returns an error that is
// [shm.ErrNoSpace], having changed nothing, if they do not fit and the region cannot grow. A process that dies inside leaves nothing;
// one that dies afterwards, before it has said anywhere that it has the block, loses it: [Heap.AllocIn] is for those who
// say so in the same operation. O(1) but for runs of pages, which are searched for first fit.
func (p *Heap) Alloc(n uint64) (shm.Offset, error) {
	if txn.OnStore != nil {
		return allocOne[txn.Watched](p, n)
	}
	return allocOne[txn.Plain](p, n)
}

// AllocAligned is Alloc for an offset that is a multiple of align, a power of two up to [MaxAlign].
func (p *Heap) AllocAligned(n, align uint64) (off shm.Offset, err error) {
	l, err := p.lanes.Enter()
	if err != nil {
		return 0, err
	}
	defer leave(l, &err)
	if off, err = p.AllocIn(l, n, align); err == nil {
		l.Commit()
	}
	return off, err
}

func leave(l *txn.Lane, err *error) {
	if failed := l.Leave(); failed != nil && *err == nil {
		*err = failed
	}
}

// AllocIn is AllocAligned as part of the operation in l: if that is not committed, the block is free again.
func (p *Heap) AllocIn(l *txn.Lane, n, align uint64) (shm.Offset, error) {
	if align == 0 || align > MaxAlign || align&(align-1) != 0 {
		return 0, fmt.Errorf("heap: alignment to %d bytes: %w", align, fs.ErrInvalid)
	}
	if p.r.Closed() {
		return 0, fmt.Errorf("heap: %w", shm.ErrClosed)
	}
	off, err := p.allocIn(l, n, align)
	if err != nil {
		err = p.scarce(l, err, func() (err error) {
			off, err = p.allocIn(l, n, align)
			return err
		})
	}
	return off, err
}

func (p *Heap) allocIn(l *txn.Lane, n, align uint64) (shm.Offset, error) {
	c, ok := classFor(n, align)
	if !ok {
		return p.takeRun(l, n)
	}
	off, err := p.take(l, c)
	if err != nil {
		return 0, err
	}
	return shm.Offset(off), p.zero(off, n)
}

// Free takes back the block that Alloc returned. It refuses an offset that is none, or one that is free already, with an error that
// is [shm.ErrCorrupt], having changed nothing. A process that dies inside leaves the block as it was or free. O(1).
func (p *Heap) Free(off shm.Offset) error {
	if txn.OnStore != nil {
		return freeOne[txn.Watched](p, off)
	}
	return freeOne[txn.Plain](p, off)
}

// freeSlow is Free for what freeOne leaves.
//
//go:noinline
func (p *Heap) freeSlow(off shm.Offset) (err error) {
	if p.r.Closed() {
		return fmt.Errorf("heap: %w", shm.ErrClosed)
	}
	at, err := p.block(off)
	if err != nil {
		return err
	}
	l, err := p.lanes.Enter()
	if err != nil {
		return err
	}
	defer leave(l, &err)
	next := l.Freeing(off)
	return p.give(l, uint64(off), at, next)
}

// FreeIn is Free as part of the operation in l: the block is free when that is committed and left. Two operations at once must not
// free the same block.
func (p *Heap) FreeIn(l *txn.Lane, off shm.Offset) error {
	at, err := p.block(off)
	if err != nil {
		return err
	}
	return l.Free(off, at.kind)
}

// block returns the place of a live block.
func (p *Heap) block(off shm.Offset) (place, error) {
	at, ok := p.find(uint64(off))
	if !ok || !at.live() || classOf(at.kind) == objectClass {
		return at, p.notLive(off, at, ok)
	}
	return at, nil
}

//go:noinline
func (p *Heap) notLive(off shm.Offset, at place, ok bool) error {
	if !ok || at.live() || classOf(at.kind) == objectClass {
		return p.noBlock("free", uint64(off))
	}
	return fmt.Errorf("heap: offset %d is free already: %w", off, shm.ErrCorrupt)
}

// takeRun takes a block that is a run of pages.
func (p *Heap) takeRun(l *txn.Lane, n uint64) (shm.Offset, error) {
	if n > p.most*pageSize {
		return 0, p.full((n-1)/pageSize+1, shm.ErrNoSpace)
	}
	pages := (n + pageSize - 1) / pageSize
	var first uint64
	var dirty bool
	if err := l.Room(1); err != nil { // before the locks
		return 0, err
	}
	err := p.inner(l, &p.h.pages.mu, func(*locks) (err error) {
		if first, dirty, err = p.takePages(l, pages); err != nil {
			return err
		}
		s, err := p.seg(first)
		if err != nil {
			return err
		}
		txn.PutByte(&s.states[(first-s.first)*(pageSize/granule)], stateRun|stateLive) // the descriptor is 0 yet
		if err := l.Inner(&s.pages[first-s.first].kind, kindWord(pageRun, 0, pages)); err != nil {
			return err
		}
		return l.Take(shm.Offset(p.offsetOf(first)), 0)
	})
	if err != nil {
		return 0, err
	}
	l.Taking()
	off := p.offsetOf(first)
	if dirty {
		err = p.zero(off, n)
	}
	return shm.Offset(off), err
}

// giveRun gives a run back.
func (p *Heap) giveRun(l *txn.Lane, off uint64, at place, next uint64) error {
	n := numberOf(at.kind)
	err := p.inner(l, &p.h.pages.mu, func(held *locks) error {
		if at.page.kind.Load() != at.kind {
			return p.noBlock("free", off)
		}
		if err := p.givePages(l, at.first, n); err != nil {
			return err
		}
		if err := l.Inner(&at.page.kind, 0); err != nil {
			return err
		}
		if err := l.StepInner(next); err != nil {
			return err
		}
		held.committed = func() {
			if n*pageSize >= releaseMin && p.r.ReadableHoles() {
				p.r.Release(shm.Offset(off), n*pageSize) // as far as the system takes it
			}
		}
		return nil
	})
	if err == nil {
		l.Stepped(next)
	}
	return err
}

// locks are those that an inner operation holds.
type locks struct {
	p         *Heap
	pages     bool
	committed func() // called with the locks held after the operation is committed
}

// lockPages takes the page lock besides that of a class.
func (h *locks) lockPages() error {
	if h.pages {
		return nil
	}
	err := h.p.lock(&h.p.h.pages.mu)
	h.pages = err == nil
	return err
}

// inner runs fn as an inner operation in l with mu held. It is undone if fn returns an error, or panics.
func (p *Heap) inner(l *txn.Lane, mu *shmsync.Mutex, fn func(*locks) error) (err error) {
	if !p.r.Pin() { // Close waits, so that no lock stays with nobody
		return fmt.Errorf("heap: %w", shm.ErrClosed)
	}
	defer p.r.Unpin()
	if err := p.lock(mu); err != nil {
		return err
	}
	held := locks{p: p}
	done := false
	defer func() {
		if !done {
			err = errors.Join(err, l.UndoInner())
		}
		if held.pages {
			p.h.pages.mu.Unlock()
		}
		mu.Unlock()
	}()
	if err = fn(&held); err == nil {
		l.CommitInner()
		done = true
		if held.committed != nil {
			held.committed()
		}
	}
	return err
}

// lock takes a lock of the heap. What a dead holder had logged is undone by then.
func (p *Heap) lock(mu *shmsync.Mutex) error {
	if !mu.TryLockIdle() {
		err := mu.LockRepaired(context.Background(), func(shm.Death) error {
			if mu == &p.h.pages.mu {
				return p.repairBoot()
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("heap: %w", err)
		}
	}
	if p.r.Closed() {
		mu.Unlock()
		return fmt.Errorf("heap: %w", shm.ErrClosed)
	}
	return nil
}

// zero clears n bytes of a block, up to a multiple of 8. Whoever had it before may still be reading it.
func (p *Heap) zero(off, n uint64) error {
	b, err := p.r.Bytes(shm.Offset(off), (max(n, 1)+7)&^7)
	if err != nil {
		return err
	}
	txn.Clear(b)
	return nil
}
