package sync_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	stdsync "sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// misused runs unlock and returns the misuse that it panics with.
func misused(t *testing.T, unlock func()) (misuse *shmsync.MisuseError) {
	t.Helper()
	defer func() {
		if err, ok := recover().(error); !ok || !errors.As(err, &misuse) || !errors.Is(err, shmsync.ErrMisuse) {
			t.Errorf("wrong unlock: %v, want a panic with a MisuseError", err)
		}
	}()
	unlock()
	return nil
}

func TestMutexIsGrantedRefusedReleasedAndASecondReleaseIsMisuse(t *testing.T) {
	_, a := newArena(t)
	a.mu.Lock()
	if a.mu.TryLock() {
		t.Fatal("taken twice")
	}
	a.mu.Unlock()
	if m := misused(t, a.mu.Unlock); m != nil && m.Holder != 0 {
		t.Errorf("holder %v of a free lock", m.Holder)
	}
	if !a.mu.TryLock() {
		t.Error("the wrong unlock changed the lock")
	}
	a.mu.Unlock()
}

func TestMutexOfAnotherProcessCannotBeUnlocked(t *testing.T) {
	r, a := newArena(t)
	p := start(t, hold, r, 1, 0)
	until(t, "the child holds the lock", func() bool { return a.done.Load() == 1 })
	if m := misused(t, a.mu.Unlock); m != nil && (m.Holder == 0 || m.Holder == shm.Self()) {
		t.Errorf("holder %v", m.Holder)
	}
	if a.mu.TryLock() {
		t.Error("the wrong unlock changed the lock")
	}
	a.step.Store(1)
	wait(t, p)
}

var pass = proc.Define("pass", func(_ context.Context, o order) error {
	a := open(o.Region)
	a.faults.Add(1) // is about to wait
	a.mu.Lock()
	held := a.inside.Add(1)
	a.done.Add(1)
	a.inside.Add(-1)
	a.mu.Unlock()
	return check(held == 1, "%d inside", held)
})

func TestMutexLetsWaitersOfFiveProcessesPassOneByOneAfterTheRelease(t *testing.T) {
	r, a := newArena(t)
	a.mu.Lock()
	var ps []*proc.Process
	for i := range 5 {
		ps = append(ps, start(t, pass, r, i, 0))
	}
	until(t, "five wait", func() bool { return a.faults.Load() == 5 })
	time.Sleep(20 * time.Millisecond) // time to pass, if the lock did not hold them
	if n := a.done.Load(); n != 0 {
		t.Errorf("%d passed while the lock was held", n)
	}
	a.mu.Unlock()
	wait(t, ps...)
	if n := a.done.Load(); n != 5 {
		t.Errorf("%d of 5 passed", n)
	}
}

var count = proc.Define("count", func(_ context.Context, o order) error {
	a := open(o.Region)
	for range o.Rounds {
		a.mu.Lock()
		a.n++
		a.mu.Unlock()
	}
	return nil
})

func TestMutexLosesNoIncrement(t *testing.T) {
	for _, c := range []struct{ procs, rounds int }{{1, 100_000}, {2, 100_000}, {8, 100_000}, {100, 1000}} {
		t.Run(fmt.Sprintf("procs=%d/rounds=%d", c.procs, c.rounds), func(t *testing.T) {
			if testing.Short() && c.procs > 8 {
				t.Skip("a hundred processes: not in short mode")
			}
			r, a := newArena(t)
			var ps []*proc.Process
			for i := range c.procs {
				ps = append(ps, start(t, count, r, i, c.rounds))
			}
			wait(t, ps...)
			a.mu.Lock()
			defer a.mu.Unlock()
			if want := int64(c.procs * c.rounds); a.n != want {
				t.Errorf("%d after %d increments: some were lost", a.n, want)
			}
		})
	}
}

