package sync_test

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	stdsync "sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// A quay has permits of both kinds, a lock and an event to wait for.
type quay struct {
	owned  [2]shmsync.Semaphore
	free   [2]shmsync.CountingSemaphore
	mu     shmsync.Mutex
	event  shmsync.Event
	_      [44]byte
	inside [3]atomic.Int64 // who has a permit of owned, of free, or the lock
	got    atomic.Int64
	number atomic.Int64
	most   atomic.Int64
}

func newQuay(t testing.TB) (*shm.Region, *quay) {
	r, _ := newArena(t)
	return r, quayIn(r)
}

func quayIn(r *shm.Region) *quay {
	q, err := shm.At[quay](r, r.Data()+8192)
	if err != nil {
		panic(err)
	}
	return q
}

func (q *quay) things() []shmsync.Waitable {
	return []shmsync.Waitable{&q.owned[0], &q.free[0], &q.owned[1], &q.free[1], &q.mu, &q.event}
}

// shut takes all there is.
func (q *quay) shut() {
	for i := range q.owned {
		q.owned[i].TryAcquire(1)
		q.free[i].TryAcquire()
	}
	q.mu.Lock()
}

// give makes the thing of that number to be had, which shut has taken.
func (q *quay) give(i int) {
	switch i {
	case 4:
		q.mu.Unlock()
	case 5:
		q.event.Set()
	default:
		q.giveTo(i)
	}
}

func (q *quay) giveTo(i int) {
	if i%2 == 0 {
		q.owned[i/2].Release(1)
	} else {
		q.free[i/2].Release(1)
	}
}

// values are how many permits are there.
func (q *quay) values() [4]int {
	return [4]int{q.owned[0].Value(), q.free[0].Value(), q.owned[1].Value(), q.free[1].Value()}
}

func TestWaitAnyTakesOnePermitOfWhatIsThere(t *testing.T) {
	r, err := shm.Heap(shm.Size(1 << 16))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, shared := newQuay(t)
	turns, gates := shmsync.Turns(), shmsync.Gates() // of goroutines of tests before, which may be on their way out
	for place, q := range map[string]*quay{"region": shared, "heap": quayIn(r), "outside": new(quay)} {
		t.Run(place, func(t *testing.T) {
			q.owned[0].Init(2)
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // what is there is taken all the same
			for i, want := range []int{0, 0, 1, 2, 3} {
				if got, err := shmsync.WaitAny(ctx, q.things()[:4]...); got != want || err != nil {
					t.Fatalf("take %d: got %d, %v, want %d", i, got, err, want)
				}
			}
			if got, err := shmsync.WaitAny(ctx, q.things()[:4]...); got != -1 || !errors.Is(err, context.Canceled) {
				t.Errorf("of nothing that is there: %d, %v", got, err)
			}
			if v := q.values(); v != [4]int{} {
				t.Errorf("left: %v", v)
			}
			q.owned[0].Release(2)
			q.owned[1].Release(1) // this process has them
			if v := q.values(); v != [4]int{2, 0, 1, 0} {
				t.Errorf("after the releases: %v", v)
			}
			q.owned[1].Init(0)
			if got, err := shmsync.WaitAny(t.Context(), &q.free[0], &q.owned[1]); got != 1 || !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("of a semaphore of no permits: %d, %v", got, err)
			}
		})
	}
	until(t, "no turns and no gates are left", func() bool { return shmsync.Turns() <= turns && shmsync.Gates() <= gates })
}

