package sync_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	stdsync "sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// A debut is an arena of a Once.
type debut struct {
	once   shmsync.Once
	inside atomic.Int64 // running
	begun  atomic.Int64
	ran    atomic.Int64 // to the end
	come   atomic.Int64
	step   atomic.Int64
	faults atomic.Int64
	value  int64 // written by the function
}

func debutIn(r *shm.Region) *debut {
	d, err := shm.At[debut](r, r.Data()+20480)
	if err != nil {
		panic(err)
	}
	return d
}

func newDebut(t testing.TB) (*shm.Region, *debut) {
	r, _ := newArena(t)
	return r, debutIn(r)
}

// run is what is to be done once.
func (d *debut) run() error {
	d.begun.Add(1)
	if d.inside.Add(1) != 1 {
		d.faults.Add(1)
	}
	time.Sleep(time.Millisecond)
	d.value++
	d.inside.Add(-1)
	d.ran.Add(1)
	return nil
}

// doOnce does it in three goroutines.
var doOnce = proc.Define("do once", func(ctx context.Context, o order) error {
	d := debutIn(o.Region)
	var wg stdsync.WaitGroup
	errs := make([]error, 3)
	for g := range errs {
		wg.Go(func() {
			d.come.Add(1)
			await(&d.step, 1)
			errs[g] = d.once.Do(ctx, d.run)
			if errs[g] == nil {
				errs[g] = check(d.value == 1 && d.once.Done(), "back with the value %d, done %v", d.value, d.once.Done())
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
})

func TestOnceIsDoneOnceByAllGoroutinesOfAllProcesses(t *testing.T) {
	r, d := newDebut(t)
	if size := unsafe.Sizeof(d.once); size != 16 {
		t.Errorf("%d bytes", size)
	}
	if d.once.Done() || d.once.Runs() != 0 {
		t.Error("done from the start")
	}
	var ps []*proc.Process
	for i := range 4 {
		ps = append(ps, start(t, doOnce, r, i, 0))
	}
	until(t, "all are about to", func() bool { return d.come.Load() == 12 })
	d.step.Store(1)
	wait(t, ps...)
	if err := d.once.Do(context.Background(), d.run); err != nil {
		t.Error(err)
	}
	if d.ran.Load() != 1 || d.faults.Load() != 0 || d.once.Runs() != 1 || d.value != 1 {
		t.Errorf("run %d times, %d at once, %d counted", d.ran.Load(), d.faults.Load(), d.once.Runs())
	}
}

// dieOnce dies in the function, after it has said that it runs and was told to.
var dieOnce = proc.Define("die doing it", func(ctx context.Context, o order) error {
	d := debutIn(o.Region)
	return d.once.Do(ctx, func() error {
		d.begun.Add(1)
		await(&d.step, 1)
		p, _ := os.FindProcess(os.Getpid())
		p.Kill()
		select {}
	})
})

func TestOnceOfARunnerThatDiesIsDoneByTheNextInLine(t *testing.T) {
	r, d := newDebut(t)
	p := start(t, dieOnce, r, 0, 0)
	until(t, "it runs", func() bool { return d.begun.Load() == 1 })
	got := make(chan error)
	runs := 0
	for range 3 {
		go func() {
			got <- d.once.Do(context.Background(), func() error { runs = d.once.Runs(); return d.run() })
		}()
	}
	until(t, "others wait", d.once.HasWaiter)
	if d.ran.Load() != 0 {
		t.Error("two at once")
	}
	d.step.Store(1)
	for range 3 {
		if err := <-got; err != nil {
			t.Error(err)
		}
	}
	if d.ran.Load() != 1 || runs != 2 || !d.once.Done() {
		t.Errorf("run %d times to the end, the second time told %d, done %v", d.ran.Load(), runs, d.once.Done())
	}
	<-p.Done()
}

func TestOnceThatFailsOrPanicsIsDoneByTheNextInLine(t *testing.T) {
	_, d := newDebut(t)
	failed := errors.New("not today")
	entered, release := make(chan bool), make(chan bool)
	first, second := make(chan error), make(chan error)
	go func() {
		first <- d.once.Do(context.Background(), func() error {
			entered <- true
			<-release
			return failed
		})
	}()
	<-entered
	go func() { second <- d.once.Do(context.Background(), d.run) }()
	until(t, "one waits", d.once.HasWaiter)
	close(release)
	if err := <-first; !errors.Is(err, failed) {
		t.Errorf("the one that failed: %v", err)
	}
	if err := <-second; err != nil || !d.once.Done() {
		t.Errorf("the next: %v, done %v", err, d.once.Done())
	}

	_, d = newDebut(t)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		d.once.Do(context.Background(), func() error { panic("halfway") })
	}()
	if d.once.Done() {
		t.Error("done by a panic")
	}
	if err := d.once.Do(context.Background(), d.run); err != nil || d.ran.Load() != 1 {
		t.Errorf("after the panic: %v, %d runs", err, d.ran.Load())
	}
}

func TestOnceWaitEndsWithItsContextAndWhatIsDoneIsDoneWhateverTheContext(t *testing.T) {
	r, d := newDebut(t)
	release := make(chan bool)
	first := make(chan error)
	go func() {
		first <- d.once.Do(context.Background(), func() error { <-release; return d.run() })
	}()
	until(t, "it runs", func() bool { return d.once.Runs() == 1 })
	begin := time.Now()
	err := d.once.Do(after(50*time.Millisecond), d.run)
	if took := time.Since(begin); !errors.Is(err, context.DeadlineExceeded) || took < 50*time.Millisecond {
		t.Errorf("%v after %v", err, took)
	}
	close(release)
	if err := <-first; err != nil {
		t.Error(err)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := d.once.Do(ended, d.run); err != nil {
		t.Errorf("done, under an ended context: %v", err)
	}
	_, fresh := newDebut(t)
	if err := fresh.once.Do(ended, fresh.run); err != nil || fresh.ran.Load() != 1 {
		t.Errorf("free, under an ended context: %v", err)
	}
	if n := testing.AllocsPerRun(100, func() { d.once.Do(ended, d.run) }); n != 0 {
		t.Errorf("%v allocations when done", n)
	}
	r.Close()
}

func TestOnceOfAClosedRegion(t *testing.T) {
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	d := debutIn(r)
	release := make(chan bool)
	first, second := make(chan error), make(chan error)
	go func() {
		first <- d.once.Do(context.Background(), func() error { <-release; return nil })
	}()
	until(t, "it runs", func() bool { return d.once.Runs() == 1 })
	go func() { second <- d.once.Do(context.Background(), func() error { return nil }) }()
	until(t, "one waits", d.once.HasWaiter)
	r.Close()
	if err := <-second; !errors.Is(err, shm.ErrClosed) {
		t.Errorf("the waiter: %v", err)
	}
	close(release)
	if err := <-first; !errors.Is(err, shm.ErrClosed) {
		t.Errorf("the runner: %v", err)
	}
}

func ExampleOnce() {
	var once shmsync.Once
	for range 3 {
		once.Do(context.Background(), func() error {
			fmt.Println("done")
			return nil
		})
	}
	// Output: done
}
