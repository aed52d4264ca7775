package sync_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// task is a task of the group: it takes o.Number of them, says so, and when it is told to does o.Rounds.
var task = proc.Define("task of a group", func(_ context.Context, o order) error {
	d := depotIn(o.Region)
	if o.Number > 0 {
		d.group.Take(o.Number)
	}
	d.ready.Add(1)
	await(&d.goOn, 1)
	for range o.Rounds {
		d.n++ // by one at a time, in the tests that look at it
		d.group.Done()
	}
	return nil
})

// addTasks adds tasks, says so, and ends when it is told to; with o.Rounds it leaves before.
var addTasks = proc.Define("add tasks to a group", func(_ context.Context, o order) error {
	d := depotIn(o.Region)
	d.group.Add(o.Number)
	if o.Rounds != 0 {
		d.group.Leave()
	}
	d.ready.Add(1)
	await(&d.goOn, 1)
	return nil
})

func TestWaitGroupWaitsForTheTasksOfChildren(t *testing.T) {
	for _, takes := range []int{0, 1} {
		t.Run(fmt.Sprintf("take=%d", takes), func(t *testing.T) {
			r, d := newDepot(t)
			if err := d.group.Wait(context.Background()); err != nil {
				t.Errorf("nothing to wait for: %v", err)
			}
			d.group.Add(3)
			var ps []*proc.Process
			for range 3 {
				ps = append(ps, start(t, task, r, takes, 1))
			}
			got := make(chan error)
			for range 5 {
				go func() { got <- d.group.Wait(context.Background()) }()
			}
			until(t, "children are ready", func() bool { return d.ready.Load() == 3 })
			if err := d.group.Wait(after(20 * time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) || d.group.Count() != 3 {
				t.Errorf("too early: %v, count %d", err, d.group.Count())
			}
			d.goOn.Store(1)
			for range 5 {
				if err := <-got; err != nil {
					t.Error(err)
				}
			}
			wait(t, ps...)
			if d.group.Count() != 0 || d.group.Wait(context.Background()) != nil {
				t.Errorf("count %d", d.group.Count())
			}
		})
	}
}

func TestWaitGroupRefusesWhatCannotBe(t *testing.T) {
	_, d := newDepot(t)
	var outside shmsync.WaitGroup
	for _, w := range []*shmsync.WaitGroup{&d.group, &outside} {
		for what, fn := range map[string]func(){
			"done":         w.Done,
			"add -1":       func() { w.Add(-1) },
			"take 1":       func() { w.Take(1) },
			"take 0":       func() { w.Take(0) },
			"add too many": func() { w.Add(1 << 30); w.Add(1 << 30) },
		} {
			mustPanic[*shmsync.MisuseError](t, what, fn)
			w.Add(-w.Count())
			if w.Count() != 0 {
				t.Errorf("%s: count %d", what, w.Count())
			}
		}
		w.Add(0)
		w.Add(2)
		mustPanic[*shmsync.MisuseError](t, "add -3 to 2", func() { w.Add(-3) })
		mustPanic[*shmsync.MisuseError](t, "add the least number", func() { w.Add(math.MinInt) })
		mustPanic[*shmsync.MisuseError](t, "take 3 of 2", func() { w.Take(3) })
		w.Take(2)
		if w.Count() != 2 {
			t.Error(w.Count())
		}
		w.Leave()
		w.Add(-2)
		if err := w.Init(2); !errors.Is(err, fs.ErrInvalid) || w.Count() != 0 {
			t.Errorf("a policy that is none: %v", err)
		}
	}
}

func TestWaitGroupTimedWaitNeverEndsEarly(t *testing.T) {
	t.Parallel()
	_, d := newDepot(t)
	for _, w := range []*shmsync.WaitGroup{&d.group, new(shmsync.WaitGroup)} {
		for _, limit := range []time.Duration{-time.Second, 0, 10 * time.Millisecond, 350 * time.Millisecond} {
			if done, err := w.WaitTimeout(limit); !done || err != nil {
				t.Errorf("%v with none outstanding: %v, %v", limit, done, err)
			}
			w.Add(1)
			begin := time.Now()
			if done, err := w.WaitTimeout(limit); done || err != nil || time.Since(begin) < limit {
				t.Errorf("%v: %v, %v after %v", limit, done, err, time.Since(begin))
			}
			w.Done()
		}
		w.Add(1)
		time.AfterFunc(10*time.Millisecond, w.Done)
		if done, err := w.WaitTimeout(time.Hour); !done || err != nil {
			t.Errorf("with a task that is done meanwhile: %v, %v", done, err)
		}
	}
}

func TestWaitGroupReportsTheTasksOfTheDead(t *testing.T) {
	r, d := newDepot(t)
	d.group.Add(5)
	p := start(t, task, r, 2, 0)
	q := start(t, task, r, 1, 1)
	until(t, "they have taken their tasks", func() bool { return d.ready.Load() == 2 })
	got := make(chan error)
	for range 3 {
		go func() { got <- d.group.Wait(context.Background()) }()
	}
	until(t, "they wait", func() bool { return d.group.Parked() == 2 })
	p.Kill()
	for range 3 {
		var died *shmsync.MemberDiedError
		if err := <-got; !errors.Is(err, shmsync.ErrMemberDied) || !errors.As(err, &died) || *died != (shmsync.MemberDiedError{Lost: 2, Outstanding: 5}) {
			t.Error(err)
		}
	}
	if err := d.group.Wait(context.Background()); !errors.Is(err, shmsync.ErrMemberDied) {
		t.Errorf("a second time: %v", err)
	}
	d.group.Done() // one of ours
	d.group.Take(1)
	var died *shmsync.MemberDiedError
	if err := d.group.Wait(context.Background()); !errors.As(err, &died) || died.Outstanding != 4 {
		t.Errorf("one done, one taken: %v", err)
	}
	d.goOn.Store(1)
	wait(t, q)
	// Somebody else takes over what is lost.
	d.group.Take(d.group.Count() - 1)
	if err := d.group.Wait(after(10 * time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("all taken: %v", err)
	}
	d.group.Add(-d.group.Count())
	if err := d.group.Wait(context.Background()); err != nil {
		t.Errorf("all done: %v", err)
	}
}

func TestWaitGroupSubtractsTheTasksOfTheDead(t *testing.T) {
	r, d := newDepot(t)
	d.group.Init(shmsync.SubtractDead)
	d.group.Add(1)
	p := start(t, addTasks, r, 2, 0)
	q := start(t, task, r, 0, 1) // does ours, or one of those
	until(t, "they are ready", func() bool { return d.ready.Load() == 2 })
	got := make(chan error)
	go func() { got <- d.group.Wait(context.Background()) }()
	p.Kill()
	until(t, "its tasks are taken off", func() bool { r.Scan(); return d.group.Count() == 1 })
	d.goOn.Store(1)
	wait(t, q)
	if err := <-got; err != nil || d.group.Count() != 0 {
		t.Errorf("%v, count %d", err, d.group.Count())
	}
}

func TestWaitGroupMissesOnlyThoseWhoAnswerForTasks(t *testing.T) {
	for _, c := range []struct {
		name  string
		leave int
		lost  int
	}{{"ends", 0, 2}, {"leaves and ends", 1, 0}} {
		t.Run(c.name, func(t *testing.T) {
			r, d := newDepot(t)
			p := start(t, addTasks, r, 2, c.leave)
			until(t, "it has added", func() bool { return d.ready.Load() == 1 })
			q := start(t, task, r, 0, 0) // answers for nothing
			d.goOn.Store(1)
			wait(t, p, q)
			until(t, "both ends are noticed", func() bool { r.Scan(); return shmsync.Attached(r) == 1 })
			err := d.group.Wait(after(10 * time.Millisecond))
			if c.lost == 0 && !errors.Is(err, context.DeadlineExceeded) || c.lost != 0 && !errors.Is(err, shmsync.ErrMemberDied) {
				t.Error(err)
			}
			d.group.Add(-2)
			if err := d.group.Wait(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
}

// A child that takes its task and dies is missed even if others are done: nobody's done counts for it.
func TestWaitGroupDoneOfOthersIsNotForATaskThatIsTaken(t *testing.T) {
	r, d := newDepot(t)
	d.group.Add(3)
	p := start(t, task, r, 1, 0)
	until(t, "it has taken one", func() bool { return d.ready.Load() == 1 })
	q := start(t, task, r, 0, 2) // the other two
	until(t, "both are ready", func() bool { return d.ready.Load() == 2 })
	d.goOn.Store(1) // p ends with its task not done
	wait(t, p, q)
	var died *shmsync.MemberDiedError
	if err := d.group.Wait(context.Background()); !errors.As(err, &died) || *died != (shmsync.MemberDiedError{Lost: 1, Outstanding: 1}) {
		t.Error(err)
	}
}

func TestWaitGroupOfGoroutines(t *testing.T) {
	_, d := newDepot(t)
	var outside shmsync.WaitGroup
	for _, w := range []*shmsync.WaitGroup{&d.group, &outside} {
		for round := range 50 {
			const tasks = 20
			counts := make([]int, tasks)
			w.Add(tasks)
			for i := range tasks {
				go func() {
					counts[i] = round + 1
					w.Done()
				}()
			}
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					if err := w.Wait(context.Background()); err != nil {
						t.Error(err)
					}
					for _, n := range counts {
						if n != round+1 {
							t.Errorf("round %d: a task is not done", round)
						}
					}
				})
			}
			wg.Wait()
		}
	}
}

func TestWaitGroupWaitEndsEvenIfTasksAreAddedAtOnce(t *testing.T) {
	_, d := newDepot(t)
	for range 50 {
		d.group.Add(1)
		got := make(chan error)
		for range 3 {
			go func() { got <- d.group.Wait(context.Background()) }()
		}
		until(t, "they wait", func() bool { return d.group.Parked() == 2 && d.group.Sleeps() })
		d.group.Done()
		d.group.Add(1)
		for range 3 {
			if err := <-got; err != nil {
				t.Fatal(err)
			}
		}
		d.group.Done()
	}
}

func TestWaitGroupWaitEndsWhenItsRegionIsClosed(t *testing.T) {
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	d := depotIn(r)
	d.group.Add(1)
	got := make(chan error)
	for range 3 {
		go func() { got <- d.group.Wait(context.Background()) }()
	}
	until(t, "they wait", func() bool { return d.group.Parked() == 2 })
	r.Close()
	for range 3 {
		if err := <-got; !errors.Is(err, shm.ErrClosed) {
			t.Error(err)
		}
	}
	if err := mustPanic[error](t, "add after the close", func() { d.group.Add(1) }); !errors.Is(err, shm.ErrClosed) {
		t.Error(err)
	}
}

func ExampleWaitGroup() {
	var tasks shmsync.WaitGroup
	tasks.Add(3)
	for range 3 {
		go tasks.Done() // in a child process: after tasks.Take(1) at its start
	}
	fmt.Println(tasks.Wait(context.Background()), tasks.Count())
	// Output: <nil> 0
}
