package sync_test

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	stdsync "sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// A market has several things to wait for.
type market struct {
	stalls [3]struct {
		mu     shmsync.Mutex
		inside atomic.Int64
		n      int64
		_      [40]byte
	}
	events [3]shmsync.Event
	_      [52]byte
	taken  atomic.Int64
}

func marketIn(r *shm.Region) *market {
	m, err := shm.At[market](r, r.Data()+8192)
	if err != nil {
		panic(err)
	}
	return m
}

func (m *market) locks() []shmsync.Waitable {
	return []shmsync.Waitable{&m.stalls[0].mu, &m.stalls[1].mu, &m.stalls[2].mu}
}

func TestWaitAnyTakesTheFirstThatIsToBeHad(t *testing.T) {
	r, _ := newArena(t)
	m := marketIn(r)
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // what is free is taken all the same
	things := append(m.locks(), &m.events[0])
	for want := range 3 {
		if got, err := shmsync.WaitAny(ctx, things...); got != want || err != nil {
			t.Fatalf("got %d, %v, want %d", got, err, want)
		}
	}
	if got, err := shmsync.WaitAny(ctx, things...); got != -1 || !errors.Is(err, context.Canceled) {
		t.Errorf("of nothing that is to be had: %d, %v", got, err)
	}
	m.events[0].Set()
	if got, err := shmsync.WaitAny(ctx, things...); got != 3 || err != nil {
		t.Errorf("with the event set: %d, %v", got, err)
	}
	for i := range m.stalls {
		if m.stalls[i].mu.TryLock() {
			t.Errorf("lock %d is not held", i)
		}
		m.stalls[i].mu.Unlock()
	}
	if got, err := shmsync.WaitAny(ctx); got != -1 || !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("for nothing at all: %d, %v", got, err)
	}
}

func TestWaitAnyEndsWithItsContextAndNotBefore(t *testing.T) {
	r, _ := newArena(t)
	m := marketIn(r)
	for i := range m.stalls {
		m.stalls[i].mu.Lock()
	}
	for _, d := range []time.Duration{10 * time.Millisecond, 150 * time.Millisecond} {
		begin := time.Now() // before the context's own time begins
		ctx, cancel := context.WithTimeout(t.Context(), d)
		got, err := shmsync.WaitAny(ctx, append(m.locks(), &m.events[0], &m.events[1])...)
		if waited := time.Since(begin); got != -1 || !errors.Is(err, context.DeadlineExceeded) || waited < d {
			t.Errorf("got %d, %v after %v of %v", got, err, waited, d)
		}
		cancel()
	}
	for i := range m.stalls { // nothing has stayed taken
		m.stalls[i].mu.Unlock()
		if !m.stalls[i].mu.TryLock() {
			t.Errorf("lock %d is not free after its release", i)
		}
	}
}

// holdStall holds a lock until its event is set.
var holdStall = proc.Define("hold a stall", func(ctx context.Context, o order) error {
	m := marketIn(o.Region)
	m.stalls[o.Number].mu.Lock()
	m.taken.Add(1)
	if err := m.events[o.Number].Wait(ctx); err != nil {
		return err
	}
	m.stalls[o.Number].mu.Unlock()
	return nil
})

func TestWaitAnyGetsWhatAnotherProcessReleases(t *testing.T) {
	for number := range 3 {
		r, _ := newArena(t)
		m := marketIn(r)
		var ps []*proc.Process
		for i := range 3 {
			ps = append(ps, start(t, holdStall, r, i, 0))
		}
		until(t, "all are held", func() bool { return m.taken.Load() == 3 })
		got := make(chan int)
		go func() {
			i, err := shmsync.WaitAny(context.Background(), m.locks()...)
			if err != nil {
				t.Error(err)
			}
			got <- i
		}()
		until(t, "it waits", func() bool { return m.stalls[number].mu.HasWaiter() })
		m.events[number].Set()
		if i := <-got; i != number {
			t.Errorf("got %d, released was %d", i, number)
		}
		for i := range 3 {
			m.events[i].Set()
		}
		wait(t, ps...)
	}
}

func TestWaitAnyIsToldOfADeadHolder(t *testing.T) {
	r, _ := newArena(t)
	m := marketIn(r)
	m.stalls[0].mu.Lock()
	p := start(t, holdStall, r, 1, 0)
	until(t, "it is held", func() bool { return m.taken.Load() == 1 })
	got := make(chan error)
	go func() {
		i, err := shmsync.WaitAny(context.Background(), &m.stalls[0].mu, &m.stalls[1].mu, &m.events[0])
		if i != 1 {
			t.Errorf("thing %d", i)
		}
		got <- err
	}()
	until(t, "it waits", func() bool { return m.stalls[1].mu.HasWaiter() })
	p.Kill()
	err := <-got
	var died *shmsync.OwnerDiedError
	if !errors.Is(err, shmsync.ErrInconsistent) || !errors.As(err, &died) || died.Death.PID != p.PID() {
		t.Errorf("got %v", err)
	}
	if err := m.stalls[1].mu.Recover(t.Context(), func(shm.Death) error { return nil }); err != nil {
		t.Errorf("recover: %v", err)
	}
}

