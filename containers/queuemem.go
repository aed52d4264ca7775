package containers

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync/atomic"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// queue is a queue's memory: a ring of slots, a table of the messages that are out on leases, and the
// conditions that those wait for who find nothing to do. It knows sizes but no T, so that it can also bring
// a queue of any T to its committed state, or free it. One is made for each handle that is opened, and does
// not change, but for the lookout. How one waits is in queuewait.go.
//
//	words  0 head: number of the next message to leave the ring; only grows
//	       1 tail: number of the next message to come in; only grows
//	       2 offset of the body   3 shape: bytes of a slot | slotForm <<40; never changes
//	       4 capacity | entries of the table <<32; never changes
//	       5 closed, as its lowest bit | waiters for Join <<8 | waiters for an entry <<36
//	       6 messages returned | messages leased <<31 | open, as its highest bit: the table is being changed
//	       7 waiters for a message | waiters for room <<32
//
//	body   | 4 Conds, 64 bytes each | table: free, used, returned, deaths; 64 bytes | ring | entries |
//	entry  | control: state | attempts <<2 | turn <<32 | owner | number | next | slot |
//
// Message v is in slot v modulo the ring's size, a power of two that is not less than the capacity. A lease
// copies it to an entry of the table, and so makes room in the ring. There it stays until it is acknowledged;
// if it is returned, by its consumer or by somebody who finds that one dead, the entry is in the list of those
// that are served before the ring, in the order of their numbers.
//
// All words are written under the queue's lock, by stores that a kill may come between; each operation has one
// that commits it:
//
//	put                 | slot, tail                     | before, until tail
//	put of a long text  | one operation of the storage   | before or after
//	get                 | head                           | before or after
//	get of a long text  | one operation of the storage   | before or after; so is the block
//	lease               | open, entry, its control       | before: the number is not less than head, and repair clears the entry
//	                    | head                           | after: repair counts and links anew
//	                    | lists, counts                  | after
//	lease, again        | open, owner                    | before: owners of what is returned say nothing
//	                    | control                        | after
//	done, returned      | open, control                  | before, until control; done of a long text: as put
//	                    | lists, counts                  | after
//	close               | word 5                         | before or after
//
// Lists and counts say nothing that the entries do not say: repair makes them anew if the table was open.
type queue struct {
	slots    // of the ring
	s        *space
	o        *object
	body     addr
	capacity uint64
	leases   uint64 // entries
	entries  uint64 // where they begin in the body
	form     slotForm
	lookout  lookout
}

// Words of a queue. All are guarded by the lock.
const (
	queueHead    = iota
	queueTail    // head <= tail <= head + capacity
	queueBody    // immutable
	queueShape   // immutable
	queueSize    // immutable
	queueState   // closed, waiters
	queueLeases  // counts of the table
	queueWaiting // waiters

	queueClosed = 1 // in queueState

	returnedMask = 1<<31 - 1 // in queueLeases
	oneLeased    = 1 << 31
	tableOpen    = 1 << 63

	queueTable = 4 * 64 // in the body
	queueRing  = queueTable + 64

	maxQueue = 1 << 30
)

// Words of the table. The first three are the number of an entry plus one, 0 for none.
const (
	tableFree     = iota // the first of the free ones that were used before
	tableUsed            // no entry from here on was ever used; only grows
	tableReturned        // the first returned message, in the order of their numbers
	tableDeaths          // the region's count of deaths when somebody last saw to what the dead have left
)

// Words of an entry.
const (
	leaseControl = iota
	leaseOwner   // token
	leaseNumber  // of the message
	leaseNext    // in its list
	leaseHead    // bytes

	leaseSlot = 8 * leaseHead
)

// States of an entry.
const (
	leaseFree = iota
	leaseOut
	leaseReturned

	leaseState   = 3 // mask
	oneAttempt   = 1 << 2
	attemptsMask = 1<<32 - oneAttempt
	oneTurn      = 1 << 32
)

func attemptsOf(control uint64) int { return int(control & attemptsMask / oneAttempt) }

