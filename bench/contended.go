package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

const maxTakers = 64 // goroutines of one case, in all processes together

// A track is where the processes of a contention meet: it lies at the beginning of a region's data.
type track struct {
	lockset       // data: times that the lock is still to be taken, or taken to write
	emptied int64 // clock when a taker first found that no time is left; guarded by the lock
	_       [120]byte
	rw      shmsync.RWMutex // where the lock is for readers and writers
	_       [64]byte
	turn    atomic.Uint32 // for otherLock
	_       [60]byte
	gate
	stop  atomic.Bool // ends a contention that runs by the clock
	_     [124]byte
	lanes [maxTakers]lane
}

// A lane is one goroutine's own. took is stored as it goes; the rest at the end.
type lane struct {
	took     atomic.Int64 // times that it took the lock
	longest  int64        // ns
	cpu      int64        // ns of its process, in the lane of the process' first goroutine; -1: not known
	switches int64        // the same of context switches
	wrote    int64        // times that it took the lock and changed data
	word     atomic.Uint64
	_        [80]byte
	waits    Waits
	_        [32]byte
}

// A taker looks at the clock before and after one of so many times that it takes the lock: that wait
// goes into the histogram. Two readings cost some 50 ns. At 16 an empty section seems to take 8.4 ns
// where it takes 5.5.
const (
	strideEmpty = 64 // without any work
	strideWork  = 16
)

// take is what the section does: it counts one time, and works. It returns false if none is left.
func (t *track) take(inside int) bool {
	if t.data <= 0 { // less than 0 if the lock does not exclude: then the case ends, and fails
		return false
	}
	t.data--
	if inside > 0 {
		spin(inside)
	}
	return true
}

// A taker is one goroutine that takes the lock.
type taker struct {
	t               *track
	l               *lane
	inside, outside int // rounds of spin
	stride          int
	waits           *Waits
	longest         time.Duration
	took, wrote     int64
	since           time.Time     // when it began: the clock of the two below, cheaper to read than the time
	left            time.Duration // when it last looked at the clock after a wait
}

// begin is called before a wait that is looked at. What it finds is how long the turns since took, waits
// and all: the longest wait is not missed, only overstated by that much work.
func (k *taker) begin() time.Duration {
	now := time.Since(k.since)
	k.longest = max(k.longest, now-k.left)
	k.l.took.Store(k.took)
	return now
}

// entered is called after that wait, with the lock held.
func (k *taker) entered(begin time.Duration) {
	k.left = time.Since(k.since)
	d := k.left - begin
	k.longest = max(k.longest, d)
	k.waits.Add(d)
}

// ended is called with the lock held by one who found no time left.
func (k *taker) ended() {
	if k.t.emptied == 0 {
		k.t.emptied = clock()
	}
}

// The loops over the kinds of locks are written out, so that the lock's own calls are inlined as in a
// user's program. All have the same shape.

func (k *taker) takeShmkit() {
	t, mu := k.t, &k.t.mu
	for !t.stop.Load() {
		begin := k.begin()
		for i := range k.stride {
			mu.Lock()
			if i == 0 {
				k.entered(begin)
			}
			if !t.take(k.inside) {
				k.ended()
				mu.Unlock()
				return
			}
			mu.Unlock()
			k.took++
			if k.outside > 0 {
				spin(k.outside)
			}
		}
	}
}

func (k *taker) takeFutex(mu FutexLock) {
	t := k.t
	for !t.stop.Load() {
		begin := k.begin()
		for i := range k.stride {
			mu.Lock()
			if i == 0 {
				k.entered(begin)
			}
			if !t.take(k.inside) {
				k.ended()
				mu.Unlock()
				return
			}
			mu.Unlock()
			k.took++
			if k.outside > 0 {
				spin(k.outside)
			}
		}
	}
}

func (k *taker) takeStandard(mu *sync.Mutex) {
	t := k.t
	for !t.stop.Load() {
		begin := k.begin()
		for i := range k.stride {
			mu.Lock()
			if i == 0 {
				k.entered(begin)
			}
			if !t.take(k.inside) {
				k.ended()
				mu.Unlock()
				return
			}
			mu.Unlock()
			k.took++
			if k.outside > 0 {
				spin(k.outside)
			}
		}
	}
}

// takeLocker is for locks whose calls are system calls.
func (k *taker) takeLocker(mu sync.Locker) {
	t := k.t
	for !t.stop.Load() {
		begin := k.begin()
		for i := range k.stride {
			mu.Lock()
			if i == 0 {
				k.entered(begin)
			}
			if !t.take(k.inside) {
				k.ended()
				mu.Unlock()
				return
			}
			mu.Unlock()
			k.took++
			if k.outside > 0 {
				spin(k.outside)
			}
		}
	}
}

