package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

var (
	// ErrQueueClosed is the answer of a [SharedQueue] that was closed: to Put at once, to Get and Lease when
	// every message has been acknowledged.
	ErrQueueClosed = errors.New("queue closed")
	// ErrQueueFull is the answer of [TxQueue.Put]: a transaction does not wait for room.
	ErrQueueFull = errors.New("queue full")
	// ErrLeaseEnded is the answer of a [Lease] whose message was acknowledged or returned before.
	ErrLeaseEnded = errors.New("lease ended")
)

// A SharedQueue is a bounded queue between any number of producers and consumers, goroutines of any number of
// processes. Messages are plain Ts, strings or []bytes; strings and []bytes may have any length and come back
// as copies. Use [NewSharedQueue]. A handle is a small value: copy it, pass it to other processes.
//
// Messages leave the queue in the order in which they came. [SharedQueue.Get] acknowledges its message at
// once: if the consumer is killed right after, nobody gets it again. [SharedQueue.Lease] hands a message out
// until [Lease.Done] acknowledges it; if the consumer dies before, another one gets the message, ahead of all
// others, and [Lease.Attempt] counts. So each message is acknowledged exactly once, whoever is killed when.
//
// Every call happens at once and whole: a process that is killed inside has put or got its message or has not,
// and it has it not half. One that has waited goes on within some 100 ms if the one that was to wake it was
// killed. Waiters are served in the order in which they came; but one that comes and finds what it needs does
// not queue up behind those who are being woken.
//
// Messages out on leases take no room in the queue. There are entries for as many of them as the queue has
// room for messages, but not less than 16 nor more than 4096; Lease waits for one if all are in use.
//
// A call that needs not wait costs its lock and one copy, and no allocation but for strings and []bytes; a call to the kernel is
// made only if somebody waits. [queue] says how it is laid out, and what each kill leaves.
type SharedQueue[T any] struct {
	lockable
	q *queue
}

const (
	minLeases = 16
	maxLeases = 4096
)

// NewSharedQueue makes an empty queue in m with room for that many messages; nil is this process' own Manager.
// A capacity below 1 or above 1<<30 is an error that is [fs.ErrInvalid]; a T that is neither plain data nor a
// string nor a []byte is refused with a [*shm.TypeError].
func NewSharedQueue[T any](m *Manager, capacity int, opts ...Option) (SharedQueue[T], error) {
	var h SharedQueue[T]
	k, layout, err := h.about()
	if err != nil {
		return h, err
	}
	if capacity < 1 || capacity > maxQueue {
		return h, fmt.Errorf("containers: new queue for %d messages, want 1 to %d: %w", capacity, maxQueue, fs.ErrInvalid)
	}
	form, stride := formOf[T]()
	b, err := newObject(m, k, layout, opts, func(tx *txn.Lane, s *space, o *object) error {
		return makeQueue(tx, s, o, form, stride, uint64(capacity), uint64(min(max(capacity, minLeases), maxLeases)))
	})
	if err != nil {
		return h, err
	}
	return opened(h, b)
}

func (SharedQueue[T]) about() (kind, *shm.Layout, error) {
	switch form, _ := formOf[T](); form {
	case formString:
		return kindQueue, stringLayout, nil
	case formBytes:
		return kindQueue, bytesLayout, nil
	}
	layout, err := layoutOf[T]()
	if err == nil && layout.Size >= 1<<32 {
		err = fmt.Errorf("containers: queue of messages of %d bytes: %w", layout.Size, fs.ErrInvalid)
	}
	return kindQueue, layout, err
}

func (SharedQueue[T]) from(b base) (h SharedQueue[T], err error) {
	q, err := openQueue(b.s, b.obj)
	if err != nil {
		return h, b.fail("open", err)
	}
	if form, stride := formOf[T](); q.form != form || q.stride != stride {
		return h, b.fail("open", fmt.Errorf("slots of %d bytes and form %d, want %d and %d: %w", q.stride, q.form, stride, form, shm.ErrCorrupt))
	}
	return SharedQueue[T]{lockable{b}, q}, nil
}

// MarshalBinary encodes a reference to the object, for whoever has or gets the region: a process started by
// package proc finds it attached. A zero handle is encoded as nothing.
func (h SharedQueue[T]) MarshalBinary() ([]byte, error) { return h.base.MarshalBinary() }

// MarshalText is MarshalBinary in base64.
func (h SharedQueue[T]) MarshalText() ([]byte, error) { return h.base.MarshalText() }

