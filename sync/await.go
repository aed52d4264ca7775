package sync

import (
	"context"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/sync/internal/futex"
)

// How goroutines wait for a word that says what they wait for, and that nobody owns. Bit 0 of the word
// says that somebody may sleep on it; whoever changes the word in a way that may end a wait clears the
// bit by that very step, and wakes all if it was set: one sleeper of each process. A sleeper sets it
// again before it sleeps, and compares the whole word, so no change is slept through. Of the
// goroutines of one process one sleeps, the leader; one whose wait is over lets the next in the gate
// look for itself. A wake-up that is lost with a process costs the others the rest of a sleep.
//
// Where a death may end the wait, the leader sleeps by the region's count of deaths too, and looks again
// when it has changed. Nobody is told of a death who does not look for it: so every sleep ends after
// 100 ms, and then the leader scans the region; one scan in 100 ms is enough for all of its processes.

// A watch is a wait for such a word.
type watch struct {
	word *atomic.Uint32
	limit
	// over looks whether the wait is over, given what the word read before; it may change things, and is called by
	// one goroutine of the process at a time. With an error the wait is over too.
	over   func(v uint32) (bool, error)
	mortal bool // a death may end the wait
}

func init() { shm.SetWaker(wakeAll) }

// wait waits until over says so, or the limit does. It looks at least once before the limit counts.
func (w *watch) wait() error {
	region, _, err := locate(w.word, w.what)
	if err != nil {
		return err
	}
	g := enter(w.word)
	defer leave(w.word, g)
	look := func(v uint32) (over bool, err error) {
		over, err = w.over(v)
		if region != nil && region.Closed() { // after the word was read: it may have been the zeros of now
			return true, closedError(w.what, region)
		}
		return over || err != nil, err
	}
	place, over, err := func() (*waiter, bool, error) {
		g.mu.Lock()
		defer g.mu.Unlock() // also when the memory is gone
		if !g.leader {
			g.leader = true
			return nil, false, nil
		}
		// The leader, and those parked before, may have come after a change that was ours: no change to
		// come ends their waits sooner than this one.
		if over, err := look(w.word.Load()); over {
			return nil, true, err
		}
		return g.push(region, time.Now(), false), false, nil
	}()
	if over {
		return err
	}
	if place != nil {
		if told, why := g.park(place, &w.limit, region); told == nothing {
			if over, err := look(w.word.Load()); over { // while it was given up
				return err
			}
			return why
		}
	}
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.promote()
	}()
	return w.lead(region, look)
}

// lead is wait for the one goroutine of the process that sleeps.
func (w *watch) lead(region *shm.Region, look func(v uint32) (bool, error)) error {
	cancel, stop := w.cancel()
	defer stop()
	var b bed
	if futex.Kernel {
		runtime.Gosched() // lets go on what the sleep would keep waiting: see attempt.sleep
	}
	for {
		var deaths futex.Word
		if w.mortal && region != nil {
			deaths = futex.Word{Addr: plain(region.Deaths()), Val: region.Deaths().Load()} // before the look
		}
		v := w.word.Load()
		if over, err := look(v); over {
			return err
		}
		if err := w.limit.over(); err != nil {
			return err
		}
		if v&1 == 0 && !w.word.CompareAndSwap(v, v|1) {
			continue
		}
		d := longSleep // then deaths in the region are looked for
		if end, ok := w.end(); ok {
			d = min(d, max(time.Until(end), time.Microsecond))
		}
		if b.on(futex.Word{Addr: plain(w.word), Val: v | 1}, deaths, d, cancel) == futex.Expired && region != nil {
			region.Scan()
		}
	}
}

// cancel returns what ends a sleep when the context of the limit ends, nil if it has none. stop is to be
// called when it is not needed any more.
func (l *limit) cancel() (c *futex.Cancel, stop func() bool) {
	if l.done() == nil {
		return nil, func() bool { return true }
	}
	c = new(futex.Cancel)
	return c, context.AfterFunc(l.ctx, c.Cancel)
}

// wakeAll wakes the sleepers of all processes.
func wakeAll(word *atomic.Uint32) { futex.Wake(plain(word), 1<<31-1) }
