//go:build race

package sync

import (
	"runtime"
	stdsync "sync"
	"unsafe"
)

const raceEnabled = true

// The race detector ignores what is ordered by words in mapped memory, and would report every heap
// variable that such a lock guards. So each lock tells it through a shadow in Go memory, one for each:
// a shared one would order what is not ordered, and hide real races.
var shadows stdsync.Map // address of the lock → *byte

func shadow(m *Mutex) unsafe.Pointer {
	key := uintptr(unsafe.Pointer(m))
	s, ok := shadows.Load(key)
	if !ok {
		s, _ = shadows.LoadOrStore(key, new(byte))
	}
	return unsafe.Pointer(s.(*byte))
}

func raceAcquire(m *Mutex) { runtime.RaceAcquire(shadow(m)) }
func raceRelease(m *Mutex) { runtime.RaceRelease(shadow(m)) }