// UnmarshalBinary makes h the handle that MarshalBinary encoded. The region is found by its id, else by its
// name, else the error is [shm.ErrNotAttached].
func (h *SharedQueue[T]) UnmarshalBinary(data []byte) error { return unmarshal(h, data) }

// UnmarshalText is UnmarshalBinary from base64.
func (h *SharedQueue[T]) UnmarshalText(text []byte) error { return unmarshalText(h, text) }

// Put adds v at the end, and waits for room if need be. A context that has ended does not keep it from a queue
// that has room. It returns the context's error, [ErrQueueClosed], [shm.ErrNoSpace] if there is no memory for a
// long string, [shm.ErrClosed], or [shm.ErrStale] if the queue was destroyed; with an error nothing was put.
func (h SharedQueue[T]) Put(ctx context.Context, v T) error {
	if !h.quick() && !h.soon() {
		if err := h.lock(ctx, "Put"); err != nil {
			return err
		}
	} else if h.quickPush(&v) {
		h.release()
		return nil
	}
	for {
		ok, err := h.push(&v)
		if ok || err != nil {
			return h.end("Put", err)
		}
		if err := h.wait(ctx, "Put", waitRoom); err != nil {
			return err
		}
	}
}

// TryPut is Put that does not wait for room, and reports whether there was any.
func (h SharedQueue[T]) TryPut(v T) (bool, error) {
	if !h.quick() && !h.soon() {
		if err := h.lock(context.Background(), "TryPut"); err != nil {
			return false, err
		}
	} else if h.quickPush(&v) {
		h.release()
		return true, nil
	}
	ok, err := h.push(&v)
	return ok, h.end("TryPut", err)
}

// PutN puts all of vs in order, and returns how many it has put, all of them unless there is an error. As many
// as there is room for are put in one step, if they are plain data: others see all of these or none.
func (h SharedQueue[T]) PutN(ctx context.Context, vs ...T) (n int, err error) {
	if len(vs) == 0 {
		return 0, h.check("PutN")
	}
	if err := h.lock(ctx, "PutN"); err != nil {
		return 0, err
	}
	for {
		k, err := h.pushSome(vs[n:])
		if n += k; n == len(vs) || err != nil {
			return n, h.end("PutN", err)
		}
		if k > 0 {
			continue
		}
		if err := h.wait(ctx, "PutN", waitRoom); err != nil {
			return n, err
		}
	}
}

// Get takes the first message and acknowledges it, and waits for one if need be. A context that has ended does
// not keep it from a message that is there. It returns the context's error; [ErrQueueClosed] if the queue is
// closed and all messages are acknowledged (while some are out on leases it waits: they may come back);
// [shm.ErrClosed]; [shm.ErrStale].
func (h SharedQueue[T]) Get(ctx context.Context) (v T, err error) {
	if !h.quick() && !h.soon() {
		if err := h.lock(ctx, "Get"); err != nil {
			return v, err
		}
	} else if h.quickPop(&v) {
		h.release()
		return v, nil
	}
	for {
		ok, err := h.pop(&v)
		if ok || err != nil {
			return v, h.end("Get", err)
		}
		if err := h.wait(ctx, "Get", waitMessage); err != nil {
			return v, err
		}
	}
}

// TryGet is Get that does not wait for a message, and reports whether there was one.
func (h SharedQueue[T]) TryGet() (v T, ok bool, err error) {
	if !h.quick() && !h.soon() {
		if err := h.lock(context.Background(), "TryGet"); err != nil {
			return v, false, err
		}
	} else if h.quickPop(&v) {
		h.release()
		return v, true, nil
	}
	ok, err = h.pop(&v)
	return v, ok, h.end("TryGet", err)
}

// GetN is Get of up to len(dst) messages, and returns their number: it waits for the first only. Those of the
// ring are taken in one step, if they are plain data.
func (h SharedQueue[T]) GetN(ctx context.Context, dst []T) (n int, err error) {
	if len(dst) == 0 {
		return 0, h.check("GetN")
	}
	if err := h.lock(ctx, "GetN"); err != nil {
		return 0, err
	}
	for {
		n, err := h.popSome(dst)
		if n > 0 || err != nil {
			return n, h.end("GetN", err)
		}
		if err := h.wait(ctx, "GetN", waitMessage); err != nil {
			return 0, err
		}
	}
}

