package sync_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// leaveHeld ends with the lock held and the data half changed.
var leaveHeld = proc.Define("leave held", func(_ context.Context, o order) error {
	a := open(o.Region)
	a.mu.Lock()
	a.n++
	a.done.Add(1)
	if o.Number == 0 {
		select {} // until killed
	}
	return nil
})

// abandoned returns an arena whose lock was held by a process that is dead, killed if so told.
func abandoned(t *testing.T, kill bool, opts ...shm.Option) *arena {
	t.Helper()
	r, a := newArena(t, opts...)
	number := 1
	if kill {
		number = 0
	}
	p := start(t, leaveHeld, r, number, 0)
	until(t, "the child holds the lock", func() bool { return a.done.Load() == 1 })
	if kill {
		p.Kill()
	}
	<-p.Done()
	return a
}

func repairTwin(a *arena) func(shm.Death) error {
	return func(shm.Death) error {
		a.n = a.twin
		return nil
	}
}

func TestMutexOfADeadProcessIsInconsistentUntilRecovered(t *testing.T) {
	for _, kill := range []bool{true, false} {
		t.Run(fmt.Sprintf("killed=%v", kill), func(t *testing.T) {
			a := abandoned(t, kill)
			for range 2 { // also the second time
				err := a.mu.LockContext(context.Background())
				var died *shmsync.OwnerDiedError
				if !errors.Is(err, shmsync.ErrInconsistent) || !errors.As(err, &died) {
					t.Fatalf("lock of a dead process: %v", err)
				}
			}
			if !a.mu.Inconsistent() || a.mu.TryLock() {
				t.Error("not inconsistent, or tried with success")
			}
			errRepair := errors.New("cannot repair")
			if err := a.mu.Recover(context.Background(), func(shm.Death) error { return errRepair }); !errors.Is(err, errRepair) {
				t.Errorf("a repair that fails: %v", err)
			}
			if err := a.mu.LockContext(context.Background()); !errors.Is(err, shmsync.ErrInconsistent) {
				t.Errorf("after a repair that failed: %v", err)
			}
			if err := a.mu.Recover(context.Background(), repairTwin(a)); err != nil {
				t.Errorf("recover: %v", err)
			}
			if err := a.mu.LockContext(context.Background()); err != nil || a.n != 0 {
				t.Errorf("after the recovery: %v, n = %d", err, a.n)
			}
			a.mu.Unlock()
			if err := a.mu.Recover(context.Background(), repairTwin(a)); !errors.Is(err, shmsync.ErrNotInconsistent) {
				t.Errorf("recovery of a healthy lock: %v", err)
			}
			a.mu.Lock()
			a.mu.Unlock()
		})
	}
}

func TestMutexOfADeadProcessEndsTimedWaitsEarly(t *testing.T) {
	a := abandoned(t, true)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := a.mu.LockContext(ended); !errors.Is(err, shmsync.ErrInconsistent) {
		t.Errorf("under an ended context: %v, want the death before the deadline", err)
	}
	hour, cancelHour := context.WithTimeout(context.Background(), time.Hour)
	defer cancelHour()
	if err := a.mu.LockContext(hour); !errors.Is(err, shmsync.ErrInconsistent) {
		t.Errorf("with an hour to wait: %v", err)
	}
}

func TestMutexLockPanicsAfterADeathUnlessTheHandlerRepairs(t *testing.T) {
	a := abandoned(t, true)
	func() {
		defer func() {
			died, ok := recover().(*shmsync.OwnerDiedError)
			if !ok || died.Death.PID == 0 || !strings.Contains(died.Error(), fmt.Sprint(died.Death.PID)) {
				t.Errorf("Lock after a death: %v", died)
			}
		}()
		a.mu.Lock()
	}()
	errRepair := errors.New("cannot repair")
	shm.OnOwnerDied(func(shm.Death) error { return errRepair })
	func() {
		defer func() {
			err, _ := recover().(error)
			if !errors.Is(err, shmsync.ErrInconsistent) || !errors.Is(err, errRepair) || !strings.Contains(err.Error(), "cannot repair") {
				t.Errorf("Lock with a handler that fails: %v", err)
			}
		}()
		a.mu.Lock()
	}()
	calls := 0
	shm.OnOwnerDied(func(d shm.Death) error {
		calls++
		return repairTwin(a)(d)
	})
	defer shm.OnOwnerDied(nil)
	a.mu.Lock()
	if calls != 1 || a.n != 0 || a.mu.Inconsistent() {
		t.Errorf("handler called %d times, n = %d", calls, a.n)
	}
	a.mu.Unlock()
	a.mu.Lock()
	a.mu.Unlock()
	if calls != 1 {
		t.Errorf("handler called again for a consistent lock")
	}
}