// newQueue returns the queue of an object, whatever its T.
func newQueue(s *space, o *object) (*queue, error) {
	shape, size := o.words[queueShape].Load(), o.words[queueSize].Load()
	q := &queue{s: s, o: o, slots: slots{stride: shape & (1<<40 - 1)}, form: slotForm(shape >> 40), capacity: size & (1<<32 - 1), leases: size >> 32}
	if q.stride == 0 || q.stride%8 != 0 || q.stride > 1<<32 || shape>>40 > uint64(formBytes) || q.form != formPlain && q.stride != textSlot ||
		q.capacity == 0 || q.capacity > maxQueue || q.leases == 0 || q.leases > maxLeases { // so bytes does not overflow
		return nil, fmt.Errorf("shape %#x, size %#x: %w", shape, size, shm.ErrCorrupt)
	}
	q.mask = 1<<bits.Len64(q.capacity-1) - 1
	q.entries = queueRing + (q.mask+1)*q.stride
	return q, nil
}

// bytes returns the size of the body.
func (q *queue) bytes() uint64 { return q.entries + q.leases*(leaseSlot+q.stride) }

// openQueue is newQueue with the body.
func openQueue(s *space, o *object) (q *queue, err error) {
	if q, err = newQueue(s, o); err != nil {
		return nil, err
	}
	if q.body, err = addrOf(s.region, shm.Offset(o.words[queueBody].Load()), q.bytes()); err != nil {
		return nil, err
	}
	q.first = plus(q.body, queueRing)
	return q, nil
}

// makeQueue gives a new object, all of whose words are 0, what a queue needs.
func makeQueue(l *txn.Lane, s *space, o *object, form slotForm, stride, capacity, leases uint64) error {
	o.words[queueShape].Store(stride | uint64(form)<<40)
	o.words[queueSize].Store(capacity | leases<<32)
	q, err := newQueue(s, o)
	if err != nil {
		return err
	}
	return s.allocIn(l, &o.words[queueBody], q.bytes())
}

func (q *queue) word(i int) *atomic.Uint64 { return &q.o.words[i] }

func (q *queue) table(i int) *atomic.Uint64 { return word(plus(q.body, queueTable), i) }

// entry returns the address of an entry.
func (q *queue) entry(i uint64) (addr, error) {
	if i >= q.leases {
		return nil, fmt.Errorf("entry %d of %d: %w", i, q.leases, shm.ErrCorrupt)
	}
	return plus(q.body, q.entries+i*(leaseSlot+q.stride)), nil
}

// bounds returns head and tail.
func (q *queue) bounds() (head, tail uint64, err error) {
	head, tail = q.word(queueHead).Load(), q.word(queueTail).Load()
	if tail-head > q.capacity {
		return head, head, q.badBounds(head, tail)
	}
	return head, tail, nil
}

//go:noinline
func (q *queue) badBounds(head, tail uint64) error {
	return fmt.Errorf("messages [%d, %d) in room for %d: %w", head, tail, q.capacity, shm.ErrCorrupt)
}

func (q *queue) closed() bool { return q.word(queueState).Load()&queueClosed != 0 }

// counts returns how many messages are returned, and how many leased.
func (q *queue) counts() (returned, leased uint64) {
	c := q.word(queueLeases).Load()
	return c & returnedMask, c &^ tableOpen / oneLeased
}

// unfinished returns how many messages are not acknowledged.
func (q *queue) unfinished() uint64 {
	returned, leased := q.counts()
	return q.word(queueTail).Load() - q.word(queueHead).Load() + returned + leased
}

// advance takes the first message off the ring, and frees block, which its slot refers to, if there is one.
func (q *queue) advance(block uint64) error {
	next := q.word(queueHead).Load() + 1
	if block == 0 {
		txn.Put(q.word(queueHead), next) // commits
		return nil
	}
	return q.s.change(func(l *txn.Lane) error {
		return errors.Join(l.Later(q.word(queueHead), next), q.s.heap.FreeIn(l, shm.Offset(block)))
	})
}

// blockAt returns the offset of the block that the slot at p refers to, 0 for none.
func (q *queue) blockAt(p addr) uint64 {
	if q.form == formPlain {
		return 0
	}
	return blockOf(loadText(p))
}

