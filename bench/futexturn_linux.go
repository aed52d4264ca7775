package bench

import (
	"reflect"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A FutexTurn is the floor of passing a turn between two parties: a word that says whose it is, and a futex.
type FutexTurn struct {
	word *atomic.Uint32
	addr uintptr // of *word, which must lie in a region: memory that does not move
}

// NewFutexTurn returns the turn whose word is w, in a region. The first turn is party 0's.
func NewFutexTurn(w *atomic.Uint32) (FutexTurn, error) {
	return FutexTurn{w, reflect.ValueOf(w).Pointer()}, nil
}

// Await waits until it is that party's turn.
func (t FutexTurn) Await(party uint32) {
	for t.word.Load() != party {
		unix.Syscall6(unix.SYS_FUTEX, t.addr, opWait, uintptr(1-party), 0, 0, 0) // any error: look again
	}
}

// Leave gives that party's turn to the other one.
func (t FutexTurn) Leave(party uint32) {
	t.word.Store(1 - party)
	unix.RawSyscall(unix.SYS_FUTEX, t.addr, opWake, 1)
}
