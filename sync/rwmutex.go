package sync

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"structs"
	stdsync "sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/spin"
)

// An RWMutex is a lock that any number of readers hold, or one writer: goroutines of any number of
// processes. Its zero value is unlocked; it is 64 bytes and lives in a region, inside any struct, or
// outside of regions, where it works among the goroutines of its process. It must not be copied.
//
// Readers do not wait for readers, and do not share memory that they write with those of other processes.
// Once a writer waits, new readers wait behind it, so neither starves the other; hence one that holds the
// lock for reading must not ask for it again without a limit. A lock cannot be upgraded: a reader that
// asks to write, and a writer that asks for anything, waits for itself.
//
// It is robust. The death of a reader frees what its process held, and no more needs to be done. When a writer dies
// inside, the next to take the lock, a reader too, is told as with [Mutex], and repairs alone. A process
// that dies while it waits, or on its way in or out, leaves the lock consistent. Ownership is per process:
// goroutines have no identity, and one may unlock what another of its process locked.
//
// The n'th Unlock synchronizes before what gets the lock afterwards; each RUnlock synchronizes before the
// next Lock. A process counts its readers in a holding of its slot: see [shm.Region.Hold]. RLock and
// RUnlock are a compare-and-swap each there, from the second time on that the process reads, as long as
// no writer comes. Lock looks at each slot whose processes have ever read: some 10 ns for each.
type RWMutex struct {
	_ structs.HostLayout
	// mu is held by a writer from before it waits for readers until it lets go, and for a moment by a reader
	// that comes while the word is not 0, or that is the first of its process.
	mu Mutex
	// writer is 0; the token of the writer that is inside, stored when no reader is left; or, with
	// halfChanged, of one that has left the data half changed. It is not 0 whenever the data may be
	// half changed, so a dead holder of mu that finds it 0 was not writing. Only the holder of mu changes it.
	writer atomic.Uint64
	// own counts the readers where no process has a slot: outside of regions, and in those on the Go heap.
	own atomic.Uint64
	// readers has a bit for each slot whose processes have ever read; set by the holder of mu.
	readers [shm.Slots / 64]atomic.Uint64
	_       [8]byte
}

var _ [64]byte = [unsafe.Sizeof(RWMutex{})]byte{}

// RLock locks rw for reading and waits for a writer if need be. If a writer died inside, the handler of
// [shm.OnOwnerDied] runs, with rw held by nobody else; without one, or if it returns an error, RLock
// panics with an [*OwnerDiedError], rw not held. It panics with an error that is [shm.ErrClosed] if the
// region is closed meanwhile, and [shm.ErrNoSpace] if the region has no room for one more lock that this
// process reads.
//
// The fast path is a count and then a look at the lock: if another goroutine closes the region between the two, RLock
// may return as if it had the lock. What is read then is zeros, RUnlock does not find a lock to unlock, and the count
// keeps writers of other processes out until this one ends, as a lock does that is held when the region is closed.
func (rw *RWMutex) RLock() {
	if raceEnabled {
		if !rw.comeIn() {
			rw.rlockSlow()
		}
		raceAcquire(&rw.mu)
		return
	}
	// comeIn, which would be a call: 2 of 10 ns.
	if s := shareOf(rw).Load(); s != nil && s.lock == rw && s.bits.Load()&s.bit != 0 {
		v := s.word.Load()
		if next, ok := entered(v, s.base); ok && s.word.CompareAndSwap(v, next) {
			crash("came in")
			if rw.mu.word.Load() == 0 {
				return
			}
			s.leave()
		}
	}
	rw.rlockSlow()
}

// comeIn is the fast path of readers: they count themselves, then look whether a writer has the word. A
// writer takes the word, then looks at the counts, so one of the two sees the other.
func (rw *RWMutex) comeIn() bool {
	if s := shareOf(rw).Load(); s != nil && s.lock == rw {
		return s.enter()
	}
	return rw.comeInOwn()
}

// comeInOwn is comeIn for a lock that lies where there are no slots.
func (rw *RWMutex) comeInOwn() bool {
	s := share{lock: rw, word: &rw.own, base: ownCount}
	return s.enter()
}

//go:noinline
func (rw *RWMutex) rlockSlow() {
	if !rw.comeInOwn() {
		mustHold(rw.rlock(limit{what: whatRead}, ownHandler))
	}
}

// What waits are for.
const (
	whatRead  = "lock for reading"
	whatWrite = "lock"
)

