package sync

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	"github.com/shmkit/shmkit/sync/internal/futex"
)

// These tests put a lock's word into the states that other processes bring about, and look at what a
// waiter makes of them. Outside of regions nobody is ever taken for dead, so a lock there can be held
// by a stranger.
const stranger = 0x5eed_0000_0000_1230

// eventually waits for a state.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("waited 10 s for: %s", what)
		}
		time.Sleep(100 * time.Microsecond)
	}
}

func (m *Mutex) has(flag uint64) bool { return m.word.Load()&flag != 0 }

// A taker is a goroutine that locks a mutex, and reports what its word is then.
type taker struct {
	m     *Mutex
	words chan uint64
	errs  chan error
}

// take starts a taker. What it holds, the test unlocks.
func take(ctx context.Context, m *Mutex) *taker {
	k := &taker{m, make(chan uint64, 1), make(chan error, 1)}
	go func() {
		if err := m.LockContext(ctx); err != nil {
			k.errs <- err
			return
		}
		k.words <- m.word.Load()
	}()
	return k
}

// got returns the word with which the taker got the lock.
func (k *taker) got(t *testing.T) uint64 {
	t.Helper()
	select {
	case w := <-k.words:
		return w
	case err := <-k.errs:
		t.Fatal(err)
	case <-time.After(10 * time.Second):
		t.Fatalf("not served in 10 s; the word is %x", k.m.word.Load())
	}
	return 0
}

// refused returns the error with which the taker did not get the lock.
func (k *taker) refused(t *testing.T) error {
	t.Helper()
	select {
	case err := <-k.errs:
		return err
	case <-k.words:
		t.Fatal("granted")
	case <-time.After(10 * time.Second):
		t.Fatal("not refused in 10 s")
	}
	return nil
}

// asleepBehindStranger returns a lock that a stranger holds, and a goroutine that has slept on it for
// long enough to say that it starves.
func asleepBehindStranger(t *testing.T, ctx context.Context) (*Mutex, *taker) {
	t.Helper()
	m := new(Mutex)
	m.word.Store(stranger)
	k := take(ctx, m)
	eventually(t, "the waiter has slept", func() bool { return m.has(flagStarving) })
	return m, k
}

// parked waits until n goroutines are in the lock's gate beside its leader.
func parked(t *testing.T, m *Mutex, n int) {
	t.Helper()
	g := enter(m)
	defer leave(m, g)
	eventually(t, fmt.Sprint(n, " parked"), func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		i := 0
		for w := g.head; w != nil; w = w.next {
			i++
		}
		return i == n
	})
}

func wantWord(t *testing.T, what string, got, want uint64) {
	t.Helper()
	if got != want {
		t.Errorf("%s: the word is %x, want %x (ours is the token %x)", what, got, want, token)
	}
}

// A release wakes one sleeper, whoever that is, and forgets that there are more.

func TestWaiterThatSleptRemembersTheOtherSleepersWhenItTakesAFreeLock(t *testing.T) {
	m, k := asleepBehindStranger(t, context.Background())
	m.word.Store(0)
	wantWord(t, "taken", k.got(t), token|flagWaiters)
}

func TestWaiterThatSleptTakesAReservedLockAndRemembersTheOtherSleepers(t *testing.T) {
	m, k := asleepBehindStranger(t, context.Background())
	m.word.Store(flagStarving)
	wantWord(t, "taken", k.got(t), token|flagWaiters)
}

func TestWaiterThatSleptRemembersTheOtherSleepersWhenItsOwnProcessWasFaster(t *testing.T) {
	m, k := asleepBehindStranger(t, context.Background())
	m.word.Store(token) // released, and taken by a goroutine of ours that has not slept
	eventually(t, "the waiter parks", func() bool { return m.has(flagLocal) })
	wantWord(t, "parked", m.word.Load(), token|flagLocal|flagWaiters)
	m.Unlock()
	wantWord(t, "passed on", k.got(t), token|flagWaiters)
}

func TestWaiterThatSleptAndIsCancelledPassesTheWakeOn(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	m, k := asleepBehindStranger(t, ctx)
	m.word.Store(stranger) // released, which woke the waiter, and taken by one who knows of no sleepers
	cancel()
	k.refused(t)
	wantWord(t, "after the refusal", m.word.Load(), stranger|flagWaiters)
}

