package shm

import (
	"fmt"
	"log/slog"
	stdsync "sync"
	"sync/atomic"
	"time"
)

// A Death says who died holding what.
type Death struct {
	Region string // name of the region
	Lock   Offset // of the lock that was held; 0 if it lies outside any region
	Token  Token  // of the process, 0 if that is not known any more
	PID    int    // as the process saw itself, 0 if that is not known any more
}

// String names the process and the lock.
func (d Death) String() string {
	if d.PID == 0 {
		return fmt.Sprintf("its last holder died, or panicked, with the lock at offset %d of region %q", d.Lock, d.Region)
	}
	return fmt.Sprintf("process %d died holding the lock at offset %d of region %q", d.PID, d.Lock, d.Region)
}

var ownerDied atomic.Pointer[func(Death) error]

// OnOwnerDied sets what this process does when it takes a lock whose owner died: handle runs with the
// lock held, and nil from it says that the data is consistent again. Without a handler, or when it
// returns an error, Lock panics, and calls with an error result return one. Set it before regions are
// opened, in a child before its arguments are decoded: it holds for every region.
func OnOwnerDied(handle func(Death) error) { ownerDied.Store(&handle) }

// OwnerDiedHandler returns what [OnOwnerDied] set, or nil.
func OwnerDiedHandler() func(Death) error {
	if h := ownerDied.Load(); h != nil {
		return *h
	}
	return nil
}

// A Recoverer puts back what a dead process left half done. Undo runs before any lock of that process
// may be taken; it takes no lock, allocates nothing, and running it twice does no harm: if its process
// dies, another one runs it again. Drain runs afterwards, in a goroutine that holds no lock, and gives
// back what the dead process kept in reserve.
type Recoverer interface {
	Undo(r *Region, slot int) error
	Drain(r *Region, slot int) error
}

var recoverer struct {
	mu stdsync.RWMutex
	r  Recoverer
}

// SetRecoverer installs the recoverer of this process, for every region. It is called once, at start,
// by the package that writes what has to be undone.
func SetRecoverer(r Recoverer) {
	recoverer.mu.Lock()
	defer recoverer.mu.Unlock()
	recoverer.r = r
}

func theRecoverer() Recoverer {
	recoverer.mu.RLock()
	defer recoverer.mu.RUnlock()
	return recoverer.r
}

// Settled reports whether locks that t holds in r may be taken over: the process is dead, by the
// kernel's word, and what it left half done has been undone. If it is dead, Settled does what is left
// to do itself; it never waits for a living process. pid is that of the dead process where known.
func (r *Region) Settled(t Token) (pid int, settled bool) {
	if t == self || t == 0 {
		return 0, false
	}
	m := r.m
	if m.usable("settle") != nil {
		return 0, false
	}
	if m.guard(func() error { pid, settled = m.settled(t); return nil }) != nil {
		return 0, false // its file was cut: nobody can tell
	}
	return pid, settled
}

func (m *mapping) settled(t Token) (pid int, settled bool) {
	for i := range m.slots {
		s := &m.slots[i]
		if s.token.Load() != uint64(t) {
			continue
		}
		pid = int(s.pid.Load())
		state := s.state.Load()
		if s.token.Load() != uint64(t) {
			return pid, true // recovered and freed while we looked
		}
		return pid, yields(state) || m.recover(i)
	}
	// A token is published before its first lock and cleared after its last is free to be taken: one
	// that stands nowhere has been recovered, or comes from before a restart of the machine.
	for i := range m.header.died {
		if d := &m.header.died[i]; d.token.Load() == uint64(t) {
			return int(d.pid.Load()), true
		}
	}
	return 0, true
}

// Scan looks for dead processes among the attached and recovers them; those who wait without an owner
// to watch call it from time to time. It does nothing if any process did so within the last 100 ms.
func (r *Region) Scan() {
	const interval = int64(100 * time.Millisecond)
	m := r.m
	if m.file == nil || m.usable("scan") != nil {
		return
	}
	m.guard(func() error { // in a file that was cut nobody is found
		last, now := m.header.scanned.Load(), time.Now().UnixNano()
		if age := now - last; age >= 0 && age < interval || !m.header.scanned.CompareAndSwap(last, now) {
			return nil
		}
		m.sweep()
		return nil
	})
}

// Deaths returns the word that counts the processes of r that died and were undone. Who waits for something that
// the dead may have had a share in sleeps by it too; see [SetWaker].
func (r *Region) Deaths() *atomic.Uint32 { return &r.m.header.deaths }

var waker atomic.Pointer[func(*atomic.Uint32)]

