//go:build linux && !futexpoll

package sync_test

import (
	"context"
	"errors"
	"runtime"
	stdsync "sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// A lounge has something of each kind to wait for in vain.
type lounge struct {
	barrier shmsync.Barrier
	group   shmsync.WaitGroup
	once    shmsync.Once
	event   shmsync.Event
	free    shmsync.CountingSemaphore
	_       [44]byte
	owned   shmsync.Semaphore
	sleeps  [8]atomic.Int64 // of the threads that wait
	all     [8]atomic.Int64 // of all threads of their processes
	ran     [8]atomic.Int64
}

func loungeIn(r *shm.Region) *lounge {
	l, err := shm.At[lounge](r, r.Data()+8192)
	if err != nil {
		panic(err)
	}
	return l
}

// newLounge returns a lounge in which every wait is in vain until the function that comes with it is called. Nobody
// makes the barrier's last party: that function breaks it.
func newLounge(t *testing.T) (r *shm.Region, l *lounge, end func()) {
	r, _ = newArena(t)
	l = loungeIn(r)
	if err := l.barrier.Init(100_000); err != nil {
		t.Fatal(err)
	}
	l.group.Add(1)
	l.free.Init(0)
	l.owned.TryAcquire(1)
	runs, goOn := make(chan bool), make(chan bool)
	go l.once.Do(context.Background(), func() error {
		close(runs)
		<-goOn
		return nil
	})
	<-runs
	return r, l, func() {
		l.barrier.Abort()
		l.group.Done()
		close(goOn)
		l.event.Set()
		l.free.Release(1 << 20)
		l.owned.Release(1)
	}
}

// idlers are the ways to wait.
var idlers = []struct {
	name string
	wait func(ctx context.Context, l *lounge) error
}{
	{"barrier", func(ctx context.Context, l *lounge) error { _, err := l.barrier.Wait(ctx); return err }},
	{"wait group", func(ctx context.Context, l *lounge) error { return l.group.Wait(ctx) }},
	{"once", func(ctx context.Context, l *lounge) error {
		return l.once.Do(ctx, func() error { return errors.New("done twice") })
	}},
	{"event", func(ctx context.Context, l *lounge) error { return l.event.Wait(ctx) }},
	{"counting semaphore", func(ctx context.Context, l *lounge) error { return l.free.Acquire(ctx) }},
	{"semaphore", func(ctx context.Context, l *lounge) error {
		err := l.owned.Acquire(ctx, 1)
		if err == nil {
			l.owned.Release(1)
		}
		return err
	}},
	{"any", func(ctx context.Context, l *lounge) error {
		i, err := shmsync.WaitAny(ctx, &l.owned, &l.event, &l.free)
		if err == nil && i == 0 {
			l.owned.Release(1)
		}
		return err
	}},
}

// idle waits on a thread of its own until the test ends it, and tells how often that fell asleep, and for how long the
// whole process ran.
var idle = proc.Define("idle", func(ctx context.Context, o order) error {
	l := loungeIn(o.Region)
	runtime.LockOSThread()
	runtime.GC() // what start-up has left is no part of the wait
	before, all := usageOfThread(), usageOfProcess()
	open(o.Region).done.Add(1)
	err := idlers[o.Number].wait(ctx, l)
	l.sleeps[o.Number].Add(usageOfThread().sleeps - before.sleeps)
	now := usageOfProcess()
	l.all[o.Number].Add(now.sleeps - all.sleeps)
	l.ran[o.Number].Add(int64(now.processor - all.processor))
	if open(o.Region).step.Load() == 0 {
		return errors.Join(errors.New("it did not wait"), err)
	}
	if errors.Is(err, shmsync.ErrBrokenBarrier) {
		return nil
	}
	return err
})

// All kinds at once: the time that they take is that of one.
func TestWaitersOfTenProcessesTakeHardlyAnyProcessorTime(t *testing.T) {
	procs, wait := 10, 3*time.Second
	if testing.Short() {
		procs, wait = 2, time.Second
	}
	r, l, end := newLounge(t)
	a := open(r)
	ps := make([][]*proc.Process, len(idlers))
	for kind := range idlers {
		for range procs {
			ps[kind] = append(ps[kind], start(t, idle, r, kind, 0))
		}
	}
	until(t, "all wait", func() bool { return a.done.Load() == int64(procs*len(idlers)) })
	time.Sleep(wait)
	a.step.Store(1)
	end()
	for kind, idler := range idlers {
		t.Run(idler.name, func(t *testing.T) {
			for _, p := range ps[kind] {
				if err := p.Wait(); err != nil {
					t.Error(err)
				}
			}
			sleeps, ran := l.sleeps[kind].Load(), time.Duration(l.ran[kind].Load())
			if sleeps < int64(procs) { // those who look time and again do not sleep in this thread
				t.Errorf("%d processes slept %d times", procs, sleeps)
			}
			// Ten looks in a second are meant, and the runtime sleeps now and then for itself, and some hundred times when it starts and
			// ends; looking every millisecond is 1000 in a second. How long each look takes is the machine's affair, but who spins
			// runs all the time.
			all, most := l.all[kind].Load(), int64(procs)*(500+int64(wait/(5*time.Millisecond)))
			if all > most {
				t.Errorf("%d processes slept %d times in %v, want %d at most", procs, all, wait, most)
			}
			if limit := wait * time.Duration(procs) / 20; !shmsync.RaceEnabled && ran > limit {
				t.Errorf("%d processes ran for %v while they waited for %v each", procs, ran, wait)
			}
			t.Logf("%d processes slept %d times, %d with all their threads, and ran for %v", procs, sleeps, all, ran)
		})
	}
}

func TestThousandsOfWaitersCostFewThreads(t *testing.T) {
	const each = 1000
	_, l, end := newLounge(t)
	before := threads(t)
	var begun atomic.Int64
	var wg stdsync.WaitGroup
	for _, idler := range idlers[:len(idlers)-1] { // not of any: each of them sleeps for itself
		for range each {
			wg.Go(func() {
				begun.Add(1)
				if err := idler.wait(context.Background(), l); err != nil && !errors.Is(err, shmsync.ErrBrokenBarrier) {
					t.Error(err)
				}
			})
		}
	}
	until(t, "all are about to wait", func() bool { return begun.Load() == each*int64(len(idlers)-1) })
	most := 0
	for range 20 {
		time.Sleep(10 * time.Millisecond)
		most = max(most, threads(t))
	}
	if limit := before + 2*len(idlers) + otherThreads; most > limit {
		t.Errorf("%d threads while %d goroutines wait for each of %d things, %d before", most, each, len(idlers)-1, before)
	}
	end()
	wg.Wait()
	t.Logf("%d threads, %d before", most, before)
}
