package sync

import "github.com/shmkit/shmkit/shm"

// The steps of a reader's count, as functions of what the word is: the lock makes them by compare-and-swap
// from exactly that word, the model in the tests makes them in all orders.
//
//	63                     23  22                      0
//	| base: whose count it is | D | readers of a process |
//
//	D  a writer waits for the count to become 0: who makes it 0 clears D by that step, and wakes it
//
// base is the key of the holding, so that a step on a holding that another object has by now fails; where
// there are no holdings it is ownCount. D without readers does not occur.
const (
	drainBit   = 1 << (shm.HoldingBits - 1)
	maxReaders = drainBit - 1
	ownCount   = 1 << 63 // base of a lock's own count: no process has a slot where the lock lies
)

// entered is the step of a reader that comes without asking: it still has to look whether a writer has
// the lock's word. One comparison checks that the count is the lock's, not full, and not waited for.
func entered(v, base uint64) (next uint64, ok bool) { return v + 1, v-base < maxReaders }

// registered is the step of a reader that holds the lock's word. So no writer waits, and D, if it is set,
// was left by one that died.
func registered(v, base uint64) (next uint64, ok bool) {
	return v&^drainBit + 1, v&^shm.HoldingMask == base && v&maxReaders < maxReaders
}

// left is the step of a reader that goes, and whether a writer is woken then; not ok if there is none.
func left(v, base uint64) (next uint64, wake, ok bool) {
	switch n := v & maxReaders; {
	case v&^shm.HoldingMask != base || n == 0:
		return v, false, false
	case n == 1:
		return base, v&drainBit != 0, true
	}
	return v - 1, false, true
}

// drained reports whether no reader stands in the count.
func drained(v, base uint64) bool { return v&^shm.HoldingMask != base || v&maxReaders == 0 }

// draining is the step of a writer before it sleeps.
func draining(v uint64) (next uint64) { return v | drainBit }

// undrained is the step of a writer that gives up, and still has the lock's word.
func undrained(v, base uint64) (next uint64) {
	if v&^shm.HoldingMask != base {
		return v
	}
	return v &^ drainBit
}

// What a writer's word says: see [RWMutex].
const halfChanged = 1 << 0 // nobody is inside; the one who was left the data half changed

// written is what the writer's word becomes when the process t lets go, given the lock's word: a lock that it
// has said to be inconsistent stays so.
func written(t, word uint64) (writer uint64) {
	if word&flagInconsistent != 0 {
		return t | halfChanged
	}
	return 0
}

// whole reports whether a lock taken from the dead, or found inconsistent, guards data that nobody was
// changing: whoever had its word was a reader, or a writer that was not inside yet, or not any more.
func whole(writer uint64) bool { return writer == 0 }
