package sync

import (
	"math/bits"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/spin"
	"github.com/shmkit/shmkit/sync/internal/futex"
)

// How a writer that has the word of an RWMutex waits for the readers that were there first. New ones do not
// come in: they find the word taken. So it looks at one process after another, and waits until that has no
// reader any more or is dead. A reader that looks by itself, and goes again, may appear for a moment.

// own stands for the lock's own count in the place of a slot.
const ownSlot = -1

// counted ranges over the counts where readers may stand. The word is held, so there will be no more.
func (rw *RWMutex) counted(yield func(slot int) bool) {
	if rw.own.Load() != 0 && !yield(ownSlot) {
		return
	}
	for k := range rw.readers {
		for left := rw.readers[k].Load(); left != 0; left &= left - 1 {
			if !yield(64*k + bits.TrailingZeros64(left)) {
				return
			}
		}
	}
}

// unread reports whether nobody has ever read.
func (rw *RWMutex) unread() bool {
	r := &rw.readers
	return rw.own.Load()|r[0].Load()|r[1].Load()|r[2].Load()|r[3].Load() == 0
}

// A location is where a lock lies: no region if outside of any.
type location struct {
	region *shm.Region
	offset shm.Offset
}

// count returns where the readers of a slot's process are counted, nil if it has none, and whose that is.
func (p location) count(rw *RWMutex, slot int) (t shm.Token, word *atomic.Uint64, base uint64) {
	if slot == ownSlot {
		return 0, &rw.own, ownCount
	}
	if p.region == nil { // nobody of ours has set that bit
		return 0, nil, 0
	}
	t, h := p.region.Share(slot, p.offset)
	if t == 0 || h == nil {
		return 0, nil, 0
	}
	return t, &h.Word, shm.HoldingKey(p.offset)
}

// read reports whether a reader stands in the count of a slot's process.
func (p location) read(rw *RWMutex, slot int) bool {
	_, word, base := p.count(rw, slot)
	return word != nil && !drained(word.Load(), base)
}

// anyRead reports whether a reader stands anywhere.
func (p location) anyRead(rw *RWMutex) bool {
	for slot := range rw.counted {
		if p.read(rw, slot) {
			return true
		}
	}
	return false
}

func (a *attempt) location() location { return location{a.region, a.offset} }

// drain waits until no reader is inside. The word of rw is held, and the region pinned, so that the word can
// be released where others see it if the region is closed: Close waits for one sleep of at most 100 ms.
func (a *attempt) drain(rw *RWMutex) (err error) {
	for slot := range rw.counted {
		if a.location().read(rw, slot) {
			if err := a.drainSlot(rw, slot); err != nil {
				return err
			}
		}
	}
	if a.region != nil && a.region.Closed() { // else the range may have read as zeros
		return closedError(a.limit.what, a.region)
	}
	return nil
}

// drainSlot is drain for one process that has readers.
func (a *attempt) drainSlot(rw *RWMutex, slot int) error {
	begin := time.Now()
	if a.spinDrain(rw, slot) {
		return nil
	}
	if a.start.IsZero() {
		a.start = begin
	}
	cancel, stop := a.limit.cancel()
	defer stop()
	defer a.hide()
	a.rest(firstSleep)
	for {
		t, word, base := a.location().count(rw, slot)
		if word == nil {
			return nil
		}
		v := word.Load()
		if drained(v, base) {
			return nil
		}
		if a.region != nil && a.region.Closed() {
			undrain(word, base)
			return closedError(a.limit.what, a.region)
		}
		if err := a.limit.over(); err != nil {
			if a.dead(t) {
				continue // its slot is undone now
			}
			undrain(word, base)
			return err
		}
		if a.time(uint64(t)) {
			if a.dead(t) {
				continue
			}
			a.scan()
			a.show()
		}
		next := draining(v)
		if next != v && !word.CompareAndSwap(v, next) {
			continue
		}
		crash("waits for readers")
		a.sleepDrain(word, next, t, cancel)
		crash("waited for readers")
	}
}

// undrain takes back that a writer waits for a count.
func undrain(word *atomic.Uint64, base uint64) {
	for {
		v := word.Load()
		next := undrained(v, base)
		if next == v || word.CompareAndSwap(v, next) {
			return // crash before: readers take the slow way once
		}
	}
}

// dead reports whether the process t is dead and undone. One that the lock asks itself, its own, lives.
func (a *attempt) dead(t shm.Token) bool {
	if t == 0 || a.region == nil {
		return false
	}
	_, dead := a.region.Settled(t)
	return dead
}

// spinDrain looks for a while whether the readers of a process are gone: most stay for less than a sleep
// takes.
func (a *attempt) spinDrain(rw *RWMutex, slot int) bool {
	runtime.Gosched() // a reader of this process may stand in the queue of this very processor
	for end := time.Now().Add(spinFor); ; {
		if !a.location().read(rw, slot) {
			return true
		}
		if time.Now().After(end) {
			return false
		}
		spin.Pause(spinPause)
	}
}

// sleepDrain sleeps while the count of the process t is v.
func (a *attempt) sleepDrain(word *atomic.Uint64, v uint64, t shm.Token, cancel *futex.Cancel) {
	holder := uint64(t)
	if holder == token {
		holder = 0 // its end is ours
	}
	bell := a.bell(holder)
	wake := a.look
	if end, ok := a.limit.end(); ok && end.Before(wake) {
		wake = end
	}
	if futex.Kernel && !a.idle {
		runtime.Gosched() // see attempt.sleep
	}
	result := a.bed.on(futex.Word{Addr: low(word), Val: uint32(v)}, bell, max(time.Until(wake), time.Microsecond), cancel)
	if result == futex.Rung {
		a.hear(holder)
	}
	a.idle = result == futex.Expired
}

// wakeDrain wakes the writer that waits for a count, and any that has given up but has not left yet.
func wakeDrain(word *atomic.Uint64) { futex.Wake(low(word), 1<<31-1) }
