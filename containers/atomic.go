package containers

import (
	"fmt"
	"io/fs"
	"reflect"
	"sync/atomic"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// An Atomic is a number that processes share without a lock, as goroutines share those of sync/atomic:
// each method is one atomic step, lock-free, and the n'th change synchronizes before whoever sees it. It
// has neither Lock nor With; where several steps belong together, [SharedNumber] is the type. Destroy must
// not run beside other calls on it: with no lock, nothing keeps a call that has just begun from writing
// into an Atomic made in the same place.
type Atomic[N Number] struct{ base }

// An AtomicInt is a lock-free shared int64.
type AtomicInt = Atomic[int64]

// NewAtomicInt makes a lock-free shared int64 with the value v.
func NewAtomicInt(m *Manager, v int64, opts ...Option) (AtomicInt, error) {
	return NewAtomic(m, v, opts...)
}

// NewAtomic makes a lock-free shared number with the value v. It has no use for [WithMutex], and refuses it.
func NewAtomic[N Number](m *Manager, v N, opts ...Option) (Atomic[N], error) {
	var a Atomic[N]
	k, layout, err := a.about()
	if err == nil && collect(opts).locked {
		err = fmt.Errorf("containers: an Atomic with a lock is a SharedNumber: %w", fs.ErrInvalid)
	}
	if err != nil {
		return a, err
	}
	b, err := newObject(m, k, layout, opts, func(_ *txn.Lane, _ *space, o *object) error {
		o.words[atomicWord].Store(toBits(v))
		return nil
	})
	if err != nil {
		return a, err
	}
	return opened(a, b)
}

func (Atomic[N]) about() (kind, *shm.Layout, error) {
	l, err := shm.LayoutOf(reflect.TypeFor[N]())
	return kindAtomic, l, err
}

func (Atomic[N]) from(b base) (Atomic[N], error) { return Atomic[N]{b}, nil }

// MarshalBinary encodes a reference to the object, not its contents: whoever decodes it gets a handle on the
// same object. A process started by package proc finds the region attached; any other one needs it open, or
// under its name. A zero handle is encoded as nothing.
func (a Atomic[N]) MarshalBinary() ([]byte, error) { return a.base.MarshalBinary() }

// MarshalText is MarshalBinary in base64.
func (a Atomic[N]) MarshalText() ([]byte, error) { return a.base.MarshalText() }

// UnmarshalBinary makes a the handle that data encodes.
func (a *Atomic[N]) UnmarshalBinary(data []byte) error { return unmarshal(a, data) }

// UnmarshalText is UnmarshalBinary from base64.
func (a *Atomic[N]) UnmarshalText(text []byte) error { return unmarshalText(a, text) }

// Load returns the value. It panics with [shm.ErrClosed] or [shm.ErrStale] if the handle is of no use any
// more, as all methods do.
func (a Atomic[N]) Load() N {
	a.checkLive("Load")
	v := a.obj.words[atomicWord].Load()
	a.checkLive("Load")
	return fromBits[N](v)
}

// Store sets the value.
func (a Atomic[N]) Store(v N) { a.word("Store").Store(toBits(v)) }

// Swap sets the value and returns the one before.
func (a Atomic[N]) Swap(v N) N { return fromBits[N](a.word("Swap").Swap(toBits(v))) }

// Add adds d and returns the new value. Integers wrap round.
func (a Atomic[N]) Add(d N) N {
	w := a.word("Add")
	if N(1)/2 == 0 && sizeOf[N]() == 8 { // a 64-bit integer: its bits are the word
		return fromBits[N](w.Add(toBits(d)))
	}
	for { // a failure means that another call has succeeded
		old := w.Load()
		v := fromBits[N](old) + d
		if w.CompareAndSwap(old, toBits(v)) {
			return v
		}
	}
}

// CompareAndSwap sets the value to v if it is old, and reports whether it did. Floats are compared as Go
// compares them: 0 and −0 are the same, and NaN is not even NaN, so that it is never swapped.
func (a Atomic[N]) CompareAndSwap(old, v N) bool {
	w := a.word("CompareAndSwap")
	for { // a failure means that another call has succeeded
		bits := w.Load()
		if fromBits[N](bits) != old {
			return false
		}
		if w.CompareAndSwap(bits, toBits(v)) {
			return true
		}
	}
}

// word returns the word to write to.
func (a Atomic[N]) word(op string) *atomic.Uint64 {
	a.checkLive(op)
	if a.mu == nil {
		panic(a.fail(op, fmt.Errorf("the region is open for reading only: %w", fs.ErrPermission)))
	}
	return &a.obj.words[atomicWord]
}
