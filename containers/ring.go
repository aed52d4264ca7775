package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// A SharedRing is a bounded queue from one producer to one consumer, for raw speed: it has no lock. Messages are plain Ts. Use
// [NewSharedRing]. A handle is a small value: copy it, pass it to other processes; whoever is to put messages takes
// the producing end by [SharedRing.Producer], and whoever is to get them the consuming one by [SharedRing.Consumer].
// For more producers or consumers, for strings, and for messages that must not be lost with their consumer there is
// [SharedQueue].
//
// An end belongs to the process that has taken it until it is released, or the process dies: then the next one that asks
// for it, or has been waiting for it, goes on where that one stopped. Every call happens at once and whole: a process that is
// killed inside has put or got its message or has not. One that waits goes on within some 100 ms if the one that was to
// wake it was killed.
//
// A call that needs not wait costs a copy, one exchange of a word and some loads of lines that nobody writes: no allocation,
// and no call to the kernel unless the other side sleeps. A side that has nothing to do looks on for some microseconds
// before it sleeps. [ring] says how it is laid out.
type SharedRing[T any] struct {
	base
	r *ring
}

// NewSharedRing makes an empty ring in m with room for that many messages; nil is this process' own Manager. A capacity
// below 1 or above 1<<30 is an error that is [fs.ErrInvalid]; a T that is not plain data is refused with a [*shm.TypeError].
func NewSharedRing[T any](m *Manager, capacity int, opts ...Option) (SharedRing[T], error) {
	var h SharedRing[T]
	k, layout, err := h.about()
	if err == nil && collect(opts).locked {
		err = fmt.Errorf("containers: a SharedRing has no lock; a SharedQueue has: %w", fs.ErrInvalid)
	}
	if err == nil && (capacity < 1 || capacity > maxQueue) {
		err = fmt.Errorf("containers: new ring for %d messages, want 1 to %d: %w", capacity, maxQueue, fs.ErrInvalid)
	}
	if err != nil {
		return h, err
	}
	b, err := newObject(m, k, layout, opts, func(tx *txn.Lane, s *space, o *object) error {
		return makeRing(tx, s, o, strideOf[T](), uint64(capacity))
	})
	if err != nil {
		return h, err
	}
	return opened(h, b)
}

func (SharedRing[T]) about() (kind, *shm.Layout, error) {
	layout, err := layoutOf[T]()
	if err == nil && layout.Size >= 1<<32 {
		err = fmt.Errorf("containers: ring of messages of %d bytes: %w", layout.Size, fs.ErrInvalid)
	}
	return kindRing, layout, err
}

func (SharedRing[T]) from(b base) (h SharedRing[T], err error) {
	r, err := openRing(b.s, b.obj)
	if err != nil {
		return h, b.fail("open", err)
	}
	if r.stride != strideOf[T]() {
		return h, b.fail("open", fmt.Errorf("slots of %d bytes, want %d: %w", r.stride, strideOf[T](), shm.ErrCorrupt))
	}
	return SharedRing[T]{b, r}, nil
}

// MarshalBinary encodes a reference to the object, for whoever has or gets the region: a process started by
// package proc finds it attached. A zero handle is encoded as nothing.
func (h SharedRing[T]) MarshalBinary() ([]byte, error) { return h.base.MarshalBinary() }

// MarshalText is MarshalBinary in base64.
func (h SharedRing[T]) MarshalText() ([]byte, error) { return h.base.MarshalText() }

// UnmarshalBinary makes h the handle that MarshalBinary encoded. The region is found by its id, else by its
// name, else the error is [shm.ErrNotAttached].
func (h *SharedRing[T]) UnmarshalBinary(data []byte) error { return unmarshal(h, data) }

// UnmarshalText is UnmarshalBinary from base64.
func (h *SharedRing[T]) UnmarshalText(text []byte) error { return unmarshalText(h, text) }