func TestWaitAnyForPermitsEndsWithItsContextAndNotBefore(t *testing.T) {
	t.Parallel()
	_, q := newQuay(t)
	q.shut()
	for _, d := range []time.Duration{time.Millisecond, 150 * time.Millisecond} {
		begin := time.Now() // before the context's own time begins
		ctx, cancel := context.WithTimeout(t.Context(), d)
		got, err := shmsync.WaitAny(ctx, q.things()...)
		if waited := time.Since(begin); got != -1 || !errors.Is(err, context.DeadlineExceeded) || waited < d {
			t.Errorf("got %d, %v after %v of %v", got, err, waited, d)
		}
		cancel()
	}
	if n := q.owned[0].Claims() + q.owned[1].Claims(); n != 0 {
		t.Errorf("%d claims are left", n)
	}
	for i := range 5 {
		q.give(i)
	}
	if v := q.values(); v != [4]int{1, 1, 1, 1} {
		t.Errorf("after the releases: %v", v)
	}
}

// waitAnyOfQuay waits for anything, says what it has got, and keeps it until it is told to end.
var waitAnyOfQuay = proc.Define("wait for anything at a quay", func(ctx context.Context, o order) error {
	q := quayIn(o.Region)
	if o.Rounds == 1 {
		shmsync.SleepForEver() // a permit of the dead is there when its death is counted: the wake-up tells of it
	}
	i, err := shmsync.WaitAny(ctx, q.things()...)
	if err != nil {
		return err
	}
	q.number.Store(int64(i))
	q.got.Add(1)
	await(&q.most, 1)
	return nil
})

// waits reports whether somebody waits for everything at the quay.
func (q *quay) waits() bool {
	return q.owned[0].Claims() == 1 && q.owned[1].Claims() == 1 && q.event.Sleeps() &&
		(!shmsync.Kernel || q.free[0].Sleeps() && q.free[1].Sleeps())
}

func TestWaitAnyGetsThePermitThatAnotherProcessReleases(t *testing.T) {
	for number := range 6 {
		r, q := newQuay(t)
		q.shut()
		p := start(t, waitAnyOfQuay, r, 0, 0)
		until(t, "it waits", q.waits)
		q.give(number)
		until(t, "it has got something", func() bool { return q.got.Load() == 1 })
		if n := q.number.Load(); n != int64(number) {
			t.Errorf("got %d, released was %d", n, number)
		}
		if v := q.values(); v != [4]int{} {
			t.Errorf("released was %d: still there %v", number, v)
		}
		if n := q.owned[0].Claims() + q.owned[1].Claims(); n != 0 {
			t.Errorf("released was %d: %d claims are left", number, n)
		}
		for i := range 4 { // nobody holds a place any more
			if i != number {
				q.give(i)
			}
		}
		if v := q.values(); v[0]+v[1]+v[2]+v[3] != 4-map[bool]int{true: 1}[number < 4] {
			t.Errorf("released was %d, then all others: there are %v", number, v)
		}
		q.most.Store(1)
		wait(t, p)
	}
}

// What one has been called for, and does not take since it gets something else first, goes to the next. Between the two
// releases there is nothing that could be waited for; both orders happen.
func TestWaitAnyPassesThePermitOnThatItDoesNotTake(t *testing.T) {
	for i := range 20 {
		r, q := newQuay(t)
		q.shut()
		any := start(t, waitAnyOfQuay, r, 0, 1)
		until(t, "it waits", q.waits)
		got := make(chan error, 2)
		go func() { got <- q.owned[1].Acquire(context.Background(), 1) }()
		go func() { got <- q.free[1].Acquire(context.Background()) }()
		until(t, "others wait behind it", func() bool { return q.owned[1].Queued() == 1 && q.free[1].Parked() == 0 })
		if i%2 == 0 {
			q.event.Set()
		}
		q.give(2)
		q.give(3)
		if i%2 == 1 {
			q.event.Set()
			// It may have got one of the two permits: then the other of those who wait goes away empty, until
			// this one's is given back.
		}
		until(t, "it has got something", func() bool { return q.got.Load() == 1 })
		switch n := q.number.Load(); n {
		case 2: // is the child's; its end gives it back
		case 3:
			q.free[1].Release(1)
		}
		q.most.Store(1)
		wait(t, any)
		for range 2 {
			select {
			case err := <-got:
				if err != nil {
					t.Fatal(err)
				}
			case <-time.After(30 * time.Second):
				t.Fatalf("a permit is lost; the other got %d", q.number.Load())
			}
		}
	}
}

