package sync

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
)

// The word of an Event: how often it was set, whether it is now, and whether anybody may sleep on it.
//
//	31                 2     1     0
//	| times it was set | set | W  |
const (
	eventWaiters = 1 << 0
	eventSet     = 1 << 1
	eventOnce    = 1 << 2
)

const waitForEvent = "wait for an event"

// An Event is a flag that goroutines of any number of processes wait for. Its zero value is not set;
// it is 4 bytes and lives in a region, inside any struct, or outside of regions, where it works among
// the goroutines of its process. It must not be copied.
//
// Nobody owns an Event, so no death leaves it inconsistent: a process that dies in [Event.Set] has set
// it or not. Its waiters go on within 100 ms if it was killed before it had woken them.
//
// A Set, in whatever process, synchronizes before the return of each Wait that it ends. Set, Clear and
// the Wait for an event that is set make no system call unless somebody sleeps.
type Event struct {
	word atomic.Uint32
}

// Set sets the event, and lets everybody go on who waits for it. Setting one that is set does nothing.
func (e *Event) Set() {
	if raceEnabled {
		raceReleaseMerge(&e.word)
	}
	for {
		v := e.word.Load()
		next, wake := signalled(v)
		// Also if it is set: a plain store before a load that sees this is not sure to be seen by one who clears the event now, and
		// then looks. An exchange is, or comes behind that.
		if e.word.CompareAndSwap(v, next) {
			if next == v {
				return
			}
			// crash here: who sleeps looks at the word when the sleep ends by itself
			if wake {
				wakeAll(&e.word)
			}
			return
		}
	}
}

// signalled is the step of Set, and whether sleepers are woken then.
func signalled(v uint32) (next uint32, wake bool) {
	if v&eventSet != 0 {
		return v, false
	}
	return (v|eventSet)&^eventWaiters + eventOnce, v&eventWaiters != 0
}

// Clear makes the event not set. Who was waiting when it was set goes on all the same.
func (e *Event) Clear() { e.word.And(^uint32(eventSet)) }

// IsSet reports whether the event is set.
func (e *Event) IsSet() bool {
	if e.word.Load()&eventSet == 0 {
		return false
	}
	if raceEnabled {
		raceAcquire(&e.word)
	}
	return true
}

// Wait waits until the event is set, and returns nil: at once if it is, whatever the context. An event
// that is set and cleared again at once ends the waits that began before. Otherwise it returns the
// context's error, or [shm.ErrClosed].
func (e *Event) Wait(ctx context.Context) error {
	if e.IsSet() {
		return nil
	}
	return e.wait(limit{what: waitForEvent, ctx: ctx})
}

// WaitDeaths is Wait for one whose wait a death may end too: it returns false and nil as soon as [shm.Region.Deaths] is not
// what the caller has seen, for one at least of the goroutines of a process that wait for the event, if all of them
// wait so. What the caller read before it looked at what it waits for is the right thing to have seen: no death is missed
// then. Outside of regions it is Wait.
func (e *Event) WaitDeaths(ctx context.Context, seen uint32) (set bool, err error) {
	if e.IsSet() {
		return true, nil
	}
	region, _, err := locate(&e.word, waitForEvent)
	if err != nil {
		return false, err
	}
	l := limit{what: waitForEvent, ctx: ctx, mortal: true, deaths: seen}
	before, died := e.word.Load()/eventOnce, false
	w := watch{word: &e.word, limit: l, mortal: true, over: func(v uint32) (bool, error) {
		if over, _ := changed(before)(v); over {
			return true, nil
		}
		died = l.died(region)
		return died, nil
	}}
	if err := w.wait(); err != nil || died {
		return false, err
	}
	if raceEnabled {
		raceAcquire(&e.word)
	}
	return true, nil
}

// WaitTimeout is Wait for a limited time, and reports whether the event was set. 0 and less mean to
// look. It panics with an error that is [shm.ErrClosed] if the region is closed meanwhile.
func (e *Event) WaitTimeout(d time.Duration) bool {
	if e.IsSet() {
		return true
	}
	switch err := e.wait(limit{what: waitForEvent, deadline: time.Now().Add(d)}); {
	case err == nil:
		return true
	case errors.Is(err, errTimeout):
		return false
	default:
		panic(err)
	}
}

func (e *Event) wait(l limit) error {
	w := watch{word: &e.word, limit: l, over: changed(e.word.Load() / eventOnce)}
	err := w.wait()
	if err == nil && raceEnabled {
		raceAcquire(&e.word)
	}
	return err
}

// changed returns what asks a word whether the wait is over that began when the event had been set so
// many times.
func changed(times uint32) (over func(v uint32) (bool, error)) {
	return func(v uint32) (bool, error) { return v&eventSet != 0 || v/eventOnce != times, nil }
}
