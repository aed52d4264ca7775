//go:build unix

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

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

const (
	shopSeats   = 4 // processes at a time
	shopHands   = 3 // goroutines of each
	shopPermits = 3
	shopOnces   = 512
)

// A workshop has one of each primitive, and what shows whether it does its work.
type workshop struct {
	rw    shmsync.RWMutex
	pages pair // guarded by rw

	mu    shmsync.Mutex
	cond  shmsync.Cond
	full  shmsync.Cond
	store struct{ items, put, taken int64 } // guarded by mu

	rec   shmsync.RecursiveMutex
	drawn pair // guarded by rec

	permits shmsync.Semaphore
	spare   shmsync.CountingSemaphore
	door    shmsync.Event
	barrier shmsync.Barrier
	tasks   shmsync.WaitGroup
	onces   [shopOnces]struct {
		once     shmsync.Once
		inside   atomic.Int64 // id of who runs
		finished atomic.Int64
	}

	seats      [shopSeats]shopSeat
	stop       atomic.Int64
	complaints atomic.Int64
	did        [workshopTrades]atomic.Int64
	torn       atomic.Int64
	passes     atomic.Int64
}

// A pair is half changed while a and b differ.
type pair struct {
	inside atomic.Int64 // id of who writes
	a, b   int64
}

// A shopSeat is a place for a process.
type shopSeat struct {
	sits   atomic.Int64 // the generation of the process that is there
	doomed atomic.Int64 // the last generation that is about to be killed
	held   atomic.Int64 // permits
	_      [40]byte
}

func workshopIn(r *shm.Region) *workshop {
	w, err := shm.At[workshop](r, r.Data())
	if err != nil {
		panic(err)
	}
	return w
}

// A fellow is a goroutine at work there.
type fellow struct {
	*workshop
	seat       *shopSeat
	generation int64
	id         int64
	owner      shmsync.OwnerID
}

func newFellow(o order, n int) *fellow {
	w := workshopIn(o.Region)
	return &fellow{w, &w.seats[o.Number], int64(o.Rounds), int64(o.Rounds)<<16 | int64(o.Number)<<8 | int64(n), shmsync.NewOwner()}
}

func (f *fellow) complain(format string, args ...any) {
	f.complaints.Add(1)
	fmt.Fprintf(os.Stderr, "complaint of %x: %s\n", f.id, fmt.Sprintf(format, args...))
}

// gone reports whether one is dead, or about to be.
func (w *workshop) gone(id int64) bool { return w.seats[id>>8&0xff].doomed.Load() >= id>>16 }

// dawdle takes a random while.
func (f *fellow) dawdle() {
	for range rand.IntN(2000) {
		f.stop.Load()
	}
}

// change changes a pair, in two steps.
func (f *fellow) change(p *pair, what string) {
	if in := p.inside.Swap(f.id); in != 0 {
		f.complain("%s: %x is inside as well", what, in)
	}
	if p.a != p.b {
		f.complain("%s: torn, %d and %d, and nobody said so", what, p.a, p.b)
	}
	p.a++
	for range rand.IntN(16) {
		f.dawdle()
	}
	p.b++
	p.inside.CompareAndSwap(f.id, 0)
}

// mend is the repair of a pair.
func (f *fellow) mend(p *pair, what string) func(shm.Death) error {
	return func(shm.Death) error {
		if in := p.inside.Load(); in != 0 && !f.gone(in) {
			f.complain("%s: %x was robbed: it lives", what, in)
		}
		if p.a != p.b {
			f.torn.Add(1)
		}
		p.a = p.b
		p.inside.Store(0)
		return nil
	}
}

