//go:build crashpoints

package sync_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// A rally is a barrier of three parties that do with it whatever can be done, until the context ends.
type rally struct {
	barrier shmsync.Barrier
	passes  atomic.Int64
	acting  atomic.Int64 // pid of the process that runs the action
	victim  atomic.Int64 // pid of the one that kills itself
	faults  atomic.Int64
}

func rallyIn(r *shm.Region) *rally {
	a, err := shm.At[rally](r, r.Data()+8192)
	if err != nil {
		panic(err)
	}
	return a
}

var errOfAction = errors.New("the action failed")

// fault notes what must not be, in whatever process.
func (a *rally) fault(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	a.faults.Add(1)
}

// act is the action of a pass. It says whether less than all were there: then the barrier was broken and reset meanwhile.
func (a *rally) act(few *bool) error {
	me := int64(os.Getpid())
	if !a.acting.CompareAndSwap(0, me) && !a.acting.CompareAndSwap(a.victim.Load(), me) {
		a.fault("two run the action: %d while %d does, of whom %d is to die", me, a.acting.Load(), a.victim.Load())
	}
	w := a.barrier.Waiting()
	*few = w < a.barrier.Parties()
	if rand.IntN(10) == 0 {
		time.Sleep(time.Duration(rand.IntN(500)) * time.Microsecond)
	}
	a.acting.Store(0)
	if rand.IntN(30) == 0 {
		return errOfAction
	}
	a.passes.Add(1)
	return nil
}

func (a *rally) attend(ctx context.Context) {
	b := &a.barrier
	for ctx.Err() == nil {
		short, cancel := context.WithTimeout(ctx, 2*time.Second)
		var err error
		few := false
		act := func() error { return a.act(&few) }
		switch rand.IntN(40) {
		case 0:
			if err = b.Join(); err == nil {
				leaveIfMember(b) // another goroutine may have left for it
			}
		case 1:
			if b.Join() == nil {
				_, err = b.WaitAction(short, act)
				leaveIfMember(b) // another goroutine may have left for it
			}
		case 2:
			b.Abort()
		case 3:
			err = b.Reset()
		case 4:
			_, err = b.WaitTimeout(time.Duration(rand.IntN(2000)) * time.Microsecond)
		case 5:
			_, err = b.Wait(short)
		case 6:
			leaveIfMember(b)
		default:
			_, err = b.WaitAction(short, act)
		}
		cancel()
		switch {
		case err == nil && few:
			a.fault("a pass was made without all of its parties")
		case err == nil, errors.Is(err, errOfAction), ctx.Err() != nil:
		case errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, shmsync.ErrBrokenBarrier):
			// Its time was over, and for 20 ms more whoever held the barrier's mutex was not run: it has not arrived.
		case errors.Is(err, shmsync.ErrBrokenBarrier):
			if b.Broken() {
				b.Reset()
			}
		default:
			a.fault("process %d: %v", os.Getpid(), err)
		}
	}
}

// leaveIfMember takes back what an earlier Wait has made.
func leaveIfMember(b *shmsync.Barrier) {
	defer func() {
		if p := recover(); p != nil {
			if err, ok := p.(error); !ok || !errors.Is(err, shmsync.ErrMisuse) {
				panic(p)
			}
		}
	}()
	b.Leave()
}

var attendRally = proc.Define("attend a rally", func(ctx context.Context, v victim) error {
	a := rallyIn(v.Region)
	if v.Plan != "" {
		a.victim.Store(int64(os.Getpid()))
		shmsync.CrashAt(v.Plan)
	}
	a.attend(ctx)
	return nil
})

// joinAndDie is a death that the others have to count.
var joinAndDie = proc.Define("join and die", func(_ context.Context, r *shm.Region) error {
	rallyIn(r).barrier.Join()
	p, _ := os.FindProcess(os.Getpid())
	p.Kill()
	select {}
})

