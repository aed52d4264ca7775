package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// Kills asks how long the others are held up when a process is killed that holds a lock. Every round
// kills a small process of its own; those who wait stay the same.
type Kills struct {
	Waiters int           // processes that wait for the lock
	Waited  time.Duration // how long they have waited at least when the kill comes
	Spread  time.Duration // and up to so much longer: kills at every point of how waiters sleep
	Rounds  int           // kills
}

// A KillsResult is what came out, in the order of the kills.
type KillsResult struct {
	First  []time.Duration // from the call of kill until the first waiter has the lock
	Last   []time.Duration // until all have had it
	Waited []time.Duration // how long the one who had waited longest had waited
}

// A scene is where the processes of a Kills meet.
type scene struct {
	mu    shmsync.Mutex
	taken int64 // guarded by mu: times that a waiter took it
	_     [112]byte
	held  atomic.Int64 // the round whose victim holds mu
	_     [120]byte
	round atomic.Int64 // the round that waiters are to wait in; -1: go home
	_     [120]byte
	lanes [maxTakers]struct {
		ready atomic.Int64 // 1: the process is there
		since atomic.Int64 // clock at the beginning of its wait in this round; 0: not yet
		got   atomic.Int64 // clock when it had the lock in this round; 0: not yet
		_     [104]byte
	}
}

type waiter struct {
	Region *shm.Region
	Lane   int
}

var outlive = proc.Define("bench: wait for the lock of one that is killed", func(ctx context.Context, w waiter) error {
	t, err := shm.At[scene](w.Region, w.Region.Data())
	if err != nil {
		return err
	}
	l := &t.lanes[w.Lane]
	l.ready.Store(1)
	for last := int64(0); ; {
		round := t.round.Load()
		if round < 0 {
			return nil
		}
		if round == last {
			time.Sleep(20 * time.Microsecond)
			continue
		}
		last = round
		l.since.Store(clock())
		if err := t.mu.LockRepaired(ctx, func(shm.Death) error { return nil }); err != nil {
			return err
		}
		got := clock()
		t.taken++
		t.mu.Unlock()
		l.got.Store(got)
	}
})

type victim struct {
	Region *shm.Region
	Round  int64
}

var beKilled = proc.Define("bench: hold a lock until killed", func(ctx context.Context, v victim) error {
	t, err := shm.At[scene](v.Region, v.Region.Data())
	if err != nil {
		return err
	}
	t.mu.Lock()
	t.held.Store(v.Round)
	<-proc.ParentDone() // nothing else ends it
	return nil
})

// Run runs the case. opened is called when all are there; what comes before a kill is in the time
// from then on.
func (c Kills) Run(ctx context.Context, opened func()) (_ *KillsResult, err error) {
	if c.Waiters < 1 || c.Waiters > maxTakers || c.Rounds < 1 {
		return nil, fmt.Errorf("bench: %d waiters, %d kills: nothing to do", c.Waiters, c.Rounds)
	}
	r, t, err := newShared[scene](1 << 16)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	waiters := make([]waiter, c.Waiters)
	for i := range waiters {
		waiters[i] = waiter{r, i}
	}
	crew, err := hire(ctx, outlive, waiters...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, crew.dismiss()) }()
	all := func(word func(i int) *atomic.Int64) func() bool {
		return func() bool {
			for i := range c.Waiters {
				if word(i).Load() == 0 {
					return false
				}
			}
			return true
		}
	}
	ready := func(i int) *atomic.Int64 { return &t.lanes[i].ready }
	since := func(i int) *atomic.Int64 { return &t.lanes[i].since }
	got := func(i int) *atomic.Int64 { return &t.lanes[i].got }
	if err := crew.until("it was ready", all(ready)); err != nil {
		return nil, err
	}
	opened()
	res := new(KillsResult)
	for round := int64(1); round <= int64(c.Rounds); round++ {
		for i := range c.Waiters {
			since(i).Store(0)
			got(i).Store(0)
		}
		killed, err := c.kill(ctx, r, t, crew, round, all(since))
		if err != nil {
			return nil, err
		}
		if err := crew.until("it had the lock", all(got)); err != nil {
			return nil, err
		}
		var begins, ends []int64
		for i := range c.Waiters {
			begins, ends = append(begins, since(i).Load()), append(ends, got(i).Load())
		}
		res.First = append(res.First, time.Duration(slices.Min(ends)-killed))
		res.Last = append(res.Last, time.Duration(slices.Max(ends)-killed))
		res.Waited = append(res.Waited, time.Duration(killed-slices.Min(begins)))
	}
	t.round.Store(-1)
	if err := crew.wait(); err != nil {
		return nil, err
	}
	if want := int64(c.Rounds * c.Waiters); t.taken != want {
		return nil, fmt.Errorf("bench: the lock was taken %d times after kills, want %d", t.taken, want)
	}
	return res, nil
}

// kill lets a process take the lock and kills it when all have waited for it for long enough. It
// returns the clock of the kill.
func (c Kills) kill(ctx context.Context, r *shm.Region, t *scene, crew *crew, round int64, waiting func() bool) (_ int64, err error) {
	v, err := hire(ctx, beKilled, victim{r, round})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, v.dismiss()) }()
	if err := v.until("it held the lock", func() bool { return t.held.Load() == round }); err != nil {
		return 0, err
	}
	t.round.Store(round)
	for !waiting() { // without a nap, which would make short waits longer
		runtime.Gosched()
		if !crew.ps[0].Alive() {
			return 0, crew.until("it waited", waiting)
		}
	}
	_, part := math.Modf(float64(round) * 0.6180339887) // the golden ratio: evenly spread, however many rounds
	more := time.Duration(part * float64(c.Spread))
	time.Sleep(c.Waited + more.Truncate(time.Millisecond))
	for begin := time.Now(); time.Since(begin) < 50*time.Microsecond+more%time.Millisecond; { // the last one comes to its wait
		runtime.Gosched()
	}
	killed := clock()
	return killed, v.ps[0].Kill()
}
