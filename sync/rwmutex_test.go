package sync_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
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

// A library is what the processes of a test of readers and writers share.
type library struct {
	rw     shmsync.RWMutex
	n      int64 // guarded by rw
	twin   int64 // guarded by rw; equal to n whenever no writer is inside and rw is consistent
	_      [48]byte
	step   atomic.Int64 // the test's own word to its children
	ready  atomic.Int64
	reads  atomic.Int64
	writes atomic.Int64
	faults atomic.Int64
	inside atomic.Int64 // readers
	_      [16]byte
}

func libraryIn(r *shm.Region) *library {
	l, err := shm.At[library](r, r.Data()+8192)
	if err != nil {
		panic(err)
	}
	return l
}

func newLibrary(t testing.TB, opts ...shm.Option) (*shm.Region, *library) {
	r, _ := newArena(t, opts...)
	return r, libraryIn(r)
}

// look is what a reader does.
func (l *library) look() {
	l.inside.Add(1)
	if n := l.n; n != l.twin {
		l.faults.Add(1)
	}
	l.reads.Add(1)
	l.inside.Add(-1)
}

// write is what a writer does, in two steps.
func (l *library) write(between func()) {
	if l.n != l.twin || l.inside.Load() != 0 {
		l.faults.Add(1)
	}
	l.n++
	between()
	l.twin++
	l.writes.Add(1)
	if l.n != l.twin || l.inside.Load() != 0 {
		l.faults.Add(1)
	}
}

func (l *library) repair(shm.Death) error {
	l.twin = l.n
	return nil
}

// check fails the test if somebody was inside beside a writer.
func (l *library) check(t *testing.T) {
	t.Helper()
	if n := l.faults.Load(); n != 0 {
		t.Errorf("%d times a writer was inside beside somebody, or its data was half changed", n)
	}
	if n := l.rw.Readers(); n != 0 {
		t.Errorf("%d readers are counted in the end", n)
	}
}

// A part is what a child is told to do with the lock of a library.
type part struct {
	Region            *shm.Region
	Write             bool
	Times             int   // that it takes the lock before it says that it is ready
	Step              int64 // that it waits for before it gives the lock back
	MayRead, MayWrite bool  // what the answers ought to be
}

func play(t testing.TB, f *proc.Func[part], p part) *proc.Process {
	t.Helper()
	child, err := f.Start(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		child.Kill()
		<-child.Done()
	})
	return child
}

// keep takes the lock, says so, and keeps it until it is told, or for ever.
var keep = proc.Define("keep a lock", func(_ context.Context, p part) error {
	l := libraryIn(p.Region)
	for range p.Times {
		if p.Write {
			l.rw.Lock()
			l.n++ // until it gives the lock back the data is half changed
		} else {
			l.rw.RLock()
			l.inside.Add(1)
		}
	}
	l.ready.Add(1)
	await(&l.step, p.Step)
	for range p.Times {
		if p.Write {
			l.twin++
			l.rw.Unlock()
		} else {
			l.inside.Add(-1)
			l.rw.RUnlock()
		}
	}
	l.ready.Add(1)
	return nil
})

// ask asks for the lock, by a try and with a limit, and checks the answers.
var ask = proc.Define("ask for a lock", func(_ context.Context, p part) error {
	return questions(&libraryIn(p.Region).rw, p.MayRead, p.MayWrite)
})

func questions(rw *shmsync.RWMutex, mayRead, mayWrite bool) (err error) {
	for _, d := range []time.Duration{0, 50 * time.Millisecond} {
		for _, write := range []bool{false, true} {
			begin := time.Now()
			got := asked(rw, write, d)
			took := time.Since(begin)
			if got {
				giveBack(rw, write)
			}
			want := write && mayWrite || !write && mayRead
			err = errors.Join(err, check(got == want, "write %v, limit %v: granted %v", write, d, got),
				check(got || took >= d, "write %v, limit %v: back after %v", write, d, took))
		}
	}
	return err
}

func asked(rw *shmsync.RWMutex, write bool, d time.Duration) bool {
	switch {
	case write && d == 0:
		return rw.TryLock()
	case write:
		return rw.LockTimeout(d)
	case d == 0:
		return rw.TryRLock()
	}
	return rw.RLockTimeout(d)
}

func giveBack(rw *shmsync.RWMutex, write bool) {
	if write {
		rw.Unlock()
	} else {
		rw.RUnlock()
	}
}

// answers lets a child and this process ask for the lock.
func answers(t *testing.T, r *shm.Region, mayRead, mayWrite bool) {
	t.Helper()
	wait(t, play(t, ask, part{Region: r, MayRead: mayRead, MayWrite: mayWrite}))
	if err := questions(&libraryIn(r).rw, mayRead, mayWrite); err != nil {
		t.Errorf("here: %v", err)
	}
}

