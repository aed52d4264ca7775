package sync_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	stdsync "sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// A yard is an arena of condition variables.
type yard struct {
	mu      shmsync.Mutex
	cond    shmsync.Cond
	other   shmsync.Cond
	twin    shmsync.Mutex
	state   int64 // guarded by mu
	arrived int64 // guarded by mu: who has begun to wait
	gone    int64 // guarded by mu: who has returned
	order   [64]int64
	step    atomic.Int64
	told    atomic.Int64
	faults  atomic.Int64
}

const offsetOfCond = unsafe.Offsetof(yard{}.cond)

func killSelf() {
	p, _ := os.FindProcess(os.Getpid())
	p.Kill()
	select {}
}

func yardIn(r *shm.Region) *yard {
	y, err := shm.At[yard](r, r.Data()+4096)
	if err != nil {
		panic(err)
	}
	return y
}

// newYard returns a yard in a region, and looks after the test whether its line is whole.
func newYard(t testing.TB, opts ...shm.Option) (*shm.Region, *yard) {
	r, _ := newArena(t, opts...)
	y := yardIn(r)
	t.Cleanup(func() { checkLine(t, r, y) })
	return r, y
}

func checkLine(t testing.TB, r *shm.Region, y *yard) {
	if err := y.mu.LockContext(context.Background()); err != nil {
		return // the test leaves it so
	}
	defer y.mu.Unlock()
	off := r.Data() + 4096 + shm.Offset(offsetOfCond)
	if err := y.cond.Check(r, off); err != nil {
		t.Errorf("the line: %v", err)
	}
}

// everywhere runs a test among goroutines in each kind of memory.
func everywhere(t *testing.T, f func(t *testing.T, y *yard)) {
	t.Run("mapped", func(t *testing.T) {
		_, y := newYard(t)
		f(t, y)
	})
	t.Run("heap", func(t *testing.T) {
		r, err := shm.Heap(shm.Size(1 << 16))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		f(t, yardIn(r))
	})
	t.Run("outside", func(t *testing.T) { f(t, new(yard)) })
}

// arrive waits until so many have begun to wait, and returns with mu held.
func (y *yard) arrive(t testing.TB, n int64) {
	t.Helper()
	until(t, fmt.Sprintf("%d wait", n), func() bool {
		y.mu.Lock()
		if y.arrived == n {
			return true
		}
		y.mu.Unlock()
		return false
	})
}

// leave waits until so many have returned.
func (y *yard) leave(t testing.TB, n int64) {
	t.Helper()
	until(t, fmt.Sprintf("%d have returned", n), func() bool {
		y.mu.Lock()
		defer y.mu.Unlock()
		return y.gone >= n
	})
}

// stand waits once, and notes the order of those who come back.
func (y *yard) stand(ctx context.Context) error {
	y.mu.Lock()
	number := y.arrived
	y.arrived++
	woken, err := y.cond.Wait(ctx, &y.mu)
	if err != nil {
		return err
	}
	defer y.mu.Unlock()
	if !woken {
		return errors.New("not woken")
	}
	y.order[y.gone] = number
	y.gone++
	return nil
}

var standOnce = proc.Define("stand in line once", func(ctx context.Context, o order) error { return yardIn(o.Region).stand(ctx) })

var standSixfold = proc.Define("stand in line with six goroutines", func(ctx context.Context, o order) error {
	errs := make(chan error)
	for range 6 {
		go func() { errs <- yardIn(o.Region).stand(ctx) }()
	}
	for range 6 {
		if err := <-errs; err != nil {
			return err
		}
	}
	return nil
})

func goStand(y *yard) <-chan error {
	got := make(chan error, 1)
	go func() { got <- y.stand(context.Background()) }()
	return got
}

func mustReturn(t testing.TB, got ...<-chan error) {
	t.Helper()
	for _, c := range got {
		select {
		case err := <-c:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(60 * time.Second):
			t.Fatal("one still waits after 60 s")
		}
	}
}

func TestCondASignalReleasesOneOfAProcessAndAGoroutine(t *testing.T) {
	r, y := newYard(t)
	p := start(t, standOnce, r, 0, 0)
	y.arrive(t, 1)
	y.mu.Unlock()
	here := goStand(y)
	y.arrive(t, 2)
	y.cond.Signal()
	y.mu.Unlock()
	y.leave(t, 1)
	wait(t, p) // it came first
	time.Sleep(50 * time.Millisecond)
	select {
	case err := <-here:
		t.Fatalf("one signal released two: %v", err)
	default:
	}
	y.mu.Lock()
	if y.gone != 1 {
		t.Errorf("%d have returned", y.gone)
	}
	y.cond.Signal()
	y.mu.Unlock()
	mustReturn(t, here)
}

