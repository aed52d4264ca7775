package containers

import (
	"errors"
	"fmt"
	"math/bits"
	"sync/atomic"

	"github.com/shmkit/shmkit/shm"
)

// deque is a list's memory: chunks of slots and the directory that finds them. It knows sizes but no T, so
// that it can also bring a list of any T to its committed state, or free it.
//
// Slots have virtual indices that only grow: slot v is in chunk v>>shift, and chunk c is found in the
// directory at c modulo its capacity, a power of two. The slots in use are [first, last).
//
//	words  0 sequence: changes so far<<2 | mode
//	       1 first   2 last
//	       3 directory: offset of its block, 64-aligned, | log2 of its capacity
//	       4 shape: bytes of a slot | log2 of the slots in a chunk <<32 | slotForm <<40; never changes
//	       5 limbo: slots from last up to here hold blocks that are to be freed; 0: none
//	       6 offset of the scratch, room for one slot; 0: slots of one word need none
//	       7 virtual index of the slot being replaced
//
//	mode 0 stable     what first, last and the directory say is the committed state
//	mode 2 replacing  so it is, but of slot words[7], whose committed state is in the scratch
//
// A word of the directory is 0 or the offset of a chunk that nothing else refers to. Those of the slots in
// use are chunks; behind them stands at most one more, the spare, unless a process died: then there may be
// others, which are used when the list gets there, or freed with it.
//
// What makes a visible slot invisible, or frees a block, happens between two changes of the sequence word:
// a reader that copied before the first finds it changed, and none that comes after the second can see what
// was. Between the two, either state is whole. (Pop followed by append without this tore one optimistic
// read in ten of a 32-byte element.) An append needs no change: nobody looks behind last.
//
// Each operation is a row of stores, and a kill between two of them leaves the list as it was or as it was
// to be:
//
//	append, room in the chunk | slot, last                    | before, until last
//	append, new chunk         | chunk, its directory word     | before; between the two the chunk leaks, then it is the spare
//	append of a long string   | block, slot, last             | before; until last the block leaks
//	append of many strings    | slots cleared, limbo          | before
//	                          | block, slot, again and again  | before: repair frees up to limbo; between two the block leaks
//	                          | last, limbo                   | after
//	directory doubled         | block, words, directory word  | the same list; until then the new block leaks,
//	                          | old block freed               | from then on the old one
//	pop, at either end        | last (or first)               | before or after
//	                          | block freed, spare freed      | after; the one being freed leaks
//	set, one word             | slot                          | before or after
//	set, larger               | scratch, words[7]             | before
//	                          | mode 2, slot                  | before: repair copies the scratch back
//	                          | mode 0                        | after
//	set, long string          | block, then as larger         | before; the block leaks
//	                          | old block freed               | after; the old block leaks
//	clear                     | limbo                         | before
//	                          | last = first                  | after
//	                          | blocks freed, limbo           | after: repair goes on; the one being freed leaks
//	                          | chunks freed                  | after; the one being freed leaks
type deque struct {
	s *space
	o *object
	shape
}

// shape is word 4: bytes of a slot | log2 of the slots in a chunk << 32 | slotForm << 40.
type shape uint64

// shapeOf returns the shape of slots of stride bytes, a constant where stride is one.
func shapeOf(stride uint64, form slotForm) shape {
	return shape(stride | uint64(bits.Len64(max(minSlots, chunkBytes/stride))-1)<<32 | uint64(form)<<40)
}

func (s shape) stride() uint64 { return uint64(s) & (1<<32 - 1) }
func (s shape) shift() uint64  { return uint64(s) >> 32 & 63 }
func (s shape) mask() uint64   { return 1<<s.shift() - 1 }
func (s shape) form() slotForm { return slotForm(s >> 40) }

// Words of a list.
const (
	listSeq     = iota
	listFirst   // guarded by the lock; only grows
	listLast    // guarded by the lock; first <= last
	listDir     // guarded by the lock
	listShape   // immutable
	listLimbo   // guarded by the lock; 0 whenever it is free
	listScratch // immutable
	listIndex   // guarded by the lock; of use in mode 2

	listStable    = 0
	listReplacing = 2
	listMode      = 3 // mask
	listChange    = 4 // one more change, in the sequence word
)

const (
	chunkBytes   = 4096 // or as much as minSlots take
	minSlots     = 8
	firstDirLog2 = 3 // 8 chunks: one block of 64 bytes

	dirLog2Mask = 63
	maxDirLog2  = 40
)

