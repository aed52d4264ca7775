package containers

import (
	"fmt"
	"slices"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// A TxQueue is a [SharedQueue] within a transaction: what is put comes when the transaction happens, or not at all. To take a message in
// a transaction, lease it before, and end the lease by [Lease.In].
type TxQueue[T any] struct {
	tx *Tx
	q  *queueTx
	h  SharedQueue[T]
}

// A TxLease is a [Lease] within a transaction: its message is acknowledged together with what the transaction changes, or not at all.
type TxLease[T any] struct {
	tx *Tx
	q  *queueTx
	l  *Lease[T]
}

// queueTx remembers the leases of a queue that end, and the messages that come.
type queueTx struct {
	q    *queue
	done []uint64   // entries
	put  [][]uint64 // what comes into the slots, if it is plain data
	text [][]byte   // if not
}

// In makes h part of the transaction, and locks it until that is over. It waits for the lock, or ends the transaction's function, as
// [Manager.Update] says.
func (h SharedQueue[T]) In(tx *Tx) TxQueue[T] {
	o := tx.join(h.base, func() txObject { return &queueTx{q: h.q} })
	return TxQueue[T]{tx, o.(*queueTx), h}
}

// Put adds v at the end when the transaction happens; those who wait for a message are woken then. It does not wait for room: it returns
// [ErrQueueFull] if there is none, or [ErrQueueClosed], and adds nothing then; the function may go on, or return the error to change
// nothing at all. What consumers take meanwhile makes no room: they wait for the queue's lock. If there is no memory for a long string, Update
// says so.
func (t TxQueue[T]) Put(v T) error {
	ok, err := t.TryPut(v)
	if err == nil && !ok {
		err = t.h.fail("Put", fmt.Errorf("%d messages are there: %w", t.h.q.capacity, ErrQueueFull))
	}
	return err
}

// TryPut is Put that reports whether there was room.
func (t TxQueue[T]) TryPut(v T) (bool, error) {
	t.tx.use()
	q := t.q.q
	head, tail, err := q.bounds()
	switch {
	case err != nil:
		return false, t.h.fail("Put", err)
	case q.closed():
		return false, t.h.fail("Put", ErrQueueClosed)
	case tail-head+t.q.coming() >= q.capacity:
		return false, nil
	}
	switch q.form {
	case formPlain:
		slot := make([]uint64, q.stride/8)
		store(addr(&slot[0]), &v)
		t.q.put = append(t.q.put, slot)
	case formString:
		t.q.text = append(t.q.text, []byte(*as[string](addr(&v))))
	case formBytes: // which the caller may change before the commit
		t.q.text = append(t.q.text, slices.Clone(*as[[]byte](addr(&v))))
	}
	return true, nil
}

// Len returns the number of messages that are there to be got, with those that come.
func (t TxQueue[T]) Len() int {
	t.tx.use()
	return t.h.Len() + int(t.q.coming())
}

// coming returns how many messages come.
func (t *queueTx) coming() uint64 { return uint64(len(t.put) + len(t.text)) }

// In makes the lease's queue part of the transaction, and locks it until that is over. It waits for the lock, or ends the transaction's
// function, as [Manager.Update] says.
func (l *Lease[T]) In(tx *Tx) TxLease[T] {
	if l.h.q == nil {
		panic("containers: use of a zero Lease; take one with SharedQueue.Lease")
	}
	return TxLease[T]{tx, l.h.In(tx).q, l}
}

// Done acknowledges the message when the transaction happens. It returns [ErrLeaseEnded] if the lease has ended before, in this transaction too.
func (t TxLease[T]) Done() error {
	t.tx.use()
	p, err := t.q.q.entry(t.l.entry)
	if err != nil {
		t.tx.stop(t.l.h.fail("Done", err))
	}
	control := word(p, leaseControl)
	now := t.tx.load(control)
	if now != t.l.control {
		return t.l.h.fail("Done", fmt.Errorf("the message of attempt %d was acknowledged or returned before: %w", t.l.Attempt, ErrLeaseEnded))
	}
	t.tx.store(control, now&^(oneTurn-1)|leaseFree)
	t.q.done = append(t.q.done, t.l.entry)
	return nil
}

// prepare fills the slots behind the last message, at which nobody looks until the tail is stored. It puts the entries of the leases into
// the list of those that are free, and takes them off the count. All of that is stored after the commit, under the
// queue's lock, so nobody finds the table open.
func (t *queueTx) prepare(c *txCommit) error {
	q := t.q
	if err := t.fill(c.l); err != nil {
		return err
	}
	free, counts := q.table(tableFree), q.word(queueLeases)
	for _, i := range t.done {
		p, err := q.entry(i)
		if err != nil {
			return err
		}
		if block := q.blockAt(plus(p, leaseSlot)); block != 0 {
			if err := q.s.heap.FreeIn(c.l, shm.Offset(block)); err != nil {
				return err
			}
		}
		c.tx.store(word(p, leaseNext), c.tx.load(free))
		c.tx.store(free, i+1)
		c.tx.store(counts, c.tx.load(counts)-oneLeased)
	}
	return nil
}

// fill fills the slots of the messages that come.
func (t *queueTx) fill(l *txn.Lane) error {
	n := t.coming()
	if n == 0 {
		return nil
	}
	q := t.q
	_, tail, err := q.bounds()
	if err != nil {
		return err
	}
	for i, slot := range t.put {
		p := q.slot(tail + uint64(i))
		txn.Announce(p, uintptr(q.stride))
		copy(viewOf[uint64](p, len(slot)), slot)
	}
	for i, text := range t.text {
		if err := fillText(l, q, tail+uint64(i), text); err != nil {
			return err
		}
	}
	return l.Later(q.word(queueTail), tail+n)
}

// finish tells those who wait for a message, for an entry, or for the end of all messages.
func (t *queueTx) finish() {
	if !t.q.hasWaiters() {
		return
	}
	if n := t.coming(); n > 0 {
		t.q.came(int(n))
	}
	if len(t.done) > 0 {
		t.q.wakeAll(waitEntry)
		t.q.finished()
	}
}
