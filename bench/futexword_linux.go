package bench

import (
	"errors"
	"reflect"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A FutexWord is a word that one party sets to the next number, and another sleeps by until it has: the
// floor of being woken across processes, and nothing else.
type FutexWord struct {
	word *atomic.Uint32
	addr uintptr // of *word, which must lie in a region: memory that does not move
}

// NewFutexWord returns that of w, in a region.
func NewFutexWord(w *atomic.Uint32) (FutexWord, error) {
	if w == nil {
		return FutexWord{}, errors.New("bench: no word")
	}
	return FutexWord{w, reflect.ValueOf(w).Pointer()}, nil
}

// Set makes the word v, and wakes who waits.
func (f FutexWord) Set(v uint32) {
	f.word.Store(v)
	unix.RawSyscall(unix.SYS_FUTEX, f.addr, opWake, 1)
}

// Wait waits until the word is v.
func (f FutexWord) Wait(v uint32) {
	for is := f.word.Load(); is != v; is = f.word.Load() {
		unix.Syscall6(unix.SYS_FUTEX, f.addr, opWait, uintptr(is), 0, 0, 0) // any error: look again
	}
}
