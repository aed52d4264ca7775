package containers

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	stdsync "sync"
	"sync/atomic"
	"testing"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

type measurement struct {
	Count int32
	Mean  float64
	Total int64
}

var double = proc.Define("double", func(_ context.Context, s Shared[measurement]) error {
	s.With(func(v *measurement) { v.Count *= 2 })
	s.With(func(v *measurement) { v.Mean *= 2 })
	s.With(func(v *measurement) { v.Total *= 2 })
	return nil
})

func TestStructChangedByChildIsSeenByParent(t *testing.T) {
	s := Must(NewShared(newManager(t), measurement{3, 1.25, 1 << 40}))
	if err := double.Run(deadline(t), s); err != nil {
		t.Fatal(err)
	}
	if got, want := s.Load(), (measurement{6, 2.5, 1 << 41}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestCopyOfAStructStaysAsItWas(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		s := Must(NewShared(m, measurement{1, 2, 3}))
		kept := s.Load()
		other := Must(NewShared(m, s.Load()))
		s.With(func(v *measurement) { *v = measurement{4, 5, 6} })
		if want := (measurement{1, 2, 3}); kept != want || other.Load() != want {
			t.Errorf("after the original changed the copies are %+v and %+v, want %+v", kept, other.Load(), want)
		}
		if got := s.Load(); got != (measurement{4, 5, 6}) {
			t.Errorf("the original is %+v", got)
		}
	})
}

// odd sizes and alignments, and what lies beside them
func TestEverySizeIsCopiedWhole(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		testSize(t, m, struct{}{}, struct{}{})
		testSize(t, m, [1]byte{1}, [1]byte{2})
		testSize(t, m, [3]byte{1, 2, 3}, [3]byte{4, 5, 6})
		testSize(t, m, [7]uint16{1, 2, 3, 4, 5, 6, 7}, [7]uint16{7, 6, 5, 4, 3, 2, 1})
		testSize(t, m, [8]byte{1}, [8]byte{7: 1})
		testSize(t, m, [33]byte{32: 1}, [33]byte{1, 31: 5, 32: 9})
		testSize(t, m, true, false)
		testSize(t, m, complex(1, 2), complex(3, 4))
		testSize(t, m, measurement{1, 2, 3}, measurement{4, 5, 6})
	})
}

func testSize[T comparable](t *testing.T, m *Manager, a, b T) {
	t.Helper()
	below, s, above := Must(NewShared(m, a)), Must(NewShared(m, a)), Must(NewShared(m, a))
	for i := range 5 {
		s.Store(b)
		if got := s.Load(); got != b {
			t.Errorf("%T: stored %v, loaded %v", a, b, got)
		}
		s.With(func(v *T) {
			if *v != b {
				t.Errorf("%T: %v in With, want %v", a, *v, b)
			}
			*v = a
		})
		if got := s.Load(); got != a {
			t.Errorf("%T, round %d: With stored %v, loaded %v", a, i, a, got)
		}
	}
	s.Store(b)
	if below.Load() != a || above.Load() != a {
		t.Errorf("%T: the neighbours changed", a)
	}
}

// A reader beside writers sees values that were committed, whole and in order.
func TestLoadSeesCommittedValuesOnly(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		type wide [200]int64
		s := Must(NewShared(m, wide{}))
		rounds := 1998 // a multiple of 3
		if testing.Short() {
			rounds = 300
		}
		var stop atomic.Bool
		var readers stdsync.WaitGroup
		for range 2 {
			readers.Go(func() {
				last := int64(0)
				for !stop.Load() {
					v := s.Load()
					for _, x := range v {
						if x != v[0] || x < last {
							t.Errorf("a reader saw %v after %d", v, last)
							return
						}
					}
					last = v[0]
				}
			})
		}
		var writers stdsync.WaitGroup
		for range 2 {
			writers.Go(func() {
				for i := range rounds {
					switch i % 3 {
					case 0:
						s.With(func(v *wide) {
							for k := range v {
								v[k]++
							}
						})
					case 1:
						s.Update(t.Context(), func(v *wide) error {
							for k := range v {
								v[k] = -1
							}
							return errors.New("no")
						})
					case 2:
						s.Lock()
						for range 2 { // two commits under one lock
							v := s.Locked().Load()
							for k := range v {
								v[k]++
							}
							s.Locked().Store(v)
						}
						s.Unlock()
					}
				}
			})
		}
		writers.Wait()
		stop.Store(true)
		readers.Wait()
		want := int64(2 * rounds)
		if got := s.Load()[0]; got != want {
			t.Errorf("%d, want %d: updates were lost", got, want)
		}
	})
}

