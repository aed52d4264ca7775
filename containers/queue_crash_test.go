package containers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm/proc"
)

var errCut = errors.New("cut off")

// cutOff runs fn up to its k'th store, and reports whether it came so far.
func cutOff(k int, fn func()) (cut bool) {
	n := 0
	txn.OnStore = func(unsafe.Pointer, uintptr) {
		if n++; n > k {
			panic(errCut)
		}
	}
	defer func() {
		txn.OnStore = nil
		if v := recover(); v == errCut {
			cut = true
		} else if v != nil {
			panic(v)
		}
	}()
	fn()
	return false
}

// describe says what the entries and the ring hold.
func (q *queue) describe() string {
	var s strings.Builder
	for i := range q.table(tableUsed).Load() {
		p, _ := q.entry(i)
		if c := word(p, leaseControl).Load(); c&leaseState != leaseFree {
			fmt.Fprintf(&s, "message %d in state %d, attempt %d, %v; ", word(p, leaseNumber).Load(), c&leaseState, attemptsOf(c), *as[[2]int64](plus(p, leaseSlot)))
		}
	}
	head, tail, _ := q.bounds()
	for v := head; v != tail; v++ {
		fmt.Fprintf(&s, "%v ", *as[[2]int64](q.slot(v)))
	}
	if q.closed() {
		s.WriteString("closed")
	}
	return s.String()
}

// Each operation is cut off before each of its stores, and so is the repair that follows: the queue is as before or
// as after it, and once it is as after it stays so.
func TestQueueOperationsHappenWholeOrNotAtAll(t *testing.T) {
	m := newHeapManager(t)
	ctx := deadline(t)
	type world struct {
		q    SharedQueue[[2]int64]
		mine *Lease[[2]int64]
	}
	furnish := func() world { // one message on lease, two returned, two in the ring
		w := world{q: Must(NewSharedQueue[[2]int64](m, 4))}
		var all [3]*Lease[[2]int64]
		for i := range int64(len(all)) {
			Must(w.q.TryPut([2]int64{i, -i}))
			all[i] = Must(w.q.Lease(ctx))
		}
		w.mine = all[1]
		if err := errors.Join(all[2].Return(), all[0].Return()); err != nil {
			t.Fatal(err)
		}
		Must(w.q.PutN(ctx, [2]int64{3, -3}, [2]int64{4, -4}))
		return w
	}
	drained := func() world { // the same without the two returned
		w := furnish()
		Must(w.q.Get(ctx))
		Must(w.q.Get(ctx))
		return w
	}
	for name, op := range map[string]struct {
		from func() world
		do   func(w world) error
	}{
		"put":            {furnish, func(w world) error { return w.q.Put(ctx, [2]int64{5, -5}) }},
		"put two":        {furnish, func(w world) error { _, err := w.q.PutN(ctx, [2]int64{5, -5}, [2]int64{6, -6}); return err }},
		"get":            {drained, func(w world) error { _, err := w.q.Get(ctx); return err }},
		"get returned":   {furnish, func(w world) error { _, err := w.q.Get(ctx); return err }},
		"get two":        {drained, func(w world) error { _, err := w.q.GetN(ctx, make([][2]int64, 2)); return err }},
		"lease":          {drained, func(w world) error { _, err := w.q.Lease(ctx); return err }},
		"lease returned": {furnish, func(w world) error { _, err := w.q.Lease(ctx); return err }},
		"done":           {furnish, func(w world) error { return w.mine.Done() }},
		"return":         {furnish, func(w world) error { return w.mine.Return() }},
		"close":          {furnish, func(w world) error { return w.q.Close() }},
	} {
		t.Run(name, func(t *testing.T) {
			w := op.from()
			before := w.q.q.describe()
			if err := op.do(w); err != nil {
				t.Fatal(err)
			}
			after := w.q.q.describe()
			if before == after {
				t.Fatalf("the operation does nothing: the test shows nothing")
			}
			happened := false
			for k, cut := 0, true; cut; k++ {
				for j := 0; ; j++ {
					w := op.from()
					if cut = cutOff(k, func() {
						if err := op.do(w); err != nil {
							t.Error(err)
						}
					}); !cut {
						break
					}
					again := cutOff(j, func() { // the repairer dies too
						if err := repairQueue(w.q.s, w.q.obj); err != nil {
							t.Error(err)
						}
					})
					if err := repairQueue(w.q.s, w.q.obj); err != nil {
						t.Fatal(err)
					}
					w.q.mu.Unlock()
					if err := w.q.Check(); err != nil {
						t.Fatalf("cut off before store %d: %v", k, err)
					}
					switch got := w.q.q.describe(); {
					case got == after:
						happened = true
					case got != before || happened:
						t.Fatalf("cut off before store %d it holds\n%s, want\n%s or\n%s", k, got, before, after)
					}
					if !again {
						break
					}
				}
			}
			if !happened && name != "put" && name != "put two" && !strings.HasPrefix(name, "get") && name != "close" {
				t.Error("nothing comes after the store that commits: the test shows nothing")
			}
		})
	}
}

