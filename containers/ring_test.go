package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// ringForTest makes a ring that is checked when the test ends.
func ringForTest[T any](tb testing.TB, m *Manager, capacity int, opts ...Option) SharedRing[T] {
	tb.Helper()
	h, err := NewSharedRing[T](m, capacity, opts...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := h.Check(); err != nil && !errors.Is(err, shm.ErrStale) && !errors.Is(err, shm.ErrClosed) {
			tb.Error(err)
		}
	})
	return h
}

// endsOf takes both ends, until the test ends.
func endsOf[T any](tb testing.TB, h SharedRing[T]) (*RingProducer[T], *RingConsumer[T]) {
	tb.Helper()
	p, err := h.Producer(context.Background())
	if err != nil {
		tb.Fatal(err)
	}
	c, err := h.Consumer(context.Background())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { p.Release(); c.Release() })
	return p, c
}

// testRingOrder puts and gets in batches of all sizes, around the end of the slots, against a model.
func testRingOrder[T comparable](t *testing.T, m *Manager, of func(int) T) {
	ctx := deadline(t)
	for _, capacity := range []int{1, 2, 3, 8, 13} {
		h := ringForTest[T](t, m, capacity)
		p, c := endsOf(t, h)
		put, got := 0, 0
		for round := range 200 {
			if n := round % (capacity + 1); round%3 == 0 && put-got+n <= capacity {
				var vs []T
				for i := range n {
					vs = append(vs, of(put+i))
				}
				if k, err := p.PutN(ctx, vs...); k != n || err != nil {
					t.Fatalf("PutN of %d: %d, %v", n, k, err)
				}
				put += n
			} else if ok, err := p.TryPut(of(put)); err != nil || ok != (put-got < capacity) {
				t.Fatalf("TryPut with %d of %d: %v, %v", put-got, capacity, ok, err)
			} else if ok {
				put++
			}
			if h.Len() != put-got || h.Cap() != capacity {
				t.Fatalf("Len %d, Cap %d, want %d, %d", h.Len(), h.Cap(), put-got, capacity)
			}
			var vs []T
			if n := round % 5; round%2 == 0 && n > 0 && put > got {
				vs = make([]T, n)
				k, err := c.GetN(ctx, vs)
				if k != min(n, put-got) || err != nil {
					t.Fatalf("GetN of %d with %d there: %d, %v", n, put-got, k, err)
				}
				vs = vs[:k]
			} else if v, ok, err := c.TryGet(); err != nil || ok != (put > got) {
				t.Fatalf("TryGet with %d there: %v, %v", put-got, ok, err)
			} else if ok {
				vs = []T{v}
			}
			for _, v := range vs {
				if v != of(got) {
					t.Fatalf("got %v, want %v", v, of(got))
				}
				got++
			}
		}
		if got < 100 {
			t.Errorf("the test got %d messages only", got)
		}
	}
}

func TestRingDeliversInOrder(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		testRingOrder(t, m, func(i int) int64 { return int64(i) })
		testRingOrder(t, m, func(i int) uint8 { return uint8(i) })
		testRingOrder(t, m, func(i int) letter { return letterOf(int64(i)) })
	})
}

func TestRingRefusesWhatItCannotBe(t *testing.T) {
	m := newManager(t, shm.Limit(1<<20))
	for _, capacity := range []int{0, -1, 1<<30 + 1} {
		if _, err := NewSharedRing[int64](m, capacity); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("for %d messages: %v", capacity, err)
		}
	}
	if _, err := NewSharedRing[string](m, 1); !errors.Is(err, shm.ErrNotPlain) {
		t.Errorf("of strings: %v", err)
	}
	if _, err := NewSharedRing[int64](m, 1, WithMutex(Must(New[shmsync.Mutex](m)))); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("with a lock: %v", err)
	}
	if _, err := NewSharedRing[int64](m, 1<<20); !errors.Is(err, shm.ErrNoSpace) {
		t.Errorf("greater than the region: %v", err)
	}
	Must(NewSharedRing[int64](m, 1, Name("ring")))
	if _, err := Find[SharedRing[uint8]](m, "ring"); !errors.Is(err, shm.ErrTypeMismatch) {
		t.Errorf("of another T: %v", err)
	}
	if _, err := Find[SharedQueue[int64]](m, "ring"); !errors.Is(err, shm.ErrTypeMismatch) {
		t.Errorf("as a queue: %v", err)
	}
}