func TestFailedChangeLeavesTheOldValue(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		s := Must(NewShared(m, measurement{1, 2, 3}))
		n := Must(NewSharedInt(m, 1))
		broken := errors.New("broken")
		ctx := t.Context()
		for name, change := range map[string]func() error{
			"Update": func() error {
				return s.Update(ctx, func(v *measurement) error { v.Count = 9; return broken })
			},
			"number's Update": func() error {
				return n.Update(ctx, func(v *int64) error { *v = 9; return broken })
			},
			"panic in With":            func() error { s.With(func(v *measurement) { v.Count = 9; panic(broken) }); return nil },
			"panic in number's With":   func() error { n.With(func(v *int64) { *v = 9; panic(broken) }); return nil },
			"panic in Update":          func() error { return s.Update(ctx, func(v *measurement) error { v.Count = 9; panic(broken) }) },
			"panic in number's Update": func() error { return n.Update(ctx, func(v *int64) error { *v = 9; panic(broken) }) },
		} {
			var err error
			if p := panicOf(t, func() { err = change() }); p != nil {
				err = p
			}
			if err != broken {
				t.Errorf("%s: %v, want fn's error as it is", name, err)
			}
			if !s.TryLock() || !n.TryLock() {
				t.Fatalf("%s: the lock stays held", name)
			}
			s.Unlock()
			n.Unlock()
			if got := s.Load(); got != (measurement{1, 2, 3}) || n.Load() != 1 {
				t.Errorf("%s: the value is %+v and %d now", name, got, n.Load())
			}
		}
		// The spare cell's garbage does not shine through.
		s.With(func(v *measurement) { v.Total++ })
		if got := s.Load(); got != (measurement{1, 2, 4}) {
			t.Errorf("after a change that succeeds: %+v", got)
		}
	})
}

func TestGoexitInWithFreesTheLock(t *testing.T) {
	s := Must(NewShared(newHeapManager(t), 1))
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.With(func(v *int) { *v = 2; runtime.Goexit() })
	}()
	<-done
	if s.Load() != 1 || !s.TryLock() {
		t.Errorf("value %d, or the lock is held", s.Load())
	}
}

func TestWaitForTheLockEndsWithTheContext(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		s, n := Must(NewShared(m, 1)), Must(NewSharedInt(m, 1))
		ended, end := context.WithCancel(t.Context())
		end()
		if err := n.Update(ended, func(v *int64) error { *v = 2; return nil }); err != nil || n.Load() != 2 {
			t.Errorf("a free lock under an ended context: %v", err)
		}
		s.Lock()
		n.Lock()
		defer s.Unlock()
		defer n.Unlock()
		wantErrors(t, context.Canceled, map[string]func() error{
			"Update":          func() error { return s.Update(ended, func(*int) error { return nil }) },
			"number's Update": func() error { return n.Update(ended, func(*int64) error { return nil }) },
			"LockContext":     func() error { return s.LockContext(ended) },
		})
		if s.Load() != 1 || n.Load() != 2 {
			t.Error("Load does not go on under a held lock")
		}
	})
}

func TestTypesThatAreNotPlainAreRefused(t *testing.T) {
	m := newHeapManager(t)
	type named struct{ Name string }
	type counted struct {
		Mu shmsync.Mutex
		N  int64
	}
	type standard struct{ Mu stdsync.Mutex }
	type hits struct{ N atomic.Int64 }
	is := func(want error, _ any, err error) {
		t.Helper()
		var te *shm.TypeError
		if !errors.Is(err, want) || !errors.As(err, &te) {
			t.Errorf("%v, want a TypeError that is: %v", err, want)
		}
	}
	try := func(v any, err error) (any, error) { return v, err }
	v, err := try(NewShared(m, named{}))
	is(shm.ErrNotPlain, v, err)
	v, err = try(NewShared(m, counted{}))
	is(shm.ErrNotPlain, v, err)
	v, err = try(NewShared(m, hits{}))
	is(shm.ErrNotPlain, v, err)
	v, err = try(NewShared(m, standard{}))
	is(shm.ErrStandardSync, v, err)
	v, err = try(New[named](m))
	is(shm.ErrNotPlain, v, err)
	v, err = try(New[standard](m))
	is(shm.ErrStandardSync, v, err)
	v, err = try(New[SharedInt](m))
	is(shm.ErrNotPlain, v, err)
	// In place they are fine.
	r, err := New[counted](m)
	if err != nil {
		t.Fatal(err)
	}
	r.Ptr().Mu.Lock()
	r.Ptr().N++
	r.Ptr().Mu.Unlock()
	if _, err := New[hits](m); err != nil {
		t.Error(err)
	}
	if _, err := New[struct{ Next Link[SharedInt] }](m); err != nil {
		t.Error(err)
	}
}

