package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	stdsync "sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

type letter struct {
	N    int64
	Pad  [3]int64
	Last int16
}

func letterOf(n int64) letter { return letter{n, [3]int64{n, n, n}, int16(n)} }

// queueForTest makes a queue that is checked when the test ends.
func queueForTest[T any](tb testing.TB, m *Manager, capacity int, opts ...Option) SharedQueue[T] {
	tb.Helper()
	q, err := NewSharedQueue[T](m, capacity, opts...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := q.Check(); err != nil && !errors.Is(err, shm.ErrStale) && !errors.Is(err, shm.ErrClosed) {
			tb.Error(err)
		}
	})
	return q
}

// testQueueOrder puts and gets in batches of all sizes, around the end of the ring, against a model.
func testQueueOrder[T any](t *testing.T, m *Manager, of func(int) T, same func(a, b T) bool) {
	ctx := deadline(t)
	for _, capacity := range []int{1, 2, 3, 8, 13} {
		q := queueForTest[T](t, m, capacity)
		if q.Cap() != capacity || q.Len() != 0 || q.Closed() {
			t.Fatalf("a new queue for %d: Cap %d, Len %d, Closed %v", capacity, q.Cap(), q.Len(), q.Closed())
		}
		next, got := 0, 0
		for round := range 60 {
			for range round % (capacity + 2) {
				ok, err := q.TryPut(of(next))
				if err != nil || ok != (next-got < capacity) {
					t.Fatalf("TryPut into %d of %d: %v, %v", next-got, capacity, ok, err)
				}
				if ok {
					next++
				}
			}
			if free := capacity - (next - got); round%3 == 0 {
				var vs []T
				for i := range free {
					vs = append(vs, of(next+i))
				}
				if n, err := q.PutN(ctx, vs...); n != free || err != nil {
					t.Fatalf("PutN of %d: %d, %v", free, n, err)
				}
				next += free
			}
			if q.Len() != next-got {
				t.Fatalf("Len is %d, want %d", q.Len(), next-got)
			}
			if round%2 == 0 {
				v, ok, err := q.TryGet()
				if err != nil || ok != (next > got) || ok && !same(v, of(got)) {
					t.Fatalf("TryGet: %v, %v, %v, want %v", v, ok, err, of(got))
				}
				if ok {
					got++
				}
			} else if next > got {
				dst := make([]T, 1+round%5)
				n, err := q.GetN(ctx, dst)
				if err != nil || n != min(len(dst), next-got) {
					t.Fatalf("GetN of %d, %d there: %d, %v", len(dst), next-got, n, err)
				}
				for _, v := range dst[:n] {
					if !same(v, of(got)) {
						t.Fatalf("message %d is %v", got, v)
					}
					got++
				}
			}
		}
		if err := q.Check(); err != nil {
			t.Fatal(err)
		}
		if err := q.Destroy(); err != nil {
			t.Fatal(err)
		}
	}
}

func equal[T comparable](a, b T) bool { return a == b }

func longText(n int) string { return strings.Repeat(fmt.Sprint(n, " "), n%40) }

func TestQueueKeepsOrder(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		t.Run("int64", func(t *testing.T) { testQueueOrder(t, m, func(n int) int64 { return int64(n) }, equal) })
		t.Run("uint8", func(t *testing.T) { testQueueOrder(t, m, func(n int) uint8 { return uint8(n) }, equal) })
		t.Run("struct", func(t *testing.T) { testQueueOrder(t, m, func(n int) letter { return letterOf(int64(n)) }, equal) })
		t.Run("string", func(t *testing.T) { testQueueOrder(t, m, longText, equal) })
		t.Run("bytes", func(t *testing.T) {
			testQueueOrder(t, m, func(n int) []byte { return []byte(longText(n)) }, func(a, b []byte) bool { return string(a) == string(b) })
		})
		t.Run("nothing", func(t *testing.T) { testQueueOrder(t, m, func(int) struct{} { return struct{}{} }, equal) })
	})
}

