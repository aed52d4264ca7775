package sync_test

import (
	"context"
	"errors"
	"os"
	stdsync "sync"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

var tryOnce = proc.Define("try once", func(_ context.Context, o order) error {
	if open(o.Region).mu.TryLock() {
		return errors.New("granted while the parent holds the lock")
	}
	return nil
})

func TestMutexIsLeftAloneByAProcessThatTriesAndEnds(t *testing.T) {
	r, a := newArena(t)
	a.mu.Lock()
	p := start(t, tryOnce, r, 0, 0)
	wait(t, p)
	until(t, "the child's end is known", func() bool { r.Scan(); return r.Deaths().Load() == 1 })
	if a.mu.TryLock() || a.mu.LockTimeout(20*time.Millisecond) {
		t.Error("the child's end has freed the lock")
	}
	if a.mu.Inconsistent() {
		t.Error("the child's end has made the lock inconsistent")
	}
	a.mu.Unlock()
	if err := a.mu.LockContext(context.Background()); err != nil {
		t.Error(err)
	}
	a.mu.Unlock()
}

// takeTurns takes the lock so often, in each of four goroutines, and is never told of a death.
var takeTurns = proc.Define("take turns", func(ctx context.Context, o order) error {
	a := open(o.Region)
	var wg stdsync.WaitGroup
	errs := make(chan error, 4)
	for range cap(errs) {
		wg.Go(func() {
			for i := range o.Rounds {
				var err error
				if i%2 == 0 {
					err = a.mu.LockContext(ctx)
				} else {
					err = a.mu.LockRepaired(ctx, func(d shm.Death) error { return errors.New(d.String()) })
				}
				if err != nil {
					errs <- err
					return
				}
				a.n++
				a.mu.Unlock()
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
})

func TestMutexIsNeverSaidToBeADeadOnesWhileAllLive(t *testing.T) {
	const procs, rounds = 8, 1000
	r, a := newArena(t)
	var ps []*proc.Process
	for i := range procs {
		ps = append(ps, start(t, takeTurns, r, i, rounds))
	}
	wait(t, ps...)
	if want := int64(procs * 4 * rounds); a.n != want {
		t.Errorf("%d after %d increments", a.n, want)
	}
}

const manyLocks = 10_000

func openMany(r *shm.Region) *[manyLocks]shmsync.Mutex {
	m, err := shm.At[[manyLocks]shmsync.Mutex](r, r.Data())
	if err != nil {
		panic(err)
	}
	return m
}

// tryMany finds every second lock held, takes the others, and leaves every third of them held when it ends.
var tryMany = proc.Define("try many", func(_ context.Context, o order) error {
	all := openMany(o.Region)
	for i := range all {
		if granted := all[i].TryLock(); granted != (i%2 == 1) {
			return errors.Join(check(false, "lock %d: granted %v", i, granted))
		}
	}
	for i := 1; i < manyLocks; i += 2 {
		if i%3 != 0 {
			all[i].Unlock()
		}
	}
	return nil
})

func TestTenThousandMutexesOfARegionAreIndependent(t *testing.T) {
	before := descriptors()
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	made := descriptors()
	all := openMany(r)
	for i := 0; i < manyLocks; i += 2 {
		all[i].Lock()
	}
	wait(t, start(t, tryMany, r, 0, 0))
	for i := range all {
		switch err := all[i].LockContext(ended()); {
		case i%2 == 0: // held by us
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("lock %d, held: %v", i, err)
			}
			all[i].Unlock()
		case i%3 == 0: // the child left it held
			if !errors.Is(err, shmsync.ErrInconsistent) {
				t.Fatalf("lock %d, a dead one's: %v", i, err)
			}
		case err != nil:
			t.Fatalf("lock %d, free: %v", i, err)
		}
	}
	if n := descriptors(); n > made {
		t.Errorf("%d descriptors, %d before the region was made, %d after", n, before, made)
	}
}

// ended returns a context that has ended.
func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// descriptors counts the descriptors of this process; 0 where it cannot.
func descriptors() int {
	entries, _ := os.ReadDir("/proc/self/fd")
	return len(entries)
}
