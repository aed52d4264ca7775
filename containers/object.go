package containers

import (
	"fmt"
	"structs"
	"sync/atomic"
	"unsafe"

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
//	raw     0 offset of the memory   1 its length   2 how many containers use it as their lock
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
	creator     atomic.Uint64     // token of the process that made the object; 0: the header is free (heap)
	words       [10]atomic.Uint64 // guarded by the object's lock, read by anyone
}

const (
	objectSize   = 128
	objectFormat = 1 // of header and words; a change of either changes it

	atomicWord = 9 // in words
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
	}
	return nil // numbers and values commit with one store: there is nothing between before and after
}

// dismiss lets those go who wait at o, which is about to be destroyed. Its lock is held.
func (k kind) dismiss(s *space, o *object) error {
	if k == kindQueue {
		return dismissQueue(s, o)
	}
	return nil
}

// drop frees the memory that o's words refer to. o is dead (gen is even) or not yet live. Every word is
// cleared before its block is freed, so that a drop cut off by a death can be started again: at most the
// one block between the two steps leaks.
func (k kind) drop(s *space, o *object) error {
	switch k {
	case kindValue:
		return s.freeWord(&o.words[1])
	case kindArray:
		return dropArray(s, o)
	case kindList:
		return dropList(s, o)
	case kindQueue:
		return dropQueue(s, o)
	case kindRaw:
		return dropRaw(s, o)
	}
	return nil
}
