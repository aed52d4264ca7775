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
// lists correct. What it can leave is a block or two that are free but on no list, or one handed out to a
// caller that never learned of it. Blocks of the first kind come back: whoever takes over the lock notes that
// the heap is to be merged, which walks all blocks and makes the lists anew. The second kind is lost to this
// version.
//
// # Memory that goes back
//
// A free block of 1 MiB or more gives its pages back to the system ([shm.Region.Release]), but not the one with
// its header, where a reader who comes too late does no harm ([shm.Region.ReadableHoles]); Trim does so for
// smaller ones, and for what is behind top, when its caller says that nobody reads there. The region itself
// notes what has no memory; nothing in a block does. So the state of a block never contradicts the note:
//
//	free       | block free and listed                           | it has memory
//	           | noted, punched (in Release)                     | free, and to be reserved before use
//	hand out   | reserved, the note removed (in Reserve)         | free, it has memory
//	           | off its list, split, handed out: as above       |
//
// Only what is handed out is reserved, and the header of the rest. The page of a header, free or not, always
// has memory, and so has a block that is not larger than a page. If Reserve finds the file system full, nothing
// has been touched: the search goes on, for a block that has memory.
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
	"io/fs"
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

	// MaxAlign is the most that AllocAligned aligns to: what a region's start has in every process.
	MaxAlign = 4096

	granule    = 64 // block sizes are multiples of it; so are payload offsets
	blockHead  = 16
	classCount = 160
	mergeNow   = 1 << 62

	growMost = 64 << 20 // bytes: beyond it regions do not double, since what they reserve is really taken

	maxFits = 8 // how many blocks of a list are looked at for one that fits
)

var _ [HeaderSize - granule]byte = [unsafe.Sizeof(header{})]byte{} // the layout is a format: moving it must not compile

// releaseMin is the size of a free block, in bytes, from which on its memory goes back to the system; tests
// change it. To have it back costs some 40 times as much as to clear it. So when a process takes a block
// that was given back, it gives back only larger ones from then on, until they are of a size that is worth
// it every time: as the C library of GNU does (M_MMAP_THRESHOLD in mallopt(3)).
var releaseMin uint64 = 1 << 20

const (
	releaseAlways = 32 << 20
	minHole       = 4096 // pages are not smaller
)

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
	// churn is the size of the largest block that this process gave back too early; guarded by mu.
	churn uint64
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
	return &Heap{r: r, h: h, first: uint64(at) + HeaderSize - blockHead}, nil
}

// end returns the offset of the data area's end.
func end(r *shm.Region) uint64 { return uint64(r.Data()) + r.Size() }

// Alloc reserves n zeroed bytes on a cache line of their own and returns their offset; 0 counts as 1. It
// returns an error that is [shm.ErrNoSpace], having changed nothing, if they do not fit and the region
// cannot grow. It waits for other processes in the heap, and for no other lock. A process that dies inside
// may lose the one block. O(1) but for growth, and for merging, which is O(blocks) and rare.
func (p *Heap) Alloc(n uint64) (shm.Offset, error) { return p.AllocAligned(n, granule) }