func TestCondABroadcastReleasesAllProcessesAndGoroutines(t *testing.T) {
	r, y := newYard(t)
	var ps []*proc.Process
	var got []<-chan error
	for range 3 {
		ps = append(ps, start(t, standOnce, r, 0, 0))
		got = append(got, goStand(y))
	}
	y.arrive(t, 6)
	y.cond.Broadcast()
	y.mu.Unlock()
	wait(t, ps...)
	mustReturn(t, got...)
}

// Whoever waits notes its number under the mutex before it waits: they come back in that order, exactly as many as
// signals were given.
func TestCondSignalsReleaseExactlySoManyInTheOrderOfTheirComing(t *testing.T) {
	r, y := newYard(t)
	var ps []*proc.Process
	for range 3 {
		ps = append(ps, start(t, standSixfold, r, 0, 0))
	}
	var got []<-chan error
	for range 6 {
		got = append(got, goStand(y))
	}
	y.arrive(t, 24)
	y.mu.Unlock()
	released := int64(0)
	for _, n := range []int{1, 1, 2, 5, 1, 7, 3, 100} {
		y.mu.Lock()
		if n < 3 {
			for range n {
				y.cond.Signal()
			}
		} else {
			y.cond.SignalN(n)
		}
		y.mu.Unlock()
		before := released
		released = min(released+int64(n), 24)
		y.leave(t, released)
		time.Sleep(5 * time.Millisecond)
		y.mu.Lock()
		if y.gone != released {
			t.Fatalf("%d came back after %d signals", y.gone-before, n)
		}
		seen := map[int64]bool{}
		for _, number := range y.order[before:released] {
			seen[number] = true
			if number < before || number >= released {
				t.Errorf("number %d came back with those from %d to %d", number, before, released)
			}
		}
		if int64(len(seen)) != released-before {
			t.Errorf("came back twice: %v", y.order[before:released])
		}
		y.mu.Unlock()
	}
	wait(t, ps...)
	mustReturn(t, got...)
}

func TestCondGoroutinesAreReleasedInTheOrderOfTheirComing(t *testing.T) {
	everywhere(t, func(t *testing.T, y *yard) {
		var got []<-chan error
		for i := range int64(12) {
			got = append(got, goStand(y))
			y.arrive(t, i+1)
			y.mu.Unlock()
		}
		for i := range int64(12) {
			y.mu.Lock()
			y.cond.Signal()
			y.mu.Unlock()
			y.leave(t, i+1)
			y.mu.Lock()
			if y.order[i] != i || y.gone != i+1 {
				t.Errorf("signal %d released number %d, and %d are gone", i, y.order[i], y.gone)
			}
			y.mu.Unlock()
		}
		mustReturn(t, got...)
		if _, all := y.cond.Here(); all != 0 {
			t.Errorf("%d are said to be there still", all)
		}
	})
}

var tryTheYard = proc.Define("try the lock of a yard", func(_ context.Context, o order) error {
	return check(!yardIn(o.Region).mu.TryLock(), "granted while the parent holds the lock")
})

func TestCondATimedWaitEndsAfterItsTimeWithTheLockHeld(t *testing.T) {
	t.Parallel()
	r, y := newYard(t)
	for _, d := range []time.Duration{10 * time.Millisecond, 100 * time.Millisecond, 350 * time.Millisecond} {
		y.mu.Lock()
		begin := time.Now()
		woken, err := y.cond.WaitTimeout(&y.mu, d)
		if took := time.Since(begin); woken || err != nil || took < d {
			t.Errorf("%v, %v after %v of %v", woken, err, took, d)
		}
		wait(t, start(t, tryTheYard, r, 0, 0))
		begin = time.Now()
		woken, err = y.cond.Wait(after(d), &y.mu)
		if took := time.Since(begin); woken || err != nil || took < d {
			t.Errorf("under a context: %v, %v after %v of %v", woken, err, took, d)
		}
		wait(t, start(t, tryTheYard, r, 0, 0))
		y.mu.Unlock()
	}
}

func TestCondAWaitWhoseTimeIsOverKeepsTheLock(t *testing.T) {
	everywhere(t, func(t *testing.T, y *yard) {
		y.mu.Lock()
		defer y.mu.Unlock()
		for _, d := range []time.Duration{0, -time.Second} {
			if woken, err := y.cond.WaitTimeout(&y.mu, d); woken || err != nil {
				t.Errorf("%v: %v, %v", d, woken, err)
			}
		}
		past, cancel := context.WithDeadline(context.Background(), time.Now().Add(-time.Hour))
		defer cancel()
		for _, ctx := range []context.Context{past, ended()} {
			if woken, err := y.cond.Wait(ctx, &y.mu); woken || err != nil {
				t.Errorf("%v, %v", woken, err)
			}
		}
		if y.mu.TryLock() {
			t.Error("the lock is free")
		}
	})
}

