// Package heap allocates blocks in a region's data area for all processes that share it.
//
// It is the simple one of the two that the design knows: one lock for the whole heap, a header before each
// block, free lists by size. It frees, reuses, splits, merges and lets the region grow.
//
// # Blocks
//
// Blocks lie end to end from the first one to top; what is behind top has never been used. A block is a
// multiple of 64 bytes: 16 of header, then the payload, which always starts on a cache line.
//
//	0              8             16
//	| size | state | next, check | payload ...
//
// The word with size and state is the truth about a block, and one store changes it: splitting a block in
// two, merging several, handing one out, taking it back. The free lists follow from it. They are singly
// linked and changed by one store each, so they are never torn; they may lack a block.
//
// # A process that dies inside
//
// Each step is ordered so that a kill between any two stores leaves the chain of blocks walkable and the
// lists correct. What it can leave is one block that is free but on no list, or one handed out to a caller
// that never learned of it. Blocks of the first kind come back: whoever takes over the lock notes that the
// heap is to be merged, which walks all blocks and makes the lists anew. The second kind is lost to this
// version.
//
// # Objects
//
// Headers of containers are 128 bytes on their own cache lines, and come from slabs: blocks that are
// never freed, so that what was once a header is one for ever. Of their contents the heap uses
//
//	 8  gen      even while the header is free; never changed here
//	40  creator  0: free. Else the token of the process that allocated it
//	48  next     while it is free
//
// After PostgreSQL's freepage.c in what is merged and when, without its page map and its B-tree.
package heap

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"structs"
	"sync/atomic"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
	shmsync "github.com/shmkit/shmkit/sync"
)

// header is where the offset given to [Format] says. All but the constants is guarded by mu.
//
//	0       8       16   24    32      40        48      56        64                1344
//	| magic | clean | mu | top | freed | objects | slabs | objects | classes [160] ... | the first block's header
type header struct {
	_           structs.HostLayout
	magic       uint64                    // heapMagic; immutable
	clean       uint64                    // what is behind this offset and top was never written; immutable
	mu          shmsync.Mutex             // guards the heap
	top         atomic.Uint64             // end of the last block; only grows
	freed       atomic.Uint64             // bytes freed since the last merge; mergeNow after a death
	freeObjects atomic.Uint64             // offset of the first free object header
	slabs       atomic.Uint64             // offset of the newest slab's block
	objects     atomic.Uint64             // how many object headers there are
	classes     [classCount]atomic.Uint64 // offset of the first free block of at least the class's size
}

const (
	heapMagic = 0x7061656874696b6d // "mkitheap" in little-endian order

	// HeaderSize is what the header takes: the first block's payload starts there.
	HeaderSize = 1408

	granule    = 64 // block sizes are multiples of it; so are payload offsets
	blockHead  = 16
	classCount = 160
	mergeNow   = 1 << 62

	growMost = 64 << 20 // bytes: beyond it regions do not double, since what they reserve is really taken

	maxFits = 8 // how many blocks of a list are looked at for one that fits
)

var _ [HeaderSize - granule]byte = [unsafe.Sizeof(header{})]byte{} // the layout is a format: moving it must not compile

// States of a block, in the low bits of its first word.
const (
	blockFree  = 1 // second word: offset of the next free block
	blockLive  = 2 // second word: check, a function of the offset that data does not have by chance
	blockSlab  = 3 // second word: offset of the slab made before
	stateMask  = granule - 1
	objectSize = 128
)

// A Heap is the heap of a region as this process has it. Any number of goroutines and processes may use it
// at once; they wait for each other.
type Heap struct {
	r *shm.Region
	h *header
	// first is the offset of the first block, the end of every walk towards lower addresses.
	first uint64
}

type block struct {
	_    structs.HostLayout
	size atomic.Uint64 // and state
	link atomic.Uint64 // next or check, by state
}

type objectHead struct {
	_       structs.HostLayout
	_       uint64
	gen     atomic.Uint64
	_       [24]byte
	creator atomic.Uint64
	next    atomic.Uint64
}

var (
	_ [blockHead]byte = [unsafe.Sizeof(block{})]byte{}
	_ [40]byte        = [unsafe.Offsetof(objectHead{}.creator)]byte{}
)

