package sync

import (
	"context"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/shmkit/shmkit/sync/internal/futex"
)

// How goroutines wait for a word that says what they wait for, and that nobody owns. Bit 0 of the word
// says that somebody may sleep on it; whoever changes the word in a way that may end a wait clears the
// bit by that very step, and wakes all if it was set: one sleeper of each process. A sleeper sets it
// again before it sleeps, and compares the whole word, so no change is slept through. Of the
// goroutines of one process one sleeps, the leader; one whose wait is over lets the next in the gate
// look for itself. A wake-up that is lost with a process costs the others the rest of a sleep.

// await waits until ready, asked of the word, says so, or the wait is over.
func await(word *atomic.Uint32, l limit, ready func(v uint32) bool) error {
	region, _, err := locate(word, l.what)
	if err != nil {
		return err
	}
	g := enter(word)
	defer leave(word, g)
	look := func(v uint32) (over bool, err error) {
		over = ready(v)
		if region != nil && region.Closed() { // after the word was read: it may have been the zeros of now
			return true, closedError(l.what, region)
		}
		return over, nil
	}
	w, over, err := func() (*waiter, bool, error) {
		g.mu.Lock()
		defer g.mu.Unlock() // also when the memory is gone
		if !g.leader {
			g.leader = true
			return nil, false, nil
		}
		// The leader, and those parked before, may have come after a change that was ours: no change to
		// come ends their waits sooner than this one.
		if over, err := look(word.Load()); over {
			return nil, true, err
		}
		return g.push(region, time.Now(), false), false, nil
	}()
	if over {
		return err
	}
	if w != nil {
		if told, why := g.park(w, &l, region); told == nothing {
			if over, err := look(word.Load()); over { // while it was given up
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
	var cancel *futex.Cancel
	if l.done() != nil {
		cancel = new(futex.Cancel)
		stop := context.AfterFunc(l.ctx, cancel.Cancel)
		defer stop()
	}
	var b bed
	if futex.Kernel {
		runtime.Gosched() // lets go on what the sleep would keep waiting: see attempt.sleep
	}
	for {
		v := word.Load()
		if over, err := look(v); over {
			return err
		}
		if err := l.over(); err != nil {
			return err
		}
		if v&1 == 0 && !word.CompareAndSwap(v, v|1) {
			continue
		}
		d := longSleep // then deaths in the region are looked for
		if end, ok := l.end(); ok {
			d = min(d, max(time.Until(end), time.Microsecond))
		}
		if b.on(futex.Word{Addr: plain(word), Val: v | 1}, futex.Word{}, d, cancel) == futex.Expired && region != nil {
			region.Scan()
		}
	}
}

// wakeAll wakes the sleepers of all processes.
func wakeAll(word *atomic.Uint32) { futex.Wake(plain(word), 1<<31-1) }
