package containers

import (
	"errors"
	"fmt"
	"math/bits"
	"sync/atomic"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// deque is a list's memory: chunks of slots and the directory that finds them. It knows sizes but no T, so
// that it can also bring a list of any T to its committed state, or free it.
//
// Slots have virtual indices, the first one of a new list in the middle of all there are: slot v is in chunk v>>shift, and chunk c is
// found in the directory at c modulo its capacity, a power of two. The slots in use are [first, last).
//
//	words  0 sequence: changes so far<<2 | mode
//	       1 first   2 last
//	       3 directory: offset of its block, 64-aligned, | log2 of its capacity
//	       4 shape: bytes of a slot | log2 of the slots in a chunk <<32 | slotForm <<40; never changes
//	       5 limbo: slots from last up to here hold blocks that are to be freed; 0: none
//	       6 offset of the scratch, room for one slot; 0: slots of one word need none
//	       7 in mode 2 the virtual index of the slot being replaced, in mode 3 the offset of the plan
//
//	mode 0 stable     what first, last and the directory say is the committed state
//	mode 1 moving     so it is, but first or last is about to change, or just has
//	mode 2 replacing  so it is, but of slot words[7], whose committed state is in the scratch
//	mode 3 settling   the committed state is what the plan says, which is being carried out: see listPlan
//
// A word of the directory is 0 or the offset of a chunk that nothing else refers to. Those of the slots in
// use are chunks; behind them stands at most one more, the spare, unless a process died: then there may be
// others, which are used when the list gets there, or freed with it.
//
// What makes a visible slot invisible, or frees a block, changes the sequence word afterwards, and before the slot is
// used again or the block is free: a reader that saw what was finds the word changed, if there was anything
// torn for it to see. (Pop followed by append without this tore one optimistic read in ten of a 32-byte
// element.) Mode 1 says that it is still to be changed if the process dies in between. An append needs no
// change: nobody looks behind last.
//
// Each call is a row of stores, and of operations of the storage (package txn), in brackets, which a kill leaves as before or as
// after; it leaves the list as it was or as it was to be, and no block is lost:
//
//	append, room in the chunk | slot, last                       | before, until last
//	append, new chunk         | [chunk, its directory word]      | before; behind it the chunk is the spare
//	append of a long string   | [block, slot, last]              | before or after
//	append of many strings    | [blocks, slots, limbo] …         | before: repair frees up to limbo
//	                          | [blocks, slots, last, limbo]     | after
//	directory doubled         | [block, words, directory word,   | the same list
//	                          | sequence, old block]             |
//	pop, at either end        | mode 1, last (or first), mode 0  | before or after, which last says
//	pop of a long string      | [last (or first), sequence,      | before or after
//	                          | block]                           |
//	chunk no longer used      | [its directory word, block]      | the same list
//	set, one word             | slot                             | before or after
//	set, larger               | scratch, words[7]                | before
//	                          | mode 2, slot                     | before: repair copies the scratch back
//	                          | mode 0                           | after
//	set, long string          | as larger, within [block,        | before; as larger
//	                          | mode 0, old block]               | after
//	clear                     | limbo                            | before
//	                          | mode 1, last = first, mode 0     | before or after, which last says
//	                          | [limbo, blocks] …, [chunks] …    | after: repair goes on with the blocks
//	truncate                  | as clear, but last = first + n   | as clear
//	insert at the beginning   | [blocks, slots, first]           | before or after
//	insert, take one out,     | [plan, blocks, mode 3]           | before or after
//	reverse, sort, many in a  | steps, [first, last, mode 0]     | after: repair goes on with them
//	transaction               |                                  |
//
// In an operation each word that readers look at is stored once, with what it is to be: a recovery that stores it again shows them
// nothing that has passed.
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
	listFirst   // guarded by the lock
	listLast    // guarded by the lock; first <= last
	listDir     // guarded by the lock
	listShape   // immutable
	listLimbo   // guarded by the lock; 0 whenever it is free
	listScratch // immutable
	listIndex   // guarded by the lock; of use in mode 2

	listPlanAt = listIndex // guarded by the lock; of use in mode 3

	listStable    = 0
	listMoving    = 1
	listReplacing = 2
	listSettling  = 3
	listMode      = 3 // mask
	listChange    = 4 // one more change, in the sequence word
)