// Close ends the queue's input: from then on Put returns [ErrQueueClosed], and those who wait for room do at once. Get and
// Lease go on until all messages are acknowledged. Closing it again does nothing. Handles stay valid; Destroy
// frees the queue.
func (h SharedQueue[T]) Close() error {
	if err := h.lock(context.Background(), "Close"); err != nil {
		return err
	}
	if !h.q.closed() {
		txn.Put(h.q.word(queueState), h.q.word(queueState).Load()|queueClosed)
		// crash here: those who wait look again, as at every death
		h.q.wakeAll(waitRoom)
		h.q.finished()
	}
	h.release()
	return nil
}

// Join waits until every message that was put is acknowledged: got, or leased and done. It returns nil then, else the
// context's error, [shm.ErrClosed] or [shm.ErrStale].
func (h SharedQueue[T]) Join(ctx context.Context) error {
	if err := h.lock(ctx, "Join"); err != nil {
		return err
	}
	for h.q.unfinished() != 0 {
		if err := h.wait(ctx, "Join", waitJoin); err != nil {
			return err
		}
	}
	h.release()
	return nil
}

// Len returns the number of messages that are there to be got, without waiting. Others may change it at any
// time.
func (h SharedQueue[T]) Len() int {
	h.checkLive("Len")
	returned, _ := h.q.counts()
	head := h.q.word(queueHead).Load() // first: it only grows, and does not overtake tail
	n := min(h.q.word(queueTail).Load()-head, h.q.capacity) + min(returned, h.q.leases)
	h.checkLive("Len")
	return int(n)
}

// Unfinished returns the number of messages that are not acknowledged: those that are there, and those out on leases.
func (h SharedQueue[T]) Unfinished() int {
	h.acquire("Unfinished")
	n := h.q.unfinished()
	h.release()
	return int(n)
}

// Cap returns the number of messages that the queue has room for.
func (h SharedQueue[T]) Cap() int {
	h.checkLive("Cap")
	return int(h.q.capacity)
}

// Closed reports whether the queue was closed.
func (h SharedQueue[T]) Closed() bool {
	closed := h.obj != nil && h.q.closed()
	h.checkLive("Closed")
	return closed
}

// end releases the lock and returns err, with the operation.
func (h SharedQueue[T]) end(op string, err error) error {
	h.release()
	if err != nil {
		return h.fail(op, err)
	}
	return nil
}

// What follows is done under the lock.

// quickPush adds v at the end if that takes nothing but a copy: it is plain data, there is room, and nobody is to be told.
func (h SharedQueue[T]) quickPush(v *T) bool {
	w := &h.obj.words
	head, tail := w[queueHead].Load(), w[queueTail].Load()
	if tail-head >= h.q.capacity || h.q.form != formPlain || w[queueState].Load()|w[queueWaiting].Load() != 0 {
		return false
	}
	p := plus(h.q.first, tail&h.q.mask*strideOf[T]())
	txn.Announce(p, uintptr(strideOf[T]()))
	*as[T](p) = *v
	txn.Put(&w[queueTail], tail+1) // commits
	return true
}

// quickPop takes the first message if that takes nothing but a copy: it is plain data, in the ring, and nobody is to be told; and nobody has
// a lease, which the dead might have.
func (h SharedQueue[T]) quickPop(v *T) bool {
	w := &h.obj.words
	head, tail := w[queueHead].Load(), w[queueTail].Load()
	if tail-head-1 >= h.q.capacity || h.q.form != formPlain || w[queueState].Load()|w[queueWaiting].Load()|w[queueLeases].Load() != 0 {
		return false
	}
	*v = *as[T](plus(h.q.first, head&h.q.mask*strideOf[T]()))
	txn.Put(&w[queueHead], head+1) // commits
	return true
}

// push adds v at the end. It returns false if there is no room.
func (h SharedQueue[T]) push(v *T) (bool, error) {
	q := h.q
	head, tail, err := q.bounds()
	switch {
	case err != nil:
		return false, err
	case q.closed():
		return false, ErrQueueClosed
	case tail-head >= q.capacity:
		return false, nil
	}
	switch q.form {
	case formPlain:
		p := q.slot(tail)
		txn.Announce(p, uintptr(q.stride))
		store(p, v)
		txn.Put(q.word(queueTail), tail+1) // commits
	case formString:
		err = pushText(q, *as[string](addr(v)), tail)
	case formBytes:
		err = pushText(q, *as[[]byte](addr(v)), tail)
	}
	if err != nil {
		return false, err
	}
	// crash here: those who wait look again
	if q.hasWaiters() {
		q.came(1)
	}
	return true, nil
}