// Format makes an empty heap with its header at at, which is a multiple of 64, and the data area behind it
// for blocks. It needs HeaderSize bytes there.
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
	h.top.Store(uint64(at) + HeaderSize - blockHead)
	h.magic = heapMagic
	return nil
}

// Open returns the heap whose header is at at. The region must outlive it.
func Open(r *shm.Region, at shm.Offset) (*Heap, error) {
	h, err := shm.At[header](r, at)
	if err != nil {
		return nil, err
	}
	if at%granule != 0 || h.magic != heapMagic {
		return nil, fmt.Errorf("heap: no heap at offset %d: %w", at, shm.ErrCorrupt)
	}
	return &Heap{r, h, uint64(at) + HeaderSize - blockHead}, nil
}

// end returns the offset of the data area's end.
func end(r *shm.Region) uint64 { return uint64(r.Data()) + r.Size() }

// Alloc reserves n zeroed bytes on a cache line of their own and returns their offset; 0 counts as 1. It
// returns an error that is [shm.ErrNoSpace], having changed nothing, if they do not fit and the region
// cannot grow. It waits for other processes in the heap, and for no other lock. A process that dies inside
// may lose the one block. O(1) but for growth, and for merging, which is O(blocks) and rare.
func (p *Heap) Alloc(n uint64) (shm.Offset, error) {
	size, ok := blockSize(n)
	if !ok {
		return 0, p.noSpace(n)
	}
	if err := p.lock(); err != nil {
		return 0, err
	}
	off, dirty, err := p.take(size, blockLive)
	p.h.mu.Unlock()
	switch {
	case errors.Is(err, shm.ErrNoSpace):
		return 0, p.noSpace(n)
	case err != nil:
		return 0, err
	}
	if dirty {
		if err := p.zero(off+blockHead, n); err != nil {
			return 0, err
		}
	}
	return shm.Offset(off + blockHead), nil
}

// Free takes back the block that Alloc returned. It refuses an offset that is none with an error that is
// [shm.ErrCorrupt], having changed nothing; a second Free of one block too, as long as it was not handed
// out again. A process that dies inside leaves the block as it was or free. O(1).
func (p *Heap) Free(off shm.Offset) error {
	if err := p.lock(); err != nil {
		return err
	}
	defer p.h.mu.Unlock()
	at := uint64(off) - blockHead
	b, size, state, err := p.block(at)
	switch {
	case off%granule != 0 || err != nil:
		return fmt.Errorf("heap: free of offset %d, which is no block: %w", off, shm.ErrCorrupt)
	case state == blockFree:
		return fmt.Errorf("heap: offset %d is free already: %w", off, shm.ErrCorrupt)
	case state != blockLive || b.link.Load() != p.check(at):
		return fmt.Errorf("heap: free of offset %d, which is no block: %w", off, shm.ErrCorrupt)
	}
	b.size.Store(size | blockFree)
	step("freed, not listed")
	p.list(b, at, size)
	if freed := p.h.freed.Load(); freed < mergeNow {
		p.h.freed.Store(freed + size)
	}
	return nil
}

// lock takes the heap's lock. After a death inside there is nothing to put right at once, but a block may
// be missing from the lists.
func (p *Heap) lock() error {
	if p.h.mu.TryLockIdle() {
		if p.r.Closed() {
			p.h.mu.Unlock()
			return fmt.Errorf("heap: %w", shm.ErrClosed)
		}
		return nil
	}
	err := p.h.mu.LockRepaired(context.Background(), func(shm.Death) error {
		p.h.freed.Store(mergeNow)
		return nil
	})
	if err != nil {
		return fmt.Errorf("heap: %w", err)
	}
	return nil
}

// blockSize returns the size of the block for n bytes, and whether there can be one.
func blockSize(n uint64) (uint64, bool) {
	if n > 1<<46 {
		return 0, false
	}
	return (max(n, 1) + blockHead + granule - 1) &^ (granule - 1), true
}

// class returns the list that a free block of that size is on: the class of the largest size that is not
// above it. Classes are 1 to 8 granules, then four per doubling.
func class(size uint64) int {
	u := size / granule
	if u <= 8 {
		return int(u) - 1
	}
	e := bits.Len64(u) - 1 // u >= 1<<e, e >= 3
	return min(7+4*(e-3)+int(u>>(e-2)&3), classCount-1)
}

