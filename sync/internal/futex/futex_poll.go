//go:build !linux || futexpoll

package futex

import (
	"sync/atomic"
	"time"
)

// Kernel says whether sleepers sleep in the kernel.
const Kernel = false

// A Cancel ends the wait that it is given to, up to 20 ms late.
type Cancel struct{ word atomic.Uint32 }

// Cancel ends the wait, now or as soon as it begins.
func (c *Cancel) Cancel() { c.word.Store(1) }

// Cancelled reports whether Cancel was called.
func (c *Cancel) Cancelled() bool { return c.word.Load() != 0 }

// Wait polls: correct, since callers look again anyway, and up to 20 ms late, since nobody wakes it.
// (With naps of at most 1 ms, ten waiting processes burned a third of a processor.) Sleeping poll by
// poll holds no thread.
func Wait(w *uint32, val uint32, d time.Duration, cancel *Cancel) Result {
	end := time.Now().Add(d)
	for nap := 10 * time.Microsecond; ; nap = min(2*nap, 20*time.Millisecond) {
		left := time.Until(end)
		switch {
		case atomic.LoadUint32(w) != val, cancel != nil && cancel.Cancelled():
			return Woken
		case left <= 0:
			return Expired
		}
		time.Sleep(min(nap, left))
	}
}

// Wake does nothing: sleepers look by themselves.
func Wake(*uint32, int) {}
