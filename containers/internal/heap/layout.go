package heap

import (
	"fmt"
	"math/bits"
	"structs"
	"sync/atomic"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
	shmsync "github.com/shmkit/shmkit/sync"

	"github.com/shmkit/shmkit/containers/internal/txn"
)

// header is where the offset given to [Format] says. The first page begins at the next page boundary behind it.
type header struct {
	_       structs.HostLayout
	magic   uint64 // heapMagic; immutable
	clean   uint64 // what is behind this offset was never written when the heap was made; immutable
	_       [112]byte
	pages   pageLine
	classes [classCount]classLine
}

// pageLine is the page table's root; mu guards all of it, and whose pages are, and is taken after a class' lock.
type pageLine struct {
	_        structs.HostLayout
	mu       shmsync.Mutex
	count    atomic.Uint64 // pages that there are; only grows, and publishes what the table says of them
	low      atomic.Uint64 // no page below low*64 is free
	virgin   atomic.Uint64 // pages from this one on were never in use; only grows
	boot     atomic.Uint64 // pages that are becoming a lane's: first+1 | how many<<40; 0 none
	_        [88]byte
	segments [segmentCount]atomic.Uint64 // offsets; immutable once count is above the segment's first page
	_        [32]byte
}

// classLine is the root of a size class, on lines of its own; mu guards all of it, and the masks and links of its spans.
type classLine struct {
	_    structs.HostLayout
	mu   shmsync.Mutex
	head atomic.Uint64 // first page of a span with free blocks, +1; 0 none
	_    [112]byte
}

// A descriptor says what a page is. That of a span's first page, or a run's, speaks for all.
type descriptor struct {
	_    structs.HostLayout
	kind atomic.Uint64 // below; guarded by pageLine.mu
	mask atomic.Uint64 // of a span: its free blocks, one bit each
	link atomic.Uint64 // of a span: the next one with free blocks, and the one before, as pages+1: next<<32 | previous

	// Of a span: which lane has filled its magazine from it last: slot*64 + lane + 1, 0 none. It is a hint, which any value may be in: who is
	// killed, or undone, leaves it as it is.
	filler atomic.Uint64
}

const (
	heapMagic = 0x73656761706b6d73 // "smkpages" in little-endian order

	pageSize     = 4096
	pageShift    = 12
	granule      = 64 // blocks begin on multiples of it
	granuleShift = 6

	firstSegment   = 256 // pages of the first segment; the others double what there is. A table inside a small region would halve its largest run
	segmentCount   = 28  // for 2^32 pages; a process has room for 32
	lineSize       = 128
	descriptorSize = 32

	// HeaderSize is what the header takes.
	HeaderSize = 4736

	// MaxAlign is the most that AllocAligned aligns to: what a region's start has in every process.
	MaxAlign = pageSize
)

// Kinds of pages: the low byte of a descriptor's word. Above it are the class in 8 bits, and a number.
const (
	pageFree = 0 // if its bit is set; else it belongs to the run before it
	pageSpan = 1 // the first of a span
	pageBody = 2 // another page of a span; the number is how many pages back that begins
	pageRun  = 3 // the first of a run, which is one block; the number is how many pages it has
	pageMeta = 4 // the first of a segment of the page table; the number is how many pages that has
	pageLane = 5 // the first of a lane's memory, or of an extension, or of the control lines of a slot: pages | slot<<16 | lane<<32; | extension of its log, +1, <<40

	laneLines = 0xff // in place of a lane: the control lines
)

// The state of a block is a byte at its first granule: its class+1, and whether it is live. Other granules have 0. The
// bytes of pages that are no span's mean nothing, but the first of a run.
const (
	stateLive = 0x80
	stateRun  = 0x3f
	stateMask = 0x3f
)

var (
	_ [HeaderSize]byte     = [unsafe.Sizeof(header{})]byte{} // the layout is a format: moving it must not compile
	_ [384]byte            = [unsafe.Sizeof(pageLine{})]byte{}
	_ [lineSize]byte       = [unsafe.Sizeof(classLine{})]byte{}
	_ [descriptorSize]byte = [unsafe.Sizeof(descriptor{})]byte{}
)

func kindOf(word uint64) uint64   { return word & 0xff }
func classOf(word uint64) int     { return int(word >> 8 & 0xff) }
func numberOf(word uint64) uint64 { return word >> 16 }

func kindWord(kind uint64, class int, number uint64) uint64 {
	return kind | uint64(class)<<8 | number<<16
}

// objectHead is what the heap uses of an object's header. Its memory never becomes anything else: what was once a header is one
// for ever.
type objectHead struct {
	_       structs.HostLayout
	_       uint64
	gen     atomic.Uint64 // even while the header is free; never changed here
	_       [24]byte
	creator atomic.Uint64 // token of the process that allocated it; 0 while it is free
	_       [80]byte
}

var _ [objectSize]byte = [unsafe.Sizeof(objectHead{})]byte{}

// A segment of the page table has, for a range of pages, one after the other: the bits of those that are free, the descriptors,
// and the states of their granules. This is one as this process sees it.
type segment struct {
	first, n uint64
	bits     []atomic.Uint64
	pages    []descriptor
	states   []byte
	granules uint64 // up to the first page
	memory   []byte // all of it
	at       uint64 // where pages begins there
}

// noSegment stands for one that this process has not seen yet.
var noSegment segment

