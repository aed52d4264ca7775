package containers

import (
	"context"
	"fmt"
	"io/fs"
	"math/bits"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
	shmsync "github.com/shmkit/shmkit/sync"
)

// ring is a ring's memory. Lamport's queue of one writer and one reader: each side writes a count of its own and reads
// the other's, and as in later ones (FastForward, the Disruptor) keeps in its own memory what it has last read of it, so that a cache
// line moves only when that is used up.
//
//	words  2 offset of the body   3 bytes of a slot; never changes   4 capacity; never changes
//	       5 token of the process that has the producing end, 0 none   6 the same of the consuming end
//	       7 closed   0 how often the producing end was taken   1 the same of the consuming end
//
//	body   | messages put, 128 bytes | messages got, 128 bytes | Event: came; Event: room; 128 bytes | slots |
//
// Message v is in slot v modulo the number of slots, a power of two that is not less than the capacity.
//
//	put      | slot, count                | before, until the count
//	get      | count                      | before or after; the slot is copied before
//	take     | number of times, token     | nobody has the end, until the token; what a number says nobody asks without a token
//	release  | token                      | before or after
//	close    | word 7                     | before or after
//
// # Waiting
//
// An Event is set but while a side waits, or is about to. That one clears it, looks once more, and waits for it. The other
// one looks at it after it has stored its count, and sets it if it is not set: of a store and a load behind it on each side
// one at least sees the other's, since Go's atomic operations have one order. In a ring that is neither empty nor full nobody writes that line. If the
// other one is killed between the two stores, the death ends the wait.
//
// # Ends
//
// Who has an end says its token, under the object's lock. An end whose owner is dead is free, and so is one that a process took by a
// region that it has closed and opened again: what of its own ends is in use a process knows by itself ([endKey]).
// A call by the old opening that is under way still stores into memory that is cut off; but into the ring's if something else of this process kept the
// region open meanwhile, so such calls must have ended before the end is taken again. A ring is not
// destroyed while an end is taken: so whoever has one may write to the body, without asking.
type ring struct {
	slots
	s        *space
	o        *object
	body     addr
	capacity uint64
}

// Words of a ring.
const (
	ringProducers = iota // times that the end was taken
	ringConsumers
	ringBody     // immutable
	ringStride   // immutable
	ringCapacity // immutable
	ringProducer // token
	ringConsumer // token
	ringClosed

	ringNews  = 256 // in the body
	ringSlots = 384

	ringTakePause = 20 * time.Millisecond // between two looks at an end that another one has
	ringLooks     = 16                    // between two looks at the clock
)

// ringSpin is how long one looks for something to do before one sleeps; a variable, so that a test can do without.
var ringSpin = 20 * time.Microsecond

// A ringSide is one of the two sides of a ring.
type ringSide int

const (
	producing ringSide = iota
	consuming
)

func (side ringSide) String() string { return [...]string{"producing", "consuming"}[side] }

// newRing returns the ring of an object.
func newRing(s *space, o *object) (*ring, error) {
	r := &ring{s: s, o: o, slots: slots{stride: o.words[ringStride].Load()}, capacity: o.words[ringCapacity].Load()}
	if r.stride == 0 || r.stride%8 != 0 || r.stride > 1<<32 || r.capacity == 0 || r.capacity > maxQueue { // so bytes does not overflow
		return nil, fmt.Errorf("%d slots of %d bytes: %w", r.capacity, r.stride, shm.ErrCorrupt)
	}
	r.mask = 1<<bits.Len64(r.capacity-1) - 1
	return r, nil
}

func openRing(s *space, o *object) (r *ring, err error) {
	if r, err = newRing(s, o); err != nil {
		return nil, err
	}
	if r.body, err = addrOf(s.region, shm.Offset(o.words[ringBody].Load()), r.bytes()); err != nil {
		return nil, err
	}
	r.first = plus(r.body, ringSlots)
	return r, nil
}

