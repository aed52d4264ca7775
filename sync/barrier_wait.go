package sync

import (
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/spin"
)

// How a party comes to a Barrier and goes.
//
// What the processes hold is the truth: how many members each has, and how many of them have arrived in which
// generation. The barrier's own words, behind its mutex, are sums of that, which are made anew after a death;
// a holding is gone with its process. The steps, and what a kill after each leaves:
//
//   - join: the holding's value, its id, then the roster. Not in the roster: nobody misses the dead.
//   - leave: the roster, then the holding. Not in the roster: nobody misses the dead.
//   - arrive: join if need be, the holding's muster, the claim if this is the last, then the sum. Whoever takes
//     the mutex next finds its holder dead, and counts.
//   - pass: the claim; the mutex is released; the action; one compare-and-swap of the state, after which
//     nothing is touched. A claim of the dead breaks the barrier if it had an action or the dead are not
//     dropped; else another waiter makes the pass.
//   - count: break the generation if that is to be, then the roster, the sum, the claim, and last how many
//     deaths that takes in. Each of them can be done again.
//   - reset: break the generation if it is not broken, note how it ended, then the sums, then the next one.
//
// The state is changed with and without the mutex, always from exactly what was judged. So a wait that ends
// early breaks a barrier without the mutex, which may be gone by then.

// A barrierUse is a call that uses a barrier.
type barrierUse struct {
	b      *Barrier
	region *shm.Region // nil outside any region
	offset shm.Offset
	seats  bool // processes have slots, and die
}

// use begins a call, for what.
func (b *Barrier) use(what string) (u barrierUse, err error) {
	r, off, err := locate(b, what)
	if err != nil {
		return u, err
	}
	u = barrierUse{b: b, region: r, offset: off}
	if r != nil {
		_, u.seats = r.Slot()
	}
	if b.id.Load() == 0 {
		return u, fmt.Errorf("sync: %s: not initialized: %w", what, fs.ErrInvalid)
	}
	return u, nil
}

// lockGrace is how long a wait whose limit is over still tries for the mutex: others hold it for some steps
// only, and whoever comes last passes whatever the limit.
const lockGrace = 20 * time.Millisecond

// lock takes the mutex and counts those who live, if anybody died.
func (u *barrierUse) lock(l limit) error {
	repair := func(shm.Death) error { u.count(); return nil }
	if !u.b.mu.TryLockIdle() {
		err := u.b.mu.acquire(l, repair)
		if err != nil && l.over() != nil && !errors.Is(err, shm.ErrClosed) {
			grace := limit{what: l.what, deadline: time.Now().Add(lockGrace)}
			if u.b.mu.acquire(grace, repair) == nil {
				err = nil
			}
		}
		if err != nil {
			return err
		}
	}
	if u.unseen() {
		u.count()
	}
	return nil
}

// unseen reports whether there were deaths that were not counted.
func (u *barrierUse) unseen() bool { return u.seats && deaths(u.region) != u.b.seen.Load() }

// A barrierShare is what this process has in a barrier.
type barrierShare struct {
	h                *shm.Holding // nil where nobody else has a share
	word             uint64
	members, arrived uint32 // arrived: and wait
}

// share returns what this process has. The mutex is held.
func (u *barrierUse) share() (s barrierShare, err error) {
	b := u.b
	v := b.now()
	g := v.generation()
	defer func() {
		if !v.open() {
			s.arrived = 0 // they are leaving
		}
	}()
	if !u.seats {
		return barrierShare{members: roster(b.roster.Load()).members(), arrived: muster(b.muster.Load()).in(g)}, nil
	}
	if s.h, err = u.region.Hold(u.offset); err != nil {
		return s, err
	}
	s.word = s.h.Word.Load()
	s.members, s.arrived = u.held(s.h, s.word, g)
	return s, nil
}

// held reads a holding whose word was word.
func (u *barrierUse) held(h *shm.Holding, word uint64, g uint32) (members, arrived uint32) {
	if word&^shm.HoldingMask != shm.HoldingKey(u.offset) || word&shm.HoldingMask == 0 || h.Words[holdsID].Load() != u.b.id.Load() {
		return 0, 0
	}
	return uint32(word & shm.HoldingMask), muster(h.Words[holdsArrived].Load()).in(g)
}

