package sync

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"structs"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/spin"
	"github.com/shmkit/shmkit/sync/internal/futex"
)

const (
	maxPermits = 1<<30 - 1
	fastTries  = 4 // of a step that siblings may come in between, before the lock is taken
)

// A Semaphore hands out permits to the processes that ask for them, up to a limit. Its zero value has one
// permit; [Semaphore.Init] sets another limit. It is 128 bytes and lives in a region, inside any struct, or
// outside of regions, where it works among the goroutines of its process. It must not be copied.
//
// Permits are owned by processes: only the process that has acquired a permit can release it, from any
// goroutine, and when a process ends, in whatever way and at whatever instruction, all of its permits come
// back. Who waits for them gets them within 100 ms of the end, mostly sooner. A [CountingSemaphore] has no
// owners.
//
// Those who wait are served in turn: first come, first served among processes, and, as with a [Mutex], nearly
// so among the goroutines of one. So a request for many permits is not starved by small ones. A request that
// does not have to wait may overtake one that has waited for less than a millisecond, which is then still
// patient; none overtakes a longer wait. A process that is stopped while it waits holds up those behind it,
// like the stopped holder of a lock.
//
// The n'th Release of a permit synchronizes before the Acquire that gets it. While nobody waits, released
// permits stay with the process, until another one needs them: Acquire and Release are one compare-and-swap
// each then, on a word that no other process uses, without system calls. The first Acquire of a process, and
// those that need what others have left idle, cost some 100 ns and a look at the holding of each process that
// uses the semaphore. A process with permits, or waiting, takes one of the holdings of package shm.
type Semaphore struct {
	_       structs.HostLayout
	users   members
	bound   atomic.Uint32 // the limit plus one; 0: the zero value, its limit is 1
	local   atomic.Uint32 // not 0: there are no slots here, the only stake is in here
	mu      Mutex         // of the tally: held by who grants, returns under S, reclaims or claims
	tickets uint32        // given out so far; guarded by mu
	_       [12]byte
	here    shm.Holding // the stake, where there are no slots
}

var _ [128]byte = [unsafe.Sizeof(Semaphore{})]byte{}

// Words of a holding.
const (
	holdingMore  = 0 // permits in use that the value has no room for; only with S. Guarded by mu
	holdingClaim = 1 // changed under mu, but for its end
	holdingCall  = 2 // counts up when the claim is called; its process sleeps by its lower half
)

// Init makes s a semaphore of that many permits, which nobody has. It is called before anybody else uses s. An
// error is [fs.ErrInvalid], nothing has changed then: permits are below 0, or more than 1<<30 - 1.
func (s *Semaphore) Init(permits int) error {
	if permits < 0 || permits > maxPermits {
		return fmt.Errorf("sync: semaphore of %d permits: want 0 to %d: %w", permits, maxPermits, fs.ErrInvalid)
	}
	if err := enterSection(&s.mu); err != nil {
		return err
	}
	s.users.clear()
	s.local.Store(0)
	s.here.Word.Store(0)
	for i := range s.here.Words {
		s.here.Words[i].Store(0)
	}
	s.bound.Store(uint32(permits) + 1)
	return leaveSection(&s.mu)
}

// Limit returns how many permits there are, in use or not.
func (s *Semaphore) Limit() int { return int(s.limit()) }

func (s *Semaphore) limit() uint64 {
	if b := s.bound.Load(); b != 0 {
		return uint64(b-1) & maxPermits
	}
	return 1
}

// Value returns how many permits nobody uses, at some moment during the call; 0 if the region is closed. What dead
// processes had counts as used until their end was noticed. It costs what an Acquire without idle permits does.
func (s *Semaphore) Value() int {
	q := request{s: s}
	if q.locate() != nil || enterSection(&s.mu) != nil {
		return 0
	}
	var inUse uint64
	q.each(func(t *stake) {
		n, _ := t.counts()
		inUse += n
	})
	if leaveSection(&s.mu) != nil {
		return 0
	}
	return int(s.limit() - min(inUse, s.limit()))
}

// Acquire takes n permits, all at once, and waits for them if need be. Permits that are there are taken
// whatever the context. An error means that none is taken: [fs.ErrInvalid] if n is not from 1 to the limit,
// the context's error, [shm.ErrClosed], or [shm.ErrNoSpace] if the region has no room for the holdings of
// this process.
func (s *Semaphore) Acquire(ctx context.Context, n int) error {
	if t, ok := s.stake(); ok && t.use(n) {
		if raceEnabled {
			raceAcquire(s)
		}
		return nil
	}
	return s.acquireContext(ctx, n)
}

