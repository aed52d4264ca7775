package txn

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
)

// The outer log: what an operation says while it runs.

// offset returns the offset of a word of the region.
func (l *Lane) offset(p *atomic.Uint64) uint64 {
	off, ok := l.r.OffsetOf(unsafe.Pointer(p))
	if !ok {
		panic("txn: a word outside the region")
	}
	return uint64(off)
}

// step stores the control word. What l knows of it follows: a panic in between finds both as they were.
func (l *Lane) step(next uint64) {
	Put(&l.line.word, next)
	l.word = next
}

// note appends an entry.
func (l *Lane) note(at, val uint64) error {
	n := entriesOf(l.word)
	e, err := &l.mem.outer[min(n, outerEntries-1)], error(nil)
	if n >= outerEntries {
		if e, err = l.far(n); err != nil {
			return err
		}
	}
	Put(&e.at, at)
	Put(&e.val, val)
	// crash here: the entry does not count
	word := noted(l.word)
	Put(&l.line.word, word)
	l.word = word
	return nil
}

// far returns entry n, which is in an extension, and takes that if it is the first to need it.
//
//go:noinline
func (l *Lane) far(n int) (*entry, error) {
	if err := l.Room(1); err != nil {
		return nil, err
	}
	return l.entry(n), nil
}

// Room makes sure that the log takes n entries more. It takes the page lock of the heap, and memory for extensions, unless the lane
// has them; so not within an inner operation.
func (l *Lane) Room(n int) error {
	for entriesOf(l.word)+n > l.room {
		k := len(l.more)
		if k == extensions {
			return tooMany(entriesOf(l.word))
		}
		if l.line.more[k].Load() == 0 {
			if err := l.blocks.More(l, k); err != nil {
				return err
			}
		}
		if err := l.extend(k); err != nil {
			return err
		}
	}
	return nil
}

// few is up to how many entries frees looks through each time.
const few = 64

// frees reports whether the operation has that entry, of kind free.
func (l *Lane) frees(at uint64) bool {
	n := entriesOf(l.word)
	if l.free < 0 {
		return false
	}
	if l.freed == nil && n-l.free > few {
		l.freed, l.looked = map[uint64]struct{}{}, l.free
	}
	if l.freed != nil {
		for ; l.looked < n; l.looked++ {
			l.freed[l.entry(l.looked).at.Load()] = struct{}{}
		}
		_, ok := l.freed[at]
		return ok
	}
	for i := l.free; i < n; i++ {
		if l.entry(i).at.Load() == at {
			return true
		}
	}
	return false
}

//go:noinline
func tooMany(n int) error { return fmt.Errorf("%d entries: %w", n, ErrLogFull) }

// Left returns how many entries more the log takes without an extension: what can be done in several operations stays within that.
func (l *Lane) Left() int { return outerEntries - entriesOf(l.word) }

// Set stores v at p, and the old value again if the operation does not end with Commit. A lock guards p that the caller holds
// until then. Readers without the lock do not look at p: they would see what may be undone, and what recovery, which may run twice, restores
// on its way.
func (l *Lane) Set(p *atomic.Uint64, v uint64) error {
	if err := l.note(l.offset(p)|kindWord, p.Load()); err != nil {
		return err
	}
	Put(p, v)
	return nil
}

// Until stores v at p, and back if the operation does not end with Commit: what p was may not come again, if it counts changes for
// readers without the lock. A lock guards p that the caller holds until then.
func (l *Lane) Until(p *atomic.Uint64, v, back uint64) error {
	if err := l.note(l.offset(p)|kindWord, back); err != nil {
		return err
	}
	Put(p, v)
	return nil
}