func TestRWMutexIsSharedByReadersOfManyProcesses(t *testing.T) {
	r, l := newLibrary(t)
	answers(t, r, true, true)
	l.rw.RLock()
	child := play(t, keep, part{Region: r, Times: 10, Step: 1})
	until(t, "the child reads", func() bool { return l.ready.Load() == 1 })
	answers(t, r, true, false)
	l.rw.RUnlock()
	answers(t, r, true, false)
	if n := l.rw.Readers(); n != 10 {
		t.Errorf("%d readers are counted, want 10", n)
	}
	l.step.Store(1)
	wait(t, child)
	answers(t, r, true, true)
	for range 10 {
		l.rw.RLock()
	}
	for range 10 {
		if l.rw.TryLock() {
			t.Fatal("granted for writing before the last of 10 readers was gone")
		}
		l.rw.RUnlock()
	}
	answers(t, r, true, true)
}

// passTheLibrary writes in turn with the parent, and then looks at the lock while the parent holds it.
var passTheLibrary = proc.Define("pass the library to and fro", func(_ context.Context, p part) error {
	l := libraryIn(p.Region)
	if uint64(uintptr(unsafe.Pointer(l))) == open(p.Region).addr.Load() {
		return errors.New("mapped at the parent's address: the test shows nothing")
	}
	l.writeInTurn(1, p.Times)
	l.ready.Store(1)
	await(&l.step, 1) // the parent reads
	err := check(l.rw.TryRLock() && !l.rw.TryLock() && !l.rw.LockTimeout(50*time.Millisecond), "the parent reads")
	l.rw.RUnlock()
	l.ready.Store(2)
	await(&l.step, 2) // it writes
	begin := time.Now()
	err = errors.Join(err, check(!l.rw.TryRLock() && !l.rw.TryLock(), "the parent writes: a try is granted"),
		check(!l.rw.RLockTimeout(200*time.Millisecond) && !l.rw.LockTimeout(200*time.Millisecond), "the parent writes: granted"),
		check(time.Since(begin) >= 400*time.Millisecond, "two waits of 200 ms are over after %v", time.Since(begin)))
	l.ready.Store(3) // it releases the lock in a moment
	err = errors.Join(err, check(l.rw.LockTimeout(time.Minute), "refused after the release"))
	l.rw.Unlock()
	return err
})

// writeInTurn writes so many times, each after the other one.
func (l *library) writeInTurn(who int64, times int) {
	for i := 0; i < times; {
		l.rw.Lock()
		if l.n%2 == who {
			l.write(func() {})
			i++
		}
		l.rw.Unlock()
		runtime.Gosched()
	}
}

func TestRWMutexWorksBetweenProcessesThatMapItAtDifferentAddresses(t *testing.T) {
	r, l := newLibrary(t)
	open(r).addr.Store(uint64(uintptr(unsafe.Pointer(l))))
	const times = 200
	child := play(t, passTheLibrary, part{Region: r, Times: times})
	l.writeInTurn(0, times)
	until(t, "both have written", func() bool { return l.ready.Load() == 1 })
	if l.n != 2*times {
		t.Errorf("%d writes in turn, want %d", l.n, 2*times)
	}
	l.rw.RLock()
	l.step.Store(1)
	until(t, "the child has looked", func() bool { return l.ready.Load() == 2 })
	l.rw.RUnlock()
	l.rw.Lock()
	l.step.Store(2)
	until(t, "the child has looked again", func() bool { return l.ready.Load() == 3 })
	time.Sleep(20 * time.Millisecond)
	l.rw.Unlock()
	wait(t, child)
	l.check(t)
}

func TestRWMutexHeldForWritingIsRefusedToAll(t *testing.T) {
	r, l := newLibrary(t)
	child := play(t, keep, part{Region: r, Write: true, Times: 1, Step: 1})
	until(t, "the child writes", func() bool { return l.ready.Load() == 1 })
	answers(t, r, false, false)
	if o, ok := l.rw.Owner(); !ok || o.PID != child.PID() || o.Life != shm.Alive {
		t.Errorf("owner %v, %v; want process %d", o, ok, child.PID())
	}
	var wg stdsync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if i%4 == 0 {
				l.rw.Lock()
				l.write(func() {})
				l.rw.Unlock()
			} else {
				l.rw.RLock()
				l.look()
				l.rw.RUnlock()
			}
		})
	}
	until(t, "they wait", l.rw.HasWaiter)
	time.Sleep(20 * time.Millisecond)
	if n := l.reads.Load() + l.writes.Load(); n != 0 {
		t.Errorf("%d got in beside the writer", n)
	}
	l.step.Store(1)
	wait(t, child)
	wg.Wait()
	answers(t, r, true, true)
	if _, ok := l.rw.Owner(); ok {
		t.Error("a lock that nobody holds has an owner")
	}
	if s := l.rw.Stats(); s.Waits == 0 || s.Waited == 0 {
		t.Errorf("%+v after 20 waits", s)
	}
	l.check(t)
}

