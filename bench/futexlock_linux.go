package bench

import (
	"errors"
	"reflect"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	futexFree  = 0
	futexHeld  = 1 // nobody sleeps
	futexSlept = 2 // somebody may sleep

	opWait = 0 // not private: other processes sleep here too
	opWake = 1
)

// A FutexLock is the floor of locks across processes: the plain lock of three states, Drepper's
// mutex2, and nothing else. It does not spin, does not know its owner, and stays locked for ever if
// that dies.
type FutexLock struct {
	word *atomic.Uint32
	addr uintptr // of *word, which must lie in a region: memory that does not move
}

// NewFutexLock returns the lock whose word is w, in a region. 0 is free.
func NewFutexLock(w *atomic.Uint32) (FutexLock, error) {
	if w == nil {
		return FutexLock{}, errors.New("bench: no word")
	}
	return FutexLock{w, reflect.ValueOf(w).Pointer()}, nil
}

// Lock locks l.
func (l FutexLock) Lock() {
	if !l.word.CompareAndSwap(futexFree, futexHeld) {
		l.lockSlow()
	}
}

//go:noinline
func (l FutexLock) lockSlow() {
	for l.word.Swap(futexSlept) != futexFree {
		unix.Syscall6(unix.SYS_FUTEX, l.addr, opWait, futexSlept, 0, 0, 0) // any error: look again
	}
}

// Unlock unlocks l.
func (l FutexLock) Unlock() {
	if l.word.Swap(futexFree) == futexSlept {
		l.wake()
	}
}

//go:noinline
func (l FutexLock) wake() {
	unix.RawSyscall(unix.SYS_FUTEX, l.addr, opWake, 1)
}
