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
)

// A Sleeper asks how long one waits who wants the lock once in a while, when another process takes it
// all the time. With [Standard] both are one process.
type Sleeper struct {
	Lock       string
	Goroutines int           // that hammer the lock, in one process
	Inside     time.Duration // work of those with the lock held
	Pause      time.Duration // of the sleeper, between two times
	Rounds     int           // times that the sleeper wants the lock
}

// A SleeperResult is what came out.
type SleeperResult struct {
	Waits   Waits
	Longest time.Duration
	Waited  time.Duration // by all waits together
	Hammers int64         // times that the others took the lock meanwhile
}

// A couch is where the processes of a Sleeper meet.
type couch struct {
	lockset
	gate
	begun   atomic.Int64 // goroutines that have begun to hammer
	_       [120]byte
	done    atomic.Bool // the sleeper has had its times
	_       [124]byte
	hammers int64 // stored at the end, guarded by the lock
	longest int64
	waited  int64
	waits   Waits
}

type sleeper struct {
	Region        *shm.Region
	Case          Sleeper
	Sleep, Hammer bool
	Work          int // rounds of spin
}

var sleep = proc.Define("bench: want a lock now and then", func(_ context.Context, s sleeper) error {
	t, err := shm.At[couch](s.Region, s.Region.Data())
	if err != nil {
		return err
	}
	mu, err := t.locker(s.Case.Lock, new(sync.Mutex))
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	everybody := s.Case.Goroutines + 1
	if s.Hammer {
		for range s.Case.Goroutines {
			wg.Go(func() {
				t.pass(everybody)
				n := int64(0)
				for ; n == 0 || !t.done.Load(); n++ {
					mu.Lock()
					t.data++
					if s.Work > 0 {
						spin(s.Work)
					}
					mu.Unlock()
					if n == 0 {
						t.begun.Add(1)
					}
				}
				mu.Lock()
				t.hammers += n
				mu.Unlock()
			})
		}
	}
	if s.Sleep {
		t.pass(everybody)
		for t.begun.Load() < int64(s.Case.Goroutines) {
			time.Sleep(50 * time.Microsecond)
		}
		var longest time.Duration
		for range s.Case.Rounds {
			time.Sleep(s.Case.Pause)
			begin := time.Now()
			mu.Lock()
			d := time.Since(begin)
			t.data++
			mu.Unlock()
			t.waits.Add(d)
			longest = max(longest, d)
			t.waited += int64(d)
		}
		t.longest = int64(longest)
		t.done.Store(true)
	}
	wg.Wait()
	return nil
})

// Run runs the case. opened is called when the gate opens.
func (c Sleeper) Run(ctx context.Context, opened func()) (_ *SleeperResult, err error) {
	if c.Goroutines < 1 || c.Goroutines >= maxTakers || c.Rounds < 1 {
		return nil, fmt.Errorf("bench: %d goroutines, %d rounds: nothing to do", c.Goroutines, c.Rounds)
	}
	if err := checkLock(c.Lock, 1); err != nil {
		return nil, err
	}
	r, t, err := newShared[couch](1 << 16)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	parts := []sleeper{{Sleep: true}, {Hammer: true}}
	if c.Lock == Standard {
		parts = []sleeper{{Sleep: true, Hammer: true}}
	}
	for i := range parts {
		parts[i].Region, parts[i].Case, parts[i].Work = r, c, work(c.Inside)
	}
	crew, err := hire(ctx, sleep, parts...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, crew.dismiss()) }()
	err = crew.until("the gate opened", func() bool { return t.ready.Load() == int64(c.Goroutines+1) })
	if err != nil {
		return nil, err
	}
	opened()
	t.open.Store(1)
	if err := crew.wait(); err != nil {
		return nil, err
	}
	if want := t.hammers + int64(c.Rounds); t.data != want || t.waits.Count() != uint64(c.Rounds) {
		return nil, fmt.Errorf("bench: %s was taken %d times, counted inside %d: it does not exclude", c.Lock, want, t.data)
	}
	return &SleeperResult{t.waits, time.Duration(t.longest), time.Duration(t.waited), t.hammers}, nil
}
