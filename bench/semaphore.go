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

// A granary is what Lending uses: it lies at the beginning of a region's data.
type granary struct {
	gate
	lockset
	sem      shmsync.Semaphore
	counting shmsync.CountingSemaphore
	_        [60]byte
	taken    [maxTakers]struct {
		n int64
		_ [120]byte
	}
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
