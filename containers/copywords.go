package containers

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
)

// An addr is the address of an 8-aligned word in a region, checked when it was made from an offset. It is
// valid until the region is closed and its last handle is gone; a handle keeps its region, so an addr in
// a handle is always safe to use.
type addr = unsafe.Pointer

// addrOf turns n bytes at off, an offset read from the region, into an address. It checks bounds and
// alignment: what it refuses is [shm.ErrCorrupt], or [shm.ErrClosed] after Close.
func addrOf(r *shm.Region, off shm.Offset, n uint64) (addr, error) {
	if _, err := r.Bytes(off, n); err != nil {
		return nil, err
	}
	p, err := shm.At[uint64](r, off)
	return addr(p), err
}

// offsetOf returns the offset of an object of the region.
func (s *space) offsetOf(o *object) shm.Offset {
	off, _ := s.region.OffsetOf(unsafe.Pointer(o))
	return off
}

// plus returns the address n bytes on. The caller knows that it is inside the block.
func plus(p addr, n uint64) addr { return unsafe.Add(p, n) }

// word returns word i counted from p.
func word(p addr, i int) *atomic.Uint64 { return (*atomic.Uint64)(unsafe.Add(p, 8*i)) }

// as returns p as a pointer to T: live memory of the region.
func as[T any](p addr) *T { return (*T)(p) }

// viewOf returns n elements of T from p on: live memory of the region. Only for strides of exactly T's size.
func viewOf[T any](p addr, n int) []T { return unsafe.Slice((*T)(p), n) }

// sizeOf returns the size of T in bytes.
func sizeOf[T any]() uint64 {
	var v T
	return uint64(unsafe.Sizeof(v))
}

// strideOf returns the bytes that a T takes in a region: its size rounded up to whole words, at least one.
func strideOf[T any]() uint64 { return max(8, (sizeOf[T]()+7)&^7) }

// bytesOf returns *p as bytes, padding included.
func bytesOf[T any](p *T) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(p)), unsafe.Sizeof(*p)) }

// loadWords fills dst from the words at src, each by one atomic load. The word that holds dst's tail is
// read whole, so a stride must be there to read. dst may have any length and alignment.
func loadWords(dst []byte, src addr) {
	i := 0
	for ; len(dst) >= 8; i++ {
		binary.NativeEndian.PutUint64(dst, word(src, i).Load())
		dst = dst[8:]
	}
	if len(dst) > 0 {
		var tail [8]byte
		binary.NativeEndian.PutUint64(tail[:], word(src, i).Load())
		copy(dst, tail[:])
	}
}

// storeWords writes src to the words at dst, each by one atomic store; the last one is filled up with zeros.
func storeWords(dst addr, src []byte) {
	i := 0
	for ; len(src) >= 8; i++ {
		word(dst, i).Store(binary.NativeEndian.Uint64(src))
		src = src[8:]
	}
	if len(src) > 0 {
		var tail [8]byte
		copy(tail[:], src)
		word(dst, i).Store(binary.NativeEndian.Uint64(tail[:]))
	}
}

// load copies the T at src, word by word.
func load[T any](src addr) (v T) {
	loadWords(bytesOf(&v), src)
	return v
}

// store writes v to dst, where a lock-free reader may be looking: word by word in race builds, else plainly,
// since such a reader throws away what it copied when the sequence has moved on.
func store[T any](dst addr, v *T) {
	if raceEnabled {
		storeWords(dst, bytesOf(v))
	} else {
		*(*T)(dst) = *v
	}
}

// toBits returns v's bytes as they are, zero above them.
func toBits[N Number](v N) uint64 {
	switch unsafe.Sizeof(v) {
	case 1:
		return uint64(*(*uint8)(unsafe.Pointer(&v)))
	case 2:
		return uint64(*(*uint16)(unsafe.Pointer(&v)))
	case 4:
		return uint64(*(*uint32)(unsafe.Pointer(&v)))
	}
	return *(*uint64)(unsafe.Pointer(&v))
}

// fromBits is the inverse of toBits.
func fromBits[N Number](bits uint64) (v N) {
	switch unsafe.Sizeof(v) {
	case 1:
		*(*uint8)(unsafe.Pointer(&v)) = uint8(bits)
	case 2:
		*(*uint16)(unsafe.Pointer(&v)) = uint16(bits)
	case 4:
		*(*uint32)(unsafe.Pointer(&v)) = uint32(bits)
	default:
		*(*uint64)(unsafe.Pointer(&v)) = bits
	}
	return v
}