// trades are what fellows do, with a limit on their waits.
var trades = [workshopTrades]struct {
	name string
	do   func(f *fellow, ctx context.Context) error
}{
	{"read", func(f *fellow, ctx context.Context) error {
		return f.rw.RDo(ctx, func() error {
			if a, b := f.pages.a, f.pages.b; a != b {
				f.complain("read: torn, %d and %d", a, b)
			}
			if in := f.pages.inside.Load(); in != 0 {
				f.complain("read: %x writes", in)
			}
			return nil
		})
	}},
	{"write", func(f *fellow, ctx context.Context) error {
		return f.rw.Do(ctx, func() error { f.change(&f.pages, "write"); return nil })
	}},
	{"put", func(f *fellow, ctx context.Context) error {
		if err := f.mu.LockContext(ctx); err != nil {
			return err
		}
		if ok, err := f.cond.WaitFor(ctx, &f.mu, func() bool { return f.store.items < 3 }); err != nil || !ok {
			return f.leave(err)
		}
		f.store.items++
		f.store.put++
		f.full.Signal()
		f.mu.Unlock()
		return nil
	}},
	{"take", func(f *fellow, ctx context.Context) error {
		if err := f.mu.LockContext(ctx); err != nil {
			return err
		}
		if ok, err := f.full.WaitFor(ctx, &f.mu, func() bool { return f.store.items > 0 }); err != nil || !ok {
			return f.leave(err)
		}
		f.store.items--
		f.store.taken++
		if rand.IntN(4) == 0 {
			f.cond.Broadcast()
		} else {
			f.cond.Signal()
		}
		f.mu.Unlock()
		return nil
	}},
	{"draw", func(f *fellow, ctx context.Context) error {
		return f.rec.Do(ctx, f.owner, func() error {
			f.rec.Lock(f.owner)
			f.change(&f.drawn, "draw")
			f.rec.Unlock(f.owner)
			return nil
		})
	}},
	{"permit", func(f *fellow, ctx context.Context) error {
		n := 1 + rand.IntN(2)
		if err := f.permits.Acquire(ctx, n); err != nil {
			return err
		}
		f.seat.held.Add(int64(n))
		all := int64(0)
		for i := range f.seats {
			s := &f.seats[i]
			if held := s.held.Load(); s.doomed.Load() < s.sits.Load() { // else it dies, and what it held comes back
				all += held
			}
		}
		if all > shopPermits {
			f.complain("%d permits are held, there are %d", all, shopPermits)
		}
		f.dawdle()
		f.seat.held.Add(int64(-n))
		f.permits.Release(n)
		return nil
	}},
	{"spare", func(f *fellow, ctx context.Context) error {
		if rand.IntN(2) == 0 {
			f.spare.Release(1)
			return nil
		}
		return f.spare.Acquire(ctx)
	}},
	{"door", func(f *fellow, ctx context.Context) error {
		switch rand.IntN(3) {
		case 0:
			f.door.Set()
		case 1:
			f.door.Clear()
		default:
			return f.door.Wait(ctx)
		}
		return nil
	}},
	{"barrier", func(f *fellow, _ context.Context) error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // others come sooner, or die
		defer cancel()
		_, err := f.barrier.Wait(ctx)
		switch {
		case err == nil:
			f.passes.Add(1)
		case errors.Is(err, shmsync.ErrBrokenBarrier):
			return f.barrier.Reset()
		default:
			f.complain("barrier: %v", err)
		}
		return nil
	}},
	{"task", func(f *fellow, ctx context.Context) error {
		if rand.IntN(3) == 0 {
			return f.tasks.Wait(ctx)
		}
		f.tasks.Add(1)
		f.dawdle()
		f.tasks.Done()
		return nil
	}},
	{"once", func(f *fellow, ctx context.Context) error {
		o := &f.onces[rand.IntN(shopOnces)]
		err := o.once.Do(ctx, func() error {
			if in := o.inside.Swap(f.id); in != 0 && !f.gone(in) {
				f.complain("once: %x is at it as well", in)
			}
			f.dawdle()
			o.finished.Add(1)
			o.inside.Store(0)
			return nil
		})
		if err == nil && o.finished.Load() == 0 {
			f.complain("once: done, and nobody has finished it")
		}
		return err
	}},
	{"any", func(f *fellow, ctx context.Context) error {
		i, err := shmsync.WaitAny(ctx, &f.mu, &f.door)
		if i == 0 && err == nil {
			f.mu.Unlock()
		}
		return err
	}},
}

const workshopTrades = 12

// leave gives the mutex back if a wait that did not come to anything has left it held.
func (f *fellow) leave(err error) error {
	if err == nil {
		f.mu.Unlock()
		return context.DeadlineExceeded
	}
	return err
}

func (f *fellow) work() {
	for f.stop.Load() == 0 {
		k := rand.IntN(len(trades))
		ctx, cancel := context.WithTimeout(context.Background(), rand.N(3*time.Millisecond))
		err := trades[k].do(f, ctx)
		cancel()
		switch {
		case err == nil:
			f.did[k].Add(1)
		case errors.Is(err, shmsync.ErrInconsistent):
			f.recover()
		case !errors.Is(err, context.DeadlineExceeded):
			f.complain("%s: %v", trades[k].name, err)
		}
	}
}

// recover repairs whatever is inconsistent.
func (f *fellow) recover() {
	for _, err := range []error{
		f.rw.Recover(context.Background(), f.mend(&f.pages, "rw")),
		f.rec.Recover(context.Background(), f.owner, f.mend(&f.drawn, "rec")),
		f.mu.Recover(context.Background(), func(shm.Death) error {
			s := &f.store
			if s.items < 0 || s.items > 3 {
				f.complain("store: %d items", s.items)
			}
			f.cond.Broadcast() // the dead may have been about to
			f.full.Broadcast()
			return nil
		}),
	} {
		if err != nil && !errors.Is(err, shmsync.ErrNotInconsistent) {
			f.complain("recover: %v", err)
		}
	}
}