// AllocAligned is Alloc for an offset that is a multiple of align, a power of two. Every block is aligned to
// 64 bytes; what lies before one that is aligned to more is free to others.
func (p *Heap) AllocAligned(n, align uint64) (shm.Offset, error) {
	if align == 0 || align > MaxAlign || align&(align-1) != 0 {
		return 0, fmt.Errorf("heap: alignment to %d bytes: %w", align, fs.ErrInvalid)
	}
	size, ok := blockSize(n)
	if !ok {
		return 0, p.noSpace(n, shm.ErrNoSpace)
	}
	if err := p.lock(); err != nil {
		return 0, err
	}
	off, dirty, err := p.take(size, max(align, granule), blockLive)
	p.h.mu.Unlock()
	switch {
	case errors.Is(err, shm.ErrNoSpace):
		return 0, p.noSpace(n, err)
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
	p.listFreed(b, at, size)
	if size >= releaseMin && (size > p.churn || size >= releaseAlways) && p.r.ReadableHoles() {
		p.r.Release(shm.Offset(at+blockHead), size-blockHead) // as far as the system takes it
		step("given back")
	}
	return nil
}

// Trim joins free blocks, gives the memory of all but small ones back to the system, and that behind the last
// block, and returns how many bytes that is. It is for when nobody reads what was freed any more, however
// shortly: see [shm.Region.ReadableHoles]. O(blocks).
func (p *Heap) Trim() (bytes uint64, err error) {
	if err := p.lock(); err != nil {
		return 0, err
	}
	defer p.h.mu.Unlock()
	if err := p.merge(); err != nil {
		return 0, err
	}
	top := p.h.top.Load()
	release := func(at, size uint64) error {
		n, err := p.r.Release(shm.Offset(at), size)
		step("trimmed")
		bytes += n
		if errors.Is(err, shm.ErrNoSpace) { // the largest are noted, and there is no room to note more
			return nil
		}
		return err
	}
	if err := release(top, p.room()); err != nil {
		return bytes, err
	}
	for most, least := uint64(1)<<63, releaseMin; least >= releaseMin/16; most, least = least, least/4 {
		for at := p.first; at < top; {
			_, size, state, err := p.block(at)
			if err == nil && state == blockFree && least <= size && size < most {
				err = release(at+blockHead, size-blockHead)
			}
			if err != nil {
				return bytes, err
			}
			at += size
		}
	}
	return bytes, nil
}

// listFreed lists a block that has become free and could be joined to its neighbours.
func (p *Heap) listFreed(b *block, at, size uint64) {
	p.list(b, at, size)
	if freed := p.h.freed.Load(); freed < mergeNow {
		p.h.freed.Store(freed + size)
	}
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

// lead returns how far behind at a block begins whose payload is aligned.
func lead(at, align uint64) uint64 { return -(at + blockHead) & (align - 1) }

// take hands out a block of at least that size, aligned, in that state, and says whether it was used before.
// The lock is held.
func (p *Heap) take(size, align, state uint64) (at uint64, dirty bool, err error) {
	h := p.h
	// A block of about the size; then fresh memory, then a piece of a larger block, which would otherwise
	// be gone when a large one is asked for; then merging, if much was freed; then growth.
	if at, err = p.takeListed(class(size), class(size), size, align, state, maxFits); at != 0 || err != nil {
		return at, true, err
	}
	fresh := func() uint64 { return lead(h.top.Load(), align) + size }
	if fresh() <= p.room() {
		at, dirty, err := p.takeFresh(size, align, state)
		if err == nil || !errors.Is(err, shm.ErrNoSpace) {
			return at, dirty, err
		} // it was given back, and the file system is full
	}
	merged := false
	for {
		if at, err = p.takeListed(class(size), classCount-1, size, align, state, maxFits); at != 0 || err != nil {
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
	if err = p.grow(fresh()); err == nil {
		at, dirty, err = p.takeFresh(size, align, state)
	}
	if err == nil {
		return at, dirty, nil
	}
	if !errors.Is(err, shm.ErrNoSpace) {
		return 0, false, err
	}
	if !merged {
		if err := p.merge(); err != nil {
			return 0, false, err
		}
	}
	if at, fit := p.takeListed(class(size), classCount-1, size, align, state, p.maxBlocks()); at != 0 || fit != nil {
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
func (p *Heap) takeFresh(size, align, state uint64) (uint64, bool, error) {
	at := p.h.top.Load()
	if err := p.r.Reserve(shm.Offset(at), lead(at, align)+size); err != nil {
		return 0, false, err
	}
	step("memory behind top")
	if gap := lead(at, align); gap > 0 {
		b, err := shm.At[block](p.r, shm.Offset(at))
		if err != nil {
			return 0, false, err
		}
		b.size.Store(gap | blockFree)
		step("gap behind top")
		p.h.top.Store(at + gap) // publishes
		step("gap not listed")
		p.listFreed(b, at, gap)
		at += gap
	}
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
// at no more than tries blocks of each class; those of all but the first fit, unless they are to be aligned.
func (p *Heap) takeListed(first, last int, size, align, state uint64, tries int) (uint64, error) {
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
			case got >= lead(at, align)+size:
				gap := lead(at, align)
				err := p.reserve(at, got, gap, size)
				if err == nil {
					step("memory for the block")
					return p.takeOff(link, b, at, got, gap, size, state)
				}
				if !errors.Is(err, shm.ErrNoSpace) {
					return 0, err
				} // it was given back, and the file system is full: others may have memory
			}
			link = &b.link
		}
	}
	return 0, nil
}

// reserve makes sure that there is memory for size bytes, gap bytes behind the beginning of a free block of got
// bytes, and for what else takeOff may write to.
func (p *Heap) reserve(at, got, gap, size uint64) error {
	if got <= minHole { // in no more than two pages, which have memory: they hold this header and the next
		return nil
	}
	from, n := shm.Offset(at+gap), min(size+max(size/4, blockHead), got-gap)
	if size >= releaseMin && size > p.churn && p.r.Released(from, n) > 0 {
		p.churn = 2 * size
	}
	return p.r.Reserve(from, n)
}

// takeOff takes the block off its list, which link points to it from, and hands out size bytes of it, from
// gap bytes on. It returns their offset.
func (p *Heap) takeOff(link *atomic.Uint64, b *block, at, got, gap, size, state uint64) (uint64, error) {
	link.Store(b.link.Load())
	step("off the list, still free")
	if gap > 0 {
		r, err := shm.At[block](p.r, shm.Offset(at+gap))
		if err != nil {
			return 0, err
		}
		r.link.Store(0)
		r.size.Store((got - gap) | blockFree) // inside the block, so far
		step("rest behind the gap prepared")
		b.size.Store(gap | blockFree) // makes two of it
		step("gap split off")
		p.listFreed(b, at, gap)
		b, at, got = r, at+gap, got-gap
	}
	// A quarter more than asked for is not worth a block of its own, or fits the next of that size.
	if rest := got - size; rest > size/4 && rest > 0 {
		r, err := shm.At[block](p.r, shm.Offset(at+size))
		if err != nil {
			return 0, err
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
	return at, nil
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

// noSpace says what did not fit, and why: the limit, or the file system.
func (p *Heap) noSpace(n uint64, why error) error {
	return fmt.Errorf("heap: %d bytes do not fit: the region has %d, its limit is %d; free something, or make it with a larger limit: %w",
		n, p.r.Size(), p.r.Limit(), why)
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
