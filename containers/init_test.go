package containers

import (
	"context"
	"errors"
	"io/fs"
	"testing"

	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

func permits(n int) Option {
	return Init(func(s *shmsync.CountingSemaphore) error { return s.Init(n) })
}

type initializing struct {
	M     *Manager
	Gate  Ref[shmsync.Barrier]
	Calls AtomicInt
	Seen  AtomicInt
	Die   bool
}

var opensSemaphore = proc.Define("makes or opens a named semaphore", func(ctx context.Context, j initializing) error {
	if !j.Die {
		if _, err := j.Gate.Ptr().Wait(ctx); err != nil { // all at once
			return err
		}
	}
	s, err := New[shmsync.CountingSemaphore](j.M, Name("jobs"), OrOpen(), Init(func(s *shmsync.CountingSemaphore) error {
		j.Calls.Add(1)
		err := s.Init(5)
		if j.Die {
			kill()
		}
		return err
	}))
	if err == nil {
		j.Seen.Add(int64(s.Ptr().Value()))
	}
	return err
})

// Whoever comes first sets the object up, and all others find it so.
func TestInitRunsOnceBeforeAnybodySeesTheObject(t *testing.T) {
	if raceEnabled {
		t.Skip("processes; the race detector makes them start slowly")
	}
	m := newManager(t)
	const procs = 4
	gate := Must(New[shmsync.Barrier](m, Init(func(b *shmsync.Barrier) error { return b.Init(procs) })))
	j := initializing{M: m, Gate: gate, Calls: Must(NewAtomicInt(m, 0)), Seen: Must(NewAtomicInt(m, 0))}

	// First those who die in it: nothing is there then, and nothing is lost.
	dying := j
	dying.Die = true
	for range 3 {
		wantKilled(t, opensSemaphore.Run(deadline(t), dying))
		if _, err := Find[namedSemaphore](m, "jobs"); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("after a kill: %v", err)
		}
		nothingLost(t, m)
	}
	if n := objectsIn(t, m); n != 3 || j.Calls.Load() != 3 {
		t.Fatalf("%d objects, %d calls", n, j.Calls.Load())
	}
	if err := opensSemaphore.Run(deadline(t), j, j, j, j); err != nil {
		t.Fatal(err)
	}
	if j.Calls.Load() != 4 || j.Seen.Load() != 5*procs {
		t.Errorf("%d calls, values of %d together", j.Calls.Load()-3, j.Seen.Load())
	}
	if again := Must(New[shmsync.CountingSemaphore](m, Name("jobs"), OrOpen(), permits(9))); again.Ptr().Value() != 5 {
		t.Errorf("value %d", again.Ptr().Value())
	}
}

func TestInitThatFailsLeavesNothing(t *testing.T) {
	m := newHeapManager(t)
	mine := errors.New("mine")
	type pair struct{ A, B int64 }
	before := objectsIn(t, m)
	if _, err := New[pair](m, Name("x"), Init(func(p *pair) error { p.A = 1; return mine })); !errors.Is(err, mine) {
		t.Errorf("%v, want %v", err, mine)
	}
	func() {
		defer func() {
			if r := recover(); r != "mine" {
				t.Errorf("panic with %v", r)
			}
		}()
		New[pair](m, Name("x"), Init(func(p *pair) error { p.A = 1; panic("mine") }))
	}()
	if _, err := Find[Ref[pair]](m, "x"); !errors.Is(err, fs.ErrNotExist) || objectsIn(t, m) != before {
		t.Errorf("%v, and %d objects", err, objectsIn(t, m)-before)
	}
	nothingLost(t, m)
	if got := *Must(New[pair](m, Name("x"), Init(func(p *pair) error { p.B = 7; return nil }))).Ptr(); got != (pair{0, 7}) {
		t.Errorf("then %v", got)
	}
	if _, err := New[shmsync.Semaphore](m, Init(func(s *shmsync.Semaphore) error { return s.Init(-1) })); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("a semaphore of -1 permits: %v", err)
	}
	for what, err := range map[string]error{
		"a lock":                 errOf(New[shmsync.Mutex](m, Init(func(*shmsync.Mutex) error { return nil }))),
		"another type":           errOf(New[pair](m, permits(1))),
		"another constructor":    errOf(NewSharedInt(m, 1, permits(1))),
		"a list":                 errOf(NewSharedList[int64](m, permits(1))),
		"another one, and named": errOf(NewSharedMap[string, int64](m, Name("y"), permits(1))),
	} {
		if !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%s: %v, want %v", what, err, fs.ErrInvalid)
		}
	}
}

func errOf[T any](_ T, err error) error { return err }
