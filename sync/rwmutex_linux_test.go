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

	"github.com/shmkit/shmkit/shm/proc"
)

func TestRWMutexTenThousandWaitersCostFewThreads(t *testing.T) {
	r, l := newLibrary(t)
	child := play(t, keep, part{Region: r, Write: true, Times: 1, Step: 1})
	until(t, "the child writes", func() bool { return l.ready.Load() == 1 })
	before := threads(t)
	const waiters = 10_000
	var begun atomic.Int64
	var wg stdsync.WaitGroup
	for i := range waiters {
		wg.Go(func() {
			begun.Add(1)
			if i%100 == 0 {
				l.rw.Lock()
				l.write(func() {})
				l.rw.Unlock()
				return
			}
			l.rw.RLock()
			l.look()
			l.rw.RUnlock()
		})
	}
	until(t, "all are about to wait", func() bool { return begun.Load() == waiters })
	most := 0
	for range 20 {
		time.Sleep(10 * time.Millisecond)
		most = max(most, threads(t))
	}
	if most > before+5 {
		t.Errorf("%d threads while %d goroutines wait, %d before", most, waiters, before)
	}
	begin := time.Now()
	l.step.Store(1)
	wg.Wait()
	t.Logf("%d threads, %d before; all served in %v", most, before, time.Since(begin))
	wait(t, child)
	l.check(t)
}

// sleepAtLibrary waits for the lock on a thread of its own, and checks how often that fell asleep.
var sleepAtLibrary = proc.Define("sleep at a library", func(_ context.Context, p part) error {
	rw := &libraryIn(p.Region).rw
	runtime.LockOSThread()
	begin, before := time.Now(), usageOfThread()
	if asked(rw, p.Write, time.Duration(p.Times)*time.Millisecond) {
		return errors.New("granted while the parent holds the lock")
	}
	took, used := time.Since(begin), usageOfThread().since(before)
	return used.slept(took, 2*(8+int64(took/(100*time.Millisecond)))+16)
})

func TestRWMutexWaitersOfTenProcessesSleepInTheKernel(t *testing.T) {
	r, l := newLibrary(t)
	l.rw.Lock()
	var ps []*proc.Process
	for i := range 10 {
		ps = append(ps, play(t, sleepAtLibrary, part{Region: r, Write: i%2 == 0, Times: idleTime()}))
	}
	wait(t, ps...)
	l.rw.Unlock()
}

func TestRWMutexWriterThatWaitsForReadersSleepsInTheKernel(t *testing.T) {
	r, l := newLibrary(t)
	l.rw.RLock()
	wait(t, play(t, sleepAtLibrary, part{Region: r, Write: true, Times: idleTime()}))
	l.rw.RUnlock()
}