// open marks the table as being changed.
func (q *queue) open() { txn.Put(q.word(queueLeases), q.word(queueLeases).Load()|tableOpen) }

// settle ends the change, with new counts.
func (q *queue) settle(returned, leased uint64) {
	txn.Put(q.word(queueLeases), returned|leased*oneLeased)
}

// idle returns an entry that is free, and false if there is none. The table is open.
func (q *queue) idle() (i uint64, ok bool, err error) {
	if first := q.table(tableFree).Load(); first != 0 {
		p, err := q.entry(first - 1)
		if err != nil {
			return 0, false, err
		}
		if c := word(p, leaseControl).Load(); c&leaseState != leaseFree {
			return 0, false, fmt.Errorf("entry %d is in state %#x, and in the list of those free: %w", first-1, c, shm.ErrCorrupt)
		}
		txn.Put(q.table(tableFree), word(p, leaseNext).Load())
		return first - 1, true, nil
	}
	used := q.table(tableUsed).Load()
	if used >= q.leases {
		return 0, false, nil
	}
	txn.Put(q.table(tableUsed), used+1)
	return used, true, nil
}

// full reports whether every entry is in use.
func (q *queue) full() bool {
	returned, leased := q.counts()
	return returned+leased >= q.leases
}

// firstReturned returns the entry of the first of the messages returned, of which there are some.
func (q *queue) firstReturned() (i uint64, p addr, err error) {
	i = q.table(tableReturned).Load() - 1
	if p, err = q.entry(i); err != nil {
		return 0, nil, err
	}
	if c := word(p, leaseControl).Load(); c&leaseState != leaseReturned {
		return 0, nil, fmt.Errorf("entry %d is in state %#x, and in the list of those returned: %w", i, c, shm.ErrCorrupt)
	}
	return i, p, nil
}

// lease moves the first message into an entry, for this process; the messages returned come first. It
// returns false if there is no message, or no entry.
func (q *queue) lease() (i uint64, ok bool, err error) {
	returned, leased := q.counts()
	if returned > 0 {
		i, p, err := q.firstReturned()
		if err != nil {
			return 0, false, err
		}
		c := word(p, leaseControl).Load()
		if c&attemptsMask != attemptsMask {
			c += oneAttempt
		}
		q.open()
		txn.Put(word(p, leaseOwner), uint64(shm.Self()))
		// crash here: nobody asks for the owner of what is returned
		txn.Put(word(p, leaseControl), c&^leaseState+oneTurn|leaseOut) // commits
		// crash here: repair counts
		txn.Put(q.table(tableReturned), word(p, leaseNext).Load())
		q.settle(returned-1, leased+1)
		return i, true, nil
	}
	head, tail, err := q.bounds()
	if err != nil || head == tail || q.full() {
		return 0, false, err
	}
	q.open()
	if i, ok, err = q.idle(); err != nil || !ok {
		q.settle(returned, leased)
		return 0, false, errors.Join(err, fmt.Errorf("%d entries are in use, and none is free: %w", returned+leased, shm.ErrCorrupt))
	}
	p, err := q.entry(i)
	if err != nil {
		return 0, false, err
	}
	txn.Announce(plus(p, leaseSlot), uintptr(q.stride))
	copyBlock(plus(p, leaseSlot), q.slot(head), q.stride)
	txn.Put(word(p, leaseOwner), uint64(shm.Self()))
	txn.Put(word(p, leaseNumber), head)
	c := word(p, leaseControl).Load()
	txn.Put(word(p, leaseControl), (c&^(oneTurn-1)+oneTurn)|oneAttempt|leaseOut)
	// crash here: the number is not less than head, so the entry is void
	txn.Put(q.word(queueHead), head+1) // commits
	// crash here: repair counts
	q.settle(returned, leased+1)
	return i, true, nil
}