// join makes one more party a member. The mutex is held.
func (u *barrierUse) join(s *barrierShare) error {
	b := u.b
	if s.members >= shm.HoldingMask {
		return fmt.Errorf("sync: join a barrier: %d parties of this process are members: %w", s.members, shm.ErrNoSpace)
	}
	key := shm.HoldingKey(u.offset)
	for s.h != nil {
		if s.members == 0 && s.word&shm.HoldingMask != 0 { // left from another use of the memory
			s.h.Words[holdsID].Store(0)
			s.h.Words[holdsArrived].Store(0)
		}
		next := key | uint64(s.members+1)
		if s.word&^shm.HoldingMask == key && s.h.Word.CompareAndSwap(s.word, next) {
			crash("barrier holding")
			s.word = next
			s.h.Words[holdsID].Store(b.id.Load()) // from here on it counts
			crash("barrier holding counts")
			break
		}
		again, err := u.share() // another object's, meanwhile
		if err != nil {
			return err
		}
		*s = again
	}
	s.members++
	b.roster.Store(uint64(roster(b.roster.Load()).joined(b.parties.Load())))
	crash("barrier joined")
	return nil
}

// leave takes back one join. The mutex is held.
func (u *barrierUse) leave(s *barrierShare) {
	b := u.b
	b.roster.Store(uint64(roster(b.roster.Load()).left()))
	crash("barrier left")
	switch {
	case s.h == nil:
	case s.members > 1:
		s.h.Word.Store(s.word - 1)
	default:
		s.h.Words[holdsID].Store(0)
		crash("barrier holding counts no more")
		s.h.Words[holdsArrived].Store(0)
		s.h.Word.Store(shm.HoldingKey(u.offset))
	}
	crash("barrier holding given up")
}

// count makes the sums anew from what the living hold, and does what a death asks for. The mutex is held.
func (u *barrierUse) count() {
	if !u.seats {
		return
	}
	b := u.b
	seen := deaths(u.region) // before: a later one is counted again
	v := b.now()
	g := v.generation()
	var alive, arrived uint32
	claim, claimant := b.claim.Load(), false
	for i := range shm.Slots {
		t, h := u.region.Share(i, u.offset)
		if h == nil {
			continue
		}
		m, a := u.held(h, h.Word.Load(), g)
		alive += m
		arrived += a
		claimant = claimant || m > 0 && uint64(t) == claim&^claimActs
	}
	drop := b.drop.Load() != 0
	next, died := roster(b.roster.Load()).counted(alive, drop)
	ofNow := func(v barrierState) bool { return v.generation() == g }
	orphaned := b.isClaimed(g) && !claimant
	switch {
	case died && !drop:
		b.breakUp(barrierDied, nil)
	case orphaned && claim&claimActs != 0:
		b.breakUp(barrierDied, ofNow)
	}
	crash("barrier broken for the dead")
	b.roster.Store(uint64(next))
	crash("barrier roster counted")
	b.muster.Store(uint64(newMuster(g, arrived)))
	crash("barrier muster counted")
	if orphaned {
		b.claim.Store(0)
	}
	crash("barrier claim dropped")
	b.seen.Store(seen)
	crash("barrier counted")
	if complete(arrived, next.parties(), b.isClaimed(g)) {
		wakeAll(&b.state) // one of those who wait lets them go
	}
}

// bury asks whether the members live, and lets the region know of those who do not. It takes no lock.
func (u *barrierUse) bury() {
	for i := range shm.Slots {
		if !u.seats {
			return
		}
		if t, h := u.region.Share(i, u.offset); h != nil && h.Word.Load()&shm.HoldingMask != 0 {
			u.region.Settled(t)
		}
	}
}