type queueTorture struct {
	In, Out SharedQueue[string]
	Seed    int64
}

func tortured(n int64) string { return fmt.Sprintf("%d %s", n, strings.Repeat("x", int(n%3)*20)) }

// queueWorker moves messages from one queue to the other until it is killed.
var queueWorker = proc.Define("queue worker", func(ctx context.Context, w queueTorture) error {
	for {
		l, err := w.In.Lease(ctx)
		if errors.Is(err, ErrQueueClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := w.Out.Put(ctx, l.Value); err != nil {
			return err
		}
		if err := l.Done(); err != nil {
			return err
		}
	}
})

// Workers are killed all the time. Each message arrives, again only if a worker was killed between its Put and its
// Done, and Join ends.
func TestQueueWorkersAreKilledAndNothingIsLost(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector does not look into mapped memory, and makes processes start slowly")
	}
	const messages, kills = 4000, 12
	m := newManager(t)
	w := queueTorture{In: queueForTest[string](t, m, 20), Out: queueForTest[string](t, m, 7)}
	ctx := deadline(t)
	start := func() *proc.Process {
		p, err := queueWorker.Start(ctx, w)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	running := [2]*proc.Process{start(), start()}
	arrived := map[string]int{}
	moved := make(chan error, 1)
	go func() { // collects
		for {
			v, err := w.Out.Get(ctx)
			if err != nil {
				if errors.Is(err, ErrQueueClosed) {
					err = nil
				}
				moved <- err
				return
			}
			arrived[v]++
		}
	}()
	put := make(chan error, 1)
	killed := make(chan struct{})
	go func() { // no end before the last kill: there is always something to do
		for n := int64(0); ; n++ {
			if n >= messages {
				select {
				case <-killed:
					put <- errors.Join(w.In.Join(ctx), w.In.Close())
					return
				default:
				}
			}
			if err := w.In.Put(ctx, tortured(n)); err != nil {
				put <- err
				return
			}
			w.Seed = n + 1
		}
	}()
	for i := range kills {
		time.Sleep(time.Duration(1+i%7) * time.Millisecond) // where it is killed, not when
		p := running[i%2]
		p.Kill()
		wantKilled(t, p.Wait())
		p.Close()
		running[i%2] = start()
	}
	close(killed)
	if err := <-put; err != nil {
		t.Fatal(err)
	}
	for _, p := range running {
		if err := p.Wait(); err != nil {
			t.Error(err)
		}
		p.Close()
	}
	if err := w.Out.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-moved; err != nil {
		t.Fatal(err)
	}
	twice := 0
	for n := range w.Seed {
		twice += arrived[tortured(n)] - 1
		if arrived[tortured(n)] == 0 {
			t.Errorf("message %d of %d is lost", n, w.Seed)
		}
	}
	if twice > kills {
		t.Errorf("%d messages came twice after %d kills", twice, kills)
	}
	t.Logf("%d messages, %d of them twice", w.Seed, twice)
}