// slotForm says what a slot holds.
type slotForm uint8

const (
	formPlain  slotForm = iota // the T itself
	formString                 // see listtext.go
	formBytes                  // the same
)

// dequeOf returns the deque of a list of any T.
func dequeOf(s *space, o *object) (deque, error) {
	d := deque{s, o, shape(o.words[listShape].Load())}
	stride, form := d.stride(), d.form()
	if stride == 0 || stride%8 != 0 || form > formBytes || form != formPlain && stride != textSlot || d.shape != shapeOf(stride, form) {
		return d, fmt.Errorf("shape %#x: %w", uint64(d.shape), shm.ErrCorrupt)
	}
	return d, nil
}

// make gives a new list, all of whose words are 0, what it needs.
func (d deque) make() error {
	d.o.words[listShape].Store(uint64(d.shape))
	off, err := d.newDirectory(firstDirLog2)
	if err != nil {
		return err
	}
	d.o.words[listDir].Store(off | firstDirLog2)
	if d.stride() > 8 {
		return d.s.allocWord(&d.o.words[listScratch], d.stride())
	}
	return nil
}

// newDirectory returns the offset of a block of zeros for a directory.
func (d deque) newDirectory(log2 uint) (uint64, error) {
	off, err := d.s.heap.Alloc(8 << log2)
	if err == nil && off&dirLog2Mask != 0 {
		err = fmt.Errorf("directory at offset %d: %w", off, errors.Join(shm.ErrCorrupt, d.s.heap.Free(off)))
	}
	return uint64(off), err
}

// seq is the sequence word.
func (d deque) seq() *atomic.Uint64 { return &d.o.words[listSeq] }

// change marks the sequence word changed, ahead of whatever is stored next.
func (d deque) change() { publish(d.seq(), d.seq().Load()+listChange) }

// chunk returns the word of chunk c in the directory. Its offset is aligned whatever the word for the
// directory holds.
func (d deque) chunk(c uint64) (*atomic.Uint64, error) {
	dir := d.o.words[listDir].Load()
	b, err := d.s.region.Bytes(shm.Offset(dir&^dirLog2Mask+8*(c&(1<<(dir&dirLog2Mask)-1))), 8)
	if err != nil {
		return nil, err
	}
	return as[atomic.Uint64](addr(&b[0])), nil
}

// capacity returns how many chunks the directory has room for.
func (d deque) capacity() (uint64, error) {
	dir := d.o.words[listDir].Load()
	if dir&dirLog2Mask > maxDirLog2 {
		return 0, fmt.Errorf("directory word %#x: %w", dir, shm.ErrCorrupt)
	}
	return 1 << (dir & dirLog2Mask), nil
}

// slot returns the address of slot v, which is in use or about to be: its chunk is there.
func (d deque) slot(v uint64) (addr, error) { return d.slots(v, 1) }

// slots returns the address of the n slots from v on, all in one chunk.
func (d deque) slots(v, n uint64) (addr, error) {
	w, err := d.chunk(v >> d.shift())
	if err != nil {
		return nil, err
	}
	return addrAt(d.s.region, w.Load()+v&d.mask()*d.stride(), n*d.stride())
}

// next returns the first chunk behind those that hold the slots in use: where the spare stands.
func (d deque) next() uint64 {
	return (d.o.words[listLast].Load() + 1<<d.shift() - 1) >> d.shift()
}

// room makes sure that there is a chunk for slot v, the next one to be used or, the ones between being
// there, a later one.
//
//go:noinline
func (d deque) room(v uint64) error {
	capacity, err := d.capacity()
	if err != nil {
		return err
	}
	c := v >> d.shift()
	if c-d.o.words[listFirst].Load()>>d.shift() >= capacity {
		if err := d.double(); err != nil {
			return err
		}
	}
	w, err := d.chunk(c)
	if err != nil || w.Load() != 0 {
		return err
	}
	return d.s.allocWord(w, d.stride()<<d.shift())
}

