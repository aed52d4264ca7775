package containers

import (
	"context"
	"fmt"
	"io/fs"
	"reflect"

	"github.com/shmkit/shmkit/containers/internal/heap"
	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
	shmsync "github.com/shmkit/shmkit/sync"
)

// A Ref is a T in a region, in place: the home of a bare lock, a Ref[shmsync.Mutex], and of a struct with
// locks or atomics in it. What guards the T, and what a process that dies leaves of it, is the affair of
// whoever made the T; a lock in it says that its owner died.
//
// Words of a Ref's object: 0 offset of the memory, 1 its length, 2 how many objects use it as their lock
// (guarded by root.mu). A Ref[shmsync.Mutex] has no memory of its own: its Mutex is the header's embedded one,
// which never becomes anything but a Mutex, so that a stale handle that locks it harms nobody.
type Ref[T any] struct {
	base
	p addr
}

// New makes a zero T, aligned to 64 bytes or as the option [Align] says.
func New[T any](m *Manager, opts ...Option) (Ref[T], error) {
	var r Ref[T]
	k, layout, err := r.about()
	if err != nil {
		return r, err
	}
	align, err := alignmentOf[T](opts)
	if err != nil {
		return r, err
	}
	init, err := initOf[T](opts)
	if err != nil {
		return r, err
	}
	b, err := newObject(m, k, layout, opts, func(tx *txn.Lane, s *space, o *object) error {
		if isMutex[T]() {
			o.words[0].Store(uint64(s.mutexOf(o)))
			o.words[1].Store(sizeOf[T]())
			// A lock that was destroyed under a dead owner is still that owner's.
			err := o.mu.LockRepaired(context.Background(), func(shm.Death) error { return nil })
			if err == nil {
				o.mu.Unlock()
			}
			return err
		}
		off, err := s.heap.AllocIn(tx, sizeOf[T](), align)
		o.words[0].Store(uint64(off))
		o.words[1].Store(sizeOf[T]())
		if err != nil || init == nil {
			return err
		}
		p, err := addrOf(s.region, off, max(8, sizeOf[T]()))
		if err != nil {
			return err
		}
		return init(as[T](p)) // crash here: the block goes back, as if it had not been taken
	})
	if err != nil {
		return r, err
	}
	return opened(r, b)
}

// Ptr returns the T, live memory that other processes use too. It is valid until the region is closed or
// the T destroyed. Ptr panics with [shm.ErrClosed] or [shm.ErrStale] when that has happened.
func (r Ref[T]) Ptr() *T {
	r.checkLive("Ptr")
	return as[T](r.p)
}

func (Ref[T]) about() (kind, *shm.Layout, error) {
	l, err := shm.LayoutOf(reflect.TypeFor[T]())
	return kindRaw, l, err
}

func (Ref[T]) from(b base) (Ref[T], error) {
	off, n := shm.Offset(b.obj.words[0].Load()), b.obj.words[1].Load()
	if n != sizeOf[T]() {
		return Ref[T]{}, b.fail("open", shm.ErrCorrupt)
	}
	p, err := addrOf(b.s.region, off, max(8, n))
	if err != nil {
		return Ref[T]{}, b.fail("open", err)
	}
	return Ref[T]{b, p}, nil
}

// MarshalBinary encodes a reference to the object, not its contents: whoever decodes it gets a handle on the
// same object. A process started by package proc finds the region attached; any other one needs it open, or
// under its name. A zero handle is encoded as nothing.
func (r Ref[T]) MarshalBinary() ([]byte, error) { return r.base.MarshalBinary() }

// MarshalText is MarshalBinary in base64.
func (r Ref[T]) MarshalText() ([]byte, error) { return r.base.MarshalText() }

// UnmarshalBinary makes r the handle that data encodes.
func (r *Ref[T]) UnmarshalBinary(data []byte) error { return unmarshal(r, data) }

// UnmarshalText is UnmarshalBinary from base64.
func (r *Ref[T]) UnmarshalText(text []byte) error { return unmarshalText(r, text) }

// alignmentOf returns what the option Align asks for, for a T.
func alignmentOf[T any](opts []Option) (uint64, error) {
	o := collect(opts)
	switch {
	case !o.aligned:
		return 8, nil
	case isMutex[T]():
		return 0, fmt.Errorf("containers: new %v with Align: it stands in the object's header; put it into a struct: %w", reflect.TypeFor[T](), fs.ErrInvalid)
	case o.align < 8 || o.align > heap.MaxAlign || o.align&(o.align-1) != 0:
		return 0, fmt.Errorf("containers: new %v with Align(%d): alignments are powers of two from 8 to %d: %w", reflect.TypeFor[T](), o.align, heap.MaxAlign, fs.ErrInvalid)
	}
	return uint64(o.align), nil
}

// initOf returns what the option Init asks for, for a T; nil if nothing.
func initOf[T any](opts []Option) (func(*T) error, error) {
	o := collect(opts)
	if o.init == nil {
		return nil, nil
	}
	fn, ok := o.init.(func(*T) error)
	switch {
	case !ok:
		return nil, fmt.Errorf("containers: new %v with Init of a %T: %w", reflect.TypeFor[T](), o.init, fs.ErrInvalid)
	case isMutex[T]():
		return nil, fmt.Errorf("containers: new %v with Init: there is nothing to set up: %w", reflect.TypeFor[T](), fs.ErrInvalid)
	}
	return fn, nil
}

func isMutex[T any]() bool { return reflect.TypeFor[T]() == reflect.TypeFor[shmsync.Mutex]() }

// dropRaw frees what a Ref has.
func dropRaw(l *txn.Lane, s *space, o *object) error {
	if shm.Offset(o.words[0].Load()) == s.mutexOf(o) {
		return nil
	}
	return s.freeIn(l, &o.words[0])
}
