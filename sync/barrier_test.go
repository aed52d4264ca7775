package sync_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	stdsync "sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// A square is where processes meet at a barrier.
type square struct {
	barrier shmsync.Barrier
	before  atomic.Int64 // arrivals
	after   atomic.Int64 // departures
	actions atomic.Int64
	zeros   atomic.Int64
	places  [256]atomic.Int64 // how often each was given
	told    atomic.Int64
	pids    [16]atomic.Int64
}

func squareIn(r *shm.Region) *square {
	s, err := shm.At[square](r, r.Data()+8192)
	if err != nil {
		panic(err)
	}
	return s
}

func newSquare(t testing.TB, parties int, opts ...shmsync.BarrierOption) (*shm.Region, *square) {
	t.Helper()
	r, _ := newArena(t)
	s := squareIn(r)
	if err := s.barrier.Init(parties, opts...); err != nil {
		t.Fatal(err)
	}
	return r, s
}

// meet passes a barrier of five parties o.Rounds times, in lockstep with the others.
var meet = proc.Define("meet", func(ctx context.Context, o order) error {
	s := squareIn(o.Region)
	for i := range int64(o.Rounds) {
		s.before.Add(1)
		place, err := s.barrier.WaitAction(ctx, func() error {
			if out := s.after.Load(); out != 5*i {
				return fmt.Errorf("pass %d: the action runs when %d have left", i, out)
			}
			s.actions.Add(1)
			return nil
		})
		if err != nil {
			return fmt.Errorf("pass %d: %w", i, err)
		}
		if ran := s.actions.Load(); ran != i+1 {
			return fmt.Errorf("pass %d: somebody leaves after %d actions", i, ran)
		}
		s.places[place].Add(1)
		if in := s.before.Load(); in < 5*(i+1) {
			return fmt.Errorf("pass %d: somebody leaves when %d have come", i, in)
		}
		// Nobody can be two passes ahead of anybody.
		if out := s.after.Add(1); out > 5*(i+1) {
			return fmt.Errorf("pass %d: %d have left", i, out)
		}
		if _, err := s.barrier.Wait(ctx); err != nil { // so that all have left before the next one comes
			return fmt.Errorf("pass %d: %w", i, err)
		}
	}
	return nil
})

func TestBarrierLetsFiveProcessesPassInLockstep(t *testing.T) {
	for _, passes := range []int{1, 10} {
		t.Run(fmt.Sprintf("passes=%d", passes), func(t *testing.T) {
			r, s := newSquare(t, 5)
			var ps []*proc.Process
			for i := range 5 {
				ps = append(ps, start(t, meet, r, i, passes))
			}
			wait(t, ps...)
			if w := s.barrier.Waiting(); w != 0 || s.barrier.Broken() || s.barrier.Parties() != 5 {
				t.Errorf("at the end: %d waiting, broken %v, %d parties", w, s.barrier.Broken(), s.barrier.Parties())
			}
			for i := range 6 {
				want := int64(passes)
				if i == 5 {
					want = 0
				}
				if n := s.places[i].Load(); n != want {
					t.Errorf("place %d was given %d times in %d passes", i, n, passes)
				}
			}
			if n := s.actions.Load(); n != int64(passes) {
				t.Errorf("%d actions in %d passes", n, passes)
			}
		})
	}
}

var countZeros = proc.Define("count places 0", func(ctx context.Context, o order) error {
	s := squareIn(o.Region)
	for range o.Rounds {
		place, err := s.barrier.Wait(ctx)
		if err != nil {
			return err
		}
		if place == 0 {
			s.zeros.Add(1)
		}
	}
	return nil
})

func TestBarrierGivesPlaceZeroOncePerPass(t *testing.T) {
	const passes = 300
	r, s := newSquare(t, 2)
	wait(t, start(t, countZeros, r, 0, passes), start(t, countZeros, r, 1, passes))
	if n := s.zeros.Load(); n != passes {
		t.Errorf("%d times place 0 in %d passes", n, passes)
	}
}