// makeRing gives a new object, all of whose words are 0, what a ring needs.
func makeRing(l *txn.Lane, s *space, o *object, stride, capacity uint64) error {
	o.words[ringStride].Store(stride)
	o.words[ringCapacity].Store(capacity)
	r, err := newRing(s, o)
	if err != nil {
		return err
	}
	off, err := s.heap.AllocIn(l, r.bytes(), 128)
	o.words[ringBody].Store(uint64(off))
	return err
}

func (r *ring) bytes() uint64 { return ringSlots + (r.mask+1)*r.stride }

func (r *ring) word(i int) *atomic.Uint64 { return &r.o.words[i] }

func (r *ring) closed() bool { return r.word(ringClosed).Load() != 0 }

// count returns how many messages a side has put, or got.
func (r *ring) count(side ringSide) *atomic.Uint64 { return word(r.body, 16*int(side)) }

// news returns the Event that a side waits for.
func (r *ring) news(side ringSide) *shmsync.Event {
	return as[shmsync.Event](plus(r.body, ringNews+4*uint64(side)))
}

//go:noinline
func (r *ring) badCounts(head, tail uint64) error {
	return fmt.Errorf("messages [%d, %d) in room for %d: %w", head, tail, r.capacity, shm.ErrCorrupt)
}

// An endKey tells an end that was taken from every other one of its region. Those that this process has taken and not released are in
// [space.ends], which goes with the space: no end is left behind when the region is closed.
type endKey struct {
	object shm.Offset
	side   ringSide
	turn   uint64
}

func (r *ring) key(side ringSide) endKey {
	return endKey{r.s.offsetOf(r.o), side, r.word(ringProducers + int(side)).Load()}
}

// holder returns the token of the one that has an end, 0 if it is free. The lock is held.
func (r *ring) holder(side ringSide) shm.Token {
	t := shm.Token(r.word(ringProducer + int(side)).Load())
	if t == shm.Self() {
		if _, ours := r.s.ends.Load(r.key(side)); !ours {
			return 0
		}
	} else if _, dead := r.s.region.Settled(t); dead {
		return 0
	}
	return t
}

// take takes an end; nil if another one has it. The lock is held.
func (r *ring) take(side ringSide) (*ringEnd, error) {
	if r.holder(side) != 0 {
		return nil, nil
	}
	e := &ringEnd{r: r, side: side, own: r.count(side), others: r.count(1 - side), news: r.news(side), tell: r.news(1 - side)}
	e.next = e.own.Load()
	e.bound = e.next
	if _, err := e.reach(); err != nil {
		return nil, err
	}
	turns := r.word(ringProducers + int(side))
	txn.Put(turns, turns.Load()+1)
	// crash here: the end is free, or was a dead one's
	txn.Put(r.word(ringProducer+int(side)), uint64(shm.Self()))
	e.key = r.key(side)
	r.s.ends.Store(e.key, true)
	return e, nil
}

// A ringEnd is an end that this process has taken.
type ringEnd struct {
	base   base
	r      *ring
	side   ringSide
	key    endKey
	own    *atomic.Uint64
	others *atomic.Uint64
	news   *shmsync.Event // that we wait for
	tell   *shmsync.Event // that the other side waits for
	next   uint64         // number of our next message: *own
	bound  uint64         // to here there are messages, or there is room; next <= bound
	over   bool
}

// use returns why the end is of no use, or nil.
func (e *ringEnd) use(op string) error {
	if e.over || e.base.obj.gen.Load() != e.base.gen || e.base.s.closed.Load() || e.side == producing && e.r.closed() {
		return e.useless(op)
	}
	return nil
}

//go:noinline
func (e *ringEnd) useless(op string) error {
	switch {
	case e.over:
		return e.base.fail(op, fmt.Errorf("the %v end was released: %w", e.side, fs.ErrClosed))
	case !e.base.live():
		return e.base.useless(op)
	}
	return e.base.fail(op, ErrQueueClosed)
}

