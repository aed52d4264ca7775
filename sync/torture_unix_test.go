//go:build unix

package sync_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	stdsync "sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

var torture = flag.Duration("torture", 0, "go on killing processes that use a mutex for so long")

const (
	rackSeats = 4 // processes at a time
	rackHands = 3 // goroutines of each that use the locks
	rackLocks = 3
)

// A rack is what the processes of the torture share.
type rack struct {
	locks      [rackLocks]guarded
	seats      [rackSeats]rackSeat
	stop       atomic.Int64
	attached   atomic.Int64 // processes that have come to their function
	announced  atomic.Int64 // states that were handed to somebody who is told to repair them
	torn       atomic.Int64 // of these, where a and b differed
	killed     atomic.Int64 // of these, left by one that died
	spoilt     atomic.Int64 // panics in Do
	complaints atomic.Int64
}

// guarded is a lock and data that shows whether it does its work. The data is dirty if somebody is
// inside, or a and b differ: nobody may see that but who is told.
type guarded struct {
	mu     shmsync.Mutex
	_      [56]byte
	inside atomic.Int64 // who is between taking and releasing the lock: an id, 0 for nobody, or someoneGone
	a      int64
	_      [48]byte
	b      int64
	_      [56]byte
	taken  atomic.Int64
	_      [56]byte
}

// A rackSeat is a place for a process. Each process in it has a generation of its own.
type rackSeat struct {
	doomed atomic.Int64 // the last generation that was told to die, or is about to be killed
	order  atomic.Int64 // how a generation is to die with a lock in its hands: generation<<2 | one of these
	_      [48]byte
}

const (
	diePanicking = 1
	dieExiting   = 2

	exitCode    = 3
	someoneGone = -1 // left the data dirty, and lives
)

func openRack(r *shm.Region) *rack {
	k, err := shm.At[rack](r, r.Data())
	if err != nil {
		panic(err)
	}
	return k
}

// dead reports whether those are dead, or about to be, who were the last inside.
func (k *rack) dead(id int64) bool {
	return id == someoneGone || k.seats[id>>8&0xff].doomed.Load() >= id>>16
}

func (k *rack) acquisitions() (n int64) {
	for i := range k.locks {
		n += k.locks[i].taken.Load()
	}
	return n
}

// A hand is a goroutine of the torture.
type hand struct {
	*rack
	region     *shm.Region
	seat       *rackSeat
	generation int64
	id         int64
}

func newHand(o order, n int) *hand {
	k := openRack(o.Region)
	return &hand{k, o.Region, &k.seats[o.Number], int64(o.Rounds), int64(o.Rounds)<<16 | int64(o.Number)<<8 | int64(n)}
}

func (h *hand) complain(format string, args ...any) {
	h.complaints.Add(1)
	fmt.Fprintf(os.Stderr, "complaint of %x: %s\n", h.id, fmt.Sprintf(format, args...))
}

// dawdle looks at the lock for a random while, and says whether h is alone inside.
func (h *hand) dawdle(l *guarded) {
	for i := range 1 << rand.IntN(15) {
		if i%16 == 0 && l.inside.Load() != h.id {
			h.complain("%x is inside as well", l.inside.Load())
			return
		}
	}
}

// use changes the data under the lock, and may die in the middle.
func (h *hand) use(l *guarded) {
	h.begin(l)
	if o := h.seat.order.Load(); o>>2 == h.generation && h.seat.order.CompareAndSwap(o, 0) {
		if o&3 == dieExiting {
			os.Exit(exitCode)
		}
		panic("told to")
	}
	l.b++
	if !l.inside.CompareAndSwap(h.id, 0) {
		h.complain("%x was inside as well", l.inside.Load())
	}
	l.taken.Add(1)
}

// begin is the first half of use.
func (h *hand) begin(l *guarded) {
	if in := l.inside.Swap(h.id); in != 0 {
		h.complain("%x had been inside, and nobody said so", in)
	}
	if l.a != l.b {
		h.complain("torn, %d and %d, and nobody said so", l.a, l.b)
	}
	l.a++
	h.dawdle(l)
}

var (
	errNotRepaired = errors.New("not repaired this time")
	errSpoilt      = errors.New("spoilt")
)

// repair makes the data whole, or says that it cannot, or dies in the attempt.
func (h *hand) repair(l *guarded) error {
	in := l.inside.Swap(h.id)
	if in != 0 && !h.dead(in) {
		h.complain("%x was robbed: it lives", in)
	}
	h.announced.Add(1)
	if l.a != l.b {
		h.torn.Add(1)
		if in != someoneGone {
			h.killed.Add(1)
		}
	}
	h.dawdle(l)
	if rand.IntN(8) == 0 {
		l.inside.CompareAndSwap(h.id, someoneGone)
		return errNotRepaired
	}
	l.b = l.a
	if !l.inside.CompareAndSwap(h.id, 0) {
		h.complain("%x was inside during a repair", l.inside.Load())
	}
	return nil
}