// Producer takes the producing end. If another one has it, Producer waits until that one releases it or dies, looking now and
// then; so a process can stand by for the one that does the work. It returns the context's error, [ErrQueueClosed] if the
// ring is closed, [shm.ErrClosed], or [shm.ErrStale] if it was destroyed.
func (h SharedRing[T]) Producer(ctx context.Context) (*RingProducer[T], error) {
	e, err := h.take(ctx, "Producer", producing)
	if err != nil {
		return nil, err
	}
	return &RingProducer[T]{e}, nil
}

// Consumer takes the consuming end, as Producer does the other one. A ring that is closed may still have messages, so
// its consuming end can be taken.
func (h SharedRing[T]) Consumer(ctx context.Context) (*RingConsumer[T], error) {
	e, err := h.take(ctx, "Consumer", consuming)
	if err != nil {
		return nil, err
	}
	return &RingConsumer[T]{e}, nil
}

// Close ends the ring's input: from then on Put returns [ErrQueueClosed], at once to one who waits for room, and so does
// Get when no message is left. Closing it again does nothing. Ends that are taken stay so; Destroy frees the ring.
func (h SharedRing[T]) Close() error {
	return h.do(context.Background(), "Close", func() error {
		closed := h.r.word(ringClosed)
		txn.Announce(addr(closed), 8)
		closed.Store(1) // with a fence: who clears the news behind the looks at it that follow sees this
		// crash here: who waits looks again at a death
		h.r.news(producing).Set()
		h.r.news(consuming).Set()
		return nil
	})
}

// Len returns the number of messages that are there to be got. Others may change it at any time.
func (h SharedRing[T]) Len() int {
	h.checkLive("Len")
	head := h.r.count(consuming).Load() // first: it only grows, and does not overtake the other
	n := min(h.r.count(producing).Load()-head, h.r.capacity)
	h.checkLive("Len")
	return int(n)
}

// Cap returns the number of messages that the ring has room for.
func (h SharedRing[T]) Cap() int {
	h.checkLive("Cap")
	return int(h.r.capacity)
}

// Closed reports whether the ring was closed.
func (h SharedRing[T]) Closed() bool {
	closed := h.obj != nil && h.r.closed()
	h.checkLive("Closed")
	return closed
}

// Check returns an error that is [shm.ErrCorrupt] and names the broken invariant if there is one. It waits for nobody but
// those who take or release an end.
func (h SharedRing[T]) Check() error {
	return h.do(context.Background(), "Check", func() error {
		head := h.r.count(consuming).Load()
		if tail := h.r.count(producing).Load(); tail-head > h.r.capacity && h.r.count(consuming).Load() == head && h.live() {
			return h.fail("Check", h.r.badCounts(head, tail))
		}
		return nil
	})
}

// take takes an end.
func (h SharedRing[T]) take(ctx context.Context, op string, side ringSide) (*ringEnd, error) {
	for {
		var e *ringEnd
		if err := h.do(ctx, op, func() (err error) {
			if side == producing && h.r.closed() { // nobody needs it any more
				err = ErrQueueClosed
			} else {
				e, err = h.r.take(side)
			}
			if err != nil {
				err = h.fail(op, err)
			}
			return err
		}); err != nil {
			return nil, err
		}
		if e != nil {
			e.base = h.base
			return e, nil
		}
		if err := pauseFor(ctx, ringTakePause); err != nil {
			return nil, h.fail(op, fmt.Errorf("another one has the end: %w", err))
		}
	}
}

// A RingProducer is the producing end of a [SharedRing]. It is for one goroutine at a time.
type RingProducer[T any] struct{ e *ringEnd }

// Put adds v at the end, and waits for room if need be. A context that has ended does not keep it from a ring that has room. It
// returns the context's error, [ErrQueueClosed], [fs.ErrClosed] after Release; with these nothing was put; and [shm.ErrClosed]:
// then v may have been put if this process closed the region at that moment.
func (p *RingProducer[T]) Put(ctx context.Context, v T) error {
	for {
		ok, err := p.TryPut(v)
		if ok || err != nil {
			return err
		}
		if err := p.e.wait(ctx, "Put"); err != nil {
			return err
		}
	}
}

