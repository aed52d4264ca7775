package shm

import (
	"fmt"
	"io/fs"
	"os"
	"slices"
)

// The proof that a process lives is a lock that goes with a descriptor, and a program can close numbers
// that are not its own: all from 3 on before it executes something, or one twice. The kernel then says
// to everybody else that the process is dead. It cannot be kept from that, so it must notice, and must
// not use such a number meanwhile: it may lead to a file of somebody else's by now.
//
// So a descriptor is compared with the file it was opened for whenever a byte is locked through it, and
// before its file is made longer or it is closed; and whoever waits, grows the region, sets up, closes, or
// unlocks what is not his asks the kernel for the proof: see proven. If there is none, the region is closed
// in this process, as by Close, and for good: locks in it still name this process, and a second slot would
// make them those of a live one, which nobody could ever take over.
//
// Opening a descriptor anew and taking the byte back is sound as long as nobody has found it free, but
// takes the file's path, or rights over the process. A program that closes such a number once does it
// again, so it is told at once.

// errUnseated is what calls answer about a region whose seat this process has lost.
var errUnseated = fmt.Errorf("%w: other code of this program closed a descriptor of it, so that this process counts as dead there; what it held is not its own any more, and only a new process can open the region", ErrClosed)

// leadsTo reports whether f still leads to the file it was opened for.
func leadsTo(f *os.File, info os.FileInfo) bool {
	now, err := f.Stat()
	return err == nil && os.SameFile(now, info)
}

// proven reports whether the kernel has this process down as alive in the region. It is asked through
// the descriptor of the mapping, which sees the lock as other processes do. The slot is not looked at:
// what stands there proves nothing.
func (m *mapping) proven() bool {
	if m.file == nil || m.readOnly {
		return true
	}
	s := m.seat
	return leadsTo(m.file, m.info) && leadsTo(s.lock, s.info) && stillHeld(m.file, s.lock, slotByte(s.slot))
}

// usable returns why the region cannot be used for something that writes, or nil.
func (m *mapping) usable(op string) error {
	switch {
	case m.closed.Load():
		return m.fail(op, ErrClosed)
	case m.readOnly:
		return m.fail(op, fs.ErrPermission)
	case !m.proven() && m.unseat():
		return m.fail(op, ErrClosed)
	}
	return nil
}

// unseat closes the region in this process if its life in it is not proven, and reports whether it is
// closed now. The caller may hold seat.growing or seat.setting.
func (m *mapping) unseat() bool {
	regions.mu.Lock()
	defer regions.mu.Unlock()
	return m.closed.Load() || m.unseatLocked()
}

// unseatLocked is unseat of an open region with regions.mu held.
func (m *mapping) unseatLocked() bool {
	if m.proven() { // it was being closed when we looked, or this is the first look
		return false
	}
	m.unseated.Store(true)
	regions.barred = append(regions.barred, m.id)
	err := m.closeLast()
	m.log.Error("shm: other code closed a descriptor of a region; this process counts as dead there", "region", m.where(), "slot", m.seat.slot, "error", err)
	return true
}

// barred reports whether this process has lost its seat in the region for good. regions.mu is held.
func barred(id ID) bool { return slices.Contains(regions.barred, id) }

// lose forgets a seat, kept since Close, that proves nothing any more. regions.mu is held.
func (s *seat) lose() error {
	regions.barred = append(regions.barred, s.id)
	defer s.takeBellDown()
	return discard(s.lock, s.info, (*os.File).Close)
}

// take locks a byte of the region's file. What it answers is true of that file and no other.
func (s *seat) take(pos int64, wait bool) (bool, error) {
	if !leadsTo(s.lock, s.info) {
		return false, errUnseated
	}
	ok, err := lockByte(s.lock, pos, wait)
	if ok && !leadsTo(s.lock, s.info) { // while we waited
		return false, errUnseated
	}
	return ok, err
}

// give unlocks a byte that take has locked.
func (s *seat) give(pos int64) error {
	if !leadsTo(s.lock, s.info) {
		return errUnseated // and unlocked
	}
	return unlockByte(s.lock, pos)
}

// abandoned are files whose numbers are not ours any more. They are kept from the collector, which would
// close the numbers. Guarded by regions.mu.
var abandoned []*os.File

// discard gives f up by drop, unless its number is not ours any more. regions.mu is held.
func discard(f *os.File, info os.FileInfo, drop func(*os.File) error) error {
	if !leadsTo(f, info) {
		abandoned = append(abandoned, f)
		return nil
	}
	return drop(f)
}