// reset is Reset with the mutex held.
func (u *barrierUse) reset() {
	b := u.b
	u.bury() // or a death that is noticed later would break what is whole now
	v := b.now()
	if v.open() && muster(b.muster.Load()).in(v.generation()) > 0 {
		b.breakUp(barrierBroken, func(now barrierState) bool { return now.generation() == v.generation() })
	}
	u.count()
	r := roster(b.roster.Load())
	fresh := newRoster(b.parties.Load(), r.members())
	if v = b.now(); v.open() {
		b.roster.Store(uint64(fresh))
		return
	}
	last := uint32(len(b.ends)) - 1
	n := b.broken.Load()
	if end := uint32(v) &^ barrierWaiters; n == 0 || b.ends[(n+last)%uint32(len(b.ends))].Load() != end {
		b.ends[n%uint32(len(b.ends))].Store(end)
		crash("barrier end noted")
		b.broken.Store(n + 1)
	}
	crash("barrier end counted")
	b.roster.Store(uint64(fresh))
	crash("barrier roster renewed")
	for {
		v := b.now()
		next, ok := v.renewed()
		if !ok {
			return
		}
		if b.state.CompareAndSwap(uint32(v), uint32(next)) {
			crash("barrier renewed")
			if v.slept() {
				wakeAll(&b.state)
			}
			return
		}
	}
}

// An arrival is one Wait.
type arrival struct {
	barrierUse
	limit      limit
	action     func() error
	generation uint32
	place      int
	alone      bool // the only member of its process: what it waits for runs elsewhere
}

func (b *Barrier) wait(l limit, action func() error) (place int, err error) {
	u, err := b.use(l.what)
	if err != nil {
		return -1, err
	}
	w := arrival{barrierUse: u, limit: l, action: action}
	if raceEnabled {
		raceReleaseMerge(&b.state)
	}
	if err := w.run(); err != nil {
		return -1, err
	}
	if raceEnabled {
		raceAcquire(&b.state)
	}
	return w.place, nil
}

func (w *arrival) run() error {
	last, err := w.arrive()
	for err == nil && !last {
		crash("barrier arrived")
		w.spin()
		if why := w.sleep(); why != nil {
			return w.giveUp(why)
		}
		if over, err := w.over(); over {
			return err
		}
		last, err = w.look()
	}
	if err != nil {
		return err
	}
	return w.pass()
}

// arrive takes a place in the generation that waits, and reports whether it is the last one.
func (w *arrival) arrive() (last bool, err error) {
	b := w.b
	for {
		if err := w.lock(w.limit); err != nil {
			return false, w.refuse(err)
		}
		v := b.now()
		g := v.generation()
		if w.region != nil && w.region.Closed() { // after the look: it may have been the zeros of now
			return false, closedError(w.limit.what, w.region)
		}
		if !v.open() {
			if err := b.mu.unlockOpen(); err != nil {
				return false, err
			}
			return false, v.err()
		}
		w.generation = g
		if !b.isClaimed(g) {
			break
		}
		// All of another pass have come, and it is about to happen: this party is of the next one.
		if err := b.mu.unlockOpen(); err != nil {
			return false, err
		}
		if err := w.sleep(); err != nil {
			return false, err
		}
	}
	s, err := w.share()
	if err == nil && s.arrived >= s.members {
		err = w.join(&s)
	}
	if err != nil {
		if closed := b.mu.unlockOpen(); closed != nil {
			return false, closed
		}
		return false, w.refuse(err)
	}
	w.alone = s.h != nil && s.members == 1
	g := w.generation
	arrived := muster(b.muster.Load()).in(g) + 1
	if s.h != nil {
		s.h.Words[holdsArrived].Store(uint64(newMuster(g, s.arrived+1)))
		crash("barrier holding arrived")
	}
	last = complete(arrived, roster(b.roster.Load()).parties(), false)
	if last {
		w.stake()
	} else {
		w.place = int(muster(b.places.Load()).in(g)) + 1
		b.places.Store(uint64(newMuster(g, uint32(w.place))))
		crash("barrier place given")
	}
	b.muster.Store(uint64(newMuster(g, arrived)))
	crash("barrier arrival counted")
	return last, b.mu.unlockOpen()
}

// stake says that this party lets the generation go. The mutex is held.
func (w *arrival) stake() {
	b := w.b
	claim := token
	if w.action != nil {
		claim |= claimActs
	}
	w.place = 0
	b.claim.Store(0) // of an earlier generation
	b.claimed.Store(w.generation)
	b.claim.Store(claim)
	crash("barrier claimed")
}

