package sync

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"structs"
	stdsync "sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
)

// An OwnerID says for whom a [RecursiveMutex] is locked. Goroutines have no identity that a lock could go
// by, so who locks says who it is: a goroutine, or several that take turns, have one from [NewOwner] and
// pass it on to what they call. It means nothing in another process. 0 is nobody.
type OwnerID uint64

// NewOwner returns an OwnerID that nobody else has.
func NewOwner() OwnerID {
	for {
		if o := OwnerID(rand.Uint64()); o != 0 {
			return o
		}
	}
}

// A RecursiveMutex is a [Mutex] that its owner may lock again, and unlocks as often as it was locked. Its
// zero value is unlocked; it is 24 bytes and lives in a region, inside any struct, or outside of regions,
// where it works among the goroutines of its process. It must not be copied.
//
// One OwnerID is used by one goroutine at a time. Between owners, of one process or of several, and when
// the process of its owner dies, a RecursiveMutex is as a Mutex is; however deep the dead had locked it, the
// next to get it has it once. All methods panic with a [*MisuseError] for the owner 0.
type RecursiveMutex struct {
	_     structs.HostLayout
	mu    Mutex         // held while depth is not 0
	owner atomic.Uint64 // of mu: its OwnerID, mixed with the token of its process; 0 or left by the dead: nobody
	depth atomic.Uint64 // how often owner has locked m; guarded by mu
}

var _ [24]byte = [unsafe.Sizeof(RecursiveMutex{})]byte{}

// key is what m.owner reads while o of this process owns m. That of another process, dead or alive, with
// the same number differs by the token.
func (o OwnerID) key() uint64 { return uint64(o) ^ token }

// Lock locks m for o: at once if o owns it, else as [Mutex.Lock] does.
func (m *RecursiveMutex) Lock(o OwnerID) {
	if !m.again(o, "lock") {
		mustHold(m.acquire(limit{what: "lock"}, o, ownHandler))
	}
}

// TryLock locks m for o if that can be done at once, and reports whether it did.
func (m *RecursiveMutex) TryLock(o OwnerID) bool {
	if m.again(o, "lock") {
		return true
	}
	if !m.mu.TryLock() {
		return false
	}
	m.take(o)
	return true
}

// LockTimeout is Lock for a limited time, and reports whether it locked m. If o owns m, or nobody does, it
// is locked whatever the limit; 0 and less mean to try.
func (m *RecursiveMutex) LockTimeout(o OwnerID, d time.Duration) bool {
	if m.again(o, "lock") {
		return true
	}
	err := m.acquire(limit{what: "lock", deadline: time.Now().Add(d)}, o, ownHandler)
	if errors.Is(err, errTimeout) {
		return false
	}
	mustHold(err)
	return true
}

// LockContext is Lock with an error result, as [Mutex.LockContext]; an error means that this call has not
// locked m.
func (m *RecursiveMutex) LockContext(ctx context.Context, o OwnerID) error {
	if m.again(o, "lock") {
		return nil
	}
	return m.acquire(limit{what: "lock", ctx: ctx}, o, nil)
}

// Unlock takes one Lock of o back; with the last, m is free. It panics with a [*MisuseError] if o does not
// own m, and changes nothing then.
func (m *RecursiveMutex) Unlock(o OwnerID) {
	if !m.owns(o, "unlock") {
		panic(m.misuse(o))
	}
	d := m.depth.Load()
	m.depth.Store(d - 1)
	if d > 1 {
		return
	}
	m.owner.Store(0)
	crash("disowned")
	m.mu.Unlock()
}

// Do runs fn with m locked for o. It returns LockContext's error or fn's, and [shm.ErrClosed] if the region
// was closed meanwhile. If fn panics, this lock is taken back and m is inconsistent, even if o still owns it.
func (m *RecursiveMutex) Do(ctx context.Context, o OwnerID, fn func() error) (err error) {
	if err := m.LockContext(ctx, o); err != nil {
		return err
	}
	done := false
	defer func() {
		if !done {
			m.mu.word.Or(flagInconsistent)
		}
		if closed := m.unlockOpen(o); closed != nil {
			err = errors.Join(err, closed)
		}
	}()
	err = fn()
	done = true
	return err
}

// unlockOpen is Unlock for calls with an error result.
func (m *RecursiveMutex) unlockOpen(o OwnerID) error {
	if name, closed := shm.ClosedAt(unsafe.Pointer(m)); closed {
		return closedIn("unlock", name)
	}
	m.Unlock(o)
	return nil
}