var countInThree = proc.Define("count in three goroutines", func(_ context.Context, o order) error {
	a := open(o.Region)
	var wg stdsync.WaitGroup
	for g := range 3 {
		wg.Go(func() {
			for i := range o.Rounds {
				switch (i + g) % 3 {
				case 0:
					a.mu.Lock()
				case 1:
					for !a.mu.LockTimeout(time.Millisecond) {
					}
				case 2:
					for !a.mu.TryLock() {
						runtime.Gosched()
					}
				}
				if in := a.inside.Add(1); in != 1 {
					a.faults.Add(1)
				}
				a.n++
				a.inside.Add(-1)
				a.mu.Unlock()
			}
		})
	}
	wg.Wait()
	return nil
})

func TestMutexExcludesGoroutinesOfSeveralProcessesHoweverTheyLock(t *testing.T) {
	const procs, rounds = 3, 3000
	r, a := newArena(t)
	var ps []*proc.Process
	for i := range procs {
		ps = append(ps, start(t, countInThree, r, i, rounds))
	}
	wait(t, ps...)
	if want := int64(procs * 3 * rounds); a.n != want || a.faults.Load() != 0 {
		t.Errorf("%d after %d increments, %d times two inside", a.n, want, a.faults.Load())
	}
}

func TestMutexTryIsRefusedAtOnceWhileAnotherProcessHolds(t *testing.T) {
	r, a := newArena(t)
	p := start(t, hold, r, 1, 0)
	until(t, "the child holds the lock", func() bool { return a.done.Load() == 1 })
	if a.mu.TryLock() {
		t.Error("granted while the child holds the lock")
	}
	a.step.Store(1)
	wait(t, p)
	if !a.mu.TryLock() {
		t.Error("refused after the release")
	}
	a.mu.Unlock()
}

func TestMutexTimedOutWaitLeavesTheLockToBeFreed(t *testing.T) {
	t.Parallel()
	r, a := newArena(t)
	p := start(t, hold, r, 1, 0)
	until(t, "the child holds the lock", func() bool { return a.done.Load() == 1 })
	for _, limit := range []time.Duration{10 * time.Millisecond, 100 * time.Millisecond, 350 * time.Millisecond} {
		begin := time.Now()
		if a.mu.LockTimeout(limit) {
			t.Fatal("granted while the child holds the lock")
		}
		if took := time.Since(begin); took < limit {
			t.Errorf("gave up after %v of %v", took, limit)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := a.mu.LockContext(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after the context's end: %v", err)
	}
	a.step.Store(1)
	wait(t, p)
	if !a.mu.TryLock() {
		t.Error("not free after the holder's release")
	}
	a.mu.Unlock()
}

func TestMutexFreeIsGrantedWhateverTheLimitAndHeldIsRefusedAtOnce(t *testing.T) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	past, cancelPast := context.WithDeadline(context.Background(), time.Now().Add(-time.Hour))
	defer cancelPast()
	ways := map[string]func(m *shmsync.Mutex) bool{
		"timeout 0":        func(m *shmsync.Mutex) bool { return m.LockTimeout(0) },
		"timeout negative": func(m *shmsync.Mutex) bool { return m.LockTimeout(-time.Hour) },
		"context ended":    func(m *shmsync.Mutex) bool { return m.LockContext(ended) == nil },
		"deadline past":    func(m *shmsync.Mutex) bool { return m.LockContext(past) == nil },
	}
	for name, lock := range ways {
		t.Run(name, func(t *testing.T) {
			r, a := newArena(t)
			if !lock(&a.mu) {
				t.Fatal("a free lock was refused")
			}
			if lock(&a.mu) {
				t.Error("held by this process, and granted")
			}
			a.mu.Unlock()
			p := start(t, hold, r, 1, 0)
			until(t, "the child holds the lock", func() bool { return a.done.Load() == 1 })
			if lock(&a.mu) {
				t.Error("held by another process, and granted")
			}
			a.step.Store(1)
			wait(t, p)
			if !lock(&a.mu) {
				t.Error("a released lock was refused")
			}
		})
	}
}

var second = proc.Define("second", func(_ context.Context, o order) error {
	a := open(o.Region)
	a.done.Add(1)
	if !a.mu.LockTimeout(20 * time.Second) {
		return errors.New("timed out")
	}
	defer a.mu.Unlock()
	a.n = a.n*10 + 2
	return nil
})

func TestMutexQueuedWithATimeoutIsServedAfterTheHolder(t *testing.T) {
	t.Parallel()
	r, a := newArena(t)
	a.mu.Lock()
	p := start(t, second, r, 0, 0)
	until(t, "the child queues", func() bool { return a.done.Load() == 1 })
	time.Sleep(50 * time.Millisecond)
	a.n = a.n*10 + 1
	a.mu.Unlock()
	wait(t, p)
	if a.n != 12 {
		t.Errorf("values %d, want 1 and then 2", a.n)
	}
}

var scoped = proc.Define("scoped", func(ctx context.Context, o order) error {
	a := open(o.Region)
	err := a.mu.Do(ctx, func() error {
		if o.Number == 1 {
			return errors.ErrUnsupported
		}
		return nil
	})
	a.done.Add(1)
	if o.Number == 1 && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("the function's error became %v", err)
	}
	await(&a.step, 1)
	return nil
})

