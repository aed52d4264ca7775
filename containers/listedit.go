package containers

import (
	"context"
	"errors"
	"fmt"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// Insert puts vs before element i, in one step: readers, too, see the list without them or with all of them. As Python's insert it takes any i: a negative one counts from the
// end, and what is outside then is the nearest end. It returns [shm.ErrNoSpace], the list unchanged, if there is no room for them, or for
// an eighth of a page or so to move others in, or for more than 65,000 long strings at once; [shm.ErrClosed] or [shm.ErrStale] if the region is closed or the
// list destroyed.
//
// It moves the elements on the shorter side; at either end it moves none, and costs as much as Append. Elements that move keep their long strings
// where they are. Readers go on meanwhile, and a process that dies in between leaves the list as before or with vs.
func (l SharedList[T]) Insert(i int, vs ...T) error {
	if err := l.lock(context.Background(), "Insert"); err != nil {
		return err
	}
	err := l.insert(i, vs)
	l.release()
	if err != nil {
		return l.fail("Insert", err)
	}
	return nil
}

// PopAt takes element i out and returns it, or false if there is none. It moves the elements on the shorter side, as Insert does, with little memory
// if there is no more; it panics with an error that is [shm.ErrNoSpace], the list unchanged, if there is none at all. At the ends it is Pop or PopFirst, which need none.
func (l SharedList[T]) PopAt(i int) (T, bool) {
	l.acquire("PopAt")
	v, ok, err := l.popAt(i)
	l.release()
	if err != nil {
		panic(l.fail("PopAt", err))
	}
	return v, ok
}

// RemoveFunc takes the first element out for which match is true, and reports whether there was one. It calls match with the lock held, so other writers wait,
// and match must not write to the list. If match panics nothing has changed.
func (l SharedList[T]) RemoveFunc(match func(T) bool) bool {
	l.acquire("RemoveFunc")
	defer l.release()
	return l.removeFunc(match)
}

// Truncate takes the elements from n on off, in one step, and frees their memory. It does nothing if there are none, and panics if n is negative.
func (l SharedList[T]) Truncate(n int) {
	l.acquire("Truncate")
	defer l.release()
	l.truncate(n)
}

// Reverse turns the order of the elements round, in one step. It needs as much memory as their slots until it is done, in one block; it returns
// [shm.ErrNoSpace], the list unchanged, if there is no room for that, and else as Insert does.
func (l SharedList[T]) Reverse() error {
	if err := l.lock(context.Background(), "Reverse"); err != nil {
		return err
	}
	err := l.deque().reverse()
	l.release()
	if err != nil {
		return l.fail("Reverse", err)
	}
	return nil
}

// SortFunc sorts the elements as compare says, which returns a negative number for a before b, a positive one for b before a, and else 0: those stay in the order they are in.
// It sorts a copy, with the lock held: other writers wait, compare must not write to the list, which is a panic where it is noticed, and if it panics nothing has changed. Then the list changes in one
// step. It needs memory, and returns errors, as Reverse does.
func (l SharedList[T]) SortFunc(compare func(a, b T) int) error {
	if err := l.lock(context.Background(), "SortFunc"); err != nil {
		return err
	}
	defer l.release() // compare may panic
	if err := l.sort(compare); err != nil {
		return l.fail("SortFunc", err)
	}
	return nil
}

// insert is Insert. The lock is held.
func (l SharedList[T]) insert(i int, vs []T) error {
	d := l.deque()
	first, last, err := d.ends()
	if err != nil {
		return err
	}
	n := int(last - first)
	if i < 0 {
		i = max(0, i+n)
	}
	switch {
	case i >= n && len(vs) == 1:
		return l.push(&vs[0])
	case i >= n || len(vs) == 0:
		return l.pushAll(vs)
	}
	if err := d.fits(len(vs)); err != nil {
		return err
	}
	v, k := first+uint64(i), uint64(len(vs))
	pl := listPlan{deque: d, first: first, last: last + k, to: v + k, upto: last + k, delta: k, fill: v, filled: v + k}
	if i < n-i {
		pl = listPlan{deque: d, first: first - k, last: last, to: first - k, upto: v - k, delta: -k, fill: v - k, filled: v}
	}
	if err = d.reserve(pl.first, pl.last); err == nil {
		if i == 0 {
			err = l.pushFront(d, pl.first, vs)
		} else {
			err = pl.carryOut(func(tx *txn.Lane) error {
				for j := range vs {
					if err := l.write(tx, d, pl.element(uint64(j)), &vs[j]); err != nil {
						return err
					}
				}
				return nil
			})
		}
	}
	if err != nil {
		err = errors.Join(err, d.trim(d.next()+1, 1<<maxDirLog2))
	}
	return err
}

// write writes v to the slot at p, which nobody can see; if it has a block, that is taken in the operation in tx.
func (l SharedList[T]) write(tx *txn.Lane, d deque, p addr, v *T) error {
	if l.form != formPlain {
		return l.fill(tx, d, p, v)
	}
	store(p, v)
	return nil
}

// pushFront puts vs into the slots from first on, whose chunks are there, and which are those before the first one in use.
func (l SharedList[T]) pushFront(d deque, first uint64, vs []T) error {
	write := func(tx *txn.Lane) error {
		for j := range vs {
			p, err := d.slot(first + uint64(j))
			if err == nil {
				err = l.write(tx, d, p, &vs[j])
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	if l.form == formPlain {
		if err := write(nil); err != nil {
			return err
		}
		publish(&d.o.words[listFirst], first)
		return nil
	}
	err := d.s.change(func(tx *txn.Lane) error {
		if err := write(tx); err != nil {
			return err
		}
		return tx.Later(&d.o.words[listFirst], first)
	})
	if errors.Is(err, txn.ErrLogFull) {
		err = fmt.Errorf("%w: %w", err, shm.ErrNoSpace)
	}
	return err
}

// popAt is PopAt. The lock is held.
func (l SharedList[T]) popAt(i int) (v T, ok bool, err error) {
	d := l.deque()
	first, last, err := d.ends()
	if err != nil {
		return v, false, err
	}
	n := int(last - first)
	i, ok = position(i, n)
	switch {
	case !ok:
		return v, false, nil
	case i == n-1:
		return l.pop(true)
	case i == 0:
		return l.pop(false)
	}
	p, err := d.slot(first + uint64(i))
	if err == nil {
		v, err = l.load(d, p, d.seq().Load())
	}
	if err == nil {
		err = d.takeOut(first + uint64(i))
	}
	return v, err == nil, err
}

// takeOut takes slot v out, which is neither the first nor the last, and frees what it holds.
func (d deque) takeOut(v uint64) error {
	first, last := d.o.words[listFirst].Load(), d.o.words[listLast].Load()
	block, err := d.blockIn(v)
	if err != nil {
		return err
	}
	pl := listPlan{deque: d, first: first, last: last - 1, to: v, upto: last - 1, delta: ^uint64(0)}
	if v-first < last-1-v {
		pl = listPlan{deque: d, first: first + 1, last: last, to: first + 1, upto: v + 1, delta: 1}
	}
	if err := pl.carryOut(func(l *txn.Lane) error {
		if block == 0 {
			return nil
		}
		return d.s.heap.FreeIn(l, shm.Offset(block))
	}); err != nil {
		return err
	}
	return d.left(first, last)
}

// removeFunc is RemoveFunc. The lock is held.
func (l SharedList[T]) removeFunc(match func(T) bool) bool {
	i := l.IndexFunc(match)
	if i < 0 {
		return false
	}
	if _, _, err := l.popAt(i); err != nil {
		panic(l.fail("RemoveFunc", err))
	}
	return true
}

// truncate is Truncate. The lock is held.
func (l SharedList[T]) truncate(n int) {
	if n < 0 {
		panic(fmt.Sprintf("containers: SharedList.Truncate: to %d elements", n))
	}
	d := l.deque()
	first, last, err := d.ends()
	if err == nil && uint64(n) < last-first {
		err = d.truncate(first + uint64(n))
	}
	if err != nil {
		panic(l.fail("Truncate", err))
	}
}
