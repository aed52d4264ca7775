package containers

import (
	"errors"
	"fmt"
	"structs"
	"sync/atomic"
	"unsafe"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
	shmsync "github.com/shmkit/shmkit/sync"
)

// object is the header of every container: 128 bytes on its own pair of cache lines, in memory that is
// never used for anything but such headers, so that a stale handle reads a header, if another one.
//
//	0      4        8     16            24   32     40        48                              128
//	| kind | format | gen | fingerprint | mu | lock | creator | words, by kind: see below ... |
//
// Words by kind (offsets count from the region's start):
//
//	number  0 the value's bits   1 spare bits, what With works on
//	value   0 seq: cell seq&1 is current, a commit adds 1   1 offset of the two cells   2 size of a cell
//	array   see array.go
//	list    see list.go
//	queue   see queuemem.go
//	map     see maptable.go
//	ring    see ringmem.go
//	raw     0 offset of the memory   1 its length   2 how many containers use it as their lock
//	any     8 offset of the entry in the directory that has the object's name, 0 none; guarded by root.mu
//	atomic  9 the value's bits. No other kind uses that word: an Atomic is written without a lock, so a
//	        handle that turns stale at the wrong moment can still hit it
//
// A caller's lock (WithMutex) is the embedded one of another object, of kind raw.
type object struct {
	_           structs.HostLayout
	kind        atomic.Uint32     // a kind; immutable while gen is odd
	format      atomic.Uint32     // objectFormat; immutable while gen is odd
	gen         atomic.Uint64     // odd: live. Goes up by 1 when the object is destroyed and when the header is used again
	fingerprint atomic.Uint64     // of T's layout; immutable while gen is odd
	mu          shmsync.Mutex     // the embedded lock. Never reset: it outlives the object, so locking a stale one is harmless
	lock        atomic.Uint64     // offset of the caller's Mutex, 0: mu; immutable while gen is odd
	creator     atomic.Uint64     // token of the process that made the object | passedOn; 0: the header is free (heap)
	words       [10]atomic.Uint64 // guarded by the object's lock, read by anyone
}

const (
	objectSize   = 128
	objectFormat = 4 // of header and words; a change of either changes it

	rawUsers   = 2 // in words
	nameWord   = 8
	atomicWord = 9
)

var _ [objectSize]byte = [unsafe.Sizeof(object{})]byte{} // the layout is a format: moving it must not compile

// muOffset is where the embedded lock is in an object.
const muOffset = shm.Offset(unsafe.Offsetof(object{}.mu))

// mutexOf returns the offset of an object's embedded lock.
func (s *space) mutexOf(o *object) shm.Offset { return s.offsetOf(o) + muOffset }

// kind says how an object's words are to be read.
type kind uint32

const (
	kindFree   kind = iota // the header belongs to the heap
	kindNumber             // SharedNumber
	kindValue              // Shared
	kindArray              // SharedArray
	kindList               // SharedList
	kindRaw                // Ref
	kindAtomic             // Atomic
	kindQueue              // SharedQueue
	kindMap                // SharedMap
	kindRing               // SharedRing
)

func (k kind) String() string {
	switch k {
	case kindFree:
		return "free object"
	case kindNumber:
		return "number"
	case kindValue:
		return "value"
	case kindArray:
		return "array"
	case kindList:
		return "list"
	case kindRaw:
		return "reference"
	case kindAtomic:
		return "atomic number"
	case kindQueue:
		return "queue"
	case kindMap:
		return "map"
	case kindRing:
		return "ring"
	}
	return fmt.Sprintf("object of kind %d", uint32(k))
}

// repair brings o to its committed state from its words alone; it knows no T. The caller holds o's lock,
// and no operation of this process is open on o. It is idempotent: a repairer may die too.
func (k kind) repair(s *space, o *object) error {
	switch k {
	case kindArray:
		return repairArray(s, o)
	case kindList:
		return repairList(s, o)
	case kindQueue:
		return repairQueue(s, o)
	case kindMap:
		return repairMap(s, o)
	}
	return nil // numbers and values commit with one store: there is nothing between before and after
}

// dismiss lets those go who wait at o, which is about to be destroyed, or says what keeps it from that. Its lock is held.
func (k kind) dismiss(s *space, o *object) error {
	switch k {
	case kindQueue:
		return dismissQueue(s, o)
	case kindRing:
		return dismissRing(s, o)
	}
	return nil
}

// drop frees the blocks that o's words refer to, in the operation in l, with which o dies, or before which it is dead. It reports whether
// these are all: if not, for want of room in the log, o's words say what is left, and drop is called again, in an operation of its own. at
// is 0 at first, and for what drop likes to remember, but need not. It leaves dropSpare entries of the log to others.
func (k kind) drop(l *txn.Lane, s *space, o *object, at *uint64) (all bool, err error) {
	switch k {
	case kindValue:
		return true, s.freeIn(l, &o.words[1])
	case kindArray:
		return true, dropArray(l, s, o)
	case kindList:
		return dropList(l, s, o, at)
	case kindQueue:
		return dropQueue(l, s, o, at)
	case kindMap:
		return dropMap(l, s, o, at)
	case kindRaw:
		return true, dropRaw(l, s, o)
	case kindRing:
		return true, dropRing(l, s, o)
	}
	return true, nil
}

// blocks calls found with each block that o's words refer to, and what it is: those that drop frees. Nothing changes meanwhile.
func (k kind) blocks(s *space, o *object, found func(what string, off uint64) error) error {
	switch k {
	case kindValue:
		return found("cells", o.words[1].Load())
	case kindArray:
		return errors.Join(found("elements", o.words[arrayData].Load()), found("snapshot", o.words[arraySnapshot].Load()), found("scratch", o.words[arrayScratch].Load()))
	case kindList:
		return blocksOfList(s, o, found)
	case kindQueue:
		return blocksOfQueue(s, o, found)
	case kindMap:
		return blocksOfMap(s, o, found)
	case kindRing:
		return found("body", o.words[ringBody].Load())
	case kindRaw:
		if off := o.words[0].Load(); shm.Offset(off) != s.mutexOf(o) {
			return found("memory", off)
		}
	}
	return nil
}

// dropSpare is how many entries the operation that destroys an object may log beside those of drop.
const dropSpare = 8

// allocIn stores the offset of a new block of n bytes, zeros, in w, of an object that is being made.
func (s *space) allocIn(l *txn.Lane, w *atomic.Uint64, n uint64) error {
	off, err := s.heap.AllocIn(l, n, 8)
	if err == nil {
		w.Store(uint64(off))
	}
	return err
}

// freeIn frees the block whose offset is in w, of an object that dies with the operation in l; 0 is none.
func (s *space) freeIn(l *txn.Lane, w *atomic.Uint64) error {
	if off := w.Load(); off != 0 {
		return s.heap.FreeIn(l, shm.Offset(off))
	}
	return nil
}