// handler is the repair of those that have no error result.
func (h *hand) handler(d shm.Death) error {
	for i := range h.locks {
		l := &h.locks[i]
		if at, err := shm.At[guarded](h.region, d.Lock); err == nil && at == l {
			return h.repair(l)
		}
	}
	h.complain("no lock is at %d", d.Lock)
	return nil
}

// told runs lock, and reports whether it came back without a panic that says inconsistent.
func (h *hand) told(lock func()) (ok bool) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case *shmsync.OwnerDiedError:
			if !errors.Is(r, errNotRepaired) {
				h.complain("%v", r)
			}
		default:
			panic(r)
		}
	}()
	lock()
	return true
}

// enter takes a lock in one of the ways there are, uses it, and releases it.
func (h *hand) enter(l *guarded) {
	limit := time.Duration(rand.IntN(2000)) * time.Microsecond
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	repair := func(shm.Death) error { return h.repair(l) }
	held := false
	var err error
	switch rand.IntN(8) {
	case 0:
		held = h.told(l.mu.Lock)
	case 1:
		h.told(func() { held = l.mu.LockTimeout(limit) })
	case 2:
		held = l.mu.TryLock()
	case 3:
		err = l.mu.LockContext(ctx)
		held = err == nil
	case 4:
		err = l.mu.LockRepaired(ctx, repair)
		held = err == nil
	case 5:
		err = l.mu.Do(ctx, func() error { h.use(l); return errNotRepaired })
	case 6:
		if err = h.spoil(ctx, l); errors.Is(err, errSpoilt) {
			err = l.mu.LockContext(context.Background())
			held = err == nil // somebody was faster
		}
	case 7:
		err = l.mu.Recover(ctx, repair)
	}
	if held {
		h.use(l)
		l.mu.Unlock()
	}
	switch {
	case errors.Is(err, shmsync.ErrInconsistent):
		for errors.Is(err, shmsync.ErrInconsistent) || errors.Is(err, errNotRepaired) {
			err = l.mu.Recover(context.Background(), repair)
		}
		if err != nil && !errors.Is(err, shmsync.ErrNotInconsistent) {
			h.complain("Recover: %v", err)
		}
	case err != nil && !errors.Is(err, errNotRepaired) && !errors.Is(err, shmsync.ErrNotInconsistent) && !errors.Is(err, context.DeadlineExceeded):
		h.complain("%v", err)
	}
}

// spoil panics in the middle of a use, now and then.
func (h *hand) spoil(ctx context.Context, l *guarded) (err error) {
	defer func() {
		if r := recover(); r == errSpoilt {
			err = errSpoilt
		} else if r != nil {
			panic(r)
		}
	}()
	return l.mu.Do(ctx, func() error {
		if rand.IntN(1000) != 0 {
			h.use(l)
			return nil
		}
		h.begin(l)
		h.spoilt.Add(1)
		l.inside.Store(someoneGone)
		panic(errSpoilt)
	})
}

var useRack = proc.Define("use the rack", func(_ context.Context, o order) error {
	shm.OnOwnerDied(newHand(o, 0).handler)
	openRack(o.Region).attached.Add(1)
	var wg stdsync.WaitGroup
	for n := range rackHands {
		wg.Go(func() {
			for h := newHand(o, n+1); h.stop.Load() == 0; {
				h.enter(&h.locks[rand.IntN(rackLocks)])
			}
		})
	}
	wg.Wait()
	if n := shmsync.Gates(); n != 0 {
		return fmt.Errorf("%d gates are left", n)
	}
	return nil
})

// A tormentor starts the processes of the torture and ends them.
type tormentor struct {
	t       *testing.T
	region  *shm.Region
	rack    *rack
	stderr  *os.File
	seats   [rackSeats]*proc.Process
	started int64 // processes so far: the generation of the last one
	latest  [rackSeats]int64
	kills   int
	suicide int
}

// fill starts a process for a seat.
func (m *tormentor) fill(i int) {
	m.t.Helper()
	m.started++
	m.latest[i] = m.started
	p, err := useRack.Start(context.Background(), order{m.region, i, int(m.started)}, proc.Stderr(m.stderr))
	if err != nil {
		m.t.Fatal(err)
	}
	m.seats[i] = p
}

// ended waits for the end of a seat's process, which is to have that exit code.
func (m *tormentor) ended(i, want int) {
	m.t.Helper()
	p := m.seats[i]
	select {
	case <-p.Done():
	case <-time.After(time.Minute):
		m.t.Errorf("process %d has not ended in a minute, want code %d", p.PID(), want)
		p.Kill()
		<-p.Done()
	}
	if code, _ := p.ExitCode(); code != want {
		m.t.Errorf("process %d ended with code %d, want %d", p.PID(), code, want)
	}
}

// kill kills the process in a seat.
func (m *tormentor) kill(i int) {
	m.t.Helper()
	m.rack.seats[i].doomed.Store(m.latest[i])
	m.seats[i].Kill()
	m.ended(i, -9)
	m.kills++
}

