package containers

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/containers/internal/txn"
)

// lookOnFor has those who wait look on for so long before they sleep.
func lookOnFor(t *testing.T, d time.Duration) {
	was := queueSpin
	queueSpin = d
	t.Cleanup(func() { queueSpin = was })
}

// untilLookedOn waits until somebody looks on.
func untilLookedOn(t *testing.T, q *queue) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !q.lookout.taken.Load(); time.Sleep(50 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatal("nobody looks on")
		}
	}
}

// Who finds nothing to do looks on, and finds what it waits for when that comes, without being counted as one who is to be woken.
func TestQueueWaiterThatLooksOnNeedsNoWake(t *testing.T) {
	if !multiprocessor {
		t.Skip("with one processor nobody looks on")
	}
	lookOnFor(t, time.Minute)
	bothManagers(t, func(t *testing.T, m *Manager) {
		ctx := deadline(t)
		for name, c := range map[string]struct {
			full bool
			wait func(q SharedQueue[int64]) (any, error)
			come func(q SharedQueue[int64]) error
			want any
			err  error
		}{
			"Get and Put":      {false, func(q SharedQueue[int64]) (any, error) { return q.Get(ctx) }, func(q SharedQueue[int64]) error { return q.Put(ctx, 7) }, int64(7), nil},
			"GetN and Put":     {false, func(q SharedQueue[int64]) (any, error) { return q.GetN(ctx, make([]int64, 3)) }, func(q SharedQueue[int64]) error { return q.Put(ctx, 7) }, 1, nil},
			"Put and Get":      {true, func(q SharedQueue[int64]) (any, error) { return 0, q.Put(ctx, 8) }, func(q SharedQueue[int64]) error { _, err := q.Get(ctx); return err }, 0, nil},
			"PutN and Lease":   {true, func(q SharedQueue[int64]) (any, error) { return q.PutN(ctx, 8) }, func(q SharedQueue[int64]) error { _, err := q.Lease(ctx); return err }, 1, nil},
			"Put and Close":    {true, func(q SharedQueue[int64]) (any, error) { return 0, q.Put(ctx, 8) }, func(q SharedQueue[int64]) error { return q.Close() }, 0, ErrQueueClosed},
			"Get and Close":    {false, func(q SharedQueue[int64]) (any, error) { return q.Get(ctx) }, func(q SharedQueue[int64]) error { return q.Close() }, int64(0), ErrQueueClosed},
			"Lease and Return": {false, func(q SharedQueue[int64]) (any, error) { l, err := q.Lease(ctx); return l.Attempt, err }, nil, 2, nil},
		} {
			t.Run(name, func(t *testing.T) {
				q := queueForTest[int64](t, m, 1)
				if c.full {
					Must(q.TryPut(1))
				}
				if c.come == nil { // a message that is on a lease until then
					Must(q.TryPut(1))
					l := Must(q.Lease(ctx))
					c.come = func(SharedQueue[int64]) error { return l.Return() }
				}
				var counted atomic.Bool
				txn.OnStore = func(p unsafe.Pointer, _ uintptr) {
					if p == unsafe.Pointer(q.q.word(queueWaiting)) {
						counted.Store(true)
					}
				}
				defer func() { txn.OnStore = nil }()
				got := make(chan string, 1)
				go func() {
					v, err := c.wait(q)
					got <- fmt.Sprint(v, errors.Is(err, c.err))
				}()
				untilLookedOn(t, q.q)
				if err := c.come(q); err != nil {
					t.Fatal(err)
				}
				if got, want := <-got, fmt.Sprint(c.want, true); got != want {
					t.Errorf("%s, want %s", got, want)
				}
				if counted.Load() {
					t.Error("it was counted as one that sleeps")
				}
				if q.q.lookout.taken.Load() {
					t.Error("it looks on still")
				}
			})
		}
	})
}

// One at a time looks on by a handle: the others sleep at once.
func TestOneWaiterOfManyLooksOn(t *testing.T) {
	if !multiprocessor {
		t.Skip("with one processor nobody looks on")
	}
	lookOnFor(t, time.Minute)
	m := newManager(t)
	q := queueForTest[int64](t, m, 4)
	ctx := deadline(t)
	got := make(chan int64, 4)
	for range cap(got) {
		go func() { v, _ := q.Get(ctx); got <- v }()
	}
	untilWaiting(t, q.q, waitMessage, uint64(cap(got)-1))
	untilLookedOn(t, q.q)
	sum := int64(0)
	for i := range int64(cap(got)) {
		if err := q.Put(ctx, i+1); err != nil {
			t.Fatal(err)
		}
	}
	for range cap(got) {
		sum += <-got
	}
	if sum != 1+2+3+4 {
		t.Errorf("the messages got add up to %d", sum)
	}
}

// All sleep whenever they have to wait: no wake-up is lost.
func TestQueueWithoutLookingOnLosesNoWakeUp(t *testing.T) {
	lookOnFor(t, 0)
	m := newManager(t)
	ctx := deadline(t)
	for _, capacity := range []int{1, 3} {
		q := queueForTest[int64](t, m, capacity)
		n := int64(20_000)
		if testing.Short() {
			n = 2000
		}
		failed := make(chan error, 1)
		go func() {
			for v := range n {
				if err := q.Put(ctx, v); err != nil {
					failed <- err
					return
				}
			}
			failed <- nil
		}()
		for v := range n {
			if got, err := q.Get(ctx); got != v || err != nil {
				t.Fatalf("got %d, %v, want %d", got, err, v)
			}
		}
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
}
