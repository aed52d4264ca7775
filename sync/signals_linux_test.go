package sync_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	stdsync "sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shmkit/shm/proc"
)

var stormSignals = []syscall.Signal{unix.SIGURG, unix.SIGPROF, unix.SIGALRM, unix.SIGUSR1, unix.SIGCONT}

// storm sends signals to all threads of processes, all the time, until the returned function is called.
func storm(ps []*proc.Process) (calm func() (sent int64)) {
	var sent atomic.Int64
	stop := make(chan struct{})
	var wg stdsync.WaitGroup
	for _, p := range ps {
		wg.Go(func() {
			for i := 0; ; i++ {
				threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.PID()))
				for _, thread := range threads {
					tid, _ := strconv.Atoi(thread.Name())
					if unix.Tgkill(p.PID(), tid, stormSignals[i%len(stormSignals)]) == nil {
						sent.Add(1)
					}
				}
				select {
				case <-stop:
					return
				case <-time.After(200 * time.Microsecond):
				}
			}
		})
	}
	return func() int64 {
		close(stop)
		wg.Wait()
		return sent.Load()
	}
}

// weather makes this process live through the signals of a storm, and counts them.
func weather() *atomic.Int64 {
	n := new(atomic.Int64)
	c := make(chan os.Signal, 16)
	for _, s := range stormSignals {
		if s != unix.SIGPROF && s != unix.SIGURG { // the runtime's own
			signal.Notify(c, s)
		}
	}
	go func() {
		for range c {
			n.Add(1)
		}
	}()
	return n
}

var waitInAStorm = proc.Define("wait in a storm", func(_ context.Context, o order) error {
	a := open(o.Region)
	signals := weather()
	endless, cancel := context.WithCancel(context.Background())
	defer cancel()
	ways := []func() error{
		func() error { a.mu.Lock(); return nil },
		func() error { return a.mu.LockContext(context.Background()) },
		func() error { return a.mu.LockContext(endless) },
		func() error { return check(a.mu.LockTimeout(time.Hour), "an hour is over") },
	}
	way := ways[o.Number%len(ways)]
	a.done.Add(1)
	err := way()
	in := a.inside.Add(1)
	if in == 1 && err == nil {
		err = check(signals.Load() > 0, "no signals came")
	}
	if err == nil {
		a.mu.Unlock()
	}
	return err
})

func TestMutexWaitIsNotEndedBySignals(t *testing.T) {
	r, a := newArena(t)
	a.mu.Lock()
	var ps []*proc.Process
	for i := range 4 { // one way to wait each: each waiter competes in the kernel
		ps = append(ps, start(t, waitInAStorm, r, i, 0))
	}
	until(t, "all are about to wait", func() bool { return a.done.Load() == 4 })
	calm := storm(ps)
	time.Sleep(500 * time.Millisecond)
	if n := a.inside.Load(); n != 0 {
		t.Errorf("%d waits ended while the lock was held", n)
	}
	a.mu.Unlock()
	wait(t, ps...)
	t.Logf("%d signals", calm())
}

// mixInAStorm takes the lock in every way, while the collector runs and the number of processors changes.
var mixInAStorm = proc.Define("mix in a storm", func(_ context.Context, o order) error {
	a := open(o.Region)
	signals := weather()
	a.done.Add(1)
	go func() {
		for i := 0; ; i++ {
			runtime.GC()
			runtime.GOMAXPROCS(1 + i%4)
			time.Sleep(time.Millisecond)
		}
	}()
	results := make(chan error)
	for range 2 {
		go func() {
			n := 0
			for ; a.step.Load() == 0; n++ {
				if err := mix(a); err != nil {
					results <- err
					return
				}
			}
			results <- check(n > 0, "it did nothing")
		}()
	}
	err := errors.Join(<-results, <-results)
	return errors.Join(err, check(signals.Load() > 0, "no signals came"))
})

// mix tries to take the lock in some way. Granted, busy and timed out are all that may happen.
func mix(a *arena) error {
	granted := true
	limit := rand.N(2 * time.Millisecond)
	begin := time.Now()
	switch rand.IntN(5) {
	case 0:
		a.mu.Lock()
	case 1:
		granted = a.mu.TryLock()
	case 2:
		if granted = a.mu.LockTimeout(limit); !granted && time.Since(begin) < limit {
			return fmt.Errorf("refused after %v of %v", time.Since(begin), limit)
		}
	case 3:
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		err := a.mu.LockContext(ctx)
		cancel()
		if granted = err == nil; !granted && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	case 4:
		if err := a.mu.LockContext(context.Background()); err != nil {
			return err
		}
	}
	if !granted {
		a.dirty.Add(1)
		return nil
	}
	if in := a.inside.Add(1); in != 1 {
		return fmt.Errorf("%d inside", in)
	}
	a.n++
	for range rand.IntN(1000) {
		if a.inside.Load() != 1 {
			return errors.New("not alone inside")
		}
	}
	a.twin++
	a.inside.Add(-1)
	a.mu.Unlock()
	return nil
}

func TestMutexUnderSignalsCollectionsAndChangingProcessors(t *testing.T) {
	t.Parallel()
	length := 10 * time.Second
	if testing.Short() {
		length = time.Second
	}
	r, a := newArena(t)
	var ps []*proc.Process
	for i := range 5 {
		ps = append(ps, start(t, mixInAStorm, r, i, 0))
	}
	until(t, "all are at work", func() bool { return a.done.Load() == 5 })
	calm := storm(ps)
	time.Sleep(length)
	a.step.Store(1)
	wait(t, ps...)
	sent := calm()
	if a.n != a.twin || a.mu.Inconsistent() || !a.mu.TryLock() {
		t.Errorf("%d, %d at the end; inconsistent %v", a.n, a.twin, a.mu.Inconsistent())
	}
	t.Logf("%d signals, %d grants, %d refusals", sent, a.n, a.dirty.Load())
}
