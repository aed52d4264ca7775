package sync_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// limitsOfTime are those that timed calls are tried with.
func limitsOfTime() []time.Duration {
	limits := []time.Duration{10 * time.Millisecond, 100 * time.Millisecond, 350 * time.Millisecond}
	if !testing.Short() {
		limits = append(limits, 820*time.Millisecond, 1400*time.Millisecond)
	}
	return limits
}

var timedWays = map[string]func(m *shmsync.Mutex, d time.Duration) bool{
	"LockTimeout": (*shmsync.Mutex).LockTimeout,
	"LockContext": func(m *shmsync.Mutex, d time.Duration) bool {
		ctx, cancel := context.WithTimeout(context.Background(), d)
		defer cancel()
		err := m.LockContext(ctx)
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			panic(err)
		}
		return err == nil
	},
	"Do": func(m *shmsync.Mutex, d time.Duration) bool {
		ctx, cancel := context.WithTimeout(context.Background(), d)
		defer cancel()
		return m.Do(ctx, func() error { return nil }) == nil
	},
}

// tries calls f for every way to wait for a limited time, while the lock is held by another process, and by
// this one, where waiters park. It returns when all have returned.
func tries(t *testing.T, f func(t *testing.T, m *shmsync.Mutex, lock func(*shmsync.Mutex, time.Duration) bool)) {
	for _, holder := range []string{"another process", "this process"} {
		for name, lock := range timedWays {
			t.Run(fmt.Sprintf("%s/held by %s", name, holder), func(t *testing.T) {
				t.Parallel()
				r, a := newArena(t)
				if holder == "this process" {
					a.mu.Lock()
					f(t, &a.mu, lock)
					a.mu.Unlock()
				} else {
					p := start(t, hold, r, 1, 0)
					until(t, "the child holds the lock", func() bool { return a.done.Load() == 1 })
					f(t, &a.mu, lock)
					a.step.Store(1)
					wait(t, p)
				}
				if !a.mu.TryLock() {
					t.Error("not free after the holder's release")
				}
			})
		}
	}
}

func TestMutexTimedWaitNeverEndsEarly(t *testing.T) {
	t.Parallel()
	tries(t, func(t *testing.T, m *shmsync.Mutex, lock func(*shmsync.Mutex, time.Duration) bool) {
		over := make(chan error)
		limits := limitsOfTime()
		for _, limit := range limits {
			go func() {
				begin := time.Now()
				granted := lock(m, limit)
				took := time.Since(begin)
				over <- errors.Join(check(!granted, "%v: granted while it is held", limit),
					check(took >= limit, "%v: back after %v", limit, took),
					check(took < 10*limit+10*time.Second, "%v: back after %v: it forgot the limit", limit, took))
			}()
		}
		for range limits {
			if err := <-over; err != nil {
				t.Error(err)
			}
		}
	})
}

func TestMutexTimeoutOfZeroOrLessIsATry(t *testing.T) {
	tries(t, func(t *testing.T, m *shmsync.Mutex, lock func(*shmsync.Mutex, time.Duration) bool) {
		for _, limit := range []time.Duration{0, -1, -time.Hour, math.MinInt64} {
			if lock(m, limit) {
				t.Errorf("%v: granted while it is held", limit)
			}
		}
	})
}

// lockForEver waits without a limit, or with one that never comes.
var lockForEver = proc.Define("lock for ever", func(_ context.Context, o order) error {
	a := open(o.Region)
	ways := []func() bool{
		func() bool { a.mu.Lock(); return true },
		func() bool { return a.mu.LockContext(context.Background()) == nil },
		func() bool { return a.mu.LockTimeout(math.MaxInt64) },
		func() bool { return timedWays["LockContext"](&a.mu, math.MaxInt64) },
	}
	result := make(chan error)
	for i, lock := range ways {
		go func() {
			a.done.Add(1)
			err := check(lock(), "way %d: refused", i)
			a.inside.Add(1)
			a.mu.Unlock()
			result <- err
		}()
	}
	var err error
	for range ways {
		err = errors.Join(err, <-result)
	}
	return err
})

func TestMutexWaitWithoutALimitLastsUntilTheRelease(t *testing.T) {
	t.Parallel()
	r, a := newArena(t)
	a.mu.Lock()
	p := start(t, lockForEver, r, 0, 0)
	until(t, "the child's goroutines are about to wait", func() bool { return a.done.Load() == 4 })
	time.Sleep(300 * time.Millisecond)
	if n := a.inside.Load(); n != 0 {
		t.Errorf("%d got in while the lock was held", n)
	}
	a.mu.Unlock()
	wait(t, p)
}
