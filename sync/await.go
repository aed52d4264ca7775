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
	g.mu.Lock()
	if g.leader {
		w := g.push(time.Now(), false)
		g.mu.Unlock()
		if told, err := g.park(w, &l, region); told == nothing {
			if region == nil || !region.Closed() {
				if ready(word.Load()) { // while it was given up
					return nil
				}
			}
			return err
		}
	} else {
		g.leader = true
		g.mu.Unlock()
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
		if region != nil && region.Closed() { // before the word: the range reads as zeros now
			return closedError(l.what, region)
		}
		v := word.Load()
		if ready(v) {
			return nil
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