func TestMutexScopeIsLeftUnlockedWithAndWithoutAnError(t *testing.T) {
	for number := range 2 {
		r, a := newArena(t)
		p := start(t, scoped, r, number, 0)
		until(t, "the child has left the scope", func() bool { return a.done.Load() == 1 })
		if !a.mu.TryLock() {
			t.Error("still locked")
		}
		a.step.Store(1)
		wait(t, p)
	}
}

var elsewhere = proc.Define("elsewhere", func(ctx context.Context, o order) error {
	a := open(o.Region)
	if uint64(uintptr(unsafe.Pointer(a))) == a.addr.Load() {
		return errors.New("mapped at the parent's address: the test shows nothing")
	}
	if a.mu.TryLock() {
		return errors.New("granted while the parent holds the lock")
	}
	if a.mu.LockTimeout(30 * time.Millisecond) {
		return errors.New("granted in time while the parent holds the lock")
	}
	a.done.Add(1)
	if err := a.mu.LockContext(ctx); err != nil {
		return err
	}
	defer a.mu.Unlock()
	return check(a.n == 7, "read %d under the lock, want 7", a.n)
})

func TestMutexWorksBetweenProcessesThatMapItAtDifferentAddresses(t *testing.T) {
	r, a := newArena(t)
	a.addr.Store(uint64(uintptr(unsafe.Pointer(a))))
	a.mu.Lock()
	p := start(t, elsewhere, r, 0, 0)
	until(t, "the child has tried", func() bool { return a.done.Load() == 1 })
	a.n = 7
	a.mu.Unlock()
	wait(t, p)
}

