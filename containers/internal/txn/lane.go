package txn

import (
	"errors"
	"fmt"
	"runtime"
	stdsync "sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
)

// ErrLogFull is returned by an operation with more than 65,472 entries in its log. It is to be rolled back.
var ErrLogFull = errors.New("txn: log full")

// Blocks is the heap, as lanes need it. Its methods look at memory that a dead process has left, and believe nothing there.
type Blocks interface {
	// Lines makes control lines for a slot, all zero, and stores their offset in the slot's word. Memory does
	// so with the memory of a lane, and its line's word. A kill between any two stores leaves the word 0, and the memory free,
	// or both done.
	Lines(slot int) error
	Memory(slot, lane int) error
	// More does so with extension k of the log of l, in which an operation is under way, but no inner one.
	More(l *Lane, k int) error

	// Taken settles the taking of a block that a kill may have cut off: it reports whether the block was taken, and
	// sees to it that l is as before if not. It takes no lock, and may be called again.
	Taken(l *Lane, e Entry) (bool, error)
	// Given does so for the return of a block: it reports whether the block is back, and finishes that if it has begun.
	Given(l *Lane, e Entry) (bool, error)
	// Give gives a block back, and stores next in l's control word as the last step of that.
	Give(l *Lane, e Entry, next uint64) error
	// Empty gives back all that l, a lane of a dead process, keeps in reserve, by operations in op.
	Empty(op, l *Lane) error
}

// Lanes are the lanes of this process in a region. Any number of goroutines may use them.
type Lanes struct {
	r      *shm.Region
	blocks Blocks
	slot   int

	open  atomic.Int32 // how many of lanes there are
	lanes [MaxLanes]*Lane
	most  int32
	mu    stdsync.Mutex // of opening one more
}

// NewLanes returns the lanes of a slot, which is that of this process. Nothing is asked of the region before the first operation.
func NewLanes(r *shm.Region, slot int, blocks Blocks) *Lanes {
	return &Lanes{r: r, blocks: blocks, slot: slot, most: int32(min(MaxLanes, max(8, 4*runtime.GOMAXPROCS(0))))}
}

// A Lane is where one operation at a time logs what it does. Between [Lanes.Enter] and [Lane.Leave] it belongs to one goroutine.
type Lane struct {
	busy atomic.Uint32 // 1: some goroutine has it
	lost atomic.Bool   // it stays busy: its log is damaged
	_    [120]byte     // goroutines that look for a lane look at busy

	r      *shm.Region
	blocks Blocks
	line   *line
	mem    *memory
	word   uint64 // what the control word is, or was when this process last stored it: the shared one is never believed meanwhile
	inner  int
	later  int // index of the first entry of its kind, or -1
	free   int
	took   int
	slot   int
	number int
	room   int       // entries that the outer log has memory for
	more   [][]entry // extensions of it
	freed  map[uint64]struct{}
	looked int // entries up to here are in freed
	_      [104]byte
}

// Enter returns a lane for an operation. It waits for other goroutines if all are in use, and for memory only if this is the
// first one that needs the lane: then the error may be [shm.ErrNoSpace].
func (s *Lanes) Enter() (*Lane, error) {
	// Goroutines on different stacks begin to look at different lanes, and come back to theirs.
	var here byte
	n := uint64(s.open.Load())
	if n != 0 {
		i := (uint64(uintptr(unsafe.Pointer(&here))>>11) * 0x9e3779b97f4a7c15 >> 32) * n >> 32
		if l := s.lanes[i%MaxLanes]; l.busy.CompareAndSwap(0, 1) {
			return l, nil
		}
	}
	return s.enterSlow()
}

//go:noinline
func (s *Lanes) enterSlow() (*Lane, error) {
	var failed error
	for tries := 0; ; tries++ {
		n := s.open.Load()
		lost := int32(0)
		for _, l := range s.lanes[:n] {
			if l.busy.Load() == 0 && l.busy.CompareAndSwap(0, 1) {
				return l, nil
			}
			if l.lost.Load() {
				lost++
			}
		}
		switch {
		case n < s.most && failed == nil:
			l, err := s.openOne(n)
			if l != nil {
				return l, nil
			}
			failed = err // there may be others to wait for
		case lost == n && failed != nil:
			return nil, failed
		case lost == n:
			return nil, fmt.Errorf("txn: what operations left in all %d lanes cannot be undone: %w", n, shm.ErrCorrupt)
		case tries < 1000: // an operation takes some hundred ns
			runtime.Gosched()
		default: // unless it waits for memory, or gives back a lot
			time.Sleep(50 * time.Microsecond)
		}
	}
}

