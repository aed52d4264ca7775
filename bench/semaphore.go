package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// Permits asks what it costs to take and give back what nobody else wants, beside a Mutex: batches of each kind
// take turns, and the best batch of each counts, so what else the machine does matters less.
type Permits struct {
	Batches int
	Rounds  int // pairs in a batch
}

// A PermitsResult is the cost of a pair of calls, of the best batch.
type PermitsResult struct {
	Mutex     time.Duration // Lock and Unlock
	Semaphore time.Duration // Acquire and Release of one permit of a Semaphore
	Counting  time.Duration // the same of a CountingSemaphore
	Group     time.Duration // Add and Done of a WaitGroup
	Rounds    int           // the times are of so many pairs
}

// A granary is what Permits and Lending use: it lies at the beginning of a region's data.
type granary struct {
	gate
	lockset
	sem      shmsync.Semaphore
	counting shmsync.CountingSemaphore
	_        [60]byte
	group    shmsync.WaitGroup
	ping     shmsync.CountingSemaphore
	_        [60]byte
	pong     shmsync.CountingSemaphore
	_        [60]byte
	taken    [maxTakers]struct {
		n int64
		_ [120]byte
	}
}

// Run runs the case.
func (c Permits) Run(ctx context.Context) (_ *PermitsResult, err error) {
	if c.Batches < 1 || c.Rounds < 1 {
		return nil, fmt.Errorf("bench: %d batches of %d rounds: nothing to do", c.Batches, c.Rounds)
	}
	r, t, err := newShared[granary](1 << 16)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	res := &PermitsResult{Rounds: c.Rounds}
	best := func(of *time.Duration, begin time.Time) {
		if d := time.Since(begin); *of == 0 || d < *of {
			*of = d
		}
	}
	for range c.Batches {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		begin := time.Now()
		for range c.Rounds {
			t.mu.Lock()
			t.mu.Unlock()
		}
		best(&res.Mutex, begin)
		begin = time.Now()
		for range c.Rounds {
			if err := t.sem.Acquire(ctx, 1); err != nil {
				return nil, err
			}
			t.sem.Release(1)
		}
		best(&res.Semaphore, begin)
		begin = time.Now()
		for range c.Rounds {
			if err := t.counting.Acquire(ctx); err != nil {
				return nil, err
			}
			t.counting.Release(1)
		}
		best(&res.Counting, begin)
		begin = time.Now()
		for range c.Rounds {
			t.group.Add(1)
			t.group.Done()
		}
		best(&res.Group, begin)
	}
	return res, nil
}

// Kinds of semaphores.
const (
	Owned     = "semaphore"
	Ownerless = "counting"
)

// Lending asks how often processes can take one permit of a few between them, without any work.
type Lending struct {
	Kind    string // Owned or Ownerless
	Procs   int
	Permits int
	Rounds  int64 // times that each process takes one
}

// A LendingResult is what came out.
type LendingResult struct {
	Elapsed time.Duration // from the opening of the gate to the end of the last process
	Taken   int64
}

type lender struct {
	Region *shm.Region
	Case   Lending
	Number int
}

var lend = proc.Define("bench: take permits", func(ctx context.Context, l lender) error {
	t, err := shm.At[granary](l.Region, l.Region.Data())
	if err != nil {
		return err
	}
	t.pass(l.Case.Procs)
	n := &t.taken[l.Number].n
	for range l.Case.Rounds {
		if l.Case.Kind == Owned {
			if err := t.sem.Acquire(ctx, 1); err != nil {
				return err
			}
			*n++
			t.sem.Release(1)
			continue
		}
		if err := t.counting.Acquire(ctx); err != nil {
			return err
		}
		*n++
		t.counting.Release(1)
	}
	return nil
})

// Run runs the case. opened is called when the gate opens.
func (c Lending) Run(ctx context.Context, opened func()) (_ *LendingResult, err error) {
	if c.Procs < 1 || c.Procs > maxTakers || c.Permits < 1 || c.Rounds < 1 || c.Kind != Owned && c.Kind != Ownerless {
		return nil, fmt.Errorf("bench: %d processes, %d permits of a %q, %d rounds: nothing to do", c.Procs, c.Permits, c.Kind, c.Rounds)
	}
	r, t, err := newShared[granary](1 << 16)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := errors.Join(t.sem.Init(c.Permits), t.counting.Init(c.Permits)); err != nil {
		return nil, err
	}
	arguments := make([]lender, c.Procs)
	for i := range arguments {
		arguments[i] = lender{r, c, i}
	}
	crew, err := hire(ctx, lend, arguments...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, crew.dismiss()) }()
	if err := crew.until("the gate opened", func() bool { return t.ready.Load() == int64(c.Procs) }); err != nil {
		return nil, err
	}
	opened()
	begin := time.Now()
	t.open.Store(1)
	if err := crew.wait(); err != nil {
		return nil, err
	}
	res := &LendingResult{Elapsed: time.Since(begin)}
	for i := range c.Procs {
		res.Taken += t.taken[i].n
	}
	if res.Taken != c.Rounds*int64(c.Procs) || t.counting.Value() != c.Permits {
		return nil, fmt.Errorf("bench: permits taken %d times by %d processes, %d left of %d", res.Taken, c.Procs, t.counting.Value(), c.Permits)
	}
	return res, nil
}

// PingPong asks what a wake-up through a semaphore costs: two processes wait for each other in turn, each over a
// CountingSemaphore of its own.
type PingPong struct {
	Rounds int // there and back
}

var answer = proc.Define("bench: answer a ping", func(ctx context.Context, l lender) error {
	t, err := shm.At[granary](l.Region, l.Region.Data())
	if err != nil {
		return err
	}
	for range l.Case.Rounds {
		if err := t.ping.Acquire(ctx); err != nil {
			return err
		}
		t.pong.Release(1)
	}
	return nil
})

// Run runs the case, and returns how long the rounds took. opened is called when the first ping has been answered.
func (c PingPong) Run(ctx context.Context, opened func()) (elapsed time.Duration, err error) {
	r, t, err := newShared[granary](1 << 16)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := errors.Join(t.ping.Init(0), t.pong.Init(0)); err != nil {
		return 0, err
	}
	crew, err := hire(ctx, answer, lender{r, Lending{Rounds: int64(c.Rounds) + 1}, 0})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, crew.dismiss()) }()
	begin := time.Now()
	for i := range c.Rounds + 1 {
		t.ping.Release(1)
		if err := t.pong.Acquire(ctx); err != nil {
			return 0, err
		}
		if i == 0 {
			opened()
			begin = time.Now()
		}
	}
	return time.Since(begin), crew.wait()
}
