package containers

import (
	"fmt"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// Messages that are strings or bytes, in slots as those of a list (listtext.go).

// pushText adds b at the end of the ring, which has room.
func pushText[S ~string | ~[]byte](q *queue, b S, tail uint64) error {
	if len(b) <= textInline {
		if err := fillText(nil, q, tail, b); err != nil {
			return err
		}
		txn.Put(q.word(queueTail), tail+1) // commits
		return nil
	}
	return q.s.change(func(l *txn.Lane) error {
		if err := fillText(l, q, tail, b); err != nil {
			return err
		}
		return l.Later(q.word(queueTail), tail+1)
	})
}

// fillText makes b message v, at whose slot nobody looks, and for a long b its block in the operation in l.
func fillText[S ~string | ~[]byte](l *txn.Lane, q *queue, v uint64, b S) error {
	var slot [2]uint64
	if n := uint64(len(b)); n > textInline {
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
		slot = [2]uint64{uint64(off), n | outOfLine<<56}
	} else {
		slot, _ = packText(nil, deque{}, b)
	}
	p := q.slot(v)
	txn.Announce(p, textSlot)
	store(p, &slot)
	return nil
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