var misuseTheYard = proc.Define("use a condition without its lock", func(ctx context.Context, o order) error {
	y := yardIn(o.Region)
	for name, f := range map[string]func(){
		"Wait":        func() { y.cond.Wait(ctx, &y.mu) },
		"WaitTimeout": func() { y.cond.WaitTimeout(&y.mu, time.Millisecond) },
		"Signal":      y.cond.Signal,
		"SignalN":     func() { y.cond.SignalN(2) },
		"Broadcast":   y.cond.Broadcast,
	} {
		var misuse *shmsync.MisuseError
		func() {
			defer func() { misuse, _ = recover().(*shmsync.MisuseError) }()
			f()
		}()
		if misuse == nil || !errors.Is(misuse, shmsync.ErrMisuse) || int(misuse.Holder) != o.Number { // as far as an int goes
			return fmt.Errorf("%s: %v", name, misuse)
		}
	}
	return nil
})

func TestCondUsedWithoutItsLockIsRefusedAndReleasesNobody(t *testing.T) {
	r, y := newYard(t)
	got := []<-chan error{goStand(y), goStand(y)}
	y.arrive(t, 2)
	y.mu.Unlock()
	wait(t, start(t, misuseTheYard, r, 0, 0)) // nobody holds it
	y.mu.Lock()
	wait(t, start(t, misuseTheYard, r, int(shm.Self()), 0))
	if n := y.cond.Waiting(); n != 2 {
		t.Errorf("%d wait", n)
	}
	y.cond.Broadcast()
	y.mu.Unlock()
	mustReturn(t, got...)
}

func misuseOf(f func()) (misuse *shmsync.MisuseError) {
	defer func() { misuse, _ = recover().(*shmsync.MisuseError) }()
	f()
	return nil
}

func TestCondMisuseAmongGoroutinesIsRefused(t *testing.T) {
	everywhere(t, func(t *testing.T, y *yard) {
		if misuseOf(func() { y.cond.Wait(context.Background(), &y.mu) }) == nil {
			t.Error("a wait without the lock")
		}
		y.mu.Lock()
		if misuseOf(func() { y.cond.Wait(context.Background(), new(shmsync.Mutex)) }) == nil {
			t.Error("a wait with another lock, not held")
		}
		y.mu.Unlock()
		got := goStand(y)
		y.arrive(t, 1)
		y.mu.Unlock()
		for name, f := range map[string]func(){"Signal": y.cond.Signal, "Broadcast": y.cond.Broadcast} {
			if misuseOf(f) == nil {
				t.Errorf("%s without the lock", name)
			}
		}
		y.twin.Lock()
		if misuseOf(func() { y.cond.WaitTimeout(&y.twin, time.Minute) }) == nil {
			t.Error("a wait with another lock than the one others wait with")
		}
		if y.twin.TryLock() {
			t.Error("the other lock has been unlocked")
		}
		select {
		case err := <-got:
			t.Fatalf("released: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
		y.mu.Lock()
		y.cond.Signal()
		y.mu.Unlock()
		mustReturn(t, got)
		// Nobody waits: another lock is as good.
		if woken, err := y.cond.WaitTimeout(&y.twin, time.Millisecond); woken || err != nil {
			t.Errorf("%v, %v", woken, err)
		}
		y.twin.Unlock()
	})
	_, y := newYard(t)
	var m shmsync.Mutex
	m.Lock()
	if misuseOf(func() { y.cond.Wait(context.Background(), &m) }) == nil {
		t.Error("a wait with a lock outside of the region")
	}
}

func TestCondNoSignalIsRemembered(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, y *yard) {
		y.mu.Lock()
		defer y.mu.Unlock()
		for range 2 {
			y.cond.Signal()
			y.cond.SignalN(3)
			y.cond.Broadcast()
			begin := time.Now()
			if woken, err := y.cond.WaitTimeout(&y.mu, 100*time.Millisecond); woken || err != nil || time.Since(begin) < 100*time.Millisecond {
				t.Errorf("%v, %v after %v", woken, err, time.Since(begin))
			}
		}
	})
}

var addAndSignal = proc.Define("add and signal", func(_ context.Context, o order) error {
	y := yardIn(o.Region)
	for range o.Rounds {
		y.mu.Lock()
		y.state++
		if o.Number == 0 {
			y.cond.Signal()
		} else {
			y.cond.Broadcast()
		}
		y.mu.Unlock()
		time.Sleep(time.Millisecond)
	}
	return nil
})

