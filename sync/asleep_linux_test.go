//go:build linux && !futexpoll && !race

package sync_test

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm/proc"
)

// processor returns the processor time of this process so far.
func processor() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

var sleepOn = proc.Define("sleep on", func(_ context.Context, o order) error {
	a := open(o.Region)
	before := processor()
	if a.mu.LockTimeout(time.Duration(o.Rounds) * time.Millisecond) {
		return errors.New("granted while the parent holds the lock")
	}
	a.order[o.Number].Store(int64(processor() - before))
	return nil
})

// Not in race builds, whose instrumentation takes most of the time.
func TestMutexWaitersOfTenProcessesSleepInTheKernel(t *testing.T) {
	r, a := newArena(t)
	a.mu.Lock()
	var ps []*proc.Process
	for i := range 10 {
		ps = append(ps, start(t, sleepOn, r, i, 3000))
	}
	wait(t, ps...)
	a.mu.Unlock()
	var sum time.Duration
	for i := range 10 {
		sum += time.Duration(a.order[i].Load())
	}
	// Alone on a machine it is some 30 ms; beside other work the system charges three times that and
	// more. Polling every millisecond would be above a second.
	if sum > 500*time.Millisecond {
		t.Errorf("ten processes used %v of processor time in 3 s of waiting", sum)
	}
	t.Logf("%v of processor time", sum)
}
