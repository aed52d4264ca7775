package sync_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	stdsync "sync"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// trustWakeUps takes the lock so often in each of several goroutines, in processes whose sleeps do not end
// by themselves. Some give up, which must not lose the wake-up that they had.
var trustWakeUps = proc.Define("trust wake-ups", func(_ context.Context, o order) error {
	shmsync.SleepForEver()
	a := open(o.Region)
	a.done.Add(1)
	await(&a.step, 1)
	var wg stdsync.WaitGroup
	hands := o.Number%4 + 1 // one competes, the others are parked
	errs := make(chan error, hands)
	for i := range hands {
		wg.Go(func() {
			for range o.Rounds {
				held := true
				switch rand.IntN(8) {
				case 0:
					held = a.mu.TryLock()
				case 1:
					held = a.mu.LockTimeout(rand.N(100 * time.Microsecond))
				case 2, 3:
					if err := lockUnderAContext(a, i+rand.IntN(5)); err != nil {
						errs <- err
					}
					continue
				default:
					a.mu.Lock()
				}
				if !held {
					continue
				}
				a.n++
				if in := a.inside.Add(1); in != 1 {
					errs <- errors.New("two inside")
				}
				switch rand.IntN(8) {
				case 0:
					time.Sleep(rand.N(200 * time.Microsecond)) // others fall asleep
				case 1:
					runtime.Gosched()
				}
				a.inside.Add(-1)
				a.mu.Unlock()
			}
		})
	}
	wg.Wait()
	close(errs)
	return errors.Join(<-errs, check(shmsync.Gates() == 0, "%d gates are left", shmsync.Gates()))
})

// While nobody dies, no wait needs its end: every wake-up that is needed comes. (The model says so; this is
// the same for the code that runs.)
func TestMutexWithoutDeadlinesNeverHangsWhileAllLive(t *testing.T) {
	if !shmsync.Kernel {
		t.Skip("there are no wake-ups without the kernel's futex")
	}
	const procs = 4
	rounds := 2000
	if shmsync.RaceEnabled {
		rounds = 300
	}
	r, a := newArena(t)
	var ps []*proc.Process
	for i := range procs {
		ps = append(ps, start(t, trustWakeUps, r, i, rounds))
	}
	until(t, "all are ready", func() bool { return a.done.Load() == procs })
	a.step.Store(1)
	for _, p := range ps {
		select {
		case <-p.Done():
		case <-time.After(time.Minute):
			t.Fatal("a wake-up is lost")
		}
	}
	wait(t, ps...)
	t.Logf("%d acquisitions", a.n)
}