func TestWaitAnyThatIsKilledHoldsNobodyUp(t *testing.T) {
	r, q := newQuay(t)
	q.shut()
	p := start(t, waitAnyOfQuay, r, 0, 0)
	until(t, "it waits", q.waits)
	got := make(chan error, 4)
	for i := range q.owned {
		go func() { got <- q.owned[i].Acquire(context.Background(), 1) }()
		go func() { got <- q.free[i].Acquire(context.Background()) }()
	}
	until(t, "others wait behind it", func() bool { return q.owned[0].Queued() == 1 && q.owned[1].Queued() == 1 })
	p.Kill()
	for i := range 4 {
		q.give(i)
	}
	for range 4 {
		select {
		case err := <-got:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("somebody still waits")
		}
	}
}

// keepPermits has a permit of each semaphore until it is killed.
var keepPermits = proc.Define("keep permits", func(ctx context.Context, o order) error {
	q := quayIn(o.Region)
	for i := range q.owned {
		if err := q.owned[i].Acquire(ctx, 1); err != nil {
			return err
		}
	}
	q.most.Add(1)
	<-ctx.Done()
	return nil
})

func TestWaitAnyGetsThePermitOfTheDead(t *testing.T) {
	r, q := newQuay(t)
	p := start(t, keepPermits, r, 0, 0)
	until(t, "a child has the permits", func() bool { return q.most.Load() == 1 })
	got := make(chan int, 1)
	go func() {
		i, err := shmsync.WaitAny(context.Background(), &q.event, &q.owned[0], &q.owned[1])
		if err != nil {
			t.Error(err)
		}
		got <- i
	}()
	until(t, "it waits", func() bool { return q.owned[0].Claims() == 1 && q.owned[1].Claims() == 1 })
	p.Kill()
	i := <-got
	if i != 1 && i != 2 {
		t.Fatalf("got %d", i)
	}
	q.owned[i-1].Release(1)
	for i := range q.owned {
		if !q.owned[i].AcquireTimeout(1, 30*time.Second) {
			t.Errorf("the permit of semaphore %d is lost", i)
		}
	}
}

func TestWaitAnyForPermitsInAClosedRegion(t *testing.T) {
	r, q := newQuay(t)
	q.shut()
	got := make(chan error, 2)
	for range 2 { // one of them waits for its turn
		go func() {
			_, err := shmsync.WaitAny(context.Background(), q.things()...)
			got <- err
		}()
	}
	until(t, "they wait", func() bool { return q.waits() && q.owned[0].Queued() == 2 })
	r.Close()
	for range 2 {
		if err := <-got; !errors.Is(err, shm.ErrClosed) {
			t.Errorf("closed while it waited: %v", err)
		}
	}
	for i, thing := range q.things()[:4] {
		if n, err := shmsync.WaitAny(t.Context(), thing); n != 0 || !errors.Is(err, shm.ErrClosed) {
			t.Errorf("thing %d after that: %d, %v", i, n, err)
		}
	}
	if n := shmsync.Turns(); n != 0 {
		t.Errorf("%d turns are left", n)
	}
}

// closeWaiting closes the region while it waits, and lives on.
var closeWaiting = proc.Define("close the region of a quay while waiting", func(ctx context.Context, path string) error {
	r, err := shm.OpenFile(path)
	if err != nil {
		return err
	}
	q := quayIn(r)
	got := make(chan error)
	go func() {
		_, err := shmsync.WaitAny(ctx, q.things()...)
		got <- err
	}()
	await(&q.most, 1)
	err = r.Close()
	if why := <-got; err != nil || !errors.Is(why, shm.ErrClosed) {
		return errors.Join(errors.New("closed while it waited"), err, why)
	}
	select {}
})