// TryAcquire takes n permits if that can be done at once, and reports whether it did. It does not overtake one
// that has waited for long, and it panics as AcquireTimeout does.
func (s *Semaphore) TryAcquire(n int) bool {
	if t, ok := s.stake(); ok && t.use(n) {
		if raceEnabled {
			raceAcquire(s)
		}
		return true
	}
	return s.acquired(s.acquire(n, limit{what: "acquire"}, false))
}

// AcquireTimeout is Acquire for a limited time, and reports whether it took the permits: false also at once if
// n is not from 1 to the limit. 0 and less mean to try. It panics with an error that is [shm.ErrClosed] or
// [shm.ErrNoSpace].
func (s *Semaphore) AcquireTimeout(n int, d time.Duration) bool {
	if t, ok := s.stake(); ok && t.use(n) {
		if raceEnabled {
			raceAcquire(s)
		}
		return true
	}
	return s.acquired(s.acquire(n, limit{what: "acquire", deadline: time.Now().Add(d)}, d > 0))
}

func (s *Semaphore) acquired(err error) bool {
	if err != nil && !errors.Is(err, errTimeout) && !errors.Is(err, fs.ErrInvalid) {
		panic(err)
	}
	return err == nil
}

// Release gives n permits back. It panics with a [*MisuseError], and changes nothing, if this process does not
// have so many, or n is less than 1; and with an error that is [shm.ErrClosed] if the region is closed.
func (s *Semaphore) Release(n int) {
	if raceEnabled {
		raceReleaseMerge(s)
	}
	if t, ok := s.stake(); !ok || !t.unuse(n) {
		s.releaseSlow(n)
	}
}

// stake returns this process' stake, if it counts and is known.
func (s *Semaphore) stake() (t stake, ok bool) {
	at := uintptr(unsafe.Pointer(s))
	if k := stakePlace(at).Load(); k != nil && k.at == at && k.bits.Load()&k.bit != 0 {
		return k.stake, true
	}
	return stake{h: &s.here}, s.local.Load() != 0
}

// A request is one call that needs the semaphore's lock.
type request struct {
	s      *Semaphore
	n      uint64
	region *shm.Region // nil outside any region
	offset shm.Offset
	slot   int
	slots  bool // the region has them: other processes may have stakes
	own    stake
	claim  uint64 // what stands in own, 0 none
	start  time.Time
}

// locate finds out where the semaphore lies.
func (q *request) locate() (err error) {
	if q.region, q.offset, err = locate(q.s, "acquire"); err != nil {
		return err
	}
	if q.region != nil {
		if q.slot, q.slots = q.region.Slot(); !q.slots && q.region.Closed() {
			return closedError("acquire", q.region)
		}
	}
	return nil
}

// each calls look with every stake that counts. mu is held.
func (q *request) each(look func(t *stake)) {
	if !q.slots {
		look(&stake{h: &q.s.here})
		return
	}
	key := shm.HoldingKey(q.offset)
	q.s.users.each(q.region, q.offset, func(h *shm.Holding) { look(&stake{h, key}) })
}

// tally adds all stakes up. mu is held.
func (q *request) tally() (all tally) {
	q.each(func(t *stake) {
		if v, ok := t.value(); ok && v != 0 {
			all.add(v, t.h.Words[holdingMore].Load(), t.h.Words[holdingClaim].Load())
		}
	})
	return all
}

// find finds this process' stake, and makes it count. mu is held.
func (q *request) find() error {
	if !q.slots {
		q.own = stake{h: &q.s.here}
		q.s.local.Store(1)
		return nil
	}
	h, err := q.region.Hold(q.offset)
	if err != nil {
		return err
	}
	q.own = stake{h, shm.HoldingKey(q.offset)}
	q.s.users.join(q.slot, h, q.own.key)
	return nil
}

// reclaim makes up to k idle permits of all stakes free. If somebody waits, what is in use comes back under the
// lock from now on.
func (q *request) reclaim(k uint64, waits bool) {
	q.each(func(t *stake) {
		for {
			v, ok := t.value()
			next := reclaimed(v, k, waits)
			if !ok || next == v {
				return
			}
			if t.swap(v, next) { // ends: its process makes its own steps meanwhile, or S stops it
				k -= idleOf(v) - idleOf(next)
				crash("reclaimed")
				return
			}
		}
	})
}