// An end has one owner: the next one waits for it, and a released end is of no use.
func TestRingEndBelongsToOne(t *testing.T) {
	m := newManager(t)
	h := ringForTest[int64](t, m, 4)
	p, c := endsOf(t, h)
	short, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := h.Producer(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second producer: %v", err)
	}
	if _, err := h.Consumer(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second consumer: %v", err)
	}
	Must(p.PutN(t.Context(), 1, 2))
	if err := h.Destroy(); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("destroyed with its ends taken: %v", err)
	}
	next := make(chan *RingProducer[int64])
	go func() { next <- Must(h.Producer(context.Background())) }()
	if err := p.Release(); err != nil {
		t.Fatal(err)
	}
	second := <-next
	if err := p.Release(); err != nil { // of nobody any more
		t.Error(err)
	}
	if _, err := p.TryPut(9); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("put by a released end: %v", err)
	}
	if err := second.Put(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	for want := int64(1); want <= 3; want++ {
		if v, err := c.Get(t.Context()); v != want || err != nil {
			t.Errorf("got %d, %v, want %d", v, err, want)
		}
	}
	if err := errors.Join(c.Release(), second.Release()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.GetN(t.Context(), make([]int64, 1)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("got by a released end: %v", err)
	}
	if err := h.Destroy(); err != nil {
		t.Errorf("destroyed with its ends free: %v", err)
	}
	if _, err := h.Producer(t.Context()); !errors.Is(err, shm.ErrStale) {
		t.Errorf("an end of a ring that was destroyed: %v", err)
	}
}

func TestRingCloseEndsTheInputAndThenTheOutput(t *testing.T) {
	m := newManager(t)
	h := ringForTest[int64](t, m, 2)
	p, c := endsOf(t, h)
	Must(p.PutN(t.Context(), 1, 2))
	full := make(chan error, 1)
	go func() { full <- p.Put(context.Background(), 3) }()
	time.Sleep(time.Millisecond) // it waits, or it comes to a closed ring: the same answer
	if err := errors.Join(h.Close(), h.Close()); err != nil {
		t.Fatal(err)
	}
	if err := <-full; !errors.Is(err, ErrQueueClosed) || !h.Closed() {
		t.Errorf("put into a closed ring: %v", err)
	}
	var got []int64
	for v, err := range c.All(deadline(t)) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, v)
	}
	if !slices.Equal(got, []int64{1, 2}) {
		t.Errorf("got %v", got)
	}
	if _, err := c.Get(deadline(t)); !errors.Is(err, ErrQueueClosed) {
		t.Errorf("got from a closed ring: %v", err)
	}
	p.Release()
	if _, err := h.Producer(t.Context()); !errors.Is(err, ErrQueueClosed) {
		t.Errorf("the producing end of a closed ring: %v", err)
	}
	if err := errors.Join(c.Release(), h.Destroy()); err != nil {
		t.Errorf("destroyed with an end that was asked for in vain: %v", err)
	}
	// One that waits for a message is woken too.
	other := ringForTest[int64](t, m, 2)
	_, d := endsOf(t, other)
	empty := make(chan error, 1)
	go func() { _, err := d.Get(context.Background()); empty <- err }()
	time.Sleep(time.Millisecond)
	other.Close()
	if err := <-empty; !errors.Is(err, ErrQueueClosed) {
		t.Errorf("waited for a message of a closed ring: %v", err)
	}
}

func TestRingWaitsEndWithTheirContext(t *testing.T) {
	h := ringForTest[int64](t, newManager(t), 1)
	p, c := endsOf(t, h)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Get(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("got from an empty ring: %v", err)
	}
	if err := p.Put(ended, 1); err != nil {
		t.Errorf("put into a ring with room: %v", err)
	}
	if n, err := p.PutN(ended, 2, 3); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("put into a full ring: %d, %v", n, err)
	}
	if v, err := c.Get(ended); v != 1 || err != nil {
		t.Errorf("got %d, %v", v, err)
	}
}

