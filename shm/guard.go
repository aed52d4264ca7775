package shm

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
)

// Guard runs fn and returns what it returns. If the memory of the region is gone when fn touches it,
// because another program has cut the region's file or its disk has failed, Guard returns an error that
// is [ErrCorrupt], where the program would have ended without Guard. The region is gone for this process
// then: [At], [Region.Bytes], [Region.Grow], [Region.Exclusive], [Region.Dup] and opening it again
// answer ErrCorrupt too, until it is closed and its file is whole again.
//
// fn stops where it faulted, as in a panic: its deferred calls run, what it has written stays written,
// and a lock that it does not release in a deferred call stays locked. All other panics pass through.
// So do faults at other addresses, which arrive as panics too: see [debug.SetPanicOnFault].
//
// Guard protects neither the goroutines that fn starts, nor C code. A system call that is handed a
// slice of a cut region fails with EFAULT of its own accord. Nor does Guard find what was lost: the bytes
// of the last page behind the cut read as zeros, and so does all of a file that is cut and made longer
// again. The calls of this package guard themselves; those of sync and containers do not. Anonymous
// regions cannot be cut where the system can seal them.
//
// It costs some 10 ns and no system call, so one Guard around a whole unit of work is the usual use.
func (r *Region) Guard(fn func() error) error { return r.m.guard(fn) }

// guard is Guard, also for the accesses of this package. The caller's locks stay locked over a fault
// unless their unlocking is deferred inside fn.
func (m *mapping) guard(fn func() error) (err error) {
	before := debug.SetPanicOnFault(true) // of this goroutine
	defer func() {
		debug.SetPanicOnFault(before)
		if p := recover(); p != nil { // nil also after runtime.Goexit, which goes on
			if err = m.fault(p); err == nil {
				panic(p)
			}
		}
	}()
	return fn()
}

// fault returns the error for a panic that is a fault in the memory of m, or nil.
func (m *mapping) fault(p any) error {
	f, ok := p.(interface {
		runtime.Error
		Addr() uintptr
	})
	if !ok || m.file == nil {
		return nil
	}
	off := m.distance(f.Addr())
	switch end := max(m.end.Load(), m.cutEnd.Load()); {
	case m.closed.Load() && off < uint64(len(m.mem)): // by another goroutine, since the fault
		return m.fail("access", ErrClosed)
	case off >= end: // no pointer of ours leads there
		return nil
	}
	info, err := m.stat()
	switch {
	case err != nil:
		return m.fail("access", err)
	case uint64(info.Size()) <= off:
		return m.cut("access", uint64(info.Size()))
	case m.readOnly && m.readable(off):
		return nil // a write to a read-only region
	case m.inHole(off):
		return m.fail("access", errReleased)
	}
	m.giveUp()
	return m.fail("access", fmt.Errorf("no memory at offset %d of a file of %d bytes: it was cut and made longer again, or its file system failed: %w", off, info.Size(), ErrCorrupt))
}

// stat asks about the region's file, unless the descriptor has come to lead elsewhere.
func (m *mapping) stat() (os.FileInfo, error) {
	info, err := m.file.Stat()
	if err == nil && !os.SameFile(info, m.info) {
		err = fmt.Errorf("its descriptor was closed by somebody and leads to another file now: %w", ErrClosed)
	}
	return info, err
}

// readable reports whether the byte at off can be read.
func (m *mapping) readable(off uint64) (ok bool) {
	before := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(before)
	defer func() { ok = recover() == nil }()
	runtime.KeepAlive(m.mem[off])
	return true
}

// intact returns an error if the file is shorter than what this process uses of it.
func (m *mapping) intact(op string) error {
	if m.file == nil {
		return nil
	}
	end := max(m.end.Load(), m.cutEnd.Load()) // before the length: both grow
	info, err := m.stat()
	switch {
	case err != nil:
		return m.fail(op, err)
	case uint64(info.Size()) < end:
		return m.cut(op, uint64(info.Size()))
	case m.cutEnd.Load() != 0 && !m.closed.Load():
		return m.fail(op, fmt.Errorf("its file was cut before: %w", ErrCorrupt))
	}
	return nil
}

// cut gives up the region, whose file has only size bytes left.
func (m *mapping) cut(op string, size uint64) error {
	m.giveUp()
	return m.fail(op, fmt.Errorf("its file was cut to %d bytes, %d were in use: %w", size, m.cutEnd.Load(), ErrCorrupt))
}

// giveUp ends the use of a region whose file was cut: no offset becomes a pointer any more.
func (m *mapping) giveUp() {
	for end := m.end.Load(); end != 0; end = m.end.Load() { // ends: it grows, or becomes 0
		m.cutEnd.Store(end) // first: Close wants to know the end
		if m.end.CompareAndSwap(end, 0) {
			m.log.Error("shm: the file of a region was cut", "region", m.where())
		}
	}
}