// RUnlock undoes one RLock, or what else locked rw for reading. It panics with a [*MisuseError] if this
// process does not hold rw for reading, and changes nothing then.
func (rw *RWMutex) RUnlock() {
	if raceEnabled {
		raceReleaseMerge(&rw.own)
		rw.runlockSlow()
		return
	}
	if s := shareOf(rw).Load(); s != nil && s.lock == rw {
		v := s.word.Load()
		if v-s.base-1 < maxReaders-1 && s.word.CompareAndSwap(v, v-1) { // left, without D
			crash("went")
			return
		}
	}
	rw.runlockSlow()
}

//go:noinline
func (rw *RWMutex) runlockSlow() {
	if err := rw.runlock(); err != nil {
		panic(err)
	}
}

// runlock is RUnlock with an error result.
func (rw *RWMutex) runlock() error {
	s := share{lock: rw, word: &rw.own, base: ownCount}
	if rw.own.Load() == 0 {
		r, off, err := locate(rw, "unlock")
		if err != nil {
			return err
		}
		slot, ok := 0, false
		if r != nil {
			slot, ok = r.Slot()
		}
		if !ok {
			return rw.misread()
		}
		_, h := r.Share(slot, off)
		if h == nil {
			return rw.misread()
		}
		s.word, s.base = &h.Word, shm.HoldingKey(off)
	}
	if !s.leave() {
		return rw.misread()
	}
	return nil
}

// misread is the error of a caller that does not hold rw for reading.
func (rw *RWMutex) misread() error {
	if name, closed := shm.ClosedAt(unsafe.Pointer(rw)); closed {
		return closedIn("unlock", name)
	}
	return &MisuseError{What: "unlock of a lock that this process does not hold for reading"}
}

// TryRLock locks rw for reading if that can be done at once, and reports whether it did. It refuses an
// inconsistent lock and a dead writer's as it refuses a held one. It never sleeps; while another reader
// may be just about to come in, it looks again for 10 µs at most.
func (rw *RWMutex) TryRLock() bool {
	if !rw.comeIn() && !rw.tryRLock() {
		return false
	}
	if raceEnabled {
		raceAcquire(&rw.mu)
	}
	return true
}

func (rw *RWMutex) tryRLock() bool {
	s, err := newShare(rw, whatRead)
	if err != nil {
		return false
	}
	if s.known() && s.enter() {
		return true
	}
	a := attempt{m: &rw.mu}
	if a.region, a.offset, err = locate(&rw.mu, whatRead); err != nil || !pin(a.region) {
		return false
	}
	a.pinned = true
	defer a.unpin()
	for end := time.Now().Add(spinFor); !rw.tryWord(); spin.Pause(spinPause) {
		if s.known() && s.enter() {
			return true
		}
		if rw.writer.Load() != 0 || rw.mu.Inconsistent() || time.Now().After(end) {
			return false
		}
	}
	return a.register(rw, s) == nil
}

// tryWord takes the word if it is free and the lock is consistent. It does not order readers.
func (rw *RWMutex) tryWord() bool {
	return rw.mu.word.CompareAndSwap(0, token) || rw.mu.tryReserved()
}

// RLockTimeout is RLock for a limited time, and reports whether it locked rw. A lock that no writer holds
// or waits for is taken whatever the limit; 0 and less mean to try.
func (rw *RWMutex) RLockTimeout(d time.Duration) bool {
	if !rw.comeIn() {
		err := rw.rlock(limit{what: whatRead, deadline: time.Now().Add(d)}, ownHandler)
		if errors.Is(err, errTimeout) {
			return false
		}
		if err != nil {
			mustHold(err)
		}
	}
	if raceEnabled {
		raceAcquire(&rw.mu)
	}
	return true
}

// RLockContext is RLock with an error result; an error means that rw is not held: [ErrInconsistent] if a
// writer died inside (no handler runs), the context's error if that ended first, [shm.ErrClosed],
// [shm.ErrNoSpace]. A lock that no writer holds or waits for is taken whatever the context.
func (rw *RWMutex) RLockContext(ctx context.Context) error {
	if !rw.comeIn() {
		if err := rw.rlock(limit{what: whatRead, ctx: ctx}, nil); err != nil {
			return err
		}
	}
	if raceEnabled {
		raceAcquire(&rw.mu)
	}
	return nil
}

