package shm

import (
	"errors"
	"fmt"
	"os"
	"slices"
	stdsync "sync"
	"time"
)

// A seat is what outlives a closed mapping: the slot and the descriptor whose locks prove that this
// process lives. Locks that the process holds stay its own after Close, so the seat is kept until the
// process ends, or until nobody else can see the region any more; opening the region again takes it
// back.
type seat struct {
	id   ID // of the region
	info os.FileInfo
	path string   // of the file when it was attached, empty if unknown
	lock *os.File // never handed out, close-on-exec: the kernel frees its locks when this process is gone
	slot int      // -1 until it has one
	bell *bell    // nil if none hangs; guarded by regions.mu

	// The bytes that lock holds exclude other processes; these exclude goroutines of this one, also
	// those that still use an earlier, closed mapping of the region.
	growing stdsync.Mutex // the growth byte
	setting stdsync.Mutex // the byte of Exclusive
	holding stdsync.Mutex // which object each of our holdings belongs to
	restart stdsync.Mutex // the restart byte
	undoing stdsync.Mutex // the bytes of the slots; taken after regions.mu
}

// attach takes a slot of the region, or takes back the one this process kept. regions.mu is held.
func (m *mapping) attach() error {
	if s := sit(m.info); s != nil {
		m.seat = s
		switch proven := m.proven(); {
		case !proven:
			m.seat = nil
			s.lose()
			if s.id == m.id { // else another region's file has the number of that one
				return m.fail("attach", errUnseated)
			}
		case m.slots[s.slot].is(attachedHere):
			m.back(s.slot)
			return nil
		default:
			s.lock.Close() // somebody wrote over the slot; locks there are not ours any more
			s.takeBellDown()
		}
	}
	if err := checkLocks(m); err != nil {
		return err
	}
	lock, err := reopen(m.file, m.path)
	if err != nil {
		return m.fail("open for liveness", err)
	}
	m.seat = &seat{id: m.id, info: m.info, path: m.path, lock: lock, slot: -1}
	if err := m.findSlot(); err != nil {
		m.seat = nil
		lock.Close()
		return m.fail("attach", err)
	}
	return nil
}

var errTableFull = fmt.Errorf("all %d slots belong to live processes; end one of them: %w", slotCount, ErrNoSpace)

// findSlot takes a slot for this process, and makes it the seat's.
func (m *mapping) findSlot() (err error) {
	taken := 0
	for i := range m.slots {
		switch s := &m.slots[i]; {
		case s.token.Load() == uint64(self):
			i, err = m.retakeSlot(i)
			if err == nil {
				m.seat.slot = i
			}
			return err
		case !s.is(slotFree):
			taken++
		}
	}
	i, err := m.freeSlot()
	if err != nil {
		return err
	}
	m.seat.slot = i          // before goroutines that drain look at it
	if taken > slotCount/2 { // most are of processes that ended, and that nobody had to wait for
		m.sweep()
	}
	return nil
}

// freeSlot takes a slot that is free, or that of a dead process if there is none.
func (m *mapping) freeSlot() (int, error) {
	first := int(uint64(self) >> 32 % slotCount)
	for k := range slotCount {
		i := (first + k) % slotCount
		if ok, err := m.takeSlot(i); ok || err != nil {
			return i, err
		}
	}
	for i := range m.slots {
		if !m.recover(i) {
			continue
		}
		if ok, err := m.takeSlot(i); ok || err != nil {
			return i, err
		}
	}
	return 0, errTableFull
}

// takeSlot takes slot i if it is free. See [slot] for the order of its steps.
func (m *mapping) takeSlot(i int) (bool, error) {
	s := &m.slots[i]
	word := s.state.Load()
	next, ok := claimed(word, s.token.Load(), self)
	if !ok || !s.state.CompareAndSwap(word, next) {
		return false, nil
	}
	// crash here: a survivor finds the byte free and frees the slot
	ok, err := m.seat.take(slotByte(i), false)
	if err != nil {
		s.state.CompareAndSwap(attachedHere, slotFree)
		return false, fmt.Errorf("lock byte of slot %d: %w", i, err)
	}
	if !ok || !s.is(attachedHere) { // somebody took us for dead between the two steps
		if ok {
			m.seat.give(slotByte(i))
		}
		s.state.CompareAndSwap(attachedHere, slotFree)
		return false, nil
	}
	if err := reserve(m.file, holdingStart+uint64(i)*holdingSize, holdingSize); err != nil {
		s.state.Store(slotFree)
		m.seat.give(slotByte(i))
		return false, noSpace("holdings of a slot", holdingSize, err)
	}
	m.fill(s, i)
	s.token.Store(uint64(self)) // publishes: from here on locks may carry the token
	return true, nil
}