// otherLock knows locks that tests have made, where it is not nil: it returns nil for any other kind.
var otherLock func(kind string, t *track, taker, takers int) sync.Locker

func other(kind string, t *track, taker, takers int) sync.Locker {
	if otherLock == nil {
		return nil
	}
	return otherLock(kind, t, taker, takers)
}

// A contender is what a process of a contention is told.
type contender struct {
	Region          *shm.Region
	Lock            string
	First, Count    int // lanes of its goroutines
	All             int // goroutines of all processes
	Inside, Outside int // rounds of spin
	Writes          int
	File            string // for locks on files
}

var contend = proc.Define("bench: contend for a lock", func(_ context.Context, c contender) error {
	t, err := shm.At[track](c.Region, c.Region.Data())
	if err != nil {
		return err
	}
	var (
		mutex   sync.Mutex
		rwmutex sync.RWMutex
		futex   FutexLock
		errs    = make([]error, c.Count)
	)
	if c.Lock == Futex {
		if futex, err = NewFutexLock(&t.word); err != nil {
			return err
		}
	}
	var (
		wg    sync.WaitGroup
		begin = make(chan usage, 1) // when the first goroutine starts
	)
	for i := range c.Count {
		wg.Go(func() {
			l := &t.lanes[c.First+i]
			k := taker{t: t, l: l, inside: c.Inside, outside: c.Outside, stride: strideWork, waits: new(Waits)}
			if c.Inside+c.Outside == 0 {
				k.stride = strideEmpty
			}
			t.pass(c.All)
			if i == 0 {
				begin <- used()
			}
			k.since = time.Now()
			switch c.Lock {
			case Shmkit:
				k.takeShmkit()
			case Futex:
				k.takeFutex(futex)
			case Standard:
				k.takeStandard(&mutex)
			case ShmkitRW:
				k.shareShmkit(c.Writes)
			case StandardRW:
				k.shareStandard(&rwmutex, c.Writes)
			case Loops:
				k.loop()
			default:
				if mu := other(c.Lock, t, c.First+i, c.All); mu != nil {
					k.stride = 1
					k.takeLocker(mu)
					break
				}
				mu, err := openFileLock(c.File, c.Lock)
				if err != nil {
					errs[i] = err
					return
				}
				k.takeLocker(mu)
			}
			if k.wrote == 0 && !sharing(c.Lock) {
				k.wrote = k.took
			}
			l.wrote = k.wrote
			l.took.Store(k.took)
			l.longest = int64(max(k.longest, time.Since(k.since)-k.left))
			l.waits = *k.waits
		})
	}
	wg.Wait()
	cpu, switches := used().since(<-begin)
	t.lanes[c.First].cpu, t.lanes[c.First].switches = int64(cpu), switches
	return errors.Join(errs...)
})

// A Contention asks how often processes can take one lock between them, how evenly they share it, how
// long one waits, and what that costs.
type Contention struct {
	Lock       string        // one of Locks, a lock on a file, or for readers and writers
	Procs      int           // processes
	Goroutines int           // of each process
	Inside     time.Duration // work with the lock held
	Outside    time.Duration // work between two sections
	Writes     int           // of a lock for readers and writers: so many times of a hundred to write

	// Rounds is how many times the lock is taken in all. If it is 0, the contention runs by the clock:
	// for Windows times Window, after a tenth of a Window that does not count.
	Rounds  int64
	Windows int
	Window  time.Duration
}

// A ContentionResult is what came out. What it says about waits and processor time is about the whole
// run, what does not count and the end included.
type ContentionResult struct {
	Elapsed time.Duration // from the opening of the gate to the last round; or all windows
	Taken   int64         // times that the lock was taken in Elapsed
	Shares  []int64       // of each goroutine of each process, in Elapsed
	Even    float64       // lowest Jain of a window; of the whole, without windows

	Longest  time.Duration // wait of anyone, a little overstated: time in which one did not run counts too
	Waits    Waits         // every 16th wait of everyone, every 64th without any work
	CPU      time.Duration // of all processes, from the opening of the gate to the end; -1: not known
	Switches int64         // context switches, the same; -1: not known
	Wrote    int64         // times of Total that the data was changed
	Total    int64         // times that the lock was taken at all: what CPU was used for
}

