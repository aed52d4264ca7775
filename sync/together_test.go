package sync_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	stdsync "sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// A hall is used by several goroutines of several processes, in rounds.
type hall struct {
	mu      shmsync.Mutex
	cond    shmsync.Cond
	rec     shmsync.RecursiveMutex
	rw      shmsync.RWMutex
	barrier shmsync.Barrier
	owned   shmsync.Semaphore
	free    shmsync.CountingSemaphore
	came    int64 // guarded by mu: arrivals of all rounds
	twice   int64 // guarded by rec
	written int64 // guarded by rw
	n       int64 // guarded by free
	inside  atomic.Int64
	places  [9]atomic.Int64
}

const (
	hallParties = 9 // three of each process
	hallPermits = 2
)

func hallIn(r *shm.Region) *hall {
	h, err := shm.At[hall](r, r.Data()+8192)
	if err != nil {
		panic(err)
	}
	return h
}

// round is what one party does: all that is counted here is counted without other protection.
func (h *hall) round(ctx context.Context, i int64, me shmsync.OwnerID) error {
	place, err := h.barrier.Wait(ctx)
	if err != nil {
		return err
	}
	h.places[place].Add(1)
	if err := h.owned.Acquire(ctx, 1); err != nil {
		return err
	}
	in := h.inside.Add(1)
	h.rw.Lock()
	h.written++
	h.rw.Unlock()
	h.inside.Add(-1)
	h.owned.Release(1)
	if in > hallPermits {
		return fmt.Errorf("%d have a permit, of %d", in, hallPermits)
	}
	if err := h.free.Acquire(ctx); err != nil {
		return err
	}
	h.n++
	h.free.Release(1)
	h.rec.Lock(me)
	h.twice++
	h.rec.Lock(me)
	h.twice++
	h.rec.Unlock(me)
	h.rec.Unlock(me)

	h.mu.Lock()
	defer h.mu.Unlock()
	all := (i + 1) * hallParties
	if h.came++; h.came == all {
		h.cond.Broadcast()
	}
	if _, err := h.cond.WaitFor(ctx, &h.mu, func() bool { return h.came >= all }); err != nil {
		return err
	}
	h.rw.RLock()
	defer h.rw.RUnlock()
	return check(h.written >= all && h.came <= all+hallParties, "round %d: %d written, %d came", i, h.written, h.came)
}

var meetInTheHall = proc.Define("meet in the hall", func(ctx context.Context, o order) error {
	h := hallIn(o.Region)
	errs := make(chan error)
	for range 3 {
		go func() {
			var err error
			for i, me := int64(0), shmsync.NewOwner(); i < int64(o.Rounds) && err == nil; i++ {
				err = h.round(ctx, i, me)
			}
			if err != nil {
				h.barrier.Abort()
			}
			errs <- err
		}()
	}
	return errors.Join(<-errs, <-errs, <-errs)
})

func TestThreeGoroutinesOfThreeProcessesAreNineForAllPrimitives(t *testing.T) {
	rounds := int64(300)
	if testing.Short() || shmsync.RaceEnabled || !shmsync.Kernel {
		rounds = 60
	}
	r, _ := newArena(t)
	h := hallIn(r)
	if err := errors.Join(h.barrier.Init(hallParties), h.owned.Init(hallPermits)); err != nil {
		t.Fatal(err)
	}
	var ps []*proc.Process
	for i := range 3 {
		ps = append(ps, start(t, meetInTheHall, r, i, int(rounds)))
	}
	wait(t, ps...)
	if all := rounds * hallParties; h.came != all || h.n != all || h.written != all || h.twice != 2*all {
		t.Errorf("%d, %d, %d and %d were counted, want %d and twice that", h.came, h.n, h.written, h.twice, all)
	}
	for i := range h.places {
		if n := h.places[i].Load(); n != rounds {
			t.Errorf("place %d was given %d times in %d rounds", i, n, rounds)
		}
	}
}