func TestCondWaitForWaitsForAState(t *testing.T) {
	for way := range 2 {
		r, y := newYard(t)
		p := start(t, addAndSignal, r, way, 4)
		y.mu.Lock()
		is4 := func() bool { return y.state == 4 }
		if ok, err := y.cond.WaitFor(context.Background(), &y.mu, is4); !ok || err != nil || y.state != 4 {
			t.Errorf("%v, %v in state %d", ok, err, y.state)
		}
		if ok, err := y.cond.WaitFor(ended(), &y.mu, is4); !ok || err != nil {
			t.Errorf("of what is true already: %v, %v", ok, err)
		}
		if ok, err := y.cond.WaitFor(ended(), &y.mu, func() bool { return false }); ok || err != nil {
			t.Errorf("of what is never true: %v, %v", ok, err)
		}
		begin := time.Now()
		if ok, err := y.cond.WaitFor(after(50*time.Millisecond), &y.mu, func() bool { return false }); ok || err != nil || time.Since(begin) < 50*time.Millisecond {
			t.Errorf("of what is never true, for a while: %v, %v", ok, err)
		}
		y.mu.Unlock()
		wait(t, p)
	}
}

func TestCondEachOfTheReleasedOwnsTheLockAlone(t *testing.T) {
	everywhere(t, func(t *testing.T, y *yard) {
		var got []chan error
		for range 10 {
			c := make(chan error, 1)
			got = append(got, c)
			go func() {
				y.mu.Lock()
				y.arrived++
				woken, err := y.cond.Wait(context.Background(), &y.mu)
				n := y.state
				time.Sleep(time.Millisecond)
				y.state = n + 1
				y.mu.Unlock()
				c <- errors.Join(err, check(woken, "not woken"))
			}()
		}
		y.arrive(t, 10)
		y.cond.Broadcast()
		y.mu.Unlock()
		for _, c := range got {
			mustReturn(t, c)
		}
		if y.state != 10 {
			t.Errorf("%d after 10 increments", y.state)
		}
	})
}