func TestWaiterThatIsCancelledStarvesNoMore(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	m, k := asleepBehindStranger(t, ctx)
	cancel()
	k.refused(t)
	wantWord(t, "after the refusal", m.word.Load(), stranger|flagWaiters)
}

func TestWaiterThatGivesUpAReservedLockGivesTheReservationBack(t *testing.T) {
	m := new(Mutex)
	a := attempt{m: m, gate: enter(m), slept: true}
	defer leave(m, a.gate)
	m.word.Store(flagStarving | flagWaiters | flagInconsistent)
	a.gate.leader = true
	a.giveUp(errTimeout)
	wantWord(t, "given up", m.word.Load(), flagInconsistent)
}

func TestWaiterThatTakesOverFromTheDeadKnowsOfSleepersAndSaysInconsistent(t *testing.T) {
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	m, err := shm.At[Mutex](r, r.Data())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []uint64{0, flagWaiters, flagLocal, flagLocal | flagInconsistent} {
		m.word.Store(stranger | f) // stands in no slot: dead
		err := m.Recover(context.Background(), func(shm.Death) error {
			wantWord(t, "taken over", m.word.Load(), token|flagInconsistent|flagWaiters)
			return nil
		})
		if err != nil || m.word.Load() != 0 {
			t.Errorf("flags %x: %v, and the word is %x", f, err, m.word.Load())
		}
	}
}

func TestNewcomerKeepsTheMarkOfSleepersOfAFreeLock(t *testing.T) {
	m := new(Mutex)
	m.word.Store(flagWaiters)
	wantWord(t, "taken", take(context.Background(), m).got(t), token|flagWaiters)
}

// What is kept for a sleeper.

func TestNewcomerLeavesAReservedLockToTheSleepersAtFirst(t *testing.T) {
	m := new(Mutex)
	m.word.Store(flagStarving)
	// One who has slept knows that there may be sleepers; one who took it at once would not.
	wantWord(t, "taken", take(context.Background(), m).got(t), token|flagWaiters)
}

func TestReservedLockIsGrantedToThoseWhoDoNotWait(t *testing.T) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	for name, lock := range map[string]func(m *Mutex) bool{
		"try":           (*Mutex).TryLock,
		"timeout 0":     func(m *Mutex) bool { return m.LockTimeout(0) },
		"context ended": func(m *Mutex) bool { return m.LockContext(ended) == nil },
	} {
		m := new(Mutex)
		m.word.Store(flagStarving)
		if !lock(m) {
			t.Errorf("%s: a lock that nobody holds is refused", name)
			continue
		}
		wantWord(t, name, m.word.Load(), token|flagWaiters) // the sleeper is not forgotten
		m.Unlock()
		m.word.Store(flagStarving | flagInconsistent)
		if name == "try" && lock(m) {
			t.Error("an inconsistent lock was granted to a try")
		}
		if err := m.LockContext(ended); !errors.Is(err, ErrInconsistent) {
			t.Errorf("inconsistent and reserved: %v", err)
		}
	}
}

func TestFreeLockIsNeverRefusedWhileWaitersMarkIt(t *testing.T) {
	m := new(Mutex)
	stop := make(chan struct{})
	marking := make(chan struct{})
	go func() {
		defer close(marking)
		for {
			select {
			case <-stop:
				return
			default:
				m.word.Or(flagWaiters)
				m.word.And(^uint64(flagWaiters))
			}
		}
	}()
	tries, refused := 0, 0
	for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); tries++ {
		m.word.Store(flagStarving)
		if !m.LockTimeout(0) {
			refused++
		}
	}
	close(stop)
	<-marking
	if refused > 0 {
		t.Errorf("refused %d of %d times although nobody held it", refused, tries)
	}
}

func TestWaiterSeesThatAFreeLockIsInconsistent(t *testing.T) {
	for _, word := range []uint64{flagInconsistent, flagInconsistent | flagStarving} {
		m, k := asleepBehindStranger(t, context.Background())
		m.word.Store(word)
		if err := k.refused(t); !errors.Is(err, ErrInconsistent) {
			t.Error(err)
		}
		wantWord(t, "still inconsistent and not held", m.word.Load(), flagInconsistent)
	}
}

// The gate.

