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

// Trips asks what it costs to wake one who waits and to be woken by its answer: a round trip of two
// parties, each of which sleeps, or does what it does instead, until the other one has had its turn.
type Trips struct {
	Way    string // one of Ways
	Procs  int    // 1: the parties are goroutines of one process; 2: two processes
	Window time.Duration
}

// Ways by which two parties can call each other.
const (
	ByCounting = "CountingSemaphore" // two of them
	ByCond     = "Cond"              // a condition and its Mutex
	ByBarrier  = "Barrier"           // of two: a round trip passes it twice
	ByEvent    = "Event"             // two of them, cleared by who was woken
	ByFutex    = "futex"             // two words of which each is set by one party: the floor
	ByChannel  = "channel"           // two, of one process
	ByStdCond  = "sync.Cond"         // of one process
	ByPipe     = "pipe"              // a byte through each of two
	BySocket   = "socket"            // a byte through a Unix socket
)

// A TripsResult is what came out.
type TripsResult struct {
	Elapsed  time.Duration
	Trips    int64
	Waits    Waits // of each round trip
	Longest  time.Duration
	CPU      time.Duration // of both parties; -1: not known
	Switches int64
}

// A line is a party's end: what it says to the other one, and how it waits to be told.
type line struct{ send, await func() error }

// A court is where the parties meet.
type court struct {
	gate
	over     atomic.Bool // set by party 0 before its last call
	_        [124]byte
	counting [2]struct {
		sem shmsync.CountingSemaphore
		_   [124]byte
	}
	mu      shmsync.Mutex
	cond    shmsync.Cond
	turn    int64 // guarded by mu: whose it is
	_       [96]byte
	barrier shmsync.Barrier
	_       [128]byte
	events  [2]struct {
		e shmsync.Event
		_ [124]byte
	}
	words [2]struct {
		word atomic.Uint32
		_    [124]byte
	}
	trips    int64 // stored by party 0 at the end, as what follows
	answered int64 // by party 1
	elapsed  int64
	longest  int64
	waits    Waits
	cpu      [2]int64 // of each process
	switches [2]int64
}

type tripper struct {
	Region  *shm.Region
	Case    Trips
	Parties []int     // 0 and 1
	Ends    [2]string // pipes: to read from and to write to, by party; sockets: an address
	Writes  [2]string
}

var trip = proc.Define("bench: call each other", func(ctx context.Context, a tripper) error {
	t, err := shm.At[court](a.Region, a.Region.Data())
	if err != nil {
		return err
	}
	own := &inside{calls: [2]chan struct{}{make(chan struct{}, 1), make(chan struct{}, 1)}}
	own.cond.L = &own.mu
	errs := make([]error, 2)
	var wg sync.WaitGroup
	before := used()
	for _, party := range a.Parties {
		wg.Go(func() {
			l, hang, err := t.line(a, party, own)
			if err == nil {
				err = errors.Join(t.play(a.Case, l, party), hang())
			}
			errs[party] = err
		})
	}
	wg.Wait()
	cpu, switches := used().since(before)
	t.cpu[a.Parties[0]], t.switches[a.Parties[0]] = int64(cpu), switches
	return errors.Join(errs...)
})

// inside is what the parties use that are in one process.
type inside struct {
	calls [2]chan struct{}
	mu    sync.Mutex
	cond  sync.Cond
	turn  int
}

