package sync

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/spin"
	"github.com/shmkit/shmkit/sync/internal/futex"
)

// The word of a CountingSemaphore: how many permits there are, less one, and whether anybody may sleep on it.
//
//	31              1     0
//	| permits - 1   |     W  |
//
// So the zero word is one permit, and all ones above W are none.
const (
	countWaiters = 1 << 0
	countOne     = 1 << 1
	countMask    = 1<<31 - 1
)

// A CountingSemaphore is a number that is counted up by Release and down by Acquire, which waits while it is
// 0: the semaphore of POSIX. Its zero value is 1; [CountingSemaphore.Init] sets another one. It is 4 bytes and
// lives in a region, inside any struct, or outside of regions, where it works among the goroutines of its
// process. It must not be copied.
//
// Nobody owns its permits: any process may release what another one acquired, and more than there were at the
// start. So nobody knows what a process had that dies, and its permits do not come back: use a [Semaphore]
// where that matters. No death leaves the number half changed, and one between a Release and its wake-up costs
// the waiters 100 ms at most.
//
// The n'th Release synchronizes before the n'th Acquire after the permits of the start are used up. Both are
// one compare-and-swap, without system calls, unless somebody sleeps. Those who run may overtake those who
// wait. A Release of one permit wakes one sleeping process.
type CountingSemaphore struct {
	word atomic.Uint32
}

// Init sets the number. It is called before anybody else uses s. An error is [fs.ErrInvalid], nothing has changed
// then: permits are below 0, or more than 1<<30 - 1.
func (s *CountingSemaphore) Init(permits int) error {
	if permits < 0 || permits > maxPermits {
		return fmt.Errorf("sync: semaphore of %d permits: want 0 to %d: %w", permits, maxPermits, fs.ErrInvalid)
	}
	s.word.Store(counting(0, uint32(permits)))
	return nil
}

// permitsOf is the number that a word stands for.
func permitsOf(v uint32) uint32 { return (v/countOne + 1) & countMask }

// counting is v with another number.
func counting(v, permits uint32) (next uint32) {
	return (permits-1)&countMask*countOne | v&countWaiters
}

// acquiredOne is the step of an Acquire. One who has waited may have used up a wake-up, and cannot know who else
// sleeps: it sets W, so that the next Release wakes somebody; and if permits are left it wakes somebody itself, since
// the Release that left them may have found W cleared.
func acquiredOne(v uint32, waited bool) (next uint32, wake, ok bool) {
	n := permitsOf(v)
	if n == 0 {
		return v, false, false
	}
	next = counting(v, n-1)
	if waited {
		next |= countWaiters
	}
	return next, waited && n > 1, true
}

// releasedMany is the step of a Release of n permits, and how many sleepers it wakes.
func releasedMany(v, n uint32) (next uint32, wake int, ok bool) {
	have := permitsOf(v)
	if have > maxPermits || n > maxPermits-have {
		return v, 0, false
	}
	if v&countWaiters != 0 {
		wake = int(n)
	}
	return counting(v&^countWaiters, have+n), wake, true
}

// refusedOne is the step of one who gives up after a wait. The wake-up that it may have used up goes to the
// next: now if there are permits, else with the next Release.
func refusedOne(v uint32) (next uint32, wake bool) {
	return v | countWaiters, permitsOf(v) > 0
}

// Value returns the number, at some moment during the call.
func (s *CountingSemaphore) Value() int { return int(permitsOf(s.word.Load())) }

// Acquire takes a permit, and waits for one if need be. One that is there is taken whatever the context. An
// error means that none is taken: the context's, or [shm.ErrClosed].
func (s *CountingSemaphore) Acquire(ctx context.Context) error {
	if s.TryAcquire() {
		return nil
	}
	return s.wait(limit{what: "acquire", ctx: ctx})
}