// reach looks how many messages there are, or how much room.
func (e *ringEnd) reach() (uint64, error) {
	others := e.others.Load()
	n := others + e.offset() - e.next
	if n > e.r.capacity {
		if e.side == producing {
			return 0, e.r.badCounts(others, e.next)
		}
		return 0, e.r.badCounts(e.next, others)
	}
	e.bound = e.next + n
	return n, nil
}

// look is reach for a call; without messages it says if there will be none.
//
//go:noinline
func (e *ringEnd) look(op string) (n uint64, err error) {
	closed := e.r.closed() // before the look: what was put before that is seen
	n, err = e.reach()
	switch {
	case !e.base.live(): // after the look: zeros are no count
		return 0, e.base.useless(op)
	case err != nil:
		return 0, e.base.fail(op, err)
	case n == 0 && closed:
		return 0, e.base.fail(op, ErrQueueClosed)
	}
	return n, nil
}

// some returns how many messages there are, or how much room, up to n.
func (e *ringEnd) some(op string, n int) (int, error) {
	if e.bound-e.next < uint64(n) {
		if _, err := e.look(op); err != nil {
			return 0, err
		}
	}
	return int(min(uint64(n), e.bound-e.next)), nil
}

// publish says that n messages more were put, or got, and wakes the other side if it waits. An error says that the region was closed
// meanwhile: what was copied may be zeros.
func (e *ringEnd) publish(op string, n uint64) error {
	e.next += n
	txn.Announce(addr(e.own), 8)
	e.own.Store(e.next) // commits
	// crash here: the other side looks again at a death
	if !e.tell.IsSet() {
		e.tell.Set()
	}
	if e.base.s.closed.Load() {
		return e.useless(op)
	}
	return nil
}

// wait waits until there is a message, or room; or somebody dies: the caller looks again.
func (e *ringEnd) wait(ctx context.Context, op string) error {
	if runtime.GOMAXPROCS(0) == 1 {
		runtime.Gosched() // the other side may be a goroutine that needs this processor
	}
	for begin, looks := time.Now(), 1; multiprocessor; looks++ {
		if e.others.Load() != e.bound-e.offset() {
			return nil
		}
		if looks%ringLooks == 0 && time.Since(begin) > ringSpin {
			break
		}
	}
	seen := e.r.s.region.Deaths().Load()
	txn.Announce(addr(e.news), 4)
	e.news.Clear()
	// From here on the other side sets it after it has published, or what it has published is seen here.
	n, err := e.look(op)
	if n == 0 && err == nil {
		if _, err = e.news.WaitDeaths(ctx, seen); err != nil {
			err = e.base.fail(op, err)
		}
	}
	e.news.Set()
	return err
}

// offset is what bound is more than the other side's count.
func (e *ringEnd) offset() uint64 {
	if e.side == producing {
		return e.r.capacity
	}
	return 0
}

// release gives the end up.
func (e *ringEnd) release() error {
	if e.over {
		return nil
	}
	e.over = true
	e.r.s.ends.Delete(e.key)
	return e.base.do(context.Background(), "Release", func() error {
		if holder := e.r.word(ringProducer + int(e.side)); holder.Load() == uint64(shm.Self()) && e.r.key(e.side) == e.key {
			txn.Put(holder, 0)
		}
		return nil
	})
}

// pauseFor waits for so long, or until the context ends.
func pauseFor(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// dismissRing says who keeps the ring from being destroyed.
func dismissRing(s *space, o *object) error {
	r, err := openRing(s, o)
	if err != nil {
		return err
	}
	for side := producing; side <= consuming; side++ {
		if t := r.holder(side); t != 0 {
			who := "a process"
			if a, ok := s.region.Holder(t); ok {
				who = fmt.Sprintf("process %d", a.PID)
			}
			return fmt.Errorf("%s has its %v end, which is to be released first: %w", who, side, fs.ErrInvalid)
		}
	}
	return nil
}

// dropRing frees the body.
func dropRing(l *txn.Lane, s *space, o *object) error { return s.freeIn(l, &o.words[ringBody]) }
