package heap

import (
	"errors"
	"fmt"

	"github.com/shmkit/shmkit/shm"
)

// A slab is a block of object headers, on 128-byte boundaries. The first slabs are small, so that a small
// region holds objects too.
const (
	slabObjectsMin = 32
	slabObjectsMax = 512
)

// AllocObject returns the offset of an object header, 128 bytes on a 128-byte boundary, which carries this
// process' token as its creator. The rest of it is as its last user left it, gen above all, which is even;
// a new one is zero. It returns an error that is [shm.ErrNoSpace] as Alloc does. A process that dies inside
// may lose the header until the next merge.
func (p *Heap) AllocObject() (shm.Offset, error) {
	if err := p.lock(); err != nil {
		return 0, err
	}
	defer p.h.mu.Unlock()
	at := p.h.freeObjects.Load()
	if at == 0 {
		if err := p.newSlab(); err != nil {
			return 0, err
		}
		at = p.h.freeObjects.Load()
	}
	o, err := p.object(at)
	if err != nil {
		return 0, err
	}
	if o.creator.Load() != 0 || o.gen.Load()&1 == 1 {
		return 0, fmt.Errorf("heap: object at offset %d is on the free list and in use: %w", at, shm.ErrCorrupt)
	}
	p.h.freeObjects.Store(o.next.Load())
	step("object off the list")
	o.next.Store(0)
	o.creator.Store(uint64(shm.Self()))
	return shm.Offset(at), nil
}

// FreeObject takes an object header back; its gen must be even, and stays. It refuses what is none, or is
// free already, with an error that is [shm.ErrCorrupt], having changed nothing. O(slabs).
func (p *Heap) FreeObject(off shm.Offset) error {
	if err := p.lock(); err != nil {
		return err
	}
	defer p.h.mu.Unlock()
	at := uint64(off)
	in, err := p.inSlab(at)
	if err != nil {
		return err
	}
	if !in {
		return fmt.Errorf("heap: free of offset %d, which is no object: %w", off, shm.ErrCorrupt)
	}
	o, err := p.object(at)
	if err != nil {
		return err
	}
	switch {
	case o.creator.Load() == 0:
		return fmt.Errorf("heap: object at offset %d is free already: %w", off, shm.ErrCorrupt)
	case o.gen.Load()&1 == 1:
		return fmt.Errorf("heap: object at offset %d is live, generation %d: %w", off, o.gen.Load(), shm.ErrCorrupt)
	}
	o.creator.Store(0)
	step("object free, not listed")
	p.listObject(o, at)
	return nil
}

func (p *Heap) listObject(o *objectHead, at uint64) {
	o.next.Store(p.h.freeObjects.Load())
	step("object linked")
	p.h.freeObjects.Store(at)
}

// object returns the header at that offset.
func (p *Heap) object(at uint64) (*objectHead, error) {
	if at%objectSize != 0 {
		return nil, fmt.Errorf("heap: object at offset %d: not aligned: %w", at, shm.ErrCorrupt)
	}
	return shm.At[objectHead](p.r, shm.Offset(at))
}

// newSlab makes more object headers, as many as there are, within bounds; one, if there is no room.
func (p *Heap) newSlab() error {
	n := min(max(p.h.objects.Load(), slabObjectsMin), slabObjectsMax)
	size, _ := blockSize(n*objectSize + granule)
	at, _, err := p.take(size, granule, blockSlab)
	if errors.Is(err, shm.ErrNoSpace) {
		size, _ = blockSize(objectSize + granule)
		at, _, err = p.take(size, granule, blockSlab)
	}
	switch {
	case errors.Is(err, shm.ErrNoSpace):
		return p.noSpace(objectSize, err)
	case err != nil:
		return err
	}
	first, count, err := p.slab(at)
	if err != nil {
		return err
	}
	if err := p.zero(first, count*objectSize); err != nil {
		return err
	}
	// crash here: the block is a slab on no list, which the next merge frees
	p.h.slabs.Store(at)
	step("slab listed")
	p.h.objects.Store(p.h.objects.Load() + count)
	return p.listSlab(first, count)
}

// listSlab puts the free headers of a slab on the list, the first one foremost.
func (p *Heap) listSlab(first, count uint64) error {
	for i := count; i > 0; i-- {
		at := first + (i-1)*objectSize
		o, err := p.object(at)
		if err != nil {
			return err
		}
		if o.creator.Load() == 0 && o.gen.Load()&1 == 0 {
			p.listObject(o, at)
		}
	}
	return nil
}

// slab returns where the headers of the slab at that offset begin, and how many there are.
func (p *Heap) slab(at uint64) (first, count uint64, err error) {
	_, size, state, err := p.block(at)
	if err != nil {
		return 0, 0, err
	}
	if state != blockSlab {
		return 0, 0, fmt.Errorf("heap: block at offset %d is on the list of slabs and in state %d: %w", at, state, shm.ErrCorrupt)
	}
	first = (at + blockHead + objectSize - 1) &^ (objectSize - 1)
	if first+objectSize > at+size {
		return 0, 0, fmt.Errorf("heap: slab at offset %d has %d bytes, too few for an object: %w", at, size, shm.ErrCorrupt)
	}
	return first, (at + size - first) / objectSize, nil
}

// eachSlab calls fn with each slab's offset, that of its first header and their number, until it returns false.
func (p *Heap) eachSlab(fn func(at, first, count uint64) bool) error {
	at := p.h.slabs.Load()
	for range p.maxBlocks() {
		if at == 0 {
			return nil
		}
		first, count, err := p.slab(at)
		if err != nil {
			return err
		}
		if !fn(at, first, count) {
			return nil
		}
		b, _, _, err := p.block(at)
		if err != nil {
			return err
		}
		at = b.link.Load()
	}
	return fmt.Errorf("heap: slabs run in a circle: %w", shm.ErrCorrupt)
}

// inSlab reports whether there is an object header at that offset.
func (p *Heap) inSlab(at uint64) (in bool, err error) {
	err = p.eachSlab(func(_, first, count uint64) bool {
		in = at >= first && at < first+count*objectSize && at%objectSize == 0
		return !in
	})
	return in, err
}

// relistObjects makes the list of free headers anew.
func (p *Heap) relistObjects() error {
	p.h.freeObjects.Store(0)
	step("objects unlisted")
	var failed error
	err := p.eachSlab(func(_, first, count uint64) bool {
		failed = p.listSlab(first, count)
		return failed == nil
	})
	if err == nil {
		err = failed
	}
	return err
}
