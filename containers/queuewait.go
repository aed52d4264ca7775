package containers

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm/spin"
	shmsync "github.com/shmkit/shmkit/sync"
)

// How one waits at a queue who finds nothing to do, or the lock taken. Where messages go from processor to processor most of the time
// goes with cache lines that do the same. So whoever has to wait leaves the other side alone for a while, in which that one does many
// things in its own cache: that is worth more than to be there at once. (Measured on a busy machine, with a process held on each of its two
// processors and messages of 8 bytes, in million a second: 3.3 when both took the lock and slept as soon as they could; 5 when each looked
// every µs for what it waited for, 12 to 15 when every 13 to 25 µs, 7 to 10 when that follows what is found, as here. Of batches of 64 a look
// every µs made more than one every 13 to 25.)
//
//   - One that finds the lock taken looks for it a few times, a µs or two apart ([base.soon]).
//   - One that finds no message, or no room, looks on for up to queueSpin, without the lock; the kernel takes longer than that to wake a
//     sleeper, and it costs the one who wakes as much. How long it waits for the first look depends on what it has found the
//     last times: a few messages, and it looks sooner; more than a few, but not half of what there is room for, and it looks later.
//     Where that was in vain, since the other side has nothing to do, or is waiting for this very processor, it does not look on the next times. Of
//     those that wait by one handle one at a time looks on: more would only take processors from those who work.
//   - Then it counts itself in word 5 or 7, under the lock, and waits for a Cond. Whoever makes room, or a message, signals, under the
//     same lock, if somebody is counted, and takes those it has signalled off the count: a sleeper takes long to come, and what is put
//     meanwhile is not to cost a signal each time. (Without that two processes on one processor passed half as many.)
//
// The count is never less than those that sleep and are not signalled. A death may leave a signal unsent and a count too high. So those who wait end their
// wait at each death in the region, and the first of them to hold the lock looks after the dead ([queue.bury]): it returns their leases,
// lets everybody look again who waits, and counts from 0. Who waited when that happened knows it by the table's count of deaths, and does
// not take itself off the count. The kernel is asked who is dead by those who wait, and now and then by those who do not
// ([queue.ready]). Who looks on is not counted, and nobody tells it anything: it looks once more under the lock before it counts itself.
//
// Not done: a lock for each side. One lock for both is a limit, of 20 to 30 million messages a second where this was measured, but a second one has
// no place: it would have to stay where it is when the queue is destroyed, as the object's own does, for those who come late, and that
// header is full; and those who lock a queue by hand, or in a transaction, would have to take both.
const (
	soonLooks = 4  // for the lock
	soonPause = 16 // before each, in PAUSEs: 50 to 100 ns where this was measured

	shortPause = 4 // before a look for what one waits for
	longPause  = 256
	aFew       = 8 // messages, or places
	mostSkips  = 7 // waits that do not look on
)

// queueSpin is how long one looks on; a variable, so that a test can do without.
var queueSpin = 30 * time.Microsecond

var multiprocessor = runtime.NumCPU() > 1

// A lookout is how those look on who wait by one handle. The one who has it may use its fields.
type lookout struct {
	taken atomic.Bool
	pause [2]uint32 // before a look, by what is waited for
	skip  uint32    // waits that do not look on
	skips uint32    // how many that were the last time
}

// soon is quick some more times.
//
//go:noinline
func (b *base) soon() bool {
	if !multiprocessor || b.mu == nil || b.foreign() {
		return false
	}
	for range soonLooks {
		spin.Pause(soonPause)
		if b.quick() {
			return true
		}
	}
	return false
}

// offers returns how much there is to do for one who waits for w: messages, or room; 1 for the news that there will be none.
func (q *queue) offers(w waitFor) uint64 {
	head := q.word(queueHead).Load() // first: it only grows, and does not overtake tail
	n := q.word(queueTail).Load() - head
	if w == waitRoom {
		if q.closed() {
			return max(1, q.capacity-n)
		}
		return q.capacity - n
	}
	returned, leased := q.counts()
	if leased == 0 && q.closed() {
		return max(1, n)
	}
	return n + returned
}

