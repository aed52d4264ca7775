package containers

import (
	"context"
	"errors"
	"math"
	"runtime"
	"strconv"
	"sync"
	"testing"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

type numbers struct {
	Int32   SharedNumber[int32]
	Float64 SharedNumber[float64]
	Int16   SharedNumber[int16]
	Int64   SharedInt
	Byte    SharedNumber[uint8]

	RawInt32   Atomic[int32]
	RawFloat64 Atomic[float64]
	RawInt16   Atomic[int16]
	RawInt64   AtomicInt
	RawByte    Atomic[uint8]
}

func newNumbers(t *testing.T, m *Manager) (n numbers) {
	fill := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	var e [10]error
	n.Int32, e[0] = NewSharedNumber[int32](m, 0)
	n.Float64, e[1] = NewSharedNumber[float64](m, 0)
	n.Int16, e[2] = NewSharedNumber[int16](m, 0)
	n.Int64, e[3] = NewSharedInt(m, 0)
	n.Byte, e[4] = NewSharedNumber[uint8](m, 0)
	n.RawInt32, e[5] = NewAtomic[int32](m, 0)
	n.RawFloat64, e[6] = NewAtomic[float64](m, 0)
	n.RawInt16, e[7] = NewAtomic[int16](m, 0)
	n.RawInt64, e[8] = NewAtomicInt(m, 0)
	n.RawByte, e[9] = NewAtomic[uint8](m, 0)
	fill(e[:]...)
	return n
}

var setNumbers = proc.Define("set numbers", func(_ context.Context, n numbers) error {
	n.Int32.Store(24234)
	n.Float64.Store(-4.25)
	n.Int16.Store(234)
	n.Int64.Store(1 << 34)
	n.Byte.Store('y')
	n.RawInt32.Store(24234)
	n.RawFloat64.Store(-4.25)
	n.RawInt16.Store(234)
	n.RawInt64.Store(1 << 34)
	n.RawByte.Store('y')
	return nil
})

func TestParentReadsWhatTheChildSet(t *testing.T) {
	n := newNumbers(t, newManager(t))
	values := func() []float64 {
		return []float64{
			float64(n.Int32.Load()), n.Float64.Load(), float64(n.Int16.Load()), float64(n.Int64.Load()), float64(n.Byte.Load()),
			float64(n.RawInt32.Load()), n.RawFloat64.Load(), float64(n.RawInt16.Load()), float64(n.RawInt64.Load()), float64(n.RawByte.Load()),
		}
	}
	for i, v := range values() {
		if v != 0 {
			t.Errorf("number %d is %v before it was set", i, v)
		}
	}
	if err := setNumbers.Run(deadline(t), n); err != nil {
		t.Fatal(err)
	}
	want := []float64{24234, -4.25, 234, 1 << 34, 'y'}
	for i, v := range values() {
		if v != want[i%5] {
			t.Errorf("number %d is %v, the child set %v", i, v, want[i%5])
		}
	}
}

func TestFloatsKeepTheirBits(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		f32 := Must(NewSharedNumber[float32](m, 0.1))
		if got := strconv.FormatFloat(float64(f32.Load()), 'g', 15, 64); got != "0.100000001490116" {
			t.Errorf("float32 0.1 reads %s", got)
		}
		f64 := Must(NewSharedNumber[float64](m, 0))
		raw := Must(NewAtomic[float64](m, 0))
		negZero := math.Copysign(0, -1)
		for _, v := range []float64{math.Inf(1), math.Inf(-1), math.NaN(), negZero, math.SmallestNonzeroFloat64, math.MaxFloat64} {
			f64.Store(v)
			raw.Store(v)
			for _, got := range []float64{f64.Load(), raw.Load(), f64.Swap(v), f64.Locked().Load()} {
				if math.Float64bits(got) != math.Float64bits(v) {
					t.Errorf("%v reads %v", v, got)
				}
			}
			f64.With(func(p *float64) {
				if math.Float64bits(*p) != math.Float64bits(v) {
					t.Errorf("%v is %v in With", v, *p)
				}
			})
		}
	})
}