// Recover is as [Mutex.Recover]; while repair runs, o owns m and may lock it again. If o owns m already, it
// returns [ErrNotInconsistent].
func (m *RecursiveMutex) Recover(ctx context.Context, o OwnerID, repair func(shm.Death) error) error {
	if m.owns(o, "recover") {
		return ErrNotInconsistent
	}
	healthy := true
	err := m.acquire(limit{what: "lock", ctx: ctx}, o, func(d shm.Death) error {
		healthy = false
		return repair(d)
	})
	if err != nil {
		return err
	}
	if err := m.unlockOpen(o); err != nil {
		return err
	}
	if healthy {
		return ErrNotInconsistent
	}
	return nil
}

// Inconsistent is as [Mutex.Inconsistent].
func (m *RecursiveMutex) Inconsistent() bool { return m.mu.Inconsistent() }

// Owner returns whose process holds m, as [Mutex.Owner].
func (m *RecursiveMutex) Owner() (Owner, bool) { return m.mu.Owner() }

// Stats is as [Mutex.Stats].
func (m *RecursiveMutex) Stats() Stats { return m.mu.Stats() }

// Depth returns how often o has locked m and not unlocked it.
func (m *RecursiveMutex) Depth(o OwnerID) int {
	if !m.owns(o, "depth") {
		return 0
	}
	return int(m.depth.Load())
}

// Locker returns a lock whose Lock and Unlock are those of m for o.
func (m *RecursiveMutex) Locker(o OwnerID) stdsync.Locker { return ownedMutex{m, o} }

type ownedMutex struct {
	m *RecursiveMutex
	o OwnerID
}

func (l ownedMutex) Lock()   { l.m.Lock(l.o) }
func (l ownedMutex) Unlock() { l.m.Unlock(l.o) }

// owns reports whether o owns m. Only o itself makes that true, and untrue: so it does not change
// meanwhile.
func (m *RecursiveMutex) owns(o OwnerID, what string) bool {
	if o == 0 {
		panic(&MisuseError{What: fmt.Sprintf("%s of a recursive mutex for owner 0; use NewOwner", what)})
	}
	return m.owner.Load() == o.key() && m.mu.word.Load()&^flags == token
}

// again locks m once more if o owns it.
func (m *RecursiveMutex) again(o OwnerID, what string) bool {
	if !m.owns(o, what) {
		return false
	}
	d := m.depth.Load()
	if d >= math.MaxInt64 {
		panic(&MisuseError{What: fmt.Sprintf("lock of a recursive mutex that was locked %d times", d)})
	}
	m.depth.Store(d + 1)
	return true
}

// take makes o the owner, once m.mu is held. Until then the owner is nobody: 0, or what the dead left there.
func (m *RecursiveMutex) take(o OwnerID) {
	crash("held by nobody")
	m.depth.Store(1)
	m.owner.Store(o.key())
	crash("owned")
}

// acquire locks m for o, who does not own it. Repair runs with m owned.
func (m *RecursiveMutex) acquire(l limit, o OwnerID, repair func(shm.Death) error) error {
	taken := false
	var settle func(shm.Death) error
	if repair != nil {
		settle = func(d shm.Death) error {
			m.take(o)
			defer func() {
				if !taken {
					m.owner.Store(0)
				}
			}()
			if err := repair(d); err != nil {
				return err
			}
			taken = true
			return nil
		}
	}
	if !m.mu.word.CompareAndSwap(0, token) {
		if err := m.mu.acquire(l, settle); err != nil {
			return err
		}
	} else if raceEnabled {
		raceAcquire(&m.mu)
	}
	if !taken {
		m.take(o)
	}
	return nil
}

// misuse is the error of an unlock by o, who does not own m.
func (m *RecursiveMutex) misuse(o OwnerID) error {
	if name, closed := shm.ClosedAt(unsafe.Pointer(m)); closed {
		return closedIn("unlock", name)
	}
	e := &MisuseError{Holder: shm.Token(m.mu.word.Load() &^ flags)}
	switch {
	case e.Holder == 0:
		e.What = "unlock of a recursive mutex that nobody has locked"
	case uint64(e.Holder) == token:
		e.What = "unlock of a recursive mutex by one who does not own it; another goroutine of this process does"
	default:
		e.What = fmt.Sprintf("unlock of a recursive mutex by one who does not own it; process %v has locked it", e.Holder)
	}
	return e
}