func TestQueueFreesWhatItHeld(t *testing.T) {
	m := newManager(t)
	s := Must(m.space())
	if err := Must(NewSharedQueue[string](m, 4)).Destroy(); err != nil { // layouts, lanes
		t.Fatal(err)
	}
	before := Must(s.heap.Usage())
	q := queueForTest[string](t, m, 8)
	ctx := deadline(t)
	for i := range 8 {
		if err := q.Put(ctx, longText(i+30)); err != nil {
			t.Fatal(err)
		}
	}
	Must(q.Get(ctx))
	one, two := Must(q.Lease(ctx)), Must(q.Lease(ctx))
	if err := errors.Join(one.Done(), two.Return()); err != nil {
		t.Fatal(err)
	}
	Must(q.Lease(ctx))
	three := Must(q.Lease(ctx))
	if err := three.Return(); err != nil {
		t.Fatal(err)
	}
	if err := q.Destroy(); err != nil {
		t.Fatal(err)
	}
	if after := Must(s.heap.Usage()); after.LiveBlocks != before.LiveBlocks || after.Objects != before.Objects {
		t.Errorf("%d blocks and %d objects, before %d and %d", after.LiveBlocks, after.Objects, before.LiveBlocks, before.Objects)
	}
}

func TestQueueRefusesWhatItCannotHold(t *testing.T) {
	m := newHeapManager(t)
	for _, n := range []int{-1, 0, maxQueue + 1} {
		if _, err := NewSharedQueue[int64](m, n); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("capacity %d: %v", n, err)
		}
	}
	if _, err := NewSharedQueue[*int](m, 1); !errors.Is(err, shm.ErrNotPlain) {
		t.Errorf("pointers: %v", err)
	}
	if _, err := NewSharedQueue[int64](m, maxQueue); !errors.Is(err, shm.ErrNoSpace) {
		t.Errorf("8 GiB: %v", err)
	}
}

// A closed queue is drained first; Put hears of the close at once.
func TestClosedQueueIsDrained(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		q := queueForTest[int64](t, m, 4)
		ctx := deadline(t)
		if n, err := q.PutN(ctx, 1, 2, 3, 4); n != 4 || err != nil {
			t.Fatal(n, err)
		}
		waiting := make(chan error)
		go func() { waiting <- q.Put(ctx, 5) }()
		untilWaiting(t, q.q, waitRoom, 1)
		if err := errors.Join(q.Close(), q.Close()); err != nil {
			t.Fatal(err)
		}
		if err := <-waiting; !errors.Is(err, ErrQueueClosed) || errors.Is(err, shm.ErrClosed) {
			t.Errorf("waiting Put: %v", err)
		}
		if ok, err := q.TryPut(5); ok || !errors.Is(err, ErrQueueClosed) {
			t.Errorf("TryPut: %v, %v", ok, err)
		}
		if n, err := q.PutN(ctx, 5); n != 0 || !errors.Is(err, ErrQueueClosed) {
			t.Errorf("PutN: %v, %v", n, err)
		}
		l := Must(q.Lease(ctx))
		for want := range int64(3) {
			if v, err := q.Get(ctx); v != want+2 || err != nil {
				t.Errorf("Get: %v, %v", v, err)
			}
		}
		// The one that is leased may come back, so nobody is sent away.
		got := make(chan string)
		for range 2 {
			go func() {
				v, err := q.Get(ctx)
				got <- fmt.Sprint(v, errors.Is(err, ErrQueueClosed))
			}()
		}
		untilWaiting(t, q.q, waitMessage, 2)
		if err := l.Return(); err != nil {
			t.Fatal(err)
		}
		if all := []string{<-got, <-got}; !slices.Contains(all, "1 false") || !slices.Contains(all, "0 true") {
			t.Errorf("the two that waited got %q", all)
		}
		if _, ok, err := q.TryGet(); ok || !errors.Is(err, ErrQueueClosed) {
			t.Errorf("TryGet: %v, %v", ok, err)
		}
		if n, err := q.GetN(ctx, make([]int64, 3)); n != 0 || !errors.Is(err, ErrQueueClosed) {
			t.Errorf("GetN: %v, %v", n, err)
		}
		if _, err := q.Lease(ctx); !errors.Is(err, ErrQueueClosed) {
			t.Errorf("Lease: %v", err)
		}
		if err := q.Join(ctx); err != nil {
			t.Error(err)
		}
	})
}

