package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

// Handoffs asks what it costs to pass a lock to one who waits for it. Two parties go around three
// locks, always taking the next before they let go of the last: at each step one lets a lock go that
// the other waits for, and then waits itself. (With one lock the one who lets it go would mostly take
// it again, and nothing would be handed over.)
type Handoffs struct {
	Lock   string
	Procs  int           // 1: the parties are goroutines of one process; 2: two processes
	Dwell  time.Duration // work of a party between getting a lock and letting the last one go
	Rounds int64         // steps of both together
}

// A HandoffsResult is what came out.
type HandoffsResult struct {
	Elapsed time.Duration // of all rounds, dwelling included
	Passes  Waits         // from just before a lock is let go to the moment that the other one has it
}

// A ring is where the parties meet.
type ring struct {
	gate
	locks [3]lockset // data: times taken; stamp: clock when it was last let go
	lanes [2]struct {
		end    int64
		passes Waits
		_      [128]byte
	}
}

type walker struct {
	Region  *shm.Region
	Case    Handoffs
	Parties []int // 0 and 1
	Work    int   // rounds of spin
}

var walk = proc.Define("bench: pass locks forth and back", func(_ context.Context, w walker) error {
	t, err := shm.At[ring](w.Region, w.Region.Data())
	if err != nil {
		return err
	}
	var locks [3]sync.Locker
	for i := range locks {
		if locks[i], err = t.locks[i].locker(w.Case.Lock, new(sync.Mutex)); err != nil {
			return err
		}
	}
	var wg sync.WaitGroup
	for _, party := range w.Parties {
		wg.Go(func() {
			l := &t.lanes[party]
			at := party
			locks[at].Lock()
			t.pass(2)
			for range (w.Case.Rounds + int64(1-party)) / 2 {
				next := (at + 1) % 3
				locks[next].Lock()
				now := clock()
				if let := t.locks[next].stamp; let != 0 {
					l.passes.Add(time.Duration(now - let))
				}
				t.locks[next].data++
				if w.Work > 0 {
					spin(w.Work)
				}
				t.locks[at].stamp = clock()
				locks[at].Unlock()
				at = next
			}
			l.end = clock()
			t.locks[at].stamp = 0 // the other one finds it free: nothing is handed over any more
			locks[at].Unlock()
		})
	}
	wg.Wait()
	return nil
})

// Run runs the case. opened is called when the gate opens.
func (c Handoffs) Run(ctx context.Context, opened func()) (_ *HandoffsResult, err error) {
	if c.Procs < 1 || c.Procs > 2 || c.Rounds < 1 {
		return nil, fmt.Errorf("bench: %d processes, %d rounds: want 1 or 2, and some", c.Procs, c.Rounds)
	}
	if err := checkLock(c.Lock, c.Procs); err != nil {
		return nil, err
	}
	r, t, err := newShared[ring](1 << 16)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	walkers := []walker{{Parties: []int{0, 1}}}
	if c.Procs == 2 {
		walkers = []walker{{Parties: []int{0}}, {Parties: []int{1}}}
	}
	for i := range walkers {
		walkers[i].Region, walkers[i].Case, walkers[i].Work = r, c, work(c.Dwell)
	}
	crew, err := hire(ctx, walk, walkers...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, crew.dismiss()) }()
	if err := crew.until("the gate opened", func() bool { return t.ready.Load() == 2 }); err != nil {
		return nil, err
	}
	opened()
	begin := clock()
	t.open.Store(1)
	if err := crew.wait(); err != nil {
		return nil, err
	}
	res := new(HandoffsResult)
	var taken int64
	for i := range t.locks {
		taken += t.locks[i].data
	}
	if taken != c.Rounds {
		return nil, fmt.Errorf("bench: locks taken %d times, counted inside %d: %s does not exclude", c.Rounds, taken, c.Lock)
	}
	for i := range t.lanes {
		res.Elapsed = max(res.Elapsed, time.Duration(t.lanes[i].end-begin))
		res.Passes.Merge(&t.lanes[i].passes)
	}
	return res, nil
}
