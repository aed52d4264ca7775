package sync

import "unsafe"

// Readers returns how many readers are counted in rw by processes that are not known to be dead.
func (rw *RWMutex) Readers() (n int) {
	a := attempt{m: &rw.mu}
	var err error
	if a.region, a.offset, err = locate(&rw.mu, whatWrite); err != nil {
		return 0
	}
	for slot := range rw.counted {
		if _, word, base := a.location().count(rw, slot); word != nil {
			if v := word.Load(); !drained(v, base) {
				n += int(v & maxReaders)
			}
		}
	}
	return n
}

// Awaited reports whether a writer waits for readers to leave.
func (rw *RWMutex) Awaited() bool {
	a := attempt{m: &rw.mu}
	var err error
	if a.region, a.offset, err = locate(&rw.mu, whatWrite); err != nil {
		return false
	}
	for slot := range rw.counted {
		if _, word, base := a.location().count(rw, slot); word != nil {
			if v := word.Load(); v&^drainBit != v && !drained(v, base) {
				return true
			}
		}
	}
	return false
}

// Taken reports whether somebody has the word of rw: a writer, or for a moment a reader.
func (rw *RWMutex) Taken() bool { return rw.mu.word.Load()&^flags != 0 }

// HasWaiter reports whether a goroutine of this process waits for the word of rw.
func (rw *RWMutex) HasWaiter() bool { return hasGate(unsafe.Pointer(&rw.mu)) }

// Remembered returns how many locks in a range of addresses this process remembers how to read.
func Remembered(base, size uintptr) (n int) {
	for i := range shares {
		if s := shares[i].Load(); s != nil && uintptr(unsafe.Pointer(s.lock))-base < size {
			n++
		}
	}
	return n
}