func TestGateIsFoundByAHolderOfTheSameProcess(t *testing.T) {
	m := new(Mutex)
	m.Lock()
	k := take(context.Background(), m)
	eventually(t, "the holder is told of the waiter", func() bool { return m.has(flagLocal) })
	wantWord(t, "held", m.word.Load(), token|flagLocal)
	m.Unlock()
	wantWord(t, "passed on", k.got(t), token)
}

func TestGateServesThoseWhoParkedWhileTheirLeaderSlept(t *testing.T) {
	m, first := asleepBehindStranger(t, context.Background())
	second := take(context.Background(), m)
	parked(t, m, 1)
	m.word.Store(0)
	wantWord(t, "first", first.got(t), token|flagLocal|flagWaiters)
	m.Unlock()
	wantWord(t, "second", second.got(t), token|flagWaiters)
	m.Unlock()
	wantWord(t, "at the end", m.word.Load(), 0)
}

func TestGateFindsANewLeaderWhenTheLockGoesToAnotherProcess(t *testing.T) {
	m, first := asleepBehindStranger(t, context.Background())
	second := take(context.Background(), m)
	parked(t, m, 1)
	m.word.Store(0)
	first.got(t)
	m.word.Or(flagStarving) // another process wants it
	m.Unlock()              // to that one, but the second has to compete as well
	second.got(t)
}

func TestGateFindsANewLeaderAfterOneThatParkedInFront(t *testing.T) {
	m, first := asleepBehindStranger(t, context.Background())
	m.word.Store(token)
	eventually(t, "the waiter parks", func() bool { return m.has(flagLocal) })
	m.word.Or(flagStarving)
	m.Unlock()
	first.got(t)
}

func TestGateServesALeaderThatParksBeforeThoseBehindIt(t *testing.T) {
	m, first := asleepBehindStranger(t, context.Background())
	second := take(context.Background(), m)
	parked(t, m, 1)
	m.word.Store(token)
	parked(t, m, 2)
	m.Unlock()
	first.got(t)
	m.Unlock()
	second.got(t)
}

func TestGateOfACancelledLeaderGoesOnWithTheNext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	m, first := asleepBehindStranger(t, ctx)
	second := take(context.Background(), m)
	parked(t, m, 1)
	cancel()
	first.refused(t)
	parked(t, m, 0)
	m.word.Store(0)
	second.got(t)
}

func TestUnlockPassesTheLockToOneWhoWaitedLongOrWhileOthersSleepUnlessTheyStarve(t *testing.T) {
	// However long this goroutine is held up, one that comes in an hour has not waited long.
	now, long := func() time.Time { return time.Now().Add(time.Hour) }, func() time.Time { return time.Now().Add(-starveAfter) }
	for _, c := range []struct {
		name      string
		flags     uint64
		since     func() time.Time
		passed    bool
		flagsThen uint64
	}{
		{"waited long", flagLocal, long, true, 0},
		{"others sleep", flagLocal | flagWaiters | flagInconsistent, now, true, flagWaiters | flagInconsistent},
		{"just came", flagLocal | flagInconsistent, now, false, flagInconsistent},
		{"others starve", flagLocal | flagStarving, long, false, flagStarving},
		{"others starve and sleep", flagLocal | flagStarving | flagWaiters | flagInconsistent, long, false, flagStarving | flagInconsistent},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := new(Mutex)
			g := enter(m)
			defer leave(m, g)
			w := g.push(nil, c.since(), false)
			m.word.Store(token | c.flags)
			m.Unlock()
			then, message := c.flagsThen, leadNow
			if c.passed {
				then, message = then|token, lockPassed
			}
			wantWord(t, "after the release", m.word.Load(), then)
			select {
			case told := <-w.told:
				if told != message || g.leader != (told == leadNow) {
					t.Errorf("told %d, want %d; leader %v", told, message, g.leader)
				}
			default:
				t.Error("told nothing")
			}
		})
	}
}

func TestUnlockLeavesAGateThatHasALeaderAlone(t *testing.T) {
	m := new(Mutex)
	g := enter(m)
	defer leave(m, g)
	g.leader = true
	w := g.push(nil, time.Now(), false)
	m.word.Store(token | flagLocal | flagStarving)
	m.Unlock()
	wantWord(t, "after the release", m.word.Load(), flagStarving)
	if len(w.told) != 0 || g.head != w {
		t.Error("a second leader")
	}
}

