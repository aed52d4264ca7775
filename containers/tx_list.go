package containers

import (
	"iter"
	"maps"
	"slices"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// A TxList is a [SharedList] within a transaction.
type TxList[T any] struct {
	tx *Tx
	l  *listTx[T]
}

// listTx remembers the slots in use, and what slots get. At the commit it fills those behind the ones in use, at which nobody looks, and has the word stored
// that shows them, or that hides others. If more changes than one end it makes a plan, with the elements that replace others, which is carried out
// when the transaction has happened: by this process, or by whoever repairs the list.
type listTx[T any] struct {
	h           SharedList[T]
	first, last uint64 // before the transaction
	from, end   uint64 // after it
	set         map[uint64]*T
	planned     bool
}

// In makes l part of the transaction, and locks it until that is over. It waits for the lock, or ends the transaction's function, as
// [Manager.Update] says.
func (l SharedList[T]) In(tx *Tx) TxList[T] {
	return TxList[T]{tx, joinAs[*listTx[T]](tx, l.base, func() txObject {
		first, last, err := l.deque().ends()
		if err != nil {
			tx.stop(l.fail("In", err))
		}
		return &listTx[T]{h: l, first: first, last: last, from: first, end: last, set: map[uint64]*T{}}
	})}
}

// Len returns the number of elements.
func (t TxList[T]) Len() int {
	t.tx.use()
	return int(t.l.end - t.l.from)
}

// At returns element i. It panics if there is none.
func (t TxList[T]) At(i int) T {
	v, ok := t.Get(i)
	if !ok {
		badListIndex("At", i, t.Len())
	}
	return v
}

// Get returns element i and true, or false if there is none.
func (t TxList[T]) Get(i int) (v T, ok bool) {
	if i, ok = position(i, t.Len()); ok {
		v = t.element(t.l.from + uint64(i))
	}
	return v, ok
}

// element returns what slot v has.
func (t TxList[T]) element(at uint64) T {
	if v := t.l.set[at]; v != nil {
		return *v
	}
	h := t.l.h
	d := h.deque()
	p, err := d.slot(at)
	var v T
	if err == nil {
		v, err = h.load(d, p, d.seq().Load())
	}
	if err != nil {
		t.tx.stop(h.fail("Get", err))
	}
	return v
}

// Append adds v at the end. If there is no room for it, Update says so.
func (t TxList[T]) Append(v T) {
	t.tx.use()
	t.put(t.l.end, v)
	t.l.end++
}

// put makes v what slot at has. Bytes are the caller's, who may change them before the commit.
func (t TxList[T]) put(at uint64, v T) {
	if t.l.h.form == formBytes {
		b := as[[]byte](addr(&v))
		*b = slices.Clone(*b)
	}
	t.l.set[at] = &v
}

// Set replaces element i. It panics if there is none.
func (t TxList[T]) Set(i int, v T) {
	k, ok := position(i, t.Len())
	if !ok {
		badListIndex("Set", i, t.Len())
	}
	t.put(t.l.from+uint64(k), v)
}

// Pop takes the last element off and returns it, or false if the list is empty. If the transaction does not happen, the element is still there.
func (t TxList[T]) Pop() (v T, ok bool) {
	if t.Len() == 0 {
		return v, false
	}
	v = t.element(t.l.end - 1)
	t.l.end--
	delete(t.l.set, t.l.end)
	return v, true
}

// PopFirst is Pop at the other end.
func (t TxList[T]) PopFirst() (v T, ok bool) {
	if t.Len() == 0 {
		return v, false
	}
	v = t.element(t.l.from)
	delete(t.l.set, t.l.from)
	t.l.from++
	return v, true
}

// All returns an iterator over indices and elements. Where the loop's body changes the list, it visits what is at the next index then.
func (t TxList[T]) All() iter.Seq2[int, T] {
	return func(yield func(int, T) bool) {
		for i := 0; i < t.Len(); i++ {
			if !yield(i, t.At(i)) {
				return
			}
		}
	}
}

// Values returns an iterator over the elements, as All does.
func (t TxList[T]) Values() iter.Seq[T] { return values(t.All()) }

// ready makes room behind the slots in use.
func (l *listTx[T]) ready() error {
	if l.end <= l.last {
		return nil
	}
	return l.h.deque().reserve(l.first, l.end)
}

// giveUp frees what ready has taken.
func (l *listTx[T]) giveUp() error {
	if l.end <= l.last {
		return nil
	}
	d := l.h.deque()
	return d.trim(d.next()+1, 1<<maxDirLog2)
}

func (l *listTx[T]) prepare(c *txCommit) error {
	d := l.h.deque()
	replaced := slices.Sorted(maps.Keys(l.set))
	n, _ := slices.BinarySearch(replaced, l.last)
	replaced, added := replaced[:n], replaced[n:]
	for _, v := range added {
		p, err := d.slot(v)
		if err == nil {
			err = l.h.write(c.l, d, p, l.set[v])
		}
		if err != nil {
			return err
		}
	}
	if err := l.free(c.l, d, replaced); err != nil {
		return err
	}
	l.planned = len(replaced) > 0 || l.from != l.first && l.end != l.last
	switch {
	case l.planned:
		return l.plan(c, d, replaced)
	case l.from != l.first:
		return d.moveIn(c.l, &d.o.words[listFirst], l.from)
	case l.end < l.last:
		return d.moveIn(c.l, &d.o.words[listLast], l.end)
	case l.end > l.last:
		return c.l.Later(&d.o.words[listLast], l.end)
	}
	return nil
}

// free frees the blocks of the slots that are gone or replaced.
func (l *listTx[T]) free(tx *txn.Lane, d deque, replaced []uint64) error {
	if d.form() == formPlain {
		return nil
	}
	drop := func(v uint64) error {
		block, err := d.blockIn(v)
		if err == nil && block != 0 {
			err = d.s.heap.FreeIn(tx, shm.Offset(block))
		}
		return err
	}
	for v := l.first; v < min(l.from, l.last); v++ {
		if err := drop(v); err != nil {
			return err
		}
	}
	for v := max(l.end, l.from); v < l.last; v++ {
		if err := drop(v); err != nil {
			return err
		}
	}
	for _, v := range replaced {
		if err := drop(v); err != nil {
			return err
		}
	}
	return nil
}

// plan makes a plan for both ends and the elements that replace others.
func (l *listTx[T]) plan(c *txCommit, d deque, replaced []uint64) error {
	pl := listPlan{deque: d, first: l.from, last: l.end, marks: uint64(len(replaced))}
	off, err := pl.begin(c.l)
	if err != nil {
		return err
	}
	for i, v := range replaced {
		if err := l.h.write(c.l, d, pl.element(uint64(i)), l.set[v]); err != nil {
			return err
		}
		word(pl.mark(uint64(i)), 0).Store(v)
	}
	return pl.commit(c.l, off)
}

// finish carries the plan out, and frees chunks.
func (l *listTx[T]) finish() {
	d := l.h.deque()
	err := error(nil)
	if l.planned {
		err = d.settle()
	}
	if err == nil && (l.from != l.first || l.end < l.last) {
		err = d.left(l.first, l.last)
	}
	if err != nil {
		panic(l.h.fail("Update", err)) // it has happened; the list is damaged
	}
}