// inVain are the ways to wait for a limited time, here for what nobody gives. They tell whether they got it.
var inVain = map[string]func(h *hall, g *shmsync.WaitGroup, e *shmsync.Event, d time.Duration) bool{
	"Cond.WaitTimeout": func(h *hall, _ *shmsync.WaitGroup, _ *shmsync.Event, d time.Duration) bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		woken, err := h.cond.WaitTimeout(&h.mu, d)
		return woken || err != nil
	},
	"Cond.Wait": func(h *hall, _ *shmsync.WaitGroup, _ *shmsync.Event, d time.Duration) bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		woken, err := h.cond.Wait(after(d), &h.mu)
		return woken || err != nil
	},
	"Cond.WaitFor": func(h *hall, _ *shmsync.WaitGroup, _ *shmsync.Event, d time.Duration) bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		ok, err := h.cond.WaitFor(after(d), &h.mu, func() bool { return h.came != 0 })
		return ok || err != nil
	},
	"Event.WaitTimeout": func(_ *hall, _ *shmsync.WaitGroup, e *shmsync.Event, d time.Duration) bool { return e.WaitTimeout(d) },
	"Event.Wait": func(_ *hall, _ *shmsync.WaitGroup, e *shmsync.Event, d time.Duration) bool {
		return e.Wait(after(d)) == nil
	},
	"Semaphore.AcquireTimeout": func(h *hall, _ *shmsync.WaitGroup, _ *shmsync.Event, d time.Duration) bool {
		return h.owned.AcquireTimeout(1, d)
	},
	"Semaphore.Acquire": func(h *hall, _ *shmsync.WaitGroup, _ *shmsync.Event, d time.Duration) bool {
		return h.owned.Acquire(after(d), 1) == nil
	},
	"CountingSemaphore.AcquireTimeout": func(h *hall, _ *shmsync.WaitGroup, _ *shmsync.Event, d time.Duration) bool {
		return h.free.AcquireTimeout(d)
	},
	"CountingSemaphore.Acquire": func(h *hall, _ *shmsync.WaitGroup, _ *shmsync.Event, d time.Duration) bool {
		return h.free.Acquire(after(d)) == nil
	},
	"RecursiveMutex.LockTimeout": func(h *hall, _ *shmsync.WaitGroup, _ *shmsync.Event, d time.Duration) bool {
		return h.rec.LockTimeout(shmsync.NewOwner(), d)
	},
	"RecursiveMutex.LockContext": func(h *hall, _ *shmsync.WaitGroup, _ *shmsync.Event, d time.Duration) bool {
		return h.rec.LockContext(after(d), shmsync.NewOwner()) == nil
	},
	"WaitGroup.WaitTimeout": func(_ *hall, g *shmsync.WaitGroup, _ *shmsync.Event, d time.Duration) bool {
		done, err := g.WaitTimeout(d)
		return done || err != nil
	},
	"WaitGroup.Wait": func(_ *hall, g *shmsync.WaitGroup, _ *shmsync.Event, d time.Duration) bool {
		return g.Wait(after(d)) == nil
	},
	"WaitAny": func(h *hall, _ *shmsync.WaitGroup, e *shmsync.Event, d time.Duration) bool {
		_, err := shmsync.WaitAny(after(d), e, &h.owned, &h.free)
		return err == nil
	},
}

