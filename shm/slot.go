package shm

import (
	"encoding/binary"
	"os"
	"structs"
	"sync/atomic"
	"unsafe"
)

const (
	slotSize    = 128
	holdingSize = 4096
)

// A slot stands for one process that is attached to the region. Its state word carries the token of
// whoever moves it, so that every step is one compare-and-swap and a step left behind by a dead
// process is recognised and finished by another.
//
//	FREE ──attach──> ATTACHED ──(owner proven dead)──> UNDOING ──> UNDONE ──> DRAINING ──> FREE
//
// A byte of the region's file, far behind its end and one for each slot, is the right to the slot. A
// process locks it when it attaches, through a descriptor that nobody else has, and keeps it for life.
// The kernel gives it free after the last thread of the process has run its last instruction, and only
// that proves a death. Whoever recovers a slot holds its byte from the proof on: the kernel sees to it
// that there is one at a time, and that the next goes on where one died.
//
//   - attach: CAS the state FREE → ATTACHED|self; take the byte; look at the state again; clear the
//     holdings; publish the token. A kill before the byte is taken leaves ATTACHED with a free byte:
//     a dead process without a token, cleaned up like any other. Taking the byte before the state
//     would make a dead process that is not yet recovered look alive.
//   - proof: take the byte, CAS ATTACHED|t → UNDOING|self. An attacher that was between its two steps
//     finds the byte taken or the state changed, and looks for another slot.
//   - UNDOING|r with its byte free: r is dead. Undo again; undoing twice is harmless.
//   - UNDONE: locks that carry the token may be taken over. Before, they may not: their data is
//     still being put back.
//   - DRAINING|r: what the process kept in reserve is given back, by ordinary operations. Then
//     token = 0, and FREE; the byte last.
type slot struct {
	_        structs.HostLayout
	token    atomic.Uint64 // of the process; published last in attach, cleared before FREE; what locks of it carry
	state    atomic.Uint64 // slot state in the low four bits, above it the token of whoever moved it there
	pid      atomic.Uint32 // as the process sees itself; for people
	gen      atomic.Uint32 // attachments to this slot so far, and times that its process opened the region again
	started  atomic.Uint64 // start time of the process in clock ticks after boot, 0 if unknown; for people
	pidns    atomic.Uint64 // inode of its pid namespace, 0 if unknown; for people
	attached atomic.Int64  // Unix nanoseconds
	bell     atomic.Uint32 // changed by the kernel when the process ends: wakes waiters early, proves nothing; see bell.go
	flags    atomic.Uint32 // slotClosed
	_        [16]byte      // reserved, zero
	lanes    atomic.Uint64 // offset of the lanes of this slot, 0 none
	leases   atomic.Uint64 // offset of the leases of this slot, 0 none
	busy     atomic.Uint64 // bit i: lane i is in an operation
	overflow atomic.Uint64 // number of the first spare page of further holdings plus one, 0 none; see holding.go
	pressed  atomic.Uint64 // value of header.press that this process has answered
	_        [16]byte
}

// holdings of a slot: what its process has a share in that no lock word tells. They lie apart from the
// slots, one page for each, and are really reserved before the slot is used.
type holdings struct {
	_       structs.HostLayout
	waiting [4]struct{ lock, since atomic.Uint64 } // locks that the process waits for, and since when in Unix ns
	held    [32]Holding
	total   tally     // of all its waits
	tallies [30]tally // of the locks that it waited for most
}

// A tally says how a process has waited for a lock, for people. Only that process writes it.
type tally struct {
	_         structs.HostLayout
	lock      atomic.Uint64 // offset, 0 none
	waits     atomic.Uint64
	waited    atomic.Uint64 // ns, all together
	longest   atomic.Uint64 // ns
	takeovers atomic.Uint64 // from the dead
	took      atomic.Int64  // Unix ns: when it last got the lock after a wait
	_         [16]byte
}

var (
	_ [64]byte          = [unsafe.Sizeof(tally{})]byte{}
	_ [slotSize]byte    = [unsafe.Sizeof(slot{})]byte{}
	_ [holdingSize]byte = [unsafe.Sizeof(holdings{})]byte{}
	_ [spareSize]byte   = [unsafe.Sizeof(spareTable{})]byte{}
	_ [spareSize]byte   = [unsafe.Sizeof(sparePage{})]byte{}
)

// States of a slot.
const (
	slotFree     = 0
	slotAttached = 1
	slotUndoing  = 2
	slotUndone   = 3
	slotDraining = 4
)

const slotClosed = 1 << 0 // the process has closed the region but lives on: it holds whatever it held

var attachedHere = uint64(self) | slotAttached // the state of this process' slots

// is reports whether s is in a state that somebody brought it to.
func (s *slot) is(word uint64) bool { return s.state.Load() == word }

// closed reports whether s is of a process that has closed the region. One that is attaching has no
// token there yet, and clears the flag of its predecessor before it has.
func (s *slot) closed() bool {
	t := s.token.Load()
	return t != 0 && s.is(t|slotAttached) && s.flags.Load()&slotClosed != 0
}

// readSlots returns a copy of the slots of the region in f.
func readSlots(f *os.File) (*[slotCount]slot, error) {
	slots := new([slotCount]slot)
	_, err := f.ReadAt(unsafe.Slice((*byte)(unsafe.Pointer(slots)), unsafe.Sizeof(*slots)), slotsStart)
	return slots, err
}

// readSpares returns how many spare pages of the region in f may have memory.
func readSpares(f *os.File) (uint64, error) {
	var used [8]byte
	_, err := f.ReadAt(used[:], ownersStart+int64(unsafe.Offsetof(spareTable{}.used)))
	return min(binary.NativeEndian.Uint64(used[:]), spareCount), err
}

func slotState(s uint64) (state uint64, by Token) { return s & tokenFlags, Token(s &^ tokenFlags) }
