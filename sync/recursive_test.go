package sync_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	stdsync "sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// A nest is an arena of a recursive mutex.
type nest struct {
	mu    shmsync.RecursiveMutex
	n     int64 // guarded by mu
	step  atomic.Int64
	told  atomic.Int64
	depth atomic.Int64
}

func nestIn(r *shm.Region) *nest {
	n, err := shm.At[nest](r, r.Data()+16384)
	if err != nil {
		panic(err)
	}
	return n
}

func newNest(t testing.TB) (*shm.Region, *nest) {
	r, _ := newArena(t)
	return r, nestIn(r)
}

// holdNested takes the lock o.Rounds times and gives it back step by step, as it is told.
var holdNested = proc.Define("hold nested", func(_ context.Context, o order) error {
	n, me := nestIn(o.Region), shmsync.NewOwner()
	for range o.Rounds {
		n.mu.Lock(me)
	}
	for d := o.Rounds; d > 0; d-- {
		n.depth.Store(int64(n.mu.Depth(me)))
		n.told.Add(1)
		await(&n.step, int64(o.Rounds-d+1))
		n.mu.Unlock(me)
	}
	n.told.Add(1)
	return nil
})

func TestRecursiveMutexIsReleasedAsOftenAsItWasTaken(t *testing.T) {
	_, n := newNest(t)
	if size := unsafe.Sizeof(n.mu); size != 24 {
		t.Errorf("%d bytes", size)
	}
	me, other := shmsync.NewOwner(), shmsync.NewOwner()
	misused(t, func() { n.mu.Unlock(me) }) // never taken
	for i := range 3 {
		n.mu.Lock(me)
		if d := n.mu.Depth(me); d != i+1 {
			t.Errorf("depth %d after %d locks", d, i+1)
		}
	}
	if n.mu.TryLock(other) || n.mu.LockTimeout(other, 10*time.Millisecond) || n.mu.Depth(other) != 0 {
		t.Error("another owner of the same process got it")
	}
	if m := misused(t, func() { n.mu.Unlock(other) }); m != nil && m.Holder != shm.Self() {
		t.Errorf("holder %v", m.Holder)
	}
	if d := n.mu.Depth(me); d != 3 {
		t.Errorf("depth %d after the misuse", d)
	}
	for range 3 {
		n.mu.Unlock(me)
	}
	misused(t, func() { n.mu.Unlock(me) })
	if !n.mu.TryLock(other) {
		t.Error("not free after the last release")
	}
	n.mu.Unlock(other)
	for _, use := range []func(){func() { n.mu.Lock(0) }, func() { n.mu.Unlock(0) }, func() { n.mu.TryLock(0) }} {
		misused(t, use)
	}
}

func TestRecursiveMutexIsGrantedToAnotherProcessAfterTheLastReleaseOnly(t *testing.T) {
	r, n := newNest(t)
	me := shmsync.NewOwner()
	p := start(t, holdNested, r, 0, 2)
	until(t, "the child has it twice", func() bool { return n.told.Load() == 1 })
	if m := misused(t, func() { n.mu.Unlock(me) }); m != nil && (m.Holder == 0 || m.Holder == shm.Self()) {
		t.Errorf("holder %v", m.Holder)
	}
	if n.mu.TryLock(me) || n.depth.Load() != 2 {
		t.Errorf("granted at depth %d", n.depth.Load())
	}
	n.step.Store(1)
	until(t, "it has released it once", func() bool { return n.told.Load() == 2 })
	if n.mu.TryLock(me) || n.depth.Load() != 1 {
		t.Errorf("granted at depth %d", n.depth.Load())
	}
	n.step.Store(2)
	until(t, "it has released it", func() bool { return n.told.Load() == 3 })
	if !n.mu.TryLock(me) {
		t.Error("refused after the last release")
	}
	n.mu.Unlock(me)
	wait(t, p)
}

