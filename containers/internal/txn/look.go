package txn

import "github.com/shmkit/shmkit/shm"

// Look calls fn with each lane of a slot that has memory, of whatever process, for a look: fn changes nothing, and what it sees may be
// changing.
func Look(r *shm.Region, slot int, blocks Blocks, fn func(*Lane) error) error {
	return each(r, slot, blocks, fn)
}

// Words returns the control words.
func (l *Lane) Words() (word, inner uint64) { return l.line.word.Load(), l.line.inner.Load() }

// Changing reports whether l may be in the middle of something that changes its blocks.
func (l *Lane) Changing() bool {
	return phaseOf(l.word) == phaseActive || phaseOf(l.word) == phaseRedoing
}

// Owed calls fn with each block that l is still to give back. The next one may be half back.
func (l *Lane) Owed(fn func(off shm.Offset, next bool)) error {
	kind, gives := givesBack(l.word)
	if !gives {
		return nil
	}
	if entriesOf(l.word) > l.room {
		return l.corrupt("control word", l.word)
	}
	for i := cursorOf(l.word); i < entriesOf(l.word); i++ {
		if k, e := l.entry(i).load(); k == kind {
			fn(e.At, i == cursorOf(l.word))
		}
	}
	return nil
}