// meetInThree are three goroutines at one barrier.
var meetInThree = proc.Define("meet in three goroutines", func(ctx context.Context, o order) error {
	s := squareIn(o.Region)
	var wg stdsync.WaitGroup
	errs := make([]error, 3)
	for g := range 3 {
		wg.Go(func() {
			for i := range int64(o.Rounds) {
				s.before.Add(1)
				place, err := s.barrier.Wait(ctx)
				if in := s.before.Load(); err == nil && in < 9*(i+1) {
					err = fmt.Errorf("pass %d: somebody leaves when %d have come", i, in)
				}
				if err != nil {
					errs[g] = err
					s.barrier.Abort()
					return
				}
				s.places[place].Add(1)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
})

func TestBarrierTakesGoroutinesOfSeveralProcessesForPartiesEach(t *testing.T) {
	const passes = 200
	r, s := newSquare(t, 9)
	var ps []*proc.Process
	for i := range 3 {
		ps = append(ps, start(t, meetInThree, r, i, passes))
	}
	wait(t, ps...)
	for i := range 9 {
		if n := s.places[i].Load(); n != passes {
			t.Errorf("place %d was given %d times in %d passes", i, n, passes)
		}
	}
}

func TestBarrierOutsideOfRegionsAndOnTheHeapWorksAmongGoroutines(t *testing.T) {
	heap, err := shm.Heap(shm.Size(1 << 16))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { heap.Close() })
	inHeap, err := shm.At[shmsync.Barrier](heap, heap.Data())
	if err != nil {
		t.Fatal(err)
	}
	for where, b := range map[string]*shmsync.Barrier{"outside": new(shmsync.Barrier), "heap": inHeap} {
		t.Run(where, func(t *testing.T) {
			if err := b.Init(100); err != nil {
				t.Fatal(err)
			}
			var places [100]atomic.Int64
			sum := 0 // written by place 0 only, read by all after the next pass
			var wg stdsync.WaitGroup
			for range 100 {
				wg.Go(func() {
					for i := range 20 {
						place, err := b.WaitAction(context.Background(), func() error { sum++; return nil })
						if err != nil {
							t.Error(err)
							return
						}
						if sum != i+1 {
							t.Errorf("pass %d: %d actions", i, sum)
						}
						places[place].Add(1)
						if _, err := b.Wait(context.Background()); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			for i := range places {
				if n := places[i].Load(); n != 20 {
					t.Errorf("place %d was given %d times", i, n)
				}
			}
		})
	}
}

// waitOnce waits once and counts what came of it: told[0] passes, [1] broken, [2] deaths, [3] own limit.
var waitOnce = proc.Define("wait at the barrier once", func(ctx context.Context, o order) error {
	s := squareIn(o.Region)
	if err := s.barrier.Join(); err != nil { // of those who find it broken, Wait makes no members
		return err
	}
	s.before.Add(1)
	_, err := s.barrier.Wait(ctx)
	s.barrier.Leave()
	return s.record(err)
})

// record counts how a Wait ended.
func (s *square) record(err error) error {
	switch {
	case err == nil:
		s.pids[0].Add(1)
	case errors.Is(err, shmsync.ErrPartyDied):
		s.pids[2].Add(1)
	case !errors.Is(err, shmsync.ErrBrokenBarrier):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		s.pids[3].Add(1)
	default:
		s.pids[1].Add(1)
	}
	return nil
}

func (s *square) ended() [4]int64 {
	return [4]int64{s.pids[0].Load(), s.pids[1].Load(), s.pids[2].Load(), s.pids[3].Load()}
}

func TestBarrierIsBrokenByAnActionThatFailsOrPanics(t *testing.T) {
	for _, how := range []string{"fails", "panics"} {
		t.Run(how, func(t *testing.T) {
			r, s := newSquare(t, 5)
			var ps []*proc.Process
			for i := range 4 {
				ps = append(ps, start(t, waitOnce, r, i, 0))
			}
			until(t, "four wait", func() bool { return s.barrier.Waiting() == 4 })
			failure := errors.New("the action failed")
			got := func() (err error) {
				defer func() {
					if p := recover(); p != nil {
						err = p.(error)
					}
				}()
				_, err = s.barrier.WaitAction(context.Background(), func() error {
					if how == "panics" {
						panic(failure)
					}
					return failure
				})
				return err
			}()
			if !errors.Is(got, failure) {
				t.Errorf("the one that ran it got %v", got)
			}
			wait(t, ps...)
			if e := s.ended(); e != [4]int64{0, 4, 0, 0} || !s.barrier.Broken() {
				t.Errorf("passed, broken, died, limit: %v; broken %v", e, s.barrier.Broken())
			}
		})
	}
}

// passAndWait passes once and waits a second time.
var passAndWait = proc.Define("pass and wait again", func(ctx context.Context, o order) error {
	s := squareIn(o.Region)
	if _, err := s.barrier.Wait(ctx); err != nil {
		return err
	}
	_, err := s.barrier.Wait(ctx)
	s.barrier.Leave()
	if !s.barrier.Broken() {
		return errors.New("a wait that failed left the barrier whole")
	}
	return s.record(err)
})

func TestBarrierAbortBreaksItForAll(t *testing.T) {
	r, s := newSquare(t, 5)
	var ps []*proc.Process
	for i := range 4 {
		ps = append(ps, start(t, passAndWait, r, i, 0))
	}
	if _, err := s.barrier.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	until(t, "four wait again", func() bool { return s.barrier.Waiting() == 4 })
	s.barrier.Abort()
	wait(t, ps...)
	if e := s.ended(); e != [4]int64{0, 4, 0, 0} || !s.barrier.Broken() || s.barrier.Waiting() != 0 {
		t.Errorf("passed, broken, died, limit: %v; broken %v, %d waiting", e, s.barrier.Broken(), s.barrier.Waiting())
	}
}

func TestBarrierDefaultTimeoutBreaksItForAllAndAnExplicitOneOverridesIt(t *testing.T) {
	t.Parallel()
	r, s := newSquare(t, 5, shmsync.BarrierTimeout(300*time.Millisecond))
	var ps []*proc.Process
	begin := time.Now()
	for i := range 4 {
		ps = append(ps, start(t, waitOnce, r, i, 0))
	}
	wait(t, ps...)
	if took := time.Since(begin); took < 300*time.Millisecond {
		t.Errorf("over after %v", took)
	}
	if _, err := s.barrier.Wait(context.Background()); !errors.Is(err, shmsync.ErrBrokenBarrier) {
		t.Errorf("the late one: %v", err)
	}
	if e := s.ended(); e[0] != 0 || e[3] < 1 || e[1]+e[3] != 4 {
		t.Errorf("passed, broken, died, limit: %v", e)
	}

	if err := s.barrier.Reset(); err != nil {
		t.Fatal(err)
	}
	begin = time.Now()
	_, err := s.barrier.WaitTimeout(50 * time.Millisecond)
	if took := time.Since(begin); !errors.Is(err, os.ErrDeadlineExceeded) || !errors.Is(err, shmsync.ErrBrokenBarrier) || took < 50*time.Millisecond {
		t.Errorf("shorter than the default: %v after %v", err, took)
	}
	if err := s.barrier.Reset(); err != nil {
		t.Fatal(err)
	}
	begin = time.Now()
	_, err = s.barrier.Wait(after(700 * time.Millisecond))
	if took := time.Since(begin); !errors.Is(err, context.DeadlineExceeded) || took < 700*time.Millisecond {
		t.Errorf("longer than the default: %v after %v", err, took)
	}
}

func TestBarrierOfOnePartyPassesAtOnce(t *testing.T) {
	_, s := newSquare(t, 1)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	for i := range 1000 {
		place, err := s.barrier.Wait(ended)
		if err == nil && i%2 == 0 {
			place, err = s.barrier.WaitTimeout(0)
		}
		if err != nil || place != 0 {
			t.Fatalf("place %d, %v", place, err)
		}
	}
}

func TestBarrierWhoseLastPartyComesAllocatesNothing(t *testing.T) {
	_, s := newSquare(t, 1)
	ctx := context.Background()
	if n := testing.AllocsPerRun(1000, func() {
		s.barrier.Wait(ctx)
		s.barrier.WaitTimeout(time.Second)
		s.barrier.WaitAction(ctx, func() error { return nil })
		s.barrier.Join()
		s.barrier.Leave()
	}); n != 0 && !shmsync.RaceEnabled {
		t.Errorf("%v allocations", n)
	}
}

// Ten thousand wait, and cost a thread or two.
func TestBarrierOfTenThousandGoroutines(t *testing.T) {
	const n = 10_000
	_, s := newSquare(t, n)
	got := make(chan error, n)
	for range n - 1 {
		go func() {
			_, err := s.barrier.Wait(context.Background())
			got <- err
		}()
	}
	until(t, "all but one wait", func() bool { return s.barrier.Waiting() == n-1 })
	if place, err := s.barrier.Wait(context.Background()); err != nil || place != 0 {
		t.Errorf("the last one: place %d, %v", place, err)
	}
	for range n - 1 {
		if err := <-got; err != nil {
			t.Fatal(err)
		}
	}
	if s.barrier.Members() != n {
		t.Errorf("%d members", s.barrier.Members())
	}
}

func TestBarrierRefusesBadNumbersAndUseBeforeInit(t *testing.T) {
	r, _ := newArena(t)
	b := &squareIn(r).barrier
	if size := unsafe.Sizeof(*b); size != 128 {
		t.Errorf("%d bytes", size)
	}
	for _, n := range []int{0, -1, -1 << 31} {
		if err := b.Init(n); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%d parties: %v", n, err)
		}
	}
	if err := b.Init(1, shmsync.BarrierTimeout(-1)); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("negative timeout: %v", err)
	}
	if _, err := b.Wait(context.Background()); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("Wait without Init: %v", err)
	}
	if err := b.Reset(); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("Reset without Init: %v", err)
	}
	if err := b.Join(); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("Join without Init: %v", err)
	}
}

func TestBarrierThatIsBrokenAnswersAtOnceUntilItIsReset(t *testing.T) {
	r, s := newSquare(t, 2)
	s.barrier.Abort()
	s.barrier.Abort()
	if !s.barrier.Broken() {
		t.Error("aborted while nobody waited: not broken")
	}
	if _, err := s.barrier.Wait(context.Background()); !errors.Is(err, shmsync.ErrBrokenBarrier) || errors.Is(err, shmsync.ErrPartyDied) {
		t.Errorf("got %v", err)
	}
	if err := s.barrier.Reset(); err != nil || s.barrier.Broken() {
		t.Fatalf("reset: %v, broken %v", err, s.barrier.Broken())
	}
	p := start(t, waitOnce, r, 0, 0)
	if _, err := s.barrier.Wait(context.Background()); err != nil {
		t.Error(err)
	}
	wait(t, p)

	// A reset while one waits.
	p = start(t, waitOnce, r, 0, 0)
	until(t, "it waits", func() bool { return s.barrier.Waiting() == 1 })
	if err := s.barrier.Reset(); err != nil || s.barrier.Broken() {
		t.Fatalf("reset: %v, broken %v", err, s.barrier.Broken())
	}
	wait(t, p)
	if e := s.ended(); e != [4]int64{1, 1, 0, 0} {
		t.Errorf("passed, broken, died, limit: %v", e)
	}
}

func TestBarrierResetForgetsTheDeadWhoNobodyHasNoticedYet(t *testing.T) {
	for range 10 {
		r, s := newSquare(t, 2)
		dead := start(t, enlist, r, 0, 2)
		until(t, "it has joined", func() bool { return s.barrier.Members() == 2 })
		dead.Kill()
		<-dead.Done()
		if err := s.barrier.Reset(); err != nil || s.barrier.Broken() || s.barrier.Members() != 0 {
			t.Fatalf("reset: %v, broken %v, %d members", err, s.barrier.Broken(), s.barrier.Members())
		}
		got := make(chan error)
		go func() {
			_, err := s.barrier.Wait(context.Background())
			got <- err
		}()
		r.Scan()
		wait(t, start(t, waitOnce, r, 0, 0))
		if err := <-got; err != nil {
			t.Fatal(err)
		}
	}
}

var readBarrier = proc.Define("read the barrier", func(_ context.Context, o order) error {
	b := &squareIn(o.Region).barrier
	return check(b.Waiting() == o.Number && b.Parties() == 3 && !b.Broken(), "%d waiting of %d, broken %v; want %d of 3",
		b.Waiting(), b.Parties(), b.Broken(), o.Number)
})

func TestBarrierTellsEveryProcessHowManyWait(t *testing.T) {
	r, s := newSquare(t, 3)
	ps := []*proc.Process{start(t, waitOnce, r, 0, 0), start(t, waitOnce, r, 1, 0)}
	until(t, "two wait", func() bool { return s.barrier.Waiting() == 2 })
	wait(t, start(t, readBarrier, r, 2, 0))
	if s.barrier.Waiting() != 2 {
		t.Errorf("%d waiting", s.barrier.Waiting())
	}
	if place, err := s.barrier.Wait(context.Background()); err != nil || place != 0 {
		t.Errorf("the last one: place %d, %v", place, err)
	}
	wait(t, ps...)
	wait(t, start(t, readBarrier, r, 0, 0))
}

func TestBarrierWaitGoesOnAfterASignal(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no signals")
	}
	r, s := newSquare(t, 2)
	p := start(t, waitOnce, r, 0, 0)
	until(t, "it sleeps", func() bool { return s.barrier.Sleeps() })
	child, err := os.FindProcess(p.PID())
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if err := child.Signal(signalOfNoConsequence); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	if n := s.barrier.Waiting(); n != 1 || s.barrier.Broken() {
		t.Errorf("%d waiting after the signals, broken %v", n, s.barrier.Broken())
	}
	if _, err := s.barrier.Wait(context.Background()); err != nil {
		t.Error(err)
	}
	wait(t, p)
	if e := s.ended(); e != [4]int64{1, 0, 0, 0} {
		t.Errorf("passed, broken, died, limit: %v", e)
	}
}

// signalOfNoConsequence is SIGURG on Linux, SIGIO elsewhere: what the Go runtime sends itself, or ignores.
const signalOfNoConsequence = syscall.Signal(0x17)

// enlist joins, says so, and stays until it is killed or told to leave.
var enlist = proc.Define("join the barrier", func(_ context.Context, o order) error {
	s := squareIn(o.Region)
	for range o.Rounds {
		if err := s.barrier.Join(); err != nil {
			return err
		}
	}
	s.before.Add(1)
	await(&s.told, 1)
	for range o.Rounds {
		s.barrier.Leave()
	}
	return nil
})

func TestBarrierMemberThatDiesBeforeItComesBreaksIt(t *testing.T) {
	r, s := newSquare(t, 3)
	absent := start(t, enlist, r, 0, 1)
	other := start(t, waitOnce, r, 1, 0)
	until(t, "both are there", func() bool { return s.before.Load() == 2 && s.barrier.Waiting() == 1 })
	got := make(chan error)
	go func() {
		_, err := s.barrier.Wait(context.Background())
		got <- err
	}()
	until(t, "two wait", func() bool { return s.barrier.Waiting() == 2 })
	absent.Kill()
	if err := <-got; !errors.Is(err, shmsync.ErrPartyDied) || !errors.Is(err, shmsync.ErrBrokenBarrier) {
		t.Errorf("got %v", err)
	}
	wait(t, other)
	if e := s.ended(); e != [4]int64{0, 0, 1, 0} || !s.barrier.Broken() {
		t.Errorf("passed, broken, died, limit: %v", e)
	}
	// Members stay members over a reset, the dead do not.
	if err := s.barrier.Reset(); err != nil {
		t.Fatal(err)
	}
	if n := s.barrier.Members(); n != 1 {
		t.Errorf("%d members, want this process", n)
	}
}

func TestBarrierMemberThatDiesWhileItWaitsBreaksIt(t *testing.T) {
	r, s := newSquare(t, 3)
	victim := start(t, waitOnce, r, 0, 0)
	until(t, "it waits", func() bool { return s.barrier.Waiting() == 1 })
	got := make(chan error)
	go func() {
		_, err := s.barrier.Wait(context.Background())
		got <- err
	}()
	until(t, "two wait", func() bool { return s.barrier.Waiting() == 2 })
	victim.Kill()
	if err := <-got; !errors.Is(err, shmsync.ErrPartyDied) {
		t.Errorf("got %v", err)
	}
}

func TestBarrierMembersThatLeaveAreNotMissed(t *testing.T) {
	r, s := newSquare(t, 3)
	p := start(t, enlist, r, 0, 2)
	until(t, "it has joined", func() bool { return s.before.Load() == 1 && s.barrier.Members() == 2 })
	got := make(chan error)
	go func() {
		_, err := s.barrier.Wait(context.Background())
		got <- err
	}()
	until(t, "one waits", func() bool { return s.barrier.Waiting() == 1 })
	s.told.Store(1)
	wait(t, p) // it has left, and ended
	if n := s.barrier.Members(); n != 1 {
		t.Errorf("%d members", n)
	}
	ps := []*proc.Process{start(t, waitOnce, r, 0, 0), start(t, waitOnce, r, 1, 0)}
	wait(t, ps...)
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestBarrierLeaveOfWhoIsNoMemberOrWaitsIsMisuse(t *testing.T) {
	r, s := newSquare(t, 2)
	misused(t, s.barrier.Leave)
	p := start(t, enlist, r, 0, 1)
	until(t, "another process joins", func() bool { return s.barrier.Members() == 1 })
	misused(t, s.barrier.Leave)
	s.told.Store(1)
	wait(t, p)
	got := make(chan error)
	go func() {
		_, err := s.barrier.Wait(context.Background())
		got <- err
	}()
	until(t, "one waits", func() bool { return s.barrier.Waiting() == 1 })
	misused(t, s.barrier.Leave)
	if s.barrier.Members() != 1 || s.barrier.Waiting() != 1 || s.barrier.Broken() {
		t.Error("misuse changed something")
	}
	if _, err := s.barrier.Wait(context.Background()); err != nil {
		t.Error(err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
	s.barrier.Leave()
	s.barrier.Leave()
	misused(t, s.barrier.Leave)
}

func TestBarrierThatDropsTheDeadGoesOnWithoutThem(t *testing.T) {
	r, s := newSquare(t, 4, shmsync.DropTheDead())
	absent := start(t, enlist, r, 0, 1)
	waiting := start(t, waitOnce, r, 1, 0)
	until(t, "both are there", func() bool { return s.barrier.Members() == 2 && s.barrier.Waiting() == 1 })
	got := make(chan error, 2)
	places := make(chan int, 2)
	for range 2 {
		go func() {
			place, err := s.barrier.Wait(context.Background())
			places <- place
			got <- err
		}()
	}
	until(t, "three wait", func() bool { return s.barrier.Waiting() == 3 })
	waiting.Kill()
	until(t, "the one that waited is dropped", func() bool { return s.barrier.Parties() == 3 })
	if n := s.barrier.Waiting(); n != 2 {
		t.Errorf("%d waiting", n)
	}
	absent.Kill() // nobody else comes: one of those who wait makes the pass
	var all []int
	for range 2 {
		if err := <-got; err != nil {
			t.Error(err)
		}
		all = append(all, <-places)
	}
	slices.Sort(all)
	if all[0] != 0 || all[1] == 0 {
		t.Errorf("places %v, want exactly one 0", all)
	}
	if n := s.barrier.Parties(); n != 2 || s.barrier.Broken() {
		t.Errorf("%d parties, broken %v", n, s.barrier.Broken())
	}
	// One who comes anew takes a place of the dead.
	p := start(t, waitOnce, r, 2, 0)
	until(t, "a third party", func() bool { return s.barrier.Parties() == 3 })
	for range 2 {
		go func() {
			_, err := s.barrier.Wait(context.Background())
			got <- err
		}()
	}
	for range 2 {
		if err := <-got; err != nil {
			t.Error(err)
		}
	}
	wait(t, p)
}

// dieActing is killed in its action.
var dieActing = proc.Define("die in the action", func(ctx context.Context, o order) error {
	s := squareIn(o.Region)
	_, err := s.barrier.WaitAction(ctx, func() error {
		p, _ := os.FindProcess(os.Getpid())
		p.Kill()
		select {}
	})
	return err
})

func TestBarrierIsBrokenByADeathInTheAction(t *testing.T) {
	for name, opts := range map[string][]shmsync.BarrierOption{"break": nil, "drop": {shmsync.DropTheDead()}} {
		t.Run(name, func(t *testing.T) {
			r, s := newSquare(t, 3, opts...)
			other := start(t, waitOnce, r, 0, 0)
			got := make(chan error)
			go func() {
				_, err := s.barrier.Wait(context.Background())
				got <- err
			}()
			until(t, "two wait", func() bool { return s.barrier.Waiting() == 2 })
			start(t, dieActing, r, 1, 0)
			if err := <-got; !errors.Is(err, shmsync.ErrBrokenBarrier) {
				t.Errorf("got %v", err)
			}
			wait(t, other)
			if e := s.ended(); e[0] != 0 || !s.barrier.Broken() {
				t.Errorf("passed, broken, died, limit: %v, broken %v", e, s.barrier.Broken())
			}
		})
	}
}

func TestBarrierTimedWaitNeverEndsEarly(t *testing.T) {
	t.Parallel()
	limits := limitsOfTime()
	for _, way := range []string{"WaitTimeout", "Wait"} {
		for _, limit := range limits {
			t.Run(fmt.Sprintf("%s/%v", way, limit), func(t *testing.T) {
				t.Parallel()
				_, s := newSquare(t, 2)
				begin := time.Now()
				var err error
				if way == "Wait" {
					_, err = s.barrier.Wait(after(limit))
				} else {
					_, err = s.barrier.WaitTimeout(limit)
				}
				if took := time.Since(begin); took < limit || took > 10*limit+10*time.Second || !errors.Is(err, shmsync.ErrBrokenBarrier) {
					t.Errorf("%v after %v", err, took)
				}
			})
		}
	}
	for _, limit := range []time.Duration{0, -1, -time.Hour} {
		_, s := newSquare(t, 2)
		if _, err := s.barrier.WaitTimeout(limit); !errors.Is(err, os.ErrDeadlineExceeded) || !s.barrier.Broken() {
			t.Errorf("%v: %v", limit, err)
		}
	}
}

func TestBarrierWaitEndsWhenItsRegionIsClosed(t *testing.T) {
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	s := squareIn(r)
	if err := s.barrier.Init(5); err != nil {
		t.Fatal(err)
	}
	got := make(chan error)
	for range 3 {
		go func() {
			_, err := s.barrier.Wait(context.Background())
			got <- err
		}()
	}
	until(t, "they wait", func() bool { return s.barrier.Waiting() == 3 })
	r.Close()
	for range 3 {
		if err := <-got; !errors.Is(err, shm.ErrClosed) {
			t.Error(err)
		}
	}
	if _, err := s.barrier.Wait(context.Background()); !errors.Is(err, shm.ErrClosed) {
		t.Errorf("after the close: %v", err)
	}
	runtime.KeepAlive(r)
}

// The memory is freed and cleared as soon as the first has passed: the others get away all the same, and
// leave it as it is.
func TestBarrierMayBeFreedByWhoeverHasPassed(t *testing.T) {
	r, s := newSquare(t, 4)
	memory, err := r.Bytes(r.Data()+8192, uint64(unsafe.Sizeof(s.barrier)))
	if err != nil {
		t.Fatal(err)
	}
	for round := range 200 {
		if err := s.barrier.Init(4); err != nil {
			t.Fatal(err)
		}
		got := make(chan error, 4)
		for range 3 {
			go func() {
				_, err := s.barrier.Wait(context.Background())
				got <- err
			}()
		}
		until(t, "three wait", func() bool { return s.barrier.Waiting() == 3 })
		if _, err := s.barrier.Wait(context.Background()); err != nil {
			t.Fatal(err)
		}
		clear(memory)
		for range 3 {
			if err := <-got; err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		for i, c := range memory {
			if c != 0 {
				t.Fatalf("round %d: byte %d was changed to %#x", round, i, c)
			}
		}
	}
}

// One who leaves late finds out how its own generation ended, whatever came after.
func TestBarrierTellsALateLeaverHowItsGenerationEnded(t *testing.T) {
	_, s := newSquare(t, 2)
	b := &s.barrier
	var ended []error
	begin := b.Generation()
	for i := range 12 {
		switch i % 3 {
		case 0, 1:
			b.LetGoWithoutWake()
			ended = append(ended, nil)
		default:
			b.Abort()
			b.Reset()
			ended = append(ended, shmsync.ErrBrokenBarrier)
		}
	}
	for i, want := range ended {
		if over, err := b.End(begin + uint32(i)); !over || !errors.Is(err, want) {
			t.Errorf("generation %d: over %v, %v, want %v", i, over, err, want)
		}
	}
	if over, _ := b.End(b.Generation()); over {
		t.Error("the one that waits now is over")
	}
	for range 20 {
		b.Abort()
		b.Reset()
	}
	if over, err := b.End(begin); !over || !errors.Is(err, shmsync.ErrBrokenBarrier) {
		t.Errorf("so late that nobody knows: over %v, %v", over, err)
	}
}

func TestBarrierPassOfAProcessThatDiesBeforeItWakesAnybody(t *testing.T) {
	_, s := newSquare(t, 2)
	got := make(chan error)
	go func() {
		_, err := s.barrier.Wait(context.Background())
		got <- err
	}()
	until(t, "it sleeps", s.barrier.Sleeps)
	s.barrier.LetGoWithoutWake()
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func ExampleBarrier() {
	var b shmsync.Barrier
	if err := b.Init(3); err != nil {
		panic(err)
	}
	var wg stdsync.WaitGroup
	for range 3 {
		wg.Go(func() {
			b.WaitAction(context.Background(), func() error {
				fmt.Println("all have come")
				return nil
			})
		})
	}
	wg.Wait()
	// Output: all have come
}