// RDo runs fn with rw locked for reading. It returns RLockContext's error or fn's, and [shm.ErrClosed] if the region
// was closed meanwhile. If fn panics, rw is unlocked.
func (rw *RWMutex) RDo(ctx context.Context, fn func() error) (err error) {
	if err := rw.RLockContext(ctx); err != nil {
		return err
	}
	defer func() {
		if raceEnabled {
			raceReleaseMerge(&rw.own)
		}
		closed := rw.runlock()
		switch {
		case errors.Is(closed, shm.ErrClosed):
			err = errors.Join(err, closed)
		case closed != nil:
			panic(closed)
		}
	}()
	return fn()
}

// Lock locks rw for writing: nobody else holds it then. What [Mutex.Lock] says of deaths and closed
// regions is true of it.
func (rw *RWMutex) Lock() {
	if !rw.comeInAlone() {
		if err := rw.lock(limit{what: whatWrite}, ownHandler); err != nil {
			mustHold(err) // allocates
		}
	}
	rw.raceLocked()
}

// comeInAlone is the fast path of writers, where nobody has ever read.
func (rw *RWMutex) comeInAlone() bool {
	if !rw.unread() || !rw.mu.word.CompareAndSwap(0, token) {
		return false
	}
	crash("has the word, unread")
	if !rw.unread() { // the first readers have come meanwhile
		rw.mu.release()
		return false
	}
	rw.writer.Store(token)
	crash("writes, unread")
	return true
}

// raceLocked tells the detector what a writer has seen: what writers wrote, and that readers are gone.
func (rw *RWMutex) raceLocked() {
	if raceEnabled {
		raceAcquire(&rw.mu)
		raceAcquire(&rw.own)
	}
}

// Unlock unlocks rw, locked for writing. It panics with a [*MisuseError] if this process does not hold it
// so, and changes nothing then.
func (rw *RWMutex) Unlock() {
	if err := rw.unlock(); err != nil {
		panic(err)
	}
}

// unlock is Unlock with an error result.
func (rw *RWMutex) unlock() error {
	if rw.writer.Load() != token {
		return rw.misuse()
	}
	if raceEnabled {
		raceRelease(&rw.mu)
	}
	if !rw.writer.CompareAndSwap(token, written(token, rw.mu.word.Load())) { // of two calls for one lock
		return rw.misuse()
	}
	crash("wrote")
	if rw.mu.word.CompareAndSwap(token, 0) { // publishes; from here on others may lock, free or unmap rw
		return nil
	}
	return rw.mu.release()
}

// misuse is the error of a caller that does not hold rw for writing.
func (rw *RWMutex) misuse() error {
	if name, closed := shm.ClosedAt(unsafe.Pointer(rw)); closed {
		return closedIn("unlock", name)
	}
	w := rw.writer.Load()
	if w&halfChanged != 0 || w == token {
		w = 0
	}
	return &MisuseError{Holder: shm.Token(w)}
}

// TryLock locks rw for writing if that can be done at once, and reports whether it did. It never waits,
// and it refuses an inconsistent lock and a dead holder's as it refuses a held one.
func (rw *RWMutex) TryLock() bool {
	if !rw.comeInAlone() && !rw.tryLock() {
		return false
	}
	rw.raceLocked()
	return true
}

func (rw *RWMutex) tryLock() bool {
	r, off, err := locate(rw, whatWrite)
	if err != nil || !pin(r) {
		return false
	}
	defer unpin(r)
	if !rw.tryWord() {
		return false
	}
	crash("tried the word")
	if (location{r, off}).anyRead(rw) {
		rw.mu.release()
		return false
	}
	rw.writer.Store(token)
	crash("tried with success")
	return true
}

// LockTimeout is Lock for a limited time, and reports whether it locked rw. A free lock is taken whatever
// the limit; 0 and less mean to try.
func (rw *RWMutex) LockTimeout(d time.Duration) bool {
	if !rw.comeInAlone() {
		err := rw.lock(limit{what: whatWrite, deadline: time.Now().Add(d)}, ownHandler)
		if errors.Is(err, errTimeout) {
			return false
		}
		if err != nil {
			mustHold(err)
		}
	}
	rw.raceLocked()
	return true
}

// LockContext is Lock with an error result; an error means that rw is not held: [ErrInconsistent] if a
// writer died inside (no handler runs), the context's error if that ended first, [shm.ErrClosed]. A free
// lock is taken whatever the context.
func (rw *RWMutex) LockContext(ctx context.Context) error {
	if !rw.comeInAlone() {
		if err := rw.lock(limit{what: whatWrite, ctx: ctx}, nil); err != nil {
			return err
		}
	}
	rw.raceLocked()
	return nil
}

