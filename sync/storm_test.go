package sync_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	stdsync "sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

var errMind = errors.New("changed its mind")

// cancelAtRandom waits for the lock so often in each of many goroutines, under contexts that end at any
// moment in any way; some wait for as long as it takes.
var cancelAtRandom = proc.Define("cancel at random", func(_ context.Context, o order) error {
	a := open(o.Region)
	a.done.Add(1)
	await(&a.step, 1)
	var wg stdsync.WaitGroup
	const hands = 30
	errs := make(chan error, hands)
	for i := range hands {
		wg.Go(func() {
			for range o.Rounds {
				if err := lockUnderAContext(a, i); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	if err := <-errs; err != nil {
		return err
	}
	return check(shmsync.Gates() == 0, "%d gates are left", shmsync.Gates())
})

func lockUnderAContext(a *arena, way int) error {
	ctx, cancel := context.Background(), context.CancelFunc(func() {})
	limit := rand.N(300 * time.Microsecond)
	switch way % 5 {
	case 0:
		ctx, cancel = context.WithTimeout(ctx, limit)
	case 1:
		ctx, cancel = context.WithCancel(ctx)
		time.AfterFunc(limit, cancel)
	case 2:
		c, cause := context.WithCancelCause(ctx)
		ctx, cancel = c, func() { cause(nil) }
		go func() {
			for range rand.IntN(20) {
				runtime.Gosched()
			}
			cause(errMind)
		}()
	case 3: // one that ends while it is asked
		c, stop := context.WithCancel(ctx)
		ctx, cancel = c, stop
		go stop()
	}
	defer cancel()
	err := a.mu.LockContext(ctx)
	switch {
	case err == nil:
		if in := a.inside.Add(1); in != 1 {
			return fmt.Errorf("%d inside", in)
		}
		a.n++
		a.faults.Add(1)
		a.inside.Add(-1)
		a.mu.Unlock()
	case ctx.Err() == nil:
		return fmt.Errorf("refused under a context that goes on: %w", err)
	case !errors.Is(err, ctx.Err()):
		return fmt.Errorf("refused for another reason than the context's: %w", err)
	default:
		a.dirty.Add(1)
	}
	return nil
}

func TestMutexOutlivesAStormOfCancellations(t *testing.T) {
	const procs = 3
	rounds := 500
	if shmsync.RaceEnabled {
		rounds = 100
	}
	r, a := newArena(t)
	var ps []*proc.Process
	for i := range procs {
		ps = append(ps, start(t, cancelAtRandom, r, i, rounds))
	}
	until(t, "all are ready", func() bool { return a.done.Load() == procs })
	a.step.Store(1)
	var wg stdsync.WaitGroup
	var stop atomic.Bool
	wg.Go(func() { // so that waiters sleep, and most contexts end
		for !stop.Load() {
			a.mu.Lock()
			time.Sleep(rand.N(3 * time.Millisecond))
			a.mu.Unlock()
			time.Sleep(rand.N(time.Millisecond))
		}
	})
	wait(t, ps...)
	stop.Store(true)
	wg.Wait()
	granted, refused := a.faults.Load(), a.dirty.Load()
	if all := int64(procs * 30 * rounds); granted+refused != all || a.n != granted || refused == 0 {
		t.Errorf("%d granted and %d refused of %d; %d increments", granted, refused, all, a.n)
	}
	if !a.mu.TryLock() {
		t.Fatal("not free at the end")
	}
	a.mu.Unlock()
	if !a.mu.TryLockIdle() {
		t.Error("it still knows of waiters")
	}
	t.Logf("%d granted, %d refused", granted, refused)
}
