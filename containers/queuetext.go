package containers

import (
	"fmt"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// Messages that are strings or bytes, in slots as those of a list (listtext.go).

// pushText adds b at the end of the ring, which has room.
func pushText[S ~string | ~[]byte](q *queue, b S, tail uint64) error {
	p := q.slot(tail)
	if len(b) <= textInline {
		slot, err := packText(nil, deque{}, b)
		if err != nil {
			return err
		}
		txn.Announce(p, textSlot)
		store(p, &slot)
		txn.Put(q.word(queueTail), tail+1) // commits
		return nil
	}
	return q.s.change(func(l *txn.Lane) error {
		n := uint64(len(b))
		off, err := q.s.heap.AllocIn(l, blockSize(n), 64)
		if err != nil {
			return err
		}
		block, err := addrOf(q.s.region, off, blockSize(n))
		if err != nil {
			return err
		}
		txn.Announce(block, uintptr(n))
		if raceEnabled {
			storeWords(block, []byte(b))
		} else {
			copy(viewOf[byte](block, len(b)), b)
		}
		slot := [2]uint64{uint64(off), n | outOfLine<<56}
		txn.Announce(p, textSlot)
		store(p, &slot)
		return l.Later(q.word(queueTail), tail+1)
	})
}

// textAt returns a copy of the text in the slot at p. The lock is held.
func (q *queue) textAt(p addr) ([]byte, error) {
	return deque{s: q.s}.text(p, func() bool { return true })
}

// checkText names what is wrong with the slot at p; seen has the blocks of the other slots.
func (q *queue) checkText(p addr, seen map[uint64]bool) error {
	if q.form == formPlain {
		return nil
	}
	if _, err := q.textAt(p); err != nil {
		return err
	}
	if b := q.blockAt(p); b != 0 {
		if seen[b] {
			return errTwice
		}
		seen[b] = true
	}
	return nil
}

var errTwice = fmt.Errorf("another slot refers to the same block: %w", shm.ErrCorrupt)
