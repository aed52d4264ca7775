//go:build linux && !futexpoll

package sync_test

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm/proc"
)

// takeInTurn takes the lock so often and keeps it for a while, on a thread of its own. It tells how often
// the thread fell asleep, and how often it should have looked after the holder.
var takeInTurn = proc.Define("take in turn", func(_ context.Context, o order) error {
	a := open(o.Region)
	runtime.LockOSThread()
	a.done.Add(1)
	await(&a.step, 1)
	before := usageOfThread()
	var turns int64
	for range o.Rounds {
		begin := time.Now()
		a.mu.Lock()
		waited := time.Since(begin)
		for next := time.Millisecond; waited > next; next += min(10*next, 100*time.Millisecond) {
			turns++
		}
		for held := time.Now(); time.Since(held) < 300*time.Microsecond; {
		}
		a.mu.Unlock()
	}
	a.inside.Add(usageOfThread().sleeps - before.sleeps)
	a.dirty.Add(turns)
	return nil
})

func TestMutexReleaseWakesNoHerd(t *testing.T) {
	const procs, rounds = 8, 100
	r, a := newArena(t)
	var ps []*proc.Process
	for i := range procs {
		ps = append(ps, start(t, takeInTurn, r, i, rounds))
	}
	until(t, "all are ready", func() bool { return a.done.Load() == procs })
	a.step.Store(1)
	wait(t, ps...)
	sleeps, turns := a.inside.Load(), a.dirty.Load()
	t.Logf("%d acquisitions, %d sleeps, %d of them ended by the time", procs*rounds, sleeps, turns)
	// One sleep for each acquisition, ended by the release before, and now and then one more, to get a
	// processor. If each release woke all, it would be five.
	if woken := sleeps - turns; 2*woken > 5*procs*rounds {
		t.Errorf("%d acquisitions took %d wake-ups", procs*rounds, woken)
	}
}
