package containers

import (
	"context"
	"reflect"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// Number is what a [SharedNumber] can be. The width of int and uint is that of the machine; programs of
// another width are refused, so prefer a sized type.
type Number interface {
	~int | ~int8 | ~int16 | ~int32 | ~int64 | ~uint | ~uint8 | ~uint16 | ~uint32 | ~uint64 | ~float32 | ~float64
}

// A SharedNumber is a number that processes share, with its own lock. Load never waits and sees the value
// that was committed last; every other method takes the lock, so that none falls into the middle of a
// With. Where no lock is wanted, [Atomic] is the type.
//
// Word 0 of the object has the value's bits, and storing it is the commit; word 1 is what With works on.
type SharedNumber[N Number] struct{ lockable }

// A SharedInt is a shared int64.
type SharedInt = SharedNumber[int64]

// NewSharedInt makes a shared int64 with the value v.
func NewSharedInt(m *Manager, v int64, opts ...Option) (SharedInt, error) {
	return NewSharedNumber(m, v, opts...)
}

// NewSharedNumber makes a shared number with the value v.
func NewSharedNumber[N Number](m *Manager, v N, opts ...Option) (SharedNumber[N], error) {
	var n SharedNumber[N]
	k, layout, err := n.about()
	if err != nil {
		return n, err
	}
	b, err := newObject(m, k, layout, opts, func(_ *txn.Lane, _ *space, o *object) error {
		o.words[0].Store(toBits(v))
		return nil
	})
	if err != nil {
		return n, err
	}
	return opened(n, b)
}

func (SharedNumber[N]) about() (kind, *shm.Layout, error) {
	l, err := shm.LayoutOf(reflect.TypeFor[N]())
	return kindNumber, l, err
}

func (SharedNumber[N]) from(b base) (SharedNumber[N], error) {
	return SharedNumber[N]{lockable{b}}, nil
}

// MarshalBinary encodes a reference to the object, not its contents: whoever decodes it gets a handle on the
// same object. A process started by package proc finds the region attached; any other one needs it open, or
// under its name. A zero handle is encoded as nothing.
func (n SharedNumber[N]) MarshalBinary() ([]byte, error) { return n.base.MarshalBinary() }

// MarshalText is MarshalBinary in base64.
func (n SharedNumber[N]) MarshalText() ([]byte, error) { return n.base.MarshalText() }

// UnmarshalBinary makes n the handle that data encodes.
func (n *SharedNumber[N]) UnmarshalBinary(data []byte) error { return unmarshal(n, data) }

// UnmarshalText is UnmarshalBinary from base64.
func (n *SharedNumber[N]) UnmarshalText(text []byte) error { return unmarshalText(n, text) }

// Load returns the value that was committed last. It does not wait for the lock. It panics with
// [shm.ErrClosed] or [shm.ErrStale] if the handle is of no use any more, as all methods do that return no
// error.
func (n SharedNumber[N]) Load() N {
	if n.obj == nil {
		n.notLive("Load")
	}
	v := n.obj.words[0].Load()
	if n.obj.gen.Load() != n.gen || n.s.closed.Load() {
		n.notLive("Load")
	}
	return fromBits[N](v)
}

// Store sets the value.
func (n SharedNumber[N]) Store(v N) {
	n.acquire("Store")
	n.obj.words[0].Store(toBits(v))
	n.release()
}

// Add adds d and returns the new value. Integers wrap round.
func (n SharedNumber[N]) Add(d N) N {
	n.acquire("Add")
	v := fromBits[N](n.obj.words[0].Load()) + d
	n.obj.words[0].Store(toBits(v))
	n.release()
	return v
}

// Swap sets the value and returns the one before.
func (n SharedNumber[N]) Swap(v N) N {
	n.acquire("Swap")
	old := fromBits[N](n.obj.words[0].Load())
	n.obj.words[0].Store(toBits(v))
	n.release()
	return old
}

// CompareAndSwap sets the value to v if it is old, and reports whether it did. Floats are compared as Go
// compares them: 0 and −0 are the same, and NaN is not even NaN, so that it is never swapped.
func (n SharedNumber[N]) CompareAndSwap(old, v N) bool {
	n.acquire("CompareAndSwap")
	swapped := fromBits[N](n.obj.words[0].Load()) == old
	if swapped {
		n.obj.words[0].Store(toBits(v))
	}
	n.release()
	return swapped
}

// With runs fn with the lock held and a copy of the value, which becomes the value when fn returns. If fn
// panics, or the process dies, the old value stays, and the lock is free. Others see the old value until
// then. v is valid inside fn only; calling n's own methods there would wait for ever, except Load.
func (n SharedNumber[N]) With(fn func(v *N)) {
	n.acquire("With")
	defer n.release()
	v := n.spareLocked()
	fn(v)
	n.obj.words[0].Store(toBits(*v))
}

// Update is With for an fn that can fail: its error is returned as it is, and the old value stays. It waits
// for the lock until ctx ends.
func (n SharedNumber[N]) Update(ctx context.Context, fn func(v *N) error) error {
	if err := n.lock(ctx, "Update"); err != nil {
		return err
	}
	defer n.release()
	return n.updateLocked(fn)
}

func (n SharedNumber[N]) updateLocked(fn func(v *N) error) error {
	v := n.spareLocked()
	if err := fn(v); err != nil {
		return err
	}
	n.obj.words[0].Store(toBits(*v))
	return nil
}

// spareLocked returns a copy of the value, in the spare word: no allocation, and nobody reads it.
func (n SharedNumber[N]) spareLocked() *N {
	v := as[N](addr(&n.obj.words[1]))
	*v = fromBits[N](n.obj.words[0].Load())
	return v
}

// Locked returns the view of the number for whoever holds its lock.
func (n SharedNumber[N]) Locked() LockedNumber[N] {
	n.checkLive("Locked")
	return LockedNumber[N]{n}
}

// A LockedNumber is a [SharedNumber] for the holder of its lock: its methods take no lock.
type LockedNumber[N Number] struct{ n SharedNumber[N] }

// Load returns the value.
func (l LockedNumber[N]) Load() N { return l.n.Load() }

// Store sets the value.
func (l LockedNumber[N]) Store(v N) {
	l.n.checkLive("Store")
	l.n.obj.words[0].Store(toBits(v))
}

// Add adds d and returns the new value.
func (l LockedNumber[N]) Add(d N) N {
	v := l.Load() + d
	l.n.obj.words[0].Store(toBits(v))
	return v
}

// Update runs fn with a copy of the value, which becomes the value when fn returns nil.
func (l LockedNumber[N]) Update(fn func(v *N) error) error {
	if err := l.n.check("Update"); err != nil {
		return err
	}
	return l.n.updateLocked(fn)
}
