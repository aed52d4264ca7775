package bench

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// Barriers asks what a barrier of two processes costs, beside the bare futex. A round trip is one there and
// back: at a barrier two passes, in each of which the one that comes last lets the other go; at the futex two
// words, each set by one party and waited for by the other. Both processes do the one and the other by turns,
// some round trips each time.
type Barriers struct {
	Turns  int // of each
	Rounds int // round trips of a turn
}

// A BarriersResult holds medians over the turns, of one round trip.
type BarriersResult struct {
	Barrier, Futex time.Duration
	Ratio          float64 // the median of the barrier's by the futex' of the same turn
}

type meeting struct {
	gate
	barrier shmsync.Barrier
	words   [2]struct {
		word atomic.Uint32
		_    [124]byte
	}
}

type meeter struct {
	Region  *shm.Region
	Results *shm.Region
	Case    Barriers
	Party   int
}

// maxTurns is how many turns there is room for.
const maxTurns = 1000

// met is what party 0 has measured, in ns, each turn.
type met [maxTurns]struct{ barrier, futex int64 }

var meet = proc.Define("bench: meet at a barrier", func(_ context.Context, m meeter) error {
	t, err := shm.At[meeting](m.Region, m.Region.Data())
	if err != nil {
		return err
	}
	results, err := shm.At[met](m.Results, m.Results.Data())
	if err != nil {
		return err
	}
	var words [2]FutexWord
	for i := range words {
		if words[i], err = NewFutexWord(&t.words[i].word); err != nil {
			return err
		}
	}
	mine, its := words[m.Party], words[1-m.Party]
	t.pass(2)
	n := uint32(0)
	for turn := range m.Case.Turns {
		begin := time.Now()
		for range 2 * m.Case.Rounds {
			if _, err := t.barrier.Wait(context.Background()); err != nil {
				return err
			}
		}
		middle := time.Now()
		for range m.Case.Rounds {
			n++
			if m.Party == 0 {
				mine.Set(n)
				its.Wait(n)
			} else {
				its.Wait(n)
				mine.Set(n)
			}
		}
		if m.Party == 0 {
			results[turn].barrier, results[turn].futex = int64(middle.Sub(begin)), int64(time.Since(middle))
		}
	}
	return nil
})

// Run runs the case. opened is called when the gate opens.
func (c Barriers) Run(ctx context.Context, opened func()) (_ *BarriersResult, err error) {
	if c.Turns < 1 || c.Turns > maxTurns || c.Rounds < 1 {
		return nil, fmt.Errorf("bench: %d turns of %d round trips: want 1 to %d, and some", c.Turns, c.Rounds, maxTurns)
	}
	if _, err := NewFutexWord(new(atomic.Uint32)); err != nil {
		return nil, err
	}
	r, t, err := newShared[meeting](1 << 16)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	results, all, err := newShared[met](1 << 16)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, results.Close()) }()
	if err := t.barrier.Init(2); err != nil {
		return nil, err
	}
	crew, err := hire(ctx, meet, meeter{r, results, c, 0}, meeter{r, results, c, 1})
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
	var barrier, futex, ratio []time.Duration
	for i := range c.Turns {
		b, f := all[i].barrier, all[i].futex
		barrier = append(barrier, time.Duration(b/int64(c.Rounds)))
		futex = append(futex, time.Duration(f/int64(c.Rounds)))
		ratio = append(ratio, time.Duration(1e6*b/max(f, 1)))
	}
	return &BarriersResult{median(barrier), median(futex), float64(median(ratio)) / 1e6}, nil
}