var standAndSignal = proc.Define("stand in line, then signal the next", func(ctx context.Context, o order) error {
	y := yardIn(o.Region)
	if err := y.stand(ctx); err != nil {
		return err
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	y.cond.Signal()
	return nil
})

func TestCondAChainOfSignalsReleasesAll(t *testing.T) {
	r, y := newYard(t)
	var ps []*proc.Process
	for range 5 {
		ps = append(ps, start(t, standAndSignal, r, 0, 0))
	}
	var got []chan error
	for range 15 {
		c := make(chan error, 1)
		got = append(got, c)
		go func() {
			err := y.stand(context.Background())
			y.mu.Lock()
			y.cond.Signal()
			y.mu.Unlock()
			c <- err
		}()
	}
	y.arrive(t, 20)
	y.cond.Signal()
	y.mu.Unlock()
	wait(t, ps...)
	for _, c := range got {
		mustReturn(t, c)
	}
}

// take takes one from a store of three places.
func (y *yard) takeOne(ctx context.Context, all bool) error {
	y.mu.Lock()
	if ok, err := y.cond.WaitFor(ctx, &y.mu, func() bool { return y.state > 0 }); !ok || err != nil {
		return fmt.Errorf("no goods: %v, %w", ok, err)
	}
	y.state--
	notify(&y.other, all)
	y.mu.Unlock()
	return nil
}

func notify(c *shmsync.Cond, all bool) {
	if all {
		c.Broadcast()
	} else {
		c.Signal()
	}
}

var consume = proc.Define("consume", func(ctx context.Context, o order) error {
	errs := make(chan error)
	for range 10 {
		go func() { errs <- yardIn(o.Region).takeOne(ctx, o.Number == 1) }()
	}
	var err error
	for range 10 {
		err = errors.Join(err, <-errs)
	}
	return err
})

func TestCondAProducerServesThirtyConsumers(t *testing.T) {
	for way := range 2 {
		r, y := newYard(t)
		ps := []*proc.Process{start(t, consume, r, way, 0), start(t, consume, r, way, 0)}
		errs := make(chan error, 10)
		for range 10 {
			go func() { errs <- y.takeOne(context.Background(), way == 1) }()
		}
		for range 30 {
			y.mu.Lock()
			if ok, err := y.other.WaitFor(context.Background(), &y.mu, func() bool { return y.state < 3 }); !ok || err != nil {
				t.Fatal(ok, err)
			}
			y.state++
			notify(&y.cond, way == 1)
			y.mu.Unlock()
		}
		wait(t, ps...)
		for range 10 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		y.mu.Lock()
		if y.state != 0 || y.cond.Waiting() != 0 || y.other.Waiting() != 0 {
			t.Errorf("%d left, %d and %d wait", y.state, y.cond.Waiting(), y.other.Waiting())
		}
		y.mu.Unlock()
	}
}

// One gives up in the moment of a signal: either it was the one that was signalled, and says so, or another one was.
func TestCondASignalIsNotLostToOneWhoGivesUp(t *testing.T) {
	rounds := 300
	if testing.Short() || !shmsync.Kernel {
		rounds = 30
	}
	everywhere(t, func(t *testing.T, y *yard) {
		for i := range rounds {
			ctx, cancel := context.WithCancel(context.Background())
			results := make(chan bool, 3)
			y.mu.Lock()
			y.arrived = 0
			y.mu.Unlock()
			for k := range 3 {
				go func() {
					c := context.Background()
					if k == 0 {
						c = ctx
					}
					y.mu.Lock()
					y.arrived++
					woken, err := y.cond.Wait(c, &y.mu)
					y.mu.Unlock()
					if err != nil {
						t.Error(err)
					}
					results <- woken
				}()
			}
			y.arrive(t, 3)
			y.mu.Unlock()
			go func() {
				if i%2 == 0 {
					time.Sleep(time.Duration(rand.IntN(30)) * time.Microsecond)
				}
				cancel()
			}()
			y.mu.Lock()
			y.cond.Signal()
			y.mu.Unlock()
			first := <-results
			if !first { // it gave up: another one is woken
				first = <-results
				y.mu.Lock()
				y.cond.Broadcast()
				y.mu.Unlock()
			} else {
				y.mu.Lock()
				y.cond.Broadcast()
				y.mu.Unlock()
				<-results
			}
			if !first {
				t.Fatal("the signal was lost")
			}
			<-results
			cancel()
		}
	})
}

var waitForChange = proc.Define("wait for a change", func(ctx context.Context, o order) error {
	y := yardIn(o.Region)
	y.mu.Lock()
	y.arrived++
	ok, err := y.cond.WaitFor(ctx, &y.mu, func() bool { return y.state == 7 })
	if err != nil || !ok {
		return fmt.Errorf("%v: %w", ok, err)
	}
	y.mu.Unlock()
	return nil
})

func TestCondAcrossProcessesAtDifferentAddresses(t *testing.T) {
	for way := range 2 {
		r, y := newYard(t)
		p := start(t, waitForChange, r, 0, 0)
		y.arrive(t, 1)
		y.state = 7
		notify(&y.cond, way == 1)
		y.mu.Unlock()
		wait(t, p)
	}
}

// waitInRounds waits in each round at the place that the round has.
var waitInRounds = proc.Define("wait for a condition in rounds", func(_ context.Context, o order) error {
	y := yardIn(o.Region)
	errs := make(chan error)
	for range 5 {
		go func() {
			errs <- func() error {
				for i := range int64(o.Rounds) {
					y.mu.Lock()
					for y.state != i { // of the round before
						y.mu.Unlock()
						time.Sleep(10 * time.Microsecond)
						y.mu.Lock()
					}
					y.arrived++
					woken, err := y.cond.Wait(context.Background(), &y.mu)
					if err != nil || !woken {
						return fmt.Errorf("round %d: %v, %w", i, woken, err)
					}
					y.mu.Unlock()
				}
				return nil
			}()
		}()
	}
	var err error
	for range 5 {
		err = errors.Join(err, <-errs)
	}
	return err
})

// The memory of a condition is overwritten as soon as it was broadcast; all waiters leave cleanly, and leave the
// memory alone.
func TestCondItsMemoryMayBeUsedForOtherThingsAfterABroadcast(t *testing.T) {
	rounds := 1000
	if testing.Short() || !shmsync.Kernel {
		rounds = 50
	}
	r, y := newYard(t)
	ps := []*proc.Process{start(t, waitInRounds, r, 0, rounds), start(t, waitInRounds, r, 0, rounds)}
	const pattern = 0xa5
	bytes, err := r.Bytes(r.Data()+4096+shm.Offset(offsetOfCond), 64)
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(rounds) {
		y.arrive(t, 10)
		y.arrived = 0
		if i%2 == 0 {
			y.cond.Broadcast()
		} else { // the last of these leaves nobody waiting
			for range 10 {
				y.cond.Signal()
			}
		}
		for k := range bytes {
			bytes[k] = pattern
		}
		y.mu.Unlock()
		time.Sleep(time.Duration(rand.IntN(200)) * time.Microsecond)
		y.mu.Lock()
		for k := range bytes {
			if bytes[k] != pattern {
				t.Fatalf("round %d: byte %d was written to", i, k)
			}
			bytes[k] = 0
		}
		y.state = i + 1
		y.mu.Unlock()
	}
	wait(t, ps...)
}

func TestCondNobodyIsReleasedByOthersWhoComeToWait(t *testing.T) {
	t.Parallel()
	r, y := newYard(t)
	var got []<-chan error
	for i := range int64(11) {
		if i%2 == 0 {
			got = append(got, goStand(y))
		} else {
			start(t, standOnce, r, 0, 0)
		}
		y.arrive(t, i+1)
		y.mu.Unlock()
	}
	time.Sleep(300 * time.Millisecond) // longer than any sleep
	y.mu.Lock()
	if y.gone != 0 {
		t.Errorf("%d have returned", y.gone)
	}
	y.cond.Broadcast()
	y.mu.Unlock()
	mustReturn(t, got...)
	y.leave(t, 11)
}

var standAndDie = proc.Define("stand in line, and die with the lock", func(ctx context.Context, o order) error {
	y := yardIn(o.Region)
	y.mu.Lock()
	y.arrived++
	woken, err := y.cond.Wait(ctx, &y.mu)
	switch {
	case woken && err == nil:
		y.told.Add(1)
		killSelf()
	case errors.Is(err, shmsync.ErrInconsistent):
		y.faults.Add(1)
		return nil
	}
	return fmt.Errorf("%v, %w", woken, err)
})

// The first that is released dies with the lock; from then on it is inconsistent, and all others are told.
func TestCondThoseReleasedAfterADeathWithTheLockAreTold(t *testing.T) {
	r, y := newYard(t)
	var ps []*proc.Process
	for range 5 {
		ps = append(ps, start(t, standAndDie, r, 0, 0))
	}
	y.arrive(t, 5)
	y.cond.Broadcast()
	y.mu.Unlock()
	for _, p := range ps {
		<-p.Done()
	}
	if y.told.Load() != 1 || y.faults.Load() != 4 {
		t.Errorf("%d returned normally, and %d were told of a death, want 1 and 4", y.told.Load(), y.faults.Load())
	}
	if err := y.mu.Recover(context.Background(), func(shm.Death) error { return nil }); err != nil {
		t.Error(err)
	}
}

// The one that is signalled dies before it can lock the mutex: its signal goes to the next in line, and to that alone.
func TestCondTheSignalOfADeadWaiterGoesToTheNext(t *testing.T) {
	r, y := newYard(t)
	p := start(t, standOnce, r, 0, 0)
	y.arrive(t, 1)
	y.mu.Unlock()
	q := start(t, standOnce, r, 0, 0)
	y.arrive(t, 2)
	y.mu.Unlock()
	here := goStand(y)
	y.arrive(t, 3)
	y.cond.Signal()
	if y.cond.Owed() != 1 {
		t.Errorf("%d signals are owed", y.cond.Owed())
	}
	p.Kill()
	<-p.Done()
	y.mu.Unlock()
	wait(t, q)
	time.Sleep(50 * time.Millisecond)
	y.mu.Lock()
	if y.gone != 1 || y.cond.Owed() != 0 {
		t.Errorf("%d have returned, %d signals owed", y.gone, y.cond.Owed())
	}
	y.cond.Signal()
	y.mu.Unlock()
	mustReturn(t, here)
}

// Several signals, several deaths, and one who gives up in between.
func TestCondManySignalsOfDeadWaitersArePassedOn(t *testing.T) {
	r, y := newYard(t)
	var ps []*proc.Process
	for i := range int64(3) {
		ps = append(ps, start(t, standOnce, r, 0, 0))
		y.arrive(t, i+1)
		y.mu.Unlock()
	}
	var got []<-chan error
	for i := range int64(4) {
		got = append(got, goStand(y))
		y.arrive(t, 4+i)
		y.mu.Unlock()
	}
	y.mu.Lock()
	y.cond.SignalN(3)
	for _, p := range ps {
		p.Kill()
		<-p.Done()
	}
	y.mu.Unlock()
	mustReturn(t, got[:3]...)
	time.Sleep(50 * time.Millisecond)
	y.mu.Lock()
	if y.gone != 3 {
		t.Errorf("%d have returned", y.gone)
	}
	y.cond.Broadcast()
	y.mu.Unlock()
	mustReturn(t, got[3:]...)
}

var dieWithTheLock = proc.Define("die with the lock of a yard", func(_ context.Context, o order) error {
	yardIn(o.Region).mu.Lock()
	killSelf()
	return nil
})

// Who was to signal dies with the lock: nobody waits for it for ever.
func TestCondWaitersAreToldWhenOneDiesWithTheLock(t *testing.T) {
	r, y := newYard(t)
	got := []<-chan error{goStand(y), goStand(y), goStand(y)}
	y.arrive(t, 3)
	y.mu.Unlock()
	<-start(t, dieWithTheLock, r, 0, 0).Done()
	for _, c := range got {
		if err := <-c; !errors.Is(err, shmsync.ErrInconsistent) {
			t.Errorf("got %v", err)
		}
	}
	if err := y.mu.Recover(context.Background(), func(shm.Death) error { return nil }); err != nil {
		t.Error(err)
	}
	here := goStand(y)
	y.arrive(t, 4)
	y.cond.Signal()
	y.mu.Unlock()
	mustReturn(t, here)
}

// In a region that was made to go on after deaths the wait goes on too.
func TestCondWaitsGoOnAfterADeathWhereLocksDo(t *testing.T) {
	r, y := newYard(t, shm.ContinueAfterDeath())
	here := goStand(y)
	y.arrive(t, 1)
	y.mu.Unlock()
	<-start(t, dieWithTheLock, r, 0, 0).Done()
	until(t, "the death is known", func() bool { r.Scan(); return r.Deaths().Load() != 0 })
	time.Sleep(100 * time.Millisecond)
	y.mu.Lock()
	if y.gone != 0 {
		t.Error("released by a death")
	}
	y.cond.Signal()
	y.mu.Unlock()
	mustReturn(t, here)
}

func TestCondWaitsEndWhenTheRegionIsClosed(t *testing.T) {
	mapped, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	heap, err := shm.Heap(shm.Size(1 << 16))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []*shm.Region{mapped, heap} {
		y := yardIn(r)
		got := []<-chan error{goStand(y), goStand(y), goStand(y)}
		y.arrive(t, 3)
		y.mu.Unlock()
		r.Close()
		for _, c := range got {
			if err := <-c; !errors.Is(err, shm.ErrClosed) {
				t.Errorf("got %v", err)
			}
		}
		if r == mapped {
			if _, err := y.cond.Wait(context.Background(), &y.mu); !errors.Is(err, shm.ErrClosed) {
				t.Errorf("a wait in a closed region: %v", err)
			}
		}
	}
}

var standCloseReopen = proc.Define("stand in line, close the region, and open it again", func(ctx context.Context, path string) error {
	r, err := shm.OpenFile(path)
	if err != nil {
		return err
	}
	y := yardIn(r)
	got := goStand(y)
	for y.step.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	r.Close()
	if err := <-got; !errors.Is(err, shm.ErrClosed) {
		return err
	}
	if r, err = shm.OpenFile(path); err != nil {
		return err
	}
	y = yardIn(r)
	y.step.Store(2)
	for y.step.Load() != 3 {
		time.Sleep(time.Millisecond)
	}
	return y.stand(ctx)
})

// Who closes the region has left the line, also if it opens it again; and a signal that it had got goes to the next.
func TestCondWhoClosesTheRegionLeavesTheLine(t *testing.T) {
	for signalled := range 2 {
		r, err := shm.CreateFile(filepath.Join(t.TempDir(), "region"), shm.Limit(1<<20))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		y := yardIn(r)
		p, err := standCloseReopen.Start(context.Background(), r.Path())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			p.Kill()
			<-p.Done()
		})
		y.arrive(t, 1)
		y.mu.Unlock()
		first, second := goStand(y), (<-chan error)(nil)
		y.arrive(t, 2)
		y.mu.Unlock()
		second = goStand(y)
		y.arrive(t, 3)
		if signalled == 1 {
			y.cond.Signal()
		}
		y.step.Store(1)
		until(t, "it has closed and opened", func() bool { return y.step.Load() == 2 || !p.Alive() })
		if !p.Alive() {
			t.Fatal(p.Wait())
		}
		if signalled == 0 {
			y.cond.Signal()
		}
		y.mu.Unlock()
		y.leave(t, 1)
		y.step.Store(3)
		y.arrive(t, 4)
		y.cond.Broadcast()
		y.mu.Unlock()
		mustReturn(t, first, second)
		wait(t, p)
		checkLine(t, r, y)
	}
}

