//go:build !linux || futexpoll

package futex

import (
	"sync/atomic"
	"time"
)

// Kernel says whether sleepers sleep in the kernel.
const Kernel = false

// Sleep is [Nap]: correct, since callers look again anyway, and up to 20 ms late, since nobody wakes it.
func Sleep(w, bell Word, d time.Duration, cancel *Cancel) Result { return Nap(w, bell, d, cancel) }

// SleepAny is [NapAny].
func SleepAny(words []Word, d time.Duration, cancel *Cancel) Result { return NapAny(words, d, cancel) }

// Wake does nothing: sleepers look by themselves.
func Wake(*uint32, int) {}

func wakePrivate(*atomic.Uint32) {}