func TestWaitAnyLeavesNoClaimInARegionThatItsProcessCloses(t *testing.T) {
	r, err := shm.CreateFile(filepath.Join(t.TempDir(), "region"), shm.Limit(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	q := quayIn(r)
	q.shut()
	p, err := closeWaiting.Start(context.Background(), r.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		p.Kill()
		<-p.Done()
	}()
	until(t, "it waits", q.waits)
	q.most.Store(1)
	until(t, "it waits no more", func() bool { return q.owned[0].Claims() == 0 && q.owned[1].Claims() == 0 })
	for i := range 4 {
		q.give(i)
		if n, err := shmsync.WaitAny(t.Context(), q.things()[i]); n != 0 || err != nil {
			t.Errorf("thing %d: %d, %v", i, n, err)
		}
	}
	select {
	case <-p.Done():
		t.Error(p.Wait())
	default:
	}
}

// ply takes permits and the lock in all ways, in processes whose sleeps do not end by themselves.
var ply = proc.Define("ply between quays", func(_ context.Context, o order) error {
	shmsync.SleepForEver()
	a, q := open(o.Region), quayIn(o.Region)
	a.done.Add(1)
	await(&a.step, 1)
	var wg stdsync.WaitGroup
	errs := make(chan error, 3)
	things := []shmsync.Waitable{&q.owned[0], &q.free[0], &q.mu}
	for range 3 {
		wg.Go(func() {
			for range o.Rounds {
				ctx, cancel := context.Background(), func() {}
				if rand.IntN(4) == 0 {
					ctx, cancel = context.WithTimeout(ctx, rand.N(300*time.Microsecond))
				}
				i, err := rand.IntN(3), error(nil)
				switch n := rand.IntN(9); {
				case n > 2:
					from := rand.IntN(3) // any order
					i, err = shmsync.WaitAny(ctx, things[from], things[(from+1)%3], things[(from+2)%3])
					i = (i + from) % 3
				case i == 0:
					err = q.owned[0].Acquire(ctx, 1)
				case i == 1:
					err = q.free[0].Acquire(ctx)
				default:
					err = q.mu.LockContext(ctx)
				}
				cancel()
				if err != nil {
					continue
				}
				if q.inside[i].Add(1) != 1 {
					errs <- errors.New("two inside")
				}
				if rand.IntN(8) == 0 {
					time.Sleep(rand.N(300 * time.Microsecond)) // others fall asleep
				}
				q.inside[i].Add(-1)
				switch i {
				case 0:
					q.owned[0].Release(1)
				case 1:
					q.free[0].Release(1)
				default:
					q.mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	return errors.Join(<-errs, check(shmsync.Gates() == 0 && shmsync.Turns() == 0, "%d gates, %d turns are left", shmsync.Gates(), shmsync.Turns()))
})

// One who waits for any of several permits may use up the wake-up of one that it does not take; it passes it on.
func TestWaitAnyLosesNoPermitAndNoWakeUp(t *testing.T) {
	if !shmsync.Kernel {
		t.Skip("there are no wake-ups without the kernel's futex")
	}
	const procs = 4
	rounds := 300
	if testing.Short() || shmsync.RaceEnabled {
		rounds = 100
	}
	r, a := newArena(t)
	q := quayIn(r)
	var ps []*proc.Process
	for i := range procs {
		ps = append(ps, start(t, ply, r, i, rounds))
	}
	until(t, "all are ready", func() bool { return a.done.Load() == procs })
	a.step.Store(1)
	for _, p := range ps {
		select {
		case <-p.Done():
		case <-time.After(time.Minute):
			t.Fatalf("a wake-up is lost: %v are there, %d claims", q.values(), q.owned[0].Claims())
		}
	}
	wait(t, ps...)
	if v := q.values(); v[0] != 1 || v[1] != 1 || !q.mu.TryLock() {
		t.Errorf("%v permits are there", v)
	}
}
