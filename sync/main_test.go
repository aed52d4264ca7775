package sync_test

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

func TestMain(m *testing.M) {
	proc.Main()
	os.Exit(m.Run())
}

// An arena is what the processes of a test share: it lies at the beginning of a region's data.
type arena struct {
	mu     shmsync.Mutex
	_      [56]byte
	n      int64 // guarded by mu
	twin   int64 // guarded by mu; equal to n whenever mu is free and consistent
	_      [48]byte
	step   atomic.Int64 // the test's own word to its children
	inside atomic.Int64 // who is between Lock and Unlock
	done   atomic.Int64 // children that have got somewhere
	addr   atomic.Uint64
	faults atomic.Int64
	order  [16]atomic.Int64
	dirty  atomic.Int64
}

// open returns the arena of a region.
func open(r *shm.Region) *arena {
	a, err := shm.At[arena](r, r.Data())
	if err != nil {
		panic(err)
	}
	return a
}

// newArena returns an arena in a new region, which lies at another address here than in children.
func newArena(t testing.TB, opts ...shm.Option) (*shm.Region, *arena) {
	t.Helper()
	spacer, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	r, err := shm.Anonymous(append(opts, shm.Limit(1<<20))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		spacer.Close()
	})
	return r, open(r)
}

// An order is what a child is told.
type order struct {
	Region *shm.Region
	Number int // of the child
	Rounds int
}

// start starts a process that is killed when the test ends.
func start(t testing.TB, f *proc.Func[order], r *shm.Region, number, rounds int) *proc.Process {
	t.Helper()
	p, err := f.Start(context.Background(), order{r, number, rounds})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		<-p.Done()
	})
	return p
}

// wait fails the test if a process ends with an error.
func wait(t testing.TB, ps ...*proc.Process) {
	t.Helper()
	for _, p := range ps {
		if err := p.Wait(); err != nil {
			t.Error(err)
		}
	}
}

// until waits for a state; the test's own deadline ends a wait for one that never comes.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("waited 30 s for: %s", what)
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// await is until in a child.
func await(w *atomic.Int64, v int64) {
	for w.Load() < v {
		time.Sleep(100 * time.Microsecond)
	}
}

// hold takes the lock, says so, and keeps it until it is told to release it, or for ever.
var hold = proc.Define("hold", func(_ context.Context, o order) error {
	a := open(o.Region)
	a.mu.Lock()
	a.done.Add(1)
	await(&a.step, int64(o.Number))
	a.mu.Unlock()
	a.done.Add(1)
	return nil
})

func check(ok bool, format string, args ...any) error {
	if !ok {
		return fmt.Errorf(format, args...)
	}
	return nil
}