// double replaces the directory by one of twice the capacity.
func (d deque) double() error {
	old := d.o.words[listDir].Load()
	log2 := uint(old & dirLog2Mask)
	off, err := d.newDirectory(log2 + 1)
	if err != nil {
		return err
	}
	words, err := addrOf(d.s.region, shm.Offset(off), 16<<log2)
	if err != nil {
		return err
	}
	c := d.o.words[listFirst].Load() >> d.shift()
	for range 1 << log2 {
		w, err := d.chunk(c)
		if err != nil {
			return err
		}
		word(words, int(c&(2<<log2-1))).Store(w.Load())
		c++
	}
	// crash here: the new block leaks
	d.change()
	d.o.words[listDir].Store(off | uint64(log2+1))
	d.change()
	// crash here: the old block leaks
	return d.s.heap.Free(shm.Offset(old &^ dirLog2Mask))
}

// dropLast takes the last slot off, and frees what it held.
func (d deque) dropLast() error {
	last := d.o.words[listLast].Load() - 1
	block, err := d.blockIn(last)
	if err != nil {
		return err
	}
	d.change()
	d.o.words[listLast].Store(last) // commits
	d.change()
	err = d.free(block)
	if last&d.mask() == 0 { // its chunk is the spare now; the one behind was
		err = errors.Join(err, d.trim(last>>d.shift()+1, 1))
	}
	return err
}

// dropFirst takes the first slot off, and frees what it held.
func (d deque) dropFirst() error {
	first := d.o.words[listFirst].Load()
	block, err := d.blockIn(first)
	if err != nil {
		return err
	}
	d.change()
	d.o.words[listFirst].Store(first + 1) // commits
	d.change()
	err = d.free(block)
	if (first+1)&d.mask() == 0 {
		err = errors.Join(err, d.retire(first>>d.shift()))
	}
	return err
}

// retire makes chunk c, which lay before all slots in use, the spare if there is none, else frees it. So a
// list that grows at one end and shrinks at the other goes on with the same chunks.
func (d deque) retire(c uint64) error {
	w, err := d.chunk(c)
	if err != nil {
		return err
	}
	capacity, err := d.capacity()
	if err != nil {
		return err
	}
	off := w.Swap(0)
	// crash here: the chunk leaks
	if next := d.next(); next-(c+1) < capacity {
		if spare, err := d.chunk(next); err != nil {
			return err
		} else if spare.Load() == 0 {
			spare.Store(off)
			return nil
		}
	}
	return d.free(off)
}

// trim frees the chunks c, c+1, … that there are, up to n of them, all behind the slots in use.
func (d deque) trim(c, n uint64) error {
	capacity, err := d.capacity()
	if err != nil {
		return err
	}
	for end := d.o.words[listFirst].Load()>>d.shift() + capacity; n > 0 && c < end; n-- {
		w, err := d.chunk(c)
		if err == nil {
			err = d.s.freeWord(w)
		}
		if err != nil {
			return err
		}
		c++
	}
	return nil
}

// clear takes all slots off, and frees what they held.
func (d deque) clear() error {
	last := d.o.words[listLast].Load()
	if d.form() != formPlain {
		d.o.words[listLimbo].Store(last)
	}
	d.change()
	d.o.words[listLast].Store(d.o.words[listFirst].Load()) // commits
	d.change()
	return errors.Join(d.drain(), d.trim(d.next()+1, 1<<maxDirLog2))
}

// drain frees the blocks in limbo.
func (d deque) drain() error {
	limbo := &d.o.words[listLimbo]
	first, last, v := d.o.words[listFirst].Load(), d.o.words[listLast].Load(), limbo.Load()
	if v > last {
		capacity, err := d.capacity()
		if err != nil || (v-1)>>d.shift()-first>>d.shift() >= capacity {
			return errors.Join(err, fmt.Errorf("slots in limbo up to %d of [%d, %d): %w", v, first, last, shm.ErrCorrupt))
		}
	}
	for v > last {
		v--
		block, err := d.blockIn(v)
		if err != nil {
			return err
		}
		limbo.Store(v)
		// crash here: the block leaks
		if err := d.free(block); err != nil {
			return err
		}
	}
	limbo.Store(0)
	return nil
}

// free frees a block, if there is one.
func (d deque) free(off uint64) error {
	if off == 0 {
		return nil
	}
	return d.s.heap.Free(shm.Offset(off))
}

// scratch returns the address of the scratch.
func (d deque) scratch() (addr, error) {
	return addrOf(d.s.region, shm.Offset(d.o.words[listScratch].Load()), d.stride())
}

// replace replaces slot v, at p, of more than one word, by calling write on it.
func (d deque) replace(v uint64, p addr, write func(p addr)) error {
	scratch, err := d.scratch()
	if err != nil {
		return err
	}
	copyBlock(scratch, p, d.stride())
	d.o.words[listIndex].Store(v)
	s := d.seq().Load()
	publish(d.seq(), s+listChange|listReplacing) // readers of this slot turn to the scratch
	write(p)
	publish(d.seq(), s+2*listChange) // commits
	return nil
}