// TryAcquire takes a permit if there is one, and reports whether it did. It never waits.
func (s *CountingSemaphore) TryAcquire() bool {
	for {
		v := s.word.Load()
		next, _, ok := acquiredOne(v, false)
		if !ok {
			return false
		}
		if s.word.CompareAndSwap(v, next) {
			if raceEnabled {
				raceAcquire(&s.word)
			}
			return true
		}
	}
}

// AcquireTimeout is Acquire for a limited time, and reports whether it took a permit. 0 and less mean to try. It
// panics with an error that is [shm.ErrClosed] if the region is closed meanwhile.
func (s *CountingSemaphore) AcquireTimeout(d time.Duration) bool {
	if s.TryAcquire() {
		return true
	}
	if d <= 0 {
		return false
	}
	err := s.wait(limit{what: "acquire", deadline: time.Now().Add(d)})
	if err != nil && !errors.Is(err, errTimeout) {
		panic(err)
	}
	return err == nil
}

// wait waits for a permit.
func (s *CountingSemaphore) wait(l limit) error {
	if s.spin() {
		return nil
	}
	region, _, err := locate(&s.word, l.what)
	if err != nil {
		return err
	}
	taken, wake := false, false
	w := watch{word: &s.word, limit: l, over: func(uint32) (got bool, err error) {
		got, wake, err = s.take(region, true, l.what)
		taken = got
		return got, err
	}}
	if err = w.wait(); taken {
		err = nil // also if the region was closed since then
	}
	if err == nil {
		if wake {
			futex.Wake(plain(&s.word), 1)
		}
		if raceEnabled {
			raceAcquire(&s.word)
		}
	} else if !errors.Is(err, shm.ErrClosed) {
		s.giveUp()
	}
	return err
}

// take takes a permit if there is one: in r, if that is not closed. The memory stays meanwhile, or a permit might go
// with an error. more says that one who sleeps is to be woken.
func (s *CountingSemaphore) take(r *shm.Region, waited bool, what string) (got, more bool, err error) {
	if !pin(r) {
		return false, false, closedError(what, r)
	}
	defer unpin(r)
	for {
		v := s.word.Load()
		next, more, ok := acquiredOne(v, waited)
		if !ok {
			return false, false, nil
		}
		if s.word.CompareAndSwap(v, next) {
			crash("took a permit after a wait")
			return true, more, nil
		}
	}
}

// giveUp is for one who has slept, and does not want a permit any more.
func (s *CountingSemaphore) giveUp() {
	for {
		v := s.word.Load()
		next, wake := refusedOne(v)
		if next != v && !s.word.CompareAndSwap(v, next) {
			continue
		}
		crash("gave up waiting for a permit")
		if wake {
			futex.Wake(plain(&s.word), 1)
		}
		return
	}
}

// spin looks for a permit for some microseconds. It only reads while there is none.
func (s *CountingSemaphore) spin() bool {
	runtime.Gosched() // who is to release one may stand in the queue of this very processor
	for end := time.Now().Add(spinFor); ; {
		if permitsOf(s.word.Load()) > 0 && s.TryAcquire() {
			return true
		}
		if !multiprocessor || time.Now().After(end) {
			return false
		}
		spin.Pause(spinPause)
	}
}

// Release adds n permits. It panics with a [*MisuseError], and changes nothing, if n is less than 1, or there
// would be more than 1<<30 - 1.
func (s *CountingSemaphore) Release(n int) {
	if raceEnabled {
		raceReleaseMerge(&s.word)
	}
	for {
		v := s.word.Load()
		next, wake, ok := releasedMany(v, uint32(min(max(n, 0), maxPermits+1)))
		if !ok || n < 1 {
			panic(&MisuseError{What: fmt.Sprintf("release of %d permits to %d", n, permitsOf(v))})
		}
		if s.word.CompareAndSwap(v, next) {
			crash("released permits")
			if wake > 0 {
				futex.Wake(plain(&s.word), wake) // asks the kernel only
				crash("woke for permits")
			}
			return
		}
	}
}
