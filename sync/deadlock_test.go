package sync_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	stdsync "sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// A table is where philosophers sit.
type table struct {
	forks   [4]shmsync.Mutex
	taken   atomic.Int64
	go2     atomic.Int64
	barrier shmsync.Barrier
}

func tableIn(r *shm.Region) *table {
	t, err := shm.At[table](r, r.Data()+24576)
	if err != nil {
		panic(err)
	}
	return t
}

// dine takes the fork of its number, and then, when all are there, that of o.Rounds, if it is one.
var dine = proc.Define("dine", func(ctx context.Context, o order) error {
	t := tableIn(o.Region)
	if o.Number < len(t.forks) {
		t.forks[o.Number].Lock()
	}
	t.taken.Add(1)
	await(&t.go2, 1)
	if o.Rounds < len(t.forks) {
		if err := t.forks[o.Rounds].LockContext(ctx); err == nil {
			t.forks[o.Rounds].Unlock()
		}
	} else if _, err := t.barrier.Wait(ctx); err != nil { // waits for what is no lock
		return err
	}
	if o.Number < len(t.forks) {
		t.forks[o.Number].Unlock()
	}
	return nil
})

const none = 9 // no fork

// seat starts philosophers that have one fork and want another, and waits until all who wait are seen to.
func seat(t *testing.T, r *shm.Region, waits int, forks ...[2]int) (pids map[int]bool) {
	s := tableIn(r)
	if err := s.barrier.Init(100); err != nil {
		t.Fatal(err)
	}
	pids = map[int]bool{}
	for i, f := range forks {
		p := start(t, dine, r, f[0], f[1])
		pids[p.PID()] = true
		until(t, "it has taken its fork", func() bool { return s.taken.Load() == int64(i+1) })
	}
	s.go2.Store(1)
	until(t, "all show that they wait", func() bool {
		all, err := r.Attachments()
		n := 0
		for _, a := range all {
			n += len(a.Waiting)
		}
		return err == nil && n == waits
	})
	return pids
}

func TestSuspectsNamesProcessesThatWaitForEachOther(t *testing.T) {
	t.Parallel()
	for name, forks := range map[string][][2]int{
		"two":             {{0, 1}, {1, 0}},
		"three":           {{0, 1}, {1, 2}, {2, 0}},
		"two, and others": {{0, 1}, {1, 0}, {none, 0}, {2, none}, {none, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := newArena(t)
			waits := 0
			for _, f := range forks {
				if f[1] != none {
					waits++
				}
			}
			pids := seat(t, r, waits, forks...)
			begin := time.Now()
			found, err := shmsync.Suspects(t.Context(), r, 100*time.Millisecond)
			if err != nil || time.Since(begin) < 100*time.Millisecond {
				t.Fatalf("%v after %v", err, time.Since(begin))
			}
			want := min(len(forks), 3)
			if strings.HasPrefix(name, "two") {
				want = 2
			}
			if len(found) != 1 || len(found[0]) != want {
				t.Fatalf("found %v, want one cycle of %d", found, want)
			}
			for i, w := range found[0] {
				next := found[0][(i+1)%want]
				holder, ok := tableIn(r).forkAt(r, w.Lock).Owner()
				if !ok || holder.Token != next.Token || !pids[w.PID] || w.Life != shm.Alive || w.Since.After(begin) {
					t.Errorf("%+v is said to wait for %v, held by %v", w, next.Token, holder.Token)
				}
			}
			if text := found[0].String(); strings.Count(text, "\n") != want || !strings.Contains(text, fmt.Sprint(found[0][0].PID)) {
				t.Errorf("it reads %q", text)
			}
		})
	}
}

// forkAt returns the fork at an offset.
func (t *table) forkAt(r *shm.Region, off shm.Offset) *shmsync.Mutex {
	m, err := shm.At[shmsync.Mutex](r, off)
	if err != nil {
		panic(err)
	}
	return m
}

func TestSuspectsFindsNothingInAChain(t *testing.T) {
	r, _ := newArena(t)
	seat(t, r, 3, [2]int{0, none}, [2]int{1, 0}, [2]int{2, 1}, [2]int{none, 2})
	if found, err := shmsync.Suspects(t.Context(), r, 50*time.Millisecond); err != nil || len(found) != 0 {
		t.Errorf("found %v, %v", found, err)
	}
}

// dineInOrder takes the forks in their order, over and over.
var dineInOrder = proc.Define("dine in order", func(ctx context.Context, o order) error {
	t := tableIn(o.Region)
	var wg stdsync.WaitGroup
	for g := range 3 {
		wg.Go(func() {
			for t.go2.Load() == 0 {
				a, b := &t.forks[g%2], &t.forks[g%2+1]
				a.Lock()
				b.Lock()
				time.Sleep(3 * time.Millisecond) // so that waits are shown
				t.taken.Add(1)
				b.Unlock()
				a.Unlock()
			}
		})
	}
	wg.Wait()
	return nil
})

// Several goroutines of each process wait for locks that some of the others hold: cycles of processes come
// and go, and are no deadlocks.
func TestSuspectsFindsNothingInContention(t *testing.T) {
	r, _ := newArena(t)
	s := tableIn(r)
	ps := []*proc.Process{start(t, dineInOrder, r, 0, 0), start(t, dineInOrder, r, 1, 0), start(t, dineInOrder, r, 2, 0)}
	until(t, "they dine", func() bool { return s.taken.Load() > 10 })
	for range 5 {
		if found, err := shmsync.Suspects(t.Context(), r, 300*time.Millisecond); err != nil || len(found) != 0 {
			t.Errorf("found %v, %v", found, err)
		}
	}
	s.go2.Store(1)
	wait(t, ps...)
}

func TestSuspectsEndsWithItsContextAndItsRegion(t *testing.T) {
	r, _ := newArena(t)
	seat(t, r, 2, [2]int{0, 1}, [2]int{1, 0})
	if found, err := shmsync.Suspects(after(20*time.Millisecond), r, time.Hour); !errors.Is(err, context.DeadlineExceeded) || found != nil {
		t.Errorf("found %v, %v", found, err)
	}
	r.Close()
	if found, err := shmsync.Suspects(t.Context(), r, time.Hour); !errors.Is(err, shm.ErrClosed) || found != nil {
		t.Errorf("closed: found %v, %v", found, err)
	}
}

// What stands in a slot is another process' word: nothing there leads astray.
func TestSuspectsSurvivesWaitsForWhatIsNoLock(t *testing.T) {
	r, _ := newArena(t)
	for _, off := range []shm.Offset{1, 7, 8, shm.Offset(1) << 60, ^shm.Offset(0), r.Data() + 3, r.Data() + shm.Offset(r.Size()) - 4} {
		e := r.Waiting(off, time.Now())
		if found, err := shmsync.Suspects(t.Context(), r, 2*time.Millisecond); err != nil || len(found) != 0 {
			t.Errorf("offset %#x: found %v, %v", off, found, err)
		}
		r.WaitOver(e)
	}
}