// step makes a step of this process' own stake, which is found again if other objects took its holding, and
// returns nil if it cannot be made. mu is held.
func (q *request) step(next func(v uint64) (uint64, bool)) (ok bool, err error) {
	for {
		v, ours := q.own.value()
		if !ours {
			if err := q.find(); err != nil {
				return false, err
			}
			continue
		}
		to, ok := next(v)
		if !ok {
			return false, nil
		}
		if q.own.swap(v, to) {
			return true, nil
		}
	}
}

// take takes the permits if it may: it is one section of mu. What happens to this process in it leaves nothing
// to repair: what is free is added up anew each time.
func (q *request) take() (taken bool, err error) {
	s := q.s
	if err := enterSection(&s.mu); err != nil {
		return false, err
	}
	var call *uint32
	taken, err = q.serve()
	if taken && q.claim != 0 {
		q.unclaim()
		call = q.callNext()
	}
	crash("about to leave the section")
	if closed := leaveSection(&s.mu); closed != nil {
		return false, closed
	}
	wakeCalled(call)
	if taken && err == nil && q.slots {
		q.own.remember(s, q.slot)
	}
	return taken, err
}

// serve is take with mu held.
func (q *request) serve() (taken bool, err error) {
	if err := q.find(); err != nil {
		return false, err
	}
	limit, all := q.s.limit(), q.tally()
	if q.claim != 0 {
		q.impatient()
		all = q.tally()
	}
	if free := all.free(limit); free < q.n && (q.claim != 0 || all.mayTake(limit, 0, 0)) {
		q.reclaim(q.n-free, all.head != 0)
		all = q.tally()
	}
	if !all.mayTake(limit, q.n, q.claim) {
		return false, nil
	}
	return q.grant(all.head != 0)
}

// grant takes q.n free permits.
func (q *request) grant(waits bool) (bool, error) {
	ok, err := q.step(func(v uint64) (uint64, bool) { return granted(v, q.n, waits) })
	if ok || err != nil {
		crash("granted")
		return ok, err
	}
	// More than the value has room for: they are counted beside it, and come back under the lock.
	if _, err = q.step(func(v uint64) (uint64, bool) { return v | stakeSlow, true }); err != nil {
		return false, err
	}
	crash("about to be granted many")
	q.own.h.Words[holdingMore].Add(q.n)
	crash("granted many")
	return true, nil
}

// impatient renews the claim of one who has looked in vain, or has waited for long. mu is held.
func (q *request) impatient() {
	renewed := q.claim &^ claimPatient
	if time.Since(q.start) < starveAfter {
		renewed |= q.claim & claimPatient
	}
	q.claim = renewed
	q.own.h.Words[holdingClaim].Store(renewed)
	crash("renewed the claim")
}

// stand makes a claim: from now on who returns permits sees that this process waits for n. It is one section of
// mu.
func (q *request) stand() error {
	s := q.s
	if err := enterSection(&s.mu); err != nil {
		return err
	}
	err := q.find()
	if err == nil {
		crash("about to take a place")
		_, err = q.step(func(v uint64) (uint64, bool) { return claimed(v), true })
	}
	if err == nil {
		crash("about to claim")
		q.claim = claimFor(s.tickets, q.n, true)
		q.own.h.Words[holdingClaim].Store(q.claim)
		crash("claimed")
		s.tickets++
		q.reclaim(maxPermits, true)
	}
	return errors.Join(err, leaveSection(&s.mu))
}

// unclaim takes the claim back. mu is held: otherwise somebody may be about to call it, when the holding is
// another object's already.
func (q *request) unclaim() {
	q.claim = 0
	q.own.h.Words[holdingClaim].Store(0)
	crash("unclaimed")
	q.own.h.Words[holdingCall].Store(0)
	more := q.own.h.Words[holdingMore].Load()
	q.step(func(v uint64) (uint64, bool) {
		if next := unclaimed(v); next != 0 || more == 0 {
			return next, true
		}
		return stakeSlow, true
	})
	crash("gave the place up")
}

