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

// What readers are measured beside.
const (
	ReadShmkit   = "shmkit"       // [shmsync.RWMutex] in a region: the processes read under one lock
	ReadStandard = "sync.RWMutex" // as many goroutines of one process do so: the peer
	ReadLoops    = "loops"        // each process has a word of its own, and changes it twice: the floor
)

// ReadKinds lists them.
var ReadKinds = []string{ReadShmkit, ReadStandard, ReadLoops}

// A hall is where the processes of a case of readers meet.
type hall struct {
	_     [128]byte
	rw    shmsync.RWMutex
	_     [64]byte
	phase atomic.Int64 // what is to be done: a kind, and by how many; 0: nothing, -1: go home
	_     [120]byte
	gate
	seats [maxTakers]seat
}

// A seat is one goroutine's own.
type seat struct {
	word atomic.Uint64
	_    [120]byte
	took [3]atomic.Int64 // times of each kind, in the order of ReadKinds
	_    [104]byte
}

const (
	readStride = 500 // times between two looks at what is to be done: a few µs
	phaseKinds = 100
)

// An attendant is what a process of a case of readers is told.
type attendant struct {
	Region *shm.Region
	Number int // of the process
	Procs  int // of all
}

var attend = proc.Define("bench: read", func(_ context.Context, a attendant) error {
	h, err := shm.At[hall](a.Region, a.Region.Data())
	if err != nil {
		return err
	}
	var (
		wg       sync.WaitGroup
		standard sync.RWMutex
	)
	hands := 1 // the first process reads under the standard lock, for all
	if a.Number == 0 {
		hands = a.Procs
	}
	h.rw.RLock() // the first time is another matter
	h.rw.RUnlock()
	for i := range hands {
		wg.Go(func() {
			s := &h.seats[a.Number]
			if i > 0 {
				s = &h.seats[a.Procs+i]
			} else {
				h.pass(a.Procs)
			}
			for phase := h.phase.Load(); phase >= 0; phase = h.phase.Load() {
				kind, n := int(phase%phaseKinds)-1, int(phase/phaseKinds)
				switch {
				case kind >= 0 && ReadKinds[kind] == ReadStandard && a.Number == 0 && i < n:
					for range readStride {
						standard.RLock()
						standard.RUnlock()
					}
				case kind >= 0 && ReadKinds[kind] == ReadShmkit && i == 0 && a.Number < n:
					for range readStride {
						h.rw.RLock()
						h.rw.RUnlock()
					}
				case kind >= 0 && ReadKinds[kind] == ReadLoops && i == 0 && a.Number < n:
					for range readStride {
						if !s.word.CompareAndSwap(1, 2) || !s.word.CompareAndSwap(2, 1) {
							s.word.Store(1)
						}
					}
				default:
					time.Sleep(200 * time.Microsecond)
					continue
				}
				s.took[kind].Add(readStride)
			}
		})
	}
	wg.Wait()
	return nil
})

// Readers asks how often several processes read under one lock, beside processes that have nothing to do
// with each other and goroutines of one process under the standard lock. All kinds, with all numbers of
// processes, take turns in short windows of one run, so that whatever else the machine does falls on all.
type Readers struct {
	Procs  []int         // numbers of processes
	Cycles int           // times that every kind, with every number, has a window
	Window time.Duration // 10 ms and more: a process may sleep for 0.2 ms before it sees that it is to work
}

// A ReadersResult is what came out: how often each kind read in a second with each number of processes.
type ReadersResult struct {
	Rates map[string][]float64 // by kind; in the order of Procs
	Total int64                // times in all, what does not count included
}

// Scaling returns how many times as often the i'th number of processes of a kind has read as the first.
func (r *ReadersResult) Scaling(kind string, i int) float64 {
	return r.Rates[kind][i] / r.Rates[kind][0]
}

// Run runs the case.
func (c Readers) Run(ctx context.Context) (_ *ReadersResult, err error) {
	procs := 0
	for _, n := range c.Procs {
		if n < 1 || 2*n > maxTakers {
			return nil, fmt.Errorf("bench: %d reading processes, want 1 to %d", n, maxTakers/2)
		}
		procs = max(procs, n)
	}
	if procs == 0 || c.Cycles < 1 || c.Window <= 0 {
		return nil, fmt.Errorf("bench: readers in %d cycles of %v: nothing to do", c.Cycles, c.Window)
	}
	r, h, err := newShared[hall](1 << 20)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	arguments := make([]attendant, procs)
	for i := range arguments {
		arguments[i] = attendant{r, i, procs}
	}
	crew, err := hire(ctx, attend, arguments...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, crew.dismiss()) }()
	if err := crew.until("the gate opened", func() bool { return h.ready.Load() == int64(procs) }); err != nil {
		return nil, err
	}
	h.open.Store(1)

	res := &ReadersResult{Rates: map[string][]float64{}}
	taken, lasted := map[string][]int64{}, map[string][]time.Duration{}
	for _, kind := range ReadKinds {
		taken[kind], lasted[kind] = make([]int64, len(c.Procs)), make([]time.Duration, len(c.Procs))
	}
	for range c.Cycles {
		for k, kind := range ReadKinds {
			for i, n := range c.Procs {
				h.phase.Store(int64(n*phaseKinds + k + 1))
				time.Sleep(c.Window / 5)
				before, begin := h.took(k), time.Now()
				select {
				case <-ctx.Done():
					return nil, context.Cause(ctx)
				case <-time.After(c.Window):
				}
				taken[kind][i] += h.took(k) - before
				lasted[kind][i] += time.Since(begin)
			}
		}
	}
	h.phase.Store(-1)
	if err := crew.wait(); err != nil {
		return nil, err
	}
	var counted int64
	for k, kind := range ReadKinds {
		res.Total += h.took(k)
		for i := range c.Procs {
			counted += taken[kind][i]
			res.Rates[kind] = append(res.Rates[kind], float64(taken[kind][i])/lasted[kind][i].Seconds())
			if taken[kind][i] == 0 {
				return nil, fmt.Errorf("bench: %s with %d readers was never taken", kind, c.Procs[i])
			}
		}
	}
	if counted > res.Total {
		return nil, fmt.Errorf("bench: %d reads in the windows, %d in all", counted, res.Total)
	}
	if !h.rw.TryLock() {
		return nil, errors.New("bench: readers are counted after all have gone")
	}
	h.rw.Unlock()
	return res, nil
}

// took returns how often all have read so far under a lock of the k'th kind.
func (h *hall) took(k int) (n int64) {
	for i := range h.seats {
		n += h.seats[i].took[k].Load()
	}
	return n
}