// TryPut is Put that does not wait for room, and reports whether there was any.
func (p *RingProducer[T]) TryPut(v T) (bool, error) {
	e := p.e
	if err := e.use("Put"); err != nil {
		return false, err
	}
	if e.next == e.bound {
		if n, err := e.look("Put"); n == 0 {
			return false, err
		}
	}
	at := e.r.slot(e.next)
	txn.Announce(at, uintptr(e.r.stride))
	*as[T](at) = v
	return true, e.publish("Put", 1)
}

// PutN puts all of vs in order, and returns how many it has put, all of them unless there is an error. As many as there is
// room for are put in one step: the consumer sees all of these or none.
func (p *RingProducer[T]) PutN(ctx context.Context, vs ...T) (n int, err error) {
	e := p.e
	for {
		if err := e.use("PutN"); err != nil || n == len(vs) {
			return n, err
		}
		free, err := e.some("PutN", len(vs)-n)
		if err != nil {
			return n, err
		}
		fillSlots(&e.r.slots, e.next, vs[n:n+free])
		if free > 0 {
			if err := e.publish("PutN", uint64(free)); err != nil {
				return n, err
			}
			n += free
		} else if err := e.wait(ctx, "PutN"); err != nil {
			return n, err
		}
	}
}

// Release gives the end up, for another one to take. The RingProducer is of no use after that; releasing it again does nothing.
func (p *RingProducer[T]) Release() error { return p.e.release() }

// A RingConsumer is the consuming end of a [SharedRing]. It is for one goroutine at a time.
type RingConsumer[T any] struct{ e *ringEnd }

// Get takes the first message, and waits for one if need be. A context that has ended does not keep it from a message that
// is there. It returns the context's error, [ErrQueueClosed] if the ring is closed and empty, [fs.ErrClosed] after Release,
// [shm.ErrClosed].
func (c *RingConsumer[T]) Get(ctx context.Context) (v T, err error) {
	for {
		v, ok, err := c.TryGet()
		if ok || err != nil {
			return v, err
		}
		if err := c.e.wait(ctx, "Get"); err != nil {
			return v, err
		}
	}
}

// TryGet is Get that does not wait for a message, and reports whether there was one.
func (c *RingConsumer[T]) TryGet() (v T, ok bool, err error) {
	e := c.e
	if err := e.use("Get"); err != nil {
		return v, false, err
	}
	if e.next == e.bound {
		if n, err := e.look("Get"); n == 0 {
			return v, false, err
		}
	}
	v = *as[T](e.r.slot(e.next))
	return v, true, e.publish("Get", 1)
}

// GetN is Get of up to len(dst) messages in one step, and returns their number: it waits for the first only.
func (c *RingConsumer[T]) GetN(ctx context.Context, dst []T) (n int, err error) {
	e := c.e
	for {
		if err := e.use("GetN"); err != nil || len(dst) == 0 {
			return 0, err
		}
		if n, err = e.some("GetN", len(dst)); err != nil {
			return 0, err
		}
		readSlots(&e.r.slots, e.next, dst[:n])
		if n > 0 {
			return n, e.publish("GetN", uint64(n))
		}
		if err := e.wait(ctx, "GetN"); err != nil {
			return 0, err
		}
	}
}

// All returns an iterator over the messages that come, until the ring is closed and empty. It ends with the error of any other end, among them
// the context's.
func (c *RingConsumer[T]) All(ctx context.Context) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for {
			v, err := c.Get(ctx)
			if errors.Is(err, ErrQueueClosed) || !yield(v, err) || err != nil {
				return
			}
		}
	}
}

// Release gives the end up, for another one to take. The RingConsumer is of no use after that; releasing it again does nothing.
func (c *RingConsumer[T]) Release() error { return c.e.release() }