func TestRingCostsNoAllocation(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	p, c := endsOf(t, ringForTest[int64](t, newManager(t), 64))
	ctx, vs := t.Context(), make([]int64, 16)
	if n := testing.AllocsPerRun(100, func() {
		p.Put(ctx, 1)
		c.Get(ctx)
		p.PutN(ctx, vs...)
		c.GetN(ctx, vs)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A region that is closed under the ends answers so; one that is opened again has them free.
func TestRingEndsAreFreeWhenTheirRegionIsOpenedAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "region")
	r, err := shm.CreateFile(path, shm.Size(1<<20), shm.Limit(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	m := manageForTest(t, r)
	h := Must(NewSharedRing[int64](m, 4, Name("ring")))
	p, c := Must(h.Producer(t.Context())), Must(h.Consumer(t.Context()))
	Must(p.PutN(t.Context(), 1, 2))
	waiting := make(chan error, 1)
	go func() { _, err := p.PutN(context.Background(), 3, 4, 5); waiting <- err }()
	for h.Len() < 4 {
		time.Sleep(time.Millisecond)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	r.Close()
	if err := <-waiting; !errors.Is(err, shm.ErrClosed) {
		t.Errorf("one that waited for room: %v", err)
	}
	if _, err := c.Get(t.Context()); !errors.Is(err, shm.ErrClosed) {
		t.Errorf("got from a closed region: %v", err)
	}
	again, err := shm.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h = Must(Find[SharedRing[int64]](manageForTest(t, again), "ring"))
	short, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	q, d := Must(h.Producer(short)), Must(h.Consumer(short))
	if err := errors.Join(p.Release(), c.Release()); err != nil && !errors.Is(err, shm.ErrClosed) {
		t.Error(err)
	}
	for want := int64(1); want <= 4; want++ {
		if v, ok, err := d.TryGet(); v != want || !ok || err != nil {
			t.Errorf("got %d, %v, %v, want %d", v, ok, err, want)
		}
	}
	if err := q.Put(t.Context(), 5); err != nil {
		t.Error(err)
	}
	q.Release()
	d.Release()
}

// Counts that cannot be are an error, wherever they are found.
func TestRingWithImpossibleCountsIsAnError(t *testing.T) {
	m := newHeapManager(t)
	h := ringForTest[int64](t, m, 4)
	p, c := endsOf(t, h)
	Must(p.PutN(t.Context(), 1, 2, 3))
	r := h.r
	tail, head := r.count(producing).Load(), r.count(consuming).Load()
	r.count(consuming).Store(99)
	if n, err := p.PutN(t.Context(), 4, 5); !errors.Is(err, shm.ErrCorrupt) {
		t.Errorf("put with more got than put: %d, %v", n, err)
	}
	if err := h.Check(); !errors.Is(err, shm.ErrCorrupt) {
		t.Errorf("checked with more got than put: %v", err)
	}
	p.Release()
	if _, err := h.Producer(t.Context()); !errors.Is(err, shm.ErrCorrupt) {
		t.Errorf("taken with more got than put: %v", err)
	}
	r.count(consuming).Store(head)
	r.count(producing).Store(1 << 40)
	if _, err := c.GetN(t.Context(), make([]int64, 8)); !errors.Is(err, shm.ErrCorrupt) {
		t.Errorf("got with more put than there is room for: %v", err)
	}
	r.count(producing).Store(tail)
	for _, bad := range []struct {
		word int
		v    uint64
	}{{ringStride, 0}, {ringStride, 12}, {ringStride, 1 << 40}, {ringCapacity, 0}, {ringCapacity, 1 << 40}, {ringCapacity, 1 << 20}, {ringBody, 1 << 60}, {ringBody, 3}} {
		was := r.word(bad.word).Load()
		r.word(bad.word).Store(bad.v)
		if _, err := opened(h, h.base); !errors.Is(err, shm.ErrCorrupt) {
			t.Errorf("word %d is %#x: %v", bad.word, bad.v, err)
		}
		r.word(bad.word).Store(was)
	}
}

// Taking and releasing an end, and closing, cut off before each store: the end can be taken again, and nothing is lost.
func TestRingEndsCutOffAtEachStore(t *testing.T) {
	m := newHeapManager(t)
	for what, op := range map[string]func(h SharedRing[int64], p *RingProducer[int64]) error{
		"take":    func(h SharedRing[int64], _ *RingProducer[int64]) error { _, err := h.Consumer(t.Context()); return err },
		"release": func(_ SharedRing[int64], p *RingProducer[int64]) error { return p.Release() },
		"close":   func(h SharedRing[int64], _ *RingProducer[int64]) error { return h.Close() },
		"put":     func(_ SharedRing[int64], p *RingProducer[int64]) error { return p.Put(t.Context(), 3) },
	} {
		for k := 0; ; k++ {
			h := ringForTest[int64](t, m, 4)
			p := Must(h.Producer(t.Context()))
			Must(p.PutN(t.Context(), 1, 2))
			cut := cutOff(k, func() {
				if err := op(h, p); err != nil {
					t.Error(err)
				}
			})
			h.mu.TryLock() // what was cut off may hold it
			h.mu.Unlock()
			p.Release()
			if what == "take" && !cut {
				break
			}
			c, err := h.Consumer(deadline(t))
			if err != nil {
				t.Fatalf("%s cut off at store %d: %v", what, k, err)
			}
			var got []int64
			for v, ok, err := c.TryGet(); ok && err == nil; v, ok, err = c.TryGet() {
				got = append(got, v)
			}
			want := []int64{1, 2}
			if what == "put" && !cut {
				want = append(want, 3)
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s cut off at store %d: got %v", what, k, got)
			}
			if err := errors.Join(c.Release(), h.Destroy()); err != nil {
				t.Errorf("%s cut off at store %d: %v", what, k, err)
			}
			if !cut {
				if k == 0 {
					t.Errorf("%s stores nothing: the test shows nothing", what)
				}
				break
			}
		}
	}
}

type ringUser struct {
	Ring SharedRing[int64]
	Log  AtomicInt // what was put, or got, last
	At   int64     // one that is put makes a pause before this one
	Out  AtomicInt
}

// putsInRing puts the numbers after the logged one, for ever.
var putsInRing = proc.Define("puts in a ring", func(ctx context.Context, u ringUser) error {
	p, err := u.Ring.Producer(ctx)
	if err != nil {
		return err
	}
	defer p.Release()
	for v := u.Log.Load() + 1; ; v++ {
		if err := p.Put(ctx, v); err != nil {
			return err
		}
		u.Log.Store(v)
	}
})

// getsFromRing gets them, for ever, and counts in Out what is wrong.
var getsFromRing = proc.Define("gets from a ring", func(ctx context.Context, u ringUser) error {
	c, err := u.Ring.Consumer(ctx)
	if err != nil {
		return err
	}
	defer c.Release()
	first := true
	for {
		v, err := c.Get(ctx)
		if err != nil {
			return err
		}
		if last := u.Log.Load(); v != last+1 && !(first && v == last+2) { // killed between the two
			fmt.Printf("got %d after %d\n", v, last)
			u.Out.Add(1)
		}
		u.Log.Store(v)
		first = false
	}
})

// Producers are killed one after the other, while the next ones stand by: no message is lost or torn; one that was put and not
// logged is put again by the next.
func TestKilledProducersLeaveTheRingToTheNext(t *testing.T) {
	m := newManager(t)
	u := ringUser{Ring: ringForTest[int64](t, m, 64), Log: Must(NewAtomicInt(m, 0)), Out: Must(NewAtomicInt(m, 0))}
	ctx := deadline(t)
	c := Must(u.Ring.Consumer(ctx))
	defer c.Release()
	kills, last := 15, int64(0)
	if testing.Short() {
		kills = 5
	}
	var ps []*proc.Process
	start := func() { ps = append(ps, Must(putsInRing.Start(ctx, u, proc.Daemon()))) }
	start()
	for k := range kills {
		start() // stands by
		twice := 0
		for n := 0; n < 3000; n++ {
			v, err := c.Get(ctx)
			switch {
			case err != nil:
				t.Fatal(err)
			case v == last:
				twice++
			case v != last+1:
				t.Fatalf("got %d after %d", v, last)
			}
			last = v
		}
		if twice > 1 {
			t.Errorf("%d messages came twice after a kill", twice)
		}
		ps[k].Kill()
		<-ps[k].Done()
	}
	ps[kills].Kill()
	<-ps[kills].Done()
}

// The same for consumers: nothing comes twice, and at most the one message is missing that a killed one had got.
func TestKilledConsumersLeaveTheRingToTheNext(t *testing.T) {
	m := newManager(t)
	u := ringUser{Ring: ringForTest[int64](t, m, 64), Log: Must(NewAtomicInt(m, 0)), Out: Must(NewAtomicInt(m, 0))}
	ctx := deadline(t)
	p := Must(u.Ring.Producer(ctx))
	defer p.Release()
	kills, v := 15, int64(0)
	if testing.Short() {
		kills = 5
	}
	var cs []*proc.Process
	start := func() { cs = append(cs, Must(getsFromRing.Start(ctx, u, proc.Daemon()))) }
	start()
	for k := range kills {
		start()
		for range 3000 {
			v++
			if err := p.Put(ctx, v); err != nil {
				t.Fatal(err)
			}
		}
		cs[k].Kill()
		<-cs[k].Done()
	}
	for u.Log.Load() < v-1 { // the last one had at most the last but one killed before its log
		if ctx.Err() != nil {
			t.Fatalf("%d of %d", u.Log.Load(), v)
		}
		time.Sleep(time.Millisecond)
	}
	cs[kills].Kill()
	<-cs[kills].Done()
	if n := u.Out.Load(); n != 0 {
		t.Errorf("%d messages were not the next one", n)
	}
}

var standsByRing = proc.Define("stands by a ring", func(ctx context.Context, u ringUser) error {
	u.Out.Add(1)
	select {}
})

// One side is killed after it has published and before it has woken the other: the death ends the wait.
func TestRingWaitOfOneWhoseWakerWasKilledEnds(t *testing.T) {
	m := newManager(t)
	u := ringUser{Ring: ringForTest[int64](t, m, 2), Log: Must(NewAtomicInt(m, 0)), Out: Must(NewAtomicInt(m, 0))}
	ctx := deadline(t)
	p, c := endsOf(t, u.Ring)
	dies := Must(standsByRing.Start(ctx, u, proc.Daemon()))
	for u.Out.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	got := make(chan int64, 1)
	go func() { got <- Must(c.Get(ctx)) }()
	for as[atomic.Uint32](addr(p.e.tell)).Load()&3 != 1 { // not set, and somebody sleeps
		time.Sleep(time.Millisecond)
	}
	*as[int64](p.e.r.slot(0)) = 7
	p.e.next++
	p.e.own.Store(1)
	select {
	case v := <-got:
		t.Fatalf("got %d, and nobody was told", v)
	case <-time.After(300 * time.Millisecond):
	}
	dies.Kill()
	if v := <-got; v != 7 {
		t.Errorf("got %d", v)
	}
}

// The other side publishes in the last moment before one says that it waits, and sees no need to wake it.
func TestRingMessageThatComesJustBeforeASleepIsSeen(t *testing.T) {
	p, c := endsOf(t, ringForTest[int64](t, newHeapManager(t), 2))
	came := false
	txn.OnStore = func(at unsafe.Pointer, _ uintptr) {
		if at == addr(c.e.news) {
			txn.OnStore = nil
			came = true
			Must(p.TryPut(1))
		}
	}
	defer func() { txn.OnStore = nil }()
	if v, err := c.Get(deadline(t)); v != 1 || err != nil || !came {
		t.Errorf("got %d, %v; put before the sleep: %v", v, err, came)
	}
}

// Both sides sleep whenever they have to wait: no wake-up is lost.
func TestRingWithoutSpinningLosesNoWakeUp(t *testing.T) {
	was := ringSpin
	ringSpin = -1
	defer func() { ringSpin = was }()
	m := newManager(t)
	n := int64(20_000)
	if testing.Short() {
		n = 2000
	}
	for _, capacity := range []int{1, 3} {
		p, c := endsOf(t, ringForTest[int64](t, m, capacity))
		// A wake-up that is lost costs the rest of a sleep of 100 ms: many of them take too long.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		failed := make(chan error, 1)
		go func() {
			for v := range n {
				if err := p.Put(ctx, v); err != nil {
					failed <- err
					return
				}
			}
			failed <- nil
		}()
		for v := range n {
			if got, err := c.Get(ctx); got != v || err != nil {
				t.Fatalf("got %d, %v, want %d", got, err, v)
			}
		}
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
}
