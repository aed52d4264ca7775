package containers

import (
	"sync/atomic"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// Elements of an array lie on T's own size, so that they can be handed out as a []T; that need not be a
// multiple of a word. What follows reads and writes them beside readers and writers of others: in one
// instruction where there is one for the size, else so that a torn copy is harmless, because the sequence
// word around it has changed.

// atomicSize reports whether a T is read and written by one instruction. Blocks are 16-aligned, so an
// element of such a size lies within one aligned word, whatever T's own alignment.
func atomicSize[T any]() bool {
	switch sizeOf[T]() {
	case 0, 1, 2, 4, 8:
		return true
	}
	return false
}

// readElement returns element i of those at data: whole if atomicSize, else word by word.
func readElement[T any](data addr, i int) (v T) {
	size := sizeOf[T]()
	at := uint64(i) * size
	switch size {
	case 0:
	case 8:
		w := as[atomic.Uint64](plus(data, at)).Load()
		v = *as[T](addr(&w))
	case 4:
		w := as[atomic.Uint32](plus(data, at)).Load()
		v = *as[T](addr(&w))
	case 1, 2:
		w := as[atomic.Uint32](plus(data, at&^3)).Load()
		v = *as[T](plus(addr(&w), at&3))
	default:
		loadBytes(bytesOf(&v), data, at)
	}
	return v
}

// writeElement stores v in element i of those at data; T is of atomicSize.
func writeElement[T any](data addr, i int, v *T) {
	size := sizeOf[T]()
	at := uint64(i) * size
	switch size {
	case 8:
		as[atomic.Uint64](plus(data, at)).Store(*as[uint64](addr(v)))
	case 4:
		as[atomic.Uint32](plus(data, at)).Store(*as[uint32](addr(v)))
	case 1, 2:
		storeBytes(data, at, bytesOf(v))
	}
}

// readElements copies elements from index i on into dst. Each is whole if atomicSize. The copy is plain
// outside race builds: whoever checks a sequence word afterwards calls finishLoads first.
func readElements[T any](dst []T, data addr, i int) {
	if len(dst) == 0 {
		return
	}
	if raceEnabled {
		loadBytes(bytesOfSlice(dst), data, uint64(i)*sizeOf[T]())
	} else {
		copy(dst, viewOf[T](plus(data, uint64(i)*sizeOf[T]()), len(dst)))
	}
}

// writeElements copies src over the elements from index i on. Each changes in one step if atomicSize: a
// copy moves whole aligned words, and is cut by a kill between instructions only.
func writeElements[T any](data addr, i int, src []T) {
	if len(src) == 0 {
		return
	}
	if raceEnabled {
		storeBytes(data, uint64(i)*sizeOf[T](), bytesOfSlice(src))
	} else {
		copy(viewOf[T](plus(data, uint64(i)*sizeOf[T]()), len(src)), src)
	}
}

// copyBlock copies n bytes, whole words, from one block to another; readers may be looking at either.
func copyBlock(dst, src addr, n uint64) {
	if !raceEnabled {
		copy(viewOf[byte](dst, int(n)), viewOf[byte](src, int(n)))
		return
	}
	for i := range int(n / 8) {
		word(dst, i).Store(word(src, i).Load())
	}
}

func bytesOfSlice[T any](s []T) []byte {
	if len(s) == 0 {
		return nil
	}
	return viewOf[byte](addr(&s[0]), len(s)*int(sizeOf[T]()))
}

// loadBytes fills dst from the block at data, from byte at on, by atomic loads of the words that hold it.
func loadBytes(dst []byte, data addr, at uint64) {
	if at&7 == 0 && len(dst)&7 == 0 {
		loadWords(dst, plus(data, at))
		return
	}
	for len(dst) > 0 {
		w := as[atomic.Uint64](plus(data, at&^7)).Load()
		n := copy(dst, viewOf[byte](addr(&w), 8)[at&7:])
		dst, at = dst[n:], at+uint64(n)
	}
}

// storeBytes writes src into the block at data, from byte at on, by atomic stores. Of a word that holds
// neighbours too it exchanges only its own bytes, since a view may be writing the others. A source of 1, 2
// or 4 bytes on its own size changes in one step.
func storeBytes(data addr, at uint64, src []byte) {
	if at&7 == 0 && len(src)&7 == 0 {
		storeWords(plus(data, at), src)
		return
	}
	for len(src) > 0 {
		w := as[atomic.Uint64](plus(data, at&^7))
		for n := 0; ; {
			old := w.Load()
			now := old
			n = copy(viewOf[byte](addr(&now), 8)[at&7:], src)
			if n == 8 {
				w.Store(now)
			} else if !w.CompareAndSwap(old, now) {
				continue // a view wrote a neighbour: each turn is progress of somebody
			}
			src, at = src[n:], at+uint64(n)
			break
		}
	}
}

// addrAt is addrOf in one step, for at least one byte.
func addrAt(r *shm.Region, off, n uint64) (addr, error) {
	if p := r.Pointer(shm.Offset(off), n); p != nil && off&7 == 0 {
		return p, nil
	}
	return addrOf(r, shm.Offset(off), n) // looks again, and says what is wrong
}

// publish stores v in w ahead of whatever is stored after it. The load does nothing on amd64; on arm64 it
// keeps plain stores that follow from being seen before v. It does not keep loads that follow behind the store: nobody who writes here asks
// afterwards whether others have written.
func publish(w *atomic.Uint64, v uint64) {
	txn.Put(w, v)
	w.Load()
}

// finishLoads keeps plain loads before it from being done after an atomic load behind it. Atomic loads need
// no such help.
func finishLoads() {
	var w uint32
	atomic.StoreUint32(&w, 1)
}
