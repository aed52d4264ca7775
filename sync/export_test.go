package sync

import (
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/sync/internal/futex"
)

// Pointer returns the address of m.
func (m *Mutex) Pointer() unsafe.Pointer { return unsafe.Pointer(m) }

// HasWaiter reports whether a goroutine of this process waits for m.
func (m *Mutex) HasWaiter() bool { return hasGate(m.Pointer()) }

// HasWaiter reports whether a goroutine of this process waits for e.
func (e *Event) HasWaiter() bool { return hasGate(unsafe.Pointer(&e.word)) }

func hasGate(key unsafe.Pointer) bool {
	s := &gates[shard(key)]
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.by[key] != nil
}

// Parked returns how many goroutines of this process are parked behind a leader that waits for m.
func (m *Mutex) Parked() int { return parkedBehind(m) }

// Parked returns how many goroutines of this process are parked behind a leader that waits for e.
func (e *Event) Parked() int { return parkedBehind(&e.word) }

// Sleeps reports whether somebody may sleep on e's word.
func (e *Event) Sleeps() bool { return e.word.Load()&eventWaiters != 0 }

// SetWithoutWake is a Set that is cut off.
func (e *Event) SetWithoutWake() {
	next, _ := signalled(e.word.Load())
	e.word.Store(next)
}

// Kernel says whether sleepers sleep in the kernel.
const Kernel = futex.Kernel

const RaceEnabled = raceEnabled

// Gates returns how many locks somebody of this process waits for, or looks at.
func Gates() (n int) {
	for i := range gates {
		s := &gates[i]
		s.mu.Lock()
		n += len(s.by)
		s.mu.Unlock()
	}
	return n
}

// SleepForEver makes the waits of this process end by wake-ups only: no deadline heals a lost one.
func SleepForEver() { firstSleep, longSleep = time.Hour, time.Hour }
