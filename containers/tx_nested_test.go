package containers

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/shmkit/shmkit/shm"
)

// deep calls fn with n more functions on the stack.
func deep(n int, fn func() error) error {
	if n == 0 {
		return fn()
	}
	err := deep(n-1, fn)
	if err == errCut { // so that this is no tail call
		return errors.Join(err)
	}
	return err
}

func TestUpdateInsideAnUpdateIsRefused(t *testing.T) {
	m, other := newHeapManager(t), newHeapManager(t)
	n, free := Must(NewSharedInt(m, 1)), Must(NewSharedInt(other, 1))
	for _, depth := range []int{0, 1, 62, 63, 64, 65, 300} {
		for what, inner := range map[string]func() error{
			"that needs an object of the outer one": func() error {
				return m.Update(t.Context(), func(tx *Tx) error { n.In(tx).Add(10); return nil })
			},
			"that needs nothing":       func() error { return m.Update(t.Context(), func(*Tx) error { return nil }) },
			"of another region":        func() error { return other.Update(t.Context(), func(tx *Tx) error { free.In(tx).Add(10); return nil }) },
			"in the one of a value":    func() error { return inAValue(t.Context(), m, other) },
			"in a loop over something": func() error { return inALoop(t.Context(), m) },
		} {
			before := n.Load()
			err := m.Update(t.Context(), func(tx *Tx) error {
				n.In(tx).Add(1)
				if err := deep(depth, inner); !errors.Is(err, ErrNested) {
					t.Errorf("%s, %d functions deep: %v, want %v", what, depth, err, ErrNested)
				}
				return nil
			})
			if err != nil || n.Load() != before+1 || free.Load() != 1 {
				t.Errorf("%s: the outer one: %v; values %d and %d", what, err, n.Load(), free.Load())
			}
		}
	}
	if updating.Load() != 0 {
		t.Errorf("%d Updates are still running", updating.Load())
	}
}

func inAValue(ctx context.Context, m, other *Manager) error {
	return Must(NewSharedInt(other, 1)).Update(ctx, func(*int64) error {
		return m.Update(ctx, func(*Tx) error { return nil })
	})
}

func inALoop(ctx context.Context, m *Manager) error {
	for range slices.Values([]int{1}) {
		return m.Update(ctx, func(*Tx) error { return nil })
	}
	return nil
}

// Updates of several goroutines are none inside another, nor is one in a goroutine that an Update has begun, which it must not wait for.
func TestUpdatesOfGoroutinesAreNotNested(t *testing.T) {
	m := newHeapManager(t)
	n, other := Must(NewSharedInt(m, 0)), Must(NewSharedInt(m, 0))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200 {
				if err := m.Update(t.Context(), func(tx *Tx) error { n.In(tx).Add(1); return nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n.Load() != 800 {
		t.Errorf("%d", n.Load())
	}
	var errs [3]error
	if err := m.Update(t.Context(), func(tx *Tx) error {
		n.In(tx).Add(1)
		var wg sync.WaitGroup
		ended, end := context.WithCancel(t.Context())
		end()
		wg.Go(func() { errs[0] = m.Update(t.Context(), func(tx *Tx) error { other.In(tx).Add(1); return nil }) })
		wg.Go(func() { errs[1] = m.Update(ended, func(tx *Tx) error { n.In(tx).Add(1); return nil }) })
		wg.Go(func() { errs[2] = n.Update(ended, func(v *int64) error { *v++; return nil }) })
		wg.Wait()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if errs[0] != nil || !errors.Is(errs[1], context.Canceled) || !errors.Is(errs[2], context.Canceled) || n.Load() != 801 || other.Load() != 1 {
		t.Errorf("%v; values %d and %d", errs, n.Load(), other.Load())
	}
}

type myInt int64

// An object that joins through handles of two types, which its layout does not tell apart, is refused, and nothing has happened.
func TestObjectJoinsATransactionAsOneType(t *testing.T) {
	m := newHeapManager(t)
	v := Must(NewShared(m, [2]int64{1}, Name("value")))
	a := Must(NewSharedArray[int64](m, 3, Name("array")))
	l := Must(NewSharedList[int64](m, Name("list")))
	h := Must(NewSharedMap[int64, int64](m, Name("map")))
	n := Must(NewSharedInt(m, 1, Name("number")))
	v2 := Must(Find[Shared[[2]myInt]](m, "value"))
	a2 := Must(Find[SharedArray[myInt]](m, "array"))
	l2 := Must(Find[SharedList[myInt]](m, "list"))
	h2 := Must(Find[SharedMap[myInt, int64]](m, "map"))
	n2 := Must(Find[SharedNumber[myInt]](m, "number"))
	for what, fn := range map[string]func(tx *Tx){
		"value": func(tx *Tx) { v.In(tx).Store([2]int64{2}); v2.In(tx).Store([2]myInt{3}) },
		"array": func(tx *Tx) { a.In(tx).Set(0, 2); a2.In(tx).Set(0, 3) },
		"list":  func(tx *Tx) { l.In(tx).Append(2); l2.In(tx).Append(3) },
		"map":   func(tx *Tx) { h.In(tx).Put(1, 2); h2.In(tx).Put(1, 3) },
	} {
		err := m.Update(t.Context(), func(tx *Tx) error { n.In(tx).Add(1); fn(tx); return nil })
		var wrong *shm.TypeError
		if !errors.As(err, &wrong) || !errors.Is(err, shm.ErrTypeMismatch) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if v.Load() != [2]int64{1} || a.At(0) != 0 || l.Len() != 0 || h.Len() != 0 || n.Load() != 1 {
		t.Error("a part of it has happened")
	}
	if err := m.Update(t.Context(), func(tx *Tx) error { n.In(tx).Add(1); n2.In(tx).Add(1); return nil }); err != nil || n.Load() != 3 {
		t.Errorf("a number: %v, and %d", err, n.Load())
	}
}