// lookOn looks on for one who waits for w. It reports false if it did not, and the lock is held still; else it is not held.
func (h SharedQueue[T]) lookOn(w waitFor) bool {
	l := &h.q.lookout
	if !multiprocessor || queueSpin <= 0 || w > waitRoom || !l.taken.CompareAndSwap(false, true) {
		return false
	}
	defer l.taken.Store(false)
	if l.skip > 0 {
		l.skip--
		return false
	}
	h.release()
	if runtime.GOMAXPROCS(0) == 1 {
		runtime.Gosched() // the other side may be a goroutine that needs this processor
	}
	pause := max(l.pause[w], shortPause)
	for begin := time.Now(); ; {
		spin.Pause(pause)
		n := h.q.offers(w)
		if n == 0 && time.Since(begin) < queueSpin {
			continue
		}
		switch {
		case n == 0:
			l.skips = min(2*l.skips+1, mostSkips)
			l.skip = l.skips
			return true
		case n < aFew || n > h.q.capacity/8*7:
			pause = max(pause/2, shortPause)
		case n < h.q.capacity/2:
			pause = min(2*pause, longPause)
		}
		l.pause[w], l.skips = pause, 0
		return true
	}
}

// wait waits until the condition is signalled, or somebody dies, or the context ends; the caller looks again. The lock
// is held, and is held again unless there is an error.
func (h SharedQueue[T]) wait(ctx context.Context, op string, w waitFor) error {
	if err := ctx.Err(); err != nil {
		if cause := context.Cause(ctx); cause != err {
			err = fmt.Errorf("%w: %w", err, cause)
		}
		return h.end(op, err)
	}
	q := h.q
	if h.lookOn(w) {
		if err := h.lock(ctx, op); err != nil {
			return err
		}
		if q.offers(w) != 0 {
			return nil
		}
	}
	if !q.mourned() {
		if err := q.bury(); err != nil {
			return h.end(op, err)
		}
		return nil
	}
	q.count(w, q.waiting(w)+1)
	seen := q.table(tableDeaths).Load()
	woken, err := q.cond(w).WaitDeaths(ctx, h.mu, uint32(seen))
	switch {
	case errors.Is(err, shmsync.ErrInconsistent) && !h.foreign():
		return h.lock(ctx, op) // repairs
	case err != nil:
		return h.fail(op, err)
	}
	if !h.live() {
		h.release()
		return h.useless(op)
	}
	if h.foreign() {
		if err := h.settle(); err != nil {
			return h.end(op, err)
		}
	}
	if !woken && q.table(tableDeaths).Load() == seen {
		q.count(w, q.waiting(w)-1)
	}
	return nil
}

// The conditions of a queue.
type waitFor int

const (
	waitMessage waitFor = iota
	waitRoom
	waitJoin
	waitEntry
)

// waiters says where those are counted who wait for a condition.
var waiters = [...]struct {
	word  int
	shift uint64
	mask  uint64
}{
	waitMessage: {queueWaiting, 0, 1<<32 - 1},
	waitRoom:    {queueWaiting, 32, 1<<32 - 1},
	waitJoin:    {queueState, 8, 1<<28 - 1},
	waitEntry:   {queueState, 36, 1<<28 - 1},
}

func (q *queue) cond(w waitFor) *shmsync.Cond { return as[shmsync.Cond](plus(q.body, 64*uint64(w))) }

// waiting returns how many wait, or more.
func (q *queue) waiting(w waitFor) uint64 {
	k := &waiters[w]
	return q.word(k.word).Load() >> k.shift & k.mask
}

// count sets how many wait. There are fewer than a word has room for: each has a holding of the region.
func (q *queue) count(w waitFor, n uint64) {
	k := &waiters[w]
	if n <= k.mask { // else the word is damaged
		txn.Put(q.word(k.word), q.word(k.word).Load()&^(k.mask<<k.shift)|n<<k.shift)
	}
}

// wake signals n of those that wait, and then takes them off the count: who works on while they are on their way need not ask again.
func (q *queue) wake(w waitFor, n int) {
	if all := q.waiting(w); all != 0 {
		q.cond(w).SignalN(n)
		// crash here: the count is too high
		q.count(w, all-min(all, uint64(n)))
	}
}

func (q *queue) wakeAll(w waitFor) {
	if q.waiting(w) != 0 {
		q.cond(w).Broadcast()
		q.count(w, 0)
	}
}

// hasWaiters reports whether anybody waits for anything, by two loads.
func (q *queue) hasWaiters() bool {
	return q.word(queueWaiting).Load()|q.word(queueState).Load()&^queueClosed != 0
}

// came tells those who wait of n messages that have come.
func (q *queue) came(n int) { q.wake(waitMessage, n) }

// left tells those who wait that there is room for n messages.
func (q *queue) left(n int) {
	q.wake(waitRoom, n)
	q.finished()
}

// finished tells those who wait for the end, if it has come.
func (q *queue) finished() {
	if q.unfinished() != 0 {
		return
	}
	q.wakeAll(waitJoin)
	if q.closed() { // then there will be no message any more
		q.wakeAll(waitMessage)
		q.wakeAll(waitEntry)
	}
}

func (q *queue) wakeEverybody() {
	for w := range waiters {
		q.wakeAll(waitFor(w))
	}
}