// line returns the party's end, and a function that gives it up.
func (t *court) line(a tripper, party int, own *inside) (_ line, hang func() error, err error) {
	ctx, other := context.Background(), 1-party // the floor has no context either
	hang = func() error { return nil }
	var l line
	switch a.Case.Way {
	case ByCounting:
		l.send = func() error { t.counting[other].sem.Release(1); return nil }
		l.await = func() error { return t.counting[party].sem.Acquire(ctx) }
	case ByCond:
		l.send = func() error {
			t.mu.Lock()
			t.turn = int64(other)
			t.cond.Signal()
			t.mu.Unlock()
			return nil
		}
		l.await = func() error {
			t.mu.Lock()
			for t.turn != int64(party) {
				if _, err := t.cond.Wait(ctx, &t.mu); err != nil {
					return err
				}
			}
			t.mu.Unlock()
			return nil
		}
	case ByBarrier:
		l.send = func() error { _, err := t.barrier.Wait(ctx); return err }
		l.await = l.send
	case ByEvent:
		l.send = func() error { t.events[other].e.Set(); return nil }
		l.await = func() error {
			err := t.events[party].e.Wait(ctx)
			t.events[party].e.Clear()
			return err
		}
	case ByFutex:
		var words [2]FutexWord
		for i := range words {
			if words[i], err = NewFutexWord(&t.words[i].word); err != nil {
				return l, nil, err
			}
		}
		said, heard := uint32(0), uint32(0)
		l.send = func() error { said++; words[party].Set(said); return nil }
		l.await = func() error { heard++; words[other].Wait(heard); return nil }
	case ByChannel:
		l.send = func() error { own.calls[other] <- struct{}{}; return nil }
		l.await = func() error { <-own.calls[party]; return nil }
	case ByStdCond:
		l.send = func() error {
			own.mu.Lock()
			own.turn = other
			own.cond.Signal()
			own.mu.Unlock()
			return nil
		}
		l.await = func() error {
			own.mu.Lock()
			for own.turn != party {
				own.cond.Wait()
			}
			own.mu.Unlock()
			return nil
		}
	case ByPipe, BySocket:
		return a.streamLine(party)
	default:
		return l, nil, fmt.Errorf("bench: unknown way %q", a.Case.Way)
	}
	return l, hang, nil
}

// play makes party 0 call and party 1 answer, until the window is over.
func (t *court) play(c Trips, l line, party int) error {
	t.pass(2)
	if party == 1 {
		for n := int64(1); ; n++ {
			if err := l.await(); err != nil {
				return err
			}
			over := t.over.Load() // before the answer: the next call may be another one's last
			if err := l.send(); err != nil {
				return err
			}
			if over {
				t.answered = n
				return nil
			}
		}
	}
	begin := time.Now()
	last, longest, trips := time.Duration(0), time.Duration(0), int64(0)
	var waits Waits
	for last < c.Window {
		if err := errors.Join(l.send(), l.await()); err != nil {
			return err
		}
		now := time.Since(begin)
		waits.Add(now - last)
		longest = max(longest, now-last)
		last = now
		trips++
	}
	t.over.Store(true)
	t.trips, t.elapsed, t.longest, t.waits = trips, int64(last), int64(longest), waits
	return errors.Join(l.send(), l.await())
}

// Run runs the case.
func (c Trips) Run(ctx context.Context) (_ *TripsResult, err error) {
	if c.Procs < 1 || c.Procs > 2 || c.Window <= 0 || c.Procs == 2 && (c.Way == ByChannel || c.Way == ByStdCond) {
		return nil, fmt.Errorf("bench: trips by %s between %d processes for %v", c.Way, c.Procs, c.Window)
	}
	r, t, err := newShared[court](1 << 16)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := errors.Join(t.counting[0].sem.Init(0), t.counting[1].sem.Init(0), t.barrier.Init(2)); err != nil {
		return nil, err
	}
	trippers := []tripper{{Parties: []int{0, 1}}}
	if c.Procs == 2 {
		trippers = []tripper{{Parties: []int{0}}, {Parties: []int{1}}}
	}
	s, err := newStreams(c.Way)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	for i := range trippers {
		trippers[i].Region, trippers[i].Case = r, c
		trippers[i].Ends, trippers[i].Writes = s.reads, s.writes
	}
	crew, err := hire(ctx, trip, trippers...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, crew.dismiss()) }()
	if err := crew.until("the gate opened", func() bool { return t.ready.Load() == 2 }); err != nil {
		return nil, err
	}
	t.open.Store(1)
	if err := crew.wait(); err != nil {
		return nil, err
	}
	if t.answered != t.trips+1 {
		return nil, fmt.Errorf("bench: %d calls by %s, %d answers", t.trips+1, c.Way, t.answered)
	}
	res := &TripsResult{Elapsed: time.Duration(t.elapsed), Trips: t.trips, Waits: t.waits, Longest: time.Duration(t.longest)}
	for i := range c.Procs {
		if t.cpu[i] < 0 || res.CPU < 0 {
			res.CPU, res.Switches = -1, -1
			continue
		}
		res.CPU += time.Duration(t.cpu[i])
		res.Switches += t.switches[i]
	}
	return res, nil
}