// untilWaiting waits until n are counted that wait.
func untilWaiting(tb testing.TB, q *queue, w waitFor, n uint64) {
	tb.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Microsecond) {
		if q.waiting(w) >= n {
			return
		}
		if time.Now().After(end) {
			tb.Fatalf("%d wait, want %d", q.waiting(w), n)
		}
	}
}

func TestQueueWaitsEndWithTheContext(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		q := queueForTest[int64](t, m, 1)
		boom := errors.New("boom")
		ended, cancel := context.WithCancelCause(context.Background())
		cancel(boom)
		if err := q.Put(ended, 1); err != nil {
			t.Errorf("Put with room, context ended: %v", err)
		}
		if err := q.Put(ended, 2); !errors.Is(err, context.Canceled) || !errors.Is(err, boom) {
			t.Errorf("Put without room, context ended: %v", err)
		}
		if v, err := q.Get(ended); v != 1 || err != nil {
			t.Errorf("Get with a message, context ended: %v, %v", v, err)
		}
		if _, err := q.Get(ended); !errors.Is(err, context.Canceled) {
			t.Errorf("Get without a message, context ended: %v", err)
		}
		start := time.Now() // before the context's own time begins
		ctx, stop := context.WithTimeout(context.Background(), 20*time.Millisecond)
		defer stop()
		if _, err := q.Lease(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) < 20*time.Millisecond {
			t.Errorf("Lease: %v after %v", err, time.Since(start))
		}
		if q.q.waiting(waitMessage) != 0 {
			t.Errorf("%d are counted that wait for a message", q.q.waiting(waitMessage))
		}
	})
}

// Whoever waits when a queue is destroyed is told, and does not touch its memory.
func TestDestroyedQueueLetsWaitersGo(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		q := queueForTest[int64](t, m, 1)
		ctx := deadline(t)
		errs := make(chan error)
		for range 3 {
			go func() { _, err := q.Get(ctx); errs <- err }()
		}
		untilWaiting(t, q.q, waitMessage, 3)
		if err := q.Destroy(); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := <-errs; !errors.Is(err, shm.ErrStale) {
				t.Errorf("Get: %v", err)
			}
		}
		wantErrors(t, shm.ErrStale, map[string]func() error{
			"Put":   func() error { return q.Put(ctx, 1) },
			"PutN":  func() error { _, err := q.PutN(ctx); return err },
			"Get":   func() error { _, err := q.Get(ctx); return err },
			"GetN":  func() error { _, err := q.GetN(ctx, nil); return err },
			"Lease": func() error { _, err := q.Lease(ctx); return err },
			"Join":  func() error { return q.Join(ctx) },
			"Close": q.Close,
			"Len":   func() error { q.Len(); return nil },
		})
	})
}

func TestLeaseEndsOnce(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		q := queueForTest[string](t, m, 4)
		ctx := deadline(t)
		if n, err := q.PutN(ctx, "a", longText(35), "c"); n != 3 || err != nil {
			t.Fatal(n, err)
		}
		a, b := Must(q.Lease(ctx)), Must(q.Lease(ctx))
		if a.Value != "a" || a.Attempt != 1 || b.Value != longText(35) || q.Len() != 1 || q.Unfinished() != 3 {
			t.Fatalf("leases %q, %q; Len %d, Unfinished %d", a.Value, b.Value, q.Len(), q.Unfinished())
		}
		if err := errors.Join(b.Return(), a.Return()); err != nil {
			t.Fatal(err)
		}
		for _, end := range []func() error{a.Done, a.Return, b.Done, b.Return} {
			if err := end(); !errors.Is(err, ErrLeaseEnded) {
				t.Errorf("a lease that has ended: %v", err)
			}
		}
		again := Must(q.Lease(ctx)) // in the order of the queue, whichever came back first
		if again.Value != "a" || again.Attempt != 2 {
			t.Errorf("then comes %q, attempt %d", again.Value, again.Attempt)
		}
		if err := a.Done(); !errors.Is(err, ErrLeaseEnded) {
			t.Errorf("the old lease of a message that is out again: %v", err)
		}
		if err := again.Done(); err != nil {
			t.Error(err)
		}
		if err := again.Done(); !errors.Is(err, ErrLeaseEnded) {
			t.Errorf("Done again: %v", err)
		}
		if v, err := q.Get(ctx); v != longText(35) || err != nil {
			t.Errorf("Get: %q, %v", v, err)
		}
		if v, err := q.Get(ctx); v != "c" || err != nil || q.Unfinished() != 0 {
			t.Errorf("Get: %q, %v; %d unfinished", v, err, q.Unfinished())
		}
	})
}

