package heap

import (
	"fmt"

	"github.com/shmkit/shmkit/shm"
)

// Usage says what a heap holds, in bytes and blocks; bytes include the blocks' headers.
type Usage struct {
	Size, Limit      uint64 // of the region's data area
	Used             uint64 // from the first block to the end of the last
	Live, LiveBlocks uint64 // handed out
	Free, FreeBlocks uint64 // to be handed out again
	Unlisted         uint64 // free blocks that a dead process took off their list: the next merge finds them
	Released         uint64 // of Free, and behind the last block: given back to the system
	Objects          uint64 // object headers in use
	FreeObjects      uint64
}

// Usage walks the heap under its lock.
func (p *Heap) Usage() (Usage, error) {
	return p.walk()
}

// Check walks the heap under its lock and returns an error that names the first broken invariant and is
// [shm.ErrCorrupt].
func (p *Heap) Check() error {
	_, err := p.walk()
	return err
}

func (p *Heap) walk() (Usage, error) {
	u := Usage{Size: p.r.Size(), Limit: p.r.Limit()}
	if err := p.lock(); err != nil {
		return u, err
	}
	defer p.h.mu.Unlock()
	bad := func(format string, args ...any) error {
		return fmt.Errorf("heap: "+format+": %w", append(args, shm.ErrCorrupt)...)
	}
	top := p.h.top.Load()
	if top < p.first || top > end(p.r) {
		return u, bad("top is %d, not in [%d, %d]", top, p.first, end(p.r))
	}
	u.Used = top - p.first
	free := map[uint64]bool{} // offset of each free block: still to be found on a list
	for at := p.first; at < top; {
		b, size, state, err := p.block(at)
		if err != nil {
			return u, err
		}
		switch state {
		case blockFree:
			u.Free, u.FreeBlocks = u.Free+size, u.FreeBlocks+1
			free[at] = true
		case blockLive:
			u.Live, u.LiveBlocks = u.Live+size, u.LiveBlocks+1
			if b.link.Load() != p.check(at) {
				return u, bad("live block at offset %d: wrong check word", at)
			}
		}
		if released := p.r.Released(shm.Offset(at), size); released > 0 && state != blockFree {
			return u, bad("block at offset %d is in state %d, and %d of its %d bytes are given back", at, state, released, size)
		}
		at += size
	}
	u.Released = p.r.Released(p.r.Data(), p.r.Size())
	for c := range p.h.classes {
		for at := p.h.classes[c].Load(); at != 0; {
			b, size, _, err := p.block(at)
			switch {
			case err != nil:
				return u, fmt.Errorf("heap: free list %d: %w", c, err)
			case !free[at]:
				return u, bad("free list %d: block at offset %d is not free, or listed twice", c, at)
			case class(size) != c:
				return u, bad("free list %d: block at offset %d has %d bytes, which is class %d", c, at, size, class(size))
			}
			delete(free, at)
			at = b.link.Load()
		}
	}
	u.Unlisted = uint64(len(free))
	return u, p.walkObjects(&u, bad)
}

func (p *Heap) walkObjects(u *Usage, bad func(string, ...any) error) error {
	unlisted := map[uint64]bool{}
	var failed error
	err := p.eachSlab(func(_, first, count uint64) bool {
		for i := range count {
			at := first + i*objectSize
			o, err := p.object(at)
			if err != nil {
				failed = err
				return false
			}
			if o.creator.Load() == 0 {
				if o.gen.Load()&1 == 1 {
					failed = bad("free object at offset %d has the generation %d of a live one", at, o.gen.Load())
					return false
				}
				unlisted[at] = true
			} else {
				u.Objects++
			}
		}
		return true
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return err
	}
	u.FreeObjects = uint64(len(unlisted))
	for at := p.h.freeObjects.Load(); at != 0; {
		if !unlisted[at] {
			return bad("object at offset %d is on the free list and in use, or listed twice", at)
		}
		delete(unlisted, at)
		o, err := p.object(at)
		if err != nil {
			return err
		}
		at = o.next.Load()
	}
	return nil
}
