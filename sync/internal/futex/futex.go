// Package futex lets a goroutine sleep until a word of memory changes, wherever the word is mapped and
// whichever process changes it: by the kernel's futex on Linux, by polling elsewhere and under the
// build tag futexpoll.
//
// Sleepers are not private to the process: the kernel knows a word of a mapped file by the file and
// the place in it. A sleeping goroutine holds a thread; who may sleep is the caller's affair.
//
// A wake-up goes to one who sleeps by the word, and is used up by that. So whoever has slept, and then
// does not want what the wake-up was for, passes it on; every Result but [Changed] may stand for one.
package futex

import (
	stdsync "sync"
	"sync/atomic"
	"time"
)

// A Word is a word of memory, and what it reads as long as one wants to sleep by it. The zero Word is
// none.
type Word struct {
	Addr *uint32
	Val  uint32
}

// Changed reports whether the word reads something else now. It faults if the memory is gone.
func (w Word) Changed() bool { return w.Addr != nil && atomic.LoadUint32(w.Addr) != w.Val }

// A Result says why a wait ended.
type Result int

const (
	Changed   Result = iota // the word had another value before the sleep began: no wake-up was used up
	Woken                   // by a wake, a signal, or for no reason
	Expired                 // the time was over
	Rung                    // the bell reads something else
	Cancelled               // by the Cancel
	Refused                 // the kernel cannot do that here: of Set.Wait only
)

// A Cancel ends the wait that it is given to. It is ready for use, and must not be copied.
type Cancel struct {
	word atomic.Uint32
	mu   stdsync.Mutex
	done chan struct{} // made by Done, and closed by Cancel; guarded by mu
}

// Cancel ends the wait, now or as soon as it begins.
func (c *Cancel) Cancel() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.word.Swap(1) == 0 && c.done != nil {
		close(c.done)
	}
	wakePrivate(&c.word)
}

// Cancelled reports whether Cancel was called. A nil Cancel is never called.
func (c *Cancel) Cancelled() bool { return c != nil && c.word.Load() != 0 }

// Done returns a channel that Cancel closes, for those who wait in Go; nil for a nil Cancel.
func (c *Cancel) Done() <-chan struct{} {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
		if c.Cancelled() {
			close(c.done)
		}
	}
	return c.done
}

// Wait is Sleep by one word, which may end as [Changed], [Woken] or [Expired].
func Wait(w *uint32, val uint32, d time.Duration, cancel *Cancel) Result {
	r := Sleep(Word{w, val}, Word{}, d, cancel)
	if r == Cancelled {
		return Woken
	}
	return r
}

// longestNap is how late one who polls is. (With naps of at most 1 ms, ten waiting processes burned a
// third of a processor.)
const longestNap = 20 * time.Millisecond

// Nap is [Sleep] without the kernel: it looks at the words from time to time. Nobody can wake it, so it
// uses up no wake-up, and between two looks it holds no thread.
func Nap(w, bell Word, d time.Duration, cancel *Cancel) Result {
	end := time.Now().Add(d)
	var timer *time.Timer
	for nap := 10 * time.Microsecond; ; nap = min(2*nap, longestNap) {
		left := time.Until(end)
		switch {
		case w.Changed():
			return Woken
		case bell.Changed():
			return Rung
		case cancel.Cancelled():
			return Cancelled
		case left <= 0:
			return Expired
		case cancel == nil:
			time.Sleep(min(nap, left))
			continue
		case timer == nil:
			timer = time.NewTimer(min(nap, left))
			defer timer.Stop()
		default:
			timer.Reset(min(nap, left))
		}
		select {
		case <-timer.C:
		case <-cancel.Done():
		}
	}
}

// NapAny is [SleepAny] without the kernel, as [Nap] is Sleep.
func NapAny(words []Word, d time.Duration, cancel *Cancel) Result {
	end := time.Now().Add(d)
	for nap := 10 * time.Microsecond; ; nap = min(2*nap, longestNap) {
		left := time.Until(end)
		switch {
		case anyChanged(words):
			return Woken
		case cancel.Cancelled():
			return Cancelled
		case left <= 0:
			return Expired
		}
		t := time.NewTimer(min(nap, left))
		select {
		case <-t.C:
		case <-cancel.Done():
		}
		t.Stop()
	}
}

func anyChanged(words []Word) bool {
	for _, w := range words {
		if w.Changed() {
			return true
		}
	}
	return false
}