// acknowledge ends the stay of a message in its entry, which was leased or returned, and frees its block.
func (q *queue) acknowledge(i uint64) error {
	p, err := q.entry(i)
	if err != nil {
		return err
	}
	returned, leased := q.counts()
	was := word(p, leaseControl).Load()
	free := was&^(oneTurn-1) | leaseFree
	q.open()
	if block := q.blockAt(plus(p, leaseSlot)); block == 0 {
		txn.Put(word(p, leaseControl), free) // commits
	} else if err := q.s.change(func(l *txn.Lane) error {
		return errors.Join(l.Later(word(p, leaseControl), free), q.s.heap.FreeIn(l, shm.Offset(block)))
	}); err != nil {
		q.settle(returned, leased)
		return err
	}
	// crash here: repair counts
	if was&leaseState == leaseReturned {
		returned--
		txn.Put(q.table(tableReturned), word(p, leaseNext).Load())
	} else {
		leased--
	}
	txn.Put(word(p, leaseNext), q.table(tableFree).Load())
	txn.Put(q.table(tableFree), i+1)
	q.settle(returned, leased)
	return nil
}

// giveBack returns a leased message, for others.
func (q *queue) giveBack(i uint64) error {
	p, err := q.entry(i)
	if err != nil {
		return err
	}
	before := q.table(tableReturned) // the word that is to refer to the entry
	number := word(p, leaseNumber).Load()
	for range q.leases {
		next := before.Load()
		if next == 0 {
			break
		}
		n, err := q.entry(next - 1)
		if err != nil {
			return err
		}
		if word(n, leaseNumber).Load() > number {
			break
		}
		before = word(n, leaseNext)
	}
	returned, leased := q.counts()
	q.open()
	txn.Put(word(p, leaseControl), word(p, leaseControl).Load()&^leaseState|leaseReturned) // commits
	// crash here: repair counts
	txn.Put(word(p, leaseNext), before.Load())
	txn.Put(before, i+1)
	q.settle(returned+1, leased-1)
	return nil
}

// rebuild makes lists and counts of the table, which is open, from its entries.
func (q *queue) rebuild() error {
	used := q.table(tableUsed).Load()
	if used > q.leases {
		return fmt.Errorf("%d entries used of %d: %w", used, q.leases, shm.ErrCorrupt)
	}
	head := q.word(queueHead).Load()
	type message struct{ number, i uint64 }
	var returned []message
	var leased, free uint64
	for i := used; i > 0; {
		i--
		p, err := q.entry(i)
		if err != nil {
			return err
		}
		c := word(p, leaseControl).Load()
		number := word(p, leaseNumber).Load()
		if c&leaseState == leaseOut && number >= head { // its lease was cut off
			c = c&^(oneTurn-1) | leaseFree
			txn.Put(word(p, leaseControl), c)
		}
		switch c & leaseState {
		case leaseOut:
			leased++
		case leaseReturned:
			returned = append(returned, message{number, i})
		default:
			txn.Put(word(p, leaseNext), free)
			free = i + 1
		}
	}
	slices.SortFunc(returned, func(a, b message) int { return cmp.Compare(b.number, a.number) })
	first := uint64(0)
	for _, m := range returned { // from the last one
		p, err := q.entry(m.i)
		if err != nil {
			return err
		}
		txn.Put(word(p, leaseNext), first)
		first = m.i + 1
	}
	txn.Put(q.table(tableFree), free)
	txn.Put(q.table(tableReturned), first)
	// crash here, and anywhere above: done again
	q.settle(uint64(len(returned)), leased)
	return nil
}

// mourned reports whether nobody has died since somebody looked after the dead.
func (q *queue) mourned() bool {
	return uint64(q.s.region.Deaths().Load()) == q.table(tableDeaths).Load()
}

// bury sees to what the dead have left: messages on leases, signals that were not sent, waiters that are
// counted and wait no more.
//
//go:noinline
func (q *queue) bury() error {
	deaths := q.s.region.Deaths().Load() // before the look
	if _, leased := q.counts(); leased > 0 {
		if err := q.reclaim(); err != nil {
			return err
		}
	}
	q.wakeEverybody()
	txn.Put(q.word(queueWaiting), 0)
	txn.Put(q.word(queueState), q.word(queueState).Load()&queueClosed)
	// crash here, and anywhere above: one more death to see to
	txn.Put(q.table(tableDeaths), uint64(deaths))
	return nil
}

