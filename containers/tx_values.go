package containers

import (
	"sync/atomic"

	"github.com/shmkit/shmkit/shm"
)

// Numbers, values and arrays in transactions.

// A TxNumber is a [SharedNumber] within a transaction.
type TxNumber[N Number] struct {
	tx *Tx
	w  *atomic.Uint64
}

// plainTx is what a transaction remembers of an object whose words say all.
type plainTx struct{}

func (plainTx) prepare(*txCommit) error { return nil }

// In makes n part of the transaction, and locks it until that is over. It waits for the lock, or ends the transaction's function, as
// [Manager.Update] says.
func (n SharedNumber[N]) In(tx *Tx) TxNumber[N] {
	tx.join(n.base, func() txObject { return plainTx{} })
	return TxNumber[N]{tx, &n.obj.words[0]}
}

// Load returns the value.
func (n TxNumber[N]) Load() N {
	n.tx.use()
	return fromBits[N](n.tx.load(n.w))
}

// Store sets the value.
func (n TxNumber[N]) Store(v N) {
	n.tx.use()
	n.tx.store(n.w, toBits(v))
}

// Add adds d and returns the new value. Integers wrap round.
func (n TxNumber[N]) Add(d N) N {
	v := n.Load() + d
	n.Store(v)
	return v
}

// A TxShared is a [Shared] within a transaction.
type TxShared[T any] struct {
	tx *Tx
	v  *sharedTx[T]
}

// sharedTx has the value as the transaction has it.
type sharedTx[T any] struct {
	h       Shared[T]
	v       T
	changed bool
}

// prepare fills the spare cell, at which nobody looks before the sequence word says so.
func (s *sharedTx[T]) prepare(c *txCommit) error {
	if s.changed {
		seq := s.h.obj.words[0].Load()
		store(s.h.cell(seq+1), &s.v)
		c.last(&s.h.obj.words[0], seq+1)
	}
	return nil
}

// In makes h part of the transaction, and locks it until that is over. It waits for the lock, or ends the transaction's function, as
// [Manager.Update] says. It copies the value.
func (h Shared[T]) In(tx *Tx) TxShared[T] {
	return TxShared[T]{tx, joinAs[*sharedTx[T]](tx, h.base, func() txObject {
		return &sharedTx[T]{h: h, v: load[T](h.cell(h.obj.words[0].Load()))}
	})}
}

// Load returns the value.
func (h TxShared[T]) Load() T {
	h.tx.use()
	return h.v.v
}

// Store sets the value.
func (h TxShared[T]) Store(v T) {
	h.tx.use()
	h.v.v, h.v.changed = v, true
}

// With calls fn with the value, to change it. v is of use only until fn returns.
func (h TxShared[T]) With(fn func(v *T)) {
	h.tx.use()
	h.v.changed = true
	fn(&h.v.v)
}

// A TxArray is a [SharedArray] within a transaction.
type TxArray[T any] struct {
	tx *Tx
	a  *arrayTx[T]
}

// arrayTx remembers which words of the elements change.
type arrayTx[T any] struct {
	a       SharedArray[T]
	changed map[uint64]struct{} // words, by their number
}

// In makes a part of the transaction, and locks it until that is over. It waits for the lock, or ends the transaction's function, as
// [Manager.Update] says. If several words of the array change, the commit first copies all elements aside for those who read without the
// lock, as [SharedArray.With] does; so it costs a copy of the array. What is written through [SharedArray.View] next
// to an element that is shorter than 8 bytes may be lost.
func (a SharedArray[T]) In(tx *Tx) TxArray[T] {
	return TxArray[T]{tx, joinAs[*arrayTx[T]](tx, a.base, func() txObject { return &arrayTx[T]{a, map[uint64]struct{}{}} })}
}

// Len returns the number of elements.
func (t TxArray[T]) Len() int {
	t.tx.use()
	return t.a.a.n
}

// At returns element i. It panics if there is none.
func (t TxArray[T]) At(i int) (v T) {
	t.tx.use()
	if uint(i) >= uint(t.a.a.n) {
		t.a.a.badIndex("At", i)
	}
	dst, at := bytesOf(&v), uint64(i)*sizeOf[T]()
	for len(dst) > 0 {
		w := t.tx.load(word(t.a.a.data, int(at/8)))
		n := copy(dst, viewOf[byte](addr(&w), 8)[at&7:])
		dst, at = dst[n:], at+uint64(n)
	}
	return v
}

// Set sets element i. It panics if there is none.
func (t TxArray[T]) Set(i int, v T) {
	t.tx.use()
	if uint(i) >= uint(t.a.a.n) {
		t.a.a.badIndex("Set", i)
	}
	src, at := bytesOf(&v), uint64(i)*sizeOf[T]()
	for len(src) > 0 {
		p := word(t.a.a.data, int(at/8))
		w := t.tx.load(p)
		n := copy(viewOf[byte](addr(&w), 8)[at&7:], src)
		t.tx.store(p, w)
		t.a.changed[at/8] = struct{}{}
		src, at = src[n:], at+uint64(n)
	}
}

// prepare has readers without the lock turn to a copy until all words are stored, unless one store is all. A kill leaves the copy, which the
// array keeps, or a free block; the sequence word goes on in any case, since readers may have seen it.
func (t *arrayTx[T]) prepare(c *txCommit) error {
	a, o := t.a, t.a.obj
	s, err := a.stable()
	if err != nil || len(t.changed) == 0 || len(t.changed) == 1 && atomicSize[T]() {
		return err
	}
	size := blockSize(uint64(a.n) * sizeOf[T]())
	if o.words[arraySnapshot].Load() == 0 {
		off, err := a.s.heap.AllocIn(c.l, size, 8)
		if err == nil {
			err = c.l.Set(&o.words[arraySnapshot], uint64(off))
		}
		if err != nil {
			return err
		}
	}
	snapshot, err := a.block(arraySnapshot, uint64(a.n)*sizeOf[T]())
	if err != nil {
		return err
	}
	copyBlock(snapshot, a.data, size)
	o.words[arrayOpener].Store(uint64(shm.Self()))
	stable := s + 2*arrayChange
	if err := c.l.Until(&o.words[arraySeq], s+arrayChange|arrayOpen, stable); err != nil {
		return err
	}
	c.last(&o.words[arraySeq], stable)
	return nil
}
