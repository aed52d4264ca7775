package containers

import (
	"iter"

	"github.com/shmkit/shmkit/shm"
)

// Locked returns the methods to use between Lock and Unlock, which act under the lock already held.
func (a SharedArray[T]) Locked() ArrayView[T] {
	a.checkLive("Locked")
	if s := a.obj.words[arraySeq].Load(); s&arrayMode != arrayStable && a.mu != nil && a.foreign() && a.obj.words[arrayOpener].Load() != uint64(shm.Self()) {
		// The caller took its lock itself, after a death, past the repair that Lock would have made.
		if err := a.settle(); err != nil {
			panic(a.fail("Locked", err))
		}
	}
	return ArrayView[T]{a}
}

// An ArrayView is a [SharedArray] whose lock is held, by the caller between Lock and Unlock: its methods do
// not take it. Each is a step of its own, visible at once; only With and Update make several into one. Using
// one without the lock corrupts what others write.
type ArrayView[T any] struct{ a SharedArray[T] }

// Len returns the number of elements.
func (v ArrayView[T]) Len() int { return v.a.Len() }

// At is [SharedArray.At].
func (v ArrayView[T]) At(i int) T { return v.a.At(i) }

// Set is [SharedArray.Set].
func (v ArrayView[T]) Set(i int, e T) {
	if uint(i) >= uint(v.a.n) {
		v.a.badIndex("Set", i)
	}
	v.a.checkLive("Set")
	if err := v.a.set(i, &e); err != nil {
		panic(v.a.fail("Set", err))
	}
}

// CopyIn is [SharedArray.CopyIn].
func (v ArrayView[T]) CopyIn(i int, src []T) {
	v.a.checkRange("CopyIn", i, len(src))
	v.a.checkLive("CopyIn")
	if err := v.a.copyIn(i, src); err != nil {
		panic(v.a.fail("CopyIn", err))
	}
}

// CopyOut is [SharedArray.CopyOut].
func (v ArrayView[T]) CopyOut(dst []T, i int) int { return v.a.CopyOut(dst, i) }

// Slice is [SharedArray.Slice].
func (v ArrayView[T]) Slice(start, stop, step int) ([]T, error) { return v.a.Slice(start, stop, step) }

// All is [SharedArray.All].
func (v ArrayView[T]) All() iter.Seq2[int, T] { return v.a.All() }

// Values is [SharedArray.Values].
func (v ArrayView[T]) Values() iter.Seq[T] { return v.a.Values() }

// With is [SharedArray.With].
func (v ArrayView[T]) With(fn func(v []T)) {
	v.a.checkLive("With")
	if err := v.a.edit(func(v []T) error { fn(v); return nil }); err != nil {
		panic(v.a.fail("With", err))
	}
}

// Update is [SharedArray.Update].
func (v ArrayView[T]) Update(fn func(v []T) error) error {
	if err := v.a.check("Update"); err != nil {
		return err
	}
	return v.a.update(fn)
}
