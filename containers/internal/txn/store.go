package txn

import (
	"sync/atomic"
	"unsafe"
)

// Stores that recovery relies on. The compiler must emit each of them, as one instruction for all bytes of the word,
// and in the order of the source. It may not know that somebody looks: it drops a store that another one
// overwrites in the same basic block, and joins stores to neighbours. So between any two stores there is a load
// and a branch, which ask for the tests' hook, and which no store moves across. Where words are plain stores, and
// how they are made elsewhere, is in store_plain.go and store_atomic.go; a test reads the machine code.

// OnStore, if set, is called before each store to shared memory with where it goes. Tests set it, while nothing
// else runs; they look at the memory, or end the operation there.
var OnStore func(p unsafe.Pointer, n uintptr)

// Put stores v at p. Nobody else writes there: the caller holds its lock, or it belongs to its lane.
func Put(p *atomic.Uint64, v uint64) {
	if OnStore != nil {
		OnStore(unsafe.Pointer(p), 8)
	}
	put(p, v)
}

// PutByte is Put for a byte, whose neighbours others may write.
func PutByte(p *byte, v byte) {
	if OnStore != nil {
		OnStore(unsafe.Pointer(p), 1)
	}
	putByte(p, v)
}

// Where every nanosecond counts, a function is compiled twice from one source: with [Watched] its stores can be watched, as with Put;
// with [Plain] there is nothing but the stores, and between two of them a load that the compiler must believe to matter.
type (
	Plain   = struct{}
	Watched = uint8
)

// pivot is what that load looks at. It is never written.
var pivot atomic.Uint32

// PutAs is Put in such a function.
func PutAs[S any](p *atomic.Uint64, v uint64) {
	if unsafe.Sizeof(*(*S)(nil)) != 0 {
		announceWord(p)
	}
	put(p, v)
	pivot.Load()
}

// PutByteAs is PutByte in such a function.
func PutByteAs[S any](p *byte, v byte) {
	if unsafe.Sizeof(*(*S)(nil)) != 0 {
		announceByte(p)
	}
	putByte(p, v)
	pivot.Load()
}

//go:noinline
func announceWord(p *atomic.Uint64) { OnStore(unsafe.Pointer(p), 8) }

//go:noinline
func announceByte(p *byte) { OnStore(unsafe.Pointer(p), 1) }

//go:noinline
func announceLine(p *[64]byte) { OnStore(unsafe.Pointer(p), 64) }

// Announce tells the tests of n bytes at p that are about to be written in no order: memory that nobody can
// see, or nobody else reads.
func Announce(p unsafe.Pointer, n uintptr) {
	if OnStore != nil {
		OnStore(p, n)
	}
}

// ClearLine is Clear for 64 bytes, in such a function.
func ClearLine[S any](b *[64]byte) {
	if unsafe.Sizeof(*(*S)(nil)) != 0 {
		announceLine(b)
	}
	clearLine(b)
}

// CopyAs copies data to b, which is as long, in such a function. It is memory of the kind that Clear is for.
func CopyAs[S any](b []byte, data string) {
	if unsafe.Sizeof(*(*S)(nil)) != 0 {
		Announce(unsafe.Pointer(&b[0]), uintptr(len(b)+7)&^7)
	}
	copyBytes(b, data)
}

// Clear clears b, whose length is a multiple of 8. It is memory that nobody else can see yet, or that others may still read who have no
// business there any more.
func Clear(b []byte) {
	if len(b) == 0 {
		return
	}
	Announce(unsafe.Pointer(&b[0]), uintptr(len(b)))
	clearBytes(b)
}
