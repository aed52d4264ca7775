package sync

import (
	stdsync "sync"
	"unsafe"
)

// A turn is where the goroutines of this process queue that wait for something of which a process can have one
// claim at a time: a lock of its own, outside of regions, that exists while somebody uses it. They park in its
// gate.
type turn struct {
	Mutex
	users int // guarded by turns.mu
}

var turns struct {
	mu stdsync.Mutex
	by map[unsafe.Pointer]*turn
}

// enterTurn returns the turn of what lies at m, and keeps it until leaveTurn.
func enterTurn[T any](m *T) *turn {
	turns.mu.Lock()
	defer turns.mu.Unlock()
	key := unsafe.Pointer(m)
	t := turns.by[key]
	if t == nil {
		if turns.by == nil {
			turns.by = make(map[unsafe.Pointer]*turn)
		}
		t = new(turn)
		turns.by[key] = t
	}
	t.users++
	return t
}

func leaveTurn[T any](m *T, t *turn) {
	turns.mu.Lock()
	defer turns.mu.Unlock()
	if t.users--; t.users == 0 {
		delete(turns.by, unsafe.Pointer(m))
	}
}

// join waits for the turn.
func (t *turn) join(l limit) error {
	if t.TryLockIdle() {
		return nil
	}
	return t.acquire(l, nil)
}
