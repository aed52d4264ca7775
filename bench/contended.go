package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

const maxProcs = 64 // processes of one case

// A track is where the processes of a case meet: it lies at the beginning of a region's data.
type track struct {
	mu    shmsync.Mutex
	left  int64 // guarded by mu: times that the lock is still to be taken
	_     [112]byte
	ready atomic.Int64 // processes that wait at the gate
	_     [120]byte
	gate  atomic.Int64 // opened by the one who holds the clock
	_     [120]byte
	lanes [maxProcs]lane
}

// A lane is one process' own.
type lane struct {
	took    atomic.Int64 // times that it took the lock
	longest atomic.Int64 // ns between two looks at its clock, [stride] times taking the lock apart
	end     atomic.Int64 // Unix ns
	_       [104]byte
}

// stride is how many times a process takes the lock between two looks at the clock. The longest wait
// is told as the longest such span: never less than the truth, and more by the time of the others,
// without a reading of the clock in every turn.
const stride = 16

// A contender is what a process of a case is told.
type contender struct {
	Region *shm.Region
	Lane   int
}

var contend = proc.Define("bench: contend for a lock", func(_ context.Context, c contender) error {
	t, err := shm.At[track](c.Region, c.Region.Data())
	if err != nil {
		return err
	}
	l := &t.lanes[c.Lane]
	t.ready.Add(1)
	for t.gate.Load() == 0 {
		runtime.Gosched()
	}
	var took, longest int64
	last := time.Now()
	for more := true; more; {
		t.mu.Lock()
		if more = t.left > 0; more {
			t.left--
			took++
		}
		t.mu.Unlock()
		if took%stride == 0 {
			now := time.Now()
			longest, last = max(longest, int64(now.Sub(last))), now
		}
	}
	l.took.Store(took)
	l.longest.Store(max(longest, int64(time.Since(last))))
	l.end.Store(time.Now().UnixNano())
	return nil
})

// A Contention is what came out when processes contended for one lock.
type Contention struct {
	Elapsed time.Duration // from the opening of the gate to the last process' end
	Shares  []int64       // times that each process took the lock
	Longest time.Duration // wait of any process, a little overstated
}

// Jain returns Jain's fairness index of the shares, (Σx)²/(n·Σx²): 1 when they are even, 1/n when one
// process had them all.
func (c *Contention) Jain() float64 {
	var sum, squares float64
	for _, x := range c.Shares {
		sum += float64(x)
		squares += float64(x) * float64(x)
	}
	if squares == 0 {
		return 0
	}
	return sum * sum / (float64(len(c.Shares)) * squares)
}

// Contend lets procs processes take one lock rounds times between them, with one decrement inside.
// open is called at the moment the gate opens, or not at all if there is an error first.
func Contend(ctx context.Context, procs int, rounds int64, open func()) (_ *Contention, err error) {
	if procs < 1 || procs > maxProcs {
		return nil, fmt.Errorf("bench: %d processes, want 1 to %d", procs, maxProcs)
	}
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	t, err := shm.At[track](r, r.Data())
	if err != nil {
		return nil, err
	}
	t.left = rounds
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var ps []*proc.Process
	defer func() {
		cancel() // ends those that still run
		for _, p := range ps {
			<-p.Done()
			err = errors.Join(err, p.Close())
		}
	}()
	for i := range procs {
		p, err := contend.Start(ctx, contender{r, i})
		if err != nil {
			return nil, err
		}
		ps = append(ps, p)
	}
	for t.ready.Load() < int64(procs) {
		for _, p := range ps {
			if !p.Alive() {
				return nil, fmt.Errorf("bench: %s ended before the gate opened: %w", p.Name(), p.Wait())
			}
		}
		time.Sleep(100 * time.Microsecond)
	}
	open()
	start := time.Now()
	t.gate.Store(1)
	for _, p := range ps {
		err = errors.Join(err, p.Wait())
	}
	if err != nil {
		return nil, err
	}
	c := &Contention{Shares: make([]int64, procs)}
	var total int64
	for i := range procs {
		l := &t.lanes[i]
		c.Shares[i] = l.took.Load()
		total += c.Shares[i]
		c.Longest = max(c.Longest, time.Duration(l.longest.Load()))
		c.Elapsed = max(c.Elapsed, time.Duration(l.end.Load()-start.UnixNano()))
	}
	if total != rounds || t.left != 0 {
		return nil, fmt.Errorf("bench: the lock was taken %d times, counted %d: the lock does not exclude", rounds-t.left, total)
	}
	return c, nil
}
