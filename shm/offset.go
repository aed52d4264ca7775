package shm

import (
	"fmt"
	"unsafe"
)

// An Offset refers to a byte of a region: its distance from the region's start, the same in every
// process. 0 refers to nothing.
type Offset uint64

// At returns the T at off in r. It is the one place where offsets become pointers: an offset from shared
// memory is foreign input, and one that lies outside the data area or is not aligned for T is
// [ErrCorrupt], never a fault. It does not ask how long the file is now: see [Region.Guard]. The pointer
// is valid until the region is closed; afterwards it leads to private memory. O(1), and without system
// calls but for the first look behind an end that another process has moved.
func At[T any](r *Region, off Offset) (*T, error) {
	var t T
	m, n := r.m, uint64(unsafe.Sizeof(t))
	if off%Offset(unsafe.Alignof(t)) != 0 || !inside(m.end.Load(), off, n) && !inside(m.size(), off, n) {
		return nil, m.badOffset(off, n, uint64(unsafe.Alignof(t)))
	}
	return (*T)(unsafe.Add(unsafe.Pointer(m.header), off)), nil
}

// Bytes returns the n bytes at off in r, under the rules of [At].
func (r *Region) Bytes(off Offset, n uint64) ([]byte, error) {
	m := r.m
	if !inside(m.end.Load(), off, n) && !inside(m.size(), off, n) {
		return nil, m.badOffset(off, n, 1)
	}
	return unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(m.header), off)), n), nil
}

// Pointer returns the address of off in r, or nil unless n bytes there are known to lie in the data area. It is [Region.Bytes] for hot
// paths: it is inlined, and leaves to that one what is behind an end that another process has moved, and to say what is wrong.
func (r *Region) Pointer(off Offset, n uint64) unsafe.Pointer {
	if !inside(r.m.end.Load(), off, n) {
		return nil
	}
	return unsafe.Add(unsafe.Pointer(r.m.header), off)
}

// inside reports whether n bytes at off lie in a data area that ends at end.
func inside(end uint64, off Offset, n uint64) bool {
	return off >= dataStart && uint64(off) <= end && n <= end-uint64(off)
}

//go:noinline
func (m *mapping) badOffset(off Offset, n, align uint64) error {
	if m.closed.Load() {
		return m.fail("access", ErrClosed)
	}
	if err := m.intact("access"); err != nil {
		return err
	}
	return m.fail("access", fmt.Errorf("%d bytes at offset %d, aligned to %d, are not inside the data area [%d, %d): %w", n, off, align, uint64(dataStart), m.size(), ErrCorrupt))
}

// OffsetOf returns the offset of the address p, and whether it lies in r.
func (r *Region) OffsetOf(p unsafe.Pointer) (Offset, bool) {
	d := uintptr(p) - uintptr(unsafe.Pointer(r.m.header))
	return Offset(d), d < uintptr(len(r.m.mem))
}

// Locate returns the open region of this process that holds the address p, if there is one. The
// handle is not counted: do not close it.
func Locate(p unsafe.Pointer) (r *Region, off Offset, ok bool) {
	m := locate(p)
	if m == nil {
		return nil, 0, false
	}
	return &m.uncounted, Offset(uintptr(p) - uintptr(unsafe.Pointer(m.header))), true
}

// ClosedAt reports whether the address p lies where a region was that this process has closed, or that
// the kernel has it down as dead in, and the region's name.
func ClosedAt(p unsafe.Pointer) (name string, closed bool) {
	if m := locate(p); m != nil && !m.proven() {
		m.unseat()
	}
	regions.closedMu.Lock()
	defer regions.closedMu.Unlock()
	for _, c := range regions.closed {
		if uintptr(p)-c.base < c.len {
			return c.name, true
		}
	}
	return "", false
}
