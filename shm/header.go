package shm

import (
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"math/bits"
	"os"
	"structs"
	"sync/atomic"
	"unsafe"
)

// A region begins with a header page, the slots of its processes and their holdings, with spare pages for
// those that need more; the data area, which callers use, follows.
//
//	0        4096      36864               40960      1089536       3182592
//	| header | slots   | owners of spares  | holdings | spare pages | data area, grows up to limit ...
//
// Integers are in host byte order. Offsets count bytes from the region's start; 0 means none.
const (
	headerSize   = 4096
	slotCount    = 256
	slotsStart   = headerSize
	ownersStart  = slotsStart + slotCount*slotSize
	holdingStart = ownersStart + spareSize
	spareStart   = holdingStart + slotCount*holdingSize
	dataStart    = spareStart + spareCount*spareSize
)

const (
	regionMagic   = 0x0a0d74696b6d6873 // "shmkit\r\n" on little-endian machines
	layoutVersion = 2                  // of everything in this file, in slot.go and in holding.go
	byteOrderMark = 0x01020304

	stateBuilding = 0
	stateReady    = 1
)

// Features of a region. A program that does not know an incompatible one refuses the region.
const (
	featureLanes = 1 << 0 // operations are logged in lanes: only programs that can replay them may take locks over
)

// knownFeatures are the incompatible features that this program knows.
func knownFeatures() uint64 {
	if theRecoverer() != nil {
		return featureLanes
	}
	return 0
}

const flagContinueAfterDeath = 1 << 0

// header is at offset 0. Its first half never changes once the region can be seen, and is covered by
// a checksum, unused bytes included; the second half changes, is read one word at a time and checked
// against its range at every use.
type header struct {
	_ structs.HostLayout

	magic        uint64 // regionMagic
	version      uint32 // layoutVersion
	byteOrder    uint32 // byteOrderMark, for other programs to see
	wordSize     uint32 // bytes of a pointer: 4 or 8
	pageSize     uint32 // of the creator; nobody else rounds with it
	incompatible uint64 // features without which a program must not open the region
	compatible   uint64 // features that a program may ignore
	flags        uint64 // flagContinueAfterDeath
	id           ID     // random, never reused
	limit        uint64 // end of the data area at its largest; the length of every mapping
	hashSeed     uint64 // of the containers
	created      int64  // Unix nanoseconds
	creator      uint64 // token
	slotCount    uint32 // slots at slotsStart, slotSize bytes each
	slotSize     uint32 //
	holdingSize  uint32 // bytes of holdings of each slot
	nameLen      uint32 // bytes of name in use
	name         [maxName]byte
	_            [2048 - 312]byte
	checksum     uint64 // of everything above
	_            [120]byte

	// The words that change, each group on cache lines of its own.

	state atomic.Uint32 // stateBuilding, then stateReady for ever; stored last by the creator
	_     [124]byte
	size  atomic.Uint64 // end of the data area; limit >= size >= dataStart; only grows; under the growth byte
	_     [120]byte
	root  atomic.Uint64 // offset of the Manager's root object; 0 until it is complete
	_     [120]byte
	// deaths changes with every process whose operations have been undone, by 1 or more; waiters that
	// have no owner to watch watch it.
	deaths  atomic.Uint32
	_       [124]byte
	scanned atomic.Int64  // Unix nanoseconds of the last death scan; one scan per interval and region
	_       [120]byte     //
	press   atomic.Uint64 // raised when memory runs short: every process gives back what it caches
	_       [120]byte     //
	boot    [2]atomic.Uint64
	_       [112]byte
	died    [32]struct{ token, pid atomic.Uint64 } // the last dead, by deaths modulo 32; for people
	holes   holes                                  // what was given back to the system: see release.go
}

var (
	_ [headerSize]byte = [unsafe.Sizeof(header{})]byte{} // the layout is a format: moving it must not compile
	_ [2048]byte       = [unsafe.Offsetof(header{}.checksum)]byte{}
	_ [2176]byte       = [unsafe.Offsetof(header{}.state)]byte{}
)

// An ID names a region for ever: 128 random bits.
type ID [16]byte

// String returns the ID in hexadecimal.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

var crcTable = crc64.MakeTable(crc64.ECMA)

// sum is the checksum of the part of a header that never changes.
func (h *header) sum() uint64 {
	return checksum(unsafe.Slice((*byte)(unsafe.Pointer(h)), unsafe.Offsetof(h.checksum)))
}

func checksum(b []byte) uint64 { return crc64.Checksum(b, crcTable) }

// check judges a private copy of a header that was read from a file of fileSize bytes. where names the
// region in errors.
func (h *header) check(where string, fileSize uint64) error {
	corrupt := func(format string, args ...any) error {
		return fmt.Errorf("shm: %s: %s: %w", where, fmt.Sprintf(format, args...), ErrCorrupt)
	}
	other := func(format string, args ...any) error {
		return fmt.Errorf("shm: %s: %s: %w", where, fmt.Sprintf(format, args...), ErrVersion)
	}
	_, most := limits()
	// The order matters: what identifies the writer comes before what only it can have written right.
	switch {
	case h.magic == bits.ReverseBytes64(regionMagic):
		return other("written on a machine of another byte order")
	case h.magic != regionMagic:
		return corrupt("begins with %#x, not with the mark of a region", h.magic)
	case h.version != layoutVersion:
		return other("layout version %d, this program knows %d; use a shmkit of the same layout, or remove the region", h.version, layoutVersion)
	case h.wordSize != wordSize:
		return other("made by a %d-bit program, this one is a %d-bit one", 8*h.wordSize, 8*wordSize)
	case h.checksum != h.sum():
		return corrupt("header checksum %#x, computed %#x", h.checksum, h.sum())
	case h.incompatible&^(knownFeatures()|featureLanes) != 0:
		return other("needs features %#x that this program does not have", h.incompatible&^knownFeatures())
	case h.incompatible&^knownFeatures() != 0:
		return other("its operations are logged, and this program cannot undo those of the dead; link it with package containers")
	case h.slotCount != slotCount, h.slotSize != slotSize, h.holdingSize != holdingSize:
		return corrupt("%d slots of %d and %d bytes", h.slotCount, h.slotSize, h.holdingSize)
	case h.nameLen > maxName:
		return corrupt("name of %d bytes", h.nameLen)
	case h.limit <= dataStart, h.limit > most:
		return corrupt("limit %d", h.limit)
	case h.state.Load() != stateReady:
		return corrupt("state %d", h.state.Load())
	}
	if size := h.size.Load(); size <= dataStart || size > h.limit || size > fileSize {
		return corrupt("%d bytes long, but the file has %d: it was cut", size, fileSize)
	}
	return nil
}

// readHeader reads and checks the header of a region's file.
func readHeader(f *os.File, where string) (*header, error) {
	for try := 1; ; try++ {
		h := new(header)
		b := unsafe.Slice((*byte)(unsafe.Pointer(h)), unsafe.Sizeof(*h))
		switch n, err := f.ReadAt(b, 0); {
		case errors.Is(err, io.EOF):
			return nil, fmt.Errorf("shm: %s: has %d bytes, a region has %d at least: %w", where, n, uint64(dataStart), ErrCorrupt)
		case err != nil:
			return nil, fmt.Errorf("shm: %s: %w", where, err)
		}
		info, err := f.Stat()
		if err != nil {
			return nil, fmt.Errorf("shm: %s: %w", where, err)
		}
		// Reading is not atomic: half of a size that is just growing may be old.
		if err = h.check(where, uint64(info.Size())); err == nil || try == 3 {
			return h, err
		}
	}
}
