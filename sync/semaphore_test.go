package sync_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// A depot is an arena of semaphores.
type depot struct {
	sem    shmsync.Semaphore
	ping   shmsync.CountingSemaphore
	pong   shmsync.CountingSemaphore
	group  shmsync.WaitGroup
	_      [64]byte
	n      int64 // guarded by a semaphore of one permit
	_      [56]byte
	ready  atomic.Int64
	goOn   atomic.Int64
	got    atomic.Int64
	missed atomic.Int64
	inside atomic.Int64
	most   atomic.Int64
}

func depotIn(r *shm.Region) *depot {
	d, err := shm.At[depot](r, r.Data()+8192)
	if err != nil {
		panic(err)
	}
	return d
}

func newDepot(t testing.TB) (*shm.Region, *depot) {
	r, _ := newArena(t)
	return r, depotIn(r)
}

// places are where a semaphore may be.
func places(t *testing.T, test func(t *testing.T, s *shmsync.Semaphore)) {
	t.Run("region", func(t *testing.T) {
		_, d := newDepot(t)
		test(t, &d.sem)
	})
	t.Run("heap", func(t *testing.T) {
		r, err := shm.Heap(shm.Size(1 << 16))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		test(t, &depotIn(r).sem)
	})
	t.Run("outside", func(t *testing.T) { test(t, new(shmsync.Semaphore)) })
}

func mustPanic[E error](t *testing.T, what string, fn func()) (err E) {
	t.Helper()
	defer func() {
		t.Helper()
		if got, ok := recover().(error); !ok || !errors.As(got, &err) {
			t.Errorf("%s: panic value %v", what, got)
		}
	}()
	fn()
	t.Errorf("%s: no panic", what)
	return err
}

func TestSemaphoreHandsOutPermitsUpToItsLimit(t *testing.T) {
	places(t, func(t *testing.T, s *shmsync.Semaphore) {
		if s.Limit() != 1 || s.Value() != 1 || !s.TryAcquire(1) || s.TryAcquire(1) || s.Value() != 0 {
			t.Error("the zero value is no semaphore of one permit")
		}
		s.Release(1)
		if err := s.Init(2); err != nil || s.Limit() != 2 || s.Value() != 2 {
			t.Errorf("of 2: %v, limit %d, value %d", err, s.Limit(), s.Value())
		}
		values := []int{s.Value()}
		for _, acquire := range []bool{true, true, false, false} {
			if acquire && s.Acquire(context.Background(), 1) != nil {
				t.Error("refused")
			}
			if !acquire {
				if len(values) == 3 && s.TryAcquire(1) {
					t.Error("a third permit")
				}
				s.Release(1)
			}
			values = append(values, s.Value())
		}
		if fmt.Sprint(values) != "[2 1 0 1 2]" {
			t.Error(values)
		}
		if err := mustPanic[*shmsync.MisuseError](t, "release too many", func() { s.Release(1) }); !errors.Is(err, shmsync.ErrMisuse) {
			t.Error(err)
		}
		if !s.TryAcquire(2) || s.TryAcquire(1) {
			t.Error("not both at once")
		}
		mustPanic[*shmsync.MisuseError](t, "release 3 of 2", func() { s.Release(3) })
		mustPanic[*shmsync.MisuseError](t, "release none", func() { s.Release(0) })
		mustPanic[*shmsync.MisuseError](t, "release -1", func() { s.Release(-1) })
		if s.Value() != 0 {
			t.Error("a refused release has changed the value")
		}
		s.Release(2)
		for _, n := range []int{0, -1, 3, 1 << 40 >> 10} {
			if err := s.Acquire(context.Background(), n); !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("%d of 2: %v", n, err)
			}
			if s.TryAcquire(n) || s.AcquireTimeout(n, time.Hour) || s.Value() != 2 {
				t.Errorf("%d of 2 were taken", n)
			}
		}
		for _, n := range []int{-1, 1 << 30} {
			if err := s.Init(n); !errors.Is(err, fs.ErrInvalid) || s.Limit() != 2 {
				t.Errorf("Init(%d): %v, limit %d", n, err, s.Limit())
			}
		}
		if err := s.Init(0); err != nil || s.Limit() != 0 || s.TryAcquire(1) || s.Acquire(context.Background(), 1) == nil {
			t.Errorf("of none: %v, limit %d", err, s.Limit())
		}
		const many = 1<<30 - 1
		if err := s.Init(many); err != nil || !s.TryAcquire(many-5) || !s.TryAcquire(3) || s.TryAcquire(3) || s.Value() != 2 {
			t.Errorf("of many: %v, value %d", err, s.Value())
		}
		s.Release(1 << 20)
		s.Release(many - 2 - 1<<20)
		if s.Value() != many || !s.TryAcquire(1) || !s.TryAcquire(many-1) {
			t.Errorf("of many: value %d", s.Value())
		}
		s.Release(many)
		mustPanic[*shmsync.MisuseError](t, "nothing is left", func() { s.Release(1) })
	})
}