var standAndClose = proc.Define("stand in line, and close the region", func(ctx context.Context, path string) error {
	r, err := shm.OpenFile(path)
	if err != nil {
		return err
	}
	y := yardIn(r)
	got := goStand(y)
	for y.step.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	r.Close()
	if err := <-got; !errors.Is(err, shm.ErrClosed) {
		return err
	}
	fmt.Println("closed")
	select {} // it lives on
})

func TestCondWhoHasClosedTheRegionIsNotSignalled(t *testing.T) {
	r, err := shm.CreateFile(filepath.Join(t.TempDir(), "region"), shm.Limit(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	y := yardIn(r)
	said, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	p, err := standAndClose.Start(context.Background(), r.Path(), proc.Stdout(w))
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		p.Kill()
		<-p.Done()
	}()
	y.arrive(t, 1)
	y.mu.Unlock()
	here := goStand(y)
	y.arrive(t, 2)
	y.step.Store(1)
	y.mu.Unlock()
	if _, err := said.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	y.mu.Lock()
	y.cond.Signal()
	y.mu.Unlock()
	mustReturn(t, here)
}

// One in the middle of a queue gives up; those behind it are still in line.
func TestCondOneWhoGivesUpLeavesTheLineWhole(t *testing.T) {
	everywhere(t, func(t *testing.T, y *yard) {
		for leaver := range 4 {
			y.mu.Lock()
			y.arrived, y.gone = 0, 0
			y.mu.Unlock()
			ctx, cancel := context.WithCancel(context.Background())
			var got []<-chan error
			gave := make(chan error, 1)
			for i := range 4 {
				if i == leaver {
					go func() { gave <- y.stand(ctx) }()
				} else {
					got = append(got, goStand(y))
				}
				y.arrive(t, int64(i+1))
				y.mu.Unlock()
			}
			cancel()
			if err := <-gave; err == nil {
				t.Fatal("it did not give up")
			}
			for i := range 3 {
				y.mu.Lock()
				y.cond.Signal()
				y.mu.Unlock()
				mustReturn(t, got[i])
			}
		}
	})
}

var standAsleepForEver = proc.Define("stand in line, without an end of any sleep", func(ctx context.Context, o order) error {
	shmsync.SleepForEver()
	return yardIn(o.Region).stand(context.Background())
})

// No sleep ends by itself here: each signal wakes whom it is for.
func TestCondSignalsWakeTheSleepers(t *testing.T) {
	if !shmsync.Kernel {
		t.Skip("those who poll look by themselves")
	}
	for way := range 3 {
		r, y := newYard(t)
		ps := []*proc.Process{start(t, standAsleepForEver, r, 0, 0), start(t, standAsleepForEver, r, 0, 0)}
		y.arrive(t, 2)
		y.mu.Unlock()
		time.Sleep(20 * time.Millisecond) // they sleep, most likely
		y.mu.Lock()
		switch way {
		case 0:
			y.cond.Broadcast()
		case 1:
			y.cond.SignalN(2)
		default:
			y.cond.Signal()
			y.mu.Unlock()
			y.leave(t, 1)
			y.mu.Lock()
			y.cond.Signal()
		}
		y.mu.Unlock()
		wait(t, ps...)
	}
}

func TestCondTenThousandGoroutinesWaitOnOneThread(t *testing.T) {
	r, y := newYard(t)
	const crowd = 10_000
	before := threads(t)
	var wg stdsync.WaitGroup
	var woken, failed atomic.Int64
	for range crowd {
		wg.Go(func() {
			y.mu.Lock()
			y.arrived++
			ok, err := y.cond.Wait(context.Background(), &y.mu)
			if !ok || err != nil {
				failed.Add(1)
				return
			}
			woken.Add(1)
			y.mu.Unlock()
		})
	}
	y.arrive(t, crowd)
	y.mu.Unlock()
	time.Sleep(20 * time.Millisecond)
	if n := threads(t); n > before+5 {
		t.Errorf("%d threads, %d before", n, before)
	}
	y.mu.Lock()
	for range crowd / 2 {
		y.cond.Signal()
	}
	y.mu.Unlock()
	until(t, "half of them are woken", func() bool { return woken.Load() >= crowd/2 })
	time.Sleep(10 * time.Millisecond)
	if n := woken.Load(); n != crowd/2 {
		t.Errorf("%d woken by %d signals", n, crowd/2)
	}
	p := start(t, broadcastOnce, r, 0, 0)
	wg.Wait()
	wait(t, p)
	if woken.Load() != crowd || failed.Load() != 0 {
		t.Errorf("%d woken, %d failed", woken.Load(), failed.Load())
	}
}

var broadcastOnce = proc.Define("broadcast once", func(_ context.Context, o order) error {
	y := yardIn(o.Region)
	y.mu.Lock()
	y.cond.Broadcast()
	y.mu.Unlock()
	return nil
})

func TestCondCostsNothingWhileNobodyWaits(t *testing.T) {
	everywhere(t, func(t *testing.T, y *yard) {
		y.mu.Lock()
		defer y.mu.Unlock()
		y.cond.WaitTimeout(&y.mu, time.Microsecond)
		if n := testing.AllocsPerRun(100, func() { y.cond.Signal(); y.cond.Broadcast() }); n != 0 && !shmsync.RaceEnabled {
			t.Errorf("%v allocations", n)
		}
	})
}

func ExampleCond() {
	var (
		mu    shmsync.Mutex
		cond  shmsync.Cond
		ready bool
	)
	go func() {
		mu.Lock()
		ready = true
		cond.Signal()
		mu.Unlock()
	}()
	mu.Lock()
	if ok, err := cond.WaitFor(context.Background(), &mu, func() bool { return ready }); err == nil {
		mu.Unlock()
		fmt.Println(ok)
	}
	// Output: true
}
