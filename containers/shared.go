package containers

import (
	"context"
	"fmt"
	"runtime"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// A Shared is a T that processes share, with its own lock. Load never waits and sees the value that was
// committed last; every writer takes the lock. T is plain data.
//
// The value has two cells. Word 0 counts commits; its lowest bit says which cell is current. A writer fills
// the other one and adds 1: that store is the commit. A reader copies the current cell and looks at the
// count again: the cell it copied is written only after the count has moved on. There is nothing to repair
// when a writer dies, and nothing it can leave but a spare cell of which nobody knows the contents.
type Shared[T any] struct {
	lockable
	cells addr // two of stride bytes
}

// NewShared makes a shared T with the value v.
func NewShared[T any](m *Manager, v T, opts ...Option) (Shared[T], error) {
	var h Shared[T]
	k, layout, err := h.about()
	if err != nil {
		return h, err
	}
	b, err := newObject(m, k, layout, opts, func(tx *txn.Lane, s *space, o *object) error {
		if err := s.allocIn(tx, &o.words[1], 2*strideOf[T]()); err != nil {
			return err
		}
		o.words[2].Store(strideOf[T]())
		p, err := addrOf(s.region, shm.Offset(o.words[1].Load()), 2*strideOf[T]())
		if err == nil {
			store(p, &v)
		}
		return err
	})
	if err != nil {
		return h, err
	}
	return opened(h, b)
}

func (Shared[T]) about() (kind, *shm.Layout, error) {
	l, err := layoutOf[T]()
	return kindValue, l, err
}

func (Shared[T]) from(b base) (Shared[T], error) {
	off, stride := shm.Offset(b.obj.words[1].Load()), b.obj.words[2].Load()
	if stride != strideOf[T]() {
		return Shared[T]{}, b.fail("open", fmt.Errorf("cells of %d bytes, want %d: %w", stride, strideOf[T](), shm.ErrCorrupt))
	}
	p, err := addrOf(b.s.region, off, 2*stride)
	if err != nil {
		return Shared[T]{}, b.fail("open", err)
	}
	return Shared[T]{lockable{b}, p}, nil
}

// MarshalBinary encodes a reference to the object, not its contents: whoever decodes it gets a handle on the
// same object. A process started by package proc finds the region attached; any other one needs it open, or
// under its name. A zero handle is encoded as nothing.
func (h Shared[T]) MarshalBinary() ([]byte, error) { return h.base.MarshalBinary() }

// MarshalText is MarshalBinary in base64.
func (h Shared[T]) MarshalText() ([]byte, error) { return h.base.MarshalText() }

// UnmarshalBinary makes h the handle that data encodes.
func (h *Shared[T]) UnmarshalBinary(data []byte) error { return unmarshal(h, data) }

// UnmarshalText is UnmarshalBinary from base64.
func (h *Shared[T]) UnmarshalText(text []byte) error { return unmarshalText(h, text) }

// cell returns the cell that is current at seq.
func (h *Shared[T]) cell(seq uint64) addr { return plus(h.cells, seq&1*strideOf[T]()) }

// maxTries is how often a lock-free read is tried before it also tries for the lock. A failure means that
// a whole commit and the start of another fell into one copy: eight in a row have not been seen.
const maxTries = 8

// Load returns the value that was committed last. It does not wait for the lock. It panics with
// [shm.ErrClosed] or [shm.ErrStale] if the handle is of no use any more, as all methods do that return no
// error.
func (h Shared[T]) Load() (v T) {
	if h.obj == nil {
		h.notLive("Load")
	}
	for try := 1; ; try++ {
		seq := h.obj.words[0].Load()
		loadWords(bytesOf(&v), h.cell(seq))
		if h.obj.words[0].Load() == seq {
			h.checkLive("Load")
			return v
		}
		// Somebody committed, so the system as a whole moves on. If commits never pause, the lock is free
		// in between; if its holder sleeps, there are no commits and the next try succeeds.
		if try >= maxTries && h.mu != nil && h.mu.TryLock() {
			loadWords(bytesOf(&v), h.cell(h.obj.words[0].Load()))
			h.mu.Unlock()
			h.checkLive("Load")
			return v
		}
		if try >= maxTries {
			runtime.Gosched()
		}
	}
}

// Store sets the value. A process that dies inside leaves the old value or the new one.
func (h Shared[T]) Store(v T) {
	h.acquire("Store")
	h.storeLocked(&v)
	h.release()
}

// With runs fn with the lock held and a copy of the value, which becomes the value when fn returns. If fn
// panics, or the process dies, the old value stays, and the lock is free. Others see the old value until
// then. v is valid inside fn only; calling h's own methods there would wait for ever, except Load.
func (h Shared[T]) With(fn func(v *T)) {
	h.acquire("With")
	defer h.release()
	h.changeLocked(func(v *T) error { fn(v); return nil })
}

// Update is With for an fn that can fail: its error is returned as it is, and the old value stays. It waits
// for the lock until ctx ends.
func (h Shared[T]) Update(ctx context.Context, fn func(v *T) error) error {
	if err := h.lock(ctx, "Update"); err != nil {
		return err
	}
	defer h.release()
	return h.changeLocked(fn)
}

func (h Shared[T]) storeLocked(v *T) {
	seq := h.obj.words[0].Load()
	store(h.cell(seq+1), v)
	h.commit(seq + 1)
}

func (h Shared[T]) changeLocked(fn func(v *T) error) error {
	seq := h.obj.words[0].Load()
	spare := as[T](h.cell(seq + 1))
	if raceEnabled {
		v := load[T](h.cell(seq))
		if err := fn(&v); err != nil {
			return err
		}
		store(h.cell(seq+1), &v)
	} else {
		*spare = *as[T](h.cell(seq))
		if err := fn(spare); err != nil {
			return err
		}
	}
	h.commit(seq + 1)
	return nil
}

// commit makes the spare cell current. The load keeps what the caller writes next, into what is the spare
// cell from here on, behind the store, also where stores may overtake each other.
func (h Shared[T]) commit(seq uint64) {
	h.obj.words[0].Store(seq)
	h.obj.words[0].Load()
}

// Locked returns the view of the value for whoever holds its lock.
func (h Shared[T]) Locked() LockedShared[T] {
	h.checkLive("Locked")
	return LockedShared[T]{h}
}

// A LockedShared is a [Shared] for the holder of its lock: its methods take no lock. Each of them commits
// for itself.
type LockedShared[T any] struct{ h Shared[T] }

// Load returns the value.
func (l LockedShared[T]) Load() T { return l.h.Load() }

// Store sets the value.
func (l LockedShared[T]) Store(v T) {
	l.h.checkLive("Store")
	l.h.storeLocked(&v)
}

// With is [Shared.With] under the lock already held.
func (l LockedShared[T]) With(fn func(v *T)) {
	l.h.checkLive("With")
	l.h.changeLocked(func(v *T) error { fn(v); return nil })
}

// Update is [Shared.Update] under the lock already held.
func (l LockedShared[T]) Update(fn func(v *T) error) error {
	if err := l.h.check("Update"); err != nil {
		return err
	}
	return l.h.changeLocked(fn)
}
