package shm

import "sync/atomic"

// LaneSlot returns the number of the slot whose lanes this process uses in r, -1 if it has none: r is open for
// reading only, or closed. Unlike [Region.Slot] it knows the one slot of a region on the Go heap.
func (r *Region) LaneSlot() int {
	m := r.m
	if m.seat == nil || m.closed.Load() {
		return -1
	}
	return m.seat.slot
}

// Lanes returns the word for the offset of the lanes of a slot, 0 as long as it has none. Lanes belong to the
// slot, not to its process: they stay when it is freed. See [Recoverer].
func (r *Region) Lanes(slot int) *atomic.Uint64 { return &r.m.slots[slot].lanes }

// Logged reports whether the region was made by a program with a [Recoverer], so that no program without one can
// open it: only in such a region operations are undone whose process dies.
func (r *Region) Logged() bool { return r.m.logged }

// Pressure returns the word that is raised when memory runs short: every process gives back what it keeps in reserve.
func (r *Region) Pressure() *atomic.Uint64 { return &r.m.header.press }