var workThere = proc.Define("work in the workshop", func(_ context.Context, o order) error {
	shm.OnOwnerDied(func(d shm.Death) error { return fmt.Errorf("nobody locks here without looking: %v", d) })
	var wg stdsync.WaitGroup
	for n := range shopHands {
		wg.Go(newFellow(o, n+1).work)
	}
	wg.Wait()
	if n := shmsync.Gates(); n != 0 {
		return fmt.Errorf("%d gates are left", n)
	}
	return nil
})

// Processes that use every primitive at once are killed, a thousand of them: nobody waits for ever, what is half changed
// is announced, permits and tasks of the dead come back, and in the end everything is as it was in the beginning.
func TestAllPrimitivesUnderTorture(t *testing.T) {
	kills := 1000
	switch {
	case testing.Short():
		kills = 60
	case shmsync.RaceEnabled:
		kills = 200
	}
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	w := workshopIn(r)
	if err := errors.Join(w.permits.Init(shopPermits), w.spare.Init(5), w.barrier.Init(2), w.tasks.Init(shmsync.SubtractDead)); err != nil {
		t.Fatal(err)
	}
	stderr, err := os.OpenFile(filepath.Join(t.TempDir(), "stderr"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stderr.Close() })
	var (
		ps      [shopSeats]*proc.Process
		started int64
	)
	fill := func(i int) {
		started++
		w.seats[i].held.Store(0)
		w.seats[i].sits.Store(started)
		if ps[i], err = workThere.Start(context.Background(), order{r, i, int(started)}, proc.Stderr(stderr)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, p := range ps {
			if p != nil {
				p.Kill()
				<-p.Done()
			}
		}
	})
	wrong := func() bool {
		if n := w.complaints.Load(); n != 0 {
			t.Errorf("%d complaints", n)
		}
		if !t.Failed() {
			return false
		}
		if b, err := os.ReadFile(stderr.Name()); err == nil {
			t.Logf("the processes wrote:\n%s", b[:min(len(b), 8000)])
		}
		return true
	}
	for i := range ps {
		fill(i)
	}
	killed := 0
	for begin := time.Now(); killed < kills || time.Since(begin) < *torture; killed++ {
		time.Sleep(rand.N(8 * time.Millisecond))
		i := rand.IntN(shopSeats)
		w.seats[i].doomed.Store(w.seats[i].sits.Load())
		ps[i].Kill()
		<-ps[i].Done()
		if code, _ := ps[i].ExitCode(); code != -9 {
			t.Errorf("process %d ended with code %d", ps[i].PID(), code)
		}
		if wrong() {
			return
		}
		fill(i)
		if killed%128 == 127 { // everybody still gets somewhere with everything
			for k := range trades {
				before := w.did[k].Load()
				until(t, "progress with "+trades[k].name, func() bool { return w.did[k].Load() > before })
			}
		}
	}
	w.stop.Store(1)
	for i := range ps {
		hang := time.After(time.Minute)
		for ended := false; !ended; {
			select {
			case <-ps[i].Done():
				ended = true
			case <-time.After(10 * time.Millisecond):
				w.barrier.Abort() // nobody else may come
			case <-hang:
				t.Fatalf("process %d waits for ever", ps[i].PID())
			}
		}
		if code, _ := ps[i].ExitCode(); code != 0 {
			t.Errorf("process %d ended with code %d", ps[i].PID(), code)
		}
	}
	if wrong() {
		return
	}
	// Of those who were killed last nobody may have noticed the end: all others have gone.
	until(t, "all permits are back", func() bool { r.Scan(); return w.permits.Value() == shopPermits })
	if !w.permits.TryAcquire(shopPermits) {
		t.Error("not all permits are to be had")
	}
	if err := w.tasks.Wait(t.Context()); err != nil || w.tasks.Count() != 0 {
		t.Errorf("%d tasks are outstanding: %v", w.tasks.Count(), err)
	}
	last := &fellow{workshop: w, id: -1, owner: shmsync.NewOwner()}
	last.recover()
	if !w.rw.TryLock() || !w.mu.TryLock() || !w.rec.TryLock(last.owner) {
		t.Error("a lock is not free")
	}
	if s := w.store; s.items < 0 || s.items > 3 {
		t.Errorf("%d items, %d put, %d taken", s.items, s.put, s.taken)
	}
	for _, c := range []*shmsync.Cond{&w.cond, &w.full} {
		c.Broadcast()
		if n := c.Waiting(); n != 0 {
			t.Errorf("%d wait at a Cond where nobody lives", n)
		}
	}
	for i := range w.onces {
		if o := &w.onces[i]; o.once.Done() && (o.finished.Load() < 1 || o.finished.Load() > 1+int64(killed)) {
			t.Errorf("once %d was finished %d times", i, o.finished.Load())
		}
	}
	wrong()
	did := ""
	for k := range trades {
		did += fmt.Sprintf(", %s %d", trades[k].name, w.did[k].Load())
	}
	t.Logf("%d kills, %d torn states announced, %d passes of the barrier%s", killed, w.torn.Load(), w.passes.Load(), did)
}
