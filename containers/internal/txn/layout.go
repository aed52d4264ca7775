package txn

import (
	"fmt"
	"math/bits"
	"structs"
	"sync/atomic"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
)

const (
	MaxLanes    = 64
	LinesSize   = MaxLanes * lineSize // bytes of the control lines of a slot
	MemorySize  = 8192                // bytes of a lane's memory
	Extensions  = extensions          // that a lane has at most
	PrivateSize = 4096                // bytes of it that are the heap's

	PrivateWords = PrivateSize / 8

	lineSize     = 128
	innerEntries = 64
	outerEntries = (MemorySize - PrivateSize - innerEntries*entrySize) / entrySize
	entrySize    = 16

	// An operation with more entries than the lane's memory has room for takes extensions, of which each is twice as long as the one before.
	extensions     = 8
	firstExtension = 4096 / entrySize // entries of the first
	maxEntries     = outerEntries + (1<<extensions-1)*firstExtension

	_ = uint16(maxEntries) // the control word counts in 16 bits
)

// line is the control line of a lane. Only the process of its slot writes it, one goroutine at a time, or whoever
// recovers that.
type line struct {
	_       structs.HostLayout
	word    atomic.Uint64 // of the outer log: see transitions.go
	inner   atomic.Uint64 // how many entries of the inner log count; 0: none is under way
	memory  atomic.Uint64 // offset of the lane's memory, 0 none yet; then for ever
	_       [32]byte
	drainer atomic.Uint64             // of the first line: token of the process that drains the slot, or died over it
	more    [extensions]atomic.Uint64 // offsets of the extensions, 0 none yet, and none behind; then for ever
}

// memory of a lane.
type memory struct {
	_       structs.HostLayout
	inner   [innerEntries]entry
	outer   [outerEntries]entry
	private [PrivateSize / 8]atomic.Uint64
}

// An entry says what to do with a word, or with a block.
type entry struct {
	_   structs.HostLayout
	at  atomic.Uint64 // offset, a multiple of 8, and kind
	val atomic.Uint64
}

// Kinds of entries.
const (
	kindWord  = 0 // undo: store val at the offset
	kindLater = 1 // after the commit: store val at the offset
	kindTook  = 2 // the block at the offset was taken: it goes back if the operation is undone
	kindFree  = 3 // the block at the offset goes back after the commit
	kindSet   = 4 // undo: set a range of bits; val is the first bit's number, from the word at the offset on, <<32 | how many
	kindClear = 5 // undo: clear a range of bits
	kindMask  = 7
)

var (
	_ [lineSize]byte   = [unsafe.Sizeof(line{})]byte{}
	_ [MemorySize]byte = [unsafe.Sizeof(memory{})]byte{}
	_ [entrySize]byte  = [unsafe.Sizeof(entry{})]byte{}
)

// An Entry is a copy of one of the log that is about a block.
type Entry struct {
	At  shm.Offset
	Val uint64 // what the heap noted
}

func (e *entry) load() (kind uint64, copied Entry) {
	at := e.at.Load()
	return at & kindMask, Entry{shm.Offset(at &^ kindMask), e.val.Load()}
}

// lines returns the control lines of a slot, nil if it has none.
func lines(r *shm.Region, slot int) (*[MaxLanes]line, error) {
	off := r.Lanes(slot).Load()
	if off == 0 {
		return nil, nil
	}
	l, err := shm.At[[MaxLanes]line](r, shm.Offset(off))
	if err != nil || off%lineSize != 0 {
		return nil, fmt.Errorf("txn: lanes of slot %d at offset %d: %w", slot, off, shm.ErrCorrupt)
	}
	return l, nil
}

// extensionSize returns the bytes of extension k.
func extensionSize(k int) uint64 { return firstExtension * entrySize << k }

// extensionOf returns which extension has entry i of the outer log, which is not in the lane's memory, and its index there.
func extensionOf(i int) (k, at int) {
	i -= outerEntries
	k = bits.Len(uint(i/firstExtension+1)) - 1
	return k, i - (1<<k-1)*firstExtension
}

// MoreWord returns the word that has the offset of a lane's extension, nil if its slot has no control lines.
func MoreWord(r *shm.Region, slot, lane, k int) (*atomic.Uint64, error) {
	ls, err := lines(r, slot)
	if ls == nil || err != nil {
		return nil, err
	}
	return &ls[lane].more[k], nil
}

// MemoryWord returns the word that has the offset of a lane's memory, nil if its slot has no control lines.
func MemoryWord(r *shm.Region, slot, lane int) (*atomic.Uint64, error) {
	ls, err := lines(r, slot)
	if ls == nil || err != nil {
		return nil, err
	}
	return &ls[lane].memory, nil
}
