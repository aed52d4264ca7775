package heap

import (
	"fmt"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// AllocObject returns the offset of an object header, 128 bytes on a 128-byte boundary, which carries this process' token as its
// creator. The rest of it is as its last user left it, gen above all, which is even; a new one is zero. Errors and deaths are as with Alloc.
func (p *Heap) AllocObject() (off shm.Offset, err error) {
	l, err := p.lanes.Enter()
	if err != nil {
		return 0, err
	}
	defer leave(l, &err)
	if off, err = p.AllocObjectIn(l); err == nil {
		l.Commit()
	}
	return off, err
}

// AllocObjectIn is AllocObject as part of the operation in l.
func (p *Heap) AllocObjectIn(l *txn.Lane) (shm.Offset, error) {
	if p.r.Closed() {
		return 0, fmt.Errorf("heap: %w", shm.ErrClosed)
	}
	off, err := p.take(l, objectClass)
	if err != nil {
		return 0, err
	}
	o, err := shm.At[objectHead](p.r, shm.Offset(off))
	if err != nil {
		return 0, err
	}
	if o.creator.Load() != 0 || o.gen.Load()&1 == 1 {
		return 0, fmt.Errorf("heap: object at offset %d is free and in use: %w", off, shm.ErrCorrupt)
	}
	txn.Put(&o.creator, uint64(shm.Self())) // before the commit: disown undoes it
	return shm.Offset(off), nil
}

// FreeObject takes an object header back; its gen must be even, and stays. It refuses what is none, or is free already, with an error
// that is [shm.ErrCorrupt], having changed nothing.
func (p *Heap) FreeObject(off shm.Offset) (err error) {
	at, err := p.object(off)
	if err != nil {
		return err
	}
	l, err := p.lanes.Enter()
	if err != nil {
		return err
	}
	defer leave(l, &err)
	next := l.Freeing(off)
	return p.give(l, uint64(off), at, next)
}

// FreeObjectIn is FreeObject as part of the operation in l, which may be what makes gen even.
func (p *Heap) FreeObjectIn(l *txn.Lane, off shm.Offset) error {
	at, _, err := p.objectAt(off)
	if err != nil {
		return err
	}
	return l.Free(off, at.kind)
}

// object returns the place of an object header that is in use, and may be freed.
func (p *Heap) object(off shm.Offset) (place, error) {
	at, o, err := p.objectAt(off)
	if err == nil && o.gen.Load()&1 == 1 {
		err = fmt.Errorf("heap: object at offset %d is live, generation %d: %w", off, o.gen.Load(), shm.ErrCorrupt)
	}
	return at, err
}

// objectAt returns the place of an object header that is in use.
func (p *Heap) objectAt(off shm.Offset) (at place, o *objectHead, err error) {
	if p.r.Closed() {
		return at, nil, fmt.Errorf("heap: %w", shm.ErrClosed)
	}
	at, ok := p.find(uint64(off))
	if !ok || kindOf(at.kind) == pageRun || classOf(at.kind) != objectClass {
		return at, nil, fmt.Errorf("heap: free of offset %d, which is no object: %w", off, shm.ErrCorrupt)
	}
	if !at.live() {
		return at, nil, fmt.Errorf("heap: object at offset %d is free already: %w", off, shm.ErrCorrupt)
	}
	o, err = shm.At[objectHead](p.r, off)
	return at, o, err
}

// disown says that a header is free.
func (p *Heap) disown(off uint64) error {
	o, err := shm.At[objectHead](p.r, shm.Offset(off))
	if err == nil && o.creator.Load() != 0 {
		txn.Put(&o.creator, 0)
	}
	return err
}
