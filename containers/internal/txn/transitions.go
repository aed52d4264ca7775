package txn

// The control word of a lane, and its steps as functions of what the word is. Operations and recovery make them by
// plain stores, since a lane has one writer at a time; the model in the tests makes them in all orders, with kills
// between any two.

// Phases of the outer log.
const (
	phaseIdle      = 0
	phaseActive    = 1 // entries are undone, from the last to the first
	phaseRedoing   = 2 // committed: later words are stored
	phaseFreeing   = 3 // committed: from the cursor on, freed blocks go back
	phaseReturning = 4 // undone: from the cursor on, taken blocks go back

	phaseMask   = 1<<3 - 1
	countBits   = 16
	countMask   = 1<<countBits - 1
	entryShift  = 8
	cursorShift = entryShift + countBits
	turnShift   = cursorShift + countBits
)

func phaseOf(w uint64) uint64 { return w & phaseMask }
func entriesOf(w uint64) int  { return int(w >> entryShift & countMask) }
func cursorOf(w uint64) int   { return int(w >> cursorShift & countMask) }
func turnOf(w uint64) uint64  { return w >> turnShift }

func control(turn, phase uint64, entries, cursor int) uint64 {
	return turn<<turnShift | uint64(cursor)<<cursorShift | uint64(entries)<<entryShift | phase
}

// noted is the step that makes one more entry count.
func noted(w uint64) uint64 {
	return control(turnOf(w), phaseActive, entriesOf(w)+1, 0)
}

// unnoted takes the last entry back, whose work was not done.
func unnoted(w uint64) uint64 {
	return control(turnOf(w), phaseActive, entriesOf(w)-1, 0)
}

// ended is the word of a lane that is through with its operation.
func ended(w uint64) uint64 { return control(turnOf(w)+1, phaseIdle, 0, 0) }

// committed is the step that makes an operation happen. free is the index of its first block to be freed, or -1.
func committed(w uint64, redo bool, free int) uint64 {
	if redo {
		return control(turnOf(w), phaseRedoing, entriesOf(w), 0)
	}
	return redone(w, free)
}

// redone is the step after the later words are stored.
func redone(w uint64, free int) uint64 {
	if free < 0 {
		return ended(w)
	}
	return control(turnOf(w), phaseFreeing, entriesOf(w), free)
}

// undone is the step after the old words are stored. took is the index of the first block that was taken, or -1.
func undone(w uint64, took int) uint64 {
	if took < 0 {
		return ended(w)
	}
	return control(turnOf(w), phaseReturning, entriesOf(w), took)
}

// given is the step after the block at the cursor has gone back. next is the index of the next one, or -1.
func given(w uint64, next int) uint64 {
	if next < 0 {
		return ended(w)
	}
	return control(turnOf(w), phaseOf(w), entriesOf(w), next)
}

// givesBack returns the kind of the entries whose blocks go back in w's phase.
func givesBack(w uint64) (kind uint64, ok bool) {
	switch phaseOf(w) {
	case phaseFreeing:
		return kindFree, true
	case phaseReturning:
		return kindTook, true
	}
	return 0, false
}