// Two goroutines of one process unlock at once, one of them by mistake.
func TestUnlockThatComesTooLateLeavesTheNextHolderAlone(t *testing.T) {
	for _, waiting := range []bool{false, true} {
		m := new(Mutex)
		g := enter(m)
		var w *waiter
		if waiting {
			w = g.push(nil, time.Now(), false)
		}
		m.word.Store(stranger | flagWaiters)
		if m.unlockLocal() {
			t.Error("it says that it is done")
		}
		wantWord(t, "another process' lock", m.word.Load(), stranger|flagWaiters)
		if waiting && len(w.told) != 0 {
			t.Error("a waiter was told something")
		}
		leave(m, g)
	}
}

func TestGatesVanishWhenNobodyWaits(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	m, first := asleepBehindStranger(t, ctx)
	second := take(ctx, m)
	third := take(context.Background(), m)
	parked(t, m, 2)
	cancel()
	first.refused(t)
	second.refused(t)
	m.word.Store(0)
	third.got(t)
	m.Unlock()
	eventually(t, "no gate", func() bool { return !m.HasWaiter() })
}

// A gate is found by the address of its lock, so a lock that nothing else keeps off the stack must not
// move with it.
func TestGateStaysWithALocalVariableWhenTheStackGrows(t *testing.T) {
	found := make(chan bool)
	go func() { // with a small stack
		var m Mutex
		g := enter(&m)
		grow(1000)
		again := enter(&m)
		leave(&m, again)
		leave(&m, g)
		found <- again == g
	}()
	if !<-found {
		t.Error("another gate")
	}
}

//go:noinline
func grow(depth int) byte {
	var frame [1000]byte
	if depth > 0 {
		frame[depth%len(frame)] = grow(depth - 1)
	}
	return frame[depth/2%len(frame)]
}

// The ends of waits.

type countingContext struct {
	context.Context
	asked atomic.Int64
	limit int64
	done  chan struct{}
}

func (c *countingContext) Deadline() (time.Time, bool) { return time.Now().Add(-time.Second), true }
func (c *countingContext) Done() <-chan struct{}       { return c.done }
func (c *countingContext) Err() error {
	switch n := c.asked.Add(1); {
	case n < c.limit:
		return nil
	case n == c.limit:
		close(c.done)
	}
	return context.DeadlineExceeded
}