// Of many that end a lease at once, one does.
func TestLeaseIsEndedByOneOfMany(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		q := queueForTest[int64](t, m, 4)
		ctx := deadline(t)
		for i := range int64(100) {
			if err := q.Put(ctx, i); err != nil {
				t.Fatal(err)
			}
			l := Must(q.Lease(ctx))
			var ended atomic.Int32
			var all stdsync.WaitGroup
			for range 4 {
				all.Go(func() {
					if l.Done() == nil {
						ended.Add(1)
					}
				})
			}
			all.Wait()
			if ended.Load() != 1 || q.Unfinished() != 0 {
				t.Fatalf("%d have ended one lease, %d messages are unfinished", ended.Load(), q.Unfinished())
			}
		}
	})
}

// There are 16 entries at least. Who wants one more waits, whatever others get meanwhile.
func TestLeaseWaitsForAnEntry(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		q := queueForTest[int64](t, m, 1)
		ctx := deadline(t)
		var leases []*Lease[int64]
		for i := range int64(minLeases) {
			if err := q.Put(ctx, i); err != nil {
				t.Fatal(err)
			}
			leases = append(leases, Must(q.Lease(ctx)))
		}
		if err := q.Put(ctx, 99); err != nil {
			t.Fatal(err)
		}
		if l, ok, err := q.TryLease(); l != nil || ok || err != nil {
			t.Fatalf("TryLease without an entry: %v, %v, %v", l, ok, err)
		}
		got := make(chan *Lease[int64], 2)
		for range 2 {
			go func() { got <- Must(q.Lease(ctx)) }()
		}
		untilWaiting(t, q.q, waitEntry, 2)
		if err := leases[3].Return(); err != nil { // no entry is free, but there is a message that has one
			t.Fatal(err)
		}
		if l := <-got; l.Value != 3 || l.Attempt != 2 {
			t.Errorf("lease of %d, attempt %d", l.Value, l.Attempt)
		}
		if err := leases[0].Done(); err != nil {
			t.Fatal(err)
		}
		if l := <-got; l.Value != 99 {
			t.Errorf("lease of %d", l.Value)
		}
	})
}

func TestJoinWaitsForTheLastAcknowledgement(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		q := queueForTest[int64](t, m, 4)
		ctx := deadline(t)
		if err := q.Join(ctx); err != nil { // of nothing
			t.Fatal(err)
		}
		if n, err := q.PutN(ctx, 1, 2); n != 2 || err != nil {
			t.Fatal(n, err)
		}
		joined := make(chan error, 1)
		go func() { joined <- q.Join(ctx) }()
		untilWaiting(t, q.q, waitJoin, 1)
		l := Must(q.Lease(ctx))
		Must(q.Get(ctx))
		if err := l.Return(); err != nil {
			t.Fatal(err)
		}
		l = Must(q.Lease(ctx))
		select {
		case err := <-joined:
			t.Fatalf("Join returned %v with a message on lease", err)
		case <-time.After(20 * time.Millisecond):
		}
		if err := l.Done(); err != nil {
			t.Fatal(err)
		}
		if err := <-joined; err != nil {
			t.Error(err)
		}
	})
}

