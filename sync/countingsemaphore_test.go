package sync_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

func TestCountingSemaphoreCountsUpAndDown(t *testing.T) {
	_, d := newDepot(t)
	s := &d.ping
	if size := unsafe.Sizeof(*s); size != 4 {
		t.Errorf("%d bytes", size)
	}
	if s.Value() != 1 || !s.TryAcquire() || s.TryAcquire() || s.Value() != 0 {
		t.Error("the zero value is not 1")
	}
	if err := s.Init(2); err != nil || s.Value() != 2 {
		t.Errorf("of 2: %v, %d", err, s.Value())
	}
	s.Release(1)
	s.Release(1)
	if s.Value() != 4 {
		t.Errorf("2 and twice one more: %d", s.Value())
	}
	for _, n := range []int{-1, 1 << 30} {
		if err := s.Init(n); !errors.Is(err, fs.ErrInvalid) || s.Value() != 4 {
			t.Errorf("Init(%d): %v, %d", n, err, s.Value())
		}
	}
	for _, n := range []int{0, -1, 1<<30 - 4, 1<<31 - 1} {
		mustPanic[*shmsync.MisuseError](t, fmt.Sprintf("release %d", n), func() { s.Release(n) })
	}
	if s.Release(1<<30 - 5); s.Value() != 1<<30-1 {
		t.Errorf("value %d", s.Value())
	}
	mustPanic[*shmsync.MisuseError](t, "one more than there can be", func() { s.Release(1) })
	if err := s.Init(0); err != nil || s.TryAcquire() || s.Value() != 0 {
		t.Errorf("of none: %v, %d", err, s.Value())
	}
}