// tryThenWait is refused, times out, and then waits.
var tryThenWait = proc.Define("try, then wait", func(_ context.Context, o order) error {
	n, me := nestIn(o.Region), shmsync.NewOwner()
	if n.mu.TryLock(me) {
		return errors.New("try: granted")
	}
	begin := time.Now()
	if n.mu.LockTimeout(me, 500*time.Millisecond) {
		return errors.New("timed: granted")
	}
	if took := time.Since(begin); took < 500*time.Millisecond {
		return fmt.Errorf("gave up after %v", took)
	}
	n.told.Add(1)
	n.mu.Lock(me)
	n.told.Add(1)
	n.mu.Unlock(me)
	return nil
})

func TestRecursiveMutexWaiterIsRefusedTimesOutAndWaits(t *testing.T) {
	t.Parallel()
	r, n := newNest(t)
	me := shmsync.NewOwner()
	n.mu.Lock(me)
	n.mu.Lock(me)
	p := start(t, tryThenWait, r, 0, 0)
	until(t, "it waits", func() bool { return n.told.Load() == 1 })
	n.mu.Unlock(me)
	time.Sleep(50 * time.Millisecond) // time to get it, if it were free
	if n.told.Load() != 1 {
		t.Error("granted at depth 1")
	}
	n.mu.Unlock(me)
	wait(t, p)
}

func TestRecursiveMutexGrantsItsOwnerEveryWayAtOnce(t *testing.T) {
	_, n := newNest(t)
	me := shmsync.NewOwner()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	ways := []func() bool{
		func() bool { n.mu.Lock(me); return true },
		func() bool { return n.mu.TryLock(me) },
		func() bool { return n.mu.LockTimeout(me, 0) },
		func() bool { return n.mu.LockTimeout(me, -time.Second) },
		func() bool { return n.mu.LockTimeout(me, time.Hour) },
		func() bool { return n.mu.LockContext(ended, me) == nil },
		func() bool { n.mu.Locker(me).Lock(); return true },
	}
	for _, outer := range ways {
		if !outer() {
			t.Fatal("a free lock was refused")
		}
		for i, lock := range ways {
			if !lock() {
				t.Errorf("nested way %d: refused", i)
			}
		}
		if d := n.mu.Depth(me); d != 1+len(ways) {
			t.Errorf("depth %d", d)
		}
		for range 1 + len(ways) {
			n.mu.Locker(me).Unlock()
		}
	}
}

func TestRecursiveMutexIsTenThousandDeep(t *testing.T) {
	const depth = 10_000
	r, n := newNest(t)
	me := shmsync.NewOwner()
	for range depth {
		n.mu.Lock(me)
	}
	p := start(t, tryThenWait, r, 0, 0)
	until(t, "another process waits", func() bool { return n.told.Load() == 1 })
	for i := range depth - 1 {
		n.mu.Unlock(me)
		if i%1000 == 0 && n.told.Load() != 1 {
			t.Fatalf("granted at depth %d", depth-1-i)
		}
	}
	time.Sleep(50 * time.Millisecond)
	if n.told.Load() != 1 || n.mu.Depth(me) != 1 {
		t.Errorf("granted at depth %d", n.mu.Depth(me))
	}
	n.mu.Unlock(me)
	wait(t, p)
}

// countNested counts in three goroutines, each of them nested at random depths.
var countNested = proc.Define("count nested", func(_ context.Context, o order) error {
	n := nestIn(o.Region)
	var wg stdsync.WaitGroup
	for g := range 3 {
		wg.Go(func() {
			me := shmsync.NewOwner()
			for i := range o.Rounds {
				for range 1 + (i+g)%4 {
					n.mu.Lock(me)
				}
				n.n++
				for range 1 + (i+g)%4 {
					n.mu.Unlock(me)
				}
			}
		})
	}
	wg.Wait()
	return nil
})