// Jain returns Jain's fairness index, (Σx)²/(n·Σx²): 1 when shares are even, 1/n when one has all.
func Jain(shares []int64) float64 {
	var sum, squares float64
	for _, x := range shares {
		sum += float64(x)
		squares += float64(x) * float64(x)
	}
	if squares == 0 {
		return 0
	}
	return sum * sum / (float64(len(shares)) * squares)
}

// Run runs the case. opened is called when the gate opens, unless there was an error before.
func (c Contention) Run(ctx context.Context, opened func()) (_ *ContentionResult, err error) {
	takers := c.Procs * c.Goroutines
	switch {
	case c.Procs < 1 || c.Goroutines < 1 || takers > maxTakers:
		return nil, fmt.Errorf("bench: %d processes of %d goroutines, want 1 to %d in all", c.Procs, c.Goroutines, maxTakers)
	case c.Rounds < 0 || c.Rounds == 0 && (c.Windows < 1 || c.Window <= 0):
		return nil, fmt.Errorf("bench: %d rounds, %d windows of %v: nothing to do", c.Rounds, c.Windows, c.Window)
	}
	path := ""
	switch {
	case sharing(c.Lock):
		if err := c.checkSharing(); err != nil {
			return nil, err
		}
	case c.Lock == Flock || c.Lock == OFD:
		f, name, err := newLockFile()
		if err != nil {
			return nil, err
		}
		defer f.Close()
		path = name
	case other(c.Lock, new(track), 0, 1) != nil:
	default:
		if err := checkLock(c.Lock, c.Procs); err != nil {
			return nil, err
		}
	}
	r, t, err := newShared[track](1 << 20)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	budget := c.Rounds
	if budget == 0 {
		budget = math.MaxInt64
	}
	t.data = budget
	arguments := make([]contender, c.Procs)
	for i := range arguments {
		arguments[i] = contender{r, c.Lock, i * c.Goroutines, c.Goroutines, takers, work(c.Inside), work(c.Outside), c.Writes, path}
	}
	crew, err := hire(ctx, contend, arguments...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, crew.dismiss()) }()
	err = crew.until("the gate opened", func() bool { return t.ready.Load() == int64(takers) })
	if err != nil {
		return nil, err
	}
	res := new(ContentionResult)
	opened()
	begin := clock()
	t.open.Store(1)
	if c.Rounds == 0 {
		if err := c.watch(ctx, t, res); err != nil {
			return nil, err
		}
		t.stop.Store(true)
	}
	if err := crew.wait(); err != nil {
		return nil, err
	}

	shares := c.shares(t)
	res.Total = total(shares)
	for i := range takers {
		res.Wrote += t.lanes[i].wrote
	}
	if res.Wrote != budget-t.data || c.Rounds > 0 && t.data != 0 {
		return nil, fmt.Errorf("bench: %s was taken %d times, counted inside %d: it does not exclude", c.Lock, res.Wrote, budget-t.data)
	}
	if c.Rounds > 0 {
		res.Elapsed = time.Duration(t.emptied - begin)
		res.Taken, res.Shares, res.Even = res.Total, shares, Jain(shares)
	}
	for i := range takers {
		l := &t.lanes[i]
		res.Longest = max(res.Longest, time.Duration(l.longest))
		res.Waits.Merge(&l.waits)
		if l.cpu < 0 {
			res.CPU, res.Switches = -1, -1
		} else if res.CPU >= 0 {
			res.CPU += time.Duration(l.cpu)
			res.Switches += l.switches
		}
	}
	return res, nil
}

// watch sees the windows pass.
func (c Contention) watch(ctx context.Context, t *track, res *ContentionResult) error {
	nap := time.NewTimer(c.Window / 10)
	defer nap.Stop()
	res.Shares, res.Even = make([]int64, c.Procs*c.Goroutines), 1
	var (
		last  []int64
		since time.Time
	)
	for i := range c.Windows + 1 {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-nap.C:
		}
		nap.Reset(c.Window)
		now, shares := time.Now(), c.shares(t)
		if i > 0 {
			window := make([]int64, len(shares))
			for i := range window {
				window[i] = shares[i] - last[i]
				res.Shares[i] += window[i]
				res.Taken += window[i]
			}
			res.Even = min(res.Even, Jain(window))
			res.Elapsed += now.Sub(since)
		}
		last, since = shares, now
	}
	return nil
}

// shares returns how many times each goroutine has taken the lock so far.
func (c Contention) shares(t *track) []int64 {
	s := make([]int64, c.Procs*c.Goroutines)
	for i := range s {
		s[i] = t.lanes[i].took.Load()
	}
	return s
}
