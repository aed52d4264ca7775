package txn

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/shmkit/shmkit/shm"
)

// Undo puts back what the lanes of a slot, whose process is dead, have left half done: the first phase of
// recovery. It takes no lock, allocates nothing in the region, and may be run again, also by another process when this one dies inside.
func Undo(r *shm.Region, slot int, blocks Blocks) error {
	return each(r, slot, blocks, func(l *Lane) error { return l.undo() })
}

// Drain gives back what the lanes of a slot that is undone still owe, and what they keep in reserve: the third
// phase. It works by operations in own, the lanes of this process, holds no lock before or after, and waits until a process
// that died over the same slot is undone. It returns without an error if own cannot get memory: the slot's
// next process has the lanes as they are.
func Drain(r *shm.Region, slot int, blocks Blocks, own *Lanes) (err error) {
	ls, err := lines(r, slot)
	if ls == nil || err != nil {
		return err
	}
	// Who drained before us may have died with the lines and the memory of these lanes changed under its own log.
	for before := shm.Token(ls[0].drainer.Load()); before != 0 && before != shm.Self(); {
		if _, settled := r.Settled(before); settled {
			break
		}
		if r.Closed() {
			return fmt.Errorf("txn: drain of slot %d: %w", slot, shm.ErrClosed)
		}
		time.Sleep(time.Millisecond) // somebody undoes it at this moment
	}
	op, err := own.Enter()
	switch {
	case errors.Is(err, shm.ErrNoSpace):
		return nil
	case err != nil:
		return err
	}
	defer func() {
		if left := op.Leave(); err == nil {
			err = left
		}
	}()
	Put(&ls[0].drainer, uint64(shm.Self()))
	// crash here: nothing of the slot is changed
	err = each(r, slot, blocks, func(l *Lane) error {
		if err := adopt(op, l); err != nil {
			return err
		}
		return blocks.Empty(op, l)
	})
	if err == nil {
		Put(&ls[0].drainer, 0)
	}
	return err
}

// adopt frees the blocks that l, a lane of a dead process that is undone, owes, one at a time: each by an operation in
// op that moves l's cursor and frees the block.
func adopt(op, l *Lane) error {
	for {
		kind, gives := givesBack(l.word)
		if !gives {
			return nil
		}
		at := cursorOf(l.word)
		if at >= entriesOf(l.word) {
			return l.corrupt("cursor", uint64(at))
		}
		k, e := l.entry(at).load()
		if k != kind {
			return l.corrupt("entry at the cursor of kind", k)
		}
		next := given(l.word, l.next(kind, at+1))
		if err := op.Set(&l.line.word, next); err != nil {
			return err
		}
		if err := op.Free(e.At, e.Val); err != nil {
			return err
		}
		op.Commit()
		l.word = next
		if err := op.giveBack(); err != nil {
			return err
		}
	}
}

// each calls fn with each lane of a slot that has memory.
func each(r *shm.Region, slot int, blocks Blocks, fn func(*Lane) error) error {
	ls, err := lines(r, slot)
	if ls == nil || err != nil {
		return err
	}
	for i := range ls {
		if ls[i].memory.Load() == 0 { // they are opened in order
			break
		}
		l, err := attach(r, blocks, ls, slot, i)
		if err == nil {
			err = fn(l)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sound reports whether a control word, which is foreign input, can be one.
func (l *Lane) sound(w uint64) bool {
	return entriesOf(w) <= l.room && phaseOf(w) <= phaseReturning && cursorOf(w) <= entriesOf(w)
}

func (l *Lane) corrupt(what string, got uint64) error {
	return fmt.Errorf("txn: lane %d of slot %d: %s %d: %w", l.number, l.slot, what, got, shm.ErrCorrupt)
}

// undo brings l to a phase in which it changes nothing but blocks that are its own: it undoes what was not committed, and
// stores what was.
func (l *Lane) undo() error {
	if err := l.UndoInner(); err != nil {
		return err
	}
	w := l.line.word.Load()
	n := entriesOf(w)
	if !l.sound(w) {
		return l.corrupt("control word", w)
	}
	l.fresh(w)
	switch phaseOf(w) {
	case phaseActive:
		if n > 0 {
			if kind, e := l.entry(n - 1).load(); kind == kindTook {
				taken, err := l.blocks.Taken(l, e)
				if err != nil {
					return err
				}
				if !taken {
					n--
					l.step(unnoted(l.word))
				}
			}
		}
		for i := n - 1; i >= 0; i-- {
			if kind, e := l.entry(i).load(); kind == kindWord {
				if err := l.restore(kind, e); err != nil {
					return err
				}
			}
		}
		// crash here: undone again
		l.step(undone(l.word, l.next(kindTook, 0)))
	case phaseRedoing:
		for i := range n {
			if kind, e := l.entry(i).load(); kind == kindLater {
				if err := l.restore(kindWord, e); err != nil {
					return err
				}
			}
		}
		l.step(redone(l.word, l.next(kindFree, 0)))
	case phaseFreeing, phaseReturning:
		return l.settleReturn()
	}
	return nil
}

// settleReturn finishes the return of the block at the cursor, if it has begun.
func (l *Lane) settleReturn() error {
	kind, _ := givesBack(l.word)
	at := cursorOf(l.word)
	if at >= entriesOf(l.word) {
		return l.corrupt("cursor", uint64(at))
	}
	k, e := l.entry(at).load()
	if k != kind {
		return l.corrupt("entry at the cursor of kind", k)
	}
	back, err := l.blocks.Given(l, e)
	if err != nil || !back {
		return err
	}
	l.step(given(l.word, l.next(kind, at+1)))
	return nil
}

// giveBack gives back the blocks from the cursor on.
func (l *Lane) giveBack() error {
	for {
		kind, gives := givesBack(l.word)
		if !gives {
			l.fresh(l.word)
			return nil
		}
		at := cursorOf(l.word)
		if at >= entriesOf(l.word) {
			return l.corrupt("cursor", uint64(at))
		}
		k, e := l.entry(at).load()
		if k != kind {
			return l.corrupt("entry at the cursor of kind", k)
		}
		next := given(l.word, l.next(kind, at+1))
		if err := l.blocks.Give(l, e, next); err != nil {
			return err
		}
		l.word = next
	}
}

// next returns the index of the first entry of that kind from i on, or -1.
func (l *Lane) next(kind uint64, i int) int {
	for ; i < entriesOf(l.word); i++ {
		if l.entry(i).at.Load()&kindMask == kind {
			return i
		}
	}
	return -1
}

// restore does what an entry says.
func (l *Lane) restore(kind uint64, e Entry) error {
	switch kind {
	case kindWord:
		p, err := shm.At[atomic.Uint64](l.r, e.At)
		if err != nil {
			return err
		}
		Put(p, e.Val)
	case kindSet, kindClear:
		first, n := e.Val>>32, e.Val&(1<<32-1)
		b, err := l.r.Bytes(e.At, (first+n+63)/64*8)
		if err != nil {
			return err
		}
		p, err := shm.At[atomic.Uint64](l.r, e.At)
		if err != nil || len(b) == 0 {
			return l.corrupt("bits", e.Val)
		}
		PutBits(p, first, n, kind == kindSet)
	default:
		return l.corrupt("inner entry of kind", kind)
	}
	return nil
}
