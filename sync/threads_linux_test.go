package sync_test

import (
	"context"
	stdsync "sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

const (
	maxSleepers  = 256 // threads of a process that sleep for locks
	otherThreads = 16  // that the scheduler may start meanwhile

	crowdLocks = 1000
	crowdHands = 10 // goroutines for each
)

// A crowd is many locks with a count for each.
type crowd struct {
	locks [crowdLocks]struct {
		mu shmsync.Mutex
		n  int64
	}
	held    atomic.Int64
	release atomic.Int64
}

func openCrowd(r *shm.Region) *crowd {
	c, err := shm.At[crowd](r, r.Data())
	if err != nil {
		panic(err)
	}
	return c
}

var holdCrowd = proc.Define("hold a crowd", func(_ context.Context, o order) error {
	c := openCrowd(o.Region)
	for i := range c.locks {
		c.locks[i].mu.Lock()
	}
	c.held.Store(1)
	await(&c.release, 1)
	for i := range c.locks {
		c.locks[i].mu.Unlock()
	}
	return nil
})

func TestMutexWaitersOfManyLocksShareThreads(t *testing.T) {
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c := openCrowd(r)
	p := start(t, holdCrowd, r, 0, 0)
	until(t, "the child holds the locks", func() bool { return c.held.Load() == 1 })
	before := threads(t)
	var begun, served atomic.Int64
	var wg stdsync.WaitGroup
	for range crowdHands {
		for i := range c.locks {
			wg.Go(func() {
				l := &c.locks[i]
				begun.Add(1)
				if i%2 == 0 {
					l.mu.Lock()
				} else if err := l.mu.LockContext(context.Background()); err != nil {
					t.Error(err)
					return
				}
				l.n++
				l.mu.Unlock()
				served.Add(1)
			})
		}
	}
	until(t, "all are about to wait", func() bool { return begun.Load() == crowdLocks*crowdHands })
	most := 0
	for range 20 {
		time.Sleep(10 * time.Millisecond)
		most = max(most, threads(t))
	}
	if most > before+maxSleepers+otherThreads {
		t.Errorf("%d threads while %d goroutines wait for %d locks, %d before", most, crowdLocks*crowdHands, crowdLocks, before)
	}
	if n := served.Load(); n != 0 {
		t.Errorf("%d served while the child holds the locks", n)
	}
	c.release.Store(1)
	wg.Wait()
	wait(t, p)
	for i := range c.locks {
		if n := c.locks[i].n; n != crowdHands {
			t.Errorf("lock %d: %d of %d served", i, n, crowdHands)
		}
	}
	t.Logf("%d threads, %d before", most, before)
}