// All at once: together they last as long as the longest.
func TestTimedWaitsOfAllKindsEndNeitherEarlyNorFarTooLate(t *testing.T) {
	t.Parallel()
	r, _ := newArena(t)
	h := hallIn(r)
	var (
		group shmsync.WaitGroup
		event shmsync.Event
		wg    stdsync.WaitGroup
	)
	me := shmsync.NewOwner()
	h.rec.Lock(me)
	h.owned.TryAcquire(1)
	h.free.Init(0)
	group.Add(1)
	for name, wait := range inVain {
		for _, d := range append(limitsOfTime(), 0, -1, -time.Hour) {
			wg.Go(func() {
				begin := time.Now()
				got := wait(h, &group, &event, d)
				if took := time.Since(begin); got || took < d || took > 10*max(d, 0)+10*time.Second {
					t.Errorf("%s, limit %v: %v after %v", name, d, got, took)
				}
			})
		}
	}
	wg.Wait()
	if _, n := h.cond.Here(); n != 0 || h.owned.Value() != 0 || h.free.Value() != 0 || !h.mu.TryLock() {
		t.Errorf("%d wait still; values %d and %d", n, h.owned.Value(), h.free.Value())
	}
}

// A limit that never comes is none.
func TestWaitsOfAllKindsWithALimitFarOffGoOn(t *testing.T) {
	t.Parallel()
	for name, wait := range inVain {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, _ := newArena(t)
			h := hallIn(r)
			var (
				group shmsync.WaitGroup
				event shmsync.Event
			)
			me := shmsync.NewOwner()
			h.rec.Lock(me)
			h.owned.TryAcquire(1)
			h.free.Init(0)
			group.Add(1)
			got := make(chan bool, 1)
			go func() { got <- wait(h, &group, &event, math.MaxInt64) }()
			select {
			case ok := <-got:
				t.Fatalf("ended at once: %v", ok)
			case <-time.After(250 * time.Millisecond): // longer than a sleep
			}
			h.mu.Lock()
			h.came = 1
			h.cond.Broadcast()
			h.mu.Unlock()
			h.rec.Unlock(me)
			h.owned.Release(1)
			h.free.Release(1)
			group.Done()
			event.Set()
			if !<-got {
				t.Error("refused")
			}
		})
	}
}

const manyConds = 10_000

func condsIn(r *shm.Region) *[manyConds]struct {
	mu   shmsync.Mutex
	cond shmsync.Cond
} {
	all, err := shm.At[[manyConds]struct {
		mu   shmsync.Mutex
		cond shmsync.Cond
	}](r, r.Data()+8192)
	if err != nil {
		panic(err)
	}
	return all
}

// waitForOneOfMany waits for three of many conditions, in as many goroutines.
var waitForOneOfMany = proc.Define("wait for some of many conditions", func(ctx context.Context, o order) error {
	a, all := open(o.Region), condsIn(o.Region)
	errs := make(chan error)
	for i := range 3 {
		c := &all[i*manyConds/3+o.Number]
		go func() {
			c.mu.Lock()
			a.done.Add(1) // it gives the lock up when it waits
			woken, err := c.cond.Wait(ctx, &c.mu)
			a.inside.Add(1)
			c.mu.Unlock()
			errs <- errors.Join(err, check(woken, "not woken"))
		}()
	}
	return errors.Join(<-errs, <-errs, <-errs)
})

func TestTenThousandCondsOfARegionAreIndependent(t *testing.T) {
	r, err := shm.Anonymous(shm.Size(4<<20), shm.Limit(8<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	a, all := open(r), condsIn(r)
	p, q := start(t, waitForOneOfMany, r, 0, 0), start(t, waitForOneOfMany, r, 7, 0)
	until(t, "six wait", func() bool { return a.done.Load() == 6 })
	before := descriptors()
	waited := map[int]bool{}
	for i := range 3 {
		waited[i*manyConds/3], waited[i*manyConds/3+7] = true, true
	}
	for i := range all {
		if !waited[i] {
			all[i].mu.Lock()
			all[i].cond.Broadcast()
			all[i].mu.Unlock()
		}
	}
	time.Sleep(50 * time.Millisecond)
	if n := a.inside.Load(); n != 0 {
		t.Errorf("%d were woken by other conditions", n)
	}
	for i := range all {
		if waited[i] {
			all[i].mu.Lock()
			all[i].cond.Signal()
			all[i].mu.Unlock()
		}
	}
	wait(t, p, q)
	if n := descriptors(); n > before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}
