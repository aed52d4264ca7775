package containers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	stdsync "sync"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

// queueHand is what another process does with a queue.
type queueHand struct {
	Q, Out   SharedQueue[int64]
	What     string
	From, To int64
}

var handsQueue = proc.Define("hands a queue", func(ctx context.Context, h queueHand) error {
	switch h.What {
	case "put": // From up to To, in all forms
		for v := h.From; v < h.To; v++ {
			var err error
			switch v % 3 {
			case 0:
				err = h.Q.Put(ctx, v)
			case 1:
				_, err = h.Q.PutN(ctx, v)
			case 2:
				for ok := false; !ok && err == nil; {
					ok, err = h.Q.TryPut(v)
				}
			}
			if err != nil {
				return err
			}
		}
	case "take":
		for v := h.From; v < h.To; v++ {
			if got, err := h.Q.Get(ctx); got != v || err != nil {
				return fmt.Errorf("got %d, %v, want %d", got, err, v)
			}
		}
	case "work": // acknowledges each a moment after it has it
		for {
			l, err := h.Q.Lease(ctx)
			if errors.Is(err, ErrQueueClosed) {
				return nil
			}
			if err != nil {
				return err
			}
			time.Sleep(5 * time.Millisecond)
			if err := errors.Join(h.Out.Put(ctx, l.Value), l.Done()); err != nil {
				return err
			}
		}
	case "get one":
		v, err := h.Q.Get(ctx)
		if err != nil {
			return err
		}
		return h.Out.Put(ctx, v)
	case "join":
		return errors.Join(h.Q.Join(ctx), h.Out.Put(ctx, 1))
	case "empty": // says so before and after it has put something
		for range 2 {
			empty := int64(0)
			if h.Q.Len() == 0 {
				empty = 1
			}
			if err := h.Q.Put(ctx, empty); err != nil {
				return err
			}
		}
	}
	return nil
})

// A queue is full for one process until another one has taken something.
func TestQueueIsFullUntilAnotherProcessTakes(t *testing.T) {
	q := queueForTest[int64](t, newManager(t), 6)
	ctx := deadline(t)
	if q.Len() != 0 || q.Cap() != 6 {
		t.Errorf("a new queue: Len %d, Cap %d", q.Len(), q.Cap())
	}
	if err := handsQueue.Run(ctx, queueHand{Q: q, What: "put", To: 6}); err != nil {
		t.Fatal(err)
	}
	if q.Len() != 6 {
		t.Errorf("Len is %d, want 6", q.Len())
	}
	if ok, err := q.TryPut(6); ok || err != nil {
		t.Errorf("TryPut into a full queue: %v, %v", ok, err)
	}
	began := time.Now()
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if err := q.Put(short, 6); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) < 20*time.Millisecond {
		t.Errorf("Put into a full queue: %v after %v", err, time.Since(began))
	}
	if err := handsQueue.Run(ctx, queueHand{Q: q, What: "take", To: 6}); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := q.TryGet(); q.Len() != 0 || ok || err != nil {
		t.Errorf("Len is %d and TryGet says %v, %v after all were taken", q.Len(), ok, err)
	}
}