// Do runs fn with rw locked for writing. It returns LockContext's error or fn's, and [shm.ErrClosed] if the region was
// closed meanwhile. If fn panics, rw is unlocked and inconsistent.
func (rw *RWMutex) Do(ctx context.Context, fn func() error) (err error) {
	if err := rw.LockContext(ctx); err != nil {
		return err
	}
	done := false
	defer func() {
		if !done {
			rw.mu.word.Or(flagInconsistent)
		}
		closed := rw.unlock()
		switch {
		case errors.Is(closed, shm.ErrClosed):
			err = errors.Join(err, closed)
		case closed != nil:
			panic(closed)
		}
	}()
	err = fn()
	done = true
	return err
}

// Recover takes an inconsistent lock, runs repair with rw held by nobody else, and unlocks rw. If repair
// returns nil, rw is consistent from then on; if it returns an error, or panics, rw stays as it is. It
// returns repair's error, [ErrNotInconsistent] for a lock that needs no repair, or why rw could not be
// taken.
func (rw *RWMutex) Recover(ctx context.Context, repair func(shm.Death) error) error {
	healthy := true
	a := attempt{m: &rw.mu, limit: limit{what: whatWrite, ctx: ctx}}
	defer a.unpin()
	err := a.seize(rw, func(d shm.Death) error {
		healthy = false
		return repair(d)
	})
	if err != nil {
		return err
	}
	if err := rw.mu.unlockOpen(); err != nil {
		return err
	}
	if healthy {
		return ErrNotInconsistent
	}
	return nil
}

// Poison says that the data rw guards is half changed and stays so: as if the writer had died, the next
// to take rw gets [ErrInconsistent], and Recover is the way in. rw is held for writing, and stays held
// until Unlock; Poison panics with a [*MisuseError] if this process does not hold it so.
func (rw *RWMutex) Poison() {
	if rw.writer.Load() != token {
		panic(rw.misuse())
	}
	rw.mu.Poison()
}

// Inconsistent reports whether rw is known to guard half changed data. A writer that died unnoticed is
// not known yet: whoever waits for rw finds out.
func (rw *RWMutex) Inconsistent() bool { return rw.mu.Inconsistent() && !whole(rw.writer.Load()) }

// RLocker returns a Locker whose Lock and Unlock are RLock and RUnlock of rw.
func (rw *RWMutex) RLocker() stdsync.Locker { return (*rlocker)(rw) }

type rlocker RWMutex

func (r *rlocker) Lock()   { (*RWMutex)(r).RLock() }
func (r *rlocker) Unlock() { (*RWMutex)(r).RUnlock() }

// Owner returns who holds rw for writing, and false if nobody does: see [Mutex.Owner].
func (rw *RWMutex) Owner() (Owner, bool) {
	w := rw.writer.Load()
	if whole(w) || w&halfChanged != 0 || rw.mu.word.Load()&^flags != w {
		return Owner{}, false
	}
	return rw.mu.Owner()
}

// Stats returns how much rw is fought for: see [Mutex.Stats]. Readers that get in at once are not counted.
func (rw *RWMutex) Stats() Stats { return rw.mu.Stats() }

// rlock is the slow path of readers.
func (rw *RWMutex) rlock(l limit, repair func(shm.Death) error) error {
	s, err := newShare(rw, l.what)
	if err != nil {
		return err
	}
	if rw.spinIn(&s) {
		return nil
	}
	a := attempt{m: &rw.mu, limit: l}
	defer a.unpin()
	if err := a.seize(rw, repair); err != nil {
		return err
	}
	return a.register(rw, s)
}

// spinIn looks for a while whether a reader can come in without the word: most that hold it are gone
// sooner than a sleep takes. If readers took the word each time that another one has it for a moment, none
// would ever find it free again.
func (rw *RWMutex) spinIn(s *share) bool {
	for end := time.Now().Add(spinFor); s.known(); spin.Pause(spinPause) {
		v := rw.mu.word.Load()
		if v == 0 {
			if s.enter() {
				return true
			}
			if _, ok := entered(s.word.Load(), s.base); !ok {
				return false // full, waited for, or another object's
			}
		}
		if v != 0 && v&^flags == 0 || time.Now().After(end) { // nobody has it, but it is kept, or inconsistent
			return false
		}
		if v&^flags == token {
			runtime.Gosched()
		}
	}
	return false
}