// Many producers and consumers: each message is got once, those of one producer in order, and leases that are
// returned come back.
func TestQueueBetweenManyGoroutines(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		const producers, consumers, each = 4, 4, 500
		q := queueForTest[[2]int32](t, m, 3)
		ctx := deadline(t)
		var put, got stdsync.WaitGroup
		for p := range int32(producers) {
			put.Go(func() {
				for i := range int32(each) {
					if i%10 == 0 {
						if n, err := q.PutN(ctx, [2]int32{p, i}); n != 1 || err != nil {
							t.Error(n, err)
						}
					} else if err := q.Put(ctx, [2]int32{p, i}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		var seen [producers][each]atomic.Int32
		for c := range consumers {
			got.Go(func() {
				last := [producers]int32{-1, -1, -1, -1}
				for {
					var vs [5][2]int32
					n, err := 1, error(nil)
					switch c % 3 {
					case 0:
						vs[0], err = q.Get(ctx)
					case 1:
						n, err = q.GetN(ctx, vs[:])
					case 2:
						var l *Lease[[2]int32]
						if l, err = q.Lease(ctx); err == nil && l.Attempt < 2 && l.Value[1]%7 == 0 {
							if err := l.Return(); err != nil {
								t.Error(err)
							}
							continue
						} else if err == nil {
							vs[0] = l.Value
							err = l.Done()
						}
					}
					if errors.Is(err, ErrQueueClosed) {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
					for _, v := range vs[:n] {
						if seen[v[0]][v[1]].Add(1) != 1 {
							t.Errorf("message %v again", v)
						}
						if c%3 != 2 && v[1]%7 != 0 && v[1] <= last[v[0]] {
							t.Errorf("message %v after %d", v, last[v[0]])
						} else if v[1]%7 != 0 {
							last[v[0]] = v[1]
						}
					}
				}
			})
		}
		put.Wait()
		if err := errors.Join(q.Join(ctx), q.Close()); err != nil {
			t.Fatal(err)
		}
		got.Wait()
		for p := range seen {
			for i := range seen[p] {
				if seen[p][i].Load() != 1 {
					t.Errorf("message %d of producer %d was got %d times", i, p, seen[p][i].Load())
				}
			}
		}
	})
}

type work struct {
	Jobs SharedQueue[int64]
	Done SharedQueue[[2]int64]
	What string
}

var queueVictim = proc.Define("queue victim", func(ctx context.Context, w work) error {
	switch w.What {
	case "lease":
		Must(w.Jobs.Lease(ctx))
		Must(w.Jobs.Lease(ctx))
	case "lock":
		w.Jobs.Lock()
	}
	kill()
	return errors.New("not killed")
})

// Messages on leases of a process that dies are delivered again, first and in order, to one who sleeps already.
func TestLeasesOfTheDeadAreDeliveredAgain(t *testing.T) {
	m := newManager(t)
	q := queueForTest[int64](t, m, 4)
	ctx := deadline(t)
	if n, err := q.PutN(ctx, 1, 2, 3); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	mine := Must(q.Lease(ctx)) // stays leased
	wantKilled(t, queueVictim.Run(ctx, work{Jobs: q, What: "lease"}))
	for want := int64(2); want <= 3; want++ { // the ring is empty: these wait
		l := Must(q.Lease(ctx))
		if l.Value != want || l.Attempt != 2 {
			t.Errorf("lease of %d, attempt %d, want %d, 2", l.Value, l.Attempt, want)
		}
		if err := l.Done(); err != nil {
			t.Error(err)
		}
	}
	if err := mine.Done(); err != nil {
		t.Error(err)
	}
	if err := q.Join(ctx); err != nil {
		t.Error(err)
	}
}

func TestLockOfTheDeadIsFreeForWaiters(t *testing.T) {
	m := newManager(t)
	q := queueForTest[int64](t, m, 4)
	ctx := deadline(t)
	got := make(chan int64)
	go func() { v, _ := q.Get(ctx); got <- v }()
	untilWaiting(t, q.q, waitMessage, 1)
	wantKilled(t, queueVictim.Run(ctx, work{Jobs: q, What: "lock"}))
	if err := q.Put(ctx, 7); err != nil {
		t.Fatal(err)
	}
	if v := <-got; v != 7 {
		t.Errorf("got %d", v)
	}
}