// tell makes the process in a seat end itself with a lock in its hands.
func (m *tormentor) tell(i, how, code int) {
	m.t.Helper()
	m.rack.seats[i].doomed.Store(m.latest[i])
	m.rack.seats[i].order.Store(m.latest[i]<<2 | int64(how))
	m.ended(i, code)
	m.suicide++
}

func (m *tormentor) signal(i int, s syscall.Signal) {
	m.t.Helper()
	if err := syscall.Kill(m.seats[i].PID(), s); err != nil {
		m.t.Error(err)
	}
}

// progress waits until every lock has been taken again.
func (m *tormentor) progress() {
	m.t.Helper()
	for i := range m.rack.locks {
		l := &m.rack.locks[i]
		before := l.taken.Load()
		until(m.t, fmt.Sprintf("progress with lock %d", i), func() bool { return l.taken.Load() > before })
	}
}

// wrong reports whether something is wrong, and logs what the processes wrote at first.
func (m *tormentor) wrong() bool {
	if n := m.rack.complaints.Load(); n != 0 {
		m.t.Errorf("%d complaints", n)
	}
	if !m.t.Failed() {
		return false
	}
	if b, err := os.ReadFile(m.stderr.Name()); err == nil {
		m.t.Logf("the processes wrote:\n%s", b[:min(len(b), 8000)])
	}
	return true
}

func TestMutexUnderTortureNeverLetsTwoInAndAnnouncesWhatIsTorn(t *testing.T) {
	kills, acquisitions := 300, int64(1_000_000)
	switch {
	case testing.Short():
		kills, acquisitions = 40, 50_000
	case shmsync.RaceEnabled:
		acquisitions = 100_000
	}
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	stderr, err := os.OpenFile(filepath.Join(t.TempDir(), "stderr"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stderr.Close() })
	m := &tormentor{t: t, region: r, rack: openRack(r), stderr: stderr}
	t.Cleanup(func() {
		for _, p := range m.seats {
			if p != nil {
				p.Kill()
				<-p.Done()
			}
		}
	})
	for i := range m.seats {
		m.fill(i)
	}
	k := m.rack
	nap := func() {
		limit := 4 * time.Millisecond
		if m.kills >= kills && *torture == 0 {
			limit = 200 * time.Millisecond // only acquisitions are lacking
		}
		time.Sleep(rand.N(limit))
	}
	for begin := time.Now(); m.kills < kills || k.acquisitions() < acquisitions || time.Since(begin) < *torture; {
		nap()
		i := rand.IntN(rackSeats)
		switch rand.IntN(12) {
		case 0:
			m.tell(i, diePanicking, 2)
		case 1:
			m.tell(i, dieExiting, exitCode)
		case 2:
			m.signal(i, syscall.SIGSTOP)
			nap()
			m.signal(i, syscall.SIGCONT)
			continue
		case 3:
			m.signal(i, syscall.SIGSTOP)
			nap()
			m.kill(i)
		default:
			m.kill(i)
		}
		if m.wrong() {
			return
		}
		m.fill(i)
		if m.started%64 == 0 {
			m.progress()
			stderr.Truncate(0) // the panics' traces
		}
	}
	k.stop.Store(1)
	for i := range m.seats {
		m.ended(i, 0)
	}
	if m.wrong() {
		return
	}
	last := &hand{rack: k, id: -2}
	for i := range k.locks {
		l := &k.locks[i]
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		err := errNotRepaired
		for errors.Is(err, errNotRepaired) {
			err = l.mu.LockRepaired(ctx, func(shm.Death) error { return last.repair(l) })
		}
		if err != nil {
			t.Fatalf("lock %d at the end: %v", i, err)
		}
		if in := l.inside.Load(); in != 0 || l.a != l.b {
			t.Errorf("lock %d at the end: %x inside, a = %d, b = %d", i, in, l.a, l.b)
		}
		l.mu.Unlock()
		if !l.mu.TryLockIdle() {
			t.Errorf("lock %d at the end: it still knows of waiters", i)
		}
		l.mu.Unlock()
	}
	m.wrong()
	if n, least := k.torn.Load(), int64(m.suicide)+k.spoilt.Load(); n < least {
		t.Errorf("%d announced as torn, where %d were torn for certain", n, least)
	}
	// Every process that is gone has been found dead, and so given its slot back. There are 256.
	until(t, "all dead are found", func() bool {
		r.Scan()
		return int64(r.Deaths().Load()) >= k.attached.Load()
	})
	if n := int64(r.Deaths().Load()); n > m.started {
		t.Errorf("%d deaths of %d processes", n, m.started)
	}
	t.Logf("%d kills, %d ends with a lock held, %d panics in Do; %d acquisitions; %d states were announced, %d of them torn, %d by the dead",
		m.kills, m.suicide, k.spoilt.Load(), k.acquisitions(), k.announced.Load(), k.torn.Load(), k.killed.Load())
}