func TestFloatsAreComparedAsValues(t *testing.T) {
	m := newHeapManager(t)
	type swapper interface {
		CompareAndSwap(old, v float64) bool
		Store(v float64)
		Load() float64
	}
	for name, f := range map[string]swapper{
		"shared": Must(NewSharedNumber(m, 1.5)),
		"atomic": Must(NewAtomic(m, 1.5)),
	} {
		if f.CompareAndSwap(1.25, 9) || f.Load() != 1.5 {
			t.Errorf("%s: 1.5 was taken for 1.25", name)
		}
		if !f.CompareAndSwap(1.5, math.Copysign(0, -1)) || !f.CompareAndSwap(0, 7) || f.Load() != 7 {
			t.Errorf("%s: −0 is not 0", name)
		}
		f.Store(math.NaN())
		if f.CompareAndSwap(math.NaN(), 1) {
			t.Errorf("%s: NaN was found equal", name)
		}
	}
}

type increments struct {
	N     SharedInt
	Times int
	How   string
}

var increment = proc.Define("increment", func(ctx context.Context, a increments) error {
	for range a.Times {
		switch a.How {
		case "Lock":
			a.N.Lock()
			l := a.N.Locked()
			l.Store(l.Load() + 1)
			a.N.Unlock()
		case "With":
			a.N.With(func(n *int64) { *n++ })
		case "Update":
			if err := a.N.Update(ctx, func(n *int64) error { *n++; return nil }); err != nil {
				return err
			}
		case "Add":
			a.N.Add(1)
		case "CompareAndSwap":
			for {
				if n := a.N.Load(); a.N.CompareAndSwap(n, n+1) {
					break
				}
			}
		}
	}
	return nil
})

func TestNoIncrementIsLost(t *testing.T) {
	for _, how := range []string{"Lock", "With", "Update", "Add", "CompareAndSwap"} {
		t.Run(how, func(t *testing.T) {
			n := Must(NewSharedInt(newManager(t), 0))
			a := increments{n, 10_000, how}
			if err := increment.Run(deadline(t), a, a, a, a); err != nil {
				t.Fatal(err)
			}
			if got := n.Load(); got != 40_000 {
				t.Errorf("4 processes added 1 10,000 times each: %d", got)
			}
		})
	}
}

// Goroutines of one process, under the race detector, with readers beside them.
func TestNoIncrementIsLostAmongGoroutines(t *testing.T) {
	n := Must(NewSharedInt(newHeapManager(t), 0))
	raw := Must(NewAtomicInt(newHeapManager(t), 0))
	half := Must(NewAtomic[float32](newHeapManager(t), 0))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 500 {
				switch i % 4 {
				case 0:
					n.With(func(v *int64) { *v++ })
				case 1:
					n.Add(1)
				case 2:
					n.Lock()
					n.Locked().Add(1)
					n.Unlock()
				case 3:
					for v := n.Load(); !n.CompareAndSwap(v, v+1); v = n.Load() {
					}
				}
				raw.Add(1)
				half.Add(0.5)
			}
		})
	}
	wg.Wait()
	if n.Load() != 4000 || raw.Load() != 4000 || half.Load() != 2000 {
		t.Errorf("%d, %d and %v, want 4000, 4000 and 2000", n.Load(), raw.Load(), half.Load())
	}
}

func TestValueIsUsableUnderItsLock(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		n := Must(NewSharedInt(m, 1))
		n.Lock()
		l := n.Locked()
		l.Store(l.Load() + 1)
		if got := l.Add(3); got != 5 || n.Load() != 5 {
			t.Errorf("under the lock: %d, and %d by the handle, want 5", got, n.Load())
		}
		if err := l.Update(func(v *int64) error { *v *= 2; return nil }); err != nil {
			t.Error(err)
		}
		if n.TryLock() {
			t.Error("TryLock of a held lock succeeds")
		}
		n.Unlock()
		if n.Load() != 10 {
			t.Errorf("after the lock: %d, want 10", n.Load())
		}
		s := Must(NewShared(m, [3]int64{1, 2, 3}))
		s.Lock()
		s.Locked().Store([3]int64{4, 5, 6})
		s.Locked().With(func(v *[3]int64) { v[0]++ })
		if err := s.Locked().Update(func(v *[3]int64) error { v[1]++; return nil }); err != nil {
			t.Error(err)
		}
		if got := s.Locked().Load(); got != [3]int64{5, 6, 6} {
			t.Errorf("under the lock: %v", got)
		}
		s.Unlock()
		if got := s.Load(); got != [3]int64{5, 6, 6} {
			t.Errorf("after the lock: %v", got)
		}
	})
}

