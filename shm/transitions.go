package shm

// The decisions about a slot, as functions of its state word: see [slot]. The region makes them by
// compare-and-swap from exactly that word; the model in the tests makes them in all orders, with kills
// between any two.

// claimed is the first step of the process by that attaches, if the slot is for the taking. A token
// that stands there still is of a dead process that is not cleared up after yet.
func claimed(state, token uint64, by Token) (next uint64, ok bool) {
	return uint64(by) | slotAttached, state == slotFree && token == 0
}

// A duty is what one who has got the byte of another's slot has to do there.
type duty int8

const (
	leaveIt  duty = iota // nobody is there
	undoIt               // its process is dead, or it died while it attached; nobody may take its locks yet
	finishIt             // what it left half done is undone
	reportIt             // somebody wrote over the word
)

// dutyIn is the duty of one who has got the byte of a slot: so the process that the slot stands for is
// dead, and so is whoever cleared up after it.
func dutyIn(state uint64) duty {
	switch state & tokenFlags {
	case slotFree:
		return leaveIt
	case slotAttached, slotUndoing:
		return undoIt
	case slotUndone, slotDraining:
		return finishIt
	}
	return reportIt
}

// yields reports whether locks that carry the token of a slot in this state may be taken over.
func yields(state uint64) bool {
	s := state & tokenFlags
	return s == slotUndone || s == slotDraining
}