// callNext calls the oldest of those who wait, if there is enough for him now. It returns the word that he
// sleeps by, to be woken when mu is not held any more.
func (q *request) callNext() (word *uint32) {
	all := q.tally()
	if !all.calls(q.s.limit()) {
		return nil
	}
	q.each(func(t *stake) {
		// Its process takes a claim back without mu only if it closes the region, and keeps the holding then.
		if v, ok := t.value(); ok && v&stakeClaim != 0 && t.h.Words[holdingClaim].CompareAndSwap(all.head, all.head|claimCalled) {
			crash("about to call")
			t.h.Words[holdingCall].Add(1)
			crash("called")
			word = lowHalfOf(&t.h.Words[holdingCall])
		}
	})
	return word
}

func wakeCalled(word *uint32) {
	if word != nil {
		crash("about to wake the called")
		futex.Wake(word, 1)
	}
}

// acquireContext keeps the limit out of Acquire.
//
//go:noinline
func (s *Semaphore) acquireContext(ctx context.Context, n int) error {
	return s.acquire(n, limit{what: "acquire", ctx: ctx}, true)
}

// acquire is Acquire for those who have no idle permits of their own, or were not alone.
func (s *Semaphore) acquire(n int, l limit, waits bool) error {
	if limit := s.limit(); n < 1 || uint64(n) > limit {
		return fmt.Errorf("sync: acquire %d permits of a semaphore that has %d: %w", n, limit, fs.ErrInvalid)
	}
	for range fastTries {
		if t, ok := s.stake(); ok && t.use(n) {
			if raceEnabled {
				raceAcquire(s)
			}
			return nil
		}
	}
	q := request{s: s, n: uint64(n)}
	if err := q.locate(); err != nil {
		return err
	}
	taken, err := q.take()
	if !taken && err == nil {
		if waits {
			err = q.wait(&l)
		} else {
			err = q.tryAgain(errTimeout)
		}
	}
	if err == nil && raceEnabled {
		raceAcquire(s)
	}
	return err
}

// tryAgain is for one who is about to be refused: permits of the dead are found, once in 100 ms, and taken.
func (q *request) tryAgain(why error) error {
	if q.slots {
		q.region.Scan()
	}
	if taken, err := q.take(); taken || err != nil {
		return err
	}
	return why
}

// wait waits for the permits: at first looking, then in the queue of the goroutines of this process, then, as
// its first, with a claim, asleep.
func (q *request) wait(l *limit) error {
	q.start = time.Now()
	if taken, err := q.spin(); taken || err != nil {
		return err
	}
	turn := enterTurn(q.s)
	defer leaveTurn(q.s, turn)
	if err := turn.join(*l); err != nil {
		if q.region != nil && q.region.Closed() {
			return closedError("acquire", q.region)
		}
		return q.tryAgain(err)
	}
	defer turn.Unlock()
	// The memory stays until the claim is taken back: Close waits for that, and ends the sleep.
	if !pin(q.region) {
		return closedError("acquire", q.region)
	}
	defer unpin(q.region)
	return q.lead(l)
}

// spin looks at the stakes for some microseconds.
func (q *request) spin() (taken bool, err error) {
	runtime.Gosched() // who is to release may stand in the queue of this very processor
	for end := q.start.Add(spinFor); ; {
		all := q.tally() // without the lock: a hint
		if all.head != 0 && all.head&claimPatient == 0 {
			return false, nil
		}
		var idle uint64
		q.each(func(t *stake) {
			_, k := t.counts()
			idle += k
		})
		if all.free(q.s.limit())+idle >= q.n {
			if taken, err := q.take(); taken || err != nil {
				return taken, err
			}
		}
		if !multiprocessor || time.Now().After(end) {
			return false, nil
		}
		spin.Pause(spinPause)
	}
}

// lead waits with a claim, asleep, until the permits are there or the wait is over.
func (q *request) lead(l *limit) (err error) {
	if err := q.stand(); err != nil {
		q.withdraw()
		return err
	}
	cancel, stop := q.cancel(l)
	defer stop()
	var b bed
	call := &q.own.h.Words[holdingCall]
	for {
		var deaths futex.Word
		if q.slots {
			deaths = futex.Word{Addr: plain(q.region.Deaths()), Val: q.region.Deaths().Load()} // before the look
		}
		calls := uint32(call.Load())
		if taken, err := q.take(); taken || err != nil {
			if err != nil {
				q.withdraw()
			}
			return err
		}
		if q.region != nil && q.region.Closed() {
			q.withdraw()
			return closedError("acquire", q.region)
		}
		if err := l.over(); err != nil {
			q.withdraw()
			return err
		}
		d := longSleep // then deaths in the region are looked for
		if left := starveAfter - time.Since(q.start); left > 0 {
			d = max(left, time.Microsecond) // then it claims what is free
		}
		if end, ok := l.end(); ok {
			d = min(d, max(time.Until(end), time.Microsecond))
		}
		crash("about to sleep")
		if b.on(futex.Word{Addr: lowHalfOf(call), Val: calls}, deaths, d, cancel) == futex.Expired && q.slots {
			q.region.Scan()
		}
		crash("slept")
	}
}