// pushSome adds as many of vs as there is room for, and returns their number.
func (h SharedQueue[T]) pushSome(vs []T) (n int, err error) {
	q := h.q
	if q.form != formPlain {
		for i := range vs {
			if ok, err := h.push(&vs[i]); !ok || err != nil {
				return i, err
			}
		}
		return len(vs), nil
	}
	head, tail, err := q.bounds()
	switch {
	case err != nil:
		return 0, err
	case q.closed():
		return 0, ErrQueueClosed
	}
	n = int(min(uint64(len(vs)), q.capacity-(tail-head)))
	if n == 0 {
		return 0, nil
	}
	fillSlots(&q.slots, tail, vs[:n])
	txn.Put(q.word(queueTail), tail+uint64(n)) // commits
	// crash here: those who wait look again
	if q.hasWaiters() {
		q.came(n)
	}
	return n, nil
}

// ready sees to the dead, and reports whether there is a message, or why there will be none.
func (q *queue) ready() (bool, error) {
	if !q.mourned() {
		if err := q.bury(); err != nil {
			return false, err
		}
	}
	head, tail, err := q.bounds()
	if err != nil {
		return false, err
	}
	returned, leased := q.counts()
	if leased > 0 && (head == tail && returned == 0 || head%64 == 0) {
		// Those who wait look for the dead. If nobody has to wait, somebody else must.
		if q.s.region.Scan(); !q.mourned() {
			return q.ready()
		}
	}
	if head != tail {
		return true, nil
	}
	if returned == 0 && leased == 0 && q.closed() {
		return false, ErrQueueClosed
	}
	return returned != 0, nil
}

// pop takes the first message, and acknowledges it. It returns false if there is none.
func (h SharedQueue[T]) pop(v *T) (bool, error) {
	q := h.q
	ok, err := q.ready()
	if !ok || err != nil {
		return false, err
	}
	if returned, _ := q.counts(); returned > 0 {
		err = h.popReturned(v)
	} else {
		head := q.word(queueHead).Load()
		p := q.slot(head)
		if q.form == formPlain {
			*v = *as[T](p)
			txn.Put(q.word(queueHead), head+1) // commits
		} else if err = h.read(p, v); err == nil {
			err = q.advance(q.blockAt(p))
		}
	}
	if err != nil {
		return false, err
	}
	// crash here: those who wait look again
	if q.hasWaiters() {
		q.left(1)
	}
	return true, nil
}

// popReturned takes the first of the messages returned.
func (h SharedQueue[T]) popReturned(v *T) error {
	i, p, err := h.q.firstReturned()
	if err == nil {
		err = h.read(plus(p, leaseSlot), v)
	}
	if err == nil {
		err = h.q.acknowledge(i)
	}
	if err == nil {
		h.q.wakeAll(waitEntry)
	}
	return err
}

// read copies the message in the slot at p.
func (h SharedQueue[T]) read(p addr, v *T) error {
	if h.q.form == formPlain {
		*v = *as[T](p)
		return nil
	}
	b, err := h.q.textAt(p)
	if err == nil {
		*v = *as[T](addr(&b)) // a string's header is the beginning of a slice's
	}
	return err
}

// popSome takes up to len(dst) messages, and returns their number.
func (h SharedQueue[T]) popSome(dst []T) (n int, err error) {
	q := h.q
	for n < len(dst) {
		ok, err := q.ready()
		if returned, _ := q.counts(); ok && err == nil && returned == 0 && q.form == formPlain {
			break
		}
		if ok && err == nil {
			ok, err = h.pop(&dst[n])
		}
		if err != nil && n > 0 {
			return n, nil // the next call hears of it
		}
		if !ok || err != nil {
			return n, err
		}
		n++
	}
	if n == len(dst) {
		return n, nil
	}
	head, tail, err := q.bounds()
	if err != nil {
		if n > 0 {
			err = nil
		}
		return n, err
	}
	k := int(min(uint64(len(dst)-n), tail-head))
	if k == 0 {
		return n, nil
	}
	readSlots(&q.slots, head, dst[n:n+k])
	txn.Put(q.word(queueHead), head+uint64(k)) // commits
	if q.hasWaiters() {
		q.left(k)
	}
	return n + k, nil
}
