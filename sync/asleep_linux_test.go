//go:build linux && !futexpoll

package sync_test

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shmkit/shm/proc"
)

// A usage is what the kernel has counted for a thread.
type usage struct {
	sleeps    int64 // times that it gave its processor up
	processor time.Duration
}

// usageOfThread returns the usage of the thread that runs, to which the goroutine is locked.
func usageOfThread() usage { return usageOf(unix.RUSAGE_THREAD) }

func usageOfProcess() usage { return usageOf(unix.RUSAGE_SELF) }

func usageOf(who int) usage {
	var u unix.Rusage
	if err := unix.Getrusage(who, &u); err != nil {
		panic(err)
	}
	return usage{int64(u.Nvcsw), time.Duration(u.Utime.Nano() + u.Stime.Nano())}
}

// slept says what is wrong with a wait of a thread that was to sleep: it was busy, or woken more than so many times. How
// often it is woken at least is chance where many want the processor; then who is busy gets little of it, but more than this.
func (u usage) slept(took time.Duration, most int64) error {
	return errors.Join(check(u.sleeps > 0 && u.processor < took/50, "%d sleeps, and busy for %v of %v", u.sleeps, u.processor, took),
		check(u.sleeps <= most, "%d sleeps in %v", u.sleeps, took))
}

func (u usage) since(before usage) usage {
	return usage{u.sleeps - before.sleeps, u.processor - before.processor}
}

// sleepOn waits for the lock on a thread of its own, and tells how often the thread fell asleep, and for
// how long it ran and lasted.
var sleepOn = proc.Define("sleep on", func(_ context.Context, o order) error {
	a := open(o.Region)
	runtime.LockOSThread()
	begin, before := time.Now(), usageOfThread()
	if a.mu.LockTimeout(time.Duration(o.Rounds) * time.Millisecond) {
		return errors.New("granted while the parent holds the lock")
	}
	took, used := time.Since(begin), usageOfThread().since(before)
	a.order[o.Number].Store(used.sleeps)
	a.dirty.Add(int64(used.processor))
	// A sleep of 1 ms, of 10, 20, 40, 80, and then of 100 each. The thread may have to sleep once more
	// after each, until it has a processor of the Go scheduler.
	return used.slept(took, 2*(8+int64(took/(100*time.Millisecond)))+16)
})

// idleTime is for how many milliseconds one sleeps in the kernel for a test. Whoever counts the sleeps of a thread does
// so beside no other test: those keep the scheduler busy, and that sleeps in threads too.
func idleTime() int {
	if testing.Short() {
		return 600
	}
	return 3000
}

func TestMutexWaitersOfTenProcessesSleepInTheKernel(t *testing.T) {
	r, a := newArena(t)
	a.mu.Lock()
	var ps []*proc.Process
	for i := range 10 {
		ps = append(ps, start(t, sleepOn, r, i, idleTime()))
	}
	wait(t, ps...)
	a.mu.Unlock()
	var sleeps int64
	for i := range ps {
		sleeps += a.order[i].Load()
	}
	t.Logf("ten waiters slept %d times and ran for %v", sleeps, time.Duration(a.dirty.Load()))
}