// withdraw takes the claim back, and calls the next, who may be served now.
func (q *request) withdraw() {
	if q.claim == 0 {
		return
	}
	if enterSection(&q.s.mu) != nil {
		// The region is closed, and mu was not free. To others it is as if this process had just died: the next
		// finds out when his sleep ends. The holding stays taken.
		q.own.h.Words[holdingClaim].Store(0)
		return
	}
	q.unclaim()
	call := q.callNext()
	leaveSection(&q.s.mu)
	wakeCalled(call)
}

// cancel returns what ends the sleep when the context does, or the region is closed.
func (q *request) cancel(l *limit) (c *futex.Cancel, stop func()) {
	var closed <-chan struct{}
	if q.region != nil {
		closed = q.region.Done()
	}
	if closed == nil && l.done() == nil {
		return nil, func() {}
	}
	c = new(futex.Cancel)
	stopped := make(chan struct{})
	go func() {
		select {
		case <-closed:
			c.Cancel()
		case <-l.done():
			c.Cancel()
		case <-stopped:
		}
	}()
	return c, func() { close(stopped) }
}

// releaseSlow stays out of Release.
//
//go:noinline
func (s *Semaphore) releaseSlow(n int) {
	for range fastTries {
		if t, ok := s.stake(); ok && t.unuse(n) {
			return
		}
	}
	q := request{s: s}
	if err := q.locate(); err != nil {
		panic(err)
	}
	if n < 1 {
		panic(&MisuseError{What: fmt.Sprintf("release of %d permits", n)})
	}
	q.n = uint64(n)
	if err := enterSection(&s.mu); err != nil {
		panic(err)
	}
	has, err := q.release()
	var call *uint32
	if err == nil && has >= q.n {
		call = q.callNext()
	}
	if closed := leaveSection(&s.mu); closed != nil {
		panic(closed)
	}
	wakeCalled(call)
	switch {
	case err != nil:
		panic(err)
	case has < q.n:
		panic(&MisuseError{What: fmt.Sprintf("release of %d permits by a process that has %d", n, has)})
	}
}

// release gives q.n permits back if this process has so many, and returns how many it has. mu is held.
func (q *request) release() (has uint64, err error) {
	if q.slots && !q.s.users.has(q.slot) {
		return 0, nil // this process has never had any, and needs no holding to say so
	}
	if err := q.find(); err != nil {
		return 0, err
	}
	more, waits := &q.own.h.Words[holdingMore], q.tally().head != 0
	has, _ = q.own.counts()
	if has < q.n {
		return has, nil
	}
	beside := min(more.Load(), q.n)
	more.Store(more.Load() - beside)
	crash("returned many")
	if more.Load() != 0 {
		return has, nil
	}
	// Others of this process use and return permits meanwhile, unless S is set.
	ok, err := q.step(func(v uint64) (uint64, bool) {
		if !waits && v&stakeClaim != 0 { // from before the region was closed, and opened again
			q.own.h.Words[holdingCall].Store(0)
		}
		return returned(v, q.n-beside, waits), usedOf(v) >= q.n-beside
	})
	crash("returned")
	if !ok || err != nil {
		return 0, err
	}
	if q.slots && !waits {
		q.own.remember(q.s, q.slot)
	}
	return has, nil
}

// leaveSection ends a section; an error is [shm.ErrClosed].
func leaveSection(m *Mutex) error {
	if raceEnabled {
		raceRelease(m)
	}
	if m.word.CompareAndSwap(token, 0) {
		return nil
	}
	err := m.release()
	if err != nil && !errors.Is(err, shm.ErrClosed) {
		panic(err)
	}
	return err
}

// lowHalfOf is the half of a word that the kernel can compare, and that counts up first.
func lowHalfOf(w *atomic.Uint64) *uint32 { return &(*[2]uint32)(unsafe.Pointer(w))[lowHalf] }
