package sync

import (
	"fmt"
	"io/fs"
	"time"

	"github.com/shmkit/shmkit/sync/internal/futex"
)

func (s *Semaphore) visit(l limit) (visit, error) {
	if s.limit() == 0 {
		return nil, fmt.Errorf("sync: %s: a semaphore of no permits: %w", l.what, fs.ErrInvalid)
	}
	v := &semaphoreVisit{q: request{s: s, n: 1, start: time.Now()}, what: l.what}
	if err := v.q.locate(); err != nil {
		return nil, err
	}
	v.turn = enterTurn(s)
	at, err := v.turn.visit(l) // ends with no error: a turn lies outside of regions
	if err != nil {
		leaveTurn(s, v.turn)
		return nil, err
	}
	v.queue = at
	return v, nil
}

// A semaphoreVisit makes the steps of [request.wait]: in the queue of the goroutines of its process it is one who
// waits for the turn's lock beside others, and as its first it has the claim of the process, until it leaves.
//
// A kill leaves what it leaves of an Acquire: the claim goes with the holding, and a permit that was granted too.
type semaphoreVisit struct {
	q      request
	what   string
	turn   *turn
	queue  visit // of the turn's lock; nil when this is the first
	pinned bool  // the region
	err    error // ends the visit

	// Read before the last look.
	calls  uint32
	deaths futex.Word
}

func (v *semaphoreVisit) try(slept, last bool) (bool, error) {
	q := &v.q
	switch {
	case v.err != nil:
		return false, v.err
	case v.queue == nil:
		v.deaths = futex.Word{}
		if q.slots {
			v.deaths = futex.Word{Addr: plain(q.region.Deaths()), Val: q.region.Deaths().Load()}
		}
		v.calls = uint32(q.own.h.Words[holdingCall].Load())
	case q.claim == 0 && q.region != nil && q.region.Closed():
		return false, closedError(v.what, q.region)
	default:
		if t, ok := q.s.stake(); ok && t.use(1) {
			return v.entered(true, nil)
		}
	}
	taken, err := q.take()
	if !taken && err == nil && last {
		err = q.tryAgain(errTimeout)
		if taken = err == nil; err == errTimeout {
			err = nil
		}
	}
	if err == nil && !taken && q.region != nil && q.region.Closed() {
		err = closedError(v.what, q.region)
	}
	return v.entered(taken, err)
}

func (v *semaphoreVisit) entered(taken bool, err error) (bool, error) {
	if taken && err == nil {
		crash("a permit taken by a visit")
		if raceEnabled {
			raceAcquire(v.q.s)
		}
	}
	return taken && err == nil, err
}

func (v *semaphoreVisit) arm(slept bool, words []futex.Word) ([]futex.Word, bool) {
	if v.queue == nil {
		words = append(words, futex.Word{Addr: lowHalfOf(&v.q.own.h.Words[holdingCall]), Val: v.calls})
		if v.deaths.Addr != nil {
			words = append(words, v.deaths)
		}
		return words, true
	}
	first, _ := v.queue.try(slept, false)
	if !first {
		return v.queue.arm(slept, words)
	}
	v.queue.leave(slept, true)
	v.queue = nil
	v.claim()
	return words, false // a look with the claim comes before the sleep
}

// claim makes the claim of one who has the turn. The memory stays until it is taken back, as in [request.wait].
func (v *semaphoreVisit) claim() {
	q := &v.q
	if !pin(q.region) {
		v.err = closedError(v.what, q.region)
		return
	}
	v.pinned = true
	v.err = q.stand()
}

func (v *semaphoreVisit) due(expired bool) time.Time {
	if v.queue != nil {
		return v.queue.due(expired)
	}
	if expired && v.q.slots {
		v.q.region.Scan()
	}
	now := time.Now()
	if end := v.q.start.Add(starveAfter); now.Before(end) {
		return end // then it claims what is free
	}
	return now.Add(longSleep)
}

func (v *semaphoreVisit) leave(slept, _ bool) {
	defer leaveTurn(v.q.s, v.turn)
	if v.queue != nil {
		v.queue.leave(slept, false)
		return
	}
	defer v.turn.Unlock()
	if v.pinned {
		defer unpin(v.q.region)
	}
	v.q.withdraw() // what was called for it, and not taken, goes to the next
}
