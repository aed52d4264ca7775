package containers

import (
	"iter"
	"slices"
)

// With calls fn with the list's methods, the lock held: several steps that no other writer comes between.
// Each of them is seen by readers as it is done, and stays done if fn panics or the process dies; the lock
// comes free in any case. v is of use only until fn returns. Calling the list's own writing methods inside
// fn would wait for ever; use those of v.
func (l SharedList[T]) With(fn func(v ListView[T])) {
	l.acquire("With")
	defer l.release()
	fn(ListView[T]{l})
}

// Locked returns the methods to use between Lock and Unlock, which act under the lock already held.
func (l SharedList[T]) Locked() ListView[T] {
	l.checkLive("Locked")
	if l.mu != nil && l.foreign() {
		// The caller may have taken its lock itself, after a death, past the repair that Lock would have made.
		if err := l.settle(); err != nil {
			panic(l.fail("Locked", err))
		}
	}
	return ListView[T]{l}
}

// A ListView is a [SharedList] whose lock is held, by [SharedList.With] or by the caller between Lock and
// Unlock: its methods do not take it. Using one without the lock corrupts the list.
type ListView[T any] struct{ l SharedList[T] }

// Append is [SharedList.Append].
func (v ListView[T]) Append(e T) error {
	if err := v.l.check("Append"); err != nil {
		return err
	}
	if err := v.l.push(&e); err != nil {
		return v.l.fail("Append", err)
	}
	return nil
}

// AppendN is [SharedList.AppendN].
func (v ListView[T]) AppendN(es ...T) error {
	if err := v.l.check("AppendN"); err != nil {
		return err
	}
	if err := v.l.pushAll(es); err != nil {
		return v.l.fail("AppendN", err)
	}
	return nil
}

// Extend is [SharedList.Extend].
func (v ListView[T]) Extend(seq iter.Seq[T]) error { return v.AppendN(slices.Collect(seq)...) }

// Len returns the number of elements.
func (v ListView[T]) Len() int { return v.l.Len() }

// At is [SharedList.At].
func (v ListView[T]) At(i int) T { return v.l.At(i) }

// Get is [SharedList.Get].
func (v ListView[T]) Get(i int) (T, bool) { return v.l.Get(i) }

// Set is [SharedList.Set].
func (v ListView[T]) Set(i int, e T) error {
	if err := v.l.check("Set"); err != nil {
		return err
	}
	n, ok, err := v.l.put(i, &e)
	if !ok {
		badListIndex("Set", i, n)
	}
	if err != nil {
		return v.l.fail("Set", err)
	}
	return nil
}

// Pop is [SharedList.Pop].
func (v ListView[T]) Pop() (T, bool) { return v.pop("Pop", true) }

// PopFirst is [SharedList.PopFirst].
func (v ListView[T]) PopFirst() (T, bool) { return v.pop("PopFirst", false) }

func (v ListView[T]) pop(op string, last bool) (T, bool) {
	v.l.checkLive(op)
	e, ok, err := v.l.pop(last)
	if err != nil {
		panic(v.l.fail(op, err))
	}
	return e, ok
}

// Insert is [SharedList.Insert].
func (v ListView[T]) Insert(i int, es ...T) error {
	return v.do("Insert", func() error { return v.l.insert(i, es) })
}

// PopAt is [SharedList.PopAt].
func (v ListView[T]) PopAt(i int) (T, bool) {
	v.l.checkLive("PopAt")
	e, ok, err := v.l.popAt(i)
	if err != nil {
		panic(v.l.fail("PopAt", err))
	}
	return e, ok
}

// RemoveFunc is [SharedList.RemoveFunc].
func (v ListView[T]) RemoveFunc(match func(T) bool) bool {
	v.l.checkLive("RemoveFunc")
	return v.l.removeFunc(match)
}

// Truncate is [SharedList.Truncate].
func (v ListView[T]) Truncate(n int) {
	v.l.checkLive("Truncate")
	v.l.truncate(n)
}

// Reverse is [SharedList.Reverse].
func (v ListView[T]) Reverse() error { return v.do("Reverse", v.l.deque().reverse) }

// SortFunc is [SharedList.SortFunc].
func (v ListView[T]) SortFunc(compare func(a, b T) int) error {
	return v.do("SortFunc", func() error { return v.l.sort(compare) })
}

// do calls fn if the list is live, and says what failed.
func (v ListView[T]) do(op string, fn func() error) error {
	if err := v.l.check(op); err != nil {
		return err
	}
	if err := fn(); err != nil {
		return v.l.fail(op, err)
	}
	return nil
}

// IndexFunc is [SharedList.IndexFunc].
func (v ListView[T]) IndexFunc(match func(T) bool, bounds ...int) int {
	return v.l.IndexFunc(match, bounds...)
}

// CountFunc is [SharedList.CountFunc].
func (v ListView[T]) CountFunc(match func(T) bool, bounds ...int) int {
	return v.l.CountFunc(match, bounds...)
}

// Slice is [SharedList.Slice].
func (v ListView[T]) Slice(from, to int) []T { return v.l.Slice(from, to) }

// Clear is [SharedList.Clear].
func (v ListView[T]) Clear() {
	v.l.checkLive("Clear")
	if err := v.l.deque().clear(); err != nil {
		panic(v.l.fail("Clear", err))
	}
}

// All is [SharedList.All].
func (v ListView[T]) All() iter.Seq2[int, T] { return v.l.All() }

// Values is [SharedList.Values].
func (v ListView[T]) Values() iter.Seq[T] { return v.l.Values() }