// retakeSlot takes slot i again, which names this process: it gave the region up when nobody else could
// see it, and somebody could after all, or the region's file is a copy. A token must not stand in two
// slots, or the one without its byte would prove the death of a live process.
func (m *mapping) retakeSlot(i int) (int, error) {
	s := &m.slots[i]
	ok, err := m.seat.take(slotByte(i), false)
	switch {
	case err != nil:
		return 0, fmt.Errorf("lock byte of slot %d: %w", i, err)
	case !ok:
		return 0, errors.New("this process had given the region up, and another one is clearing up after it; open it again later")
	case s.is(attachedHere):
		m.back(i)
		return i, nil
	}
	m.seat.give(slotByte(i))
	if !m.recover(i) || s.token.Load() == uint64(self) { // the slot was written over, or somebody died clearing it
		return 0, fmt.Errorf("slot %d: %w", i, ErrCorrupt)
	}
	return m.freeSlot()
}

// back opens the slot of this process that had closed the region. The waits of before are over: they
// ended with the close.
func (m *mapping) back(i int) {
	for k := range m.holdings[i].waiting {
		m.holdings[i].waiting[k].since.Store(0)
		m.holdings[i].waiting[k].lock.Store(0)
	}
	m.slots[i].gen.Add(1) // before it counts as open: see Attached
	m.slots[i].flags.And(^uint32(slotClosed))
}

// fill writes what a slot says of its process, before the token publishes it.
func (m *mapping) fill(s *slot, i int) {
	id := identity()
	m.holdings[i] = holdings{}
	s.gen.Add(1)
	s.pid.Store(uint32(os.Getpid()))
	s.started.Store(id.started)
	s.pidns.Store(id.pidns)
	s.attached.Store(time.Now().UnixNano())
	s.bell.Store(0)
	s.flags.Store(0)
	s.busy.Store(0)
	s.overflow.Store(0)
	s.pressed.Store(m.header.press.Load())
}

// unseen reports whether nobody else can see the region any more: its file has no name, and no other
// process has it open. Others that have closed it hold their bytes too, as this one does; if they were
// waited for, two that live on would keep the memory from being freed for ever.
func (s *seat) unseen() bool {
	if is, err := nameless(s.lock, s.path); !is || err != nil {
		return false
	}
	held, err := othersHeld(s.lock, s.slot)
	if !held || err != nil {
		return err == nil
	}
	slots, err := readSlots(s.lock)
	if err != nil {
		return false
	}
	for i := range slots {
		if i == s.slot || slots[i].closed() {
			continue
		}
		if held, err := byteHeld(s.lock, slotByte(i), 1); held || err != nil {
			return false
		}
	}
	return true
}

// leave gives the kept seats up for which that is due. regions.mu is held.
func leave() (err error) {
	regions.seats = slices.DeleteFunc(regions.seats, func(s *seat) bool {
		if !leadsTo(s.lock, s.info) {
			err = errors.Join(err, s.lose())
			return true
		}
		if !s.unseen() {
			return false
		}
		err = errors.Join(err, s.lock.Close())
		s.takeBellDown()
		return true
	})
	return err
}

// seated reports whether this process kept its seat in the region of a file. regions.mu is held.
func seated(info os.FileInfo) bool {
	return slices.ContainsFunc(regions.seats, func(s *seat) bool { return os.SameFile(s.info, info) })
}

// sit returns the seat that this process kept in the region of a file when it closed it, or nil.
// regions.mu is held.
func sit(info os.FileInfo) *seat {
	i := slices.IndexFunc(regions.seats, func(s *seat) bool { return os.SameFile(s.info, info) })
	if i < 0 {
		leave()
		return nil
	}
	s := regions.seats[i]
	regions.seats = slices.Delete(regions.seats, i, i+1)
	return s
}