func TestNarrowNumbersWrapRound(t *testing.T) {
	m := newHeapManager(t)
	i8, u16 := Must(NewSharedNumber[int8](m, 127)), Must(NewSharedNumber[uint16](m, 0))
	r8, r32 := Must(NewAtomic[int8](m, 127)), Must(NewAtomic[uint32](m, 0))
	if a, b, c, d := i8.Add(1), u16.Add(math.MaxUint16), r8.Add(1), r32.Add(math.MaxUint32); a != -128 || b != 65535 || c != -128 || d != math.MaxUint32 {
		t.Errorf("%d %d %d %d", a, b, c, d)
	}
	if u16.Add(1) != 0 || r32.Add(1) != 0 {
		t.Error("unsigned numbers do not wrap round to 0")
	}
	if i8.Swap(5) != -128 || r8.Swap(5) != -128 || !r8.CompareAndSwap(5, -1) || r8.Load() != -1 {
		t.Error("negative bytes lose their sign")
	}
}

type holdArgs struct {
	Lock Ref[shmsync.Mutex]
	N    SharedInt
	Step AtomicInt // 1: the child holds the lock; 2: the parent has looked
	Die  bool      // with the lock held
}

var holdLock = proc.Define("hold lock", func(ctx context.Context, a holdArgs) error {
	if a.N.Mutex() != a.Lock.Ptr() {
		return errors.New("the number's lock is another one in this process")
	}
	a.Lock.Ptr().Lock()
	if a.Die {
		kill()
	}
	a.Step.Store(1)
	for a.Step.Load() != 2 {
		runtime.Gosched()
	}
	a.N.Locked().Store(2)
	a.Lock.Ptr().Unlock()
	return nil
})

func TestValueOnACallersLock(t *testing.T) {
	m := newManager(t)
	lock := Must(New[shmsync.Mutex](m))
	n := Must(NewSharedInt(m, 1, WithMutex(lock)))
	if n.Mutex() != lock.Ptr() {
		t.Fatal("the lock of the value is not the one that was given")
	}
	step := Must(NewAtomicInt(m, 0))
	child := Must(holdLock.Start(deadline(t), holdArgs{lock, n, step, false}))
	defer child.Close()
	for step.Load() != 1 {
		runtime.Gosched()
	}
	if n.TryLock() {
		t.Error("the lock is held by the child, and the value's can be taken")
	}
	if got := n.Load(); got != 1 {
		t.Errorf("Load is %d while the lock is held, want the last committed value, 1", got)
	}
	step.Store(2)
	if got := n.Add(1); got != 3 { // waits for the child
		t.Errorf("1, then 2 by the holder, then 1 more: %d", got)
	}
	if err := child.Wait(); err != nil {
		t.Error(err)
	}
	if _, isLocker := any(step).(sync.Locker); isLocker {
		t.Error("an Atomic offers a lock")
	}
	if _, err := NewAtomicInt(m, 0, WithMutex(lock)); err == nil {
		t.Error("an Atomic takes a lock")
	}
}

func TestDeathUnderACallersLockIsTheCallersToRecover(t *testing.T) {
	m := newManager(t)
	lock := Must(New[shmsync.Mutex](m))
	n := Must(NewSharedInt(m, 1, WithMutex(lock)))
	v := Must(NewShared(m, [2]int64{1, 1}, WithMutex(lock)))
	step := Must(NewAtomicInt(m, 0))
	wantKilled(t, holdLock.Run(deadline(t), holdArgs{lock, n, step, true}))

	for range 2 {
		wantErrors(t, shmsync.ErrInconsistent, map[string]func() error{
			"Update":      func() error { return n.Update(t.Context(), func(*int64) error { return nil }) },
			"Add":         func() error { n.Add(1); return nil },
			"Store":       func() error { n.Store(1); return nil },
			"With":        func() error { v.With(func(*[2]int64) {}); return nil },
			"LockContext": func() error { return v.LockContext(t.Context()) },
			"Lock":        func() error { n.Lock(); return nil },
		})
	}
	if n.TryLock() || n.Load() != 1 || v.Load() != [2]int64{1, 1} {
		t.Errorf("TryLock succeeds, or the values changed: %d, %v", n.Load(), v.Load())
	}
	if err := lock.Ptr().Recover(t.Context(), func(shm.Death) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if n.Add(1) != 2 {
		t.Error("the number is of no use after the recovery")
	}
	v.Store([2]int64{2, 2})
}

func TestLockOfAnotherRegionIsRefused(t *testing.T) {
	lock := Must(New[shmsync.Mutex](newHeapManager(t)))
	if _, err := NewSharedInt(newHeapManager(t), 0, WithMutex(lock)); err == nil {
		t.Error("a number uses a lock of another region")
	}
}