func TestMutexOfARegionThatContinuesAfterDeathComesFree(t *testing.T) {
	a := abandoned(t, true, shm.ContinueAfterDeath())
	a.mu.Lock()
	a.mu.Unlock()
	if !a.mu.TryLock() {
		t.Error("not free")
	}
}

var dieInTurn = proc.Define("die in turn", func(ctx context.Context, o order) error {
	a := open(o.Region)
	if err := a.mu.Recover(ctx, func(shm.Death) error {
		a.done.Add(1)
		select {} // killed before it repairs
	}); err != nil {
		return err
	}
	return nil
})

func TestMutexWhoseRecovererDiesIsStillInconsistent(t *testing.T) {
	r, a := newArena(t)
	first := start(t, leaveHeld, r, 0, 0)
	until(t, "the first holds the lock", func() bool { return a.done.Load() == 1 })
	first.Kill()
	next := start(t, dieInTurn, r, 0, 0)
	until(t, "the second recovers", func() bool { return a.done.Load() == 2 })
	if a.mu.LockTimeout(20 * time.Millisecond) {
		t.Error("granted while the second holds it")
	}
	next.Kill()
	if err := a.mu.LockContext(context.Background()); !errors.Is(err, shmsync.ErrInconsistent) {
		t.Errorf("after two deaths: %v", err)
	}
}

func TestMutexOfALiveProcessIsNeverTakenForADeadOnes(t *testing.T) {
	r, a := newArena(t)
	p := start(t, hold, r, 1, 0)
	until(t, "the child holds the lock", func() bool { return a.done.Load() == 1 })
	if a.mu.LockTimeout(300 * time.Millisecond) { // several looks at the holder
		t.Error("granted")
	}
	a.step.Store(1)
	wait(t, p)
}

func TestMutexPanicInDoLeavesItInconsistentAndFree(t *testing.T) {
	_, a := newArena(t)
	func() {
		defer func() {
			if r := recover(); r != "halfway" {
				t.Errorf("panic %v", r)
			}
		}()
		a.mu.Do(context.Background(), func() error { panic("halfway") })
	}()
	if err := a.mu.LockContext(context.Background()); !errors.Is(err, shmsync.ErrInconsistent) {
		t.Errorf("after a panic: %v", err)
	}
}

// change changes two words that are equal whenever the lock is free, and repairs what the dead left.
var change = proc.Define("change", func(ctx context.Context, o order) error {
	a := open(o.Region)
	for {
		err := a.mu.LockRepaired(ctx, func(shm.Death) error {
			a.dirty.Add(1)
			a.twin = a.n
			return nil
		})
		if err != nil {
			return err
		}
		if in := a.inside.Swap(int64(o.Number)); in != 0 && a.n == a.twin {
			a.faults.Add(0) // the mark of one that died inside
		}
		if a.n != a.twin {
			a.faults.Add(1) // torn, and nobody said so
		}
		a.n++
		for range rand.IntN(50) {
			if a.inside.Load() != int64(o.Number) {
				a.faults.Add(1) // two inside
			}
		}
		a.twin++
		a.done.Add(1)
		a.mu.Unlock()
	}
})

func TestMutexSurvivesKillsAtAnyMoment(t *testing.T) {
	const procs, kills = 4, 60
	r, a := newArena(t)
	var ps [procs]*proc.Process
	for i := range ps {
		ps[i] = start(t, change, r, i+1, 0)
	}
	for k := range kills {
		before := a.done.Load()
		until(t, "progress", func() bool { return a.done.Load() > before+20 })
		i := k % procs
		ps[i].Kill()
		<-ps[i].Done()
		ps[i] = start(t, change, r, i+1, 0)
	}
	before := a.done.Load()
	until(t, "progress after the last kill", func() bool { return a.done.Load() > before+100 })
	if n := a.faults.Load(); n != 0 {
		t.Errorf("%d violations", n)
	}
	t.Logf("%d kills, %d acquisitions, %d announced as torn", kills, a.done.Load(), a.dirty.Load())
}