// stale reports whether the generation's words are to be looked at with the mutex held: there were deaths, or
// the pass is to be made and nobody does.
func (w *arrival) stale() bool {
	b, g := w.b, w.generation
	return w.unseen() || complete(muster(b.muster.Load()).in(g), roster(b.roster.Load()).parties(), b.isClaimed(g))
}

// noSpins is how many waits of this process at barriers do not spin: the last spin was in vain, because the
// others take long, or share a processor with us.
var noSpins atomic.Int32

// spinAgain is how many those are. (Two processes on processors that others want too: a round trip of two
// passes took 45 µs with a spin before every sleep, 25 without.)
const spinAgain = 15

// spin looks at the state for a while, seldom, until it is not what it was.
func (w *arrival) spin() {
	if !w.alone || !multiprocessor {
		return
	}
	if n := noSpins.Load(); n > 0 {
		noSpins.Store(n - 1)
		return
	}
	for end := time.Now().Add(spinFor); time.Now().Before(end); {
		spin.Pause(spinPause)
		if v := w.b.now(); v.generation() != w.generation || !v.open() {
			return
		}
	}
	noSpins.Store(spinAgain)
}

// sleep waits until the generation is over, or stale.
func (w arrival) sleep() error {
	s := watch{word: &w.b.state, limit: w.limit, mortal: true, over: func(v uint32) (bool, error) {
		now := barrierState(v)
		return now.generation() != w.generation || !now.open() || w.stale(), nil
	}}
	return s.wait()
}

// over is whether the generation is over, and how it ended.
func (w *arrival) over() (over bool, err error) {
	over, err = w.b.end(w.generation)
	if w.region != nil && w.region.Closed() { // after: it may have been the zeros of now
		return true, closedError(w.limit.what, w.region)
	}
	return over, err
}

// look is for one who sleeps and finds the generation stale. It reports whether it makes the pass.
func (w *arrival) look() (last bool, err error) {
	b := w.b
	if err := w.lock(w.limit); err != nil {
		return false, w.giveUp(err)
	}
	v, g := b.now(), w.generation
	if v.generation() == g && v.open() && complete(muster(b.muster.Load()).in(g), roster(b.roster.Load()).parties(), b.isClaimed(g)) {
		w.stake()
		last = true
	}
	return last, b.mu.unlockOpen()
}

// pass runs the action and lets the generation go.
func (w *arrival) pass() error {
	b, g := w.b, w.generation
	if w.action != nil {
		done := false
		defer func() {
			if !done {
				b.breakUp(barrierBroken, w.ours)
			}
		}()
		crash("barrier action begun")
		if err := w.action(); err != nil {
			return err
		}
		done = true
		crash("barrier action run")
	}
	for {
		v := b.now()
		next, ok := v.passed(g)
		if !ok {
			_, err := w.over()
			return err
		}
		if b.state.CompareAndSwap(uint32(v), uint32(next)) {
			// From here on the memory may be gone: the wake-up asks the kernel only.
			crash("barrier passed")
			if v.slept() {
				wakeAll(&b.state)
			}
			crash("barrier woken")
			return nil
		}
	}
}

// ours reports whether v is of our generation.
func (w *arrival) ours(v barrierState) bool { return v.generation() == w.generation }

// giveUp breaks the generation that this party waits for and does not want to wait for any more.
func (w *arrival) giveUp(why error) error {
	if errors.Is(why, shm.ErrClosed) {
		return why
	}
	if w.b.breakUp(barrierBroken, w.ours) {
		return fmt.Errorf("%w: %w", ErrBrokenBarrier, why)
	}
	_, err := w.over()
	return err
}

// refuse is giveUp of a party that has no place yet: the others wait for it, unless they are complete.
func (w *arrival) refuse(why error) error {
	if errors.Is(why, shm.ErrClosed) {
		return why
	}
	b := w.b
	if b.breakUp(barrierBroken, func(v barrierState) bool { return !b.isClaimed(v.generation()) }) {
		return fmt.Errorf("%w: %w", ErrBrokenBarrier, why)
	}
	if err := b.now().err(); err != nil {
		return err
	}
	return why
}