func TestMutexOutsideAnyRegionWorksAmongGoroutines(t *testing.T) {
	var mu shmsync.Mutex
	n := 0
	var wg stdsync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5000 {
				mu.Lock()
				n++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if n != 40_000 {
		t.Errorf("%d after 40000 increments", n)
	}
	mu.Lock()
	if mu.LockTimeout(time.Millisecond) {
		t.Error("granted while held")
	}
}

func TestMutexCancelledGoroutinesLeaveTheQueueAndTheOthersAreServed(t *testing.T) {
	r, a := newArena(t)
	p := start(t, hold, r, 1, 0) // one of ours leads, the others are parked
	until(t, "the child holds the lock", func() bool { return a.done.Load() == 1 })
	ctx, cancel := context.WithCancel(context.Background())
	var served, refused atomic.Int64
	var wg stdsync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			c := context.Background()
			if i%2 == 0 {
				c = ctx
			}
			switch err := a.mu.LockContext(c); {
			case err == nil:
				served.Add(1)
				a.mu.Unlock()
			case errors.Is(err, context.Canceled):
				refused.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	time.Sleep(5 * time.Millisecond)
	cancel()
	until(t, "the cancelled are refused", func() bool { return refused.Load() == 30 })
	if n := served.Load(); n != 0 {
		t.Errorf("%d served while the child holds the lock", n)
	}
	a.step.Store(1)
	wg.Wait()
	wait(t, p)
	if n := served.Load(); n != 30 {
		t.Errorf("%d of 30 served", n)
	}
	if !a.mu.TryLock() {
		t.Error("not free at the end")
	}
}

func threads(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Skip("counts the threads in /proc/self/task: ", err)
	}
	return len(entries)
}

func TestMutexWaitersOfOneProcessCostOneThread(t *testing.T) {
	r, a := newArena(t)
	p := start(t, hold, r, 1, 0)
	until(t, "the child holds the lock", func() bool { return a.done.Load() == 1 })
	before := threads(t)
	var wg stdsync.WaitGroup
	for range 10_000 {
		wg.Go(func() {
			a.done.Add(1)
			a.mu.Lock()
			a.n++
			a.mu.Unlock()
		})
	}
	until(t, "all are about to wait", func() bool { return a.done.Load() == 10_001 })
	time.Sleep(50 * time.Millisecond)
	if after := threads(t); after > before+5 {
		t.Errorf("%d threads for 10000 waiters, %d before", after, before)
	}
	a.step.Store(1)
	wg.Wait()
	wait(t, p)
	if a.n != 10_000 {
		t.Errorf("%d of 10000 served", a.n)
	}
}

func TestMutexUncontendedAllocatesNothing(t *testing.T) {
	_, a := newArena(t)
	ctx := context.Background()
	if n := testing.AllocsPerRun(1000, func() {
		a.mu.Lock()
		a.mu.Unlock()
		a.mu.TryLock()
		a.mu.Unlock()
		a.mu.LockTimeout(time.Second)
		a.mu.Unlock()
		a.mu.LockContext(ctx)
		a.mu.Unlock()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestMutexInAClosedRegionRefusesItsWaiters(t *testing.T) {
	r, a := newArena(t)
	p := start(t, hold, r, 1, 0)
	until(t, "the child holds the lock", func() bool { return a.done.Load() == 1 })
	var wg stdsync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := a.mu.LockContext(context.Background()); !errors.Is(err, shm.ErrClosed) {
				t.Errorf("wait on a closed region: %v", err)
			}
		})
	}
	wg.Go(func() {
		defer func() {
			if err, _ := recover().(error); !errors.Is(err, shm.ErrClosed) {
				t.Errorf("Lock on a closed region: %v", err)
			}
		}()
		a.mu.Lock()
	})
	until(t, "three are parked behind the fourth", func() bool { return a.mu.Parked() == 3 })
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	p.Kill() // only now: the lock was never free
	p.Wait()
}

func TestMutexHeldWhenItsRegionIsClosedPanicsWithErrClosedAtUnlock(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there the region stays visible until no handle is left, and Unlock releases the lock")
	}
	r, a := newArena(t)
	a.mu.Lock()
	r.Close()
	defer func() {
		if err, _ := recover().(error); !errors.Is(err, shm.ErrClosed) || !strings.Contains(err.Error(), "unlock") {
			t.Errorf("Unlock after Close: %v", err)
		}
	}()
	a.mu.Unlock()
}

func TestMutexScopeWhoseRegionIsClosedInsideEndsWithErrClosed(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there the region stays visible until no handle is left, and Unlock releases the lock")
	}
	ctx, own := context.Background(), errors.New("of the function")
	for name, f := range map[string]func(*shm.Region, *shmsync.Mutex) error{
		"Do": func(r *shm.Region, m *shmsync.Mutex) error {
			return m.Do(ctx, r.Close)
		},
		"Do with an error": func(r *shm.Region, m *shmsync.Mutex) error {
			err := m.Do(ctx, func() error { r.Close(); return own })
			if !errors.Is(err, own) {
				t.Errorf("the function's error is lost: %v", err)
			}
			return err
		},
		"Recover": func(r *shm.Region, m *shmsync.Mutex) error {
			m.Lock()
			m.Poison()
			m.Unlock()
			return m.Recover(ctx, func(shm.Death) error { return r.Close() })
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, a := newArena(t)
			if err := f(r, &a.mu); !errors.Is(err, shm.ErrClosed) {
				t.Errorf("got %v, want ErrClosed", err)
			}
		})
	}
}