// A process kills itself between two steps of a barrier, at each place there is, while it and others do
// whatever can be done with it: the others go on passing.
func TestAKillBetweenAnyTwoStepsOfTheBarrierStopsNobody(t *testing.T) {
	points := crashPoints(t, "barrier.go", "barrier_wait.go")
	if len(points) < 25 {
		t.Fatalf("only %d points found: %q", len(points), points)
	}
	reached := map[string]bool{}
	for _, point := range points {
		for _, n := range []int{1, 4} {
			for policy, opts := range map[string][]shmsync.BarrierOption{"break": nil, "drop": {shmsync.DropTheDead()}} {
				t.Run(fmt.Sprintf("%s/%d/%s", point, n, policy), func(t *testing.T) {
					r, _ := newArena(t)
					a := rallyIn(r)
					if err := a.barrier.Init(3, opts...); err != nil {
						t.Fatal(err)
					}
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					ended := make(chan bool)
					attend := func() { a.attend(ctx); ended <- true }
					here := 1
					go attend()
					witness, err := attendRally.Start(ctx, victim{Region: r}, proc.Daemon())
					if err != nil {
						t.Fatal(err)
					}
					p, err := attendRally.Start(ctx, victim{r, fmt.Sprintf("%s:%d", point, n)}, proc.Daemon())
					if err != nil {
						t.Fatal(err)
					}
					defer func() {
						cancel()
						for _, p := range []*proc.Process{p, witness} {
							p.Kill()
							<-p.Done()
						}
						for range here {
							<-ended
						}
					}()
					begin := time.Now()
					for dead := false; !dead; {
						select {
						case <-p.Done():
							dead = true
						case <-time.After(20 * time.Millisecond):
							q, err := joinAndDie.Start(ctx, r, proc.Daemon())
							if err != nil {
								t.Fatal(err)
							}
							<-q.Done()
							if time.Since(begin) > 20*time.Second {
								t.Skipf("the point was not reached in 20 s and %d passes", a.passes.Load())
							}
						}
					}
					reached[point] = true
					here++
					go attend() // in the place of the dead
					for passes := a.passes.Load(); a.passes.Load() < passes+50; time.Sleep(time.Millisecond) {
						if time.Since(begin) > 2*time.Minute {
							t.Fatalf("nobody goes on: %d passes after the kill; %d waiting of %d, %d members, broken %v", a.passes.Load()-passes,
								a.barrier.Waiting(), a.barrier.Parties(), a.barrier.Members(), a.barrier.Broken())
						}
					}
					if f := a.faults.Load(); f != 0 {
						t.Errorf("%d faults", f)
					}
				})
			}
		}
	}
	for _, point := range points {
		if !reached[point] {
			t.Errorf("%q was never reached", point)
		}
	}
}

// dieInOnce does it once, and dies at a point.
var dieInOnce = proc.Define("die in a once", func(ctx context.Context, v victim) error {
	shmsync.CrashAt(v.Plan)
	d := debutIn(v.Region)
	return d.once.Do(ctx, func() error { d.begun.Add(1); return nil })
})

func TestAKillBetweenAnyTwoStepsOfOnceLeavesItToTheNextOrDone(t *testing.T) {
	for _, point := range crashPoints(t, "once.go") {
		t.Run(point, func(t *testing.T) {
			r, d := newDebut(t)
			p, err := dieInOnce.Start(t.Context(), victim{r, point + ":1"}, proc.Daemon())
			if err != nil {
				t.Fatal(err)
			}
			<-p.Done()
			if p.Wait() == nil {
				t.Fatal("the point was not reached")
			}
			done := d.once.Done()
			if done != (point == "once done") {
				t.Errorf("done %v after the kill", done)
			}
			runs := 0
			for range 3 {
				if err := d.once.Do(t.Context(), func() error { runs++; return nil }); err != nil {
					t.Error(err)
				}
			}
			if want := map[bool]int{true: 0, false: 1}[done]; runs != want || !d.once.Done() {
				t.Errorf("run %d times after the kill, want %d", runs, want)
			}
		})
	}
}

// quarrelNested fights for a recursive mutex.
var quarrelNested = proc.Define("quarrel nested", func(ctx context.Context, v victim) error {
	if v.Plan != "" {
		shmsync.CrashAt(v.Plan)
	}
	nestIn(v.Region).quarrel(ctx)
	return nil
})

// quarrel counts n up under the lock, in two steps at two depths.
func (n *nest) quarrel(ctx context.Context) {
	me := shmsync.NewOwner()
	for ctx.Err() == nil {
		err := n.mu.LockContext(ctx, me)
		if errors.Is(err, shmsync.ErrInconsistent) {
			n.mu.Recover(ctx, me, func(shm.Death) error {
				n.mu.Lock(me)
				n.n &^= 1
				n.mu.Unlock(me)
				return nil
			})
		}
		if err != nil {
			continue
		}
		if n.n&1 != 0 || n.mu.Depth(me) != 1 {
			n.depth.Add(1)
		}
		n.n++
		n.mu.Lock(me)
		n.n++
		n.mu.Unlock(me)
		n.mu.Unlock(me)
		n.told.Add(1)
	}
}

func TestAKillBetweenAnyTwoStepsOfTheRecursiveMutexStopsNobody(t *testing.T) {
	for _, point := range crashPoints(t, "recursive.go") {
		t.Run(point, func(t *testing.T) {
			r, n := newNest(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			p, err := quarrelNested.Start(ctx, victim{r, point + ":100"}, proc.Daemon())
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan bool)
			go func() { n.quarrel(ctx); ended <- true }()
			select {
			case <-p.Done():
			case <-time.After(30 * time.Second):
				t.Fatal("the point was not reached")
			}
			turns := n.told.Load()
			until(t, "the other goes on", func() bool { return n.told.Load() > turns+100 })
			cancel()
			<-ended
			if f := n.depth.Load(); f != 0 {
				t.Errorf("half changed data was entered as if it were whole, or at a depth, %d times", f)
			}
		})
	}
}
