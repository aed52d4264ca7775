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

func shadow[T any](m *T) unsafe.Pointer {
	key := uintptr(unsafe.Pointer(m))
	s, ok := shadows.Load(key)
	if !ok {
		s, _ = shadows.LoadOrStore(key, new(byte))
	}
	return unsafe.Pointer(s.(*byte))
}

func raceAcquire[T any](m *T) { runtime.RaceAcquire(shadow(m)) }
func raceRelease[T any](m *T) { runtime.RaceRelease(shadow(m)) }

// raceReleaseMerge is raceRelease for one of several that release, all of whom are waited for.
func raceReleaseMerge[T any](m *T) { runtime.RaceReleaseMerge(shadow(m)) }

// Between raceIgnore and raceHeed the detector does not take what atomics do for an order of this
// goroutine and others: they count, and guard nothing.
func raceIgnore() { runtime.RaceDisable() }
func raceHeed()   { runtime.RaceEnable() }