func TestCountingSemaphoreTimedWaitsEndInTime(t *testing.T) {
	t.Parallel()
	_, d := newDepot(t)
	s := &d.ping
	s.Init(0)
	for _, limit := range []time.Duration{0, -time.Second, 10 * time.Millisecond, 100 * time.Millisecond, 820 * time.Millisecond} {
		begin := time.Now()
		if s.AcquireTimeout(limit) || time.Since(begin) < limit {
			t.Errorf("%v: after %v", limit, time.Since(begin))
		}
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Acquire(ended); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if s.Value() != 0 {
		t.Error(s.Value())
	}
	s.Release(1)
	if s.Acquire(ended) != nil || s.TryAcquire() {
		t.Error("one release lets exactly one through, whatever the context")
	}
}

var postAndExit = proc.Define("release permits and exit", func(_ context.Context, o order) error {
	depotIn(o.Region).ping.Release(o.Number)
	return nil
})

func TestCountingSemaphoreKeepsWhatAProcessReleasesThatEnds(t *testing.T) {
	r, d := newDepot(t)
	d.ping.Init(0)
	wait(t, start(t, postAndExit, r, 3, 0)) // before anybody waits
	if d.ping.Value() != 3 {
		t.Error(d.ping.Value())
	}
	for range 3 {
		if err := d.ping.Acquire(context.Background()); err != nil {
			t.Error(err)
		}
	}
	got := make(chan error)
	for range 3 {
		go func() { got <- d.ping.Acquire(context.Background()) }()
	}
	until(t, "they wait", func() bool { return d.ping.Parked() == 2 && d.ping.Sleeps() })
	wait(t, start(t, postAndExit, r, 3, 0))
	for range 3 {
		if err := <-got; err != nil {
			t.Error(err)
		}
	}
	if d.ping.Value() != 0 {
		t.Error(d.ping.Value())
	}
}

var pong = proc.Define("answer each ping", func(_ context.Context, o order) error {
	d := depotIn(o.Region)
	for i := range o.Rounds {
		if err := d.ping.Acquire(context.Background()); err != nil {
			return err
		}
		if d.n != int64(2*i+1) {
			return fmt.Errorf("turn %d at ping %d", d.n, i)
		}
		d.n++
		d.pong.Release(1)
	}
	return nil
})

func TestTwoProcessesAlternateOverTwoCountingSemaphores(t *testing.T) {
	r, d := newDepot(t)
	d.ping.Init(0)
	d.pong.Init(0)
	rounds := 10_000
	if !shmsync.Kernel {
		rounds = 200
	}
	p := start(t, pong, r, 0, rounds)
	for i := range rounds {
		if d.n != int64(2*i) {
			t.Fatalf("turn %d, round %d", d.n, i)
		}
		d.n++
		d.ping.Release(1)
		if err := d.pong.Acquire(after(30 * time.Second)); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
	}
	wait(t, p)
}

var countUpOwnerless = proc.Define("count under a counting semaphore", func(_ context.Context, o order) error {
	d := depotIn(o.Region)
	var wg sync.WaitGroup
	for range o.Number {
		wg.Go(func() {
			for range o.Rounds {
				d.ping.Acquire(context.Background())
				d.n++
				d.ping.Release(1)
			}
		})
	}
	wg.Wait()
	return nil
})

func TestCountingSemaphoreOfOnePermitExcludes(t *testing.T) {
	for _, c := range []struct{ procs, goroutines, rounds int }{{10, 1, 100_000}, {3, 3, 20_000}} {
		t.Run(fmt.Sprintf("procs=%d/goroutines=%d", c.procs, c.goroutines), func(t *testing.T) {
			if !shmsync.Kernel || testing.Short() {
				c.rounds /= 50
			}
			r, d := newDepot(t)
			var ps []*proc.Process
			for range c.procs {
				ps = append(ps, start(t, countUpOwnerless, r, c.goroutines, c.rounds))
			}
			wait(t, ps...)
			if d.n != int64(c.procs*c.goroutines*c.rounds) || d.ping.Value() != 1 {
				t.Errorf("n %d, value %d", d.n, d.ping.Value())
			}
		})
	}
}

var acquireSome = proc.Define("acquire some of a counting semaphore", func(_ context.Context, o order) error {
	d := depotIn(o.Region)
	for range o.Rounds {
		if err := d.ping.Acquire(context.Background()); err != nil {
			return err
		}
		d.got.Add(1)
	}
	return nil
})

// However permits are released, as many acquires go on as there are permits, and none sleeps beside one.
func TestCountingSemaphoreLetsAsManyGoOnAsThereArePermits(t *testing.T) {
	r, d := newDepot(t)
	d.ping.Init(0)
	const procs, rounds = 4, 3000
	var ps []*proc.Process
	for range procs {
		ps = append(ps, start(t, acquireSome, r, 0, rounds))
	}
	for total := 0; total < procs*rounds; {
		n := min(1+total%7, procs*rounds-total)
		d.ping.Release(n)
		total += n
		if total%10 == 0 {
			until(t, "all permits are taken", func() bool { return d.ping.Value() == 0 })
		}
	}
	wait(t, ps...)
	if d.got.Load() != procs*rounds || d.ping.Value() != 0 {
		t.Errorf("%d acquired, %d left", d.got.Load(), d.ping.Value())
	}
}

func TestCountingSemaphoreWaitEndsWhenItsRegionIsClosed(t *testing.T) {
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	d := depotIn(r)
	d.ping.Init(0)
	got := make(chan error)
	for range 3 {
		go func() { got <- d.ping.Acquire(context.Background()) }()
	}
	until(t, "they wait", func() bool { return d.ping.Parked() == 2 })
	r.Close()
	for range 3 {
		if err := <-got; !errors.Is(err, shm.ErrClosed) {
			t.Error(err)
		}
	}
}

func TestThousandsOfGoroutinesWaitForACountingSemaphore(t *testing.T) {
	var s shmsync.CountingSemaphore
	s.Init(0)
	const many = 10_000
	got := make(chan error)
	for range many {
		go func() { got <- s.Acquire(context.Background()) }()
	}
	until(t, "all wait", func() bool { return s.Parked() == many-1 })
	s.Release(many)
	for range many {
		if err := <-got; err != nil {
			t.Fatal(err)
		}
	}
}

func ExampleCountingSemaphore() {
	var filled shmsync.CountingSemaphore
	filled.Init(0)
	go filled.Release(2)
	filled.Acquire(context.Background())
	filled.Acquire(context.Background())
	fmt.Println(filled.TryAcquire())
	// Output: false
}