// SetWaker installs what wakes everybody, in all processes, who sleeps by a word: [Region.Deaths], after it has
// changed. It is called once, at start, by the package that knows how to sleep. One who is killed between the change
// and the wake leaves the sleepers to the end of their sleep.
func SetWaker(wake func(word *atomic.Uint32)) { waker.Store(&wake) }

// countDeath tells everybody that one more process is dead and undone.
func (m *mapping) countDeath() {
	m.header.deaths.Add(1)
	if wake := waker.Load(); wake != nil {
		(*wake)(&m.header.deaths)
	}
}

// ContinuesAfterDeath reports whether the region was made with [ContinueAfterDeath].
func (r *Region) ContinuesAfterDeath() bool { return r.m.forgive }

// Logger returns the region's logger; it discards everything unless one was given.
func (r *Region) Logger() *slog.Logger { return r.m.log }

// sweep recovers every dead process of the region.
func (m *mapping) sweep() {
	for i := range m.slots {
		if !m.slots[i].is(slotFree) {
			m.recover(i)
		}
	}
}

// recover brings slot i to UNDONE or beyond if its process is dead, and reports whether it is there.
// While it runs it holds the slot's byte: see [slot].
func (m *mapping) recover(i int) bool {
	seat, s := m.seat, &m.slots[i]
	if m.file == nil || i == seat.slot {
		return false
	}
	seat.undoing.Lock()
	defer seat.undoing.Unlock()
	if m.draining[i] {
		return true
	}
	ok, err := seat.take(slotByte(i), false)
	if err != nil || !ok { // its process lives, or one that recovers it
		state := s.state.Load()
		return state == slotFree || yields(state)
	}
	defer func() {
		if !m.draining[i] {
			seat.give(slotByte(i))
		}
	}()
	word := s.state.Load()
	switch _, by := slotState(word); dutyIn(word) {
	case leaveIt:
		return true
	case undoIt:
		if !s.state.CompareAndSwap(word, uint64(self)|slotUndoing) {
			return s.is(slotFree) // an attacher found the byte taken
		}
		if !m.undo(i, s) {
			return false
		}
	case finishIt:
		if by != self {
			m.countDeath() // it may have died before it counted
		}
	default:
		m.log.Error("shm: slot in no known state", "region", m.where(), "slot", i, "state", word)
		return false
	}
	m.finish(i, s)
	return true
}

// undo runs the recoverer over slot i, which is UNDOING by this process.
func (m *mapping) undo(i int, s *slot) bool {
	if r := theRecoverer(); r != nil {
		if err := r.Undo(&m.uncounted, i); err != nil {
			m.log.Error("shm: undo of a dead process failed", "region", m.where(), "slot", i, "error", err)
			return false // stays UNDOING: the next one to look tries again
		}
	}
	token, pid := s.token.Load(), s.pid.Load()
	if token != 0 { // else it died while it attached, and never held a lock
		d := &m.header.died[m.header.deaths.Load()%uint32(len(m.header.died))]
		d.token.Store(0)
		d.pid.Store(uint64(pid))
		d.token.Store(token)
		m.log.Info("shm: process ended", "region", m.where(), "slot", i, "pid", pid, "token", Token(token),
			"closed", s.flags.Load()&slotClosed != 0)
	}
	s.state.Store(uint64(self) | slotUndone)
	m.countDeath()
	return true
}

// finish drains slot i, which is undone, and frees it.
func (m *mapping) finish(i int, s *slot) {
	s.state.Store(uint64(self) | slotDraining)
	r := theRecoverer()
	// One that is attaching, and finds every slot taken, has none to operate from: it frees a slot with
	// what the dead process kept there, and is the next to have that.
	if r == nil || m.seat.slot < 0 {
		m.dropSpares(s.token.Load())
		s.token.Store(0)
		// crash here: a dead process without a token
		s.state.Store(slotFree)
		return
	}
	m.draining[i] = true
	go func() {
		err := m.guard(func() error { return r.Drain(&m.uncounted, i) })
		m.seat.undoing.Lock()
		defer m.seat.undoing.Unlock()
		switch {
		case m.closed.Load():
			return // DRAINING in the region, out of reach here, until the region is opened again or this process ends
		case err != nil:
			m.log.Error("shm: drain of a dead process failed", "region", m.where(), "slot", i, "error", err)
			return // DRAINING until this process ends: another one may fare better
		}
		m.guard(func() error { // a file that was cut has no slot to free
			m.dropSpares(s.token.Load())
			s.token.Store(0)
			s.state.Store(slotFree)
			return nil
		})
		m.draining[i] = false
		m.seat.give(slotByte(i))
	}()
}
