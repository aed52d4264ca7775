package containers

import "github.com/shmkit/shmkit/containers/internal/txn"

// slots are where the messages of a [SharedQueue] or a [SharedRing] lie: message v in slot v modulo their number, a power of two. Who
// comes by one when is what the two differ in.
type slots struct {
	first  addr   // of slot 0
	stride uint64 // bytes of one
	mask   uint64 // their number less one
}

// slot returns the address of message v's slot.
func (s *slots) slot(v uint64) addr { return plus(s.first, v&s.mask*s.stride) }

// stretch returns the address of message v's slot, and how many of the n from v on lie there in one piece.
func (s *slots) stretch(v uint64, n int) (addr, int) {
	return s.slot(v), int(min(uint64(n), s.mask+1-v&s.mask))
}

// fillSlots makes vs the messages from v on.
func fillSlots[T any](s *slots, v uint64, vs []T) {
	for len(vs) > 0 {
		p, n := s.stretch(v, len(vs))
		txn.Announce(p, uintptr(n)*uintptr(s.stride))
		if sizeOf[T]() == strideOf[T]() {
			copy(viewOf[T](p, n), vs)
		} else {
			for i := range vs[:n] {
				*as[T](plus(p, uint64(i)*strideOf[T]())) = vs[i]
			}
		}
		v, vs = v+uint64(n), vs[n:]
	}
}

// readSlots copies the messages from v on into vs.
func readSlots[T any](s *slots, v uint64, vs []T) {
	for len(vs) > 0 {
		p, n := s.stretch(v, len(vs))
		if sizeOf[T]() == strideOf[T]() {
			copy(vs, viewOf[T](p, n))
		} else {
			for i := range vs[:n] {
				vs[i] = *as[T](plus(p, uint64(i)*strideOf[T]()))
			}
		}
		v, vs = v+uint64(n), vs[n:]
	}
}