// reclaim returns the messages that the dead had on leases.
func (q *queue) reclaim() error {
	dead := map[uint64]bool{}
	q.open()
	for i := range min(q.table(tableUsed).Load(), q.leases) {
		p, err := q.entry(i)
		if err != nil {
			return err
		}
		c, owner := word(p, leaseControl).Load(), word(p, leaseOwner).Load()
		if c&leaseState != leaseOut {
			continue
		}
		gone, known := dead[owner]
		if !known {
			_, gone = q.s.region.Settled(shm.Token(owner))
			dead[owner] = gone
		}
		if gone {
			txn.Put(word(p, leaseControl), c&^leaseState|leaseReturned) // commits that one
		}
	}
	return q.rebuild()
}

// repairQueue brings a queue to its committed state, whatever its T.
func repairQueue(s *space, o *object) error {
	if o.words[queueLeases].Load()&tableOpen == 0 {
		return nil
	}
	q, err := openQueue(s, o)
	if err != nil {
		return err
	}
	return q.rebuild()
}

// dismissQueue lets go everybody who waits at a queue that is about to be destroyed.
func dismissQueue(s *space, o *object) error {
	q, err := openQueue(s, o)
	if err == nil {
		q.wakeEverybody()
	}
	return err
}

// dropQueue frees what a queue has, long texts first: see kind.drop. What is left of those in the ring is from head on, and of those in the
// table in the entries that are not free; at is where to look for them.
func dropQueue(l *txn.Lane, s *space, o *object, at *uint64) (all bool, err error) {
	q, err := openQueue(s, o)
	if err != nil {
		return false, err
	}
	if q.form != formPlain {
		if all, err := q.dropTexts(l, at); err != nil || !all {
			return false, err
		}
	}
	return true, s.freeIn(l, &o.words[queueBody])
}

func (q *queue) dropTexts(l *txn.Lane, at *uint64) (all bool, err error) {
	first, tail, err := q.bounds()
	if err != nil {
		return false, err
	}
	head := first
	for ; head != tail && l.Left() > dropSpare; head++ {
		if block := q.blockAt(q.slot(head)); block != 0 {
			if err := q.s.heap.FreeIn(l, shm.Offset(block)); err != nil {
				return false, err
			}
		}
	}
	if head != first {
		err = l.Later(q.word(queueHead), head)
	}
	if err != nil || head != tail {
		return false, err
	}
	for used := min(q.table(tableUsed).Load(), q.leases); *at < used; *at++ {
		p, err := q.entry(*at)
		if err != nil {
			return false, err
		}
		c, block := word(p, leaseControl).Load(), q.blockAt(plus(p, leaseSlot))
		if c&leaseState == leaseFree || block == 0 {
			continue
		}
		if l.Left() < 2+dropSpare {
			return false, nil
		}
		if err := errors.Join(l.Later(word(p, leaseControl), c&^(oneTurn-1)|leaseFree), q.s.heap.FreeIn(l, shm.Offset(block))); err != nil {
			return false, err
		}
	}
	return true, nil
}

// blocksOfQueue finds what dropQueue frees, of a queue in any state that a kill leaves.
func blocksOfQueue(s *space, o *object, found func(what string, off uint64) error) error {
	q, err := openQueue(s, o)
	if err != nil {
		return err
	}
	if err := found("body", o.words[queueBody].Load()); err != nil || q.form == formPlain {
		return err
	}
	first, tail, err := q.bounds()
	if err != nil {
		return err
	}
	for v := first; v != tail; v++ {
		if err := found("message", q.blockAt(q.slot(v))); err != nil {
			return err
		}
	}
	for i := range min(q.table(tableUsed).Load(), q.leases) {
		p, err := q.entry(i)
		if err != nil {
			return err
		}
		state := word(p, leaseControl).Load() & leaseState
		if state == leaseFree || state == leaseOut && word(p, leaseNumber).Load() >= first { // free, or a lease that was cut off
			continue
		}
		if err := found("message on a lease", q.blockAt(plus(p, leaseSlot))); err != nil {
			return err
		}
	}
	return nil
}
