package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// RoundTrips asks what it costs to signal one who waits for a condition, and to wait for its answer. Two parties pass
// a turn forth and back: through a Mutex and a Cond for some rounds, then by a bare futex for as many, and so on, so
// that both meet the same machine.
type RoundTrips struct {
	Procs  int   // 1: the parties are goroutines of one process; 2: two processes
	Rounds int64 // of each way
}

// A RoundTripsResult is what came out: how long all rounds took, and how the blocks of them were, per round.
type RoundTripsResult struct {
	Cond, Futex           time.Duration
	CondRound, FutexRound Waits
}

const tripBlock = 100 // rounds of one way in a row

// A court is where the parties meet.
type court struct {
	gate
	word    atomic.Uint32
	_       [124]byte
	mu      shmsync.Mutex
	cond    shmsync.Cond
	turn    int64 // guarded by mu
	_       [112]byte
	result  RoundTripsResult // stored by party 0 at the end
	counted [2]int64         // turns of each party, by way of the condition
}

type tripper struct {
	Region  *shm.Region
	Case    RoundTrips
	Parties []int // 0 and 1
}

var trip = proc.Define("bench: pass a turn forth and back", func(ctx context.Context, a tripper) error {
	t, err := shm.At[court](a.Region, a.Region.Data())
	if err != nil {
		return err
	}
	floor, err := NewFutexTurn(&t.word)
	if err != nil {
		return err
	}
	errs := make([]error, 2)
	var wg sync.WaitGroup
	for _, party := range a.Parties {
		wg.Go(func() { errs[party] = t.play(ctx, a.Case, floor, int64(party)) })
	}
	wg.Wait()
	return errors.Join(errs...)
})

func (t *court) play(ctx context.Context, c RoundTrips, floor FutexTurn, party int64) error {
	t.pass(2)
	var res RoundTripsResult
	for left := c.Rounds; left > 0; left -= tripBlock {
		n := min(left, tripBlock)
		begin := time.Now()
		for range n {
			floor.Await(uint32(party))
			floor.Leave(uint32(party))
		}
		if party == 0 { // the answer to the last
			floor.Await(0)
		}
		took := time.Since(begin)
		res.Futex += took
		res.FutexRound.Add(took / time.Duration(n))
		begin = time.Now()
		if err := t.mu.LockContext(ctx); err != nil {
			return err
		}
		for range n {
			// The other one waits for its turn, or is about to. The futex has no context either.
			for t.turn != party {
				if _, err := t.cond.Wait(context.Background(), &t.mu); err != nil {
					return err
				}
			}
			t.turn = 1 - party
			t.counted[party]++
			t.cond.Signal()
		}
		// Together they begin the next block.
		for party == 0 && t.turn != 0 {
			if _, err := t.cond.Wait(context.Background(), &t.mu); err != nil {
				return err
			}
		}
		t.mu.Unlock()
		took = time.Since(begin)
		res.Cond += took
		res.CondRound.Add(took / time.Duration(n))
	}
	if party == 0 {
		t.result = res
	}
	return nil
}

// Run runs the case. opened is called when the gate opens.
func (c RoundTrips) Run(ctx context.Context, opened func()) (_ *RoundTripsResult, err error) {
	if c.Procs < 1 || c.Procs > 2 || c.Rounds < 1 {
		return nil, fmt.Errorf("bench: %d processes, %d rounds: want 1 or 2, and some", c.Procs, c.Rounds)
	}
	if _, err := NewFutexTurn(new(atomic.Uint32)); err != nil {
		return nil, err
	}
	r, t, err := newShared[court](1 << 16)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	trippers := []tripper{{r, c, []int{0, 1}}}
	if c.Procs == 2 {
		trippers = []tripper{{r, c, []int{0}}, {r, c, []int{1}}}
	}
	crew, err := hire(ctx, trip, trippers...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, crew.dismiss()) }()
	if err := crew.until("the gate opened", func() bool { return t.ready.Load() == 2 }); err != nil {
		return nil, err
	}
	opened()
	t.open.Store(1)
	if err := crew.wait(); err != nil {
		return nil, err
	}
	if t.counted != [2]int64{c.Rounds, c.Rounds} {
		return nil, fmt.Errorf("bench: turns of the parties %v, want %d each", t.counted, c.Rounds)
	}
	res := t.result
	return &res, nil
}