// Later stores v at p when the operation is committed, before Commit returns; so nobody sees it who could see it undone.
// A lock guards p that the caller holds until then. Words are stored in the order of the calls, of two values for one the second counts; who recovers
// begins with the first again, so what readers look at without the lock gets one.
func (l *Lane) Later(p *atomic.Uint64, v uint64) error {
	n := entriesOf(l.word)
	if err := l.note(l.offset(p)|kindLater, v); err != nil {
		return err
	}
	if l.later < 0 {
		l.later = n
	}
	return nil
}

// Took notes that the operation is about to take a block, which goes back if it does not end with Commit.
func (l *Lane) Took(off shm.Offset, val uint64) error {
	n := entriesOf(l.word)
	if err := l.note(uint64(off)|kindTook, val); err != nil {
		return err
	}
	if l.took < 0 {
		l.took = n
	}
	return nil
}

// Take is Took inside an inner operation: the entry counts when that is committed. [Lane.Room] has made room for it.
func (l *Lane) Take(off shm.Offset, val uint64) error {
	n := entriesOf(l.word)
	if n >= l.room {
		return tooMany(n)
	}
	e := l.entry(n)
	Put(&e.at, uint64(off)|kindTook)
	Put(&e.val, val)
	return l.Inner(&l.line.word, noted(l.word))
}

// Taking tells l that the inner operation with Take was committed.
func (l *Lane) Taking() {
	if l.took < 0 {
		l.took = entriesOf(l.word)
	}
	l.word = noted(l.word)
}

// Free gives the block at off back when the operation is committed and its locks are released.
func (l *Lane) Free(off shm.Offset, val uint64) error {
	n := entriesOf(l.word)
	if l.frees(uint64(off) | kindFree) {
		return fmt.Errorf("offset %d is freed twice in one operation: %w", off, shm.ErrCorrupt)
	}
	if err := l.note(uint64(off)|kindFree, val); err != nil {
		return err
	}
	if l.free < 0 {
		l.free = n
	}
	return nil
}

// Commit makes the operation happen, by one store. The caller releases its locks then, before Leave, which gives back what was freed.
func (l *Lane) Commit() {
	if phaseOf(l.word) != phaseActive {
		return // nothing was logged
	}
	l.step(committed(l.word, l.later >= 0, l.free))
	if phaseOf(l.word) == phaseRedoing {
		l.redo()
	}
	if phaseOf(l.word) == phaseIdle {
		l.fresh(l.word)
	}
}

// redo stores the later words of the operation.
func (l *Lane) redo() {
	for i := l.later; i < entriesOf(l.word); i++ {
		if kind, e := l.entry(i).load(); kind == kindLater {
			if p, err := shm.At[atomic.Uint64](l.r, e.At); err == nil { // it was inside when it was noted
				Put(p, e.Val)
			}
		}
	}
	// crash here: stored again, under the same locks
	l.step(redone(l.word, l.free))
	l.line.word.Load() // what the caller stores next, into what readers may have left now, comes after it: see redo's words
}

// Rollback undoes the operation, and gives back what it took.
func (l *Lane) Rollback() error { return l.clear() }

// Operations that do nothing but take one block, or free one, and in which nothing panics. They store what the others do, and need not
// remember it.

// One returns the words that such an operation stores to, and what the control word is now: the entry's two, then the control word with
// OneTook or OneFree more, then what the operation does, then [OneDone] more than at first; [Lane.Done] follows.
func (l *Lane) One() (at, val, word *atomic.Uint64, now uint64) {
	return &l.mem.outer[0].at, &l.mem.outer[0].val, &l.line.word, l.word
}

// OneLater returns the words of a second entry, for the word at p, that such an operation has when it is committed, and what the first of
// them is to be: then the control word has OneRedo more than at first, and p is stored before OneDone.
func (l *Lane) OneLater(p *atomic.Uint64) (at, val *atomic.Uint64, later uint64) {
	return &l.mem.outer[1].at, &l.mem.outer[1].val, l.offset(p) | kindLater
}