func TestWaitAnyInAClosedRegion(t *testing.T) {
	r, _ := newArena(t)
	m := marketIn(r)
	for i := range m.stalls {
		m.stalls[i].mu.Lock()
	}
	got := make(chan error)
	go func() {
		_, err := shmsync.WaitAny(context.Background(), append(m.locks(), &m.events[0])...)
		got <- err
	}()
	until(t, "it waits", func() bool { return m.stalls[0].mu.HasWaiter() })
	r.Close()
	if err := <-got; !errors.Is(err, shm.ErrClosed) {
		t.Errorf("closed while it waited: %v", err)
	}
	if i, err := shmsync.WaitAny(t.Context(), &m.events[0]); i != 0 || !errors.Is(err, shm.ErrClosed) {
		t.Errorf("after that: %d, %v", i, err)
	}
}

// shop takes any of the locks, or one in particular, so often in each of several goroutines, in processes whose sleeps
// do not end by themselves.
var shop = proc.Define("shop", func(_ context.Context, o order) error {
	shmsync.SleepForEver()
	a, m := open(o.Region), marketIn(o.Region)
	a.done.Add(1)
	await(&a.step, 1)
	var wg stdsync.WaitGroup
	errs := make(chan error, 2)
	for range 2 {
		wg.Go(func() {
			for range o.Rounds {
				ctx, cancel := context.Background(), func() {}
				if rand.IntN(4) == 0 {
					ctx, cancel = context.WithTimeout(ctx, rand.N(200*time.Microsecond))
				}
				i, err := rand.IntN(3), error(nil)
				if rand.IntN(3) == 0 {
					err = m.stalls[i].mu.LockContext(ctx)
				} else {
					i, err = shmsync.WaitAny(ctx, m.locks()...)
				}
				cancel()
				if err != nil {
					continue
				}
				s := &m.stalls[i]
				if s.inside.Add(1) != 1 {
					errs <- errors.New("two inside")
				}
				s.n++
				if rand.IntN(8) == 0 {
					time.Sleep(rand.N(200 * time.Microsecond)) // others fall asleep
				}
				s.inside.Add(-1)
				m.taken.Add(1)
				s.mu.Unlock()
			}
		})
	}
	wg.Wait()
	close(errs)
	return errors.Join(<-errs, check(shmsync.Gates() == 0, "%d gates are left", shmsync.Gates()))
})

// One who waits for any of several locks may use up the wake-up of one that it does not take; it passes it on.
func TestWaitAnyLosesNoWakeUp(t *testing.T) {
	if !shmsync.Kernel {
		t.Skip("there are no wake-ups without the kernel's futex")
	}
	const procs = 4
	rounds := 1500
	if shmsync.RaceEnabled {
		rounds = 300
	}
	r, a := newArena(t)
	m := marketIn(r)
	var ps []*proc.Process
	for i := range procs {
		ps = append(ps, start(t, shop, r, i, rounds))
	}
	until(t, "all are ready", func() bool { return a.done.Load() == procs })
	a.step.Store(1)
	for _, p := range ps {
		select {
		case <-p.Done():
		case <-time.After(time.Minute):
			t.Fatal("a wake-up is lost")
		}
	}
	wait(t, ps...)
	var n int64
	for i := range m.stalls {
		n += m.stalls[i].n
	}
	if n != m.taken.Load() {
		t.Errorf("%d turns counted under the locks, %d were taken", n, m.taken.Load())
	}
}

// More things than the kernel takes together are waited for all the same.
func TestWaitAnyForMoreThingsThanTheKernelTakes(t *testing.T) {
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	all, err := shm.At[[300]shmsync.Event](r, r.Data())
	if err != nil {
		t.Fatal(err)
	}
	var things []shmsync.Waitable
	for i := range all {
		things = append(things, &all[i])
	}
	got := make(chan int)
	go func() {
		i, _ := shmsync.WaitAny(context.Background(), things...)
		got <- i
	}()
	until(t, "it waits", func() bool { return all[299].Sleeps() })
	all[299].Set()
	if i := <-got; i != 299 {
		t.Errorf("got %d", i)
	}
}