const (
	chunkBytes   = 4096 // or as much as minSlots take
	minSlots     = 8
	firstDirLog2 = 3 // 8 chunks: one block of 64 bytes

	firstSlot = 1 << 62 // of a new list: there is room on both sides for longer than any program runs

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
func (d deque) make(l *txn.Lane) error {
	d.o.words[listShape].Store(uint64(d.shape))
	d.o.words[listFirst].Store(firstSlot)
	d.o.words[listLast].Store(firstSlot)
	off, err := d.newDirectory(l, firstDirLog2)
	if err != nil {
		return err
	}
	d.o.words[listDir].Store(off | firstDirLog2)
	if d.stride() > 8 {
		return d.s.allocIn(l, &d.o.words[listScratch], d.stride())
	}
	return nil
}

// newDirectory returns the offset of a block of zeros for a directory.
func (d deque) newDirectory(l *txn.Lane, log2 uint) (uint64, error) {
	off, err := d.s.heap.AllocIn(l, 8<<log2, 64)
	if err == nil && off&dirLog2Mask != 0 {
		err = fmt.Errorf("directory at offset %d: %w", off, shm.ErrCorrupt)
	}
	return uint64(off), err
}

// seq is the sequence word.
func (d deque) seq() *atomic.Uint64 { return &d.o.words[listSeq] }

// move stores v in w, which is first or last: slots become invisible.
func (d deque) move(w *atomic.Uint64, v uint64) {
	s := d.seq().Load()
	publish(d.seq(), s+listChange|listMoving)
	publish(w, v) // commits
	publish(d.seq(), s+2*listChange)
}

// moveIn is move in the operation in l, which frees what the slots held.
func (d deque) moveIn(l *txn.Lane, w *atomic.Uint64, v uint64) error {
	if err := l.Later(w, v); err != nil {
		return err
	}
	return l.Later(d.seq(), d.seq().Load()+listChange)
}

// chunk returns the word of chunk c in the directory. Its offset is aligned whatever the word for the
// directory holds.
func (d deque) chunk(c uint64) (*atomic.Uint64, error) {
	dir := d.o.words[listDir].Load()
	off := chunkWord(dir, c)
	if p := d.s.region.Pointer(off, 8); p != nil {
		return word(p, 0), nil
	}
	p, err := addrOf(d.s.region, off, 8)
	return word(p, 0), err
}

// chunkWord returns the offset of the word of chunk c in the directory dir.
func chunkWord(dir, c uint64) shm.Offset {
	return shm.Offset(dir&^dirLog2Mask + 8*(c&(1<<(dir&dirLog2Mask)-1)))
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

// reserve makes sure that there is a chunk for each of slots [from, upto), which are those in use and more at one end. What it has taken when
// it fails stays behind the slots in use.
func (d deque) reserve(from, upto uint64) error {
	for {
		capacity, err := d.capacity()
		if err != nil {
			return err
		}
		if (upto-1)>>d.shift()-from>>d.shift() < capacity {
			break
		}
		if err := d.double(); err != nil {
			return err
		}
	}
	first, last := d.o.words[listFirst].Load(), d.o.words[listLast].Load()
	for c := from >> d.shift(); c <= (upto-1)>>d.shift(); c++ {
		if first < last && first>>d.shift() <= c && c <= (last-1)>>d.shift() {
			c = (last - 1) >> d.shift() // these are there
			continue
		}
		w, err := d.chunk(c)
		if err == nil && w.Load() == 0 {
			err = d.s.allocWord(w, d.stride()<<d.shift())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// double replaces the directory by one of twice the capacity.
func (d deque) double() error {
	old := d.o.words[listDir].Load()
	log2 := uint(old & dirLog2Mask)
	return d.s.change(func(l *txn.Lane) error {
		off, err := d.newDirectory(l, log2+1)
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
		if err := d.moveIn(l, &d.o.words[listDir], off|uint64(log2+1)); err != nil {
			return err
		}
		return d.s.heap.FreeIn(l, shm.Offset(old&^dirLog2Mask))
	})
}

// drop stores v in w, which is first or last, and frees the block of the slot that becomes invisible, if it had one.
func (d deque) drop(w *atomic.Uint64, v, block uint64) error {
	if block == 0 {
		d.move(w, v)
		return nil
	}
	return d.s.change(func(l *txn.Lane) error {
		if err := d.moveIn(l, w, v); err != nil {
			return err
		}
		return d.s.heap.FreeIn(l, shm.Offset(block))
	})
}

// left frees what is of no use any more where the list has shrunk, whose slots were [first, last): the chunks before those in use, but
// for a spare, and those behind it.
func (d deque) left(first, last uint64) error {
	from, next := d.o.words[listFirst].Load()>>d.shift(), d.next()
	for c := first >> d.shift(); c < from && c<<d.shift() < last; c++ {
		if err := d.retire(c); err != nil {
			return err
		}
	}
	if end := (last + 1<<d.shift() - 1) >> d.shift(); end >= next {
		return d.trim(next+1, end-next)
	}
	return nil
}

// dropLast takes the last slot off, and frees what it held.
func (d deque) dropLast() error {
	last := d.o.words[listLast].Load() - 1
	block, err := d.blockIn(last)
	if err != nil {
		return err
	}
	if err := d.drop(&d.o.words[listLast], last, block); err != nil {
		return err
	}
	if last&d.mask() == 0 { // its chunk is the spare now; the one behind was
		return d.trim(last>>d.shift()+1, 1)
	}
	return nil
}

// dropFirst takes the first slot off, and frees what it held.
func (d deque) dropFirst() error {
	first := d.o.words[listFirst].Load()
	block, err := d.blockIn(first)
	if err != nil {
		return err
	}
	if err := d.drop(&d.o.words[listFirst], first+1, block); err != nil {
		return err
	}
	if (first+1)&d.mask() == 0 {
		return d.retire(first >> d.shift())
	}
	return nil
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
	spare := (*atomic.Uint64)(nil)
	if next := d.next(); next-(c+1) < capacity {
		if spare, err = d.chunk(next); err != nil || spare == w {
			return err
		}
	}
	return d.s.change(func(l *txn.Lane) error {
		if err := l.Later(w, 0); err != nil {
			return err
		}
		if spare != nil && spare.Load() == 0 {
			return l.Later(spare, w.Load())
		}
		return d.s.heap.FreeIn(l, shm.Offset(w.Load()))
	})
}

// trim frees the chunks c, c+1, … that there are, up to n of them, all behind the slots in use.
func (d deque) trim(c, n uint64) error {
	capacity, err := d.capacity()
	if err != nil {
		return err
	}
	end := d.o.words[listFirst].Load()>>d.shift() + capacity
	end = min(end, c+min(n, end))
	for {
		for ; c < end; c++ { // most often there is none, and no need of an operation
			if w, err := d.chunk(c); err != nil {
				return err
			} else if w.Load() != 0 {
				break
			}
		}
		if c >= end {
			return nil
		}
		if err := d.s.change(func(l *txn.Lane) (err error) {
			c, err = d.freeChunks(l, c, end)
			return err
		}); err != nil {
			return err
		}
	}
}

// freeChunks frees the chunks from c up to before end that there are, as far as there is room in the operation in l. It returns
// with which one to go on.
func (d deque) freeChunks(l *txn.Lane, c, end uint64) (uint64, error) {
	for ; c < end && l.Left() >= 2+dropSpare; c++ {
		w, err := d.chunk(c)
		if err != nil {
			return c, err
		}
		if w.Load() == 0 {
			continue
		}
		if err := l.Later(w, 0); err != nil {
			return c, err
		}
		if err := d.s.freeIn(l, w); err != nil {
			return c, err
		}
	}
	return c, nil
}

// clear takes all slots off, and frees what they held.
func (d deque) clear() error { return d.truncate(d.o.words[listFirst].Load()) }

// truncate takes the slots from end on off, and frees what they held.
func (d deque) truncate(end uint64) error {
	last := d.o.words[listLast].Load()
	if d.form() != formPlain {
		d.o.words[listLimbo].Store(last)
	}
	d.move(&d.o.words[listLast], end)
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
		if err := d.s.change(func(l *txn.Lane) (err error) {
			if v, err = d.freeBlocks(l, last, v); err != nil {
				return err
			}
			return l.Set(limbo, v)
		}); err != nil {
			return err
		}
	}
	limbo.Store(0)
	return nil
}

// freeBlocks frees the blocks of the slots before v down to the first one, as far as there is room in the operation in l. It
// returns where it has stopped.
func (d deque) freeBlocks(l *txn.Lane, first, v uint64) (uint64, error) {
	for v > first && l.Left() > dropSpare {
		block, err := d.blockIn(v - 1)
		if err != nil {
			return v, err
		}
		if block != 0 {
			if err := d.s.heap.FreeIn(l, shm.Offset(block)); err != nil {
				return v, err
			}
		}
		v--
	}
	return v, nil
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
	next := d.seq().Load() + 2*listChange
	d.replacing(v, p, scratch, next, write)
	publish(d.seq(), next) // commits
	return nil
}

// replacing is replace but for the store that commits, of next in the sequence word.
func (d deque) replacing(v uint64, p, scratch addr, next uint64, write func(p addr)) {
	copyBlock(scratch, p, d.stride())
	d.o.words[listIndex].Store(v)
	publish(d.seq(), next-listChange|listReplacing) // readers of this slot turn to the scratch
	write(p)
}

// repair brings the list to its committed state.
func (d deque) repair() error {
	s := d.seq().Load()
	switch s & listMode {
	case listStable:
	case listMoving:
		publish(d.seq(), s&^listMode+listChange)
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
	case listSettling:
		if err := d.settle(); err != nil {
			return err
		}
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

// dropList frees what a list has, strings first: see kind.drop. What is left of them is up to last, and of the chunks those with an offset in
// the directory; at is where to look for them.
func dropList(l *txn.Lane, s *space, o *object, at *uint64) (all bool, err error) {
	d, err := dequeOf(s, o)
	if err != nil {
		return false, err
	}
	first, last, err := d.ends()
	if err == nil {
		err = d.holds(last - first)
	}
	if err != nil {
		return false, err
	}
	if d.form() != formPlain {
		v, err := d.freeBlocks(l, first, last)
		if err == nil && v > first {
			err = l.Later(&o.words[listLast], v)
		}
		if err != nil || v > first {
			return false, err
		}
		if last > first {
			if err := l.Later(&o.words[listLast], first); err != nil {
				return false, err
			}
		}
	}
	capacity, err := d.capacity()
	if err != nil {
		return false, err
	}
	c := first>>d.shift() + *at
	end := first>>d.shift() + capacity
	if c, err = d.freeChunks(l, c, end); err != nil {
		return false, err
	}
	*at = c - first>>d.shift()
	if c < end {
		return false, nil
	}
	if err := s.heap.FreeIn(l, shm.Offset(o.words[listDir].Load()&^dirLog2Mask)); err != nil {
		return false, err
	}
	return true, s.freeIn(l, &o.words[listScratch])
}

// blocksOfList finds what dropList frees, of a list in any state that a kill leaves.
func blocksOfList(s *space, o *object, found func(what string, off uint64) error) error {
	d, err := dequeOf(s, o)
	if err != nil {
		return err
	}
	seq := d.seq().Load()
	first, last, err := d.endsAt(seq)
	if err != nil {
		return err
	}
	capacity, err := d.capacity()
	if err != nil {
		return err
	}
	if seq&listMode == listSettling {
		if err := found("plan", o.words[listPlanAt].Load()); err != nil {
			return err
		}
	}
	if err := errors.Join(found("directory", o.words[listDir].Load()&^dirLog2Mask), found("scratch", o.words[listScratch].Load())); err != nil {
		return err
	}
	for c := range capacity {
		w, err := d.chunk(c)
		if err == nil {
			err = found("chunk", w.Load())
		}
		if err != nil {
			return err
		}
	}
	end := max(last, o.words[listLimbo].Load())
	if d.form() == formPlain || end-first > capacity<<d.shift() {
		return nil
	}
	for v := first; v < end; v++ {
		p, err := d.committed(v, seq)
		if err == nil {
			err = found("string", blockOf(loadText(p)))
		}
		if err != nil {
			return err
		}
	}
	return nil
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
