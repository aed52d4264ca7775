package sync

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/shmkit/shmkit/shm"
)

// The word of a Mutex: who holds it, and four flags. 0 is free and clean.
//
//	63                          4   3   2   1   0
//	| token of the holder, or 0   | S | L | P | W |
//
// Every value is one of: free (no token), reserved (no token, S), held by a token whose death can be
// decided. Acquiring the lock and naming its holder are one compare-and-swap, so no kill leaves a
// lock that is taken by nobody. W, L and S are hints: losing one costs a deadline of a wait, never a
// wake-up.
const (
	flagWaiters      = 1 << 0 // W: somebody may sleep on the word; whoever releases it wakes one
	flagInconsistent = 1 << 1 // P: the data may be half changed; only the holder clears it
	flagLocal        = 1 << 2 // L: goroutines of the holder's process wait in its gate
	flagStarving     = 1 << 3 // S, held: a waiter has waited long; S, free: kept for one who has slept

	flags = 0xf
)

// token is what this process writes into the words of locks it holds.
var token = uint64(shm.Self())

// A Mutex is a mutual exclusion lock for goroutines of any number of processes. Its zero value is
// unlocked; it is 8 bytes and lives in a region, inside any struct, or outside of regions, where it
// works among the goroutines of its process. It must not be copied.
//
// It is robust: when its holder's process dies, the next to take it is told, by [Mutex.Lock] through
// the handler of [shm.OnOwnerDied], by calls with an error result through [ErrInconsistent]. Ownership
// is per process: goroutines have no identity, and one may unlock what another of its process locked.
//
// The n'th Unlock, in whatever process, synchronizes before the n+1'th Lock. Uncontended, Lock and
// Unlock are one compare-and-swap each, inlined, without system calls.
type Mutex struct {
	word atomic.Uint64
}

// Lock locks m and waits for it if need be. If its last holder died, the handler of [shm.OnOwnerDied]
// runs with m held; without one, or if it returns an error, Lock panics with an [*OwnerDiedError], m
// not held. It panics with an error that is [shm.ErrClosed] if the region is closed meanwhile.
func (m *Mutex) Lock() {
	// Pairs with the compare-and-swap in Unlock: what the last holder wrote is visible from here on.
	if !m.word.CompareAndSwap(0, token) {
		m.lockSlow()
	} else if raceEnabled {
		raceAcquire(m)
	}
}

// Unlock unlocks m. It panics with a [*MisuseError] if this process does not hold m, and changes
// nothing then.
func (m *Mutex) Unlock() {
	if raceEnabled {
		raceRelease(m)
	}
	if !m.word.CompareAndSwap(token, 0) { // publishes; from here on others may lock, free or unmap m
		m.unlockSlow()
	}
}

// TryLock locks m if that can be done at once, and reports whether it did. It never waits, and it
// refuses an inconsistent lock and a dead holder's as it refuses a held one.
func (m *Mutex) TryLock() bool {
	if !m.word.CompareAndSwap(0, token) && !m.tryReserved() {
		return false
	}
	if raceEnabled {
		raceAcquire(m)
	}
	return true
}

// TryLockIdle locks m if nobody holds it and nobody waits for it, and reports whether it did. It is how
// those begin who go on to wait: unlike TryLock it does not overtake a waiter that the lock is kept for.
func (m *Mutex) TryLockIdle() bool {
	if !m.word.CompareAndSwap(0, token) {
		return false
	}
	if raceEnabled {
		raceAcquire(m)
	}
	return true
}

// tryReserved takes a free lock whose word is not 0: one that was kept for a waiter. The waiter asks
// again.
//
//go:noinline
func (m *Mutex) tryReserved() bool {
	for {
		v := m.word.Load()
		next, ok := tried(v, token)
		if !ok {
			return false
		}
		if m.word.CompareAndSwap(v, next) {
			crash("tried")
			return true
		}
	}
}

// LockTimeout is Lock for a limited time, and reports whether it took m. A free lock is taken whatever
// the limit; 0 and less mean to try.
func (m *Mutex) LockTimeout(d time.Duration) bool {
	if m.word.CompareAndSwap(0, token) {
		if raceEnabled {
			raceAcquire(m)
		}
		return true
	}
	err := m.acquire(limit{what: "lock", deadline: time.Now().Add(d)}, ownHandler)
	if errors.Is(err, errTimeout) {
		return false
	}
	mustHold(err)
	return true
}

// LockContext is Lock with an error result; an error means that m is not held: [ErrInconsistent] if
// its last holder died (no handler runs), the context's error if that ended first, [shm.ErrClosed]. A
// free lock is taken whatever the context.
func (m *Mutex) LockContext(ctx context.Context) error {
	return m.LockRepaired(ctx, nil)
}

// LockRepaired is LockContext for those who know how to repair: if the last holder died, repair runs
// with m held, and nil from it makes m consistent. If it returns an error, m stays inconsistent and is
// not held, and LockRepaired returns that error. A repair that panics leaves m inconsistent.
func (m *Mutex) LockRepaired(ctx context.Context, repair func(shm.Death) error) error {
	if !m.word.CompareAndSwap(0, token) {
		return m.acquire(limit{what: "lock", ctx: ctx}, repair)
	}
	if raceEnabled {
		raceAcquire(m)
	}
	return nil
}

