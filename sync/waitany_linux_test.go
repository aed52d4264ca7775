//go:build linux && !futexpoll

package sync_test

import (
	"context"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// waitForEventFirst waits for the event and a permit of either kind, in a sleep that does not end by itself.
var waitForEventFirst = proc.Define("wait for an event before permits", func(ctx context.Context, o order) error {
	shmsync.SleepForEver()
	q := quayIn(o.Region)
	i, err := shmsync.WaitAny(ctx, &q.event, &q.owned[0], &q.free[0])
	if err != nil {
		return err
	}
	return check(i == 0, "got %d", i)
})

// waitForPermit waits for a permit of one kind, in such a sleep.
var waitForPermit = proc.Define("wait for a permit behind another", func(ctx context.Context, o order) error {
	shmsync.SleepForEver()
	q := quayIn(o.Region)
	q.got.Add(1)
	if o.Number == 0 {
		return q.owned[0].Acquire(ctx, 1)
	}
	return q.free[0].Acquire(ctx)
})

// One that is woken for a permit, and finds the event set before it looks, takes the event, the first in order: the
// wake-up goes on. Whether it looks before is chance, so there are several rounds.
func TestWaitAnyPassesTheWakeUpOnThatItHasUsedUp(t *testing.T) {
	for range 4 {
		r, q := newQuay(t)
		q.shut()
		first := start(t, waitForEventFirst, r, 0, 0)
		until(t, "it waits", func() bool { return q.owned[0].Claims() == 1 && q.event.Sleeps() && q.free[0].Sleeps() })
		time.Sleep(30 * time.Millisecond) // it falls asleep before the others
		next := []*proc.Process{start(t, waitForPermit, r, 0, 0), start(t, waitForPermit, r, 1, 0)}
		until(t, "others wait behind it", func() bool { return q.owned[0].Claims() == 2 && q.got.Load() == 2 })
		time.Sleep(30 * time.Millisecond)
		q.free[0].Release(1)
		q.event.Set()
		q.owned[0].Release(1)
		<-first.Done()
		if first.Wait() != nil { // it was faster, and has a permit: that of the semaphore came back with its end
			q.free[0].Release(1)
		}
		for i, p := range next {
			select {
			case <-p.Done():
				wait(t, p)
			case <-time.After(20 * time.Second):
				t.Fatalf("the wake-up for permit %d is lost", i)
			}
		}
	}
}
