package sync

import "unsafe"

// Pointer returns the address of m.
func (m *Mutex) Pointer() unsafe.Pointer { return unsafe.Pointer(m) }

// HasWaiter reports whether a goroutine of this process waits for m.
func (m *Mutex) HasWaiter() bool {
	s := &gates[shard(m)]
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.by[m] != nil
}
