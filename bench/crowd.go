package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

// A Crowd asks how many threads it costs when many goroutines of one process wait for locks that
// another process holds.
type Crowd struct {
	Lock       string // Shmkit or Futex
	Goroutines int
	Locks      int           // the goroutines are spread over so many
	Hold       time.Duration // how long all of them wait at least
}

// A CrowdResult is what came out.
type CrowdResult struct {
	Threads int           // that the process had more than before, at most, while all waited
	Peak    int           // the same, when all have had the lock
	Drain   time.Duration // from the release of the first lock until all have had one
}

const maxLocks = 2000

// A square is where the processes of a Crowd meet.
type square struct {
	held    atomic.Int64 // 1: all locks are
	arrived atomic.Int64 // goroutines that are about to lock
	parked  atomic.Int64 // 1: all wait, and have been watched
	release atomic.Int64 // clock when the holder may let go; 0: not yet
	threads int64
	peak    int64
	drained int64 // clock
	_       [72]byte
	locks   [maxLocks]lockset // data: times taken by the crowd
}

type crowder struct {
	Region *shm.Region
	Case   Crowd
}

var holdAll = proc.Define("bench: hold locks", func(ctx context.Context, c crowder) error {
	t, locks, err := c.open()
	if err != nil {
		return err
	}
	for _, mu := range locks {
		mu.Lock()
	}
	t.held.Store(1)
	for t.release.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	t.release.Store(clock())
	for _, mu := range locks {
		mu.Unlock()
	}
	return nil
})

var beCrowd = proc.Define("bench: wait for locks in a crowd", func(ctx context.Context, c crowder) error {
	t, locks, err := c.open()
	if err != nil {
		return err
	}
	before := census()
	var (
		wg      sync.WaitGroup
		entered atomic.Bool // somebody has had a lock
	)
	for i := range c.Case.Goroutines {
		wg.Go(func() {
			t.arrived.Add(1)
			locks[i%len(locks)].Lock()
			entered.Store(true)
			t.locks[i%len(locks)].data++
			locks[i%len(locks)].Unlock()
		})
	}
	// All wait when all but one per lock are parked: that one may be anywhere, in the kernel, or
	// looking at the word.
	now := before
	for {
		now = census()
		if t.arrived.Load() == int64(c.Case.Goroutines) && now.parked+now.inKernel >= c.Case.Goroutines-len(locks) {
			break
		}
		if entered.Load() {
			return fmt.Errorf("%s let a goroutine in while another process holds it", c.Case.Lock)
		}
		time.Sleep(time.Millisecond)
	}
	most := now.threads
	for begin := time.Now(); time.Since(begin) < c.Case.Hold; time.Sleep(time.Millisecond) {
		most = max(most, census().threads)
	}
	t.threads = int64(most - before.threads)
	t.parked.Store(1)
	wg.Wait()
	t.drained = clock()
	t.peak = int64(max(most, census().threads) - before.threads)
	return nil
})

// open returns the locks of the case.
func (c crowder) open() (*square, []sync.Locker, error) {
	t, err := shm.At[square](c.Region, c.Region.Data())
	if err != nil {
		return nil, nil, err
	}
	locks := make([]sync.Locker, c.Case.Locks)
	for i := range locks {
		if locks[i], err = t.locks[i].locker(c.Case.Lock, nil); err != nil {
			return nil, nil, err
		}
	}
	return t, locks, nil
}

// A count is what the run time says about its threads and goroutines. Threads never end on their own.
type count struct{ threads, parked, inKernel int }

func census() count {
	s := []metrics.Sample{
		{Name: "/sched/threads/total:threads"},
		{Name: "/sched/goroutines/waiting:goroutines"},
		{Name: "/sched/goroutines/not-in-go:goroutines"},
	}
	metrics.Read(s)
	return count{int(s[0].Value.Uint64()), int(s[1].Value.Uint64()), int(s[2].Value.Uint64())}
}

// Run runs the case. opened is called when the locks are held and the crowd is about to come.
func (c Crowd) Run(ctx context.Context, opened func()) (_ *CrowdResult, err error) {
	if c.Goroutines < 1 || c.Locks < 1 || c.Locks > maxLocks {
		return nil, fmt.Errorf("bench: %d goroutines, %d locks, want some, and at most %d locks", c.Goroutines, c.Locks, maxLocks)
	}
	if c.Lock == Standard {
		return nil, fmt.Errorf("bench: %s works in one process, not in 2", c.Lock)
	}
	if err := checkLock(c.Lock, 2); err != nil {
		return nil, err
	}
	r, t, err := newShared[square](1 << 20)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	holder, err := hire(ctx, holdAll, crowder{r, c})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, holder.dismiss()) }()
	if err := holder.until("it held the locks", func() bool { return t.held.Load() == 1 }); err != nil {
		return nil, err
	}
	opened()
	crowd, err := hire(ctx, beCrowd, crowder{r, c})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, crowd.dismiss()) }()
	if err := crowd.until("all waited", func() bool { return t.parked.Load() == 1 }); err != nil {
		return nil, err
	}
	t.release.Store(1)
	if err := errors.Join(holder.wait(), crowd.wait()); err != nil {
		return nil, err
	}
	var taken int64
	for i := range c.Locks {
		taken += t.locks[i].data
	}
	if taken != int64(c.Goroutines) {
		return nil, fmt.Errorf("bench: %d goroutines took locks, counted inside %d", c.Goroutines, taken)
	}
	return &CrowdResult{int(t.threads), int(t.peak), time.Duration(t.drained - t.release.Load())}, nil
}