// A context ends when it says so. Its deadline may be over before, by a clock that was set.
func TestWaiterDoesNotSpinWhenADeadlineIsOverBeforeItsContext(t *testing.T) {
	m := new(Mutex)
	m.word.Store(stranger)
	ctx := &countingContext{Context: context.Background(), limit: 16, done: make(chan struct{})}
	begin := time.Now()
	if err := m.LockContext(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < 50*time.Millisecond {
		t.Errorf("looked %d times in %v: it spins", ctx.limit, took)
	}
}

func TestWaiterReturnsTheContextsErrorAndItsCause(t *testing.T) {
	m := new(Mutex)
	m.word.Store(stranger)
	cause := errors.New("shutting down")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(cause)
	if err := m.LockContext(ctx); !errors.Is(err, context.Canceled) || !errors.Is(err, cause) {
		t.Errorf("%v: want an error that is the context's, and its cause", err)
	}
}

func TestLockInAClosedRegionRefusesThoseWhoComeToWait(t *testing.T) {
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	m, err := shm.At[Mutex](r, r.Data())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	m.word.Store(stranger) // private memory now
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := m.LockContext(ctx); !errors.Is(err, shm.ErrClosed) {
		t.Errorf("wait in a closed region: %v", err)
	}
}

func TestLockInAClosedRegionRefusesThoseWhoArePartOfItsHoldersProcess(t *testing.T) {
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	m, err := shm.At[Mutex](r, r.Data())
	if err != nil {
		t.Fatal(err)
	}
	m.Lock()
	k := take(context.Background(), m)
	eventually(t, "one is parked", func() bool { return m.has(flagLocal) })
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := k.refused(t); !errors.Is(err, shm.ErrClosed) {
		t.Error(err)
	}
}

// A lock is passed on, and its region closed before the one it was passed to runs. That one is refused, so
// nobody holds the lock.
func TestLockPassedToOneWhoseRegionIsClosedMeanwhileIsFree(t *testing.T) {
	dir, refused := t.TempDir(), 0
	for n := range 20 {
		path := filepath.Join(dir, fmt.Sprint(n))
		r, err := shm.CreateFile(path, shm.Limit(1<<20))
		if err != nil {
			t.Fatal(err)
		}
		m, err := shm.At[Mutex](r, r.Data())
		if err != nil {
			t.Fatal(err)
		}
		m.Lock()
		k := take(context.Background(), m)
		eventually(t, "one is parked", func() bool { return m.has(flagLocal) })
		time.Sleep(2 * starveAfter) // then it gets the lock passed on
		m.Unlock()
		r.Close()
		select {
		case <-k.words:
			continue // it was in time
		case err := <-k.errs:
			if !errors.Is(err, shm.ErrClosed) {
				t.Fatal(err)
			}
		}
		refused++
		if r, err = shm.OpenFile(path); err != nil {
			t.Fatal(err)
		}
		if m, err = shm.At[Mutex](r, r.Data()); err != nil {
			t.Fatal(err)
		}
		if o, held := m.Owner(); held {
			t.Errorf("nobody has it, and it is held: %v", o)
		}
		r.Close()
	}
	if refused == 0 {
		t.Skip("it was in time, each time")
	}
}

// Whatever bits a word has, a wait ends with the lock, with an error, or with its context.
func TestWordOfRandomBitsIsWaitedForOrTakenButNeverSpunOn(t *testing.T) {
	r, err := shm.Heap(shm.Size(1 << 16))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	inside, err := shm.At[Mutex](r, r.Data())
	if err != nil {
		t.Fatal(err)
	}
	for _, holder := range []uint64{0, stranger, 1 << 32, 1<<64 - 16, token} {
		for f := range uint64(flags + 1) {
			for _, m := range []*Mutex{inside, new(Mutex)} {
				m.word.Store(holder | f)
				ctx, cancel := context.WithTimeout(context.Background(), 8*time.Millisecond)
				err := m.LockContext(ctx)
				cancel()
				dead := m == inside && holder != token
				switch {
				case (holder == 0 || dead) && err == nil:
					if m.word.Load()&^flags != token {
						t.Errorf("%x: granted, and the word is %x", holder|f, m.word.Load())
					}
					m.Unlock()
				case (holder == 0 || dead) && errors.Is(err, ErrInconsistent):
					if m.word.Load()&^flags != 0 || !m.Inconsistent() {
						t.Errorf("%x: inconsistent, and the word is %x", holder|f, m.word.Load())
					}
				case holder != 0 && !dead && errors.Is(err, context.DeadlineExceeded):
				default:
					t.Errorf("%x, in a region %v: %v", holder|f, m == inside, err)
				}
				if (holder == 0 && f&flagInconsistent == 0) != (err == nil) {
					t.Errorf("%x, in a region %v: %v", holder|f, m == inside, err)
				}
			}
		}
	}
}

// Deaths that no lock tells of.

type where struct{ Region *shm.Region }

// A house is what its processes share at the beginning of a region's data.
type house struct {
	mu   Mutex
	came atomic.Int64
}

var liveOn = proc.Define("live on", func(_ context.Context, w where) error {
	h, err := shm.At[house](w.Region, w.Region.Data())
	if err != nil {
		return err
	}
	h.mu.TryLock()
	h.came.Add(1)
	select {}
})

func TestWaiterFindsTheDeadThatHoldNothing(t *testing.T) {
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	h, err := shm.At[house](r, r.Data())
	if err != nil {
		t.Fatal(err)
	}
	var ps [2]*proc.Process // the first holds the lock and lives on
	for i := range ps {
		if ps[i], err = liveOn.Start(context.Background(), where{r}); err != nil {
			t.Fatal(err)
		}
		defer func() {
			ps[i].Kill()
			<-ps[i].Done()
		}()
		eventually(t, "the child has come", func() bool { return h.came.Load() == int64(i+1) })
	}
	ps[1].Kill()
	<-ps[1].Done()
	eventually(t, "the dead is found", func() bool {
		if h.mu.LockTimeout(5 * time.Millisecond) {
			t.Fatal("granted")
		}
		return r.Deaths().Load() == 1
	})
}

func TestFutexWaitEndsWhenItIsCancelledBefore(t *testing.T) {
	m := new(Mutex)
	c := new(futex.Cancel)
	c.Cancel()
	if futex.Wait(m.half(), 0, time.Hour, c) == futex.Expired {
		t.Error("expired")
	}
}