// subjects are the places where a lock may lie.
func subjects(t *testing.T, f func(t *testing.T, rw *shmsync.RWMutex)) {
	t.Run("in a region", func(t *testing.T) {
		_, l := newLibrary(t)
		f(t, &l.rw)
	})
	t.Run("in a region on the heap", func(t *testing.T) {
		r, err := shm.Heap()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		f(t, &libraryIn(r).rw)
	})
	t.Run("outside of regions", func(t *testing.T) {
		var rw shmsync.RWMutex
		f(t, &rw)
	})
}

func TestRWMutexWithinOneProcess(t *testing.T) {
	subjects(t, func(t *testing.T, rw *shmsync.RWMutex) {
		if size := unsafe.Sizeof(*rw); size != 64 {
			t.Errorf("%d bytes", size)
		}
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		// A free lock is granted whatever the limit.
		for _, d := range []time.Duration{0, -1, math.MinInt64, time.Millisecond, math.MaxInt64} {
			for _, write := range []bool{false, true} {
				ok := rw.LockTimeout(d)
				if write && ok {
					rw.Unlock()
				} else if ok {
					rw.Unlock()
					if ok = rw.RLockTimeout(d); ok {
						rw.RUnlock()
					}
				}
				if !ok {
					t.Errorf("a free lock was refused, write %v, limit %v", write, d)
				}
			}
		}
		if err := rw.RLockContext(ended); err != nil {
			t.Error(err)
		}
		// A reader asks to write.
		for _, d := range []time.Duration{math.MinInt64, -1, 0, 100 * time.Millisecond} {
			begin := time.Now()
			if rw.LockTimeout(d) || rw.TryLock() || time.Since(begin) < d {
				t.Fatalf("limit %v: granted for writing beside a reader, or early", d)
			}
		}
		if err := rw.LockContext(ended); !errors.Is(err, context.Canceled) {
			t.Errorf("under an ended context: %v", err)
		}
		if !rw.TryRLock() {
			t.Error("a second reader is refused, after writers that gave up")
		}
		rw.RUnlock()
		rw.RUnlock()
		// A writer asks for more.
		if err := rw.LockContext(ended); err != nil {
			t.Fatal(err)
		}
		for _, d := range []time.Duration{math.MinInt64, -1, 0, 100 * time.Millisecond} {
			begin := time.Now()
			if rw.LockTimeout(d) || rw.TryLock() || rw.RLockTimeout(d) || rw.TryRLock() || time.Since(begin) < 2*d {
				t.Fatalf("limit %v: granted beside a writer, or early", d)
			}
		}
		if err := rw.RLockContext(after(10 * time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("under a deadline: %v", err)
		}
		rw.Unlock()
		// Everybody gets in, as often as he asks.
		n, twin := 0, 0
		var wg stdsync.WaitGroup
		for i := range 30 {
			wg.Go(func() {
				for j := range 10 {
					write, timed := i%2 == 0, j%2 == 0
					for timed && !asked(rw, write, time.Millisecond) {
					}
					switch {
					case write && !timed:
						rw.Lock()
					case !timed:
						rw.RLocker().Lock()
					}
					if n != twin {
						t.Error("half changed data")
					}
					if write {
						n++
						time.Sleep(time.Millisecond / 4)
						twin++
						rw.Unlock()
						continue
					}
					time.Sleep(time.Millisecond / 4)
					rw.RLocker().Unlock()
				}
			})
		}
		wg.Wait()
		if n != 150 || rw.Readers() != 0 {
			t.Errorf("%d of 150 writes, %d readers are counted", n, rw.Readers())
		}
		calls := testing.AllocsPerRun(100, func() { rw.RLock(); rw.RUnlock(); rw.Lock(); rw.Unlock() })
		if calls != 0 && !shmsync.RaceEnabled {
			t.Errorf("%v allocations", calls)
		}
	})
}

// misuses calls f and returns the misuse that it panics with.
func misuses(f func()) (m *shmsync.MisuseError) {
	defer func() { m, _ = recover().(*shmsync.MisuseError) }()
	f()
	return nil
}

var misuseLock = proc.Define("misuse a lock", func(_ context.Context, p part) error {
	rw := &libraryIn(p.Region).rw
	for what, f := range map[string]func(){"Unlock": rw.Unlock, "RUnlock": rw.RUnlock, "Poison": rw.Poison, "RLocker": rw.RLocker().Unlock} {
		m := misuses(f)
		if m == nil {
			return fmt.Errorf("%s of what this process does not hold went through", what)
		}
		if p.Write && (what == "Unlock" || what == "Poison") && m.Holder == 0 {
			return fmt.Errorf("%s: %v, which does not name the holder", what, m)
		}
	}
	return nil
})

func TestRWMutexIsNotReleasedByThoseWhoDoNotHoldIt(t *testing.T) {
	t.Parallel()
	r, l := newLibrary(t)
	wait(t, play(t, misuseLock, part{Region: r}))
	l.rw.RLock()
	wait(t, play(t, misuseLock, part{Region: r}))
	answers(t, r, true, false)
	if misuses(l.rw.Unlock) == nil || misuses(l.rw.Poison) == nil {
		t.Error("a reader has unlocked like a writer")
	}
	answers(t, r, true, false)
	l.rw.RUnlock()
	if misuses(l.rw.RUnlock) == nil {
		t.Error("a read lock was released twice")
	}
	answers(t, r, true, true)
	l.rw.Lock()
	wait(t, play(t, misuseLock, part{Region: r, Write: true}))
	if misuses(l.rw.RUnlock) == nil {
		t.Error("a writer has unlocked like a reader")
	}
	answers(t, r, false, false)
	l.rw.Unlock()
	if misuses(l.rw.Unlock) == nil {
		t.Error("a lock was released twice")
	}
	answers(t, r, true, true)
	subjects(t, func(t *testing.T, rw *shmsync.RWMutex) {
		for range 2 {
			if misuses(rw.RUnlock) == nil || misuses(rw.Unlock) == nil {
				t.Error("a lock that nobody holds was released")
			}
			rw.RLock()
			rw.RUnlock()
		}
	})
}

// readAndWrite uses the lock so many times in each of several goroutines. Without deadlines, its sleeps end by
// wake-ups only.
var readAndWrite = proc.Define("read and write", func(ctx context.Context, o order) error {
	if o.Number >= 100 {
		shmsync.SleepForEver()
	}
	l := libraryIn(o.Region)
	l.ready.Add(1)
	await(&l.step, 1)
	var wg stdsync.WaitGroup
	hands := o.Number%3 + 1
	errs := make(chan error, hands)
	for range hands {
		wg.Go(func() {
			for range o.Rounds {
				if err := useLibrary(ctx, l); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	return errors.Join(<-errs, check(shmsync.Gates() == 0, "%d gates are left", shmsync.Gates()))
})

// useLibrary takes the lock of l once, in one of many ways.
func useLibrary(ctx context.Context, l *library) error {
	short, cancel := context.WithTimeout(ctx, rand.N(200*time.Microsecond))
	defer cancel()
	nap := func() {
		switch rand.IntN(8) {
		case 0:
			time.Sleep(rand.N(100 * time.Microsecond)) // others fall asleep
		case 1:
			runtime.Gosched()
		}
	}
	read := func() error { l.look(); nap(); l.look(); return nil }
	write := func() error { l.write(nap); return nil }
	unless := func(over, err error) error {
		if errors.Is(err, over) {
			return nil
		}
		return err
	}
	switch rand.IntN(16) {
	case 0:
		l.rw.Lock()
		write()
		l.rw.Unlock()
	case 1:
		if l.rw.TryLock() {
			write()
			l.rw.Unlock()
		}
	case 2:
		if l.rw.LockTimeout(rand.N(100 * time.Microsecond)) {
			write()
			l.rw.Unlock()
		}
	case 3:
		return unless(context.DeadlineExceeded, l.rw.Do(short, write))
	case 4:
		return unless(shmsync.ErrNotInconsistent, unless(context.DeadlineExceeded, l.rw.Recover(short, l.repair)))
	case 5, 6:
		if l.rw.TryRLock() {
			read()
			l.rw.RUnlock()
		}
	case 7, 8:
		if l.rw.RLockTimeout(rand.N(100 * time.Microsecond)) {
			read()
			l.rw.RUnlock()
		}
	case 9, 10:
		return unless(context.DeadlineExceeded, l.rw.RDo(short, read))
	default:
		l.rw.RLock()
		read()
		l.rw.RUnlock()
	}
	return nil
}

func TestRWMutexKeepsWritersApartFromEverybody(t *testing.T) {
	t.Parallel()
	r, l := newLibrary(t)
	rounds := 3000
	if shmsync.RaceEnabled || !shmsync.Kernel {
		rounds = 300
	}
	var ps []*proc.Process
	for i := range 4 {
		ps = append(ps, start(t, readAndWrite, r, i, rounds))
	}
	l.step.Store(1)
	wait(t, ps...)
	if l.n != l.writes.Load() || l.n == 0 || l.reads.Load() == 0 {
		t.Errorf("%d changes by %d writers; %d reads", l.n, l.writes.Load(), l.reads.Load())
	}
	l.check(t)
}

// While nobody dies, no wait needs its end: every wake-up that is needed comes.
func TestRWMutexWithoutDeadlinesNeverHangsWhileAllLive(t *testing.T) {
	if !shmsync.Kernel {
		t.Skip("there are no wake-ups without the kernel's futex")
	}
	rounds := 2000
	if shmsync.RaceEnabled {
		rounds = 300
	}
	r, l := newLibrary(t)
	var ps []*proc.Process
	for i := range 4 {
		ps = append(ps, start(t, readAndWrite, r, 100+i, rounds))
	}
	until(t, "all are ready", func() bool { return l.ready.Load() == 4 })
	l.step.Store(1)
	for _, p := range ps {
		select {
		case <-p.Done():
		case <-time.After(time.Minute):
			t.Fatal("a wake-up is lost")
		}
	}
	wait(t, ps...)
	l.check(t)
	t.Logf("%d reads, %d writes", l.reads.Load(), l.writes.Load())
}

// readOn reads without end in two goroutines whose locks overlap, until it is told.
var readOn = proc.Define("read on", func(_ context.Context, o order) error {
	l := libraryIn(o.Region)
	var wg stdsync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for l.step.Load() == 0 {
				l.rw.RLock()
				l.look()
				time.Sleep(time.Millisecond)
				l.rw.RUnlock()
			}
		})
	}
	wg.Wait()
	return nil
})

// writeOn writes without end, until it is told.
var writeOn = proc.Define("write on", func(_ context.Context, o order) error {
	l := libraryIn(o.Region)
	for l.step.Load() == 0 {
		l.rw.Lock()
		l.write(func() {})
		l.rw.Unlock()
	}
	return nil
})

func TestRWMutexNeitherReadersNorWritersStarve(t *testing.T) {
	t.Run("a writer among readers", func(t *testing.T) {
		r, l := newLibrary(t)
		ps := []*proc.Process{start(t, readOn, r, 0, 0), start(t, readOn, r, 1, 0)}
		until(t, "they read", func() bool { return l.reads.Load() > 10 })
		for range 20 {
			l.rw.Lock()
			l.write(func() {})
			l.rw.Unlock()
		}
		l.step.Store(1)
		wait(t, ps...)
		l.check(t)
	})
	t.Run("a reader among writers", func(t *testing.T) {
		r, l := newLibrary(t)
		ps := []*proc.Process{start(t, writeOn, r, 0, 0), start(t, writeOn, r, 1, 0)}
		until(t, "they write", func() bool { return l.writes.Load() > 10 })
		for range 20 {
			l.rw.RLock()
			l.look()
			l.rw.RUnlock()
		}
		l.step.Store(1)
		wait(t, ps...)
		l.check(t)
	})
}

// kill kills a process and waits for its end.
func kill(p *proc.Process) {
	p.Kill()
	<-p.Done()
}

func TestRWMutexReadersThatDieAreNotWaitedFor(t *testing.T) {
	r, l := newLibrary(t)
	l.rw.RLock() // not the first slot only
	child := play(t, keep, part{Region: r, Times: 3, Step: 99})
	until(t, "the child reads", func() bool { return l.ready.Load() == 1 })
	l.rw.RUnlock()
	got := make(chan error)
	go func() { got <- l.rw.LockContext(context.Background()) }()
	until(t, "a writer waits for the child", l.rw.Awaited)
	kill(child)
	if err := <-got; err != nil {
		t.Fatalf("a reader's death has spoilt the lock: %v", err)
	}
	l.inside.Store(0)
	l.rw.Unlock()
	answers(t, r, true, true)

	child = play(t, keep, part{Region: r, Times: 2, Step: 99})
	until(t, "a child reads", func() bool { return l.ready.Load() == 2 })
	kill(child)
	if !l.rw.LockTimeout(0) { // looks whether they live before it gives up
		t.Error("refused because of a dead reader")
	} else {
		l.rw.Unlock()
	}
	l.inside.Store(0)
	l.check(t)
}

func TestRWMutexWriterThatDiesInsideLeavesItInconsistent(t *testing.T) {
	ctx := context.Background()
	for what, next := range map[string]func(rw *shmsync.RWMutex) error{
		"a reader": func(rw *shmsync.RWMutex) error { return rw.RLockContext(ctx) },
		"a writer": func(rw *shmsync.RWMutex) error { return rw.LockContext(ctx) },
		"a reader without an error result": func(rw *shmsync.RWMutex) (err error) {
			defer func() { err, _ = recover().(error) }()
			rw.RLock()
			return nil
		},
		"a writer without an error result": func(rw *shmsync.RWMutex) (err error) {
			defer func() { err, _ = recover().(error) }()
			rw.Lock()
			return nil
		},
		"a reader in a hurry": func(rw *shmsync.RWMutex) (err error) {
			defer func() { err, _ = recover().(error) }()
			rw.RLockTimeout(0)
			return nil
		},
	} {
		t.Run("told to "+what, func(t *testing.T) {
			r, l := newLibrary(t)
			l.rw.RLock()
			l.rw.RUnlock()
			child := play(t, keep, part{Region: r, Write: true, Times: 1, Step: 99})
			until(t, "the child writes", func() bool { return l.ready.Load() == 1 })
			kill(child)
			if l.rw.TryRLock() || l.rw.TryLock() {
				t.Fatal("a try was granted")
			}
			err := next(&l.rw)
			var died *shmsync.OwnerDiedError
			if !errors.Is(err, shmsync.ErrInconsistent) || !errors.As(err, &died) || died.Death.PID != child.PID() {
				t.Fatalf("told %v", err)
			}
			for range 2 { // and everybody after it
				if err := l.rw.RLockContext(ctx); !errors.Is(err, shmsync.ErrInconsistent) {
					t.Errorf("reader: %v", err)
				}
				if err := l.rw.LockContext(ctx); !errors.Is(err, shmsync.ErrInconsistent) {
					t.Errorf("writer: %v", err)
				}
			}
			if !l.rw.Inconsistent() || l.rw.TryRLock() || l.rw.TryLock() {
				t.Error("inconsistent, and it does not say so, or a try was granted")
			}
			own := errors.New("beyond repair")
			if err := l.rw.Recover(ctx, func(shm.Death) error { return own }); err != own || !l.rw.Inconsistent() {
				t.Errorf("a repair that failed: %v", err)
			}
			func() {
				defer func() {
					if recover() == nil || !l.rw.Inconsistent() {
						t.Error("a repair that panicked has repaired")
					}
				}()
				l.rw.Recover(ctx, func(shm.Death) error { panic("halfway") })
			}()
			err = l.rw.Recover(ctx, func(d shm.Death) error {
				if l.rw.TryRLock() || l.rw.TryLock() {
					t.Error("granted during the repair")
				}
				return l.repair(d)
			})
			if err != nil || l.rw.Inconsistent() {
				t.Errorf("repaired: %v", err)
			}
			if err := l.rw.Recover(ctx, l.repair); !errors.Is(err, shmsync.ErrNotInconsistent) {
				t.Errorf("repaired twice: %v", err)
			}
			answers(t, r, true, true)
			l.check(t)
		})
	}
}

var handleDeaths = proc.Define("handle deaths", func(_ context.Context, p part) error {
	l := libraryIn(p.Region)
	calls := 0
	shm.OnOwnerDied(func(d shm.Death) error {
		calls++
		if l.rw.TryRLock() || l.rw.TryLock() {
			return errors.New("granted during the repair")
		}
		return l.repair(d)
	})
	if p.Write {
		l.rw.Lock()
	} else {
		l.rw.RLock()
	}
	defer giveBack(&l.rw, p.Write)
	return check(calls == 1 && l.n == l.twin, "the handler was called %d times; %d, %d", calls, l.n, l.twin)
})

func TestRWMutexHandlerOfDeathsRepairs(t *testing.T) {
	for _, write := range []bool{false, true} {
		r, l := newLibrary(t)
		child := play(t, keep, part{Region: r, Write: true, Times: 1, Step: 99})
		until(t, "the child writes", func() bool { return l.ready.Load() == 1 })
		kill(child)
		wait(t, play(t, handleDeaths, part{Region: r, Write: write}))
		answers(t, r, true, true)
		l.check(t)
	}
}

func TestRWMutexWriterThatDiesInARegionThatGoesOnLeavesItConsistent(t *testing.T) {
	for _, write := range []bool{false, true} {
		r, l := newLibrary(t, shm.ContinueAfterDeath())
		child := play(t, keep, part{Region: r, Write: true, Times: 1, Step: 99})
		until(t, "the child writes", func() bool { return l.ready.Load() == 1 })
		kill(child)
		if !asked(&l.rw, write, time.Hour) {
			t.Fatal("refused")
		}
		giveBack(&l.rw, write)
		if l.rw.Inconsistent() {
			t.Error("inconsistent")
		}
		answers(t, r, true, true)
	}
}

// waitToWrite asks for the lock and dies while it waits.
var waitToWrite = proc.Define("wait to write", func(_ context.Context, p part) error {
	libraryIn(p.Region).rw.Lock()
	return errors.New("granted")
})

func TestRWMutexWriterThatDiesWhileItWaitsLeavesItConsistent(t *testing.T) {
	t.Parallel()
	r, l := newLibrary(t)
	l.rw.RLock()
	for range 3 {
		child := play(t, waitToWrite, part{Region: r})
		until(t, "the child waits for the reader", l.rw.Awaited)
		if l.rw.TryRLock() {
			t.Fatal("a reader overtakes a waiting writer")
		}
		kill(child)
		if err := l.rw.RLockContext(context.Background()); err != nil {
			t.Fatal(err)
		}
		if l.rw.Inconsistent() {
			t.Error("inconsistent")
		}
		l.rw.RUnlock()
		answers(t, r, true, false)
	}
	l.rw.RUnlock()
	answers(t, r, true, true)
	l.check(t)
}

func TestRWMutexWriterThatGivesUpLetsReadersIn(t *testing.T) {
	subjects(t, func(t *testing.T, rw *shmsync.RWMutex) {
		rw.RLock()
		ctx, cancel := context.WithCancelCause(context.Background())
		got := make(chan error)
		go func() { got <- rw.LockContext(ctx) }()
		until(t, "a writer waits", rw.Awaited)
		read := make(chan error)
		for range 3 {
			go func() { read <- rw.RLockContext(context.Background()) }()
		}
		until(t, "readers wait behind it", rw.HasWaiter)
		why := errors.New("the user has gone home")
		cancel(why)
		if err := <-got; !errors.Is(err, context.Canceled) || !errors.Is(err, why) {
			t.Errorf("cancelled: %v", err)
		}
		for range 3 {
			if err := <-read; err != nil {
				t.Error(err)
			}
			rw.RUnlock()
		}
		go func() { got <- rw.LockContext(context.Background()) }()
		until(t, "another writer waits", rw.Awaited)
		rw.RUnlock()
		if err := <-got; err != nil {
			t.Error(err)
		}
		rw.Unlock()
	})
}

func TestRWMutexPoisonedAndPanickedLocksAreInconsistent(t *testing.T) {
	ctx := context.Background()
	subjects(t, func(t *testing.T, rw *shmsync.RWMutex) {
		rw.Lock()
		rw.Poison()
		if !rw.Inconsistent() {
			t.Error("poisoned, and it does not say so")
		}
		rw.Unlock()
		if misuses(rw.Unlock) == nil {
			t.Error("a poisoned lock was released twice")
		}
		mend := func(shm.Death) error { return nil }
		for range 2 {
			if err := rw.RLockContext(ctx); !errors.Is(err, shmsync.ErrInconsistent) {
				t.Errorf("reader: %v", err)
			}
			if misuses(rw.Unlock) == nil {
				t.Error("a poisoned lock was released by one who was refused")
			}
			if err := rw.LockContext(ctx); !errors.Is(err, shmsync.ErrInconsistent) {
				t.Errorf("writer: %v", err)
			}
			if err := rw.Recover(ctx, mend); err != nil || rw.Inconsistent() {
				t.Errorf("repaired: %v", err)
			}
			func() {
				defer func() { recover() }()
				rw.Do(ctx, func() error { panic("halfway") })
			}()
			if !rw.Inconsistent() || rw.Taken() {
				t.Error("fn has panicked, and the lock does not say so, or is held")
			}
		}
		if err := rw.Recover(ctx, mend); err != nil {
			t.Error(err)
		}
		func() {
			defer func() { recover() }()
			rw.RDo(ctx, func() error { panic("halfway") })
		}()
		own := errors.New("of the function")
		if err := rw.RDo(ctx, func() error { return own }); err != own || rw.Readers() != 0 || rw.Inconsistent() {
			t.Errorf("%v; %d readers are counted", err, rw.Readers())
		}
		if err := rw.Do(ctx, func() error { return own }); err != own || !rw.TryLock() {
			t.Errorf("%v", err)
		}
		rw.Unlock()
	})
}

func TestRWMutexTimedWaitNeverEndsEarly(t *testing.T) {
	t.Parallel()
	limits := limitsOfTime()
	for _, holder := range []string{"a writer", "a reader", "a writer of this process", "a reader of this process"} {
		t.Run("held by "+holder, func(t *testing.T) {
			t.Parallel()
			r, l := newLibrary(t)
			var child *proc.Process
			writes := holder == "a writer" || holder == "a writer of this process"
			switch holder {
			case "a writer of this process":
				l.rw.Lock()
			case "a reader of this process":
				l.rw.RLock()
			default:
				child = play(t, keep, part{Region: r, Write: writes, Times: 1, Step: 1})
				until(t, "the child has the lock", func() bool { return l.ready.Load() == 1 })
			}
			over := make(chan error)
			n := 0
			for _, d := range limits {
				for _, write := range []bool{true, false} {
					if !write && !writes {
						continue
					}
					n++
					go func() {
						begin := time.Now()
						ok := asked(&l.rw, write, d)
						took := time.Since(begin)
						over <- errors.Join(check(!ok, "%v: granted", d), check(took >= d, "%v: back after %v", d, took),
							check(took < 10*d+20*time.Second, "%v: back after %v", d, took))
					}()
				}
			}
			for range n {
				if err := <-over; err != nil {
					t.Error(err)
				}
			}
			switch holder {
			case "a writer of this process":
				l.rw.Unlock()
			case "a reader of this process":
				l.rw.RUnlock()
			default:
				l.step.Store(1)
				wait(t, child)
			}
			answers(t, r, true, true)
		})
	}
}

func TestRWMutexWaitsInAClosedRegionAreRefused(t *testing.T) {
	for _, write := range []bool{false, true} {
		r, l := newLibrary(t)
		child := play(t, keep, part{Region: r, Write: write, Times: 1, Step: 1})
		until(t, "the child has the lock", func() bool { return l.ready.Load() == 1 })
		got := make(chan error)
		ways := []func() error{
			func() error { return l.rw.LockContext(context.Background()) },
			func() (err error) {
				defer func() { err, _ = recover().(error) }()
				l.rw.Lock()
				return nil
			},
		}
		for _, f := range ways {
			go func() { got <- f() }()
		}
		until(t, "writers wait", func() bool { return l.rw.HasWaiter() && (write || l.rw.Awaited()) })
		for range 2 {
			go func() { got <- l.rw.RLockContext(context.Background()) }()
		}
		ask := play(t, askAgain, part{Region: r, Step: 1})
		until(t, "another child is there", func() bool { return l.ready.Load() == 2 })
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		for range len(ways) + 2 {
			if err := <-got; !errors.Is(err, shm.ErrClosed) {
				t.Errorf("a wait in a closed region: %v", err)
			}
		}
		if err := l.rw.RLockContext(context.Background()); !errors.Is(err, shm.ErrClosed) && runtime.GOOS != "windows" {
			t.Errorf("a reader in a closed region: %v", err)
		}
		if err := ask.Wait(); err != nil { // the lock is left to others, while this process lives
			t.Error(err)
		}
		wait(t, child)
	}
}

// askAgain waits until the parent has closed the region, tells the holder to give the lock back, and takes it.
var askAgain = proc.Define("ask again", func(_ context.Context, p part) error {
	l := libraryIn(p.Region)
	l.ready.Add(1)
	for closed := false; !closed; time.Sleep(time.Millisecond) {
		all, err := p.Region.Attachments()
		if err != nil {
			return err
		}
		for _, a := range all {
			closed = closed || a.Closed
		}
	}
	l.step.Store(p.Step)
	l.rw.Lock()
	l.rw.Unlock()
	l.rw.RLock()
	l.rw.RUnlock()
	return nil
})

// Readers of more locks than a process has holdings at hand, and of locks whose holdings others have had.
func TestRWMutexOfManyLocksAreAllCounted(t *testing.T) {
	const locks = 1000
	type shelf struct{ rw [locks]shmsync.RWMutex }
	r, err := shm.Anonymous(shm.Size(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s, err := shm.At[shelf](r, r.Data())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for i := range s.rw { // one after the other: they have the same holdings
			s.rw[i].RLock()
			if s.rw[i].TryLock() {
				t.Fatalf("lock %d: a writer is in beside a reader", i)
			}
			s.rw[i].RUnlock()
			if !s.rw[i].TryLock() {
				t.Fatalf("lock %d: not free", i)
			}
			s.rw[i].Unlock()
		}
		for i := range s.rw {
			s.rw[i].RLock()
		}
		for i := range s.rw {
			if s.rw[i].TryLock() {
				t.Fatalf("lock %d: a writer is in beside a reader", i)
			}
		}
		for i := range s.rw {
			s.rw[i].RUnlock()
			if misuses(s.rw[i].RUnlock) == nil {
				t.Fatalf("lock %d: released twice", i)
			}
		}
	}
}

func TestRWMutexWithoutRoomForOneMoreReaderRefuses(t *testing.T) {
	t.Parallel()
	if shmsync.RaceEnabled {
		t.Skip("the detector makes it last a minute")
	}
	const locks = 511*63 + 100
	type shelf struct{ rw [locks]shmsync.RWMutex }
	r, err := shm.Anonymous(shm.Size(64 * locks))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s, err := shm.At[shelf](r, r.Data())
	if err != nil {
		t.Fatal(err)
	}
	held := 0
	for i := range s.rw {
		if err = s.rw[i].RLockContext(context.Background()); err != nil {
			break
		}
		held++
	}
	if !errors.Is(err, shm.ErrNoSpace) || held < 10_000 {
		t.Fatalf("%v after %d locks", err, held)
	}
	full := &s.rw[held]
	func() {
		defer func() {
			if err, _ := recover().(error); !errors.Is(err, shm.ErrNoSpace) {
				t.Errorf("RLock: %v", err)
			}
		}()
		full.RLock()
	}()
	if full.TryRLock() || full.Readers() != 0 {
		t.Error("granted")
	}
	if !full.TryLock() {
		t.Error("refused to a writer, who needs no room")
	} else {
		full.Unlock()
	}
	for i := range held {
		s.rw[i].RUnlock()
	}
	full.RLock()
	full.RUnlock()
}

func TestRWMutexIsForgottenWithItsAddress(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there the region stays visible until no handle is left")
	}
	base := func() uintptr {
		r, err := shm.Anonymous(shm.Limit(1 << 20))
		if err != nil {
			t.Fatal(err)
		}
		l := libraryIn(r)
		for range 2 {
			l.rw.RLock()
			l.rw.RUnlock()
		}
		at := uintptr(unsafe.Pointer(l))
		if shmsync.Remembered(at, 64) != 1 {
			t.Error("not remembered")
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		return at
	}()
	until(t, "the addresses are given back", func() bool {
		runtime.GC()
		return shmsync.Remembered(base, 64) == 0
	})
}

func ExampleRWMutex() {
	var prices struct {
		mu    shmsync.RWMutex
		apple int
	}
	prices.mu.Lock()
	prices.apple = 3
	prices.mu.Unlock()

	prices.mu.RLock()
	fmt.Println(prices.apple)
	prices.mu.RUnlock()
	// Output: 3
}
