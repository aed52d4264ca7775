//go:build linux && !futexpoll

package sync_test

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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

// A process that is stopped is woken for all three, and takes the first: the wake-ups of the others go on.
func TestWaitAnyPassesTheWakeUpOnThatItHasUsedUp(t *testing.T) {
	r, q := newQuay(t)
	q.shut()
	first := start(t, waitForEventFirst, r, 0, 0)
	until(t, "it waits", func() bool { return q.owned[0].Claims() == 1 && q.event.Sleeps() && q.free[0].Sleeps() })
	time.Sleep(50 * time.Millisecond) // it falls asleep; if not, this test sees nothing
	if err := unix.Kill(first.PID(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	next := []*proc.Process{start(t, waitForPermit, r, 0, 0), start(t, waitForPermit, r, 1, 0)}
	until(t, "others wait behind it", func() bool { return q.owned[0].Claims() == 2 && q.got.Load() == 2 })
	time.Sleep(50 * time.Millisecond)
	q.event.Set()
	q.give(0)
	q.give(1)
	if err := unix.Kill(first.PID(), unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	wait(t, first)
	for i, p := range next {
		select {
		case <-p.Done():
			wait(t, p)
		case <-time.After(20 * time.Second):
			t.Errorf("the wake-up for permit %d is lost", i)
		}
	}
}
