package sync

import (
	"fmt"
	"runtime"
	stdatomic "sync/atomic"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
)

// A share is how this process counts its readers of one lock: where, and what makes the count valid. It
// does not change.
type share struct {
	lock *RWMutex
	word *stdatomic.Uint64 // the count
	base uint64            // what word reads without readers
	bits *stdatomic.Uint64 // where writers see that this process may have readers; nil: they look anyway
	bit  uint64
}

// shares are the shares of this process in locks that it has read lately, by the lock's address: finding a
// holding takes some 20 ns, and this one. An entry may be of a lock that is not there any more: then its word
// is another object's, and the steps fail, or its bit is not set, or nobody asks for that address. Before
// other memory comes to lie where the word is, the entry is forgotten. Locks outside of regions have none:
// it would keep them from the collector.
var shares [1024]stdatomic.Pointer[share]

func shareOf(rw *RWMutex) *stdatomic.Pointer[share] {
	return &shares[uint64(uintptr(unsafe.Pointer(rw)))>>3*0x9e3779b97f4a7c15>>54]
}

// forgetShares drops what is known of locks in a range of addresses that is about to be given back.
func forgetShares(base, size uintptr) {
	for i := range shares {
		s := shares[i].Load()
		if s != nil && uintptr(unsafe.Pointer(s.lock))-base < size {
			shares[i].CompareAndSwap(s, nil)
		}
	}
}

// newShare finds out how this process counts its readers of rw, which was to be used for what. An error is
// [shm.ErrClosed] or [shm.ErrNoSpace].
func newShare(rw *RWMutex, what string) (share, error) {
	r, off, err := locate(rw, what)
	if err != nil {
		return share{}, err
	}
	slot, ok := 0, false
	if r != nil {
		slot, ok = r.Slot()
	}
	if !ok {
		if r != nil && r.Closed() {
			return share{}, closedError(what, r)
		}
		rw.own.CompareAndSwap(0, ownCount)
		return share{lock: rw, word: &rw.own, base: ownCount}, nil
	}
	h, err := r.Hold(off)
	if err != nil {
		return share{}, fmt.Errorf("sync: %s: %w", what, err)
	}
	s := share{rw, &h.Word, shm.HoldingKey(off), &rw.readers[slot/64], 1 << (slot % 64)}
	if s.known() {
		s.remember()
	}
	runtime.KeepAlive(r) // so that it is forgotten after this, not before
	return s, nil
}

// remember lets this process find s by one look.
func (s share) remember() {
	if s.bits != nil {
		shareOf(s.lock).Store(&s)
	}
}

// known reports whether writers look at the count.
func (s *share) known() bool { return s.bits == nil || s.bits.Load()&s.bit != 0 }

// enter counts a reader and looks whether it may stay. If not it is not counted any more. Whether writers look
// at the count is asked first: once they do, they do as long as the lock is there.
func (s *share) enter() bool {
	raceIgnore() // readers are not ordered by their counts
	defer raceHeed()
	for s.known() {
		v := s.word.Load()
		next, ok := entered(v, s.base)
		if !ok {
			return false
		}
		if !s.word.CompareAndSwap(v, next) {
			continue
		}
		crash("counted")
		if s.lock.mu.word.Load() == 0 {
			return true
		}
		s.leave()
		return false
	}
	return false
}

// leave takes a reader off the count. It reports false, having changed nothing, if there is none.
func (s *share) leave() bool {
	raceIgnore()
	defer raceHeed()
	for {
		v := s.word.Load()
		next, wake, ok := left(v, s.base)
		if !ok {
			return false
		}
		if s.word.CompareAndSwap(v, next) {
			crash("left")
			if wake {
				wakeDrain(s.word) // asks the kernel only
				crash("woke the writer")
			}
			return true
		}
	}
}

// low is the half of a count's word that has the value: what the kernel compares.
func low(word *stdatomic.Uint64) *uint32 {
	halves := (*[2]uint32)(unsafe.Pointer(word))
	return &halves[lowHalf]
}
