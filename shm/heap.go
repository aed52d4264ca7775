package shm

import (
	"math/rand/v2"
	"unsafe"
)

// Heap makes a region in Go memory, for one process: for tests under the race detector, which does
// not look into mapped memory, and for platforms without shared mappings. Its memory is set aside
// whole: its limit is its size unless told, 16 MiB at least, and Go ends the program if there is not so
// much. After Close it stays as it was.
func Heap(opts ...Option) (*Region, error) {
	o := collect(opts)
	if !o.limitSet {
		o.limit, o.limitSet = max(o.size, 16<<20), true
	}
	if err := o.checkSizes(); err != nil {
		return nil, err
	}
	limit := dataStart + o.limit
	words := make([]uint64, (limit+headerSize)/8+1)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(words))) % headerSize
	m := newMapping(o, newID(), limit)
	m.forgive, m.seed = o.continueAfterDeath, rand.Uint64()
	m.place(unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(words)), skip)), limit))
	m.format(o)
	m.seat = new(seat)
	s := &m.slots[0]
	s.state.Store(attachedHere)
	m.fill(s, 0)
	s.token.Store(uint64(self))
	regions.mu.Lock()
	defer regions.mu.Unlock()
	register(m)
	return m.handle(), nil
}