type tallied struct {
	Mu   shmsync.Mutex
	N    int64
	Hits atomic.Int64
}

var tally = proc.Define("tally", func(_ context.Context, r Ref[tallied]) error {
	for range 1000 {
		c := r.Ptr()
		c.Mu.Lock()
		c.N++
		c.Mu.Unlock()
		c.Hits.Add(1)
	}
	return nil
})

func TestStructWithALockIsSharedInPlace(t *testing.T) {
	r := Must(New[tallied](newManager(t)))
	if err := tally.Run(deadline(t), r, r, r); err != nil {
		t.Fatal(err)
	}
	if c := r.Ptr(); c.N != 3000 || c.Hits.Load() != 3000 {
		t.Errorf("%d and %d, want 3000", c.N, c.Hits.Load())
	}
}

func TestFastPathsAllocateNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("race builds copy")
	}
	m := newManager(t)
	n, s, a := Must(NewSharedInt(m, 0)), Must(NewShared(m, measurement{})), Must(NewAtomicInt(m, 0))
	f := Must(NewAtomic[float64](m, 0))
	r := Must(New[tallied](m))
	ctx := context.Background()
	for name, call := range map[string]func(){
		"SharedInt.Load":           func() { n.Load() },
		"SharedInt.Store":          func() { n.Store(1) },
		"SharedInt.Add":            func() { n.Add(1) },
		"SharedInt.Swap":           func() { n.Swap(1) },
		"SharedInt.CompareAndSwap": func() { n.CompareAndSwap(1, 2) },
		"SharedInt.With":           func() { n.With(func(v *int64) { *v++ }) },
		"SharedInt.Update":         func() { n.Update(ctx, func(v *int64) error { *v++; return nil }) },
		"SharedInt.Lock":           func() { n.Lock(); n.Locked().Add(1); n.Unlock() },
		"Shared.Load":              func() { s.Load() },
		"Shared.Store":             func() { s.Store(measurement{1, 2, 3}) },
		"Shared.With":              func() { s.With(func(v *measurement) { v.Count++ }) },
		"Shared.Update":            func() { s.Update(ctx, func(v *measurement) error { v.Count++; return nil }) },
		"Atomic.Load":              func() { a.Load() },
		"Atomic.Add":               func() { a.Add(1) },
		"Atomic.CompareAndSwap":    func() { a.CompareAndSwap(1, 2) },
		"float Atomic.Add":         func() { f.Add(1) },
		"Ref.Ptr":                  func() { r.Ptr().Hits.Add(1) },
	} {
		if n := testing.AllocsPerRun(100, call); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

func TestZeroHandlePanicsWithAClearText(t *testing.T) {
	var n SharedInt
	var s Shared[int]
	var a AtomicInt
	var r Ref[int]
	for name, call := range map[string]func(){
		"SharedInt.Load": func() { n.Load() },
		"SharedInt.Add":  func() { n.Add(1) },
		"SharedInt.Lock": func() { n.Lock() },
		"SharedInt.Try":  func() { n.TryLock() },
		"Shared.Load":    func() { s.Load() },
		"Shared.With":    func() { s.With(func(*int) {}) },
		"Shared.Update":  func() { s.Update(t.Context(), func(*int) error { return nil }) },
		"Shared.Destroy": func() { s.Destroy() },
		"Atomic.Load":    func() { a.Load() },
		"Atomic.Add":     func() { a.Add(1) },
		"Ref.Ptr":        func() { r.Ptr() },
	} {
		func() {
			defer func() {
				if v := fmt.Sprint(recover()); v != "containers: use of a zero handle; make one with New… or Find" {
					t.Errorf("%s panics with %s", name, v)
				}
			}()
			call()
		}()
	}
}

func TestCopyWordsOfAnyLength(t *testing.T) {
	m := newHeapManager(t)
	s := Must(m.space())
	off := Must(s.heap.Alloc(128))
	defer s.heap.Free(off)
	p := Must(addrOf(s.region, off, 128))
	for n := range 65 {
		for shift := range 3 { // where src and dst begin
			src, dst := make([]byte, n+3)[shift:][:n], make([]byte, n+3)[shift:][:n]
			for i := range src {
				src[i] = byte(i + 1)
			}
			for i := range 16 {
				word(p, i).Store(^uint64(0))
			}
			storeWords(p, src)
			loadWords(dst, p)
			if !reflect.DeepEqual(src, dst) {
				t.Errorf("%d bytes: %v came back as %v", n, src, dst)
			}
			if next := (n + 7) / 8; word(p, next).Load() != ^uint64(0) {
				t.Errorf("%d bytes: the word behind was written", n)
			}
		}
	}
}