// check is what the second word of a live block at that offset holds.
func (p *Heap) check(at uint64) uint64 {
	hi, lo := bits.Mul64(at^p.r.HashSeed(), 0x9e3779b97f4a7c15)
	return hi ^ lo | 1
}

// block returns the block at that offset, its size and its state: an offset, and contents, that are
// foreign input.
func (p *Heap) block(at uint64) (b *block, size, state uint64, err error) {
	top := p.h.top.Load()
	if at < p.first || at >= top || at%granule != granule-blockHead {
		return nil, 0, 0, fmt.Errorf("heap: block at offset %d, they lie in [%d, %d): %w", at, p.first, top, shm.ErrCorrupt)
	}
	if b, err = shm.At[block](p.r, shm.Offset(at)); err != nil {
		return nil, 0, 0, err
	}
	word := b.size.Load()
	size, state = word&^stateMask, word&stateMask
	if size == 0 || size > top-at || state < blockFree || state > blockSlab {
		return nil, 0, 0, fmt.Errorf("heap: block at offset %d has size %d and state %d: %w", at, size, state, shm.ErrCorrupt)
	}
	return b, size, state, nil
}

// take hands out a block of at least that size, in that state, and says whether it was used before. The
// lock is held.
func (p *Heap) take(size, state uint64) (at uint64, dirty bool, err error) {
	h := p.h
	// A block of about the size; then fresh memory, then a piece of a larger block, which would otherwise
	// be gone when a large one is asked for; then merging, if much was freed; then growth.
	if at, err = p.takeListed(class(size), class(size), size, state, maxFits); at != 0 || err != nil {
		return at, true, err
	}
	if size <= p.room() {
		return p.takeFresh(size, state)
	}
	merged := false
	for {
		if at, err = p.takeListed(class(size), classCount-1, size, state, maxFits); at != 0 || err != nil {
			return at, true, err
		}
		if freed := h.freed.Load(); merged || freed < max(size, (h.top.Load()-p.first)/8) {
			break
		}
		if err := p.merge(); err != nil {
			return 0, false, err
		}
		merged = true
	}
	err = p.grow(size)
	if err == nil {
		return p.takeFresh(size, state)
	}
	if !errors.Is(err, shm.ErrNoSpace) {
		return 0, false, err
	}
	if !merged {
		if err := p.merge(); err != nil {
			return 0, false, err
		}
	}
	if at, fit := p.takeListed(class(size), classCount-1, size, state, p.maxBlocks()); at != 0 || fit != nil {
		return at, true, fit
	}
	return 0, false, err
}

// maxBlocks returns how many blocks there can be: a list that is longer is a ring.
func (p *Heap) maxBlocks() int { return int((p.h.top.Load()-p.first)/granule) + 1 }

// room returns how many bytes are left behind top.
func (p *Heap) room() uint64 {
	if top, end := p.h.top.Load(), end(p.r); top < end {
		return end - top
	}
	return 0
}

// takeFresh hands out what is behind top; there is room.
func (p *Heap) takeFresh(size, state uint64) (uint64, bool, error) {
	at := p.h.top.Load()
	b, err := shm.At[block](p.r, shm.Offset(at))
	if err != nil {
		return 0, false, err
	}
	p.fill(b, at, state)
	b.size.Store(size | state)
	step("fresh block behind top")
	p.h.top.Store(at + size) // publishes
	step("handed out")
	return at, at < p.h.clean, nil
}

// fill sets the second word of a block that is about to be handed out.
func (p *Heap) fill(b *block, at, state uint64) {
	if state == blockLive {
		b.link.Store(p.check(at))
	} else {
		b.link.Store(p.h.slabs.Load())
	}
}

// takeListed hands out a listed block of one of the classes, if one fits, or a piece of it; else 0. It looks
// at no more than tries blocks of the first class; those of the others fit.
func (p *Heap) takeListed(first, last int, size, state uint64, tries int) (uint64, error) {
	for c := first; c <= last; c++ {
		link := &p.h.classes[c]
		for n := 0; link.Load() != 0 && n < tries; n++ {
			at := link.Load()
			b, got, is, err := p.block(at)
			switch {
			case err != nil:
				return 0, err
			case is != blockFree:
				return 0, fmt.Errorf("heap: block at offset %d is on a free list and in state %d: %w", at, is, shm.ErrCorrupt)
			case got >= size:
				return at, p.takeOff(link, b, at, got, size, state)
			}
			link = &b.link
		}
	}
	return 0, nil
}