// What another process puts is got in its order, in all forms; what that one puts after it was started late, behind what was there.
func TestQueueOfTwoProcessesKeepsTheOrder(t *testing.T) {
	q := queueForTest[int64](t, newManager(t), 32)
	ctx := deadline(t)
	for v := range int64(10) {
		if err := q.Put(ctx, v); err != nil {
			t.Fatal(err)
		}
	}
	if err := handsQueue.Run(ctx, queueHand{Q: q, What: "put", From: 10, To: 20}); err != nil { // and it is gone
		t.Fatal(err)
	}
	for v := int64(0); v < 20; v++ {
		var got [1]int64
		var err error
		switch v % 4 {
		case 0:
			got[0], err = q.Get(ctx)
		case 1:
			got[0], _, err = q.TryGet()
		case 2:
			_, err = q.GetN(ctx, got[:])
		case 3:
			l := Must(q.Lease(ctx))
			got[0], err = l.Value, l.Done()
		}
		if got[0] != v || err != nil {
			t.Errorf("got %d, %v, want %d", got[0], err, v)
		}
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, ok, err := q.TryGet(); ok || err != nil {
		t.Errorf("TryGet from an empty queue: %v, %v", ok, err)
	}
	if v, err := q.Get(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Get from an empty queue: %v, %v", v, err)
	}
}

func TestMessagesOfEachProducerComeInItsOrder(t *testing.T) {
	q := queueForTest[int64](t, newManager(t), 5)
	ctx := deadline(t)
	var all stdsync.WaitGroup
	for p := range int64(2) {
		all.Go(func() {
			if err := handsQueue.Run(ctx, queueHand{Q: q, What: "put", From: p * 1000, To: p*1000 + 200}); err != nil {
				t.Error(err)
			}
		})
	}
	next := [2]int64{0, 1000}
	for range 400 {
		v := Must(q.Get(ctx))
		if p := v / 1000; v != next[p] {
			t.Fatalf("got %d, want %d", v, next[p])
		} else {
			next[p]++
		}
	}
	all.Wait()
}

// Join returns when the last worker has acknowledged, and not before, to all who wait for that, again and again.
func TestJoinersOfTwoProcessesWaitForTheWorkers(t *testing.T) {
	m := newManager(t)
	q, done, joined := queueForTest[int64](t, m, 10), queueForTest[int64](t, m, 20), queueForTest[int64](t, m, 4)
	ctx := deadline(t)
	var all stdsync.WaitGroup
	run := func(h queueHand) {
		all.Go(func() {
			if err := handsQueue.Run(ctx, h); err != nil {
				t.Error(err)
			}
		})
	}
	for range 4 {
		run(queueHand{Q: q, Out: done, What: "work"})
	}
	for round := range 2 {
		for v := range int64(10) {
			if err := q.Put(ctx, v); err != nil {
				t.Fatal(err)
			}
		}
		run(queueHand{Q: q, Out: joined, What: "join"})
		if err := q.Join(ctx); err != nil || done.Len() != 10*(round+1) {
			t.Errorf("joined with %d of %d acknowledged, %v", done.Len(), 10*(round+1), err)
		}
		if _, err := joined.Get(ctx); err != nil { // the other one too
			t.Error(err)
		}
	}
	if err := q.Close(); err != nil {
		t.Error(err)
	}
	all.Wait()
}

// Of three processes that wait one gets a message, and two go on waiting.
func TestOneMessageIsForOneOfThreeProcesses(t *testing.T) {
	m := newManager(t)
	q, out := queueForTest[int64](t, m, 4), queueForTest[int64](t, m, 4)
	ctx := deadline(t)
	var all stdsync.WaitGroup
	for range 3 {
		all.Go(func() {
			if err := handsQueue.Run(ctx, queueHand{Q: q, Out: out, What: "get one"}); err != nil {
				t.Error(err)
			}
		})
	}
	untilWaiting(t, q.q, waitMessage, 3)
	for v := range int64(3) {
		if err := q.Put(ctx, v); err != nil {
			t.Fatal(err)
		}
		if got := Must(out.Get(ctx)); got != v {
			t.Errorf("got %d, want %d", got, v)
		}
		if v == 0 {
			time.Sleep(20 * time.Millisecond)
		}
		if n := q.q.waiting(waitMessage); n != uint64(2-v) || out.Len() != 0 {
			t.Errorf("%d wait and %d more have got something, want %d and none", n, out.Len(), 2-v)
		}
	}
	all.Wait()
}

func TestOtherProcessesSeeWhetherAQueueIsEmpty(t *testing.T) {
	q := queueForTest[int64](t, newManager(t), 4)
	ctx := deadline(t)
	if err := handsQueue.Run(ctx, queueHand{Q: q, What: "empty"}); err != nil {
		t.Fatal(err)
	}
	if a, b := Must(q.Get(ctx)), Must(q.Get(ctx)); a != 1 || b != 0 || q.Len() != 0 {
		t.Errorf("it was empty: %d, then %d; there are %d more", a, b, q.Len())
	}
}

// Ten senders and ten receivers share a queue with one place.
func TestManyPassThroughOnePlace(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		const hands = 10
		q := queueForTest[int64](t, m, 1)
		ctx := deadline(t)
		each := int64(10_000)
		if testing.Short() {
			each = 100
		}
		var put, got stdsync.WaitGroup
		var sums [hands]int64
		for h := range int64(hands) {
			put.Go(func() {
				for i := range each {
					if err := q.Put(ctx, h*each+i); err != nil {
						t.Error(err)
						return
					}
				}
			})
			got.Go(func() {
				for {
					v, err := q.Get(ctx)
					if err != nil {
						if !errors.Is(err, ErrQueueClosed) {
							t.Error(err)
						}
						return
					}
					sums[h] += v
				}
			})
		}
		put.Wait()
		if err := q.Close(); err != nil {
			t.Error(err)
		}
		got.Wait()
		sum := int64(0)
		for _, s := range sums {
			sum += s
		}
		if n := hands * each; sum != n*(n-1)/2 {
			t.Errorf("the messages got add up to %d, want %d", sum, n*(n-1)/2)
		}
	})
}

// Messages of any size come whole, or are refused, and then their place is free.
func TestMessagesOfAnySizeComeWhole(t *testing.T) {
	m := newManager(t, shm.Size(4<<20), shm.Limit(4<<20))
	texts, blobs := queueForTest[string](t, m, 1), queueForTest[[]byte](t, m, 1)
	ctx := deadline(t)
	for _, n := range []int{0, 1, 15, 16, 4095, 4096, 4097, 65536, 1 << 20, 8 << 20} {
		text := strings.Repeat("0123456789", n/10+1)[:n]
		blob := []byte(text)
		err := errors.Join(texts.Put(ctx, text), blobs.Put(ctx, blob))
		if n > 4<<20 {
			if !errors.Is(err, shm.ErrNoSpace) || texts.Len() != 0 || blobs.Len() != 0 {
				t.Errorf("%d bytes: %v, and %d and %d messages are there", n, err, texts.Len(), blobs.Len())
			}
			text, blob = "after it", []byte("after it")
			err = errors.Join(texts.Put(ctx, text), blobs.Put(ctx, blob))
		}
		if err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		clear(blob) // the queue has what it was
		if got, err := texts.Get(ctx); got != text || err != nil {
			t.Errorf("%d bytes came as %d, %v", n, len(got), err)
		}
		if got, err := blobs.Get(ctx); !slices.Equal(got, []byte(text)) || err != nil {
			t.Errorf("%d bytes came as %d, %v", n, len(got), err)
		}
	}
}