// What the control word has more than at first, and the kinds of the entry.
const (
	OneTook  = 1<<entryShift | phaseActive
	OneRedo  = 2<<entryShift | phaseRedoing
	OneFree  = 1<<entryShift | phaseFreeing
	OneDone  = 1 << turnShift
	KindTook = kindTook
	KindFree = kindFree
)

// Done ends the use of l after such an operation, with its control word.
func (l *Lane) Done(word uint64) {
	l.word = word
	release(&l.busy)
}

// Freeing begins such an operation that frees one block by [Blocks.Give], and returns what that is to store.
func (l *Lane) Freeing(off shm.Offset) (next uint64) {
	Put(&l.mem.outer[0].at, uint64(off)|kindFree)
	Put(&l.line.word, l.word+(1<<entryShift|phaseFreeing))
	l.word += 1<<entryShift | phaseFreeing
	return ended(l.word)
}

// Idle reports whether l is in no operation.
func (l *Lane) Idle() bool { return phaseOf(l.word) == phaseIdle && l.inner == 0 }

// The inner log.

// Inner stores v at p, and the old value again if the inner operation does not end with CommitInner. A lock guards p that the
// caller holds until then, or p is of the lane.
func (l *Lane) Inner(p *atomic.Uint64, v uint64) error {
	if err := l.noteInner(l.offset(p)|kindWord, p.Load()); err != nil {
		return err
	}
	Put(p, v)
	return nil
}

// InnerBits sets or clears n bits from the first one on, counted from the word at bits. All were the other way.
func (l *Lane) InnerBits(bits *atomic.Uint64, first, n uint64, set bool) error {
	kind := uint64(kindSet) // undoes a clear
	if set {
		kind = kindClear
	}
	if err := l.noteInner(l.offset(bits)|kind, first<<32|n); err != nil {
		return err
	}
	PutBits(bits, first, n, set)
	return nil
}

func (l *Lane) noteInner(at, val uint64) error {
	if l.inner >= innerEntries {
		return tooMany(l.inner)
	}
	e := &l.mem.inner[l.inner]
	Put(&e.at, at)
	Put(&e.val, val)
	Put(&l.line.inner, uint64(l.inner)+1)
	l.inner++
	return nil
}

// InnerRoom returns how many more entries the inner log takes.
func (l *Lane) InnerRoom() int { return innerEntries - l.inner }

// CommitInner makes the inner operation happen, by one store. Its locks are still held.
func (l *Lane) CommitInner() {
	if l.inner != 0 {
		Put(&l.line.inner, 0)
		l.inner = 0
	}
}

// UndoInner undoes the inner operation. Its locks are still held.
func (l *Lane) UndoInner() error {
	n := l.line.inner.Load()
	if n > innerEntries {
		return l.corrupt("inner entries", n)
	}
	if n > 0 {
		for i := int(n) - 1; i >= 0; i-- {
			kind, e := l.mem.inner[i].load()
			if err := l.restore(kind, e); err != nil {
				return err
			}
		}
		// crash here: undone again
		Put(&l.line.inner, 0)
	}
	l.inner = 0
	return nil
}

// PutBits stores bits in ascending order, each word once.
func PutBits(bits *atomic.Uint64, first, n uint64, set bool) {
	for n > 0 {
		i, b := first/64, first%64
		k := min(64-b, n)
		mask := (^uint64(0) >> (64 - k)) << b
		w := (*atomic.Uint64)(unsafe.Add(unsafe.Pointer(bits), 8*i))
		v := w.Load() &^ mask
		if set {
			v |= mask
		}
		Put(w, v)
		first, n = first+k, n-k
	}
}

// Step stores the control word that [Blocks.Give] was told to store.
func (l *Lane) Step(next uint64) { l.step(next) }

// StepInner does so as part of an inner operation, and Stepped tells l that this was committed.
func (l *Lane) StepInner(next uint64) error { return l.Inner(&l.line.word, next) }

func (l *Lane) Stepped(next uint64) { l.word = next }