// repair brings the list to its committed state.
func (d deque) repair() error {
	s := d.seq().Load()
	switch s & listMode {
	case listStable:
	case listReplacing:
		v := d.o.words[listIndex].Load()
		if first, last := d.o.words[listFirst].Load(), d.o.words[listLast].Load(); v < first || v >= last {
			return fmt.Errorf("slot %d of [%d, %d) being replaced: %w", v, first, last, shm.ErrCorrupt)
		}
		scratch, err := d.scratch()
		if err != nil {
			return err
		}
		p, err := d.slot(v)
		if err != nil {
			return err
		}
		copyBlock(p, scratch, d.stride()) // crash here: done again
		publish(d.seq(), s&^listMode+listChange)
	default:
		return fmt.Errorf("sequence %#x: %w", s, shm.ErrCorrupt)
	}
	if d.o.words[listLimbo].Load() == 0 {
		return nil
	}
	return errors.Join(d.drain(), d.trim(d.next()+1, 1<<maxDirLog2))
}

// repairList brings a list to its committed state, whatever its T.
func repairList(s *space, o *object) error {
	if o.words[listSeq].Load()&listMode == listStable && o.words[listLimbo].Load() == 0 {
		return nil
	}
	d, err := dequeOf(s, o)
	if err != nil {
		return err
	}
	return d.repair()
}

// dropList frees what a list has. A list half made has a part of it.
func dropList(s *space, o *object) error {
	if o.words[listDir].Load() == 0 {
		return s.freeWord(&o.words[listScratch])
	}
	d, err := dequeOf(s, o)
	if err != nil {
		return err
	}
	if o.words[listLimbo].Load() != 0 { // a drop was cut off
		err = d.drain()
	}
	if err == nil {
		err = d.clear()
	}
	if err != nil {
		return err
	}
	capacity, err := d.capacity()
	if err != nil {
		return err
	}
	for c := range capacity {
		w, err := d.chunk(c)
		if err == nil {
			err = s.freeWord(w)
		}
		if err != nil {
			return err
		}
	}
	dir := o.words[listDir].Swap(0)
	// crash here: the directory leaks
	return errors.Join(d.free(dir&^dirLog2Mask), s.freeWord(&o.words[listScratch]))
}

// check names the first broken invariant. The lock is held, nothing is at work.
func (d deque) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf(format+": %w", append(args, shm.ErrCorrupt)...)
	}
	if s, limbo := d.seq().Load(), d.o.words[listLimbo].Load(); s&listMode != listStable || limbo != 0 {
		return bad("sequence %#x, limbo %d while nothing is at work", s, limbo)
	}
	first, last, err := d.ends()
	if err != nil {
		return err
	}
	capacity, err := d.capacity()
	if err != nil {
		return err
	}
	from := first >> d.shift()
	if n := d.next() - from; n > capacity {
		return bad("%d chunks in a directory for %d", n, capacity)
	}
	chunks := map[uint64]uint64{}
	for c := from; c < from+capacity; c++ {
		w, err := d.chunk(c)
		if err != nil {
			return fmt.Errorf("chunk %d: %w", c, err)
		}
		off := w.Load()
		if off == 0 && c < d.next() {
			return bad("chunk %d is missing, slots [%d, %d)", c, first, last)
		}
		if off == 0 {
			continue
		}
		if other, twice := chunks[off]; twice {
			return bad("chunks %d and %d are both at offset %d", other, c, off)
		}
		chunks[off] = c
		if _, err := addrAt(d.s.region, off, d.stride()<<d.shift()); err != nil {
			return fmt.Errorf("chunk %d: %w", c, err)
		}
	}
	if d.form() == formPlain {
		return nil
	}
	blocks := map[uint64]uint64{}
	for v := first; v < last; v++ {
		p, err := d.slot(v)
		if err != nil {
			return err
		}
		if _, err := d.text(p, func() bool { return true }); err != nil {
			return fmt.Errorf("slot %d: %w", v, err)
		}
		block := blockOf(loadText(p))
		if other, twice := blocks[block]; twice && block != 0 {
			return bad("slots %d and %d both have the block at %d", other, v, block)
		}
		blocks[block] = v
	}
	return nil
}