// segmentOf returns the number of the segment that has that page.
func segmentOf(page uint64) int { return bits.Len64(page / firstSegment) }

// segmentRange returns the first page of a segment, and how many it has in a heap of most pages.
func segmentRange(k int, most uint64) (first, n uint64) {
	first, n = 0, firstSegment
	if k > 0 {
		first = firstSegment << (k - 1)
		n = first
	}
	if first >= most {
		return first, 0
	}
	return first, min(n, most-first)
}

// segmentSize returns where the parts of a segment of n pages begin, and how many bytes it has.
func segmentSize(n uint64) (pages, states, size uint64) {
	pages = ((n+63)/64*8 + 63) &^ 63
	states = pages + n*descriptorSize
	return pages, states, states + n*(pageSize/granule)
}

func segmentPages(n uint64) uint64 {
	_, _, size := segmentSize(n)
	return (size + pageSize - 1) / pageSize
}

// segmentAt returns segment k, whose memory is at off.
func (p *Heap) segmentAt(k int, off uint64) (*segment, error) {
	first, n := segmentRange(k, p.most)
	pages, states, size := segmentSize(n)
	if n == 0 || off < p.base || (off-p.base)%pageSize != 0 {
		return nil, fmt.Errorf("heap: segment %d of the page table at offset %d: %w", k, off, shm.ErrCorrupt)
	}
	b, err := p.r.Bytes(shm.Offset(off), size)
	if err != nil {
		return nil, err
	}
	return &segment{
		first:    first,
		n:        n,
		bits:     unsafe.Slice((*atomic.Uint64)(unsafe.Pointer(&b[0])), (n+63)/64),
		pages:    unsafe.Slice((*descriptor)(unsafe.Pointer(&b[pages])), n),
		states:   b[states:size:size],
		granules: first * (pageSize / granule),
		memory:   b,
		at:       pages,
	}, nil
}

// seg returns the segment that has that page, of which there is one.
func (p *Heap) seg(page uint64) (*segment, error) {
	k := segmentOf(page)
	if k < segmentCount {
		if s := p.segments[k].Load(); s.n != 0 {
			return s, nil
		}
		if page < p.most {
			s, err := p.segmentAt(k, p.h.pages.segments[k].Load())
			if err == nil {
				p.segments[k].Store(s)
			}
			return s, err
		}
	}
	return nil, fmt.Errorf("heap: page %d of %d: %w", page, p.most, shm.ErrCorrupt)
}

// known reports whether there is a page of that number.
func (p *Heap) known(page uint64) bool {
	if page < p.count.Load() {
		return true
	}
	p.recount()
	return page < p.count.Load()
}

// recount brings the number of pages that this process knows up to date.
func (p *Heap) recount() (uint64, error) {
	n := p.h.pages.count.Load()
	for {
		old := p.count.Load()
		switch {
		case n <= old:
			return old, nil
		case n > p.most || p.base+n*pageSize > end(p.r):
			return old, fmt.Errorf("heap: %d pages, there is room for %d: %w", n, (end(p.r)-p.base)/pageSize, shm.ErrCorrupt)
		case p.count.CompareAndSwap(old, n):
			return n, nil
		}
	}
}

// page returns the descriptor of a page that there is.
func (p *Heap) page(page uint64) (*descriptor, error) {
	if !p.known(page) {
		return nil, fmt.Errorf("heap: page %d of %d: %w", page, p.count.Load(), shm.ErrCorrupt)
	}
	s, err := p.seg(page)
	if err != nil {
		return nil, err
	}
	return &s.pages[page-s.first], nil
}

func (p *Heap) offsetOf(page uint64) uint64 { return p.base + page<<pageShift }

// A place is where a block is, or might be. It has no more fields than the compiler keeps in registers.
type place struct {
	page  *descriptor
	state *byte
	kind  uint64 // copy of the descriptor's word
	first uint64 // page that its span or run begins with
}

// find returns the place of a block at off, which is foreign input; ok says that there is one.
func (p *Heap) find(off uint64) (at place, ok bool) {
	page := (off - p.base) >> pageShift
	if off < p.base || off%granule != 0 {
		return at, false
	}
	s := &noSegment
	if k := segmentOf(page); page < p.count.Load() && k < segmentCount {
		s = p.segments[k].Load()
	}
	if s.n == 0 {
		if s = p.findSlow(page); s == nil {
			return at, false
		}
	}
	i, g := page-s.first, (off-p.base)>>granuleShift-s.first*(pageSize/granule)
	if i >= uint64(len(s.pages)) || g >= uint64(len(s.states)) {
		return at, false
	}
	at = place{&s.pages[i], &s.states[g], s.pages[i].kind.Load(), page}
	if state := txn.GetByte(at.state) & stateMask; kindOf(at.kind) <= pageBody && kindOf(at.kind) != 0 {
		at.first -= numberOf(at.kind) // 0 in a span's first page
		return at, state == byte(at.kind>>8)+1 && classOf(at.kind) < classCount && at.first <= page
	} else {
		return at, kindOf(at.kind) == pageRun && state == stateRun && (off-p.base)%pageSize == 0
	}
}

//go:noinline
func (p *Heap) findSlow(page uint64) *segment {
	if !p.known(page) {
		return nil
	}
	s, err := p.seg(page)
	if err != nil {
		return nil
	}
	return s
}

func (at place) live() bool { return txn.GetByte(at.state)&stateLive != 0 }
