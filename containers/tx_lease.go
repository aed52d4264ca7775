package containers

import (
	"fmt"

	"github.com/shmkit/shmkit/shm"
)

// A TxLease is a [Lease] within a transaction: its message is acknowledged together with what the transaction changes, or not at all.
type TxLease[T any] struct {
	tx *Tx
	q  *queueTx
	l  *Lease[T]
}

// queueTx remembers the leases of a queue that end.
type queueTx struct {
	q    *queue
	done []uint64 // entries
}

// In makes the lease's queue part of the transaction, and locks it until that is over. It waits for the lock, or ends the transaction's
// function, as [Manager.Update] says.
func (l *Lease[T]) In(tx *Tx) TxLease[T] {
	if l.h.q == nil {
		panic("containers: use of a zero Lease; take one with SharedQueue.Lease")
	}
	o := tx.join(l.h.base, func() txObject { return &queueTx{q: l.h.q} })
	return TxLease[T]{tx, o.(*queueTx), l}
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

// prepare puts the entries into the list of those that are free, and takes them off the count. All of that is stored after the commit, under the
// queue's lock, so nobody finds the table open.
func (t *queueTx) prepare(c *txCommit) error {
	q := t.q
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

// finish tells those who wait for an entry, or for the end of all messages.
func (t *queueTx) finish() {
	if len(t.done) > 0 && t.q.hasWaiters() {
		t.q.wakeAll(waitEntry)
		t.q.finished()
	}
}