func TestRecursiveMutexExcludesGoroutinesOfSeveralProcesses(t *testing.T) {
	const rounds = 2000
	r, n := newNest(t)
	wait(t, start(t, countNested, r, 0, rounds), start(t, countNested, r, 1, rounds), start(t, countNested, r, 2, rounds))
	if n.n != 9*rounds {
		t.Errorf("%d after %d increments", n.n, 9*rounds)
	}
}

func TestRecursiveMutexOfADeadOwnerIsInconsistentUntilItIsRecovered(t *testing.T) {
	r, n := newNest(t)
	me := shmsync.NewOwner()
	p := start(t, holdNested, r, 0, 5)
	until(t, "the child has it", func() bool { return n.told.Load() == 1 })
	p.Kill()
	<-p.Done()
	if err := n.mu.LockContext(context.Background(), me); !errors.Is(err, shmsync.ErrInconsistent) {
		t.Fatalf("got %v", err)
	}
	if n.mu.Depth(me) != 0 || n.mu.TryLock(me) {
		t.Error("taken in spite of the error")
	}
	failed := errors.New("no")
	if err := n.mu.Recover(context.Background(), me, func(shm.Death) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("a repair that fails: %v", err)
	}
	if n.mu.Depth(me) != 0 || !n.mu.Inconsistent() {
		t.Error("a repair that fails left it held, or consistent")
	}
	if err := n.mu.Recover(context.Background(), me, func(shm.Death) error {
		n.mu.Lock(me) // what repairs may lock as well
		defer n.mu.Unlock(me)
		return check(n.mu.Depth(me) == 2, "depth %d in a lock in the repair", n.mu.Depth(me))
	}); err != nil {
		t.Error(err)
	}
	n.mu.Lock(me)
	if d := n.mu.Depth(me); d != 1 {
		t.Errorf("depth %d after the recovery", d)
	}
	if err := n.mu.Recover(context.Background(), me, func(shm.Death) error { return nil }); !errors.Is(err, shmsync.ErrNotInconsistent) {
		t.Errorf("by its owner: %v", err)
	}
	n.mu.Unlock(me)
	if err := n.mu.Recover(context.Background(), me, func(shm.Death) error { return nil }); !errors.Is(err, shmsync.ErrNotInconsistent) {
		t.Errorf("healthy: %v", err)
	}
}

func TestRecursiveMutexIsInconsistentAfterAPanicAtAnyDepth(t *testing.T) {
	_, n := newNest(t)
	me := shmsync.NewOwner()
	n.mu.Lock(me)
	func() {
		defer func() { recover() }()
		n.mu.Do(context.Background(), me, func() error { panic("halfway") })
	}()
	if d := n.mu.Depth(me); d != 1 {
		t.Errorf("depth %d", d)
	}
	n.mu.Unlock(me)
	if err := n.mu.LockContext(context.Background(), me); !errors.Is(err, shmsync.ErrInconsistent) {
		t.Errorf("after a panic inside: %v", err)
	}
}

func TestRecursiveMutexOfAClosedRegion(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there the region stays visible until no handle is left, and Unlock releases the lock")
	}
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	n, me := nestIn(r), shmsync.NewOwner()
	n.mu.Lock(me)
	other := make(chan error)
	go func() { other <- n.mu.LockContext(context.Background(), shmsync.NewOwner()) }()
	until(t, "one waits", n.mu.HasWaiter)
	r.Close()
	if err := <-other; !errors.Is(err, shm.ErrClosed) {
		t.Errorf("the waiter: %v", err)
	}
	defer func() {
		if err, ok := recover().(error); !ok || !errors.Is(err, shm.ErrClosed) {
			t.Errorf("unlock: %v", err)
		}
	}()
	n.mu.Unlock(me)
}

func ExampleRecursiveMutex() {
	var mu shmsync.RecursiveMutex
	me := shmsync.NewOwner()
	mu.Lock(me)
	mu.Lock(me) // by something that was called, say
	fmt.Println(mu.Depth(me))
	mu.Unlock(me)
	mu.Unlock(me)
	// Output: 2
}
