package containers

import (
	"context"
	"errors"
	"fmt"
)

// A Lease is a message that a consumer has taken from a [SharedQueue] and not acknowledged yet. Exactly one call of
// Done or Return ends it; goroutines may race for that. It ends too when its process dies: then the message is
// delivered again, ahead of those that were never delivered. A process that only closes the region keeps its leases
// until it ends.
type Lease[T any] struct {
	Value   T   // a copy
	Attempt int // how often the message was delivered by a lease, this one counted: 1 for the first

	h       SharedQueue[T]
	entry   uint64
	number  uint64 // of the message
	control uint64 // of the entry, as long as the lease is good
}

// Lease takes the first message until Done or Return, and waits for one if need be, or for one of the entries that
// leases are kept in. A context that has ended does not keep it from a message that is there. Errors are those of
// [SharedQueue.Get]. Who holds leases of a closed queue and asks for more waits for itself: end them first.
func (h SharedQueue[T]) Lease(ctx context.Context) (*Lease[T], error) {
	if err := h.lock(ctx, "Lease"); err != nil {
		return nil, err
	}
	for {
		l, err := h.takeLease()
		if l != nil || err != nil {
			return l, h.end("Lease", err)
		}
		w := waitMessage
		if head, tail, _ := h.q.bounds(); head != tail {
			w = waitEntry
			h.q.came(1) // we may have been told of a message that we cannot take
		}
		if err := h.wait(ctx, "Lease", w); err != nil {
			return nil, err
		}
	}
}

// TryLease is Lease that does not wait, and reports whether there was a message, and an entry for it.
func (h SharedQueue[T]) TryLease() (l *Lease[T], ok bool, err error) {
	if err := h.lock(context.Background(), "TryLease"); err != nil {
		return nil, false, err
	}
	l, err = h.takeLease()
	return l, l != nil, h.end("TryLease", err)
}

// takeLease takes the first message; nil if there is none, or no entry. The lock is held.
func (h SharedQueue[T]) takeLease() (*Lease[T], error) {
	q := h.q
	if ok, err := q.ready(); !ok || err != nil {
		return nil, err
	}
	returned, _ := q.counts()
	l := &Lease[T]{h: h}
	if returned == 0 { // the value first: nothing fails after the message is ours
		if q.full() {
			return nil, nil
		}
		if err := h.read(q.slot(q.word(queueHead).Load()), &l.Value); err != nil {
			return nil, err
		}
	} else if _, p, err := q.firstReturned(); err != nil {
		return nil, err
	} else if err := h.read(plus(p, leaseSlot), &l.Value); err != nil {
		return nil, err
	}
	i, ok, err := q.lease()
	if !ok || err != nil {
		return nil, err
	}
	p, err := q.entry(i)
	if err != nil {
		return nil, err
	}
	l.entry, l.number, l.control = i, word(p, leaseNumber).Load(), word(p, leaseControl).Load()
	l.Attempt = attemptsOf(l.control)
	if returned == 0 && q.hasWaiters() {
		q.wake(waitRoom, 1)
	}
	return l, nil
}

// Done acknowledges the message: nobody gets it any more. It returns [ErrLeaseEnded] if the lease has ended before,
// having changed nothing, and [shm.ErrClosed] or [shm.ErrStale].
func (l *Lease[T]) Done() error {
	q := l.h.q
	if err := l.lock("Done"); err != nil {
		return err
	}
	err := q.acknowledge(l.entry)
	if err == nil && q.hasWaiters() {
		q.wakeAll(waitEntry)
		q.finished()
	}
	return l.h.end("Done", err)
}

// Return gives the message back unacknowledged: it is delivered again, ahead of those that were never delivered, also
// by a queue that is closed. Errors are those of Done.
func (l *Lease[T]) Return() error {
	q := l.h.q
	if err := l.lock("Return"); err != nil {
		return err
	}
	err := q.giveBack(l.entry)
	if err == nil && q.hasWaiters() {
		q.wakeAll(waitEntry) // a message that is back needs no entry
		q.came(1)
	}
	return l.h.end("Return", err)
}

// lock takes the queue's lock if the lease is good; else it is not held.
func (l *Lease[T]) lock(op string) error {
	if l.h.q == nil {
		panic("containers: use of a zero Lease; take one with SharedQueue.Lease")
	}
	if err := l.h.lock(context.Background(), op); err != nil {
		return err
	}
	p, err := l.h.q.entry(l.entry)
	if err == nil && (word(p, leaseControl).Load() != l.control || word(p, leaseNumber).Load() != l.number) { // turns come again
		err = fmt.Errorf("the message of attempt %d was acknowledged or returned before: %w", l.Attempt, ErrLeaseEnded)
	}
	if err != nil {
		return l.h.end(op, err)
	}
	return nil
}

// Check waits for the lock, walks the queue and returns an error that is [shm.ErrCorrupt] and names the first broken
// invariant, if there is one.
func (h SharedQueue[T]) Check() error {
	if err := h.lock(context.Background(), "Check"); err != nil {
		return err
	}
	return h.end("Check", errors.Join(h.q.check()))
}