// Do runs fn with m held. It returns LockContext's error or fn's, and [shm.ErrClosed] if the region was closed
// meanwhile. If fn panics, m is unlocked and inconsistent.
func (m *Mutex) Do(ctx context.Context, fn func() error) (err error) {
	if err := m.LockContext(ctx); err != nil {
		return err
	}
	done := false
	defer func() {
		if !done {
			m.word.Or(flagInconsistent)
		}
		if closed := m.unlockOpen(); closed != nil {
			err = errors.Join(err, closed)
		}
	}()
	err = fn()
	done = true
	return err
}

// unlockOpen is Unlock for calls with an error result: if the region was closed, and there is nothing to
// unlock any more, it returns an error that is [shm.ErrClosed].
func (m *Mutex) unlockOpen() error {
	if raceEnabled {
		raceRelease(m)
	}
	err := m.release()
	if err != nil && !errors.Is(err, shm.ErrClosed) {
		panic(err)
	}
	return err
}

// Recover takes an inconsistent lock, runs repair with m held, and unlocks m. If repair returns nil, m
// is consistent from then on; if it returns an error, or panics, m stays as it is. It returns repair's
// error, [ErrNotInconsistent] for a lock that needs no repair, or why m could not be taken.
func (m *Mutex) Recover(ctx context.Context, repair func(shm.Death) error) error {
	healthy := true
	err := m.LockRepaired(ctx, func(d shm.Death) error {
		healthy = false
		return repair(d)
	})
	if err != nil {
		return err
	}
	if err := m.unlockOpen(); err != nil {
		return err
	}
	if healthy {
		return ErrNotInconsistent
	}
	return nil
}

// Poison says that the data m guards is half changed and stays so: as if the holder had died, the next
// to take m gets [ErrInconsistent], and Recover is the way in. m is held, and stays held until Unlock;
// Poison panics with a [*MisuseError] if this process does not hold it.
func (m *Mutex) Poison() {
	for {
		v := m.word.Load()
		if v&^flags != token {
			panic(m.misuse(v))
		}
		if m.word.CompareAndSwap(v, v|flagInconsistent) {
			return
		}
	}
}

// Inconsistent reports whether m is known to guard half changed data. A holder that died unnoticed is
// not known yet: whoever waits for m finds out.
func (m *Mutex) Inconsistent() bool { return m.word.Load()&flagInconsistent != 0 }

// lockSlow stays out of Lock, which is small enough to be inlined.
//
//go:noinline
func (m *Mutex) lockSlow() { mustHold(m.acquire(limit{what: "lock"}, ownHandler)) }

// ownHandler is the repair of those who have no error result.
func ownHandler(d shm.Death) error {
	handle := shm.OwnerDiedHandler()
	if handle == nil {
		return &OwnerDiedError{Death: d}
	}
	if err := handle(d); err != nil {
		return &OwnerDiedError{d, err}
	}
	return nil
}

// mustHold panics with the error of a lock that a method without an error result could not take.
func mustHold(err error) {
	var died *OwnerDiedError
	if errors.As(err, &died) {
		panic(died)
	}
	if err != nil {
		panic(err)
	}
}

// acquire takes m by the slow path and settles what a dead holder left. An error means that m is not
// held.
func (m *Mutex) acquire(l limit, repair func(shm.Death) error) error {
	a := attempt{m: m, limit: l}
	var err error
	if a.region, a.offset, err = locate(m, "lock"); err != nil {
		return err
	}
	if a.soon() {
		if raceEnabled {
			raceAcquire(m)
		}
		return nil
	}
	a.start = time.Now()
	dirty, err := a.take()
	if a.region != nil {
		a.region.Waited(a.offset, time.Since(a.start), err == nil, a.death.Token != 0)
	}
	if err != nil {
		return err
	}
	return a.finish(dirty, repair)
}

// finish is the end of an attempt that has got the lock. An error means that it is not held any more.
func (a *attempt) finish(dirty bool, repair func(shm.Death) error) error {
	m := a.m
	if raceEnabled {
		raceAcquire(m)
	}
	if !dirty {
		return nil
	}
	return a.settle(repair)
}

// settle settles what a dead holder left under a lock that was taken inconsistent. An error means that it
// is not held.
func (a *attempt) settle(repair func(shm.Death) error) error {
	m, death := a.m, a.death
	death.Lock = a.offset
	if death.Token != 0 {
		a.region.Logger().Info("sync: lock taken over from a dead process", "region", a.region.Name(), "lock", a.offset, "pid", death.PID)
	}
	if a.region != nil {
		death.Region = a.region.Name()
		if a.region.ContinuesAfterDeath() {
			m.word.And(^uint64(flagInconsistent))
			return nil
		}
	}
	if repair == nil {
		m.unlockOpen()
		return &OwnerDiedError{Death: death}
	}
	repaired := false
	defer func() {
		if !repaired {
			m.unlockOpen() // P stays
		}
	}()
	if err := repair(death); err != nil {
		return err
	}
	repaired = true
	crash("repaired")
	m.word.And(^uint64(flagInconsistent)) // by the holder only
	crash("consistent")
	return nil
}
