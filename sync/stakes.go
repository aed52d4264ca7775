package sync

import (
	stdsync "sync"
	"sync/atomic"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
)

// A stake is where the share of a process in a [Semaphore] is: its holding, or a place in the semaphore itself
// if only goroutines of this process can reach it.
type stake struct {
	h   *shm.Holding
	key uint64
}

// value returns the stake's value; false if the holding is another object's by now.
func (t *stake) value() (v uint64, ok bool) {
	w := t.h.Word.Load()
	return w & shm.HoldingMask, w&^shm.HoldingMask == t.key
}

// swap makes the step from v to next.
func (t *stake) swap(v, next uint64) bool { return t.h.Word.CompareAndSwap(t.key|v, t.key|next) }

// use takes n of the idle permits if there are so many, and nobody comes in between.
func (t *stake) use(n int) bool {
	w := t.h.Word.Load()
	next, ok := used(w, uint64(n))
	return ok && w&^shm.HoldingMask == t.key && t.h.Word.CompareAndSwap(w, next)
}

// unuse makes n of the permits in use idle, if there are so many, and nobody comes in between.
func (t *stake) unuse(n int) bool {
	w := t.h.Word.Load()
	next, ok := unused(w, uint64(n))
	return ok && w&^shm.HoldingMask == t.key && t.h.Word.CompareAndSwap(w, next) // publishes
}

// counts returns how many permits of the stake are in use, and idle how many are not.
func (t *stake) counts() (inUse, idle uint64) {
	v, ok := t.value()
	if !ok || v == 0 {
		return 0, 0
	}
	return usedOf(v) + t.h.Words[holdingMore].Load(), idleOf(v)
}

// A known stake is one that this process has found once; it stands in a table by the semaphore's address, and
// nothing in it changes. Its word has the key in it, so whoever uses it finds out if it is another object's.
type knownStake struct {
	stake
	at   uintptr // of the semaphore
	bit  uint64  // of the slot
	bits *atomic.Uint64
}

const knownStakes = 1024

// stakeTable has the stakes that this process knows. The permits of one that is dropped from the table, and has
// none in use, go back: so not many holdings are taken for idle permits only, and those of a semaphore that
// exists no more do not stay for ever.
var stakeTable struct {
	mu stdsync.Mutex // of those who change it
	by [knownStakes]atomic.Pointer[knownStake]
}

func stakePlace(at uintptr) *atomic.Pointer[knownStake] {
	return &stakeTable.by[uint32(at>>3)*0x9e3779b1>>22]
}

// remember puts a stake into the table.
func (t *stake) remember(s *Semaphore, slot int) {
	at := uintptr(unsafe.Pointer(s))
	place := stakePlace(at)
	if k := place.Load(); k != nil && k.at == at && k.stake == *t {
		return
	}
	stakeTable.mu.Lock()
	defer stakeTable.mu.Unlock()
	if k := place.Load(); k != nil && k.at != at {
		k.drop()
	}
	place.Store(&knownStake{stake: *t, at: at, bit: 1 << (slot % 64), bits: &s.users.word[slot/64]})
}

// drop gives the idle permits back if nothing of the stake is in use. It does not touch the semaphore, which
// may exist no more. stakeTable.mu is held: the memory stays.
func (t *stake) drop() {
	for {
		v, ok := t.value()
		next, may := dropped(v)
		if !ok || !may || t.swap(v, next) {
			return
		}
	}
}

// forgetStakes is for addresses that are given back.
func forgetStakes(base, size uintptr) {
	stakeTable.mu.Lock()
	defer stakeTable.mu.Unlock()
	for i := range stakeTable.by {
		if k := stakeTable.by[i].Load(); k != nil && k.at-base < size {
			stakeTable.by[i].Store(nil)
		}
	}
}
