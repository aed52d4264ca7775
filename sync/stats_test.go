package sync_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	shmsync "github.com/shmkit/shmkit/sync"
)

func TestOwnerTellsWhoHoldsTheLockAndWhetherItLives(t *testing.T) {
	r, a := newArena(t)
	if o, held := a.mu.Owner(); held {
		t.Fatalf("a free lock is held by %v", o)
	}
	a.mu.Lock()
	if o, held := a.mu.Owner(); !held || o.Token != shm.Self() || o.PID != os.Getpid() || o.Life != shm.Alive {
		t.Errorf("our own lock: %v, %v", o, held)
	}
	a.mu.Unlock()

	p := start(t, hold, r, 1, 0)
	until(t, "the child holds the lock", func() bool { return a.done.Load() == 1 })
	o, held := a.mu.Owner()
	if !held || o.PID != p.PID() || o.Token == shm.Self() || o.Life != shm.Alive || o.Attached.IsZero() || !o.Since.IsZero() {
		t.Errorf("the lock of process %d, which did not wait for it: %+v, %v", p.PID(), o, held)
	}
	p.Kill()
	<-p.Done()
	until(t, "the kernel has it dead", func() bool {
		o, held := a.mu.Owner()
		return held && o.PID == p.PID() && o.Life == shm.Dead
	})
	if a.mu.Inconsistent() {
		t.Error("asking for the owner took the lock over")
	}
	r.Scan()
	until(t, "it is cleared up after", func() bool { r.Scan(); _, ok := r.Holder(o.Token); return !ok })
	if o, held := a.mu.Owner(); !held || o.Life != shm.Dead || o.PID != 0 {
		t.Errorf("a holder that was cleared up after: %v, %v", o, held)
	}
	if err := a.mu.Recover(context.Background(), func(shm.Death) error { return nil }); err != nil {
		t.Error(err)
	}
}

func TestOwnerOfALockOutsideRegions(t *testing.T) {
	var mu shmsync.Mutex
	mu.Lock()
	defer mu.Unlock()
	if o, held := mu.Owner(); !held || o.Token != shm.Self() || o.Life != shm.Alive {
		t.Errorf("%v, %v", o, held)
	}
	if s := mu.Stats(); s != (shmsync.Stats{}) {
		t.Errorf("%+v", s)
	}
}

func TestStatsTellWhoWaitsAndForHowLong(t *testing.T) {
	r, a := newArena(t)
	p := start(t, hold, r, 1, 0)
	until(t, "the child holds the lock", func() bool { return a.done.Load() == 1 })
	begin := time.Now()
	got := make(chan error)
	const waiters = 3
	for range waiters {
		go func() {
			err := a.mu.LockContext(context.Background())
			if err == nil {
				a.mu.Unlock()
			}
			got <- err
		}()
	}
	until(t, "the wait is seen", func() bool { return a.mu.Stats().Waiting == 1 })
	s := a.mu.Stats()
	if s.Oldest.Before(begin) || s.Oldest.After(time.Now()) {
		t.Errorf("it waits since %v, and began at %v", s.Oldest, begin)
	}
	all, err := shmsync.StatsOf(r)
	if off, _ := r.OffsetOf(a.mu.Pointer()); err != nil || all.Waiting != 1 || len(all.Locks) != 1 || all.Locks[0].Lock != off {
		t.Errorf("the region: %+v, %v", all, err)
	}
	time.Sleep(20 * time.Millisecond) // what Longest must not fall short of
	held := time.Since(s.Oldest)
	a.step.Store(1)
	for range waiters {
		if err := <-got; err != nil {
			t.Error(err)
		}
	}
	wait(t, p)
	until(t, "nobody is seen waiting", func() bool { return a.mu.Stats().Waiting == 0 })
	s = a.mu.Stats()
	if s.Waits != waiters || s.Longest < 20*time.Millisecond || s.Waited < s.Longest || s.Takeovers != 0 || !s.Oldest.IsZero() {
		t.Errorf("%d waits of more than %v: %+v", waiters, held, s)
	}
	a.mu.Lock()
	if o, _ := a.mu.Owner(); o.Since.Before(begin) {
		t.Errorf("we got the lock after a wait, but since %v", o.Since)
	}
	a.mu.Unlock()
}

func TestStatsCountTakeovers(t *testing.T) {
	r, a := newArena(t)
	p := start(t, hold, r, 1, 0)
	until(t, "the child holds the lock", func() bool { return a.done.Load() == 1 })
	p.Kill()
	if err := a.mu.LockContext(t.Context()); !errors.Is(err, shmsync.ErrInconsistent) {
		t.Fatal(err)
	}
	if s := a.mu.Stats(); s.Takeovers != 1 || s.Waits != 1 {
		t.Errorf("%+v", s)
	}
	<-p.Done()
}

func TestPoisonMakesTheNextOneRepair(t *testing.T) {
	for _, contended := range []bool{false, true} {
		r, a := newArena(t)
		a.mu.Lock()
		got := make(chan error, 1)
		if contended {
			go func() { got <- a.mu.LockContext(context.Background()) }()
			until(t, "it waits", func() bool { return a.mu.HasWaiter() })
		}
		a.mu.Poison()
		if !a.mu.Inconsistent() {
			t.Error("not inconsistent at once")
		}
		a.mu.Unlock()
		if !contended {
			got <- a.mu.LockContext(context.Background())
		}
		if err := <-got; !errors.Is(err, shmsync.ErrInconsistent) {
			t.Errorf("contended %v: %v", contended, err)
		}
		if a.mu.TryLock() {
			t.Error("a poisoned lock was taken by a try")
		}
		repaired := false
		if err := a.mu.Recover(t.Context(), func(shm.Death) error { repaired = true; return nil }); err != nil || !repaired {
			t.Errorf("repaired %v: %v", repaired, err)
		}
		if !a.mu.TryLock() {
			t.Error("not repaired")
		}
		a.mu.Unlock()
		_ = r
	}
}

func TestPoisonOfALockThatIsNotHeldPanicsAndChangesNothing(t *testing.T) {
	_, a := newArena(t)
	func() {
		defer func() {
			if err, _ := recover().(error); !errors.Is(err, shmsync.ErrMisuse) {
				t.Errorf("panic with %v", err)
			}
		}()
		a.mu.Poison()
		t.Error("no panic")
	}()
	if a.mu.Inconsistent() || !a.mu.TryLock() {
		t.Error("changed")
	}
}