func TestSemaphoreTimedWaitsEndInTime(t *testing.T) {
	places(t, func(t *testing.T, s *shmsync.Semaphore) {
		s.TryAcquire(1)
		for _, d := range []time.Duration{0, -time.Second, 10 * time.Millisecond, 350 * time.Millisecond} {
			begin := time.Now()
			if s.AcquireTimeout(1, d) || time.Since(begin) < d {
				t.Errorf("%v: after %v", d, time.Since(begin))
			}
		}
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		if err := s.Acquire(ended, 1); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if err := s.Acquire(after(10*time.Millisecond), 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		s.Release(1)
		if s.Value() != 1 || s.Acquire(ended, 1) != nil || s.TryAcquire(1) {
			t.Error("one release lets exactly one through, whatever the context")
		}
		s.Release(1)
		if s.Value() != 1 || shmsync.Turns() != 0 {
			t.Errorf("value %d, %d turns", s.Value(), shmsync.Turns())
		}
	})
}

func TestSemaphoreOfGoroutines(t *testing.T) {
	places(t, func(t *testing.T, s *shmsync.Semaphore) {
		s.Init(3)
		var inside atomic.Int64
		var wg sync.WaitGroup
		counts := make([]int64, 1)
		mutex := new(shmsync.Semaphore)
		for i := range 8 {
			wg.Go(func() {
				for range 2000 {
					n := 1 + i%3
					s.Acquire(context.Background(), n)
					if inside.Add(int64(n)) > 3 {
						t.Error("more than 3 inside")
					}
					mutex.Acquire(context.Background(), 1)
					counts[0]++
					mutex.Release(1)
					inside.Add(-int64(n))
					s.Release(n)
				}
			})
		}
		wg.Wait()
		if s.Value() != 3 || counts[0] != 8*2000 {
			t.Errorf("value %d, count %d", s.Value(), counts[0])
		}
	})
}

var acquireTwice = proc.Define("try for two permits", func(_ context.Context, o order) error {
	d := depotIn(o.Region)
	d.ready.Add(1)
	await(&d.goOn, 1)
	for range 2 {
		if d.sem.TryAcquire(1) {
			d.got.Add(1)
		} else {
			d.missed.Add(1)
		}
	}
	d.ready.Add(1)
	await(&d.goOn, 2) // what it holds stays held
	return nil
})

func TestSemaphoreGrantsExactlyWhatIsThere(t *testing.T) {
	r, d := newDepot(t)
	d.sem.Init(4)
	d.sem.TryAcquire(1)
	var ps []*proc.Process
	for range 5 {
		ps = append(ps, start(t, acquireTwice, r, 0, 0))
	}
	until(t, "all are ready", func() bool { return d.ready.Load() == 5 })
	d.goOn.Store(1)
	until(t, "all have tried", func() bool { return d.ready.Load() == 10 })
	if d.got.Load() != 3 || d.missed.Load() != 7 || d.sem.Value() != 0 {
		t.Errorf("%d granted, %d refused, value %d", d.got.Load(), d.missed.Load(), d.sem.Value())
	}
	d.goOn.Store(2)
	wait(t, ps...)
	until(t, "the permits of those that have ended are back", func() bool {
		if d.sem.AcquireTimeout(3, time.Millisecond) {
			d.sem.Release(3)
			return true
		}
		return false
	})
	if d.sem.Value() != 3 {
		t.Error(d.sem.Value())
	}
}

var holdPermits = proc.Define("hold permits", func(_ context.Context, o order) error {
	d := depotIn(o.Region)
	if err := d.sem.Acquire(context.Background(), o.Number); err != nil {
		return err
	}
	d.ready.Add(1)
	await(&d.goOn, int64(o.Rounds))
	return nil
})

func TestSemaphoreGetsThePermitsOfTheDeadBack(t *testing.T) {
	r, d := newDepot(t)
	const limit = 5000 // more than a stake has room for
	d.sem.Init(limit)
	p := start(t, holdPermits, r, 3000, 1)
	q := start(t, holdPermits, r, 7, 1)
	until(t, "they hold them", func() bool { return d.ready.Load() == 2 })
	if v := d.sem.Value(); v != limit-3007 {
		t.Errorf("value %d", v)
	}
	got := make(chan error)
	for range 3 {
		go func() { got <- d.sem.Acquire(context.Background(), limit) }()
	}
	until(t, "one waits with a claim, the others behind it", func() bool { return d.sem.Claims() == 1 && d.sem.Queued() == 3 })
	p.Kill()
	<-p.Done()
	until(t, "the dead one's are back", func() bool { return d.sem.Value() == limit-7 })
	select {
	case err := <-got:
		t.Fatalf("too early: %v", err)
	default:
	}
	d.goOn.Store(1)
	wait(t, q) // ends without a release
	for range 3 {
		if err := <-got; err != nil {
			t.Fatal(err)
		}
		d.sem.Release(limit)
	}
	if v := d.sem.Value(); v != limit {
		t.Errorf("value %d", v)
	}
}

var releaseInVain = proc.Define("release what others hold", func(_ context.Context, o order) (err error) {
	defer func() {
		var misuse *shmsync.MisuseError
		got, _ := recover().(error)
		err = check(errors.As(got, &misuse), "panic value %v", got)
	}()
	depotIn(o.Region).sem.Release(1)
	return nil
})

func TestSemaphoreIsReleasedByThoseOnlyThatHoldIt(t *testing.T) {
	r, d := newDepot(t)
	for range 2 { // held by us, then by nobody
		d.sem.TryAcquire(1)
		wait(t, start(t, releaseInVain, r, 0, 0))
		if v := d.sem.Value(); v != 0 {
			t.Errorf("value %d", v)
		}
		d.sem.Release(1)
	}
	wait(t, start(t, releaseInVain, r, 0, 0))
	if v := d.sem.Value(); v != 1 {
		t.Errorf("value %d", v)
	}
}

// It counts up what a semaphore of one permit guards.
var countUp = proc.Define("count under a semaphore", func(_ context.Context, o order) error {
	d := depotIn(o.Region)
	d.ready.Add(1)
	await(&d.goOn, 1)
	var wg sync.WaitGroup
	for range o.Number {
		wg.Go(func() {
			for range o.Rounds {
				d.sem.Acquire(context.Background(), 1)
				d.n++
				d.sem.Release(1)
			}
		})
	}
	wg.Wait()
	return nil
})

func TestSemaphoreOfOnePermitExcludesProcesses(t *testing.T) {
	for _, c := range []struct{ procs, goroutines, rounds int }{{2, 1, 50_000}, {10, 1, 10_000}, {3, 3, 10_000}} {
		t.Run(fmt.Sprintf("procs=%d/goroutines=%d", c.procs, c.goroutines), func(t *testing.T) {
			switch {
			case !shmsync.Kernel:
				c.rounds /= 50
			case testing.Short():
				c.rounds /= 10
			}
			r, d := newDepot(t)
			var ps []*proc.Process
			for range c.procs {
				ps = append(ps, start(t, countUp, r, c.goroutines, c.rounds))
			}
			until(t, "all are ready", func() bool { return d.ready.Load() == int64(c.procs) })
			begin := time.Now()
			d.goOn.Store(1)
			wait(t, ps...)
			total := int64(c.procs * c.goroutines * c.rounds)
			if d.n != total || d.sem.Value() != 1 {
				t.Errorf("n %d, value %d", d.n, d.sem.Value())
			}
			t.Logf("%v for each of %d", time.Since(begin)/time.Duration(total), total)
		})
	}
}

// It takes some permits, again and again, and counts how many are out.
var borrow = proc.Define("borrow permits", func(_ context.Context, o order) error {
	d := depotIn(o.Region)
	for range o.Rounds {
		if err := d.sem.Acquire(context.Background(), o.Number); err != nil {
			return err
		}
		out := d.inside.Add(int64(o.Number))
		for most := d.most.Load(); out > most && !d.most.CompareAndSwap(most, out); most = d.most.Load() {
		}
		d.inside.Add(int64(-o.Number))
		d.sem.Release(o.Number)
	}
	return nil
})

// Small requests come and go all the time; one for all permits is served nevertheless.
func TestSemaphoreServesALargeRequestAmongSmallOnes(t *testing.T) {
	r, d := newDepot(t)
	d.sem.Init(4)
	rounds := 40_000
	if !shmsync.Kernel {
		rounds = 2000
	}
	ps := []*proc.Process{start(t, borrow, r, 1, rounds), start(t, borrow, r, 2, rounds), start(t, borrow, r, 1, rounds)}
	for range 50 {
		if err := d.sem.Acquire(context.Background(), 4); err != nil {
			t.Fatal(err)
		}
		if out := d.inside.Load(); out != 0 {
			t.Fatalf("%d out beside all", out)
		}
		d.sem.Release(4)
	}
	wait(t, ps...)
	if d.most.Load() > 4 || d.sem.Value() != 4 {
		t.Errorf("%d out at once, value %d", d.most.Load(), d.sem.Value())
	}
}

func TestSemaphoreServesProcessesInTurn(t *testing.T) {
	r, d := newDepot(t)
	d.sem.TryAcquire(1)
	var ps []*proc.Process
	for i := range 4 {
		ps = append(ps, start(t, takeNumber, r, i, 0))
		until(t, "it waits", func() bool { return d.sem.Claims() == i+1 })
	}
	d.sem.Release(1)
	wait(t, ps...)
}

// takeNumber checks that it is served as number o.Number.
var takeNumber = proc.Define("wait for a permit in turn", func(_ context.Context, o order) error {
	d := depotIn(o.Region)
	if err := d.sem.Acquire(context.Background(), 1); err != nil {
		return err
	}
	defer d.sem.Release(1)
	n := d.got.Add(1) - 1
	return check(n == int64(o.Number), "served as number %d, waited as number %d", n, o.Number)
})

func TestSemaphoreWaiterThatIsKilledHoldsNobodyUp(t *testing.T) {
	r, d := newDepot(t)
	d.sem.Init(2)
	d.sem.TryAcquire(1)
	p := start(t, holdPermits, r, 2, 1) // wants both, is first
	until(t, "it waits", func() bool { return d.sem.Claims() == 1 })
	until(t, "it is impatient, and claims what is free", func() bool {
		free := d.sem.TryAcquire(1)
		if free {
			d.sem.Release(1)
		}
		return !free
	})
	got := make(chan error)
	go func() { got <- d.sem.Acquire(context.Background(), 1) }()
	until(t, "another one waits behind it", func() bool { return d.sem.Claims() == 2 })
	p.Kill()
	if err := <-got; err != nil {
		t.Error(err)
	}
	d.sem.Release(2)
}

func TestSemaphoreWaiterThatGivesUpHoldsNobodyUp(t *testing.T) {
	r, d := newDepot(t)
	d.sem.Init(2)
	d.sem.TryAcquire(1)
	ctx, cancel := context.WithCancel(context.Background())
	first := make(chan error)
	go func() { first <- d.sem.Acquire(ctx, 2) }()
	until(t, "it waits", func() bool { return d.sem.Claims() == 1 })
	time.Sleep(2 * time.Millisecond)
	p := start(t, holdPermits, r, 1, 0)
	until(t, "another one waits behind it", func() bool { return d.sem.Claims() == 2 })
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	wait(t, p)
	until(t, "its end is noticed", func() bool { return d.sem.TryAcquire(1) })
	d.sem.Release(2)
}

func TestSemaphoreWaitEndsWhenItsRegionIsClosed(t *testing.T) {
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	d := depotIn(r)
	d.sem.TryAcquire(1)
	p := start(t, takeNumber, r, 0, 0)
	got := make(chan error)
	for range 3 {
		go func() { got <- d.sem.Acquire(context.Background(), 1) }()
	}
	until(t, "they wait", func() bool { return d.sem.Queued() == 3 && d.sem.Claims() == 2 })
	second, err := r.Dup()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	second.Close()
	for range 3 {
		if err := <-got; !errors.Is(err, shm.ErrClosed) {
			t.Error(err)
		}
	}
	if err := d.sem.Acquire(context.Background(), 1); !errors.Is(err, shm.ErrClosed) {
		t.Errorf("after the close: %v", err)
	}
	if err := mustPanic[error](t, "release after the close", func() { d.sem.Release(1) }); !errors.Is(err, shm.ErrClosed) {
		t.Errorf("release after the close: %v", err)
	}
	p.Kill() // it waits for the permit that we keep until we end
}

// A process that waited, and closes the region, holds up nobody who waits behind it.
func TestSemaphoreWaiterThatClosesTheRegionHoldsNobodyUp(t *testing.T) {
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	d := depotIn(r)
	p := start(t, seeOff, r, 0, 0)
	until(t, "it holds the permit", func() bool { return d.ready.Load() == 1 })
	got := make(chan error)
	go func() { got <- d.sem.Acquire(context.Background(), 1) }()
	until(t, "it has seen us wait", func() bool { return d.goOn.Load() == 1 })
	r.Close()
	if err := <-got; !errors.Is(err, shm.ErrClosed) {
		t.Error(err)
	}
	wait(t, p)
}

var seeOff = proc.Define("hold a permit until nobody waits for it", func(ctx context.Context, o order) error {
	d := depotIn(o.Region)
	d.sem.TryAcquire(1)
	d.ready.Add(1)
	for d.sem.Claims() != 1 {
		time.Sleep(time.Millisecond)
	}
	d.goOn.Store(1)
	for d.sem.Claims() != 0 {
		time.Sleep(time.Millisecond)
	}
	d.sem.Release(1)
	return check(d.sem.TryAcquire(1), "refused, and nobody waits")
})

func TestManySemaphoresInOneRegionAreIndependent(t *testing.T) {
	r, err := shm.Anonymous(shm.Size(4 << 20))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	const many = 10_000
	all, err := shm.At[[many]shmsync.Semaphore](r, r.Data())
	if err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadDir("/proc/self/fd")
	for i := range all {
		all[i].Init(2)
		if err := all[i].Acquire(context.Background(), 1+i%2); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
	}
	if now, _ := os.ReadDir("/proc/self/fd"); len(now) != len(before) {
		t.Errorf("%d descriptors, %d before", len(now), len(before))
	}
	p := start(t, countValues, r, many, 0)
	wait(t, p)
	for i := range all {
		all[i].Release(1 + i%2)
	}
	until(t, "the end of the other process is noticed", func() bool { r.Scan(); return all[0].Value() == 2 })
	for i := range all {
		if v := all[i].Value(); v != 2 {
			t.Fatalf("%d: value %d", i, v)
		}
	}
}

var countValues = proc.Define("look at many semaphores", func(_ context.Context, o order) error {
	all, err := shm.At[[10_000]shmsync.Semaphore](o.Region, o.Region.Data())
	if err != nil {
		return err
	}
	for i := range all {
		s := &all[i]
		if v := s.Value(); v != 1-i%2 || s.TryAcquire(1) != (i%2 == 0) {
			return fmt.Errorf("semaphore %d: value %d", i, v)
		}
	}
	return nil
})

// What a process has idle of a semaphore that is gone is nothing to the one that is made in its place.
func TestSemaphoreInThePlaceOfAnotherStartsAnew(t *testing.T) {
	r, d := newDepot(t)
	d.sem.Init(5)
	d.sem.Acquire(context.Background(), 5)
	d.sem.Release(3) // 3 idle, 2 in use
	clear(unsafe.Slice((*byte)(unsafe.Pointer(&d.sem)), unsafe.Sizeof(d.sem)))
	if d.sem.Limit() != 1 || !d.sem.TryAcquire(1) || d.sem.TryAcquire(1) {
		t.Error("not a new semaphore")
	}
	mustPanic[*shmsync.MisuseError](t, "what the old one gave", func() { d.sem.Release(2) })
	wait(t, start(t, releaseInVain, r, 0, 0))
	d.sem.Release(1)
	if d.sem.Value() != 1 {
		t.Error(d.sem.Value())
	}
}

func TestThousandsOfGoroutinesWaitForASemaphore(t *testing.T) {
	places(t, func(t *testing.T, s *shmsync.Semaphore) {
		s.Init(10)
		s.Acquire(context.Background(), 10)
		const many = 10_000
		got := make(chan error)
		for range many {
			go func() {
				err := s.Acquire(context.Background(), 1)
				if err == nil {
					s.Release(1)
				}
				got <- err
			}()
		}
		until(t, "all wait", func() bool { return s.Queued() == many })
		s.Release(10)
		for range many {
			if err := <-got; err != nil {
				t.Fatal(err)
			}
		}
		if s.Value() != 10 {
			t.Error(s.Value())
		}
	})
}

func ExampleSemaphore() {
	var connections shmsync.Semaphore
	if err := connections.Init(2); err != nil {
		panic(err)
	}
	fmt.Println(connections.TryAcquire(1), connections.TryAcquire(2))
	connections.Release(1)
	fmt.Println(connections.Value())
	// Output:
	// true false
	// 2
}