// openOne opens the lane of that number, and returns it in use; nil if somebody else did.
func (s *Lanes) openOne(n int32) (*Lane, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open.Load() != n {
		return nil, nil
	}
	l, err := s.bring(int(n))
	if err != nil {
		return nil, err
	}
	l.busy.Store(1)
	if err := l.clear(); err != nil {
		return nil, err
	}
	s.lanes[n] = l
	s.open.Store(n + 1)
	return l, nil
}

// bring returns the lane of that number, with memory.
func (s *Lanes) bring(n int) (*Lane, error) {
	ls, err := lines(s.r, s.slot)
	if err == nil && ls == nil {
		if err = s.blocks.Lines(s.slot); err == nil {
			ls, err = lines(s.r, s.slot)
		}
	}
	if err != nil {
		return nil, err
	}
	if ls[n].memory.Load() == 0 {
		if err := s.blocks.Memory(s.slot, n); err != nil {
			return nil, err
		}
	}
	return attach(s.r, s.blocks, ls, s.slot, n)
}

// Each calls fn with each lane of this process that is in no operation, in turn, while none can begin there. It
// stops at the first error.
func (s *Lanes) Each(fn func(l *Lane) error) error {
	for _, l := range s.lanes[:s.open.Load()] {
		if l.busy.CompareAndSwap(0, 1) {
			err := fn(l)
			release(&l.busy)
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// attach returns a lane that has memory.
func attach(r *shm.Region, blocks Blocks, ls *[MaxLanes]line, slot, n int) (*Lane, error) {
	w := ls[n].word.Load() // before its extensions: its process may be taking one, if this is only a look
	off := ls[n].memory.Load()
	m, err := shm.At[memory](r, shm.Offset(off))
	if err != nil || off%lineSize != 0 {
		return nil, fmt.Errorf("txn: memory of lane %d of slot %d at offset %d: %w", n, slot, off, shm.ErrCorrupt)
	}
	l := &Lane{r: r, blocks: blocks, line: &ls[n], mem: m, slot: slot, number: n, room: outerEntries}
	for k := range l.line.more {
		if l.line.more[k].Load() == 0 {
			break
		}
		if err := l.extend(k); err != nil {
			return nil, err
		}
	}
	if !l.sound(w) {
		return nil, l.corrupt("control word", w)
	}
	l.fresh(w)
	return l, nil
}

// extend makes l know extension k of its log, which is the next one. What the region says of it is foreign input.
func (l *Lane) extend(k int) error {
	off, size := l.line.more[k].Load(), extensionSize(k)
	b, err := l.r.Bytes(shm.Offset(off), size)
	if err != nil || off%lineSize != 0 || off == 0 {
		return l.corrupt(fmt.Sprintf("extension %d of the log at offset", k), off)
	}
	for i := range l.more { // to write one must not change another
		if other := l.line.more[i].Load(); off < other+extensionSize(i) && other < off+size {
			return l.corrupt(fmt.Sprintf("extensions %d and %d of the log overlap at offset", i, k), off)
		}
	}
	l.more = append(l.more, unsafe.Slice((*entry)(unsafe.Pointer(&b[0])), size/entrySize))
	l.room += int(size / entrySize)
	return nil
}

// entry returns entry i of the outer log, for which there is memory.
func (l *Lane) entry(i int) *entry {
	if i < outerEntries {
		return &l.mem.outer[i]
	}
	k, at := extensionOf(i)
	return &l.more[k][at]
}

// fresh makes l know the control word, with an operation that has no entries.
func (l *Lane) fresh(word uint64) {
	l.word, l.inner, l.later, l.free, l.took = word, 0, -1, -1, -1
	if l.freed != nil {
		l.freed = nil
	}
}

// clear finishes what the last process of the slot left here.
func (l *Lane) clear() error {
	if err := l.undo(); err != nil {
		return err
	}
	return l.giveBack()
}

// Slot and Number say which lane l is.
func (l *Lane) Slot() int   { return l.slot }
func (l *Lane) Number() int { return l.number }

// Private returns the part of the lane's memory that is the heap's. Its words are those of the operation in the lane.
func (l *Lane) Private() *[PrivateSize / 8]atomic.Uint64 { return &l.mem.private }

// Release is Leave after an operation that has ended.
func (l *Lane) Release() { release(&l.busy) }

// Leave ends the use of l. An operation that was not committed is rolled back. It returns why that, or giving blocks back,
// failed: the lane is not used again then.
func (l *Lane) Leave() error {
	if l.inner != 0 || phaseOf(l.word) != phaseIdle {
		return l.leaveSlow()
	}
	release(&l.busy)
	return nil
}

//go:noinline
func (l *Lane) leaveSlow() error {
	err := error(nil)
	if _, gives := givesBack(l.word); gives && l.inner == 0 {
		if err = l.settleReturn(); err == nil { // after a panic in the middle of one
			err = l.giveBack()
		}
	} else {
		err = l.clear()
	}
	if err != nil {
		l.lost.Store(true)
		return err
	}
	release(&l.busy)
	return nil
}
