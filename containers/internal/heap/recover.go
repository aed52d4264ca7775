package heap

import (
	"fmt"
	stdsync "sync"
	"weak"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// heaps are those that this process has open. There is one for each, since its lanes are those of the process: two that share them would
// not know of each other.
var heaps struct {
	mu  stdsync.Mutex
	all map[heapKey]weak.Pointer[Heap]
}

type heapKey struct {
	id shm.ID
	at shm.Offset
}

// Open returns the heap whose header is at at. The region must outlive it.
func Open(r *shm.Region, at shm.Offset) (*Heap, error) {
	if !r.Logged() {
		return nil, fmt.Errorf("heap: the region was made by a program that cannot undo what the dead leave half done, so others like it may have it open; make it anew with this one: %w", shm.ErrVersion)
	}
	heaps.mu.Lock()
	defer heaps.mu.Unlock()
	for k, w := range heaps.all {
		if p := w.Value(); p == nil || p.r.Closed() {
			delete(heaps.all, k)
		}
	}
	if p := heaps.all[heapKey{r.ID(), at}].Value(); p != nil {
		return p, nil
	}
	p, err := open(r, at, r.LaneSlot())
	if err == nil && r.LaneSlot() >= 0 { // else it is only read
		if heaps.all == nil {
			heaps.all = map[heapKey]weak.Pointer[Heap]{}
		}
		w := weak.Make(p)
		heaps.all[heapKey{r.ID(), at}] = w
		if r.File() != nil { // else there are no others
			go attend(r, w)
		}
	}
	return p, err
}

// A Recoverer is that of shm, for regions with a heap.
type Recoverer struct {
	// Heap opens the heap of a region.
	Heap func(r *shm.Region) (*Heap, error)
}

// Undo is the first phase of recovery: see [txn.Undo].
func (c Recoverer) Undo(r *shm.Region, slot int) error {
	if r.Lanes(slot).Load() == 0 {
		return nil // its process never changed anything that it had to log
	}
	p, err := c.Heap(r)
	if err != nil {
		return err
	}
	return txn.Undo(r, slot, p)
}

// Drain is the third phase: see [txn.Drain].
func (c Recoverer) Drain(r *shm.Region, slot int) error {
	if r.Lanes(slot).Load() == 0 {
		return nil
	}
	p, err := c.Heap(r)
	if err != nil {
		return err
	}
	return txn.Drain(r, slot, p, p.lanes)
}