// register counts a reader that holds the word, and releases the word. The memory is pinned.
func (a *attempt) register(rw *RWMutex, s share) error {
	err := a.stand(rw, &s)
	rw.mu.release()
	if err == nil && a.region != nil && a.region.Closed() {
		s.leave() // where others see it
		err = closedError(a.limit.what, a.region)
	}
	return err
}

// stand is register before the word is released.
func (a *attempt) stand(rw *RWMutex, s *share) (err error) {
	for {
		if !s.known() {
			s.bits.Or(s.bit)
			crash("known to writers")
		}
		s.remember()
		v := s.word.Load()
		next, ok := registered(v, s.base)
		switch {
		case ok && s.word.CompareAndSwap(v, next):
			crash("registered")
			return nil
		case ok:
		case drained(v, s.base): // another object's
			if *s, err = newShare(rw, a.limit.what); err != nil {
				return err
			}
		default:
			return fmt.Errorf("sync: %s: more than %d readers in one process: %w", a.limit.what, maxReaders, shm.ErrNoSpace)
		}
	}
}

// lock is the path of writers where somebody has ever read.
func (rw *RWMutex) lock(l limit, repair func(shm.Death) error) error {
	r, off, err := locate(rw, l.what)
	if err != nil {
		return err
	}
	if !pin(r) {
		return closedError(l.what, r)
	}
	pinned := true // also for a fault: the file may be cut
	defer func() {
		if pinned {
			unpin(r)
		}
	}()
	got := rw.mu.word.CompareAndSwap(0, token)
	if got {
		crash("has the word")
	}
	if !got || (location{r, off}).anyRead(rw) {
		pinned = false
		return rw.lockSlow(attempt{m: &rw.mu, limit: l, region: r, offset: off, pinned: true}, got, repair)
	}
	if r != nil && r.Closed() {
		rw.mu.release()
		return closedError(l.what, r)
	}
	rw.writer.Store(token)
	crash("writes")
	return nil
}

// lockSlow is lock for those who have the word, got or not, and have to wait.
func (rw *RWMutex) lockSlow(a attempt, got bool, repair func(shm.Death) error) error {
	defer a.unpin()
	if !got {
		a.unpin()
		if err := a.seize(rw, repair); err != nil {
			return err
		}
	}
	waited := !a.start.IsZero()
	err := a.drain(rw)
	if !waited && a.region != nil && !a.start.IsZero() {
		a.region.Waited(a.offset, time.Since(a.start), err == nil, false)
	}
	if err != nil {
		rw.mu.release()
		return err
	}
	rw.writer.Store(token)
	crash("writes after a wait")
	return nil
}

// seize takes the word, and settles what a dead writer left. An error means that it is not held. The region
// is pinned then, so that whoever does not get the lock all the same can release the word where others see it.
func (a *attempt) seize(rw *RWMutex, repair func(shm.Death) error) (err error) {
	m := a.m
	if a.region, a.offset, err = locate(m, a.limit.what); err != nil {
		return err
	}
	if a.swap(0, token) {
		crash("has the word")
		if raceEnabled {
			raceAcquire(m)
		}
		return nil
	}
	a.start = time.Now()
	dirty, err := a.run()
	if err == nil && a.region != nil && a.region.Closed() {
		m.release()
		err = closedError(a.limit.what, a.region)
	}
	if a.region != nil {
		a.region.Waited(a.offset, time.Since(a.start), err == nil, a.death.Token != 0)
	}
	if err != nil {
		return err
	}
	if raceEnabled {
		raceAcquire(m)
	}
	switch {
	case dirty && whole(rw.writer.Load()):
		m.word.And(^uint64(flagInconsistent))
		crash("nobody was writing")
	case dirty:
		a.unpin() // the repair is the user's, and may take long
		if err := a.settle(mend(rw, repair)); err != nil {
			return err
		}
		if raceEnabled { // a reader that has repaired does not release what it read, but what it wrote
			raceRelease(m)
		}
		if !pin(a.region) { // closed while it was repaired: held by this process until it ends, like a Mutex then
			return closedError(a.limit.what, a.region)
		}
		a.pinned = a.region != nil
		rw.writer.Store(0) // where nobody is asked after a death
	default:
		return nil
	}
	return nil
}

// mend returns repair for the holder of the word: what it has repaired nobody repairs again, even if its process
// dies before it has said so in the word.
func mend(rw *RWMutex, repair func(shm.Death) error) func(shm.Death) error {
	if repair == nil {
		return nil
	}
	return func(d shm.Death) error {
		if err := repair(d); err != nil {
			return err
		}
		rw.writer.Store(0)
		crash("mended")
		return nil
	}
}