// takeOff takes the block off its list, which link points to it from, and hands out size bytes of it.
func (p *Heap) takeOff(link *atomic.Uint64, b *block, at, got, size, state uint64) error {
	link.Store(b.link.Load())
	step("off the list, still free")
	// A quarter more than asked for is not worth a block of its own, or fits the next of that size.
	if rest := got - size; rest > size/4 && rest > 0 {
		r, err := shm.At[block](p.r, shm.Offset(at+size))
		if err != nil {
			return err
		}
		r.link.Store(0)
		r.size.Store(rest | blockFree) // inside the block, so far
		step("rest prepared")
		b.size.Store(size | blockFree) // makes two of it
		step("split")
		p.list(r, at+size, rest)
		got = size
	}
	step("about to hand out")
	p.fill(b, at, state)
	step("marked")
	b.size.Store(got | state)
	step("handed out")
	return nil
}

// list puts a free block on its list.
func (p *Heap) list(b *block, at, size uint64) {
	head := &p.h.classes[class(size)]
	b.link.Store(head.Load())
	step("linked")
	head.Store(at)
	step("listed")
}

// grow makes the region at least so large that size bytes fit behind top: twice as large, if it can, but
// no more than growMost larger than it has to be.
func (p *Heap) grow(size uint64) error {
	now, need := p.r.Size(), p.h.top.Load()+size-uint64(p.r.Data())
	twice := min(max(now+min(now, growMost), need), p.r.Limit())
	if twice > need {
		if err := p.r.Grow(twice); err == nil || !errors.Is(err, shm.ErrNoSpace) {
			return err
		}
	}
	return p.r.Grow(need)
}

// merge joins neighbouring free blocks and makes all lists anew, from the blocks' states alone.
func (p *Heap) merge() error {
	h := p.h
	h.freed.Store(mergeNow) // until the lists are complete again
	for i := range h.classes {
		h.classes[i].Store(0)
	}
	step("lists emptied")
	slabs := map[uint64]bool{}
	if err := p.eachSlab(func(at, _, _ uint64) bool { slabs[at] = true; return true }); err != nil {
		return err
	}
	var run *block // the free block that reaches up to at
	var start, length uint64
	put := func() {
		if run != nil {
			if run.size.Load()&^stateMask != length {
				run.size.Store(length | blockFree) // makes one of them
				step("joined")
			}
			p.list(run, start, length)
		}
		run = nil
	}
	for at, top := p.first, h.top.Load(); at < top; {
		b, size, state, err := p.block(at)
		if err != nil {
			return err
		}
		if state == blockSlab && !slabs[at] { // its maker died before anybody had an object of it
			b.size.Store(size | blockFree)
			state = blockFree
		}
		switch {
		case state != blockFree:
			put()
		case run == nil:
			run, start, length = b, at, size
		default:
			length += size
		}
		at += size
	}
	put()
	if err := p.relistObjects(); err != nil {
		return err
	}
	h.freed.Store(0)
	return nil
}

// noSpace says what did not fit.
func (p *Heap) noSpace(n uint64) error {
	return fmt.Errorf("heap: %d bytes do not fit: the region has %d, its limit is %d; free something, or make it with a larger limit: %w",
		n, p.r.Size(), p.r.Limit(), shm.ErrNoSpace)
}

// zero clears n bytes at at. A reader that had the block before may still be looking.
func (p *Heap) zero(at, n uint64) error {
	b, err := p.r.Bytes(shm.Offset(at), (n+7)&^7)
	if err != nil {
		return err
	}
	if !raceEnabled {
		clear(b)
		return nil
	}
	for i := 0; i < len(b); i += 8 {
		(*atomic.Uint64)(unsafe.Pointer(&b[i])).Store(0)
	}
	return nil
}

// crashPoint is called between any two stores, with what has been done; tests end the process there.
var crashPoint func(done string)

func step(done string) {
	if crashPoint != nil {
		crashPoint(done)
	}
}
